"""A task of your own: a Gymnasium environment whose only reward is success.

Difficulty: 3/5
Minutes: 30
Teaches: the Gymnasium interface, binary outcomes, terminated and truncated, seeds

A sledge on ice must be at rest near a mark after 20 steps. Write it as an environment of
Gymnasium.

    state        position x and velocity v, both floats, and the number of steps t
    start        x is uniform in [-1, 1], v = 0, t = 0
    action       0, 1 or 2: push to the left, not at all, to the right
    dynamics     v <- v + 0.05 (action - 1), then x <- x + v with the new v, then t <- t + 1
    end          after 20 steps, and never before
    reward       0 at each step but the last; there it is 1 if |x| < 0.1 and |v| < 0.1, else 0
    observation  x, v and t / 20, a new float32 array of shape (3,)

The last step is terminated, not truncated. "Truncated" tells a learner that the episode would go
on, and that a value should be put in place of what is missing. Here nothing is missing: the
outcome is decided at step 20.

reset draws from self.np_random, which super().reset(seed=seed) seeds. Then a seed gives the same
start each time. GRPO needs that, because its groups share a start.

When it passes, docs/tasks.md shows how to train on it: python scripts/sppo_cartpole.py --env-id ...
"""

import gymnasium as gym
import numpy as np

HORIZON = 20


class Sledge(gym.Env):
    """Stop on the mark. Given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode. Returns the observation and an empty dictionary."""
        super().reset(seed=seed)
        self.x, self.v, self.t = self.np_random.uniform(-1, 1), 0.0, 0
        return self.observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step. Returns observation, reward, terminated, truncated and an empty dictionary."""
        self.v += 0.05 * (int(action) - 1)
        self.x += self.v
        self.t += 1
        end = self.t >= HORIZON
        success = end and abs(self.x) < 0.1 and abs(self.v) < 0.1
        return self.observation(), float(success), end, False, {}

    def observation(self) -> np.ndarray:
        """x, v and t / 20, as a new float32 array."""
        return np.array([self.x, self.v, self.t / HORIZON], dtype=np.float32)


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
