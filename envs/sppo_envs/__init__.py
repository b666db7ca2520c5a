"""Control tasks with one binary outcome at the end of the episode. `import sppo_envs` registers them with Gymnasium."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, get_args

import gymnasium as gym

from .engines import Engine, EnvPoolVectorEnv, MissingExtra, ProcessVectorEnv, copies
from .outcome import OutcomeReward, OutcomeVectorEnv, OutcomeVectorReward

__all__ = [
    "TASKS",
    "Engine",
    "MissingExtra",
    "OutcomeReward",
    "OutcomeVectorEnv",
    "OutcomeVectorReward",
    "ProcessVectorEnv",
    "make_task",
]

# id: module, one environment, B of them, its engines other than Gymnasium's copies
_TASKS = {
    "sppo/PrecisionCartPole-v0": ("precision_cartpole", "make", "PrecisionCartPoleVectorEnv", "numpy"),
    "sppo/SparseMountainCar-v0": ("mountain_car", "make", "SparseMountainCarVectorEnv", "numpy"),
    "sppo/SparsePendulum-v0": ("pendulum", "make", "SparsePendulumVectorEnv", "numpy"),
    "sppo/SparseLunarLander-v0": ("lunar_lander", "make", "make_vec", "envpool"),
    "sppo/SparseHopper-v0": ("hopper", "make", "make_vec", "envpool"),
    "sppo/ContextCartPole-v0": ("precision_cartpole", "make_context", "ContextCartPoleVectorEnv", "numpy"),
    "sppo/ContextPendulum-v0": ("pendulum", "make_context", "ContextPendulumVectorEnv", "numpy"),
}
TASKS = tuple(_TASKS)
"""Ids of the tasks of this package."""

for _id, (_module, _make, _make_vec, _) in _TASKS.items():
    gym.register(_id, entry_point=f"sppo_envs.{_module}:{_make}", vector_entry_point=f"sppo_envs.{_module}:{_make_vec}")


def make_task(
    env_id: str,
    num_envs: int,
    success_return: float | None = None,
    horizon: int | None = None,
    engine: Engine = "auto",
    dense: bool = False,
) -> Any:
    """B episodes in lockstep with a binary outcome, for a task of this package or any other Gymnasium id.

    Args:
        env_id: one of `TASKS`, or any Gymnasium id ("module:id" imports the module first).
        num_envs: B.
        success_return: needed for other environments, refused for `TASKS`: an episode succeeds when the sum of the
            environment's own rewards reaches this number.
        horizon: longest episode in steps; None takes the task's or the environment's own.
        engine: see `sppo_envs.engines.Engine`.
        dense: the task's shaped reward each step, for training an expert; for `TASKS` only.

    Returns:
        A `gymnasium.vector.VectorEnv` with autoreset off and an attribute `horizon`.

    Raises:
        ValueError: an unknown id (near ones are suggested), a missing or superfluous success rule, a bad horizon, an
            engine that the environment does not have.
        MissingExtra: a package that the task or the engine needs is not installed; the message has the command.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}")
    if env_id in _TASKS:
        return _make_own(env_id, num_envs, success_return, horizon, engine, dense)
    if ":" not in env_id and env_id not in gym.registry:
        near = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.5)
        raise ValueError(
            f"unknown environment {env_id!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; this package's are {', '.join(TASKS)}")
        )
    if success_return is None:
        raise ValueError(
            f"{env_id} has no success rule: pass --success-return X, and an episode whose return reaches X counts as a "
            "success (CartPole-v1: 475, for example)"
        )
    if dense:
        raise ValueError(f"a dense reward is known for {', '.join(TASKS)} only, not for {env_id}")
    if engine == "numpy":
        raise ValueError(f"--engine numpy is for tasks of this package; {env_id} has sync, processes and envpool")
    threshold = success_return

    def reached(obs: Any, info: dict[str, Any]) -> Any:
        return info["episode_return"] >= threshold

    if engine == "envpool":
        return EnvPoolVectorEnv(env_id, num_envs, horizon, reached)
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)  # known in a worker process too, where nobody has registered the id
        return copies(
            lambda: OutcomeReward(gym.make(spec), reached, horizon),
            num_envs,
            "processes" if engine == "processes" else "sync",
        )
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"cannot make {env_id}: {error}") from error


def _make_own(
    env_id: str, num_envs: int, success_return: float | None, horizon: int | None, engine: Engine, dense: bool
) -> Any:
    if success_return is not None:
        raise ValueError(f"{env_id} has a success rule of its own; leave --success-return out")
    module, make, _, fast = _TASKS[env_id]
    task = importlib.import_module(f"sppo_envs.{module}")
    kwargs: dict[str, Any] = {} if horizon is None else {"horizon": horizon}
    if engine not in ("auto", fast, "processes", "sync"):
        raise ValueError(f"{env_id} has the engines {fast}, processes and sync, not {engine}")
    if fast != "numpy":
        return gym.make_vec(env_id, num_envs=num_envs, dense=dense, engine=engine, **kwargs).unwrapped
    if engine in ("auto", "numpy"):
        return gym.make_vec(env_id, num_envs=num_envs, dense=dense, **kwargs).unwrapped
    if dense:
        raise ValueError(f"the dense reward of {env_id} exists in its numpy engine only; leave --engine out")
    one = getattr(task, make)
    return copies(lambda: one(**kwargs), num_envs, "processes" if engine == "processes" else "sync", task.OBS_SCALE)
