"""Each algorithm at its best learning rate: the choice of the rate, the missing runs, and the table.

scripts/report_rates.py says how a rate is chosen.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppo_control import errors
from sppo_control.markdown import markdown_table
from sppo_control.study import variants
from sppo_control.study.results import Arm, StudyRun, read_runs, short, span
from sppo_control.study.statistics import holm, p_value, summary


@dataclass(kw_only=True)
class Question:
    """Which runs choose the rates, and which runs are compared."""

    tuning: Path = Path("results/rates_tuning.parquet")
    """results file of the runs that choose, with settings learning-rate=..."""
    rates: Path = Path("results/rates.parquet")
    """results file of the runs that are compared, with settings learning-rate=..."""
    study: Path = Path("results/study.parquet")
    """results file of the runs that are compared, without settings"""
    starts: Path = Path("results/starts")
    """folder of the starting policies with which all runs begin"""
    env_ids: tuple[str, ...] = ("sppo/PrecisionCartPole-v0", "sppo/SparseMountainCar-v0", "sppo/SparsePendulum-v0")
    """tasks to compare the algorithms on"""
    algorithms: tuple[str, ...] = ("sppo", "ppo", "grpo", "rloo", "remax")
    """algorithms to compare with sppo: names as for scripts/benchmark.py, or paths of your own scripts"""
    tuning_seeds: tuple[int, ...] = (201, 202, 203)
    """seeds of the runs that choose"""
    seeds: tuple[int, ...] = tuple(range(11, 21))
    """seeds of the runs that are compared"""

    def __post_init__(self) -> None:
        try:
            names = self.names
        except ValueError as error:
            raise ValueError(f"--algorithms {error}") from error
        if "sppo" not in names:
            raise ValueError(
                f"--algorithms must contain sppo, because the others are compared with it, got {self.algorithms}"
            )
        for name in ("env_ids", "algorithms", "tuning_seeds", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values) or not values or "" in values:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be different values, at least one, got {getattr(self, name)}"
                )
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(
                f"--seeds must not be among --tuning-seeds: a rate looks too good on seeds that chose it, got {both}"
            )

    @property
    def names(self) -> list[str]:
        """The algorithms as results files name them."""
        return [variant.name for variant in variants.find(self.algorithms)]


class Choice(NamedTuple):
    """The choice of the rate for one task and algorithm."""

    setting: str
    """the chosen setting, "learning-rate=..." """
    scores: dict[str, float]
    """setting -> success averaged over training, mean over the tuning seeds; from the smallest rate to the largest"""

    @property
    def rate(self) -> float:
        """The learning rate of the chosen setting."""
        return rate_of(self.setting)


Found = dict[Arm, dict[int, StudyRun]]
"""The runs of each arm, by seed."""
Choices = dict[tuple[str, str], Choice]
"""The choice for each task and algorithm."""


def rate_of(setting: str) -> float:
    """The rate in a setting: 3e-4 for "learning-rate=3e-4"; NaN if the setting contains anything else."""
    match = re.fullmatch(r"learning[-_]rate\s*=\s*([-+.\deE]+)", setting.strip())
    try:
        return float(match[1]) if match else np.nan
    except ValueError:  # "1e-", say
        return np.nan


def read(
    paths: Iterable[Path], question: Question, seeds: tuple[int, ...], default: Mapping[str, float]
) -> tuple[Found, list[str]]:
    """The runs of these tasks, algorithms and seeds, and a line about each file. Runs with other settings are left out.

    Args:
        paths: results files.
        question: names the tasks, the algorithms and the starting policies.
        seeds: the seeds of the runs that are wanted.
        default: each task's default learning rate.

    Raises:
        UserError: what `read_runs` raises. Or a run's learning rate is not that of its setting (or the task's default). Or
            the runs of a task have unequal budgets.
    """
    found: Found = {}
    names = question.names
    every, lines = read_runs(list(paths), question.starts.name)
    for run in every:
        wanted = run.env_id in question.env_ids and run.algorithm in names and run.seed in seeds
        rate = rate_of(run.setting) if run.setting else default.get(run.env_id, np.nan)
        if wanted and not np.isnan(rate):
            if (had := run.arguments.get("learning_rate", np.nan)) != rate:
                raise errors.UserError(
                    f"{run.algorithm} {run.env_id} seed {run.seed} {run.setting or 'without settings'} had the learning "
                    f"rate {had:g}, not {rate:g}; was the task's default changed?"
                )
            found.setdefault(Arm(run.env_id, run.algorithm, run.setting), {})[run.seed] = run
    for task in question.env_ids:
        budgets = {run.budget for arm, by_seed in found.items() if arm.env_id == task for run in by_seed.values()}
        if len(budgets) > 1:
            raise errors.UserError(
                f"the runs of {task} have unequal --total-timesteps: {', '.join(map(str, sorted(budgets)))}"
            )
    return found, lines


def lacking(arms: Iterable[Arm], found: Found, seeds: tuple[int, ...]) -> dict[Arm, list[int]]:
    """Arms with missing runs, and the seeds of these runs."""
    gaps = {arm: [seed for seed in seeds if seed not in found.get(arm, {})] for arm in arms}
    return {arm: missing for arm, missing in gaps.items() if missing}


def in_words(gaps: dict[Arm, list[int]]) -> str:
    """The missing runs as text, by task and seeds."""
    together: dict[str, list[str]] = {}
    for arm, seeds in gaps.items():
        name = f"{arm.algorithm} {arm.setting}".strip()
        together.setdefault(f"{arm.env_id} seeds {listed(seeds)}", []).append(name)
    return "; ".join(f"{where}: {', '.join(names)}" for where, names in together.items())


def listed(seeds: Sequence[int]) -> str:
    """ "11 to 20", or "11, 13, 14"."""
    whole = len(seeds) > 2 and sorted(seeds) == list(range(min(seeds), max(seeds) + 1))
    return span(seeds) if whole else ", ".join(map(str, seeds))


# ------------------------------------------------------------------------------------------------------ choosing
def choose(question: Question, default: Mapping[str, float]) -> tuple[Choices, list[str]]:
    """The choice of each task and algorithm, and a line about the file.

    Raises:
        UserError: what `read` raises. Or an algorithm has no runs at a rate at which another one has some. Or a task's
            default is not among the rates.
    """
    found, lines = read([question.tuning], question, question.tuning_seeds, default)
    settings = {
        task: sorted({arm.setting for arm in found if arm.env_id == task and arm.setting}, key=rate_of)
        for task in question.env_ids
    }
    for task, tried in settings.items():
        rates = [rate_of(setting) for setting in tried]
        if len(set(rates)) != len(rates):
            raise errors.UserError(f"{question.tuning} has one rate of {task} under two names: {', '.join(tried)}")
        if default[task] not in rates or len(rates) < 2:
            names = ", ".join(tried) or "nothing"
            raise errors.UserError(
                f"{question.tuning} must have the default rate {default[task]:g} of {task} and another one, it has {names}"
            )
    arms = [Arm(task, a, setting) for task in question.env_ids for a in question.names for setting in settings[task]]
    if gaps := lacking(arms, found, question.tuning_seeds):
        number = sum(map(len, gaps.values()))
        raise errors.UserError(
            f"{question.tuning} lacks {number} of {len(arms) * len(question.tuning_seeds)} runs: {in_words(gaps)}"
        )
    choices = {}
    for task in question.env_ids:
        for algorithm in question.names:
            scores = {
                setting: float(
                    np.mean([found[Arm(task, algorithm, setting)][seed].area for seed in question.tuning_seeds])
                )
                for setting in settings[task]
            }
            best = [setting for setting, score in scores.items() if score == max(scores.values())]
            usual = [setting for setting in best if rate_of(setting) == default[task]]
            choices[task, algorithm] = Choice((usual or best)[0], scores)
    return choices, lines


def compared(choices: Choices, default: Mapping[str, float]) -> dict[tuple[str, str], Arm]:
    """The arm to compare, for each task and algorithm. It has no setting if the default rate was chosen."""
    return {
        (task, algorithm): Arm(task, algorithm, "" if choice.rate == default[task] else choice.setting)
        for (task, algorithm), choice in choices.items()
    }


def commands(gaps: dict[Arm, list[int]], question: Question) -> list[str]:
    """The commands that make the missing runs, one per task and rate. They skip the seeds that are there."""
    together: dict[tuple[str, str], list[str]] = {}
    words_of = dict(zip(question.names, question.algorithms, strict=True))  # a user's own script is named by its path
    for arm in gaps:
        together.setdefault((arm.env_id, arm.setting), []).append(words_of[arm.algorithm])
    lines = []
    for (task, setting), algorithms in together.items():
        out = question.rates if setting else question.study
        words = [
            "--starts",
            str(question.starts),
            "--out",
            str(out),
            "--work-dir",
            f"runs/{out.stem}",
            "--env-ids",
            task,
        ]
        words += ["--algorithms", *algorithms, "--seeds", *map(str, question.seeds)]
        words += ["--settings", setting] if setting else []
        lines.append(shlex.join(["python", "scripts/benchmark.py", *words]))
    return lines


# --------------------------------------------------------------------------------------------------------- table
def scores_of(choice: Choice) -> list[str]:
    """Table cells of the tuning scores; the chosen one is bold."""
    return [f"**{score:.3f}**" if name == choice.setting else f"{score:.3f}" for name, score in choice.scores.items()]


def rates_of(task: str, choices: Choices, default: Mapping[str, float]) -> list[str]:
    """The heads of the columns of these scores."""
    names = next(choice.scores for (t, _), choice in choices.items() if t == task)
    return [name.partition("=")[2].strip() + " (default)" * (rate_of(name) == default[task]) for name in names]


def at_the_ends(task: str, choices: Choices) -> str:
    """A warning about choices at an end of the rates, beyond which nothing was tried; empty if there are none."""
    names = []
    for (t, algorithm), choice in choices.items():
        smallest, *_, largest = choice.scores
        if t == task and choice.setting in (smallest, largest):
            names.append(algorithm)
    text = f"The chosen rate is the first or last one tried, so beyond it may be a better one: {', '.join(names)}."
    return text if names else ""


def table(question: Question, choices: Choices, found: Found, default: Mapping[str, float]) -> str:
    """A heading and a table for each task."""
    runs = {key: [found[arm][seed] for seed in question.seeds] for key, arm in compared(choices, default).items()}
    p: dict[tuple[str, ...], float] = {}
    for (task, algorithm), mine in runs.items():
        if algorithm != "sppo":
            sppo = runs[task, "sppo"]
            p[task, algorithm, "after"] = p_value([r.after for r in mine], [r.after for r in sppo])
            p[task, algorithm, "area"] = p_value([r.area for r in mine], [r.area for r in sppo])
    corrected = dict(zip(p, holm(p.values()), strict=True))

    def test(*key: str) -> str:
        return f"{p[key]:.4f} ({corrected[key]:.4f})" if key in p and np.isfinite(p[key]) else "-"

    parts = []
    for task in question.env_ids:
        rows = []
        for algorithm in question.names:
            choice, mine = choices[task, algorithm], runs[task, algorithm]
            rows.append([
                algorithm, choice.setting.partition("=")[2].strip(), *scores_of(choice),
                summary(r.after for r in mine), test(task, algorithm, "after"),
                summary(r.area for r in mine), test(task, algorithm, "area"),
                f"{sum(r.after >= 0.9 for r in mine)} of {len(mine)}",
            ])  # fmt: skip
        tried = [f"tuning: {name}" for name in rates_of(task, choices, default)]
        measured = ["final success", "p (Holm)", "average over training", "p (Holm)", "solved"]
        text = markdown_table(["algorithm", "chosen rate", *tried, *measured], rows)
        budget = f"{runs[task, 'sppo'][0].budget:,} environment steps per run."
        parts += [f"## {short(task)}", budget, text, at_the_ends(task, choices)]
    return "\n\n".join(filter(None, parts))


HEAD = """# Each algorithm at its own best learning rate

Made by `{command}` from

{files}

- tuning: success averaged over the environment steps of training, mean over seeds {tuning}; the rate with the highest
  number is chosen (bold); among equal numbers the task's default is chosen
- all other columns: runs at the chosen rate with seeds {seeds}, which chose nothing
- final success: success rate of the evaluation after training, interquartile mean (IQM) over seeds with its 95 % bootstrap
  interval
- average over training: mean success over all environment steps of the budget, IQM over seeds with its interval
- solved: number of seeds with final success of at least 0.9
- p: comparison with SPPO at its own best rate, two-sided permutation test of the ranks (Mann-Whitney); in brackets is p
  after Holm's correction over all tests of this page

Definitions: `sppo_control/study/statistics.py`."""
