"""Checks of e13_orchard."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import curves
from ..compare import call, expect, numbers, same, show
from ..grading import Check, Mistake

SECONDS = 60.0  # a mend with loops takes longer
SEEDS = (1, 2)
RIGHT = (0.027, 0.046, 0.06, 0.067, 0.071, 0.072, 0.075, 0.076, 0.077, 0.079, 0.081, 0.082)
"""Reward per day of a right program, the mean of 10 seeds."""
GAMMA, LAMBDA = 0.97, 0.9


def settings(student: ModuleType) -> None:
    right = {"RIPE": 10, "CUT": 3, "ENVS": 64, "STEPS": 9, "UPDATES": 48, "EPOCHS": 2}
    curves.settings(student, **right, GAMMA=GAMMA, LAMBDA=LAMBDA, CLIP=0.2, LEARNING_RATE=0.1)


def task(student: ModuleType) -> None:
    envs = student.Orchard(4, np.random.default_rng(0))
    envs.ripeness, envs.day = np.array([4, 4, 10, 10]), np.array([0, 2, 0, 2])
    step = envs.step(np.array([True, False, False, True]))
    right: dict[str, list[float]]
    right = {"final": [0, 5, 0, 0], "reward": [0.16, 0, 0, 1], "terminated": [0, 0, 1, 0], "truncated": [0, 1, 0, 1]}
    for name, values in right.items():
        if not np.allclose(step[name], values):
            raise Mistake(f"Orchard has changed: {name} is {show(step[name])} where it was {show(values)}.")
    found = float(student.evaluate(table(10), np.random.default_rng(0)))
    if abs(found - 1 / 11) > 0.01:
        raise Mistake(f"evaluate has changed: the best policy earns 0.091 per day, but evaluate says {found:.3f}.")


def table(pick_at: int) -> Tensor:
    """Logits of the policy that picks at this ripeness only."""
    return torch.tensor([[0.0, 50.0 if k == pick_at else -50.0] for k in range(11)])


def loss(student: ModuleType) -> None:
    logits, values = torch.zeros(11, 2, dtype=torch.float64), torch.zeros(11, dtype=torch.float64)
    logits[3, 1] = 1.0
    values[3] = 0.5
    batch = {
        "ripeness": torch.tensor([[3, 0]]),
        "action": torch.tensor([[1, 1]]),
        "advantage": torch.tensor([[1.0, -1.0]], dtype=torch.float64),
        "target": torch.tensor([[1.0, 0.0]], dtype=torch.float64),
    }
    logp = torch.log_softmax(logits, -1)[batch["ripeness"], batch["action"]]
    logp_old = logp - torch.log(torch.tensor([[1.5, 1.1]], dtype=torch.float64))
    expect(
        student.losses(logits, values, batch, logp_old),
        -(1.2 - 1.1) / 2 + 0.5 * 0.25 / 2,
        "losses",
        "ratios 1.5 and 1.1, advantages 1 and -1, and errors of the critic 0.5 and 0",
    )


def reference(case: dict[str, Tensor], cut: str = "terminated", stop: str = "over", shift: bool = False) -> Tensor:
    """GAE, right or with a mistake: what cuts V(s_{t+1}) off, and what stops the sum."""
    r, v, after = case["reward"], case["value"], case["next_value"]
    if shift:
        after = torch.cat([v[1:], after[-1:]])
    ends = {name: case[name].double() for name in ("terminated", "truncated")}
    ends |= {"over": (case["terminated"] | case["truncated"]).double(), "nothing": torch.zeros_like(r)}
    out, carry = torch.zeros_like(r), torch.zeros_like(r[0])
    for t in reversed(range(len(r))):
        carry = r[t] + GAMMA * after[t] * (1 - ends[cut][t]) - v[t] + GAMMA * LAMBDA * carry * (1 - ends[stop][t])
        out[t] = carry
    return out


def three_steps(student: ModuleType, before_the_curve: bool) -> None:
    """GAE of three steps, where the middle one ends, is cut off, or goes on."""
    for terminated, truncated in ((0, 0), (1, 0), (0, 1)):
        case = {
            "reward": torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64),
            "value": torch.tensor([[0.5], [0.25], [1.0]], dtype=torch.float64),
            "next_value": torch.tensor([[0.25], [0.75], [0.5]], dtype=torch.float64),
            "terminated": torch.tensor([[False], [bool(terminated)], [False]]),
            "truncated": torch.tensor([[False], [bool(truncated)], [False]]),
        }
        found = numbers(call(student.generalized_advantage, *case.values()), (3, 1), "generalized_advantage")
        planted = reference(case, cut="over")
        if before_the_curve and same(found, planted):
            continue
        sentence = "An episode that was cut off is treated as if it had ended: the value of the state after it is 0."
        expect(
            found,
            reference(case),
            "generalized_advantage",
            {name: x[:, 0].double() for name, x in case.items()},
            {
                sentence: planted,
                "The sum goes on over a cut: steps of the next episode flow into this one.": reference(
                    case, stop="terminated"
                ),
                f"{sentence[:-1]}, and the sum goes on over the cut.": reference(case, cut="over", stop="terminated"),
                "The sum goes on over the end of an episode.": reference(case, stop="nothing"),
                "The sum goes on over an end.": reference(case, stop="truncated"),
                "An episode that has ended has no future, but V of the state after it is added.": reference(
                    case, cut="nothing"
                ),
                "Ends and cuts are both ignored.": reference(case, cut="nothing", stop="nothing"),
                "value[t + 1] is the value of a new tree after a cut; next_value[t] is of this one.": reference(
                    case, shift=True
                ),
            },
        )


def next_values(student: ModuleType) -> None:
    """`train` passes the value of the state after the step, also at a cut."""
    steps: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    calls: list[list[Tensor]] = []
    signature = inspect.signature(student.generalized_advantage)

    class Recorded(student.Orchard):  # type: ignore[name-defined]
        def step(self, pick: np.ndarray) -> dict[str, np.ndarray]:
            before = self.ripeness.copy()
            found = super().step(pick)
            steps.append((before, {name: np.array(x) for name, x in found.items()}))
            return found

    def recorded(*args: Any, **named: Any) -> Tensor:
        bound = signature.bind(*args, **named).arguments
        calls.append([torch.as_tensor(x).detach().clone() for x in bound.values()])
        return original(*args, **named)

    original = student.generalized_advantage
    with curves.replaced(student, Orchard=Recorded, generalized_advantage=recorded, UPDATES=4):
        student.train(1)
    if len(calls) != 4 or len(steps) != 36:
        raise Mistake(
            f"In 4 updates train calls generalized_advantage {len(calls)} times and steps the orchard {len(steps)} times, "
            "right is 4 and 36."
        )
    _, value, after, ended, cut = calls[-1]
    known = {int(s): float(v) for t in range(9) for s, v in zip(steps[27 + t][0], value[t], strict=True)}
    for t in range(9):
        before, found = steps[27 + t]
        if not np.array_equal(ended[t], found["terminated"]) or not np.array_equal(cut[t], found["truncated"]):
            raise Mistake("train passes other ends or cuts to generalized_advantage than the orchard returns.")
        for b in range(64):
            state, mine = int(found["final"][b]), float(after[t, b])
            if found["terminated"][b] or state not in known or abs(mine - known[state]) < 1e-6:
                continue
            new = known.get(int(found["ripeness"][b]))
            if found["truncated"][b] and new is not None and abs(mine - new) < 1e-6:
                raise Mistake(
                    "next_value at a cut is the value of the new tree, with which another episode begins. The tree that "
                    f"was cut off had ripeness {state}, the new one has {int(found['ripeness'][b])}."
                )
            raise Mistake(
                f"next_value is not V of the state after the step: from ripeness {before[b]} to {state} it is {mine:.4f}, "
                f"right is {known[state]:.4f}."
            )


def exact(logits: Any) -> float:
    """Mean reward per day in 55 days."""
    picks = curves.probabilities(logits, (11, 2), "the logits")[:, 1]
    at, total = np.eye(11)[0], 0.0
    for _ in range(55):
        total += float((at * picks * (np.arange(11) / 10) ** 2).sum())
        at = np.concatenate([[(at * picks).sum()], (at * (1 - picks))[:-1]])
    return total / 55


def curve(student: ModuleType) -> None:
    for seed in SEEDS:
        found, logits = curves.returned(student.train(seed), ("rewards per day", "logits"), "train")
        rewards = curves.series(found, 12, "the list of rewards per day")
        drawn = curves.chart("Reward per day in the evaluation", rewards, RIGHT, 0, 0.1)
        value = exact(logits)
        if value < 0.055:
            raise curves.not_mended(
                f"the trained policy earns {value:.3f} per day, with a right program about 0.08 (seed {seed}).", drawn
            )
        curves.same_as_policy(rewards[-1], value, 0.02, "the reward per day")
    print(drawn)


CHECKS = (
    Check("the settings are as they were", settings),
    Check("the task and its evaluation are as they were", task),
    Check("the losses are as they were", loss),
    Check("nothing else is broken", lambda student: three_steps(student, before_the_curve=True)),
    Check("the values are those of the right states", next_values),
    Check("the reward per day rises", curve),
    Check("the advantages of three steps are right", lambda student: three_steps(student, before_the_curve=False)),
)
CLOSER = (
    "How far ahead does the policy look? A tree of ripeness 1 pays 0.01, and one of ripeness 10 pays 1. Print the critic's "
    "values after training. Can they be right, if nothing ever has to end?",
    "An episode ends for two reasons. The tree died: then there is no future. Or it was cut off: then there is one, but it "
    "was not observed. What knows about that future?",
    "In generalized_advantage the sum must stop at both. V(s_{t+1}) must be left out at one of them only.",
)
HINTS = dict.fromkeys(
    (
        "the values are those of the right states",
        "the reward per day rises",
        "the advantages of three steps are right",
    ),
    CLOSER,
)
