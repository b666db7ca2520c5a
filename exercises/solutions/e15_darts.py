"""Darts: good after 5 updates, hopeless after 30.

Difficulty: 3/5
Minutes: 20
Teaches: what PPO's clip holds back, and what it looks like when the clip works against it

A colleague trains PPO on darts. A throw has a context x between -1 and 1, and the action is the place that it hits.
It succeeds if that place is less than 0.3 from the target, which is at x + 0.5. The policy is a Gaussian: its mean is
linear in x, and its width is learned too. Each batch is used for 5 epochs.

"It learns faster than I hoped: 90 % succeed after 5 updates. And then it breaks. After 30 updates almost nothing hits,
and the mean is far from the target. With one epoch per batch, or with a tenth of the learning rate, it does not break.
But is that not what the clip is for?" Another program, with the same task and the same settings, reaches 100 % and
stays there.

There is one bug in this file. Find it and mend it. Leave the settings and the task as they are. The grader calls
`log_prob`, `policy_loss` and `train`, so keep their names, arguments and results.
"""

from __future__ import annotations

import math

import torch

# ---- settings
BATCH = 64  # B, throws per update
UPDATES, EPOCHS = 32, 5
CLIP = 0.2
LEARNING_RATE = 0.1


def throw(context: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Outcome R (B,) of the actions (B,) in the contexts (B,): 1 if the dart is less than 0.3 from the target."""
    return ((action - (context + 0.5)).abs() < 0.3).float()


def log_prob(mean: torch.Tensor, log_std: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Logarithm of a Gaussian's density at the actions (B,), with means (B,) and one logarithm of the width."""
    return -0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)


def policy_loss(logp: torch.Tensor, logp_old: torch.Tensor, adv: torch.Tensor) -> torch.Tensor:
    """The negative of PPO's clipped surrogate, the mean over the batch; all arguments are (B,)."""
    ratio = torch.exp(logp - logp_old)
    loss = -adv * ratio
    loss_clipped = -adv * ratio.clamp(1 - CLIP, 1 + CLIP)
    return torch.max(loss, loss_clipped).mean()


def train(seed: int) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """Success rate of each update's batch, and the policy: weights (2,) of its mean, and log_std, a scalar."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(2, requires_grad=True)  # the mean is weight[0] * x + weight[1]
    log_std = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weight, log_std], lr=LEARNING_RATE)
    baseline, curve = 0.2, []
    for _ in range(UPDATES):
        # ---- B throws with the current policy
        context = torch.rand(BATCH, generator=generator) * 2 - 1
        with torch.no_grad():
            mean = weight[0] * context + weight[1]
            action = mean + log_std.exp() * torch.randn(BATCH, generator=generator)
            logp_old = log_prob(mean, log_std, action)
        outcome = throw(context, action)
        adv = outcome - baseline

        # ---- a few epochs over the whole batch
        for _ in range(EPOCHS):
            logp = log_prob(weight[0] * context + weight[1], log_std, action)
            loss = policy_loss(logp, logp_old, adv)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(float(outcome.mean()))
        baseline += 0.1 * (curve[-1] - baseline)  # a moving average of the success rate
    return curve, weight.detach(), log_std.detach()


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
