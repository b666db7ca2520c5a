"""Sequence-level advantage is not sequence-level ratio.

Difficulty: 3/5
Minutes: 20
Teaches: GSPO's ratio, two estimates of the KL divergence, the clip fraction

"Sequence-level" has two meanings, and they are often confused.

    SPPO    one ADVANTAGE per episode; each step has its own ratio r_t = exp(logp_t - logp_old_t)
    GSPO    also one RATIO per episode (Zheng et al., arXiv 2507.18071, eq. 7)

GSPO's ratio is the geometric mean of the r_t over the real steps of an episode, which is the
exponential of a mean:

    r = exp( mean over real steps of  logp_t - logp_old_t )

The product of the r_t would be the ratio of whole episodes. But it grows exponentially with the
length, so nearly every long episode would be clipped.

Every training run should log how far the policy has moved. The KL divergence between pi_old and
pi is estimated from the steps in the batch, of which all count the same:

    k1 = mean of -log r_t               no bias, but can be negative
    k3 = mean of r_t - 1 - log r_t      never negative (http://joschu.net/blog/kl-approx.html)

and the clip fraction is the share of real steps with |r_t - 1| > eps. Padding counts nowhere,
and may be NaN.
"""

import torch
from torch import Tensor


def episode_ratio(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """logp, logp_old and mask (B, T) -> r (B,). Each episode has a real step."""
    raise NotImplementedError


def kl_estimates(logp: Tensor, logp_old: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """logp, logp_old and mask (B, T) -> k1 and k3, two scalars."""
    raise NotImplementedError


def clip_fraction(logp: Tensor, logp_old: Tensor, mask: Tensor, clip_coef: float) -> Tensor:
    """The share of real steps whose ratio is further than eps from 1, a scalar."""
    raise NotImplementedError


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
