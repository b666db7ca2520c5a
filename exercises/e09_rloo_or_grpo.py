"""RLOO or GRPO: which contexts do they listen to?

Difficulty: 3/5
Minutes: 25
Teaches: what dividing by the standard deviation does, easy and hard contexts

Take a context whose success probability is p = sigmoid(theta), and groups of N episodes, as in e08.
A group with k successes estimates the gradient by the mean of A_i (R_i - p). Both baselines are
functions of k:

    RLOO    A_i = N / (N - 1) (R_i - k/N)
    GRPO    A_i = (R_i - k/N) / sqrt(k/N (1 - k/N)), and 0 for k = 0 and k = N

The advantages of a group add up to 0, so the term with p vanishes. Only the mean of A_i R_i is
left: k/N times the advantage of a success.

k has the binomial distribution. Compute the expectations of both estimates exactly. RLOO's is
p (1 - p), the true gradient of the success rate. GRPO's is larger, above all for p near 0 and
near 1: it is about sqrt(p (1 - p)), the gradient of arcsin(sqrt(p)) up to a constant. So GRPO
does not increase the mean success rate. It gives hard and easy contexts more weight.
"""

import math


def binomial(k: int, p: float, group_size: int) -> float:
    """The probability of k successes in N episodes."""
    raise NotImplementedError


def rloo_signal(p: float, group_size: int) -> float:
    """The expectation of RLOO's estimate."""
    raise NotImplementedError


def grpo_signal(p: float, group_size: int) -> float:
    """The expectation of GRPO's estimate."""
    raise NotImplementedError


def relative_weight(p: float, group_size: int) -> float:
    """GRPO's signal divided by RLOO's: the weight that GRPO gives to a context."""
    raise NotImplementedError


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
