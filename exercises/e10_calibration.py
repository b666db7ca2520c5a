"""Is the critic right? Brier score and calibration.

Difficulty: 2/5
Minutes: 20
Teaches: the Brier score, the expected calibration error, what each of them misses

SPPO's advantage is R - V(s_0), so V should be the probability of success. Outcomes are 0 or 1. How
can a probability be checked against them? Two measures over a batch of B episodes:

    Brier score = mean of (V - R)^2                                     (Brier, 1950)
    ECE         = sum over bins of  share of the bin * |mean V - mean R|   (Guo et al.,
                                                                    arXiv 1706.04599, eq. 3)

For the ECE, predictions are sorted into equal bins: [0, 1/K), [1/K, 2/K), ..., [1 - 1/K, 1]. V = 1
is in the last bin. An empty bin counts nothing.

Neither is enough alone. A critic that says p in every context, where p is the success rate, has
an ECE of 0 and knows nothing. Its Brier score is p (1 - p). Only a critic that tells contexts
apart gets below that. Your third function says how far below: 0 is no better than the constant,
1 is perfect. This is the Brier skill score.
"""

import torch
from torch import Tensor


def brier_score(probability: Tensor, outcome: Tensor) -> Tensor:
    """V (B,) and R (B,) -> a scalar."""
    raise NotImplementedError


def expected_calibration_error(probability: Tensor, outcome: Tensor, num_bins: int) -> Tensor:
    """V (B,), R (B,) and K -> a scalar."""
    raise NotImplementedError


def skill(probability: Tensor, outcome: Tensor) -> Tensor:
    """1 - Brier score / Brier score of the constant that is the batch's success rate; R is not constant."""
    raise NotImplementedError


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
