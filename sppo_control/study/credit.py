"""Exact gradients of every algorithm on the chains of `sppo_envs.credit`, and the same gradients by sampling.

The policy has one logit per step, so its score at step t is psi_t = a_t - P(a_t = 1). One episode estimates the gradient
of the success rate by A_t psi_t at each step t. Here are the mean and the variance of that estimate. docs/credit.md
derives all formulas.

| symbol    | shape        | meaning                                                                              |
| --------- | ------------ | ------------------------------------------------------------------------------------ |
| T, C, K   |              | steps per episode; contexts; deciding steps                                          |
| n         |              | number of right decisions so far: with context and step, the state of a chain        |
| right     | (T,)         | P(a_t = 1)                                                                           |
| value     | (T, C, K+1)  | a critic of states: V(s_t) for each step, context and n. Unreachable n are ignored   |
| value     | (C,)         | a critic of contexts: V(s_0)                                                         |
| g         | (T,)         | the true gradient of the success rate                                                |

The exact part is numpy in float64 and knows nothing of core.py. The sampled part has its advantages from core.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from sppo_control import core
from sppo_envs.credit import Chain

FloatArray = npt.NDArray[np.float64]
Kind = Literal["white", "smooth", "offset"]
"""How a critic's error varies: by state, slowly along the episode, or by context only. See `wrong_values`."""
MOST_STATES = 20_000_000
"""Largest number of entries of a table of values."""


# ------------------------------------------------------------------------------------------------------- the chain
def uniform_policy(chain: Chain, right: float = 0.5) -> FloatArray:
    """P(a_t = 1), equal at all steps, (T,).

    Raises:
        ValueError: right is not strictly between 0 and 1, or the chain has too many states for a table.
    """
    if not 0 < right < 1:
        raise ValueError(f"right must be above 0 and below 1, got {right!r}; at 0 and 1 nothing can be learnt")
    T, C, K = _sizes(chain)
    if T * C * (K + 1) > MOST_STATES:
        raise ValueError(
            f"horizon {T} with {C} contexts and {K} deciding steps has {T * C * (K + 1):,} states, and the most is "
            f"{MOST_STATES:,}; lower horizon, contexts or decisions"
        )
    return np.full(T, float(right))


def segment_values(chain: Chain, right: FloatArray) -> FloatArray:
    """P(success | context, n) once k of the K decisions are made, (K + 1, C, K + 1), first axis k.

    Backwards from the outcome: a decision is right with its probability p, so U_k(n) = p U_{k+1}(n+1) + (1-p) U_{k+1}(n).
    """
    p = right[chain.steps]
    values = [chain.success]
    for k in reversed(range(len(p))):
        values.append(p[k] * _one_more(values[-1]) + (1 - p[k]) * values[-1])
    return np.stack(values[::-1])


def exact_values(chain: Chain, right: FloatArray, gamma: float = 1.0) -> FloatArray:
    """V(s_t) of the policy, (T, C, K + 1): gamma^(T - 1 - t) P(success | s_t); the outcome is paid at step T - 1."""
    discount = gamma ** np.arange(chain.horizon - 1, -1, -1.0)
    return segment_values(chain, right)[chain.decided[:-1]] * discount[:, None, None]


def occupancy(chain: Chain, right: FloatArray) -> FloatArray:
    """P(n right decisions before step t), (T, K + 1). It is the same for all contexts."""
    p, rows = right[chain.steps], [np.zeros(len(chain.steps) + 1)]
    rows[0][0] = 1.0
    for k in range(len(p)):
        row = (1 - p[k]) * rows[-1]
        row[1:] += p[k] * rows[-1][:-1]
        rows.append(row)
    return np.stack(rows)[chain.decided[:-1]]


def wrong_values(
    value: FloatArray, sigma: float, kind: Kind, rng: np.random.Generator, length: float = 50.0
) -> FloatArray:
    """A critic of states with a given error: the value plus noise of mean 0 and standard deviation sigma, (T, C, K + 1).

    Args:
        value: (T, C, K + 1).
        sigma: at least 0.
        kind: "white" draws anew for each state. "smooth" is an AR(1) process along the steps, for each context and n.
            "offset" is one number per context.
        rng: source of the noise.
        length: smooth noise has correlation exp(-d / length) over d steps.

    Raises:
        ValueError: an unknown kind; sigma below 0; length not above 0.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if not sigma >= 0 or not length > 0:
        raise ValueError(f"sigma must be at least 0 and length above 0, got sigma {sigma!r} and length {length!r}")
    if kind == "offset":
        return value + sigma * rng.standard_normal((1, value.shape[1], 1))
    noise = rng.standard_normal(value.shape)
    if kind == "smooth":
        keep = math.exp(-1 / length)
        for t in range(1, len(noise)):
            noise[t] = keep * noise[t - 1] + math.sqrt(1 - keep * keep) * noise[t]
    return value + sigma * noise


# ------------------------------------------------------------------------------------------------- exact gradients
@dataclass(frozen=True)
class Gradient:
    """Mean and variance of a gradient estimate."""

    mean: FloatArray
    """(T,)"""
    variance: FloatArray
    """(T,), of each entry, for a batch of one episode. The variance of a batch of B is this divided by B."""
    floor: float = 0.0
    """Sum over steps of the variance that no batch averages away: that of a critic's error, which all episodes share."""

    def share_of_gain(self, g: FloatArray, batch: float) -> float:
        """Expected gain of one step along this estimate, as a share of the gain along g, each with its best step size.

        <mean, g>^2 / (|g|^2 (|mean|^2 + floor + variance / B)), in [0, 1]. It is also 1 minus the relative mean squared
        error of the estimate, once it is multiplied by the best constant.

        Args:
            g: the true gradient, (T,).
            batch: B, episodes.
        """
        total = float(self.mean @ self.mean) + self.floor + float(self.variance.sum()) / batch
        return float(self.mean @ g) ** 2 / (float(g @ g) * total) if total > 0 else 0.0

    def noise_scale(self, g: FloatArray) -> float:
        """Episodes at which noise and signal are equal: variance / (<mean, g> / |g|)^2; infinite without signal."""
        signal = float(self.mean @ g) ** 2 / float(g @ g)
        return float(self.variance.sum()) / signal if signal > 0 else math.inf

    def bias(self, g: FloatArray) -> float:
        """|mean - g| / |g|: 0 is unbiased, 1 is as wrong as no gradient at all."""
        return float(np.linalg.norm(self.mean - g) / np.linalg.norm(g))

    def signal(self, g: FloatArray) -> float:
        """<mean, g> / |g|^2: how much of the true gradient arrives. 1 is all of it; a constant factor can be tuned away."""
        return float(self.mean @ g) / float(g @ g)

    def cosine(self, g: FloatArray) -> float:
        """Cosine of the angle between mean and g; 0 if the mean is 0."""
        size = float(np.linalg.norm(self.mean) * np.linalg.norm(g))
        return float(self.mean @ g) / size if size > 0 else 0.0


@dataclass(frozen=True)
class _Joint:
    """How score and outcome go together, for each step and context."""

    rate: FloatArray  # P(R = 1 | c), (C,)
    first: FloatArray  # E[psi_t R | c], (T, C)
    second: FloatArray  # E[psi_t^2 R | c], (T, C)
    square: FloatArray  # E[psi_t^2], (T, 1)


def true_gradient(chain: Chain, right: FloatArray) -> FloatArray:
    """Gradient of the success rate with respect to the logit of each step, (T,): E[psi_t R]; 0 where nothing is decided."""
    return _joint(chain, right).first.mean(1)


def context_gradient(chain: Chain, right: FloatArray, value: FloatArray) -> Gradient:
    """SPPO: A = R - V(s_0), with any V(s_0).

    E[A psi_t] = E[psi_t R], because E[psi_t] = 0, and E[(A psi_t)^2] = E[psi_t^2 R] (1 - 2 V) + E[psi_t^2] V^2.

    Args:
        chain: its numbers.
        right: (T,).
        value: V(s_0), (C,); any real numbers.
    """
    j, b = _joint(chain, right), np.asarray(value, np.float64)
    mean = j.first.mean(1)
    return Gradient(mean, (j.second * (1 - 2 * b) + j.square * b * b).mean(1) - mean**2)


def greedy_gradient(chain: Chain, right: FloatArray) -> Gradient:
    """ReMax: A = R - (outcome of a greedy episode in the same context), which needs two episodes.

    As SPPO's, with the mean over the two outcomes of the greedy episode. The variance is doubled, because a batch of B
    has B / 2 sampled and B / 2 greedy episodes.
    """
    j, greedy = _joint(chain, right), int((right[chain.steps] > 0.5).sum())
    rate = chain.success[:, greedy]  # (C,), and a baseline of 0 or 1 is equal to its square
    mean = j.first.mean(1)
    return Gradient(mean, 2 * ((j.second * (1 - 2 * rate) + j.square * rate).mean(1) - mean**2))


def group_gradient(chain: Chain, right: FloatArray, size: int, normalize: bool, one_context: bool = True) -> Gradient:
    """RLOO (normalize False) and GRPO (True) with groups of N; with one_context False, REINFORCE with the batch's mean.

    Given the number S of successes of a group, all its successes have one advantage and all its failures another. Then
    the scores of its episodes are independent. So mean and variance are sums over S, which is binomial.

    Args:
        chain: its numbers.
        right: (T,).
        size: N, at least 2.
        normalize: divide by the group's standard deviation, as GRPO; groups of equal outcomes then give 0, as before.
        one_context: all episodes of a group have the same context. False: each has its own, as in REINFORCE, whose
            group is the batch.

    Raises:
        ValueError: size below 2.
    """
    if size < 2:
        raise ValueError(f"size must be at least 2 episodes per group, got {size!r}")
    j = _joint(chain, right)
    rate, first, second = j.rate, j.first, j.second
    if not one_context:
        rate, first, second = (x.mean(-1, keepdims=True) for x in (rate, first, second))
    S = np.arange(size + 1)[:, None]  # (N + 1, 1)
    chance = _binomial(size, rate)  # (N + 1, C)
    share = S / size
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / np.sqrt(share * (1 - share)) if normalize else np.full(share.shape, size / (size - 1))
    scale = np.where((S == 0) | (size == S), 0.0, scale)
    good, bad = scale * (1 - share), -scale * share  # advantages, (N + 1, 1)
    m1, m0 = first / rate, -first / (1 - rate)  # E[psi | success], E[psi | failure], (T, C)
    v1, v0 = second / rate - m1**2, (j.square - second) / (1 - rate) - m0**2

    def over_s(x: FloatArray) -> FloatArray:  # (N + 1, 1) -> (C,), mean over S
        return np.asarray((chance * x).sum(0))

    # Given S the estimate has mean S/N good m1 + (1 - S/N) bad m0; both products are equal, but for their sign.
    weight = share * good  # (N + 1, 1)
    gap = m1 - m0  # because (1 - S/N) bad = -S/N good
    mean, squared = over_s(weight) * gap, over_s(weight**2) * gap**2
    inner = (over_s(share * good**2) * v1 + over_s((1 - share) * bad**2) * v0) / size
    all_mean = mean.mean(-1)
    return Gradient(all_mean, size * ((squared + inner).mean(-1) - all_mean**2))


def state_gradient(
    chain: Chain, right: FloatArray, value: FloatArray, gamma: float = 1.0, gae_lambda: float = 1.0, noise: float = 0.0
) -> Gradient:
    """PPO: A_t by GAE(gamma, lambda), with any critic of states.

    Backwards over the steps, the first two moments of the lambda-return G_t given the next state; then
    E[A_t psi_t] and E[(A_t psi_t)^2] with A_t = G_t - V(s_t).

    Args:
        chain: its numbers.
        right: (T,).
        value: V(s_t), (T, C, K + 1).
        gamma: discount.
        gae_lambda: lambda.
        noise: the result is the mean over all critics `value` + white noise of this standard deviation. What differs
            from critic to critic in the mean of the estimate is its `floor`.

    Raises:
        ValueError: the shape of value.
    """
    T, C, K = _sizes(chain)
    if value.shape != (T, C, K + 1):
        raise ValueError(f"value must be (T, C, K + 1) = {(T, C, K + 1)}, got {value.shape}")
    mark, weight = chain.mark, occupancy(chain, right) / C
    mean, second = np.empty(T), np.empty(T)
    # E[G_t | .] and E[G_t^2 | .], (C, K + 1), given s_{t+1} (one, two) and given s_t (after_one, after_two)
    one = two = after_one = after_two = chain.success
    for t in reversed(range(T)):
        if t == T - 1:
            one = two = chain.success  # the outcome itself
        else:
            v, keep, fresh = value[t + 1], gamma * gae_lambda, gamma * (1 - gae_lambda)
            one, two = (
                fresh * v + keep * after_one,
                (fresh * v) ** 2 + 2 * fresh * keep * v * after_one + keep**2 * after_two,
            )
        p, v = right[t], value[t]
        up_one, up_two = (_one_more(one), _one_more(two)) if mark[t] else (one, two)
        after_one, after_two = p * up_one + (1 - p) * one, p * up_two + (1 - p) * two  # given s_t
        mean[t] = p * (1 - p) * ((up_one - one) @ weight[t]).sum()
        up, down = up_two - 2 * v * up_one + v * v, two - 2 * v * one + v * v
        second[t] = ((p * (1 - p) ** 2 * up + (1 - p) * p * p * down) @ weight[t]).sum()
    if not noise:
        return Gradient(mean, second - mean**2)
    # White noise e: A_t gets -e_t + sum over k of w_k e_{t+k}, w_k = (1 - lambda) gamma (gamma lambda)^(k-1).
    w2 = ((1 - gae_lambda) * gamma * (gamma * gae_lambda) ** np.arange(T - 1)) ** 2
    square = right * (1 - right)
    second = second + noise**2 * square * (1 + np.concatenate([[0.0], np.cumsum(w2)])[::-1])
    floor = np.zeros(T)
    for i, t in enumerate(chain.steps):  # elsewhere the states to come do not depend on a_t, and the mean stays
        # E[psi_t 1(s_{t+k})] = p (1 - p) (P(s_{t+k} | right) - P(s_{t+k} | wrong)), the same within a segment
        down = occupancy(chain, right)[t]
        up = np.concatenate([[0.0], down[:-1]])
        for k, start in enumerate(np.append(chain.steps, T)[i + 1 :], start=i + 1):
            begin = t + 1 if k == i + 1 else chain.steps[k - 1] + 1
            # states s_begin .. s_start are seen after decision k - 1 and before decision k
            end = min(start, T - 1)
            floor[t] += square[t] ** 2 * ((up - down) ** 2).sum() / C * w2[begin - t - 1 : end - t].sum()
            if k < len(chain.steps):
                p = right[chain.steps[k]]
                up, down = (p * np.concatenate([[0.0], x[:-1]]) + (1 - p) * x for x in (up, down))
    floor *= noise**2
    return Gradient(mean, second - mean**2 - floor, float(floor.sum()))


def resolved_variance(chain: Chain, right: FloatArray) -> float:
    """Mean over the steps of E[(V(s_t) - V(s_0))^2]: what a perfect critic of states knows more than one of contexts.

    PPO (gamma = lambda = 1) has less noise than SPPO if its critic's mean squared error is less than this plus SPPO's.
    """
    value = exact_values(chain, right)
    gap = (value - value[0, :, :1][None]) ** 2  # (T, C, K + 1)
    return float((gap.mean(1) * occupancy(chain, right)).sum(1).mean())


# --------------------------------------------------------------------------------------------------- by sampling
@dataclass(frozen=True)
class Sample:
    """M episodes."""

    context: npt.NDArray[np.int64]
    """(M,)"""
    actions: npt.NDArray[np.bool_]
    """(M, T)"""
    n: npt.NDArray[np.int64]
    """(M, T), right decisions before each step"""
    outcome: FloatArray
    """(M,), 0 or 1"""


def sample(chain: Chain, right: FloatArray, episodes: int, rng: np.random.Generator, group: int = 1) -> Sample:
    """M episodes of the policy; `group` of them in a row have the same context, where `group` divides M."""
    context = np.repeat(rng.integers(chain.contexts, size=episodes // group), group)
    actions = rng.random((episodes, chain.horizon), dtype=np.float32) < right.astype(np.float32)
    n = np.zeros(actions.shape, dtype=np.int64)
    np.cumsum((actions & chain.mark)[:, :-1], axis=1, out=n[:, 1:])
    total = (actions & chain.mark).sum(1)
    return Sample(context, actions, n, (rng.random(episodes) < chain.success[context, total]).astype(np.float64))


def sampled_advantage(
    name: str,
    episodes: Sample,
    value: FloatArray | None = None,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    group: int = 8,
    greedy: FloatArray | None = None,
) -> FloatArray:
    """Advantages of sampled episodes, from core.py.

    Args:
        name: sppo, ppo, rloo, grpo, remax.
        episodes: a `Sample`; its rows are in groups.
        value: V(s_0), (C,), in (0, 1) for sppo; V(s_t), (T, C, K + 1), for ppo.
        gamma: of ppo.
        gae_lambda: of ppo.
        group: of rloo and grpo; REINFORCE is rloo with the batch as group.
        greedy: outcomes of greedy episodes, (M,), of remax.

    Returns:
        (M,), or (M, T) for ppo.

    Raises:
        ValueError: an unknown name, or an algorithm without what it needs.
    """
    R = torch.from_numpy(episodes.outcome)
    if name == "sppo" and value is not None:
        return core.sequence_advantage(R, torch.logit(torch.from_numpy(value[episodes.context]))).numpy()
    if name == "ppo" and value is not None:
        reward = torch.zeros(episodes.actions.shape, dtype=torch.float64)
        reward[:, -1] = R
        steps = np.arange(episodes.actions.shape[1])
        v = torch.from_numpy(value[steps, episodes.context[:, None], episodes.n])  # (M, T)
        mask = torch.ones(v.shape, dtype=torch.bool)
        return core.generalized_advantage(reward, v, mask, gamma, gae_lambda)[0].numpy()
    if name == "rloo":
        return core.leave_one_out_advantage(R, group).numpy()
    if name == "grpo":
        return core.group_relative_advantage(R, group).numpy()
    if name == "remax" and greedy is not None:
        return core.greedy_baseline_advantage(R, torch.from_numpy(greedy)).numpy()
    raise ValueError(f"{name!r} is unknown, or lacks its value or greedy; known are sppo, ppo, rloo, grpo, remax")


def estimates(right: FloatArray, episodes: Sample, advantage: FloatArray, group: int = 1) -> FloatArray:
    """The mean of A_t psi_t over each group of episodes in a row, (M / group, T)."""
    score = episodes.actions - right
    product = score * (advantage if advantage.ndim == 2 else advantage[:, None])
    return product.reshape(-1, group, score.shape[1]).mean(1)


def measured_gradient(estimate: FloatArray, episodes: float = 1) -> Gradient:
    """Mean and variance of independent estimates, (M, T), each of which cost so many episodes."""
    return Gradient(estimate.mean(0), episodes * estimate.var(0, ddof=1))


def measured_share(estimate: FloatArray, g: FloatArray, batch: float, episodes: float = 1) -> tuple[float, float]:
    """`Gradient.share_of_gain` by sampling, and its standard error.

    The squared length of a sample mean is too large by variance / M, which is subtracted. The error is that of the
    projection of the estimates on g, and of their squared lengths, to first order.

    Args:
        estimate: independent estimates, (M, T).
        g: the true gradient, (T,).
        batch: B.
        episodes: that each estimate cost.
    """
    M = len(estimate)
    projection = estimate @ g / np.linalg.norm(g)  # (M,)
    spread = ((estimate - estimate.mean(0)) ** 2).sum(1) * M / (M - 1)  # (M,)
    mean = estimate.mean(0)
    length = float(mean @ mean) - float(spread.mean()) / M
    total = length + float(spread.mean()) * episodes / batch
    share = float(projection.mean()) ** 2 / total
    along = estimate @ mean
    # d share / share = 2 dp / p - d total / total
    influence = 2 * (projection - projection.mean()) / projection.mean()
    influence = influence - (2 * (along - along.mean()) + (spread - spread.mean()) * episodes / batch) / total
    return share, float(abs(share) * influence.std(ddof=1) / math.sqrt(M))


def measured_noise(estimate: FloatArray, g: FloatArray, episodes: float = 1) -> tuple[float, float]:
    """`Gradient.noise_scale` by sampling, and its standard error to first order; arguments as of `measured_share`."""
    M = len(estimate)
    projection = estimate @ g / np.linalg.norm(g)
    spread = ((estimate - estimate.mean(0)) ** 2).sum(1) * M / (M - 1) * episodes
    noise = float(spread.mean() / projection.mean() ** 2)
    influence = spread / spread.mean() - 2 * projection / projection.mean()
    return noise, float(noise * influence.std(ddof=1) / math.sqrt(M))


# ------------------------------------------------------------------------------------------------------- helpers
def _sizes(chain: Chain) -> tuple[int, int, int]:
    return chain.horizon, chain.contexts, len(chain.steps)


def _one_more(x: FloatArray) -> FloatArray:
    """x(n) -> x(n + 1) along the last axis; the last entry, which nothing reaches, is repeated."""
    return np.concatenate([x[..., 1:], x[..., -1:]], axis=-1)


def _binomial(size: int, rate: FloatArray) -> FloatArray:
    """P(S = s) for s = 0..N, (N + 1, C)."""
    s = np.arange(size + 1)
    choose = np.array([math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1) for k in s])
    return np.exp(choose[:, None] + s[:, None] * np.log(rate) + (size - s)[:, None] * np.log1p(-rate))


def _joint(chain: Chain, right: FloatArray) -> _Joint:
    U, weight = segment_values(chain, right), occupancy(chain, right)
    mark, decided = chain.mark, chain.decided[:-1]
    p = right[:, None]
    start = U[0, :, 0]  # P(R = 1 | c)
    first, second = np.zeros((chain.horizon, chain.contexts)), p * (1 - p) * start[None]  # E[psi^2] E[R] at idle steps
    for t in np.flatnonzero(mark):
        after = U[decided[t] + 1]
        up, down = _one_more(after) @ weight[t], after @ weight[t]  # P(R = 1 | c, a_t = 1), (.. a_t = 0), (C,)
        q = right[t]
        first[t] = q * (1 - q) * (up - down)
        second[t] = q * (1 - q) * ((1 - q) * up + q * down)
    return _Joint(start, first, second, p * (1 - p))
