"""Networks against plain torch, sampling, starting policies, whole episodes."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import sppo_cartpole
import sppo_envs
from sppo_control import networks, starts
from sppo_control.networks import Critic
from sppo_control.policies import CategoricalPolicy, GaussianPolicy, load_policy, make_policy, save_policy
from sppo_control.rollout import ContextWindow, evaluate, rollout, success_by_context

ID = "sppo/PrecisionCartPole-v0"


@pytest.fixture
def envs():
    return sppo_envs.make_task(ID, 16)


@pytest.mark.parametrize("hidden", [(64, 64), (8,), (), (3, 70, 5)])
@pytest.mark.parametrize("lead", [(7,), (3, 5), (300, 2)])
def test_network_and_its_gradient_equal_plain_layers(hidden, lead):
    torch.manual_seed(0)
    network = CategoricalPolicy(4, 3, hidden, obs_scale=(1.0, 0.5, 10.0, 2.0))
    with torch.no_grad():
        network.flat.add_(0.1 * torch.randn_like(network.flat))
    plain = network.to_sequential()
    obs, weight = torch.randn(*lead, 4), torch.randn(*lead, 3)
    (network(obs) * weight).sum().backward()
    (plain(obs) * weight).sum().backward()
    torch.testing.assert_close(network(obs), plain(obs), rtol=1e-4, atol=2e-6)
    linears = [m for m in plain if isinstance(m, nn.Linear)]
    grads = networks._split(network.flat.grad, network.sizes)
    for i, (linear, (weight_grad, bias_grad)) in enumerate(zip(linears, grads, strict=True)):
        expected = linear.weight.grad * network.obs_scale if i == 0 else linear.weight.grad
        torch.testing.assert_close(weight_grad, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(bias_grad, linear.bias.grad, rtol=1e-3, atol=1e-4)


def test_network_gradient_by_finite_differences():
    torch.manual_seed(0)
    sizes = (3, 5, 4, 2)
    flat = torch.randn(sum((i + 1) * o for i, o in itertools.pairwise(sizes)), dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, flat: networks._TanhMLP.apply(x, flat, sizes), (x.requires_grad_(), flat.requires_grad_())
    )


def test_initial_weights_are_orthogonal_as_cleanrls():
    torch.manual_seed(0)
    layers = CategoricalPolicy(4, 2).layers()
    for i, (gain, (weight, bias)) in enumerate(zip((2**0.5, 2**0.5, 0.01), layers, strict=True)):
        small = weight if weight.shape[0] <= weight.shape[1] else weight.T
        torch.testing.assert_close(small @ small.T, gain**2 * torch.eye(len(small)), rtol=0, atol=1e-5)
        assert (bias == 0).all(), i


def test_gradients_are_clipped_as_by_torch_bit_for_bit():
    rng = np.random.default_rng(0)
    for case in range(300):
        shapes = [tuple(rng.integers(1, 40, rng.integers(1, 3))) for _ in range(rng.integers(1, 4))]
        size = float(rng.choice([0.0, 1e-4, 1.0, 1e30]))
        ours = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for p in ours:
            p.grad = torch.from_numpy(rng.normal(size=p.shape)).float() * size
        theirs = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for p, q in zip(theirs, ours, strict=True):
            p.grad = q.grad.clone()
        ours.append(nn.Parameter(torch.zeros(2)))  # without a gradient
        norms = networks.clip_grad_norm_(iter(ours), 0.5), nn.utils.clip_grad_norm_(theirs, 0.5, foreach=False)
        assert norms[0] == norms[1] or size == 1e30, case  # overflow: infinite in both
        for p, q in zip(theirs, ours, strict=False):
            assert torch.equal(p.grad, q.grad), case
    with pytest.raises(ValueError, match="no gradient"):
        networks.clip_grad_norm_(ours[-1:], 0.5)


@pytest.mark.parametrize("fused", [True, False])
def test_adam_is_torchs_bit_for_bit_also_after_a_checkpoint(fused):
    rng = np.random.default_rng(0)
    classes = networks.Adam, torch.optim.Adam
    params = [[nn.Parameter(torch.arange(5.0)), nn.Parameter(torch.ones(2, 3))] for _ in classes]
    optimizers = [
        cls(p, lr=0.1, eps=1e-5, weight_decay=0.01, fused=fused) for cls, p in zip(classes, params, strict=True)
    ]
    for step in range(12):
        if step == 6:  # each takes the other's state
            states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            for optimizer, state in zip(optimizers, reversed(states), strict=True):
                optimizer.load_state_dict(state)
        grads = [torch.from_numpy(rng.normal(size=p.shape)).float() for p in params[0]]
        seen = []

        def closure(step=step, seen=seen):
            seen.append(torch.is_grad_enabled())
            return step

        for mine, optimizer in zip(params, optimizers, strict=True):
            optimizer.zero_grad()
            assert all(p.grad is None for p in mine)
            for p, grad in zip(mine, grads, strict=True):
                p.grad = grad.clone()
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            assert optimizer.step(closure) == step
        assert seen == [True, True]
        for p, q in zip(*params, strict=True):
            assert torch.equal(p, q), step
    optimizers[0].zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in params[0])
    assert isinstance(optimizers[0], torch.optim.Adam)  # what looks for torch's class finds ours


def test_a_training_run_does_not_import_what_compiles(tmp_path):
    """torch._dynamo takes a second, and torch's own Adam imports it."""
    code = (
        "import sys, sppo_cartpole as s\nfrom sppo_control import cli\n"
        "args = cli.make_args(s.Args, num_envs=4, num_minibatches=2, total_timesteps=1, eval_episodes=2, "
        f"runs_dir={str(tmp_path)!r})\n"
        "print(s.train(args).update, 'torch._dynamo' in sys.modules)"
    )
    scripts = str(Path(sppo_cartpole.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=scripts)
    assert done.stdout.split()[-2:] == ["1", "False"], done.stderr


@pytest.mark.parametrize("policy", [CategoricalPolicy(4, 3), GaussianPolicy(4, 2)], ids=["categorical", "gaussian"])
def test_numpy_behaviour_has_the_same_outputs_and_sees_new_weights(policy):
    obs = torch.randn(9, 4)
    for _ in range(2):
        _, output = policy.behaviour()(obs.numpy(), None)
        torch.testing.assert_close(torch.from_numpy(output), policy(obs).detach(), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            policy.flat.add_(0.3)


def test_categorical_sampling_and_log_probability():
    policy = CategoricalPolicy(2, 3, hidden=())
    with torch.no_grad():
        policy.layers()[0][1].copy_(torch.tensor([0.5, -1.0, 1.0]))
    obs, rng = np.zeros((60_000, 2), dtype=np.float32), np.random.default_rng(0)
    actions, output = policy.behaviour()(obs, policy.noise(rng, 60_000))
    p = torch.softmax(torch.tensor([0.5, -1.0, 1.0]), 0)
    counts = np.bincount(actions, minlength=3) / 60_000
    assert counts == pytest.approx(p.numpy(), abs=4 * np.sqrt(0.25 / 60_000))
    logp, entropy = policy.log_prob_given(torch.from_numpy(output), torch.from_numpy(actions))
    reference = torch.distributions.Categorical(logits=torch.from_numpy(output))
    torch.testing.assert_close(logp, reference.log_prob(torch.from_numpy(actions)))
    torch.testing.assert_close(entropy, reference.entropy())
    assert (policy.behaviour()(obs[:4], None)[0] == 2).all()


def test_gaussian_sampling_and_log_probability():
    policy = GaussianPolicy(3, 2)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-1.0, 0.4]))
    obs, rng = torch.randn(1, 3).expand(40_000, 3).contiguous(), np.random.default_rng(0)
    actions, mean = policy.behaviour()(obs.numpy(), policy.noise(rng, 40_000))
    assert actions.std(0) == pytest.approx(np.exp([-1.0, 0.4]), rel=0.02)
    assert actions.mean(0) == pytest.approx(mean[0], abs=0.03)
    reference = torch.distributions.Normal(policy(obs), policy.log_std.exp())
    logp, entropy = policy.log_prob(obs, torch.from_numpy(actions))
    torch.testing.assert_close(logp, reference.log_prob(torch.from_numpy(actions)).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, reference.entropy().sum(-1))


# --------------------------------------------------------------------------------------------------- policy files
@pytest.mark.parametrize("env_id", [ID, "Pendulum-v1"])
def test_policy_file_round_trip(env_id, tmp_path):
    envs = sppo_envs.make_task(env_id, 2, None if env_id == ID else -500.0)
    policy = make_policy(envs, hidden=(7, 5))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter))
    save_policy(policy, tmp_path / "p.safetensors", env_id)
    loaded = load_policy(tmp_path / "p.safetensors", envs)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_policy_file_refusals(envs, tmp_path):
    pendulum = sppo_envs.make_task("Pendulum-v1", 2, -500.0)
    save_policy(make_policy(pendulum), tmp_path / "pendulum.safetensors", "Pendulum-v1")
    with pytest.raises(
        ValueError, match=r"made for Pendulum-v1, .*a GaussianPolicy does not fit, a CategoricalPolicy is needed"
    ):
        load_policy(tmp_path / "pendulum.safetensors", envs)
    save_policy(CategoricalPolicy(3, 2), tmp_path / "three.safetensors", "other")
    with pytest.raises(ValueError, match=r"'obs_scale': \(3,\)\} do not fit .*'obs_scale': \(4,\)"):
        load_policy(tmp_path / "three.safetensors", envs)
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_policy(tmp_path / "junk.safetensors", envs)
    with pytest.raises(FileNotFoundError, match="no starting policy at"):
        load_policy(tmp_path / "absent", envs)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="contains no policy of this package"):
        load_policy(tmp_path / "foreign.safetensors", envs)


def test_spaces_that_no_policy_fits_are_refused():
    class Odd:
        single_observation_space = gym.spaces.Box(0, 1, (2, 2))
        single_action_space = gym.spaces.Discrete(2)
        unwrapped = None

    with pytest.raises(ValueError, match="FlattenObservation"):
        make_policy(Odd())
    Odd.single_observation_space = gym.spaces.Box(0, 1, (2,))
    Odd.single_action_space = gym.spaces.MultiDiscrete([2, 2])
    with pytest.raises(ValueError, match="actions must be Discrete"):
        make_policy(Odd())


# -------------------------------------------------------------------------------------------------------- rollout
def test_recorded_episodes_replay_in_the_scalar_environment(envs):
    """Observation, action, mask and outcome belong to the same step of the same episode."""
    torch.manual_seed(0)
    policy = starts.starting_policy(envs, ID, None, False, ())
    with torch.no_grad():
        policy.layers()[-1][1][0] += 0.7  # clumsy, so that some episodes end early
    episodes = rollout(envs, policy, np.random.default_rng(0))
    assert episodes.lengths.min() < episodes.lengths.max() == episodes.obs.shape[1]
    for b in range(16):
        env = gym.make(ID).unwrapped
        env.reset(seed=0)
        n = int(episodes.lengths[b])
        assert episodes.mask[b, :n].all()
        assert not episodes.mask[b, n:].any()
        # float32 observations do not hold the float64 state, so each step is replayed from its own observation
        for t in range(n - 1):
            env.state = episodes.obs[b, t].double().numpy()
            env._steps, env.steps_beyond_terminated = t, None
            obs, _, terminated, _, _ = env.step(int(episodes.actions[b, t]))
            torch.testing.assert_close(torch.from_numpy(obs), episodes.obs[b, t + 1], rtol=1e-5, atol=1e-6)
            assert not terminated
        assert episodes.reward[b].sum() == episodes.outcome[b]
        assert episodes.reward[b, n - 1] == episodes.outcome[b]
    assert episodes.num_steps == int(episodes.lengths.sum())
    torch.testing.assert_close(episodes.context, episodes.obs[:, 0])
    logp, _ = policy.log_prob(episodes.obs, episodes.actions)
    torch.testing.assert_close(episodes.logp[episodes.mask], logp[episodes.mask], rtol=1e-3, atol=1e-5)


def test_rollout_is_a_function_of_its_generator(envs):
    policy = starts.starting_policy(envs, ID, None, False, ())
    a, b, c = (rollout(envs, policy, np.random.default_rng(s)) for s in (0, 0, 1))
    assert torch.equal(a.obs, b.obs)
    assert torch.equal(a.actions, b.actions)
    assert not torch.equal(a.context, c.context)


def test_rollout_of_a_foreign_continuous_environment():
    envs = sppo_envs.make_task("Pendulum-v1", 3, success_return=-800.0, horizon=25)
    torch.manual_seed(0)
    episodes = rollout(envs, make_policy(envs), np.random.default_rng(0))
    assert episodes.actions.shape == (3, 25, 1)
    assert torch.equal(episodes.outcome, (episodes.episode_return >= -800).float())
    assert episodes.mask.all()


def test_rollout_stops_where_an_environment_does_not_end(envs):
    with pytest.raises(RuntimeError, match="16 of 16 episodes were not over after 3 steps"):
        rollout(envs, make_policy(envs), np.random.default_rng(0), horizon=3)


def test_evaluation_counts_exactly_the_episodes_asked_for(envs):
    policy = starts.starting_policy(envs, ID, None, False, ())
    result = evaluate(envs, policy, 40, np.random.default_rng(0), greedy=True)
    assert len(result.outcome) == len(result.info["final_angle"]) == 40
    assert np.array_equal(result.outcome, result.info["success"])
    assert result.rate == result.outcome.mean()
    assert result.interval[0] < result.rate < result.interval[1]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(envs, policy, 0, np.random.default_rng(0))


def test_critic_reads_one_state_or_many():
    critic = Critic(4)
    obs = torch.randn(5, 3, 4)
    assert critic(obs[:, 0]).shape == (5,)
    torch.testing.assert_close(critic(obs)[:, 0], critic(obs[:, 0]), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ groups and greedy twins
@pytest.mark.parametrize("env_id", ["sppo/ContextCartPole-v0", "sppo/SparseLunarLander-v0", "sppo/SparseHopper-v0"])
def test_episodes_of_a_group_share_their_context_and_nothing_else(env_id):
    envs = sppo_envs.make_task(env_id, 12, horizon=30)
    policy = starts.starting_policy(envs, env_id, None, False, ())
    episodes = rollout(envs, policy, np.random.default_rng(0), group_size=4)
    groups = episodes.context.unflatten(0, (3, 4))
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert len(episodes.context.unique(dim=0)) == 3
    assert len({tuple(row.tolist()) for row in episodes.actions.flatten(1)}) > 6, "their actions are their own"
    with pytest.raises(ValueError, match="group_size must divide the number of environments, got 5 for 12"):
        rollout(envs, policy, np.random.default_rng(0), group_size=5)


@pytest.mark.parametrize("env_id", ["sppo/ContextCartPole-v0", "sppo/SparseLunarLander-v0", "sppo/SparseHopper-v0"])
def test_a_greedy_rollout_of_the_same_generator_starts_in_the_same_contexts(env_id):
    envs = sppo_envs.make_task(env_id, 6, horizon=30)
    policy = starts.starting_policy(envs, env_id, None, False, ())
    sampled, greedy = (rollout(envs, policy, np.random.default_rng(4), g) for g in (False, True))
    assert torch.equal(sampled.context, greedy.context)
    assert not torch.equal(sampled.actions[:, :10], greedy.actions[:, :10])


def test_success_by_context_is_the_rate_of_each_context():
    env_id = "sppo/ContextCartPole-v0"
    envs = sppo_envs.make_task(env_id, 16)
    policy = starts.starting_policy(envs, env_id, None, False, ())
    contexts, rate = success_by_context(envs, policy, 5, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    for i in range(5):
        episodes = rollout(envs, policy, rng, group_size=16)
        assert torch.equal(contexts[i], episodes.context[7])
        assert rate[i] == episodes.outcome.mean()
    assert len(rate.unique()) > 1


def test_context_window_holds_the_newest_batches(envs):
    policy, rng = make_policy(envs), np.random.default_rng(0)
    batches = [rollout(envs, policy, rng) for _ in range(3)]
    for i, batch in enumerate(batches):
        batch.outcome.fill_(i / 2)
    window = ContextWindow(2, 16, 4)
    window.add(batches[0])
    context, outcome = window.sample(500, rng)
    assert (outcome == 0).all(), "empty places are never drawn"
    assert len(context.unique(dim=0)) == 16
    window.add(batches[1])
    window.add(batches[2])
    context, outcome = window.sample(2000, rng)
    assert set(outcome.tolist()) == {0.5, 1.0}, "the oldest batch has left"
    newest = batches[2].context
    for c, r in zip(context[:50], outcome[:50], strict=True):
        assert bool((newest == c).all(1).any()) == (r == 1.0), "contexts stay with their outcomes"
    copy = ContextWindow(2, 16, 4)
    for name, x in copy.named_tensors().items():
        x.copy_(window.named_tensors()[name])
    a, b = (w.sample(64, np.random.default_rng(5)) for w in (window, copy))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
