"""Control tasks with one binary outcome at the end of the episode. `import sppo_envs` registers them with Gymnasium.

`python -m sppo_envs` prints a table of them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, get_args

import gymnasium as gym

from sppo_control.extras import MissingExtra

from . import credit, hopper, lunar_lander, mountain_car, pendulum, precision_cartpole
from .check import Check, Report, check_task, first_look
from .engines import Engine, EnvPoolVectorEnv, ProcessVectorEnv, copies
from .lockstep import BadStep
from .outcome import (
    NewEachEpisode,
    Outcome,
    OutcomeReward,
    OutcomeVectorEnv,
    OutcomeVectorReward,
    Success,
    WrappedOutcome,
    find_outcome,
    step_limit,
)
from .task import Axis, Defaults, Recipe, Task, accepts, import_module, register, table, task, task_defaults

__all__ = [
    "HARDER",
    "TASKS",
    "Axis",
    "BadStep",
    "Check",
    "Defaults",
    "Engine",
    "MissingExtra",
    "NewEachEpisode",
    "OutcomeReward",
    "OutcomeVectorEnv",
    "OutcomeVectorReward",
    "ProcessVectorEnv",
    "Recipe",
    "Report",
    "Task",
    "check_task",
    "first_look",
    "make_one",
    "make_task",
    "register",
    "table",
    "task",
    "task_defaults",
]

_OWN = (
    precision_cartpole.TASK,
    mountain_car.TASK,
    pendulum.TASK,
    lunar_lander.TASK,
    hopper.TASK,
    precision_cartpole.CONTEXT_TASK,
    pendulum.CONTEXT_TASK,
)
_HARDER = (mountain_car.STOP_TASK, pendulum.BALANCE_TASK, hopper.FAR_TASK)
for _task in (*_OWN, *_HARDER, *credit.TASKS):
    register(_task)
TASKS = tuple(_task.id for _task in _OWN)
"""Ids of the tasks that are run where nothing else is asked for. The chains of credit.py are tasks too, but no physics."""
HARDER = tuple(_task.id for _task in _HARDER)
"""Ids of harder variants of some of them, on which success is rare at the start."""


def make_task(
    env_id: str,
    num_envs: int,
    success_return: float | None = None,
    horizon: int | None = None,
    engine: Engine = "auto",
    dense: bool = False,
) -> Any:
    """B episodes in lockstep with a binary outcome, for a task or any other Gymnasium id.

    Args:
        env_id: one of `TASKS` or `HARDER`, a task or environment of yours, or any Gymnasium id. "module:id" imports the
            module first.
        num_envs: B.
        success_return: an episode succeeds when the sum of the environment's own rewards reaches this number, X. A sum
            that is below X by a ten-millionth of X counts too, because sums of rewards are rounded (at X = 0: by 1e-7).
            Needed where nothing else says what success is; refused where a `Task` or an `OutcomeReward` does.
        horizon: longest episode in steps; None takes the task's or the environment's own.
        engine: see `sppo_envs.engines.Engine`.
        dense: the task's shaped reward at each step, for training an expert.

    Returns:
        A `gymnasium.vector.VectorEnv` with autoreset off and an attribute `horizon`.

    Raises:
        ValueError: an unknown id (near ones are suggested), a missing or superfluous success rule, a bad horizon, a
            success_return that is not finite. Also an engine or a dense reward that the environment does not have.
        MissingExtra: a package that the task or the engine needs is not installed; the message has the command.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}")
    envs = _make_task(env_id, num_envs, success_return, horizon, engine, dense)
    envs.env_id = env_id  # for messages
    return envs


def _make_task(
    env_id: str, num_envs: int, success_return: float | None, horizon: int | None, engine: Engine, dense: bool
) -> Any:
    found = _known(env_id, success_return)
    if found is None:
        if dense:
            raise ValueError(f"a dense reward is known for {', '.join(TASKS + HARDER)} only, not for {env_id}")
        if engine == "numpy":
            raise ValueError(
                f"--engine numpy is for tasks with a batched engine; {env_id} has sync, processes, envpool"
            )
        if engine == "envpool" and success_return is not None:
            return EnvPoolVectorEnv(env_id, num_envs, horizon, _reaches(success_return))
        make = _single(env_id, success_return, horizon)
        if engine == "envpool":
            raise ValueError(f"EnvPool does not know when {env_id} is a success; leave --engine out")
        return copies(make, num_envs, "processes" if engine == "processes" else "sync")

    if engine != "auto" and engine not in found.engines:
        raise ValueError(f"{env_id} has the engines {_and(found.engines)}, not {engine}")
    if dense and not found.has_dense_reward:
        raise ValueError(f"{env_id} has no dense reward: neither its make nor its make_vec takes `dense`")
    batched = found.make_vec is not None and (not dense or accepts(found.make_vec, "dense"))
    if found.make_vec is not None and batched and (engine in ("auto", found.engine) or found.engine == "envpool"):
        kwargs: dict[str, Any] = {"engine": engine} if found.engine == "envpool" else {}
        kwargs |= {"dense": True} if dense else {}
        envs = found.make_vec(num_envs=num_envs, horizon=found.horizon if horizon is None else horizon, **kwargs)
        if getattr(envs, "obs_scale", None) is None:
            envs.obs_scale = found.obs_scale
        return envs
    make = _single(env_id, None, horizon, dense=dense)
    return copies(make, num_envs, "processes" if engine == "processes" else "sync", found.obs_scale)


def make_one(
    env_id: str, success_return: float | None = None, horizon: int | None = None, render_mode: str | None = None
) -> Outcome:
    """One environment with a binary outcome, which may be drawn; see `make_task`."""
    _known(env_id, success_return)
    return _single(env_id, success_return, horizon, render_mode=render_mode)()


# ---------------------------------------------------------------------------------------------------------- helpers
def _known(env_id: str, success_return: float | None) -> Task | None:
    """The task of this id; None for other environments that Gymnasium knows."""
    if success_return is not None and not math.isfinite(success_return):
        raise ValueError(f"success_return must be a finite number, got {success_return}")
    found = task(env_id)
    if found is not None and success_return is not None:
        raise ValueError(f"{env_id} has a success rule of its own; leave --success-return out")
    module, _, name = env_id.rpartition(":")
    if found is None and name not in gym.registry:
        if module:
            source = getattr(import_module(module, env_id), "__file__", None)
            raise ValueError(f"cannot make {env_id}: {source or module} registers no {name}")
        near = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.5)
        raise ValueError(
            f"unknown environment {env_id!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; this package's are {', '.join(TASKS + HARDER)}")
        )
    return found


class _Maker:
    """Makes one environment of a task, also in a worker process, where nobody has registered its id."""

    def __init__(self, found: Task, horizon: int | None, **kwargs: Any) -> None:
        horizon = found.horizon if horizon is None else horizon
        takes_it = accepts(found.make, "horizon")
        self.make, self.kwargs = found.make, {**({"horizon": horizon} if takes_it else {}), **kwargs}
        self.horizon = None if takes_it else horizon

    def __call__(self) -> Outcome:
        env = self.make(**self.kwargs)
        return env if isinstance(env, OutcomeReward) and self.horizon is None else WrappedOutcome(env, self.horizon)


def _single(
    env_id: str, success_return: float | None, horizon: int | None, dense: bool = False, render_mode: str | None = None
) -> Callable[[], Outcome]:
    """A function that makes one environment; sent to worker processes, so it looks nothing up."""
    found = task(env_id)
    if found is not None:
        if dense and not accepts(found.make, "dense"):
            raise ValueError(
                f"the dense reward of {env_id} exists in its {found.engine} engine only; leave --engine out"
            )
        drawn = {} if render_mode is None else {"render_mode": render_mode}
        return _Maker(found, horizon, **({"dense": True} if dense else {}), **drawn)

    def make() -> gym.Env[Any, Any]:
        return gym.make(spec) if render_mode is None else gym.make(spec, render_mode=render_mode)

    spec = gym.spec(env_id.rpartition(":")[2])
    try:
        probe = make()
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"cannot make {env_id}: {error}") from error
    except TypeError as error:
        if "gymnasium.Env" not in str(error):  # an environment of the package gym, which Gymnasium has replaced
            raise
        raise ValueError(f"cannot make {env_id}: {error}") from error
    probe.close()
    if find_outcome(probe) is not None:
        if success_return is not None:
            raise ValueError(f"{env_id} has a success rule of its own; leave --success-return out")
        return lambda: WrappedOutcome(make(), horizon)
    endless = horizon is None and step_limit(probe) is None
    limit = "no step limit of its own: pass --horizon N, the longest episode in steps" if endless else ""
    if success_return is None:
        solved = "" if spec.reward_threshold is None else f" (it is registered as solved at {spec.reward_threshold:g})"
        raise ValueError(
            f"{env_id} has no success rule: pass --success-return X, and an episode whose return reaches X counts as a "
            f"success{solved}" + (f". It also has {limit}" if limit else "")
        )
    if limit:
        raise ValueError(f"{env_id} has {limit}")
    reached = _reaches(success_return)
    return lambda: OutcomeReward(make(), reached, horizon)


def _reaches(success_return: float) -> Success:
    # Ten rewards of 0.1 add up to 0.9999999999999999, and ten of float32's 0.7 to 6.99999988.
    least = success_return - (1e-7 * abs(success_return) if success_return else 1e-7)

    def reached(obs: Any, info: dict[str, Any]) -> Any:
        return info["episode_return"] >= least

    return reached


def _and(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
