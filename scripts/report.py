"""Make figures (PNG and SVG) and Markdown tables from results files, as in the paper (Wang et al., arXiv 2604.08865).

    python scripts/report.py --results results/study.parquet                        # all for which this file is enough
    python scripts/report.py --results results/*.parquet results/*.json --out docs/figures --figures fig8 fig7 tables
    python scripts/report.py --commands results/commands/figures.toml               # several such commands from a TOML file

| name     | what                                                                      | needs results of                 |
| -------- | ------------------------------------------------------------------------- | -------------------------------- |
| fig1     | tail effect: what a critic at every step knows along an episode           | probe.py (tail.json)             |
| fig2     | GRPO's advantage against the success rate p, in theory and in code        | nothing                          |
| fig4     | PPO with a critic trained with BCE; no update on batches of equal outcomes| benchmark.py                     |
| fig5     | success against seconds and against environment steps                     | benchmark.py                     |
| fig6     | memory, time per update, and success against the critic's size            | benchmark.py, critic-hidden=...  |
| fig7     | calibration of V(s_0)                                                     | probe.py (calibration.json)      |
| fig8     | success against episodes, SPPO and PPO; fig8_all has every algorithm      | benchmark.py                     |
| critics  | SPPO with critics that are trained in different ways                      | benchmark.py, critic-steps=...   |
| addition | a tiny transformer learns to add: success against responses and seconds   | speed_llm.py --what addition     |
| tables   | tables.md: final success, speed, comparisons with SPPO, and the numbers   | any of these                     |
|          | of fig7 and fig1                                                          |                                  |

Two more names print a table for each folder of starting policies, and write no file; each is asked for alone. `informative`
says which tasks tell algorithms apart. `settings` has the average success of every setting, the best one in bold.

sppo_control/study/statistics.py defines the statistics. All runs of the same task, algorithm and setting in the given files
are taken together. So do not give files with runs that chose a setting together with files that test it, or tell them apart
with --seeds. Your own training script (scripts/benchmark.py --algorithms path/to/mine.py) is in fig5, fig8_all and the
tables, under its file's name.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import sppo_envs
from sppo_control import cli, errors
from sppo_control.outputs import Folder

with cli.one_line_errors():
    from sppo_control.study.figures import FIGURES, Looks, plt
    from sppo_control.study.results import Study, check_seeds, read_table
    from sppo_control.study.tables import table_of_settings, table_of_tasks, tables

NAMES = (*FIGURES, "tables")
PRINTED = {"informative": table_of_tasks, "settings": table_of_settings}
"""What is printed and writes no file."""


@dataclass
class Args:
    results: tuple[Path, ...] = ()
    """results of scripts/benchmark.py (.parquet), scripts/probe.py and scripts/speed_llm.py (.json); fig2 needs none"""
    out: Annotated[Path, Folder()] = Path("docs/figures")
    """folder to write to"""
    figures: tuple[str, ...] = ()
    """names from the table above; without any, all for which the results are enough"""
    starts: str | None = None
    """only runs from these starting policies: "shipped" or a folder's name; needed if the results have several"""
    seeds: tuple[int, ...] = ()
    """only the runs of benchmark.py with these seeds; none means all"""

    def __post_init__(self) -> None:
        if len(self.figures) > 1 and (alone := [name for name in self.figures if name in PRINTED]):
            raise ValueError(f"--figures {alone[0]} must be alone, because it writes no file")
        if unknown := [name for name in self.figures if name not in (*NAMES, *PRINTED)]:
            raise ValueError(
                f"--figures must be of {', '.join(NAMES)}, or {' or '.join(PRINTED)}, got {', '.join(unknown)}"
            )
        if not self.results and set(self.figures) != {"fig2"}:
            raise ValueError("--results is empty: name a file that scripts/benchmark.py or scripts/probe.py wrote")
        if odd := [str(p) for p in self.results if p.suffix not in (".parquet", ".json")]:
            raise ValueError(f"--results must end in .parquet or .json, got {', '.join(odd)}")


# ---------------------------------------------------------------------------------------------------------- main
def command(args: Args, name: str) -> str:
    """The command that makes one figure again."""
    suffixes = {
        "fig1": [".json"],
        "fig7": [".json"],
        "addition": [".json"],
        "fig2": [],
        "tables": [".parquet", ".json"],
    }.get(name, [".parquet"])
    files = [str(path) for path in args.results if path.suffix in suffixes]
    words = [*(["--results"] if files else []), *files, "--out", str(args.out), "--figures", name]
    words += ["--starts", args.starts] if args.starts else []
    words += ["--seeds", *map(str, args.seeds)] if args.seeds and ".parquet" in suffixes else []
    return shlex.join(["python", "scripts/report.py", *words])


def draw(name: str, what: Any, looks: Looks, words: str, folder: Path) -> None:
    """Write one figure with a note below it, as PNG and SVG. The files' metadata contain the command that makes it."""
    figure, note = FIGURES[name].draw(what, looks), FIGURES[name].note
    if name in ("fig4", "fig5", "fig8", "fig8_all"):  # {task: {algorithm: runs}}
        settings = {run.setting or "defaults" for arms in what.values() for arm in arms.values() for run in arm}
        note += f" Settings: {' or '.join(sorted(settings))} (see tables.md)." if settings != {"defaults"} else ""
    lines = textwrap.wrap(note, int(18.5 * figure.get_figwidth()), break_on_hyphens=False)
    figure.supxlabel("\n".join(lines), fontsize=7, color="dimgray", x=0.01, ha="left", parse_math=False)
    figure.savefig(folder / f"{name}.png", metadata={"Description": words})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Description": words})
    plt.close(figure)


def print_table(name: str, args: Args) -> None:
    """One table for each folder of starting policies in the results."""
    files = [path for path in args.results if path.suffix == ".parquet"]
    kinds = dict.fromkeys(str(name) for path in files for name in read_table(path)["starts"].unique())
    if not kinds:
        raise errors.UserError(f"{name} needs runs of scripts/benchmark.py, which --results do not contain")
    for starts in [args.starts] if args.starts else kinds:
        study = Study(files, starts, sppo_envs.TASKS + sppo_envs.HARDER, args.seeds)
        if study.runs:
            print(PRINTED[name](study, starts))


def main(args: Args) -> None:
    if args.seeds:
        every = [read_table(path) for path in args.results if path.suffix == ".parquet"]
        there = [table[table["starts"] == args.starts] if args.starts else table for table in every]
        if any(map(len, there)):  # otherwise Study says what is wrong with --starts
            check_seeds(args.seeds, [int(seed) for table in there for seed in table["seed"].unique()])
    if args.figures and args.figures[0] in PRINTED:
        return print_table(args.figures[0], args)
    study = Study(args.results, args.starts, sppo_envs.TASKS + sppo_envs.HARDER, args.seeds)
    found = {name: FIGURES[name].what(study) for name in FIGURES} | {"tables": bool(study)}
    needs = {name: FIGURES[name].needs for name in FIGURES} | {"tables": "runs"}
    wanted = dict.fromkeys(args.figures or NAMES)
    left_out = [name for name in wanted if not found[name]]
    if args.figures and left_out:
        raise errors.UserError(
            "; ".join(f"{name} needs {needs[name]}, which --results do not contain" for name in left_out)
        )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".writing-", dir=args.out)
    except OSError as error:
        raise errors.UserError(f"cannot write to --out {args.out}: {error}") from error
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "svg.hashsalt": "sppo", "savefig.dpi": 130})
    with folder as temporary:
        for name in (n for n in wanted if n not in left_out):
            if name == "tables":
                text = tables(study, command(args, name))
                Path(temporary, "tables.md").write_text(text)
                print(text)
            else:
                draw(name, found[name], study.looks, command(args, name), Path(temporary))
        for file in sorted(Path(temporary).iterdir()):  # replace all files, or none if one of them failed
            os.replace(file, args.out / file.name)
            print(f"wrote {args.out / file.name}")
    for name in left_out:
        print(f"left out {name}: it needs {needs[name]}, which --results do not contain")


if __name__ == "__main__":
    cli.main(main, Args, __doc__, command_files=True)
