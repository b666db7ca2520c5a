"""Sparse Hopper: a one-legged robot must not fall for 1000 steps, and must move forward by more than one metre.

Dynamics, observations, actions (3 torques in [-1, 1]) and initial states are those of Gymnasium's Hopper-v5 (MuJoCo). An
episode ends at a fall or after 1000 steps. The reward is 0 until then, and 1 for success at the end.

Far Hopper differs in one thing: it must move forward by more than `FAR_DISTANCE`. It is a task of this project.

EnvPool runs the tasks if it is installed, otherwise Gymnasium in worker processes. Both use MuJoCo, so from equal states
they move equally. But the initial states of one seed are different.

Source of Sparse Hopper: SPPO, arXiv 2604.08865, section 5.3 (horizon 1000, survived and x > 1.0 m).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from .engines import Engine, EnvPoolVectorEnv, copies, has_envpool, own_make
from .outcome import OutcomeReward, Success
from .task import Axis, Defaults, Recipe, Task

HORIZON = 1000
"""steps"""
MIN_DISTANCE = 1.0
"""metres"""
FAR_DISTANCE = 13.5
"""metres that Far Hopper must move forward, at 1.7 m/s on average"""
OBS_SCALE = (1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2)
"""Scales height (m), angles (rad) and velocities (m/s, rad/s; Gymnasium clips them at 10) to about unit size."""
MAX_DENSE = 2.0
"""largest dense reward per step"""
ACTION_SPACE = spaces.Box(-1.0, 1.0, (3,), np.float32)
"""The space of Gymnasium; EnvPool declares float64."""


def success(obs: npt.NDArray[Any], info: dict[str, Any]) -> Any:
    """No fall, and x > 1 m: obs (11,) -> bool, or (B, 11) -> (B,) bool."""
    return ~np.asarray(info["terminated"]) & (np.asarray(info["x_position"]) > MIN_DISTANCE)


def far_success(obs: npt.NDArray[Any], info: dict[str, Any]) -> Any:
    """No fall, and x > 13.5 m: obs (11,) -> bool, or (B, 11) -> (B,) bool."""
    return ~np.asarray(info["terminated"]) & (np.asarray(info["x_position"]) > FAR_DISTANCE)


def measures(obs: npt.NDArray[Any], info: dict[str, Any]) -> dict[str, Any]:
    """`distance` (m) and `fell`."""
    return {"distance": info["x_position"], "fell": info["terminated"]}


def dense_reward(own: Any) -> Any:
    """Shaped reward per step, to train an expert: Gymnasium's own reward, but at most `MAX_DENSE`.

    Gymnasium's reward is 1 for not falling, plus the speed in m/s, minus a cost of effort. With the limit, speed beyond
    about 1 m/s has no value, because the task is to last and not to race.
    """
    return np.minimum(own, MAX_DENSE)


def make(render_mode: str | None = None, horizon: int = HORIZON, dense: bool = False) -> OutcomeReward:
    """One environment; the last step's `info` contains `success`, `fell` (bool), `distance` (m) and `episode_return`,
    which is the sum of Gymnasium's own rewards.

    Raises:
        MissingExtra: MuJoCo or imageio is not installed.
    """
    return _one(success, render_mode, horizon, dense)


def make_far(render_mode: str | None = None, horizon: int = HORIZON, dense: bool = False) -> OutcomeReward:
    """One environment of Far Hopper; see `make`."""
    return _one(far_success, render_mode, horizon, dense)


def _one(rule: Success, render_mode: str | None, horizon: int, dense: bool) -> OutcomeReward:
    env = own_make("Hopper-v5", "mujoco", "mujoco", "imageio", render_mode=render_mode)
    return OutcomeReward(env, rule, horizon, measures, dense_reward if dense else None)


def make_vec(num_envs: int = 1, horizon: int = HORIZON, dense: bool = False, engine: Engine = "auto") -> Any:
    """B environments in lockstep, autoreset off; see `make` and `sppo_envs.engines.Engine`.

    Raises:
        MissingExtra: a package that the engine needs is not installed.
        ValueError: horizon or num_envs below 1.
    """
    return _several(success, num_envs, horizon, dense, engine)


def make_far_vec(num_envs: int = 1, horizon: int = HORIZON, dense: bool = False, engine: Engine = "auto") -> Any:
    """B environments of Far Hopper; see `make_vec`."""
    return _several(far_success, num_envs, horizon, dense, engine)


def _several(rule: Success, num_envs: int, horizon: int, dense: bool, engine: Engine) -> Any:
    if engine == "envpool" or (engine == "auto" and has_envpool()):
        reward = dense_reward if dense else None
        return EnvPoolVectorEnv(
            "Hopper-v5", num_envs, horizon, rule, measures, reward, OBS_SCALE, action_space=ACTION_SPACE
        )
    return copies(
        lambda: _one(rule, None, horizon, dense), num_envs, "sync" if engine == "sync" else "processes", OBS_SCALE
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
FAR_TASK = dataclasses.replace(
    TASK,
    id="sppo/FarHopper-v0",
    make=make_far,
    make_vec=make_far_vec,
    success="has not fallen, and x > 13.5 m",
    recipe=dataclasses.replace(
        TASK.recipe, expert_of="sppo/SparseHopper-v0", min_success=0.02, max_success=0.1, target=0.05
    ),
)
