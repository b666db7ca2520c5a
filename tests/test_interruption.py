"""A full disk, a removed log, a folder that is gone: one line with the way out, exit status 2, nothing lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import soak
import sppo_cartpole
from sppo_control import checkpoints, cli, errors, events, runs

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "total_timesteps": 200, "num_envs": 4, "num_minibatches": 2, "horizon": 10, "eval_episodes": 2, "save_every": 1,
    "hidden": (6,), "critic_hidden": (5,), "critic_steps": 2, "critic_batch_size": 4, "from_scratch": True,
}  # fmt: skip


def words(runs_dir, **changes):
    found = []
    for key, value in {**SMALL, "runs_dir": runs_dir, **changes}.items():
        found.append(cli.flag(key))
        found += [str(x) for x in value] if isinstance(value, tuple) else [] if value is True else [str(value)]
    return found


@pytest.fixture
def call(monkeypatch, capsys):
    """sppo_cartpole in this process -> exit status, standard error."""

    def run(*given):
        monkeypatch.setattr(sys, "argv", [sppo_cartpole.__file__, *map(str, given)])
        capsys.readouterr()
        try:
            cli.main(sppo_cartpole.train, sppo_cartpole.Args, "test")
            return 0, capsys.readouterr().err
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err

    return run


def one_line(err):
    """The only line that is not the progress bar."""
    said = [
        line
        for line in err.replace("\r", "\n").splitlines()
        if line.strip() and "step/s" not in line and "it/s" not in line
    ]
    assert len(said) == 1, err
    assert said[0].startswith("error: "), err
    return said[0]


def intact(folder):
    """Names of all checkpoints, each of which can be read as a whole."""
    found = checkpoints.complete(folder / "checkpoints")
    for checkpoint in found:
        checkpoints.check_digests(checkpoint, checkpoints.read_state(checkpoint), checkpoint)
    return [checkpoint.name for checkpoint in found]


def at_update(monkeypatch, number, change):
    """Do something to the run folder at the end of an update, before its checkpoint."""
    real = runs.Run.save

    def save(self):
        if self.update == number:
            change(self.folder)
        real(self)

    monkeypatch.setattr(runs.Run, "save", save)


# ------------------------------------------------------------------------------------------------- what is gone
def test_a_removed_event_file_is_noticed_at_the_next_checkpoint(tmp_path, monkeypatch, call):
    at_update(monkeypatch, 2, lambda folder: next(folder.glob("events*")).unlink())
    status, err = call(*words(tmp_path))
    (folder,) = tmp_path.iterdir()
    line = one_line(err)
    assert status == 2
    assert "the event file" in line
    assert "was removed while training" in line
    assert f"--resume {folder}" in line
    assert intact(folder) == ["000000", "000001"]
    monkeypatch.undo()
    assert sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), resume=str(folder))).update == 5


def test_a_replaced_event_file_is_noticed_too(tmp_path, monkeypatch, call):
    def replace(folder):
        (file,) = folder.glob("events*")
        file.rename(folder / "elsewhere")
        file.write_bytes(b"")

    at_update(monkeypatch, 2, replace)
    status, err = call(*words(tmp_path))
    assert status == 2
    assert "cannot write" in one_line(err)


def test_a_removed_run_folder(tmp_path, monkeypatch, call):
    at_update(monkeypatch, 2, shutil.rmtree)
    status, err = call(*words(tmp_path))
    assert status == 2
    assert "was moved or removed, so put it back; or start a new run" in one_line(err)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_checkpoints_that_became_a_file(tmp_path, monkeypatch, call):
    def replace(folder):
        (folder / "checkpoints").rename(folder / "old")
        (folder / "checkpoints").write_text("")

    at_update(monkeypatch, 2, replace)
    status, err = call(*words(tmp_path))
    assert status == 2
    assert "cannot write" in one_line(err)


def test_a_summary_that_cannot_be_written(tmp_path, monkeypatch, call):
    at_update(monkeypatch, 5, lambda folder: (folder / "summary.json").unlink() or (folder / "summary.json").mkdir())
    status, err = call(*words(tmp_path))
    assert status == 2
    assert "summary.json" in one_line(err)
    assert intact(next(tmp_path.iterdir()))[-1] == "000005"


# ------------------------------------------------------------------------------------------------- full and read-only
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("where", ["save_file", "fsync", "rename", "events"])
def test_every_failure_of_the_system_is_one_line(where, number, tmp_path, monkeypatch, call):
    """From the third checkpoint on, a call fails as the system would."""
    error = OSError(number, os.strerror(number))
    if where == "save_file":  # safetensors hides the number in its text
        error = checkpoints.SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")

    def fail(*args, **kwargs):
        raise error

    target, name = {
        "save_file": (checkpoints, "save_file"), "fsync": (checkpoints, "sync"), "rename": (checkpoints.os, "rename"),
        "events": (events.RecordWriter, "write"),
    }[where]  # fmt: skip
    at_update(monkeypatch, 3, lambda folder: None)
    real = runs.Run.end_update

    def end_update(self, *args, **kwargs):
        if self.update == 2:
            monkeypatch.setattr(target, name, fail)
        real(self, *args, **kwargs)

    monkeypatch.setattr(runs.Run, "end_update", end_update)
    status, err = call(*words(tmp_path))
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    line = one_line(err)
    assert status == 2
    assert os.strerror(number) in line
    assert str(folder) in line
    assert f"the last checkpoint is {folder / 'checkpoints' / '000002'}; go on with: python " in line
    assert intact(folder) == ["000000", "000001", "000002"]
    assert not list((folder / "checkpoints").glob(".*")), "nothing half-written is left"


def launch(code, *given):
    command = [sys.executable, "-c", code, *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["scripts/sppo_cartpole.py", *sys.argv[2:]]
sys.path.insert(0, "scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_real_limit_of_file_sizes(tmp_path):
    """safetensors raises no OSError; the log grows until it meets the limit, too."""
    done = launch(LIMITED, 3000, *words(tmp_path / "small"))  # the first checkpoint does not fit
    assert done.returncode == 2, done.stderr
    line = one_line(done.stderr)
    assert os.strerror(errno.EFBIG) in line
    assert "ulimit -f" in line
    done = launch(LIMITED, 12_000, *words(tmp_path / "log", total_timesteps=4000))  # checkpoints fit, the log does not
    assert done.returncode == 2, done.stderr
    line = one_line(done.stderr)
    assert os.strerror(errno.EFBIG) in line
    assert "--resume" in line
    assert len(intact(next((tmp_path / "log").iterdir()))) >= 2


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.slow
def test_a_real_full_disk_and_a_real_read_only_one(tmp_path):
    mount = f"mount -t tmpfs -o size=96k none {tmp_path}"
    shell = f"{mount} && {sys.executable} scripts/sppo_cartpole.py {' '.join(words(tmp_path))}"
    trial = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no mounts here: {trial.stderr.strip()}")
    done = subprocess.run(["unshare", "-m", "sh", "-c", shell], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2, done.stderr
    assert os.strerror(errno.ENOSPC) in one_line(done.stderr)
    run = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path / "runs")))
    bind = f"mount --bind {run.folder} {run.folder} && mount -o remount,ro,bind {run.folder}"
    resume = f"{sys.executable} scripts/sppo_cartpole.py --resume {run.folder} --total-timesteps 9000"
    shell = f"{bind} && {resume}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", shell], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2, done.stderr
    assert os.strerror(errno.EROFS) in one_line(done.stderr)


# ------------------------------------------------------------------------------------------------- what is left over
def test_leftovers_are_removed_in_every_case_and_only_here(tmp_path, monkeypatch):
    """Before the first checkpoint, after it, and at the end of a run that was not resumed; another run's stay."""
    other = tmp_path / "other" / "checkpoints" / ".writing-other"
    other.mkdir(parents=True)
    run = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path / "a")))
    seen = []
    for number in (0, 6):  # the first updates of the two resumed runs
        at_update(monkeypatch, number, lambda folder: seen.append(list(folder.rglob(".*"))))
    at_update(monkeypatch, 7, lambda folder: (folder / "checkpoints" / ".writing-late").mkdir())
    for early in (True, False):
        folder = Path(shutil.copytree(run.folder, tmp_path / f"early-{early}"))
        if early:
            shutil.rmtree(folder / "checkpoints")
            (folder / "summary.json").unlink()
        (folder / "checkpoints" / ".writing-dead" / "policy").mkdir(parents=True)
        (folder / ".config.json.writing").write_text("{")
        (folder / ".summary.json.writing").write_text("{")
        args = sppo_cartpole.Args(**{**SMALL, "total_timesteps": 300}, runs_dir=str(tmp_path), resume=str(folder))
        sppo_cartpole.train(args)
        assert not list(folder.rglob(".*")), "at the end of a run"
    assert len(seen) >= 2
    assert not any(seen), "at the start of a resumed run"
    assert other.is_dir()


def test_a_checkpoint_that_is_half_removed_is_none(tmp_path, monkeypatch):
    run = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path)))
    last = checkpoints.newest(run.folder)

    def killed(folder, *args, **kwargs):
        if Path(folder).is_dir():
            (Path(folder) / "state.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove_checkpoint(last)
    monkeypatch.undo()
    assert checkpoints.newest(run.folder) != last
    checkpoints.remove_leftovers(run.folder)
    assert not list((run.folder / "checkpoints").glob(".*"))


def test_what_is_written_is_whole_or_not_there(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    checkpoints.write_json(file, {"a": 1})
    monkeypatch.setattr(checkpoints.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(errors.UserError, match=r"cannot write .*x\.json \(No space left on device\); make room"):
        checkpoints.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_the_limit_of_this_process_is_as_before():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY, "only subprocesses may be limited"


# ------------------------------------------------------------------------------------------------- soak.py
@pytest.mark.slow
def test_soak_with_two_kills(tmp_path, monkeypatch, capsys):
    out = tmp_path / "soak.json"
    given = ["soak.py", "--kills", "2", "--seed", "3", "--scripts", "rloo_cartpole", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    cli.main(soak.main, soak.Args, soak.__doc__)
    result = json.loads(out.read_text())
    assert sum(row["kills"] for row in result["rows"]) >= 2
    assert not any(row["differences"] or row["stray_files"] for row in result["rows"])
    assert str(tmp_path) not in out.read_text()
    said = capsys.readouterr().out
    assert "rloo_cartpole" in said
    cli.main(soak.main, soak.Args, soak.__doc__)  # goes on from the file: nothing is left to do
    assert capsys.readouterr().out == said


def test_soak_sees_differences_and_stray_files(tmp_path):
    """Its negative control: another seed, and a file too many."""
    folders = []
    for seed in (1, 2, 1):
        args = sppo_cartpole.Args(**SMALL, seed=seed, runs_dir=str(tmp_path / str(len(folders))))
        folders.append(sppo_cartpole.train(args).folder)
    assert soak.differences(folders[2], folders[0]) == ()
    found = soak.differences(folders[1], folders[0])
    assert {"000005/policy.safetensors", "000005/optimizer.safetensors", "losses/policy_loss"} <= set(found)
    (folders[2] / "checkpoints" / ".writing-1").mkdir()
    assert soak.stray_files(folders[2], folders[0]) == ("checkpoints/.writing-1",)
