"""Any Gymnasium environment as a task with one binary outcome at the end of the episode.

| you have                     | use                                                                                     |
| ---------------------------- | --------------------------------------------------------------------------------------- |
| one environment              | `OutcomeReward(env, success, horizon)`                                                  |
| B copies of it, in lockstep  | `OutcomeVectorEnv(lambda: OutcomeReward(...), B)`, or `ProcessVectorEnv` for slow ones  |
| a vector environment         | `OutcomeVectorReward(envs, success, horizon)`                                           |
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from .infos import Scalar, columns, scalars, stacked
from .lockstep import (
    BadStep,
    BoolArray,
    LockstepVectorEnv,
    Seed,
    checked_horizon,
    checked_num_envs,
    checked_seed,
)

Success = Callable[[Any, dict[str, Any]], Any]
"""(last observation, info) -> success, a bool (of a vector environment: (B,) bools). info contains the environment's own
entries and episode_return, episode_length, last_reward (all by the environment's own rewards), terminated, truncated."""
Measures = Callable[[Any, dict[str, Any]], dict[str, Any]]
"""(last observation, info) -> entries for the last step's info: what else is worth knowing about the episode. Numbers and
booleans are logged. Without it, the environment's own numbers and booleans of the last step are logged."""


class OutcomeReward(gym.Wrapper[Any, Any, Any, Any]):
    """Reward 0 until the episode's last step, then 1 for success or 0.

    The last step's info contains `success` (bool), `episode_return` (the sum of the environment's own rewards) and
    `episode_length`. An episode ends when the environment ends it, or after `horizon` steps. The end is always reported
    as terminated, never as truncated, because the outcome is then decided and nothing is left to bootstrap from.
    A step of a finished episode repeats its last observation and info, with reward 0. It leaves the environment alone.
    So episodes of different length can run in lockstep.

    Args:
        env: any Gymnasium environment.
        success: decides the outcome at the end; see `Success`.
        horizon: longest episode, in steps; None takes the least limit of the environment and its wrappers.
        measures: see `Measures`.
        dense: the environment's own reward -> what each step pays in place of the outcome, for training an expert;
            None for the sparse outcome.

    Raises:
        ValueError: horizon below 1, or None where the environment has no limit.
        BadStep: (from `reset` and `step`) the environment has Gym's old interface, or a reward is not one finite number.
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
        limit = step_limit(env)
        if horizon is None and limit is None:
            name = env if env.spec is None else env.spec.id
            raise ValueError(f"{name} has no step limit of its own; pass a horizon (--horizon)")
        if horizon is not None:
            checked_horizon(horizon)
        self.horizon: int = min(x for x in (horizon, limit) if x is not None)
        self._success, self._measures, self._dense = success, measures, dense
        self.dense = dense is not None
        """Whether each step pays a shaped reward in place of the outcome."""
        self.hidden: frozenset[str] = frozenset()
        """Entries of the last step's info that are not logged, because `measures` says what is."""
        self._last: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the wrapped environment's."""
        self._last, self._return, self._length = None, 0.0, 0
        begun = self.env.reset(seed=seed, options=options)
        if not isinstance(begun, tuple) or len(begun) != 2 or not isinstance(begun[1], dict):
            raise BadStep(f"{self.env}: reset() must return (observation, info), got {_kind(begun)}{_OLD}")
        return begun

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the wrapped environment's, but for the reward; see the class."""
        if self._last is not None:
            return self._last[0], 0.0, True, False, self._last[1]
        stepped: Any = self.env.step(action)
        if len(stepped) != 5:
            raise BadStep(
                f"{self.env}: step() must return (observation, reward, terminated, truncated, info), got "
                f"{_kind(stepped)}{_OLD}"
            )
        obs, own_reward, terminated, truncated, info = stepped
        self._length += 1
        own_reward = float(own_reward) if isinstance(own_reward, float | int) else self._number(own_reward)
        if not math.isfinite(own_reward):
            raise BadStep(f"the reward of {self.env} is {own_reward} in step {self._length} of its episode")
        self._return += own_reward
        reward = 0.0 if self._dense is None else self._dense(own_reward)
        if not (terminated or truncated or self._length >= self.horizon):
            return obs, reward, False, False, info
        own = set(info)
        info = {**info, "episode_return": self._return, "episode_length": self._length}
        seen = {**info, "last_reward": own_reward, "terminated": bool(terminated), "truncated": bool(truncated)}
        success = self._success(obs, seen)
        if not isinstance(success, bool | np.bool_):
            raise TypeError(f"success must return a bool, got {success!r} of {type(success).__name__}")
        if self._measures is not None:
            values = self._measures(obs, seen)
            info |= {
                name: x.item() if isinstance(x, np.generic | np.ndarray) and x.ndim == 0 else x
                for name, x in values.items()
            }
            self.hidden = frozenset(own - set(values) - {"success", "episode_return", "episode_length"})
        info["success"] = bool(success)
        self._last = obs, info
        return obs, float(success) if self._dense is None else reward, True, False, info

    def _number(self, reward: Any) -> float:
        """A reward as a float.

        Raises:
            BadStep: it is not one number.
        """
        x = np.asarray(reward)
        if x.size != 1 or x.dtype.kind not in "biuf":
            raise BadStep(
                f"the reward of {self.env} must be one number, got {_kind(reward)} in step {self._length}; "
                "gymnasium.wrappers.TransformReward makes one of it"
            )
        return float(x.item())


class WrappedOutcome(gym.Wrapper[Any, Any, Any, Any]):
    """What an `OutcomeReward` promises, for an environment that has one somewhere below other wrappers.

    The outcome is the inner one's. Rewards that wrappers in between have changed do not count, nor do steps after an
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
        limit = step_limit(env)
        # The inner one has to know the least limit, because the outcome is decided at the last step.
        self.horizon: int = min(x for x in (inner.horizon, limit, horizon) if x is not None)
        inner.horizon = self.horizon
        self._inner = inner
        self._last: tuple[Any, dict[str, Any]] | None = None

    @property
    def hidden(self) -> frozenset[str]:
        """See `OutcomeReward.hidden`."""
        return self._inner.hidden

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
        if not isinstance(info.get("success"), bool | np.bool_):
            raise RuntimeError(
                f"{self.env} ended an episode without `success` in info: a wrapper around its OutcomeReward ends "
                "episodes, or changes info; put it inside"
            )
        self._last = obs, info
        return obs, float(reward) if self._inner.dense else float(info["success"]), True, False, info


class NewEachEpisode(gym.Wrapper[Any, Any, Any, Any]):
    """Makes a new environment for each episode, so that nothing is kept from one to the next.

    For simulators that you cannot clear. In Box2D, for example, the places of bodies in memory depend on earlier episodes.
    The order in which contacts are computed depends on them, and so does the physics. Each episode costs one construction.

    Args:
        make: makes the environment.

    Example:
        >>> import gymnasium as gym
        >>> env = NewEachEpisode(lambda: gym.make("CartPole-v1"))
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        super().__init__(make())
        self._make, self._new = make, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the wrapped environment's."""
        if not self._new:
            self.env.close()
            self.env = self._make()
        self._new = False
        return self.env.reset(seed=seed, options=options)


def find_outcome(env: gym.Env[Any, Any]) -> OutcomeReward | None:
    """The `OutcomeReward` in a stack of wrappers, the outermost if there are several; None if there is none."""
    while not isinstance(env, OutcomeReward):
        if not isinstance(env, gym.Wrapper):
            return None
        env = env.env
    return env


def step_limit(env: gym.Env[Any, Any]) -> int | None:
    """The least limit in a stack of wrappers: of the specification and of each `TimeLimit`; None if there is none."""
    limits = [env.spec.max_episode_steps if env.spec is not None else None]
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            limits.append(int(env._max_episode_steps))
        elif isinstance(env, OutcomeReward | WrappedOutcome):
            limits.append(env.horizon)
        env = env.env
    return min((limit for limit in limits if limit is not None), default=None)


Outcome = OutcomeReward | WrappedOutcome
"""One environment with a binary outcome."""

_OLD = (
    ". This is the interface of Gym before 0.26; change the environment, or wrap it with a converter such as shimmy's "
    "GymV21CompatibilityV0"
)


def _kind(value: Any) -> str:
    """What a value is, in a few words: "a tuple of 4", "an array of shape (3,)"."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"{type(value).__name__} {str(value)[:80]!r}"


class OutcomeVectorEnv(VectorEnv[Any, Any, Any]):
    """B copies of an `OutcomeReward` in lockstep, in this process, with autoreset off.

    (Gymnasium's SyncVectorEnv with autoreset off cannot go on as soon as one of its episodes has finished.) A finished
    episode keeps its last observation and info, has reward 0, and is terminated until the next reset. `info` has the
    entries of finished episodes that are numbers or booleans; see `sppo_envs.infos`.

    Args:
        make: makes one of the copies: an `OutcomeReward`, perhaps with wrappers around it.
        num_envs: B, at least 1.
        obs_scale: see `sppo_control.policies.Network`; None for 1.

    Raises:
        ValueError: num_envs below 1; `make` returned one environment twice; what `make` raises.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, make: Callable[[], Outcome], num_envs: int, obs_scale: Sequence[float] | None = None) -> None:
        self.envs: list[Outcome] = []  # before anything can fail: Gymnasium closes half-made environments too
        self.num_envs, self.obs_scale = checked_num_envs(num_envs), obs_scale
        self.envs = [as_outcome(make()) for _ in range(num_envs)]
        if len({id(env.unwrapped) for env in self.envs}) < num_envs:
            raise ValueError(f"{self.envs[0]} is one object for several episodes; make must make a new one each time")
        self.first = 0
        """Number of the first copy, for messages; above 0 in a worker process."""
        self.horizon = self.envs[0].horizon
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Seed = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start B new episodes; of one seed, environment i gets seed + i; of B seeds, its own."""
        seeds = env_seeds(seed, self.num_envs)
        obs = [env.reset(seed=s, options=options)[0] for env, s in zip(self.envs, seeds, strict=True)]
        self.ends: list[dict[str, Scalar] | None] = [None] * self.num_envs
        """What each finished episode reported."""
        self._infos: dict[str, Any] = {}
        return self._together(obs), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every unfinished episode; actions (B,) or (B, A)."""
        obs, rewards, news = [], np.zeros(self.num_envs), False
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            try:
                o, rewards[i], over, _, info = env.step(action)
            except BadStep as error:
                raise BadStep(f"environment {self.first + i}: {error}") from None
            obs.append(o)
            if over and self.ends[i] is None:
                self.ends[i], news = scalars(info, without=env.hidden), True
        if news:
            self._infos = stacked(self.ends)
        terminated = np.array([end is not None for end in self.ends])
        return self._together(obs), rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_), dict(self._infos)

    def _together(self, obs: list[Any]) -> npt.NDArray[Any]:
        try:
            return np.stack(obs)
        except ValueError:
            shapes = " and ".join(sorted({str(np.shape(o)) for o in obs}))
            raise BadStep(f"observations of {self.envs[0]} must have one shape, got {shapes}") from None

    def close_extras(self, **kwargs: Any) -> None:
        """Close every copy."""
        for env in self.envs:
            env.close()


class OutcomeVectorReward(LockstepVectorEnv):
    """`OutcomeReward` for an environment that is a vector environment already: your own batched simulator, say.

    Such environments may start the next episode by themselves. What comes after an episode's end is dropped here. With
    autoreset off, a finished episode must accept further steps. Gymnasium's SyncVectorEnv and AsyncVectorEnv do not, so
    they are reset there.

    Args:
        envs: a vector environment of any autoreset mode but SAME_STEP, which hides last observations.
        success: (last observations (B, ...), info of arrays (B,)) -> (B,) bool; see `Success`.
        horizon: longest episode, in steps; None takes the environment's least limit.
        measures: see `Measures`; arrays (B,).

    Raises:
        ValueError: SAME_STEP; horizon below 1, or None where the environment has no limit.
        BadStep: (from `step`) the rewards are not B finite numbers.
        TypeError: (from `step`) `success` returned something else than B booleans.
        RuntimeError: (from `reset` and `step`) a worker process of an AsyncVectorEnv died.

    Example:
        >>> import gymnasium as gym
        >>> envs = gym.make_vec("Acrobot-v1", num_envs=4)
        >>> envs = OutcomeVectorReward(envs, lambda obs, info: info["terminated"], horizon=200)
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], success: Success, horizon: int | None = None,
        measures: Measures | None = None,
    ) -> None:  # fmt: skip
        limits = [envs.spec.max_episode_steps if envs.spec is not None else None]
        limits += [step_limit(env) for env in getattr(envs.unwrapped, "envs", ()) if isinstance(env, gym.Env)]
        limit = min((x for x in limits if x is not None), default=None)
        if horizon is None and limit is None:
            raise ValueError(f"{envs} has no step limit of its own; pass a horizon")
        mode = envs.metadata.get("autoreset_mode")
        if mode == AutoresetMode.SAME_STEP:
            raise ValueError(f"{envs} resets in the step that ends an episode; make it with AutoresetMode.NEXT_STEP")
        if horizon is not None:
            checked_horizon(horizon)
        lowest = min(x for x in (horizon, limit) if x is not None)
        super().__init__(envs.num_envs, lowest, False, envs.single_observation_space, envs.single_action_space)
        self.envs, self._success, self._measures = envs, success, measures
        self._failed = False
        self._must_reset = mode == AutoresetMode.DISABLED and isinstance(envs.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self.obs_scale = getattr(envs.unwrapped, "obs_scale", None)

    def _begin(self, seed: Seed, options: dict[str, Any] | None) -> npt.NDArray[Any]:
        seeds = list(seed) if seed is not None and not isinstance(seed, int | np.integer) else seed
        with self._workers():
            self._obs = np.array(self.envs.reset(seed=seeds, options=options)[0])  # type: ignore[arg-type] # a list may be given
        self._reward, self._return = np.zeros(self.num_envs), np.zeros(self.num_envs)
        self._waiting = np.zeros(self.num_envs, dtype=np.bool_)  # for a reset, where nothing else resets them
        return self._obs

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], BoolArray]:
        with self._workers():
            if self._must_reset and self._waiting.any():
                self.envs.reset(options={"reset_mask": self._waiting})
            obs, reward, terminated, truncated, self._info = self.envs.step(actions)
        running = ~self._done
        self._obs = np.where(running.reshape(-1, *[1] * (obs.ndim - 1)), obs, self._obs)
        reward = checked_rewards(reward, running, self.envs, self._steps + 1)
        self._reward = np.where(running, reward, self._reward)
        self._return += reward
        self._terminated, self._truncated = (np.asarray(x, np.bool_).reshape(-1) for x in (terminated, truncated))
        self._waiting = self._terminated | self._truncated
        return self._obs, self._terminated | self._truncated

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        own = {"episode_return": self._return, "episode_length": np.full(self.num_envs, self._steps)}
        seen = {**self._info, **own, "last_reward": self._reward}
        seen |= {"terminated": self._terminated, "truncated": self._truncated}
        success = checked_success(self._success(self._obs, seen), self.num_envs)
        return judged(success, own, self._info, None if self._measures is None else self._measures(self._obs, seen))

    @contextlib.contextmanager
    def _workers(self) -> Iterator[None]:
        """Around what Gymnasium's AsyncVectorEnv asks of its worker processes."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self._failed = True
            raise RuntimeError(f"a worker process of {self.envs} died; SyncVectorEnv runs them in this one") from error
        except BaseException:  # Ctrl-C too
            self._failed = True
            raise

    def close_extras(self, **kwargs: Any) -> None:
        """Close the vector environment inside."""
        if not hasattr(self, "envs"):  # Gymnasium closes half-made environments too
            return
        if self._failed and isinstance(self.envs.unwrapped, AsyncVectorEnv):
            self.envs.close(terminate=True)  # else it would wait for answers that never come
        else:
            self.envs.close()


def as_outcome(env: gym.Env[Any, Any]) -> Outcome:
    """The environment itself if it is an `OutcomeReward`, else a `WrappedOutcome` around it.

    Raises:
        ValueError: there is no `OutcomeReward` in it.
    """
    return env if isinstance(env, OutcomeReward | WrappedOutcome) else WrappedOutcome(env)


def judged(
    success: BoolArray,
    own: dict[str, npt.NDArray[Any]],
    info: dict[str, Any],
    measures: dict[str, Any] | None,
) -> dict[str, npt.NDArray[Any]]:
    """What a vector environment's episodes report at their end, as `LockstepVectorEnv._judge` returns it.

    Args:
        success: (B,).
        own: episode_return and episode_length.
        info: the vector environment's own.
        measures: what `Measures` returned; None where there is none, so that `info` is reported.
    """
    more = columns(info if measures is None else measures, len(success))
    return {**more, **own, "success": success} if measures is None else {**own, **more, "success": success}


def checked_rewards(
    reward: Any, running: BoolArray, envs: gym.vector.VectorEnv[Any, Any, Any], step: int
) -> npt.NDArray[np.float64]:
    """Rewards (B,) of a vector environment, 0 where an episode is over.

    Raises:
        BadStep: not B numbers, or one of an unfinished episode is not finite.
    """
    x = np.asarray(reward)
    if x.size != len(running) or x.dtype.kind not in "biuf":
        raise BadStep(f"rewards of {envs} must be {len(running)} numbers, got {_kind(reward)} in step {step}")
    x = np.where(running, x.reshape(-1).astype(np.float64), 0.0)
    if not np.isfinite(x).all():
        for i in np.flatnonzero(~np.isfinite(x)):
            raise BadStep(f"environment {i}: the reward of {envs} is {x[i]} in step {step} of its episode")
    return x


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
    """One seed per environment: seed + i of one number, B numbers as they are, None of None.

    Raises:
        ValueError: another number of seeds than B, or one that is not a whole number from 0.
    """
    seed = checked_seed(seed, num_envs)
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [int(seed) + i for i in range(num_envs)]
    return [*seed]
