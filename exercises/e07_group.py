"""GRPO's advantage and its curve.

Difficulty: 2/5
Minutes: 25
Teaches: group baselines, the variance p(1 - p), groups that teach nothing

GRPO needs no critic. It plays N episodes from the same context, and their mean outcome is the
baseline (Shao et al., arXiv 2402.03300, section 4.1.2):

    A_i = (R_i - mean) / std            mean and std of the N outcomes of the group

An outcome may also be a fraction, such as 0.3 for a task that is solved in part. The std is that
of the population: the mean of (R - mean)^2, divided by N and not by N - 1. No epsilon is added to
it. A group whose outcomes are all equal has std 0. Its advantage is exactly 0.

In a batch the first N rows are the first group, the next N rows the second, and so on.

With outcomes 0 and 1 and success rate p, mean = p and std = sqrt(p (1 - p)). So the advantage of a
success and that of a failure are functions of p alone (SPPO, arXiv 2604.08865, figure 2 and
appendix A). Write them down: the rarer the success, the larger its advantage.

A group teaches something only if its outcomes differ. How likely is that for N independent episodes
with success rate p?
"""

import math

import torch
from torch import Tensor


def group_relative_advantage(outcome: Tensor, group_size: int) -> Tensor:
    """outcome R (B,) and N -> A (B,). N divides B."""
    raise NotImplementedError


def curve(p: float) -> tuple[float, float]:
    """The advantage of a success and that of a failure in a group with success rate p, 0 < p < 1."""
    raise NotImplementedError


def share_that_teaches(p: float, group_size: int) -> float:
    """The probability that N independent outcomes with success rate p are not all equal."""
    raise NotImplementedError


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
