"""Reads the results files of scripts/benchmark.py, scripts/probe.py and scripts/speed_llm.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sppo_control.checkpoints import is_count, is_number, read_json
from sppo_control.checkpoints import short as short_repr
from sppo_control.errors import UserError
from sppo_control.study import variants

AXES = ("episodes", "steps", "seconds")
RUN_COLUMNS = ["env_id", "algorithm", "setting", "seed"]
"""The columns that say which run a row belongs to."""
NUMBERS = [*AXES, "updates", "success_rate", "success_before", "success_after", "eval_episodes", "peak_memory_mib"]
COLUMNS = [*RUN_COLUMNS, "starts", *NUMBERS, "commit", "arguments", "measures_after"]
"""The columns that are read; a results file may have more."""
JSON_COLUMNS = ["arguments", "measures_after"]
TEXTS = ["env_id", "algorithm", "setting", "starts", *JSON_COLUMNS]
SHARES = ["success_rate", "success_before", "success_after"]
COUNTS = ["seed", "updates", "eval_episodes"]
TAIL = ("progress", "mean", "low", "high")
MEASURES = ("pearson", "spearman", "brier", "ece")
JSON_WRITERS = "scripts/probe.py or scripts/speed_llm.py --what addition"
CRITIC = ("critic-recipe", "critic-steps", "critic-window", "critic-learning-rate")
"""Arguments that say how SPPO's critic is trained."""
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class StudyRun:
    """A finished run as results files contain it: what identifies it, its curve and its evaluations."""

    env_id: str
    algorithm: str
    setting: str
    seed: int
    x: dict[str, Array]
    """episodes, steps and seconds at the points of the curve, (points,) each"""
    success: Array
    """(points,); each number is over the episodes since the point before"""
    before: float
    after: float
    """success of the evaluations before and after training"""
    updates: int
    peak_memory_mib: float
    arguments: dict[str, Any]
    measures: dict[str, float]

    @property
    def budget(self) -> int:
        """Environment steps that the run was given."""
        return self.arguments["total_timesteps"]

    @property
    def area(self) -> float:
        """Success averaged over the steps of the budget."""
        ends = np.minimum(self.x["steps"], self.budget)  # the last update may exceed the budget
        return float(np.sum(self.success * np.diff(ends, prepend=0)) / ends[-1])


def read_table(path: Path) -> pd.DataFrame:
    """The table of a results file.

    Raises:
        UserError: it is missing, damaged or has other columns, or a column has values that are missing or of another kind.
    """
    if not path.is_file():
        raise UserError(f"no results file {path}; scripts/benchmark.py --out {path} makes it")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"{path} is damaged, or is not a Parquet file ({' '.join(str(error).split())})") from error
    if missing := [c for c in COLUMNS if c not in table]:
        raise UserError(f"{path} was not written by scripts/benchmark.py: no column {', '.join(missing)}")
    if twice := [c for c in COLUMNS if isinstance(table[c], pd.DataFrame)]:
        raise UserError(f"{path} was not written by scripts/benchmark.py: two columns {', '.join(twice)}")
    odd = [c for c in TEXTS if not table[c].map(lambda x: isinstance(x, str)).all()]
    measured = [c for c in NUMBERS if c != "peak_memory_mib"]  # which Windows does not say
    odd += [c for c in ("seed", *measured) if not (len(table) == 0 or pd.api.types.is_numeric_dtype(table[c]))]
    odd += [c for c in COUNTS if c not in odd and not (table[c].astype(float) % 1 == 0).all()]
    odd += [c for c in JSON_COLUMNS if c not in odd and not all(map(_is_object, table[c].unique()))]
    if odd:
        raise UserError(f"{path} has missing or impossible values in {', '.join(odd)}")
    return table


def check_seeds(seeds: Sequence[int], there: Iterable[int]) -> None:
    """Refuse seeds that no run has.

    Args:
        seeds: the value of --seeds.
        there: the seeds of all runs.

    Raises:
        UserError: names the seeds that are missing and those that are there.
    """
    found = sorted(set(there))
    if missing := [seed for seed in seeds if seed not in found]:
        names = ", ".join(map(str, found)) or "none"
        raise UserError(f"--seeds {' '.join(map(str, missing))}: no such runs; there are {names}")


def _is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _check_entry(entry: dict[str, Any], texts: Sequence[str], counts: Sequence[str]) -> None:
    """Refuse an entry of a JSON file whose values are of other types.

    Raises:
        KeyError, ValueError: names the key.
    """
    for name in texts:
        if not isinstance(entry[name], str):
            raise ValueError(f"{name} must be a text, got {short_repr(entry[name])}")
    for name in counts:
        if not is_count(entry[name]) or entry[name] >= 2**31:
            raise ValueError(f"{name} must be a whole number from 0 to 2^31 - 1, got {short_repr(entry[name])}")


def _check_arguments(path: Path, algorithm: str, arguments: dict[str, Any]) -> None:
    """Refuse a run's arguments if those that figures and tables read are missing, or of another type.

    Raises:
        UserError: names the file and the argument.
    """
    needed = ["total_timesteps", *(["hidden", "critic_hidden"] if algorithm in ("sppo", "ppo") else [])]
    needed += ["critic_steps", "critic_window", "critic_learning_rate"] if algorithm == "sppo" else []
    for name in (*needed, "learning_rate"):
        value = arguments.get(name, 1)
        values = value if isinstance(value, list) and name.endswith("hidden") else [value]
        good = all(is_number(x) for x in values) and (name != "total_timesteps" or value >= 1)
        if not good or (name in needed and name not in arguments):
            raise UserError(
                f"{path} was not written by scripts/benchmark.py: {name} is missing in arguments of {algorithm}, or of "
                "another type"
            )


def read_runs(paths: Sequence[Path], starts: str | None = None) -> tuple[list[StudyRun], list[str]]:
    """All runs of some results files, and a line about each file.

    Args:
        paths: Parquet files that scripts/benchmark.py wrote.
        starts: only runs from these starting policies; needed if there are several.

    Raises:
        UserError: a file is missing, damaged or has another schema; a cell is in two files; starting policies are mixed.
    """
    tables, lines = [], []
    for path in paths:
        table = read_table(path)
        numbers = {c: pd.to_numeric(table[c], errors="coerce") for c in NUMBERS}
        gaps = [c for c in NUMBERS if not np.isfinite(numbers[c]).all() or (numbers[c] < 0).any()]
        gaps += [c for c in ("episodes", "steps", "updates") if c not in gaps and (numbers[c] < 1).any()]
        gaps += [c for c in SHARES if c not in gaps and (numbers[c] > 1).any()]
        if gaps:
            raise UserError(f"{path} has missing or impossible values in {', '.join(gaps)}")
        for algorithm, text in table[["algorithm", "arguments"]].drop_duplicates().itertuples(index=False):
            _check_arguments(path, algorithm, json.loads(text))
        if table.empty:
            raise UserError(f"{path} has no runs")
        cells = table.drop_duplicates([*RUN_COLUMNS, "starts"])
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
        raise UserError(f"runs from different starting policies: {', '.join(kinds)}; choose one with --starts")
    if starts is not None and starts not in kinds:
        raise UserError(f"no runs from the starting policies {starts!r}; there are {', '.join(kinds)}")
    table = table[table["starts"] == (starts or kinds[0])]
    if "start_sha256" in table:  # older files have only the folder's name
        known = table[table["start_sha256"] != ""].groupby("env_id")["start_sha256"].nunique()
        if mixed := [task for task, number in known.items() if number > 1]:
            raise UserError(
                f"runs of {', '.join(mixed)} from different starting policies, all named {starts or kinds[0]}; give their "
                "files in separate commands"
            )
    runs = []
    for (env_id, algorithm, setting, seed), rows in table.groupby(RUN_COLUMNS, sort=False):
        if rows["file"].nunique() > 1:
            which, files = (env_id, algorithm, setting, str(seed)), " and in ".join(rows["file"].unique())
            raise UserError(f"the run {' '.join(filter(None, which))} is in {files}; give one of them")
        rows, first = rows.sort_values("steps"), rows.iloc[0]
        runs.append(StudyRun(
            env_id=env_id, algorithm=algorithm, setting=setting, seed=seed,
            x={axis: rows[axis].to_numpy(float) for axis in AXES}, success=rows["success_rate"].to_numpy(float),
            before=first["success_before"], after=first["success_after"], updates=int(rows["updates"].max()),
            peak_memory_mib=first["peak_memory_mib"], arguments=json.loads(first["arguments"]),
            measures=json.loads(first["measures_after"]),
        ))  # fmt: skip
    return runs, lines


class Arm(NamedTuple):
    """What the runs on one side of a comparison have in common; they differ only in their seeds."""

    env_id: str
    algorithm: str
    setting: str


class Study:
    """What the given files contain."""

    tails: list[tuple[str, list[dict[str, Any]]]]
    """(task, runs) for each tail.json"""
    calibration: list[dict[str, Any]]
    """rows of all files calibration.json"""
    additions: list[dict[str, Any]]
    """runs of all files speed_llm_addition.json"""
    arms: dict[Arm, list[StudyRun]]
    """in the order of the tables"""
    looks: dict[str, variants.Look]
    """how each algorithm in the files is drawn"""

    def __init__(
        self, paths: Sequence[Path], starts: str | None = None, tasks: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> None:
        """Read the files.

        Args:
            paths: files that scripts/benchmark.py (.parquet), scripts/probe.py and scripts/speed_llm.py (.json) wrote.
            starts: only runs from these starting policies; needed if there are several.
            tasks: the order of the tasks; all others follow by name.
            seeds: only runs with these seeds; empty means all. Seeds that no run has are no error here, see `check_seeds`.

        Raises:
            UserError: what `read_runs` raises; or a JSON file is damaged or contains something else.
        """
        self.tails, self.calibration, self.additions, self.arms = [], [], [], {}
        self.runs, self.lines = read_runs([p for p in paths if p.suffix == ".parquet"], starts)
        if seeds:
            self.runs = [run for run in self.runs if run.seed in seeds]
            self.lines.append(f"of these only the seeds {', '.join(map(str, seeds))}")
        for path in (p for p in paths if p.suffix == ".json"):
            self.read_json(path)
        probed = [row for rows in (self.calibration, *(found for _, found in self.tails)) for row in rows]
        self.looks = variants.looks([*(r.algorithm for r in self.runs), *(row["algorithm"] for row in probed)])
        order = list(self.looks)
        tasks = [*tasks, *sorted({r.env_id for r in self.runs} - set(tasks))]
        for run in sorted(self.runs, key=lambda r: (tasks.index(r.env_id), order.index(r.algorithm), r.setting)):
            self.arms.setdefault(Arm(run.env_id, run.algorithm, run.setting), []).append(run)
        self.tasks = list(dict.fromkeys(task for task, _, _ in self.arms))

    def read_json(self, path: Path) -> None:
        """Add the rows of a .json file that `scripts/probe.py` wrote."""
        content = read_json(path)
        try:
            if any("curve" in row for row in content.get("rows", [])):
                for row in content["rows"]:
                    _check_entry(row, ("variant",), ("seed",))
                    curve = np.array(row["curve"], float)
                    if (
                        curve.ndim != 2
                        or curve.shape[1] != 3
                        or not np.isfinite(curve).all()
                        or (curve[:, :2] <= 0).any()
                    ):
                        raise ValueError(
                            f"the curve of {row['variant']} seed {row['seed']} is not a list of three numbers per point"
                        )
                self.additions += content["rows"]
                return
            if "runs" in content:
                for run in content["runs"]:
                    _check_entry({**run, "env_id": content["env_id"]}, ("env_id", "algorithm"), ("seed", "update"))
                    _check_entry({"variant": "", **run}, ("variant",), ())
                    for name in ("successes", "failures"):
                        _check_entry(run[name], (), ("episodes",))
                    groups = [run[name] for name in ("successes", "failures") if run[name]["episodes"]]
                    numbers = [group[name] for group in groups for name in TAIL] + [run["auc"]] * (len(groups) == 2)
                    if not np.isfinite(np.array(numbers, float)).all():  # unequal lengths raise ValueError already
                        raise ValueError(f"a number is missing in {run['algorithm']} seed {run['seed']}")
                # Use the variant, because probe.py's "algorithm" of a tail is ppo for ppo-bce too. Old files have none.
                runs = [{**run, "algorithm": run.get("variant", run["algorithm"])} for run in content["runs"]]
                self.tails += [(content["env_id"], runs)] if runs else []
            elif "rows" in content:
                for row in content["rows"]:
                    _check_entry(row, ("env_id", "algorithm"), ("seed", "update", "contexts", "episodes"))
                    if odd := [name for name in MEASURES if row[name] is not None and not is_number(row[name])]:
                        raise ValueError(f"{', '.join(odd)} must be numbers or null")
                    v0, rate = np.array([row["v0"], row["rate"]], float)
                    if not row["episodes"] or ((rate < 0) | (rate > 1)).any():
                        raise ValueError(f"a rate of {row['algorithm']} seed {row['seed']} is impossible")
                    if not np.isfinite([v0, rate]).all() or v0.ndim != 1:
                        raise ValueError(f"a number is missing in {row['algorithm']} seed {row['seed']}")
                self.calibration += content["rows"]
            else:
                raise ValueError("it has neither runs (tail.json) nor rows (calibration.json, speed_llm_addition.json)")
        except KeyError as error:
            raise UserError(f"{path} was not written by {JSON_WRITERS}: {error} is missing") from error
        except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{path} was not written by {JSON_WRITERS}: {error}") from error

    def __bool__(self) -> bool:
        return bool(self.runs or self.tails or self.calibration or self.additions)

    def main(self, task: str, algorithm: str) -> Arm | None:
        """The arm that represents an algorithm: the one without a setting, else the one whose setting is most common."""
        settings = [s for t, a, s in self.arms if (t, a) == (task, algorithm)]
        rank = {s: (s == "", sum((t, z) == (task, s) for t, _, z in self.arms)) for s in settings}
        return Arm(task, algorithm, max(settings, key=lambda s: rank[s])) if settings else None

    def with_algorithms(self, algorithms: Iterable[str], least: int = 2) -> dict[str, dict[str, list[StudyRun]]]:
        """Tasks that have at least `least` of the algorithms: {task: {algorithm: runs}}."""
        found = {t: {a: self.arms[arm] for a in algorithms if (arm := self.main(t, a))} for t in self.tasks}
        return {task: arms for task, arms in found.items() if len(arms) >= least}

    def varied(
        self, names: Sequence[str], algorithms: Sequence[str]
    ) -> dict[str, dict[str, dict[str, list[StudyRun]]]]:
        """Tasks with runs that differ in these arguments and in no others: {task: {algorithm: {value: runs}}}."""
        found: dict[str, dict[str, dict[str, list[StudyRun]]]] = {}
        for task, algorithm in {(t, a): None for t, a, _ in self.arms if a in algorithms}:
            groups: dict[str, dict[str, list[StudyRun]]] = {}  # by the rest of the setting
            for (t, a, setting), arm in self.arms.items():
                if (t, a) == (task, algorithm):
                    rest = ",".join(part for part in setting.split(",") if part.partition("=")[0].strip() not in names)
                    groups.setdefault(rest, {}).setdefault(describe(arm[0], names), arm)
            found.setdefault(task, {})[algorithm] = max(groups.values(), key=len)
        return {task: arms for task, arms in found.items() if len({v for a in arms.values() for v in a}) > 1}


def describe(run: StudyRun, names: Sequence[str]) -> str:
    """The critic's size or its training in words, for legends."""
    if names == ("critic-hidden",):
        return "x".join(map(str, run.arguments["critic_hidden"]))
    steps, window, rate = (run.arguments[name] for name in ("critic_steps", "critic_window", "critic_learning_rate"))
    if run.arguments.get("critic_recipe") == "paper" or steps == 0:  # 0 is in runs that are older than --critic-recipe
        return f"on the policy's minibatches (paper), rate {rate:g}"
    return f"{steps} steps, " + ("newest batch" if window == 1 else f"last {window} batches") + f", rate {rate:g}"


def stages(entries: Sequence[dict[str, Any]], last: bool = False) -> list[list[dict[str, Any]]]:
    """Group runs or rows of probe.py by update: first each run's first update in the file, then its second, and so on.

    The numbers of the updates may differ a little between runs, although the numbers of steps are equal.

    Args:
        entries: they have the keys algorithm, seed, update and perhaps env_id.
        last: take only the last update of each run.
    """
    by_run: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=lambda e: e["update"]):
        by_run.setdefault((entry.get("env_id", ""), entry["algorithm"], entry["seed"]), []).append(entry)
    if last:
        return [[run[-1] for run in by_run.values()]] if by_run else []
    return [
        [run[i] for run in by_run.values() if len(run) > i] for i in range(max(map(len, by_run.values()), default=0))
    ]


def separable(run: dict[str, Any]) -> bool:
    """Whether a run of tail.json has both successes and failures."""
    return run["successes"]["episodes"] > 0 < run["failures"]["episodes"]


def span(numbers: Iterable[int]) -> str:
    """ "3", or "3 to 10".

    Raises:
        ValueError: there is no number.
    """
    numbers = sorted(numbers)
    if not numbers:
        raise ValueError("numbers must be at least one number, got none")
    return f"{numbers[0]}" + (f" to {numbers[-1]}" if numbers[-1] > numbers[0] else "")


def short(task: str) -> str:
    """A task's name without the parts that all names have in common."""
    return task.rpartition("/")[2].removesuffix("-v0")
