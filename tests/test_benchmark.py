"""scripts/benchmark.py: the results file against the run folders, skipping, resuming, failures; the same on a real Ray
cluster of two nodes."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("sppo_control.study", exc_type=ImportError)  # the reason names the package
import pandas as pd

import benchmark
import sppo_cartpole
from sppo_control import cli, errors, extras
from sppo_control.starts import shipped_policy
from sppo_control.study import variants

ROOT = Path(__file__).resolve().parents[1]
POLE, CONTEXT = "sppo/PrecisionCartPole-v0", "sppo/ContextCartPole-v0"
SMALL = "total-timesteps=4000,num-envs=4,num_minibatches=2,critic-hidden=8 8"
SMALL_GRID = {"env_ids": (POLE,), "algorithms": ("sppo", "ppo"), "settings": (SMALL,), "eval_episodes": 4, "points": 4}
CELL = benchmark.CELL_COLUMNS


def make_args(folder, **changes):
    return benchmark.Args(
        **{**SMALL_GRID, "out": folder / "new" / "out.parquet", "work_dir": folder / "runs", **changes}
    )


def jobs_of(args):
    """The cells of arguments without a grid file."""
    (grid,) = args.grids()
    return list(benchmark.jobs_of(grid))


def folders(folder):
    """Run folders below, by algorithm's script and seed."""
    found = [(p.parent, json.loads(p.read_text())) for p in folder.rglob("config.json")]
    return {(config["script"].split("_")[0], config["args"]["seed"]): path for path, config in found}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two algorithms, started with one seed and again with two: the folder, the arguments, the table after each."""
    folder, tables = tmp_path_factory.mktemp("grid"), []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "2")  # which a cell must not take over
        for seeds in ((1,), (1, 2)):
            args = make_args(folder, seeds=seeds)
            benchmark.main(args)
            tables.append((pd.read_parquet(args.out), mtimes(args.work_dir)))
    return folder, args, tables


# --------------------------------------------------------------------------------------------------- the results file
def test_each_curve_is_that_of_the_runs_events(grid):
    folder, args, ((_, _), (table, _)) = grid
    found = folders(folder)
    assert set(found) == {(a, s) for a in ("sppo", "ppo") for s in (1, 2)}
    assert len(table[CELL].drop_duplicates()) == 4
    for (algorithm, seed), run in found.items():
        curve = table[(table.algorithm == algorithm) & (table.seed == seed)]
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        logged = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        steps = [e.step for e in logged["charts/success_rate"]]
        size = next(n for n in range(1, 99) if n * args.points >= len(steps))  # updates a point, as few as possible
        assert size > 1
        parts = [range(i, min(i + size, len(steps))) for i in range(0, len(steps), size)]
        assert len(curve) == len(parts) <= args.points
        assert curve.updates.tolist() == [part[-1] + 1 for part in parts]
        assert curve.steps.tolist() == [steps[part[-1]] for part in parts]
        assert curve.episodes.tolist() == [4 * (part[-1] + 1) for part in parts]
        state = json.loads((sorted((run / "checkpoints").iterdir())[-1] / "state.json").read_text())
        assert curve.seconds.iloc[-1] == pytest.approx(state["seconds"])
        for tag in ("charts/success_rate", "charts/skipped", "critic/v0_mean", "critic/brier"):
            means = [np.mean([logged[tag][i].value for i in part]) for part in parts]
            assert curve[tag.split("/")[1]].to_numpy() == pytest.approx(means), tag
        for axis in ("episodes", "steps", "updates", "seconds"):
            assert (np.diff([0, *curve[axis]]) > 0).all(), axis
    assert table.success_rate.nunique() > 2
    assert "balanced" not in table, "CartPole reports no such measure"


def test_each_row_says_which_run_it_is_of(grid):
    folder, _, (_, (table, _)) = grid
    for (algorithm, seed), run in folders(folder).items():
        config, summary = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "summary"))
        (row,) = table[(table.algorithm == algorithm) & (table.seed == seed)].drop(columns=[
            "episodes", "steps", "updates", "seconds", "success_rate", "skipped", "v0_mean", "brier",
        ]).drop_duplicates().to_dict("records")  # fmt: skip
        assert json.loads(row.pop("arguments")) == config["args"]
        assert json.loads(row.pop("versions")) == config["versions"]
        assert json.loads(row.pop("measures_after")) == summary["after"]["measures"]
        assert row == {
            "env_id": POLE, "algorithm": algorithm, "setting": SMALL, "seed": seed, "starts": "shipped",
            "start_sha256": sha256(shipped_policy(POLE)), "script_sha256": "",
            "commit": config["git_commit"], "peak_memory_mib": summary["peak_memory_mib"], "eval_episodes": 4,
            "success_before": summary["before"]["rate"], "success_after": summary["after"]["rate"],
        }  # fmt: skip
        trained = config["args"]
        assert (trained["env_id"], trained["seed"], trained["eval_episodes"]) == (POLE, seed, 4)
        assert [trained[k] for k in ("total_timesteps", "num_envs", "num_minibatches")] == [4000, 4, 2]
        assert trained["critic_hidden"] == [8, 8]
        assert config["machine"]["torch_threads"] == 1


@pytest.mark.parametrize("algorithm", variants.VARIANTS)
def test_an_algorithms_name_is_its_script_and_flags(algorithm, tmp_path, monkeypatch):
    """Read by the script itself, and equal to its defaults but for what the name says."""
    ((cell, words, _, _),) = jobs_of(make_args(tmp_path, algorithms=(algorithm,), seeds=(3,), settings=("",)))
    module = __import__(Path(words[0]).stem)
    assert Path(words[0]) == Path(module.__file__)
    monkeypatch.setattr(sys, "argv", words)
    args = cli.parse_args(module.Args, "test")
    said = {
        "sppo-paper": {"critic_recipe": "paper", "critic_learning_rate": 1e-3}, "ppo-bce": {"critic_loss": "bce"},
        "reinforce": {"group_size": 1},
        "sppo-skip": {"skip_uniform_batches": True}, "ppo-skip": {"skip_uniform_batches": True},
        "sppo-norm": {"norm_adv": "minibatch"}, "sppo-ratio": {"ratio": "sequence", "clip_coef": 0.01},
        "ppo-norm": {"norm_adv": "minibatch"}, "ppo-norm-batch": {"norm_adv": "batch"},
        "ppo-gae": {"gamma": 0.99, "gae_lambda": 0.95},
        "ppo-standard": {
            "learning_rate": 2.5e-4, "critic_learning_rate": 2.5e-4, "anneal_lr": True, "gamma": 0.99, "gae_lambda": 0.95,
            "norm_adv": "minibatch", "clip_vloss": True, "ent_coef": 0.01, "max_grad_norm": 0.5,
        },
        "vc-ppo": {"critic_warmup_batches": 5, "gae_lambda": 0.95, "critic_gae_lambda": 1.0},
        "dr-grpo": {"normalize_std": False, "reduction": "fixed"},
        "gspo": {"ratio": "sequence", "reduction": "sequence-mean", "clip_coef": 0.01},
        "reinforce-norm": {"group_size": 1, "norm_adv": "minibatch"},
        "reinforce-pp": {"group_size": 1, "norm_adv": "batch"}, "reinforce-pp-baseline": {"norm_adv": "batch"},
        "spo": {"group_size": 1, "baseline": "tracked", "norm_adv": "batch"},
        "spo-contexts": {"group_size": 1, "baseline": "tracked", "norm_adv": "batch", "num_contexts": 256},
    }.get(algorithm, {})  # fmt: skip
    assert args == dataclasses.replace(cli.make_args(module.Args, env_id=POLE, seed=3, eval_episodes=4), **said)
    assert str(cell) == f"{algorithm} {POLE} seed 3"
    of = {"reinforce": "rloo", "spo": "rloo", "gspo": "grpo", "vc": "ppo", "dr": "grpo"}
    first = algorithm.split("-")[0]
    assert module.__name__.split("_")[0] == of.get(first, first)


def test_the_grid_goes_seed_by_seed_and_no_two_cells_share_a_folder(tmp_path):
    args = make_args(tmp_path, seeds=(1, 2), env_ids=(POLE, CONTEXT), settings=("", "num-envs=8"))
    jobs = jobs_of(args)
    assert [job[0].seed for job in jobs] == [1] * 8 + [2] * 8
    again = [*jobs, *jobs_of(dataclasses.replace(args, starts=tmp_path / "shipped"))]
    again += jobs_of(dataclasses.replace(args, eval_episodes=5))
    assert len({job[2] for job in again}) == len(again) == 48


# ---------------------------------------------------------------------------------------------------- started again
def test_a_new_seed_adds_its_cells_only(grid):
    _, _, ((first, files), (table, files_later)) = grid
    assert first.seed.unique().tolist() == [1]
    pd.testing.assert_frame_equal(table[: len(first)], first)
    assert table[len(first) :].seed.unique().tolist() == [2]
    assert {path: files_later[path] for path in files} == {**files, **{p: files_later[p] for p in files if p.is_dir()}}


def test_finished_cells_are_skipped(grid, capsys):
    folder, args, _ = grid
    before, content = mtimes(folder), args.out.read_bytes()
    benchmark.main(args)
    assert mtimes(folder) == before
    assert args.out.read_bytes() == content
    assert f"0 runs added to {args.out}, 4 cells were there" in capsys.readouterr().out
    assert {p.name for p in args.out.parent.iterdir()} == {"out.parquet"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_episodes": 5}, r"--eval-episodes 4, not 5 \(4 cells of this grid, the first is sppo .* seed 1 "),
        ({"points": 1}, r"--points 3, not 1 \(4 cells"),
        ({"points": 100, "seeds": (7, 2), "algorithms": ("ppo",)}, r"--points 3, not 100 \(1 cells .* ppo .* seed 2 "),
    ],
)
def test_finished_cells_that_were_made_otherwise_are_refused(grid, tmp_path, monkeypatch, changes, message):
    _, args, _ = grid
    out, content = shutil.copy(args.out, tmp_path / "out.parquet"), args.out.read_bytes()
    monkeypatch.setattr(benchmark, "results_of", lambda *_: pytest.fail("a run began"))
    with pytest.raises(
        errors.UserError, match=rf"--out {out} was made with other values: {message}.*; or another --out"
    ):
        benchmark.main(dataclasses.replace(args, out=out, **changes))
    assert out.read_bytes() == content


def test_new_cells_and_equal_curves_are_not_refused(grid):
    _, args, (_, (table, _)) = grid
    updates = table.groupby(CELL).updates.agg(["min", "max"])
    equal = [points for points in range(1, 99) if (-(-updates["max"] // points) == updates["min"]).all()]
    assert args.points in equal
    assert 3 in equal  # what the refusal above names
    for changes in [{"points": points} for points in equal] + [{"seeds": (3,), "points": 1, "eval_episodes": 9}]:
        new = dataclasses.replace(args, **changes)
        benchmark.refuse_others(table, jobs_of(new))


def test_two_folders_of_starting_policies_with_one_name(grid, tmp_path, monkeypatch, capsys):
    """The file's cells are of a/fresh. b/fresh holds other policies, c/fresh holds a's; an old file knows the name only."""
    _, args, (_, (table, _)) = grid
    for name, policy in (("a", POLE), ("b", CONTEXT), ("c", POLE)):
        (tmp_path / name / "fresh").mkdir(parents=True)
        shutil.copy(shipped_policy(policy), tmp_path / name / "fresh" / "PrecisionCartPole-v0.safetensors")
    ours, other = sha256(shipped_policy(POLE)), sha256(shipped_policy(CONTEXT))
    made = table.assign(starts="fresh", start_sha256=ours)
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(benchmark, "results_of", lambda jobs, _: pytest.fail("a run began") if jobs else [])

    def start(name, table, **changes):
        table.to_parquet(out)
        benchmark.main(dataclasses.replace(args, out=out, starts=tmp_path / name / "fresh", **changes))
        return capsys.readouterr().out

    for name, kind in (("a", made), ("c", made), ("b", made.drop(columns="start_sha256"))):
        assert f"0 runs added to {out}, 4 cells were there" in start(name, kind)
    mixed = pd.concat([made.drop(columns="start_sha256")[made.seed == 1], made[made.seed == 2]])  # old, then added to
    for kind, changes in ((made, {}), (mixed, {}), (made, {"seeds": (9,)})):  # a new seed would be mixed in with them
        with pytest.raises(
            errors.UserError,
            match=rf"{POLE} from starting policies 'fresh' whose sha256 is {ours[:8]}, not {other[:8]}",
        ):
            start("b", kind, **changes)
    (scratch,) = jobs_of(dataclasses.replace(args, seeds=(1,), algorithms=("ppo",), settings=("from-scratch",)))
    assert scratch[0].start_sha256 == ""


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    """Its script dies by SIGKILL after the second checkpoint; the next start ends with the weights of a run left alone."""
    setting = "total-timesteps=30000,num-envs=8,num-minibatches=2,save-every=2"
    args = make_args(tmp_path, algorithms=("sppo",), seeds=(5,), settings=(setting,))
    real, commands = subprocess.run, []

    def run_and_kill(command, **kwargs):
        if command[0] != sys.executable:  # git
            return real(command, **kwargs)
        process = subprocess.Popen(command, **kwargs)
        while not list(tmp_path.rglob("checkpoints/000002")) and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        return subprocess.CompletedProcess(command, process.wait())

    monkeypatch.setattr(benchmark.subprocess, "run", run_and_kill)
    with pytest.raises(SystemExit, match=r"1 of 1 runs failed:\nsppo .* exit status -9"):
        benchmark.main(args)
    assert not args.out.exists()
    (run,) = folders(tmp_path).values()
    assert "after" not in json.loads((run / "summary.json").read_text())
    began = mtimes(run / "checkpoints" / "000002")

    monkeypatch.setattr(
        benchmark.subprocess, "run", lambda command, **kwargs: [commands.append(command), real(command, **kwargs)][1]
    )
    benchmark.main(args)
    assert commands[0][1:] == [str(ROOT / "scripts" / "sppo_cartpole.py"), "--resume", str(run)]
    assert list(folders(tmp_path).values()) == [run]
    assert mtimes(run / "checkpoints" / "000002") == began, "it began anew"
    whole = sppo_cartpole.train(
        sppo_cartpole.Args(
            seed=5, total_timesteps=30_000, num_envs=8, num_minibatches=2, save_every=2, eval_episodes=4,
            runs_dir=str(tmp_path / "whole"),
        )
    )  # fmt: skip
    last = sorted((run / "checkpoints").iterdir())[-1]
    assert last.name == whole.checkpoints()[-1].name
    for name in ("policy", "critic", "optimizer", "critic_optimizer"):
        assert (last / f"{name}.safetensors").read_bytes() == (
            whole.checkpoints()[-1] / f"{name}.safetensors"
        ).read_bytes()
    table = pd.read_parquet(args.out)
    assert (table.steps.iloc[-1], table.episodes.iloc[-1]) == (whole.steps, whole.episodes)


def test_a_script_that_outlived_its_benchmark_is_waited_for(tmp_path):
    """Two processes must never write into one run folder, not even where the first one's parent was killed."""
    script, folder = tmp_path / "script.py", tmp_path / "cell"
    script.write_text(
        "import pathlib, sys, time\n"
        f"folder, notes = pathlib.Path({str(folder)!r}) / 'run', pathlib.Path({str(tmp_path)!r}) / 'notes'\n"
        "folder.mkdir(exist_ok=True)\n"
        "(folder / 'config.json').write_text('{}')\n"
        "with notes.open('a') as file: print('began', '--resume' in sys.argv, file=file)\n"
        "time.sleep(1)\n"
        "with notes.open('a') as file: print('ended', file=file)\n"
    )
    killed = multiprocessing.get_context("fork").Process(target=benchmark.run, args=([str(script)], folder))
    killed.start()
    notes = tmp_path / "notes"
    while not notes.exists() or not notes.read_text():
        assert killed.is_alive()
        time.sleep(0.002)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert benchmark.run([str(script)], folder) == folder / "run"
    assert notes.read_text().splitlines() == ["began False", "ended", "began True", "ended"]


# --------------------------------------------------------------------------------------------------------- failures
@pytest.mark.slow
def test_a_failed_cell_is_named_and_tried_again_at_the_next_start_only(tmp_path, capsys):
    """One of two starting policies is missing at first: its script refuses."""
    starts = tmp_path / "fresh"
    starts.mkdir()
    shutil.copy(shipped_policy(POLE), starts)
    args = make_args(tmp_path, env_ids=(CONTEXT, POLE), algorithms=("sppo",), seeds=(1,), starts=starts, jobs=1)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(args)
    (log,) = (tmp_path / "runs").glob("ContextCartPole*/log.txt")
    head, line = str(stop.value.code).splitlines()  # a text as exit status: Python prints it and ends with 1
    assert head == "1 of 2 runs failed:"
    assert line.startswith(f"sppo {CONTEXT} seed 1 {SMALL}: exit status 2; error: no starting policy at {starts}")
    assert line.endswith(f"(log: {log})")
    out, err = capsys.readouterr()
    assert f"FAILED {line}" in err, "at once, not only at the end"
    assert f"1 runs added to {args.out}, 0 cells were there" in out
    table = pd.read_parquet(args.out)
    recorded = table[["env_id", "starts", "start_sha256"]].drop_duplicates().to_numpy().tolist()
    assert recorded == [[POLE, "fresh", sha256(shipped_policy(POLE))]]
    assert log.read_text().count("error:") == 1, "tried twice within one start"

    shutil.copy(shipped_policy(CONTEXT), starts)
    benchmark.main(args)
    assert f"1 runs added to {args.out}, 1 cells were there" in capsys.readouterr().out
    table = pd.read_parquet(args.out)
    assert table.env_id.unique().tolist() == [POLE, CONTEXT]
    (run,) = log.parent.glob("sppo-*")
    assert json.loads((run / "config.json").read_text())["args"]["start"] == str(
        starts / "ContextCartPole-v0.safetensors"
    )


def test_a_broken_run_folder_fails_its_cell_alone(grid, tmp_path):
    """Whatever goes wrong in reading a run back is a failure of that cell, with its log, not the end of the benchmark."""
    _, args, _ = grid
    job = jobs_of(args)[0]
    cell, path = job.cell, job.folder
    shutil.copytree(path, tmp_path / "cell")
    for events in (tmp_path / "cell").rglob("events*"):
        events.unlink()
    script = tmp_path / "nothing.py"
    script.write_text("")
    _, rows, failure = benchmark.run_cell(job._replace(words=[str(script)], folder=tmp_path / "cell"))
    assert rows == []
    assert failure.startswith(f"{cell}: KeyError(")
    assert failure.endswith(f"(log: {tmp_path / 'cell' / 'log.txt'})")


# -------------------------------------------------------------------------------------------------------------- Ray
@pytest.fixture(scope="module")
def cluster():
    """Address of a Ray cluster of two nodes with one CPU each, on this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install -c constraints.txt -e '.[ray]'")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-")  # not tmp_path: names of sockets must be short
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False, "include_log_monitor": False}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray notes the cluster's address in its default folder, and fails where no earlier run has made that.
        environment.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        nodes = Cluster()
        try:
            nodes.add_node(**node, temp_dir=folder)
            nodes.add_node(**node)
            yield nodes.address
        finally:
            ray.shutdown()
            nodes.shutdown()
            shutil.rmtree(folder)


def comparable(table):
    """Without what the clock, the machine, the folder or a commit in between decides; in one order."""
    arguments = [{k: v for k, v in json.loads(a).items() if k != "runs_dir"} for a in table.arguments]
    table = table.drop(columns=["seconds", "peak_memory_mib", "commit"]).assign(arguments=[str(a) for a in arguments])
    return table.sort_values([*CELL, "steps"], ignore_index=True)


@pytest.mark.slow
def test_a_ray_cluster_runs_the_same_grid(cluster, grid, tmp_path):
    """Started as a user would, by its command line: what is run is then sent to the workers by value."""
    _, _, ((local, _), _) = grid
    args = make_args(tmp_path, seeds=(1,))
    command = [
        sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--ray-address", cluster, "--env-ids", POLE,
        "--algorithms", "sppo", "ppo", "--seeds", "1", "--settings", SMALL, "--eval-episodes", "4",
        "--points", "4", "--out", str(args.out), "--work-dir", str(args.work_dir),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 runs added" in done.stdout
    assert set(folders(args.work_dir)) == {("sppo", 1), ("ppo", 1)}
    pd.testing.assert_frame_equal(comparable(pd.read_parquet(args.out)), comparable(local))


def test_ray_runs_a_cell_a_node_and_lists_failures_and_dead_workers(cluster, grid, tmp_path, monkeypatch):
    """Two cells wait until both run; then one takes its worker with it, as lack of memory would. A third just fails."""
    ray = pytest.importorskip("ray")
    args = make_args(tmp_path, algorithms=("sppo", "ppo", "grpo"), seeds=(1,), ray_address=cluster)
    row = grid[2][1][0].iloc[0].to_dict()

    def cell(job):
        (tmp_path / f"{job[0].algorithm}-{os.getpid()}").write_text(ray.get_runtime_context().get_node_id())
        if job[0].algorithm == "grpo":
            return job, [], f"{job[0]}: failed (log: there)"
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("*ppo-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        if job[0].algorithm == "ppo":
            os._exit(1)
        return job, [{**row, **dataclasses.asdict(job[0])}], ""

    monkeypatch.setattr(benchmark, "run_cell", cell)
    monkeypatch.setattr(benchmark, "check_jobs", lambda jobs: None)  # GRPO has no critic, whose size the setting names
    try:
        with pytest.raises(SystemExit) as stop:
            benchmark.main(args)
    finally:
        ray.shutdown()
    began = sorted(tmp_path.glob("*-*"))
    assert [p.name.split("-")[0] for p in began] == ["grpo", "ppo", "sppo"], "tried again, silently"
    assert began[1].read_text() != began[2].read_text(), "both on one node"
    logs = {job[0].algorithm: job[2] / "log.txt" for job in jobs_of(args)}
    text = str(stop.value.code)
    assert text.startswith("2 of 3 runs failed:\n")
    assert f"\ngrpo {POLE} seed 1 {SMALL}: failed (log: there)" in text
    assert f"\nppo {POLE} seed 1 {SMALL}: " in text
    assert f"(log: {logs['ppo']})" in text
    assert pd.read_parquet(args.out).algorithm.unique().tolist() == ["sppo"]


# --------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algorithms", "sppo", "sac", "dqn"], "--algorithms must be of sppo, sppo-paper, .*, got sac, dqn"),
        (["--settings", "num-envs=8,seed=3"], "--settings must leave --seed to the grid"),
        (["--settings", "", "env_id=sppo/SparseHopper-v0"], "--settings must leave --env-id to the grid"),
        (["--settings", "runs-dir=x"], "--settings must leave --runs-dir to the grid, that is to --work-dir"),
        (["--settings", "start=x.safetensors"], "--settings must leave --start to the grid, that is to --starts"),
        (["--settings", "eval_episodes=9,start=x"], "must leave --start, --eval-episodes to the grid"),
        (["--settings", "resume=x"], "--settings must leave --resume to the grid"),
        (["--jobs", "2", "--ray-address", "auto"], "--jobs is for local processes"),
        (["--out", "x.csv"], r"--out must be a file whose name ends in .parquet, got x.csv"),
        (["--out", "folder.parquet"], r"--out must be a file whose name ends in .parquet, got folder.parquet"),
        (["--seeds", "1", "2", "1"], r"--seeds must be different values, at least one, got \(1, 2, 1\)"),
        (["--seeds"], r"--seeds must be different values, at least one, got \(\)"),
        (["--env-ids", POLE, POLE], "--env-ids must be different values"),
        (["--points", "0"], "--points must be from 1 to .*, got 0"),
        (["--jobs", "0"], "--jobs must be from 1 to .*, got 0"),
        (["--eval-episodes", "0"], "--eval-episodes must be from 1 to .*, got 0"),
        (
            ["--env-ids", POLE, "sppo/Pole-v0"],
            "--env-ids must be known environments, got sppo/Pole-v0; there are sppo/Pre",
        ),
        (
            ["--algorithms", "sppo", "no/mine.py"],
            r"--algorithms must be .*, and there is no file no/mine.py \(looked for in",
        ),
        (["--algorithms", "folder.py"], "there is no file folder.py"),
        (
            ["--algorithms", "ppo.py"],
            "--algorithms must not contain ppo.py: results files would call it ppo, which is a name in the table",
        ),
        (["--algorithms", "mine.py", "other/mine.py"], "--algorithms must have different names, .*; got two mine"),
    ],
)
def test_impossible_arguments(words, message, monkeypatch, capsys, tmp_path):
    for name in ("folder.parquet", "folder.py", "other"):
        (tmp_path / name).mkdir()
    for name in ("ppo.py", "mine.py", "other/mine.py"):
        (tmp_path / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    monkeypatch.setattr(benchmark, "results_of", lambda *_: pytest.fail("a run began"))
    with pytest.raises(SystemExit) as stop:
        cli.main(benchmark.main, benchmark.Args, benchmark.__doc__)
    assert stop.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_missing_packages_are_named(tmp_path):
    for package, extra, words in (("pyarrow", "study", []), ("ray", "ray", ["--ray-address", "auto"])):
        code = (
            "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        code = code.replace("sys.argv[0]", repr(str(ROOT / "scripts" / "benchmark.py")))
        done = subprocess.run(
            [sys.executable, "-c", code, package, *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {package}"), done.stderr
        assert done.stderr.endswith(f"is not installed; run: {extras.install(extra)}\n")
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_defaults_is_not_taken_up(tmp_path, monkeypatch):
    """A default of the task has changed since: the folder that is there holds another run, finished or not."""
    args = make_args(tmp_path, seeds=(1,))
    before = [job.folder for job in jobs_of(args)]
    assert before == [job.folder for job in jobs_of(args)]
    other = benchmark.sppo_envs.task_defaults(POLE) | {"learning_rate": 0.123}
    monkeypatch.setattr(benchmark.sppo_envs, "task_defaults", lambda env_id: other)
    assert not set(before) & {job.folder for job in jobs_of(args)}
