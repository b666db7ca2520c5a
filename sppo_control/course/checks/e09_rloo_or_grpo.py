"""Checks of e09_rloo_or_grpo."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..compare import against
from ..grading import Check, Mistake

BINOMIAL: list[dict[str, Any]] = [
    {"k": k, "p": p, "group_size": n} for k, p, n in ((1, 0.25, 2), (2, 0.25, 2), (0, 0.25, 2), (2, 0.8, 4))
]
CASES: list[dict[str, Any]] = [{"p": p, "group_size": n} for p, n in ((0.5, 2), (0.25, 2), (0.8, 3), (0.1, 4))]


def _binomial(k: int, p: float, n: int) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def _mean(f: Callable[[float, int], float], weight: Callable[[int, float, int], float] = _binomial) -> Any:
    """The expectation of f(k / N, N)."""
    return lambda p, n: sum(weight(k, p, n) * f(k / n, n) for k in range(n + 1))


def _rloo(q: float, n: int) -> float:
    return n / (n - 1) * q * (1 - q)


def _grpo(q: float, n: int) -> float:
    return math.sqrt(q * (1 - q))


def _common(f: Callable[[float, int], float]) -> dict[str, Any]:
    return {
        "All k count the same; weigh them by their probabilities.": _mean(f, lambda k, p, n: 1 / (n + 1)),
        "The terms are added up without the probabilities of k.": _mean(f, lambda k, p, n: 1.0),
        "The binomial coefficients are missing.": _mean(f, lambda k, p, n: p**k * (1 - p) ** (n - k)),
        "This is the sum over the N episodes, not their mean.": lambda p, n: n * _mean(f)(p, n),
    }


def binomial(student: ModuleType) -> None:
    against(
        student.binomial,
        BINOMIAL,
        _binomial,
        "the probability",
        {
            "The number of orders, N over k, is missing: this is the probability of one order.": lambda k, p, n: (
                p**k * (1 - p) ** (n - k)
            ),
            "p and 1 - p are mixed up.": lambda k, p, n: _binomial(n - k, p, n),
            "The failures are forgotten: (1 - p)^(N - k).": lambda k, p, n: math.comb(n, k) * p**k,
            "This is the probability of at most k successes.": lambda k, p, n: sum(
                _binomial(j, p, n) for j in range(k + 1)
            ),
            "This is the probability of at least k successes.": lambda k, p, n: sum(
                _binomial(j, p, n) for j in range(k, n + 1)
            ),
        },
    )


def rloo(student: ModuleType) -> None:
    against(
        student.rloo_signal,
        CASES,
        lambda p, n: p * (1 - p),
        "RLOO's signal",
        {
            "N / (N - 1) is missing: this is the baseline that includes the episode itself.": _mean(
                lambda q, n: q * (1 - q)
            ),
            "This is the expectation of the advantage of a success; it counts for k/N of the episodes.": _mean(
                lambda q, n: n / (n - 1) * (1 - q) if q else 0.0
            ),
            "This is GRPO's.": _mean(_grpo),
            "N - 1 and N are the wrong way round.": _mean(lambda q, n: (n - 1) / n * q * (1 - q)),
            "Failures and successes are mixed up: this is the failures' advantage.": _mean(lambda q, n: -_rloo(q, n)),
            **_common(_rloo),
        },
    )


def grpo(student: ModuleType) -> None:
    try:
        against(
            student.grpo_signal,
            CASES,
            _mean(_grpo),
            "GRPO's signal",
            {
                "This is the limit for large groups. In a small group k/N varies.": lambda p, n: math.sqrt(p * (1 - p)),
                "This is RLOO's.": _mean(_rloo),
                "The square root is missing.": _mean(lambda q, n: q * (1 - q)),
                "This is the expectation of the advantage of a success; it counts for k/N of the episodes.": _mean(
                    lambda q, n: math.sqrt((1 - q) / q) if q else 0.0
                ),
                "The deviation is that of a sample, divided by N - 1.": _mean(
                    lambda q, n: math.sqrt(q * (1 - q) * (n - 1) / n)
                ),
                "This is the number that p (1 - p) would give: the mean of k/N (1 - k/N) under the root, taken too late.":
                lambda p, n: math.sqrt(p * (1 - p) * (n - 1) / n),
                **_common(_grpo),
            },
        )  # fmt: skip
    except ZeroDivisionError:
        raise Mistake(
            "Groups without a success or without a failure are divided by a deviation of 0. With k = 0 and with k = N all "
            "advantages are 0, so such a group adds nothing."
        ) from None


def weight(student: ModuleType) -> None:
    def right(p: float, n: int) -> float:
        return float(_mean(_grpo)(p, n) / (p * (1 - p)))

    against(
        student.relative_weight,
        CASES,
        right,
        "the weight",
        {
            "It is upside down: this is RLOO's signal divided by GRPO's.": lambda p, n: 1 / right(p, n),
            "This is the difference, not the quotient.": lambda p, n: _mean(_grpo)(p, n) - p * (1 - p),
            "This is the product, not the quotient.": lambda p, n: _mean(_grpo)(p, n) * p * (1 - p),
            "This is the limit for large groups.": lambda p, n: 1 / math.sqrt(p * (1 - p)),
        },
    )


CHECKS = (
    Check("the probability of k successes", binomial),
    Check("RLOO's signal is p (1 - p)", rloo),
    Check("GRPO's signal", grpo),
    Check("the weight that GRPO gives to a context", weight),
)
HINTS = {
    "the probability of k successes": ("math.comb(N, k) counts the orders in which k of N episodes succeed.",),
    "RLOO's signal is p (1 - p)": (
        "A success in a group with k successes has R - k/N = 1 - k/N. There are k of N of them.",
    ),
    "GRPO's signal": (
        "GRPO: k/N times (1 - k/N) / sqrt(k/N (1 - k/N)) is sqrt(k/N (1 - k/N)), which is 0 for k = 0 and k = N by itself.",
    ),
    "the weight that GRPO gives to a context": ("Divide grpo_signal by rloo_signal, for the same p and N.",),
}
