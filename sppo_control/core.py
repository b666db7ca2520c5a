"""Every equation of the project, once: advantages, losses, statistics.

| symbol     | shape            | meaning                                                                   |
| ---------- | ---------------- | ------------------------------------------------------------------------- |
| B, T       |                  | episodes (or responses) per batch; steps (or tokens) with padding         |
| R, outcome | (B,)             | verified outcome of an episode, in [0, 1]; 1 is success                   |
| v          | (B,)             | the critic's logit for the context s_0; V(s_0) = sigmoid(v)               |
| logp       | (B, T)           | log pi(a_t | s_0, a_<t) under the policy being trained                    |
| logp_old   | (B, T)           | the same under the policy that acted                                      |
| A          | (B,) or (B, T)   | advantage: one number per episode (SPPO, GRPO, ...) or per step (PPO)     |
| mask       | (B, T), bool     | True on real steps, False on padding; padding may be anywhere in a row    |

All functions are pure: tensors in, tensors out, on the same device and in the same dtype. Padding is removed with
`torch.where`, because NaN times 0 is NaN. So the values in padded places never matter.

Nothing here synchronises host and device. Shapes are always checked. Bad values raise a ValueError on the CPU. On
accelerators, and under `torch.compile`, an assertion on the device itself checks the values.

Sources: SPPO is Wang et al., "SPPO: Sequence-Level PPO for Long-Horizon Reasoning Tasks", arXiv 2604.08865.
PPO is Schulman et al., arXiv 1707.06347. GAE is Schulman et al., arXiv 1506.02438. GRPO is Shao et al.,
arXiv 2402.03300. RLOO is Kool et al., 2019, and Ahmadian et al., arXiv 2402.14740. ReMax is Li et al., arXiv 2310.10505.
SPO is Xu and Ding, arXiv 2509.13232. GSPO is Zheng et al., arXiv 2507.18071. REINFORCE++ is Hu et al., arXiv 2501.03262.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

compiled: Any = None
"""Plain torch, the reference, if None. `sppo_control.compiled.use` replaces it by compiled loops of the same sums."""

Reduction = Literal["token-mean", "sequence-mean", "fixed"]
"""How a (B, T) objective becomes one number; see `clipped_surrogate`."""
Ratio = Literal["step", "sequence"]
"""Of what the probability ratio is; see `clipped_surrogate`."""
EpsilonIn = Literal["std", "variance"]
"""Where epsilon is added; see `normalized_advantage`."""
_REDUCTIONS, _RATIOS, _EPSILON_IN = get_args(Reduction), get_args(Ratio), get_args(EpsilonIn)
# ahead of the functions, because torch.compile of torch 2.6 cannot trace get_args


# ---------------------------------------------------------------------------------------------------- advantages
def sequence_advantage(outcome: Tensor, value_logit: Tensor) -> Tensor:
    """SPPO's advantage, one number per episode: A = R - V(s_0), detached and not normalised (SPPO, eq. 1).

    Args:
        outcome: R, (B,), floating, in [0, 1].
        value_logit: v, (B,), the critic's logit for the context s_0; V(s_0) = sigmoid(v).

    Returns:
        (B,), without gradient.

    Raises:
        ValueError: shapes differ or are not (B,); an outcome outside [0, 1].
    """
    _check_vector(outcome=outcome, value_logit=value_logit)
    _check_outcome(outcome, "outcome")
    return (outcome - torch.sigmoid(value_logit)).detach()


def generalized_advantage(
    reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 1.0
) -> tuple[Tensor, Tensor]:
    """GAE(gamma, lambda) over whole episodes, each ending in a terminal state of value 0 (GAE, eq. 16).

    It is computed from the lambda-return: G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}), A_t = G_t - V_t.
    This is the same quantity as the sum of discounted TD errors. At gamma = lambda = 1 it gives A_t = R - V_t without
    rounding.

    Args:
        reward: r, (B, T).
        value: V(s_t), (B, T).
        mask: (B, T), bool. Padding is skipped: the step after s_t is the next real one.
        gamma: discount, in [0, 1].
        gae_lambda: lambda, in [0, 1].

    Returns:
        advantage (B, T) and returns (B, T), both without gradient, both 0 on padding.

    Raises:
        ValueError: wrong shapes, a mask that is not bool or has no True, gamma or lambda outside [0, 1].
    """
    _check_matrix(reward=reward, value=value, mask=mask)
    _check_mask(mask)
    for name, number in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        _check_number(name, number, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
    reward, value = reward.detach(), value.detach()
    if compiled is not None and compiled.sums_suit(reward, value):
        returns = compiled.lambda_returns(reward, value, mask, gamma, gae_lambda)
        return torch.where(mask, returns - value, 0.0), returns
    num_steps = mask.shape[1]
    # V of the next real step, and 0 after the last one. The index of that step is the smallest index of a real step to
    # the right: a running minimum from the right, shifted by one.
    index = torch.where(mask, torch.arange(num_steps, device=mask.device), num_steps)  # (B, T)
    from_right = index.flip(1).cummin(dim=1).values.flip(1)
    next_index = F.pad(from_right[:, 1:], (0, 1), value=num_steps)
    next_value = F.pad(torch.where(mask, value, 0.0), (0, 1)).gather(1, next_index)
    # G_t = c_t + d_t G_{t+1}; padding passes G on unchanged
    c = torch.where(mask, reward + gamma * (1.0 - gae_lambda) * next_value, 0.0)
    d = torch.ones_like(c).masked_fill(mask, gamma * gae_lambda)
    g, backwards = torch.zeros_like(c[:, 0]), []
    for c_t, d_t in zip(c.t().flip(0).unbind(0), d.t().flip(0).unbind(0), strict=True):
        g = torch.addcmul(c_t, d_t, g)
        backwards.append(g)
    returns = torch.stack(backwards[::-1], dim=1)  # (B, T)
    return torch.where(mask, returns - value, 0.0), torch.where(mask, returns, 0.0)


def group_relative_advantage(outcome: Tensor, group_size: int, normalize_std: bool = True) -> Tensor:
    """GRPO's advantage: A_i = (R_i - mean) / std over the episodes of the same context (GRPO, section 4.1.2).

    The standard deviation is that of the population (divided by N, not by N - 1), and no epsilon is added to it. So at
    success rate p a success gets sqrt((1 - p) / p) and a failure gets -sqrt(p / (1 - p)) (SPPO, appendix A). A group of
    outcomes that are equal up to rounding (the dtype's epsilon) gives exactly 0.

    Args:
        outcome: R, (B,), in [0, 1]; rows 0..N-1 are the first group, N..2N-1 the second, and so on.
        group_size: N, at least 2, a divisor of B.
        normalize_std: False omits the division (Dr. GRPO, Liu et al., arXiv 2503.20783).

    Returns:
        (B,), without gradient.

    Raises:
        ValueError: wrong shape, an outcome outside [0, 1], a group size below 2 or not dividing B.
    """
    groups = _groups(outcome, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    # Outcomes are compared, because the standard deviation is not a safe test: the mean of eight times 0.1 is not 0.1.
    # Division of that rounding error by its standard deviation would make advantages of size 1 out of nothing. So would
    # outcomes that differ by rounding only, and the deviation of 0 and 1e-30 is rounded to 0.
    spread = groups.amax(dim=1, keepdim=True) - groups.amin(dim=1, keepdim=True)
    equal = spread <= torch.finfo(groups.dtype).eps
    if normalize_std:
        centred = centred / torch.where(equal, 1.0, groups.std(dim=1, correction=0, keepdim=True))
    return torch.where(equal, 0.0, centred).reshape(-1).detach()


def leave_one_out_advantage(outcome: Tensor, group_size: int) -> Tensor:
    """RLOO's advantage: A_i = R_i - mean of the other outcomes of the group = N / (N - 1) (R_i - mean).

    With `group_size` = B this is REINFORCE with the batch mean as baseline.

    Args:
        outcome: R, (B,), in [0, 1]; consecutive rows form a group.
        group_size: N, at least 2, a divisor of B.

    Returns:
        (B,), without gradient.

    Raises:
        ValueError: wrong shape, an outcome outside [0, 1], a group size below 2 or not dividing B.
    """
    groups = _groups(outcome, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).reshape(-1).detach()


def greedy_baseline_advantage(outcome: Tensor, greedy_outcome: Tensor) -> Tensor:
    """ReMax's advantage: A = R - (R of the greedy episode from the same context) (ReMax, eq. 7).

    Args:
        outcome: R of the sampled episodes, (B,), in [0, 1].
        greedy_outcome: R of the greedy ones, (B,), in [0, 1].

    Returns:
        (B,), without gradient.

    Raises:
        ValueError: shapes differ or are not (B,); an outcome outside [0, 1].
    """
    _check_vector(outcome=outcome, greedy_outcome=greedy_outcome)
    _check_outcome(outcome, "outcome")
    _check_outcome(greedy_outcome, "greedy_outcome")
    return (outcome - greedy_outcome).detach()


def normalized_advantage(advantage: Tensor, mask: Tensor, eps: float = 1e-8, eps_in: EpsilonIn = "std") -> Tensor:
    """(A - mean) / std over the real steps of a batch or of a minibatch: advantages of mean 0 and size 1.

    The standard deviation is that of a sample (divided by N - 1). Two definitions are common, and they differ where the
    advantages hardly vary, as in a batch in which all episodes fail:

    | `eps_in`   | formula                            | who                                                        |
    | ---------- | ---------------------------------- | ---------------------------------------------------------- |
    | "std"      | (A - mean) / (std + eps)           | CleanRL's ppo.py (`norm_adv`) and Stable-Baselines3        |
    | "variance" | (A - mean) / sqrt(std^2 + eps)     | verl's `masked_whiten`: std counts as 1e-4 at least        |

    One advantage per episode counts once for each of the episode's real steps, because a step-wise implementation would
    do so: the result is that of the (B, T) advantages in which each step has its episode's A. With A = R and
    "variance" over the whole batch, this is REINFORCE++'s advantage without a KL penalty (arXiv 2501.03262).

    Advantages that are equal up to rounding, and the only one of a batch, give exactly 0. The libraries above would
    divide the rounding error by eps there, or return NaN.

    Args:
        advantage: A, (B,) or (B, T), floating.
        mask: (B, T), bool.
        eps: above 0.
        eps_in: "std" or "variance".

    Returns:
        The shape of `advantage`, without gradient; 0 on padding, and for an episode without a real step.

    Raises:
        ValueError: wrong shapes, a mask that is not bool or has no True, eps not above 0 or not finite, an unknown eps_in.
    """
    _check_floating(advantage=advantage)
    _check_tensors(mask=mask)
    _check_advantage(advantage, mask=mask)
    _check_number("eps", eps, lambda x: 0 < x < math.inf, "above 0 and finite")
    if eps_in not in _EPSILON_IN:
        raise ValueError(f"unknown eps_in {eps_in!r}; allowed: {', '.join(map(repr, _EPSILON_IN))}")
    _check_mask(mask)
    weight = mask if advantage.ndim == 2 else mask.sum(dim=1)  # real steps behind each advantage
    real, n = weight > 0, mask.sum()
    A = torch.where(real, _wide(advantage.detach()), 0.0)
    centred = torch.where(real, A - _sum(weight * A) / n, 0.0)
    variance = _sum(weight * centred.square()) / (n - 1).clamp(min=1)
    scale = variance.sqrt() + eps if eps_in == "std" else (variance + eps).sqrt()
    # The extremes are compared, because the deviation is not a safe test: that of eight times 0.1 is a rounding error.
    low, high = torch.where(real, A, torch.inf).amin(), torch.where(real, A, -torch.inf).amax()
    equal = high - low <= 8 * torch.finfo(advantage.dtype).eps * torch.maximum(low.abs(), high.abs())
    return torch.where(equal, 0.0, centred / scale).to(advantage.dtype)


def beta_tracker(
    alpha: Tensor,
    beta: Tensor,
    outcome: Tensor,
    context: Tensor,
    kl: Tensor,
    kl_half: float = 0.06,
    rho_min: float = 0.875,
    rho_max: float = 0.96,
) -> tuple[Tensor, Tensor]:
    """SPO's tracker of success rates: counts of successes and failures per context, which forget (arXiv 2509.13232).

    V(context) = alpha / (alpha + beta), the mean of a Beta distribution, is the baseline of the next visit. At a visit
    alpha becomes rho alpha + R, and beta becomes rho beta + 1 - R. The more the policy has changed since the last visit,
    the more is forgotten: rho = 2^(-KL / kl_half), clipped to [rho_min, rho_max]. Of constant outcomes alpha + beta
    tends to 1 / (1 - rho), so the memory is as long as 8 to 25 visits with the default limits. The three defaults are those
    of the authors' code (verl, recipe/spo/spo_ray_trainer.py, `_get_spo_rho`).

    Several episodes of one context in a batch forget once, because one policy acted in all of them. Then their outcomes
    are added.

    Args:
        alpha: (C,), count of successes of each context, at least 0.
        beta: (C,), count of failures, at least 0.
        outcome: R, (B,), in [0, 1].
        context: (B,), int64: which of the C contexts each episode has.
        kl: (C,), how far the policy has gone since the last visit, in nats: an estimate of the KL divergence. The authors'
            code takes the mean absolute difference of the log-probabilities of the last response.
        kl_half: the divergence at which half is forgotten, above 0.
        rho_min: least share of the old counts that is kept, in [0, 1].
        rho_max: largest share that is kept, in [rho_min, 1].

    Returns:
        The new alpha and beta, (C,) each, without gradient. Contexts that no episode has keep their counts.

    Raises:
        ValueError: wrong shapes or dtypes, an outcome outside [0, 1], a context outside 0..C-1, a negative count or
            KL, kl_half or a limit of rho outside its range.
    """
    _check_vector(alpha=alpha, beta=beta, kl=kl)
    _check_vector(outcome=outcome)
    _check_outcome(outcome, "outcome")
    _check_tensors(context=context)
    if context.dtype != torch.int64 or context.shape != outcome.shape:
        raise ValueError(
            f"context must be int64 and of outcome's shape {tuple(outcome.shape)}, got {context.dtype} of shape "
            f"{tuple(context.shape)}"
        )
    _check_number("kl_half", kl_half, lambda x: 0 < x < math.inf, "above 0 and finite")
    _check_number("rho_min", rho_min, lambda x: 0 <= x <= 1, "in [0, 1]")
    _check_number("rho_max", rho_max, lambda x: rho_min <= x <= 1, f"from rho_min = {rho_min:g} to 1")
    require(((context >= 0) & (context < alpha.numel())).all(), f"context must be from 0 to {alpha.numel() - 1}")
    for name, x in (("alpha", alpha), ("beta", beta), ("kl", kl)):
        require((x >= 0).all() & x.isfinite().all(), f"{name} must be at least 0 and finite")
    rho = torch.exp2(-kl.detach() / kl_half).clamp(rho_min, rho_max)
    visited = torch.zeros_like(alpha, dtype=torch.bool).index_fill(0, context, True)
    keep, R = torch.where(visited, rho, 1.0), outcome.detach().to(alpha.dtype)
    return (alpha.detach() * keep).index_add(0, context, R), (beta.detach() * keep).index_add(0, context, 1 - R)


# -------------------------------------------------------------------------------------------------------- losses
class ClippedSurrogate(NamedTuple):
    """The policy loss, and statistics of the same steps: detached scalars, means over the real steps."""

    loss: Tensor
    """The number to minimise: minus the reduced surrogate objective."""
    num_steps: Tensor
    """Number of real steps in this batch. It is the weight of these statistics when batches are averaged."""
    old_approx_kl: Tensor
    """mean(-log r), the plain estimate of KL(old || new); it may be negative."""
    approx_kl: Tensor
    """mean(r - 1 - log r), which is never negative (Schulman, http://joschu.net/blog/kl-approx.html)."""
    clipfrac: Tensor
    """Share of steps with |r - 1| > clip_coef."""
    ratio_min: Tensor
    """Smallest ratio r."""
    ratio_max: Tensor
    """Largest ratio r."""


def clipped_surrogate(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_coef: float = 0.2,
    reduction: Reduction = "token-mean",
    denominator: float | Tensor | None = None,
    ratio: Ratio = "step",
) -> ClippedSurrogate:
    """PPO's clipped objective per step: L_t = min(r_t A, clip(r_t, 1 - eps, 1 + eps) A), r_t = exp(logp - logp_old).

    SPPO (eq. 3) gives every step of an episode the same A; PPO (arXiv 1707.06347, eq. 7) gives each step its own.

    A sequence-level ratio is another thing than a sequence-level advantage. With `ratio="sequence"` all steps of an episode
    also have one ratio, r = exp(mean over its real steps of logp - logp_old), which is the geometric mean of the r_t
    (GSPO, arXiv 2507.18071, eq. 7). So an episode is clipped as a whole or not at all. A mean is much closer to 1 than each
    r_t, which is why GSPO clips at 3e-4 and 4e-4. GSPO's own reduction is "sequence-mean".

    Args:
        logp: (B, T), with gradient.
        logp_old: (B, T), treated as a constant.
        advantage: (B,), broadcast over the steps, or (B, T); treated as a constant.
        mask: (B, T), bool.
        clip_coef: eps, above 0; 1 + 2 eps must be a number of the dtype of `logp`.
        reduction: "token-mean" is the sum over all real steps, divided by their number.
            "sequence-mean" is the mean over the real steps of each sequence, then the mean over sequences.
            "fixed" is the sum over all real steps, divided by B x T, where T is the padded length (Dr. GRPO).
        denominator: replaces the last divisor. Then the losses of micro-batches add up to the loss of the whole batch.
            Pass the whole batch's number of real steps ("token-mean") or of sequences ("sequence-mean"). For "fixed" pass
            B x H, where H is the length to which the whole batch would be padded.
        ratio: "step", or "sequence" for advantages that are one per episode.

    Returns:
        `ClippedSurrogate`: the loss, and statistics of the same steps. With `ratio="sequence"` the share of clipped steps
        and the extremes are those of the episodes' ratios; both estimates of KL are of the steps' ratios all the same.

    Raises:
        ValueError: wrong shapes, a mask that is not bool or has no True, an unknown reduction or ratio, clip_coef or
            denominator not above 0 or not finite, one advantage per step with `ratio="sequence"`.
    """
    _check_matrix(logp=logp, logp_old=logp_old, mask=mask)
    _check_floating(advantage=advantage)
    _check_advantage(advantage, logp=logp)
    if ratio not in _RATIOS:
        raise ValueError(f"unknown ratio {ratio!r}; allowed: {', '.join(map(repr, _RATIOS))}")
    if ratio == "sequence" and advantage.ndim == 2:
        raise ValueError(
            "ratio 'sequence' needs one advantage per episode, (B,), because the gradient of an episode's ratio is the "
            f"same for all its steps; got advantage of shape {tuple(advantage.shape)}"
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; allowed: {', '.join(map(repr, _REDUCTIONS))}")
    largest = torch.finfo(logp.dtype).max / 4
    _check_number("clip_coef", clip_coef, lambda x: 0 < x < largest, f"above 0 and below {largest:.3g} ({logp.dtype})")
    _check_mask(mask)
    denominator = _checked_denominator(denominator)
    plain = reduction != "token-mean" or ratio != "step"
    if compiled is not None and not plain and compiled.sums_suit(logp, logp_old, advantage):
        return ClippedSurrogate(*compiled.clipped_surrogate(logp, logp_old, advantage, mask, clip_coef, denominator))

    advantage = advantage.detach()
    advantage = torch.where(mask, advantage if advantage.ndim == 2 else advantage[:, None], 0.0)  # (B, T)
    step_log_ratio = log_ratio = torch.where(mask, logp - logp_old.detach(), 0.0)
    if ratio == "sequence":
        mean = _sum(log_ratio, dim=1) / mask.sum(dim=1).clamp(min=1)  # (B,)
        log_ratio = torch.where(mask, mean.to(logp.dtype)[:, None], 0.0)
    # Where A >= 0, a ratio that overflows is clipped, and its gradient is 0. But inf x 0 is NaN, also in the backward
    # pass. So such a ratio is replaced by a finite one, which is clipped too. The limit is a little lower, because in
    # half precision it is rounded.
    overflows = (log_ratio > math.log(torch.finfo(log_ratio.dtype).max) - 1) & (advantage >= 0)
    r = torch.where(overflows, math.log1p(2 * clip_coef), log_ratio).exp()
    surrogate = torch.minimum(r * advantage, r.clamp(1 - clip_coef, 1 + clip_coef) * advantage)  # 0 on padding

    num_steps = mask.sum()
    if reduction == "sequence-mean":
        lengths = mask.sum(dim=1)  # (B,)
        surrogate = _sum(surrogate, dim=1) / lengths.clamp(min=1)
        default = (lengths > 0).sum()
    else:
        default = num_steps if reduction == "token-mean" else torch.full_like(num_steps, mask.numel())
    loss = (-_sum(surrogate) / (default if denominator is None else denominator)).to(logp.dtype)

    with torch.no_grad():
        r, wide = log_ratio.exp(), _wide(step_log_ratio)
        return ClippedSurrogate(
            loss=loss,
            num_steps=num_steps,
            old_approx_kl=(-_sum(step_log_ratio) / num_steps).to(logp.dtype),
            # expm1, because the rounding error of r - 1 can be larger than the whole number, which would be negative then
            approx_kl=(_sum((wide.expm1() - wide).clamp(min=0)) / num_steps).to(logp.dtype),
            clipfrac=_sum(((r - 1).abs() > clip_coef).to(logp.dtype)).div(num_steps).to(logp.dtype),
            ratio_min=torch.where(mask, r, torch.inf).amin(),
            ratio_max=torch.where(mask, r, 0.0).amax(),
        )


def bernoulli_value_loss(value_logit: Tensor, outcome: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy between V = sigmoid(v) and R (SPPO, eq. 2). Its gradient is d loss / d v = V - R.

    Args:
        value_logit: v, (B,), the critic's logit, with gradient.
        outcome: R, (B,), in [0, 1]. A fraction is allowed too: the success rate over several episodes.
        denominator: divides the sum in place of B, so that the losses of micro-batches add up.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ or are not (B,); an outcome is outside [0, 1], which `torch` itself would accept;
            denominator is not above 0 or not finite.
    """
    _check_vector(value_logit=value_logit, outcome=outcome)
    denominator = _checked_denominator(denominator)
    if compiled is not None and compiled.sums_suit(value_logit, outcome):
        loss, inside = compiled.bernoulli_value_loss(value_logit, outcome, denominator)
        if inside:
            return loss
    _check_outcome(outcome, "outcome")
    losses = F.binary_cross_entropy_with_logits(value_logit, outcome.detach(), reduction="none")
    return (_sum(losses) / (outcome.numel() if denominator is None else denominator)).to(losses.dtype)


def squared_value_loss(
    value: Tensor,
    returns: Tensor,
    mask: Tensor,
    denominator: float | Tensor | None = None,
    value_old: Tensor | None = None,
    clip_coef: float = 0.2,
) -> Tensor:
    """Token-level PPO's value loss: the mean over real steps of (V_t - G_t)^2 / 2 (PPO, eq. 9).

    Because of the factor 1/2 the gradient is d loss / d V_t = V_t - G_t, as for `bernoulli_value_loss`.

    With `value_old` the loss is clipped: V_t may move by clip_coef from where it was, and the larger of both squared
    errors counts, max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2) / 2. So a value that has moved too far
    towards its return has no gradient. (OpenAI's baselines, ppo2; CleanRL's ppo.py, `clip_vloss`.)

    Args:
        value: V(s_t), (B, T), with gradient.
        returns: G_t, (B, T), treated as a constant.
        mask: (B, T), bool.
        denominator: divides the sum in place of the number of real steps, so that the losses of micro-batches add up.
        value_old: V(s_t) before the update, (B, T), treated as a constant; None does not clip.
        clip_coef: eps, above 0; it has the unit of V.

    Returns:
        A scalar.

    Raises:
        ValueError: wrong shapes, a mask that is not bool or has no True, denominator or clip_coef not above 0 or not
            finite.
    """
    old = {} if value_old is None else {"value_old": value_old}
    _check_matrix(value=value, returns=returns, mask=mask, **old)
    _check_mask(mask)
    denominator = _checked_denominator(denominator)
    _check_number("clip_coef", clip_coef, lambda x: 0 < x < math.inf, "above 0 and finite")
    if compiled is not None and value_old is None and compiled.sums_suit(value, returns):
        return compiled.squared_value_loss(value, returns, mask, denominator)
    error = torch.where(mask, value - returns.detach(), 0.0)
    if value_old is not None:
        value_old = value_old.detach()
        clipped = value_old + (value - value_old).clamp(-clip_coef, clip_coef)
        clipped_error = torch.where(mask, clipped - returns.detach(), 0.0)
        error = torch.where(clipped_error.abs() > error.abs(), clipped_error, error)  # the larger square
    return (0.5 * _sum(_wide(error).square()) / (mask.sum() if denominator is None else denominator)).to(error.dtype)


# ---------------------------------------------------------------------------------------------------- statistics
def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over real steps, with gradient.

    Args:
        x: (B, T).
        mask: (B, T), bool.

    Returns:
        A scalar.

    Raises:
        ValueError: wrong shapes, a mask that is not bool or has no True.
    """
    _check_matrix(x=x, mask=mask)
    _check_mask(mask)
    if compiled is not None and compiled.sums_suit(x):
        return compiled.masked_mean(x, mask)
    return (_sum(torch.where(mask, x, 0.0)) / mask.sum()).to(x.dtype)


def explained_variance(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - Var(target - prediction) / Var(target). 1 is perfect, 0 is no better than a constant, below 0 is worse.

    It is NaN if the target does not vary, for example because all episodes failed. Then there is nothing to explain.

    Args:
        prediction: (B,) or (B, T).
        target: the same shape.
        mask: the same shape, bool; None means that all entries count.

    Returns:
        A scalar, without gradient.

    Raises:
        ValueError: shapes differ; a mask that is not bool or has no True.
    """
    _check_floating(prediction=prediction, target=target)
    mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    _check_tensors(mask=mask)
    if not prediction.shape == target.shape == mask.shape or target.numel() == 0:
        shapes = ", ".join(str(tuple(x.shape)) for x in (prediction, target, mask))
        raise ValueError(f"prediction, target and mask must have one shape, not empty, got {shapes}")
    _check_mask(mask)

    def variance(x: Tensor) -> Tensor:
        mean = _sum(torch.where(mask, x, 0.0)) / mask.sum()
        return _sum(torch.where(mask, x - mean, 0.0).square())

    target = target.detach()
    error = _wide(target) - _wide(prediction.detach())
    low, high = torch.where(mask, target, torch.inf).amin(), torch.where(mask, target, -torch.inf).amax()
    # The extremes are compared, because the variance is not a safe test: for eight times 0.1 it is a rounding error.
    constant = high - low <= 8 * torch.finfo(target.dtype).eps * torch.maximum(low.abs(), high.abs())
    explained = 1 - variance(error) / variance(_wide(target))
    return torch.where(constant, torch.nan, explained).to(target.dtype)


def brier_score(probability: Tensor, outcome: Tensor) -> Tensor:
    """Brier score, mean (V - R)^2. 0 is perfect; a constant V = 1/2 gets 0.25 for outcomes 0 and 1 (Brier, 1950).

    Args:
        probability: V, (B,).
        outcome: R, (B,), in [0, 1].

    Returns:
        A scalar, without gradient.

    Raises:
        ValueError: shapes differ or are not (B,); an outcome outside [0, 1].
    """
    _check_vector(probability=probability, outcome=outcome)
    _check_outcome(outcome, "outcome")
    return (probability - outcome).detach().square().mean()


def expected_calibration_error(probability: Tensor, outcome: Tensor, num_bins: int = 10) -> Tensor:
    """ECE: |mean predicted - mean observed| in each bin of predicted probability, weighted by the bin's share.

    Source: Guo et al., arXiv 1706.04599, eq. 3. Bins have equal width; predictions outside [0, 1] go to the nearest bin.

    Args:
        probability: V, (B,).
        outcome: R, (B,), in [0, 1].
        num_bins: at least 1.

    Returns:
        A scalar, without gradient. If there are few episodes, it is biased upwards.

    Raises:
        ValueError: shapes differ or are not (B,); an outcome outside [0, 1]; num_bins below 1.
    """
    _check_vector(probability=probability, outcome=outcome)
    _check_outcome(outcome, "outcome")
    _check_number(
        "num_bins", num_bins, lambda n: isinstance(n, Integral) and int(n) >= 1, "a whole number of at least 1"
    )
    gap = _wide((probability - outcome).detach())
    bins = (probability.detach() * num_bins).clamp(-1, num_bins).long().clamp(0, num_bins - 1)
    # (share of the bin) x (gap between its means) = (sum of the gaps in the bin) / B
    sums = torch.zeros(num_bins, dtype=gap.dtype, device=gap.device).index_add(0, bins, gap)
    return (sums.abs().sum() / gap.numel()).to(torch.promote_types(probability.dtype, outcome.dtype))


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson, 1927); z = 1.959964 gives the 95 % interval.

    Args:
        successes: how many of the trials succeeded.
        trials: how many there were, at least 1.
        z: quantile of the normal distribution, above 0.

    Returns:
        Lower and upper end, both in [0, 1].

    Raises:
        ValueError: trials below 1, successes outside 0..trials, z not above 0 or not finite.
    """
    for name, number in (("successes", successes), ("trials", trials)):
        _check_number(name, number, math.isfinite, "a whole number")
    _check_number("z", z, lambda x: x > 0 and 0 < x * x < math.inf, "above 0 and finite")
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need trials >= 1 and 0 <= successes <= trials, got {successes} of {trials}")
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    # With no success, or no failure, one end is exactly 0 or 1. Rounding would leave an error of about 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: squares and small differences do not fit into half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(x: Tensor, dim: int | None = None) -> Tensor:
    """A sum in float32 at least: in float16 or bfloat16 it could overflow, and small terms could be rounded away."""
    return x.sum(dim=dim, dtype=torch.promote_types(x.dtype, torch.float32))


# -------------------------------------------------------------------------------------------------------- checks
def require(condition: Tensor, message: str, offender: Tensor | None = None) -> None:
    """Refuse bad values, without a synchronisation of host and device.

    Args:
        condition: one bool; True is good.
        message: text of the error. {} in it is replaced by the first bad number, which is read on the CPU only.
        offender: the tensor with that number, (B,); good values are in [0, 1].

    Raises:
        ValueError: the condition is False, on the CPU. On other devices, and under torch.compile, the device itself stops.
    """
    if condition.device.type == "cpu" and not torch.compiler.is_compiling():
        if not condition:
            raise ValueError(message.format("" if offender is None else _first_outside(offender)))
    else:  # no synchronisation of host and device: the device itself stops at the bad batch
        torch._assert_async(condition, message.format("see the batch"))


def _first_outside(outcome: Tensor) -> str:
    index = int(((outcome >= 0) & (outcome <= 1)).logical_not().nonzero()[0, 0])
    return f"{outcome[index].item()} at index {index}"


def _check_outcome(outcome: Tensor, name: str) -> None:
    inside = ((outcome >= 0) & (outcome <= 1)).all()  # a NaN is not inside
    require(inside, name + " must be in [0, 1] (0 is failure, 1 is success), got {}; rescale or threshold it", outcome)


def _check_tensors(**tensors: object) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def _check_floating(**tensors: Tensor) -> None:
    """Check that all are tensors of real numbers with a fraction: a mean of whole numbers would be cut to one."""
    _check_tensors(**tensors)
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating, got {x.dtype}; pass {name}.float()")


def _check_vector(**tensors: Tensor) -> None:
    """Check that all are floating and (B,) with the same B, which is at least 1."""
    _check_floating(**tensors)
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1 or any(x.ndim != 1 or x.numel() == 0 for x in tensors.values()):
        names = " and ".join(shapes)
        raise ValueError(f"{names} must be (B,) with the same B >= 1, got {', '.join(map(str, shapes.values()))}")


def _check_matrix(mask: Tensor, **tensors: Tensor) -> None:
    """Check that all are (B, T) with the same B and T, and all but the mask floating."""
    _check_floating(**tensors)
    _check_tensors(mask=mask)
    tensors["mask"] = mask
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1 or any(x.ndim != 2 for x in tensors.values()):
        names = " and ".join(shapes)
        raise ValueError(f"{names} must be (B, T) with the same B and T, got {', '.join(map(str, shapes.values()))}")


def _check_advantage(advantage: Tensor, **like: Tensor) -> None:
    """Check that it is (B,) or (B, T), where the other tensor is (B, T)."""
    ((name, x),) = like.items()
    if x.ndim != 2 or advantage.shape not in (x.shape, x.shape[:1]):
        raise ValueError(
            f"advantage must be (B,) = {tuple(x.shape[:1])} or (B, T) = {tuple(x.shape)}, as {name} is, "
            f"got {tuple(advantage.shape)}"
        )


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (True on real steps), got {mask.dtype}; pass mask.bool()")
    if mask.numel() == 0:
        raise ValueError(f"mask has no step: its shape is {tuple(mask.shape)}")
    require(mask.any(), "mask has no real step: all its entries are False")


def _check_number(name: str, number: Any, allowed: Callable[[Any], bool], words: str) -> None:
    if not isinstance(number, Real) or not allowed(number):
        raise ValueError(f"{name} must be {words}, got {number!r}")


def _checked_denominator(denominator: float | Tensor | None) -> float | Tensor | None:
    """The denominator, a tensor as a scalar.

    Raises:
        ValueError: it is not one number, above 0 and finite.
    """
    if isinstance(denominator, Tensor):
        if denominator.numel() != 1 or denominator.is_complex():
            raise ValueError(f"denominator must be one real number, got shape {tuple(denominator.shape)}")
        denominator = denominator.reshape(())
        require((denominator > 0) & denominator.isfinite(), "denominator must be above 0 and finite")
    elif denominator is not None:
        _check_number("denominator", denominator, lambda x: 0 < x < math.inf, "above 0 and finite")
    return denominator


def _groups(outcome: Tensor, group_size: int) -> Tensor:
    """(B,) -> (B / N, N)"""
    _check_vector(outcome=outcome)
    _check_outcome(outcome, "outcome")
    if not isinstance(group_size, Integral) or group_size < 2 or outcome.numel() % group_size:
        raise ValueError(
            "group_size must be a whole number of at least 2 and divide the number of outcomes, "
            f"got {group_size!r} for {outcome.numel()}"
        )
    return outcome.reshape(-1, group_size)
