"""Compare algorithms as a plan says that was written before the runs: one table with all tests.

    python scripts/compare.py --plan results/plan.toml --results results/second.parquet --out docs/figures/second.md

sppo_control/study/registered.py says how to write a plan, and sppo_control/study/statistics.py defines the statistics.
To see whether other seeds fall into the same intervals:

    python scripts/benchmark.py --grid results/grids/second.toml --seeds 31 32 33 --out mine.parquet
    python scripts/compare.py --results mine.parquet --against results/second.parquet --out mine.md
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sppo_control import cli, limits
from sppo_control.checkpoints import writing
from sppo_control.outputs import File

with cli.one_line_errors():
    from sppo_control.study import registered, variants
    from sppo_control.study.figures import arms_of_plan, plt
    from sppo_control.study.results import StudyRun, check_seeds, read_runs, read_table


@dataclass
class Args:
    results: tuple[Path, ...]
    """results of scripts/benchmark.py (.parquet)"""
    plan: Path = Path("results/plan.toml")
    """the registered comparisons"""
    seeds: tuple[int, ...] = ()
    """only the runs of --results with these seeds; none means all"""
    against: Path | None = None
    """other results (.parquet): a table first says which of the differences fall into the intervals of these. Runs that
    --results has too are left out of them, so no run is compared with itself."""
    out: Annotated[Path, File(".md", new_folder=True)] = Path("docs/figures/second.md")
    """Markdown file to write; the picture gets the same name and .png"""
    ablation: str = "sppo/SparseMountainCar-v0 0.03"
    """task and starts whose collapses are counted by normalisation, uniform batches and optimiser, if the plan has it"""
    picture: bool = True
    """draw the algorithms that run without a setting, a panel per task of the plan"""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("--results is empty: name a file that scripts/benchmark.py wrote")
        limits.check_limits(self)
        for flag, paths in (("--results", self.results), ("--against", (self.against,) if self.against else ())):
            if odd := [str(path) for path in paths if path.suffix != ".parquet"]:
                raise ValueError(f"{flag} must end in .parquet, got {', '.join(odd)}")
        if len(self.ablation.split()) != 2:
            raise ValueError(
                f'--ablation must be "task starts", such as "sppo/SparseHopper-v0 0.03", got {self.ablation!r}'
            )


def read_arms(paths: Sequence[Path]) -> tuple[registered.Arms, list[str]]:
    """All runs, and a line about each file."""
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
    others = None if args.against is None else read_arms([args.against])
    plan = registered.read_plan(args.plan)
    if args.seeds:
        check_seeds(args.seeds, [run.seed for runs in arms.values() for run in runs])
        arms = {key: [run for run in runs if run.seed in args.seeds] for key, runs in arms.items()}
        lines.append(f"of these only the seeds {', '.join(map(str, args.seeds))}")
    words = ["python", "scripts/compare.py", "--results", *map(str, args.results), "--plan", str(args.plan)]
    words += ["--out", str(args.out)]
    if args.seeds:
        words += ["--seeds", *map(str, args.seeds)]
    if not args.picture:
        words += ["--no-picture"]
    task, starts = args.ablation.split()
    sections = {}
    if others is not None:
        title, text = against(plan, arms, *others)
        sections[title] = other_starts(args.results, args.against) + text
        words += ["--against", str(args.against)]
    for name, comparisons in (("Registered", plan.comparisons), ("Explored", plan.explored)):
        if comparisons:
            collapses = "Collapsed runs" if name == "Registered" else "Collapsed runs, explored"
            sections[f"{name} comparisons"] = registered.table_of_comparisons(comparisons, plan, arms)
            sections[collapses] = registered.table_of_collapses(comparisons, plan, arms)
    if (task, starts) in plan.cells:
        title = f"Runs that end below 0.5 on {registered.short(task, starts)}"
        sections[title] = registered.table_of_ablation(arms, task, starts)
    sections["All arms"] = registered.table_of_arms(plan, arms)
    text = f"# {plan.title}\n\nMade by\n\n    " + shlex.join(words) + "\n\n"
    text += "".join(f"- {line}\n" for line in lines) + "\n"
    text += "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items()) + "\n"
    with writing(args.out):
        args.out.write_text(text)
    if args.picture:
        draw(plan, arms, args.out.with_suffix(".png"))
    print(text)


def against(
    plan: registered.Plan, arms: registered.Arms, others: registered.Arms, lines: Sequence[str]
) -> tuple[str, str]:
    """The section about the intervals of the runs of another file: its title and its text."""
    own = {key: {run.seed for run in runs} for key, runs in arms.items()}
    rest = {key: [run for run in runs if run.seed not in own.get(key, ())] for key, runs in others.items()}
    left_out = sum(map(len, others.values())) - sum(map(len, rest.values()))
    note = f" {left_out} of its runs are left out, because they are on both sides." if left_out else ""
    text = registered.table_of_agreement(plan, arms, rest)
    return "Do the differences fall into the intervals of other seeds?", f"The others are {lines[0]}.{note}\n\n{text}"


def other_starts(results: Sequence[Path], path: Path | None) -> str:
    """A warning about tasks whose starting policies have the same name on both sides but are not the same; "" if none."""
    found: dict[tuple[str, str], set[str]] = {}
    for table in (read_table(file) for file in (*results, path) if file is not None):
        if "start_sha256" in table:  # older files have only the folder's name
            known = table[table["start_sha256"] != ""]
            for task, starts, digest in zip(known["env_id"], known["starts"], known["start_sha256"], strict=True):
                found.setdefault((task, starts), set()).add(digest)
    if not (differ := [registered.short(*cell) for cell, digests in sorted(found.items()) if len(digests) > 1]):
        return ""
    return f"WARNING: the starting policies of {', '.join(differ)} are others here than there.\n\n"


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
            figure.savefig(out, dpi=130, bbox_inches="tight")
        plt.close(figure)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
