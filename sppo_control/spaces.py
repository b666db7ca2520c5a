"""Which spaces a policy of this package can act in, and how its samples become an environment's actions.

| actions                  | what a policy samples          | what the environment receives                            |
| ------------------------ | ------------------------------ | -------------------------------------------------------- |
| Discrete                 | 0 to n - 1                     | the same number, plus `start`                            |
| Box of floats, any shape | A numbers around 0, of size 1  | the numbers, clipped to the bounds                       |
| - bounds that are far    | the same                       | -1 becomes the lower bound, 1 the upper one; clipped     |
| - no bounds              | the same                       | the numbers                                              |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

ToEnvironment = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""samples of a policy, (B,) int64 or (B, A) float32 -> actions of B environments"""

NEAR = (0.5, 4.0)
"""Bounds on both sides of 0 whose distances from 0 are within these are near: samples are clipped, not scaled."""
ENDLESS = 1e6
"""A bound of this size or above is none, because no sample around 0 is near it. (Some environments give 3.4e38.)"""


def unsupported(observations: gym.Space[Any], actions: gym.Space[Any]) -> str | None:
    """Why no policy of this package can act in these spaces, and the way out; None if one can."""
    if not isinstance(observations, spaces.Box) or len(observations.shape) != 1 or 0 in observations.shape:
        return (
            f"observations must be a Box of shape (D,), got {_short(observations)}; "
            "gymnasium.wrappers.FlattenObservation makes one"
        )
    if isinstance(actions, spaces.Discrete):
        return None
    way_out = "; gymnasium.wrappers.TransformAction makes one of them from your actions"
    if not isinstance(actions, spaces.Box) or not np.issubdtype(actions.dtype, np.floating) or 0 in actions.shape:
        return f"actions must be Discrete or a Box of floats, got {_short(actions)}{way_out}"
    low, high = bounds(actions)
    for i in np.flatnonzero((np.isfinite(low) & np.isinf(high) & (low > 0)) | (np.isinf(low) & (high < 0))):
        return (
            f"action {i} has one bound only, and 0 is outside: {low[i]:g} to {high[i]:g}. A policy samples around 0 and "
            f"would never leave that bound; give the environment both bounds{way_out.replace('them', 'these')}"
        )
    return None


def action_size(space: gym.Space[Any]) -> int:
    """Outputs of a policy: n of Discrete, the number of entries of a Box."""
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))


def bounds(space: spaces.Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lower and upper bounds, (A,) each; infinite where there is none, see `ENDLESS`."""
    low, high = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (space.low, space.high))
    return np.where(low <= -ENDLESS, -np.inf, low), np.where(high >= ENDLESS, np.inf, high)


def scaled(space: spaces.Box) -> npt.NDArray[np.bool_]:
    """Which entries of an action are scaled to their bounds, (A,): those with two bounds that are not `NEAR`."""
    low, high = bounds(space)
    near = (-low >= NEAR[0]) & (-low <= NEAR[1]) & (high >= NEAR[0]) & (high <= NEAR[1])
    return np.isfinite(low) & np.isfinite(high) & ~near


def to_environment(space: gym.Space[Any]) -> ToEnvironment:
    """How samples of a policy become actions; see the module."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return (lambda actions: actions) if start == 0 else (lambda actions: actions + start)
    assert isinstance(space, spaces.Box)
    box, flat, shape = space, (action_size(space),), space.shape
    low, high = np.reshape(box.low, flat), np.reshape(box.high, flat)
    far = scaled(space)

    def clipped(actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        actions = np.clip(actions, low, high)
        return actions if shape == flat else actions.reshape(len(actions), *shape)

    if not far.any():
        return clipped
    dtype = box.low.dtype
    middle = np.where(far, (low.astype(np.float64) + high) / 2, 0.0)
    half = np.where(far, (high.astype(np.float64) - low) / 2, 1.0)
    return lambda actions: clipped((middle + half * actions).astype(dtype))


def to_samples(space: gym.Space[Any], actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The way back: actions of an environment, (N,) or (N, *shape) -> what a policy would have sampled."""
    if isinstance(space, spaces.Discrete):
        return actions - int(space.start)
    assert isinstance(space, spaces.Box)
    actions, far = np.reshape(actions, (len(actions), -1)), scaled(space)
    if not far.any():
        return actions
    low, high = bounds(space)
    return np.where(far, (actions - np.where(far, low + high, 0.0) / 2) / np.where(far, high - low, 2.0) * 2, actions)


def observation_scale(space: spaces.Box) -> list[float] | None:
    """Factors (D,) for observations of whole numbers with far bounds, such as bytes, so that they are at most 1 in size.
    None for all others, because their bounds often say little about their size."""
    if not np.issubdtype(space.dtype, np.integer):
        return None
    size = np.maximum(np.abs(space.low.astype(np.float64)), np.abs(space.high.astype(np.float64)))
    return np.where((size > 1) & (size < ENDLESS), 1 / np.maximum(size, 1), 1.0).tolist()


def _short(space: gym.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 200 else text[:200] + " ..."
