"""Checks of e08_leave_one_out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import Case, against, against_kit, call
from ..grading import Check, Mistake


def _case(outcome: Sequence[float], n: int) -> Case:
    return {"outcome": list(outcome)}, {"group_size": n}


VALUES = [
    _case([0.0, 1.0], 2),
    _case([1.0, 0.0, 0.0], 3),
    _case([1.0, 0.0, 1.0, 1.0], 2),
    _case([1.0, 0.0, 0.0, 1.0, 0.5, 1.0], 3),
]


def values(student: ModuleType) -> None:
    against_kit(
        "leave_one_out_advantage",
        lambda x, o: {"advantage": call(student.leave_one_out_advantage, x["outcome"], o["group_size"])},
        VALUES,
        more={
            "groups_are_interleaved_rows": lambda x, o: {
                "advantage": _leave_one_out(x["outcome"].reshape(o["group_size"], -1).t()).t().reshape(-1)
            },
            "This is the baseline itself, not R minus the baseline.": lambda x, o: {
                "advantage": x["outcome"] - _leave_one_out(x["outcome"].reshape(-1, o["group_size"])).reshape(-1)
            },
            "This is GRPO's advantage: it is divided by the standard deviation.": lambda x, o: {
                "advantage": torch.cat(
                    [
                        (g - g.mean()) / g.std(correction=0).clamp(min=1e-12)
                        for g in x["outcome"].reshape(-1, o["group_size"])
                    ]
                )
            },
        },
    )


def _leave_one_out(R: Tensor) -> Tensor:
    return R - (R.sum(-1, keepdim=True) - R) / (R.shape[-1] - 1)


def _centred(R: Tensor) -> Tensor:
    return R - R.mean()


def _plain(R: Tensor) -> Tensor:
    return R


def _expected(
    p: float,
    n: int,
    advantage: Callable[[Tensor], Tensor],
    weight: Callable[[Tensor, float], Any] = lambda R, p: torch.where(R == 1, p, 1 - p).prod(),
    score: Callable[[Tensor, float], Tensor] = lambda R, p: R - p,
    total: bool = False,
) -> float:
    found = 0.0
    for group in itertools.product((0.0, 1.0), repeat=n):
        R = torch.tensor(group, dtype=torch.float64)
        terms = advantage(R) * score(R, p)
        found += float(weight(R, p) * (terms.sum() if total else terms.mean()))
    return found


CASES: list[dict[str, Any]] = [
    {"p": p, "group_size": n, "advantage": f}
    for p, n, f in (
        (0.5, 2, _plain),
        (0.25, 2, _plain),
        (0.25, 2, _centred),
        (0.25, 2, _leave_one_out),
        (0.8, 3, _centred),
    )
]


def expected(student: ModuleType) -> None:
    wrong: dict[str, Any] = {
        "All groups count the same, but a group's probability is a product of p and 1 - p.": lambda p, n, f: _expected(
            p, n, f, lambda R, p: 0.5 ** len(R)
        ),
        "The terms are added up without the groups' probabilities.": lambda p, n, f: _expected(
            p, n, f, lambda R, p: 1.0
        ),
        "g is the sum over the group, not its mean.": lambda p, n, f: _expected(p, n, f, total=True),
        "The score R - p is left out.": lambda p, n, f: _expected(p, n, f, score=lambda R, p: torch.ones_like(R)),
        "The score is R, but it is R - p.": lambda p, n, f: _expected(p, n, f, score=lambda R, p: R),
        "The score has the wrong sign: it is R - p.": lambda p, n, f: _expected(p, n, f, score=lambda R, p: p - R),
        "p and 1 - p are mixed up in the groups' probabilities.": lambda p, n, f: _expected(
            p, n, f, lambda R, p: torch.where(R == 1, 1 - p, p).prod()
        ),
        "Only the number of successes is enumerated: binomial coefficients are missing.": lambda p, n, f: sum(
            p**k * (1 - p) ** (n - k) * float((f(R) * (R - p)).mean())
            for k in range(n + 1)
            for R in [torch.tensor([1.0] * k + [0.0] * (n - k), dtype=torch.float64)]
        ),
    }
    named = {"_plain": "A = R", "_centred": "A = R - mean of the group", "_leave_one_out": "RLOO's A"}

    def answer(p: float, n: int, f: Callable[[Tensor], Tensor]) -> Any:
        return student.expected_estimate(p, n, f)

    try:
        against(answer, CASES, _expected, "E[g]", wrong)
    except Mistake as mistake:
        text = str(mistake)
        for f in (_plain, _centred, _leave_one_out):
            text = text.replace(str(f), named[f.__name__])
        raise Mistake(text) from None


def unbiased(student: ModuleType) -> None:
    for p, n in ((0.5, 2), (0.2, 3), (0.9, 4)):
        found = student.expected_estimate(p, n, lambda R, n=n: student.leave_one_out_advantage(R, n))
        if abs(float(found) - p * (1 - p)) > 1e-6:
            raise Mistake(
                f"Your two functions do not agree: RLOO has no bias, but with p = {p} and N = {n} E[g] is "
                f"{float(found):.4g}, right is p (1 - p) = {p * (1 - p):.4g}."
            )


def factor(student: ModuleType) -> None:
    against(
        student.group_mean_factor,
        [{"group_size": 2}, {"group_size": 3}, {"group_size": 8}],
        lambda n: (n - 1) / n,
        "the factor",
        {
            "This is the factor that mends the estimate, not the one by which it is wrong.": lambda n: n / (n - 1),
            "This is the share of one episode in the mean. It is what is lost, not what is left.": lambda n: 1 / n,
            "There is a bias: R_i is part of its own baseline.": lambda n: 1.0,
            "The square root belongs to standard deviations, not here.": lambda n: ((n - 1) / n) ** 0.5,
            "This is right for another N: one too many or too few.": lambda n: n / (n + 1),
        },
    )


CHECKS = (
    Check("the baseline is the mean of the others", values),
    Check("the expectation over all groups", expected),
    Check("RLOO has no bias", unbiased),
    Check("the bias of the mean of the whole group", factor),
)
HINTS = {
    "the baseline is the mean of the others": (
        "The sum of the others is the sum of the group minus R_i. There are N - 1 of them.",
    ),
    "the expectation over all groups": (
        "itertools.product((0.0, 1.0), repeat=N) gives all groups. Each 1 has the factor p, each 0 has 1 - p.",
    ),
    "RLOO has no bias": ("For each group: its probability times the mean of A_i (R_i - p). Add all 2^N of them.",),
    "the bias of the mean of the whole group": (
        "Call expected_estimate(0.5, 2, lambda R: R - R.mean()) and compare with p (1 - p) = 0.25. Then N = 3.",
    ),
}
