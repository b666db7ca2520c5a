"""SPPO with a model of your own: a recurrent network that reads a digit and must write it twice. No environment."""

import torch
from torch import nn

from sppo_control import core

DIGITS, STEPS, B = 3, 2, 64  # a random answer is right in 1 of 9 episodes


class Policy(nn.Module):
    """Any module will do. It must give log-probabilities (B, T) of the actions that were taken."""

    def __init__(self):
        super().__init__()
        self.read, self.cell, self.write = nn.Embedding(2 * DIGITS, 16), nn.GRUCell(16, 16), nn.Linear(16, DIGITS)

    def forward(self, context, actions=None):
        """context (B,) -> actions (B, T) and their log-probabilities (B, T); given actions are scored, else drawn."""
        hidden, seen, taken, logps = torch.zeros(len(context), 16), context, [], []
        for t in range(STEPS):
            hidden = self.cell(self.read(seen), hidden)
            chance = torch.distributions.Categorical(logits=self.write(hidden))
            action = chance.sample() if actions is None else actions[:, t]
            taken.append(action)
            logps.append(chance.log_prob(action))
            seen = DIGITS + action
        return torch.stack(taken, 1), torch.stack(logps, 1)


def judge(context, actions):
    """The outcome of each episode, (B,): 1 if every written digit is the digit that was read, else 0."""
    return (actions == context[:, None]).all(1).float()


def success(policy, episodes=512):
    """The share of right answers."""
    with torch.no_grad():
        context = torch.randint(DIGITS, (episodes,))
        return judge(context, policy(context)[0]).mean().item()


def update(policy, critic, optimizer, critic_optimizer):
    """One update of SPPO: equations 1 to 3 of the paper, each one call."""
    context = torch.randint(DIGITS, (B,))
    with torch.no_grad():
        actions, logp_old = policy(context)  # (B, T) each
        value_logit = critic(context).squeeze(1)  # (B,): the critic sees the start only
    R, mask = judge(context, actions), torch.ones(B, STEPS, dtype=torch.bool)
    A = core.sequence_advantage(R, value_logit)  # eq. 1
    for _ in range(4):  # epochs over the same batch
        _, logp = policy(context, actions)
        loss = core.clipped_surrogate(logp, logp_old, A, mask, clip_coef=0.2).loss  # eq. 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic_loss = core.bernoulli_value_loss(critic(context).squeeze(1), R)  # eq. 2
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()


def main(seed=1, updates=40):
    torch.manual_seed(seed)
    policy, critic = Policy(), nn.Embedding(DIGITS, 1)  # the critic: one logit per digit
    optimizers = torch.optim.Adam(policy.parameters(), lr=0.01), torch.optim.Adam(critic.parameters(), lr=0.1)
    before = success(policy)
    for _ in range(updates):
        update(policy, critic, *optimizers)
    after = success(policy)
    print(f"success {before:.2f} -> {after:.2f}")
    return before, after


if __name__ == "__main__":
    main()
