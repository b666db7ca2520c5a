"""Sparse MountainCar: reach the flag, x >= 0.45, within 1000 steps. The engine is too weak to climb the slope directly.

Dynamics, observations, actions (one force in [-1, 1]) and initial states are those of Gymnasium's MountainCarContinuous.
The episode ends at the flag or at the horizon. The reward is 0 until then, and 1 for success at the end. Force has no cost.

Stop MountainCar differs in one thing: the car must be slow at the flag, with a velocity of at most `STOP_SPEED`. An arrival
that is too fast ends the episode too, as a failure. It is a task of this project.

Source of Sparse MountainCar: SPPO, arXiv 2604.08865, section 5.3 (horizon 1000, x >= 0.45). Gymnasium's limit is 999 steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds

from .lockstep import MOUNTAIN_CAR, BoolArray, FloatArray, NumpyVectorEnv
from .outcome import OutcomeReward
from .task import Axis, Defaults, Recipe, Task

HORIZON = 1000
"""steps"""
STOP_SPEED = 0.008
"""m/step; the highest velocity at the flag that counts as stopping there. Full speed is 0.07."""
OBS_SCALE = (1.0, 20.0)
"""Scales position (m) and velocity (m/step) to about unit size for a network."""


def dense_reward(velocity: FloatArray, at_goal: BoolArray) -> FloatArray:
    """Shaped reward per step, to train an expert: a velocity bonus, 10 |v|, and 50 at the flag. Inputs are (B,)."""
    return 10.0 * np.abs(velocity) + 50.0 * at_goal


def make(render_mode: str | None = None, horizon: int = HORIZON) -> OutcomeReward:
    """One environment; the last step's `info` contains `success` (bool) and `final_position` (m)."""
    env = Continuous_MountainCarEnv(render_mode=render_mode)
    return OutcomeReward(
        env,
        success=lambda obs, info: info["terminated"],  # Gymnasium reports it only at the flag
        measures=lambda obs, info: {"final_position": float(obs[0])},
        horizon=horizon,
    )


def make_stop(render_mode: str | None = None, horizon: int = HORIZON) -> OutcomeReward:
    """Stop MountainCar; the last step's `info` contains `success` (bool), `final_position` (m) and `final_velocity`
    (m/step)."""
    return OutcomeReward(
        Continuous_MountainCarEnv(render_mode=render_mode),
        success=lambda obs, info: info["terminated"] and bool(float(obs[1]) <= STOP_SPEED),
        measures=lambda obs, info: {"final_position": float(obs[0]), "final_velocity": float(obs[1])},
        horizon=horizon,
    )


class SparseMountainCarVectorEnv(NumpyVectorEnv):
    """B environments in lockstep, as one batch of numpy arrays. They equal Gymnasium's up to float32 rounding.

    `options["low"]` and `options["high"]` of `reset` are bounds of the initial position, as in Gymnasium.

    Args:
        num_envs: B.
        horizon: most steps per episode, at least 1.
        dense: return `dense_reward` at each step in place of the sparse reward, to train an expert.

    Raises:
        ValueError: horizon or num_envs below 1.
    """

    obs_scale = OBS_SCALE
    state_names = ("position (m)", "velocity (m/step)")

    def __init__(self, num_envs: int = 1, horizon: int = HORIZON, dense: bool = False) -> None:
        c = self._physics = Continuous_MountainCarEnv()  # the only source of constants and spaces
        super().__init__(num_envs, horizon, dense, c.observation_space, c.action_space)

    def _draw(self, rng: np.random.Generator, n: int, options: dict[str, Any]) -> FloatArray:
        low, high = maybe_parse_reset_bounds(options, -0.6, -0.4)
        return np.stack([rng.uniform(low=low, high=high, size=n), np.zeros(n)])

    def _observe(self) -> npt.NDArray[np.float32]:
        return self._state.T.astype(np.float32, order="C")

    def _move(self, actions: npt.NDArray[Any]) -> FloatArray:
        c = self._physics
        position, velocity = self._state
        force = np.minimum(np.maximum(actions[:, 0], c.min_action), c.max_action)
        velocity = velocity + force * c.power - 0.0025 * np.cos(3 * position)
        velocity = np.minimum(np.maximum(velocity, -c.max_speed), c.max_speed)
        position = np.minimum(np.maximum(position + velocity, c.min_position), c.max_position)
        velocity = np.where((position == c.min_position) & (velocity < 0), 0.0, velocity)
        new = np.empty_like(self._state)
        new[0], new[1] = position, velocity
        return new.astype(np.float32).astype(np.float64)  # Gymnasium keeps its state in float32

    def _constants(self) -> tuple[int, FloatArray]:
        c = self._physics
        goal = float(np.float32(c.goal_position))
        return MOUNTAIN_CAR, np.array(
            [c.min_action, c.max_action, c.power, c.max_speed, c.min_position, c.max_position, goal]
        )

    def _over(self) -> BoolArray:
        # The comparison is in float32, as in Gymnasium: 0.45 in float32 is slightly less than 0.45 in float64.
        self._at_goal = (self._state[0] >= np.float32(self._physics.goal_position)) & (self._state[1] >= 0)
        return self._at_goal

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        return {"success": self._at_goal, "final_position": self._state[0]}

    def _dense_reward(self) -> FloatArray:
        return dense_reward(self._state[1], self._at_goal)


SparseMountainCarVectorEnv.compiled_by = SparseMountainCarVectorEnv


class StopMountainCarVectorEnv(SparseMountainCarVectorEnv):
    """Stop MountainCar as a batch; see `SparseMountainCarVectorEnv`. Only the verdict differs, so it is compiled too."""

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        velocity = self._state[1]
        return {
            "success": self._at_goal & (velocity <= STOP_SPEED),
            "final_position": self._state[0],
            "final_velocity": velocity,
        }


TASK = Task(
    id="sppo/SparseMountainCar-v0",
    make=make,
    make_vec=SparseMountainCarVectorEnv,
    success="x >= 0.45 m, which ends the episode",
    horizon=HORIZON,
    obs_scale=OBS_SCALE,
    defaults=Defaults(num_envs=8, learning_rate=3e-4, total_timesteps=500_000),
    recipe=Recipe(expert_num_envs=16, demonstrations=64, clone_learning_rate=1e-4),
    peer="MountainCarContinuous-v0",
    axes=(Axis("position (m)", 0), Axis("velocity (m/step)", 1)),
)
STOP_TASK = dataclasses.replace(
    TASK,
    id="sppo/StopMountainCar-v0",
    make=make_stop,
    make_vec=StopMountainCarVectorEnv,
    success="x >= 0.45 m, which ends the episode, at a velocity of at most 0.008 m/step",
    # The dense reward pays for speed, so an expert of this task would never stop. Early clones of the other are slow.
    recipe=dataclasses.replace(
        TASK.recipe, expert_of="sppo/SparseMountainCar-v0", min_success=0.02, max_success=0.1, target=0.05
    ),
)
