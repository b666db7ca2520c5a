"""Run a grid of tasks, algorithms, seeds and settings, and collect all curves in one file.

    python scripts/benchmark.py --env-ids sppo/PrecisionCartPole-v0 --algorithms sppo ppo --seeds 1 2 3
    python scripts/benchmark.py --settings learning-rate=3e-4 learning-rate=1e-3 --out results/rates.parquet
    python scripts/benchmark.py --algorithms sppo path/to/mine.py         # your own training script
    python scripts/benchmark.py --grid results/grids/study.toml           # all grids of a file, one after another

A cell of the grid is one run of a training script, in a process with one thread. --jobs cells run at the same time. On a
Ray cluster it is as many cells as there are CPUs:

    ray start --head            # a cluster of one machine; others that have this folder: `ray start --address HEAD:6379`
    python scripts/benchmark.py --ray-address auto ...

The same command continues where it was stopped. It skips the cells that are in the results file. It continues interrupted
cells from their last checkpoint, and runs failed ones once more. If any cell fails, the command ends with status 1 and
names these cells and their logs. It refuses to start if the file has cells that were made with other values. These are
another --eval-episodes or --points, other starting policies of the same name, or another version of your own script.

With --grid FILE the values are from a TOML file. sppo_control/study/grids.py says how to write one. Flags change every grid
of the file:

    --env-ids, --algorithms        keep only those that are named
    --algorithms path/to/mine.py   add this script to every grid
    all other flags                replace the file's values

Grids with nothing left are dropped. For example, the same grids with other seeds:

    python scripts/benchmark.py --grid results/grids/study.toml --seeds 21 22 23 --out mine.parquet

Your own script must take the flags --env-id, --seed, --eval-episodes, --runs-dir, --resume and --start. It must write a run
folder as sppo_cartpole.py does. A changed copy of any training script does both. Its name in results files and figures is
its file's name without .py.

The results file has one row per point of each curve: success over the episodes since the point before. The x-axes are
episodes, environment steps and seconds of training. Each row also has the cell, its arguments, commit and versions, and the
success before and after training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

import sppo_envs
from sppo_control import cli, errors, extras
from sppo_control.outputs import File, Folder, check_output, only_writer, wait_for_heirs
from sppo_control.starts import policy_name, shipped_policy

with cli.one_line_errors():
    extras.require("study", "pandas", wanted_by="scripts/benchmark.py")
    import pandas as pd

    from sppo_control.study import variants
    from sppo_control.study.cells import CELL_COLUMNS, Cell, Job, refuse_others
    from sppo_control.study.grids import FIELDS, Grid, change, flags_of, key, read_grids
    from sppo_control.study.results import read_table

CURVES = ("charts/success_rate", "charts/skipped", "critic/v0_mean", "critic/brier", "measures/balanced")
"""What is kept of a run in addition to its x-axes: means over the updates of each point."""


@dataclass
class Args:
    grid: Path | None = None
    """TOML file of grids; its values are then used, except for those that are set by flags"""
    env_ids: tuple[str, ...] | None = None
    """tasks to run"""
    algorithms: tuple[str, ...] | None = None
    """sppo, ppo, grpo, rloo or remax; or the path of your own script; or a variant: sppo-paper, -skip, -norm, -ratio;
    ppo-bce, -skip, -norm, -norm-batch, -gae, -standard; vc-ppo; dr-grpo; gspo; reinforce, -norm, -pp, -pp-baseline; spo,
    -contexts. sppo_control/study/variants.py says what each is"""
    seeds: tuple[int, ...] | None = None
    """seeds of the runs"""
    settings: tuple[str, ...] | None = None
    """flags of the training script, without dashes; "learning-rate=3e-4,critic-hidden=16 16" is one setting"""
    starts: Path | None = None
    """folder of starting policies with the same file names as the shipped ones; None means the shipped ones"""
    eval_episodes: int | None = None
    """episodes per evaluation, before and after training"""
    points: int | None = None
    """most points per curve; each point is a mean over equally many updates"""
    out: Path | None = None
    """results file, which is rewritten after every cell"""
    work_dir: Path | None = None
    """folder for the run folders and logs of the cells"""
    jobs: int | None = None
    """number of cells that run at the same time on this machine; None means one per core"""
    ray_address: str | None = None
    """run the cells on this Ray cluster; "auto" means the cluster of this machine"""

    @staticmethod
    def defaults(grid: Path | None) -> dict[str, Any]:
        """The values of one grid if there is no grid file, so that --help shows them."""
        return {} if grid else dataclasses.asdict(Grid(sppo_envs.TASKS))

    def __post_init__(self) -> None:
        self.grid = None if self.grid is None else Path(self.grid)
        if self.ray_address is not None and self.jobs is not None:
            raise ValueError("--jobs is for local processes; a Ray cluster runs as many cells as it has CPUs")
        self.grids()

    def grids(self) -> list[Grid]:
        """The grids to run.

        Raises:
            ValueError: a value is impossible; the message names its flag.
            UserError: a value in the file of --grid is impossible; the message names the file, the grid and the key.
        """
        given = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        read = [] if self.grid is None else read_grids(self.grid)
        for i, grid in enumerate(read, start=1):
            if unknown := unknown_task(grid.env_ids):
                raise errors.UserError(f"{self.grid}, grid {i}: env-ids {unknown}")
        try:
            found = change(read, given) if self.grid else [Grid(**{"env_ids": sppo_envs.TASKS, **given})]
        except ValueError as error:
            raise ValueError(f"--{error}" if str(error).startswith(FLAGS) else str(error)) from error
        if unknown := unknown_task(self.env_ids or ()):
            raise ValueError(f"--env-ids {unknown}")
        return found


FLAGS = tuple(key(name) for name in FIELDS)


def unknown_task(env_ids: Sequence[str]) -> str:
    """What is wrong with these tasks; empty if nothing is. An id "module:id" is not checked, as that needs an import."""
    unknown = [env_id for env_id in env_ids if ":" not in env_id and env_id not in gym.registry]
    return f"must be known environments, got {', '.join(unknown)}; there are {', '.join(sppo_envs.TASKS)}" * bool(
        unknown
    )


Result = tuple[Job, list[dict[str, Any]], str]  # the job, its rows, and what went wrong


def run_cell(job: Job) -> Result:
    """Run or continue one cell to its end. Returns its rows, and an error text if it failed."""
    try:
        return job, rows_of(job.cell, run(job.words, job.folder), job.grid.points), ""
    except Exception as error:  # a failure of one cell must not end the others
        text = str(error) if isinstance(error, errors.UserError) else repr(error)
        return job, [], f"{job.cell}: {text} (log: {job.folder / 'log.txt'})"


def run(words: list[str], folder: Path, resumed: Sequence[str] = ()) -> Path:
    """Run a training script, or resume the run that is already in `folder`, with the flags `resumed`. Returns the run's
    folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("a") as file:
        wait_for_heirs(file)  # the script of a killed benchmark, if it is still running
        started = sorted(p.parent for p in folder.glob("*/config.json"))
        rest = ["--resume", str(started[-1]), *resumed] if started else [*words[1:], "--runs-dir", str(folder)]
        command, one_thread = [sys.executable, words[0], *rest], {**os.environ, "OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=one_thread).returncode
    if status:
        lines = re.split(r"[\r\n]+", log.read_text(errors="replace"))
        last = [line.strip() for line in lines if re.search(r"\w", line)][-1:]  # not the lower edge of a box
        raise errors.UserError(f"exit status {status}; {' '.join(last)}")
    return max(p.parent for p in folder.glob("*/config.json"))


def rows_of(cell: Cell, run: Path, points: int) -> list[dict[str, Any]]:
    """The curve of a finished run, with at most `points` points. Every row contains all that identifies the run."""
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
    rows, size = [], -(-len(steps) // points)  # updates per point
    for first in range(0, len(steps), size):
        part, last = slice(first, first + size), min(first + size, len(steps)) - 1
        means = {tag.split("/")[1]: float(curve[tag][part].mean()) for tag in CURVES if tag in curve}
        x: dict[str, float] = {
            "episodes": int(curve["charts/episodes"][last]),
            "steps": int(steps[last]),
            "updates": last + 1,
        }
        x["seconds"] = float(steps[last] / curve["charts/SPS"][last])
        rows.append({**same, **x, **means})
    return rows


def jobs_of(grid: Grid) -> Iterator[Job]:
    """The cells of a grid, seed by seed, so that an unfinished study has all algorithms at fewer seeds."""
    starts = "shipped" if grid.starts is None else grid.starts.resolve().name
    wanted = variants.find(grid.algorithms)
    for seed, env_id, variant, setting in itertools.product(grid.seeds, grid.env_ids, wanted, grid.settings):
        own = variant.name not in variants.VARIANTS
        script = Path(variant.script) if own else Path(__file__).resolve().with_name(variant.script)
        words = [str(script), "--env-id", env_id, "--seed", str(seed), *variant.flags]
        words += ["--eval-episodes", str(grid.eval_episodes), *flags_of(setting)]
        task = env_id.split("/")[-1]
        start = shipped_policy(env_id)
        if grid.starts is not None:
            start = (grid.starts / policy_name(env_id)).resolve()
            words += ["--start", str(start)]
        # The task's defaults are part of the folder's name. If one of them changes, an older folder is another run's.
        identity = " ".join([*words[not own :], json.dumps(sppo_envs.task_defaults(env_id))])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        folder = grid.work_dir.resolve() / f"{task}__{variant.name}__{seed}__{digest}"
        used = start is not None and start.is_file() and "--from-scratch" not in words
        hashes = sha256(start) if start is not None and used else "", sha256(script) if own else ""
        yield Job(Cell(env_id, variant.name, setting, seed, starts, *hashes), words, folder, grid)


def sha256(file: Path) -> str:
    """The SHA-256 digest of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def all_jobs(grids: Sequence[Grid]) -> dict[Path, list[Job]]:
    """The cells of all grids, by results file. A cell that is in several grids is run once.

    Raises:
        UserError: a cell is in two grids with different commands.
    """
    found: dict[tuple[Path, Cell], Job] = {}
    for grid in grids:
        for job in jobs_of(grid):
            first = found.setdefault((grid.out, job.cell), job)
            if first.words != job.words:
                raise errors.UserError(
                    f"two grids make {job.cell} of {grid.out} in different ways: {shlex.join(first.words)}; and "
                    f"{shlex.join(job.words)}. Give them different values of out"
                )
    by_file: dict[Path, list[Job]] = {}
    for (out, _), job in found.items():
        by_file.setdefault(out, []).append(job)
    return by_file


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse cells whose script would refuse them. Of cells that differ only in their seeds one is looked at.

    Your own scripts are not looked at, because importing them could run them.

    Raises:
        UserError: names a cell and what its script says.
    """
    looked: set[Any] = set()
    for job in jobs:
        cell, script = job.cell, Path(job.words[0])
        if cell.script_sha256 or (about := (cell.env_id, cell.algorithm, cell.setting)) in looked:
            continue
        looked.add(about)
        try:
            args = cli.parse_args(importlib.import_module(script.stem).Args, None, job.words[1:])
            task = (args.env_id, args.success_return, args.horizon, args.engine)
            if task not in looked:
                looked.add(task)
                sppo_envs.make_task(args.env_id, 1, *task[1:]).close()
        except (errors.UserError, ValueError, ImportError) as error:
            if not cli.is_refusal(error):
                raise
            raise errors.UserError(f"the grid has an impossible cell, {cell}: {error}") from error
        except SystemExit as error:  # --help
            raise errors.UserError(
                f"the grid has an impossible cell, {cell}: --settings must not ask for help"
            ) from error


def available_cores() -> int:
    """Number of cores that this process may use. OMP_NUM_THREADS does not matter: every cell has one thread anyway."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def results_of(jobs: list[Job], args: Args) -> Iterator[Result]:
    """Run all jobs, and yield each result as soon as it is there."""
    if args.ray_address is None:
        with ThreadPool(args.jobs or available_cores()) as threads:  # the threads only wait for their processes
            yield from threads.imap_unordered(run_cell, jobs)
        return
    import ray

    # Scripts must import this package from the same place as this process.
    ray.init(args.ray_address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
    task = ray.remote(num_cpus=1, max_retries=0)(run_cell)  # by default Ray would silently try again
    waiting = {task.remote(job): job for job in jobs}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        job = waiting.pop(done)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:  # a worker or its machine died
            yield job, [], f"{job.cell}: {error} (log: {job.folder / 'log.txt'})"


def main(args: Args) -> None:
    if args.ray_address:
        extras.require("ray", "ray", wanted_by="--ray-address")
    by_file = all_jobs(args.grids())
    outs = []  # the results files that will be written
    for out, jobs in by_file.items():
        _, finished = read(out, jobs)
        if waiting := [job for job in jobs if job.cell not in finished]:
            outs.append(out)
            check_output("--out", out, File(".parquet", new_folder=True))
            for folder in {job.grid.work_dir for job in waiting}:
                check_output("--work-dir", folder, Folder())
            check_jobs(waiting)
    # ---- all that can be refused has been refused
    with contextlib.ExitStack() as stack:
        for out in outs:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(out))
        run_all(by_file, args)


def read(out: Path, jobs: Sequence[Job]) -> tuple[pd.DataFrame, set[Cell]]:
    """The table of a results file, and the cells in it; both are empty if there is no file yet.

    Raises:
        UserError: see `read_table` and `refuse_others`.
    """
    table = read_table(out) if out.is_file() else pd.DataFrame(columns=CELL_COLUMNS)
    refuse_others(table, jobs)
    return table, {Cell(*cell) for cell in table[CELL_COLUMNS].drop_duplicates().itertuples(index=False)}


def run_all(by_file: dict[Path, list[Job]], args: Args) -> None:
    """Run the cells that are not in the results files, and add them."""
    tables, finished = {}, {}
    for out, jobs in by_file.items():  # read again, now that nobody else writes
        tables[out], finished[out] = read(out, jobs)
    waiting = [job for out, jobs in by_file.items() for job in jobs if job.cell not in finished[out]]
    failures: list[str] = []
    added = dict.fromkeys(by_file, 0)
    with tqdm(total=len(waiting), unit="run", desc="benchmark", dynamic_ncols=True) as bar:
        for (cell, _, _, grid), rows, failure in results_of(waiting, args):
            if failure:
                failures.append(failure)
                bar.write(f"FAILED {failure}", file=sys.stderr)
            else:
                old, new = tables[grid.out], pd.DataFrame(rows)
                tables[grid.out] = pd.concat([old, new], ignore_index=True) if len(old) else new
                tables[grid.out].to_parquet(grid.out.with_suffix(".writing"), compression="zstd")
                os.replace(grid.out.with_suffix(".writing"), grid.out)
                added[grid.out] += 1
                bar.set_postfix_str(f"{cell}: {rows[0]['success_before']:.2f} to {rows[0]['success_after']:.2f}")
            bar.update()
    for out, number in added.items():
        print(f"{number} runs added to {out}, {len(finished[out])} cells were there")
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(waiting)} runs failed:", *failures]))


if __name__ == "__main__":
    try:
        cli.main(main, Args, __doc__)
    except KeyboardInterrupt:
        print("\nStopped; the same command continues from here.", file=sys.stderr)
        sys.exit(130)
