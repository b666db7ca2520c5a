"""Properties of outcomes.py, rollout.py and runs.py: the right number, or a refusal that names the argument."""

import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import Properties, close, drawn, eps, refused

from sppo_control import core, outcomes, rollout, runs, streams, tracker
from sppo_control.errors import NonFiniteError
from sppo_control.policies import CategoricalPolicy, GaussianPolicy

DISK = "it writes files and shows a bar; tests/test_runs.py and test_run_state.py"
PROPERTIES = Properties(
    runs={
        "Batch": "a protocol without code", "Batch.info": "a protocol", "Batch.outcome": "a protocol",
        "Batch.lengths": "a protocol", "Batch.num_steps": "a protocol", "Batch.episode_return": "a protocol",
        "peak_memory_mib": "asks the system", "versions": "asks the system",
        **dict.fromkeys(
            ("Run", "Run.once", "Run.start", "Run.end_update", "Run.checkpoints", "Run.save", "Run.finish"), DISK
        ),
    },
)  # fmt: skip
of = PROPERTIES.of
F32 = (torch.float32,)
NAMES = ("share", "laps", "fell", "episode_return", "episode_length")


def test_every_public_function_has_a_property():
    PROPERTIES.check(outcomes, rollout, runs, tracker)


# ------------------------------------------------------------------------------------------------------- outcomes
def info_of(n, names, seed):
    """What environments may report: name -> array, most of them (n,); always with `success`."""
    rng = np.random.default_rng(seed)
    found = {"success": rng.integers(0, 2, n).astype(bool)}
    for name in rng.choice(NAMES, names, replace=False).tolist():
        kind = str(rng.choice(["bool", "int", "f32", "f64", "large", "hole", "text", "pair", "long"]))
        x = rng.standard_normal(n)
        found[name] = {
            "bool": x > 0, "int": rng.integers(-9, 9, n), "f32": x.astype(np.float32), "f64": x,
            "large": np.full(n, 3e38, np.float32), "hole": np.where(x > 0, x, rng.choice([np.nan, np.inf, -np.inf])),
            "text": np.array(["a"] * n), "pair": np.zeros((n, 2)), "long": np.zeros(n + 1),
        }[kind]  # fmt: skip
        mask = str(rng.choice(["", "all", "some", "none"]))
        if mask:
            found[f"_{name}"] = {"all": np.ones(n, bool), "some": x > 0.3, "none": np.zeros(n, bool)}[mask]
    return found


def infos():
    return st.builds(info_of, st.integers(1, 5), st.integers(0, len(NAMES)), st.integers(0, 2**32 - 1))


@of(outcomes, "ranks", "correlation", "spearman")
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_ranks_and_correlation(pairs):
    x, y = np.array(pairs, dtype=float).T
    for values in (x, y):
        by_hand = [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
        assert outcomes.ranks(values).tolist() == by_hand
    found = outcomes.correlation(x, y)
    assert math.isnan(found) == (len(set(x)) == 1 or len(set(y)) == 1)
    if not math.isnan(found):
        a, b = x - x.mean(), y - y.mean()
        assert found == pytest.approx((a @ b) / math.sqrt((a @ a) * (b @ b)), abs=1e-9)
    rho = outcomes.spearman(x, y)
    assert (rho is None) == math.isnan(found)
    assert rho is None or rho == pytest.approx(outcomes.correlation(outcomes.ranks(x), outcomes.ranks(y)))
    assert rho == outcomes.spearman(2 * x + 1, y)  # only the order counts


def measures_by_hand(info):
    """name -> the finite numbers, one at a time."""
    found = {}
    for name in sorted(info):
        value = info[name]
        if name[0] == "_" or name in ("success", "episode_return", "episode_length") or value.ndim != 1:
            continue
        if value.dtype.kind in "biuf" and (finite := [float(x) for x in value if math.isfinite(x)]):
            found[name] = finite
    return found


@of(outcomes, "side_measures", "reported_by", "measure_scalars")
@given(infos())
def test_measures_of_an_info(info):
    expected = measures_by_hand(info)
    found = outcomes.side_measures(info)
    assert {name: x.tolist() for name, x in found.items()} == expected
    assert list(found) == list(expected)
    few = {name: len(x) for name, x in expected.items() if len(x) < len(info[name])}
    assert outcomes.reported_by(info) == few
    scalars = {f"measures/{name}": sum(x) / len(x) for name, x in expected.items()}
    scalars |= {f"measures/{name}_reported": n for name, n in few.items()}
    assert outcomes.measure_scalars(info) == pytest.approx(scalars, rel=1e-9, abs=1e-9)


@of(outcomes, "end_infos")
@given(infos())
def test_end_infos(info):
    n, expected = len(info["success"]), {}
    for name, value in info.items():
        if name[0] == "_" or value.shape != (n,) or value.dtype.kind not in "biuf":
            continue
        told = [bool(x) for x in info.get(f"_{name}", np.ones(n))]
        if any(told):
            expected[name] = [float(x) if ok else math.nan for x, ok in zip(value, told, strict=True)]
    found = outcomes.end_infos(info)
    assert list(found) == list(expected)
    for name, x in found.items():
        np.testing.assert_array_equal(x.astype(float), expected[name])
        assert x.dtype == (np.float64 if np.isnan(expected[name]).any() else info[name].dtype)
        assert x is not info[name]
    refused(lambda: outcomes.end_infos({k: x for k, x in info.items() if k != "success"}), "success")


@of(outcomes, "joined")
@given(st.lists(infos(), max_size=3))
def test_joined(batches):
    batches = [outcomes.end_infos(info) for info in batches]
    found = outcomes.joined(batches)
    for name in {name for batch in batches for name in batch}:
        expected = []
        for batch in batches:
            expected += [float(x) for x in batch[name]] if name in batch else [math.nan] * len(batch["success"])
        np.testing.assert_array_equal(found[name].astype(float), expected)
    assert list(found) == sorted({name for batch in batches for name in batch})
    refused(lambda: outcomes.joined([*batches, {"share": np.ones(2)}]), "success")


@of(outcomes, "nothing_to_learn")
@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, 1e-9]), min_size=1, max_size=6), st.sampled_from(["step", "response"]))
def test_nothing_to_learn(numbers, unit):
    for values in (np.array(numbers), torch.tensor(numbers, dtype=torch.float64)):
        found = outcomes.nothing_to_learn(values, unit)
        assert (found is not None) == (set(numbers) in ({0.0}, {1.0}))
        if found is not None:
            assert found.startswith("no " if numbers[0] == 0 else "all ")
            assert f" {len(numbers)} " in found
            assert ("response" in found) == (unit == "response")
    for reward, asks in (
        ("math", r"math: the answer must be in \boxed{}; other rewards: --reward exact,"),
        ("my:judge", "my:judge; "),
    ):
        found = outcomes.nothing_to_learn(np.zeros(3), unit, reward)
        assert f". The reward is {asks}" in found
    for bad in ([], [*numbers, math.nan], [*numbers, -1.0], [1.5]):
        refused(lambda bad=bad: outcomes.nothing_to_learn(np.array(bad), unit), "outcomes")
    refused(lambda: outcomes.nothing_to_learn(np.array(numbers), "episode"), "unit")


@of(outcomes, "advantage_scalars")
@given(drawn(F32), st.booleans())
def test_advantage_scalars(d, per_step):
    outcome, v0 = d.outcomes(d.B), d.outcomes(d.B)
    adv = d.numbers(d.B * d.T if per_step else d.B, size=10.0)
    found = outcomes.advantage_scalars(adv, v0, outcome)
    a, v, r = (x.double().numpy() for x in (adv, v0, outcome))
    assert found["advantages/mean"] == pytest.approx(sum(a) / len(a), abs=1e-5)
    assert found["advantages/std"] == pytest.approx(
        math.sqrt(sum((x - sum(a) / len(a)) ** 2 for x in a) / len(a)), abs=1e-4
    )
    assert found["critic/v0_mean"] == pytest.approx(sum(v) / d.B, abs=1e-6)
    assert found["critic/brier"] == pytest.approx(sum((v - r) ** 2) / d.B, abs=1e-6)
    assert found["critic/ece"] == float(core.expected_calibration_error(v0, outcome))
    explained = float(core.explained_variance(v0, outcome))
    assert found["losses/explained_variance"] == pytest.approx(explained, nan_ok=True)
    for bad in (adv[:0], adv[None], adv[0], adv.long()):
        refused(lambda bad=bad: outcomes.advantage_scalars(bad, v0, outcome), "adv")
    refused(lambda: outcomes.advantage_scalars(adv, v0, outcome + 2), "outcome")
    refused(lambda: outcomes.advantage_scalars(adv, v0.repeat(2), outcome), "prediction", "probability")


@of(outcomes, "Evaluation", "Evaluation.rate", "Evaluation.interval", "Evaluation.as_dict")
@given(infos())
def test_evaluation(info):
    info = outcomes.end_infos(info)
    outcome = info["success"]
    found = outcomes.Evaluation(outcome, info)
    assert found.rate == pytest.approx(sum(map(bool, outcome)) / len(outcome))
    assert found.interval == core.wilson_interval(sum(map(bool, outcome)), len(outcome))
    as_dict, expected = found.as_dict(), measures_by_hand(info)
    assert as_dict["measures"] == pytest.approx({k: sum(x) / len(x) for k, x in expected.items()}, rel=1e-9, abs=1e-9)
    few = {k: len(x) for k, x in expected.items() if len(x) < len(outcome)}
    assert as_dict.get("reported", {}) == few
    assert (as_dict["rate"], as_dict["interval"], as_dict["episodes"]) == (found.rate, found.interval, len(outcome))
    assert str(found) == f"{found.rate:.3f} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
    for bad in (outcome[:0], outcome[None], outcome.astype(float)):
        refused(lambda bad=bad: outcomes.Evaluation(bad, {}), "outcome")


# -------------------------------------------------------------------------------------------------------- rollouts
class Scripted:
    """B environments whose observations, rewards and lengths are given; after an episode's end they are impossible."""

    def __init__(self, d, continuous, horizon=None, shared=False):
        rng, self.num_envs = d.rng, d.B
        self.lengths = rng.integers(1, d.T + 1, d.B)
        self.horizon = int(self.lengths.max()) if horizon is None else horizon
        self.obs = rng.standard_normal((d.B, d.T + 1, 2)).astype(np.float32)
        if shared:
            self.obs[:, 0] = self.obs[0, 0]
        self.reward, self.success = rng.standard_normal((d.B, d.T)), rng.integers(0, 2, d.B).astype(bool)
        for b, n in enumerate(self.lengths):
            self.obs[b, n + 1 :] = rng.choice([np.nan, np.inf, -np.inf, 3e38], self.obs[b, n + 1 :].shape)
            self.reward[b, n:] = rng.choice([np.nan, np.inf, -np.inf, 1e308], self.reward[b, n:].shape)
        self.single_action_space = gym.spaces.Box(-1, 1, (2,), np.float32) if continuous else gym.spaces.Discrete(3)
        self.seeds, self.actions, self.env_id = [], [], "scripted"

    def reset(self, seed):
        self.seeds.append(seed)
        self.t = 0
        return self.obs[:, 0].copy(), {}

    def step(self, actions):
        self.actions.append(actions)
        self.t += 1
        over = self.t >= self.lengths
        info = {"success": self.success & over, "t": np.full(self.num_envs, self.t)} if over.any() else {}
        return self.obs[:, self.t].copy(), self.reward[:, self.t - 1].copy(), over, np.zeros_like(over), info


def policy_of(continuous, d):
    policy = (GaussianPolicy if continuous else CategoricalPolicy)(2, 2 if continuous else 3, ())
    with torch.no_grad():
        policy.flat.copy_(torch.from_numpy(d.rng.standard_normal(policy.flat.shape)))
    return policy


def logp_by_hand(policy, obs, action):
    """In float64, one step: the log-probability of an action, and the network's outputs."""
    (weight, bias), *_ = policy.layers()
    out = weight.detach().double().numpy() @ obs.astype(float) + bias.detach().double().numpy()
    if isinstance(policy, GaussianPolicy):
        std = np.exp(policy.log_std.detach().double().numpy())
        z = (action - out) / std
        return sum(-0.5 * z**2 - np.log(std) - 0.5 * math.log(2 * math.pi)), out
    return out[action] - out.max() - math.log(sum(np.exp(out - out.max()))), out


@of(outcomes, "Padded", "Padded.lengths", "Padded.num_steps")
@of(rollout, "rollout", "Episodes", "Episodes.context", "Episodes.episode_return")
@given(drawn(F32, 4, 6), st.booleans(), st.booleans(), st.booleans())
def test_rollout(d, continuous, greedy, grouped):
    envs, policy = Scripted(d, continuous, shared=grouped), policy_of(continuous, d)
    found = rollout.rollout(envs, policy, np.random.default_rng(7), greedy, group_size=d.B if grouped else 1)
    T = envs.lengths.max()
    rng = np.random.default_rng(7)
    if grouped and d.B > 1:
        rng.integers(2**31 - d.B)
        assert envs.seeds == [[int(rng.integers(2**31, size=1)[0])] * d.B]
    else:
        assert envs.seeds == [int(rng.integers(2**31 - d.B))]
    noise = None if greedy else policy.noise(rng, envs.horizon, d.B)
    assert found.obs.shape == (d.B, T, 2)
    for b in range(d.B):
        for t in range(T):
            assert found.mask[b, t] == (t < envs.lengths[b])
            if t >= envs.lengths[b]:
                assert not found.obs[b, t].any()
                assert not found.actions[b, t].any()
                assert found.logp[b, t] == found.reward[b, t] == 0
                continue
            assert found.obs[b, t].tolist() == envs.obs[b, t].tolist()
            assert found.reward[b, t] == np.float32(envs.reward[b, t])
            action = found.actions[b, t].numpy()
            logp, out = logp_by_hand(policy, envs.obs[b, t], action)
            assert float(found.logp[b, t]) == pytest.approx(logp, rel=1e-4, abs=1e-4)
            if continuous:
                std = np.exp(policy.log_std.detach().numpy())
                np.testing.assert_allclose(action, out + (0 if greedy else std * noise[t, b]), rtol=1e-4, atol=1e-4)
                np.testing.assert_array_equal(envs.actions[t][b], action.clip(-1, 1))
            else:
                score = out + (0 if greedy else noise[t, b])
                assert score[action] == pytest.approx(score.max(), abs=1e-4)
                assert envs.actions[t][b] == action
    assert found.outcome.tolist() == envs.success.tolist()
    assert found.lengths.tolist() == envs.lengths.tolist()
    assert found.num_steps == sum(envs.lengths)
    assert torch.equal(found.context, found.obs[:, 0])
    total = [sum(found.reward[b, :n].tolist()) for b, n in enumerate(envs.lengths)]
    np.testing.assert_allclose(found.episode_return, total, rtol=1e-4, atol=1e-5)


@of(rollout, "rollout")
@given(drawn(F32, 4, 6), st.sampled_from(["obs", "reward", "policy", "horizon", "group_size", "group", "success", "late"]),
       st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 10**6))  # fmt: skip
def test_rollout_refuses_bad_values_by_name(d, what, bad, number):
    envs, policy = Scripted(d, False), policy_of(False, d)
    rng = np.random.default_rng(0)
    b = number % d.B
    t = number % int(envs.lengths[b])
    if what == "obs":
        envs.obs[b, t] = [bad, -bad]
        refused(lambda: rollout.rollout(envs, policy, rng), f"observation 0 of environment {b}")
    elif what == "reward":
        envs.reward[b, t] = bad
        refused(lambda: rollout.rollout(envs, policy, rng), f"reward of environment {b}")
    elif what == "policy":
        policy.flat.data[number % len(policy.flat)] = bad
        refused(lambda: rollout.rollout(envs, policy, rng), "policy's output for environment")
    elif what == "horizon":
        value = [0, -3, 1.5, math.nan][number % 4]
        refused(lambda: rollout.rollout(envs, policy, rng, horizon=value), "horizon")
    elif what == "group_size":
        refused(lambda: rollout.rollout(envs, policy, rng, group_size=[0, -1, d.B + 1][number % 3]), "group_size")
    elif what == "group" and d.B > 1:
        refused(lambda: rollout.rollout(envs, policy, rng, group_size=d.B), "group")
    elif what == "success":
        step = envs.step
        envs.step = lambda actions: (*step(actions)[:4], {})
        refused(lambda: rollout.rollout(envs, policy, rng), "success")
    elif what == "late":
        envs.lengths[b] += d.T  # longer than the horizon
        envs.obs[b] = envs.reward[b] = 0.0
        with pytest.raises(RuntimeError, match=f"1 of {d.B} episodes were not over after {envs.horizon} steps"):
            rollout.rollout(envs, policy, rng)


@of(rollout, "noise_of_steps")
@given(st.integers(-2, 9), st.integers(-1, 3), st.booleans())
def test_noise_of_steps(horizon, num_envs, continuous):
    policy = (GaussianPolicy if continuous else CategoricalPolicy)(2, 2, ())
    if horizon < 1 or num_envs < 1:
        names = ["horizon"] * (horizon < 1) + ["num_envs"] * (num_envs < 1)
        refused(lambda: rollout.noise_of_steps(policy, np.random.default_rng(0), horizon, num_envs), *names)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "NOISE_STEPS", 4)
        found = list(rollout.noise_of_steps(policy, np.random.default_rng(0), horizon, num_envs))
    rng = np.random.default_rng(0)
    expected = np.concatenate([policy.noise(rng, min(4, horizon - t), num_envs) for t in range(0, horizon, 4)])
    np.testing.assert_array_equal(found, expected)


@of(rollout, "ContextWindow", "ContextWindow.add", "ContextWindow.sample", "ContextWindow.named_tensors")
@of(rollout, "ContextWindow.load_tensors", "ContextWindow.file_metadata")
@given(drawn(F32, 4, 3), st.integers(1, 4), st.integers(0, 9), st.integers(1, 30))
def test_context_window(d, window, batches, size):
    found = rollout.ContextWindow(window, d.B, d.T)
    kept = []
    if not batches:
        refused(lambda: found.sample(size, d.rng), "window")
    for k in range(batches):
        outcome = d.outcomes(d.B)
        context = k + d.numbers(d.B, d.T, size=0.1) * 0 + torch.arange(d.B)[:, None] / 100
        found.add(SimpleNamespace(context=context, outcome=outcome))
        kept.append({(*c, r) for c, r in zip(map(tuple, context.tolist()), outcome.tolist(), strict=True)})
    copy = rollout.ContextWindow(window, d.B, d.T)
    copy.load_tensors({name: x.clone() for name, x in found.named_tensors().items()})
    assert copy.file_metadata() == {}
    if batches:
        context, outcome = copy.sample(size, np.random.default_rng(1))
        there = set().union(*kept[-window:])
        assert {(*c, r) for c, r in zip(map(tuple, context.tolist()), outcome.tolist(), strict=True)} <= there
        assert len(context) == size
        rows = np.random.default_rng(1).integers(min(batches, window) * d.B, size=size)
        assert outcome.tolist() == copy.named_tensors()["outcomes"].flatten()[rows].tolist(), "uniform over all rows"
    good_context, good_outcome = torch.zeros(d.B, d.T), torch.zeros(d.B)
    for bad in (torch.zeros(1, d.T + 1), torch.zeros(d.B + 1, d.T), torch.zeros(d.T + 1)):
        refused(lambda bad=bad: found.add(SimpleNamespace(context=bad, outcome=good_outcome)), "context")
    refused(lambda: found.add(SimpleNamespace(context=good_context, outcome=torch.zeros(()))), "outcome")
    for bad in (0, -1, 1.5):
        refused(lambda bad=bad: found.sample(bad, d.rng), "size")
        refused(lambda bad=bad: rollout.ContextWindow(bad, 1, 1), "window")
        refused(lambda bad=bad: rollout.ContextWindow(1, bad, 1), "num_envs")
        refused(lambda bad=bad: rollout.ContextWindow(1, 1, bad), "obs_dim")
    tensors = found.named_tensors()
    for name, bad in (
        ("batches", torch.tensor(-1)),
        ("outcomes", tensors["outcomes"] + 2),
        ("contexts", torch.ones(1)),
    ):
        refused(lambda name=name, bad=bad: copy.load_tensors({**tensors, name: bad}), name)


@of(rollout, "rollout")
@given(drawn(F32, 4, 3), st.integers(0, 3))
def test_seeds_of_the_environments_may_be_given(d, more):
    envs, policy = Scripted(d, False), policy_of(False, d)
    seeds = [int(x) for x in d.rng.integers(2**31, size=d.B)]
    found = rollout.rollout(envs, policy, np.random.default_rng(0), seeds=seeds)
    assert envs.seeds == [seeds]
    assert torch.equal(found.logp, rollout.rollout(envs, policy, np.random.default_rng(0)).logp), (
        "the actions are the same"
    )
    bad = [*seeds, *[1] * more] if more else seeds[1:]
    refused(lambda: rollout.rollout(envs, policy, np.random.default_rng(0), seeds=bad), "seeds")


@of(tracker, "ValueTracker", "ValueTracker.value", "ValueTracker.named_tensors", "ValueTracker.load_tensors")
@of(tracker, "ValueTracker.file_metadata")
@given(st.integers(1, 5), st.floats(0, 1), st.floats(0.1, 100))
def test_value_tracker(contexts, prior, weight):
    found = tracker.ValueTracker(contexts, prior, weight)
    assert found.value.tolist() == pytest.approx([prior] * contexts, abs=1e-6)
    assert (found.alpha + found.beta).tolist() == pytest.approx([weight] * contexts, rel=1e-6)
    assert found.kl.tolist() == [0.0] * contexts
    found.alpha[-1], found.kl[0] = 3 * weight, 0.5
    copy = tracker.ValueTracker(contexts, 0.5)
    copy.load_tensors({name: x.clone() for name, x in found.named_tensors().items()})
    assert copy.file_metadata() == {}
    assert copy.value.tolist() == found.value.tolist()
    assert copy.kl.tolist() == found.kl.tolist()
    for bad in (0, -1, 1.5):
        refused(lambda bad=bad: tracker.ValueTracker(bad, 0.5), "contexts")
    for bad in (-0.1, 1.1, math.nan):
        refused(lambda bad=bad: tracker.ValueTracker(1, bad), "prior_value")
    for bad in (0.0, -1.0, math.inf, math.nan):
        refused(lambda bad=bad: tracker.ValueTracker(1, 0.5, bad), "prior_weight")
    tensors = found.named_tensors()
    for bad, word in ((tensors["kl"] - 1, "KL"), (tensors["kl"] * math.nan, "kl")):
        refused(lambda bad=bad: copy.load_tensors({**tensors, "kl": bad}), word)
    zero = torch.zeros(contexts)
    refused(lambda: copy.load_tensors({**tensors, "alpha": zero, "beta": zero}), "alpha")
    refused(lambda: copy.load_tensors({**tensors, "alpha": torch.ones(contexts + 1)}), "alpha")


@of(rollout, "evaluate", "success_by_context")
@given(drawn(F32, 3, 3), st.integers(-1, 7))
def test_evaluate_and_success_by_context(d, number):
    envs, policy = Scripted(d, False, shared=True), policy_of(False, d)
    if number < 1:
        refused(lambda: rollout.evaluate(envs, policy, number, d.rng), "episodes")
        refused(lambda: rollout.success_by_context(envs, policy, number, d.rng), "contexts")
        return
    found = rollout.evaluate(envs, policy, number, np.random.default_rng(0))
    assert found.outcome.tolist() == [bool(envs.success[i % d.B]) for i in range(number)]
    assert len(envs.seeds) == math.ceil(number / d.B)
    contexts, rate = rollout.success_by_context(envs, policy, number, np.random.default_rng(0))
    assert contexts.tolist() == [envs.obs[0, 0].tolist()] * number
    assert rate.tolist() == pytest.approx([sum(map(int, envs.success)) / d.B] * number)


# ------------------------------------------------------------------------------------------------------------ runs
MEANS = st.lists(
    st.tuples(st.floats(1e-3, 1e6), st.dictionaries(st.sampled_from("abc"), st.floats(-1e9, 1e9), max_size=3)),
    max_size=5,
)


@of(runs, "Means", "Means.add", "Means.scalars", "Means.min", "Means.max")
@given(MEANS, st.booleans())
def test_means(added, as_tensors):
    found, by_name = runs.Means(), {}
    for weight, values in added:
        if as_tensors:
            found.add(torch.tensor(weight).double(), **{k: torch.tensor(x).double() for k, x in values.items()})
        else:
            found.add(weight, **values)
        for name, x in values.items():
            by_name.setdefault(name, []).append(
                (np.float32(weight) if as_tensors else weight, np.float32(x) if as_tensors else x)
            )
    scalars = found.scalars()
    assert scalars.keys() == {f"losses/{name}" for name in by_name}
    for name, pairs in by_name.items():
        size = max(abs(float(x)) for _, x in pairs)
        expected = sum(float(w) * float(x) for w, x in pairs) / sum(float(w) for w, _ in pairs)
        assert scalars[f"losses/{name}"] == pytest.approx(expected, rel=1e-6, abs=1e-9 * size)
        assert found[name] == scalars[f"losses/{name}"]
        assert (found.min(name), found.max(name)) == (min(x for _, x in pairs), max(x for _, x in pairs))
    for bad in (0, -1.0, math.nan, math.inf, "x", torch.ones(2), None):
        refused(lambda bad=bad: found.add(bad, a=1.0), "weight")
    for bad in ("x", torch.ones(2), None, torch.tensor(1j)):
        refused(lambda bad=bad: found.add(1.0, b=1.0, a=bad), "a")
    assert found.scalars() == scalars, "a refused minibatch leaves nothing behind"


@of(runs, "Means.add_surrogate")
@given(drawn(F32, 4, 4), st.integers(1, 4), st.sampled_from([None, 11.0]))
def test_means_of_surrogates(d, parts, denominator):
    found, seen = runs.Means(), []
    for _ in range(parts):
        mask, logp, old = d.mask(), d.numbers(d.B, d.T, size=1.0), d.numbers(d.B, d.T, size=1.0)
        surrogate = core.clipped_surrogate(logp, old, d.numbers(d.B, size=1.0), mask, denominator=denominator)
        found.add_surrogate(surrogate, torch.tensor(0.5), denominator)
        loss = float(surrogate.loss) * (1 if denominator is None else denominator / int(mask.sum()))
        seen.append((int(mask.sum()), loss, surrogate))
    scalars, steps = found.scalars(), sum(n for n, _, _ in seen)
    expected = {"losses/policy_loss": sum(n * loss for n, loss, _ in seen) / steps, "losses/entropy": 0.5}
    for name in ("old_approx_kl", "approx_kl", "clipfrac"):
        expected[f"losses/{name}"] = sum(n * float(getattr(s, name)) for n, _, s in seen) / steps
    expected["losses/ratio_min"] = min(float(s.ratio_min) for _, _, s in seen)
    expected["losses/ratio_max"] = max(float(s.ratio_max) for _, _, s in seen)
    assert scalars == pytest.approx(expected, rel=1e-5, abs=1e-6)


@of(runs, "Run.new_rng", "Run.check_finite", "Run.progress", "Run.budget")
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.sampled_from(sorted(streams.TRAINING)), st.floats(width=32),
       st.sampled_from(["step", "response"]))  # fmt: skip
def test_what_a_run_computes_from_its_counters(seed, update, stream, number, unit):
    run = object.__new__(runs.Run)
    run.args = SimpleNamespace(seed=seed, total_timesteps=10, total_episodes=20)
    run.update, run.steps, run.episodes, run.unit, run.checkpoints = update, 3, 4, unit, lambda: ["the last one"]
    assert (run.progress, run.budget) == ((3, 10) if unit == "step" else (4, 20))
    expected = np.random.default_rng([seed, update, {"rollout": 0, "shuffle": 1, "evaluate": 2, "prompts": 3}[stream]])
    assert run.new_rng(stream).integers(2**63, size=3).tolist() == expected.integers(2**63, size=3).tolist()
    value = torch.tensor(number, requires_grad=True)
    if math.isfinite(number):
        run.check_finite(policy_loss=value)
    else:
        refused(lambda: run.check_finite(other=torch.zeros(()), policy_loss=value), "policy loss", error=NonFiniteError)


def test_the_tolerances_are_small():
    """Of the comparison itself: a thousandth is seen in float32, and so is a finite number for an infinite one."""
    close(torch.tensor(1.0), 1.0 + 1e-7)
    assert eps(torch.float32) < 2e-7
    for wrong in (1.001, math.nan, math.inf):
        with pytest.raises(AssertionError):
            close(torch.tensor(1.0), wrong)
        with pytest.raises(AssertionError):
            close(torch.tensor(wrong), 1.0)
