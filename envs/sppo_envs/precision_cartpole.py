"""Precision CartPole: keep the pole up for 200 steps and hold it within half a degree of upright at the last one.

Dynamics, observations, actions and initial states are Gymnasium's CartPole. The reward is 0 until the episode ends,
then 1 for success. The horizon is part of the task (the outcome is judged there), so episodes end as terminated, never
as truncated: there is nothing to bootstrap from.

Source of the task: SPPO, arXiv 2604.08865, section 5.3 (horizon 200, final angle within 0.5 degrees).
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from gymnasium.vector import AutoresetMode, VectorEnv

HORIZON = 200
"""steps"""
MAX_FINAL_ANGLE = math.radians(0.5)
"""radians"""
OBS_SCALE = (1.0, 0.5, 10.0, 0.5)
"""Brings position (m), velocity (m/s), angle (rad) and angular velocity (rad/s) to about unit size for a network."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def dense_reward(theta: FloatArray, fell: BoolArray) -> FloatArray:
    """Shaped reward of one step for training an expert: 1 upright, 0.1 from 0.05 rad on, -5 on a fall; both (B,)."""
    return np.where(fell, -5.0, 1.0 - 0.9 * np.minimum(np.abs(theta) / 0.05, 1.0))


class PrecisionCartPoleEnv(CartPoleEnv):
    """One environment; `info` of the last step holds `success` (bool) and `final_angle` (rad).

    Args:
        render_mode: as for Gymnasium's CartPole.
        horizon: steps an episode, at least 1.

    Raises:
        ValueError: horizon below 1.
    """

    def __init__(self, render_mode: str | None = None, horizon: int = HORIZON) -> None:
        super().__init__(render_mode=render_mode)
        self.horizon = _checked(horizon)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """As Gymnasium's CartPole: state uniform in +-0.05, or in the bounds `options["low"]`, `options["high"]`."""
        self._steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step of 0.02 s; reward 0 until the last step, then 0 or 1."""
        obs, _, fell, _, _ = super().step(action)
        self._steps += 1
        if not fell and self._steps < self.horizon:
            return obs, 0.0, False, False, {}
        assert self.state is not None
        angle = float(self.state[2])
        success = not fell and abs(angle) <= MAX_FINAL_ANGLE
        return obs, float(success), True, False, {"success": success, "final_angle": angle}


class PrecisionCartPoleVectorEnv(VectorEnv[Any, Any, Any]):
    """B environments in lockstep as one batch of numpy arrays, autoreset off.

    Trajectories equal those of B scalar environments bit for bit. A finished episode is left as it is: its observation
    stays, its reward is 0, and it is reported as terminated until the next reset. `info`, on every step from the first
    finished episode on, holds `success` and `final_angle` (B,), and `_success`, `_final_angle` (B,): True where the
    episode has finished, as Gymnasium's vector environments mark it.

    Args:
        num_envs: B.
        horizon: steps an episode, at least 1.
        dense: give `dense_reward` each step in place of the sparse one (for training an expert).

    Raises:
        ValueError: horizon or num_envs below 1.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_envs: int = 1, horizon: int = HORIZON, dense: bool = False) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs, self.horizon, self.dense = num_envs, _checked(horizon), dense
        self.obs_scale = OBS_SCALE
        self._physics = CartPoleEnv()  # its constants and spaces are the one source of them
        self.single_observation_space = self._physics.observation_space
        self.single_action_space = self._physics.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)
        self._forces = np.array([-self._physics.force_mag, self._physics.force_mag])
        self._state: FloatArray | None = None  # (4, B): each row contiguous

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start B new episodes: states uniform in +-0.05, or in the bounds `options["low"]`, `options["high"]`.

        `options["state"]`, (B, 4), sets the initial states themselves.
        """
        super().reset(seed=seed)
        if options is not None and "state" in options:
            state = np.array(options["state"], dtype=np.float64)
            if state.shape != (self.num_envs, 4):
                raise ValueError(f"options['state'] must have shape ({self.num_envs}, 4), got {state.shape}")
            self._state = np.ascontiguousarray(state.T)
        else:
            low, high = maybe_parse_reset_bounds(options, -0.05, 0.05)
            self._state = self.np_random.uniform(low=low, high=high, size=(4, self.num_envs))
        self._steps = 0
        self._any_done = False
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._success = np.zeros(self.num_envs, dtype=np.bool_)
        return self._state.T.astype(np.float32, order="C"), {}

    def step(
        self, actions: npt.NDArray[np.integer[Any]]
    ) -> tuple[Any, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One step of 0.02 s of every unfinished episode; actions (B,), 0 or 1.

        Raises:
            RuntimeError: before the first reset.
            ValueError: actions of another shape, or other than 0 and 1.
        """
        if self._state is None:
            raise RuntimeError("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or ((actions | 1) != 1).any():
            raise ValueError(f"actions must be {self.num_envs} whole numbers, each 0 or 1, got {actions}")
        c, state = self._physics, self._state
        theta, theta_dot = state[2], state[3]

        # The order of operations is that of gymnasium/envs/classic_control/cartpole.py: floating-point addition is not
        # associative, and the trajectories are to be equal bit for bit.
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
        new = state + change
        if self._any_done:
            np.copyto(new, state, where=self._done)
        self._state = new

        self._steps += 1
        fell = (np.abs(new[0]) > c.x_threshold) | (np.abs(new[2]) > c.theta_threshold_radians)
        reward = np.where(self._done, 0.0, dense_reward(new[2], fell)) if self.dense else np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        if self._any_done or self._steps >= self.horizon or fell.any():
            ended = ~self._done if self._steps >= self.horizon else fell & ~self._done
            success = ended & ~fell & (np.abs(new[2]) <= MAX_FINAL_ANGLE)
            if not self.dense:
                reward[success] = 1.0
            self._success = self._success | success
            self._done = self._done | ended
            self._any_done = True
            infos = {
                "success": self._success,
                "_success": self._done,
                "final_angle": np.where(self._done, new[2], 0.0),
                "_final_angle": self._done,
            }
        obs = new.T.astype(np.float32, order="C")
        return obs, reward, self._done.copy(), np.zeros(self.num_envs, dtype=np.bool_), infos


def _checked(horizon: int) -> int:
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    return horizon
