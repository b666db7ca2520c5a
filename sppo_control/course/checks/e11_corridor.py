"""Checks of e11_corridor."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from .. import curves
from ..compare import call, expect, numbers, same
from ..grading import Check, Mistake

SECONDS = 60.0  # a mend with loops takes longer
SEEDS = (1, 2)
RIGHT = (0.27, 0.58, 0.82, 0.93, 0.97, 0.98, 0.99, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Success rates of a right program, the mean of 10 seeds, at each second update."""


def settings(student: ModuleType) -> None:
    curves.settings(student, CELLS=8, HORIZON=24, BATCH=64, UPDATES=40, LEARNING_RATE=0.1)


def episodes(student: ModuleType) -> None:
    for side, length, outcome in ((50.0, 7, 1), (-50.0, 24, 0)):
        logits = torch.tensor([[0.0, side]]).repeat(8, 1)
        batch = student.rollout(logits, np.random.default_rng(0))
        way = "right" if outcome else "left"
        for name in ("cell", "action", "mask"):
            if tuple(batch[name].shape) != (64, 24):
                raise Mistake(f"rollout returns {name} of shape {tuple(batch[name].shape)}, right is (64, 24).")
        lengths = {int(n) for n in batch["mask"].sum(1)}
        if lengths != {length}:
            raise Mistake(
                f"The mask does not mark the real steps: when each action is {way}, an episode has {length} steps, but the "
                f"mask has {sorted(lengths)}. The step that reaches the exit is a real step, and the next one is not."
            )
        cells = torch.arange(7) if outcome else torch.zeros(24)
        real = batch["mask"]
        if (
            not torch.equal(batch["cell"][real].double(), cells.double().repeat(64))
            or (batch["action"][real] != outcome).any()
            or (batch["outcome"] != outcome).any()
        ):
            raise Mistake(f"rollout has changed: cells, actions or outcomes are wrong when each action is {way}.")


def small_loss(student: ModuleType, before_the_curve: bool) -> None:
    """The loss of two episodes; whatever is in their padding, it is the same."""
    logits = torch.stack([torch.zeros(8), torch.arange(8) / 4], 1)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    outcome = torch.tensor([1.0, 0.5])
    for cell, action in ((0, 0), (3, 1)):
        batch = {
            "cell": torch.tensor([[5, 6, cell], [0, 1, 2]]),
            "action": torch.tensor([[1, 1, action], [1, 0, 1]]),
            "mask": mask,
            "outcome": outcome,
        }
        adv = call(student.advantage, outcome, mask)
        found = numbers(student.policy_loss(logits, batch, adv), (), "policy_loss")
        step = -outcome[:, None] * torch.log_softmax(logits, -1)[batch["cell"], batch["action"]]
        planted = step.sum() / 5
        baselined_step = step / outcome[:, None] * (outcome - outcome.mean())[:, None]
        baselined = baselined_step.sum()
        if before_the_curve and same(found, planted):
            continue
        real = torch.where(mask, step, 0.0)
        expect(
            found,
            real.sum() / 5,
            "policy_loss",
            f"episodes of 2 and 3 steps, whose outcomes are 1 and 0.5, and cell {cell} and action {action} in the padding",
            {
                "Padding is trained: the sum goes over all B x T places, also those after the end of an episode.": planted,
                "Padding is trained: the mean goes over all B x T places, also those after the end.": step.mean(),
                "The mean divides by all B x T places, but the batch has fewer real steps.": real.mean(),
                "The mean of each episode comes first, so a step of a long episode counts less.": (
                    real.sum(1) / mask.sum(1)
                ).mean(),
                "It is the sum over the episode's steps, not the mean over steps.": real.sum(1).mean(),
                "It is a sum, not a mean.": real.sum(),
                "A baseline is subtracted, which lowers the variance but leaves the bug. Here the advantage is the "
                "outcome.": baselined / 5,
                "A baseline is subtracted, and padding is not trained. Here the advantage is the outcome.": torch.where(
                    mask, baselined_step, 0.0
                ).sum()
                / 5,
                "The mask is turned round: only padding is trained.": (step - real).sum() / 5,
            },
        )


def success(logits: np.ndarray) -> float:
    """Probability that an episode reaches the exit in 24 steps."""
    right, at = curves.probabilities(logits, (8, 2), "the logits")[:, 1], np.eye(8)[0]
    for _ in range(24):
        moved = np.zeros(8)
        moved[7] = at[7]
        moved[1:] += at[:7] * right[:7]
        moved[np.maximum(np.arange(7) - 1, 0)[1:]] += (at[:7] * (1 - right[:7]))[1:]
        moved[0] += at[0] * (1 - right[0])
        at = moved
    return float(at[7])


def curve(student: ModuleType) -> None:
    for seed in SEEDS:
        found, logits = curves.returned(student.train(seed), ("success rates", "logits"), "train")
        rates = curves.series(found, 40, "the list of success rates")
        drawn = curves.chart("Share of episodes that succeed", rates, RIGHT, 0, 1)
        exact = success(logits)
        if exact < 0.9:
            raise curves.not_mended(
                f"after 40 updates {100 * exact:.0f} % of the episodes succeed, with a right program 100 % (seed {seed}).",
                drawn,
            )
        curves.same_as_policy(float(np.mean(rates[-5:])), exact, 0.1, "the success rate")
    print(drawn)


CHECKS = (
    Check("the settings are as they were", settings),
    Check("the task is as it was", episodes),
    Check("nothing else is broken", lambda student: small_loss(student, before_the_curve=True)),
    Check("success rises and stays", curve),
    Check("the loss of two small episodes is right", lambda student: small_loss(student, before_the_curve=False)),
)
CLOSER = (
    "When does success fall: when episodes are long, or when they have become short? Print logits[0] at each update. The "
    "policy unlearns one action in one cell. Which steps of the batch could teach it that?",
    "Print batch['cell'][0] and batch['action'][0] of an episode that succeeds early. What is there after its end?",
    "In policy_loss the mask is used once, in the denominator. What does the numerator sum over?",
)
HINTS = dict.fromkeys(
    (
        "success rises and stays",
        "the loss of two small episodes is right",
    ),
    CLOSER,
)
