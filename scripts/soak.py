"""Kill training runs at random moments, resume them, and compare them with runs that nothing stopped.

    python scripts/soak.py --kills 100 --json docs/soak.json          # about 20 minutes on one core
    python scripts/soak.py --kills 10 --scripts sppo_cartpole sppo_llm
    python scripts/soak.py --what steady --minutes 30                 # memory and open files of one long run

kills: each trial is one short run. It is killed by SIGKILL one to three times: while it starts, while it trains, while it
writes a checkpoint, or twice in a row. Then it may end. Its weights, optimiser states, counters and TensorBoard curves
must equal those of the uninterrupted run bit for bit, and no other files may be left. Trial t of seed S always has the
same plan; the moments depend on the machine's speed. If --json names a file of an earlier call with the same seed, its
trials are kept, and the rest is run.

steady: one run, whose memory and number of open files are read every 10 seconds. They may not grow.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from tqdm import tqdm

from sppo_control import checkpoints, cli, errors, runs
from sppo_control.outputs import File

Script = Literal[
    "sppo_cartpole",
    "ppo_cartpole",
    "grpo_cartpole",
    "rloo_cartpole",
    "remax_cartpole",
    "sppo_llm",
    "ppo_llm",
    "grpo_llm",
    "rloo_llm",
]
CONTROL: tuple[Script, ...] = ("sppo_cartpole", "ppo_cartpole", "grpo_cartpole", "rloo_cartpole", "remax_cartpole")
LANGUAGE: tuple[Script, ...] = ("sppo_llm", "ppo_llm", "grpo_llm", "rloo_llm")
TASKS = ("sppo/PrecisionCartPole-v0", "sppo/ContextPendulum-v0")
"""Of the control scripts. The language models add numbers."""
MOMENTS = ("start", "training", "training", "writing", "writing", "twice")
"""When a kill comes; some are more likely than others."""


@dataclass
class Args:
    what: Literal["kills", "steady"] = "kills"
    """kill and resume many short runs, or watch one long run"""
    kills: int = 100
    """kills: as many in all, or a few more, because a trial is not broken off"""
    seed: int = 1
    """kills: of the plans of the trials"""
    scripts: tuple[Script, ...] = (*CONTROL, *LANGUAGE)
    """kills: training scripts, in turn; steady: the first one"""
    minutes: float = 10.0
    """steady: how long"""
    json: Annotated[Path | None, File(".json")] = None
    """write the results to this file too; kills go on from what is in it"""

    def __post_init__(self) -> None:
        if not self.scripts:
            raise ValueError("--scripts needs at least one script")


@dataclass
class Trial:
    """What happened in one run that was killed."""

    number: int
    script: str
    task: str
    plan: tuple[str, ...]
    """the moments of its kills"""
    kills: int = 0
    """kills that met a living process"""
    inside_writing: int = 0
    """kills that left a half-written checkpoint"""
    before_first_checkpoint: int = 0
    """kills before there was a checkpoint to go on from"""
    differences: tuple[str, ...] = ()
    """files and curves that differ from the uninterrupted run"""
    stray_files: tuple[str, ...] = ()
    """files that no run should leave"""


# ---------------------------------------------------------------------------------------------------------- processes
def words(script: str, task: str) -> list[str]:
    """The command line of a short run."""
    if script in LANGUAGE:
        some = ["--total-episodes", "192", "--batch-size", "32", "--eval-prompts", "16", "--save-every", "1"]
        return [*some, *(["--group-size", "4"] if script in ("grpo_llm", "rloo_llm") else []), "--device", "cpu"]
    steps = "16000" if "Pendulum" in task else "40000"
    return ["--env-id", task, "--total-timesteps", steps, "--num-envs", "16", "--num-minibatches", "2",
            "--eval-episodes", "16", "--save-every", "2", "--engine", "numpy"]  # fmt: skip


def launch(script: str, *rest: str) -> subprocess.Popen[str]:
    """Start a training script in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *rest]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end; returns what went wrong, or nothing."""
    _, said = process.communicate()
    return "" if process.returncode == 0 else f"exit status {process.returncode}: {' '.join(said.split())[-300:]}"


def run_in(folder: Path) -> Path | None:
    """The run folder below `folder` that can be resumed, if there is one."""
    return next((config.parent for config in sorted(folder.glob("*/config.json"))), None)


def kill(process: subprocess.Popen[str], folder: Path, moment: str, delay: float) -> bool:
    """SIGKILL at a moment; whether the process was still alive.

    Args:
        process: a training script.
        folder: in which its run folder is, or will be.
        moment: "start", "training" or "writing".
        delay: in [0, 1): how long after the moment.
    """
    began, patience = time.perf_counter(), 120.0
    if moment == "start":
        time.sleep(delay * 5)
    else:
        before = {path.name for path in folder.glob("*/events*")}
        while process.poll() is None and not {p.name for p in folder.glob("*/events*")} - before:
            if time.perf_counter() - began > patience:
                break
            time.sleep(0.002)
        if moment == "training":
            time.sleep(delay * 1.5)
        else:
            time.sleep(delay * 0.5)
            half = "*/checkpoints/.writing-*"
            while process.poll() is None and not next(folder.glob(half), None):
                time.sleep(0.0003)  # a checkpoint of a small network is written within milliseconds
            time.sleep(delay * 0.004)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


# --------------------------------------------------------------------------------------------------------- comparison
def contents(run: Path) -> dict[str, str]:
    """File -> SHA-256 of the last checkpoint; of its state.json only what does not depend on the clock."""
    last = checkpoints.newest(run)
    found = {}
    for file in sorted(last.rglob("*")):
        if file.is_file() and file.name != "state.json":
            found[f"{last.name}/{file.relative_to(last).as_posix()}"] = checkpoints.digest(file)
    state = checkpoints.read_state(last, tuple(checkpoints.COUNTERS))
    counters = {key: state[key] for key in checkpoints.COUNTERS if key != "seconds"}
    return {**found, f"{last.name}/state.json": json.dumps(counters, sort_keys=True)}


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> points, without the one tag that depends on the clock."""
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every resumed run
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in sorted(tags)}


def differences(run: Path, reference: Path) -> tuple[str, ...]:
    """Names of files, curves and results that are not the same."""
    a, b = contents(run), contents(reference)
    found = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    x, y = curves(run), curves(reference)
    found += [tag for tag in sorted(x.keys() | y.keys()) if repr(x.get(tag)) != repr(y.get(tag))]
    summaries = [checkpoints.read_summary(folder) for folder in (run, reference)]
    return tuple(
        found + [key for key in ("before", "after") if repr(summaries[0].get(key)) != repr(summaries[1].get(key))]
    )


def stray_files(run: Path, reference: Path) -> tuple[str, ...]:
    """Files and folders of a run that the uninterrupted one does not have, event files left out."""
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".tfevents." not in path.name}
        for folder in (run, reference)
    ]
    return tuple(sorted(names[0] - names[1]))


# -------------------------------------------------------------------------------------------------------------- trials
def plan(number: int, args: Args) -> Trial:
    """Trial `number` of a seed."""
    cases = [(s, task) for task in (0, 1) for s in args.scripts if s in CONTROL or task == 0]
    script, index = cases[number % len(cases)]
    rng = np.random.default_rng([args.seed, number])
    moments = tuple(str(x) for x in rng.choice(MOMENTS, size=int(rng.integers(1, 4))))
    return Trial(number, script, "addition" if script in LANGUAGE else TASKS[index], moments)


def attempt(trial: Trial, args: Args, folder: Path, reference: Path) -> Trial:
    """Carry out a trial in an empty folder."""
    rng = np.random.default_rng([args.seed, trial.number, 1])
    moments = [moment for x in trial.plan for moment in (("training", "start") if x == "twice" else (x,))]

    def go() -> subprocess.Popen[str]:
        run = run_in(folder)
        if run is None:
            return launch(trial.script, *words(trial.script, trial.task), "--runs-dir", str(folder))
        return launch(trial.script, "--resume", str(run))

    half = "*/checkpoints/.writing-*"
    for moment in moments:
        old, process = set(folder.glob(half)), go()
        if not kill(process, folder, moment, float(rng.random())):
            if process.returncode != 0:
                trial.differences = (f"exit status {process.returncode} in place of a running process",)
                return trial
            break  # it was faster
        trial.kills += 1
        run = run_in(folder)
        trial.inside_writing += bool(set(folder.glob(half)) - old)
        trial.before_first_checkpoint += run is None or not checkpoints.complete(run / "checkpoints")
    if wrong := finish(go()):
        trial.differences = (wrong,)
        return trial
    run = run_in(folder)
    assert run is not None
    trial.differences, trial.stray_files = differences(run, reference), stray_files(run, reference)
    return trial


def kills(args: Args) -> dict[str, Any]:
    """All trials; the table and its numbers."""
    done: dict[int, Trial] = {}
    if args.json is not None and args.json.is_file():
        stored = checkpoints.read_json(args.json)
        if (stored.get("seed"), stored.get("scripts")) != (args.seed, list(args.scripts)):
            raise errors.UserError(f"{args.json} has another seed or other scripts; name another --json")
        try:
            for row in stored["trials"]:
                if odd := [key for key, hint in get_type_hints(Trial).items() if not cli.fits(row[key], hint)]:
                    raise TypeError(f"{', '.join(odd)} of another type")
                done[row["number"]] = Trial(**row)
        except (KeyError, TypeError) as error:
            raise errors.UserError(
                f"--json {args.json} was not written by this script ({error}); name another"
            ) from error
    result: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as work,
        tqdm(total=args.kills, initial=sum(t.kills for t in done.values()), unit="kill", dynamic_ncols=True) as bar,
    ):
        references: dict[tuple[str, str], Path] = {}
        number = 0
        while sum(trial.kills for trial in done.values()) < args.kills:
            if number not in done:
                trial = plan(number, args)
                bar.set_description(f"{trial.script} {trial.task}")
                case = (trial.script, trial.task)
                if case not in references:
                    home = Path(work, "reference", *(part.replace("/", "-") for part in case))
                    if wrong := finish(launch(trial.script, *words(*case), "--runs-dir", str(home))):
                        raise errors.UserError(f"{trial.script} does not even run: {wrong}")
                    references[case] = run_in(home) or home
                done[number] = attempt(trial, args, Path(work, str(number)), references[case])
                bar.update(done[number].kills)
                result = summary(done, args)
                if args.json is not None:
                    checkpoints.write_json(args.json, result)
            number += 1
    return result or summary(done, args)


def summary(done: dict[int, Trial], args: Args) -> dict[str, Any]:
    """One row per script and task, and every trial."""
    rows = []
    for script, task in dict.fromkeys((t.script, t.task) for t in done.values()):
        some = [t for t in done.values() if (t.script, t.task) == (script, task)]
        counts = {
            key: sum(getattr(t, key) for t in some) for key in ("kills", "inside_writing", "before_first_checkpoint")
        }
        odd = {key: sum(len(getattr(t, key)) for t in some) for key in ("differences", "stray_files")}
        rows.append({"script": script, "task": task, "trials": len(some), **counts, **odd})
    trials = [asdict(done[number]) for number in sorted(done)]
    return {"seed": args.seed, "scripts": list(args.scripts), "rows": rows, "trials": trials, **runs.versions()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows and their sum, as text."""
    keys = ["trials", "kills", "inside_writing", "before_first_checkpoint", "differences", "stray_files"]
    total = {"script": "all", "task": "", **{key: sum(row[key] for row in rows) for key in keys}}
    lines = [f"{'script':<15} {'task':<26} trials  kills  in writing  before first  differences  stray files"]
    widths = (6, 5, 10, 12, 11, 11)
    for row in [*rows, total]:
        numbers = "  ".join(f"{row[key]:>{width}}" for key, width in zip(keys, widths, strict=True))
        lines.append(f"{row['script']:<15} {row['task']:<26} {numbers}")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- steady
def steady(args: Args) -> dict[str, Any]:
    """One long run, looked at every 10 seconds.

    Raises:
        UserError: the system has no /proc, or the run ended early.
    """
    if not Path("/proc/self/statm").exists():
        raise errors.UserError("--what steady reads /proc, which only Linux has")
    script, samples = args.scripts[0], []
    endless = ["--total-episodes" if script in LANGUAGE else "--total-timesteps", str(2**60), "--save-every", "50"]
    with tempfile.TemporaryDirectory(prefix="soak-") as work:
        process = launch(script, *endless, "--runs-dir", work)
        try:
            while process.poll() is None and not next(Path(work).glob("*/checkpoints/0*"), None):
                time.sleep(0.1)  # it imports and evaluates first
            began, end = time.perf_counter(), time.perf_counter() + 60 * args.minutes
            with tqdm(total=round(60 * args.minutes), unit="s", desc=script, dynamic_ncols=True) as bar:
                while (left := end - time.perf_counter()) > 0:
                    time.sleep(min(10.0, left))
                    if process.poll() is not None:
                        raise errors.UserError(f"{script} ended early: {finish(process)}")
                    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
                    files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                    seconds = time.perf_counter() - began
                    samples.append({"seconds": round(seconds, 1), "rss_mib": round(mib, 1), "open_files": files})
                    bar.update(round(seconds) - bar.n)
        finally:
            process.kill()
            process.communicate()
        run = run_in(Path(work))
        state = (
            checkpoints.read_state(checkpoints.newest(run), ("steps", "update")) if run else {"steps": 0, "update": 0}
        )
    return {
        "script": script,
        "minutes": args.minutes,
        "updates": state["update"],
        "steps": state["steps"],
        **{
            key: {"first": samples[0][key], "last": samples[-1][key], "max": max(s[key] for s in samples)}
            for key in ("rss_mib", "open_files")
        },
        "samples": samples,
        **runs.versions(),
    }


def main(args: Args) -> None:
    if args.what == "steady":
        result = steady(args)
        if args.json is not None:
            checkpoints.write_json(args.json, result)
        for key in ("rss_mib", "open_files"):
            print(f"{key:<10} first {result[key]['first']}  last {result[key]['last']}  max {result[key]['max']}")
        print(
            f"{result['script']}: {result['minutes']:g} minutes, {result['updates']} updates, {result['steps']} steps"
        )
        return
    result = kills(args)
    print(table(result["rows"]))
    wrong = [t for t in result["trials"] if t["differences"] or t["stray_files"]]
    for trial in wrong:
        print(f"trial {trial['number']}: {trial['differences']} {trial['stray_files']}", file=sys.stderr)
    if wrong:
        raise errors.UserError(f"{len(wrong)} of {len(result['trials'])} trials did not end as the uninterrupted run")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
