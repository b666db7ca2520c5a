"""Comparisons that were written down before their runs: a plan in TOML, and one table of all of them.

    title = "Second study: tables"                     # of the page; may be left out
    [sets]                                             # name of a set: tasks, each with the name of its starting policies
    rare = ["sppo/SparseMountainCar-v0 0.03"]

    [[comparison]]                                     # one row of the table per task of these sets
    a = "ppo-norm"
    b = "ppo"
    sets = ["rare"]

    [[explored]]                                       # written after the runs: a table of its own
    a = "ppo-standard, gamma=1,gae-lambda=1"           # algorithm, setting: as `--settings` of scripts/benchmark.py
    b = "ppo-standard"
    sets = ["rare"]

The difference is a - b, of the mean success over training (`StudyRun.area`). Holm's correction is over all rows of a table
that have runs on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sppo_control.errors import UserError
from sppo_control.markdown import markdown_table
from sppo_control.study import variants
from sppo_control.study.grids import read_toml
from sppo_control.study.results import StudyRun
from sppo_control.study.statistics import difference, estimate, holm, interval, p_value, smoothed, summary

Cell = tuple[str, str]
"""A task and the name of its starting policies."""


@dataclass(frozen=True)
class Comparison:
    """Algorithm a against algorithm b on some tasks. Both are keys of `Arms`: "algorithm" or "algorithm, setting"."""

    a: str
    b: str
    sets: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What was registered."""

    sets: Mapping[str, tuple[Cell, ...]]
    comparisons: tuple[Comparison, ...]
    """written down before the runs"""
    explored: tuple[Comparison, ...] = ()
    """thought of after the runs"""
    title: str = "Comparisons"
    """of the page that has their tables"""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All tasks with their starts, each once."""
        return tuple(dict.fromkeys(cell for cells in self.sets.values() for cell in cells))


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: there is no such file, it is no TOML, or an entry is missing, unknown or of another type. The message
            names the file and the entry.
    """
    content = read_toml(path, "plan")
    title = content.pop("title", Plan.title)
    if not isinstance(title, str):
        raise UserError(f'{path}: title must be text, such as title = "My study", got {title!r}')
    sets, kinds = content.get("sets"), {name: content.get(name, []) for name in ("comparison", "explored")}
    lists = all(isinstance(rows, list) for rows in kinds.values())
    if set(content) - {"sets", *kinds} or not isinstance(sets, dict) or not lists or not any(kinds.values()):
        raise UserError(
            f"the plan {path} must have [sets], and [[comparison]], [[explored]] or both, and nothing else but a title"
        )
    found: dict[str, tuple[Cell, ...]] = {}
    for name, texts in sets.items():
        if not _texts(texts) or any(len(text.split()) != 2 for text in texts):
            raise UserError(
                f'{path}, sets, {name}: must be a list of "task starts", such as "sppo/SparseHopper-v0 0.03"'
            )
        found[name] = tuple((text.split()[0], text.split()[1]) for text in texts)
    comparisons, explored = (
        tuple(_comparison(f"{path}, {kind} {i}", row, found) for i, row in enumerate(rows, start=1))
        for kind, rows in kinds.items()
    )
    return Plan(found, comparisons, explored, title)


def _comparison(where: str, row: Any, sets: Mapping[str, tuple[Cell, ...]]) -> Comparison:
    if not isinstance(row, dict) or set(row) != {"a", "b", "sets"} or not _texts(row["sets"]):
        raise UserError(f'{where}: must have a = "algorithm", b = "algorithm" and sets = ["name"], and nothing else')
    for side in ("a", "b"):
        algorithm = row[side].partition(", ")[0] if isinstance(row[side], str) else None
        if algorithm not in variants.VARIANTS:
            raise UserError(
                f"{where}: {side} must be of {', '.join(variants.VARIANTS)}, and may go on with a comma, a space and a "
                f"setting; got {row[side]!r}"
            )
    if unknown := [name for name in row["sets"] if name not in sets]:
        raise UserError(f"{where}: sets has {', '.join(unknown)}; there are {', '.join(sets)}")
    return Comparison(row["a"], row["b"], tuple(row["sets"]))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def collapsed(run: StudyRun) -> bool:
    """Whether its final success is below half of the best success that its smoothed curve had."""
    return bool(run.after < 0.5 * smoothed(run, "episodes")[1].max())


Arms = Mapping[tuple[str, str, str], Sequence[StudyRun]]
"""Runs by task, starts and algorithm. Runs with a setting are under "algorithm, setting"."""


def table_of_comparisons(comparisons: Sequence[Comparison], plan: Plan, arms: Arms) -> str:
    """All these comparisons, in their order. Those without runs on both sides are shown as missing.

    Args:
        comparisons: the registered ones of the plan, or the explored ones.
        plan: its sets are the tasks.
        arms: the runs.
    """
    rows: list[list[str]] = []
    p: list[float] = []
    for names, keys in _comparisons(comparisons, plan):
        sides = [arms.get(key, ()) for key in keys]
        if all(sides):
            a, b = ([run.area for run in side] for side in sides)
            counts = [sum(map(collapsed, side)) for side in sides]
            found = [estimate(difference(a, b), interval(difference, a, b), "+"), f"{counts[0]}, {counts[1]}"]
            p.append(p_value(a, b))
        else:
            found = ["not run", "-"]
            p.append(np.nan)
        rows.append([*names, _seeds(sides), *found])
    for row, raw, corrected in zip(rows, p, holm(p), strict=True):
        row.append(f"{raw:.4f} ({corrected:.4f})" if np.isfinite(raw) else "-")
    head = ("", "a - b", "task (starts)", "seeds: a, b", "average success: difference", "collapsed: a, b", "p (Holm)")
    return markdown_table(head, rows)


def table_of_agreement(plan: Plan, arms: Arms, others: Arms) -> str:
    """Whether the differences of some runs fall into the intervals of other runs.

    - "yes": the difference of `arms` lies in the 95 % interval of `others`.
    - "overlap": it does not, but the two intervals overlap.
    - "no": neither. A difference of single seeds has no interval, so it is "yes" or "no".

    An interval says where the true difference is. The estimate of other seeds has noise of its own, so fewer than 95 % are
    "yes" even if nothing but the seeds differs.

    Args:
        plan: what was registered.
        arms: the runs whose differences are asked about.
        others: the runs whose intervals are asked.

    Returns:
        A sentence with the counts, and a table with a row per comparison that has runs on both sides, here and there.

    Raises:
        UserError: there is no such comparison. `others` must have two seeds or more per side.
    """
    rows: list[list[str]] = []
    for names, keys in _comparisons(plan.comparisons, plan):
        groups = [[of.get(key, ()) for key in keys] for of in (arms, others)]
        if not all(groups[0]) or min(map(len, groups[1])) < 2:
            continue
        here, there = ([[run.area for run in side] for side in sides] for sides in groups)
        own, ends = interval(difference, *here), interval(difference, *there)
        if ends[0] <= difference(*here) <= ends[1]:
            verdict = "yes"
        else:
            verdict = "overlap" if own[0] <= ends[1] and ends[0] <= own[1] else "no"  # NaN, of one seed: no
        found = [estimate(difference(*areas), both, "+") for areas, both in ((here, own), (there, ends))]
        rows.append([*names, _seeds(groups[0]), found[0], _seeds(groups[1]), found[1], verdict])
    if not rows:
        raise UserError(
            "no comparison of the plan has runs of both algorithms here and two seeds of both there; train the algorithms "
            "that the plan names"
        )
    counts = {verdict: sum(row[-1] == verdict for row in rows) for verdict in ("yes", "overlap", "no")}
    sentence = (
        f"{len(rows)} differences. In the interval of the other runs: {counts['yes']}. Not, but the intervals overlap: "
        f"{counts['overlap']}. Neither: {counts['no']}."
    )
    head = (
        "",
        "a - b",
        "task (starts)",
        "seeds: a, b",
        "difference",
        "others' seeds",
        "others' difference",
        "in their interval",
    )
    return f"{sentence}\n\n{markdown_table(head, rows)}"


def _comparisons(
    comparisons: Sequence[Comparison], plan: Plan
) -> Iterator[tuple[list[str], list[tuple[str, str, str]]]]:
    """Each comparison on each of its tasks: the first three columns of its row, and the keys of its two arms."""
    for number, comparison in enumerate(comparisons, start=1):
        for name in comparison.sets:
            for cell in plan.sets[name]:
                row = [str(number), f"{comparison.a} - {comparison.b}", short(*cell)]
                yield row, [(*cell, comparison.a), (*cell, comparison.b)]


def _seeds(sides: Sequence[Sequence[StudyRun]]) -> str:
    return ", ".join(str(len(side)) for side in sides)


def table_of_arms(plan: Plan, arms: Arms) -> str:
    """Success of each algorithm on each task of the plan: average over training, final, and how many runs collapsed."""
    rows = []
    for task, starts in plan.cells:
        here = {algorithm: runs for (t, s, algorithm), runs in arms.items() if (t, s) == (task, starts) and runs}
        for algorithm in variants.in_order(here):
            runs = here[algorithm]
            rows.append([
                short(task, starts), algorithm, str(len(runs)), f"{np.mean([run.before for run in runs]):.3f}",
                summary(run.area for run in runs), summary(run.after for run in runs), str(sum(map(collapsed, runs))),
            ])  # fmt: skip
    head = ("task (starts)", "algorithm", "seeds", "before", "average success", "final success", "collapsed")
    return markdown_table(head, rows)


def table_of_collapses(comparisons: Sequence[Comparison], plan: Plan, arms: Arms) -> str:
    """Collapsed runs of each of these comparisons, over all tasks of a set together, with Fisher's exact test."""
    rows = []
    for number, comparison in enumerate(comparisons, start=1):
        for name in comparison.sets:
            counts = []
            for algorithm in (comparison.a, comparison.b):
                runs = [run for task, starts in plan.sets[name] for run in arms.get((task, starts, algorithm), ())]
                counts.append((sum(map(collapsed, runs)), len(runs)))
            if all(total for _, total in counts):
                p = stats.fisher_exact([[bad, total - bad] for bad, total in counts]).pvalue
                texts = [f"{bad} of {total}" for bad, total in counts]
                rows.append([str(number), f"{comparison.a} - {comparison.b}", name, *texts, f"{p:.4f}"])
    return markdown_table(("", "a - b", "set", "a", "b", "p"), rows)


def table_of_ablation(arms: Arms, task: str, starts: str) -> str:
    """What makes a run collapse: normalised advantages, uniform batches and Adam, each with and without.

    Args:
        arms: the runs. Those of ppo and sppo count, also with -norm, -skip and with settings.
        task: its runs are counted.
        starts: name of its starting policies.

    Returns:
        Per row an algorithm, whether advantages are normalised, and the optimiser; then runs whose final success is below
        0.5, with and without uniform batches.
    """
    counts: dict[tuple[str, str, str], dict[bool, list[int]]] = {}
    for (env_id, name, arm), runs in arms.items():
        algorithm, _, change = arm.partition(", ")[0].partition("-")
        if (env_id, name) != (task, starts) or algorithm not in ("ppo", "sppo") or change not in ("", "norm", "skip"):
            continue
        for run in runs:
            normalised = "no" if run.arguments["norm_adv"] == "none" else "yes"
            kind = (algorithm, normalised, "momentum" if run.arguments["adam_eps"] >= 1 else "Adam")
            cell = counts.setdefault(kind, {}).setdefault(run.arguments["skip_uniform_batches"], [0, 0])
            cell[0] += run.after < 0.5
            cell[1] += 1
    rows = [
        [*kind, *(f"{cell[0]} of {cell[1]}" for cell in (of.get(skip, [0, 0]) for skip in (False, True)))]
        for kind, of in sorted(counts.items())
    ]
    return markdown_table(("algorithm", "normalised", "optimiser", "all batches", "no uniform batches"), rows)


def short(task: str, starts: str) -> str:
    """sppo/SparseHopper-v0 and 0.03: SparseHopper (0.03)."""
    return f"{task.removeprefix('sppo/').removesuffix('-v0')} ({starts})"
