"""Checks of e19_own_task."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..compare import show
from ..grading import Check, Mistake

HORIZON = 20


def _reset(env: Any, seed: int | None, copy: bool = True) -> Any:
    found = env.reset(seed=seed)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise Mistake(f"reset must return (observation, {{}}), a tuple of two, but it returns {show(found)}.")
    observation = _observation(found[0], "reset")
    return observation.copy() if copy else observation


def _observation(found: Any, name: str) -> Any:
    if not isinstance(found, np.ndarray) or found.shape != (3,) or found.dtype != np.float32:
        kind = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise Mistake(
            f"The observation of {name} must be a float32 array of shape (3,): x, v and t / 20. It is {kind}."
        )
    return found


def _step(env: Any, action: Any) -> tuple[Any, float, bool, bool]:
    found = env.step(action)
    if not isinstance(found, tuple) or len(found) != 5:
        raise Mistake(
            "step must return five things: observation, reward, terminated, truncated and {}. It returns "
            f"{len(found) if isinstance(found, tuple) else type(found).__name__}."
        )
    observation, reward, terminated, truncated, info = found
    if not isinstance(info, dict):
        raise Mistake(f"The last thing that step returns is a dictionary, but it is {type(info).__name__}.")
    for flag, name in ((terminated, "terminated"), (truncated, "truncated")):
        if not isinstance(flag, bool | np.bool_):
            raise Mistake(f"{name} must be True or False, but it is {flag!r} of type {type(flag).__name__}.")
    if not isinstance(reward, int | float | np.floating):
        raise Mistake(f"The reward must be a number, but it is {reward!r} of type {type(reward).__name__}.")
    return _observation(observation, "step"), float(reward), bool(terminated), bool(truncated)


def start(student: ModuleType) -> None:
    env = student.Sledge()
    seen = np.array([_reset(env, seed) for seed in range(40)])
    if not np.all(seen[:, 1:] == 0):
        raise Mistake(f"An episode starts with v = 0 and t = 0, but with seed 0 the observation is {show(seen[0])}.")
    x = seen[:, 0]
    if np.abs(x).max() > 1:
        raise Mistake(f"The start is outside [-1, 1]: x = {show(float(x[np.abs(x).argmax()]))}.")
    if x.min() > -0.5 or x.max() < 0.5:
        raise Mistake(
            f"The start is not uniform in [-1, 1]: 40 seeds gave x from {show(float(x.min()))} to {show(float(x.max()))}."
        )


def seeds(student: ModuleType) -> None:
    env = student.Sledge()
    first = [_reset(env, 7).copy() for _ in range(2)]
    if not np.array_equal(*first):
        raise Mistake(
            "The seed does not decide the start: reset(seed=7) gave x = "
            f"{show(float(first[0][0]))} and then {show(float(first[1][0]))}. Draw from self.np_random after "
            "super().reset(seed=seed), not from np.random."
        )
    if np.array_equal(_reset(env, 7), _reset(env, 8)):
        raise Mistake("Each seed gives the same start, so there is one context only. reset must pass the seed on.")
    following = [_reset(env, None)[0] for _ in range(3)]
    if len({float(x) for x in following}) < 3:
        raise Mistake(
            f"reset() without a seed gives the same start again: x = {show(float(following[0]))}. Do not seed with a "
            "number of your own; super().reset(seed=None) goes on with the generator."
        )


def _right(x: float, actions: Sequence[int]) -> tuple[list[list[float]], float]:
    v, seen = 0.0, []
    for t, action in enumerate(actions, start=1):
        v += 0.05 * (action - 1)
        x += v
        seen.append([x, v, t / HORIZON])
    return seen, float(len(actions) == HORIZON and abs(x) < 0.1 and abs(v) < 0.1)


def dynamics(student: ModuleType) -> None:
    env = student.Sledge()
    x = float(_reset(env, 3)[0])
    actions = [2, 2, 1, 0, 0]
    right, _ = _right(x, actions)
    old, v, late = x, 0.0, []
    for action in actions:  # the position moves before the velocity changes
        old, v = old + v, v + 0.05 * (action - 1)
        late.append([old, v])
    for t, action in enumerate(actions):
        found = _step(env, action)[0].tolist()
        given = (
            f"After {t + 1} steps from x = {x:.4g} with actions {actions[: t + 1]}, the observation is {show(found)}, "
        )
        given += f"right is {show(right[t])}."
        if np.allclose(found, right[t], atol=1e-5):
            continue
        if np.allclose(found[:2], late[t], atol=1e-5):
            raise Mistake(f"The position moves with the old velocity. Change the velocity first. {given}")
        if np.isclose(found[1], -right[t][1], atol=1e-5) and right[t][1]:
            raise Mistake(f"The push has the wrong direction: action 2 is to the right. {given}")
        if np.allclose(found[:2], right[t][:2], atol=1e-5):
            raise Mistake(f"The third number is not t / 20. {given}")
        if t == 0 and np.isclose(found[1], 0.05 * action, atol=1e-5):
            raise Mistake(f"The push is 0.05 (action - 1), so that action 1 does not push. {given}")
        if np.isclose(found[1], 0.05 * (action - 1), atol=1e-5):
            raise Mistake(f"The velocity is set to the push, but the push is added to it. {given}")
        raise Mistake(f"The dynamics differ. {given}")


def _play(env: Any, actions: Sequence[int], seed: int) -> tuple[float, list[tuple[Any, float, bool, bool]]]:
    x = float(_reset(env, seed)[0])
    return x, [_step(env, action) for action in actions]


def end(student: ModuleType) -> None:
    env = student.Sledge()
    for episode in range(2):
        _, steps = _play(env, [1] * HORIZON, episode)
        ended = [t for t, (_, _, terminated, truncated) in enumerate(steps, start=1) if terminated or truncated]
        if steps[-1][3]:
            raise Mistake(
                "The last step is truncated, which tells a learner that the episode would go on. The outcome is decided "
                "there, so it is terminated. After 20 steps truncated is True, right is False."
            )
        if not ended:
            raise Mistake("The episode does not end: after 20 steps terminated is False. Is it one step late?")
        if ended[0] != HORIZON:
            why = (
                "Is the number of steps set to 0 by reset?" if episode else "It ends after 20 steps, and never before."
            )
            raise Mistake(f"The {'second' if episode else 'first'} episode ends after {ended[0]} steps. {why}")


def _winning(x: float) -> list[int]:
    """Actions that end near the mark and at rest, by trial: push for a while, glide, and brake."""
    for glide in range(18):
        for push in range(1, 9):
            for first in (0, 2):
                actions = ([first] * push + [1] * glide + [2 - first] * push + [1] * HORIZON)[:HORIZON]
                if _right(x, actions)[1] and len([first] * push * 2) + glide <= HORIZON:
                    return actions
    return []


def reward(student: ModuleType) -> None:
    env = student.Sledge()
    wins = 0
    for seed in range(12):
        x = float(_reset(env, seed)[0])
        for actions in (_winning(x), [1] * HORIZON, [2] * HORIZON, [0] * HORIZON):
            if not actions:
                continue
            right = _right(x, actions)[1]
            wins += int(right)
            _, steps = _play(env, actions, seed)
            early = [(t, r) for t, (_, r, _, _) in enumerate(steps[:-1], start=1) if r != 0]
            if early:
                raise Mistake(
                    f"There is a reward before the end: {early[0][1]:g} at step {early[0][0]}. The outcome is known at the "
                    "last step only, and all other rewards are 0."
                )
            final = steps[-1]
            if final[1] == right:
                continue
            at = f"At the end x = {final[0][0]:.4g} and v = {final[0][1]:.4g}, and the reward is {final[1]:g}, "
            at += f"right is {right:g}."
            if final[1] not in (0.0, 1.0):
                raise Mistake(f"The outcome is 0 or 1, nothing else. {at}")
            if abs(final[0][0]) < 0.1 and abs(final[0][1]) >= 0.1:
                raise Mistake(f"The sledge must also be at rest: |v| < 0.1. {at}")
            if abs(final[0][1]) < 0.1 and final[0][0] < 0 and not right:
                raise Mistake(f"x < 0.1 is not |x| < 0.1. {at}")
            raise Mistake(f"Success is |x| < 0.1 and |v| < 0.1. {at}")
    assert wins > 3, "the check needs successes"
    for seed in range(200):  # near the mark, but sliding through it
        x = float(_reset(env, seed)[0])
        for first, push in ((2, 20), (0, 20), (2, 10), (0, 10), (2, 5), (0, 5), (2, 4), (0, 4), (2, 3), (0, 3)):
            for wait in range(HORIZON - push + 1):
                actions = [1] * wait + [first] * push + [1] * (HORIZON - push - wait)
                seen, right = _right(x, actions)
                if abs(seen[-1][0]) < 0.1 and abs(seen[-1][1]) > 0.11 and not right:
                    _, steps = _play(env, actions, seed)
                    if steps[-1][1] != 0:
                        raise Mistake(
                            f"The sledge must also be at rest: |v| < 0.1. At the end x = {seen[-1][0]:.4g} and v = "
                            f"{seen[-1][1]:.4g}, and the reward is {steps[-1][1]:g}, right is 0."
                        )
                    return


def copies(student: ModuleType) -> None:
    env = student.Sledge()
    first = _reset(env, 0, copy=False)
    kept = first.copy()
    second = _step(env, 2)[0]
    if not np.array_equal(first, kept) or np.shares_memory(first, second):
        raise Mistake(
            "The observation is not a new array: a step changes the one that reset returned. A learner that keeps it would "
            "see the later state. Make a new array each time."
        )
    other = student.Sledge()
    x = float(_reset(other, 0)[0])
    _reset(env, 1)
    found = float(_step(other, 1)[0][0])
    if abs(found - x) > 1e-6:
        raise Mistake("Two environments share their state. Keep it in self, not in the class or the module.")


CHECKS = (
    Check("an episode starts as it should", start),
    Check("the seed decides the start", seeds),
    Check("the dynamics", dynamics),
    Check("an episode is terminated after 20 steps", end),
    Check("the only reward is success, at the end", reward),
    Check("observations are new arrays, and environments are apart", copies),
)
HINTS = {
    "an episode starts as it should": ("super().reset(seed=seed) first. Then self.np_random.uniform(-1, 1).",),
    "the seed decides the start": (
        "Only self.np_random is seeded by super().reset(seed=seed). np.random and random are not.",
    ),
    "the dynamics": (
        "Keep x, v and t in self, and set all three in reset.",
        "In step: v first, then x, then t. end = self.t >= HORIZON is `terminated`; `truncated` is always False.",
    ),
    "an episode is terminated after 20 steps": (
        "Count the steps in self.t. After the 20th, terminated is True, and truncated never is.",
    ),
    "the only reward is success, at the end": (
        "float(end and abs(self.x) < 0.1 and abs(self.v) < 0.1) is the reward.",
    ),
    "observations are new arrays, and environments are apart": (
        "np.array([...], dtype=np.float32) makes a new array at each call. What belongs to one environment is in "
        "self, not in the class.",
    ),
}
