"""Leave one out: prove without sampling that a baseline has no bias.

Difficulty: 3/5
Minutes: 30
Teaches: RLOO, unbiasedness, proof by enumeration

RLOO's baseline for episode i is the mean outcome of the OTHER episodes of its group (Kool et al.,
2019; Ahmadian et al., arXiv 2402.14740):

    A_i = R_i - sum over j != i of R_j / (N - 1)

Is a group's gradient estimate right on average? The smallest case: an episode succeeds with
probability p = sigmoid(theta), and theta is the only parameter. The score of an episode is d log pi
/ d theta = R - p. A group of N episodes estimates

    g = mean over i of  A_i (R_i - p)

and the true gradient of the success rate is dp / d theta = p (1 - p). N outcomes have 2^N possible
values. So the expectation of g is a sum of 2^N terms: no sampling, no noise, a proof for this N. If
you subtract the mean of the whole group instead, R_i is part of its own baseline, and the estimate
is too small by a factor. Which one? Your second function tells you.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def leave_one_out_advantage(outcome: Tensor, group_size: int) -> Tensor:
    """outcome R (B,) and N -> A (B,); rows 0..N-1 are the first group, and so on."""
    raise NotImplementedError


def expected_estimate(p: float, group_size: int, advantage: Callable[[Tensor], Tensor]) -> float:
    """E[g] over all 2^N groups of outcomes; advantage takes the outcomes of one group (N,), float64, and returns A (N,)."""
    raise NotImplementedError


def group_mean_factor(group_size: int) -> float:
    """E[g] with the mean of the whole group as baseline, divided by the true gradient; it depends on N alone."""
    raise NotImplementedError


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
