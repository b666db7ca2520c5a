"""The command `sppo`: the files of scripts/ under short names, in a clone and after `pip install`.

    sppo train --algorithm ppo --env-id sppo/SparsePendulum-v0     # the same as python scripts/ppo_cartpole.py --env-id ...
    sppo evaluate --run runs/<folder>
    sppo train --resume runs/<folder>                              # the algorithm is the run's

A wheel has the same files in the folder sppo_control/scripts, and runs them by their path. So there is one code, and a file
can be read, copied and changed. This module imports nothing of the package and no torch: `sppo --help` is fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TextIO

ALGORITHMS = {
    "sppo": ("sppo_cartpole", ()),
    "ppo": ("ppo_cartpole", ()),
    "grpo": ("grpo_cartpole", ()),
    "rloo": ("rloo_cartpole", ()),
    "remax": ("remax_cartpole", ()),
    "reinforce": ("rloo_cartpole", ("--group-size", "1")),
    "sppo-llm": ("sppo_llm", ()),
    "ppo-llm": ("ppo_llm", ()),
    "grpo-llm": ("grpo_llm", ()),
    "rloo-llm": ("rloo_llm", ()),
}
"""Value of `sppo train --algorithm` -> the script without .py, and its flags. docs/results.md says how they differ."""
SCRIPTS = {
    "evaluate": ("evaluate", "success of policies, and videos"),
    "enjoy": ("enjoy", "watch a policy in a window or as a video"),
    "share": ("share", "a folder in the format of the Hugging Face Hub, with a model card"),
    "pretrain": ("pretrain", "make a starting policy"),
    "bench": ("benchmark", "grids of runs over tasks, algorithms and seeds"),
    "tune": ("tune", "search hyper-parameters with Optuna"),
    "report": ("report", "figures and tables of a grid"),
    "plot": ("plot", "curves of runs as a picture"),
}
"""Command -> its script without .py, and what it is for."""
MODULES = {
    "check": ("sppo_control.conformance", "check an implementation of yours: sppo check my_losses:adapter"),
    "course": ("sppo_control.course", "exercises that grade themselves"),
}
"""Command -> a module that is run as with python -m, and what it is for."""
typed: str | None = None
"""What the user typed, such as "sppo train". Help shows it in place of a file's path; None where a file was run."""


def scripts_folder() -> Path:
    """Where the scripts are: inside the package in a wheel, beside it in a clone."""
    inside = Path(__file__).resolve().parent / "scripts"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1] / "scripts"


def algorithm_of(words: list[str]) -> tuple[str | None, list[str]]:
    """The value of --algorithm, which the scripts do not know, and the other words.

    Args:
        words: the command line behind `sppo train`.

    Returns:
        The algorithm, None if the words do not say, and the words without it.

    Raises:
        ValueError: --algorithm without a value, or with an unknown one, or twice.
    """
    found, rest, i = [], [], 0
    while i < len(words):
        name, equals, value = words[i].partition("=")
        if name == "--algorithm":
            if not equals:
                i += 1
                value = words[i] if i < len(words) else ""
            found.append(value)
        else:
            rest.append(words[i])
        i += 1
    if len(found) > 1:
        raise ValueError(f"--algorithm must be given once, got {' and '.join(found)}")
    if found and found[0] not in ALGORITHMS:
        raise ValueError(f"--algorithm must be one of {', '.join(ALGORITHMS)}, got {found[0][:80]!r}")
    return found[0] if found else None, rest


def script_to_train(words: list[str]) -> tuple[str, list[str]]:
    """The script and its command line, for the words behind `sppo train`.

    A resumed run says itself which script made it.

    Args:
        words: the words.

    Returns:
        The script without .py, and its words.

    Raises:
        ValueError: see `algorithm_of`; or --resume names no run of a script of this package.
    """
    algorithm, rest = algorithm_of(words)
    if algorithm is not None:
        script, flags = ALGORITHMS[algorithm]
        return script, [*flags, *rest]
    given = dict(zip(rest, [*rest[1:], ""], strict=False)) | dict(word.split("=", 1) for word in rest if "=" in word)
    if "--resume" not in given:
        return "sppo_cartpole", rest
    path = Path(given["--resume"])
    for folder in (path, path.parent.parent):  # a run, or a checkpoint of one
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            script = str(config["script"]).removesuffix(".py")
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if script in {name for name, _ in ALGORITHMS.values()}:
            return script, rest
        raise ValueError(f"{path} was made by {config['script']!r}, which is no script of this package; run that file")
    raise ValueError(f"--resume {str(path)[:200]} is no run folder and no checkpoint of one; name a folder of runs/")


def usage() -> str:
    """The text of `sppo --help`."""
    about = {"train": "train by --algorithm " + ", ".join(ALGORITHMS)}
    about |= {name: text for name, (_, text) in (SCRIPTS | MODULES).items()}
    lines = "\n".join(f"  {name:10} {text}" for name, text in about.items())
    return (
        f"usage: sppo COMMAND [FLAGS]\n\n{lines}\n\n`sppo COMMAND --help` shows the flags of a command. "
        f"The scripts are in {scripts_folder()}"
    )


@contextlib.contextmanager
def may_stay_unread() -> Iterator[None]:
    """End without a word if nobody reads the output any more, as in `sppo --help | head -1`.

    The exit status is then 141 (128 + SIGPIPE), as a shell reports it of other programs. A pipe to something else that
    breaks, such as one to a worker process, is still an error.
    """
    try:
        try:
            yield
        except SystemExit:  # after --help
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        left = [file for file in (sys.stdout, sys.stderr) if _reader_left(file)]
        if not left:
            raise
        for file in left:  # what is not written yet goes nowhere; else Python complains of it at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        sys.exit(141)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _reader_left(file: TextIO | None) -> bool:
    """Whether a file is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(file.fileno(), 0)  # type: ignore[union-attr]
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on this system, or no file behind it
        return False


def main() -> None:
    """The console command. Exit status 2 and one line after wrong use; else the exit status of the script."""
    with may_stay_unread():
        _main()


def _main() -> None:
    global typed
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command in MODULES:
        module, _ = MODULES[command]
        if find_spec(module) is None:
            _refuse(f"sppo {command} needs the module {module}, which this version does not have; update sppo-control")
        typed = f"sppo {command}"
        sys.argv = [typed, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    if command == "train":
        try:
            script, words = script_to_train(words)
        except ValueError as error:
            _refuse(str(error))
        if {"-h", "--help"} & set(words):
            print(
                f"sppo train --algorithm NAME, where NAME is one of {', '.join(ALGORITHMS)}. The default is sppo.\n"
                f"This help is that of {script}.py, the file that this command runs.\n"
            )
    elif command in SCRIPTS:
        script = SCRIPTS[command][0]
    else:
        commands = ", ".join(["train", *SCRIPTS, *MODULES])
        _refuse(f"the command must be one of {commands}, got {command[:80]!r}; see sppo --help")
    folder = scripts_folder()
    file = folder / f"{script}.py"
    if not file.is_file():
        _refuse(f"{file} is missing; install the package again")
    typed = f"sppo {command}"
    sys.argv = [str(file), *words]
    sys.path.insert(0, str(folder))  # as for `python scripts/X.py`: scripts may import their neighbours
    runpy.run_path(str(file), run_name="__main__")


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    from sppo_control import commands  # not this copy: `typed` is read from the imported one

    commands.main()
