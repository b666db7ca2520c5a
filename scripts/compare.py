"""Compare algorithms as a plan says that was written before the runs: one table with all tests.

    python scripts/compare.py --plan results/plan.toml --results results/second.parquet --out docs/figures/second.md

sppo_control/study/registered.py says how to write a plan, and sppo_control/study/statistics.py defines the statistics.
To see whether other seeds fall into the same intervals:

    python scripts/benchmark.py --grid results/grids/second.toml --seeds 31 32 33 --out mine.parquet
    python scripts/compare.py --results mine.parquet --out mine.md
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sppo_control import cli
from sppo_control.checkpoints import writing
from sppo_control.outputs import File

with cli.one_line_errors():
    from sppo_control.study import registered, variants
    from sppo_control.study.figures import arms_of_plan, plt
    from sppo_control.study.results import StudyRun, read_runs, read_table


@dataclass
class Args:
    results: tuple[Path, ...]
    """results of scripts/benchmark.py (.parquet)"""
    plan: Path = Path("results/plan.toml")
    """the registered comparisons"""
    out: Annotated[Path, File(".md", new_folder=True)] = Path("docs/figures/second.md")
    """Markdown file to write; the picture gets the same name and .png"""
    ablation: str = "sppo/SparseMountainCar-v0 0.03"
    """task and starts whose collapses are counted by normalisation, uniform batches and optimiser"""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("--results is empty: name a file that scripts/benchmark.py wrote")
        if odd := [str(path) for path in self.results if path.suffix != ".parquet"]:
            raise ValueError(f"--results must end in .parquet, got {', '.join(odd)}")
        if len(self.ablation.split()) != 2:
            raise ValueError(
                f'--ablation must be "task starts", such as "sppo/SparseHopper-v0 0.03", got {self.ablation!r}'
            )


def read_arms(paths: Sequence[Path]) -> tuple[dict[tuple[str, str, str], list[StudyRun]], list[str]]:
    """Runs by task, starts and algorithm with its setting, and a line about each file."""
    arms: dict[tuple[str, str, str], list[StudyRun]] = {}
    lines: list[str] = []
    for starts in sorted({str(name) for path in paths for name in read_table(path)["starts"].unique()}):
        runs, lines = read_runs(paths, starts)
        for run in runs:
            name = f"{run.algorithm}, {run.setting}" if run.setting else run.algorithm
            arms.setdefault((run.env_id, starts, name), []).append(run)
    return arms, lines


def main(args: Args) -> None:
    arms, lines = read_arms(args.results)
    plan = registered.read_plan(args.plan)
    words = ["python", "scripts/compare.py", "--results", *map(str, args.results), "--plan", str(args.plan)]
    words += ["--out", str(args.out)]
    task, starts = args.ablation.split()
    sections = {
        "Registered comparisons": registered.table_of_comparisons(plan, arms),
        "Collapsed runs": registered.table_of_collapses(plan, arms),
        f"Runs that end below 0.5 on {registered.short(task, starts)}": registered.table_of_ablation(
            arms, task, starts
        ),
        "All arms": registered.table_of_arms(plan, arms),
    }
    text = "# Second study: tables\n\nMade by\n\n    " + shlex.join(words) + "\n\n"
    text += "".join(f"- {line}\n" for line in lines) + "\n"
    text += "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items()) + "\n"
    with writing(args.out):
        args.out.write_text(text)
    draw(plan, arms, args.out.with_suffix(".png"))
    print(text)


def draw(plan: registered.Plan, arms: registered.Arms, out: Path) -> None:
    """A panel per task that has runs; arms with a setting are left out."""
    tasks = {
        registered.short(*cell): {
            name: arms[*cell, name] for name in variants.VARIANTS if arms.get((*cell, name))
        }
        for cell in plan.cells
    }  # fmt: skip
    if tasks := {title: here for title, here in tasks.items() if here}:
        figure = arms_of_plan(tasks, {name: variant.look for name, variant in variants.VARIANTS.items()})
        with writing(out):
            figure.savefig(out, dpi=130)
        plt.close(figure)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
