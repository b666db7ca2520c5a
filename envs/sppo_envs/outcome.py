"""Any Gymnasium environment as a task with one binary outcome at the end of the episode.

| you have                     | use                                                                                     |
| ---------------------------- | --------------------------------------------------------------------------------------- |
| one environment              | `OutcomeReward(env, success, horizon)`                                                  |
| B copies of it, in lockstep  | `OutcomeVectorEnv(lambda: OutcomeReward(...), B)`, or `ProcessVectorEnv` for slow ones  |
| a vector environment         | `OutcomeVectorReward(envs, success, horizon)`                                           |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from .lockstep import BoolArray, LockstepVectorEnv, Seed, checked_horizon

Success = Callable[[Any, dict[str, Any]], Any]
"""(last observation, info) -> success, a bool (of a vector environment: (B,) bools). info holds the environment's own
entries and episode_return, episode_length, last_reward (all by the environment's own rewards), terminated, truncated."""
Measures = Callable[[Any, dict[str, Any]], dict[str, Any]]
"""(last observation, info) -> further entries of the last step's info: what else is worth knowing about the episode."""


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
        measures: see `Measures`.
        dense: the environment's own reward -> what each step pays in place of the outcome, for training an expert;
            None for the sparse outcome.

    Raises:
        ValueError: horizon below 1, or None where the environment has no limit of its own.
        TypeError: (from `step`) `success` returned something else than a boolean.

    Example:
        >>> import gymnasium as gym
        >>> env = OutcomeReward(gym.make("CartPole-v1"), lambda obs, info: info["episode_return"] >= 475)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        success: Success,
        horizon: int | None = None,
        measures: Measures | None = None,
        dense: Callable[[float], float] | None = None,
    ) -> None:
        super().__init__(env)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        if horizon is None and limit is None:
            raise ValueError(f"{env} has no step limit of its own; pass a horizon (--horizon)")
        if horizon is not None:
            checked_horizon(horizon)
        self.horizon: int = min(x for x in (horizon, limit) if x is not None)
        self._success, self._measures, self._dense = success, measures, dense
        self.dense = dense is not None
        """Whether each step pays a shaped reward in place of the outcome."""
        self._last: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the wrapped environment's."""
        self._last, self._return, self._length = None, 0.0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the wrapped environment's, but for the reward; see the class."""
        if self._last is not None:
            return self._last[0], 0.0, True, False, self._last[1]
        obs, own_reward, terminated, truncated, info = self.env.step(action)
        self._return += float(own_reward)
        self._length += 1
        reward = 0.0 if self._dense is None else self._dense(float(own_reward))
        if not (terminated or truncated or self._length >= self.horizon):
            return obs, reward, False, False, info
        info = {**info, "episode_return": self._return, "episode_length": self._length}
        seen = {**info, "last_reward": float(own_reward), "terminated": bool(terminated), "truncated": bool(truncated)}
        success = self._success(obs, seen)
        if not isinstance(success, bool | np.bool_):
            raise TypeError(f"success must return a bool, got {success!r} of {type(success).__name__}")
        if self._measures is not None:
            values = self._measures(obs, seen)
            info |= {
                name: x.item() if isinstance(x, np.generic | np.ndarray) and x.ndim == 0 else x
                for name, x in values.items()
            }
        info["success"] = bool(success)
        self._last = obs, info
        return obs, float(success) if self._dense is None else reward, True, False, info


class WrappedOutcome(gym.Wrapper[Any, Any, Any, Any]):
    """What an `OutcomeReward` promises, for an environment that has one somewhere below other wrappers.

    The outcome is the inner one's. Rewards that wrappers in between have changed are left out, and so are steps after an
    episode's end.

    Args:
        env: wrappers around an `OutcomeReward`; see `find_outcome`.
        horizon: longest episode, in steps; None takes the least limit in the stack.

    Raises:
        ValueError: horizon below 1; there is no `OutcomeReward`.
        RuntimeError: (from `step`) a wrapper ended the episode, or took `success` away.
    """

    def __init__(self, env: gym.Env[Any, Any], horizon: int | None = None) -> None:
        super().__init__(env)
        inner = find_outcome(env)
        if inner is None:
            raise ValueError(f"{env} has no OutcomeReward in it, so nothing says what success is")
        if horizon is not None:
            checked_horizon(horizon)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        # The inner one has to know the least limit: the outcome is decided at the last step.
        self.horizon: int = min(x for x in (inner.horizon, limit, horizon) if x is not None)
        inner.horizon = self.horizon
        self._inner = inner
        self._last: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the wrapped environment's."""
        self._last = None
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the wrapped environment's, but for the reward; see the class."""
        if self._last is not None:
            return self._last[0], 0.0, True, False, self._last[1]
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):
            return obs, float(reward) if self._inner.dense else 0.0, False, False, info
        if not isinstance(info.get("success"), bool):
            raise RuntimeError(
                f"{self.env} ended an episode without `success` in info: a wrapper around its OutcomeReward ends "
                "episodes, or changes info; put it inside"
            )
        self._last = obs, info
        return obs, float(reward) if self._inner.dense else float(info["success"]), True, False, info


def find_outcome(env: gym.Env[Any, Any]) -> OutcomeReward | None:
    """The `OutcomeReward` in a stack of wrappers, the outermost if there are several; None if there is none."""
    while not isinstance(env, OutcomeReward):
        if not isinstance(env, gym.Wrapper):
            return None
        env = env.env
    return env


Outcome = OutcomeReward | WrappedOutcome
"""One environment with a binary outcome."""


class OutcomeVectorEnv(VectorEnv[Any, Any, Any]):
    """B copies of an `OutcomeReward` in lockstep, in this process, with autoreset off.

    (Gymnasium's own SyncVectorEnv refuses to go on, with autoreset off, as soon as one of its episodes has finished.)
    A finished episode keeps its last observation and info, has reward 0, and stays terminated until the next reset.

    Args:
        make: makes one of the copies.
        num_envs: B, at least 1.
        obs_scale: see `sppo_control.policies.Network`; None for 1.

    Raises:
        ValueError: num_envs below 1; what `make` raises.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, make: Callable[[], Outcome], num_envs: int, obs_scale: Sequence[float] | None = None) -> None:
        self.envs: list[Outcome] = []  # before anything can fail: Gymnasium closes half-made environments too
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs, self.obs_scale = num_envs, obs_scale
        self.envs = [make() for _ in range(num_envs)]
        self.horizon = self.envs[0].horizon
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Seed = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start B new episodes; of one seed, environment i gets seed + i; of B seeds, its own."""
        seeds = env_seeds(seed, self.num_envs)
        infos: dict[str, Any] = {}
        obs = []
        for i, (env, s) in enumerate(zip(self.envs, seeds, strict=True)):
            o, info = env.reset(seed=s, options=options)
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


class OutcomeVectorReward(LockstepVectorEnv):
    """`OutcomeReward` for an environment that is a vector environment already: your own batched simulator, say.

    Such environments start the next episode by themselves; what comes after an episode's end is dropped here.

    Args:
        envs: a vector environment of any autoreset mode but SAME_STEP, which hides last observations.
        success: (last observations (B, ...), info of arrays (B,)) -> (B,) bool; see `Success`.
        horizon: longest episode, in steps; None takes the environment's own limit.
        measures: see `Measures`; arrays (B,).

    Raises:
        ValueError: SAME_STEP; horizon below 1, or None where the environment has no limit of its own.
        TypeError: (from `step`) `success` returned something else than B booleans.

    Example:
        >>> import gymnasium as gym
        >>> envs = gym.make_vec("Acrobot-v1", num_envs=4)
        >>> envs = OutcomeVectorReward(envs, lambda obs, info: info["terminated"], horizon=200)
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], success: Success, horizon: int | None = None,
        measures: Measures | None = None,
    ) -> None:  # fmt: skip
        limit = envs.spec.max_episode_steps if envs.spec is not None else None
        if horizon is None and limit is None:
            raise ValueError(f"{envs} has no step limit of its own; pass a horizon")
        if envs.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
            raise ValueError(f"{envs} resets in the step that ends an episode; make it with AutoresetMode.NEXT_STEP")
        if horizon is not None:
            checked_horizon(horizon)
        lowest = min(x for x in (horizon, limit) if x is not None)
        super().__init__(envs.num_envs, lowest, False, envs.single_observation_space, envs.single_action_space)
        self.envs, self._success, self._measures = envs, success, measures
        self.obs_scale = getattr(envs.unwrapped, "obs_scale", None)

    def _begin(self, seed: Seed, options: dict[str, Any] | None) -> npt.NDArray[Any]:
        seeds = list(seed) if seed is not None and not isinstance(seed, int | np.integer) else seed
        self._obs = np.array(self.envs.reset(seed=seeds, options=options)[0])  # type: ignore[arg-type] # a list may be given
        self._return = np.zeros(self.num_envs)
        return self._obs

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], BoolArray]:
        obs, reward, terminated, truncated, self._info = self.envs.step(actions)
        running = ~self._done
        self._obs = np.where(running.reshape(-1, *[1] * (obs.ndim - 1)), obs, self._obs)
        self._reward = np.asarray(reward, dtype=np.float64)
        self._return += np.where(running, self._reward, 0.0)
        self._terminated, self._truncated = np.asarray(terminated), np.asarray(truncated)
        return self._obs, self._terminated | self._truncated

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        own = {"episode_return": self._return, "episode_length": np.full(self.num_envs, self._steps)}
        seen = {**self._info, **own, "last_reward": self._reward}
        seen |= {"terminated": self._terminated, "truncated": self._truncated}
        success = checked_success(self._success(self._obs, seen), self.num_envs)
        return {"success": success, **own, **(self._measures(self._obs, seen) if self._measures else {})}

    def close_extras(self, **kwargs: Any) -> None:
        """Close the vector environment inside."""
        if hasattr(self, "envs"):  # Gymnasium closes half-made environments too
            self.envs.close()


def checked_success(success: Any, num_envs: int) -> BoolArray:
    """What a success predicate returned, if it is an array of B booleans.

    Raises:
        TypeError: otherwise.
    """
    if not isinstance(success, np.ndarray) or success.dtype != np.bool_ or success.shape != (num_envs,):
        found = f"{success.dtype} of shape {success.shape}" if isinstance(success, np.ndarray) else repr(success)
        raise TypeError(f"success must return a boolean array of shape ({num_envs},), got {found}")
    return success


def env_seeds(seed: Seed, num_envs: int) -> list[int | None]:
    """One seed an environment: seed + i of one number, B numbers as they are, None of None.

    Raises:
        ValueError: another number of seeds than B.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"seed must be one number or {num_envs}, one an environment; got {len(seed)}")
    return [int(s) for s in seed]
