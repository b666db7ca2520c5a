"""Compiled kernels against plain torch: networks, gradients, rollouts, whole runs."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import evaluate
import ppo_cartpole
import sppo_cartpole
import sppo_envs
from sppo_control import cli, compiled, core, extras, networks
from sppo_control.policies import CategoricalPolicy, GaussianPolicy
from sppo_control.rollout import rollout
from sppo_control.starts import starting_policy
from sppo_envs.precision_cartpole import PrecisionCartPoleVectorEnv

COMPILED = (
    "sppo/PrecisionCartPole-v0",
    "sppo/ContextCartPole-v0",
    "sppo/SparsePendulum-v0",
    "sppo/ContextPendulum-v0",
    "sppo/SparseMountainCar-v0",
    "sppo/StopMountainCar-v0",
    "sppo/BalancePendulum-v0",
)


def random_policy(rng, kind):
    """A policy of random size with random weights, observations, actions and gradients of its two results."""
    obs_dim, outputs = (int(x) for x in rng.integers(1, (9, 7)))
    hidden = [int(x) for x in rng.integers(1, 70, size=rng.integers(0, 4))]
    policy = kind(obs_dim, outputs, hidden, rng.uniform(0.1, 5, obs_dim).tolist())
    size = float(rng.choice([0.1, 0.5, 1.0]))  # beyond this, float32 itself keeps five digits
    with torch.no_grad():
        for weight, bias in policy.layers():
            weight.copy_(torch.from_numpy(rng.normal(size=weight.shape)) * size / weight.shape[1] ** 0.5)
            bias.copy_(torch.from_numpy(rng.normal(size=bias.shape)) * size)
    shape = (int(rng.integers(1, 20)), int(rng.integers(1, 60)))
    obs = torch.from_numpy(rng.normal(size=(*shape, obs_dim)).astype(np.float32)) * size
    if kind is CategoricalPolicy:
        actions = torch.from_numpy(rng.integers(0, outputs, shape))
    else:
        actions = torch.from_numpy(rng.normal(size=(*shape, outputs)).astype(np.float32))
    return policy, obs, actions, torch.from_numpy(rng.normal(size=(2, *shape)).astype(np.float32))


def results(policy, obs, actions, weights):
    """Log-probability, entropy, and the gradients of a weighted sum of both."""
    policy.zero_grad()
    logp, entropy = policy.log_prob(obs, actions)
    (logp * weights[0] + entropy * weights[1]).mean().backward()
    grads = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    return [logp.detach(), entropy.detach(), *grads]


def assert_close(kernels, plain, exact, what):
    """No farther from float64 than 1e-6 of its size, or than five times the distance of plain torch."""
    for a, b, c in zip(kernels, plain, exact, strict=True):
        size = float(c.abs().max())
        allowed = max(1e-6 * max(size, 1e-3), 5 * float((b - c).abs().max()))
        assert float((a - c).abs().max()) <= allowed, f"{what}: {float((a - c).abs().max())} > {allowed}, size {size}"


def in_double(policy, obs, actions, weights):
    """The same in float64, in plain torch layers."""
    double = policy.to_sequential().double()
    output = double(obs.double())
    if isinstance(policy, CategoricalPolicy):
        log_p = torch.log_softmax(output, -1)
        logp = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
    else:
        normal = torch.distributions.Normal(output, policy.log_std.detach().double().exp())
        logp, entropy = normal.log_prob(actions.double()).sum(-1), normal.entropy().sum(-1)
    (logp * weights[0] + entropy * weights[1]).mean().backward()
    grads = []
    for i, module in enumerate(m for m in double if isinstance(m, torch.nn.Linear)):
        scale = policy.obs_scale if i == 0 else 1  # `to_sequential` folds the scale into the first layer
        grads += [(module.weight.grad * scale).flatten(), module.bias.grad]
    return [logp.detach(), entropy.detach(), torch.cat(grads)]


def compare(number, seed):
    rng = np.random.default_rng(seed)
    for case, kind in zip(range(number), itertools.cycle((CategoricalPolicy, GaussianPolicy)), strict=False):
        given = random_policy(rng, kind)
        plain = results(*given)[:3]
        with compiled.use("numba"):
            kernels = results(*given)[:3]
        assert_close(kernels, plain, in_double(*given), f"case {case}, {kind.__name__}, widths {given[0].sizes}")


def test_random_networks_agree_with_float64():
    compare(200, seed=0)


@pytest.mark.slow
def test_thousands_of_random_networks_agree_with_float64():
    compare(4000, seed=1)


def test_plain_torch_is_the_default_and_returns_after_use(monkeypatch):
    calls = []
    monkeypatch.setattr(compiled, "value", lambda *a: calls.append(1) or torch.zeros(2))
    critic = networks.Critic(3)
    critic(torch.ones(2, 3))
    assert compiled.chosen() == "torch"
    assert not calls
    with compiled.use("numba"):
        critic(torch.ones(2, 3))
        assert len(calls) == 1
        with compiled.use("torch"):
            critic(torch.ones(2, 3))
        assert len(calls) == 1
        critic(torch.ones(2, 3).double().float().requires_grad_())  # a gradient of the observations is torch's work
        assert len(calls) == 1
    assert compiled.chosen() == "torch"


# ------------------------------------------------------------------------------------------------ the sums of core.py
def random_batch(rng):
    """Random arguments of core's five sums: (name, function of one tensor with gradient, that tensor)."""
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 9)))
    mask = torch.from_numpy(rng.random(shape) < rng.choice([0.3, 0.9, 1.0]))
    mask[rng.integers(shape[0]), rng.integers(shape[1])] = True

    def numbers(size, *of, padded=True):
        x = torch.from_numpy(rng.normal(size=of) * size).float()
        return torch.where(mask, x, torch.nan) if padded else x  # what padding contains must not matter

    advantage = numbers(1.0, *shape) if rng.random() < 0.5 else numbers(1.0, shape[0], padded=False)
    advantage = advantage * float(rng.choice([0.0, 1.0]))  # 0: nothing to learn
    logp_old, size = numbers(1.0, *shape), float(rng.choice([0.0, 0.1, 3.0, 15.0]))
    if rng.random() < 0.2:  # exactly 0, inside and outside of the clipping range, and where r overflows
        logp = logp_old + torch.from_numpy(rng.choice([0.0, 0.1, -0.1, 0.3, -0.3, 95.0, -95.0], shape)).float()
    else:
        logp = logp_old + numbers(size, *shape)
    clip_coef, number = float(rng.choice([0.1, 0.2, 3.0])), float(rng.uniform(0.5, 9))
    denominator = [None, number, torch.tensor(number)][rng.integers(3)]
    logits, outcome = numbers(float(rng.choice([1.0, 50.0])), shape[0], padded=False), rng.random(shape[0]).round(1)
    gamma, gae_lambda = rng.choice([0.0, 0.9, 1.0], 2)
    reward, R = numbers(1.0, *shape), torch.from_numpy(outcome).float()
    return [
        ("surrogate", lambda x, f: core.clipped_surrogate(x, f(logp_old), f(advantage), mask, clip_coef,
                                                          denominator=denominator), logp),
        ("bernoulli", lambda x, f: [core.bernoulli_value_loss(x, f(R), denominator)], logits),
        ("squared", lambda x, f: [core.squared_value_loss(x, f(reward), mask, denominator)], numbers(3.0, *shape)),
        ("mean", lambda x, f: [core.masked_mean(x, mask)], numbers(3.0, *shape)),
        ("lambda", lambda x, f: core.generalized_advantage(f(reward), x, mask, gamma, gae_lambda), numbers(3.0, *shape)),
    ]  # fmt: skip


def sums(function, x, f=lambda x: x):
    """All results, and the gradient of three times the first, where there is one."""
    x = f(x.clone()).requires_grad_()
    found = list(function(x, f))
    if found[0].requires_grad:
        (3 * found[0]).backward()
        assert not any(y.requires_grad for y in found[1:])
        found.append(x.grad)
    return [y.detach() for y in found]


def same_sums(number, seed, monkeypatch):
    calls = []
    apply = {name: getattr(compiled, name) for name in SUMS}
    for name in SUMS:
        monkeypatch.setattr(compiled, name, lambda *a, name=name: calls.append(name) or apply[name](*a))
    rng = np.random.default_rng(seed)
    for case in range(number):
        for name, function, x in random_batch(rng):
            plain, exact = sums(function, x), sums(function, x, torch.Tensor.double)
            before = len(calls)
            with compiled.use("numba"):
                kernels = sums(function, x)
            assert len(calls) == before + 1, f"{name} did not take a kernel"
            for i, (a, b, c) in enumerate(zip(kernels, plain, exact, strict=True)):
                what = f"case {case}, {name}, result {i}: {a} and not {b} (float64 {c})"
                assert (a.dtype, a.shape) == (b.dtype, b.shape), what
                # What is close to overflow, or beyond, may be infinite or not, depending on the order of products.
                huge = c.double().abs() > 1e37
                assert bool((a[huge].sign() == c[huge].sign()).all()), what
                assert bool((a[huge].abs() > 1e36).all()), what
                a, b, right = (torch.where(huge, 0.0, y.double()) for y in (a, b, c))
                size = float(right[right.isfinite()].abs().max()) if right.isfinite().any() else 0.0
                error = 5 * torch.where(right.isfinite() & b.isfinite(), (b - right).abs(), 0.0).max()
                torch.testing.assert_close(
                    a.double(),
                    right,
                    rtol=1e-6,
                    atol=max(1e-6 * max(size, 1.0), float(error)),
                    equal_nan=True,
                    msg=what,
                )


SUMS = ("clipped_surrogate", "bernoulli_value_loss", "squared_value_loss", "masked_mean", "lambda_returns")


def test_compiled_sums_are_those_of_core(monkeypatch):
    same_sums(150, 0, monkeypatch)


@pytest.mark.slow
def test_compiled_sums_are_those_of_core_in_thousands_of_cases(monkeypatch):
    same_sums(2000, 1, monkeypatch)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_number_that_is_not_finite_is_passed_on_as_by_core(bad, advantage):
    """`Run.check_finite` stops at it."""
    logp, zeros, mask = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    logp[1, 1] = bad
    for number in (logp, zeros):  # in logp, in the advantage
        given = (number, zeros, advantage + (zeros if number is logp else logp), mask)
        plain = core.clipped_surrogate(*given)
        with compiled.use("numba"):
            kernels = core.clipped_surrogate(*given)
        for field in plain._fields:
            torch.testing.assert_close(getattr(kernels, field), getattr(plain, field), equal_nan=True, msg=field)


@pytest.mark.parametrize("bad", [-0.1, 1.1, torch.nan, torch.inf])
def test_an_outcome_outside_0_and_1_is_refused_as_by_core(bad):
    outcome = torch.tensor([0.0, 1.0, bad])
    messages = []
    for kernels in ("torch", "numba"):
        with compiled.use(kernels), pytest.raises(ValueError, match=r"outcome must be in \[0, 1\]") as error:
            core.bernoulli_value_loss(torch.zeros(3, requires_grad=True), outcome)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_second_derivative_is_refused():
    """The kernels have none, and without the error it would be 0."""
    critic = networks.Critic(2)
    with compiled.use("numba"):
        loss = core.bernoulli_value_loss(critic(torch.ones(3, 2)), torch.ones(3))
        with pytest.raises(RuntimeError, match="--kernels torch"):
            torch.autograd.grad(loss, critic.flat, create_graph=True)


def test_other_dtypes_are_left_to_torch(monkeypatch):
    for name in SUMS:
        monkeypatch.setattr(compiled, name, None)
    x, mask = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)
    with compiled.use("numba"):
        for dtype in (torch.float64, torch.bfloat16):
            assert core.masked_mean(x.to(dtype), mask) == 0
            assert core.clipped_surrogate(x.to(dtype), x.to(dtype), x.to(dtype), mask).num_steps == 4
        assert core.clipped_surrogate(x, x, x, mask, reduction="sequence-mean").num_steps == 4
        with pytest.raises(ValueError, match="no real step"):
            core.masked_mean(x, ~mask)


def test_a_failure_in_another_thread_is_raised_here(monkeypatch):
    """A kernel that fails in another thread must not leave this one waiting, nor its numbers missing in silence."""
    with compiled.use("numba"):  # says so if numba is missing
        real = compiled._kernels().forward_share

    def fails(*arguments):
        if threading.current_thread() is not threading.main_thread():
            arguments[-1][0] += 1  # it has taken a part
            raise MemoryError("no room")
        time.sleep(0.1)
        real(*arguments)

    critic, obs = networks.Critic(4), torch.randn(4000, 4)
    monkeypatch.setattr(compiled._kernels(), "forward_share", fails)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with compiled.use("numba"), pytest.raises(MemoryError):
            critic(obs)
    finally:
        torch.set_num_threads(before)


def test_values_of_a_critic_and_its_gradient():
    torch.manual_seed(0)
    critic, obs = networks.Critic(4, (64, 64)), torch.randn(7, 300, 4)
    found = {}
    for kernels in ("torch", "numba"):
        with compiled.use(kernels):
            critic.zero_grad()
            value = critic(obs)
            assert value.shape == (7, 300)
            value.square().mean().backward()
            found[kernels] = [value.detach(), critic.flat.grad.clone()]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_acting_on_any_engine_takes_the_kernels_too(rows):
    """`behaviour` serves environments that are not compiled."""
    policy, *_ = random_policy(np.random.default_rng(1), CategoricalPolicy)
    obs = np.random.default_rng(2).normal(size=(rows, policy.sizes[0]))
    plain, noise = policy.behaviour()(obs.astype(np.float32), None), policy.noise(np.random.default_rng(3), rows)
    with compiled.use("numba"):
        act = policy.behaviour()
    for given in (obs, np.asfortranarray(obs)):  # a user's environment may give float64, and any order
        np.testing.assert_allclose(act(given, None)[1], plain[1], rtol=1e-5, atol=1e-5)
    actions, logits = act(obs, noise)
    np.testing.assert_array_equal(actions, (logits + noise).argmax(axis=1))


def test_changed_weights_are_refused_as_in_torch():
    critic, obs = networks.Critic(4), torch.randn(5, 4)
    with compiled.use("numba"):
        value = critic(obs).sum()
        with torch.no_grad():
            critic.flat.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_nan_passes_through():
    critic = networks.Critic(2)
    with compiled.use("numba"):
        assert critic(torch.tensor([[float("nan"), 0.0]])).isnan().all()
        assert critic(torch.tensor([[1e30, -1e30]])).isfinite().all()


def test_results_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(3)
    policy = CategoricalPolicy(5, 3, (20, 20))
    obs, actions = torch.randn(40, 90, policy.sizes[0]), torch.randint(policy.sizes[-1], (40, 90))
    weights = torch.randn(2, 40, 90)
    envs = sppo_envs.make_task(COMPILED[0], 24, None, None, "auto")
    actor = starting_policy(envs, COMPILED[0], None, False, ())
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with compiled.use("numba"):
                episodes = rollout(envs, actor, np.random.default_rng(5))
                found.append([*results(policy, obs, actions, weights), episodes.obs, episodes.logp, episodes.outcome])
    finally:
        torch.set_num_threads(before)
    assert found[0][2].abs().min() > 0  # a gradient of 0 would be equal however it is added up
    for other in found[1:]:
        assert [torch.equal(a, b) for a, b in zip(found[0], other, strict=True)] == [True] * 6


@pytest.mark.parametrize("env_id", COMPILED)
@pytest.mark.parametrize(("greedy", "group_size"), [(False, 1), (True, 1), (False, 4)])
def test_rollouts_are_those_of_the_plain_path(env_id, greedy, group_size):
    envs = sppo_envs.make_task(env_id, 12, None, 60, "auto")
    policy = starting_policy(envs, env_id, None, False, ())
    found = {}
    for kernels in ("torch", "numba"):
        with compiled.use(kernels):
            found[kernels] = rollout(envs, policy, np.random.default_rng(7), greedy=greedy, group_size=group_size)
    a, b = found.values()
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.context, b.context)  # the same initial states, bit for bit
    assert torch.equal(a.outcome, b.outcome)
    torch.testing.assert_close(a.obs, b.obs, atol=1e-4, rtol=1e-4)  # rounding grows along an episode
    torch.testing.assert_close(a.actions, b.actions, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.logp, b.logp, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.reward, b.reward)
    assert a.info.keys() == b.info.keys()
    for name in a.info:
        assert a.info[name].dtype == b.info[name].dtype
        np.testing.assert_allclose(a.info[name], b.info[name], atol=1e-4)
    assert (b.obs[~b.mask] == 0).all()


@pytest.mark.parametrize("env_id", COMPILED)
def test_one_step_is_that_of_gymnasium(env_id):
    """From states all over the space, so that every bound and every branch of the dynamics is met."""
    rng = np.random.default_rng(0)
    envs = sppo_envs.make_task(env_id, 400, None, 1, "auto")
    spread = {"CartPole": (3, 3, 0.3, 3), "Pendulum": (4, 9), "MountainCar": (1.3, 0.08)}
    bounds = next(np.array(x) for name, x in spread.items() if name in env_id)
    states = rng.uniform(-bounds, bounds, (400, len(bounds)))
    if "MountainCar" in env_id:
        states = states.astype(np.float32).astype(np.float64)
    torch.manual_seed(0)
    policy = starting_policy(envs, env_id, None, True, (8,))
    with torch.no_grad():
        policy.flat.mul_(300)  # actions beyond their bounds too; what is rounded in them is 300 times as large
    reset = envs.reset
    envs.reset = lambda seed=None, options=None: reset(seed=seed, options={"state": states})
    found = {}
    for kernels in ("torch", "numba"):
        with compiled.use(kernels):
            run = envs if kernels == "torch" else _with_states(env_id, states)
            episodes = rollout(run, policy, np.random.default_rng(7))
            found[kernels] = (run.state, episodes.outcome, episodes.info)
    np.testing.assert_allclose(found["torch"][0], found["numba"][0], rtol=1e-6, atol=1e-6)
    assert torch.equal(found["torch"][1], found["numba"][1])


def _with_states(env_id, states):
    """The same task, which begins in given states; its steps are unchanged, so that they stay compiled."""
    envs = sppo_envs.make_task(env_id, len(states), None, 1, "auto")
    own = type(envs)
    drawn = type(own.__name__, (own,), {"_draw": lambda self, rng, n, options: np.ascontiguousarray(states.T)})
    envs.__class__ = drawn
    assert envs.dynamics() is not None
    return envs


def test_a_task_that_changes_a_step_is_not_compiled():
    class Heavier(PrecisionCartPoleVectorEnv):
        def _move(self, actions):
            return super()._move(actions) * 1.01

    class OtherOutcome(PrecisionCartPoleVectorEnv):
        max_final_angle = 1.0

    assert PrecisionCartPoleVectorEnv(2).dynamics() is not None
    assert PrecisionCartPoleVectorEnv(2, dense=True).dynamics() is None
    assert Heavier(2).dynamics() is None
    assert OtherOutcome(2).dynamics() is not None
    policy = starting_policy(Heavier(6), COMPILED[0], None, False, ())
    rollouts = {}
    for kernels in ("torch", "numba"):
        with compiled.use(kernels):
            rollouts[kernels] = rollout(Heavier(6), policy, np.random.default_rng(0))
    assert torch.equal(rollouts["torch"].mask, rollouts["numba"].mask)


def test_a_wrapper_is_not_passed_by():
    """A wrapper may answer for what it wraps. Its work must be done all the same."""

    class Twice(gym.wrappers.vector.TransformObservation):
        def __getattr__(self, name):
            return getattr(self.env, name)

    twice = Twice(PrecisionCartPoleVectorEnv(4), lambda obs: 2 * obs)
    policy = starting_policy(PrecisionCartPoleVectorEnv(4), COMPILED[0], None, False, ())
    with compiled.use("numba"):
        plain = rollout(PrecisionCartPoleVectorEnv(4), policy, np.random.default_rng(0))
        wrapped = rollout(twice, policy, np.random.default_rng(0))
    torch.testing.assert_close(wrapped.context, 2 * plain.context)
    assert not torch.equal(wrapped.obs[:, 1], plain.obs[:, 1])  # of the steps too


def test_a_policy_that_is_not_finite_is_refused_by_name():
    envs = sppo_envs.make_task(COMPILED[0], 4, None, None, "auto")
    policy = starting_policy(envs, COMPILED[0], None, False, ())
    with torch.no_grad():
        policy.flat[-1] = float("nan")
    with (
        compiled.use("numba"),
        pytest.raises(ValueError, match=r"policy's output for environment 0 is .*nan.* in step 1"),
    ):
        rollout(envs, policy, np.random.default_rng(0))


def test_memory_follows_the_longest_episode_and_blocks_join():
    """Pieces of 7 steps give the same episodes as one piece."""
    envs = sppo_envs.make_task(COMPILED[1], 8, None, None, "auto")
    policy = starting_policy(envs, COMPILED[1], None, False, ())
    kind, constants = envs.dynamics()
    envs.reset(seed=1)
    noise = policy.noise(np.random.default_rng(0), 200, 8)
    weights = (policy.obs_scale, policy.flat, policy.sizes, policy.compiled_std())
    runs = []
    for block in (200, 7):
        pieces = iter(np.split(noise, range(block, 200, block)))
        state = np.ascontiguousarray(envs.state.T)
        with compiled.use("numba"):
            episodes = compiled.run_episodes(
                kind, constants, state, lambda n, pieces=pieces: next(pieces), weights, 200, block, 4
            )
        runs.append(episodes)
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def train(script, tmp_path, **given):
    small = {"num_envs": 8, "horizon": 30, "eval_episodes": 8, "save_every": 2, "kernels": "numba"}
    return script.train(cli.make_args(script.Args, **{**small, "runs_dir": str(tmp_path), **given}))


@pytest.mark.parametrize("script", [sppo_cartpole, ppo_cartpole], ids=["sppo", "ppo"])
def test_a_run_repeats_and_resumes_bit_for_bit(script, tmp_path):
    whole = train(script, tmp_path / "a", total_timesteps=1200)
    again = train(script, tmp_path / "b", total_timesteps=1200)
    names = sorted(p.name for p in whole.checkpoints()[-1].glob("*.safetensors"))
    assert names
    resumed = cli.resumed(script.Args, str(whole.checkpoints()[1])) if hasattr(cli, "resumed") else None
    for name in names:
        assert (whole.checkpoints()[-1] / name).read_bytes() == (again.checkpoints()[-1] / name).read_bytes()
    assert resumed is None or resumed.kernels == "numba"
    assert json.loads((whole.folder / "config.json").read_text())["args"]["kernels"] == "numba"


def test_runs_of_both_kernels_begin_alike(tmp_path):
    """One update from one seed: the same episodes, and weights that differ by rounding only."""
    weights = {}
    for kernels in ("torch", "numba"):
        run = train(sppo_cartpole, tmp_path, total_timesteps=8, kernels=kernels)
        weights[kernels] = run.parts["policy"].flat.detach().clone()
        assert run.update == 1
    assert (weights["torch"] - weights["numba"]).abs().max() < 1e-4
    start = starting_policy(sppo_envs.make_task(COMPILED[0], 1), COMPILED[0], None, False, ()).flat
    assert (weights["torch"] - start).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("script", [sppo_cartpole, ppo_cartpole], ids=["sppo", "ppo"])
def test_both_kernels_learn_alike(script, tmp_path):
    """Success after 450,000 steps, seeds 11 to 18: the means differ by less than twice their standard error."""
    found = {}
    for kernels in ("torch", "numba"):
        rates = []
        for seed in range(11, 19):
            given = {"total_timesteps": 450_000, "eval_episodes": 512, "seed": seed, "save_every": 1000}
            args = cli.make_args(script.Args, kernels=kernels, runs_dir=str(tmp_path), **given)
            rates.append(script.train(args).summary["after"]["rate"])
        found[kernels] = np.array(rates)
    error = np.sqrt(sum(x.var(ddof=1) / len(x) for x in found.values()))
    assert abs(found["torch"].mean() - found["numba"].mean()) < 2 * error + 0.01
    assert min(x.mean() for x in found.values()) > 0.75


def test_what_auto_is_and_when_numba_is_refused(monkeypatch):
    assert compiled.resolve("numba", (64, 256)) == "numba"
    assert compiled.resolve("auto", (64, 256)) == "numba"
    assert compiled.resolve("auto", (64, 257)) == "torch"
    with pytest.raises(ValueError, match="--kernels numba is for layers of at most 256 units, got 300"):
        compiled.resolve("numba", (300, 4))
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert compiled.resolve("auto") == "torch"
    monkeypatch.setattr(extras, "find_spec", lambda name: None, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(extras.MissingExtra, match="--kernels numba"):
        compiled.resolve("numba")


def test_importing_compiles_nothing():
    code = (
        "import sys, sppo_control.rollout, sppo_control.arguments, sppo_envs, sppo_cartpole\n"
        "assert 'numba' not in sys.modules and 'sppo_control.kernels' not in sys.modules"
    )
    scripts = str(Path(evaluate.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=scripts, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_changed_dynamics_are_compiled_again(tmp_path, monkeypatch):
    """numba looks only at the file of the function that it has in its cache, which is not the file of the dynamics."""
    source, old, new, other = (tmp_path / name for name in ("a.py", "k.f-1.nbi", "k.f-2.nbi", "k.g-1.nbi"))
    for time_ns, file in enumerate((old, other, source, new)):
        file.write_text("x")
        os.utime(file, ns=(time_ns, time_ns))
    compiled._forget_older(tmp_path, "k.f-*.nbi", source)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.py", "k.f-2.nbi", "k.g-1.nbi"]
    with compiled.use("numba"):
        kernels = compiled._kernels()
    asked = []
    monkeypatch.setattr(compiled, "_forget_older", lambda *arguments: asked.append(arguments))
    assert compiled._kernels.__wrapped__() is kernels
    [(folder, pattern, file)] = asked
    assert file.read_text() == Path(sppo_envs.__file__).with_name("dynamics.py").read_text()
    assert list(folder.glob(pattern)), "the rollout's kernel is not where it is looked for"
