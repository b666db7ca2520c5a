"""The chains of sppo/Credit-v0: exact gradients against enumeration and sampling, and the page against its files."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import credit as script
import sppo_envs
from sppo_control import core
from sppo_control.study import credit, credit_figures
from sppo_envs.credit import CHAINS, Chain

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "credit.md").read_text()
MEASURED = json.loads((ROOT / "results" / "credit.json").read_text())
DECIDING = ("early", "even", "late", "all", "hidden")


def small(deciding, seed=0, horizon=6):
    """A chain of few episodes, a policy that differs from step to step, and critics that are wrong."""
    rng = np.random.default_rng(seed)
    chain = Chain(horizon, deciding, decisions=3, gain=2.0, offset=-0.3, spread=0.8, contexts=2)
    states = rng.random((horizon, 2, len(chain.steps) + 1))
    return chain, rng.uniform(0.2, 0.8, horizon), states, rng.uniform(0.1, 0.9, 2)


def all_episodes(chain, right):
    """Every context, action sequence and outcome: arrays, and the probability of each."""
    rows, chances = [], []
    for c in range(chain.contexts):
        for actions in itertools.product([0, 1], repeat=chain.horizon):
            a = np.array(actions)
            before = np.concatenate([[0], np.cumsum(a * chain.mark)])
            chance = np.prod(np.where(a == 1, right, 1 - right)) / chain.contexts
            q = 1 / (
                1 + np.exp(-(chain.offset + chain.difficulty[c] + chain.gain * (2 * before[-1] / len(chain.steps) - 1)))
            )
            for R, p in ((1.0, q), (0.0, 1 - q)):
                rows.append((c, a, before[:-1], R))
                chances.append(chance * p)
    context, actions, n, outcome = (np.array(x) for x in zip(*rows, strict=True))
    return credit.Sample(context, actions.astype(bool), n, outcome), np.array(chances)


def enumerated(chance, estimate):
    """Mean and variance of estimates (M, T) with these probabilities."""
    mean = chance @ estimate
    return mean, chance @ estimate**2 - mean**2


def same(gradient, expected):
    np.testing.assert_allclose(gradient.mean, expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradient.variance, expected[1], rtol=0, atol=1e-10)


# -------------------------------------------------------------------------------------------------- by enumeration
@pytest.mark.parametrize("deciding", DECIDING)
def test_sppo_ppo_and_remax_equal_enumeration(deciding):
    """All 2^T action sequences, with advantages of core.py and critics that are wrong."""
    chain, right, states, contexts = small(deciding)
    episodes, chance = all_episodes(chain, right)
    assert chance.sum() == pytest.approx(1, abs=1e-12)

    A = credit.sampled_advantage("sppo", episodes, contexts)
    same(credit.context_gradient(chain, right, contexts), enumerated(chance, credit.estimates(right, episodes, A)))
    for gamma, lam in ((1.0, 1.0), (1.0, 0.7), (0.9, 0.6), (0.9, 0.0)):
        A = credit.sampled_advantage("ppo", episodes, states, gamma, lam)
        expected = enumerated(chance, credit.estimates(right, episodes, A))
        same(credit.state_gradient(chain, right, states, gamma, lam), expected)

    greedy = chain.success[:, int((right[chain.steps] > 0.5).sum())][episodes.context]
    parts = [credit.sampled_advantage("remax", episodes, greedy=np.full(len(chance), g)) for g in (0.0, 1.0)]
    both = [credit.estimates(right, episodes, A) for A in parts]
    weights = np.concatenate([chance * (1 - greedy), chance * greedy])
    mean, variance = enumerated(weights, np.concatenate(both))
    same(credit.greedy_gradient(chain, right), (mean, 2 * variance))


@pytest.mark.parametrize("normalize", [False, True])
def test_groups_equal_enumeration_of_pairs_and_triples(normalize):
    """RLOO and GRPO with one context per group, REINFORCE with a context per episode."""
    chain, right, _, _ = small("even", horizon=3)
    episodes, chance = all_episodes(chain, right)
    for one_context, size in ((True, 2), (False, 2), (True, 3)):
        few = range(len(chance))
        rows = np.array([
            row for row in itertools.product(few, repeat=size)
            if not one_context or len({int(episodes.context[i]) for i in row}) == 1
        ])  # fmt: skip
        weight = chance[rows].prod(1) * (chain.contexts ** (size - 1) if one_context else 1)
        assert weight.sum() == pytest.approx(1, abs=1e-12)
        group = credit.Sample(
            *(x[rows.ravel()] for x in (episodes.context, episodes.actions, episodes.n, episodes.outcome))
        )
        A = credit.sampled_advantage("grpo" if normalize else "rloo", group, group=size)
        mean, variance = enumerated(weight, credit.estimates(right, group, A, size))
        same(credit.group_gradient(chain, right, size, normalize, one_context), (mean, size * variance))


@pytest.mark.parametrize("deciding", DECIDING)
def test_values_and_gradient_equal_enumeration(deciding):
    chain, right, _, _ = small(deciding)
    episodes, chance = all_episodes(chain, right)
    value = credit.exact_values(chain, right)
    for t, c in itertools.product(range(chain.horizon), range(chain.contexts)):
        for n in np.unique(episodes.n[:, t]):
            here = (episodes.context == c) & (episodes.n[:, t] == n)
            assert value[t, c, n] == pytest.approx(np.average(episodes.outcome[here], weights=chance[here]), abs=1e-10)
            occupied = chance[(episodes.n[:, t] == n)].sum()
            assert credit.occupancy(chain, right)[t, n] == pytest.approx(occupied, abs=1e-10)
    np.testing.assert_allclose(credit.exact_values(chain, right, 0.9)[-2], 0.9 * value[-2])

    def rate(logits):  # the success rate as a function of the policy's logits, by the chain's own recursion
        return credit.segment_values(chain, 1 / (1 + np.exp(-logits)))[0][:, 0].mean()

    logits, step = np.log(right / (1 - right)), 1e-6
    slope = [(rate(logits + step * e) - rate(logits - step * e)) / (2 * step) for e in np.eye(chain.horizon)]
    np.testing.assert_allclose(credit.true_gradient(chain, right), slope, atol=1e-8)


# -------------------------------------------------------------------------------------------------- what follows
@pytest.mark.parametrize("deciding", DECIDING)
def test_no_critic_of_states_biases_lambda_1_and_any_may_bias_less(deciding):
    chain, right, states, contexts = small(deciding)
    g = credit.true_gradient(chain, right)
    assert credit.state_gradient(chain, right, states).bias(g) < 1e-10
    assert credit.context_gradient(chain, right, contexts).bias(g) < 1e-10
    if deciding != "late":
        assert credit.state_gradient(chain, right, states, 1.0, 0.5).bias(g) > 0.01
    exact = credit.state_gradient(chain, right, credit.exact_values(chain, right), 1.0, 0.5)
    assert exact.bias(g) < 1e-10, "the exact critic biases no lambda"


@pytest.mark.parametrize("deciding", ["early", "even", "late", "all"])
def test_the_line_of_equality_is_the_resolved_variance(deciding):
    """At P(right) = 1/2 the squared score is a constant: noise is equal where the squared error is what V(s_t) resolves."""
    chain = Chain(40, deciding, decisions=4)
    right = credit.uniform_policy(chain)
    value = credit.exact_values(chain, right)
    g = credit.true_gradient(chain, right)
    sppo = credit.context_gradient(chain, right, value[0, :, 0])
    tie = np.sqrt(credit.resolved_variance(chain, right))
    noises = [credit.state_gradient(chain, right, value, noise=x * tie).noise_scale(g) for x in (0.9, 1.0, 1.1)]
    assert noises[0] < noises[1] == pytest.approx(sppo.noise_scale(g), rel=1e-9)
    assert noises[1] < noises[2]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.6)])
def test_white_noise_in_one_formula_is_the_mean_over_many_critics(gamma, lam):
    chain, right, states, _ = small("even")
    rng, sigma = np.random.default_rng(3), 0.4
    critics = [credit.wrong_values(states, sigma, "white", rng) for _ in range(1500)]
    drawn = [credit.state_gradient(chain, right, value, gamma, lam) for value in critics]
    exact = credit.state_gradient(chain, right, states, gamma, lam, noise=sigma)
    variances, means = np.array([d.variance for d in drawn]), np.array([d.mean for d in drawn])
    error = variances.std(0) / np.sqrt(len(drawn))
    assert (abs(variances.mean(0) - exact.variance) < 4 * error).all()
    assert means.var(0).sum() == pytest.approx(exact.floor, rel=0.15, abs=1e-12)
    assert (exact.floor > 0) == (lam < 1)


def test_share_of_gain_is_the_best_multiple_and_has_its_extremes():
    g = np.array([3.0, 0.0, 4.0])
    assert credit.Gradient(g, np.zeros(3)).share_of_gain(g, 1) == pytest.approx(1)
    assert credit.Gradient(7 * g, np.zeros(3)).share_of_gain(g, 1) == pytest.approx(1), "a factor can be tuned away"
    assert credit.Gradient(np.array([0.0, 1.0, 0.0]), np.ones(3)).share_of_gain(g, 1) == 0
    noisy = credit.Gradient(g, np.full(3, 10.0))
    assert noisy.noise_scale(g) == pytest.approx(30 / 25)
    assert noisy.share_of_gain(g, 30 / 25) == pytest.approx(0.5), "at the noise scale half is lost"
    factors = np.linspace(0, 1, 1001)
    errors = [(x - 1) ** 2 * 25 + x * x * 30 / 2 for x in factors]
    assert noisy.share_of_gain(g, 2) == pytest.approx(1 - min(errors) / 25, abs=1e-5)


@pytest.mark.parametrize("kind", ["white", "smooth", "offset"])
def test_wrong_values_have_the_size_and_the_kind(kind):
    value = np.zeros((400, 50, 3))
    error = credit.wrong_values(value, 0.3, kind, np.random.default_rng(0), length=20.0)
    assert error.std() == pytest.approx(0.3, rel=0.15)
    neighbours = np.corrcoef(error[:-1].ravel(), error[1:].ravel())[0, 1]
    assert neighbours == pytest.approx({"white": 0.0, "smooth": np.exp(-1 / 20), "offset": 1.0}[kind], abs=0.02)


# ---------------------------------------------------------------------------------------------------- by sampling
@pytest.mark.parametrize("name", ["SPPO", "PPO", "PPO, lambda 0.95", "GRPO", "RLOO", "REINFORCE", "ReMax"])
def test_sampling_agrees_with_theory_within_its_interval(name):
    args = script.Args(horizon=40, deciding="even", offset=-2.0, batch=16, group_size=4, episodes=16 * 1500, seed=7)
    right = credit.uniform_policy(args.chain)
    v0 = credit.segment_values(args.chain, right)[0][:, 0]
    states = credit.wrong_values(credit.exact_values(args.chain, right), 0.2, "smooth", np.random.default_rng(1))
    (row,) = script.rows_of(args, {"context": v0 * 0.8, "1.0": states}, [name])
    assert abs(row["measured"] - row["share"]) < 4 * row["error"]
    assert row["error"] < 0.06 * row["share"], "an interval that admits everything shows nothing"


def test_the_environment_is_the_chain():
    """Success rates of fixed actions in sppo/Credit-v0 are those of the table, also in groups that share their start."""
    chain = dataclasses.replace(CHAINS["sppo/Credit-v0"], horizon=10)
    envs = gym.make_vec("sppo/Credit-v0", num_envs=8000, horizon=10)
    obs, _ = envs.reset(seed=5)
    rng = np.random.default_rng(2)
    context = np.argmin(abs(obs[:, :1] - chain.difficulty), axis=1)
    n = np.zeros(8000, dtype=int)
    for t in range(10):
        np.testing.assert_allclose(obs, chain.observe(context, t, n), rtol=1e-6)
        actions = rng.integers(2, size=8000)
        n += actions * chain.mark[t]
        obs, reward, done, _, info = envs.step(actions)
        assert done.all() == (t == 9)
    expected = chain.success[context, n]
    assert (reward == info["success"]).all()
    np.testing.assert_allclose(info["right_share"], n / 5)
    assert abs(reward.mean() - expected.mean()) < 4 * np.sqrt((expected * (1 - expected)).mean() / 8000)
    assert np.mean((reward - expected) ** 2) == pytest.approx(np.mean(expected * (1 - expected)), rel=0.1)
    # One start, many action sequences with equal decisions: both outcomes, as often as the table says.
    envs.reset(seed=[11] * 8000)
    for t in range(10):
        envs.step(np.where(chain.mark[t], np.arange(10)[t] < 8, rng.integers(2, size=8000)).astype(int))
    share = envs.step(np.zeros(8000, dtype=int))[4]["success"].mean()
    c = int(envs.state[0, 0])
    assert share == pytest.approx(chain.success[c, int(envs.state[2, 0])], abs=0.12)


def test_one_chain_and_many_are_equal_and_arguments_reach_both():
    one, many = (make("sppo/CreditLate-v0", horizon=7, decisions=2, **x) for make, x in (
        (gym.make, {}), (gym.make_vec, {"num_envs": 1})))  # fmt: skip
    for seed in range(20):
        a, b = one.reset(seed=seed)[0], many.reset(seed=[seed])[0][0]
        for t in range(7):
            np.testing.assert_array_equal(a, b)
            assert a[2] == (t >= 5)
            action = (seed + t) % 2
            a, reward, *_ = one.step(action)
            b, rewards, *_ = many.step(np.array([action]))
            b = b[0]
            assert reward == rewards[0]
    with pytest.raises(ValueError, match="a chain has no 'gian'"):
        gym.make("sppo/Credit-v0", gian=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deciding": "soon"}, "deciding must be one of early, even, late, all, hidden, got 'soon'"),
        ({"horizon": 3}, "decisions must be at most horizon = 3, got 5"),
        ({"decisions": 0}, "decisions must be a whole number of at least 1, got 0"),
        ({"contexts": 1.5}, "contexts must be a whole number of at least 1, got 1.5"),
        ({"gain": float("nan")}, "gain must be from -50 to 50, got nan"),
        ({"spread": -1.0}, "spread must be from 0 to 50, got -1.0"),
        ({"horizon": 0}, "horizon must be at least 1 step, got 0"),
    ],
)
def test_impossible_chains_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Chain(**changes)


def test_impossible_studies_are_refused():
    with pytest.raises(ValueError, match="the most is 20,000,000; lower"):
        credit.uniform_policy(Chain(5000, "all"))
    with pytest.raises(ValueError, match="right must be above 0 and below 1, got 1"):
        credit.uniform_policy(Chain(), 1)
    chain, right, states, _ = small("even")
    with pytest.raises(ValueError, match=re.escape("value must be (T, C, K + 1) = (6, 2, 4), got (5, 2, 4)")):
        credit.state_gradient(chain, right, states[:5])
    with pytest.raises(ValueError, match="size must be at least 2 episodes per group, got 1"):
        credit.group_gradient(chain, right, 1, False)
    with pytest.raises(ValueError, match="kind must be one of white, smooth, offset, got 'pink'"):
        credit.wrong_values(states, 0.1, "pink", np.random.default_rng(0))
    with pytest.raises(ValueError, match="'dqn' is unknown"):
        credit.sampled_advantage("dqn", all_episodes(chain, right)[0])


@pytest.mark.parametrize("env_id", CHAINS)
def test_the_chains_are_tasks_with_random_starts(env_id):
    task = sppo_envs.task(env_id)
    assert env_id not in sppo_envs.TASKS
    assert not task.has_dense_reward
    envs = sppo_envs.make_task(env_id, 3, horizon=20)
    assert (envs.horizon, envs.chain) == (20, dataclasses.replace(CHAINS[env_id], horizon=20))


# ----------------------------------------------------------------------------------------------- the script, the page
def test_the_critic_of_the_flags():
    """--critic-knows and --critic-sees-from: V(s_0) before, a share of what is decided after."""
    args = script.Args(horizon=20, deciding="early", critic_knows=0.25, critic_sees_from=0.5)
    right = credit.uniform_policy(args.chain)
    exact = credit.exact_values(args.chain, right)
    value = script.critic_of_states(args, right, 1.0, np.random.default_rng(0))
    base = np.broadcast_to(exact[:1, :, :1], exact.shape)
    np.testing.assert_allclose(value[:10], base[:10])
    np.testing.assert_allclose(value[10:], base[10:] + 0.25 * (exact - base)[10:])
    full = dataclasses.replace(args, critic_sees_from=0.0)
    found = script.knowledge(args.chain, right, script.critic_of_states(full, right, 1.0, np.random.default_rng(0)))
    assert found["knows"] == pytest.approx(0.25)
    assert found["rest"] == pytest.approx(0, abs=1e-9)
    wrong = dataclasses.replace(full, critic_error=0.1, critic_knows=1.0)
    drawn = script.critic_of_states(wrong, right, 1.0, np.random.default_rng(0))
    assert script.knowledge(args.chain, right, drawn)["whole_error"] == pytest.approx(0.1, rel=0.3)


def test_a_learnt_critic_learns():
    chain = Chain(8, "early")
    right = credit.uniform_policy(chain)
    tables = script.learn_critics(chain, right, 512, seed=1)
    found = script.knowledge(chain, right, tables["states"])
    assert found["knows"] > 0.6
    assert found["whole_error"] < 0.12
    assert abs(tables["context"] - credit.segment_values(chain, right)[0][:, 0]).max() < 0.15


def test_one_setting_is_printed_and_drawn(tmp_path, capsys, monkeypatch):
    args = script.Args(horizon=12, deciding="early", batch=8, group_size=4, episodes=256, out=tmp_path / "c.png")
    script.main(args)
    out = capsys.readouterr().out
    assert (tmp_path / "c.png").stat().st_size > 10_000
    names = [line.split(" | ")[0].strip("| ") for line in out.splitlines() if line.startswith("| ")]
    assert names == ["algorithm", "---", *(name.replace(";", ",") for name in script.settings(args))]
    assert "gain at B = 8" in out


@pytest.mark.slow
def test_the_page_has_the_numbers_of_its_files():
    made = script.pages(script.Args(), MEASURED)
    made["learning"] = script.learning_table(ROOT / "results" / "credit.parquet")
    blocks = dict(re.findall(r"<!-- credit: (\w+) -->\n(.*?)\n<!-- end -->", PAGE, flags=re.S))
    assert set(blocks) == set(made)
    for name, text in made.items():
        assert blocks[name] == text, f"{name}: run scripts/credit.py --what map"


def test_theory_of_the_measured_points_is_that_of_today():
    """The file's theory, for the given errors, computed anew: nothing was edited by hand or left from older code."""
    points = [p for p in MEASURED["noise"] if p["horizon"] <= 1000]
    assert len(points) > 40
    for p in points:
        args = script.Args(horizon=p["horizon"], deciding=p["deciding"])
        assert script.noise_theory(args, p["algorithm"]) == pytest.approx(p["theory"], rel=1e-9)


def test_the_page_links_its_pictures_and_says_factors_in_words():
    for name in ("credit_map", "credit_noise", "credit_others"):
        assert f"figures/{name}.png" in PAGE
        assert (ROOT / "docs" / "figures" / f"{name}.png").is_file()
    words = [credit_figures.factor(x) for x in (2, -2, 0, 0.5, 10, 25, -25)]
    assert words == ["x 4", "x 1/4", "x 1", "x 1.4", "x 1,024", "x > 10^6", "x < 1/10^6"]


def test_core_gives_the_advantages_of_the_study():
    chain, right, _, contexts = small("even")
    episodes, _ = all_episodes(chain, right)
    A = credit.sampled_advantage("sppo", episodes, contexts)
    np.testing.assert_allclose(A, episodes.outcome - contexts[episodes.context], atol=1e-12)
    assert torch.equal(
        torch.from_numpy(credit.sampled_advantage("rloo", episodes, group=len(A))),
        core.leave_one_out_advantage(torch.from_numpy(episodes.outcome), len(A)),
    )
