"""Two episodes from one start, one success and one failure: which credit does each step get?"""

import torch

from sppo_control import core

R = torch.tensor([1.0, 0.0])  # the outcomes
value = torch.tensor([[0.3, 0.5, 0.9], [0.3, 0.2, 0.1]])  # what PPO's critic says at each of three steps
mask = torch.ones(2, 3, dtype=torch.bool)  # no padding: both episodes have three steps

reward = torch.zeros(2, 3)
reward[:, -1] = R  # the outcome is the reward of the last step
ppo, _ = core.generalized_advantage(reward, value, mask)  # R - V(s_t), one number per step
sppo = core.sequence_advantage(R, torch.logit(value[:, 0]))  # R - V(s_0), one number per episode

for i in range(2):
    steps = ", ".join(f"{a:+.1f}" for a in ppo[i].tolist())
    print(f"R = {R[i]:.0f}   PPO {steps}   SPPO {sppo[i]:+.1f} at every step")
