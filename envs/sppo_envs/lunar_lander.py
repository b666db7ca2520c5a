"""Sparse LunarLander: touch the ground with both legs near the middle of the pad, |x| < 0.4, and do not crash.

Dynamics, observations, actions (a choice of 4) and initial states are those of Gymnasium's LunarLander-v3. The reward is 0
until the episode ends, then it is 1 for success. An episode ends when the lander is at rest, when it crashes or leaves the
screen, or after 1000 steps. The random part of the engines' thrust depends on the environment's seed. So the seed and the
actions determine everything.

EnvPool runs the task if it is installed, otherwise Gymnasium in worker processes. Both are ports of one simulation, but
with different random numbers. So their success rates agree, but the trajectories of one seed do not.

Source of the task: SPPO, arXiv 2604.08865, section 5.3 (horizon 1000, leg contact > 0.5, |x| < 0.4).
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
MAX_X = 0.4
"""half the width of the landing zone; x = 1 is the edge of the screen"""
OBS_SCALE = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""All 1, because Gymnasium already scales the observations."""
_HIGH = np.array([2.5, 2.5, 10.0, 10.0, 2 * np.pi, 10.0, 1.0, 1.0], dtype=np.float32)
OBSERVATION_SPACE = spaces.Box(np.where(np.arange(8) < 6, -_HIGH, 0).astype(np.float32), _HIGH)
"""The space of Gymnasium, because EnvPool declares bounds that its observations exceed."""


def success(obs: npt.NDArray[Any], info: dict[str, Any]) -> Any:
    """Both legs touch the ground, |x| < 0.4, and no crash: obs (8,) -> bool, or (B, 8) -> (B,) bool."""
    legs = (obs[..., 6] > 0.5) & (obs[..., 7] > 0.5)
    return legs & (np.abs(obs[..., 0]) < MAX_X) & ~measures(obs, info)["crashed"]


def measures(obs: npt.NDArray[Any], info: dict[str, Any]) -> dict[str, Any]:
    """`crashed`, `landed` and `final_x`.

    `crashed`: the body touched the ground or left the screen (Gymnasium's reward is -100). `landed`: the lander is at rest
    (Gymnasium's reward is +100).
    """
    over, last = np.asarray(info["terminated"]), np.asarray(info["last_reward"])
    return {"crashed": over & (last <= -100), "landed": over & (last >= 100), "final_x": obs[..., 0]}


def dense_reward(own: Any) -> Any:
    """Shaped reward per step, to train an expert: Gymnasium's own reward."""
    return own


def make(render_mode: str | None = None, horizon: int = HORIZON, dense: bool = False) -> OutcomeReward:
    """One environment; the last step's `info` contains `success`, `crashed`, `landed` (bool), `final_x` and
    `episode_return`, which is the sum of Gymnasium's own rewards.

    Raises:
        MissingExtra: Box2D or pygame is not installed.
    """
    env = own_make("LunarLander-v3", "box2d", "Box2D", "pygame", render_mode=render_mode)
    return OutcomeReward(env, success, horizon, measures, dense_reward if dense else None)


def make_vec(num_envs: int = 1, horizon: int = HORIZON, dense: bool = False, engine: Engine = "auto") -> Any:
    """B environments in lockstep, autoreset off; see `make` and `sppo_envs.engines.Engine`.

    Raises:
        MissingExtra: a package that the engine needs is not installed.
        ValueError: horizon or num_envs below 1.
    """
    if engine == "envpool" or (engine == "auto" and has_envpool()):
        reward = dense_reward if dense else None
        return EnvPoolVectorEnv(
            "LunarLander-v3", num_envs, horizon, success, measures, reward, OBS_SCALE, OBSERVATION_SPACE
        )
    return copies(
        lambda: make(horizon=horizon, dense=dense), num_envs, "sync" if engine == "sync" else "processes", OBS_SCALE
    )


TASK = Task(
    id="sppo/SparseLunarLander-v0",
    make=make,
    make_vec=make_vec,
    engine="envpool",
    success="both legs touch the ground, abs(x) < 0.4, not crashed",
    horizon=HORIZON,
    obs_scale=OBS_SCALE,
    defaults=Defaults(num_envs=16, num_minibatches=2, learning_rate=3e-4),
    recipe=Recipe(
        expert_success=0.8,
        expert_num_envs=32,
        reward_scale=0.05,
        gamma=0.999,
        gae_lambda=0.98,
        demonstrations=256,
        eval_episodes=256,
    ),
    peer="LunarLander-v3",
    axes=(Axis("horizontal velocity (scaled)", 2), Axis("vertical velocity (scaled)", 3)),
)
