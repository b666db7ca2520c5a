"""scripts/tune.py: what a trial trains and scores, pruning, going on after a kill, and which seeds are refused."""

import re
import tomllib
from pathlib import Path

import pytest

import benchmark
import tune
from sppo_control import cli, commands, errors

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parents[1]


def make(folder, **changes):
    given = {"storage": folder / "t.db", "work_dir": folder / "work", "trials": 4, "seeds": (301, 302), "rungs": 2}
    return cli.make_args(tune.Args, **{**given, "total_timesteps": 1000, "sampler": "random", **changes})


@pytest.fixture
def trained(monkeypatch):
    """Training in place of scripts: success grows with the learning rate; returns what was trained."""
    calls = []

    def train(args, script, words, seed, steps):
        values = dict(zip(words[::2], words[1::2], strict=True))
        calls.append((script, values, seed, steps))
        return min(1.0, float(values["--learning-rate"]) * 50 + seed / 1e4) * steps / 1000

    monkeypatch.setattr(tune, "train", train)
    return calls


def trials_of(args):
    return optuna.load_study(study_name=args.name, storage=f"sqlite:///{args.storage}").trials


def test_a_score_is_the_mean_over_the_seeds_at_the_end(trained, tmp_path, capsys):
    args = make(tmp_path, trials=3, pruner="none")
    tune.main(args)
    trials = trials_of(args)
    assert len(trials) == 3
    assert [seed for *_, seed, _ in trained] == 3 * [301, 302, 301, 302]
    assert [steps for *_, steps in trained] == 3 * [500, 500, 1000, 1000]
    for trial in trials:
        expected = [min(1.0, trial.params["learning-rate"] * 50 + seed / 1e4) for seed in (301, 302)]
        assert trial.value == pytest.approx(sum(expected) / 2)
        assert trial.user_attrs["success by seed"] == pytest.approx(expected)
        assert trial.intermediate_values == pytest.approx({500: trial.value / 2, 1000: trial.value})
    best = max(trials, key=lambda trial: trial.value)
    said = capsys.readouterr().out
    assert f"--learning-rate {best.params['learning-rate']!r}" in said
    assert "--seed 401" in said


def test_bad_trials_are_stopped_after_a_part(trained, tmp_path):
    args = make(tmp_path, trials=6, startup_trials=2)
    tune.main(args)
    pruned = [trial for trial in trials_of(args) if trial.state.name == "PRUNED"]
    assert pruned
    assert all(list(trial.intermediate_values) == [500] for trial in pruned)
    complete = [trial.value for trial in trials_of(args) if trial.state.name == "COMPLETE"]
    assert max(complete) > max(trial.intermediate_values[500] for trial in pruned)


def test_the_same_command_goes_on_and_a_killed_trial_is_drawn_again(trained, tmp_path, monkeypatch):
    args, real = make(tmp_path, trials=3, pruner="none"), tune.train

    def dies(*words):
        if len(trained) == 5:
            raise KeyboardInterrupt
        return real(*words)

    monkeypatch.setattr(tune, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        tune.main(args)
    killed = trials_of(args)[-1]
    assert tune.ended(optuna.load_study(study_name=args.name, storage=f"sqlite:///{args.storage}")) == 1
    monkeypatch.setattr(tune, "train", real)
    tune.main(args)
    tune.main(args)  # nothing is left to do
    trials = trials_of(args)
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 3
    again = [trial for trial in trials if trial.params == killed.params]
    assert [trial.state.name for trial in again] == ["FAIL", "COMPLETE"]
    drawn = [trial.params["learning-rate"] for trial in trials if trial is not again[1]]
    assert len(set(drawn)) == len(drawn), "the sampler does not begin anew"


def test_trials_that_cannot_be_compared_are_refused(trained, tmp_path):
    tune.main(make(tmp_path, trials=1))
    with pytest.raises(errors.UserError, match=r"was made with --total-timesteps 1000; .* another --study"):
        tune.main(make(tmp_path, trials=2, total_timesteps=2000))
    tune.main(make(tmp_path, trials=1, total_timesteps=2000, study="longer"))
    (tmp_path / "odd.db").write_text("no data base " * 100)
    with pytest.raises(errors.UserError, match="cannot be used"):
        tune.main(make(tmp_path, storage=tmp_path / "odd.db"))


def test_a_run_that_became_nan_ends_its_trial_and_other_failures_end_the_search(tmp_path, monkeypatch):
    message = ["exit status 1; stopped: policy loss is nan"]

    def train(*words):
        raise errors.UserError(message[0])

    monkeypatch.setattr(tune, "train", train)
    args = make(tmp_path, trials=1)
    tune.main(args)
    assert [trial.state.name for trial in trials_of(args)] == ["PRUNED"]
    message[0] = "exit status 2; error: no such task"
    with pytest.raises(errors.UserError, match="no such task"):
        tune.main(make(tmp_path, trials=2))


@pytest.mark.parametrize("algorithm", ["sppo", "ppo", "grpo", "rloo", "remax", "reinforce"])
def test_every_drawn_value_is_one_that_the_script_takes(algorithm, tmp_path):
    """Twenty random trials each, read by the script's own parser."""
    args = make(tmp_path, algorithm=algorithm, settings=("horizon=50", "skip-uniform-batches"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        script, words = tune.words_of(args, tune.space(trial, algorithm))
        found = cli.parse_args(__import__(script).Args, None, words)
        for name, value in trial.params.items():
            assert getattr(found, name.replace("-", "_")) == value
        assert (found.horizon, found.skip_uniform_batches) == (50, True)
        assert algorithm != "reinforce" or found.group_size == 1


def test_a_run_goes_on_from_part_to_part_and_what_is_known_is_not_trained_again(tmp_path, monkeypatch):
    calls = []

    def run(words, folder, resumed):
        calls.append((words, folder, resumed))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text('{"after": {"rate": 0.25}}')
        return folder

    monkeypatch.setattr(benchmark, "run", run)
    args = make(tmp_path)
    for steps in (500, 1000, 500):
        assert tune.train(args, "sppo_cartpole", ["--learning-rate", "0.001"], 301, steps) == 0.25
    assert [resumed for *_, resumed in calls] == [["--total-timesteps", "500"], ["--total-timesteps", "1000"]]
    words, folder, _ = calls[0]
    assert words[0] == str(commands.scripts_folder() / "sppo_cartpole.py")
    assert words[1:] == [
        "--learning-rate",
        "0.001",
        "--seed",
        "301",
        "--eval-episodes",
        "1024",
        "--total-timesteps",
        "500",
    ]
    tune.train(args, "sppo_cartpole", ["--learning-rate", "0.002"], 301, 500)
    assert calls[-1][1] != folder


def test_published_seeds_are_refused():
    """Every seed of the grids, but for those of tuning, which are never reported; and those of the plan."""
    reported = set()
    for file in (ROOT / "results" / "grids").glob("*.toml"):
        for grid in tomllib.loads(file.read_text()).get("grid", []):
            reported |= (
                set() if "tuning" in grid.get("out", "") or "tuning" in file.stem else set(grid.get("seeds", ()))
            )
    first, last = re.search(r"Reported: seeds (\d+) to (\d+)", (ROOT / "results" / "plan.md").read_text()).groups()
    reported |= set(range(int(first), int(last) + 1))
    assert reported <= tune.REPORTED
    for seed in reported:
        with pytest.raises(ValueError, match=f"published results, 1 to 30, got {seed};"):
            tune.Args(seeds=(301, seed))
    assert not tune.REPORTED & set(tune.Args().seeds)
    with pytest.raises(ValueError, match="each once"):
        tune.Args(seeds=(301, 301))


def test_annealed_rates_have_no_parts(tmp_path, trained):
    with pytest.raises(ValueError, match="--settings anneal-lr"):
        tune.main(make(tmp_path, algorithm="ppo", settings=("anneal-lr",)))
    assert not trained
