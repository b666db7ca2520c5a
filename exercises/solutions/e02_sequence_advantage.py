"""One advantage for a whole episode.

Difficulty: 1/5
Minutes: 10
Teaches: SPPO's advantage, detachment, padding

An episode ends in success (R = 1) or failure (R = 0), and nothing else is known. SPPO treats the
whole episode as one action. Its critic reads the initial state s_0 only, and gives a logit v. The
probability of success that it predicts is V(s_0) = sigmoid(v). The advantage is one number per
episode (SPPO, arXiv 2604.08865, eq. 1):

    A = R - V(s_0)

All steps of the episode get this same number. Episodes have different lengths, so a batch of B
episodes is padded to T steps. mask[b, t] is True on real steps. A row can be padding alone, and
then its advantage may even be NaN: no padding may show it.

The advantage weighs the policy's gradient. It must not train the critic, so it has no gradient
itself.

Fill both functions. Then run this file.
"""

import torch
from torch import Tensor


def sequence_advantage(outcome: Tensor, value_logit: Tensor) -> Tensor:
    """outcome R (B,) and the critic's logit v (B,) -> A (B,), without gradient."""
    return (outcome - torch.sigmoid(value_logit)).detach()


def per_step(advantage: Tensor, mask: Tensor) -> Tensor:
    """A (B,) and mask (B, T) -> (B, T): each real step has its episode's A, padding has 0."""
    return torch.where(mask, advantage[:, None], 0.0)


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
