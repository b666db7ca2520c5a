"""What results files hold (scripts/benchmark.py, scripts/probe.py), and the statistics that scripts/report.py prints and
draws.

| name          | what                                                                                                  |
| ------------- | ----------------------------------------------------------------------------------------------------- |
| IQM           | interquartile mean over seeds: the lowest and the highest quarter (n / 4 rounded down) left out       |
| interval      | 95 % percentile bootstrap interval, seeds resampled; within each task where tasks are pooled          |
| p             | two-sided Mann-Whitney test, exact; with ties a permutation test of the same ranks (exact up to 9,999 |
|               | permutations, else so many random ones)                                                               |
| smoothed      | a curve's moving mean over 5 of its points, after the success before training at 0                    |
| area          | mean success over all environment steps of the budget (--total-timesteps); no smoothing               |
| time to 0.9   | where the smoothed curve first reaches it, linear between points; infinite where it never does        |

IQM and stratified bootstrap are those of rliable (Agarwal et al., arXiv 2108.13264). Equal input gives equal numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import sppo_envs
from benchmark import ALGORITHMS
from sppo_control.checkpoints import read_json
from sppo_control.errors import UserError

SMOOTH, GRID = 5, 81
"""Points of the moving mean; points of the grid that curves are interpolated on."""
AXES = ("episodes", "steps", "seconds")
KEY = ["env_id", "algorithm", "setting", "seed"]
NUMBERS = [*AXES, "updates", "success_rate", "success_before", "success_after", "eval_episodes", "peak_memory_mib"]
COLUMNS = [*KEY, "starts", *NUMBERS, "commit", "arguments", "measures_after"]
"""What is read of a results file; it may hold more."""
TAIL = ("progress", "mean", "low", "high")
MEASURES = ("pearson", "spearman", "brier", "ece")
JSON_WRITERS = "scripts/probe.py or scripts/speed_llm.py --what addition"
CRITIC = ("critic-steps", "critic-window", "critic-learning-rate")
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Run:
    """One cell of the grid."""

    env_id: str
    algorithm: str
    setting: str
    seed: int
    x: dict[str, Array]
    """episodes, steps and seconds at the points of the curve, (points,) each"""
    success: Array
    """(points,), each over the episodes since the point before"""
    before: float
    after: float
    """success, of evaluations"""
    updates: int
    peak_memory_mib: float
    arguments: dict[str, Any]
    measures: dict[str, float]

    @property
    def budget(self) -> int:
        return self.arguments["total_timesteps"]

    @property
    def area(self) -> float:
        ends = np.minimum(self.x["steps"], self.budget)  # the last update may go past the budget
        return float(np.sum(self.success * np.diff(ends, prepend=0)) / ends[-1])


def read_runs(paths: Sequence[Path], starts: str | None = None) -> tuple[list[Run], list[str]]:
    """All runs of some results files, and a line on each file.

    Args:
        paths: Parquet files that scripts/benchmark.py wrote.
        starts: only runs from these starting policies; needed where there are several.

    Raises:
        UserError: a file is missing, damaged or of another schema, a cell is in two of them, starts are mixed.
    """
    tables, lines = [], []
    for path in paths:
        if not path.is_file():
            raise UserError(f"no results file {path}; scripts/benchmark.py --out {path} makes it")
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise UserError(f"{path} is damaged, or no Parquet file ({error})") from error
        if missing := [c for c in COLUMNS if c not in table]:
            raise UserError(f"{path} was not written by scripts/benchmark.py: no column {', '.join(missing)}")
        numbers = {c: pd.to_numeric(table[c], errors="coerce") for c in NUMBERS}
        if gaps := [c for c in NUMBERS if not np.isfinite(numbers[c]).all()] + [
            c for c in KEY if table[c].isna().any()
        ]:
            raise UserError(f"{path} has missing or impossible values in {', '.join(gaps)}")
        if table.empty:
            raise UserError(f"{path} has no runs")
        cells = table.drop_duplicates([*KEY, "starts"])
        seeds, *rest = (sorted(map(str, cells[c].unique()), key=lambda s: (len(s), s)) for c in ("seed", "starts"))
        rest += [sorted({str(c)[:9] for c in cells["commit"]}), sorted(map(str, cells["eval_episodes"].unique()))]
        lines.append(
            f"`{path}`: {len(cells)} runs, seeds {', '.join(seeds)}; starting policies {', '.join(rest[0])}; commit "
            f"{', '.join(rest[1])}; success before and after over {' or '.join(rest[2])} episodes"
        )
        tables.append(table.assign(file=str(path)))
    if not tables:
        return [], []
    table = pd.concat(tables, ignore_index=True)
    kinds = sorted(table["starts"].unique())
    if starts is None and len(kinds) > 1:
        raise UserError(f"runs from different starting policies: {', '.join(kinds)}; name those wanted with --starts")
    if starts is not None and starts not in kinds:
        raise UserError(f"no runs from the starting policies {starts!r}; there are {', '.join(kinds)}")
    table = table[table["starts"] == (starts or kinds[0])]
    if "start_sha256" in table:  # older files have the folder's name only
        known = table[table["start_sha256"] != ""].groupby("env_id")["start_sha256"].nunique()
        if mixed := [task for task, number in known.items() if number > 1]:
            raise UserError(
                f"runs of {', '.join(mixed)} from different starting policies, all named {starts or kinds[0]}; give their "
                "files apart"
            )
    runs = []
    for key, rows in table.groupby(KEY, sort=False):
        if rows["file"].nunique() > 1:
            cell, files = " ".join(filter(None, map(str, key))), " and in ".join(rows["file"].unique())
            raise UserError(f"the run {cell} is in {files}; give one of them")
        rows, first = rows.sort_values("steps"), rows.iloc[0]
        x = {axis: rows[axis].to_numpy(float) for axis in AXES}
        runs.append(
            Run(*key, x, rows["success_rate"].to_numpy(float), first["success_before"], first["success_after"],
                int(rows["updates"].max()), first["peak_memory_mib"], json.loads(first["arguments"]),
                json.loads(first["measures_after"]))
        )  # fmt: skip
    return runs, lines


class Study:
    """What the given files hold."""

    tails: list[tuple[str, list[dict[str, Any]]]]
    """(task, runs) of each tail.json"""
    calibration: list[dict[str, Any]]
    """rows of all calibration.json"""
    additions: list[dict[str, Any]]
    """runs of all speed_llm_addition.json"""
    arms: dict[tuple[str, str, str], list[Run]]
    """(task, algorithm, setting): runs"""

    def __init__(self, paths: Sequence[Path], starts: str | None = None) -> None:
        self.tails, self.calibration, self.additions, self.arms = [], [], [], {}
        self.runs, self.lines = read_runs([p for p in paths if p.suffix == ".parquet"], starts)
        for path in (p for p in paths if p.suffix == ".json"):
            self.read_json(path)
        order = [*ALGORITHMS, *sorted({r.algorithm for r in self.runs} - set(ALGORITHMS))]
        tasks = [*sppo_envs.TASKS, *sorted({r.env_id for r in self.runs} - set(sppo_envs.TASKS))]
        for run in sorted(self.runs, key=lambda r: (tasks.index(r.env_id), order.index(r.algorithm), r.setting)):
            self.arms.setdefault((run.env_id, run.algorithm, run.setting), []).append(run)
        self.tasks = list(dict.fromkeys(task for task, _, _ in self.arms))

    def read_json(self, path: Path) -> None:
        content = read_json(path)
        try:
            if any("curve" in row for row in content.get("rows", [])):
                for row in content["rows"]:
                    _ = row["variant"], int(row["seed"])
                    curve = np.array(row["curve"], float)
                    if curve.ndim != 2 or curve.shape[1] != 3 or not np.isfinite(curve).all():
                        raise ValueError(
                            f"the curve of {row['variant']} seed {row['seed']} is no list of three numbers"
                        )
                self.additions += content["rows"]
                return
            if "runs" in content:
                for run in content["runs"]:
                    _ = content["env_id"], run["algorithm"], int(run["seed"]), int(run["update"])
                    groups = [run[name] for name in ("successes", "failures") if run[name]["episodes"]]
                    numbers = [group[name] for group in groups for name in TAIL] + [run["auc"]] * (len(groups) == 2)
                    if not np.isfinite(np.array(numbers, float)).all():  # ragged lists raise ValueError themselves
                        raise ValueError(f"a number is missing in {run['algorithm']} seed {run['seed']}")
                # By variant: probe.py's "algorithm" of a tail is ppo for ppo-bce too. Old files have no variants.
                runs = [{**run, "algorithm": run.get("variant", run["algorithm"])} for run in content["runs"]]
                self.tails += [(content["env_id"], runs)] if runs else []
            elif "rows" in content:
                for row in content["rows"]:
                    _ = row["env_id"], row["algorithm"], [row[name] for name in (*MEASURES, "contexts", "episodes")]
                    _ = int(row["seed"]), int(row["update"])
                    if not np.isfinite(np.array([row["v0"], row["rate"]], float)).all():
                        raise ValueError(f"a number is missing in {row['algorithm']} seed {row['seed']}")
                self.calibration += content["rows"]
            else:
                raise ValueError("neither runs (tail.json) nor rows (calibration.json, speed_llm_addition.json)")
        except KeyError as error:
            raise UserError(f"{path} was not written by {JSON_WRITERS}: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} was not written by {JSON_WRITERS}: {error}") from error

    def __bool__(self) -> bool:
        return bool(self.runs or self.tails or self.calibration or self.additions)

    def main(self, task: str, algorithm: str) -> tuple[str, str, str] | None:
        """The arm that stands for an algorithm: without a setting, else with the setting that most algorithms have."""
        settings = [s for t, a, s in self.arms if (t, a) == (task, algorithm)]
        rank = {s: (s == "", sum((t, z) == (task, s) for t, _, z in self.arms)) for s in settings}
        return (task, algorithm, max(settings, key=lambda s: rank[s])) if settings else None

    def with_algorithms(self, algorithms: Iterable[str], least: int = 2) -> dict[str, dict[str, list[Run]]]:
        """Tasks that have at least so many of the algorithms: {task: {algorithm: runs}}."""
        found = {t: {a: self.arms[arm] for a in algorithms if (arm := self.main(t, a))} for t in self.tasks}
        return {task: arms for task, arms in found.items() if len(arms) >= least}

    def varied(self, names: Sequence[str], algorithms: Sequence[str]) -> dict[str, dict[str, dict[str, list[Run]]]]:
        """Tasks where runs differ in these arguments and no others: {task: {algorithm: {value: runs}}}."""
        found: dict[str, dict[str, dict[str, list[Run]]]] = {}
        for task, algorithm in {(t, a): None for t, a, _ in self.arms if a in algorithms}:
            groups: dict[str, dict[str, list[Run]]] = {}  # by what else is set
            for (t, a, setting), arm in self.arms.items():
                if (t, a) == (task, algorithm):
                    rest = ",".join(part for part in setting.split(",") if part.partition("=")[0].strip() not in names)
                    groups.setdefault(rest, {}).setdefault(describe(arm[0], names), arm)
            found.setdefault(task, {})[algorithm] = max(groups.values(), key=len)
        return {task: arms for task, arms in found.items() if len({v for a in arms.values() for v in a}) > 1}


def describe(run: Run, names: Sequence[str]) -> str:
    """A critic's size, or its training, in words."""
    if names == ("critic-hidden",):
        return "x".join(map(str, run.arguments["critic_hidden"]))
    steps, window, rate = (run.arguments[name.replace("-", "_")] for name in CRITIC)
    if steps == 0:
        return f"on the policy's minibatches (paper), rate {rate:g}"
    return f"{steps} steps, " + ("newest batch" if window == 1 else f"last {window} batches") + f", rate {rate:g}"


def stages(entries: Sequence[dict[str, Any]], last: bool = False) -> list[list[dict[str, Any]]]:
    """Runs or rows of probe.py by update: first those of each run's first update in the file, then of its second, and
    so on, or of its `last` only. (At equal numbers of steps the runs' updates may differ a little.)"""
    by_run: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=lambda e: e["update"]):
        by_run.setdefault((entry.get("env_id", ""), entry["algorithm"], entry["seed"]), []).append(entry)
    if last:
        return [[run[-1] for run in by_run.values()]]
    return [[run[i] for run in by_run.values() if len(run) > i] for i in range(max(map(len, by_run.values())))]


def separable(run: dict[str, Any]) -> bool:
    """Whether a run of tail.json has both successes and failures."""
    return run["successes"]["episodes"] > 0 < run["failures"]["episodes"]


def span(numbers: Iterable[int]) -> str:
    """ "3", or "3 to 10"."""
    numbers = sorted(numbers)
    return f"{numbers[0]}" + (f" to {numbers[-1]}" if numbers[-1] > numbers[0] else "")


def short(task: str) -> str:
    """Name of a task without what all of them have in common."""
    return task.rpartition("/")[2].removesuffix("-v0")


# -------------------------------------------------------------------------------------------------------- curves
def smoothed(run: Run, axis: str) -> tuple[Array, Array]:
    """x and success, (points + 1,) each; at the ends the moving mean has fewer points."""
    window = slice(SMOOTH // 2, SMOOTH // 2 + len(run.success))
    sums, counts = (np.convolve(y, np.ones(SMOOTH))[window] for y in (run.success, np.ones(len(run.success))))
    return np.append(0.0, run.x[axis]), np.append(run.before, sums / counts)


def band(runs: Sequence[Run], axis: str) -> tuple[Array, Array, Array, Array]:
    """Grid from 0 to where the shortest run ends, IQM, and both ends of its interval at each point (NaN for one run)."""
    curves = [smoothed(run, axis) for run in runs]
    grid = np.linspace(0.0, min(x[-1] for x, _ in curves), GRID)
    values = np.stack([np.interp(grid, x, y) for x, y in curves], axis=-1)  # (GRID, runs)
    return grid, iqm(values), *interval(iqm, values, resamples=1000)


def time_to(run: Run, axis: str, threshold: float) -> float:
    """Where the smoothed curve first reaches `threshold`; inf if never."""
    x, y = smoothed(run, axis)
    above = np.flatnonzero(y >= threshold)
    if len(above) == 0 or above[0] == 0:
        return 0.0 if len(above) else math.inf
    i = above[0]
    return float(x[i - 1] + (threshold - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


# ---------------------------------------------------------------------------------------------------- statistics
def iqm(*samples: Any, axis: int = -1) -> Any:
    """Interquartile mean of the samples pooled."""
    return stats.trim_mean(np.concatenate(samples, axis), 0.25, axis)


def difference(*samples: Any, axis: int = -1) -> Any:
    """IQM of the first half of the samples less that of the second."""
    half = len(samples) // 2
    return iqm(*samples[:half], axis=axis) - iqm(*samples[half:], axis=axis)


def interval(statistic: Callable[..., Any], *samples: Any, resamples: int = 9999) -> tuple[Any, Any]:
    """95 % percentile bootstrap interval; each sample, runs along its last axis, is resampled for itself, which with one
    sample a task is the stratified bootstrap. NaN where a sample has one run only."""
    samples = tuple(np.asarray(s, float) for s in samples)
    if min(s.shape[-1] for s in samples) < 2:
        return (np.full(samples[0].shape[:-1], np.nan),) * 2
    result = stats.bootstrap(
        samples, statistic, n_resamples=resamples, axis=-1, method="percentile", random_state=np.random.default_rng(0)
    )
    return tuple(result.confidence_interval)


def p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the hypothesis that both samples come from one distribution; NaN where one has a single run. It cannot be less
    than 2 over the number of ways to split the runs: 0.1 for 3 against 3, 0.008 for 5 against 5."""
    if min(len(a), len(b)) < 2:
        return math.nan
    ranks = stats.rankdata([*a, *b])
    if len(set(ranks)) == len(ranks):
        return float(stats.mannwhitneyu(a, b, method="exact").pvalue)
    result = stats.permutation_test(
        (ranks[: len(a)], ranks[len(a) :]), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=9999,
        vectorized=True, random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


def spearman_ceiling(rate: Sequence[float], rollouts: int) -> float:
    """Mean Spearman coefficient of a perfect V: p itself, taken to be `rate`, against new rollouts, as many as before. A
    critic's numbers are never quite equal, so among contexts of equal p (0 or 1, say) V's ranks are chance. NaN if all
    contexts are alike.

    Args:
        rate: success of each context, in [0, 1].
        rollouts: of each context.
    """
    p, rng = np.asarray(rate, float), np.random.default_rng(0)
    if np.ptp(p) == 0:
        return math.nan
    draws = [stats.spearmanr(p + 1e-9 * rng.random(len(p)), rng.binomial(rollouts, p)).statistic for _ in range(100)]
    return float(np.mean(draws))


def holm(p: Iterable[float]) -> Array:
    """Holm's correction (1979) for as many tests as there are numbers; NaN is no test and stays."""
    p = np.array(list(p), float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def estimate(middle: float, ends: Sequence[float], sign: str = "") -> str:
    text = f"{middle:{sign}.3f}"
    return f"{text} [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]" if np.isfinite(ends[0]) else f"{text} (one seed)"


def summary(values: Iterable[float | None]) -> str:
    """IQM with interval; seeds that have no number (a correlation with a constant V) are left out, and said so."""
    given = np.array([*values], float)
    finite = given[np.isfinite(given)]
    if not len(finite):
        return "undefined"
    some = f" ({len(finite)} of {len(given)} seeds)" if len(finite) < len(given) else ""
    return estimate(iqm(finite), interval(iqm, finite)) + some


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
