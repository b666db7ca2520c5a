"""Checks of e07_group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import Case, against, against_kit, call, faults, numbers, show
from ..grading import Check, Mistake


def _case(outcome: Sequence[float], n: int) -> Case:
    return {"outcome": list(outcome)}, {"group_size": n}


VALUES = [
    _case([0.0, 1.0], 2),
    _case([1.0, 0.0, 0.0], 3),
    _case([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], 4),
    _case([1.0, 0.0, 0.0, 0.0, 0.5, 1.0], 3),
]
EQUAL = [_case([1.0, 1.0], 2), _case([0.0] * 3 + [1.0] * 3, 3), _case([1.0, 1.0, 1.0, 0.0], 2)]


def _interleaved(R: Tensor, n: int) -> Tensor:
    g = R.reshape(n, -1)
    return ((g - g.mean(0)) / g.std(0, correction=0).clamp(min=1e-12)).reshape(-1)


def _advantage(student: ModuleType, cases: Sequence[Case], leave_out: Sequence[str] = ()) -> None:
    against_kit(
        "group_relative_advantage",
        lambda x, o: {"advantage": call(student.group_relative_advantage, x["outcome"], o["group_size"])},
        cases,
        leave_out=["group_normalisation_inverted", "group_always_divided", *leave_out],
        more={
            "groups_are_interleaved_rows": lambda x, o: {"advantage": _interleaved(x["outcome"], o["group_size"])},
            "The mean is divided away, not subtracted.": lambda x, o: {"advantage": x["outcome"] * 0},
            "It is divided by the variance, not by the standard deviation.": lambda x, o: {
                "advantage": torch.cat(
                    [(g - g.mean()) / g.var(correction=0) for g in x["outcome"].reshape(-1, o["group_size"])]
                )
            },
        },
    )


def values(student: ModuleType) -> None:
    _advantage(student, VALUES, ["group_deviation_of_zero_not_caught", "group_equality_by_the_mean"])


def equal(student: ModuleType) -> None:
    for arrays, options in EQUAL:
        R = torch.tensor(arrays["outcome"], dtype=torch.float64)
        found = numbers(student.group_relative_advantage(R, options["group_size"]), tuple(R.shape), "the advantage")
        if found.isnan().any():
            raise Mistake(
                f"{faults('group_relative_advantage')['group_deviation_of_zero_not_caught']} With "
                f"{show(arrays | options)}, the advantage is {show(found)}, right is 0 for a group of equal outcomes."
            )
    for dtype in (
        torch.float64,
        torch.float32,
    ):  # in float64 a small epsilon, such as 1e-8, would hide the rounding error
        for tenths in range(1, 10):
            for n in range(3, 9):
                R = torch.full((n,), tenths / 10, dtype=dtype)
                found = numbers(student.group_relative_advantage(R, n), (n,), "the advantage")
                if not found.abs().max() < 1e-3:
                    by = "by itself" if dtype == torch.float64 else "by a number as small: these outcomes are float32"
                    raise Mistake(
                        f"Equal outcomes must give 0, but the mean of {n} times {tenths / 10} is rounded, and the "
                        f"rounding error is divided {by}: each advantage is {show(found[0])}, right is 0. Compare the "
                        "largest outcome with the smallest."
                    )
    _advantage(student, EQUAL)


def _curve(student: ModuleType, p: float) -> Any:
    found = student.curve(p)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Mistake(f"curve must return two numbers, for a success and for a failure, but it returns {show(found)}.")
    return [float(x) for x in found]


def _right_curve(p: float) -> list[float]:
    return [math.sqrt((1 - p) / p), -math.sqrt(p / (1 - p))]


def curve(student: ModuleType) -> None:
    against(
        lambda p: _curve(student, p),
        [{"p": 0.5}, {"p": 0.2}, {"p": 0.9}],
        _right_curve,
        "the curve",
        {
            "Both are the other way round: first the success, then the failure.": lambda p: _right_curve(p)[::-1],
            "A failure has a negative advantage.": lambda p: [_right_curve(p)[0], -_right_curve(p)[1]],
            "This is R - p, which is not yet divided by the standard deviation.": lambda p: [1 - p, -p],
            "It is divided by the variance p (1 - p), not by its square root.": lambda p: [1 / p, -1 / (1 - p)],
            "p and 1 - p are mixed up under the root.": lambda p: [math.sqrt(p / (1 - p)), -math.sqrt((1 - p) / p)],
            "The square root is missing.": lambda p: [(1 - p) / p, -p / (1 - p)],
        },
    )


def share(student: ModuleType) -> None:
    against(
        student.share_that_teaches,
        [{"p": 0.5, "group_size": 2}, {"p": 0.9, "group_size": 3}, {"p": 0.1, "group_size": 8}],
        lambda p, n: 1 - p**n - (1 - p) ** n,
        "the share",
        {
            "This is the share of groups that teach nothing.": lambda p, n: p**n + (1 - p) ** n,
            "Groups of failures alone are forgotten.": lambda p, n: 1 - p**n,
            "Groups of successes alone are forgotten.": lambda p, n: 1 - (1 - p) ** n,
            "This is the variance p (1 - p) of one outcome.": lambda p, n: p * (1 - p),
            "This counts pairs of different outcomes, which is right for N = 2 only.": lambda p, n: 2 * p * (1 - p),
            "Both are added for each episode, but all N must be equal at once: a power, not a product.": lambda p, n: (
                1 - n * p * (1 - p)
            ),
        },
    )


CHECKS = (
    Check("the advantage is (R - mean) / std within each group", values),
    Check("a group of equal outcomes has 0", equal),
    Check("the curve of both advantages against p", curve),
    Check("how often a group teaches something", share),
)
HINTS = {
    "the advantage is (R - mean) / std within each group": (
        "outcome.reshape(-1, group_size) has one group per row. Take means with dim=1 and keepdim=True.",
        "torch.std divides by N - 1 unless you say correction=0.",
    ),
    "a group of equal outcomes has 0": (
        "Where all outcomes are equal, replace the std by 1 and the result by 0. Compare the largest with the smallest.",
    ),
    "the curve of both advantages against p": (
        "A success has R - mean = 1 - p, and std = sqrt(p (1 - p)). Divide, and shorten the fraction under the root.",
    ),
    "how often a group teaches something": (
        "All N outcomes are successes with probability p^N, and all are failures with (1 - p)^N.",
    ),
}
