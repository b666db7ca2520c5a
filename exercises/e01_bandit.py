"""A bandit with two arms: what a baseline does.

Difficulty: 1/5
Minutes: 20
Teaches: the policy gradient, baselines, variance

A policy chooses between two arms. It has one parameter theta: pi(1) = p = sigmoid(theta) and pi(0)
= 1 - p. Arm a pays the reward r_a. We want to increase the expected reward. Its gradient is
estimated from one choice a (Williams, 1992):

    g(a) = (r_a - b) * s(a),        s(a) = d log pi(a) / d theta

The number b is the baseline. It does not depend on the choice a. Because E[s] = 0, it changes
nothing in the mean of g, which is always the gradient. But it changes the variance of g a lot, so
it decides how fast the policy learns. SPPO's critic V(s_0) is such a baseline (SPPO, arXiv
2604.08865, eq. 1).

With two arms nothing needs to be sampled: E[f] = (1 - p) f(0) + p f(1).

Fill the four functions. The best baseline is the b with the smallest variance: set the derivative
of E[g^2] to zero. Is it the expected reward?
"""

import math


def score(theta: float, arm: int) -> float:
    """s(a) = d log pi(a) / d theta, for arm 0 or 1."""
    raise NotImplementedError


def estimate_mean(theta: float, rewards: tuple[float, float], baseline: float) -> float:
    """E[g] over both choices; rewards are r_0 and r_1."""
    raise NotImplementedError


def estimate_variance(theta: float, rewards: tuple[float, float], baseline: float) -> float:
    """Var[g] = E[g^2] - E[g]^2."""
    raise NotImplementedError


def best_baseline(theta: float, rewards: tuple[float, float]) -> float:
    """The baseline b for which Var[g] is smallest."""
    raise NotImplementedError


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
