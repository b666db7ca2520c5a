"""The critic's loss: cross-entropy, not squared error.

Difficulty: 2/5
Minutes: 20
Teaches: binary cross-entropy with logits, its gradient, numerical range

The critic's logit v becomes a probability of success V = sigmoid(v), and the outcome R is 0 or 1
(or a success rate between). SPPO trains the critic by the mean binary cross-entropy over the B
episodes of a batch (SPPO, arXiv 2604.08865, eq. 2):

    L = mean of  -R log V - (1 - R) log(1 - V)

Its gradient is simple: d L / d v_i = (V_i - R_i) / B. A squared error on V, (V - R)^2 / 2, has the
gradient (V - R) V (1 - V) / B. It vanishes where the critic is sure and wrong: exactly where it has
most to learn.

V rounds to 0 or 1 for large logits, and log 0 is infinite. So do not compute V first. Use

    -log sigmoid(v)       = softplus(-v)
    -log(1 - sigmoid(v))  = softplus(v)          softplus(x) = log(1 + e^x)

Write the loss without a ready-made cross-entropy, and both gradients by hand, without autograd.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def critic_loss(value_logit: Tensor, outcome: Tensor) -> Tensor:
    """The logit v (B,), with gradient, and the outcome R (B,) -> a scalar. It is finite for v = 1000 too."""
    return (outcome * F.softplus(-value_logit) + (1 - outcome) * F.softplus(value_logit)).mean()


def cross_entropy_gradient(value_logit: Tensor, outcome: Tensor) -> Tensor:
    """d L / d v of the mean cross-entropy, (B,)."""
    return (torch.sigmoid(value_logit) - outcome) / len(outcome)


def squared_error_gradient(value_logit: Tensor, outcome: Tensor) -> Tensor:
    """d / d v of the mean of (sigmoid(v) - R)^2 / 2, (B,)."""
    V = torch.sigmoid(value_logit)
    return (V - outcome) * V * (1 - V) / len(outcome)


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
