"""Checks of e06_critic_loss."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import Case, against, against_kit, faults
from ..grading import Check

VALUES: list[Case] = [
    ({"value_logit": [0.0], "outcome": [1.0]}, {}),
    ({"value_logit": [1.0], "outcome": [0.0]}, {}),
    ({"value_logit": [1.0, -2.0, 0.5], "outcome": [1.0, 1.0, 0.0]}, {}),
]
FRACTIONS: list[Case] = [({"value_logit": [1.0, -2.0], "outcome": [0.5, 0.25]}, {}), *VALUES]
LARGE: list[Case] = [
    ({"value_logit": [1000.0], "outcome": [0.0]}, {}),
    ({"value_logit": [-1000.0], "outcome": [1.0]}, {}),
]


def _loss(student: ModuleType, cases: Sequence[Case], gradients: Sequence[str] = ("value_logit",)) -> None:
    against_kit(
        "bernoulli_value_loss",
        lambda x, _: {"loss": student.critic_loss(x["value_logit"], x["outcome"])},
        cases,
        gradients=gradients,
        leave_out=["cross_entropy_denominator_ignored", "cross_entropy_trains_the_outcome"]
        if cases is not LARGE
        else [f for f in faults("bernoulli_value_loss") if f != "cross_entropy_of_a_rounded_probability"],
        more={
            "The cross-entropy of a sigmoid is cut off at 100, because log 0 is infinite. Use the logit.": lambda x, o: {
                "loss": torch.nn.functional.binary_cross_entropy(x["value_logit"].sigmoid(), x["outcome"])
            },
            "This is minus the cross-entropy: the likelihood is minimised.": lambda x, o: {
                "loss": -_bce(x, x["outcome"])
            },
            "R and 1 - R are mixed up: successes are trained to V = 0.": lambda x, o: {
                "loss": _bce(x, 1 - x["outcome"])
            },
            "Only successes count; the term (1 - R) log(1 - V) is missing.": lambda x, o: {
                "loss": (-x["outcome"] * x["value_logit"].sigmoid().log()).mean()
            },
            "The outcome is used as yes or no, but it can be a success rate, such as 0.5.": lambda x, o: {
                "loss": _bce(x, (x["outcome"] > 0.5).double())
            },
        },
    )


def _bce(x: dict[str, Tensor], R: Tensor) -> Tensor:
    v = x["value_logit"]
    return (torch.nn.functional.softplus(v) - R * v).mean()


def values(student: ModuleType) -> None:
    _loss(student, VALUES)


def fractions(student: ModuleType) -> None:
    _loss(student, FRACTIONS)


def large(student: ModuleType) -> None:
    _loss(student, LARGE)


BATCHES: list[dict[str, Any]] = [
    {"value_logit": torch.tensor(v, dtype=torch.float64), "outcome": torch.tensor(R, dtype=torch.float64)}
    for v, R in (([0.0], [1.0]), ([1.0], [0.0]), ([2.0, -1.0], [1.0, 1.0]))
]


def _gradients(slope: bool) -> dict[str, Any]:
    def right(v: Tensor, R: Tensor) -> Tensor:
        V = v.sigmoid()
        return (V - R) * (V * (1 - V) if slope else 1) / len(v)

    other = "cross-entropy" if slope else "squared error"
    return {
        "right": right,
        "wrong": {
            "The sign is turned: this is R - V, the way down, not the gradient.": lambda v, R: -right(v, R),
            "It is not divided by B, but the loss is a mean.": lambda v, R: right(v, R) * len(v),
            f"This is the gradient of the {other}.": _gradients(False)["right"] if slope else lambda v, R: (
                v.sigmoid() - R) * v.sigmoid() * (1 - v.sigmoid()) / len(v),
            "The logit is used as if it were a probability.": lambda v, R: (v - R) * (v * (1 - v) if slope else 1) / len(v),
            "This is the gradient with respect to V, not to the logit v.": lambda v, R: (v.sigmoid() - R) / len(v)
            if slope else (v.sigmoid() - R) / (v.sigmoid() * (1 - v.sigmoid())) / len(v),
            "The error is not halved in your loss, so the gradient is twice as large.": lambda v, R: 2 * right(v, R),
        },
    }  # fmt: skip


def cross_entropy(student: ModuleType) -> None:
    parts = _gradients(False)
    against(student.cross_entropy_gradient, BATCHES, parts["right"], "the gradient", parts["wrong"])


def squared(student: ModuleType) -> None:
    parts = _gradients(True)
    against(student.squared_error_gradient, BATCHES, parts["right"], "the gradient", parts["wrong"])


CHECKS = (
    Check("the loss is the mean cross-entropy, and trains the critic", values),
    Check("an outcome can be a success rate", fractions),
    Check("large logits give finite losses and gradients", large),
    Check("the gradient of the cross-entropy", cross_entropy),
    Check("the gradient of the squared error", squared),
)
HINTS = {
    "the loss is the mean cross-entropy, and trains the critic": (
        "F.softplus(-v) is -log V, and F.softplus(v) is -log(1 - V).",
        "Weigh both by R and 1 - R, and take the mean over the batch. Do not detach: the critic learns by this loss.",
    ),
    "an outcome can be a success rate": (
        "R is a weight between 0 and 1, not a choice of two. R softplus(-v) + (1 - R) softplus(v) works for each R.",
    ),
    "large logits give finite losses and gradients": (
        "log(sigmoid(v)) is -inf for v = -200. F.softplus and F.logsigmoid stay finite.",
    ),
    "the gradient of the cross-entropy": (
        "d softplus(v) / d v = sigmoid(v), so d L / d v = R (V - 1) + (1 - R) V = V - R. The mean divides it by B.",
    ),
    "the gradient of the squared error": (
        "By the chain rule d / d v (V - R)^2 / 2 = (V - R) dV/dv, and dV/dv = V (1 - V).",
    ),
}
