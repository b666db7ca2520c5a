"""Batches of episodes and responses: padded sequences, success over many episodes, and other measures of them."""

from __future__ import annotations

from collections.abc import Mapping
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


def side_measures(info: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Further measures that an environment reports at the end of each episode: numbers and booleans, (B,) each.

    Outcome, return and length are not among them.
    """
    known = ("success", "episode_return", "episode_length")
    return {
        name: value
        for name, value in sorted(info.items())
        if not name.startswith("_") and name not in known and value.ndim == 1 and value.dtype.kind in "biuf"
    }


def advantage_scalars(adv: Tensor, v0: Tensor, outcome: Tensor) -> dict[str, float]:
    """What every algorithm logs of its advantages and of V(s_0), or of its baseline in place of V(s_0).

    Args:
        adv: A, one per episode (B,), or one per real step (N,).
        v0: V(s_0) before the critic's update, or the baseline, (B,), in [0, 1].
        outcome: R, (B,), in [0, 1].

    Returns:
        TensorBoard tag -> value; docs/metrics.md has the formulas.
    """
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
    """What the environment reported at the end of each episode; (episodes,) each."""

    @property
    def rate(self) -> float:
        """Share of episodes that succeeded."""
        return float(self.outcome.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `rate`."""
        return wilson_interval(int(self.outcome.sum()), len(self.outcome))

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON: rate, its interval, number of episodes, and the mean of each further measure."""
        measures = {name: float(value.mean()) for name, value in side_measures(self.info).items()}
        return {"rate": self.rate, "interval": self.interval, "episodes": len(self.outcome), "measures": measures}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.3f} [{low:.3f}, {high:.3f}]"
