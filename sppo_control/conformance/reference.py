"""The equations a second time, row by row, with switches that put one usual mistake each into them.

The conformance kit compares an adapter with these functions, in float64. Each function has the arguments `x` (tensors by
name), `options` (the other arguments) and `faults` (names of mistakes to make), and returns tensors by name. Without
faults it is the reference. With faults it is a named wrong variant: if a wrong variant gives an adapter's answers on all
batches, the adapter's mistake has that name. `spec.py` has one sentence about each.

Nothing is imported from `core.py`, so that a defect there is found too. A test compares both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Arrays = dict[str, Tensor]
Options = Mapping[str, Any]
Faults = frozenset[str]
HALF_MAX = 65504.0
"""The largest number of float16."""


def _stop(x: Tensor, keep: bool) -> Tensor:
    return x if keep else x.detach()


# ---------------------------------------------------------------------------------------------------- advantages
def sequence_advantage(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """outcome, value_logit (B,) -> advantage (B,): A = R - sigmoid(v) (SPPO, eq. 1)."""
    v, R = x["value_logit"], x["outcome"]
    V = v if "advantage_from_the_logit" in faults else torch.sigmoid(v)
    A = V - R if "advantage_sign_turned" in faults else R - V
    if "advantage_without_baseline" in faults:
        A = R + 0 * v
    if "advantage_normalised" in faults:
        A = (A - A.mean()) / ((A - A.mean()).square().sum().div(max(len(A) - 1, 1)).sqrt() + 1e-8)
    return {"advantage": _stop(A, "advantage_not_detached" in faults)}


def generalized_advantage(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """reward, value, mask (B, T) -> advantage, returns (B, T), by a loop over rows and steps (GAE, eq. 16)."""
    gamma, lam = options.get("gamma", 1.0), options.get("gae_lambda", 1.0)
    if "gae_gamma_ignored" in faults:
        gamma = 1.0
    if "gae_lambda_ignored" in faults:
        lam = 1.0
    reward, mask = x["reward"].detach(), x["mask"]
    value = _stop(x["value"], "gae_value_keeps_its_gradient" in faults)
    everything = "gae_padding_is_real" in faults
    by_factor = bool({"gae_padding_kept", "gae_padding_cleared_late"} & faults)
    decay = gamma if "gae_recursion_without_lambda" in faults else gamma * lam
    share = gamma * (lam if "gae_lambda_for_one_minus_lambda" in faults else 1 - lam)
    if "gae_next_value_not_discounted" in faults:
        share = 1 - lam
    rows, num_steps = mask.shape
    G: list[list[Tensor]] = [[] for _ in range(rows)]
    zero = torch.zeros((), dtype=value.dtype)
    for b in range(rows):
        g = next_value = zero
        if "gae_end_is_bootstrapped" in faults:
            real = [t for t in range(num_steps) if mask[b, t]]
            g = next_value = value[b, real[-1]] if real else zero
        for t in reversed(range(num_steps)):
            if mask[b, t] or everything:
                if "gae_next_value_is_the_next_column" in faults:
                    next_value = value[b, t + 1] if t + 1 < num_steps else zero
                g = reward[b, t] + share * next_value + decay * g
                next_value = value[b, t]
            elif "gae_padding_is_discounted" in faults:
                g = gamma * lam * g
            elif "gae_padding_ends_the_episode" in faults:
                g = next_value = zero
            if by_factor and not mask[b, t]:  # 0 times NaN or infinity is NaN, and all steps before get it
                g = g + 0 * (reward[b, t] + value[b, t])
            G[b].append(g)
    turned = G if "gae_returns_in_reverse_order" in faults else [row[::-1] for row in G]
    returns = torch.stack([torch.stack(row) for row in turned])
    A = returns if "gae_advantage_is_the_return" in faults else returns - value
    if "gae_padding_kept" in faults:
        A, returns = A * mask, returns * mask
    else:
        A, returns = torch.where(mask, A, 0.0), torch.where(mask, returns, 0.0)
    if "gae_returns_are_rewards_to_go" in faults:
        returns = _rewards_to_go(reward, mask, gamma)
    if "gae_advantage_whitened" in faults:  # the returns keep their size, as in verl and TRL's old PPO
        n = mask.sum()
        centred = torch.where(mask, A - A.sum() / n, 0.0)
        A = centred / (centred.square().sum() / (n - 1).clamp(min=1) + 1e-8).sqrt()
    if "gae_padding_not_zero" in faults:
        return {"advantage": A + 0, "returns": torch.where(mask, returns, x["value"].detach())}
    keep = "gae_value_keeps_its_gradient" in faults
    return {"advantage": _stop(A, keep), "returns": _stop(returns, keep)}


def _rewards_to_go(reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    out = torch.zeros_like(reward)
    for b in range(len(mask)):
        g = torch.zeros((), dtype=reward.dtype)
        for t in reversed(range(mask.shape[1])):
            if mask[b, t]:
                g = reward[b, t] + gamma * g
                out[b, t] = g
    return out


def _grouped(R: Tensor, n: int, faults: Faults) -> Tensor:
    return R.reshape(n, -1).t() if "groups_are_interleaved_rows" in faults else R.reshape(-1, n)


def group_relative_advantage(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """outcome (B,) -> advantage (B,): (R - mean) / std of each group (GRPO, section 4.1.2)."""
    groups = _grouped(x["outcome"], options["group_size"], faults)
    normalize = options.get("normalize_std", True)
    if "group_normalisation_inverted" in faults:
        normalize = not normalize
    if "group_never_divided" in faults:
        normalize = False
    if "group_always_divided" in faults:
        normalize = True
    mean = groups.mean() if "group_mean_of_the_whole_batch" in faults else groups.mean(dim=1, keepdim=True)
    centred = groups - mean
    equal = groups.amax(1, True) - groups.amin(1, True) <= torch.finfo(torch.float32).eps / 1024
    if "group_equality_by_the_mean" in faults:
        equal = (centred == 0).all(dim=1, keepdim=True)
    if "group_deviation_of_zero_not_caught" in faults:
        equal = torch.zeros_like(equal)
    correction = int("group_deviation_of_a_sample" in faults)
    if "group_deviation_of_the_whole_batch" in faults:
        std = groups.std(correction=correction).expand(len(groups), 1)
    else:
        std = groups.std(dim=1, correction=correction, keepdim=True)
    for name, epsilon in EPSILONS.items():
        if name in faults:
            std = std + epsilon
    A = centred / torch.where(equal, 1.0, std) if normalize else centred
    return {"advantage": torch.where(equal, 0.0, A).reshape(-1).detach()}


EPSILONS = {
    "group_epsilon_1e_4": 1e-4,
    "group_epsilon_1e_5": 1e-5,
    "group_epsilon_1e_6": 1e-6,
}


def leave_one_out_advantage(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """outcome (B,) -> advantage (B,): R minus the mean of the others of its group (RLOO)."""
    n = options["group_size"]
    groups = _grouped(x["outcome"], n, faults)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (n if "leave_one_out_divided_by_n" in faults else n - 1)
    if "leave_one_out_includes_itself" in faults:
        others = groups.mean(dim=1, keepdim=True)
    if "leave_one_out_of_the_whole_batch" in faults:
        others = (groups.sum() - groups) / (groups.numel() - 1)
    return {"advantage": (groups - others).reshape(-1).detach()}


def greedy_baseline_advantage(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """outcome, greedy_outcome (B,) -> advantage (B,): their difference (ReMax, eq. 7)."""
    A = x["outcome"] - x["greedy_outcome"]
    if "greedy_baseline_sign_turned" in faults:
        A = -A
    if "greedy_baseline_is_its_mean" in faults:
        A = x["outcome"] - x["greedy_outcome"].mean()
    return {"advantage": A.detach()}


def normalized_advantage(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """advantage (B,) or (B, T), mask (B, T) -> the same shape: (A - mean) / std over real steps."""
    A, mask = x["advantage"].detach(), x["mask"]
    eps, where = options.get("eps", 1e-8), options.get("eps_in", "std")
    if "normalised_over_padding" in faults:
        mask = torch.ones_like(mask)
    weight = (mask if A.ndim == 2 else mask.sum(dim=1)).to(A.dtype)
    if "normalised_over_episodes" in faults and A.ndim == 1:
        weight = (weight > 0).to(A.dtype)
    real, n = weight > 0, mask.sum()
    A = torch.where(real, A, 0.0)
    centred = torch.where(real, A - (weight * A).sum() / n, 0.0)
    m = n if "normalised_by_the_populations_deviation" in faults else (n - 1).clamp(min=1)
    variance = (weight * centred.square()).sum() / m
    if "epsilon_always_in_the_deviation" in faults:
        where = "std"
    if "epsilon_always_in_the_variance" in faults:
        where = "variance"
    scale = variance.sqrt() + eps if where == "std" else (variance + eps).sqrt()
    low, high = torch.where(real, A, torch.inf).amin(), torch.where(real, A, -torch.inf).amax()
    equal = high - low <= 8 * torch.finfo(A.dtype).eps * torch.maximum(low.abs(), high.abs())
    if "normalised_rounding_errors" in faults:
        equal = torch.zeros_like(equal)
    if "advantage_not_centred" in faults:
        centred = A
    return {"advantage": torch.where(equal, 0.0, centred / scale)}


def beta_tracker(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """alpha, beta, kl (C,), outcome, context (B,) -> the new alpha and beta (C,) (SPO, arXiv 2509.13232)."""
    alpha, beta, R, context, kl = (x[k] for k in ("alpha", "beta", "outcome", "context", "kl"))
    half = options.get("kl_half", 0.06)
    base = math.e if "tracker_half_life_in_e" in faults else 2.0
    rho = (base ** (-kl / half)).clamp(options.get("rho_min", 0.875), options.get("rho_max", 0.96))
    a, b = alpha.clone(), beta.clone()
    visits = torch.bincount(context, minlength=len(alpha))
    for c in range(len(alpha)):
        times = int(visits[c]) if "tracker_forgets_each_episode" in faults else int(visits[c] > 0)
        if "tracker_forgets_unvisited_contexts" in faults:
            times = 1
        a[c], b[c] = a[c] * rho[c] ** times, b[c] * rho[c] ** times
    wrong = "tracker_counts_successes_as_failures" in faults
    if "tracker_forgets_each_episode" in faults:
        b = beta * torch.where(visits > 0, rho, torch.ones_like(rho))
        if "tracker_forgets_unvisited_contexts" in faults:
            b = beta * rho
    for r, c in zip(R, context.tolist(), strict=True):
        a[c], b[c] = a[c] + r, b[c] + (r if wrong else 1 - r)
    return {"alpha": a, "beta": b}


# -------------------------------------------------------------------------------------------------------- losses
def policy_loss(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """logp, logp_old, mask (B, T), advantage (B,) or (B, T) -> loss and statistics, scalars (PPO, eq. 7)."""
    logp, mask = x["logp"], x["mask"]
    eps, reduction = options.get("clip_coef", 0.2), options.get("reduction", "token-mean")
    per_episode = options.get("ratio", "step") == "sequence"
    denominator = None if "surrogate_denominator_ignored" in faults else options.get("denominator")
    if "clip_coef_ignored" in faults:
        eps = 0.2
    if "padding_is_real" in faults:
        mask = torch.ones_like(mask)
    A = _stop(x["advantage"], "advantage_in_the_loss_not_detached" in faults)
    if A.ndim == 1:
        A = A[:, None].expand_as(logp)
    lengths, num_steps = mask.sum(dim=1), mask.sum()
    if "advantage_normalised_in_the_loss" in faults:
        mean = torch.where(mask, A, 0.0).sum() / num_steps
        deviation = torch.where(mask, A - mean, 0.0).square().sum() / (num_steps - 1).clamp(min=1)
        A = (A - mean) / (deviation.sqrt() + 1e-8)
    kept = "old_log_probability_padding_kept" in faults
    A = torch.where(mask, A, 0.0)
    old = _stop(x["logp_old"], "old_log_probability_not_detached" in faults)
    step = (logp - old) * mask if kept else torch.where(mask, logp - old, 0.0)
    if "ratio_upside_down" in faults:
        step = -step
    log_ratio = step
    late = "padding_removed_after_the_ratio" in faults
    if late:
        log_ratio = old - logp if "ratio_upside_down" in faults else logp - old
    if "episodes_ratio_is_the_product" in faults:
        per_episode = True
    if per_episode and "sequence_ratio_ignored" not in faults:
        product = {"sequence_ratio_is_the_product", "episodes_ratio_is_the_product"} & faults
        divisor = lengths.clamp(min=1).to(step.dtype)
        if "sequence_ratio_over_padding" in faults:
            divisor = torch.full_like(divisor, mask.shape[1])
        if product:
            divisor = torch.ones_like(divisor)
        log_ratio = torch.where(mask, (step.sum(dim=1) / divisor)[:, None].expand_as(step), 0.0)
    # In half precision the limits are lower, but these batches use large ratios in float32 and float64 only.
    overflows = (log_ratio > 80) & (A >= 0)
    if "overflowing_ratio_not_caught" in faults:
        r = _exp_of(log_ratio, options)
    else:
        r = torch.where(overflows, math.log1p(2 * eps), log_ratio).exp()
    clipped = r.clamp(max=1 + eps) if "ratio_clipped_from_above_only" in faults else r.clamp(1 - eps, 1 + eps)
    larger = torch.maximum if "maximum_for_minimum" in faults else torch.minimum
    L = larger(r * A, clipped * A)
    if "ratio_not_clipped" in faults:
        L = r * A
    if "minimum_omitted" in faults:
        L = clipped * A
    if "log_probability_for_ratio" in faults:
        L = torch.where(mask, logp, 0.0) * A
    if "dual_clip" in faults:
        L = torch.where(A < 0, torch.maximum(L, 3.0 * A), L)
    if late:  # the gradient still goes through exp, and there 0 times NaN is NaN
        L, log_ratio = torch.where(mask, L, 0.0), torch.where(mask, log_ratio, 0.0)
    if "reduction_ignored" in faults:
        reduction = "token-mean"
    if "sequence_mean_in_place_of_token_mean" in faults and reduction == "token-mean":
        reduction = "sequence-mean"
    if reduction == "sequence-mean":
        divisor = lengths.to(L.dtype) if "empty_rows_divided_by_zero" in faults else lengths.clamp(min=1).to(L.dtype)
        if "sequence_mean_over_the_padded_length" in faults:
            divisor = torch.full_like(divisor, mask.shape[1])
        if "sequence_sums_for_sequence_means" in faults:
            divisor = torch.ones_like(divisor)
        L = L.sum(dim=1) / divisor
        default = torch.tensor(len(mask)) if "empty_rows_in_the_divisor" in faults else (lengths > 0).sum()
    else:
        full = torch.tensor(mask.numel())
        swapped = "token_mean_and_fixed_swapped" in faults
        default = num_steps if (reduction == "token-mean") != swapped else full
        if "mean_over_padding" in faults:
            default = full
        if "fixed_leaves_out_empty_rows" in faults and reduction == "fixed":
            default = (lengths > 0).sum() * mask.shape[1]
        if "sum_for_mean" in faults:
            default = torch.tensor(1)
    total = L.sum()
    if "sums_in_half_precision" in faults and options.get("dtype") == "float16" and total.abs() > HALF_MAX:
        total = total * math.inf
    loss = -total / (default if denominator is None else denominator)
    if "loss_sign_turned" in faults:
        loss = -loss
    if "loss_without_gradient" in faults:
        loss = loss.detach()
    return {"loss": loss, **_statistics(step.detach(), log_ratio.detach(), mask, eps, faults)}


def _exp_of(log_ratio: Tensor, options: Options) -> Tensor:
    """exp that overflows where the dtype of the case does."""
    r = log_ratio.exp()
    return r * torch.where(log_ratio > 88.7, math.inf, 1.0) if options.get("dtype") == "float32" else r


def _statistics(step: Tensor, log_ratio: Tensor, mask: Tensor, eps: float, faults: Faults) -> Arrays:
    n = mask.sum()
    r, s = log_ratio.exp(), log_ratio if "kl_of_the_sequences_ratio" in faults else step
    k3 = s.expm1() + s if "approximate_kl_with_a_wrong_term" in faults else s.expm1() - s
    if "approximate_kl_with_a_wrong_term" in faults:
        k3 = k3.clamp(min=0)
    kl = -step.sum() / n
    away = log_ratio.abs() if "clip_fraction_of_the_log_ratio" in faults else (r - 1).abs()
    low = r.amin() if "smallest_ratio_sees_padding" in faults else torch.where(mask, r, torch.inf).amin()
    high = r.amax() if "largest_ratio_sees_padding" in faults else torch.where(mask, r, 0.0).amax()
    return {
        "old_approx_kl": -kl if "kl_sign_turned" in faults else kl,
        "approx_kl": k3.sum() / n,
        "clipfrac": (away > eps).to(r.dtype).sum() / n,
        "ratio_min": low,
        "ratio_max": high,
    }


def bernoulli_value_loss(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """value_logit, outcome (B,) -> loss: the mean cross-entropy (SPPO, eq. 2)."""
    v, R = x["value_logit"], _stop(x["outcome"], "cross_entropy_trains_the_outcome" in faults)
    V = torch.sigmoid(v)
    losses = F.softplus(v) - R * v  # -R log V - (1 - R) log(1 - V)
    if "cross_entropy_of_a_rounded_probability" in faults:
        losses = -R * V.log() - (1 - R) * (1 - V).log()
    if "squared_error_for_cross_entropy" in faults:
        losses = (V - R).square()
    if "half_squared_error_for_cross_entropy" in faults:
        losses = 0.5 * (V - R).square()
    if "sigmoid_twice" in faults:
        losses = F.softplus(V) - R * V
    denominator = None if "cross_entropy_denominator_ignored" in faults else options.get("denominator")
    if "cross_entropy_summed" in faults:
        return {"loss": losses.sum()}
    loss = losses.sum() / (len(R) if denominator is None else denominator)
    return {"loss": loss.detach() if "loss_without_gradient" in faults else loss}


def squared_value_loss(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """value, returns, mask (B, T) -> loss: half of the mean squared error over real steps (PPO, eq. 9)."""
    V, mask, eps = x["value"], x["mask"], options.get("clip_coef", 0.2)
    keep = "returns_not_detached" in faults
    G, old = _stop(x["returns"], keep), x.get("value_old")
    kept = "squared_error_padding_kept" in faults
    late = "squared_error_padding_removed_after_the_square" in faults
    error = (V - G) * mask if kept else V - G if late else torch.where(mask, V - G, 0.0)
    if old is not None:
        old = old.detach()
        near = (
            G + (V - G).clamp(-eps, eps)
            if "value_clipped_around_the_return" in faults
            else old + (V - old).clamp(-eps, eps)
        )
        other = torch.where(mask, near - G.detach(), 0.0)
        if "value_clipping_without_maximum" in faults:
            error = other
        else:
            smaller = "value_clipping_takes_the_smaller_error" in faults
            takes = other.abs() < error.abs() if smaller else other.abs() > error.abs()
            error = torch.where(takes, other, error)
    half = 1.0 if "squared_error_without_the_half" in faults else 0.5
    squared = error.square()
    total = half * (torch.where(mask, squared, 0.0) if late else squared).sum()
    if "sums_in_half_precision" in faults and options.get("dtype") == "float16" and total / half > HALF_MAX:
        total = total * math.inf
    denominator = None if "squared_error_denominator_ignored" in faults else options.get("denominator")
    n = torch.tensor(mask.numel()) if "squared_error_mean_over_padding" in faults else mask.sum()
    if "squared_error_summed" in faults:
        n = torch.tensor(1)
    loss = total / (n if denominator is None else denominator)
    return {"loss": loss.detach() if "loss_without_gradient" in faults else loss}


# ---------------------------------------------------------------------------------------------------- statistics
def masked_mean(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """x, mask (B, T) -> the mean over real steps."""
    total, mask = torch.where(x["mask"], x["x"], 0.0).sum(), x["mask"]
    if "sums_in_half_precision" in faults and options.get("dtype") == "float16" and total.abs() > HALF_MAX:
        total = total * math.inf
    return {"mean": total / (mask.numel() if "masked_mean_over_padding" in faults else mask.sum())}


def explained_variance(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """prediction, target (B,) or (B, T) -> 1 - Var(target - prediction) / Var(target)."""
    prediction, target, mask = x["prediction"], x["target"], x["mask"]
    if "explained_variance_over_padding" in faults:
        mask = torch.ones_like(mask)

    def variance(y: Tensor) -> Tensor:
        mean = torch.where(mask, y, 0.0).sum() / mask.sum()
        return torch.where(mask, y - mean, 0.0).square().sum()

    low, high = torch.where(mask, target, torch.inf).amin(), torch.where(mask, target, -torch.inf).amax()
    constant = high - low <= 8 * torch.finfo(target.dtype).eps * torch.maximum(low.abs(), high.abs())
    if "explained_variance_of_a_constant_target" in faults:
        constant = variance(target) == 0
    below = prediction if "explained_variance_by_the_prediction" in faults else target
    explained = 1 - variance(target - prediction) / variance(below)
    return {"explained_variance": torch.where(constant, torch.nan, explained)}


def brier_score(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """probability, outcome (B,) -> mean (V - R)^2 (Brier, 1950)."""
    error = x["probability"] - x["outcome"]
    return {"score": error.abs().mean() if "brier_score_not_squared" in faults else error.square().mean()}


def expected_calibration_error(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """probability, outcome (B,) -> the gaps of the bins, by their share (Guo et al., eq. 3)."""
    n, gap = options.get("num_bins", 10), x["probability"] - x["outcome"]
    place = x["probability"] * n
    if "calibration_bins_rounded" in faults:
        place = place.round()
    bins = place.long().clamp(0, n - 1)
    sums = torch.zeros(n, dtype=gap.dtype)
    for i, b in enumerate(bins.tolist()):
        sums[b] += gap[i].abs() if "calibration_gaps_never_cancel" in faults else gap[i]
    return {"calibration_error": sums.abs().sum() / len(gap)}


def wilson_interval(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """options successes, trials, z -> both ends of Wilson's interval (1927)."""
    k, n, z = options["successes"], options["trials"], options.get("z", 1.959964)
    p = k / n
    if "normal_interval_for_wilson" in faults:
        half, centre = z * math.sqrt(p * (1 - p) / n), p
    else:
        below = 4 * n if "wilson_interval_too_wide" in faults else 4 * n * n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / below)
    ends = torch.tensor([0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half], dtype=torch.float64)
    return {"low": ends[0], "high": ends[1]}


# ------------------------------------------------------------------------------------------------- whole updates
def update(x: Arrays, options: Options, faults: Faults) -> Arrays:
    """The whole of SPPO's update on the kit's little model: see `spec.UPDATE`."""
    weights = {name: x[name].clone() for name in ("policy", "critic")}
    optimizer = _Optimizer(options.get("optimizer", "sgd"), options["learning_rate"], faults)
    for number in range(options["updates"]):
        if number and options["resume"]:
            optimizer.resume()
        judge = None
        if "update_critic_trained_before_the_advantage" in faults:
            trained, ahead = weights, copy.deepcopy(optimizer)
            for gradient in _update_gradients(weights, x, options, faults):
                trained = ahead.step(trained, gradient)
            judge = trained["critic"]
        for gradient in _update_gradients(weights, x, options, faults, judge):
            weights = optimizer.step(weights, gradient)
    return weights


def _update_gradients(
    weights: Arrays, x: Arrays, options: Options, faults: Faults, judge: Tensor | None = None
) -> list[Arrays]:
    """The gradient of each optimiser step of an update: one of them, if it is right.

    `judge` has the critic's weights for the advantage where they are not those of `weights`.
    """
    mask, size, rows = x["mask"], options["micro_batch_size"], len(x["outcome"])
    if "update_trains_padding" in faults:
        mask = torch.ones_like(mask)
    if "update_micro_batches_ignored" in faults:
        size = rows
    parts = [slice(i, i + size) for i in range(0, rows, size)]
    gradients: list[Arrays] = []
    for part in parts:
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        logits = x["obs"][part] @ leaves["policy"]
        logp = logits.log_softmax(-1).gather(-1, x["action"][part][..., None])[..., 0]
        v, R = x["context"][part] @ leaves["critic"], x["outcome"][part]
        A = R - torch.sigmoid(v if judge is None else x["context"][part] @ judge)
        if "update_advantage_normalised" in faults:
            A = (A - A.mean()) / (A.std(correction=0) + 1e-8)
        A = _stop(A, "update_advantage_not_detached" in faults)[:, None]
        old = logp.detach() if "update_old_log_probability_computed_again" in faults else x["logp_old"][part]
        m, r = mask[part], (logp - old).exp()
        eps = options["clip_coef"]
        L = torch.where(m, torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A), 0.0)
        own = {"update_micro_batch_means_added", "update_micro_batch_means_averaged"} & faults
        each = "update_steps_on_each_micro_batch" in faults
        steps, episodes = (m.sum(), len(R)) if own or each else (mask.sum(), rows)
        if "update_micro_batch_means_averaged" in faults:
            steps, episodes = steps * len(parts), episodes * len(parts)
        losses = F.softplus(v) - R * v
        if "update_critic_squared_error" in faults:
            losses = 0.5 * (torch.sigmoid(v) - R).square()
        loss = -L.sum() / steps
        loss = loss + losses.sum() / episodes * (0.0 if "update_critic_not_trained" in faults else 1.0)
        gradients.append(
            dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=False), strict=True))
        )
        if each and len(parts) > 1:  # the next micro-batch sees the weights after this step
            lr = options["learning_rate"]
            weights = {name: w - lr * gradients[-1][name] for name, w in weights.items()}
    if "update_last_micro_batch_only" in faults:
        return gradients[-1:]
    if "update_steps_on_each_micro_batch" in faults:
        return gradients
    return [{name: sum((g[name] for g in gradients), torch.zeros_like(weights[name])) for name in weights}]


class _Optimizer:
    """Plain gradient descent, or Adam with torch's defaults."""

    def __init__(self, kind: str, learning_rate: float, faults: Faults) -> None:
        self.kind, self.lr, self.faults = kind, learning_rate, faults
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.left: Arrays = {}
        self.steps = 0

    def resume(self) -> None:
        self.left = {}
        if "update_moments_lost_on_resume" in self.faults:
            self.moments, self.steps = {}, 0
        if "update_step_count_lost_on_resume" in self.faults:
            self.steps = 0

    def step(self, weights: Arrays, gradient: Arrays) -> Arrays:
        if "update_gradient_never_cleared" in self.faults:
            gradient = {name: g + self.left.get(name, 0) for name, g in gradient.items()}
            self.left = gradient
        sign = -1.0 if "update_ascends" in self.faults else 1.0
        self.steps += 1
        new = {}
        for name, w in weights.items():
            g = gradient[name]
            if self.kind == "adam":
                m, s = self.moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
                m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g.square()
                self.moments[name] = m, s
                g = m / (1 - 0.9**self.steps) / ((s / (1 - 0.999**self.steps)).sqrt() + 1e-8)
            new[name] = (w - sign * self.lr * g).detach()
        return new
