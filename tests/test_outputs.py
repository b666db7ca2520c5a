"""What scripts write: paths are tried before the work, and one process at a time writes a file."""

import os
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import pytest

import benchmark
import pretrain
from sppo_control import cli, errors, outputs
from sppo_control.outputs import File, Folder, check_output, only_writer

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+b")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(b"process 7 on elsewhere"); file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of results.parquet."""
    if sys.platform == "win32":
        pytest.skip("the other process locks with fcntl, which Windows has not")
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".results.parquet.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_paths_that_can_be_written_pass_and_nothing_is_left(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    before = sorted(tmp_path.iterdir())
    check_output("--json", tmp_path / "new.json", File(".json"))
    check_output("--json", old, File(".json"))
    check_output("--out", tmp_path / "a" / "b" / "x.any", File(new_folder=True))
    check_output("--out", tmp_path, Folder())
    check_output("--out", tmp_path / "a" / "b", Folder())
    assert sorted(tmp_path.iterdir()) == before
    assert old.read_text() == "{}"


def test_only_marked_arguments_are_outputs(tmp_path):
    @dataclass
    class Args:
        source: Path = tmp_path
        out: Annotated[Path | None, File(".json")] = None
        folder: Annotated[str | None, Folder()] = None

    Args.__annotations__ = {"source": Path, "out": Annotated[Path | None, File(".json")],
                            "folder": Annotated[str | None, Folder()]}  # fmt: skip
    outputs.check_outputs(Args())
    outputs.check_outputs(Args(folder=str(tmp_path / "new")))
    with pytest.raises(ValueError, match=rf"cannot write --out {tmp_path}: it is a folder"):
        outputs.check_outputs(Args(out=tmp_path))


def test_a_read_only_file_or_folder_is_refused(tmp_path, monkeypatch):
    """As an administrator one may write everything, so the system's answers are replaced."""
    file = tmp_path / "x.json"
    file.write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"cannot write --json .*x\.json: the file may not be changed"):
        check_output("--json", file, File(".json"))

    def fail(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", fail)
    for mark in (File(), File(new_folder=True), Folder()):
        with pytest.raises(ValueError, match=r"cannot write --out .*y: Permission denied; name another place"):
            check_output("--out", tmp_path / "y", mark)


# ------------------------------------------------------------------------------------------------------------ locks
def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "x.jsonl"
    with only_writer(path):
        with pytest.raises(
            errors.UserError, match=rf"another process \(process {os.getpid()} on .*\) is writing {path}"
        ):
            only_writer(path).__enter__()
        with only_writer(tmp_path / "y.jsonl"):
            pass
    with only_writer(path):
        pass
    assert not list(tmp_path.iterdir()), "no lock is left"


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    path = tmp_path / "results.parquet"
    with pytest.raises(errors.UserError, match="process 7 on elsewhere"):
        only_writer(path).__enter__()
    holder.kill()
    holder.wait()
    with only_writer(path):
        assert (tmp_path / ".results.parquet.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_file_that_was_removed_in_between_is_no_lock(tmp_path, monkeypatch):
    """The process before had it, and removed it after this one had opened it: a third one would make a new file."""
    path, real, tries = tmp_path / "x", outputs._lock, []

    def late(file):
        real(file)
        tries.append(1)
        if len(tries) == 1:
            (tmp_path / ".x.lock").unlink()

    monkeypatch.setattr(outputs, "_lock", late)
    with only_writer(path):
        assert len(tries) == 2
        monkeypatch.setattr(outputs, "_lock", real)
        with pytest.raises(errors.UserError, match="is writing"):
            only_writer(path).__enter__()


def test_windows_has_locks_of_its_own(tmp_path, monkeypatch):
    locked = set()

    def locking(number, mode, size):
        assert (mode, size) == (2, 1)
        key = os.fstat(number).st_ino
        if key in locked:
            raise PermissionError(13, "Permission denied")
        locked.add(key)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(outputs.sys, "platform", "win32")
    with only_writer(tmp_path / "x"), pytest.raises(errors.UserError, match="another process"):
        only_writer(tmp_path / "x").__enter__()
    assert not list(tmp_path.iterdir())
    with (tmp_path / "log").open("a") as file:
        outputs.wait_for_heirs(file)


def test_a_second_benchmark_is_refused_at_once(tmp_path, holder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "results_of", lambda *args: pytest.fail("a cell began"))
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "--out", "results.parquet", "--env-ids", "sppo/PrecisionCartPole-v0"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(benchmark.main, benchmark.Args, None)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: another process (process 7 on elsewhere) is writing results.parquet; wait until it ends, or name another "
        "--out\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".results.parquet.lock"]


# ----------------------------------------------------------------------------------------------- benchmark, pretrain
def test_a_failed_cell_is_named_by_a_line_with_words(tmp_path):
    """A user's own script may use the parser as it is, whose messages are boxes."""
    script = tmp_path / "mine.py"
    script.write_text(
        "import sys\nprint('╭──╮\\n│ Unrecognized options: --start │\\n╰──╯\\n')\nsys.exit(2)\n", encoding="utf-8"
    )
    with pytest.raises(errors.UserError, match=r"exit status 2; │ Unrecognized options: --start │$"):
        benchmark.run([str(script)], tmp_path / "cell")


class Remembers(gym.Env):
    """Its observations tell how many episodes there were."""

    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        return np.full(1, self.episodes, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), 1.0, True, False, {}


def test_pretraining_looks_at_a_foreign_environment_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "tools/Remembers-v0", gym.envs.registration.EnvSpec(
        "tools/Remembers-v0", entry_point=Remembers, max_episode_steps=3))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", observations=np.zeros((4, 1), np.float32), actions=np.zeros(4, np.int64))
    monkeypatch.setattr(pretrain, "clone", lambda *args: pytest.fail("the work began"))
    words = [
        "--env-id",
        "tools/Remembers-v0",
        "--demonstrations-from",
        "d.npz",
        "--success-return",
        "1",
        "--out",
        "new",
    ]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main(pretrain.main, pretrain.Args, None)
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert re.match(r"error: tools/Remembers-v0: .* a new copy and a used one, .* differ", err), err
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]
