"""Control tasks with one binary outcome at the end of the episode. `import sppo_envs` registers them with Gymnasium."""

from __future__ import annotations

import difflib
from typing import Any

import gymnasium as gym

from .outcome import OutcomeReward, OutcomeVectorEnv

__all__ = ["TASKS", "OutcomeReward", "OutcomeVectorEnv", "make_task"]

TASKS = ("sppo/PrecisionCartPole-v0",)
"""Ids of the tasks of this package."""

gym.register(
    "sppo/PrecisionCartPole-v0",
    entry_point="sppo_envs.precision_cartpole:PrecisionCartPoleEnv",
    vector_entry_point="sppo_envs.precision_cartpole:PrecisionCartPoleVectorEnv",
)


def make_task(
    env_id: str, num_envs: int, success_return: float | None = None, horizon: int | None = None, **kwargs: Any
) -> Any:
    """B episodes in lockstep with a binary outcome, for a task of this package or any other Gymnasium id.

    Args:
        env_id: one of `TASKS`, or any Gymnasium id ("module:id" imports the module first).
        num_envs: B.
        success_return: needed for other environments, refused for `TASKS`: an episode succeeds when the sum of the
            environment's own rewards reaches this number.
        horizon: longest episode in steps; None takes the task's or the environment's own.
        **kwargs: for the constructor of a task of this package.

    Returns:
        A `gymnasium.vector.VectorEnv` with autoreset off and an attribute `horizon`.

    Raises:
        ValueError: an unknown id (near ones are suggested), a missing or superfluous success rule, a bad horizon, an
            environment whose own dependencies are not installed.
    """
    if env_id in TASKS:
        if success_return is not None:
            raise ValueError(f"{env_id} has a success rule of its own; leave --success-return out")
        if horizon is not None:
            kwargs["horizon"] = horizon
        return gym.make_vec(env_id, num_envs=num_envs, **kwargs).unwrapped
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
    threshold = success_return
    try:
        return OutcomeVectorEnv(env_id, num_envs, lambda obs, info: info["episode_return"] >= threshold, horizon)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"cannot make {env_id}: {error}") from error
