"""The statistics that scripts/report.py prints and draws.

| name          | what                                                                                                  |
| ------------- | ----------------------------------------------------------------------------------------------------- |
| IQM           | interquartile mean over seeds: without the lowest and highest quarter (n / 4 rounded down of each)    |
| interval      | 95 % percentile bootstrap interval; seeds are resampled, within each task if tasks are pooled         |
| p             | exact two-sided Mann-Whitney test; with ties a permutation test of the same ranks (all permutations   |
|               | if there are at most 9,999, else 9,999 random ones)                                                   |
| smoothed      | moving mean over 5 points of the curve; at 0 it begins with the success before training               |
| area          | mean success over all environment steps of the budget (--total-timesteps), not smoothed               |
| time to 0.9   | where the smoothed curve first reaches 0.9, linear between points; infinite if it never does          |

IQM and stratified bootstrap are as in rliable (Agarwal et al., arXiv 2108.13264). Equal input gives equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from sppo_control.study.results import Array, StudyRun

SMOOTH = 5
"""Number of points of the moving mean."""
CURVE_POINTS = 81
"""Number of points at which curves are interpolated."""


# -------------------------------------------------------------------------------------------------------- curves
def smoothed(run: StudyRun, axis: str) -> tuple[Array, Array]:
    """x and smoothed success, (points + 1,) each; at the ends the moving mean is over fewer points."""
    window = slice(SMOOTH // 2, SMOOTH // 2 + len(run.success))
    sums, counts = (np.convolve(y, np.ones(SMOOTH))[window] for y in (run.success, np.ones(len(run.success))))
    return np.append(0.0, run.x[axis]), np.append(run.before, sums / counts)


def band(runs: Sequence[StudyRun], axis: str) -> tuple[Array, Array, Array, Array]:
    """A grid from 0 to the end of the shortest run, and there the IQM and both ends of its interval (NaN for one run).

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("runs must be at least one run, got none")
    curves = [smoothed(run, axis) for run in runs]
    grid = np.linspace(0.0, min(x[-1] for x, _ in curves), CURVE_POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in curves], axis=-1)  # (CURVE_POINTS, runs)
    return grid, iqm(values), *interval(iqm, values, resamples=1000)


def time_to(run: StudyRun, axis: str, threshold: float) -> float:
    """Where the smoothed curve first reaches `threshold`; inf if it never does.

    Raises:
        ValueError: threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a success rate in [0, 1], got {threshold}")
    x, y = smoothed(run, axis)
    above = np.flatnonzero(y >= threshold)
    if len(above) == 0 or above[0] == 0:
        return 0.0 if len(above) else math.inf
    i = above[0]
    return float(x[i - 1] + (threshold - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


# ---------------------------------------------------------------------------------------------------- statistics
def iqm(*samples: Any, axis: int = -1) -> Any:
    """Interquartile mean of all samples together.

    Raises:
        ValueError: there is no number.
    """
    if not sum(np.shape(sample)[axis] for sample in samples):
        raise ValueError("samples must have at least one number, got none")
    return stats.trim_mean(np.concatenate(samples, axis), 0.25, axis)


def difference(*samples: Any, axis: int = -1) -> Any:
    """IQM of the first half of the samples minus IQM of the second half.

    Raises:
        ValueError: an odd number of samples, or a half without a number.
    """
    if len(samples) % 2:
        raise ValueError(f"samples must be an even number of them, one half against the other, got {len(samples)}")
    half = len(samples) // 2
    return iqm(*samples[:half], axis=axis) - iqm(*samples[half:], axis=axis)


def interval(statistic: Callable[..., Any], *samples: Any, resamples: int = 9999) -> tuple[Any, Any]:
    """95 % percentile bootstrap interval; NaN if a sample has only one run.

    The last axis of a sample is its runs. Each sample is resampled separately. With one sample per task this is the
    stratified bootstrap.

    Raises:
        ValueError: there is no sample; resamples below 2.
    """
    if not samples:
        raise ValueError("samples must be at least one sample, got none")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    samples = tuple(np.asarray(s, float) for s in samples)
    if min(s.shape[-1] for s in samples) < 2:
        return (np.full(samples[0].shape[:-1], np.nan),) * 2
    result = stats.bootstrap(
        samples, statistic, n_resamples=resamples, axis=-1, method="percentile", random_state=np.random.default_rng(0)
    )
    return tuple(result.confidence_interval)


def p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """p for the hypothesis that both samples come from one distribution; NaN if one of them has a single run.

    It is at least 2 divided by the number of ways to split the runs: 0.1 for 3 against 3, 0.008 for 5 against 5.

    Raises:
        ValueError: a number is NaN, because it has no rank.
    """
    if np.isnan([*a, *b]).any():
        raise ValueError(f"a and b must be numbers, and one of them is NaN: {[*a]} and {[*b]}")
    if min(len(a), len(b)) < 2:
        return math.nan
    ranks = stats.rankdata([*a, *b])
    if len(set(ranks)) == len(ranks):
        return float(stats.mannwhitneyu(a, b, method="exact").pvalue)
    result = stats.permutation_test(
        (ranks[: len(a)], ranks[len(a) :]), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=9999,
        vectorized=True, random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


def spearman_ceiling(rate: Sequence[float], rollouts: int) -> float:
    """Mean Spearman coefficient of a perfect V against measured success.

    The perfect V is the true success probability p of each context, for which `rate` is used. It is compared with new
    rollouts, as many as before. The numbers of a critic are never exactly equal. So among contexts of equal p (for example
    0 or 1) the ranks of V are random. Rollouts that come out equally from all contexts have no coefficient, and are left
    out. The result is NaN if all are, for example because all contexts have the same p.

    Args:
        rate: success rate of each context, in [0, 1].
        rollouts: number of rollouts per context, at least 1.

    Raises:
        ValueError: a rate outside [0, 1], or none; rollouts below 1.
    """
    p, rng = np.asarray(rate, float), np.random.default_rng(0)
    if not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"rate must be in [0, 1], for at least one context, got {p}")
    if rollouts < 1:
        raise ValueError(f"rollouts must be at least 1, got {rollouts}")
    if np.ptp(p) == 0:
        return math.nan
    draws = [(p + 1e-9 * rng.random(len(p)), rng.binomial(rollouts, p)) for _ in range(100)]
    found = [stats.spearmanr(v, measured).statistic for v, measured in draws if np.ptp(measured) > 0]
    return float(np.mean(found)) if found else math.nan


def holm(p: Iterable[float]) -> Array:
    """Holm's correction (1979) for as many tests as there are numbers. NaN does not count as a test and stays NaN.

    Raises:
        ValueError: a number outside [0, 1].
    """
    p = np.array(list(p), float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p must be in [0, 1], or NaN, got {p}")
    order = np.argsort(p)[: np.isfinite(p).sum()]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def estimate(middle: float, ends: Sequence[float], sign: str = "") -> str:
    """A number with its interval, as tables show it: "0.921 [0.881, 0.933]"."""
    text = f"{middle:{sign}.3f}"
    return f"{text} [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]" if np.isfinite(ends[0]) else f"{text} (one seed)"


def summary(values: Iterable[float | None]) -> str:
    """IQM with its interval. Seeds without a number are left out, with a note; a constant V has no correlation."""
    given = np.array([*values], float)
    finite = given[np.isfinite(given)]
    if not len(finite):
        return "undefined"
    some = f" ({len(finite)} of {len(given)} seeds)" if len(finite) < len(given) else ""
    return estimate(iqm(finite), interval(iqm, finite)) + some


class Informative(NamedTuple):
    """Whether a task tells algorithms apart; see `informative`."""

    spread: float
    """highest minus lowest mean over the algorithms"""
    half_width: float
    """half of the 95 % interval of one algorithm's mean"""
    ratio: float
    """spread / half_width"""
    yes: bool
    """ratio above 2"""


def informative(samples: Sequence[Sequence[float]]) -> Informative:
    """How far algorithms lie apart on one task, measured by the interval of one of them.

    The half-width is Student's t times the standard error of a mean over seeds. The variance over seeds is pooled over the
    algorithms, because few seeds of one algorithm say little about it. The number of seeds is the smallest of all. Above a
    ratio of 2 the intervals of the best and the worst algorithm do not overlap.

    Args:
        samples: one sequence for each algorithm: mean success over training, one number for each seed.

    Returns:
        NaN as half-width and ratio, and "no", for fewer than two algorithms, or if one has a single seed.

    Raises:
        ValueError: there is no algorithm, one has no number, or a number is not finite.
    """
    arms = [np.asarray(sample, float) for sample in samples]
    if not arms or any(len(arm) == 0 or not np.isfinite(arm).all() for arm in arms):
        raise ValueError(f"samples must be finite numbers, at least one for each algorithm, got {samples}")
    means = [float(arm.mean()) for arm in arms]
    spread, least = max(means) - min(means), min(map(len, arms))
    if len(arms) < 2 or least < 2:
        return Informative(spread, math.nan, math.nan, False)
    freedom = sum(len(arm) - 1 for arm in arms)
    variance = sum(float(np.square(arm - arm.mean()).sum()) for arm in arms) / freedom
    half_width = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance / least)
    ratio = spread / half_width if half_width else math.inf if spread else math.nan
    return Informative(spread, half_width, ratio, ratio > 2)
