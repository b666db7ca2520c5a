"""Each algorithm at its own best learning rate: which rate that is, what is still to run, and the table.

    python scripts/report_rates.py --what choose    # the chosen rates, and the commands of what is still to run
    python scripts/report_rates.py --what table     # writes docs/figures/rates.md

1. On the runs of --tuning, of --tuning-seeds, each task and algorithm gets the rate with the highest success averaged over
   training (area in scripts/report_statistics.py; mean over seeds). Of equal rates the task's default is taken
   (sppo_control/defaults.py), else the smallest.
2. With the chosen rate the algorithms are compared on --seeds, which have chosen nothing. Where it is the task's default
   these are the runs of --study without settings, else those of --rates.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sppo_control import cli, errors
from sppo_control.defaults import defaults

try:
    from benchmark import ALGORITHMS
    from sppo_control.markdown import markdown_table
    from sppo_control.study.results import Run, read_runs, short, span
    from sppo_control.study.statistics import holm, p_value, summary
except ModuleNotFoundError as missing:
    print(f"error: {missing.name} is missing: pip install -c constraints.txt -e '.[study]'", file=sys.stderr)
    sys.exit(2)


@dataclass
class Args:
    what: Literal["choose", "table"]
    """print the chosen rates and the commands of what is still to run, or write the table"""
    tuning: Path = Path("results/rates_tuning.parquet")
    """runs that choose, with settings learning-rate=..."""
    rates: Path = Path("results/rates.parquet")
    """runs that are compared, with settings learning-rate=..."""
    study: Path = Path("results/study.parquet")
    """runs that are compared, without settings"""
    starts: Path = Path("results/starts")
    """folder of the starting policies that all of them begin with"""
    env_ids: tuple[str, ...] = ("sppo/PrecisionCartPole-v0", "sppo/SparseMountainCar-v0", "sppo/SparsePendulum-v0")
    """tasks"""
    algorithms: tuple[str, ...] = ("sppo", "ppo", "grpo", "rloo", "remax")
    """which are compared with sppo"""
    tuning_seeds: tuple[int, ...] = (201, 202, 203)
    """of the runs that choose"""
    seeds: tuple[int, ...] = tuple(range(11, 21))
    """of the runs that are compared"""
    out: Path = Path("docs/figures/rates.md")
    """Markdown file to write"""

    def __post_init__(self) -> None:
        if unknown := [a for a in self.algorithms if a not in ALGORITHMS]:
            raise ValueError(f"--algorithms must be of {', '.join(ALGORITHMS)}, got {', '.join(unknown)}")
        if "sppo" not in self.algorithms:
            raise ValueError(f"--algorithms must have sppo, which the others are compared with, got {self.algorithms}")
        for name in ("env_ids", "algorithms", "tuning_seeds", "seeds"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} must be different values, at least one, got {getattr(self, name)}"
                )
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(
                f"--seeds must not be among --tuning-seeds: seeds that chose a rate flatter it, got {both}"
            )


class Cell(NamedTuple):
    """Runs of one task, algorithm and learning rate; `setting` is what scripts/benchmark.py calls it."""

    env_id: str
    algorithm: str
    setting: str


class Choice(NamedTuple):
    """The rate of one task and algorithm."""

    setting: str
    """the chosen one, "learning-rate=..." """
    scores: dict[str, float]
    """success averaged over training, mean over the tuning seeds, by setting; from the smallest rate to the largest"""

    @property
    def rate(self) -> float:
        return rate_of(self.setting)


Found = dict[Cell, dict[int, Run]]  # by seed


def rate_of(setting: str) -> float:
    """3e-4 of "learning-rate=3e-4"; NaN where anything else is set."""
    match = re.fullmatch(r"learning[-_]rate\s*=\s*([-+.\deE]+)", setting.strip())
    return float(match[1]) if match else np.nan


def read(paths: Iterable[Path], args: Args, seeds: tuple[int, ...]) -> tuple[Found, list[str]]:
    """The runs of these tasks, algorithms and seeds, without settings or with a learning rate alone; a line on each file.

    Raises:
        UserError: what `read_runs` raises; a run that did not have the learning rate that its setting, or the lack of one,
            stands for; unequal budgets in a task.
    """
    found: Found = {}
    every, lines = read_runs(list(paths), args.starts.name)
    for run in every:
        wanted = run.env_id in args.env_ids and run.algorithm in args.algorithms and run.seed in seeds
        rate = rate_of(run.setting) if run.setting else defaults(run.env_id).learning_rate
        if wanted and not np.isnan(rate):
            if (had := run.arguments["learning_rate"]) != rate:
                raise errors.UserError(
                    f"{run.algorithm} {run.env_id} seed {run.seed} {run.setting or 'without settings'} had the learning "
                    f"rate {had:g}, not {rate:g}; was the task's default changed?"
                )
            found.setdefault(Cell(run.env_id, run.algorithm, run.setting), {})[run.seed] = run
    for task in args.env_ids:
        budgets = {run.budget for cell, arm in found.items() if cell.env_id == task for run in arm.values()}
        if len(budgets) > 1:
            raise errors.UserError(
                f"the runs of {task} have unequal --total-timesteps: {', '.join(map(str, sorted(budgets)))}"
            )
    return found, lines


def lacking(cells: Iterable[Cell], found: Found, seeds: tuple[int, ...]) -> dict[Cell, list[int]]:
    """Cells of which runs are missing, and their seeds."""
    gaps = {cell: [seed for seed in seeds if seed not in found.get(cell, {})] for cell in cells}
    return {cell: missing for cell, missing in gaps.items() if missing}


def in_words(gaps: dict[Cell, list[int]]) -> str:
    """Missing runs by task and seeds."""
    together: dict[str, list[str]] = {}
    for cell, seeds in gaps.items():
        name = f"{cell.algorithm} {cell.setting}".strip()
        together.setdefault(f"{cell.env_id} seeds {listed(seeds)}", []).append(name)
    return "; ".join(f"{where}: {', '.join(names)}" for where, names in together.items())


def listed(seeds: Sequence[int]) -> str:
    """ "11 to 20", or "11, 13, 14"."""
    whole = len(seeds) > 2 and sorted(seeds) == list(range(min(seeds), max(seeds) + 1))
    return span(seeds) if whole else ", ".join(map(str, seeds))


# ------------------------------------------------------------------------------------------------------ choosing
def choose(args: Args) -> tuple[dict[tuple[str, str], Choice], list[str]]:
    """The choice of each task and algorithm, and a line on the file.

    Raises:
        UserError: what `read` raises; runs are missing, in a grid of all rates of a task that any algorithm has; the task's
            default is not among these.
    """
    found, lines = read([args.tuning], args, args.tuning_seeds)
    settings = {
        task: sorted({cell.setting for cell in found if cell.env_id == task and cell.setting}, key=rate_of)
        for task in args.env_ids
    }
    for task, tried in settings.items():
        default = defaults(task).learning_rate
        rates = [rate_of(setting) for setting in tried]
        if len(set(rates)) != len(rates):
            raise errors.UserError(f"{args.tuning} has one rate of {task} under two names: {', '.join(tried)}")
        if default not in rates or len(rates) < 2:
            names = ", ".join(tried) or "nothing"
            raise errors.UserError(
                f"{args.tuning} must have the default {default:g} of {task} and another, it has {names}"
            )
    cells = [Cell(task, a, setting) for task in args.env_ids for a in args.algorithms for setting in settings[task]]
    if gaps := lacking(cells, found, args.tuning_seeds):
        number = sum(map(len, gaps.values()))
        raise errors.UserError(
            f"{args.tuning} lacks {number} of {len(cells) * len(args.tuning_seeds)} runs: {in_words(gaps)}"
        )
    choices = {}
    for task in args.env_ids:
        for algorithm in args.algorithms:
            scores = {
                setting: float(
                    np.mean([found[Cell(task, algorithm, setting)][seed].area for seed in args.tuning_seeds])
                )
                for setting in settings[task]
            }
            best = [setting for setting, score in scores.items() if score == max(scores.values())]
            default = [setting for setting in best if rate_of(setting) == defaults(task).learning_rate]
            choices[task, algorithm] = Choice((default or best)[0], scores)
    return choices, lines


def compared(choices: dict[tuple[str, str], Choice]) -> dict[tuple[str, str], Cell]:
    """The cell whose runs are compared, of each task and algorithm: without a setting where the default was chosen."""
    return {
        (task, algorithm): Cell(task, algorithm, "" if choice.rate == defaults(task).learning_rate else choice.setting)
        for (task, algorithm), choice in choices.items()
    }


def commands(gaps: dict[Cell, list[int]], args: Args) -> list[str]:
    """What makes the missing runs: a command for each task and rate. The seeds that are there are skipped by it."""
    together: dict[tuple[str, str], list[str]] = {}
    for cell in gaps:
        together.setdefault((cell.env_id, cell.setting), []).append(cell.algorithm)
    lines = []
    for (task, setting), algorithms in together.items():
        out = args.rates if setting else args.study
        words = ["--starts", args.starts, "--out", out, "--work-dir", f"runs/{out.stem}", "--env-ids", task]
        words += ["--algorithms", *algorithms, "--seeds", *args.seeds, *(["--settings", setting] if setting else [])]
        lines.append(shlex.join(["python", "scripts/benchmark.py", *map(str, words)]))
    return lines


# --------------------------------------------------------------------------------------------------------- table
def scores_of(choice: Choice) -> list[str]:
    """Cells of the tuning scores, the chosen one in bold."""
    return [f"**{score:.3f}**" if name == choice.setting else f"{score:.3f}" for name, score in choice.scores.items()]


def rates_of(task: str, choices: dict[tuple[str, str], Choice]) -> list[str]:
    """Heads of their columns."""
    names = next(choice.scores for (t, _), choice in choices.items() if t == task)
    default = defaults(task).learning_rate
    return [name.partition("=")[2].strip() + " (default)" * (rate_of(name) == default) for name in names]


def at_the_ends(task: str, choices: dict[tuple[str, str], Choice]) -> str:
    """What to know of choices beyond which nothing was tried; empty if there are none."""
    names = []
    for (t, algorithm), choice in choices.items():
        smallest, *_, largest = choice.scores
        if t == task and choice.setting in (smallest, largest):
            names.append(algorithm)
    text = f"At an end of the rates that were tried, beyond which there may be a better one: {', '.join(names)}."
    return text if names else ""


def table(args: Args, choices: dict[tuple[str, str], Choice], found: Found) -> str:
    """A heading and a table for each task."""
    arms = {key: [found[cell][seed] for seed in args.seeds] for key, cell in compared(choices).items()}
    p = {}
    for (task, algorithm), arm in arms.items():
        if algorithm != "sppo":
            p[task, algorithm, "after"] = p_value([r.after for r in arm], [r.after for r in arms[task, "sppo"]])
            p[task, algorithm, "area"] = p_value([r.area for r in arm], [r.area for r in arms[task, "sppo"]])
    corrected = dict(zip(p, holm(p.values()), strict=True))

    def test(*key: str) -> str:
        return f"{p[key]:.4f} ({corrected[key]:.4f})" if key in p and np.isfinite(p[key]) else "-"

    parts = []
    for task in args.env_ids:
        rows = []
        for algorithm in args.algorithms:
            choice, arm = choices[task, algorithm], arms[task, algorithm]
            rows.append([
                algorithm, choice.setting.partition("=")[2].strip(), *scores_of(choice),
                summary(r.after for r in arm), test(task, algorithm, "after"),
                summary(r.area for r in arm), test(task, algorithm, "area"),
                f"{sum(r.after >= 0.9 for r in arm)} of {len(arm)}",
            ])  # fmt: skip
        head = ["algorithm", "chosen rate", *(f"tuning: {name}" for name in rates_of(task, choices)), "final success",
                "p (Holm)", "average over training", "p (Holm)", "solved"]  # fmt: skip
        budget = f"{arms[task, 'sppo'][0].budget:,} environment steps a run."
        parts += [f"## {short(task)}", budget, markdown_table(head, rows), at_the_ends(task, choices)]
    return "\n\n".join(filter(None, parts))


HEAD = """# Each algorithm at its own best learning rate

Made by `{command}` from

{files}

- tuning: success averaged over the environment steps of training, mean over seeds {tuning}; the rate with the highest is
  chosen (bold), of equal ones the task's default
- all other columns: seeds {seeds}, which chose nothing, at the chosen rate
- final success: of the evaluation after training, interquartile mean (IQM) over seeds with its 95 % bootstrap interval
- average over training: mean success over all environment steps of the budget, IQM over seeds with its interval
- solved: seeds with final success of at least 0.9
- p: against SPPO at its own best rate, two-sided permutation test of the ranks (Mann-Whitney); in brackets Holm's
  correction over all tests of this page

Definitions: `scripts/report_statistics.py`."""


# ---------------------------------------------------------------------------------------------------------- main
def command(args: Args) -> str:
    """What makes the table again: only the arguments that are not the defaults."""
    words = ["--what", "table"]
    for name in ("tuning", "rates", "study", "starts", "env_ids", "algorithms", "tuning_seeds", "seeds", "out"):
        value = getattr(args, name)
        if value != getattr(Args, name):
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(["python", "scripts/report_rates.py", *words])


def main(args: Args) -> None:
    choices, lines = choose(args)
    # A file that is not there yet has no runs; where all chose the default, the file of the other rates is not needed.
    files = [path for path in (args.rates, args.study) if path.is_file()]
    found, more = read(files, args, args.seeds) if files else ({}, [])
    cells = compared(choices).values()
    gaps = lacking(cells, found, args.seeds)
    number = f"{sum(map(len, gaps.values()))} of {len(cells) * len(args.seeds)}"
    if args.what == "choose":
        for task in args.env_ids:
            rows = [[a, choices[task, a].setting, *scores_of(choices[task, a])] for a in args.algorithms]
            print(f"{task}\n{markdown_table(['algorithm', 'chosen', *rates_of(task, choices)], rows)}")
            print(f"{at_the_ends(task, choices)}\n")
        print(
            "\n".join(
                [f"{number} runs are still to be made:", *commands(gaps, args)] if gaps else ["All runs are there."]
            )
        )
        return
    if gaps:
        raise errors.UserError(
            f"{args.rates} and {args.study} lack {number} runs: {in_words(gaps)}; --what choose prints the commands that "
            "make them"
        )
    head = HEAD.format(
        command=command(args), files="\n".join(f"- {line}" for line in lines + more),
        tuning=listed(args.tuning_seeds), seeds=listed(args.seeds),
    )  # fmt: skip
    text = f"{head}\n\n{table(args, choices, found)}\n"
    temporary = args.out.with_name(f".{args.out.name}.writing")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, args.out)
    except OSError as error:
        raise errors.UserError(f"cannot write --out {args.out}: {error}") from error
    print(f"{text}\nwrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
