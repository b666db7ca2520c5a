"""A critic that learns nothing.

Difficulty: 2/5
Minutes: 20
Teaches: how the Brier score shows that a critic learns nothing, and a usual reason

A colleague trains SPPO on a bandit with contexts. A context is two numbers. The sign of the first says which of two
actions is right. The second says how hard the context is: in some a right action nearly always succeeds, in others it
almost never does.

"The policy gets better, but the critic does not. Its Brier score is the mean of (V - R)^2. A constant guess has 0.24,
and that is where my critic is after 30 updates. I have tried a larger network and another learning rate." Another
program, with the same task and the same settings, soon reaches 0.13.

There is one bug in this file. Find it and mend it. Leave the settings and the task as they are. The grader calls
`Critic`, `advantage`, `policy_loss`, `critic_loss` and `train`, so keep their names, arguments and results.
"""

from __future__ import annotations

import torch
from torch import nn

# ---- settings
BATCH = 128  # B, contexts per update
UPDATES = 30
EPOCHS = 2
CLIP = 0.2
LEARNING_RATE = 0.05


def sample_contexts(generator: torch.Generator) -> torch.Tensor:
    """(B, 2), uniform in [-1, 1]."""
    return torch.rand(BATCH, 2, generator=generator) * 2 - 1


def sample_outcomes(context: torch.Tensor, action: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Outcome R of each action, (B,), 1 for success: the right action succeeds with probability sigmoid(6 x_2)."""
    right = action == (context[:, 0] > 0)
    return (right & (torch.rand(BATCH, generator=generator) < torch.sigmoid(6 * context[:, 1]))).float()


class Critic(nn.Module):
    """V(s_0) = sigmoid(value_logit), the probability of success that the critic expects in a context."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """Probabilities of the contexts (B, 2)."""
        return torch.sigmoid(self.layers(context)).squeeze(-1)


def advantage(outcome: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A = R - V(s_0)."""
    return outcome - value.detach()


def policy_loss(logp: torch.Tensor, logp_old: torch.Tensor, adv: torch.Tensor) -> torch.Tensor:
    """PPO's clipped surrogate, the mean over the batch."""
    ratio = torch.exp(logp - logp_old)
    return -torch.minimum(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).mean()


def critic_loss(value: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
    """The Brier score, the mean of (V - R)^2 over the batch."""
    return (value - outcome).square().mean()


def train(seed: int) -> tuple[list[float], list[float], Critic]:
    """The critic's Brier score and the success rate, one of each per update, and the trained critic."""
    generator = torch.Generator().manual_seed(seed)
    critic = Critic(generator)
    policy = nn.Linear(2, 2)  # logits of the two actions
    nn.init.zeros_(policy.weight)
    nn.init.zeros_(policy.bias)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=LEARNING_RATE)
    brier, success = [], []
    for _ in range(UPDATES):
        # ---- one episode of one step per context, with the current policy
        context = sample_contexts(generator)  # (B, 2)
        with torch.no_grad():
            logits = policy(context)
            action = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(-1)  # (B,)
            logp_old = torch.log_softmax(logits, -1).gather(-1, action[:, None]).squeeze(-1)  # (B,)
            value = critic(context)
        outcome = sample_outcomes(context, action, generator)  # (B,)
        adv = advantage(outcome, value)
        brier.append(float(critic_loss(value, outcome)))
        success.append(float(outcome.mean()))

        # ---- a few epochs over the whole batch
        for _ in range(EPOCHS):
            logp = torch.log_softmax(policy(context), -1).gather(-1, action[:, None]).squeeze(-1)
            loss = policy_loss(logp, logp_old, adv) + critic_loss(critic(context), outcome)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return brier, success, critic


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
