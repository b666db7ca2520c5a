"""The one door of every script: read the command line, run the script, print errors that the user can mend in one line.

A script's arguments are a dataclass `Args` with a default for every field. Some defaults depend on other arguments (a
task has its own learning rate). Then `Args` has a static method `defaults`: its parameters are the names of those
arguments, and it returns the values of the others. They are read from the command line first, so that `--help` shows
the values that will be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro

from .checkpoints import check_layout, read_json, run_folder
from .errors import NonFiniteError, UserError

ArgsT = TypeVar("ArgsT")
RESUMABLE_CHANGES = {"resume", "total_timesteps", "total_episodes", "save_every", "eval_episodes"}
"""Arguments that may differ when a run is resumed, because none of them changes what an update computes."""


def main(run: Callable[[ArgsT], Any], args_type: type[ArgsT], description: str | None) -> None:
    """Entry point of a script. Exit status 2 for what the user can mend, 1 for a run that became NaN.

    Args:
        run: the script's function.
        args_type: its arguments; see `parse_args`.
        description: shown by --help.
    """
    if os.getcwd() not in sys.path:  # Python itself adds the script's folder, where no user keeps modules
        sys.path.append(os.getcwd())
    try:
        run(parse_args(args_type, description))
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
