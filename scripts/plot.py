"""Draw the logged curves of runs: one thin line per run, and one thick line for the mean of equal runs.

    pip install -c constraints.txt -e '.[plots]'
    python scripts/plot.py runs/*PrecisionCartPole* --out curve.png
    python scripts/plot.py runs/addition* --out addition.png            # runs of sppo_llm.py and the others

Runs of one script on one task are equal if they differ only in their seeds. The legend names all other arguments in which
runs differ. Folders without a run, and runs without the curve, are left out with a note. docs/metrics.md lists the tags.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sppo_control import checkpoints, cli, errors, extras
from sppo_control.outputs import File

NO_SETTING = cli.RESUMABLE_CHANGES | {"seed", "runs_dir"}
"""Arguments in which equal runs may differ."""


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders"""
    out: Annotated[Path, File(".png", ".svg", ".pdf")] = Path("curve.png")
    """picture to write; its ending decides the format (.png, .svg, .pdf)"""
    tag: str = "charts/success_rate"
    """TensorBoard tag of the curve; docs/metrics.md lists them"""
    smooth: int = 5
    """number of updates in the moving average; at most half of the run, if that is short"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run folder")


class Curve(NamedTuple):
    """The curve of one run."""

    name: str
    """script and task"""
    arguments: dict[str, Any]
    points: npt.NDArray[np.float64]
    """(updates, 2): the columns are steps and values"""

    @property
    def unit(self) -> tuple[str, float]:
        """What the x-axis counts, and its scale."""
        return ("environment steps, millions", 1e6) if "env_id" in self.arguments else ("responses, thousands", 1e3)


def read(folder: Path, tag: str) -> Curve | str:
    """The curve of a run folder, or why there is none."""
    if not (folder / "config.json").is_file():
        return "no run in it: there is no config.json"
    try:
        config = checkpoints.read_config(folder)
        if not isinstance(config.get("script"), str):
            return "a config.json that no training script wrote"
        with checkpoints.naming_file(folder):  # TensorBoard raises what it likes at damaged files
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    except errors.FileError as error:
        return f"no curve that can be read ({error})"
    tags = events.Tags()["scalars"]
    if tag not in tags:
        return f"no curve {tag!r}; it has {', '.join(tags) or 'none at all'}"
    task = config["args"].get("env_id") or folder.resolve().name.split("__")[0]
    points = np.array([(e.step, e.value) for e in events.Scalars(tag)], float)
    return Curve(f"{config['script'].split('_')[0].removesuffix('.py').upper()}, {task}", config["args"], points)


def groups(curves: list[Curve]) -> dict[str, list[Curve]]:
    """Groups of equal runs, named by script, task, and the arguments in which runs of these differ."""
    found: dict[str, list[Curve]] = {}
    for name in sorted({curve.name for curve in curves}, reverse=True):
        same = [curve for curve in curves if curve.name == name]
        common = set.intersection(*(set(curve.arguments) for curve in same)) - NO_SETTING
        differing = sorted(key for key in common if any(c.arguments[key] != same[0].arguments[key] for c in same))
        for curve in same:
            values = (curve.arguments[key] for key in differing)
            words = (" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
            settings = (f"{cli.flag(key)} {word}" for key, word in zip(differing, words, strict=True))
            found.setdefault(", ".join([name, *settings]), []).append(curve)
    return found


def smoothed(points: npt.NDArray[np.float64], window: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps and moving averages of values, (updates - window + 1,) each."""
    window = min(window, max(1, len(points) // 2))
    return points[window - 1 :, 0], np.convolve(points[:, 1], np.ones(window) / window, "valid")


def count(curves: list[Curve]) -> str:
    """How many runs a mean is over, for the legend."""
    seeds = {str(curve.arguments.get("seed")) for curve in curves}
    return "1 run" if len(curves) == 1 else f"{len(curves)} {'seeds' if len(seeds) == len(curves) else 'runs'}, mean"


def main(args: Args) -> None:
    extras.require("plots", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    read_all = {folder: read(folder, args.tag) for folder in args.runs}
    missing = [f"{folder} has {why}" for folder, why in read_all.items() if isinstance(why, str)]
    curves = [curve for curve in read_all.values() if isinstance(curve, Curve)]
    if not curves:
        raise errors.UserError("; ".join(missing))
    for line in missing:
        print(f"note: {line}; it is left out", file=sys.stderr)
    if len(units := {curve.unit for curve in curves}) > 1:
        raise errors.UserError("runs in environments and of language models have no common axis; name one kind")
    ((unit, scale),) = units

    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150, layout="constrained")
    for i, (name, equal) in enumerate(groups(curves).items()):
        lines = [smoothed(curve.points, args.smooth) for curve in equal]
        for steps, values in lines:
            mark = "." if len(steps) == 1 else ""  # a single point has no line
            axes.plot(steps / scale, values, mark + "-", color=f"C{i}", alpha=0.35, linewidth=0.8)
        first, last = max(steps[0] for steps, _ in lines), min(steps[-1] for steps, _ in lines)
        grid = (
            np.linspace(first, last, 200) if first <= last else np.empty(0)
        )  # empty: the runs have no steps in common
        mean = np.mean([np.interp(grid, *line) for line in lines], axis=0)
        axes.plot(grid / scale, mean, color=f"C{i}", linewidth=2, label=f"{name} ({count(equal)})")
    axes.set(xlabel=unit, ylabel=args.tag.split("/")[-1].replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(args.out)
    plt.close(figure)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
