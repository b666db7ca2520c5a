"""Checks of e15_darts."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import curves
from ..compare import expect, gradient, numbers, same, show
from ..grading import Check, Mistake

SECONDS = 60.0  # a mend with loops takes longer
SEEDS = (1, 2)
RIGHT = (0.18, 0.49, 0.83, 0.99, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Success rates of a right program, the mean of 10 seeds, at each second update."""


def settings(student: ModuleType) -> None:
    curves.settings(student, BATCH=64, UPDATES=32, EPOCHS=5, CLIP=0.2, LEARNING_RATE=0.1)


def task(student: ModuleType) -> None:
    context, action = torch.tensor([0.0, 0.0, 1.0, -1.0]), torch.tensor([0.5, 0.9, 1.3, -0.5])
    if student.throw(context, action).tolist() != [1.0, 0.0, 1.0, 1.0]:
        raise Mistake("throw has changed: a dart succeeds if it is less than 0.3 from x + 0.5.")
    mean, log_std, action = torch.tensor([0.0, 1.0]), torch.tensor(0.5), torch.tensor([1.0, -1.0])
    right = torch.distributions.Normal(mean, log_std.exp()).log_prob(action)
    expect(
        student.log_prob(mean, log_std, action), right, "log_prob", {"mean": mean, "log_std": log_std, "action": action}
    )


def six_ratios(student: ModuleType, before_the_curve: bool) -> None:
    """Gradient and value of the loss of each of six throws."""
    ratio = torch.tensor([1.5, 0.5, 1.1, 1.5, 0.5, 1.1], dtype=torch.float64)
    adv = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    logp, old = ratio.log(), torch.zeros(6, dtype=torch.float64)
    mine = gradient(student.policy_loss, (logp, old, adv), 0, "policy_loss") * 6
    clipped = ratio.clamp(0.8, 1.2)
    inside = (ratio == clipped).double()
    right = -adv * ratio * torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    planted = -adv * ratio * torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    upper = -adv * ratio * (ratio < 1.2)
    if not (before_the_curve and same(mine, planted)):
        expect(
            mine,
            right,
            "the gradient of each throw's loss with respect to logp",
            {"ratios": ratio, "advantages": adv},
            {
                "The clip holds back what it should let pass, and lets pass what it should hold back. Of the two losses "
                "the larger one counts, of the two objectives the smaller one.": planted,
                "The ratio is not clipped.": -adv * ratio,
                "Only the clipped term is left: a throw outside the clip has no gradient, even if the policy has moved the "
                "wrong way.": -adv * ratio * inside,
                "The smaller ratio is taken before it is multiplied by the advantage. That is right for positive "
                "advantages only.": upper,
                "The sign of the loss is turned: it is minimised, but the objective is to be maximised.": -right,
                "The mean is left out: it is a sum.": 6 * right,
                "The ratio is always 1, since logp_old is not used.": -adv,
            },
        )
    loss = -adv * torch.stack([ratio, clipped])
    value = numbers(student.policy_loss(logp, old, adv), (), "policy_loss")
    if before_the_curve and same(value, loss.amin(0).mean()):
        return
    expect(value, loss.amax(0).mean(), "policy_loss", {"ratios": ratio, "advantages": adv})


def old_policy(student: ModuleType) -> None:
    """In each epoch of an update logp_old is that of the policy that threw."""
    calls: list[tuple[Tensor, Tensor]] = []

    def recorded(logp: Tensor, logp_old: Tensor, adv: Tensor) -> Any:
        calls.append((logp.detach().clone(), logp_old.detach().clone()))
        if logp_old.requires_grad:
            raise Mistake("logp_old has a gradient. It is a constant, from before the update.")
        return original(logp, logp_old, adv)

    original = student.policy_loss
    with curves.replaced(student, policy_loss=recorded, UPDATES=2):
        student.train(1)
    if len(calls) != 10:
        raise Mistake(f"In 2 updates of 5 epochs train calls policy_loss {len(calls)} times, right is 10.")
    for start in (0, 5):
        first = calls[start][1]
        for epoch, (logp, logp_old) in enumerate(calls[start : start + 5]):
            if not torch.equal(logp_old, first):
                raise Mistake(
                    "logp_old changes between the epochs of an update, so that the ratio is 1 or nearly 1 and nothing is "
                    "clipped. It must be that of the policy that threw."
                )
            if epoch and torch.equal(logp, logp_old):
                raise Mistake(
                    f"logp does not change: in epoch {epoch + 1} it is still {show(logp[0])} for the first throw."
                )


def exact(weight: Any, log_std: Any) -> float:
    """Success rate over all contexts."""
    w = numbers(weight, (2,), "the weights").detach()
    width = float(numbers(log_std, (), "log_std").detach().clamp(-30, 30).exp())
    if not w.isfinite().all() or not math.isfinite(width):
        return 0.0
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    away = w[0] * x + w[1] - (x + 0.5)
    return float((torch.special.ndtr((0.3 - away) / width) - torch.special.ndtr((-0.3 - away) / width)).mean())


def curve(student: ModuleType) -> None:
    for seed in SEEDS:
        found, weight, log_std = curves.returned(student.train(seed), ("success rates", "weights", "log_std"), "train")
        rates = curves.series(found, 32, "the list of success rates")
        drawn = curves.chart("Share of throws that succeed", rates, RIGHT, 0, 1)
        rate = exact(weight, log_std)
        if rate < 0.9:
            raise curves.not_mended(
                f"after 32 updates {100 * rate:.0f} % of the throws succeed, and {100 * max(rates):.0f} % did at the "
                f"best (seed {seed}). With a right program it is 100 %.",
                drawn,
            )
        curves.same_as_policy(float(np.mean(rates[-3:])), rate, 0.1, "the success rate")
    print(drawn)


CHECKS = (
    Check("the settings are as they were", settings),
    Check("the task is as it was", task),
    Check("nothing else is broken", lambda student: six_ratios(student, before_the_curve=True)),
    Check("old probabilities are those of the policy that threw", old_policy),
    Check("success rises and stays", curve),
    Check("the loss of six throws is right", lambda student: six_ratios(student, before_the_curve=False)),
)
CLOSER = (
    "One epoch is harmless, five are not. So the fault shows only where the ratio is not 1. Print the largest and the "
    "smallest ratio in each epoch.",
    "Take one throw with A = 1 and ratio = 1.5: the policy has already moved far enough. Is its gradient 0? Then take "
    "A = -1 with ratio = 0.5.",
    "The paper takes a minimum of two objectives, which are maximised. Here are two losses, with a minus.",
)
HINTS = dict.fromkeys(
    (
        "old probabilities are those of the policy that threw",
        "success rises and stays",
        "the loss of six throws is right",
    ),
    CLOSER,
)
