"""scripts/probe.py.

Its statistics are compared with scipy and with known numbers, and its output with the weights and episodes of the runs.
Other tests are about which runs and checkpoints it takes, and what it refuses before the long work.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("sppo_control.study", exc_type=ImportError)  # the reason names the package
import scipy.stats

import grpo_cartpole
import ppo_cartpole
import probe
import sppo_cartpole
import sppo_envs
from sppo_control import cli
from sppo_control.policies import load_policy
from sppo_control.rollout import rollout

POLE, CONTEXT = "sppo/PrecisionCartPole-v0", "sppo/ContextCartPole-v0"
RUNS = {  # name: script, what it changes
    "ppo": (ppo_cartpole, {"critic_hidden": (5,)}),
    "ppo-bce": (ppo_cartpole, {"critic_loss": "bce", "seed": 3}),
    "sppo": (sppo_cartpole, {"critic_hidden": (7, 6), "seed": 2}),
    "sppo-paper": (sppo_cartpole, {"critic_recipe": "paper"}),
    "grpo": (grpo_cartpole, {"group_size": 4}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(algorithm, task) -> a run of at least four updates with a checkpoint after each, all below one folder."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for env_id in (POLE, CONTEXT):
        for name, (script, changes) in RUNS.items():
            args = {
                "env_id": env_id,
                "num_envs": 4,
                "num_minibatches": 2,
                "save_every": 1,
                "eval_episodes": 1,
                "learning_rate": 3e-4,
            }
            args |= {"critic_learning_rate": 0.02} if script is not grpo_cartpole else {}  # so that V is not flat
            run = script.train(script.Args(**args, **changes, total_timesteps=3000, runs_dir=str(folder)))
            made[name, env_id] = run.folder
    return made


def measure(out, what, *paths, **changes):
    small = {"episodes": 70, "seed": 4} if what == "tail" else {"episodes": 6, "contexts": 30, "seed": 4}
    probe.main(probe.Args(what, paths, out, **{**small, **changes}))
    return json.loads(out.read_text())


def value(run, update, obs, sigmoid):
    """V(obs) from the numbers in the checkpoint's file: (..., D) -> (...)."""
    w = load_file(run / "checkpoints" / f"{update:06d}" / "critic.safetensors")
    x, last = obs.double().numpy() * w["obs_scale"], len(w) // 2 - 1
    for i in range(last + 1):
        x = x @ w[f"layers.{i}.weight"].T.astype(float) + w[f"layers.{i}.bias"]
        x = np.tanh(x) if i < last else x[..., 0]
    return 1 / (1 + np.exp(-x)) if sigmoid else x


def acting(run, update, num_envs):
    config = json.loads((run / "config.json").read_text())
    envs = sppo_envs.make_task(config["args"]["env_id"], num_envs)
    return envs, load_policy(run / "checkpoints" / f"{update:06d}" / "policy.safetensors", envs)


def last_update(run):
    return int(sorted((run / "checkpoints").iterdir())[-1].name)


# ---------------------------------------------------------------------------------------------------- statistics
TIES = np.random.default_rng(0).integers(0, 4, (2, 40)).astype(float)
SMOOTH = np.random.default_rng(1).normal(size=(2, 40))


@pytest.mark.parametrize("x", [*TIES, *SMOOTH, np.array([2.0]), np.full(3, 0.5)])
def test_ranks(x):
    assert probe.ranks(x).tolist() == scipy.stats.rankdata(x).tolist()


@pytest.mark.parametrize(("x", "y"), [TIES, SMOOTH, (TIES[0], SMOOTH[0])])
def test_correlation(x, y):
    assert probe.correlation(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    assert probe.correlation(probe.ranks(x), probe.ranks(y)) == pytest.approx(scipy.stats.spearmanr(x, y)[0])


def test_there_is_no_correlation_with_one_number():
    assert np.isnan(
        [probe.correlation(np.full(4, 0.1), np.arange(4.0)), probe.correlation(np.arange(4.0), np.ones(4))]
    ).all()


def pairs_won(successes, failures):
    """Share of (success, failure) pairs in which the success has more, ties half; (n, K), (m, K) -> (K,)."""
    a, b = np.asarray(successes)[:, None], np.asarray(failures)[None]
    return ((a > b) + 0.5 * (a == b)).mean((0, 1))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (2, 30)])
def test_auc_is_the_share_of_pairs_that_are_in_order(n, m):
    rng = np.random.default_rng(n)
    x = np.concatenate([rng.integers(0, 3, (n + m, 25)), rng.normal(size=(n + m, 25))], axis=1)  # half of it with ties
    assert probe.auc(x[:n], x[n:]) == pytest.approx(pairs_won(x[:n], x[n:]))
    u = scipy.stats.mannwhitneyu(x[:n], x[n:], axis=0).statistic
    assert probe.auc(x[:n], x[n:]) == pytest.approx(u / (n * m))


def test_auc_by_hand():
    column = np.ones((1, probe.POINTS))
    assert (
        probe.auc(np.array([[3.0], [1]]) * column, np.array([[2.0], [1]]) * column).tolist() == [0.625] * probe.POINTS
    )
    for won, lost in ((0, 2), (2, 0)):
        assert np.isnan(probe.auc(np.zeros((won, probe.POINTS)), np.zeros((lost, probe.POINTS)))).all()


def test_resample_by_hand(monkeypatch):
    monkeypatch.setattr(probe, "POINTS", 5)
    for values, expected in {
        (7.0,): [7, 7, 7, 7, 7],
        (0.0, 1.0): [0, 0.25, 0.5, 0.75, 1],
        (0.0, 2.0, 1.0): [0, 1, 2, 1.5, 1],
        (3.0, 1.0, 4.0, 1.0, 5.0): [3, 1, 4, 1, 5],
        tuple(range(9)): [0, 2, 4, 6, 8],
    }.items():
        assert probe.resample(np.array(values)).tolist() == expected


def test_spread_by_hand(monkeypatch):
    monkeypatch.setattr(probe, "POINTS", 3)
    curves = np.stack([np.arange(11.0), 2 * np.arange(11.0), np.full(11, 0.5)], axis=1)
    found = {key: np.asarray(x).tolist() for key, x in probe.spread(curves).items()}
    assert found == {
        "progress": [0, 0.5, 1], "mean": [5, 10, 0.5], "low": [1, 2, 0.5], "high": [9, 18, 0.5], "episodes": 11,
    }  # fmt: skip
    none = probe.spread(curves[:0])
    assert none["episodes"] == 0
    assert all(np.isnan(none[key]).tolist() == [True] * 3 for key in ("mean", "low", "high"))


def test_plain_is_what_json_knows():
    assert json.dumps(probe.plain({"a": np.array([0.5, np.nan]), "b": {"c": float("nan"), "d": "x"}, "e": 3})) == (
        '{"a": [0.5, null], "b": {"c": null, "d": "x"}, "e": 3}'
    )


# ----------------------------------------------------------------------------------------------------------- tail
@pytest.fixture(scope="module")
def tails(trained, tmp_path_factory):
    """algorithm -> what `tail` wrote of its run; 70 episodes are two batches."""
    paths = [run for (name, env_id), run in trained.items() if env_id == POLE and name != "grpo"]
    content = measure(tmp_path_factory.mktemp("tail") / "new" / "tail.json", "tail", *paths)
    assert content["env_id"] == POLE
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    return {row["variant"]: row for row in content["runs"]}


@pytest.mark.parametrize("name", [name for name in RUNS if name != "grpo"])
def test_tail_is_v_along_the_episodes_of_the_checkpoint(name, tails, trained):
    run, row = trained[name, POLE], tails[name]
    assert (row["algorithm"], row["run"], row["env_id"]) == (name.split("-")[0], run.name, POLE)
    assert (row["seed"], row["update"]) == (RUNS[name][1].get("seed", 1), last_update(run))
    envs, policy = acting(run, row["update"], 64)
    rng, won, lost = np.random.default_rng(4), [], []
    for count in (64, 6):
        episodes = rollout(envs, policy, rng)
        V = value(run, row["update"], episodes.obs, sigmoid=name != "ppo")
        for v, mask, R in list(zip(V, episodes.mask.numpy(), episodes.outcome, strict=True))[:count]:
            v = np.full(2, v[0]) if name.startswith("sppo") else v[mask]
            curve = scipy.interpolate.make_interp_spline(np.linspace(0, 1, len(v)), v, k=1)(np.linspace(0, 1, 50))
            (won if R == 1 else lost).append(curve)
    assert min(len(won), len(lost)) > 5
    for key, curves in {"successes": won, "failures": lost}.items():
        expected = {"mean": np.mean(curves, 0), "low": np.quantile(curves, 0.1, 0), "high": np.quantile(curves, 0.9, 0)}
        assert row[key]["episodes"] == len(curves)
        assert row[key]["progress"] == pytest.approx(np.linspace(0, 1, 50))
        for part, numbers in expected.items():
            assert row[key][part] == pytest.approx(numbers, abs=1e-5), (key, part)
    low, high = (pairs_won(np.add(won, sign * 1e-6), lost) for sign in (-1, 1))  # near ties may fall either way
    assert ((low - 1e-9 <= row["auc"]) & (row["auc"] <= high + 1e-9)).all()
    assert (high - low).mean() < 0.02


def test_v_of_sppo_is_one_number_an_episode(tails):
    for name, row in tails.items():
        flat = all(len(set(row[key][part])) == 1 for key in ("successes", "failures") for part in ("low", "high"))
        assert flat == (len(set(row["auc"])) == 1) == name.startswith("sppo"), name


def test_only_probabilities_of_bce_critics_stay_within_0_and_1(trained):
    """The flag that decides it is the run's own: the same weights, read as PPO's plain critic, go beyond."""
    made = probe.load(probe.Args("tail", (trained["ppo-bce", POLE],), Path("x")), probe.contextlib.ExitStack())[0]
    obs = torch.randn(200, 4) * 5
    logits = made.critic(obs).detach()
    assert logits.abs().max() > 1
    assert made.values(obs) == pytest.approx(torch.sigmoid(logits).numpy())
    made.sigmoid = False
    assert made.values(obs) == pytest.approx(logits.numpy())


# ---------------------------------------------------------------------------------------------------- calibration
@pytest.fixture(scope="module")
def calibrations(trained, tmp_path_factory):
    """(algorithm, update) -> what `calibration` wrote of its run on the context task."""
    paths = [trained[name, CONTEXT] for name in ("sppo", "ppo", "ppo-bce")]
    content = measure(tmp_path_factory.mktemp("calibration") / "c.json", "calibration", *paths, updates=(2, 99))
    return {(row["algorithm"], row["update"]): row for row in content["rows"]}


def calibrated(trained, calibrations):
    for (name, update), row in calibrations.items():
        yield name, update, row, trained[name, CONTEXT]


def test_calibration_has_a_row_for_each_checkpoint(trained, calibrations):
    expected = {(name, u) for name in ("sppo", "ppo", "ppo-bce") for u in (2, last_update(trained[name, CONTEXT]))}
    assert set(calibrations) == expected
    for name, _, row, run in calibrated(trained, calibrations):
        assert (row["env_id"], row["run"], row["seed"]) == (CONTEXT, run.name, RUNS[name][1].get("seed", 1))
        assert (row["contexts"], row["episodes"]) == (len(row["v0"]), 6) == (len(row["rate"]), 6) == (30, 6)


def test_calibration_is_v0_against_the_outcomes_from_each_context(trained, calibrations):
    """Each context's own B episodes, run again here; Brier is the mean over all single outcomes."""
    for name, update, row, run in calibrated(trained, calibrations):
        envs, policy = acting(run, update, 6)
        rng, v0, outcomes = np.random.default_rng(4), [], []
        for _ in range(30):
            episodes = rollout(envs, policy, rng, group_size=6)
            assert (episodes.context == episodes.context[0]).all()
            v0.append(value(run, update, episodes.context[0], sigmoid=name != "ppo"))
            outcomes.append(episodes.outcome.numpy())
        v0, outcomes = np.array(v0), np.array(outcomes)
        assert row["v0"] == pytest.approx(v0, abs=1e-5)
        assert row["rate"] == pytest.approx(outcomes.mean(1))
        assert row["brier"] == pytest.approx(np.mean((v0[:, None] - outcomes) ** 2), abs=1e-5)
        assert 0 < outcomes.mean() < 1


def test_calibrations_numbers_are_those_of_what_is_written(calibrations):
    for row in calibrations.values():
        v0, rate = np.array(row["v0"]), np.array(row["rate"])
        assert row["pearson"] == pytest.approx(scipy.stats.pearsonr(v0, rate)[0], abs=1e-6)
        assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(v0, rate)[0], abs=1e-6)
        assert row["brier"] == pytest.approx(np.mean(rate * (1 - v0) ** 2 + (1 - rate) * v0**2))
        bins = np.clip(np.floor(v0 * 10), 0, 9)
        gaps = [abs(v0[bins == b].mean() - rate[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
        assert len(gaps) > 1
        assert row["ece"] == pytest.approx(sum(gaps))
        assert len(np.unique(rate)) < len(rate), "no ties: too easy"


# ------------------------------------------------------------------------------------- which runs, which checkpoints
def test_the_newest_complete_checkpoint_of_at_most_so_many_updates(trained, tmp_path):
    run, last = tmp_path / "run", last_update(trained["sppo", POLE])
    shutil.copytree(trained["sppo", POLE], run)
    for update in range(2, last):
        shutil.rmtree(run / "checkpoints" / f"{update:06d}")
    shutil.copytree(run / "checkpoints" / "000001", run / "checkpoints" / ".writing-000099")
    assert last > 3
    for update, taken in {None: last, 99: last, last: last, last - 1: 1, 1: 1, 0: 0}.items():
        (row,) = measure(tmp_path / "a.json", "tail", run, update=update, episodes=1)["runs"]
        assert row["update"] == taken, update
    for updates, taken in {(): [last], (0, 2, 99): [0, 1, last], (1, 2, 3): [1]}.items():
        rows = measure(tmp_path / "b.json", "calibration", run, updates=updates, episodes=1, contexts=1)["rows"]
        assert [row["update"] for row in rows] == taken, updates


def test_runs_whose_critic_was_trained_otherwise_have_another_name(tmp_path):
    """The variant's own flags are not named: VC-PPO's five batches of warm start are what it is."""

    def name(script, **arguments):
        return probe.setting_of(
            {"script": script, "args": {"critic_recipe": "window", "critic_hidden": [9], **arguments}}
        )

    assert name("sppo_cartpole.py") == name("sppo_cartpole.py", critic_steps=20, critic_window=4) == ""
    assert (
        name("sppo_cartpole.py", critic_steps=80, critic_warmup_batches=2) == "critic-steps=80,critic-warmup-batches=2"
    )
    assert name("sppo_cartpole.py", critic_window=16, critic_batch_size=64) == "critic-batch-size=64,critic-window=16"
    vc = {"critic_warmup_batches": 5, "gae_lambda": 0.95, "critic_gae_lambda": 1.0}
    assert name("ppo_cartpole.py", **vc) == ""
    assert name("ppo_cartpole.py", critic_warmup_batches=5) == "critic-warmup-batches=5"

    args = {"num_envs": 4, "num_minibatches": 2, "save_every": 1, "eval_episodes": 1, "total_timesteps": 500}
    run = sppo_cartpole.train(sppo_cartpole.Args(env_id=CONTEXT, critic_window=2, runs_dir=str(tmp_path), **args))
    (row,) = measure(tmp_path / "o.json", "calibration", run.folder, contexts=2, episodes=1)["rows"]
    assert row["algorithm"] == "sppo, critic-window=2"
    (one,) = measure(tmp_path / "t.json", "tail", run.folder, episodes=2)["runs"]
    assert (one["algorithm"], one["variant"]) == ("sppo", "sppo"), "tail effect: V of s_0 alone"


def test_the_checkpoints_own_policy_acts(trained, tmp_path):
    """An update says whose policy and whose critic: other rates and other V than of the last checkpoint."""
    rows = measure(tmp_path / "a.json", "calibration", trained["sppo", CONTEXT], updates=(0, 99))["rows"]
    assert [row["update"] for row in rows] == [0, last_update(trained["sppo", CONTEXT])]
    assert rows[0]["v0"] != rows[1]["v0"]
    assert rows[0]["rate"] != rows[1]["rate"]


def test_runs_without_critic_are_left_out_of_a_search_with_a_note(trained, tmp_path, capsys):
    folder = trained["sppo", POLE].parent
    rows = measure(tmp_path / "a.json", "calibration", folder, trained["ppo", POLE], contexts=1, episodes=1)["rows"]
    critics = {str(run.name) for (name, _), run in trained.items() if name != "grpo"}
    assert sorted(row["run"] for row in rows) == sorted(critics), "each once, also where it is named twice"
    err = capsys.readouterr().err
    assert f"note: 2 runs in {folder} have no critic and are left out" in err
    for name in critics:
        assert f"{name}: checkpoint of update" in err


def test_runs_are_chosen_by_task_and_seed(trained, tmp_path):
    folder = trained["sppo", POLE].parent
    small = {"contexts": 1, "episodes": 1}
    for changes, expected in (
        ({"env_id": POLE}, {(name, POLE) for name in RUNS if name != "grpo"}),
        ({"seeds": (2, 3)}, {(name, env_id) for name in ("sppo", "ppo-bce") for env_id in (POLE, CONTEXT)}),
        ({"seeds": (2,), "env_id": CONTEXT}, {("sppo", CONTEXT)}),
    ):
        rows = measure(tmp_path / "a.json", "calibration", folder, **small, **changes)["rows"]
        assert {(row["algorithm"], row["env_id"]) for row in rows} == expected


@pytest.mark.parametrize("what", ["tail", "calibration"])
def test_equal_arguments_give_equal_files(what, trained, tmp_path):
    paths = [trained[name, CONTEXT] for name in ("ppo", "sppo")]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        measure(tmp_path / name, what, *paths, episodes=5, contexts=5, seed=seed)
    a, b, c = (re.sub('"git_commit".*', "", (tmp_path / name).read_text()) for name in "abc")  # others may commit now
    assert a == b
    assert a != c
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c"}


def test_without_a_failure_or_a_success_there_is_no_auc(trained, tmp_path):
    rows = [
        measure(tmp_path / "a", "tail", trained["ppo", POLE], episodes=1, seed=seed)["runs"][0] for seed in range(9)
    ]
    assert {(r["successes"]["episodes"], r["failures"]["episodes"]) for r in rows} == {(0, 1), (1, 0)}
    for row in rows:
        assert row["auc"] == [None] * 50
        empty, full = sorted((row["successes"], row["failures"]), key=lambda group: group["episodes"])
        assert empty["mean"] == empty["low"] == empty["high"] == [None] * 50
        assert full["mean"] == full["low"] == full["high"]


def test_success_and_horizon_are_those_of_the_run(tmp_path):
    """A user's own task: no episode can be long enough to succeed, unless one of the two is forgotten."""
    args = {"env_id": "CartPole-v1", "success_return": 25.0, "horizon": 24, "num_envs": 4, "total_timesteps": 1}
    run = ppo_cartpole.train(ppo_cartpole.Args(**args, eval_episodes=1, runs_dir=str(tmp_path)))
    (row,) = measure(tmp_path / "a.json", "tail", run.folder)["runs"]
    assert (row["successes"]["episodes"], row["failures"]["episodes"]) == (0, 70)


# --------------------------------------------------------------------------------------------------------- refusals
def refusal(monkeypatch, capsys, *words):
    for name in ("rollout", "success_by_context"):
        monkeypatch.setattr(probe, name, lambda *a, **k: pytest.fail("the long work began"))
    monkeypatch.setattr(sys, "argv", ["probe.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main(probe.main, probe.Args, probe.__doc__)
    assert stop.value.code == 2
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().err).split())


@pytest.mark.parametrize("what", ["tail", "calibration"])
def test_runs_that_cannot_be_probed_are_refused_before_the_long_work(what, trained, tmp_path, monkeypatch, capsys):
    bare, empty, damaged = (tmp_path / name for name in ("bare", "empty", "damaged"))
    empty.mkdir()
    for path in (bare, damaged):
        shutil.copytree(trained["sppo", POLE], path)
    shutil.rmtree(bare / "checkpoints")
    last = sorted((damaged / "checkpoints").iterdir())[-1] / "critic.safetensors"
    last.write_bytes(last.read_bytes()[:-50])
    good, grpo = trained["ppo", POLE], trained["grpo", POLE]
    for paths, message in (
        ([tmp_path / "none"], f"there is no run in {tmp_path / 'none'}: no config.json in it or below it"),
        ([good, empty], f"there is no run in {empty}: no config.json in it or below it"),
        ([good, grpo], f"{grpo} has no critic to look into: grpo_cartpole.py trains none"),
        ([good, bare], f"{bare} has no complete checkpoint; did the run stop before its first?"),
        ([good, damaged], f"the checkpoint {last.parent} is damaged or belongs to another network"),
        ([good, "--env-id", CONTEXT], "no run with a critic is left; look at --runs, --env-id and --seeds"),
        ([good, "--seeds", 99], "no run with a critic is left; look at --runs, --env-id and --seeds"),
    ):
        words = ("--what", what, "--out", tmp_path / "out.json", "--runs", *paths)
        assert message in refusal(monkeypatch, capsys, *words), message
    shutil.rmtree(damaged / "checkpoints" / "000000")
    flag = {"tail": "--update", "calibration": "--updates"}[what]
    error = refusal(monkeypatch, capsys, *("--what", what, "--out", tmp_path / "o.json", "--runs", damaged, flag, 0))
    assert f"{damaged} has no complete checkpoint of at most 0 updates" in error
    assert not (tmp_path / "out.json").exists()


def test_tail_is_of_one_task(trained, tmp_path, monkeypatch, capsys):
    folder, out = trained["sppo", POLE].parent, tmp_path / "out.json"
    error = refusal(monkeypatch, capsys, "--what", "tail", "--runs", folder, "--out", out)
    assert f"--what tail takes runs of one task, got {CONTEXT}, {POLE}; choose one with --env-id" in error


@pytest.mark.parametrize("what", ["tail", "calibration"])
def test_out_that_cannot_be_written_is_refused_before_the_long_work(what, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file" / "out.json", tmp_path / "file" / "below" / "out.json"):
        error = refusal(monkeypatch, capsys, "--what", what, "--runs", trained["ppo", POLE], "--out", out)
        assert f"cannot write --out {out}: " in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tail", "--updates", "3"], "--update belongs to --what tail, --updates to --what calibration"),
        (["calibration", "--update", "3"], "--update belongs to --what tail, --updates to --what calibration"),
        (["tail", "--episodes", "0"], "--episodes must be from 1 to .*, got 0"),
        (["calibration", "--contexts", "0"], "--contexts must be from 1 to .*, got 0"),
        (["calibration", "--seed", "-1"], "--seed must be from 0 to .*, got -1"),
        (["heads"], "invalid choice|heads"),
    ],
)
def test_impossible_arguments(words, message, tmp_path, monkeypatch, capsys):
    error = refusal(monkeypatch, capsys, "--what", *words, "--runs", tmp_path, "--out", tmp_path / "out.json")
    assert re.search(message, error), error


def test_episodes_are_256_along_and_64_a_context():
    assert {what: probe.Args(what, (Path("run"),), Path("x")).episodes for what in ("tail", "calibration")} == {
        "tail": 256,
        "calibration": 64,
    }
