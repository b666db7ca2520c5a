"""Ways to run B episodes of an environment that has no batched numpy version: EnvPool's threads, or worker processes."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sppo_control.extras import MissingExtra, require

from .infos import Scalar, columns, stacked
from .lockstep import BadStep, BoolArray, LockstepVectorEnv, Seed, checked_num_envs
from .outcome import (
    Measures,
    Outcome,
    OutcomeVectorEnv,
    Success,
    as_outcome,
    checked_rewards,
    checked_success,
    env_seeds,
    judged,
)

Engine = Literal["auto", "numpy", "envpool", "processes", "sync"]
"""numpy: batched dynamics in numpy. envpool: EnvPool's C++ threads. processes: Gymnasium's environments in one worker
process per core. sync: Gymnasium's environments one after the other. auto: the first of these that the task has.
Environments and tasks from outside this package that are not batched themselves take sync."""


def cores() -> int:
    """Cores that this process may keep busy: those of its affinity mask, at most OMP_NUM_THREADS where that is set."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(available, int(limit)) if limit.isdigit() and int(limit) > 0 else available


def has_envpool() -> bool:
    """Whether EnvPool is installed."""
    return importlib.util.find_spec("envpool") is not None


# -------------------------------------------------------------------------------------------------------- EnvPool
class EnvPoolVectorEnv(LockstepVectorEnv):
    """B episodes of one of EnvPool's environments, stepped by its C++ threads.

    EnvPool takes a seed only when an environment is made. Here a reset makes the pool anew, which takes two
    milliseconds for LunarLander. So a batch is a function of its seeds alone: equal seeds give equal episodes, and a
    resumed run repeats. Finished episodes are not stepped further.

    Args:
        engine_id: EnvPool's id.
        num_envs: B.
        horizon: longest episode in steps.
        success: (last observations (B, D), info of arrays (B,)) -> (B,) bool; see `Success`.
        measures: see `Measures`; arrays (B,).
        dense: own rewards (B,) -> what a step pays in place of the outcome; None for the sparse outcome.
        obs_scale: see `sppo_control.policies.Network`; None for 1.
        observation_space: of one environment; None for the one that EnvPool states.
        action_space: likewise.

    Raises:
        MissingExtra: EnvPool is not installed.
        ValueError: EnvPool has no such environment; horizon or num_envs below 1.
        TypeError: (from `step`) `success` returned something else than B booleans.
    """

    def __init__(
        self,
        engine_id: str,
        num_envs: int,
        horizon: int | None,
        success: Success,
        measures: Measures | None = None,
        dense: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
        obs_scale: Sequence[float] | None = None,
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
    ) -> None:
        require("envpool", "envpool", wanted_by="--engine envpool")
        import envpool

        if engine_id not in envpool.list_all_envs():
            raise ValueError(f"EnvPool has no {engine_id}; leave --engine out, or use --engine processes")
        self._make, self._engine_id = envpool.make_gymnasium, engine_id
        self._success, self._measures, self._dense, self.obs_scale = success, measures, dense, obs_scale
        pool = self._make(engine_id, num_envs=1)
        own_limit = int(pool.config["max_episode_steps"])
        super().__init__(
            num_envs, own_limit if horizon is None else horizon, dense is not None,
            observation_space or pool.observation_space, action_space or pool.action_space,
        )  # fmt: skip
        # One step more than the horizon, because `step` ends the episodes at the horizon. An episode may end by itself in
        # the last step before the pool's limit, by a fall for example. EnvPool reports that as truncated.
        self._limit = min(self.horizon + 1, 2**31 - 1)

    def _begin(self, seed: Seed, options: dict[str, Any] | None) -> npt.NDArray[Any]:
        if options:
            raise ValueError(f"EnvPool takes no reset options, got {options}; use --engine sync")
        seeds = env_seeds(seed, self.num_envs)
        if seed is None:
            seeds = list(self.np_random.integers(2**31 - 1, size=self.num_envs))
        self._pool = self._make(
            self._engine_id, num_envs=self.num_envs, num_threads=min(cores(), self.num_envs),
            env_seed=[int(s) for s in seeds if s is not None], max_episode_steps=self._limit,
        )  # fmt: skip
        self._obs = np.array(self._pool.reset()[0])
        self._reward, self._return = np.zeros(self.num_envs), np.zeros(self.num_envs)
        self._terminated = np.zeros(self.num_envs, dtype=np.bool_)
        self._truncated = self._terminated.copy()
        self._info: dict[str, npt.NDArray[Any]] = {}
        return self._obs

    def bare_pool(self) -> Any:
        """EnvPool's own vector environment as it comes, for measuring its speed."""
        return self._make(self._engine_id, num_envs=self.num_envs, num_threads=min(cores(), self.num_envs))

    def _advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], BoolArray]:
        if self._any_done:
            running = np.flatnonzero(~self._done).astype(np.int32)
            obs, reward, terminated, truncated, info = self._pool.step(actions[running], running)
        else:
            obs, reward, terminated, truncated, info = self._pool.step(actions)
        ids = info["env_id"]
        self._obs = self._obs.copy()
        self._obs[ids], self._reward[ids] = obs, reward
        checked_rewards(self._reward, ~self._done, self, self._steps + 1)
        self._return[ids] += reward
        self._terminated[ids], self._truncated[ids] = terminated, truncated
        if terminated.any() or truncated.any() or self._steps + 1 >= self.horizon:
            for name, value in columns(info, len(ids)).items():
                if name not in ("env_id", "elapsed_step"):
                    self._info.setdefault(name, np.zeros(self.num_envs, dtype=value.dtype))[ids] = value
        return self._obs, self._terminated | self._truncated

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        own = {"episode_return": self._return.copy(), "episode_length": np.full(self.num_envs, self._steps)}
        truncated = ~self._terminated if self._steps >= self.horizon else self._truncated
        seen = {**self._info, **own, "last_reward": self._reward}
        seen |= {"terminated": self._terminated, "truncated": truncated}
        success = checked_success(self._success(self._obs, seen), self.num_envs)
        return judged(success, own, self._info, None if self._measures is None else self._measures(self._obs, seen))

    def _dense_reward(self) -> npt.NDArray[Any]:
        assert self._dense is not None
        return self._dense(self._reward)

    def close_extras(self, **kwargs: Any) -> None:
        """Let the threads go."""
        self.__dict__.pop("_pool", None)


# ------------------------------------------------------------------------------------------------ worker processes
class ProcessVectorEnv(VectorEnv[Any, Any, Any]):
    """B copies of an `OutcomeReward` in lockstep, spread over worker processes, a chunk of neighbours to each.

    (Gymnasium's AsyncVectorEnv has one process per environment. With more environments than cores, its messages take
    three times as long as all steps in one process.) Results equal those of `OutcomeVectorEnv`.

    Args:
        make: makes one of the copies; sent to the workers by cloudpickle. See `OutcomeVectorEnv`.
        num_envs: B, at least 1.
        obs_scale: see `sppo_control.policies.Network`; None for 1.
        workers: processes; None for one per core.

    Raises:
        ValueError: num_envs below 1; what `make` raises.
        BadStep: (from `step`) see `OutcomeReward`.
        RuntimeError: a worker failed; its traceback is in the message.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        make: Callable[[], Outcome],
        num_envs: int,
        obs_scale: Sequence[float] | None = None,
        workers: int | None = None,
    ) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        num_envs = checked_num_envs(num_envs)
        first = as_outcome(make())  # its errors are raised here, before there is any process
        self.horizon, self.num_envs, self.obs_scale = first.horizon, num_envs, obs_scale
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        first.close()
        workers = min(workers or cores(), num_envs)
        edges = [num_envs * k // workers for k in range(workers + 1)]
        self._chunks = [slice(a, b) for a, b in itertools.pairwise(edges)]
        context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
        for chunk in self._chunks:
            here, there = context.Pipe()
            size = chunk.stop - chunk.start
            work = (there, cloudpickle.dumps(make), size, chunk.start)
            process = context.Process(target=_work, args=work, daemon=True)
            with _without_main():
                process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def reset(self, *, seed: Seed = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start B new episodes; of one seed, environment i gets seed + i; of B seeds, its own."""
        seeds = env_seeds(seed, self.num_envs)
        for pipe, chunk in zip(self._pipes, self._chunks, strict=True):
            _ask(pipe, "reset", None if seed is None else seeds[chunk], options)
        answers = [_answer(pipe) for pipe in self._pipes]
        self._obs = np.concatenate(answers)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._ends: list[dict[str, Scalar] | None] = [None] * self.num_envs
        self._infos: dict[str, Any] = {}
        return self._obs, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every unfinished episode; actions (B,) or (B, A)."""
        actions = np.asarray(actions)
        busy = [(p, c) for p, c in zip(self._pipes, self._chunks, strict=True) if not self._done[c].all()]
        for pipe, chunk in busy:
            _ask(pipe, "step", actions[chunk])
        obs, rewards = self._obs.copy(), np.zeros(self.num_envs)
        self._done, before = self._done.copy(), self._done
        for pipe, chunk in busy:
            obs[chunk], rewards[chunk], self._done[chunk], news = _answer(pipe)
            for i, end in news.items():
                self._ends[chunk.start + i] = end
        self._obs = obs
        if (self._done != before).any():
            self._infos = stacked(self._ends)
        return obs, rewards, self._done, np.zeros(self.num_envs, dtype=np.bool_), dict(self._infos)

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # it may have gone already
                pipe.send(("close", None, None))
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from running the user's script again, as they do where it has no `if __name__ == "__main__":`.
    They do not need it, because cloudpickle sends what is defined there."""
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


_DIED = "a worker process died; --engine sync runs the environments in this one"


def _ask(pipe: Connection, command: str, value: Any, options: dict[str, Any] | None = None) -> None:
    try:
        pipe.send((command, value, options))
    except OSError as error:
        raise RuntimeError(_DIED) from error


def _answer(pipe: Connection) -> Any:
    try:
        ok, value = pipe.recv()
    except (EOFError, OSError) as error:
        raise RuntimeError(_DIED) from error
    if isinstance(value, BadStep):
        raise BadStep(str(value))
    if not ok:
        raise RuntimeError(f"an environment failed in its worker process:\n{value}")
    return value


def _work(pipe: Connection, make: bytes, num_envs: int, first: int) -> None:
    import signal
    import traceback

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C: it finishes its update first
    told = 0  # finished episodes that the parent knows of
    try:
        envs = OutcomeVectorEnv(cloudpickle.loads(make), num_envs)
        envs.first = first
        while True:
            command, value, options = pipe.recv()
            if command == "close":
                break
            if command == "reset":
                pipe.send((True, envs.reset(seed=value, options=options)[0]))
                told = 0
            else:
                obs, rewards, terminated, _, _ = envs.step(value)
                news = (
                    {} if terminated.sum() == told else {i: end for i, end in enumerate(envs.ends) if end is not None}
                )
                told = int(terminated.sum())
                pipe.send((True, (obs, rewards, terminated, news)))
    except EOFError:
        pass  # the parent is gone
    except BadStep as error:
        pipe.send((False, error))
    except Exception:
        pipe.send((False, traceback.format_exc()))


def copies(
    make: Callable[[], Outcome],
    num_envs: int,
    engine: Literal["processes", "sync"],
    obs_scale: Sequence[float] | None = None,
) -> VectorEnv[Any, Any, Any]:
    """B copies of one environment, in worker processes or in this one."""
    if engine == "processes":
        return ProcessVectorEnv(make, num_envs, obs_scale)
    return OutcomeVectorEnv(make, num_envs, obs_scale)


def own_make(env_id: str, extra: str, *modules: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """One of Gymnasium's environments that needs further packages, without Gymnasium's wrappers.

    Args:
        env_id: Gymnasium's.
        extra: the extra of pyproject.toml that brings the packages.
        modules: their top-level modules.
        kwargs: of the environment.

    Raises:
        MissingExtra: one of the packages is not there, or cannot be imported.
    """
    try:
        return gym.make(env_id, disable_env_checker=True, **kwargs).unwrapped
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        require(extra, *modules, wanted_by=env_id)
        raise MissingExtra(f"a working package ({error})", extra, env_id) from error
