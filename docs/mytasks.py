"""A task of my own: push a sledge on ice so that it is within 10 cm of the mark after 40 steps."""

import gymnasium as gym
import numpy as np

from sppo_envs import Axis, Defaults, OutcomeReward, Recipe, Task, register


class Sledge(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)  # position (m), velocity (m/step)
    action_space = gym.spaces.Discrete(3)  # push to the left, not at all, to the right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-1, 1), self.np_random.uniform(-0.05, 0.05)
        return self.seen(), {}

    def step(self, action):
        self.velocity += 0.01 * (int(action) - 1)
        self.position += self.velocity
        return self.seen(), -abs(self.position), False, False, {}  # observation, reward, terminated, truncated, info

    def seen(self):
        return np.array([self.position, self.velocity], dtype=np.float32)

    def render(self):
        picture = np.full((40, 200, 3), 255, dtype=np.uint8)
        picture[:, int(np.clip(100 + 80 * self.position, 0, 195)) :][:, :5] = 0
        return picture


def make(render_mode=None, horizon=40, dense=False):
    return OutcomeReward(
        Sledge(),
        success=lambda obs, info: bool(abs(obs[0]) < 0.1),  # asked at the last step only
        horizon=horizon,
        measures=lambda obs, info: {"final_position": obs[0]},  # logged beside the success rate
        dense=(lambda reward: reward) if dense else None,  # what an expert is trained on; leave it out if there is none
    )


register(
    Task(
        id="my/Sledge-v0",
        make=make,
        success="the sledge is within 10 cm of the mark",
        horizon=40,
        obs_scale=(1.0, 10.0),
        defaults=Defaults(num_envs=32, total_timesteps=100_000),
        recipe=Recipe(expert_success=0.6, reward_scale=0.1, demonstrations=128, min_success=0.15, max_success=0.45),
        axes=(Axis("position (m)", 0), Axis("velocity (m/step)", 1)),
    )
)
