"""The mathematics of sppo_control.core: identities, truth tables, finite differences, padding, micro-batches, refusals."""

import itertools
import math

import pytest
import torch

from sppo_control import core

F64 = torch.float64


def random_batch(B=6, T=5, seed=0, spread=0.05):
    """Ratios well inside the clip range, so that every function is smooth around them; at least one step per episode."""
    g = torch.Generator().manual_seed(seed)
    logp_old = -torch.rand(B, T, generator=g, dtype=F64) - 0.1
    logp = logp_old + spread * torch.randn(B, T, generator=g, dtype=F64)
    lengths = torch.randint(1, T + 1, (B,), generator=g)
    mask = torch.arange(T) < lengths[:, None]
    outcome = torch.randint(0, 2, (B,), generator=g).to(F64)
    logit = torch.randn(B, generator=g, dtype=F64)
    return logp, logp_old, mask, outcome, logit


# ---------------------------------------------------------------------------------------------------- advantages
def test_sequence_advantage_is_outcome_minus_probability_and_detached():
    logit = torch.tensor([0.0, math.log(3), -math.log(3)], dtype=F64, requires_grad=True)
    advantage = core.sequence_advantage(torch.tensor([1.0, 1.0, 0.0], dtype=F64), logit)
    torch.testing.assert_close(advantage, torch.tensor([0.5, 0.25, -0.25], dtype=F64), rtol=0, atol=1e-15)
    assert not advantage.requires_grad


def test_value_loss_gradient_is_minus_the_advantage():
    """d BCE / d logit = V - R = -A, episode by episode."""
    _, _, _, outcome, logit = random_batch(B=9)
    logit.requires_grad_()
    core.bernoulli_value_loss(logit, outcome, denominator=1).backward()
    torch.testing.assert_close(logit.grad, -core.sequence_advantage(outcome, logit), rtol=1e-14, atol=1e-15)


def test_value_loss_is_the_negative_log_likelihood():
    logit, outcome = torch.tensor([0.3, -1.2], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    v = torch.sigmoid(logit)
    expected = -(v[0].log() + (1 - v[1]).log()) / 2
    torch.testing.assert_close(core.bernoulli_value_loss(logit, outcome), expected)


def gae_by_definition(reward, value, lengths, gamma, lam):
    """sum_l (gamma lambda)^l delta_{t+l}, term by term, for right-padded rows."""
    advantage = torch.zeros_like(reward)
    for b, n in enumerate(lengths):
        for t in range(n):
            for k in range(t, n):
                after = value[b, k + 1] if k + 1 < n else 0.0
                advantage[b, t] += (gamma * lam) ** (k - t) * (reward[b, k] + gamma * after - value[b, k])
    return advantage


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (1.0, 0.5), (0.0, 0.7)])
def test_generalized_advantage_equals_its_definition(gamma, lam):
    g = torch.Generator().manual_seed(1)
    reward, value = torch.randn(2, 4, 7, generator=g, dtype=F64)
    lengths = torch.tensor([7, 1, 4, 6])
    mask = torch.arange(7) < lengths[:, None]
    advantage, returns = core.generalized_advantage(reward, value, mask, gamma, lam)
    expected = gae_by_definition(reward, value, lengths.tolist(), gamma, lam)
    torch.testing.assert_close(advantage, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, torch.where(mask, expected + value, 0.0), rtol=1e-12, atol=1e-12)


def test_undiscounted_advantage_is_outcome_minus_value_without_rounding():
    g = torch.Generator().manual_seed(2)
    value, outcome = torch.randn(8, 50, generator=g), torch.randint(0, 2, (8,), generator=g).float()
    mask = torch.arange(50) < torch.randint(1, 51, (8,), generator=g)[:, None]
    last = mask.sum(1) - 1
    reward = torch.zeros(8, 50)
    reward[torch.arange(8), last] = outcome
    advantage, returns = core.generalized_advantage(reward, value, mask)
    assert torch.equal(advantage[mask], (outcome[:, None] - value)[mask])
    assert torch.equal(returns[mask], outcome[:, None].expand(8, 50)[mask])


def test_sppo_and_ppo_agree_bitwise_at_horizon_one():
    """With one step per episode V(s_0) is V(s_t), and the two algorithms are one."""
    g = torch.Generator().manual_seed(3)
    outcome, logit = torch.randint(0, 2, (64,), generator=g).float(), torch.randn(64, generator=g)
    logp_old = -torch.rand(64, 1, generator=g)
    mask = torch.ones(64, 1, dtype=torch.bool)
    results = []
    for token_level in (False, True):
        logp = (logp_old + 0.3 * torch.randn(64, 1, generator=torch.Generator().manual_seed(4))).requires_grad_()
        if token_level:
            advantage, _ = core.generalized_advantage(outcome[:, None], torch.sigmoid(logit)[:, None], mask)
        else:
            advantage = core.sequence_advantage(outcome, logit)
        loss = core.clipped_surrogate(logp, logp_old, advantage, mask).loss
        loss.backward()
        results.append((loss.detach(), logp.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("successes", range(1, 8))
def test_group_advantage_of_bernoulli_outcomes_has_the_closed_form(successes):
    """sqrt((1 - p) / p) and -sqrt(p / (1 - p)): SPPO, appendix A; only true for the population's deviation."""
    outcome = (torch.arange(8) < successes).to(F64)
    p = successes / 8
    expected = torch.where(outcome > 0, math.sqrt((1 - p) / p), -math.sqrt(p / (1 - p)))
    torch.testing.assert_close(core.group_relative_advantage(outcome, 8), expected.to(F64))
    torch.testing.assert_close(core.group_relative_advantage(outcome, 8, normalize_std=False), outcome - p)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_group_of_equal_outcomes_gives_exactly_zero(value, normalize):
    """0.1 and 1/3 have a mean that rounds to another number."""
    outcome = torch.full((24,), value)
    outcome[8:16] = torch.tensor([0.0, 1.0]).repeat(4)
    advantage = core.group_relative_advantage(outcome, 8, normalize)
    assert (advantage[:8] == 0).all()
    assert (advantage[16:] == 0).all()
    assert advantage[8:16].abs().min() > 0.4


def test_groups_are_consecutive_rows():
    outcome = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=F64)
    torch.testing.assert_close(
        core.leave_one_out_advantage(outcome, 3), torch.tensor([1.0, -0.5, -0.5, -1.0, 0.5, 0.5], dtype=F64)
    )


@pytest.mark.parametrize("k", [2, 3, 8])
def test_leave_one_out_is_a_rescaled_deviation_from_the_mean(k):
    outcome = torch.rand(4 * k, generator=torch.Generator().manual_seed(5), dtype=F64)
    groups = outcome.view(4, k)
    expected = (k / (k - 1) * (groups - groups.mean(1, keepdim=True))).reshape(-1)
    torch.testing.assert_close(core.leave_one_out_advantage(outcome, k), expected)


def test_greedy_baseline():
    advantage = core.greedy_baseline_advantage(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert advantage.tolist() == [0.0, 1.0, -1.0, 0.0]


# ------------------------------------------------------------------------------------------------------ surrogate
def test_normalized_advantage_by_hand():
    """Three real steps with A = 1, 2, 6: mean 3, deviations -2, -1, 3, variance 14 / 2 = 7."""
    mask = torch.tensor([[True, True], [True, False]])
    advantage = torch.tensor([[1.0, 2.0], [6.0, 99.0]], dtype=F64)
    found = core.normalized_advantage(advantage, mask)
    expected = torch.tensor([[-2.0, -1.0], [3.0, 0.0]], dtype=F64) / math.sqrt(7)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_an_episode_counts_once_for_each_of_its_steps():
    """Success in one step and failure in three: the mean is 1/4, not 1/2, as if each step had the episode's A."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    outcome = torch.tensor([1.0, 0.0], dtype=F64)
    found = core.normalized_advantage(outcome, mask)
    torch.testing.assert_close(found, torch.tensor([1.5, -0.5], dtype=F64), rtol=1e-7, atol=0)  # std of 1, 0, 0, 0: 1/2
    each_step = core.normalized_advantage(outcome[:, None].expand(2, 3), mask)
    torch.testing.assert_close(torch.where(mask, found[:, None], 0.0), each_step, rtol=1e-14, atol=0)


def test_where_epsilon_is_added_matters_where_advantages_hardly_vary():
    """A critic that is good at an all-fail batch, A = -V = -1e-6 or -3e-6: CleanRL scales the noise to size one, and verl
    divides it by 1e-4."""
    A, mask = torch.tensor([-1e-6, -3e-6], dtype=F64), torch.ones(2, 1, dtype=torch.bool)
    assert core.normalized_advantage(A, mask)[0].item() == pytest.approx(1 / math.sqrt(2), rel=0.01)
    assert core.normalized_advantage(A, mask, eps_in="variance")[0].item() == pytest.approx(1e-6 / 1e-4, rel=0.01)


@pytest.mark.parametrize("eps_in", ["std", "variance"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_equal_advantages_and_a_single_step_give_exactly_zero(dtype, eps_in):
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[3, 7] = True
    advantage = torch.full((40, 50), -0.1, dtype=dtype)
    assert torch.equal(core.normalized_advantage(advantage, mask, eps_in=eps_in), torch.zeros_like(advantage))
    assert torch.equal(core.normalized_advantage(advantage, ~mask, eps_in=eps_in), torch.zeros_like(advantage))
    assert (core.normalized_advantage(advantage[:, 0], ~mask, eps_in=eps_in) == 0).all()


def test_reinforce_plus_plus_needs_no_baseline_of_its_own():
    """A positive factor and a shift per batch do not change normalised advantages. So R, R - the mean of the others, and
    N / (N - 1) times R - the group's mean are one after it."""
    _, _, mask, outcome, _ = random_batch(B=8, seed=3)
    plain = core.normalized_advantage(outcome, mask, eps_in="variance")
    others = core.leave_one_out_advantage(outcome, 8)
    torch.testing.assert_close(core.normalized_advantage(others, mask, eps_in="variance"), plain, rtol=1e-6, atol=1e-6)
    centred = core.group_relative_advantage(outcome, 4, normalize_std=False)
    torch.testing.assert_close(
        core.normalized_advantage(core.leave_one_out_advantage(outcome, 4), mask, eps_in="variance"),
        core.normalized_advantage(centred, mask, eps_in="variance"), rtol=1e-6, atol=1e-6,
    )  # fmt: skip


def test_beta_tracker_by_hand():
    """Context 0: three successes at rho = 1/2. Context 1 is not visited. Context 2: rho is clipped at 0.9."""
    alpha, beta = torch.tensor([4.0, 1.0, 2.0]), torch.tensor([4.0, 3.0, 6.0])
    new = core.beta_tracker(
        alpha, beta, torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 2, 0, 0]),
        kl=torch.tensor([0.06, 5.0, 0.0]), kl_half=0.06, rho_min=0.25, rho_max=0.9,
    )  # fmt: skip
    torch.testing.assert_close(new[0], torch.tensor([2.0 + 3, 1.0, 1.8]))
    torch.testing.assert_close(new[1], torch.tensor([2.0 + 0, 3.0, 5.4 + 1]))


def test_a_tracker_of_constant_outcomes_remembers_so_many_visits():
    alpha, beta, R = torch.zeros(1, dtype=F64), torch.full((1,), 8.0, dtype=F64), torch.ones(1, dtype=F64)
    for _ in range(500):
        alpha, beta = core.beta_tracker(alpha, beta, R, torch.tensor([0]), torch.tensor([9.0], dtype=F64))
    assert alpha.item() == pytest.approx(1 / (1 - 0.875))
    assert beta.item() == pytest.approx(0.0, abs=1e-12)


def test_the_sequences_ratio_by_hand():
    """Two steps with ratios 1.44 and 1: their geometric mean is 1.2. PPO clips one of them; GSPO, at 0.3, neither."""
    logp = torch.tensor([[math.log(1.44), 0.0]], dtype=F64, requires_grad=True)
    old, mask, A = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=torch.bool), torch.tensor([1.0], dtype=F64)
    found = core.clipped_surrogate(logp, old, A, mask, 0.3, "sequence-mean", ratio="sequence")
    found.loss.backward()
    assert found.loss.item() == pytest.approx(-1.2)
    assert logp.grad.tolist()[0] == pytest.approx([-0.6, -0.6])  # -s A / T at each step
    assert (found.ratio_min.item(), found.ratio_max.item()) == pytest.approx((1.2, 1.2))
    assert found.clipfrac == 0
    steps = core.clipped_surrogate(logp.detach(), old, A, mask, 0.3, "sequence-mean")
    assert steps.clipfrac == 0.5
    assert found.approx_kl.item() == pytest.approx(steps.approx_kl.item()), "it estimates the policy's KL all the same"
    assert found.old_approx_kl.item() == pytest.approx(steps.old_approx_kl.item())
    clipped = core.clipped_surrogate(logp, old, A, mask, 0.1, "sequence-mean", ratio="sequence")
    logp.grad = None
    clipped.loss.backward()
    assert clipped.loss.item() == pytest.approx(-1.1)
    assert logp.grad.tolist() == [[0.0, 0.0]], "an episode is clipped as a whole"
    assert clipped.clipfrac == 1


def test_both_ratios_have_one_gradient_before_the_first_step():
    """At ratio 1 the gradient of an episode is that of its steps, whatever the ratio is of."""
    _, logp_old, mask, outcome, logit = random_batch()
    advantage, gradients = core.sequence_advantage(outcome, logit), []
    for ratio in ("step", "sequence"):
        logp = logp_old.clone().requires_grad_()
        core.clipped_surrogate(logp, logp_old, advantage, mask, ratio=ratio).loss.backward()
        gradients.append(logp.grad)
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("value", "old", "loss", "gradient"),
    [
        (0.5, 0.4, 0.5 * 0.5**2, -0.5),  # G = 1: inside the range, so as without clipping
        (0.8, 0.4, 0.5 * 0.4**2, 0.0),  # it has moved by more than 0.2 towards G: the error of 0.6 counts, a constant
        (0.0, 0.4, 0.5 * 1.0**2, -1.0),  # it has moved away from G: the larger error is its own, which pulls it back
    ],
)
def test_truth_table_of_the_clipped_value_loss(value, old, loss, gradient):
    v, mask = torch.tensor([[value]], dtype=F64, requires_grad=True), torch.ones(1, 1, dtype=torch.bool)
    G, V_old = torch.ones(1, 1, dtype=F64), torch.tensor([[old]], dtype=F64, requires_grad=True)
    found = core.squared_value_loss(v, G, mask, value_old=V_old, clip_coef=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert v.grad.item() == pytest.approx(gradient)
    assert V_old.grad is None


def test_gradient_at_ratio_one_is_reinforce_with_baseline():
    _, logp_old, mask, outcome, logit = random_batch()
    advantage = core.sequence_advantage(outcome, logit)
    logp = logp_old.clone().requires_grad_()
    core.clipped_surrogate(logp, logp_old, advantage, mask, denominator=1).loss.backward()
    reinforce = logp_old.clone().requires_grad_()
    (-(advantage[:, None] * reinforce)[mask].sum()).backward()
    torch.testing.assert_close(logp.grad, reinforce.grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "has_gradient"),
    [
        (+1.0, 0.7, 0.7, True),  # a good action got rarer: pull it back
        (+1.0, 1.1, 1.1, True),
        (+1.0, 1.3, 1.2, False),  # a good action is already 20 % likelier: enough
        (-1.0, 0.7, -0.8, False),  # a bad action is already 20 % rarer: enough
        (-1.0, 0.9, -0.9, True),
        (-1.0, 1.3, -1.3, True),  # a bad action got likelier: push it down
    ],
)
def test_truth_table_of_the_clip(advantage, ratio, value, has_gradient):
    logp = torch.full((1, 1), math.log(ratio), dtype=F64, requires_grad=True)
    result = core.clipped_surrogate(
        logp, torch.zeros(1, 1, dtype=F64), torch.tensor([advantage], dtype=F64), torch.ones(1, 1, dtype=torch.bool)
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-value, abs=1e-12)
    assert logp.grad.item() == pytest.approx(-advantage * ratio if has_gradient else 0.0, abs=1e-12)
    assert result.clipfrac.item() == float(abs(ratio - 1) > 0.2)


@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
def test_reductions(reduction):
    logp, logp_old, mask, outcome, logit = random_batch()
    advantage = core.sequence_advantage(outcome, logit)
    objective = (logp - logp_old).exp() * advantage[:, None]  # nothing is clipped in this batch
    rows = [objective[b][mask[b]] for b in range(len(mask))]
    expected = {
        "token-mean": torch.cat(rows).mean(),
        "sequence-mean": torch.stack([row.mean() for row in rows]).mean(),
        "fixed": torch.cat(rows).sum() / mask.numel(),
    }
    loss = core.clipped_surrogate(logp, logp_old, advantage, mask, reduction=reduction).loss
    torch.testing.assert_close(loss, -expected[reduction])


@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
@pytest.mark.parametrize("per_step", [False, True])
def test_surrogate_gradient_by_finite_differences(reduction, per_step):
    """Ratios up to 2, but none within 0.01 of a kink."""
    logp, logp_old, mask, outcome, logit = random_batch(spread=0.4)
    ratio = (logp - logp_old).exp()
    near = ((ratio - 0.8).abs() < 0.01) | ((ratio - 1.2).abs() < 0.01)
    logp = torch.where(near, logp_old, logp).requires_grad_()
    advantage = core.sequence_advantage(outcome, logit)
    if per_step:
        advantage = advantage[:, None] * torch.linspace(0.5, 2, mask.shape[1], dtype=F64)
    assert torch.autograd.gradcheck(
        lambda x: core.clipped_surrogate(x, logp_old, advantage, mask, reduction=reduction).loss, logp
    )


def test_value_loss_gradients_by_finite_differences():
    _, _, mask, outcome, logit = random_batch()
    value = torch.randn(mask.shape, generator=torch.Generator().manual_seed(6), dtype=F64, requires_grad=True)
    returns = torch.randn(mask.shape, generator=torch.Generator().manual_seed(7), dtype=F64)
    assert torch.autograd.gradcheck(lambda x: core.squared_value_loss(x, returns, mask), value)
    assert torch.autograd.gradcheck(lambda x: core.bernoulli_value_loss(x, outcome), logit.requires_grad_())
    core.squared_value_loss(value, returns, mask, denominator=1).backward()
    torch.testing.assert_close(value.grad, torch.where(mask, value - returns, 0.0).detach())


def test_advantage_and_old_log_probabilities_are_constants():
    logp, logp_old, mask, outcome, logit = random_batch()
    advantage = (outcome - torch.sigmoid(logit)).requires_grad_()
    logp_old.requires_grad_()
    logp.requires_grad_()
    core.clipped_surrogate(logp, logp_old, advantage, mask).loss.backward()
    assert logp.grad is not None
    assert advantage.grad is None
    assert logp_old.grad is None


def test_statistics_are_means_over_real_steps():
    logp, logp_old, mask, outcome, logit = random_batch(spread=0.4)
    result = core.clipped_surrogate(logp, logp_old, core.sequence_advantage(outcome, logit), mask)
    ratio = (logp - logp_old).exp()[mask]
    torch.testing.assert_close(result.old_approx_kl, -ratio.log().mean())
    torch.testing.assert_close(result.approx_kl, (ratio - 1 - ratio.log()).mean())
    torch.testing.assert_close(result.clipfrac, ((ratio - 1).abs() > 0.2).to(F64).mean())
    assert result.ratio_min == ratio.min()
    assert result.ratio_max == ratio.max()
    assert result.num_steps == mask.sum()


# -------------------------------------------------------------------------------------- padding, order, micro-batches
def everything(logp, logp_old, advantage, mask, value, reward, reduction):
    """Loss, statistics and gradient, and GAE, of one batch; gradients and advantages at real steps only."""
    logp, value = logp.clone().requires_grad_(), value.clone().requires_grad_()
    result = core.clipped_surrogate(logp, logp_old, advantage, mask, reduction=reduction, denominator=7)
    gae, returns = core.generalized_advantage(reward, value, mask, 0.9, 0.8)
    value_loss = core.squared_value_loss(value, torch.where(mask, returns, torch.nan), mask)
    (result.loss + value_loss).backward()
    scalars = [*result, value_loss, core.masked_mean(logp, mask), core.explained_variance(value, reward, mask)]
    return [x.detach() for x in scalars], [logp.grad[mask], value.grad[mask], gae[mask], returns[mask]], [
        logp.grad[~mask], value.grad[~mask], gae[~mask], returns[~mask],
    ]  # fmt: skip


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("padding", ["right", "left", "both"])
@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
def test_what_stands_in_the_padding_and_where_it_stands_does_not_matter(poison, padding, reduction):
    logp, logp_old, mask, outcome, logit = random_batch(B=4, T=6)
    value, reward = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(8), dtype=F64)
    advantage = core.sequence_advantage(outcome, logit)
    scalars, real, _ = everything(logp, logp_old, advantage, mask, value, reward, reduction)

    width = 11
    moved = [torch.full((4, width), poison, dtype=F64) for _ in range(4)]
    new_mask = torch.zeros(4, width, dtype=torch.bool)
    for b, n in enumerate(mask.sum(1).tolist()):
        start = {"right": 0, "left": width - n, "both": (width - n) // 2}[padding]
        new_mask[b, start : start + n] = True
        for target, source in zip(moved, (logp, logp_old, value, reward), strict=True):
            target[b, start : start + n] = source[b, :n]
    new_scalars, new_real, new_padding = everything(
        moved[0], moved[1], advantage, new_mask, moved[2], moved[3], reduction
    )
    torch.testing.assert_close(new_scalars, scalars, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(new_real, real, rtol=1e-12, atol=1e-14)
    assert all((x == 0).all() for x in new_padding), "gradients and advantages on padding must be exactly 0"


def test_padding_between_real_steps_is_skipped():
    """A hole in the middle: the step after the one before the hole is the one behind it."""
    reward, value = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(9), dtype=F64)
    whole, _ = core.generalized_advantage(reward, value, torch.ones(1, 5, dtype=torch.bool), 0.9, 0.8)
    places = [0, 1, 4, 6, 7]
    holed = torch.full((2, 1, 8), torch.nan, dtype=F64)
    holed[:, :, places] = torch.stack([reward, value])
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[:, places] = True
    torch.testing.assert_close(core.generalized_advantage(holed[0], holed[1], mask, 0.9, 0.8)[0][:, places], whole)


@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
def test_order_of_episodes_does_not_matter(reduction):
    logp, logp_old, mask, outcome, logit = random_batch(B=8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(10))
    advantage = core.sequence_advantage(outcome, logit)
    a = core.clipped_surrogate(logp, logp_old, advantage, mask, reduction=reduction)
    b = core.clipped_surrogate(logp[order], logp_old[order], advantage[order], mask[order], reduction=reduction)
    torch.testing.assert_close(list(b), list(a), rtol=1e-13, atol=1e-15)
    assert torch.equal(core.sequence_advantage(outcome[order], logit[order]), advantage[order])


@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
def test_micro_batches_add_up_to_the_whole_batch_exactly(reduction):
    """With numbers that binary fractions hold exactly (ratio 1, power-of-two lengths), to the last bit."""
    lengths = torch.tensor([1, 2, 4, 8, 8, 4, 2, 1, 1, 1])
    mask = torch.arange(8) < lengths[:, None]
    advantage = torch.tensor([0.5, -0.25, 1.0, -0.75, 0.125, -1.0, 0.25, 0.5, -0.5, 0.75])
    logp_old = torch.full((10, 8), -0.5)
    whole = {"token-mean": 32, "sequence-mean": 16, "fixed": 128}[reduction]

    def run(parts):
        logp, total = logp_old.clone().requires_grad_(), 0.0
        for rows in parts:
            loss = core.clipped_surrogate(
                logp[rows], logp_old[rows], advantage[rows], mask[rows], reduction=reduction, denominator=whole
            ).loss
            loss.backward()
            total = total + loss.detach()
        return total, logp.grad

    loss, grad = run([slice(None)])
    for parts in ([[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]], [[i] for i in range(10)]):
        micro_loss, micro_grad = run(parts)
        assert torch.equal(micro_loss, loss)
        assert torch.equal(micro_grad, grad)


def test_micro_batches_of_any_numbers_add_up_and_default_denominators_do_not():
    logp, logp_old, mask, outcome, logit = random_batch(B=7, spread=0.4)
    advantage = core.sequence_advantage(outcome, logit)
    whole = core.clipped_surrogate(logp, logp_old, advantage, mask).loss

    def total(denominator):
        return sum(
            core.clipped_surrogate(logp[r], logp_old[r], advantage[r], mask[r], denominator=denominator).loss
            for r in (slice(0, 2), slice(2, 7))
        )

    torch.testing.assert_close(total(mask.sum()), whole, rtol=1e-14, atol=0)
    assert abs(total(None) / 2 - whole) > 1e-3, "the mean of micro-batch means is another number"
    values = core.bernoulli_value_loss(logit, outcome)
    parts = [core.bernoulli_value_loss(logit[r], outcome[r], denominator=7) for r in (slice(0, 2), slice(2, 7))]
    torch.testing.assert_close(sum(parts), values, rtol=1e-14, atol=0)


# ----------------------------------------------------------------------------------------------------- statistics
def test_masked_mean_and_explained_variance():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.nan, math.nan]], dtype=F64)
    assert core.masked_mean(x, mask) == 3.0
    target = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    assert core.explained_variance(target, target) == 1.0
    assert core.explained_variance(torch.full_like(target, 7.0), target) == 0.0
    assert core.explained_variance(target + torch.tensor([0.5, -0.5, 0.5, -0.5]), target) == pytest.approx(0.8)
    assert core.explained_variance(target, torch.ones(4, dtype=F64)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.7, 1e6])
def test_a_target_that_is_constant_up_to_rounding_explains_nothing(level, dtype):
    rounding = 1 + torch.finfo(dtype).eps * torch.tensor([0, 1] * 4, dtype=dtype)
    target = level * rounding
    assert core.explained_variance(torch.rand(8).to(dtype), target).isnan()
    varied = level * (1 + torch.linspace(0, 1, 8).to(dtype)) + torch.linspace(0, 1, 8).to(dtype)
    assert core.explained_variance(varied, varied) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [5.0, 11.09375, 12.0, 90.0, 800.0, float("inf")])  # exp(11.09375) is beyond float16
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_finite_loss_has_a_finite_gradient(advantage, gap, dtype):
    """Ratios that overflow: clipped, with gradient 0, where A >= 0; where A < 0 the loss itself is infinite."""
    logp = torch.tensor([[-1.0, 0.0]], dtype=dtype, requires_grad=True)
    logp_old = torch.tensor([[-1.0, -gap]], dtype=dtype)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = core.clipped_surrogate(logp, logp_old, torch.tensor([advantage], dtype=dtype), mask).loss
    loss.backward()
    if advantage >= 0:
        expected = -advantage * (1 + 1.2) / 2  # ratios 1 and clipped 1.2
        torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=dtype), rtol=1e-2, atol=0)
        assert logp.grad.tolist() == [[-advantage / 2, 0.0]]
    else:
        ratio = torch.tensor(gap, dtype=torch.float64).exp()
        assert (loss.detach().double() > 0.4 * ratio) or loss.isinf()
    assert logp.grad.isfinite().all() or not loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_neither_overflow_nor_round_away(dtype):
    """64 responses of 2,048 tokens: their number alone is beyond float16."""
    mask = torch.ones(64, 2048, dtype=torch.bool)
    logp = torch.full((64, 2048), -1.0, dtype=dtype)
    one = torch.ones(64, dtype=dtype)
    for reduction in ("token-mean", "sequence-mean", "fixed"):
        result = core.clipped_surrogate(logp, logp, 3 * one, mask, reduction=reduction)
        assert result.loss == -3
        assert result.loss.dtype == dtype
        assert (result.old_approx_kl, result.approx_kl, result.clipfrac) == (0, 0, 0)
    assert core.masked_mean(logp, mask) == -1
    assert core.squared_value_loss(logp, logp + 2, mask) == 2
    many = torch.full((70_000,), 2.0, dtype=dtype)
    torch.testing.assert_close(
        core.bernoulli_value_loss(many, many * 0), torch.tensor(2.127, dtype=dtype), rtol=1e-2, atol=0
    )


def test_brier_score_and_calibration_error():
    probability = torch.tensor([0.1, 0.1, 0.9, 0.9], dtype=F64)
    assert core.brier_score(probability, torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=F64)) == pytest.approx(0.21)
    # bin of 0.1: mean 0.1 against 0.5; bin of 0.9: mean 0.9 against 1; half of the episodes each
    assert core.expected_calibration_error(probability, torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=F64)) == pytest.approx(
        0.5 * 0.4 + 0.5 * 0.1
    )
    everything_one = torch.ones(4, dtype=F64)
    assert core.expected_calibration_error(everything_one, everything_one) == 0.0


def test_wilson_interval():
    """Against the closed form solved for p: both ends satisfy |p_hat - p| = z sqrt(p (1 - p) / n)."""
    for successes, trials in ((0, 10), (3, 10), (10, 10), (243, 1024)):
        for end in core.wilson_interval(successes, trials):
            if 0 < end < 1:
                distance = 1.959964 * math.sqrt(end * (1 - end) / trials)
                assert abs(successes / trials - end) == pytest.approx(distance, rel=1e-9)
    assert core.wilson_interval(0, 10)[0] == 0.0
    assert core.wilson_interval(10, 10)[1] == 1.0


# ------------------------------------------------------------------------------------- devices, dtypes, compilation
def call_all(dtype, device="cpu", fill=True):
    """One call of every tensor function; returns its tensors."""

    def numbers(*shape):
        return torch.rand(*shape, device=device).to(dtype) if fill else torch.empty(*shape, device=device, dtype=dtype)

    outcome, logit, matrix, other = numbers(8), numbers(8), numbers(8, 5), numbers(8, 5)
    mask = torch.ones(8, 5, dtype=torch.bool, device=device)
    return [
        core.sequence_advantage(outcome, logit),
        *core.generalized_advantage(matrix, other, mask, 0.9, 0.9),
        core.group_relative_advantage(outcome, 4),
        core.leave_one_out_advantage(outcome, 4),
        core.greedy_baseline_advantage(outcome, outcome),
        core.normalized_advantage(matrix, mask),
        core.normalized_advantage(logit, mask, eps_in="variance"),
        *core.beta_tracker(outcome, outcome, outcome, torch.zeros(8, dtype=torch.int64, device=device), outcome),
        core.clipped_surrogate(matrix, other, logit, mask, ratio="sequence").loss,
        core.squared_value_loss(matrix, other, mask, value_old=other),
        *(x for i, x in enumerate(core.clipped_surrogate(matrix, other, logit, mask)) if i != 1),
        core.bernoulli_value_loss(logit, outcome),
        core.squared_value_loss(matrix, other, mask),
        core.masked_mean(matrix, mask),
        core.explained_variance(logit, outcome),
        core.brier_score(logit, outcome),
        core.expected_calibration_error(logit, outcome),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_dtype_in_and_out(dtype):
    assert [x.dtype for x in call_all(dtype)] == [dtype] * 24


def test_no_synchronisation_between_host_and_device():
    """Meta tensors hold no numbers: whatever reads one raises."""
    results = call_all(torch.float32, device="meta", fill=False)
    assert {x.device.type for x in results} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(results[0].sum() > 0)  # the control: this is what a synchronisation would do


def test_compiles_without_graph_breaks_and_gives_the_same_numbers():
    logp, logp_old, mask, outcome, logit = random_batch()

    def step(logp, logit):
        advantage = core.sequence_advantage(outcome, logit)
        advantage = core.normalized_advantage(advantage, mask)
        surrogate = core.clipped_surrogate(logp, logp_old, advantage, mask, ratio="sequence")
        grouped = core.group_relative_advantage(outcome, 3) + core.leave_one_out_advantage(outcome, 3)
        return surrogate.loss + core.bernoulli_value_loss(logit, outcome), surrogate.approx_kl, grouped

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logp, logit), step(logp, logit))
    # the range of outcomes is still checked, by an assertion in the graph
    check = torch.compile(lambda r: core.sequence_advantage(r, logit), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"outcome must be in \[0, 1\]"):
        check(outcome + 2)


def test_under_autocast():
    logp, logp_old, mask, outcome, logit = (x.float() if x.is_floating_point() else x for x in random_batch())
    advantage = core.sequence_advantage(outcome, logit)
    plain = core.clipped_surrogate(logp, logp_old, advantage, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = core.clipped_surrogate(logp, logp_old, core.sequence_advantage(outcome, logit), mask)
        value_loss = core.bernoulli_value_loss(logit, outcome)
    torch.testing.assert_close(list(cast), list(plain))
    torch.testing.assert_close(value_loss, core.bernoulli_value_loss(logit, outcome))


# ------------------------------------------------------------------------------------------------------- refusals
B5, M = torch.zeros(5), torch.zeros(5, 3)
TRUE = torch.ones(5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: core.sequence_advantage(B5, torch.zeros(4)), r"\(5,\), \(4,\)"),
        (lambda: core.sequence_advantage(M, M), r"must be \(B,\)"),
        (lambda: core.sequence_advantage(torch.zeros(0), torch.zeros(0)), "B >= 1"),
        (lambda: core.sequence_advantage(B5 + 1.5, B5), r"outcome must be in \[0, 1\].*got 1.5 at index 0"),
        (lambda: core.sequence_advantage(torch.tensor([0.0, math.nan]), B5[:2]), "got nan at index 1"),
        (lambda: core.sequence_advantage(torch.tensor([0, 1]), B5[:2]), "floating, got torch.int64"),
        (lambda: core.bernoulli_value_loss(B5, B5 - 0.5), "got -0.5 at index 0"),
        (lambda: core.bernoulli_value_loss(B5, B5[:4]), r"\(5,\), \(4,\)"),
        (lambda: core.greedy_baseline_advantage(B5, B5 + 2), r"greedy_outcome must be in \[0, 1\]"),
        (lambda: core.group_relative_advantage(B5, 2), "divide the number of outcomes, got 2 for 5"),
        (lambda: core.group_relative_advantage(B5, 1), "at least 2"),
        (lambda: core.leave_one_out_advantage(B5, 0), "at least 2"),
        (lambda: core.leave_one_out_advantage(B5 + 3, 5), "got 3.0 at index 0"),
        (lambda: core.generalized_advantage(M, M, TRUE, gamma=1.5), r"gamma must be in \[0, 1\], got 1.5"),
        (lambda: core.generalized_advantage(M, M, TRUE, gae_lambda=-1), "gae_lambda"),
        (lambda: core.generalized_advantage(M, M[:, :2], TRUE), r"\(5, 3\), \(5, 2\), \(5, 3\)"),
        (lambda: core.generalized_advantage(M, M, ~TRUE), "no real step"),
        (lambda: core.clipped_surrogate(M, M, B5, ~TRUE), "no real step"),
        (lambda: core.clipped_surrogate(M, M, B5, TRUE.float()), "mask must be bool.*torch.float32"),
        (lambda: core.clipped_surrogate(M, M, torch.zeros(3), TRUE), r"advantage must be .*got \(3,\)"),
        (lambda: core.clipped_surrogate(M, M, B5, TRUE, reduction="mean"), "unknown reduction 'mean'.*'token-mean'"),
        (lambda: core.clipped_surrogate(M, M, B5, TRUE, clip_coef=0), "clip_coef must be above 0"),
        (
            lambda: core.clipped_surrogate(M, M, B5, TRUE, denominator=0),
            "denominator must be above 0 and finite, got 0",
        ),
        (lambda: core.clipped_surrogate(M, M, B5, TRUE, denominator=torch.tensor(0)), "denominator must be above 0"),
        (lambda: core.clipped_surrogate(B5, B5, B5, B5.bool()), r"must be \(B, T\)"),
        (lambda: core.clipped_surrogate(M, M, B5, TRUE, ratio="token"), "unknown ratio 'token'.*'step', 'sequence'"),
        (lambda: core.clipped_surrogate(M, M, M, TRUE, ratio="sequence"), r"one advantage per episode.*got .*\(5, 3\)"),
        (lambda: core.normalized_advantage(M, ~TRUE), "no real step"),
        (lambda: core.normalized_advantage(torch.zeros(3), TRUE), r"advantage must be .*got \(3,\)"),
        (lambda: core.normalized_advantage(M, TRUE, eps=0), "eps must be above 0 and finite, got 0"),
        (lambda: core.normalized_advantage(M, TRUE, eps_in="mean"), "unknown eps_in 'mean'.*'variance'"),
        (lambda: core.beta_tracker(B5, B5, B5, torch.arange(5) + 1, B5), "context must be from 0 to 4"),
        (lambda: core.beta_tracker(B5, B5, B5, B5, B5), "context must be int64"),
        (lambda: core.beta_tracker(B5 - 1, B5, B5, torch.arange(5), B5), "alpha must be at least 0"),
        (
            lambda: core.beta_tracker(B5, B5, B5, torch.arange(5), B5, rho_max=0.5),
            "rho_max must be from rho_min = 0.875",
        ),
        (lambda: core.squared_value_loss(M, M, TRUE, value_old=M[:4]), r"\(4, 3\)"),
        (lambda: core.squared_value_loss(M, M, TRUE, value_old=M, clip_coef=-1), "clip_coef must be above 0"),
        (lambda: core.squared_value_loss(M, M, ~TRUE), "no real step"),
        (lambda: core.squared_value_loss(M, M[:4], TRUE), r"\(4, 3\)"),
        (lambda: core.masked_mean(M, ~TRUE), "no real step"),
        (lambda: core.explained_variance(B5, M), "one shape"),
        (lambda: core.brier_score(B5, B5 + 7), "got 7.0"),
        (
            lambda: core.expected_calibration_error(B5, B5, num_bins=0),
            "num_bins must be a whole number of at least 1, got 0",
        ),
        (lambda: core.wilson_interval(3, 2), "got 3 of 2"),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------------------------- unbiasedness by exact enumeration
class Tree:
    """Two contexts, two actions, up to three steps; "stop" (action 1) ends an episode early, so lengths differ.

    The policy is a table of logits, one for each node; every complete episode can be listed with its probability.
    """

    def __init__(self):
        g = torch.Generator().manual_seed(2)
        self.nodes = [(c, *h) for c in (0, 1) for d in range(3) for h in itertools.product((0,), repeat=d)]
        self.logits = (2 * torch.randn(len(self.nodes), 2, generator=g, dtype=F64)).requires_grad_()
        self.context_probability = [0.3, 0.7]
        self.episodes = [
            (c, actions) for c in (0, 1) for actions in ((1,), (0, 1), (0, 0, 0), (0, 0, 1))
        ]  # every complete episode
        self.outcome = dict(zip(self.episodes, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], strict=True))

    def logp(self, c, actions):
        table = self.logits.log_softmax(-1)
        return torch.stack([table[self.nodes.index((c, *actions[:t])), a] for t, a in enumerate(actions)])

    def probability(self, c, actions):
        return self.logp(c, actions).sum().exp().detach()

    def true_gradient(self):
        """Gradient of the success probability itself."""
        success = sum(
            self.context_probability[c] * self.logp(c, a).sum().exp() * self.outcome[c, a] for c, a in self.episodes
        )
        return torch.autograd.grad(success, self.logits)[0]

    def surrogate_gradient(self, episodes, advantage, **kwargs):
        """Ascent direction of core.clipped_surrogate for one batch at ratio 1."""
        rows = [self.logp(c, a) for c, a in episodes]
        logp = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(logp.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
        loss = core.clipped_surrogate(logp, logp.detach(), advantage, mask, **kwargs).loss
        return -torch.autograd.grad(loss, self.logits)[0]

    def expected_gradient(self, batch_of, advantage_of, **kwargs):
        """Exact expectation over all batches; `batch_of(c)` lists the episodes drawn together for context c."""
        total = torch.zeros_like(self.logits)
        for c in (0, 1):
            for episodes in batch_of(c):
                weight = self.context_probability[c] * math.prod(self.probability(*e) for e in episodes)
                outcome = torch.tensor([self.outcome[e] for e in episodes], dtype=F64)
                total += weight * self.surrogate_gradient(episodes, advantage_of(c, outcome), **kwargs)
        return total

    def groups(self, size):
        return lambda c: itertools.product([e for e in self.episodes if e[0] == c], repeat=size)


def test_the_tree_lists_all_episodes():
    tree = Tree()
    for c in (0, 1):
        assert sum(tree.probability(*e) for e in tree.episodes if e[0] == c) == pytest.approx(1.0)


@pytest.mark.parametrize("v", [(0.0, 0.0), (1.5, -0.7), (-3.0, 4.0)])
def test_sppo_is_unbiased_whatever_the_critic_says(v):
    tree = Tree()
    logit = torch.tensor(v, dtype=F64)
    expected = tree.expected_gradient(
        tree.groups(1), lambda c, outcome: core.sequence_advantage(outcome, logit[c : c + 1]),
        reduction="token-mean", denominator=1,
    )  # fmt: skip
    torch.testing.assert_close(expected, tree.true_gradient(), rtol=1e-10, atol=1e-12)


def test_rloo_and_centred_groups_are_unbiased():
    tree = Tree()
    for size in (2, 3):
        rloo = tree.expected_gradient(
            tree.groups(size), lambda c, r, k=size: core.leave_one_out_advantage(r, k), denominator=size
        )
        torch.testing.assert_close(rloo, tree.true_gradient(), rtol=1e-10, atol=1e-12)
        centred = tree.expected_gradient(
            tree.groups(size), lambda c, r, k=size: core.group_relative_advantage(r, k, normalize_std=False),
            denominator=size,
        )  # fmt: skip
        # the own outcome is in the mean: the right direction, shortened by (k - 1) / k
        torch.testing.assert_close(centred, (size - 1) / size * tree.true_gradient(), rtol=1e-10, atol=1e-12)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_the_mean_over_each_sequence_is_biased():
    """Dividing by each episode's own length turns the direction: long episodes count less a step."""
    tree = Tree()
    logit = torch.tensor([0.5, -0.5], dtype=F64)
    expected = tree.expected_gradient(
        tree.groups(1), lambda c, r: core.sequence_advantage(r, logit[c : c + 1]), reduction="sequence-mean"
    )
    assert cosine(expected, tree.true_gradient()) < 0.99
    # and it depends on the critic, which an unbiased estimate must not
    other = tree.expected_gradient(
        tree.groups(1), lambda c, r: core.sequence_advantage(r, 4 * logit[c : c + 1]), reduction="sequence-mean"
    )
    assert (other - expected).abs().max() > 1e-3


def test_groups_divided_by_their_deviation_are_biased():
    """GRPO weighs contexts by about 1 / std: the expected gradient is not a multiple of the true one over contexts."""
    tree = Tree()
    true = tree.true_gradient()
    expected = tree.expected_gradient(tree.groups(4), lambda c, r: core.group_relative_advantage(r, 4), denominator=4)
    unbiased = tree.expected_gradient(tree.groups(4), lambda c, r: core.leave_one_out_advantage(r, 4), denominator=4)
    rows = [[i for i, node in enumerate(tree.nodes) if node[0] == c] for c in (0, 1)]
    weight = [(expected[r].norm() / true[r].norm()).item() for r in rows]
    control = [(unbiased[r].norm() / true[r].norm()).item() for r in rows]
    assert abs(weight[0] / weight[1] - 1) > 0.01
    assert control == pytest.approx([1.0, 1.0], rel=1e-9)


# ------------------------------------------------------------------------ edges where a small mistake could hide
def test_a_row_of_padding_alone_does_not_count_as_a_sequence():
    """In "sequence-mean" such a row is in no mean: neither in the divisor, nor through its length of 0."""
    g = torch.Generator().manual_seed(0)
    logp, logp_old = torch.randn(2, 3, 4, generator=g)
    advantage, mask = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    rows = torch.tensor([0, 2])
    whole = core.clipped_surrogate(logp.requires_grad_(), logp_old, advantage, mask, reduction="sequence-mean")
    part = core.clipped_surrogate(logp[rows], logp_old[rows], advantage[rows], mask[rows], reduction="sequence-mean")
    assert torch.isfinite(whole.loss)
    torch.testing.assert_close(whole.loss, part.loss)
    whole.loss.backward()
    assert (logp.grad[1] == 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_of_the_ratio_are_those_of_real_steps(sign):
    """All ratios are on one side of 1, which is the ratio of padding."""
    logp, mask = sign * torch.tensor([[0.1, 0.2, 0.0]]), torch.tensor([[True, True, False]])
    seen = core.clipped_surrogate(logp, torch.zeros(1, 3), torch.ones(1), mask)
    ratios = logp[mask].exp()
    torch.testing.assert_close(seen.ratio_min, ratios.min())
    torch.testing.assert_close(seen.ratio_max, ratios.max())


def test_targets_of_both_value_losses_are_constants():
    value = torch.randn(2, 3, requires_grad=True)
    returns, outcome = torch.rand(2, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    core.squared_value_loss(value, returns, torch.ones(2, 3, dtype=torch.bool)).backward()
    core.bernoulli_value_loss(value[0], outcome).backward()
    assert returns.grad is None
    assert outcome.grad is None
    assert value.grad is not None


def test_bins_of_the_calibration_error_are_tenths():
    """0.07 and 0.11 are in two bins, 0.11 and 0.19 in one. Rounding would make it the other way round."""
    apart = core.expected_calibration_error(torch.tensor([0.07, 0.11]), torch.tensor([0.0, 1.0]))
    together = core.expected_calibration_error(torch.tensor([0.11, 0.19]), torch.tensor([0.0, 1.0]))
    assert float(apart) == pytest.approx((0.07 + 0.89) / 2)
    assert float(together) == pytest.approx(abs(0.11 + 0.19 - 1) / 2)


@pytest.mark.parametrize("outcome", [-1e-7, 1 + 2e-7, float("nan")])
def test_an_outcome_just_outside_0_and_1_is_refused(outcome):
    R, v = torch.tensor([0.0, outcome, 1.0]), torch.zeros(3)
    for call in (core.sequence_advantage, core.greedy_baseline_advantage):
        with pytest.raises(ValueError, match="at index 1"):
            call(R, v)
    for call in (core.bernoulli_value_loss, core.brier_score, core.expected_calibration_error):
        with pytest.raises(ValueError, match="at index 1"):
            call(v, R)


def test_advantages_of_every_kind_are_constants():
    value = torch.rand(1, 3, requires_grad=True)
    advantage, returns = core.generalized_advantage(torch.ones(1, 3), value, torch.ones(1, 3).bool(), 0.9, 0.5)
    R, other = torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)
    kinds = [core.sequence_advantage(R, other), core.greedy_baseline_advantage(R, other)]
    kinds += [core.group_relative_advantage(R, 2), core.leave_one_out_advantage(R, 2)]
    assert not any(x.requires_grad for x in (advantage, returns, *kinds))


def test_share_of_clipped_steps_is_of_the_ratio_not_of_its_logarithm():
    """exp(-0.21) is 0.81, within 0.2 of 1; exp(0.19) is 1.21, not."""
    logp = torch.tensor([[-0.21, 0.19]])
    seen = core.clipped_surrogate(logp, torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2).bool(), clip_coef=0.2)
    assert float(seen.clipfrac) == 0.5
    logp = torch.tensor([[-0.21, -0.21]])
    seen = core.clipped_surrogate(logp, torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2).bool(), clip_coef=0.2)
    assert float(seen.clipfrac) == 0.0
