"""What a task says of itself, in its own file: one `Task` record per task, handed to `register`.

The training scripts read `defaults`, scripts/pretrain.py `recipe`, scripts/contexts.py `axes`, scripts/speed.py `peer`,
docs/tasks.md all of it. A task of yours is a record of the same kind, in a file of yours; docs/mytasks.py is one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Defaults:
    """What the training scripts take where the command line is silent: values of their arguments of the same names.

    The same values serve all algorithms within a task, as in the paper (Wang et al., arXiv 2604.08865, section 5.3). The
    paper gives B (`num_envs`) and nothing else. For the tasks of this package the rest was found by trying, on other
    seeds than those whose results are shown.
    """

    num_envs: int = 64
    """B, episodes per update"""
    num_minibatches: int = 4
    """minibatches per pass over the batch"""
    learning_rate: float = 1e-3
    """of the policy (Adam)"""
    total_timesteps: int = 2_000_000
    """environment steps of a whole run"""


@dataclass(frozen=True)
class Recipe:
    """How scripts/pretrain.py makes the starting policy: values of its arguments of the same names.

    Without a dense reward there is no expert. Then only the fields from `log_std` on are read, beside demonstrations
    that the user gives.
    """

    expert_of: str | None = None
    """task whose expert and demonstrations are cloned, with equal spaces; None is the task itself"""
    expert_success: float = 0.9
    """sampled success rate at which the expert is good enough"""
    expert_timesteps: int = 4_000_000
    """environment steps after which to give up"""
    expert_num_envs: int = 64
    """episodes per update"""
    expert_learning_rate: float = 1e-3
    """of policy and critic (Adam)"""
    expert_log_std: float = 0.0
    """log standard deviation at the start; for continuous actions only"""
    reward_scale: float = 0.01
    """factor of the dense rewards, so that values are of size 1 to 10"""
    gamma: float = 0.99
    """discount of the dense reward"""
    gae_lambda: float = 0.95
    """lambda of the expert's advantage estimation"""
    demonstrations: int = 512
    """successful episodes to clone"""
    log_std: float = -1.0
    """log standard deviation of the clone; for continuous actions only"""
    clone_learning_rate: float = 3e-4
    """Adam; small, so that success rises over many updates"""
    clone_batch: int = 1024
    """steps per minibatch"""
    clone_updates: int = 5_000
    """updates after which to give up"""
    eval_every: int = 10
    """updates of cloning between evaluations"""
    eval_episodes: int = 1024
    """episodes per evaluation while cloning"""
    min_success: float = 0.05
    """lower end of the band of success rates, sampled actions"""
    max_success: float = 0.35
    """upper end of the band"""
    target: float | None = None
    """success rate at which cloning stops; None is the middle of the band"""
    imitate: str = "success"
    """measure that is true of the episodes worth imitating: success, or a stricter one"""


@dataclass(frozen=True)
class Axis:
    """One axis of the picture of a task's contexts."""

    name: str
    """with its unit: "position (m)" """
    of: int | Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    """number of an observation, or a function: observations (B, D) -> values (B,)"""

    def values(self, obs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Observations (B, D) -> values (B,)."""
        return np.asarray(obs[:, self.of] if isinstance(self.of, int) else self.of(obs))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A control task with one binary outcome at the end of the episode.

    Only `id`, `make`, `success` and `horizon` are needed.
    """

    id: str
    """Gymnasium id: "my/Task-v0" """
    make: Callable[..., gym.Env[Any, Any]]
    """Makes one environment, an `OutcomeReward`, perhaps with wrappers around it. It is called with keywords. It must take
    `render_mode` for videos. It may take `horizon`, and `dense` if the task has a dense reward."""
    success: str
    """what counts as success, in one sentence"""
    horizon: int
    """longest episode, in steps"""
    make_vec: Callable[..., Any] | None = None
    """Makes B environments in lockstep, faster than copies of `make`: (num_envs, horizon[, dense]) -> a `VectorEnv` with
    autoreset off, such as a `LockstepVectorEnv`. None: copies of `make` are stepped."""
    engine: Literal["numpy", "envpool"] = "numpy"
    """name of `make_vec` in --engine. If it is "envpool", `make_vec` also takes `engine`."""
    obs_scale: Sequence[float] | None = None
    """factors (D,) that bring observations to about unit size for a network; None for 1"""
    defaults: Defaults = Defaults()
    """of the training scripts"""
    recipe: Recipe = Recipe()
    """of scripts/pretrain.py"""
    peer: str | None = None
    """environment of Gymnasium and EnvPool with the same dynamics, where there is one"""
    axes: tuple[Axis, ...] = ()
    """the two axes of the picture of its contexts; none: the first two observations"""
    start: Path | None = None
    """file of its starting policy; None: see `sppo_control.starts.shipped_policy`"""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: an id with a colon, a horizon below 1, or another number of axes.
        """
        if ":" in self.id:  # nobody could name the task
            raise ValueError(f"id must have no colon, because what is before it is taken for a module, got {self.id!r}")
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise ValueError(
                f"horizon of {self.id} must be at least 1 step, got {self.horizon!r}; it is a whole number"
            )
        if len(self.axes) not in (0, 2):
            raise ValueError(f"axes of {self.id} must be two, or none, got {len(self.axes)}")

    @property
    def has_dense_reward(self) -> bool:
        """Whether an expert can be trained on it."""
        return accepts(self.make, "dense") or (self.make_vec is not None and accepts(self.make_vec, "dense"))

    @property
    def engines(self) -> tuple[str, ...]:
        """Values of --engine beside "auto", the fastest first."""
        return (() if self.make_vec is None else (self.engine,)) + ("processes", "sync")


_REGISTRY: dict[str, Task] = {}


def register(new: Task) -> None:
    """Make a task known to every script, and its id to Gymnasium.

    Raises:
        ValueError: another task, or an environment of Gymnasium, has this id, or Gymnasium takes no such id.
    """
    old = _REGISTRY.get(new.id)
    again = old is not None and _made_anew(old.make, new.make)
    if not again and (old is not None or new.id in gym.registry):
        owner = f"a task of {old.make.__module__}" if old is not None else "an environment registered with Gymnasium"
        raise ValueError(f"{new.id} is {owner} already; give your task another id")
    gym.registry.pop(new.id, None)
    try:
        gym.register(
            new.id, entry_point=_entry_point(new.make),
            vector_entry_point=None if new.make_vec is None else _entry_point(new.make_vec),
        )  # fmt: skip
    except gym.error.Error as error:
        raise ValueError(f"id {new.id!r} cannot be registered with Gymnasium: {error}") from error
    _REGISTRY[new.id] = new


def task(env_id: str) -> Task | None:
    """The record of a task; None for any other environment, an unknown one too.

    Args:
        env_id: "id", or "module:id", which imports the module first; the current folder is searched after all others.

    Raises:
        ValueError: the module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, env_id)
    return _REGISTRY.get(name)


def task_defaults(env_id: str) -> dict[str, Any]:
    """Values of a task's `Defaults` by name; those of `Defaults()` for any other environment.

    Raises:
        ValueError: see `task`.
    """
    found = task(env_id)
    return dataclasses.asdict(Defaults() if found is None else found.defaults)


def import_module(module: str, env_id: str) -> Any:
    """Import a user's module; the current folder is searched after all others, so that it hides nothing.

    Raises:
        ValueError: it cannot be imported. (An error of the user's code other than an ImportError passes.)
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except (TypeError, ValueError) as error:
        if not module.startswith(".") and module.strip("."):  # an error of the user's code
            raise
        raise ValueError(f"cannot make {env_id}: {module!r} is no name of a module") from error
    except ImportError as error:
        where = f"; looked in the current folder, {os.getcwd()}, too" if error.name == module else ""
        raise ValueError(f"cannot make {env_id}: {error}{where}") from error


def table(env_ids: Iterable[str]) -> str:
    """Markdown table of tasks.

    Raises:
        ValueError: one of the ids is no task.
    """
    columns = {
        "task": lambda t: f"`{t.id}`",
        "dynamics of": lambda t: t.peer or "-",
        "success": lambda t: t.success,
        "horizon": lambda t: f"{t.horizon}",
        "engines": lambda t: ", ".join(t.engines),
        "B": lambda t: f"{t.defaults.num_envs}",
        "minibatches": lambda t: f"{t.defaults.num_minibatches}",
        "learning rate": lambda t: f"{t.defaults.learning_rate:g}",
        "steps": lambda t: f"{t.defaults.total_timesteps:,}",
        "success at the start": lambda t: f"{t.recipe.min_success:g} to {t.recipe.max_success:g}",
    }  # fmt: skip
    lines = [list(columns), ["---"] * len(columns)]
    for env_id in env_ids:
        found = task(env_id)
        if found is None:
            raise ValueError(f"{env_id} is no task; tasks are {', '.join(_REGISTRY)}")
        lines.append([cell(found).replace("|", "\\|") for cell in columns.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function has a parameter of this name."""
    return argument in inspect.signature(function).parameters


def _made_anew(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether two functions are of one definition: their module was loaded anew, or a notebook's cell was run again."""
    (module, name), other = ((getattr(f, "__module__", ""), getattr(f, "__qualname__", "<")) for f in (old, new))
    return old is not new and (module, name) == other and "<" not in name


def _entry_point(function: Callable[..., Any]) -> Any:
    """As "module:name" where that leads back to the function: such a specification can be written as JSON."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module and name and getattr(sys.modules.get(module), name, None) is function:
        return f"{module}:{name}"
    return function
