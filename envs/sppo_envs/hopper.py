"""Sparse Hopper: a one-legged robot; stay up for 1000 steps and get more than a metre ahead.

Dynamics, observations, actions (3 torques in [-1, 1]) and initial states are Gymnasium's Hopper-v5 (MuJoCo). The reward
is 0 until the episode ends, at a fall or after 1000 steps, then 1 for success.

EnvPool runs it where it is installed, else Gymnasium in worker processes. Both are MuJoCo: from equal states they move
equally; the initial states of one seed differ.

Source of the task: SPPO, arXiv 2604.08865, section 5.3 (horizon 1000, survived and x > 1.0 m).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from .engines import Engine, EnvPoolVectorEnv, copies, has_envpool, own_make
from .outcome import OutcomeReward
from .task import Axis, Defaults, Recipe, Task

HORIZON = 1000
"""steps"""
MIN_DISTANCE = 1.0
"""metres"""
OBS_SCALE = (1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2)
"""Brings height (m), angles (rad), velocities (m/s, rad/s; Gymnasium clips them at 10) to about unit size."""
MAX_DENSE = 2.0
"""most that a step of the dense reward pays"""
ACTION_SPACE = spaces.Box(-1.0, 1.0, (3,), np.float32)
"""Gymnasium's; EnvPool states float64."""


def success(obs: npt.NDArray[Any], info: dict[str, Any]) -> Any:
    """Not fallen, and x > 1 m: obs (11,) -> bool, or (B, 11) -> (B,) bool."""
    return ~np.asarray(info["terminated"]) & (np.asarray(info["x_position"]) > MIN_DISTANCE)


def measures(obs: npt.NDArray[Any], info: dict[str, Any]) -> dict[str, Any]:
    """`distance` (m) and `fell`."""
    return {"distance": info["x_position"], "fell": info["terminated"]}


def dense_reward(own: Any) -> Any:
    """Shaped reward of one step for training an expert: Gymnasium's own (1 for staying up, + speed in m/s, - effort), with
    speed worth nothing beyond about 1 m/s: the task asks to last, not to race."""
    return np.minimum(own, MAX_DENSE)


def make(render_mode: str | None = None, horizon: int = HORIZON, dense: bool = False) -> OutcomeReward:
    """One environment; the last step's `info` holds `success`, `fell` (bool), `distance` (m) and `episode_return`,
    Gymnasium's own return.

    Raises:
        MissingExtra: MuJoCo or imageio is not installed.
    """
    env = own_make("Hopper-v5", "mujoco", "mujoco", "imageio", render_mode=render_mode)
    return OutcomeReward(env, success, horizon, measures, dense_reward if dense else None)


def make_vec(num_envs: int = 1, horizon: int = HORIZON, dense: bool = False, engine: Engine = "auto") -> Any:
    """B environments in lockstep, autoreset off; see `make` and `sppo_envs.engines.Engine`.

    Raises:
        MissingExtra: what the engine needs is not installed.
        ValueError: horizon or num_envs below 1.
    """
    if engine == "envpool" or (engine == "auto" and has_envpool()):
        reward = dense_reward if dense else None
        return EnvPoolVectorEnv(
            "Hopper-v5", num_envs, horizon, success, measures, reward, OBS_SCALE, action_space=ACTION_SPACE
        )
    return copies(
        lambda: make(horizon=horizon, dense=dense), num_envs, "sync" if engine == "sync" else "processes", OBS_SCALE
    )


TASK = Task(
    id="sppo/SparseHopper-v0",
    make=make,
    make_vec=make_vec,
    engine="envpool",
    success="has not fallen, and x > 1 m",
    horizon=HORIZON,
    obs_scale=OBS_SCALE,
    defaults=Defaults(num_envs=8, num_minibatches=2, learning_rate=3e-4),
    recipe=Recipe(
        expert_success=0.3, expert_num_envs=32, expert_log_std=-0.5, demonstrations=64, log_std=-1.5, eval_episodes=256
    ),
    peer="Hopper-v5",
    axes=(Axis("height (m)", 0), Axis("angle of the top (rad)", 1)),
)
