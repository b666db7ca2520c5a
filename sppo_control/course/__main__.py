"""A course in exercises that grade themselves.

    python -m sppo_control.course start my_course    # copy the exercises into a folder, and go there
    python -m sppo_control.course list               # number, title, difficulty, minutes, state, and what it teaches
    python -m sppo_control.course watch              # grade the current exercise at each save; go on when it is solved
    python -m sppo_control.course check e02          # grade one now; without a name, the first that is not solved
    python -m sppo_control.course hint e02           # one more hint for the check that fails
    python -m sppo_control.course reset e02          # put the template back; your text is kept in a backup file
    python -m sppo_control.course progress           # how far you are

The exit status is 0, or 1 if a checked exercise is not solved, and 2 after wrong use.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from .. import cli
from . import catalog
from .catalog import Exercise, Folder
from .grading import report

POLL = 0.3
"""Seconds between two looks at the watched file."""


@dataclass
class Args:
    """The command line."""

    command: tyro.conf.Positional[Literal["start", "list", "watch", "check", "hint", "reset", "progress"]] = "list"
    """what to do; see above"""
    name: tyro.conf.Positional[str] = "-"
    """an exercise, such as 2, e02 or its file; for start, a folder"""
    folder: Path | None = None
    """the folder with your exercises; without it this folder, or exercises in it"""
    solutions: bool = False
    """with start: copy the solutions too"""

    def __post_init__(self) -> None:
        if self.command in ("start", "hint", "reset") and self.name in ("-", ""):
            what = "a folder, such as my_course" if self.command == "start" else "an exercise, such as e02"
            raise ValueError(f"{self.command} needs {what}")
        if self.command in ("list", "progress") and self.name != "-":
            raise ValueError(f"{self.command} takes no name, got {self.name!r}")
        if self.solutions and self.command != "start":
            raise ValueError("--solutions belongs to start")


def run(args: Args) -> None:
    """Do what the command line says, and end with its exit status."""
    if args.command == "start":
        target = Path(args.name)
        files = catalog.start(target, args.solutions)
        print(f"{len(files)} files are in {target}. Now:\n\n    cd {target}\n    python -m sppo_control.course watch\n")
        print(f"Or open {files[0].name}, fill it, and run it: python {files[0].name}")
        return
    folder = Folder.found(args.folder)
    named = None if args.name == "-" else catalog.find(args.name)
    if args.command == "list":
        print(table(folder))
    elif args.command == "progress":
        print(progress(folder))
    elif args.command == "hint" and named:
        print(hint(folder, named))
    elif args.command == "reset" and named:
        kept = folder.reset(named)
        print(f"{folder.file(named)} is the template again." + (f" Your text is in {kept}." if kept else ""))
    elif args.command == "watch":
        with contextlib.suppress(KeyboardInterrupt):
            watch(folder, named, _typed())
    else:
        exercise = named or folder.current(_aside)
        if exercise is None:
            print(progress(folder))
            return
        found = folder.grade(exercise)
        print(report(folder.file(exercise), found))
        sys.exit(0 if found.solved else 1)


def _aside(text: str) -> None:
    print(text, file=sys.stderr)


def table(folder: Folder) -> str:
    """All exercises with their state, as aligned text."""
    head = ("", "title", "difficulty", "minutes", "state", "teaches")
    rows = [
        (e.number, e.title, f"{e.difficulty}/5", str(e.minutes), folder.status(e, _aside), e.teaches)
        for e in catalog.exercises()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in [head, *rows]
    )


def progress(folder: Folder) -> str:
    """A bar, how many are solved, and the next one."""
    states = [(e, folder.status(e, _aside)) for e in catalog.exercises()]
    solved = sum(state == "solved" for _, state in states)
    lines = [f"[{'#' * solved}{'.' * (len(states) - solved)}] {solved} of {len(states)} exercises are solved"]
    left = [(e, state) for e, state in states if state not in ("solved", "missing")]
    if left:
        e, state = left[0]
        minutes = sum(e.minutes for e, _ in left)
        lines.append(f"next: {e.stem} ({state}). About {minutes} minutes are left.")
    if missing := [e.stem for e, state in states if state == "missing"]:
        lines.append(f"missing files: {', '.join(missing)}; python -m sppo_control.course reset makes one again")
    if solved == len(states):
        lines.append("You have solved them all.")
    return "\n".join(lines)


def hint(folder: Folder, exercise: Exercise) -> str:
    """The next hint as text."""
    found = folder.hint(exercise)
    if found is None:
        return f"{exercise.stem} is solved, so there is nothing to hint at."
    text, number, total, check = found
    end = (
        f"\nThat was the last one for this check. A solution: {catalog.shipped() / 'solutions' / exercise.stem}.py"
        if number == total
        else ""
    )
    return f"The check that fails: {check}\nHint {number} of {total}: {text}{end}"


# ------------------------------------------------------------------------------------------------------------ watch
def _typed() -> queue.Queue[str] | None:
    """What is typed while `watch` runs, line by line; None if nobody can type."""
    if not sys.stdin or not sys.stdin.isatty():
        return None
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip().lower())

    threading.Thread(target=read, daemon=True).start()
    return lines


def watch(
    folder: Folder,
    exercise: Exercise | None = None,
    typed: queue.Queue[str] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Grade the current exercise now and at each save; when it is solved, go to the next. It ends when all are solved.

    Args:
        folder: the student's folder.
        exercise: the first one to watch; None is the first that is not solved.
        typed: lines that the student types: h is a hint, q ends.
        wait: called between two looks at the file, with a number of seconds.
    """
    while (exercise := exercise or folder.current(_aside)) is not None:
        path, seen = folder.file(exercise), None
        while True:
            text = _text(path)
            if text is not None and text != seen:
                seen = text
                if sys.stdout.isatty():
                    print("\033[2J\033[H", end="")
                found = folder.grade(exercise)
                print(f"\n{report(path, found)}\n")
                if found.solved:
                    break
                print(
                    f"Change and save {path}: it is graded again. h and Enter: a hint. q and Enter, or Ctrl-C: the end."
                )
                sys.stdout.flush()
            word = None
            if typed is not None:
                with contextlib.suppress(queue.Empty):
                    word = typed.get_nowait()
            if word in ("h", "hint"):
                print(hint(folder, exercise))
            elif word in ("q", "quit", "exit"):
                return
            wait(POLL)
        exercise = None
    print(progress(folder))


def _text(path: Path) -> bytes | None:
    """The file's text; None while an editor replaces it."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def main() -> None:
    """The console script, and `python -m`."""
    if sys.argv[0].endswith("__main__.py"):  # help and errors show what was typed
        sys.argv[0] = "python -m sppo_control.course"
    cli.main(run, Args, __doc__)


if __name__ == "__main__":
    main()
