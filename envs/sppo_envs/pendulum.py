"""Sparse Pendulum: after 1000 steps the pendulum must be upright, cos(theta) > 0.8. The torque cannot lift it directly.
Context Pendulum: begins at any angle, and must be upright during all of the last 50 of 100 steps.
Balance Pendulum: must be upright during all of the last 200 of 1000 steps, so spinning through the top is no success.

Dynamics, observations (cos, sin, angular velocity) and actions (one torque in [-2, 2]) are those of Gymnasium's Pendulum.
So are the initial states of Sparse Pendulum. The reward is 0 until the last step, where it is 1 for success.

Sparse Pendulum looks only at the last step. So a pendulum that spins through the top meets the criterion 20-50 % of the
time. `upright_share` and `balanced` tell balance from spinning: report them beside the success rate.

Source of Sparse Pendulum: SPPO, arXiv 2604.08865, section 5.3 (horizon 1000, cos(theta) > 0.8 at the end). Gymnasium's
limit is 200 steps. Context Pendulum and Balance Pendulum are tasks of this project.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from .lockstep import PENDULUM, BoolArray, FloatArray, NumpyVectorEnv, Seed
from .outcome import OutcomeReward
from .task import Axis, Defaults, Recipe, Task

HORIZON = 1000
"""steps"""
UPRIGHT = 0.8
"""cos(theta) above this counts as upright (within 37 degrees)"""
WINDOW = 100
"""number of last steps that `upright_share` and `balanced` look at"""
BALANCE_WINDOW = 200
"""number of last steps during which Balance Pendulum must be upright"""
CONTEXT_HORIZON = 100
"""steps"""
CONTEXT_WINDOW = 50
"""number of last steps during which Context Pendulum must be upright"""
CONTEXT_MAX_SPEED = 2.0
"""Context Pendulum begins at any angle, with an angular velocity uniform in +- this, rad/s."""
OBS_SCALE = (1.0, 1.0, 0.25)
"""Scales cos, sin and angular velocity (rad/s) to about unit size for a network."""


def dense_reward(cos_theta: FloatArray, omega: FloatArray) -> FloatArray:
    """Shaped reward per step, to train an expert: a bonus for being upright minus a small cost of speed, (B,)."""
    return 0.5 * (cos_theta - 0.01 * np.square(omega))


# ------------------------------------------------------------------------------------------------ one environment
class UprightPendulumEnv(PendulumEnv):
    """Gymnasium's pendulum, which also reports for how long it is upright.

    At each step `info` contains `upright_share`, the share of the last `window` steps that ended upright, and `balanced`,
    whether all of them did. At the beginning of an episode the share is over all steps so far.

    Args:
        render_mode: as in Gymnasium.
        window: number of steps.
        anywhere: begin at any angle, as Context Pendulum does.
    """

    def __init__(self, render_mode: str | None = None, window: int = WINDOW, anywhere: bool = False) -> None:
        super().__init__(render_mode=render_mode)
        self._recent: deque[bool] = deque(maxlen=window)
        self._anywhere = anywhere

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """The same as Gymnasium's."""
        self._recent.clear()
        if self._anywhere:
            options = {"x_init": np.pi, "y_init": CONTEXT_MAX_SPEED, **(options or {})}
        return super().reset(seed=seed, options=options)

    def step(self, u: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step of 0.05 s."""
        obs, reward, terminated, truncated, info = super().step(u)
        self._recent.append(bool(np.cos(self.state[0]) > UPRIGHT))
        share = float(np.mean(self._recent))
        return obs, float(reward), terminated, truncated, {**info, "upright_share": share, "balanced": share == 1.0}


def make(render_mode: str | None = None, horizon: int = HORIZON) -> OutcomeReward:
    """Sparse Pendulum; the last step's `info` contains `success`, `balanced` (bool) and `upright_share`."""
    env = UprightPendulumEnv(render_mode)
    return OutcomeReward(env, success=lambda obs, info: bool(np.cos(env.state[0]) > UPRIGHT), horizon=horizon)


def make_context(render_mode: str | None = None, horizon: int = CONTEXT_HORIZON) -> OutcomeReward:
    """Context Pendulum; the last step's `info` contains `success`, `balanced` (bool) and `upright_share`."""
    env = UprightPendulumEnv(render_mode, window=CONTEXT_WINDOW, anywhere=True)
    return OutcomeReward(env, success=lambda obs, info: info["balanced"], horizon=horizon)


def make_balance(render_mode: str | None = None, horizon: int = HORIZON) -> OutcomeReward:
    """Balance Pendulum; the last step's `info` contains `success`, `balanced` (bool) and `upright_share`."""
    env = UprightPendulumEnv(render_mode, window=BALANCE_WINDOW)
    return OutcomeReward(env, success=lambda obs, info: info["balanced"], horizon=horizon)


# ------------------------------------------------------------------------------------------- B of them, as a batch
class SparsePendulumVectorEnv(NumpyVectorEnv):
    """B environments in lockstep, as one batch of numpy arrays. They equal Gymnasium's.

    Args:
        num_envs: B.
        horizon: steps per episode, at least 1.
        dense: return `dense_reward` at each step in place of the sparse reward, to train an expert.

    Raises:
        ValueError: horizon or num_envs below 1.
    """

    obs_scale = OBS_SCALE
    state_names = ("angle (rad)", "angular velocity (rad/s)")
    window = WINDOW
    start = (np.pi, 1.0)  # bounds of Gymnasium's initial states

    def __init__(self, num_envs: int = 1, horizon: int = HORIZON, dense: bool = False) -> None:
        c = self._physics = PendulumEnv()  # the only source of constants and spaces
        super().__init__(num_envs, horizon, dense, c.observation_space, c.action_space)

    def _begin(self, seed: Seed, options: dict[str, Any] | None) -> npt.NDArray[Any]:
        self._recent = np.zeros((self.window, self.num_envs), dtype=np.bool_)
        return super()._begin(seed, options)

    def _draw(self, rng: np.random.Generator, n: int, options: dict[str, Any]) -> FloatArray:
        bound = np.array(self.start)[:, None]
        return rng.uniform(-bound, bound, size=(2, n))

    def _observe(self) -> npt.NDArray[np.float32]:
        obs = np.empty((self.num_envs, 3), dtype=np.float32)
        self._cos = np.cos(self._state[0])
        obs[:, 0], obs[:, 1], obs[:, 2] = self._cos, np.sin(self._state[0]), self._state[1]
        return obs

    def _move(self, actions: npt.NDArray[Any]) -> FloatArray:
        c = self._physics
        theta, omega = self._state
        torque = np.minimum(np.maximum(actions[:, 0], -c.max_torque), c.max_torque)
        # The torque's term keeps the precision of the actions, float32, as in Gymnasium. Near the top the motion is
        # unstable, so rounding errors grow a thousandfold during an episode.
        new = np.empty_like(self._state)
        new[1] = omega + (3 * c.g / (2 * c.l) * np.sin(theta) + 3.0 / (c.m * c.l**2) * torque) * c.dt
        np.clip(new[1], -c.max_speed, c.max_speed, out=new[1])
        new[0] = theta + new[1] * c.dt
        return new

    def _constants(self) -> tuple[int, FloatArray]:
        c = self._physics
        return PENDULUM, np.array([c.g, c.l, c.m, c.dt, c.max_speed, c.max_torque, UPRIGHT, self.window])

    def _remember(self, memory: FloatArray) -> None:
        self._cos = np.cos(self._state[0])
        self._recent = np.arange(self.window)[:, None] < memory  # how many of the last steps, in any order

    def _over(self) -> BoolArray:
        self._recent[self._steps % self.window] = self._cos > UPRIGHT
        return np.zeros(self.num_envs, dtype=np.bool_)

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        share = self._recent.sum(axis=0) / min(self.window, self._steps)
        return {"success": self._success(share), "balanced": share == 1.0, "upright_share": share}

    def _success(self, share: FloatArray) -> BoolArray:
        return self._cos > UPRIGHT

    def _dense_reward(self) -> FloatArray:
        return dense_reward(self._cos, self._state[1])


SparsePendulumVectorEnv.compiled_by = SparsePendulumVectorEnv


class BalancePendulumVectorEnv(SparsePendulumVectorEnv):
    """Balance Pendulum as a batch; see `SparsePendulumVectorEnv`."""

    window = BALANCE_WINDOW

    def _success(self, share: FloatArray) -> BoolArray:
        return share == 1.0


class ContextPendulumVectorEnv(BalancePendulumVectorEnv):
    """Context Pendulum as a batch; see `SparsePendulumVectorEnv`."""

    window = CONTEXT_WINDOW
    start = (np.pi, CONTEXT_MAX_SPEED)

    def __init__(self, num_envs: int = 1, horizon: int = CONTEXT_HORIZON, dense: bool = False) -> None:
        super().__init__(num_envs, horizon, dense)


# ------------------------------------------------------------------------------------------------------- the tasks
AXES = (
    Axis("angle from upright (rad)", lambda obs: np.arctan2(obs[:, 1], obs[:, 0])),
    Axis("angular velocity (rad/s)", 2),
)
TASK = Task(
    id="sppo/SparsePendulum-v0",
    make=make,
    make_vec=SparsePendulumVectorEnv,
    success="cos(theta) > 0.8 at the last step",
    horizon=HORIZON,
    obs_scale=OBS_SCALE,
    defaults=Defaults(num_envs=16, learning_rate=3e-4, total_timesteps=3_000_000),
    # 30 % of the episodes succeed by spinning, which is not worth imitating. The clone should balance only rarely.
    recipe=Recipe(
        imitate="balanced",
        expert_num_envs=16,
        reward_scale=0.1,
        demonstrations=128,
        log_std=-0.5,
        clone_learning_rate=1e-3,
        eval_episodes=256,
        eval_every=4,
        target=0.08,
    ),
    peer="Pendulum-v1",
    axes=AXES,
)
BALANCE_TASK = dataclasses.replace(
    TASK,
    id="sppo/BalancePendulum-v0",
    make=make_balance,
    make_vec=BalancePendulumVectorEnv,
    success="cos(theta) > 0.8 during all of the last 200 steps",
    recipe=dataclasses.replace(
        TASK.recipe, expert_of="sppo/SparsePendulum-v0", min_success=0.02, max_success=0.1, target=0.05
    ),
)
CONTEXT_TASK = Task(
    id="sppo/ContextPendulum-v0",
    make=make_context,
    make_vec=ContextPendulumVectorEnv,
    success="cos(theta) > 0.8 during all of the last 50 steps",
    horizon=CONTEXT_HORIZON,
    obs_scale=OBS_SCALE,
    recipe=Recipe(expert_success=0.7, reward_scale=0.1, log_std=-1.5, min_success=0.25, max_success=0.55),
    peer="Pendulum-v1",
    axes=AXES,
)
