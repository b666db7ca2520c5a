"""Any Gymnasium environment as a task with one binary outcome at the end of the episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

Success = Callable[[Any, dict[str, Any]], bool]
"""(last observation, info) -> success. info holds the environment's own entries and episode_return, episode_length,
terminated and truncated."""


class OutcomeReward(gym.Wrapper[Any, Any, Any, Any]):
    """Reward 0 until the episode's last step, then 1 for success or 0.

    The last step's info holds `success` (bool), `episode_return` (the sum of the environment's own rewards) and
    `episode_length`. An episode ends when the environment ends it, or after `horizon` steps; the end is always reported
    as terminated, never as truncated, because the outcome is then decided and nothing is left to bootstrap from.
    Stepping a finished episode repeats its last observation and info with reward 0 and leaves the environment alone, so
    that episodes of different length can run in lockstep.

    Args:
        env: any Gymnasium environment.
        success: decides the outcome at the end; see `Success`.
        horizon: longest episode, in steps; None takes the environment's own limit.

    Raises:
        ValueError: horizon below 1, or None where the environment has no limit of its own.
        TypeError: (from `step`) `success` returned something else than a boolean.

    Example:
        >>> import gymnasium as gym
        >>> env = OutcomeReward(gym.make("CartPole-v1"), lambda obs, info: info["episode_return"] >= 475)
    """

    def __init__(self, env: gym.Env[Any, Any], success: Success, horizon: int | None = None) -> None:
        super().__init__(env)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        if horizon is None and limit is None:
            raise ValueError(f"{env} has no step limit of its own; pass a horizon (--horizon)")
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon: int = min(x for x in (horizon, limit) if x is not None)
        self._success = success
        self._last: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the wrapped environment's."""
        self._last, self._return, self._length = None, 0.0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the wrapped environment's, but for the reward; see the class."""
        if self._last is not None:
            return self._last[0], 0.0, True, False, self._last[1]
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._return += float(reward)
        self._length += 1
        if not (terminated or truncated or self._length >= self.horizon):
            return obs, 0.0, False, False, info
        info = {**info, "episode_return": self._return, "episode_length": self._length}
        success = self._success(obs, {**info, "terminated": terminated, "truncated": truncated})
        if not isinstance(success, bool | np.bool_):
            raise TypeError(f"success must return a bool, got {success!r} of {type(success).__name__}")
        info["success"] = bool(success)
        self._last = obs, info
        return obs, float(success), True, False, info


class OutcomeVectorEnv(SyncVectorEnv):
    """`num_envs` copies of a Gymnasium environment, each an `OutcomeReward`, in lockstep with autoreset off.

    Args:
        env_id: a registered id, or "module:id".
        num_envs: B.
        success: see `OutcomeReward`.
        horizon: see `OutcomeReward`; the attribute of this name holds the one in force.
    """

    def __init__(self, env_id: str, num_envs: int, success: Success, horizon: int | None = None) -> None:
        def make() -> gym.Env[Any, Any]:
            return OutcomeReward(gym.make(env_id), success, horizon)

        super().__init__([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        self.horizon: int = self.get_attr("horizon")[0]
