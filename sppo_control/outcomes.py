"""Batches of episodes and responses: padded sequences, success over many episodes, and other measures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .core import brier_score, expected_calibration_error, explained_variance, wilson_interval


class Padded:
    """A batch of sequences of different length, padded on the right; `mask` (B, T) bool is True on real steps."""

    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """Number of real steps of each sequence, (B,) int64."""
        return self.mask.sum(dim=1)

    @property
    def num_steps(self) -> int:
        """Number of real steps of the whole batch."""
        return int(self.mask.sum())


def ranks(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Ranks of (n,) numbers, 1 for the smallest; equal numbers share the mean of their ranks."""
    _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[index], dtype=np.float64)


def correlation(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """Pearson's correlation of (n,) and (n,), NaN if one is constant. Of `ranks` it is Spearman's."""
    return np.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


def spearman(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float | None:
    """Spearman's rank correlation of (n,) and (n,), for JSON: None if one is constant."""
    rho = correlation(ranks(x), ranks(y))
    return None if np.isnan(rho) else rho


def side_measures(info: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Further measures that an environment reports at the end of each episode: numbers and booleans.

    Each has one entry per episode that reports it. NaN and infinity count as not reported. What no episode reports is left
    out, and so are outcome, return and length.
    """
    known = ("success", "episode_return", "episode_length")
    found = {
        name: value[np.isfinite(value)]
        for name, value in sorted(info.items())
        if not name.startswith("_") and name not in known and value.ndim == 1 and value.dtype.kind in "biuf"
    }
    return {name: value for name, value in found.items() if len(value)}


def reported_by(info: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """How many episodes report each of `side_measures`, for those that not all episodes report."""
    return {name: len(x) for name, x in side_measures(info).items() if len(x) < len(info[name])}


def measure_scalars(info: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """What every algorithm logs of `side_measures`: TensorBoard tag to value."""
    means = {f"measures/{name}": _mean(x) for name, x in side_measures(info).items()}
    return means | {f"measures/{name}_reported": float(n) for name, n in reported_by(info).items()}


def end_infos(info: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The `info` of a vector environment after the last episode has ended -> name to numbers or booleans, (B,).

    An entry that some episodes have not reported (their mask `_name` is False) becomes float64, with NaN for those. An
    entry that none has reported is left out, and so is all that is not one number or boolean per episode.

    Raises:
        ValueError: there is no `success`.
    """
    found, num_envs = {}, _number_of_episodes(info)
    for name, value in info.items():
        if name.startswith("_") or not isinstance(value, np.ndarray) or value.shape != (num_envs,):
            continue
        mask = info.get(f"_{name}")
        if value.dtype.kind in "biuf" and (mask is None or np.any(mask)):
            found[name] = (
                value.copy() if mask is None or np.all(mask) else np.where(mask, value.astype(np.float64), np.nan)
            )
    return found


def joined(batches: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """`end_infos` of several batches one after the other; NaN for the batches that lack an entry.

    Raises:
        ValueError: a batch has no `success`.
    """
    sizes = [_number_of_episodes(batch) for batch in batches]
    names = sorted({name for batch in batches for name in batch})
    return {
        name: np.concatenate([b.get(name, np.full(n, np.nan)) for b, n in zip(batches, sizes, strict=True)])
        for name in names
    }


def _number_of_episodes(info: Mapping[str, Any]) -> int:
    if "success" not in info:
        raise ValueError(f"info must contain `success`, got {', '.join(info) or 'nothing'}; OutcomeReward reports it")
    return len(info["success"])


def _mean(x: npt.NDArray[Any]) -> float:
    return float(x.mean(dtype=np.float64))  # in float32 a sum of large numbers is infinite


_REWARDS = {
    "math": r"the answer must be in \boxed{}",
    "exact": "the whole response must be the answer",
    "after-equals": 'the answer must follow the last "="',
}


def nothing_to_learn(outcomes: npt.NDArray[Any] | Tensor, unit: str, reward: str | None = None) -> str | None:
    """Why binary outcomes teach nothing, if all of a number of episodes failed or all succeeded; None otherwise.

    Args:
        outcomes: (episodes,), in [0, 1], at least one.
        unit: "step" for control, "response" for a language model.
        reward: name of a language model's reward. If every response failed, the text says what that reward asks for.

    Raises:
        ValueError: no outcome, one outside [0, 1], or another unit.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"outcomes must be in [0, 1], at least one, got {values}")
    if unit not in ("step", "response"):
        raise ValueError(f"unit must be step or response, got {unit!r}")
    n, mean = len(values), float(values.mean())
    what = "episode" if unit == "step" else "response"
    if mean == 0:
        way_out = "lower the threshold (--success-return), or give a policy that succeeds sometimes (--start)"
        way_out = way_out if unit == "step" else "take easier prompts, or a model that succeeds sometimes"
        if reward is not None:
            asks = f": {_REWARDS[reward]}" if reward in _REWARDS else ""
            others = ", ".join(name for name in (*_REWARDS, "module:function") if name != reward)
            way_out += f". The reward is {reward}{asks}; other rewards: --reward {others}"
        return f"no {what} of {n:,} succeeded: nothing can be learnt from binary outcomes; {way_out}"
    if mean == 1:
        return f"all {n:,} {what}s succeeded: nothing is left to learn from binary outcomes; make the task harder"
    return None


def advantage_scalars(adv: Tensor, v0: Tensor, outcome: Tensor) -> dict[str, float]:
    """What every algorithm logs of its advantages and of V(s_0), or of its baseline in place of V(s_0).

    Args:
        adv: A, one per episode (B,), or one per real step (N,).
        v0: V(s_0) before the critic's update, or the baseline, (B,), in [0, 1].
        outcome: R, (B,), in [0, 1].

    Returns:
        TensorBoard tag -> value; docs/metrics.md has the formulas.

    Raises:
        ValueError: adv has no number or another shape; what `core.brier_score` raises.
    """
    if adv.ndim != 1 or not adv.numel() or not adv.is_floating_point():
        raise ValueError(f"adv must be floating, (B,) or (N,) with at least one, got {adv.dtype} {tuple(adv.shape)}")
    return {
        "losses/explained_variance": float(explained_variance(v0, outcome)),
        "advantages/mean": float(adv.mean()),
        "advantages/std": float(adv.std(correction=0)),
        "critic/v0_mean": float(v0.mean()),
        "critic/brier": float(brier_score(v0, outcome)),
        "critic/ece": float(expected_calibration_error(v0, outcome)),
    }


@dataclass(frozen=True)
class Evaluation:
    """Success of a policy over several episodes."""

    outcome: npt.NDArray[np.bool_]
    """Whether each episode succeeded, (episodes,)."""
    info: dict[str, npt.NDArray[Any]]
    """What the environment reported at the end of each episode; (episodes,) each, NaN where it did not report it."""

    def __post_init__(self) -> None:
        """Refuse an evaluation of no episode, which has no rate.

        Raises:
            ValueError: outcome is not bool, (episodes,), with at least one.
        """
        if self.outcome.dtype != np.bool_ or self.outcome.ndim != 1 or not len(self.outcome):
            what = f"{self.outcome.dtype} {self.outcome.shape}"
            raise ValueError(f"outcome must be bool, (episodes,), with at least one episode, got {what}")

    @property
    def rate(self) -> float:
        """Share of episodes that succeeded."""
        return float(self.outcome.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `rate`."""
        return wilson_interval(int(self.outcome.sum()), len(self.outcome))

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON: rate, its interval, number of episodes, and the mean of each further measure.

        A mean is over the episodes that report the measure. `reported` has their number, where it is not all episodes.
        """
        measures = {name: _mean(value) for name, value in side_measures(self.info).items()}
        reported = {"reported": few} if (few := reported_by(self.info)) else {}
        return {
            "rate": self.rate, "interval": self.interval, "episodes": len(self.outcome), "measures": measures, **reported,
        }  # fmt: skip

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.3f} [{low:.3f}, {high:.3f}]"
