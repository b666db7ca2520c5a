"""Compare the runs of llm_real.py: tables at equal responses and at equal seconds, and the curves.

    for seed in 11 12 13; do for algorithm in sppo grpo; do
        python scripts/llm_real.py --bf16 --algorithm $algorithm --seed $seed --out runs/seed$seed; done; done
    python scripts/compare_llm.py runs/seed11 runs/seed12 runs/seed13 --out runs/compare.json --figure runs/compare.png
    python scripts/compare_llm.py docs/llm_real.json                # the tables of docs/llm_real.md again, from its file

Seconds are processor seconds of the updates, generation included, without evaluations and checkpoints (a run's
`charts/cpu_seconds`). Other work on the machine lengthens them hardly. docs/llm_real_cuda.json has seconds on the clock. A
run that has not ended is left out with a note.

A threshold is reached when the mean outcome of the last --window updates reaches it. "Equal seconds" are those of the
shortest run of all. "To GRPO's peak" asks what the paper asks with its 5.9: when does a run reach the highest such mean of
the GRPO run with the same seed, and how much earlier than that run itself?
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro

import plot
from sppo_control import checkpoints, cli, errors, extras, limits, runs
from sppo_control.checkpoints import is_number
from sppo_control.core import wilson_interval
from sppo_control.markdown import markdown_table
from sppo_control.outputs import File

NAMES = {
    "sppo": "SPPO, critic of 6 layers", "sppo-copy": "SPPO, critic a copy", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO",
    "reinforce-pp": "REINFORCE++",
}  # fmt: skip
"""Algorithm -> its name in the tables, in their order."""
THRESHOLDS = (0.5, 0.6, 0.8)


@dataclass
class Args:
    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders that llm_real.py wrote (its --out), or one file that this script wrote"""
    out: Annotated[Path | None, File(".json")] = None
    """JSON file to write: the curves and evaluations of all runs"""
    figure: Annotated[Path | None, File(".png", ".svg", ".pdf")] = None
    """picture of the curves to write"""
    window: int = 8
    """updates over which the outcomes are averaged for thresholds, peaks and the picture"""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("name at least one folder that llm_real.py wrote, or a file that this script wrote")
        limits.check_limits(self)


@dataclass(frozen=True)
class Trained:
    """One run that has ended."""

    algorithm: str
    seed: int
    responses: int
    """of the whole run"""
    success: npt.NDArray[np.float64]
    """(updates,): mean outcome of each batch"""
    cpu_seconds: npt.NDArray[np.float64]
    """(updates,): processor seconds of each"""
    before: dict[str, Any]
    after: dict[str, Any]
    """held-out sums: successes, problems"""
    settings: dict[str, Any]

    @property
    def clock(self) -> npt.NDArray[np.float64]:
        """(updates,): processor seconds when each update has ended."""
        return np.cumsum(self.cpu_seconds)

    def means(self, window: int) -> npt.NDArray[np.float64]:
        """(updates,): mean outcome of the last `window` updates; NaN where there are fewer."""
        means = np.full(len(self.success), np.nan)
        if window <= len(means):
            means[window - 1 :] = np.convolve(self.success, np.ones(window) / window, "valid")
        return means

    def reached(self, threshold: float, window: int) -> tuple[int, float] | None:
        """Responses and seconds when the windowed mean first reached the threshold; None if it never did."""
        # Rounding must not hide a mean that is equal to the threshold, as a peak is to itself.
        (hits,) = np.nonzero(self.means(window) >= threshold - 1e-9)
        if not len(hits):
            return None
        return round(self.responses * (hits[0] + 1) / len(self.success)), float(self.clock[hits[0]])

    def mean_within(self, seconds: float) -> float:
        """Success averaged over the first seconds of training: each update counts by its seconds."""
        spent = np.clip(seconds - (self.clock - self.cpu_seconds), 0, self.cpu_seconds)
        return float(np.average(self.success, weights=spent))


# ------------------------------------------------------------------------------------------------------------ reading
def read_folder(folder: Path) -> list[Trained]:
    """The runs of one --out of llm_real.py that have ended; what is left out is said.

    Raises:
        UserError: there is none; a file is damaged.
    """
    found = []
    for config_file in sorted(folder.glob("*/*/config.json")):
        run, name = config_file.parent, config_file.parents[1].name
        args = checkpoints.read_config(run)["args"]
        evaluations = [folder / which / "results.json" for which in ("before", f"after_{name}")]
        missing = [file for file in evaluations if not file.is_file()]
        if missing:
            print(f"note: {run} has not ended ({missing[0]} is not there); it is left out", file=sys.stderr)
            continue
        curves = {tag: plot.read(run, f"charts/{tag}") for tag in ("success_rate", "cpu_seconds")}
        for curve in curves.values():
            if isinstance(curve, str):
                raise errors.UserError(f"{run} has {curve}; was it trained by llm_real.py?")
        before, after = (held_out(file) for file in evaluations)
        success, seconds = (curve.points[:, 1] for curve in curves.values() if isinstance(curve, plot.Curve))
        if len(success) != len(seconds):
            raise errors.UserError(f"{run}: {len(success)} updates have a success rate and {len(seconds)} have seconds")
        kept = ("learning_rate", "critic_learning_rate", "critic_steps", "batch_size", "group_size", "bf16", "dataset")
        settings = {key: args[key] for key in kept if key in args}
        settings["dataset"] = Path(settings["dataset"]).parent.name
        found.append(Trained(name, args["seed"], args["total_episodes"], success, seconds, before, after, settings))
    if not found:
        raise errors.UserError(f"{folder} has no run of llm_real.py that has ended; name what was its --out")
    return found


def held_out(file: Path) -> dict[str, Any]:
    """Successes and problems of an evaluation of held-out sums, one response each."""
    result = checkpoints.read_json(file)["results"]["sums"]
    return {"successes": result["verdicts"].get("correct", 0), "problems": result["problems"]}


def as_json(run: Trained) -> dict[str, Any]:
    """A run for the JSON file."""
    # Shares keep all digits: a mean that is 1/2 must reach 1/2 when the file is read again.
    curves = {"success": run.success.tolist(), "cpu_seconds": run.cpu_seconds.round(3).tolist()}
    return {"algorithm": run.algorithm, "seed": run.seed, "responses": run.responses, "before": run.before,
            "after": run.after, **curves, "settings": run.settings}  # fmt: skip


def from_json(row: dict[str, Any]) -> Trained:
    """What `as_json` wrote, or a run of docs/llm_real_cuda.json. There the evaluation is that of a training script, and
    `seconds` are those of the whole run, whose updates take equally long."""
    success = np.array(row["success"], float)
    seconds = np.array(
        row["cpu_seconds"] if "cpu_seconds" in row else [row["seconds"] / len(success)] * len(success), float
    )
    before, after = (
        {"successes": round(x["rate"] * x["episodes"]), "problems": x["episodes"]} if "rate" in x else x
        for x in (row["before"], row["after"])
    )
    settings = row.get("settings", {})
    return Trained(row["algorithm"], row["seed"], row["responses"], success, seconds, before, after, settings)


def read_file(file: Path) -> list[Trained]:
    """The runs of a file that this script wrote.

    Raises:
        UserError: it did not.
    """
    rows = checkpoints.read_json(file).get("runs")
    try:
        found = [from_json(row) for row in rows or ()]
        for run in found:
            numbers = (run.responses, *(x[key] for x in (run.before, run.after) for key in ("successes", "problems")))
            if not all(map(is_number, numbers)) or not 0 < len(run.success) == len(run.cpu_seconds):
                raise ValueError("a run without numbers")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise errors.UserError(
            f"{file} was not written by this script ({type(error).__name__}: {error}); name folders of llm_real.py"
        ) from error
    if not found:
        raise errors.UserError(f"{file} has no runs; name folders of llm_real.py")
    return found


def read(results: Sequence[Path]) -> list[Trained]:
    """All runs, by algorithm and seed.

    Raises:
        UserError: a path is neither a folder nor a file of this script; a run is there twice; budgets or data differ.
    """
    found: list[Trained] = []
    for path in results:
        if not path.exists():
            raise errors.UserError(f"there is no {path}; name folders that llm_real.py wrote")
        found += read_folder(path) if path.is_dir() else read_file(path)
    keys = [(run.algorithm, run.seed) for run in found]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise errors.UserError(f"{' '.join(map(str, twice.pop()))} is there twice; name each run once")
    for what, values in (
        ("responses", {str(run.responses) for run in found}),
        ("data", {str(run.settings.get("dataset")) for run in found}),
    ):
        if len(values) > 1:
            raise errors.UserError(
                f"the runs differ in {what} ({', '.join(sorted(values))}), so they cannot be compared"
            )
    order = list(NAMES)
    return sorted(found, key=lambda run: (order.index(run.algorithm) if run.algorithm in order else 99, run.seed))


# ------------------------------------------------------------------------------------------------------------- tables
def share(evaluation: dict[str, Any]) -> str:
    """Successes with their Wilson interval."""
    low, high = wilson_interval(evaluation["successes"], evaluation["problems"])
    return f"{evaluation['successes'] / evaluation['problems']:.3f} [{low:.3f}, {high:.3f}]"


def several(values: Sequence[float | None], form: str = "{:.3f}") -> str:
    """Median and range; a run that never got there counts as the latest, and the number of those that did is added."""
    known = sorted(value for value in values if value is not None)
    ranked = [*known, *[None] * (len(values) - len(known))]
    middle = ranked[(len(ranked) - 1) // 2]
    if middle is None:
        text = "-"
    elif len(known) % 2 == 0 and len(known) == len(values):
        text = form.format(statistics.median(known))
    else:
        text = form.format(middle)
    if len(known) > 1:
        text += f" ({form.format(known[0])} to {form.format(known[-1])})"
    return text if len(known) == len(values) else f"{text}, {len(known)} of {len(values)}"


def grouped(found: Sequence[Trained]) -> dict[str, list[Trained]]:
    """Algorithm -> its runs."""
    return {name: [run for run in found if run.algorithm == name] for name in dict.fromkeys(r.algorithm for r in found)}


def table_of_runs(found: Sequence[Trained], window: int) -> str:
    """A row per run."""
    rows = []
    for run in found:
        reached = [run.reached(threshold, window) for threshold in THRESHOLDS]
        texts = ["-" if x is None else f"{x[0]:,}; {x[1]:,.0f} s" for x in reached]
        mean = f"{run.success.mean():.3f}"
        rows.append(
            [NAMES.get(run.algorithm, run.algorithm), str(run.seed), share(run.before), share(run.after), mean, *texts]
        )
    marks = [f"to {threshold}: responses; seconds" for threshold in THRESHOLDS]
    return markdown_table(["algorithm", "seed", "held out before", "after", "mean over training", *marks], rows)


def table_of_algorithms(found: Sequence[Trained], window: int) -> str:
    """A row per algorithm: at equal responses, at equal seconds, and what an update costs."""
    budget = min(float(run.clock[-1]) for run in found)
    rows = []
    for name, mine in grouped(found).items():
        cells = [
            several([run.after["successes"] / run.after["problems"] for run in mine]),
            several([float(run.success.mean()) for run in mine]),
            several([run.mean_within(budget) for run in mine]),
            several([float(np.median(run.cpu_seconds)) for run in mine], "{:.1f}"),
        ]
        for threshold in THRESHOLDS:
            reached = [run.reached(threshold, window) for run in mine]
            cells += [several([None if x is None else x[index] for x in reached], "{:,.0f}") for index in (0, 1)]
        rows.append([NAMES.get(name, name), str(len(mine)), *cells])
    marks = [f"{what} to {threshold}" for threshold in THRESHOLDS for what in ("responses", "seconds")]
    equal = [f"mean over {found[0].responses:,} responses", f"mean over {budget:,.0f} s", "seconds per update"]
    return markdown_table(["algorithm", "seeds", "held out after", *equal, *marks], rows)


def table_of_peaks(found: Sequence[Trained], window: int, against: str = "grpo") -> str:
    """A row per run whose seed GRPO has too: when it reached GRPO's peak, and how many times earlier than GRPO."""
    rows = []
    baselines = {run.seed: run for run in found if run.algorithm == against}
    for run in found:
        other = baselines.get(run.seed)
        if other is None or run is other or window > len(other.success):
            continue
        peak = float(np.nanmax(other.means(window)))
        theirs, ours = other.reached(peak, window), run.reached(peak, window)
        assert theirs is not None  # it is its own peak
        ratio = ["never", "-"] if ours is None else [f"{ours[0]:,}; {ours[1]:,.0f} s", f"{theirs[1] / ours[1]:.2f}"]
        times = "-" if ours is None else f"{theirs[0] / ours[0]:.2f}"
        rows.append([NAMES.get(run.algorithm, run.algorithm), str(run.seed), f"{peak:.3f}",
                     f"{theirs[0]:,}; {theirs[1]:,.0f} s", ratio[0], times, ratio[1]])  # fmt: skip
    if not rows:
        return ""
    titles = ["algorithm", "seed", "GRPO's peak", "GRPO reaches it", "this reaches it", "times fewer responses"]
    return markdown_table([*titles, "times fewer seconds"], rows)


# ------------------------------------------------------------------------------------------------------------ picture
def draw(found: Sequence[Trained], window: int, file: Path) -> None:
    """Success against responses and against seconds: a thin line per run, a thick one for the mean over seeds.

    The x of a thick line at each update is the mean over the seeds, too.
    """
    extras.require("plots", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), dpi=150, layout="constrained", sharey=True)
    for i, (name, mine) in enumerate(grouped(found).items()):
        ys = [run.means(window)[window - 1 :] for run in mine]
        for axes, by_seconds in zip(panels, (False, True), strict=True):
            xs = []
            for run in mine:
                at = np.arange(1, len(run.success) + 1) * run.responses / len(run.success)
                xs.append((run.clock if by_seconds else at)[window - 1 :])
            for x, y in zip(xs, ys, strict=True):
                axes.plot(x, y, color=f"C{i}", alpha=0.35, linewidth=0.8)
            n = min(map(len, ys))
            x, y = (np.mean([line[:n] for line in lines], axis=0) for lines in (xs, ys))
            runs_of = "1 seed" if len(mine) == 1 else f"mean of {len(mine)} seeds"
            axes.plot(x, y, color=f"C{i}", linewidth=2, label=f"{NAMES.get(name, name)} ({runs_of})")
    panels[0].set(xlabel="responses", ylabel=f"success, mean of {window} updates", ylim=(0, 1))
    panels[1].set(xlabel="seconds")
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    with checkpoints.writing(file):
        figure.savefig(file)
    plt.close(figure)


def main(args: Args) -> None:
    found = read(args.results)
    for run in found:
        if args.window > len(run.success):
            raise errors.UserError(
                f"--window must be at most {len(run.success)}, the updates of a run, got {args.window}"
            )
    if args.out is not None:
        checkpoints.write_json(args.out, {"runs": [as_json(run) for run in found], **runs.versions()})
    if args.figure is not None:
        draw(found, args.window, args.figure)
    print(table_of_runs(found, args.window))
    print(f"\nMedian over seeds (smallest to largest):\n\n{table_of_algorithms(found, args.window)}")
    if peaks := table_of_peaks(found, args.window):
        print(f"\nTo GRPO's peak:\n\n{peaks}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
