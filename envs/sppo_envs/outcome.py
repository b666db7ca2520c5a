"""Any Gymnasium environment as a task with one binary outcome at the end of the episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

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


class OutcomeVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies of a Gymnasium environment, each an `OutcomeReward`, in lockstep with autoreset off.

    (Gymnasium's own SyncVectorEnv refuses to go on, with autoreset off, as soon as one of its episodes has finished.)
    A finished episode keeps its last observation and info, has reward 0, and stays terminated until the next reset.

    Args:
        env_id: a registered id, or "module:id".
        num_envs: B, at least 1.
        success: see `OutcomeReward`.
        horizon: see `OutcomeReward`; the attribute of this name holds the one in force.

    Raises:
        ValueError: num_envs below 1; see `OutcomeReward`.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, env_id: str, num_envs: int, success: Success, horizon: int | None = None) -> None:
        self.envs: list[OutcomeReward] = []  # before anything can fail: Gymnasium closes half-made environments too
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.envs = [OutcomeReward(gym.make(env_id), success, horizon) for _ in range(num_envs)]
        self.horizon = self.envs[0].horizon
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start B new episodes; environment i gets seed + i."""
        super().reset(seed=seed)
        infos: dict[str, Any] = {}
        obs = []
        for i, env in enumerate(self.envs):
            o, info = env.reset(seed=None if seed is None else seed + i, options=options)
            obs.append(o)
            infos = self._add_info(infos, info, i)
        return np.stack(obs), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every unfinished episode; actions (B,) or (B, A)."""
        infos: dict[str, Any] = {}
        obs, rewards, terminated = [], np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.bool_)
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            o, rewards[i], terminated[i], _, info = env.step(action)
            obs.append(o)
            infos = self._add_info(infos, info, i)
        return np.stack(obs), rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_), infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close every copy."""
        for env in self.envs:
            env.close()
