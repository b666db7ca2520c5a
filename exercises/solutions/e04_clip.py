"""The clipped objective, and where it has no gradient.

Difficulty: 2/5
Minutes: 20
Teaches: the probability ratio, clipping, the sign of the advantage

One batch is used for several gradient steps. So the policy that is trained, pi, moves away from the
policy that acted, pi_old. PPO (Schulman et al., arXiv 1707.06347, eq. 7) limits what can be gained
by moving. For each step

    r_t = pi(a_t) / pi_old(a_t) = exp(logp_t - logp_old_t)
    L_t = min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t)

L_t is an objective: it is made large. SPPO uses the same L_t (SPPO, eq. 3). Only the advantage
differs: all steps of an episode have the same A, so advantage is (B,).

logp has a gradient. logp_old and the advantage are constants.

The second function says where the gradient is 0. Draw L against r, once for A = 1 and once for A =
-1, before you write it.
"""

import torch
from torch import Tensor


def clipped_objective(logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    """logp and logp_old (B, T), advantage (B,), eps -> L_t (B, T), which has a gradient for logp only."""
    r = (logp - logp_old.detach()).exp()
    A = advantage.detach()[:, None]
    return torch.minimum(r * A, r.clamp(1 - clip_coef, 1 + clip_coef) * A)


def has_no_gradient(ratio: float, advantage: float, clip_coef: float) -> bool:
    """Whether the gradient of one step's L with respect to logp is 0; the ratio is never exactly at a limit."""
    too_high = advantage > 0 and ratio > 1 + clip_coef
    too_low = advantage < 0 and ratio < 1 - clip_coef
    return advantage == 0 or too_high or too_low


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
