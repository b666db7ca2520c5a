"""Calibration of V(s_0) on the control tasks, beside what a perfect V could reach: table and figure of probe.py's files.

A perfect V is the success probability of each context. It is not known, so the measured rate takes its place. Even it has a
Brier score above 0, because outcomes are chance, and a rank correlation below 1 with measured rates.

    python scripts/critic_control.py                       # of results/calibration.json; prints the table, draws the figure
    python scripts/critic_control.py --results results/calibration_second.json --curves results/critic_second.parquet \\
        --out docs/figures/critic_training.png             # more points in time, and the comparisons of results/plan.md

With three points in time or more, the figure has lines over training.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from sppo_control import cli, core, errors
from sppo_control.markdown import markdown_table
from sppo_control.outputs import File

with cli.one_line_errors():
    from sppo_control.study.results import Study, StudyRun, read_runs, short, stages
    from sppo_control.study.statistics import difference, estimate, holm, interval, p_value, spearman_ceiling

ROOT = Path(__file__).resolve().parents[1]
HEAD = ("task", "algorithm", "updates", "seeds", "Spearman", "perfect V", "Brier", "perfect V", "base rate", "share",
        "ECE", "perfect V", "contexts with a rate in (0.05, 0.95)")  # fmt: skip


@dataclass
class Args:
    results: tuple[Path, ...] = (ROOT / "results" / "calibration.json",)
    """files of scripts/probe.py --what calibration"""
    out: Annotated[Path, File(".png")] = ROOT / "docs" / "figures" / "critic_control.png"
    """the figure"""
    curves: Path | None = None
    """results of scripts/benchmark.py for the same runs; then the registered comparisons with SPPO are printed too"""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("--results is empty; name a file of scripts/probe.py --what calibration")
        if odd := [str(path) for path in self.results if path.suffix != ".json"]:
            raise ValueError(f"--results must end in .json, got {', '.join(odd)}")
        if self.curves is not None and self.curves.suffix != ".parquet":
            raise ValueError(f"--curves must end in .parquet, got {self.curves}")


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """What one critic reached, and what a perfect V would reach on the same contexts.

    Args:
        row: of a file of probe.py: v0 and rate of each context, episodes per context.

    Returns:
        spearman, brier, ece; best_spearman, best_brier, best_ece; base, the Brier score of the mean rate; share, how
        far brier has come from base (0) to best_brier (1), NaN where the two are equal; open, the share of contexts whose
        rate is between 0.05 and 0.95.
    """
    p, n = np.array(row["rate"], float), int(row["episodes"])
    rng, mean = np.random.default_rng(0), float(p.mean())
    # The rate of n episodes varies itself: on average p (1 - p) comes out too small by 1 - 1 / n.
    noise = float((p * (1 - p)).mean()) * n / (n - 1) if n > 1 else float("nan")
    again = [torch.from_numpy(rng.binomial(n, p) / n) for _ in range(50)]
    errors_ = [float(core.expected_calibration_error(torch.from_numpy(p), rate)) for rate in again]
    spearman = float("nan") if row["spearman"] is None else float(row["spearman"])
    base, brier = mean * (1 - mean), float(row["brier"])
    share = (base - brier) / (base - noise) if base > noise else float("nan")
    return {
        "spearman": spearman, "best_spearman": spearman_ceiling(list(p), n), "brier": brier,
        "best_brier": noise, "base": base, "share": share, "ece": float(row["ece"]), "best_ece": float(np.mean(errors_)),
        "open": float(((p > 0.05) & (p < 0.95)).mean()),
    }  # fmt: skip


Stage = tuple[str, str, str, list[dict[str, float]]]


def groups(rows: Sequence[dict[str, Any]]) -> list[Stage]:
    """(task, algorithm, updates, numbers of each seed) for each point in time."""
    found = []
    for task, algorithm in dict.fromkeys((row["env_id"], row["algorithm"]) for row in rows):
        mine = [row for row in rows if (row["env_id"], row["algorithm"]) == (task, algorithm)]
        for stage in stages(mine):
            updates = sorted({row["update"] for row in stage})
            words = str(updates[0]) if len(updates) == 1 else f"{updates[0]} to {updates[-1]}"
            found.append((short(task), algorithm, words, [numbers(row) for row in stage]))
    return found


def mean(seeds: Sequence[dict[str, float]], name: str) -> float:
    """Mean over the seeds that have the number; NaN if none has."""
    known = [x[name] for x in seeds if np.isfinite(x[name])]
    return float(np.mean(known)) if known else float("nan")


def table(found: Sequence[Stage]) -> str:
    """Means over seeds as Markdown."""
    names = ("spearman", "best_spearman", "brier", "best_brier", "base", "share", "ece", "best_ece", "open")
    lines = [
        [task, algorithm, updates, str(len(seeds)), *(f"{mean(seeds, name):.3f}" for name in names)]
        for task, algorithm, updates, seeds in found
    ]
    return markdown_table(HEAD, lines)


def registered(algorithm: str) -> tuple[int, ...]:
    """After how many updates results/plan.md compares an arm with SPPO."""
    if "critic-warmup-batches" in algorithm:
        return (5, 20, 60)
    return (60,) if algorithm.startswith("sppo, ") else (20, 60)


def mean_success(runs: Sequence[StudyRun], task: str, algorithm: str) -> list[float]:
    """Mean success over training of each run of an arm, which probe.py names by how its critic was trained."""
    return [
        run.area
        for run in runs
        if short(run.env_id) == task
        and ", ".join([run.algorithm, *(part for part in run.setting.split(",") if part.startswith("critic-"))])
        == algorithm
    ]


def comparisons(found: Sequence[Stage], runs: Sequence[StudyRun]) -> str:
    """Each arm minus SPPO as Markdown: difference of interquartile means, its interval, the exact test, Holm's correction.

    Shares are compared for all arms, mean success for SPPO's own settings.

    Raises:
        UserError: an arm has no runs among the curves.
    """
    stages_ = {(task, algorithm, updates): seeds for task, algorithm, updates, seeds in found}
    rows: list[list[str]] = []
    p: list[float] = []
    for algorithm, task in itertools.product(dict.fromkeys(s[1] for s in found), dict.fromkeys(s[0] for s in found)):
        moments = [u for u in registered(algorithm) if (task, algorithm, str(u)) in stages_]
        if algorithm == "sppo" or not moments:
            continue
        pairs: list[tuple[str, list[float], list[float]]] = []
        for updates in moments:
            a, b = ([x["share"] for x in stages_.get((task, name, str(updates)), [])] for name in (algorithm, "sppo"))
            pairs.append((f"share after {updates}", a, b))
        if algorithm.startswith("sppo, "):
            a, b = (mean_success(runs, task, name) for name in (algorithm, "sppo"))
            pairs.append(("mean success", a, b))
        for what, a, b in pairs:
            if not a or not b:
                raise errors.UserError(
                    f"{what} of {algorithm} and sppo on {task}: there are {len(a)} and {len(b)} runs"
                )
            rows.append([
                task, f"{algorithm} - sppo", what, f"{len(a)}, {len(b)}", f"{np.mean(a):.3f}, {np.mean(b):.3f}",
                estimate(difference(a, b), interval(difference, a, b), "+"),
            ])  # fmt: skip
            p.append(p_value(a, b))
    for line, raw, corrected in zip(rows, p, holm(p), strict=True):
        line.append(f"{raw:.4f} ({corrected:.4f})")
    return markdown_table(("task", "a - b", "what", "seeds: a, b", "means: a, b", "difference", "p (Holm)"), rows)


def draw_training(found: Sequence[Stage], path: Path) -> None:
    """Spearman and the share over training: a line per arm (mean), a dot per seed. Dashed: perfect V of SPPO's policies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks, names = (list(dict.fromkeys(stage[i] for stage in found)) for i in (0, 1))
    figure, panels = plt.subplots(
        2, len(tasks), figsize=(1 + 4.6 * len(tasks), 6), dpi=130, layout="constrained", sharey="row", squeeze=False
    )
    colours = ("#2e6f95", "#d1495b", "#66a182", "#edae49", "#7f3c8d", "#8c564b")
    for column, task in enumerate(tasks):
        for algorithm, colour in zip(names, itertools.cycle(colours), strict=False):
            mine = [(int(stage[2].split()[-1]), stage[3]) for stage in found if stage[:2] == (task, algorithm)]
            for axes, name in zip(panels[:, column], ("spearman", "share"), strict=True):
                for x, seeds in mine:
                    axes.plot(
                        [x] * len(seeds), [seed[name] for seed in seeds], ".", color=colour, alpha=0.4, markersize=4
                    )
                axes.plot([x for x, _ in mine], [mean(s, name) for _, s in mine], color=colour, label=algorithm)
            if algorithm == "sppo":
                best = [mean(seeds, "best_spearman") for _, seeds in mine]
                panels[0, column].plot(
                    [x for x, _ in mine], best, "--", color=colour, label="a perfect V of sppo's policies"
                )
        panels[0, column].set(title=task)
        panels[1, column].axhline(1, color="0.4", linewidth=0.8, linestyle=":")
        panels[1, column].axhline(0, color="0.4", linewidth=0.8, linestyle=":")
        panels[1, column].set(xlabel="updates (of 64 episodes)", ylim=(-0.6, 1.05))
        for axes in panels[:, column]:
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set(ylabel="Spearman, V(s_0) and success rate")
    panels[1, 0].set(ylabel="Brier: 0 base rate, 1 a perfect V")
    panels[0, -1].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def draw(found: Sequence[Stage], path: Path) -> None:
    """Spearman and Brier of each seed at each point in time; short lines are a perfect V, dotted ones the base rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(task for task, *_ in found))
    figure, panels = plt.subplots(
        2, len(tasks), figsize=(1 + 4 * len(tasks), 5.4), dpi=130, layout="constrained", sharey="row", squeeze=False
    )
    for column, task in enumerate(tasks):
        mine = [stage for stage in found if stage[0] == task]
        for x, (_, _, _, seeds) in enumerate(mine):
            for axes, name, best in zip(
                panels[:, column], ("spearman", "brier"), ("best_spearman", "best_brier"), strict=True
            ):
                axes.plot(
                    [x] * len(seeds), [seed[name] for seed in seeds], "o", color="#2e6f95", alpha=0.6, markersize=5
                )
                axes.plot([x - 0.3, x + 0.3], [mean(seeds, best)] * 2, color="#d1495b", linewidth=2)
            panels[1, column].plot([x - 0.3, x + 0.3], [mean(seeds, "base")] * 2, ":", color="0.4")
        panels[0, column].set(title=task)
        panels[1, column].set_xticks(
            range(len(mine)), [f"{name}\n{updates}" for _, name, updates, _ in mine], fontsize=7
        )
        panels[0, column].set_xticks(range(len(mine)), [""] * len(mine))
        for axes in panels[:, column]:
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set(ylabel="Spearman, V(s_0) and success rate", ylim=(None, 1.0))
    panels[1, 0].set(ylabel="Brier score")
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main(args: Args) -> None:
    study = Study(args.results)
    if not study.calibration:
        raise errors.UserError("--results contain no rows of scripts/probe.py --what calibration")
    found = groups(study.calibration)
    print(table(found))
    if args.curves is not None:
        print("\n" + comparisons(found, read_runs([args.curves])[0]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    many = max(Counter(stage[:2] for stage in found).values()) > 2
    (draw_training if many else draw)(found, args.out)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
