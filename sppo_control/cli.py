"""The one door of every script: read the command line, run the script, print errors that the user can mend in one line.

A script's arguments are a dataclass `Args` with a default for every field. Some defaults depend on other arguments (a
task has its own learning rate). Then `Args` has a static method `defaults`: its parameters are the names of those
arguments, and it returns the values of the others. They are read from the command line first, so that `--help` shows
the values that will be used.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import os
import re
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro

from .checkpoints import check_layout, read_json, run_folder
from .errors import NonFiniteError, UserError

ArgsT = TypeVar("ArgsT")
RESUMABLE_CHANGES = {"resume", "total_timesteps", "total_episodes", "save_every", "eval_episodes"}
"""Arguments that may differ when a run is resumed, because none of them changes what an update computes."""


def main(
    run: Callable[[ArgsT], Any], args_type: type[ArgsT], description: str | None, command_files: bool = False
) -> None:
    """Entry point of a script. Exit status 2 for what the user can mend, 1 for a run that became NaN.

    Args:
        run: the script's function.
        args_type: its arguments; see `parse_args`.
        description: shown by --help.
        command_files: the script also takes `--commands FILE` in place of all other arguments; see `read_commands`.
    """
    if os.getcwd() not in sys.path:  # Python itself adds the script's folder, where no user keeps modules
        sys.path.append(os.getcwd())
    with one_line_errors():
        if command_files and sys.argv[1:2] == ["--commands"]:
            if len(sys.argv) != 3:
                raise UserError(f"--commands takes one file and no other arguments, got {' '.join(sys.argv[2:])!r}")
            for args in read_commands(args_type, Path(sys.argv[2])):
                run(args)
            return
        run(parse_args(args_type, description))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line for what the user can mend; also around imports that need an extra."""
    try:
        yield
    except NonFiniteError as error:
        sys.exit(f"stopped: {error}")
    except (UserError, ValueError, OSError, ImportError) as error:  # ImportError: an extra is missing
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def make_args(args_type: type[ArgsT], **given: Any) -> ArgsT:
    """`args_type(**given)`, where all that is not given has the default that belongs to what is given.

    `sppo_cartpole.Args(env_id="sppo/SparseHopper-v0")` has the numbers of Precision CartPole, because those are written
    in the file; `make_args(sppo_cartpole.Args, env_id="sppo/SparseHopper-v0")` has Hopper's.

    Raises:
        ValueError: impossible values.
    """
    rule = getattr(args_type, "defaults", None)
    if rule is None:
        return args_type(**given)
    fields = {field.name: field.default for field in dataclasses.fields(cast(Any, args_type))}
    return args_type(**{**rule(**{name: given.get(name, fields[name]) for name in _decisive(args_type)}), **given})


def parse_args(args_type: type[ArgsT], description: str | None, words: Sequence[str] | None = None) -> ArgsT:
    """Read the command line into a dataclass; with --resume PATH, the stored arguments are the defaults.

    Args:
        args_type: a dataclass that checks its values in `__post_init__`. If it has a field `resume: str | None`, that
            names a run folder or a checkpoint. If it has a static method `defaults`, see the module.
        description: shown by --help.
        words: the command line; None is the program's own.

    Raises:
        UserError: impossible values, a run folder that cannot be resumed, or a resumed argument that may not change.
    """
    words = sys.argv[1:] if words is None else list(words)
    fields = {field.name for field in dataclasses.fields(cast(Any, args_type))}
    try:
        early = _read_early(args_type, {*_decisive(args_type), *({"resume"} & fields)}, words)
        resume = early.pop("resume", None)
        if resume is None:
            default = make_args(args_type, **early) if hasattr(args_type, "defaults") else None
            return cast(Any, tyro.cli)(args_type, description=_wrapped(description), args=words, default=default)
        folder = run_folder(Path(resume))
        config = read_json(folder / "config.json")
        check_layout(folder, config)
        values = config["args"]
        if unknown := set(values) - fields:
            raise UserError(f"{resume} was made by another script or version: unknown arguments {sorted(unknown)}")
        # JSON has no tuples, and tyro parses what is still given on the command line over the stored values.
        stored = args_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        args = tyro.cli(args_type, description=_wrapped(description), args=words, default=stored)
    except ValueError as error:
        raise UserError(str(error)) from error
    may_change = RESUMABLE_CHANGES & fields
    for name in sorted(fields - may_change):
        old, new = getattr(stored, name), getattr(args, name)
        if old != new:
            raise UserError(
                f"{flag(name)} is {old} in the run to be resumed and cannot become {new}; leave it out or start a new run. "
                f"These may change: {', '.join(flag(n) for n in sorted(may_change))}"
            )
    return args


def read_commands(args_type: type[ArgsT], file: Path) -> list[ArgsT]:
    """Several command lines of a script from a TOML file, where they can be read and commented better than in a shell.

    Each [[command]] has flags without their dashes as keys:

        [[command]]
        figures = ["fig5"]
        results = ["results/seconds.parquet"]

    Args:
        args_type: the script's arguments.
        file: the TOML file.

    Raises:
        UserError: names the file and the command (from 1) with an unknown key or an impossible value.
    """
    try:
        commands = tomllib.loads(file.read_text()).get("command")
    except (OSError, ValueError) as error:  # ValueError: TOMLDecodeError, UnicodeDecodeError
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(commands, list) or not commands or not all(isinstance(c, dict) for c in commands):
        raise UserError(f"{file} has no command: each one begins with a line [[command]]")
    known = [flag(field.name).removeprefix("--") for field in dataclasses.fields(cast(Any, args_type))]
    found = []
    for i, command in enumerate(commands, start=1):
        where = f"{file}, command {i}"
        if unknown := [key for key in command if key not in known]:
            raise UserError(f"{where}: unknown key {', '.join(unknown)}; there are {', '.join(known)}")
        words = []
        for key, value in command.items():
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        try:
            found.append(parse_args(args_type, None, words))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except SystemExit as error:  # the parser has printed what is wrong
            raise UserError(f"{where}: see above") from error
    return found


def flag(name: str) -> str:
    """The flag of an argument: critic_steps -> --critic-steps."""
    return "--" + name.replace("_", "-")


def _wrapped(description: str | None) -> str:
    """A docstring for the terminal: paragraphs and list items are wrapped, indented commands and tables stay."""
    width = min(shutil.get_terminal_size().columns, 100) - 2
    lines: list[str] = []
    for block in re.split(r"\n{2,}|\n(?=\d\. |- )", inspect.cleandoc(description or "")):
        as_it_is = block.startswith((" ", "|"))
        hanging = " " * (3 if re.match(r"\d\. ", block) else 2 if block.startswith("- ") else 0)
        words = (
            block.split("\n") if as_it_is else textwrap.wrap(" ".join(block.split()), width, subsequent_indent=hanging)
        )
        lines += words if hanging else ["", *words, ""]
    # tyro joins lines that begin with a letter
    return re.sub(r"\n{3,}", "\n\n", "\n".join(f" {line}".rstrip() for line in lines)).strip("\n")


def _decisive(args_type: type) -> tuple[str, ...]:
    """The arguments that decide about the defaults of others."""
    rule = getattr(args_type, "defaults", None)
    return () if rule is None else tuple(inspect.signature(rule).parameters)


def _read_early(args_type: type, names: set[str], words: Sequence[str]) -> dict[str, Any]:
    """Some arguments of a command line whose others are not known yet; impossible ones are left to the real parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(flag(name), "--" + name, dest=name, nargs="?", default=argparse.SUPPRESS)
    hints = get_type_hints(args_type)
    early = {}
    for name, word in vars(parser.parse_known_args(list(words))[0]).items():
        value = None if word == "None" else word
        allowed = get_args(hints[name]) if get_origin(hints[name]) is Literal else None
        if word is not None and (allowed is None or value in allowed):
            early[name] = value
    return early
