"""Properties of every function of sppo_control.core: the right number, or a refusal that names the argument.

The references are loops over float64 numbers. The numbers in padded places are NaN, infinite or enormous.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import Drawn, Properties, close, drawn, eps, refused

from sppo_control import core

PROPERTIES = Properties(core={"ClippedSurrogate": "a tuple of what clipped_surrogate returns"})
of = PROPERTIES.of


def array(x):
    return x.detach().double().numpy()


def sigmoid(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def test_every_public_function_has_a_property():
    PROPERTIES.check(core)


# ---------------------------------------------------------------------------------------------------- advantages
@of(core, "sequence_advantage")
@given(drawn(), st.sampled_from([1.0, 30.0, 1e4]))
def test_sequence_advantage(d, size):
    outcome, logit = d.outcomes(d.B), (size * d.numbers(d.B, size=1.0)).requires_grad_()
    found = core.sequence_advantage(outcome, logit)
    assert not found.requires_grad
    assert found.dtype == d.dtype
    expected = [r - sigmoid(v) for r, v in zip(array(outcome), array(logit), strict=True)]
    close(found, expected, 2 * eps(d.dtype))


@of(core, "generalized_advantage")
@given(drawn(), st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_generalized_advantage(d, gamma, lam):
    mask = d.mask()
    reward, value = d.numbers(d.B, d.T), d.numbers(d.B, d.T)
    advantage, returns = core.generalized_advantage(d.spoilt(reward, mask), d.spoilt(value, mask), mask, gamma, lam)
    r, v, m = array(reward), array(value), mask.numpy()
    expected, size = np.zeros(m.shape), np.zeros(m.shape)
    for b in range(d.B):
        real = [t for t in range(d.T) if m[b, t]]
        for i, t in enumerate(real):  # the sum of discounted TD errors, term by term
            for k in range(i, len(real)):
                after = v[b, real[k + 1]] if k + 1 < len(real) else 0.0
                expected[b, t] += (gamma * lam) ** (k - i) * (r[b, real[k]] + gamma * after - v[b, real[k]])
        size[b] = sum(abs(r[b, t]) + abs(v[b, t]) for t in real)
    error = 2 * d.T * eps(d.dtype) * size
    close(advantage, expected, error)
    close(returns, np.where(m, expected + v, 0.0), error)
    assert (advantage[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def groups_of(d):
    """(outcomes (B N,), N)"""
    size = 2 + d.T % 5
    return d.outcomes(d.B * size), size


@of(core, "group_relative_advantage")
@given(drawn(), st.booleans(), st.booleans())
def test_group_relative_advantage(d, normalize, nearly):
    outcome, size = groups_of(d)
    if nearly:  # equal up to rounding: one unit in the last place less in some places
        base, less = d.rng.choice([0.75, 1.0]), d.rng.integers(0, 2, len(outcome))
        outcome = torch.from_numpy(base * (1 - less * eps(d.dtype) / 2)).to(d.dtype)
    found = core.group_relative_advantage(outcome, size, normalize)
    for i in range(d.B):
        group = array(outcome)[i * size : (i + 1) * size]
        mean = sum(group) / size
        spread = max(group) - min(group)
        std = math.sqrt(sum((x - mean) ** 2 for x in group) / size)
        mine = found[i * size : (i + 1) * size]
        if spread <= eps(d.dtype):
            assert (mine == 0).all(), "a difference that rounding makes is no difference"
        elif not normalize:
            close(mine, group - mean, 4 * eps(d.dtype))
        elif spread > 50 * eps(d.dtype):
            close(mine, (group - mean) / std, 8 * eps(d.dtype) / std * (1 + spread / std))
        assert mine.abs().max() <= math.sqrt(size) + 0.1, "no advantage is larger than one success among N"


@of(core, "leave_one_out_advantage")
@given(drawn())
def test_leave_one_out_advantage(d):
    outcome, size = groups_of(d)
    r = array(outcome)
    expected = []
    for i in range(len(r)):
        first = i // size * size
        expected.append(r[i] - sum(r[j] for j in range(first, first + size) if j != i) / (size - 1))
    close(core.leave_one_out_advantage(outcome, size), expected, 8 * eps(d.dtype))


@of(core, "greedy_baseline_advantage")
@given(drawn())
def test_greedy_baseline_advantage(d):
    outcome, greedy = d.outcomes(d.B), d.outcomes(d.B)
    expected = [a - b for a, b in zip(array(outcome), array(greedy), strict=True)]
    close(core.greedy_baseline_advantage(outcome, greedy), expected, eps(d.dtype))


@of(core, "normalized_advantage")
@given(drawn(), st.booleans(), st.sampled_from(["std", "variance"]), st.sampled_from([1e-8, 1e-3, 1.0]))
def test_normalized_advantage(d, per_step, eps_in, epsilon):
    mask, unit = d.mask(), eps(d.dtype)
    size = 1e2 if d.dtype == torch.float16 else 1e6
    advantage = d.numbers(*((d.B, d.T) if per_step else (d.B,)), size=size)
    rows = mask if per_step else mask.any(1)
    found = core.normalized_advantage(d.spoilt(advantage, rows), mask, epsilon, eps_in)
    assert found.dtype == d.dtype
    assert (found[~rows] == 0).all()
    A, m = array(advantage), mask.numpy()
    steps = [A[b, t] if per_step else A[b] for b in range(d.B) for t in range(d.T) if m[b, t]]
    n, top = len(steps), max(map(abs, steps))
    spread = max(steps) - min(steps)
    if spread <= 7.9 * unit * top:
        assert (found == 0).all(), "equal up to rounding, or a single step"
    elif spread > 8.1 * unit * top:
        mean = sum(steps) / n
        variance = sum((x - mean) ** 2 for x in steps) / (n - 1)
        scale = math.sqrt(variance) + epsilon if eps_in == "std" else math.sqrt(variance + epsilon)
        rounding = 8 * n * eps(torch.promote_types(d.dtype, torch.float32)) * top / scale
        expected = np.where(rows.numpy(), (A - mean) / scale, 0.0)
        close(found, expected, rounding * (1 + np.abs(expected)) + 4 * unit * np.abs(expected))


@of(core, "beta_tracker")
@given(drawn(), st.integers(1, 5), st.sampled_from([1e-3, 0.06, 1.0]), st.floats(0, 1), st.floats(0, 1))
def test_beta_tracker(d, contexts, half, one, other):
    low, high = min(one, other), max(one, other)
    alpha, beta, kl = (8 * d.outcomes(contexts), 8 * d.outcomes(contexts), d.outcomes(contexts))
    outcome, context = d.outcomes(d.B), torch.from_numpy(d.rng.integers(contexts, size=d.B))
    given = [x.clone().requires_grad_() for x in (alpha, beta)]
    found = core.beta_tracker(*given, outcome, context, kl, half, low, high)
    a, b, r = array(alpha), array(beta), array(outcome)
    for i in range(contexts):
        mine = [x for x, c in zip(r, context.tolist(), strict=True) if c == i]
        if mine:
            rho = min(max(2 ** (-array(kl)[i] / half), low), high)
            a[i], b[i] = rho * a[i] + sum(mine), rho * b[i] + len(mine) - sum(mine)
    exponent = array(kl) / half  # the relative error of a power is that of its exponent
    error = 4 * eps(d.dtype) * (8 * (1 + np.minimum(exponent, 20)) + 2 * d.B)
    for x, expected in zip(found, (a, b), strict=True):
        assert not x.requires_grad
        assert (x >= 0).all()
        close(x, expected, error)


# -------------------------------------------------------------------------------------------------------- losses
def divisor(d, draw_it):
    """None, or a denominator of one of the kinds that are allowed, and its value."""
    value = float(d.rng.choice([0.5, 1.0, 7.0, 300.0]))
    return {
        "none": (None, None), "float": (value, value), "int": (7, 7.0), "tensor": (torch.tensor(value), value),
        "whole": (torch.tensor(7), 7.0), "one": (torch.tensor([value]), value),
    }[draw_it]  # fmt: skip


KINDS_OF_DIVISOR = st.sampled_from(["none", "float", "int", "tensor", "whole", "one"])


def surrogate_by_definition(log_ratio, advantage, mask, clip_coef, reduction, denominator, ratio="step"):
    """(loss, gradient (B, T), size of the summands for the tolerance, statistics)"""
    B, T = mask.shape
    steps = [(b, t) for b in range(B) for t in range(T) if mask[b, t]]
    lengths = [sum(mask[b]) for b in range(B)]
    of_steps = log_ratio
    if ratio == "sequence":
        log_ratio = np.repeat([[sum(log_ratio[b][mask[b]]) / max(lengths[b], 1)] for b in range(B)], T, axis=1)
    loss, size, gradient = 0.0, 0.0, np.zeros((B, T))
    for b, t in steps:
        if reduction == "token-mean":
            weight, by_default = 1.0, len(steps)
        elif reduction == "fixed":
            weight, by_default = 1.0, B * T
        else:
            weight, by_default = 1 / lengths[b], sum(n > 0 for n in lengths)
        weight /= by_default if denominator is None else denominator
        A, r = float(advantage[b, t] if advantage.ndim == 2 else advantage[b]), math.exp(min(log_ratio[b, t], 709.0))
        clipped = (A > 0 and r > 1 + clip_coef) or (A < 0 and r < 1 - clip_coef)
        if A == 0:
            continue
        term = (1 + clip_coef if A > 0 else 1 - clip_coef) * A if clipped else r * A
        loss -= weight * term
        size += weight * abs(term)
        if not clipped and ratio == "sequence":
            gradient[b, mask[b]] -= weight * r * A / lengths[b]
        elif not clipped:
            gradient[b, t] = -weight * r * A
    logs = [log_ratio[b, t] for b, t in steps]
    ratios = [math.exp(min(x, 709.0)) for x in logs]
    statistics = {
        "old_approx_kl": -sum(of_steps[s] for s in steps) / len(steps),
        "approx_kl": sum(math.expm1(min(of_steps[s], 709.0)) - of_steps[s] for s in steps) / len(steps),
        "clipfrac": sum(abs(r - 1) > clip_coef for r in ratios) / len(steps),
        "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip
    return loss, gradient, size, statistics


@of(core, "clipped_surrogate")
@given(
    drawn(), st.sampled_from([1e-4, 0.1, 1.0, 8.0, 200.0]), st.sampled_from([0.1, 0.2, 0.9, 3.0, 100.0]),
    st.sampled_from(["token-mean", "sequence-mean", "fixed"]), KINDS_OF_DIVISOR, st.booleans(),
)  # fmt: skip
def test_clipped_surrogate(d, spread, clip_coef, reduction, kind, per_step):
    mask, rng, unit = d.mask(), d.rng, eps(d.dtype)
    denominator, value = divisor(d, kind)
    logp_old = torch.from_numpy(-rng.exponential(2.0, (d.B, d.T))).to(d.dtype)
    logp = (logp_old.double() + spread * torch.from_numpy(rng.standard_normal((d.B, d.T)))).to(d.dtype)
    # At a kink the two sides have different gradients, and rounding decides the side. There the ratio is made 1.
    ratio = (logp.double() - logp_old.double()).exp()
    near = torch.zeros_like(mask)
    for edge in (1 - clip_coef, 1 + clip_coef):
        near |= (ratio - edge).abs() < 4 * unit * (1 + (logp - logp_old).abs().double()) * max(1.0, abs(edge))
    logp = torch.where(near, logp_old, logp)
    advantage = d.numbers(*((d.B, d.T) if per_step else (d.B,)), size=10.0)
    if d.seed % 2:  # half of them exactly 0: what overflows must then be clipped, and inf x 0 must not appear
        advantage = advantage.clamp(min=0)

    given_logp = d.spoilt(logp, mask).requires_grad_()
    given_advantage = d.spoilt(advantage, mask) if per_step else advantage
    found = core.clipped_surrogate(
        given_logp, d.spoilt(logp_old, mask), given_advantage, mask, clip_coef, reduction, denominator
    )
    found.loss.backward()
    log_ratio = array(logp - logp_old)
    loss, gradient, size, statistics = surrogate_by_definition(
        log_ratio, array(advantage), mask.numpy(), clip_coef, reduction, value
    )
    assert found.loss.shape == ()
    assert (given_logp.grad[~mask] == 0).all()
    assert found.num_steps == mask.sum()
    assert found.approx_kl >= 0 or found.approx_kl.isnan()
    if found.loss.isfinite():
        assert given_logp.grad.isfinite().all(), "the loss is finite, and its gradient is not"
    # A step's ratio has the relative error of its exponent, |log r| + 1 units in the last place.
    largest = min(np.abs(log_ratio[mask.numpy()]).max(), 709.0)
    relative = 8 * unit * (1 + largest)
    limit = math.log(torch.finfo(d.dtype).max) - 10
    if largest < limit:
        close(found.loss.detach(), loss, relative * size)
        tiny = torch.finfo(d.dtype).tiny * 1e4  # a product of small numbers may be rounded to 0
        close(given_logp.grad, gradient, relative * np.abs(gradient) + tiny)
        for name, number in statistics.items():
            size = largest if "kl" in name else np.exp(largest) if "ratio" in name else 0.0
            close(getattr(found, name), number, relative * abs(number) + 2 * min(unit, eps(torch.float32)) * size)
    else:
        close(found.clipfrac, statistics["clipfrac"])
        large = mask.numpy() & (log_ratio >= limit)
        if not (large & (array(advantage) < 0 if per_step else array(advantage)[:, None] < 0)).any():
            close(found.loss.detach(), loss, relative * size)  # a ratio that overflows is clipped where A >= 0


@of(core, "clipped_surrogate")
@given(
    drawn((torch.float32, torch.float64)), st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from([3e-4, 0.02, 0.2]),
    st.sampled_from(["token-mean", "sequence-mean", "fixed"]), KINDS_OF_DIVISOR,
)  # fmt: skip
def test_clipped_surrogate_of_one_ratio_per_episode(d, spread, clip_coef, reduction, kind):
    mask, unit = d.mask(), eps(d.dtype)
    denominator, value = divisor(d, kind)
    logp_old = torch.from_numpy(-d.rng.exponential(2.0, (d.B, d.T))).to(d.dtype)
    logp = (logp_old.double() + spread * torch.from_numpy(d.rng.standard_normal((d.B, d.T)))).to(d.dtype)
    advantage = d.numbers(d.B, size=10.0)
    log_ratio = array(logp) - array(logp_old)
    mean = [sum(row[m]) / max(sum(m), 1) for row, m in zip(log_ratio, mask.numpy(), strict=True)]
    assume(all(abs(abs(math.exp(x) - 1) - clip_coef) > 1e3 * unit for x in mean))  # at a kink rounding decides the side
    given_logp = d.spoilt(logp, mask).requires_grad_()
    found = core.clipped_surrogate(
        given_logp, d.spoilt(logp_old, mask), advantage, mask, clip_coef, reduction, denominator, "sequence"
    )
    found.loss.backward()
    loss, gradient, size, statistics = surrogate_by_definition(
        log_ratio, array(advantage), mask.numpy(), clip_coef, reduction, value, "sequence"
    )
    relative = 100 * unit
    close(found.loss.detach(), loss, relative * size)
    close(given_logp.grad, gradient, relative * np.abs(gradient))
    for name, number in statistics.items():
        close(getattr(found, name), number, relative * (1 + abs(number)))


@of(core, "bernoulli_value_loss")
@given(drawn(), st.sampled_from([1.0, 40.0, 1e4]), KINDS_OF_DIVISOR)
def test_bernoulli_value_loss(d, size, kind):
    outcome, logit = d.outcomes(d.B), (size * d.numbers(d.B, size=1.0)).requires_grad_()
    denominator, value = divisor(d, kind)
    found = core.bernoulli_value_loss(logit, outcome, denominator)
    found.backward()
    r, v = array(outcome), array(logit)
    # - R log V - (1 - R) log(1 - V), with log V = -log(1 + exp(-v)) written so that nothing overflows
    terms = [
        r[i] * (max(-v[i], 0) + math.log1p(math.exp(-abs(v[i]))))
        + (1 - r[i]) * (max(v[i], 0) + math.log1p(math.exp(-abs(v[i]))))
        for i in range(d.B)
    ]
    n = d.B if value is None else value
    close(found.detach(), sum(terms) / n, 4 * eps(d.dtype) * sum(1 + abs(x) for x in v) / n)
    assert not found.isfinite() or logit.grad.isfinite().all()
    close(logit.grad, [(sigmoid(x) - y) / n for x, y in zip(v, r, strict=True)], 4 * eps(d.dtype) / n)


@of(core, "squared_value_loss")
@given(drawn(), KINDS_OF_DIVISOR, st.sampled_from([None, 1e-3, 0.2, 5.0]))
def test_squared_value_loss(d, kind, clip_coef):
    mask = d.mask()
    size = 3e4 if d.dtype == torch.float16 else None  # whose squares are beyond float16; the loss may be, too
    value, returns = d.numbers(d.B, d.T, size=size), d.numbers(d.B, d.T, size=size)
    denominator, number = divisor(d, kind)
    given_value = d.spoilt(value, mask).requires_grad_()
    old = d.numbers(d.B, d.T, size=size)
    clip = {} if clip_coef is None else {"value_old": d.spoilt(old, mask), "clip_coef": clip_coef}
    found = core.squared_value_loss(given_value, d.spoilt(returns, mask), mask, denominator, **clip)
    found.backward()
    v, g, m = array(value), array(returns), mask.numpy()
    if clip_coef is not None:
        clipped = array(old) + (v - array(old)).clip(-clip_coef, clip_coef)
        counts = np.abs(clipped - g) > np.abs(v - g)
        # the error that counts, and whether it moves with V; where both are nearly equal, rounding decides
        rounding = 8 * eps(d.dtype) * (np.abs(v) + np.abs(g) + np.abs(array(old)) + clip_coef)
        moved = np.abs(v - array(old)) > clip_coef
        near = (np.abs(np.abs(clipped - g) - np.abs(v - g)) <= rounding) & (moved | (np.abs(clipped - v) > 0))
        near |= np.abs(np.abs(v - array(old)) - clip_coef) <= rounding
        assume(not (near & m).any())
        n = m.sum() if number is None else number
        worst = np.where(counts, clipped - g, v - g)
        loss = (0.5 * worst**2)[m].sum() / n
        slack = (np.abs(worst) * rounding)[m].sum() / n
        close(found.detach(), loss, 8 * eps(d.dtype) * loss + 2 * slack)
        expected = np.where(m & ~(counts & moved), worst, 0.0) / n
        close(given_value.grad, expected, 4 * rounding / n + 1e-6 * (n > 100))
        assert (given_value.grad[~mask] == 0).all()
        return
    n = m.sum() if number is None else number
    steps = [(b, t) for b in range(d.B) for t in range(d.T) if m[b, t]]
    loss = sum(0.5 * (v[s] - g[s]) ** 2 for s in steps) / n
    assert found.shape == ()
    close(found.detach(), loss, 8 * eps(d.dtype) * loss)
    assert not found.isfinite() or given_value.grad.isfinite().all()
    close(given_value.grad, np.where(m, v - g, 0.0) / n, 4 * eps(d.dtype) * np.abs(v - g) / n + 1e-6 * (n > 100))
    assert (given_value.grad[~mask] == 0).all()


# ---------------------------------------------------------------------------------------------------- statistics
@of(core, "masked_mean")
@given(drawn())
def test_masked_mean(d):
    mask, x = d.mask(), d.numbers(d.B, d.T)
    given_x = d.spoilt(x, mask).requires_grad_()
    found = core.masked_mean(given_x, mask)
    found.backward()
    real = [array(x)[b, t] for b in range(d.B) for t in range(d.T) if mask[b, t]]
    close(found.detach(), sum(real) / len(real), 8 * eps(d.dtype, torch.float32) * sum(map(abs, real)) / len(real))
    close(given_x.grad, np.where(mask, 1 / len(real), 0.0))


@of(core, "explained_variance")
@given(drawn(), st.sampled_from(["none", "vector", "matrix"]), st.booleans())
def test_explained_variance(d, shape, good):
    mask = d.mask() if shape == "matrix" else d.mask()[:, 0] | (torch.arange(d.B) == 0)
    target = d.numbers(*mask.shape)
    prediction = (target.double() * (1 + 0.1 * d.rng.standard_normal())).to(d.dtype) if good else d.numbers(*mask.shape)
    if shape == "none":
        mask = torch.ones_like(mask)
        found = core.explained_variance(prediction, target)
    else:
        found = core.explained_variance(d.spoilt(prediction, mask), d.spoilt(target, mask), mask)
    y, p = array(target)[mask.numpy()], array(prediction)[mask.numpy()]
    unit, size = eps(d.dtype), max(np.abs(y).max(), np.abs(p).max())
    spread = max(y) - min(y)
    if spread <= 4 * unit * np.abs(y).max():
        assert found.isnan(), "a target that is constant up to rounding explains nothing"
    elif spread > 16 * unit * np.abs(y).max():
        mean, mean_error = sum(y) / len(y), sum(y - p) / len(y)
        variance = sum((x - mean) ** 2 for x in y)
        share = sum((x - mean_error) ** 2 for x in y - p) / variance
        rounding = 4 * unit * size * math.sqrt(len(y) / variance)
        close(found, 1 - share, 8 * unit * (1 + share) + 2 * rounding * (math.sqrt(share) + rounding) * (1 + rounding))


@of(core, "brier_score")
@given(drawn())
def test_brier_score(d):
    probability, outcome = d.outcomes(d.B), d.outcomes(d.B)
    expected = sum((v - r) ** 2 for v, r in zip(array(probability), array(outcome), strict=True)) / d.B
    close(core.brier_score(probability, outcome), expected, 8 * eps(d.dtype))


@of(core, "expected_calibration_error")
@given(drawn(), st.integers(1, 20), st.booleans(), st.sampled_from([1, 1, 1, 500]))
def test_expected_calibration_error(d, num_bins, outside, times):
    probability = d.outcomes(d.B)
    if outside:
        probability[0] = float(d.rng.choice([-1e4, -0.5, 1.5, 1e4]))
    scaled = array(probability) * num_bins
    # At the edge of two bins, rounding decides.
    assume((np.abs(scaled - scaled.round()) > 4 * eps(d.dtype) * num_bins).all() or d.kind == "plain")
    probability, outcome = probability.repeat(times), d.outcomes(d.B).repeat(times)
    gaps = [0.0] * num_bins
    for v, r in zip(array(probability), array(outcome), strict=True):
        gaps[min(max(math.floor(v * num_bins), 0), num_bins - 1)] += v - r
    expected = sum(map(abs, gaps)) / len(outcome)
    size = 1 + np.abs(array(probability)).mean()
    error = 4 * eps(d.dtype) * size + 2 * times * d.B * eps(torch.float32) * size
    close(core.expected_calibration_error(probability, outcome, num_bins), expected, error)


@of(core, "wilson_interval")
@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(1e-3, 50))
def test_wilson_interval(counts, z):
    successes, trials = counts
    low, high = core.wilson_interval(successes, trials, z)
    assert 0 <= low <= successes / trials + 1e-15
    assert successes / trials - 1e-15 <= high <= 1
    for end in (low, high):  # both solve |p_hat - p| = z sqrt(p (1 - p) / n), squared so that it holds at 0 and 1
        distance, most = (successes / trials - end) ** 2, z * z * end * (1 - end) / trials
        assert distance == pytest.approx(most, rel=1e-6, abs=1e-13)
    assert (low == 0) == (successes == 0)
    assert (high == 1) == (successes == trials)


# ------------------------------------------------------------------------------------------------------ bad values
def calls(d):
    """name -> (good arguments, which of them are outcomes)"""
    vectors = [d.outcomes(d.B) for _ in range(2)]
    matrices = [d.numbers(d.B, d.T, size=1.0) for _ in range(2)]
    mask, group = d.mask(), d.outcomes(2 * d.B)
    v2 = dict(zip(("outcome", "value_logit"), vectors, strict=True))
    return {
        "sequence_advantage": v2,
        "generalized_advantage": {
            "reward": matrices[0], "value": matrices[1], "mask": mask, "gamma": 0.9, "gae_lambda": 0.8,
        },
        "group_relative_advantage": {"outcome": group, "group_size": 2},
        "leave_one_out_advantage": {"outcome": group, "group_size": 2},
        "greedy_baseline_advantage": {"outcome": vectors[0], "greedy_outcome": vectors[1]},
        "normalized_advantage": {"advantage": vectors[0], "mask": mask, "eps": 1e-8, "eps_in": "std"},
        "beta_tracker": {
            "alpha": vectors[0], "beta": vectors[1], "outcome": vectors[0], "kl": vectors[1],
            "context": torch.zeros(d.B, dtype=torch.int64), "kl_half": 0.06, "rho_min": 0.5, "rho_max": 0.9,
        },
        "clipped_surrogate": {
            "logp": matrices[0], "logp_old": matrices[1], "advantage": vectors[0], "mask": mask, "clip_coef": 0.2,
            "reduction": "token-mean", "denominator": 3, "ratio": "step",
        },
        "bernoulli_value_loss": {**v2, "denominator": 3},
        "squared_value_loss": {
            "value": matrices[0], "returns": matrices[1], "mask": mask, "denominator": 3, "clip_coef": 0.2,
        },
        "masked_mean": {"x": matrices[0], "mask": mask},
        "explained_variance": {"prediction": matrices[0], "target": matrices[1], "mask": mask},
        "brier_score": {"probability": vectors[0], "outcome": vectors[1]},
        "expected_calibration_error": {"probability": vectors[0], "outcome": vectors[1], "num_bins": 5},
        "wilson_interval": {"successes": 1, "trials": 2, "z": 1.0},
    }  # fmt: skip


NOT_TENSORS = [[0.5], 0.5, "x", None, np.zeros(3)]
BAD = {
    "gamma": [-0.1, 1.1, math.nan, math.inf, "x", None],
    "gae_lambda": [-0.1, 1.1, math.nan, -math.inf, "x", None],
    "clip_coef": [0, -0.2, math.nan, math.inf, "x", None],
    "reduction": ["mean", "", None, 3, ["token-mean"]],
    "ratio": ["token", "", None, 3, ["step"]],
    "eps": [0, -1e-8, math.nan, math.inf, "x", None],
    "eps_in": ["mean", "", None, 3, ["std"]],
    "kl_half": [0, -1, math.nan, math.inf, "x", None],
    "rho_min": [-0.1, 1.1, math.nan, "x", None],
    "rho_max": [-0.1, 0.4, 1.1, math.nan, "x", None],
    "denominator": [
        0, -1, math.nan, math.inf, "x", torch.tensor(0), torch.tensor(-1.0), torch.tensor(math.nan),
        torch.tensor(math.inf), torch.tensor([1, 2]), torch.tensor([]), torch.tensor(1j),
    ],
    "group_size": [0, 1, -2, 10**6, 2.0, math.nan, "x", None],
    "num_bins": [0, -1, 2.5, math.nan, "x", None],
    "successes": [-1, 3, math.nan, "x", None],
    "trials": [0, -5, math.nan, "x", None],
    "z": [0, -1.0, math.nan, math.inf, 1e200, "x", None],
}  # fmt: skip


def broken(d, name, x):
    """Impossible values in place of a good argument `x`."""
    if name in BAD:
        return BAD[name]
    if name == "context":
        return [*NOT_TENSORS, x - 1, x + d.B, x.int(), x.float(), x.bool(), torch.cat([x, x[:1]]), x[:0], x[0]]
    bad = [*NOT_TENSORS, x[:0], x[0, 0] if x.ndim == 2 else x[0], torch.cat([x, x[:1]]), x.to(torch.complex64)]
    bad += [x.long(), x.unsqueeze(0), x.unsqueeze(-1)]
    if name == "mask":
        return [*bad, x.float(), x & False, x.unsqueeze(0)]
    bad += [x.bool()]
    if name == "advantage":  # it may be (B,) and (B, T)
        bad = [
            y
            for y in bad
            if not isinstance(y, torch.Tensor) or y.shape not in ((d.B,), (d.B, d.T)) or y.dtype != x.dtype
        ]
    if name in ("outcome", "greedy_outcome"):
        for number in (math.nan, math.inf, -0.25, 1.5):
            y = x.clone()
            y[d.rng.integers(len(y))] = number
            bad.append(y)
    return bad


FUNCTIONS = sorted(calls(Drawn(1, 1, 0, torch.float32, "none", "plain")))


@pytest.mark.parametrize("function", FUNCTIONS)
@given(drawn(), st.integers(0, 10**6))
def test_bad_values_are_refused_by_name(function, d, number):
    arguments = calls(d)[function]
    getattr(core, function)(**arguments)  # the control: nothing else is wrong
    cases = [(name, value) for name, x in arguments.items() for value in broken(d, name, x)]
    if function == "explained_variance":  # the only mask that may be left out
        cases = [(name, value) for name, value in cases if name != "mask" or value is not None]
    name, value = cases[number % len(cases)]
    others = {"outcome": "group_size"} if "group_size" in arguments else {}  # their number is wrong
    refused(lambda: getattr(core, function)(**{**arguments, name: value}), name, others.get(name, name))


@of(core, "require")
@given(
    st.booleans(), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), st.sampled_from([-0.5, 1.5, math.nan])
)
def test_require_names_the_first_number_that_is_outside(condition, good, bad):
    offender = torch.tensor([*good, bad, bad + 1])
    if condition:
        core.require(torch.tensor(condition), "outcome is {}", offender)
    else:
        with pytest.raises(ValueError, match=f"outcome is {offender[len(good)].item()} at index {len(good)}$"):
            core.require(torch.tensor(condition), "outcome is {}", offender)
