"""The one door: --help shows the values that will be used, and config.json stores the same."""

import dataclasses
import json
import re

import pytest

import grpo_cartpole
import ppo_cartpole
import remax_cartpole
import rloo_cartpole
import sppo_cartpole
import sppo_envs
from sppo_control import checkpoints, cli, compiled, errors

SCRIPTS = [sppo_cartpole, ppo_cartpole, grpo_cartpole, rloo_cartpole, remax_cartpole]


def shown(capsys, monkeypatch, module, *words):
    """The defaults that --help shows, by flag."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        cli.parse_args(module.Args, module.__doc__, [*words, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split("show this help message and exit", 1)[1].split())
    return dict(re.findall(r" --([a-z-]+).*?\(default: ([^)]*)\)", text))


def words_of(value):
    """A value as --help writes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


@pytest.mark.parametrize("env_id", sppo_envs.TASKS)
@pytest.mark.parametrize("module", SCRIPTS, ids=lambda module: module.__name__)
def test_help_shows_the_values_that_will_be_used(module, env_id, capsys, monkeypatch):
    """Help, what the command line gives, and what config.json will hold, for each script and task."""
    args = cli.parse_args(module.Args, None, ["--env-id", env_id])
    found = shown(capsys, monkeypatch, module, "--env-id", env_id)
    expected = {cli.flag(f.name)[2:]: words_of(getattr(args, f.name)) for f in dataclasses.fields(args)}
    assert found == expected
    assert found["env-id"] == env_id
    assert dataclasses.asdict(args) == dataclasses.asdict(cli.make_args(module.Args, env_id=env_id))


def test_five_tasks_show_five_sets_of_numbers(capsys, monkeypatch):
    numbers = {}
    for env_id in sppo_envs.TASKS[:5]:
        found = shown(capsys, monkeypatch, sppo_cartpole, f"--env-id={env_id}")
        numbers[env_id] = [found[name] for name in ("num-envs", "num-minibatches", "learning-rate", "total-timesteps")]
    assert len({tuple(x) for x in numbers.values()}) == 5
    assert numbers["sppo/PrecisionCartPole-v0"] == ["64", "4", "0.001", "2000000"]
    assert numbers["sppo/SparseMountainCar-v0"] == ["8", "4", "0.0003", "500000"]


@pytest.mark.parametrize(
    "spelling", [["--critic-recipe", "paper"], ["--critic-recipe=paper"], ["--critic_recipe", "paper"]]
)
def test_the_critics_recipe_decides_its_learning_rate(spelling, capsys, monkeypatch):
    assert shown(capsys, monkeypatch, sppo_cartpole)["critic-learning-rate"] == "0.003"
    assert shown(capsys, monkeypatch, sppo_cartpole, *spelling)["critic-learning-rate"] == "0.001"
    assert cli.parse_args(sppo_cartpole.Args, None, spelling).critic_learning_rate == 1e-3
    given = cli.parse_args(sppo_cartpole.Args, None, [*spelling, "--critic-learning-rate", "0.5"])
    assert given.critic_learning_rate == 0.5


def test_values_in_the_file_are_those_of_the_task_in_the_file():
    """A reader sees numbers in Args; they must be those of the task that Args names."""
    for module in SCRIPTS:
        assert module.Args() == cli.make_args(module.Args)


def test_config_json_stores_what_help_shows(tmp_path, capsys, monkeypatch):
    words = ["--env-id", "sppo/SparseMountainCar-v0"]
    few = ["--total-timesteps", "1", "--horizon", "5", "--eval-episodes", "1", "--runs-dir", str(tmp_path)]
    run = sppo_cartpole.train(cli.parse_args(sppo_cartpole.Args, None, [*words, *few]))
    stored = json.loads((run.folder / "config.json").read_text())["args"]
    capsys.readouterr()
    found = shown(capsys, monkeypatch, sppo_cartpole, *words)
    changed = {"total-timesteps": "1", "horizon": "5", "eval-episodes": "1", "runs-dir": str(tmp_path)}
    assert found["kernels"] == "auto"
    changed["kernels"] = compiled.resolve("auto")  # what the run took, so that a resumed one takes it too
    assert {cli.flag(name)[2:]: words_of(value) for name, value in stored.items()} == {**found, **changed}
    # resumed: the stored values are the defaults
    assert shown(capsys, monkeypatch, sppo_cartpole, "--resume", str(run.folder))["num-envs"] == "8"


def test_a_run_of_an_older_layout_is_refused_with_the_version_that_reads_it(tmp_path):
    words = ["--total-timesteps", "1", "--horizon", "5", "--eval-episodes", "1", "--runs-dir", str(tmp_path)]
    run = sppo_cartpole.train(cli.parse_args(sppo_cartpole.Args, None, words))
    file = run.folder / "config.json"
    config = json.loads(file.read_text())
    for change, message in (
        ({"layout": None}, r"has layout 1, this version reads layout 2; version 0\.1\.0 .*wrote it"),
        ({"layout": 3, "versions": {"sppo-control": "9.9"}}, r"has layout 3, .*version 9\.9 .*wrote it"),
    ):
        changed = {k: v for k, v in {**config, **change}.items() if v is not None}
        file.write_text(json.dumps(changed))
        with pytest.raises(errors.UserError, match=message) as refused:
            cli.parse_args(sppo_cartpole.Args, None, ["--resume", str(run.folder)])
        assert "\n" not in str(refused.value)
    file.write_text(json.dumps(config))
    state = run.checkpoints()[-1] / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "layout"}))
    with pytest.raises(errors.UserError, match=r"has layout 1, .*version 0\.1\.0 wrote it"):
        checkpoints.read_checkpoint(run.checkpoints()[-1], {}, ())


def test_help_is_no_wider_than_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setattr("sys.argv", ["scripts/x.py"])
    for module in SCRIPTS:
        with pytest.raises(SystemExit):
            cli.parse_args(module.Args, module.__doc__, ["--help"])
        lines = capsys.readouterr().out.splitlines()
        wide = [line for line in lines if len(line) > 72 and not line.startswith("     python ")]
        assert not wide, "only commands to copy may be wider"
