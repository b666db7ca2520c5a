"""Checks of e10_calibration."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import against
from ..grading import Check


def _case(V: list[float], R: list[float], num_bins: int | None = None) -> dict[str, Any]:
    case: dict[str, Any] = {
        "probability": torch.tensor(V, dtype=torch.float64),
        "outcome": torch.tensor(R, dtype=torch.float64),
    }
    return case if num_bins is None else {**case, "num_bins": num_bins}


PAIRS = [_case([0.75], [1.0]), _case([0.25, 0.5], [1.0, 0.0]), _case([0.125, 0.75, 0.5], [0.0, 1.0, 1.0])]
BINS = [
    _case([0.3], [1.0], 2),
    _case([0.1, 0.3, 0.8], [0.0, 1.0, 1.0], 2),
    _case([0.1, 0.45, 0.55, 0.9, 0.95], [0.0, 1.0, 1.0, 1.0, 0.0], 2),
    _case([0.1, 0.3, 0.2, 0.7], [1.0, 0.0, 0.0, 0.0], 4),
]
EDGES = [_case([1.0], [0.0], 2), _case([0.5, 0.125], [0.0, 1.0], 2), _case([0.0, 1.0, 0.25], [0.0, 1.0, 1.0], 4)]
SKILL = [
    _case([0.5, 0.5], [0.0, 1.0]),
    _case([0.25, 0.75], [0.0, 1.0]),
    _case([0.25, 0.5, 0.75, 0.75], [1.0, 0.0, 1.0, 1.0]),
]


def _brier(V: Tensor, R: Tensor) -> Tensor:
    return (V - R).square().mean()


def brier(student: ModuleType) -> None:
    against(
        student.brier_score,
        PAIRS,
        _brier,
        "the Brier score",
        {
            "brier_score_not_squared": lambda V, R: (V - R).abs().mean(),
            "This is the sum over the batch, not the mean.": lambda V, R: (V - R).square().sum(),
            "This is the square root of the Brier score.": lambda V, R: _brier(V, R).sqrt(),
            "It is halved, as a squared loss often is. The Brier score is not.": lambda V, R: _brier(V, R) / 2,
            "The mean is squared, so errors of both signs cancel. Take the mean of the squares.": lambda V, R: (
                (V - R).mean().square()
            ),
            "This is the cross-entropy.": lambda V, R: torch.nn.functional.binary_cross_entropy(V, R),
        },
    )


def _ece(
    gap: Callable[[Tensor, Tensor], Tensor] = lambda V, R: (V.mean() - R.mean()).abs(),
    share: Callable[[int, int, int], float] = lambda inside, b, bins: inside / b,
    place: Callable[[Tensor], Tensor] = lambda x: x.floor(),
    largest: bool = False,
) -> Callable[[Tensor, Tensor, int], Tensor]:
    def error(V: Tensor, R: Tensor, n: int) -> Tensor:
        bins = place(V * n).long().clamp(0, n - 1)
        filled = [k for k in range(n) if bool((bins == k).any())]
        terms = [share(int((bins == k).sum()), len(V), len(filled)) * gap(V[bins == k], R[bins == k]) for k in filled]
        return torch.stack(terms).max() if largest else torch.stack(terms).sum()

    return error


def _drop_last(V: Tensor, R: Tensor, n: int) -> Tensor:
    bins = (V * n).long()
    terms = [(bins == k).double().mean() * (V[bins == k].mean() - R[bins == k].mean()).abs()
             for k in range(n) if bool((bins == k).any())]  # fmt: skip
    return torch.stack([torch.zeros((), dtype=torch.float64), *terms]).sum()


WRONG: dict[str, Any] = {
    "calibration_gaps_never_cancel": _ece(gap=lambda V, R: (V - R).abs().mean()),
    "calibration_bins_rounded": _ece(place=torch.round),
    "All bins count the same. A bin counts with its share of the episodes.": _ece(share=lambda i, b, n: 1 / n),
    "The gaps of the bins are added up without their shares.": _ece(share=lambda i, b, n: 1.0),
    "This is the largest gap of a bin, not the weighted mean.": _ece(share=lambda i, b, n: 1.0, largest=True),
    "There is one bin too few: torch.linspace(0, 1, K) are the edges of K - 1 bins.": lambda V, R, n: _ece()(
        V, R, max(n - 1, 1)
    ),
    "There is one bin for all: |mean V - mean R|. Over all contexts errors cancel.": lambda V, R, n: (
        V.mean() - R.mean()
    ).abs(),
    "The gaps keep their sign, so those of different bins cancel.": lambda V, R, n: V.mean() - R.mean(),
    "The gaps are squared, where their size is asked for.": _ece(gap=lambda V, R: (V.mean() - R.mean()).square()),
    "The sums of the bins are not divided by the number of episodes.": _ece(share=lambda i, b, n: float(i)),
    "V = 1 is in no bin. It belongs to the last one.": _drop_last,
    "A V at an edge is in the bin below it. It belongs to the bin above: [1/K, 2/K).": _ece(
        place=lambda x: x.ceil() - 1
    ),
}


def bins(student: ModuleType) -> None:
    against(
        student.expected_calibration_error,
        BINS,
        _ece(),
        "the ECE",
        {k: v for k, v in WRONG.items() if not k.startswith(("V = 1", "A V at an edge"))},
    )


def edges(student: ModuleType) -> None:
    against(student.expected_calibration_error, EDGES + BINS, _ece(), "the ECE", WRONG)


def skill(student: ModuleType) -> None:
    def constant(R: Tensor) -> Tensor:
        return (R.mean() - R).square().mean()

    against(
        student.skill,
        SKILL,
        lambda V, R: 1 - _brier(V, R) / constant(R),
        "the skill",
        {
            "This is the quotient of both scores; 1 minus it is the skill.": lambda V, R: _brier(V, R) / constant(R),
            "It is upside down: the constant's score belongs below.": lambda V, R: (
                1 - constant(R) / _brier(V, R).clamp(min=1e-9)
            ),
            "This is the difference of both scores, not yet divided by that of the constant.": lambda V, R: (
                constant(R) - _brier(V, R)
            ),
            "The constant is 1/2, not the batch's success rate.": lambda V, R: 1 - _brier(V, R) / 0.25,
            "The constant is the mean of V, not of R.": lambda V, R: 1 - _brier(V, R) / (V.mean() - R).square().mean(),
            "The variance is that of a sample, divided by B - 1.": lambda V, R: 1 - _brier(V, R) / R.var(),
            "This is the explained variance: a constant error of V does not count in it.": lambda V, R: (
                1 - (V - R).var(correction=0) / constant(R)
            ),
        },
    )


CHECKS = (
    Check("the Brier score is the mean squared error", brier),
    Check("the ECE compares means within bins", bins),
    Check("V at the edge of a bin, and V = 1", edges),
    Check("the skill compares with a constant critic", skill),
)
HINTS = {
    "the Brier score is the mean squared error": ("(V - R)^2, and the mean over the batch.",),
    "the ECE compares means within bins": (
        "In each bin that is not empty: |mean V - mean R|, times the number of its episodes, divided by B.",
    ),
    "V at the edge of a bin, and V = 1": (
        "The number of the bin is (V * K).long(). For V = 1 it is K, which is one too many.",
    ),
    "the skill compares with a constant critic": (
        "The constant critic says R.mean() everywhere. Its Brier score is the variance of R, divided by B and not B - 1.",
    ),
}
