"""What each flag of the language-model scripts does to an update: one update of each script is run and watched."""

import copy
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: extra llm")
pytest.importorskip("datasets", reason="datasets is not installed: extra llm")

from torch.optim.optimizer import register_optimizer_step_pre_hook

import grpo_llm
import ppo_llm
import rloo_llm
import sppo_llm
from sppo_control import core, runs
from sppo_control.llm import addition
from sppo_control.llm.prompts import Prompts, make_reward
from sppo_control.llm.responses import token_values
from sppo_control.outcomes import Evaluation

B = 16
SCRIPTS = {"sppo": sppo_llm, "ppo": ppo_llm, "grpo": grpo_llm, "rloo": rloo_llm}
WITHOUT_CRITIC = ("grpo", "rloo")
COMMON = {
    "batch_size": B, "num_minibatches": 2, "update_epochs": 2, "micro_batch_size": 3, "learning_rate": 2e-3,
    "clip_coef": 0.001, "max_grad_norm": 1e-3, "temperature": 0.7, "max_response_length": 21, "eval_prompts": 4,
    "total_episodes": 1, "device": "cpu", "seed": 8, "stop": (r"\n", "9=9"),
}  # fmt: skip
OWN = {
    "sppo": {"critic_learning_rate": 5e-3, "critic_steps": 3, "critic_batch_size": 5},
    "ppo": {"critic_learning_rate": 5e-3, "gamma": 0.9, "gae_lambda": 0.6},
    "grpo": {"group_size": 4},
    "rloo": {"group_size": 4},
}
"""No number is a default or occurs twice, so that none can replace another."""
PAIRS = addition.problems(48, np.random.default_rng(1))


def additions():
    rows = addition.rows(PAIRS)
    texts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    return Prompts(texts, addition.tokenizer()(texts)["input_ids"], answers)


def watch(name, folder, **changes):
    """Run one update, and return what was called with what."""
    script = SCRIPTS[name]
    seen = SimpleNamespace(
        evaluated=[],
        generated=[],
        log_probs=[],
        surrogates=[],
        means=[],
        gae=[],
        value_losses=[],
        backward=[],
        adam=[],
        steps=[],
    )
    with pytest.MonkeyPatch.context() as patch:

        def spy(owner, what, into, keep=lambda x: x):
            real = getattr(owner, what)
            parameters = inspect.signature(real)

            def call(*args, **kwargs):
                result = real(*args, **kwargs)
                bound = parameters.bind(*args, **kwargs)
                bound.apply_defaults()
                into.append((SimpleNamespace(**bound.arguments), keep(result)))
                return result

            patch.setattr(owner, what, call)

        def load_data(*args):
            return additions(), additions(), make_reward("after-equals")

        def evaluate(*args):
            seen.evaluated.append(args)
            return Evaluation(np.ones(1, dtype=bool), {})

        def load_policy(args, real=script.load_policy):
            policy, tokenizer = real(args)
            seen.policy = copy.deepcopy(policy)
            return policy, tokenizer

        def make_critic(*args):
            critic = real_critic(*args)  # its head is not zero, so that V differs from prompt to prompt
            torch.nn.init.normal_(critic.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
            seen.critic = copy.deepcopy(critic)
            return critic

        patch.setattr(script, "load_data", load_data)
        patch.setattr(script, "evaluate", evaluate)
        patch.setattr(script, "load_policy", load_policy)
        if name not in WITHOUT_CRITIC:
            real_critic = script.make_critic
            patch.setattr(script, "make_critic", make_critic)
        spy(script, "generate", seen.generated)
        spy(script, "policy_log_probs", seen.log_probs, lambda x: None)
        spy(core, "clipped_surrogate", seen.surrogates)
        spy(core, "masked_mean", seen.means, float)
        spy(core, "generalized_advantage", seen.gae)
        spy(core, "bernoulli_value_loss", seen.value_losses, lambda x: float(x.detach()))
        spy(core, "squared_value_loss", seen.value_losses, lambda x: float(x.detach()))
        real_adam, real_end = torch.optim.Adam.__init__, runs.Run.end_update

        def adam(self, *args, **kwargs):
            real_adam(self, *args, **kwargs)
            seen.adam.append(self)

        def end_update(self, episodes, metrics, *args, **kwargs):
            seen.metrics = dict(metrics)
            return real_end(self, episodes, metrics, *args, **kwargs)

        def before_step(optimizer, args, kwargs):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            seen.steps.append((seen.adam.index(optimizer), float(torch.cat([g.flatten() for g in gradients]).norm())))

        patch.setattr(torch.optim.Adam, "__init__", adam)
        patch.setattr(runs.Run, "end_update", end_update)
        patch.setattr(runs.Run, "save", lambda self: None)  # other tests have checkpoints
        hook = register_optimizer_step_pre_hook(before_step)
        try:
            seen.run = script.train(script.Args(**{**COMMON, **OWN[name], **changes}, runs_dir=str(folder)))
        finally:
            hook.remove()
    ((seen.asked, seen.batch),) = seen.generated
    return seen


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """name of the script -> what was seen; each script runs once."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = watch(name, tmp_path_factory.mktemp(name))
        return found[name]

    return of


def expected_order(seen):
    """The minibatches: the stream "shuffle" of update 0."""
    rng = np.random.default_rng([8, 0, 1])
    return [mb for _ in range(2) for mb in rng.permutation(B).reshape(2, -1).tolist()]


def micro(rows):
    return [part.tolist() for part in torch.tensor(rows).split(3)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_prompts_and_samples_follow_from_seed_and_update(name, watched):
    seen = watched(name)
    n = OWN[name].get("group_size", 1)
    rows = additions().batch(0, B // n, 8)
    assert list(seen.asked.rows) == [row for row in rows for _ in range(n)]
    assert seen.asked.seed == int(np.random.default_rng([8, 0, 0]).integers(2**31))
    assert (seen.asked.max_response_length, seen.asked.temperature, seen.asked.batch_size) == (21, 0.7, 3)
    assert seen.asked.stop == ("\n", "9=9"), "as a shell gives it, with a backslash"
    assert [args[4:] for args in seen.evaluated] == [(8, 21, 0.7, 3, False, ("\n", "9=9"))] * 2, (
        "evaluated as it is trained"
    )
    assert 0 < seen.batch.outcome.mean() < 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_micro_batches_of_each_minibatch_add_up_to_the_clipped_surrogate(name, watched):
    """--num-minibatches, --update-epochs, --micro-batch-size, --clip-coef, --temperature."""
    seen, calls = watched(name), iter(watched(name).surrogates)
    for i, mb in enumerate(expected_order(seen)):
        total, objective, num_tokens = 0.0, 0.0, int(seen.batch.mask[mb].sum())
        for part in micro(mb):
            x, result = next(calls)
            expected = seen.batch.take(torch.tensor(part))
            assert torch.equal(x.mask, expected.mask)
            assert torch.equal(x.logp_old, expected.logp)
            if i == 0:
                torch.testing.assert_close(x.logp[x.mask], x.logp_old[x.mask], rtol=0, atol=1e-4)
            ratio = (x.logp - x.logp_old).exp()
            A = x.advantage if x.advantage.ndim == 2 else x.advantage[:, None].expand_as(ratio)
            bounded = ratio.clamp(1 - 0.001, 1 + 0.001)
            objective += torch.minimum(ratio * A, bounded * A)[x.mask].sum().item()
            total += result.loss.item()
        assert total == pytest.approx(-objective / num_tokens, rel=1e-3, abs=1e-5)
    assert next(calls, None) is None
    # The ratio of the first step is 1 at any temperature, so it does not show this one.
    assert {asked.temperature for asked, _ in seen.log_probs} == {0.7}


@pytest.mark.parametrize("name", SCRIPTS)
def test_learning_rates_and_gradient_norms(name, watched):
    seen = watched(name)
    groups = [group for optimizer in seen.adam for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == [2e-3, 5e-3][: len(groups)]
    assert len(groups) == (1 if name in WITHOUT_CRITIC else 2)
    assert {(group["eps"], group["betas"], group["weight_decay"]) for group in groups} == {(1e-8, (0.9, 0.999), 0)}
    for index in range(len(groups)):
        norms = [norm for i, norm in seen.steps if i == index]
        assert max(norms) <= 1.01e-3
        assert sum(norm > 0.99e-3 for norm in norms) >= 2, "a gradient may be shorter by itself, but not most of them"
    updates = [sum(index == i for index, _ in seen.steps) for i in range(2)]
    assert updates == [4, {"sppo": 3, "ppo": 4}.get(name, 0)]
    assert seen.metrics["losses/grad_norm"] > 1e-2
    assert seen.metrics["charts/learning_rate"] == 2e-3


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_advantage_that_reaches_the_loss_and_the_log(name, watched):
    seen = watched(name)
    R, mask = seen.batch.outcome, seen.batch.mask
    with torch.no_grad():
        if name == "sppo":
            v0 = torch.sigmoid(seen.critic(*seen.batch.prompts))
            A = R - v0
        elif name == "ppo":
            value = token_values(seen.critic, seen.batch)
            ((x, (A, returns)),) = seen.gae
            assert (x.gamma, x.gae_lambda) == (0.9, 0.6)
            torch.testing.assert_close(x.value[mask], value[mask], rtol=1e-3, atol=1e-4)
            last = seen.batch.lengths - 1
            assert torch.equal(x.reward[torch.arange(B), last], R)
            assert x.reward.sum() == R.sum()
            v0 = value[:, 0]
            explained = core.explained_variance(value, returns, mask)
            assert seen.metrics["losses/explained_variance"] == pytest.approx(float(explained), rel=1e-3, abs=1e-4)
        elif name == "rloo":
            groups = R.view(4, 4)
            others = [[row[torch.arange(4) != i].mean() for i in range(4)] for row in groups]
            v0 = torch.tensor(others).flatten()
            A = R - v0
        else:
            groups = R.view(4, 4)
            assert ((groups.mean(1) > 0) & (groups.mean(1) < 1)).any()
            v0 = groups.mean(1).repeat_interleave(4)
            A = (R - v0) / groups.std(1, correction=0).repeat_interleave(4).clamp(min=1e-9)
    assert seen.metrics["critic/v0_mean"] == pytest.approx(float(v0.mean()), rel=1e-3, abs=1e-5)
    parts = [part for mb in expected_order(seen) for part in micro(mb)]
    for part, (x, _) in zip(parts, seen.surrogates, strict=True):
        expected = A[part] if A.ndim == 1 else A[part, : x.mask.shape[1]]
        torch.testing.assert_close(x.advantage, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "norm_adv"), [("sppo", "minibatch"), ("ppo", "batch"), ("rloo", "minibatch")])
def test_advantages_are_normalised_over_more_than_a_micro_batch(name, norm_adv, watched, tmp_path):
    """--norm-adv, by the plain formula; --critic-gae-lambda changes the critic's targets and not the advantages."""
    plain = watched(name)
    seen = watch(name, tmp_path, norm_adv=norm_adv, **({"critic_gae_lambda": 1.0} if name == "ppo" else {}))
    R, mask = seen.batch.outcome, seen.batch.mask
    if name == "ppo":
        (_, (adv, _)), (x, (_, returns)) = seen.gae
        assert (x.gamma, x.gae_lambda) == (0.9, 1.0)
        losses = iter(seen.value_losses)
        for part in (part for mb in expected_order(seen) for part in micro(mb)):
            loss, _ = next(losses)
            assert torch.equal(loss.returns, returns[part, : loss.mask.shape[1]])
    elif name == "rloo":
        adv = (R - R.view(4, 4).mean(1).repeat_interleave(4)) * 4 / 3
    else:
        with torch.no_grad():
            adv = R - torch.sigmoid(seen.critic(*seen.batch.prompts))
    calls = iter(seen.surrogates)
    for mb in expected_order(seen):
        rows = mb if norm_adv == "minibatch" else list(range(B))
        steps = (adv[:, None].expand(mask.shape) if adv.ndim == 1 else adv)[rows][mask[rows]].double()
        A = ((adv - steps.mean()) / (steps.var() + (0 if norm_adv == "minibatch" else 1e-8)).sqrt()).float()
        for part in micro(mb):
            x, _ = next(calls)
            expected = A[part] if A.ndim == 1 else torch.where(x.mask, A[part, : x.mask.shape[1]], 0.0)
            torch.testing.assert_close(x.advantage, expected, rtol=1e-3, atol=1e-3)
    assert seen.metrics["advantages/std"] == pytest.approx(plain.metrics["advantages/std"], rel=1e-4)


def test_reinforce_plus_plus(tmp_path):
    """rloo_llm.py --group-size 1 --norm-adv batch: R, normalised over all tokens of the batch (arXiv 2501.03262)."""
    seen = watch("rloo", tmp_path, group_size=1, norm_adv="batch")
    assert list(seen.asked.rows) == additions().batch(0, B, 8), "each response has a prompt of its own"
    R, mask = seen.batch.outcome.double(), seen.batch.mask
    tokens = R[:, None].expand(mask.shape)[mask]
    A = ((R - tokens.mean()) / (tokens.var() + 1e-8).sqrt()).float()
    parts = [part for mb in expected_order(seen) for part in micro(mb)]
    for part, (x, _) in zip(parts, seen.surrogates, strict=True):
        torch.testing.assert_close(x.advantage, A[part], rtol=1e-4, atol=1e-4)
    assert seen.metrics["critic/v0_mean"] == pytest.approx(float(R.mean()))


def test_spo_compares_a_response_with_the_prompts_earlier_ones(tmp_path):
    """--baseline tracked: the prior for a prompt that is new, and its counts when it comes again."""
    seen = watch("rloo", tmp_path, group_size=1, baseline="tracked")
    tracker, R, rows = seen.run.parts["tracker"], seen.batch.outcome, list(seen.asked.rows)
    prior = seen.run.summary["before"]["rate"]
    parts = [part for mb in expected_order(seen) for part in micro(mb)]
    for part, (x, _) in zip(parts, seen.surrogates, strict=True):
        torch.testing.assert_close(x.advantage, R[part] - prior, rtol=1e-4, atol=1e-5)
    assert len(tracker.alpha) == len(additions())
    for i in range(len(tracker.alpha)):
        here = [float(r) for r, row in zip(R, rows, strict=True) if row == i]
        rho = 0.96 if here else 1.0  # the policy had not moved before this batch
        assert float(tracker.alpha[i]) == pytest.approx(rho * 8 * prior + sum(here), abs=1e-4)
        assert float(tracker.beta[i]) == pytest.approx(rho * 8 * (1 - prior) + len(here) - sum(here), abs=1e-4)
    assert tracker.kl.unique().tolist() == pytest.approx([seen.metrics["losses/approx_kl"]], rel=1e-4)
    with pytest.raises(ValueError, match="--group-size 1"):
        rloo_llm.Args(baseline="tracked")


def test_grpo_without_the_deviation_and_with_one_ratio_per_response(tmp_path):
    """--no-normalize-std and --ratio sequence, on each micro-batch."""
    seen = watch("grpo", tmp_path, normalize_std=False, ratio="sequence")
    R = seen.batch.outcome
    centred = R - R.view(4, 4).mean(1).repeat_interleave(4)
    parts = [part for mb in expected_order(seen) for part in micro(mb)]
    for part, (x, result) in zip(parts, seen.surrogates, strict=True):
        torch.testing.assert_close(x.advantage, centred[part])
        mean = torch.stack([row[m].mean() for row, m in zip(x.logp - x.logp_old, x.mask, strict=True)]).detach()
        assert (float(result.ratio_min), float(result.ratio_max)) == pytest.approx(
            (float(mean.exp().min()), float(mean.exp().max())), rel=1e-5
        )


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_logged_losses_are_means_over_all_micro_batches(name, watched):
    seen = watched(name)
    tokens = np.array([float(result.num_steps) for _, result in seen.surrogates])
    entropy = np.average([mean for _, mean in seen.means], weights=tokens)
    assert seen.metrics["losses/entropy"] == pytest.approx(entropy, rel=1e-4)
    assert 0 < entropy < np.log(14)
    loss = np.array([result.loss.item() for _, result in seen.surrogates]).sum() / 4
    sizes = [int(seen.batch.mask[mb].sum()) for mb in expected_order(seen)]
    whole = [loss_of(seen, i) for i in range(4)]
    assert seen.metrics["losses/policy_loss"] == pytest.approx(np.average(whole, weights=sizes), rel=1e-3, abs=1e-6)
    assert np.mean(whole) == pytest.approx(loss)


def loss_of(seen, i):
    """Loss of a minibatch: the sum over its three micro-batches of 3, 3 and 2 responses."""
    return sum(result.loss.item() for _, result in seen.surrogates[3 * i : 3 * i + 3])


def test_ppos_critic_learns_the_returns_of_the_policys_minibatches(watched):
    seen = watched("ppo")
    ((_, (_, returns)),) = seen.gae
    parts = [(part, mb) for mb in expected_order(seen) for part in micro(mb)]
    for (part, mb), (x, _) in zip(parts, seen.value_losses, strict=True):
        assert torch.equal(x.returns, returns[part, : x.mask.shape[1]])
        assert torch.equal(x.mask, seen.batch.take(torch.tensor(part)).mask)
        assert int(x.denominator) == int(seen.batch.mask[mb].sum())
    sizes = [int(seen.batch.mask[mb].sum()) for mb in expected_order(seen)]
    whole = [sum(loss for _, loss in seen.value_losses[3 * i : 3 * i + 3]) for i in range(4)]
    assert seen.metrics["losses/value_loss"] == pytest.approx(np.average(whole, weights=sizes), rel=1e-4)


def test_sppos_critic_makes_so_many_updates_of_so_many_prompts(watched):
    """--critic-steps and --critic-batch-size of the window recipe; drawn after the minibatches, from their stream."""
    seen = watched("sppo")
    rng, R = np.random.default_rng([8, 0, 1]), seen.batch.outcome
    for _ in range(2):
        rng.permutation(B)
    order = rng.permutation(B)
    drawn = [R[part].tolist() for rows in (order[:5], order[5:10], order[10:15]) for part in micro(rows.tolist())]
    assert [x.outcome.tolist() for x, _ in seen.value_losses] == drawn
    assert seen.metrics["losses/value_loss"] == pytest.approx(sum(loss for _, loss in seen.value_losses) / 3, rel=1e-4)


@pytest.mark.parametrize("name", ["sppo", "ppo"])
def test_in_a_warm_up_the_critic_alone_is_trained(name, tmp_path):
    seen = watch(name, tmp_path, critic_warmup_batches=1, update_epochs=1)
    assert {index for index, _ in seen.steps} == {1}
    assert not seen.surrogates
    assert seen.metrics["charts/warmup"] == 1.0


def test_critic_layers(tmp_path):
    seen = watch("sppo", tmp_path, critic_layers=2)
    assert len(seen.critic.backbone.layers) == 2
    assert len(seen.policy.base_model.layers) == 3
    with torch.no_grad():
        v0 = torch.sigmoid(seen.critic(*seen.batch.prompts))
    assert seen.metrics["critic/v0_mean"] == pytest.approx(float(v0.mean()), abs=1e-5)


def test_prompts_with_v_outside_the_bounds_get_no_response(watched, tmp_path):
    """--skip-prompts-below, --skip-prompts-above and --retry-skipped-prompts, by V of the critic at the start."""
    plain = watched("sppo")
    v0 = plain.critic.predict(additions().ids).numpy()
    low, high = (float(np.quantile(v0, q)) for q in (0.2, 0.8))
    inside = {row for row in range(48) if low <= v0[row] <= high}
    before = list(plain.asked.rows)
    kept = [row for row in before if row in inside]
    assert 0 < len(kept) < B
    none = watch("sppo", tmp_path, skip_prompts_below=low, skip_prompts_above=high, retry_skipped_prompts=0.0)
    rows = list(none.asked.rows)
    assert rows[: len(kept)] == kept
    assert set(rows) <= inside
    assert len(set(rows)) == B
    assert none.metrics["prompts/below"] + none.metrics["prompts/above"] >= B - len(kept)
    everything = watch("sppo", tmp_path, skip_prompts_below=low, skip_prompts_above=high, retry_skipped_prompts=1.0)
    assert list(everything.asked.rows) == before
    assert everything.metrics["prompts/retried"] == B - len(kept)
