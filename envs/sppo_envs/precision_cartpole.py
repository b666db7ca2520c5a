"""Precision CartPole: keep the pole up for 200 steps. At the last one it must be within half a degree of upright.
Context CartPole: the same pole within three degrees, but its initial states are from harmless to hopeless.

Dynamics, observations and actions are those of Gymnasium's CartPole. So are the initial states of Precision CartPole. The
reward is 0 until the episode ends, then it is 1 for success. The outcome is decided at the horizon, so the horizon is part
of the task. Therefore episodes end as terminated, never as truncated, and there is nothing to bootstrap from.

Source of Precision CartPole: SPPO, arXiv 2604.08865, section 5.3 (horizon 200, final angle within 0.5 degrees). Context
CartPole is a task of this project. In the paper's tasks the initial states are nearly equal, so that V(s_0) has nothing to
learn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds

from .lockstep import CARTPOLE, BoolArray, FloatArray, NumpyVectorEnv
from .outcome import OutcomeReward
from .task import Axis, Recipe, Task

HORIZON = 200
"""steps"""
MAX_FINAL_ANGLE = math.radians(0.5)
"""radians"""
CONTEXT_SPREAD = (1.6, 1.2, 0.18, 1.2)
"""Initial states of Context CartPole are uniform in +- these: position (m), velocity (m/s), angle (rad), angular velocity
(rad/s)."""
CONTEXT_MAX_FINAL_ANGLE = math.radians(3)
"""radians"""
OBS_SCALE = (1.0, 0.5, 10.0, 0.5)
"""Scales position (m), velocity (m/s), angle (rad) and angular velocity (rad/s) to about unit size for a network."""


def dense_reward(theta: FloatArray, fell: BoolArray) -> FloatArray:
    """Shaped reward per step, to train an expert: 1 if upright, 0.1 from 0.05 rad on, -5 for a fall. Inputs are (B,)."""
    return np.where(fell, -5.0, 1.0 - 0.9 * np.minimum(np.abs(theta) / 0.05, 1.0))


# ------------------------------------------------------------------------------------------------ one environment
def make(render_mode: str | None = None, horizon: int = HORIZON) -> OutcomeReward:
    """Precision CartPole as one environment; the last `info` contains `success` (bool) and `final_angle` (rad)."""
    return _outcome(CartPoleEnv(render_mode=render_mode), MAX_FINAL_ANGLE, horizon)


def make_context(render_mode: str | None = None, horizon: int = HORIZON) -> OutcomeReward:
    """Context CartPole as one environment."""
    return _outcome(ContextCartPoleEnv(render_mode=render_mode), CONTEXT_MAX_FINAL_ANGLE, horizon)


def _outcome(env: CartPoleEnv, max_final_angle: float, horizon: int) -> OutcomeReward:
    def final_angle() -> float:  # angle of the float64 state, because observations are rounded to float32
        assert env.state is not None
        return float(env.state[2])

    return OutcomeReward(
        env,
        success=lambda obs, info: not info["terminated"] and abs(final_angle()) <= max_final_angle,
        measures=lambda obs, info: {"final_angle": final_angle()},
        horizon=horizon,
    )


class ContextCartPoleEnv(CartPoleEnv):
    """Gymnasium's CartPole, but initial states are uniform in +- `CONTEXT_SPREAD`."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """The same as Gymnasium's, except for the bounds; `options` cannot change them."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-np.array(CONTEXT_SPREAD), CONTEXT_SPREAD)
        return np.array(self.state, dtype=np.float32), {}


# ------------------------------------------------------------------------------------------- B of them, as a batch
class PrecisionCartPoleVectorEnv(NumpyVectorEnv):
    """B environments in lockstep, as one batch of numpy arrays. Trajectories equal those of B single ones bit for bit.

    `options["low"]` and `options["high"]` of `reset` are bounds of the initial states, as in Gymnasium's CartPole.

    Args:
        num_envs: B.
        horizon: most steps per episode, at least 1.
        dense: return `dense_reward` at each step in place of the sparse reward, to train an expert.

    Raises:
        ValueError: horizon or num_envs below 1.
    """

    obs_scale = OBS_SCALE
    max_final_angle = MAX_FINAL_ANGLE
    state_names = ("position (m)", "velocity (m/s)", "angle (rad)", "angular velocity (rad/s)")

    def __init__(self, num_envs: int = 1, horizon: int = HORIZON, dense: bool = False) -> None:
        c = self._physics = CartPoleEnv()  # the only source of constants and spaces
        super().__init__(num_envs, horizon, dense, c.observation_space, c.action_space)
        self._forces = np.array([-c.force_mag, c.force_mag])

    def _draw(self, rng: np.random.Generator, n: int, options: dict[str, Any]) -> FloatArray:
        low, high = maybe_parse_reset_bounds(options, -0.05, 0.05)
        return rng.uniform(low=low, high=high, size=(4, n))

    def _observe(self) -> npt.NDArray[np.float32]:
        return self._state.T.astype(np.float32, order="C")

    def _move(self, actions: npt.NDArray[Any]) -> FloatArray:
        c, state = self._physics, self._state
        theta, theta_dot = state[2], state[3]
        # The order of operations is that of gymnasium/envs/classic_control/cartpole.py. Floating-point addition is not
        # associative, and the trajectories must be equal bit for bit.
        force = self._forces[actions]
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (force + c.polemass_length * np.square(theta_dot) * sin) / c.total_mass
        theta_acc = (c.gravity * sin - cos * temp) / (
            c.length * (4.0 / 3.0 - c.masspole * np.square(cos) / c.total_mass)
        )
        x_acc = temp - c.polemass_length * theta_acc * cos / c.total_mass
        change = np.empty_like(state)
        change[0], change[1], change[2], change[3] = state[1], x_acc, theta_dot, theta_acc
        change *= c.tau
        return state + change

    def _constants(self) -> tuple[int, FloatArray]:
        c = self._physics
        return CARTPOLE, np.array([
            c.force_mag, c.polemass_length, c.total_mass, c.gravity, c.length, c.masspole, c.tau, c.x_threshold,
            c.theta_threshold_radians,
        ])  # fmt: skip

    def _over(self) -> BoolArray:
        c = self._physics
        self._fell = (np.abs(self._state[0]) > c.x_threshold) | (np.abs(self._state[2]) > c.theta_threshold_radians)
        return self._fell

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        angle = self._state[2]
        return {"success": ~self._fell & (np.abs(angle) <= self.max_final_angle), "final_angle": angle}

    def _dense_reward(self) -> FloatArray:
        return dense_reward(self._state[2], self._fell)


PrecisionCartPoleVectorEnv.compiled_by = PrecisionCartPoleVectorEnv


class ContextCartPoleVectorEnv(PrecisionCartPoleVectorEnv):
    """Context CartPole as a batch; see `PrecisionCartPoleVectorEnv`."""

    max_final_angle = CONTEXT_MAX_FINAL_ANGLE

    def _draw(self, rng: np.random.Generator, n: int, options: dict[str, Any]) -> FloatArray:
        spread = np.array(CONTEXT_SPREAD)[:, None]
        return rng.uniform(-spread, spread, size=(4, n))


# ------------------------------------------------------------------------------------------------------- the tasks
# Of all pairs of observations, this pair tells most about whether Context CartPole's starting policy succeeds.
AXES = (Axis("velocity (m/s)", 1), Axis("angular velocity (rad/s)", 3))
TASK = Task(
    id="sppo/PrecisionCartPole-v0",
    make=make,
    make_vec=PrecisionCartPoleVectorEnv,
    success="the pole stays up, and its final angle is within 0.5 degrees",
    horizon=HORIZON,
    obs_scale=OBS_SCALE,
    peer="CartPole-v1",
    axes=AXES,
)
CONTEXT_TASK = Task(
    id="sppo/ContextCartPole-v0",
    make=make_context,
    make_vec=ContextCartPoleVectorEnv,
    success="the pole stays up, and its final angle is within 3 degrees",
    horizon=HORIZON,
    obs_scale=OBS_SCALE,
    recipe=Recipe(expert_success=0.5, min_success=0.25, max_success=0.55),
    peer="CartPole-v1",
    axes=AXES,
)
