"""Generalized advantage estimation.

Difficulty: 3/5
Minutes: 30
Teaches: GAE, lambda-returns, terminal states, padding

Token-level PPO gives each step its own advantage. Its critic reads every state, and V_t is its
value of s_t. GAE (Schulman et al., arXiv 1506.02438, eq. 16) is a discounted sum of TD errors:

    delta_t = r_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma lambda A_{t+1}
    G_t     = A_t + V_t                      the return, the critic's target

Each episode here ends in a terminal state, whose value is 0. So V_{t+1} = 0 and A_{t+1} = 0 after
the last real step. At gamma = lambda = 1, and with a reward at the end only, A_t = R - V_t: compare
it with SPPO's A = R - V(s_0).

A batch of B episodes is padded to T steps, and the padding is at the end of each row. mask[b, t] is
True on real steps. The values and rewards in the padding can be anything, even NaN. There the
results are 0.

The critic is trained by its own loss, so neither result has a gradient.
"""

import torch
from torch import Tensor


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """reward, value and mask (B, T) -> the advantage A and the return G, both (B, T), without gradient."""
    reward, value = torch.where(mask, reward, 0.0), torch.where(mask, value, 0.0).detach()
    advantage = torch.zeros_like(value)
    A = next_value = torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1])):
        delta = reward[:, t] + gamma * next_value - value[:, t]
        A = torch.where(mask[:, t], delta + gamma * gae_lambda * A, 0.0)
        advantage[:, t], next_value = A, value[:, t]
    return advantage, torch.where(mask, advantage + value, 0.0)


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
