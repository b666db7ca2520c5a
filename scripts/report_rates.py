"""Compare algorithms, each at its best learning rate: the choice of the rate, the missing runs, and the table.

    python scripts/report_rates.py --what choose    # prints the chosen rates, and the commands for missing runs
    python scripts/report_rates.py --what table     # writes docs/figures/rates.md

1. The runs of --tuning with --tuning-seeds choose the rates. Each task and algorithm gets the rate with the highest success
   averaged over training (area in sppo_control/study/statistics.py; mean over seeds). If several rates have the highest
   number, the task's default is chosen, else the smallest.
2. The algorithms are compared at their chosen rates with --seeds, which chose nothing. If the chosen rate is the task's
   default, these are the runs of --study without settings, otherwise those of --rates.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import sppo_envs
from sppo_control import cli, errors
from sppo_control.markdown import markdown_table
from sppo_control.outputs import File

with cli.one_line_errors():
    from sppo_control.study import rates


@dataclass(kw_only=True)
class Args(rates.Question):
    what: Literal["choose", "table"]
    """print the chosen rates and the commands for missing runs, or write the table"""
    out: Annotated[Path, File(".md", new_folder=True)] = Path("docs/figures/rates.md")
    """Markdown file to write"""


def command(args: Args) -> str:
    """The command that makes the table again; it has only the arguments that differ from the defaults."""
    words = ["--what", "table"]
    for name in ("tuning", "rates", "study", "starts", "env_ids", "algorithms", "tuning_seeds", "seeds", "out"):
        value = getattr(args, name)
        if value != getattr(Args, name):
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(["python", "scripts/report_rates.py", *words])


def default_rates(args: Args) -> dict[str, float]:
    """Each task's default learning rate."""
    return {task: cast(float, sppo_envs.task_defaults(task)["learning_rate"]) for task in args.env_ids}


def main(args: Args) -> None:
    default = default_rates(args)
    choices, lines = rates.choose(args, default)
    # A file that is not there yet has no runs. If all chose the default, the file of the other rates is not needed.
    files = [path for path in (args.rates, args.study) if path.is_file()]
    found, more = rates.read(files, args, args.seeds, default) if files else ({}, [])
    arms = rates.compared(choices, default).values()
    gaps = rates.lacking(arms, found, args.seeds)
    number = f"{sum(map(len, gaps.values()))} of {len(arms) * len(args.seeds)}"
    if args.what == "choose":
        for task in args.env_ids:
            rows = [[a, choices[task, a].setting, *rates.scores_of(choices[task, a])] for a in args.names]
            head = ["algorithm", "chosen", *rates.rates_of(task, choices, default)]
            print(f"{task}\n{markdown_table(head, rows)}\n{rates.at_the_ends(task, choices)}\n")
        print(
            "\n".join(
                [f"{number} runs are still to be made:", *rates.commands(gaps, args)]
                if gaps
                else ["All runs are there."]
            )
        )
        return
    if gaps:
        raise errors.UserError(
            f"{args.rates} and {args.study} lack {number} runs: {rates.in_words(gaps)}; "
            "--what choose prints the commands that make them"
        )
    page = rates.HEAD.format(
        command=command(args), files="\n".join(f"- {line}" for line in lines + more),
        tuning=rates.listed(args.tuning_seeds), seeds=rates.listed(args.seeds),
    )  # fmt: skip
    text = f"{page}\n\n{rates.table(args, choices, found, default)}\n"
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
