"""Where training begins: the starting policy of each task, found by the task's exact id."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

import sppo_envs

from .checkpoints import checkpoint_to_resume
from .policies import Policy, hidden_widths, load_policy, make_policy


def look_first(args: Any, shared_contexts: bool = False) -> None:
    """With --check, check the task, print the report, and exit: status 0 if it holds, 1 if not. Else refuse a foreign task
    that cannot be trained on, before there is a run folder; see `sppo_envs.first_look`.

    Args:
        args: a training script's.
        shared_contexts: the algorithm compares episodes that share a context.

    Raises:
        ValueError: see `sppo_envs.first_look`.
    """
    if args.check:
        report = sppo_envs.check_task(
            args.env_id, args.engine, success_return=args.success_return, horizon=args.horizon, seed=args.seed
        )
        sys.exit(0 if report.holds else 1)
    if args.resume is None:
        sppo_envs.first_look(args.env_id, args.success_return, args.horizon, args.engine, shared_contexts)


def policy_name(env_id: str) -> str:
    """File name of a task's starting policy: PrecisionCartPole-v0.safetensors, my-Task-v0.safetensors."""
    name = env_id.rpartition(":")[2]
    if name in sppo_envs.TASKS + sppo_envs.HARDER:
        name = name.removeprefix("sppo/")
    return f"{name.replace('/', '-')}.safetensors"


def shipped_policy(env_id: str) -> Path | None:
    """The path of a task's starting policy; the file may not exist yet.

    For tasks of this package it is in the package's folder `pretrained`. For a task of yours it is in a folder
    `pretrained` beside the module that `env_id` names. If `env_id` names none, that folder is beside the module that
    defines `Task.make`. `Task.start` overrides all of this.

    Args:
        env_id: "id", or "module:id", which imports the module.

    Returns:
        The path. None if the environment belongs to no file: another id of Gymnasium, or a task defined in a notebook.

    Raises:
        ValueError: the module cannot be imported.
    """
    task = sppo_envs.task(env_id)
    if task is not None and task.start is not None:
        return Path(task.start)
    if task is not None and task.id in sppo_envs.TASKS + sppo_envs.HARDER:
        return Path(__file__).parent / "pretrained" / policy_name(env_id)
    module = env_id.rpartition(":")[0] or ("" if task is None else task.make.__module__)
    file = getattr(sys.modules.get(module), "__file__", None)
    return None if file is None else Path(file).parent / "pretrained" / policy_name(env_id)


def starting_policy(
    envs: gym.vector.VectorEnv,
    env_id: str,
    start: str | None,
    from_scratch: bool,
    hidden: Sequence[int],
    resume: str | None = None,
) -> Policy:
    """The policy that training begins with: `start` if it is given, else the task's own, else random weights.

    A resumed run goes on with its checkpoint, so it needs neither of those files any more. Its policy has the checkpoint's
    widths, and random weights until the checkpoint is read.

    Args:
        envs: the policy must fit their spaces.
        env_id: the task.
        start: a file that `save_policy` wrote, or a folder that contains one as policy.safetensors (a checkpoint).
        from_scratch: begin with random weights, even if the task has a starting policy.
        hidden: widths of the hidden layers of a policy with random weights.
        resume: a run folder or one of its checkpoints; None for a new run.

    Raises:
        UserError: `resume` names no run.
        ValueError: the task's own file was made for another task; see `load_policy` and `make_policy` for the rest.
        FileNotFoundError: see `load_policy`.
    """
    checkpoint = None if resume is None else checkpoint_to_resume(Path(resume))
    path = shipped_policy(env_id) if start is None else Path(start)
    if checkpoint is not None:  # `Run.start` reads its weights, and refuses what is wrong with it
        policy = make_policy(envs, hidden_widths(checkpoint / "policy.safetensors") or hidden)
    elif path is None or from_scratch or (start is None and not path.is_file()):
        policy = make_policy(envs, hidden)
    else:
        policy = load_policy(path / "policy.safetensors" if path.is_dir() else path, envs)
        if start is None and not _same_task(policy.env_id, env_id):
            raise ValueError(
                f"{path} was made for {policy.env_id}, not for {env_id}; --start {path} takes it anyway, "
                "--from-scratch starts with random weights"
            )
    policy.env_id = env_id  # from now on it is trained for this task
    return policy


def _same_task(made_for: str, env_id: str) -> bool:
    """Whether two ids mean one task: they are equal, or differ only in that one does not name the module."""
    return made_for == env_id or made_for.endswith(f":{env_id}") or env_id.endswith(f":{made_for}")
