"""One step of the batched tasks, compiled by numba: the same equations as `_move`, `_over` and `_observe` in numpy.

A compiled rollout calls these for one episode at a time (sppo_control/kernels.py). This module needs numba, so it is
imported only when compiled kernels are chosen. Sines and exponentials may differ in the last bit from numpy's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from .lockstep import CARTPOLE, PENDULUM, FloatArray


@njit(cache=True, nogil=True, error_model="numpy")
def observe(kind: int, state: FloatArray, obs: Any) -> None:
    """Write the observation (D,) float32 of a state (S,)."""
    if kind == PENDULUM:
        obs[0], obs[1], obs[2] = math.cos(state[0]), math.sin(state[0]), state[1]
    else:
        for k in range(len(state)):
            obs[k] = state[k]


@njit(cache=True, nogil=True, error_model="numpy")
def advance(kind: int, c: FloatArray, state: FloatArray, action: float, memory: FloatArray, left: int) -> bool:
    """Move one episode by one step, in place.

    Args:
        kind: which dynamics.
        c: constants; each class says in `dynamics` which they are.
        state: (S,) float64.
        action: the action's number, or its only component (float32).
        memory: (1,) float64, which an episode keeps from step to step; 0 at its beginning.
        left: steps that are left after this one.

    Returns:
        Whether the task ends the episode here, the horizon left aside.
    """
    if (
        kind == CARTPOLE
    ):  # force, pole mass x length, total mass, gravity, length, pole mass, tau, limits of x and theta
        x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
        force = c[0] if action == 1 else -c[0]
        cos, sin = math.cos(theta), math.sin(theta)
        temp = (force + c[1] * (theta_dot * theta_dot) * sin) / c[2]
        theta_acc = (c[3] * sin - cos * temp) / (c[4] * (4.0 / 3.0 - c[5] * (cos * cos) / c[2]))
        x_acc = temp - c[1] * theta_acc * cos / c[2]
        state[0], state[1] = x + c[6] * x_dot, x_dot + c[6] * x_acc
        state[2], state[3] = theta + c[6] * theta_dot, theta_dot + c[6] * theta_acc
        return abs(state[0]) > c[7] or abs(state[2]) > c[8]
    if kind == PENDULUM:  # gravity, length, mass, dt, speed and torque limits, threshold of cos(theta), window
        theta, omega = state[0], state[1]
        torque = np.float32(min(max(action, -c[5]), c[5]))
        push = np.float32(3.0 / (c[2] * c[1] * c[1])) * torque  # in float32, as in `_move`
        omega = omega + (3.0 * c[0] / (2.0 * c[1]) * math.sin(theta) + push) * c[3]
        omega = min(max(omega, -c[4]), c[4])
        theta = theta + omega * c[3]
        state[0], state[1] = theta, omega
        if left < c[7] and math.cos(theta) > c[6]:
            memory[0] += 1.0  # steps of the last `window` that ended upright
        return False
    # lowest and highest action, power, speed limit, lowest and highest position, goal
    position, velocity = state[0], state[1]
    force = np.float32(min(max(action, c[0]), c[1]))
    velocity = velocity + np.float32(force * np.float32(c[2])) - 0.0025 * math.cos(3.0 * position)
    velocity = min(max(velocity, -c[3]), c[3])
    position = min(max(position + velocity, c[4]), c[5])
    if position == c[4] and velocity < 0:
        velocity = 0.0
    state[0], state[1] = np.float32(position), np.float32(velocity)
    return state[0] >= c[6] and state[1] >= 0
