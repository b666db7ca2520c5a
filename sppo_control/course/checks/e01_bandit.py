"""Checks of e01_bandit."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from ..compare import against, expect
from ..grading import Check, Mistake

Pair = tuple[float, float]
SCORES: list[dict[str, Any]] = [{"theta": t, "arm": a} for t in (0.0, math.log(3)) for a in (1, 0)]
CASES: list[dict[str, Any]] = [
    {"theta": 0.0, "rewards": (0.0, 1.0), "baseline": 0.0},
    {"theta": math.log(3), "rewards": (0.0, 1.0), "baseline": 0.5},
    {"theta": -math.log(3), "rewards": (2.0, 1.0), "baseline": 1.0},
]


def _pi(theta: float) -> Pair:
    p = 1 / (1 + math.exp(-theta))
    return 1 - p, p


def _moment(theta: float, rewards: Pair, baseline: float, power: int, weights: Pair | None = None) -> float:
    pi = _pi(theta)
    return sum(
        (weights or pi)[a] * ((rewards[a] - baseline) * (a - pi[1])) ** power for a in (0, 1)
    )  # fmt: skip


def _variance(theta: float, rewards: Pair, baseline: float) -> float:
    return _moment(theta, rewards, baseline, 2) - _moment(theta, rewards, baseline, 1) ** 2


def score(student: ModuleType) -> None:
    against(
        student.score,
        SCORES,
        lambda theta, arm: arm - _pi(theta)[1],
        "the score",
        {
            "This is the derivative of pi, not of log pi. Divide by pi(a).": lambda theta, arm: (2 * arm - 1)
            * _pi(theta)[0] * _pi(theta)[1],
            "The score has the wrong sign.": lambda theta, arm: _pi(theta)[1] - arm,
            "Both arms have the score of arm 1.": lambda theta, arm: _pi(theta)[0],
            "Only the chosen arm 1 is right. That of arm 0 is -p, because log(1 - p) falls with theta.":
            lambda theta, arm: _pi(theta)[0] if arm else _pi(theta)[1],
            "This is log pi(a) itself, not its derivative.": lambda theta, arm: math.log(_pi(theta)[arm]),
            "theta is subtracted as if it were a probability. Use sigmoid(theta).": lambda theta, arm: arm - theta,
        },
    )  # fmt: skip


def mean(student: ModuleType) -> None:
    against(
        student.estimate_mean,
        CASES,
        lambda t, r, b: _moment(t, r, b, 1),
        "the mean",
        {
            "The two choices are added up without their probabilities.": lambda t, r, b: _moment(t, r, b, 1, (1.0, 1.0)),
            "Both choices count the same, but the policy takes them with its probabilities.":
            lambda t, r, b: _moment(t, r, b, 1, (0.5, 0.5)),
            "This is the expected reward minus the baseline; the score is left out.":
            lambda t, r, b: _pi(t)[0] * r[0] + _pi(t)[1] * r[1] - b,
            "The baseline is added, not subtracted.": lambda t, r, b: _moment(t, r, -b, 1),
            "The baseline is subtracted from the whole estimate. Subtract it from the reward, before the score.":
            lambda t, r, b: _moment(t, r, 0.0, 1) - b,
        },
    )  # fmt: skip


def unbiased(student: ModuleType) -> None:
    means = [float(student.estimate_mean(0.4, (0.0, 1.0), b)) for b in (0.0, 1.0)]
    if abs(means[0] - means[1]) > 1e-6:
        raise Mistake(
            f"The mean depends on the baseline, but E[s] = 0. With theta = 0.4 and rewards = [0, 1], the mean is "
            f"{means[0]:.4g} with b = 0 and {means[1]:.4g} with b = 1."
        )


def variance(student: ModuleType) -> None:
    against(
        student.estimate_variance,
        CASES,
        _variance,
        "the variance",
        {
            "The square of the mean is not subtracted, so this is E[g^2].": lambda t, r, b: _moment(t, r, b, 2),
            "This is the standard deviation, the square root of the variance.": lambda t, r, b: math.sqrt(
                max(_variance(t, r, b), 0)
            ),
            "The baseline is left out of the variance.": lambda t, r, b: _variance(t, r, 0.0),
            "The mean is subtracted without its square.": lambda t, r, b: _moment(t, r, b, 2) - _moment(t, r, b, 1),
            "Both choices count the same, but the policy takes them with its probabilities.": lambda t, r, b: (
                _moment(t, r, b, 2, (0.5, 0.5)) - _moment(t, r, b, 1, (0.5, 0.5)) ** 2
            ),
            "This is the variance of the reward, without the score.": lambda t, r, b: (
                _pi(t)[0] * _pi(t)[1] * (r[1] - r[0]) ** 2
            ),
        },
    )


def best(student: ModuleType) -> None:
    against(
        student.best_baseline,
        [
            {"theta": math.log(3), "rewards": (0.0, 1.0)},
            {"theta": -math.log(3), "rewards": (2.0, 1.0)},
            {"theta": 0.0, "rewards": (1.0, 3.0)},
        ],
        lambda t, r: _pi(t)[0] * r[1] + _pi(t)[1] * r[0],
        "the best baseline",
        {
            "This is the expected reward. It is a good baseline, but rewards with a large score must count more: "
            "E[r s^2] / E[s^2].": lambda t, r: _pi(t)[0] * r[0] + _pi(t)[1] * r[1],
            "This is the plain mean of both rewards, whatever the policy is.": lambda t, r: (r[0] + r[1]) / 2,
            "This is E[r s^2]; divide by E[s^2].": lambda t, r: (
                _pi(t)[0] * _pi(t)[1] ** 2 * r[0] + _pi(t)[1] * _pi(t)[0] ** 2 * r[1]
            ),
            "The squared scores are not weighted by the probabilities.": lambda t, r: (
                (_pi(t)[1] ** 2 * r[0] + _pi(t)[0] ** 2 * r[1]) / (_pi(t)[1] ** 2 + _pi(t)[0] ** 2)
            ),
            "This is the larger reward.": lambda t, r: max(r),
        },
    )
    theta, rewards = math.log(3), (0.0, 1.0)
    b = float(student.best_baseline(theta, rewards))
    expect(student.estimate_variance(theta, rewards, b), 0.0, "the variance with your best baseline")


CHECKS = (
    Check("the score is the derivative of log pi", score),
    Check("the mean of the estimate is right", mean),
    Check("no baseline changes the mean", unbiased),
    Check("the variance of the estimate is right", variance),
    Check("the best baseline has the smallest variance", best),
)
HINTS = {
    "the score is the derivative of log pi": (
        "log pi(1) = log sigmoid(theta). Its derivative is 1 - p. log pi(0) = log(1 - p), and its derivative is -p.",
    ),
    "the mean of the estimate is right": ("E[g] = (1 - p) g(0) + p g(1), with g(a) = (r_a - b) s(a).",),
    "no baseline changes the mean": (
        "E[s] = (1 - p) (-p) + p (1 - p) = 0. So b E[s] = 0 for each b, and the mean of the estimate has no b in it.",
    ),
    "the variance of the estimate is right": ("Var[g] = E[g^2] - E[g]^2, with E[g^2] = (1 - p) g(0)^2 + p g(1)^2.",),
    "the best baseline has the smallest variance": (
        "The mean of g does not depend on b. So only E[g^2] = E[(r - b)^2 s^2] must be small.",
        "d/db E[(r - b)^2 s^2] = -2 E[(r - b) s^2] = 0, so b = E[r s^2] / E[s^2].",
    ),
}
