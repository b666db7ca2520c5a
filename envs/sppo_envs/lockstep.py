"""What the batched tasks share: B whole episodes move together, and a finished one waits for the next reset."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Seed = int | Sequence[int] | None
CARTPOLE, PENDULUM, MOUNTAIN_CAR = range(3)
"""The first number of `NumpyVectorEnv.dynamics`: which of `sppo_envs.dynamics`."""


class BadStep(ValueError):
    """An environment returned something that no training can use; the message names it, the step and the way out."""


class LockstepVectorEnv(VectorEnv[Any, Any, Any], ABC):
    """B episodes in lockstep, autoreset off, reward 0 until an episode's last step and then 1 for success or 0.

    A finished episode is left as it is: its observation stays and its reward is 0. It is reported as terminated until
    the next reset. It is never reported as truncated, because the outcome is decided at the horizon and nothing is left
    to bootstrap from. From the first finished episode on, `info` contains `success` (B,) and the task's measures (B,).
    The same names with an underscore say which entries are valid, as in Gymnasium's vector environments.

    A subclass says how episodes begin (`_begin`), move (`_advance`) and are judged (`_judge`).

    Args:
        num_envs: B, at least 1.
        horizon: longest episode in steps, at least 1.
        dense: give the shaped reward of each step in place of the sparse one (for training an expert).
        observation_space: of one environment.
        action_space: of one environment, Discrete or Box.

    Raises:
        ValueError: num_envs or horizon below 1.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        num_envs: int,
        horizon: int,
        dense: bool,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
    ) -> None:
        self.num_envs, self.horizon, self.dense = checked_num_envs(num_envs), checked_horizon(horizon), dense
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._steps = -1  # -1 before the first reset

    # -- what a task defines
    @abstractmethod
    def _begin(self, seed: Seed, options: dict[str, Any] | None) -> npt.NDArray[Any]:
        """Start B episodes; returns their first observations (B, D)."""

    @abstractmethod
    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], BoolArray]:
        """Move the episodes where `_done` is False; returns observations (B, D) and which are over, (B,), the horizon
        left aside."""

    @abstractmethod
    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        """`success` (bool) and measures, each (B,), of all episodes as they are now. An entry `_name`, (B,) bool, says
        which episodes report the measure `name`; without it, all do."""

    def _dense_reward(self) -> npt.NDArray[Any]:
        """Shaped reward of the step just made, (B,); asked for only if `dense`."""
        raise TypeError(f"{type(self).__name__} has no dense reward")

    # -- Gymnasium's interface
    def reset(
        self, *, seed: Seed = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Start B new episodes.

        Args:
            seed: one number for the batch, or B numbers, one per environment. Environments with equal seeds start in
                equal states.
            options: of the task.

        Raises:
            ValueError: another number of seeds than B, or one that is not a whole number from 0.
        """
        seed = checked_seed(seed, self.num_envs)
        if not isinstance(seed, list):
            super().reset(seed=seed)
        self._steps = 0
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._any_done = False
        self._result: dict[str, npt.NDArray[Any]] = {}
        self._reported: dict[str, BoolArray] = {}  # measures that some finished episode has not reported: who has
        return self._begin(seed, options), {}

    def step(self, actions: npt.NDArray[Any]) -> tuple[Any, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One step of every unfinished episode.

        Args:
            actions: (B,) whole numbers, or (B, A) floats; those of finished episodes are ignored.

        Raises:
            RuntimeError: before the first reset.
            ValueError: actions of another shape, or impossible ones.
        """
        if self._steps < 0:
            raise RuntimeError("call reset() before step()")
        obs, over = self._advance(self._checked(actions))
        self._steps += 1
        at_horizon = self._steps >= self.horizon
        reward = np.where(self._done, 0.0, self._dense_reward()) if self.dense else np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        if self._any_done or at_horizon or over.any():
            ended = ~self._done if at_horizon else over & ~self._done
            if ended.any():
                judged = self._judge()
                self._keep(judged, ended)
                if not self.dense:
                    reward[ended & judged["success"]] = 1.0
                self._done = self._done | ended
                self._any_done = True
            infos = self._infos()
        return obs, reward, self._done.copy(), np.zeros(self.num_envs, dtype=np.bool_), infos

    def _infos(self) -> dict[str, Any]:
        """What finished episodes report, and under `_name` which of them do."""
        return {**self._result, **{f"_{name}": self._reported.get(name, self._done) for name in self._result}}

    def _keep(self, judged: dict[str, npt.NDArray[Any]], ended: BoolArray) -> None:
        """Note what the episodes that ended in this step report."""
        for name, value in judged.items():
            if name.startswith("_"):
                continue
            old, mask = self._result.get(name), judged.get(f"_{name}")
            if mask is not None or name in self._reported or (old is None and self._any_done):
                before = self._reported.get(name, self._done if old is not None else np.zeros_like(self._done))
                self._reported[name] = before | (ended if mask is None else ended & mask)
            self._result[name] = np.where(ended, value, np.zeros_like(value) if old is None else old)
        for name in self._result.keys() - judged.keys():  # reported by earlier episodes, and by none of these
            self._reported.setdefault(name, self._done)

    def _checked(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        actions, space = np.asarray(actions), self.single_action_space
        if isinstance(space, spaces.Discrete):
            low, high = int(space.start), int(space.start + space.n)
            whole = actions.dtype.kind in "iu" and actions.shape == (self.num_envs,)
            if not whole or actions.min() < low or actions.max() >= high:
                allowed = " or ".join(map(str, range(low, high))) if space.n <= 10 else f"{low} to {high - 1}"
                raise ValueError(f"actions must be {self.num_envs} whole numbers, each {allowed}, got {actions}")
            return actions
        shape = (self.num_envs, *(space.shape or ()))
        if actions.shape != shape or actions.dtype.kind not in "biuf" or not np.isfinite(actions).all():
            raise ValueError(f"actions must be finite numbers of shape {shape}, got {actions}")
        return actions


class NumpyVectorEnv(LockstepVectorEnv):
    """A `LockstepVectorEnv` whose whole state is one array, (S, B): each row contiguous, one column per episode.

    `reset(options={"state": array})`, (B, S), sets the initial states themselves.
    """

    _state: FloatArray
    compiled_by: type[NumpyVectorEnv] | None = None
    """The class whose motion `sppo_envs.dynamics` has, if there is one."""
    state_names: tuple[str, ...]
    """What the S rows are, with units."""

    @abstractmethod
    def _draw(self, rng: np.random.Generator, n: int, options: dict[str, Any]) -> FloatArray:
        """n initial states, (S, n)."""

    @abstractmethod
    def _observe(self) -> npt.NDArray[np.float32]:
        """Observations (B, D) of the present state."""

    @abstractmethod
    def _move(self, actions: npt.NDArray[Any]) -> FloatArray:
        """The state one step on, (S, B), of all episodes."""

    @abstractmethod
    def _over(self) -> BoolArray:
        """Which episodes the task ends in the present state, (B,)."""

    def dynamics(self) -> tuple[int, FloatArray] | None:
        """Which of `sppo_envs.dynamics` moves these episodes, and its constants; None if none does.

        None also where a subclass changed a step, because the compiled one would not know of it.
        """
        base, own = self.compiled_by, type(self)
        methods = ("reset", "step", "_begin", "_advance", "_move", "_observe", "_over")
        if base is None or self.dense or any(getattr(own, m) is not getattr(base, m) for m in methods):
            return None
        return self._constants()

    def _constants(self) -> tuple[int, FloatArray]:
        raise TypeError(f"{type(self).__name__} has no compiled dynamics")

    @property
    def state(self) -> FloatArray:
        """The present states, (S, B)."""
        return self._state

    def settle(self, state: FloatArray, steps: int, memory: FloatArray) -> dict[str, Any]:
        """Take over the last states of episodes that a compiled rollout has run to their ends.

        Args:
            state: (S, B), of each episode when it ended.
            steps: length of the longest episode.
            memory: (B,), what `sppo_envs.dynamics` remembered.

        Returns:
            `info`, as the last `step` would have given it.
        """
        self._state, self._steps = state, steps
        self._remember(memory)
        self._keep(self._judge(), np.ones(self.num_envs, dtype=np.bool_))
        self._done, self._any_done = np.ones(self.num_envs, dtype=np.bool_), True
        return self._infos()

    def _remember(self, memory: FloatArray) -> None:
        """What `_judge` needs besides the states."""
        self._over()

    def _begin(self, seed: Seed, options: dict[str, Any] | None) -> npt.NDArray[Any]:
        options = options or {}
        if "state" in options:
            state = np.array(options["state"], dtype=np.float64)
            if state.shape != (self.num_envs, len(self.state_names)):
                raise ValueError(
                    f"options['state'] must have shape ({self.num_envs}, {len(self.state_names)}), rows of "
                    f"{', '.join(self.state_names)}; got {state.shape}"
                )
            self._state = np.ascontiguousarray(state.T)
        elif seed is None or isinstance(seed, int | np.integer):
            self._state = self._draw(self.np_random, self.num_envs, options)
        else:
            columns = [self._draw(np.random.default_rng(s), 1, options) for s in seed]
            self._state = np.concatenate(columns, axis=1)
        return self._observe()

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], BoolArray]:
        new = self._move(actions)
        if self._any_done:
            np.copyto(new, self._state, where=self._done)
        self._state = new
        return self._observe(), self._over()


def checked_horizon(horizon: int) -> int:
    """The horizon, if it is a whole number of at least 1.

    Raises:
        ValueError: otherwise.
    """
    if not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon!r}; it is a whole number")
    return int(horizon)


def checked_num_envs(num_envs: int) -> int:
    """B, if it is a whole number of at least 1.

    Raises:
        ValueError: otherwise.
    """
    if not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs!r}; it is a whole number")
    return int(num_envs)


def checked_seed(seed: Any, num_envs: int) -> int | list[int] | None:
    """The seed of a reset: None, a number, or B numbers.

    Raises:
        ValueError: another number of seeds than B, or one that is not a whole number from 0.
    """
    if seed is None:
        return None
    one = isinstance(seed, int | np.integer)
    seeds = [seed] if one else list(seed) if isinstance(seed, Iterable) else [math.nan]
    if not all(isinstance(s, int | np.integer) and s >= 0 for s in seeds):
        raise ValueError(f"seed must be whole numbers from 0, got {seed!r}")
    if not one and len(seeds) != num_envs:
        raise ValueError(f"seed must be one number or {num_envs}, one an environment; got {len(seeds)}")
    return int(seed) if one else [int(s) for s in seeds]
