"""What each flag of the control scripts does to an update: one update of each script is run and watched, flags set."""

import dataclasses
import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from terminal import pictures, terminal_for_errors
from torch.optim.optimizer import register_optimizer_step_pre_hook

import grpo_cartpole
import ppo_cartpole
import remax_cartpole
import rloo_cartpole
import sppo_cartpole
from sppo_control import core, runs, videos
from sppo_control.networks import Critic
from sppo_control.policies import CategoricalPolicy
from sppo_control.rollout import rollout

ID = "sppo/PrecisionCartPole-v0"
B = 16
SCRIPTS = {
    "sppo": sppo_cartpole, "ppo": ppo_cartpole, "grpo": grpo_cartpole, "rloo": rloo_cartpole, "remax": remax_cartpole,
}  # fmt: skip
COMMON = {
    "env_id": ID, "num_envs": B, "num_minibatches": 2, "update_epochs": 3, "learning_rate": 2e-3, "clip_coef": 0.001,
    "ent_coef": 0.3, "max_grad_norm": 1e-3, "eval_episodes": 1, "total_timesteps": 1, "seed": 11,
}  # fmt: skip
OWN = {
    "sppo": {"critic_learning_rate": 5e-3, "critic_steps": 7, "critic_batch_size": 5, "critic_window": 2},
    "ppo": {"critic_learning_rate": 5e-3, "gamma": 0.9, "gae_lambda": 0.6},
    "grpo": {"group_size": 8},
    "rloo": {"group_size": 4},
    "remax": {},
}
"""No number is a default or occurs twice, so that none can replace another."""


def shortened(episodes):
    """The same episodes, but they end at different times: all of this task's may last equally long."""
    last = torch.minimum(episodes.lengths - 1, 90 + 5 * torch.arange(B))
    t = torch.arange(episodes.mask.shape[1])
    reward = torch.where(t == last[:, None], episodes.outcome[:, None], 0.0)
    return dataclasses.replace(episodes, mask=t <= last[:, None], reward=reward)


def watch(script, folder, **changes):
    """Run one update, and return what was called with what."""
    seen = SimpleNamespace(
        rollouts=[], surrogates=[], means=[], gae=[], value_losses=[], backward=[], adam=[], steps=[]
    )

    with pytest.MonkeyPatch.context() as patch:

        def spy(owner, name, into):
            real = getattr(owner, name)
            parameters = inspect.signature(real if name != "rollout" else rollout)

            def call(*args, **kwargs):
                result = real(*args, **kwargs)
                bound = parameters.bind(*args, **kwargs)
                bound.apply_defaults()
                into.append((SimpleNamespace(**bound.arguments), result))
                return result

            patch.setattr(owner, name, call)

        real_rollout = script.rollout
        patch.setattr(script, "rollout", lambda *args, **kwargs: shortened(real_rollout(*args, **kwargs)))
        spy(script, "rollout", seen.rollouts)
        spy(core, "clipped_surrogate", seen.surrogates)
        spy(core, "masked_mean", seen.means)
        spy(core, "generalized_advantage", seen.gae)
        spy(core, "bernoulli_value_loss", seen.value_losses)
        spy(core, "squared_value_loss", seen.value_losses)
        real_backward, real_adam, real_end = torch.Tensor.backward, torch.optim.Adam.__init__, runs.Run.end_update

        def backward(self, *args, **kwargs):
            seen.backward.append(float(self.detach()))
            return real_backward(self, *args, **kwargs)

        def adam(self, *args, **kwargs):
            real_adam(self, *args, **kwargs)
            seen.adam.append(self)

        def end_update(self, episodes, metrics, *args, **kwargs):
            seen.metrics = dict(metrics)
            return real_end(self, episodes, metrics, *args, **kwargs)

        def before_step(optimizer, args, kwargs):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            seen.steps.append((seen.adam.index(optimizer), float(torch.cat([g.flatten() for g in gradients]).norm())))

        patch.setattr(torch.Tensor, "backward", backward)
        patch.setattr(torch.optim.Adam, "__init__", adam)
        patch.setattr(runs.Run, "end_update", end_update)
        hook = register_optimizer_step_pre_hook(before_step)
        try:
            seen.run = script.train(script.Args(**changes, runs_dir=str(folder)))
        finally:
            hook.remove()
    seen.args, seen.episodes = seen.run.args, seen.rollouts[0][1]
    return seen


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """name of the script -> what was seen; each script runs once."""
    found = {}

    def of(name, **changes):
        key = (name, *sorted(changes.items()))
        if key not in found:
            values = {**COMMON, **OWN[name], **changes}
            found[key] = watch(SCRIPTS[name], tmp_path_factory.mktemp(name), **values)
        return found[key]

    return of


def rows(seen, logp_old):
    """Which episodes of the batch these are."""
    return [int((seen.episodes.logp == row).all(1).nonzero()[0, 0]) for row in logp_old]


def expected_order(seen):
    """The minibatches, and the generator after they were drawn: the stream "shuffle" of update 0."""
    rng = np.random.default_rng([seen.args.seed, 0, 1])
    drawn = [rng.permutation(B).reshape(2, -1).tolist() for _ in range(seen.args.update_epochs)]
    return [mb for epoch in drawn for mb in epoch], rng


def first(seen, kind, name):
    """A network as it was before the update."""
    network = kind(
        4, *((2,) if kind is CategoricalPolicy else ()), obs_scale=seen.run.parts["policy"].obs_scale.tolist()
    )
    network.load_tensors(load_file(seen.run.checkpoints()[0] / f"{name}.safetensors"))
    return network


# ------------------------------------------------------------------------------------------------------ the policy
@pytest.mark.parametrize("name", SCRIPTS)
def test_epochs_and_minibatches_follow_the_stream_shuffle(name, watched):
    seen = watched(name)
    assert [rows(seen, x.logp_old) for x, _ in seen.surrogates] == expected_order(seen)[0]
    for (x, _), mb in zip(seen.surrogates, expected_order(seen)[0], strict=True):
        assert torch.equal(x.mask, seen.episodes.mask[mb])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_loss_is_the_clipped_surrogate_per_step_less_the_entropy_bonus(name, watched):
    """--clip-coef and --ent-coef, by the equation; the entropy is that of the policy, in nats."""
    seen = watched(name)
    policy_losses = [loss for loss, step in zip(seen.backward, seen.steps, strict=True) if step[0] == 0]
    clipped = 0
    for (x, result), (_, entropy), loss in zip(seen.surrogates, seen.means, policy_losses, strict=True):
        ratio = (x.logp - x.logp_old).exp()
        A = x.advantage if x.advantage.ndim == 2 else x.advantage[:, None].expand_as(ratio)
        assert A[x.mask].abs().max() > 0.1
        bounded = ratio.clamp(1 - 0.001, 1 + 0.001)
        by_hand = -torch.minimum(ratio * A, bounded * A)[x.mask].mean()
        clipped += int((ratio != bounded)[x.mask].sum())
        torch.testing.assert_close(result.loss, by_hand, rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx((by_hand - 0.3 * entropy).item(), rel=1e-4, abs=1e-6)
    assert clipped > 0
    mb = expected_order(seen)[0][0]
    logits = first(seen, CategoricalPolicy, "policy")(seen.episodes.obs[mb])
    entropy = torch.distributions.Categorical(logits=logits).entropy()[seen.episodes.mask[mb]].mean()
    assert seen.means[0][1].item() == pytest.approx(entropy.item(), rel=1e-4)


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_weight_there_is_no_entropy_in_the_loss(name, watched):
    seen = watched(name, ent_coef=0.0, num_minibatches=1, update_epochs=1)
    assert seen.backward[0] == pytest.approx(seen.surrogates[0][1].loss.item())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_learning_rates_and_epsilon_of_adam(name, watched):
    seen = watched(name)
    groups = [group for optimizer in seen.adam for group in optimizer.param_groups]
    rates = [2e-3, 5e-3] if name in ("sppo", "ppo") else [2e-3]
    assert [group["lr"] for group in groups] == rates
    assert {(group["eps"], group["betas"], group["weight_decay"]) for group in groups} == {(1e-5, (0.9, 0.999), 0)}
    policy = seen.run.parts["policy"]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in policy.parameters()]
    assert seen.metrics["charts/learning_rate"] == 2e-3
    if len(rates) == 2:  # --adam-eps is of the policy alone
        seen = watched(name, adam_eps=0.5, update_epochs=1)
        assert [group["eps"] for optimizer in seen.adam for group in optimizer.param_groups] == [0.5, 1e-5]


@pytest.mark.parametrize("name", SCRIPTS)
def test_longer_gradients_are_scaled_down_to_the_norm(name, watched):
    """--max-grad-norm, of policy and critic each; the log has the norms before."""
    seen = watched(name)
    assert {index for index, _ in seen.steps} == set(range(len(seen.adam)))
    for index, norm in seen.steps:
        assert norm == pytest.approx(1e-3, rel=1e-2), "policy" if index == 0 else "critic"
    assert seen.metrics["losses/grad_norm"] > 1e-2
    assert sum(index == 0 for index, _ in seen.steps) == 2 * 3


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_logged_losses_are_means_over_all_minibatches(name, watched):
    seen = watched(name)
    steps = np.array([float(result.num_steps) for _, result in seen.surrogates])
    for tag, values in {
        "entropy": [x for _, x in seen.means],
        "policy_loss": [result.loss for _, result in seen.surrogates],
        "approx_kl": [result.approx_kl for _, result in seen.surrogates],
        "clipfrac": [result.clipfrac for _, result in seen.surrogates],
    }.items():
        average = np.average([float(x.detach()) for x in values], weights=steps)
        assert seen.metrics[f"losses/{tag}"] == pytest.approx(average, rel=1e-4), tag
    assert 0 < seen.metrics["losses/entropy"] < np.log(2)


@pytest.mark.parametrize("name", SCRIPTS)
def test_from_scratch_and_hidden(name, tmp_path):
    script = SCRIPTS[name]
    args = {**COMMON, **OWN[name], "horizon": 2, "update_epochs": 1}
    run = script.train(script.Args(**args, from_scratch=True, hidden=(5, 3), runs_dir=str(tmp_path)))
    start = load_file(run.checkpoints()[0] / "policy.safetensors")
    assert [len(start[f"layers.{i}.weight"]) for i in range(3)] == [5, 3, 2]


@pytest.mark.parametrize("name", SCRIPTS)
def test_capture_video_films_the_trained_policy_after_each_checkpoint(name, tmp_path, monkeypatch):
    """What a film is, and that it changes no number, is tested in test_hub.py."""
    filmed, asked = [], []

    def camera(args, policy):
        asked.append(args.capture_video)
        return lambda folder, update: filmed.append((folder, update, policy)) or 0.0

    script = SCRIPTS[name]
    monkeypatch.setattr(videos, "camera", camera)
    args = {**COMMON, **OWN[name], "horizon": 2, "update_epochs": 1}
    run = script.train(script.Args(**args, capture_video=True, runs_dir=str(tmp_path)))
    assert asked == [True]
    assert [(folder, update) for folder, update, _ in filmed] == [(run.folder, 0), (run.folder, 1)]
    assert all(policy is run.parts["policy"] for *_, policy in filmed)


@pytest.mark.parametrize("name", SCRIPTS)
def test_track_names_the_service_that_gets_the_curves(name, tmp_path, monkeypatch):
    """What reaches the service is tested in test_tracking.py."""
    began, logged = [], []

    class Tracker:
        def __init__(self, service, folder, config):
            began.append((service, config["env_id"]))

        def log(self, scalars, step):
            logged.append((scalars["charts/success_rate"], step))

        def finish(self, summary=None):
            pass

    script = SCRIPTS[name]
    monkeypatch.setattr(runs, "Tracker", Tracker)
    args = {**COMMON, **OWN[name], "horizon": 2, "update_epochs": 1}
    run = script.train(script.Args(**args, track="trackio", runs_dir=str(tmp_path)))
    assert began == [("trackio", ID)]
    assert [step for _, step in logged] == [run.steps]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_watched_run_is_drawn_and_is_the_same_run(name, tmp_path, monkeypatch):
    """--watch: on a terminal, and where there is none; with what the last update logged below the picture."""
    script, seen = SCRIPTS[name], []
    values = {**COMMON, **OWN[name], "total_timesteps": 6_500, "kernels": "torch", "save_every": 1}
    real = runs.Run.end_update

    def end_update(self, episodes, metrics, *args, **kwargs):
        seen.append((episodes.outcome.sum(), dict(metrics)))
        return real(self, episodes, metrics, *args, **kwargs)

    monkeypatch.setattr(runs.Run, "end_update", end_update)
    plain = script.train(script.Args(**values, runs_dir=str(tmp_path / "plain")))
    blind = script.train(script.Args(**values, watch=True, runs_dir=str(tmp_path / "blind")))
    with terminal_for_errors(monkeypatch) as screen:
        watched = script.train(script.Args(**values, watch=True, runs_dir=str(tmp_path / "watched")))
    assert plain.view is None
    assert blind.view is None
    lines = screen.screen()
    (title,) = pictures(lines)
    (_, last), updates = seen[-1], len(seen) // 3
    assert updates >= 2
    assert [[won for won, _ in seen[i * updates : (i + 1) * updates]] for i in (1, 2)] == [
        [won for won, _ in seen[:updates]]
    ] * 2
    numbers = f"V(s_0) {last['critic/v0_mean']:.2f}   KL {last['losses/approx_kl']:.4f}   clipped"
    assert f"{numbers} {last['losses/clipfrac']:.3f}" in lines[title + 11]
    assert re.search(r"success (\S+)  ", lines[title + 11])[1] in lines[title + 12]
    assert lines[title + 12].startswith(f"{name}_cartpole:")
    for run in (blind, watched):
        assert [c.name for c in run.checkpoints()] == [c.name for c in plain.checkpoints()]
        for one, other in zip(run.checkpoints(), plain.checkpoints(), strict=True):
            for file in other.glob("*.safetensors"):
                assert (one / file.name).read_bytes() == file.read_bytes()
        assert run.summary["after"] == plain.summary["after"]


# ------------------------------------------------------------------------------------------------------- baselines
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_logged_of_the_baseline(name, watched):
    seen = watched(name)
    R, obs = seen.episodes.outcome, seen.episodes.obs
    assert 0 < R.mean() < 1
    with torch.no_grad():
        v0 = {
            "sppo": lambda: torch.sigmoid(first(seen, Critic, "critic")(obs[:, 0])),
            "ppo": lambda: first(seen, Critic, "critic")(obs[:, 0]),
            "grpo": lambda: R.view(-1, 8).mean(1).repeat_interleave(8),
            "rloo": lambda: (R.view(-1, 4).sum(1).repeat_interleave(4) - R) / 3,
            "remax": lambda: seen.rollouts[1][1].outcome,
        }[name]()
    assert seen.metrics["critic/v0_mean"] == pytest.approx(float(v0.mean()), rel=1e-4, abs=1e-5)
    assert seen.metrics["critic/brier"] == pytest.approx(float((v0 - R).square().mean()), rel=1e-4, abs=1e-6)
    assert seen.metrics["critic/ece"] == pytest.approx(
        float(core.expected_calibration_error(v0, R)), rel=1e-4, abs=1e-6
    )
    if name != "ppo":  # which logs that of all steps
        explained = float(core.explained_variance(v0, R))
        assert seen.metrics["losses/explained_variance"] == pytest.approx(explained, rel=1e-4, abs=1e-5)
    kwargs = [{k: vars(x)[k] for k in ("greedy", "group_size")} for x, _ in seen.rollouts]
    sampled = {"greedy": False, "group_size": {"grpo": 8, "rloo": 4}.get(name, 1)}
    assert kwargs == [sampled, *([{"greedy": True, "group_size": 1}] if name == "remax" else [])]


ADVANTAGE = {
    "sppo": lambda R, v0, greedy: R - v0,
    "grpo": lambda R, v0, greedy: (R - v0) / R.view(-1, 8).std(1, correction=0).repeat_interleave(8).clamp(min=1e-9),
    "rloo": lambda R, v0, greedy: R - (R.view(-1, 4).sum(1).repeat_interleave(4) - R) / 3,
    "remax": lambda R, v0, greedy: R - greedy,
}


@pytest.mark.parametrize("name", ADVANTAGE)
def test_the_advantage_that_reaches_the_loss(name, watched):
    """In groups with both outcomes, where no two of these formulas agree."""
    seen = watched(name)
    R = seen.episodes.outcome
    size = {"grpo": 8, "rloo": 4}.get(name, B)
    assert ((R.view(-1, size).mean(1) > 0) & (R.view(-1, size).mean(1) < 1)).any()
    with torch.no_grad():
        v0 = R.view(-1, 8).mean(1).repeat_interleave(8) if name == "grpo" else None
        v0 = torch.sigmoid(first(seen, Critic, "critic")(seen.episodes.context)) if name == "sppo" else v0
    expected = ADVANTAGE[name](R, v0, seen.rollouts[-1][1].outcome)
    for x, _ in seen.surrogates:
        torch.testing.assert_close(x.advantage, expected[rows(seen, x.logp_old)], rtol=1e-4, atol=1e-5)


def test_ppo_hands_gamma_and_lambda_to_its_advantage_and_its_critic_learns_the_returns(watched):
    seen = watched("ppo")
    ((x, (advantage, returns)),) = seen.gae
    assert (x.gamma, x.gae_lambda) == (0.9, 0.6)
    assert torch.equal(x.reward, seen.episodes.reward)
    torch.testing.assert_close(x.value, first(seen, Critic, "critic")(seen.episodes.obs).detach())
    assert len(seen.value_losses) == 2 * 3
    for (loss, _), (policy, _), mb in zip(seen.value_losses, seen.surrogates, expected_order(seen)[0], strict=True):
        assert torch.equal(loss.returns, returns[mb])
        assert torch.equal(loss.mask, seen.episodes.mask[mb])
        assert torch.equal(policy.advantage, advantage[mb])
    explained = core.explained_variance(x.value, returns, seen.episodes.mask)
    assert seen.metrics["losses/explained_variance"] == pytest.approx(float(explained), rel=1e-4, abs=1e-6)


def test_ppos_cross_entropy_is_over_all_real_steps(watched):
    seen = watched("ppo", critic_loss="bce")
    ((x, (_, returns)),) = seen.gae
    probability = torch.sigmoid(first(seen, Critic, "critic")(seen.episodes.obs)).detach()
    torch.testing.assert_close(x.value, probability)
    for (loss, _), mb in zip(seen.value_losses, expected_order(seen)[0], strict=True):
        mask = seen.episodes.mask[mb]
        assert loss.value_logit.shape == (int(mask.sum()),)
        torch.testing.assert_close(loss.outcome, returns[mb][mask].clamp(0, 1))
    mb = expected_order(seen)[0][0]
    before = torch.sigmoid(seen.value_losses[0][0].value_logit).detach()
    torch.testing.assert_close(before, probability[mb][seen.episodes.mask[mb]])


# ---------------------------------------------------------------------------------------- what people leave switched on
def normalized(A, mask, floor=0.0):
    """The plain formula, over real steps: A of all steps, mean 0 and size 1; `floor` is added to the variance."""
    each = A[:, None].expand(mask.shape) if A.ndim == 1 else A
    steps = each[mask].double()
    return ((A - steps.mean()) / (steps.var() + floor).sqrt()).float()


@pytest.mark.parametrize("name", ["sppo", "ppo", "rloo"])
def test_normalised_advantages_reach_the_loss_and_the_log_has_them_as_they_were(name, watched):
    """--norm-adv: of each minibatch, or once of the batch, where verl's epsilon of the variance counts."""
    plain = watched(name)
    adv = torch.zeros_like(plain.episodes.logp if name == "ppo" else plain.episodes.outcome)
    for (x, _), mb in zip(plain.surrogates, expected_order(plain)[0], strict=True):
        adv[mb] = x.advantage
    for norm_adv in ("minibatch", "batch"):
        seen = watched(name, norm_adv=norm_adv)
        mask = seen.episodes.mask
        for (x, _), mb in zip(seen.surrogates, expected_order(seen)[0], strict=True):
            expected = normalized(adv[mb], mask[mb]) if norm_adv == "minibatch" else normalized(adv, mask, 1e-8)[mb]
            real = mask[mb] if name == "ppo" else slice(None)
            torch.testing.assert_close(x.advantage[real], expected[real], rtol=1e-3, atol=1e-4)
        for tag in ("advantages/mean", "advantages/std", "critic/v0_mean"):
            assert seen.metrics[tag] == plain.metrics[tag]


@pytest.mark.parametrize("name", ["sppo", "grpo"])
def test_the_sequences_ratio_is_that_of_all_steps_of_an_episode(name, watched):
    """--ratio sequence: the first ratio of an update that is not 1 is a mean over the episode's real steps."""
    seen = watched(name, ratio="sequence")
    x, result = seen.surrogates[1]
    mean = torch.stack([row[m].mean() for row, m in zip(x.logp - x.logp_old, x.mask, strict=True)]).detach()
    assert (mean.exp().min().item(), mean.exp().max().item()) == pytest.approx(
        (float(result.ratio_min), float(result.ratio_max)), rel=1e-5
    )
    by_step = watched(name).surrogates[1][1]
    assert result.ratio_max - result.ratio_min < by_step.ratio_max - by_step.ratio_min


def test_grpo_without_the_deviation_and_with_other_reductions(watched):
    """--no-normalize-std and --reduction: Dr. GRPO divides by b x the task's horizon, GSPO takes the mean of means."""
    seen = watched("grpo", normalize_std=False, reduction="fixed", ent_coef=0.0)
    R = seen.episodes.outcome
    centred = R - R.view(-1, 8).mean(1).repeat_interleave(8)
    total, steps = 0.0, 0
    for (x, result), mb, loss in zip(seen.surrogates, expected_order(seen)[0], seen.backward, strict=True):
        torch.testing.assert_close(x.advantage, centred[mb])
        ratio, A = (x.logp - x.logp_old).exp(), x.advantage[:, None].expand_as(x.logp)
        terms = torch.minimum(ratio * A, ratio.clamp(0.999, 1.001) * A)
        assert loss == pytest.approx(-terms[x.mask].sum().item() / (8 * 200), rel=1e-4, abs=1e-7)
        total, steps = total + terms[x.mask].sum().item(), steps + int(result.num_steps)
    assert seen.metrics["losses/policy_loss"] == pytest.approx(-total / steps, rel=1e-4, abs=1e-7), "a mean over steps"
    seen = watched("grpo", reduction="sequence-mean", ent_coef=0.0)
    x, _ = seen.surrogates[0]
    assert seen.backward[0] == pytest.approx(-x.advantage.mean().item(), rel=1e-4, abs=1e-6)  # at ratio 1


def test_ppos_clipped_value_loss_is_around_the_values_before_the_update(watched):
    """--clip-vloss, with --clip-coef 0.001: after the first epoch nearly all values have moved farther than that."""
    seen = watched("ppo", clip_vloss=True)
    ((gae, (_, returns)),) = seen.gae
    for (x, result), mb in zip(seen.value_losses, expected_order(seen)[0], strict=True):
        V, old, G = x.value.detach(), gae.value[mb], returns[mb]
        clipped = old + (V - old).clamp(-0.001, 0.001)
        by_hand = 0.5 * torch.maximum((V - G).square(), (clipped - G).square())[x.mask].mean()
        assert result.item() == pytest.approx(by_hand.item(), rel=1e-5)
    plain = watched("ppo")
    assert seen.metrics["losses/value_loss"] > plain.metrics["losses/value_loss"]


def test_the_critics_own_lambda_changes_its_targets_alone(watched):
    """--critic-gae-lambda 1 with --gae-lambda 0.6: the advantages are as without it, the targets discounted outcomes."""
    seen = watched("ppo", critic_gae_lambda=1.0)
    assert [x.gae_lambda for x, _ in seen.gae] == [0.6, 1.0]
    (_, (advantage, _)), (_, (_, returns)) = seen.gae
    assert torch.equal(advantage, watched("ppo").gae[0][1][0])
    left = seen.episodes.lengths[:, None] - 1 - torch.arange(returns.shape[1])
    expected = torch.where(seen.episodes.mask, seen.episodes.outcome[:, None] * 0.9**left, 0.0)
    torch.testing.assert_close(returns, expected, rtol=1e-4, atol=1e-6)
    for (loss, _), (policy, _), mb in zip(seen.value_losses, seen.surrogates, expected_order(seen)[0], strict=True):
        assert torch.equal(loss.returns, returns[mb])
        assert torch.equal(policy.advantage, advantage[mb])


@pytest.mark.parametrize("name", ["sppo", "ppo"])
def test_in_a_warm_up_the_critic_alone_is_trained(name, watched):
    seen = watched(name, critic_warmup_batches=1)
    assert not seen.surrogates
    assert {index for index, _ in seen.steps} == {1}
    assert len(seen.steps) == len(watched(name).value_losses)
    assert seen.metrics["charts/warmup"] == 1
    assert watched(name).metrics["charts/warmup"] == 0
    first_policy, last_policy = (load_file(c / "policy.safetensors") for c in seen.run.checkpoints())
    assert all(torch.equal(first_policy[key], last_policy[key]) for key in first_policy)


def test_annealed_learning_rates_fall_in_a_straight_line_to_zero(tmp_path, monkeypatch):
    rates, real = [], runs.Run.end_update

    def end_update(self, episodes, metrics):
        rates.append((self.steps, metrics["charts/learning_rate"], self.parts["critic_optimizer"]))
        return real(self, episodes, metrics)

    monkeypatch.setattr(runs.Run, "end_update", end_update)
    args = {**COMMON, **OWN["ppo"], "horizon": 5, "update_epochs": 1, "total_timesteps": 320, "anneal_lr": True}
    ppo_cartpole.train(ppo_cartpole.Args(**args, runs_dir=str(tmp_path)))
    assert [step for step, *_ in rates] == [0, 80, 160, 240]
    assert [rate for _, rate, _ in rates] == pytest.approx([2e-3, 1.5e-3, 1e-3, 0.5e-3])
    state = rates[-1][2].optimizer
    assert state.param_groups[0]["lr"] == pytest.approx(5e-3 / 4), "the critic's, too"


# ------------------------------------------------------------------------------------------------------ SPO's baseline
def test_spo_compares_an_outcome_with_the_contexts_earlier_ones(tmp_path, monkeypatch):
    """--baseline tracked --num-contexts 6: two updates by hand. An episode's seed says which context it has."""
    rollouts, surrogates, real_rollout, real_surrogate = [], [], rollout, core.clipped_surrogate

    def spy_rollout(*args, **kwargs):
        episodes = real_rollout(*args, **kwargs)
        if kwargs.get("seeds") is not None:
            rollouts.append((kwargs["seeds"], episodes))
        return episodes

    def spy_surrogate(*args, **kwargs):
        result = real_surrogate(*args, **kwargs)
        surrogates.append((args[2], float(result.approx_kl), int(result.num_steps)))
        return result

    monkeypatch.setattr(rloo_cartpole, "rollout", spy_rollout)
    monkeypatch.setattr(core, "clipped_surrogate", spy_surrogate)
    args = {**COMMON, "group_size": 1, "baseline": "tracked", "num_contexts": 6, "eval_episodes": 64, "clip_coef": 0.2}
    args |= {"num_minibatches": 1, "update_epochs": 2, "total_timesteps": 3300, "max_grad_norm": 1.0}
    run = rloo_cartpole.train(rloo_cartpole.Args(**args, runs_dir=str(tmp_path)))
    assert len(rollouts) == 2
    pool = sorted({seed for seeds, _ in rollouts for seed in seeds})
    assert len(pool) <= 6
    contexts = {}
    prior = run.summary["before"]["rate"]
    count = {seed: [8 * prior, 8 * (1 - prior), 0.0] for seed in pool}
    for update, (seeds, episodes) in enumerate(rollouts):
        for seed, context in zip(seeds, episodes.context.tolist(), strict=True):
            assert contexts.setdefault(seed, context) == context, "one seed, one initial state"
        V = torch.tensor([count[seed][0] / sum(count[seed][:2]) for seed in seeds])
        adv = episodes.outcome - V
        order = np.random.default_rng([11, update, 1])
        for epoch in range(2):
            mb = order.permutation(B)
            torch.testing.assert_close(surrogates[2 * update + epoch][0], adv[mb], rtol=1e-4, atol=1e-5)
        for seed in set(seeds):
            alpha, beta, kl = count[seed]
            rho = min(max(2 ** (-kl / 0.06), 0.875), 0.96)
            mine = [r for r, s in zip(episodes.outcome.tolist(), seeds, strict=True) if s == seed]
            count[seed] = [rho * alpha + sum(mine), rho * beta + len(mine) - sum(mine), 0.0]
        kls = surrogates[2 * update : 2 * update + 2]
        for seed in pool:
            count[seed][2] += float(np.average([kl for _, kl, _ in kls], weights=[n for *_, n in kls]))
    tracker = run.parts["tracker"]
    found = {round(float(a), 3) for a in tracker.alpha}
    assert {round(a, 3) for a, _, _ in count.values()} <= found
    for *_, kl in count.values():  # since its last visit; those of the last batch have gone less far than the others
        assert (tracker.kl - kl).abs().min() < 1e-4 * kl


def test_without_repeated_contexts_spo_has_one_tracker(watched):
    seen = watched("rloo", group_size=1, baseline="tracked")
    assert len(seen.run.parts["tracker"].alpha) == 1
    V = seen.run.summary["before"]["rate"]
    for x, _ in seen.surrogates:
        torch.testing.assert_close(x.advantage, seen.episodes.outcome[rows(seen, x.logp_old)] - V)
    assert seen.metrics["critic/v0_mean"] == pytest.approx(V)


def test_so_many_contexts_come_again_and_again(watched):
    """--num-contexts, for RLOO's groups too: the contexts of a batch are among them."""
    seen = watched("rloo", num_contexts=2)
    assert len({tuple(x) for x in seen.episodes.context.tolist()}) <= 2
    assert len({tuple(x) for x in watched("rloo").episodes.context.tolist()}) == 4
    assert (seen.episodes.context.view(4, 4, -1) == seen.episodes.context.view(4, 4, -1)[:, :1]).all()


# ------------------------------------------------------------------------------------------- SPPO's critic recipes
def test_the_window_recipe_draws_so_many_contexts_so_often(watched):
    """--critic-steps, --critic-batch-size; drawn after the minibatches from the same stream."""
    seen = watched("sppo")
    rng, R = expected_order(seen)[1], seen.episodes.outcome
    drawn = [R[torch.from_numpy(rng.integers(B, size=5))] for _ in range(7)]
    assert [x.outcome.tolist() for x, _ in seen.value_losses] == [x.tolist() for x in drawn]
    assert [x.value_logit.shape for x, _ in seen.value_losses] == [(5,)] * 7
    logged = np.mean([float(result.detach()) for _, result in seen.value_losses])
    assert seen.metrics["losses/value_loss"] == pytest.approx(logged, rel=1e-5)
    assert len(seen.run.parts["recent"].named_tensors()["contexts"]) == 2, "--critic-window"


def test_the_papers_recipe_takes_the_policys_minibatches(tmp_path):
    values = {**COMMON, "critic_recipe": "paper", "critic_learning_rate": 5e-3}
    seen = watch(sppo_cartpole, tmp_path, **values)
    order, R = expected_order(seen)[0], seen.episodes.outcome
    assert [x.outcome.tolist() for x, _ in seen.value_losses] == [R[mb].tolist() for mb in order]
    critic = first(seen, Critic, "critic")
    torch.testing.assert_close(seen.value_losses[0][0].value_logit, critic(seen.episodes.context[order[0]]))
