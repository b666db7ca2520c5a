"""Checks of e12_quiz."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch

from .. import curves
from ..compare import expect
from ..grading import Check, Mistake

SECONDS = 60.0  # a mend with loops takes longer
SEEDS = (1, 2)
TRAINING = (0.34, 0.52, 0.62, 0.67, 0.72, 0.76, 0.8, 0.78, 0.8, 0.81, 0.83, 0.87, 0.86, 0.89, 0.88)
EVALUATION = (0.4, 0.54, 0.63, 0.69, 0.74, 0.75, 0.8, 0.8, 0.81, 0.84, 0.85, 0.85, 0.88, 0.87, 0.89)
"""Success rates of a right program, the mean of 10 seeds."""


def table(answer_at: int) -> torch.Tensor:
    """Logits of the policy that thinks this many times and then answers; 12 never answers."""
    return torch.tensor([[0.0, 50.0 if k == answer_at else -50.0] for k in range(12)])


def settings(student: ModuleType) -> None:
    curves.settings(student, THOUGHTS=11, HORIZON=12, BATCH=64, UPDATES=60, EVALUATE_EVERY=4, LEARNING_RATE=0.2)


def task(student: ModuleType) -> None:
    envs = student.Quiz(3, np.random.default_rng(0))
    seen = [envs.step(np.array([False, k == 1, k == 11])) for k in range(12)]
    thoughts, done = np.array([x[0] for x in seen]).T, np.array([x[2] for x in seen]).T
    right = np.array([[*range(1, 12), 0], [1, 0, *range(1, 11)], [*range(1, 12), 0]])
    if not np.array_equal(thoughts, right) or not np.array_equal(done, right == 0):
        raise Mistake("Quiz has changed: a quiz that ends must start again at 0 thoughts, in the same step.")
    rng = np.random.default_rng(0)
    for answer_at, rate in ((0, 0.15), (11, 0.92)):
        found = float(student.evaluate(table(answer_at), rng, 2000))
        if abs(found - rate) > 0.05:
            raise Mistake(
                f"evaluate or Quiz has changed: a policy that answers after {answer_at} thoughts is right in "
                f"{100 * rate:.0f} % of the quizzes, but evaluate says {100 * found:.0f} %."
            )


def loss(student: ModuleType) -> None:
    logits = torch.tensor([[0.5, 0.0]]).repeat(12, 1)
    batch = {
        "thoughts": torch.tensor([[0, 0], [0, 1]]),
        "action": torch.tensor([[1, 0], [0, 1]]),
        "mask": torch.tensor([[True, False], [True, True]]),
        "outcome": torch.tensor([1.0, 0.0]),
    }
    logp = torch.log_softmax(logits, -1)[batch["thoughts"], batch["action"]]
    steps = -torch.tensor([[0.75], [-0.25]]) * logp
    real = torch.where(batch["mask"], steps, 0.0)
    expect(
        student.policy_loss(logits, batch, 0.25),
        real.sum() / 2,
        "policy_loss",
        "two episodes of 1 and 2 steps, whose outcomes are 1 and 0, and a baseline of 0.25",
        {
            "Padding is trained.": steps.sum() / 2,
            "The mean is over steps, where the sum over an episode's steps is right.": real.sum() / 3,
            "The baseline is not subtracted.": -torch.where(batch["mask"], logp, 0.0)[0].sum() / 2,
        },
    )


def first_episode(student: ModuleType, before_the_curve: bool) -> None:
    """The mask and the outcome are those of each environment's first episode, of which there are four here."""
    made: list[Any] = []

    class Recorded(student.Quiz):  # type: ignore[name-defined]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.seen: list[tuple[np.ndarray, np.ndarray]] = []
            made.append(self)

        def step(self, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            thoughts, success, done = super().step(answer)
            self.seen.append((np.array(success), np.array(done)))
            return thoughts, success, done

    with curves.replaced(student, Quiz=Recorded):
        batch = student.rollout(table(2), np.random.default_rng(0))
    if not made or any(s.shape != (64,) for s, _ in made[0].seen):
        raise Mistake("rollout must step 64 environments of Quiz together.")
    success, done = (np.array(x) for x in zip(*made[0].seen, strict=True))
    each = np.arange(64)
    outcomes = {
        "first": success[done.argmax(0), each],
        "any": success.any(0),
        "last": success[-1],
        "last episode": success[np.flatnonzero(done.any(1))[-1]],
    }
    mask, outcome = np.asarray(batch["mask"]).astype(bool), np.asarray(batch["outcome"]) > 0.5
    if mask.shape != (64, 12) or outcome.shape != (64,):
        raise Mistake(f"mask and outcome have shapes {mask.shape} and {outcome.shape}, right is (64, 12) and (64,).")
    lengths = sorted({int(n) for n in mask.sum(1)})
    whose = [name for name, right in outcomes.items() if np.array_equal(outcome, right)]
    if before_the_curve and lengths == [12] and "any" in whose:
        return
    numbers = f"The policy thinks twice and then answers, so each first episode has 3 steps; the mask has {lengths}"
    truth, said = 100 * outcomes["first"].mean(), 100 * outcome.mean()
    rates = f"{truth:.0f} % of the first answers are right, and the outcomes say {said:.0f} %"
    if lengths == [4]:
        raise Mistake(f"The mask is one step too long: it has the first step of the next episode. {numbers}.")
    if lengths == [2]:
        raise Mistake(f"The mask leaves out the step that ends the episode, which is the answer itself. {numbers}.")
    if lengths == [12]:
        also = "" if "first" in whose else f" Also, {rates}."
        raise Mistake(
            "Steps of later episodes are trained with the outcome of the first. Environments restart by themselves. "
            f"{numbers}.{also}"
        )
    if lengths != [3] or not mask[:, :3].all():
        raise Mistake(f"The mask does not mark the first episode of each environment. {numbers}.")
    if "first" not in whose:
        if "any" in whose:
            reason = "a success of a later episode counts for the first one. Environments restart by themselves"
        elif "last" in whose or "last episode" in whose:
            reason = "it is the outcome of the last episode, not of the first"
        else:
            reason = "it is not that of the first episode"
        raise Mistake(f"The mask is right, but the outcome is not: {reason}. {rates}.")
    if (np.asarray(batch["thoughts"])[:, :3] != [0, 1, 2]).any() or (
        np.asarray(batch["action"])[:, :3] != [0, 0, 1]
    ).any():
        raise Mistake("rollout has changed: thoughts or actions of the first episode are wrong.")


def whole_episode(student: ModuleType) -> None:
    batch = student.rollout(table(12), np.random.default_rng(0))
    steps, right = np.asarray(batch["mask"]).sum(1), np.asarray(batch["outcome"]).sum()
    if (steps != 12).any() or right:
        raise Mistake(
            "A policy that never answers has episodes of 12 steps, the last of which is wrong; the mask has "
            f"{sorted({int(n) for n in steps})} and {int(right)} of 64 outcomes are successes."
        )


def exact(logits: Any) -> float:
    """Success rate of a policy."""
    answers = curves.probabilities(logits, (12, 2), "the logits")[:, 1]
    reached = np.cumprod(np.append(1.0, 1 - answers[:-1]))
    return float((reached * answers * (0.15 + 0.07 * np.arange(12))).sum())


def curve(student: ModuleType) -> None:
    for seed in SEEDS:
        parts = ("success rates in training", "success rates in evaluation", "logits")
        training, evaluation, logits = curves.returned(student.train(seed), parts, "train")
        training = curves.series(training, 15, "the list of success rates in training")
        evaluation = curves.series(evaluation, 15, "the list of success rates in evaluation")
        drawn = (
            curves.chart("Success in training", training, TRAINING, 0, 1),
            curves.chart("Success in evaluation", evaluation, EVALUATION, 0, 1),
        )
        rate, said = exact(logits), float(np.mean(training[-3:]))
        if rate < 0.65 or said - rate > 0.25:
            raise curves.not_mended(
                f"training says {100 * said:.0f} %, but in single quizzes the policy is right in {100 * rate:.0f} % "
                f"(seed {seed}). With a right program both are near 90 %.",
                *drawn,
            )
        curves.same_as_policy(said, rate, 0.25, "success in training")
        curves.same_as_policy(float(np.mean(evaluation[-3:])), rate, 0.15, "success in evaluation")
    print(drawn[1])


CHECKS = (
    Check("the settings are as they were", settings),
    Check("the task and its evaluation are as they were", task),
    Check("the loss is as it was", loss),
    Check("nothing else is broken", lambda student: first_episode(student, before_the_curve=True)),
    Check("success rises, in training and in evaluation", curve),
    Check("a batch has what it should have", lambda student: first_episode(student, before_the_curve=False)),
    Check("also when no quiz ends early", whole_episode),
)
CLOSER = (
    "What has the policy learned? Print softmax(logits) after training. For which way of counting would that be the best "
    "policy?",
    "A policy that answers at once is right in 15 % of the quizzes. Call rollout with such a policy. What is the mean of "
    "batch['outcome'], and how many steps does the mask have?",
    "An environment that ends starts again in the same step. All that happens after the first `done` belongs to another "
    "episode: it must change neither the outcome nor the mask.",
)
HINTS = dict.fromkeys(
    (
        "success rises, in training and in evaluation",
        "a batch has what it should have",
        "also when no quiz ends early",
    ),
    CLOSER,
)
