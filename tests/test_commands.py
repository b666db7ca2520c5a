"""The command `sppo`: which file it runs with which words, and a wheel that works in an empty folder."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

from sppo_control import commands
from sppo_control.study.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]


@pytest.fixture
def ran(monkeypatch):
    """Run the command; returns what would be executed, with its command line and the first folder of imports."""

    monkeypatch.setattr(commands, "typed", None)

    def run(*words):
        done = []
        monkeypatch.setattr(sys, "argv", ["sppo", *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        look = lambda what, **kwargs: done.append((what, sys.argv[1:], sys.path[0], kwargs["run_name"]))  # noqa: E731
        monkeypatch.setattr(commands.runpy, "run_path", look)
        monkeypatch.setattr(commands.runpy, "run_module", look)
        commands.main()
        return done[0] if done else None

    return run


@pytest.mark.parametrize(
    ("words", "script", "rest"),
    [
        ("train", "sppo_cartpole", ""),
        ("train --seed 3", "sppo_cartpole", "--seed 3"),
        ("train --seed 3 --algorithm ppo --gamma 0.9", "ppo_cartpole", "--seed 3 --gamma 0.9"),
        ("train --algorithm=grpo", "grpo_cartpole", ""),
        ("train --algorithm rloo", "rloo_cartpole", ""),
        ("train --algorithm remax", "remax_cartpole", ""),
        ("train --algorithm reinforce --seed 3", "rloo_cartpole", "--group-size 1 --seed 3"),
        ("train --algorithm sppo-llm", "sppo_llm", ""),
        ("evaluate --run x", "evaluate", "--run x"),
        ("bench --seeds 1 2", "benchmark", "--seeds 1 2"),
        ("pretrain", "pretrain", ""),
    ],
)
def test_a_command_is_a_script_with_the_same_words(words, script, rest, ran):
    what, given, first, name = ran(*words.split())
    assert Path(what) == ROOT / "scripts" / f"{script}.py"
    assert Path(what).is_file()
    assert given == rest.split()
    assert Path(first) == ROOT / "scripts"
    assert name == "__main__"


def test_check_and_course_are_modules(ran, capsys, monkeypatch):
    assert ran("check", "mine:adapter")[:2] == ("sppo_control.conformance", ["mine:adapter"])
    monkeypatch.setattr(commands, "find_spec", lambda name: True)
    assert ran("course", "list")[:2] == ("sppo_control.course", ["list"])
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        ran("course")
    assert stop.value.code == 2
    assert "needs the module sppo_control.course" in capsys.readouterr().err


def test_reinforce_is_the_studys():
    script, flags = commands.ALGORITHMS["reinforce"]
    assert (f"{script}.py", flags) == VARIANTS["reinforce"][1:3]
    for name in ("sppo", "ppo", "grpo", "rloo", "remax"):
        assert (f"{commands.ALGORITHMS[name][0]}.py", ()) == VARIANTS[name][1:3]


def test_a_resumed_run_says_its_algorithm(tmp_path, ran, capsys):
    run = tmp_path / "run"
    (run / "checkpoints" / "000001").mkdir(parents=True)
    config = run / "config.json"
    config.write_text(json.dumps({"script": "ppo_cartpole.py"}))
    for path in (run, run / "checkpoints" / "000001"):
        what, given, *_ = ran("train", "--resume", str(path))
        assert Path(what).stem == "ppo_cartpole"
        assert given == ["--resume", str(path)]
        assert Path(ran("train", f"--resume={path}", "--track", "wandb")[0]).stem == "ppo_cartpole"
    for text, words in (
        ('{"script": "/etc/mine.py"}', "is no script of this package"), ('{"script": 5}', "is no script of this package"),
        ("[]", "is no run folder"), ("{", "is no run folder"),
    ):  # fmt: skip
        config.write_text(text)
        with pytest.raises(SystemExit) as stop:
            ran("train", "--resume", str(run))
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fly", "the command must be one of train, evaluate,"),
        ("train --algorithm dqn", "--algorithm must be one of sppo, ppo, grpo, rloo, remax, reinforce,"),
        ("train --algorithm", "--algorithm must be one of"),
        ("train --algorithm ppo --algorithm sppo", "--algorithm must be given once, got ppo and sppo"),
        ("train --resume absent", "--resume absent is no run folder"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, message, ran, capsys):
    with pytest.raises(SystemExit) as stop:
        ran(*words.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1


def test_help_is_fast_because_it_imports_nothing():
    code = "import sys; sys.argv[1:] = ['--help']; from sppo_control.commands import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    *text, loaded = done.stdout.splitlines()
    assert not {"torch", "numpy", "gymnasium", "tyro", "sppo_control.cli"} & set(loaded.split())
    for command in ("train", *commands.SCRIPTS, *commands.MODULES):
        assert any(line.startswith(f"  {command} ") for line in text), command


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["-m", "sppo_control.commands", "train", "--help"], "usage: sppo train "),
        (["-m", "sppo_control.commands", "check", "--help"], "usage: sppo check "),
        (["scripts/plot.py", "--help"], "usage: scripts/plot.py "),
    ],
)
def test_help_shows_what_was_typed(words, usage):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert usage in done.stdout
    if "train" in words:
        assert "The default is sppo.\nThis help is that of sppo_cartpole.py," in done.stdout


@pytest.mark.parametrize("words", ["-m sppo_control.commands --help", "scripts/plot.py --help"])
def test_output_that_nobody_reads_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, *words.split()], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    finally:
        os.close(write)
    assert done.stderr == ""
    # tyro before 1.0 prints by argparse, which itself passes over a pipe that is closed
    assert done.returncode == 141 or (done.returncode == 0 and "plot" in words and tyro.__version__ < "1")


def test_another_broken_pipe_is_still_an_error():
    with pytest.raises(BrokenPipeError, match="worker"), commands.may_stay_unread():
        raise BrokenPipeError("worker")


def test_the_wheel_has_every_script_of_a_command():
    shipped = {Path(name).stem for name in WHEEL["only-include"] if name.startswith("scripts/")}
    needed = {script for script, _ in (*commands.ALGORITHMS.values(), *commands.SCRIPTS.values())}
    assert needed <= shipped
    assert all((ROOT / "scripts" / f"{name}.py").is_file() for name in shipped)
    neighbours = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for name in shipped:  # what they import of each other is there, too
        lines = (ROOT / "scripts" / f"{name}.py").read_text().splitlines()
        imported = {line.split()[1] for line in lines if line.lstrip().startswith(("import ", "from "))}
        assert imported & neighbours <= shipped, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_trains_evaluates_shares_and_checks_in_an_empty_folder(tmp_path):
    """Nothing of the clone is on the path, and the editable installation of the tests is hidden by the wheel."""
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path / "wheel"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def sppo(*words):
        command = [sys.executable, str(site / "bin" / "sppo"), *words]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

    where = [sys.executable, "-c", "import sppo_control, sppo_envs; print(sppo_control.__file__, sppo_envs.__file__)"]
    found = subprocess.run(where, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert found == [str(site / name / "__init__.py") for name in ("sppo_control", "sppo_envs")]
    small = ["--total-timesteps", "20000", "--num-envs", "16", "--eval-episodes", "32", "--kernels", "torch"]
    done = sppo("train", *small)
    assert done.returncode == 0, done.stderr
    assert "success   before" in done.stdout
    (run,) = (folder / "runs").iterdir()
    config = json.loads((run / "config.json").read_text())
    assert (config["script"], config["git_commit"]) == ("sppo_cartpole.py", None)
    assert json.loads((run / "summary.json").read_text())["before"]["rate"] > 0.05, "from the shipped starting policy"
    resumed = sppo("train", "--resume", str(run), "--total-timesteps", "22000")
    assert resumed.returncode == 0, resumed.stderr
    done = sppo("train", "--algorithm", "reinforce", *small, "--runs-dir", "others")
    assert done.returncode == 0, done.stderr
    done = sppo("evaluate", "--run", str(run), "--episodes", "32")
    assert "of 32 sampled episodes" in done.stdout, done.stderr
    done = sppo("share", "--run", str(run), "--to-folder", "shared", "--episodes", "32", "--no-video")
    assert "wrote shared" in done.stdout, done.stderr
    assert (folder / "shared" / "sppo_cartpole.py").read_bytes() == (ROOT / "scripts" / "sppo_cartpole.py").read_bytes()
    done = sppo("enjoy", "--run", "shared", "--render", "none", "--episodes", "2")
    assert "of 2 sampled episodes" in done.stdout, done.stderr
    (folder / "mine.py").write_text("def sequence_advantage(outcome, value_logit):\n    return outcome - value_logit\n")
    done = sppo("check", "mine", "--examples", "2")
    assert done.returncode == 1, done.stderr
    assert "sequence_advantage" in done.stdout
    for command in ("pretrain", "tune"):
        done = sppo(command, "--help")
        assert done.returncode == 0, done.stderr
        assert "usage:" in done.stdout
