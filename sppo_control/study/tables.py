"""The tables of scripts/report.py, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppo_control.markdown import markdown_table
from sppo_control.study.results import AXES, MEASURES, Arm, Study, StudyRun, separable, short, span, stages
from sppo_control.study.statistics import (
    difference,
    estimate,
    holm,
    informative,
    interval,
    p_value,
    smoothed,
    spearman_ceiling,
    summary,
    time_to,
)


def speed(arm: Sequence[StudyRun], threshold: float) -> str:
    """Median episodes / steps / seconds to a success rate, and how many runs reach it. The others count as infinite."""
    times = {axis: [time_to(run, axis, threshold) for run in arm] for axis in AXES}
    reached = f"({np.isfinite(times['steps']).sum()} of {len(arm)})"
    episodes, steps, seconds = (np.median(times[axis]) for axis in AXES)
    if np.isinf(steps):
        return f"never {reached}"
    return f"{episodes:,.0f} / {steps / 1e6:.3f} M / {seconds:,.1f} {reached}"


def table_of_arms(study: Study) -> str:
    """Each task, algorithm and setting: success, area, how many runs solved it, how soon. The columns: `ARMS`."""
    rows = []
    for (task, algorithm, setting), arm in study.arms.items():
        after, areas = [r.after for r in arm], [r.area for r in arm]
        total = np.median([r.x["seconds"][-1] for r in arm])
        balanced = [r.measures["balanced"] for r in arm if "balanced" in r.measures]
        rows.append([
            short(task), algorithm, setting or "-", str(len(arm)), summary(after),
            summary(balanced) if balanced else "-",
            summary(areas), f"{sum(a >= 0.9 for a in after)} of {len(arm)}",
            f"{sum(smoothed(r, 'steps')[1][1:].min() == 0 for r in arm)} of {len(arm)}",
            speed(arm, 0.8), speed(arm, 0.9), f"{total:,.1f}",
        ])  # fmt: skip
    head = ("task", "algorithm", "setting", "seeds", "final success", "balanced", "area", "solved", "fell to 0",
            "to 0.8: episodes / steps / seconds", "to 0.9: episodes / steps / seconds", "seconds in all")  # fmt: skip
    return markdown_table(head, rows)


def table_of_pairs(study: Study, main: bool) -> str:
    """Each arm against SPPO, and all tasks together. Runs with unequal --total-timesteps are named, not compared.

    Args:
        study: the runs.
        main: compare the arms that represent their algorithms (`Study.main`). False: compare the others.
    """
    rows, p, unequal = [], [], []
    pooled: dict[str, list[tuple[list[StudyRun], ...]]] = {}
    for (task, algorithm, setting), arm in study.arms.items():
        if (study.main(task, algorithm) == (task, algorithm, setting)) != main:
            continue
        other: Arm | None = Arm(task, "sppo", setting)
        if other not in study.arms or other == (task, algorithm, setting):
            other = study.main(task, "sppo")
        if other is None or other == (task, algorithm, setting):
            continue
        sppo = study.arms[other]
        if len({run.budget for run in (*arm, *sppo)}) > 1:
            unequal.append(f"{short(task)} {algorithm} {setting}".strip())
            continue
        cells = []
        for value in (lambda r: r.after, lambda r: r.area):
            a, b = [value(r) for r in arm], [value(r) for r in sppo]
            cells.append(estimate(difference(a, b), interval(difference, a, b), "+"))
            p.append(p_value(a, b))
        seeds = f"{len(arm)}, {len(sppo)}"
        rows.append([short(task), algorithm, setting or "-", other[2] or "-", seeds, f"{arm[0].budget:,}", *cells])
        # Only seeds that both have: otherwise the side with more runs of a hard task would look worse.
        if main and (common := {r.seed for r in arm} & {r.seed for r in sppo}):
            pair = tuple([r for r in side if r.seed in common] for side in (arm, sppo))
            pooled.setdefault(algorithm, []).append(pair)
    corrected = holm(p)
    for i, row in enumerate(rows):
        for j, at in ((2 * i, 7), (2 * i + 1, 9)):
            row.insert(at, f"{p[j]:.4f} ({corrected[j]:.4f})" if np.isfinite(p[j]) else "-")
    for algorithm, pairs in pooled.items():
        if len(pairs) > 1:
            cells = []
            for value in (lambda r: r.after, lambda r: r.area):
                samples = [[value(r) for r in pair[side]] for side in (0, 1) for pair in pairs]
                cells += [estimate(difference(*samples), interval(difference, *samples), "+"), "-"]
            seeds = ", ".join(str(sum(len(pair[side]) for pair in pairs)) for side in (0, 1))
            rows.append([f"all {len(pairs)} tasks", algorithm, "-", "-", seeds, "-", *cells])
    head = ("task", "algorithm", "setting", "SPPO's setting", "seeds: its, SPPO's", "steps", "final success: difference",
            "p (Holm)", "area: difference", "p (Holm)")  # fmt: skip
    note = (
        f"\n\nNot compared with SPPO, because their budgets of steps differ: {'; '.join(unequal)}." if unequal else ""
    )
    return (markdown_table(head, rows) if rows else "None.") + note


def table_of_tasks(study: Study, starts: str) -> str:
    """Which tasks tell algorithms apart, by mean success over training; see `statistics.informative`.

    Args:
        study: the runs from one folder of starting policies. Each algorithm is represented by its main arm.
        starts: the name of that folder.
    """
    rows = []
    for task, arms in study.with_algorithms(study.looks, least=1).items():
        found = informative([[run.area for run in arm] for arm in arms.values()])
        seeds = span(len(arm) for arm in arms.values())
        numbers = [f"{x:.3f}" if np.isfinite(x) else "-" for x in found[:3]]
        rows.append([short(task), starts, str(len(arms)), seeds, *numbers, "yes" if found.yes else "no"])
    head = ("task", "start", "algorithms", "seeds", "spread", "half-width", "ratio", "informative")
    return markdown_table(head, rows)


def table_of_settings(study: Study, starts: str) -> str:
    """The average success of every arm, the mean over its seeds; the largest of each task and algorithm is bold.

    This is how the plans choose settings on tuning seeds (`results/plan.md`).

    Args:
        study: the runs from one folder of starting policies.
        starts: the name of that folder.
    """
    means = {arm: float(np.mean([run.area for run in runs])) for arm, runs in study.arms.items()}
    rows = []
    for arm, runs in study.arms.items():
        rivals = [y for other, y in means.items() if other[:2] == arm[:2]]
        best = len(rivals) > 1 and means[arm] == max(rivals)
        number = f"**{means[arm]:.3f}**" if best else f"{means[arm]:.3f}"
        seeds = ", ".join(str(run.seed) for run in sorted(runs, key=lambda run: run.seed))
        rows.append([short(arm.env_id), starts, arm.algorithm, arm.setting or "-", seeds, number])
    return markdown_table(("task", "start", "algorithm", "setting", "seeds", "average success"), rows)


def table_of_probes(study: Study) -> str:
    """The numbers of fig7 and fig1, for every update in the files."""

    def first(task: str, rows: list[Any]) -> list[str]:
        return [short(task), rows[0]["algorithm"], span(row["update"] for row in rows), str(len(rows))]

    calibration, tails = [], []
    for task, algorithm in dict.fromkeys((row["env_id"], row["algorithm"]) for row in study.calibration):
        for rows in stages(
            [row for row in study.calibration if (row["env_id"], row["algorithm"]) == (task, algorithm)]
        ):
            numbers = [summary(row[name] for row in rows) for name in MEASURES]
            numbers.insert(2, summary(spearman_ceiling(row["rate"], row["episodes"]) for row in rows))
            calibration.append([*first(task, rows), str(rows[0]["contexts"]), *numbers])
    for task, found in study.tails:
        for algorithm in dict.fromkeys(run["algorithm"] for run in found if separable(run)):
            for rows in stages([run for run in found if run["algorithm"] == algorithm and separable(run)]):
                values = np.array([np.interp(MOMENTS, run["successes"]["progress"], run["auc"]) for run in rows])
                tails.append([*first(task, rows), *map(summary, values.T)])
    texts = []
    if calibration:
        names = ("Pearson", "Spearman", "its ceiling", "Brier", "ECE")
        note = (
            "Paper (language model, 200 prompts): Pearson 0.642, Spearman 0.664. Its ceiling: the Spearman coefficient of "
            "a perfect V, whose ranks are random among contexts with equal probability of success."
        )
        table = markdown_table(("task", "algorithm", "update", "seeds", "contexts", *names), calibration)
        texts += ["## Calibration of V(s_0)", note, table]
    if tails:
        texts += [
            "## Tail effect",
            "Probability that V of a success is greater than V of a failure, at several shares of the episode.",
        ]
        texts += [
            markdown_table(["task", "algorithm", "update", "seeds", *(f"at {moment:g}" for moment in MOMENTS)], tails)
        ]
    return "\n\n".join(texts)


MOMENTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def tables(study: Study, command: str) -> str:
    """The whole text of tables.md; `command` is the command that makes it."""
    parts = [HEAD.format(command=command, files="\n".join(f"- {line}" for line in study.lines))]
    if study.arms:
        parts += [ARMS, table_of_arms(study), PAIRS, table_of_pairs(study, main=True)]
        parts += ["Other settings, with a separate Holm correction:", table_of_pairs(study, main=False)]
    return "\n\n".join([*parts, table_of_probes(study)]).strip() + "\n"


HEAD = """# Tables

Made by `{command}` from

{files}

Intervals are 95 % bootstrap intervals of the interquartile mean (IQM) over seeds. They are percentile intervals from 9,999
resamples of the seeds. Each row has the number of seeds. With few seeds the intervals are too narrow. For normal data they
contain the true value in 76 % of cases with 3 seeds, 89 % with 5, 94 % with 10. Definitions:
`sppo_control/study/statistics.py`."""
ARMS = """## Each algorithm

- final success: success rate of the evaluation after training, IQM over seeds
- balanced: share of balanced episodes in the same evaluation (docs/tasks.md), IQM over seeds; a pendulum that spins can
  succeed without balance
- area: mean success during training over all environment steps of the budget, IQM over seeds
- solved: number of seeds with final success of at least 0.9
- fell to 0: number of seeds whose smoothed curve is 0 somewhere, whether it rises again or not
- to 0.8, to 0.9: medians over seeds of the point where the smoothed curve first reaches this rate; a seed that never does
  counts as infinite; in brackets is how many seeds reach it ("never" means that the median is infinite)
- seconds in all: median over seeds of the seconds of training, under the load of the machine during the study"""
PAIRS = """## Against SPPO, at equal environment steps

- difference: IQM of the algorithm minus IQM of SPPO (positive means better than SPPO), with its 95 % bootstrap interval,
  for which the seeds of both are resampled
- all tasks: only seeds that both have; they are resampled within each task
- p: exact two-sided Mann-Whitney test (with ties a permutation test of the ranks); it is at least 0.1 for 3 against 3 seeds
  and at least 0.008 for 5 against 5; in brackets is p after Holm's correction over all tests of this table"""
