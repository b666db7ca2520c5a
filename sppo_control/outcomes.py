"""Batches of outcomes: sequences of different length, success of a number of episodes, what was measured beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .core import wilson_interval


class Padded:
    """A batch of sequences of different length, padded on the right: `mask` (B, T) bool is True on what is real."""

    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """Steps of each sequence, (B,) int64."""
        return self.mask.sum(dim=1)

    @property
    def num_steps(self) -> int:
        """Steps of all of them, padding not counted."""
        return int(self.mask.sum())


def side_measures(info: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """What an environment reports at its episodes' ends beside the outcome, return and length: numbers and booleans,
    one an episode, each (B,)."""
    known = ("success", "episode_return", "episode_length")
    return {
        name: value
        for name, value in sorted(info.items())
        if not name.startswith("_") and name not in known and value.ndim == 1 and value.dtype.kind in "biuf"
    }


@dataclass(frozen=True)
class Evaluation:
    """Success of a policy over a number of episodes."""

    outcome: npt.NDArray[np.bool_]
    """(episodes,)"""
    info: dict[str, npt.NDArray[Any]]
    """What the environment reported at each episode's end; each (episodes,)."""

    @property
    def rate(self) -> float:
        """Share of episodes that succeeded."""
        return float(self.outcome.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `rate`."""
        return wilson_interval(int(self.outcome.sum()), len(self.outcome))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: rate, its interval, number of episodes, and the mean of each side measure."""
        measures = {name: float(value.mean()) for name, value in side_measures(self.info).items()}
        return {"rate": self.rate, "interval": self.interval, "episodes": len(self.outcome), "measures": measures}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.3f} [{low:.3f}, {high:.3f}]"
