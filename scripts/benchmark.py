"""Run a grid of algorithm x task x seed x setting, and gather all curves in one file.

    python scripts/benchmark.py --env-ids sppo/PrecisionCartPole-v0 --algorithms sppo ppo --seeds 1 2 3
    python scripts/benchmark.py --settings learning-rate=3e-4 learning-rate=1e-3 --out results/rates.parquet

A cell of the grid is one run of a training script, a process with one thread; --jobs of them run at a time, or as many
as a Ray cluster has CPUs:

    ray start --head            # a cluster of one machine; `ray start --address HEAD:6379` on others that have this folder
    python scripts/benchmark.py --ray-address auto ...

Started again, it skips the cells that are in the file already, goes on with interrupted ones from their last checkpoint,
and tries those that failed once more. If any failed, it ends with status 1 and names them with their logs. It refuses to
begin where cells are in the file that were made otherwise: with other --eval-episodes or --points, or from other starting
policies of the same name.

The file has a row for each point of each curve: success over the episodes since the point before, against episodes,
environment steps and seconds of training, next to the cell, its arguments, commit, versions, success before and after.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import sppo_envs
from sppo_control import cli, errors
from sppo_control.defaults import defaults
from sppo_control.starts import policy_name, shipped_policy

ALGORITHMS = {  # name: script and flags
    "sppo": "sppo_cartpole.py",
    "sppo-paper": "sppo_cartpole.py --critic-steps 0",
    "sppo-skip": "sppo_cartpole.py --skip-uniform-batches",
    "ppo": "ppo_cartpole.py",
    "ppo-bce": "ppo_cartpole.py --critic-loss bce",
    "ppo-skip": "ppo_cartpole.py --skip-uniform-batches",
    "grpo": "grpo_cartpole.py",
    "rloo": "rloo_cartpole.py",
    "reinforce": "rloo_cartpole.py --group-size 1",
    "remax": "remax_cartpole.py",
}
CURVES = ("charts/success_rate", "charts/skipped", "critic/v0_mean", "critic/brier", "measures/balanced")
"""What is kept of a run beside its x-axes; means over the updates of a point."""
OF_THE_GRID = {  # flag of the scripts: what sets it here
    "--env-id": "--env-ids", "--seed": "--seeds", "--start": "--starts", "--eval-episodes": "--eval-episodes",
    "--runs-dir": "--work-dir", "--resume": "a second start of the same command",
}  # fmt: skip


@dataclass
class Args:
    env_ids: tuple[str, ...] = sppo_envs.TASKS
    """tasks"""
    algorithms: tuple[str, ...] = ("sppo", "ppo")
    """sppo (the default critic), sppo-paper (the paper's critic), ppo, ppo-bce (critic trained with BCE), sppo-skip and
    ppo-skip (batches of equal outcomes left out), grpo, rloo, reinforce (batch mean as baseline), remax"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of the runs"""
    settings: tuple[str, ...] = ("",)
    """flags that each cell is run with, without their dashes: "learning-rate=3e-4,critic-hidden=16 16" is one setting"""
    starts: Path | None = None
    """folder of starting policies named as the shipped ones; None takes the shipped ones"""
    eval_episodes: int = 256
    """episodes of the evaluations before and after training"""
    points: int = 100
    """most points of a curve; each is a mean over as many updates as that takes"""
    out: Path = Path("results/study.parquet")
    """file of the results; written anew after every cell"""
    work_dir: Path = Path("runs/benchmark")
    """run folders and logs of the cells"""
    jobs: int | None = None
    """cells that run at a time on this machine; None is one a core"""
    ray_address: str | None = None
    """run the cells on this Ray cluster; "auto" is the one of this machine"""

    def __post_init__(self) -> None:
        if unknown := [a for a in self.algorithms if a not in ALGORITHMS]:
            raise ValueError(f"--algorithms must be of {', '.join(ALGORITHMS)}, got {', '.join(unknown)}")
        for name in ("env_ids", "algorithms", "seeds", "settings"):
            values = getattr(self, name)
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"--{name.replace('_', '-')} must be different values, at least one, got {values}")
        given = {word for setting in self.settings for word in flags_of(setting)}
        if taken := [flag for flag in OF_THE_GRID if flag in given]:
            instead = ", ".join(OF_THE_GRID[flag] for flag in taken)
            raise ValueError(f"--settings must leave {', '.join(taken)} to the grid, that is to {instead}")
        for name in ("eval_episodes", "points", "jobs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.ray_address is not None and self.jobs is not None:
            raise ValueError("--jobs is for local processes; a Ray cluster runs as many cells as it has CPUs")
        if self.out.suffix != ".parquet" or self.out.is_dir():
            raise ValueError(f"--out must be a file whose name ends in .parquet, got {self.out}")


@dataclass(frozen=True)
class Cell:
    """One run; `starts` is the folder of its starting policies, "shipped" for the package's own.

    Two folders may have one name: `start_sha256`, of the file that the run starts from, tells them apart. It is no part of
    the key, so that cells of files from before there was this column (and it is "" where there is no file) count by name.
    """

    env_id: str
    algorithm: str
    setting: str
    seed: int
    starts: str
    start_sha256: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.algorithm} {self.env_id} seed {self.seed}" + (f" {self.setting}" if self.setting else "")


KEY = [f.name for f in dataclasses.fields(Cell) if f.compare]
Job = tuple[Cell, list[str], Path, int]  # its command, its folder, most points of its curve
Result = tuple[Cell, list[dict[str, Any]], str]  # its rows, what went wrong


def run_cell(job: Job) -> Result:
    """Run one cell to its end, or go on with it; returns its rows, and an error text where it failed."""
    cell, words, folder, points = job
    try:
        return cell, rows_of(cell, run(words, folder), points), ""
    except Exception as error:  # whatever is wrong with one cell must not end the others
        text = str(error) if isinstance(error, errors.UserError) else repr(error)
        return cell, [], f"{cell}: {text} (log: {folder / 'log.txt'})"


def run(words: list[str], folder: Path) -> Path:
    """Run a training script, or resume the run that is in `folder` already; returns the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("a") as file:
        # The script inherits the lock. Where it outlived a benchmark that was killed, this waits until it has finished.
        fcntl.flock(file, fcntl.LOCK_EX)
        started = sorted(p.parent for p in folder.glob("*/config.json"))
        rest = ["--resume", str(started[-1])] if started else [*words[1:], "--runs-dir", str(folder)]
        command, one_thread = [sys.executable, words[0], *rest], {**os.environ, "OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=one_thread).returncode
    if status:
        last = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-1:]
        raise errors.UserError(f"exit status {status}; {' '.join(last)}")
    return max(p.parent for p in folder.glob("*/config.json"))


def rows_of(cell: Cell, run: Path, points: int) -> list[dict[str, Any]]:
    """A finished run's curve, at most `points` of it, with all that identifies the run in every row."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    curve = {tag: np.array([e.value for e in events.Scalars(tag)]) for tag in events.Tags()["scalars"]}
    steps = np.array([e.step for e in events.Scalars("charts/success_rate")])
    config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    same = {
        **dataclasses.asdict(cell), "commit": config["git_commit"], "versions": json.dumps(config["versions"]),
        "arguments": json.dumps(config["args"]), "peak_memory_mib": summary["peak_memory_mib"],
        "success_before": summary["before"]["rate"], "success_after": summary["after"]["rate"],
        "eval_episodes": summary["after"]["episodes"], "measures_after": json.dumps(summary["after"]["measures"]),
    }  # fmt: skip
    rows, size = [], -(-len(steps) // points)  # updates a point
    for first in range(0, len(steps), size):
        part, last = slice(first, first + size), min(first + size, len(steps)) - 1
        means = {tag.split("/")[1]: float(curve[tag][part].mean()) for tag in CURVES if tag in curve}
        x = {"episodes": int(curve["charts/episodes"][last]), "steps": int(steps[last]), "updates": last + 1}
        x["seconds"] = float(steps[last] / curve["charts/SPS"][last])
        rows.append({**same, **x, **means})
    return rows


def flags_of(setting: str) -> list[str]:
    """ "learning-rate=3e-4,critic-hidden=16 16" -> --learning-rate 3e-4 --critic-hidden 16 16."""
    pairs = (part.partition("=") for part in setting.split(",") if part)
    return [word for name, _, value in pairs for word in (f"--{name.strip().replace('_', '-')}", *value.split())]


def jobs_of(args: Args) -> Iterator[Job]:
    """The grid, seed by seed, so that a study cut short has all algorithms at fewer seeds."""
    starts = "shipped" if args.starts is None else args.starts.resolve().name
    for seed, env_id, algorithm, setting in itertools.product(args.seeds, args.env_ids, args.algorithms, args.settings):
        script, *flags = shlex.split(ALGORITHMS[algorithm])
        words = [str(Path(__file__).resolve().with_name(script)), "--env-id", env_id, "--seed", str(seed), *flags]
        words += ["--eval-episodes", str(args.eval_episodes), *flags_of(setting)]
        task = env_id.split("/")[-1]
        start = shipped_policy(env_id)
        if args.starts is not None:
            start = (args.starts / policy_name(env_id)).resolve()
            words += ["--start", str(start)]
        # The task's defaults are part of the name: once one of them has changed, a folder of before is another run's.
        key = " ".join([*words[1:], json.dumps(dataclasses.asdict(defaults(env_id)))])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        folder = args.work_dir.resolve() / f"{task}__{algorithm}__{seed}__{digest}"
        used = start is not None and start.is_file() and "--from-scratch" not in words
        content = hashlib.sha256(start.read_bytes()).hexdigest() if start is not None and used else ""
        yield Cell(env_id, algorithm, setting, seed, starts, content), words, folder, args.points


def refuse_others(table: Any, jobs: list[Job], args: Args) -> None:
    """See that what the file has of this grid is what these arguments would make.

    Raises:
        UserError: a cell with another number of evaluation episodes or of updates a point; runs of a task from other
            starting policies of the same name, whatever their cell, since nobody could tell them apart later.
    """
    made = {Cell(*key): rows for key, rows in table.groupby(KEY, sort=False)} if len(table) else {}
    hashes = table.groupby(["env_id", "starts"])["start_sha256"].unique() if "start_sha256" in table else {}
    # The longest curve: if all were made with one --points, which the file does not have, this one makes the same.
    points = max((len(made[cell]) for cell, *_ in jobs if cell in made), default=0)
    found: dict[str, list[Cell]] = {}
    for cell, *_ in jobs:
        known = (h for h in hashes.get((cell.env_id, cell.starts), ()) if isinstance(h, str) and h)  # old rows: none
        if cell.start_sha256 and (others := [h[:8] for h in known if h != cell.start_sha256]):
            what = f"{cell.env_id} from starting policies {cell.starts!r} whose sha256 is {', '.join(others)}"
            found.setdefault(f"{what}, not {cell.start_sha256[:8]}", []).append(cell)
        elif cell in made:
            episodes, updates = made[cell]["eval_episodes"].iloc[0], made[cell]["updates"]
            if episodes != args.eval_episodes:
                found.setdefault(f"--eval-episodes {episodes}, not {args.eval_episodes}", []).append(cell)
            elif updates.min() != -(-updates.max() // args.points):  # of the first point: updates a point, see rows_of
                found.setdefault(f"--points {points}, not {args.points}", []).append(cell)
    if found:
        texts = [f"{what} ({len(cells)} cells of this grid, the first is {cells[0]})" for what, cells in found.items()]
        raise errors.UserError(
            f"--out {args.out} was made otherwise: {'; '.join(texts)}. Use the values that it was made with, and for other "
            "starting policies a folder of another name; or another --out"
        )


def available_cores() -> int:
    """Cores that this process may use. OMP_NUM_THREADS says nothing here: every cell has one thread anyway."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def results_of(jobs: list[Job], args: Args) -> Iterator[Result]:
    """Run all jobs and give each result when it is there."""
    if args.ray_address is None:
        with ThreadPool(args.jobs or available_cores()) as threads:  # they only wait for their processes
            yield from threads.imap_unordered(run_cell, jobs)
        return
    import ray

    # Scripts import this package from where this process has it.
    ray.init(args.ray_address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
    task = ray.remote(num_cpus=1, max_retries=0)(run_cell)  # by itself Ray would try again, silently
    waiting = {task.remote(job): job for job in jobs}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        cell, _, folder, _ = waiting.pop(done)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:  # a worker died, or its machine
            yield cell, [], f"{cell}: {error} (log: {folder / 'log.txt'})"


def main(args: Args) -> None:
    extras = {"pandas": "study", "pyarrow": "study"} | ({"ray": "ray"} if args.ray_address else {})
    for package, extra in extras.items():
        if importlib.util.find_spec(package) is None:
            raise errors.UserError(f"{package} is not installed; run: pip install -c constraints.txt -e '.[{extra}]'")
    import pandas as pd

    args.out.parent.mkdir(parents=True, exist_ok=True)
    table = pd.read_parquet(args.out) if args.out.is_file() else pd.DataFrame(columns=KEY)
    finished = {Cell(*key) for key in table[KEY].drop_duplicates().itertuples(index=False)}
    refuse_others(table, list(jobs_of(args)), args)
    jobs = [job for job in jobs_of(args) if job[0] not in finished]
    failures: list[str] = []
    with tqdm(total=len(jobs), unit="run", desc="benchmark", dynamic_ncols=True) as bar:
        for cell, rows, failure in results_of(jobs, args):
            if failure:
                failures.append(failure)
                bar.write(f"FAILED {failure}", file=sys.stderr)
            else:
                table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if len(table) else pd.DataFrame(rows)
                table.to_parquet(args.out.with_suffix(".writing"), compression="zstd")
                os.replace(args.out.with_suffix(".writing"), args.out)
                bar.set_postfix_str(f"{cell}: {rows[0]['success_before']:.2f} to {rows[0]['success_after']:.2f}")
            bar.update()
    print(f"{len(jobs) - len(failures)} runs added to {args.out}, {len(finished)} cells were there")
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(jobs)} runs failed:", *failures]))


if __name__ == "__main__":
    try:
        cli.main(main, Args, __doc__)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
