"""A user's own environment: one number is shown, the action should have its sign. Solved by any learner that works."""

import gymnasium as gym
import numpy as np


class SignEnv(gym.Env):
    """Continuous action; reward 1 for the right sign, twice, then over."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.shown = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.shown.copy(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, dtype=np.float32)), f"out of bounds: {action}"
        self.steps += 1
        reward = float(action[0] * self.shown[0] > 0)
        return self.shown.copy(), reward, self.steps == 2, False, {}


gym.register("toy/Sign-v0", SignEnv, max_episode_steps=10)
