"""The one door of every script: reads the command line, runs the script's function, prints errors in one line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from .checkpoints import read_json, run_folder
from .errors import NonFiniteError, UserError

ArgsT = TypeVar("ArgsT")
RESUMABLE_CHANGES = {"resume", "total_timesteps", "total_episodes", "save_every", "eval_episodes"}
"""Arguments that may differ when a run is resumed: none of them changes what an update computes."""


def parse_args(args_type: type[ArgsT], description: str | None) -> ArgsT:
    """Read the command line into a dataclass; with --resume PATH, the stored arguments are the defaults.

    Args:
        args_type: a dataclass which checks its values in `__post_init__`; `resume: str | None`, if it has that field,
            names a run folder or a checkpoint.
        description: shown by --help.

    Raises:
        UserError: impossible values, a run folder that cannot be resumed, or a resumed argument that may not change.
    """
    try:
        args = tyro.cli(args_type, description=description)
        resume = getattr(args, "resume", None)
        if resume is None:
            return args
        stored = read_json(run_folder(Path(resume)) / "config.json")["args"]
        fields = {f.name for f in dataclasses.fields(cast(Any, args_type))}
        if unknown := set(stored) - fields:
            raise UserError(f"{resume} was made by another script or version: unknown arguments {sorted(unknown)}")
        # JSON has no tuples, and tyro parses what is still given on the command line over the stored values.
        stored = args_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
        args = tyro.cli(args_type, description=description, default=stored)
    except ValueError as error:
        raise UserError(str(error)) from error
    may_change = RESUMABLE_CHANGES & fields
    for name in sorted(fields - may_change):
        old, new = getattr(stored, name), getattr(args, name)
        if old != new:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} is {old} in the run to be resumed and cannot become {new}; leave it out, or start a new run. "
                f"These may change: {', '.join('--' + n.replace('_', '-') for n in sorted(may_change))}"
            )
    return args


def main(train: Callable[[ArgsT], Any], args_type: type[ArgsT], description: str | None) -> None:
    """Entry point of a script: parse, train, and turn errors that the user can mend into one line and exit status 2."""
    try:
        train(parse_args(args_type, description))
    except NonFiniteError as error:
        sys.exit(f"stopped: {error}")
    except (UserError, ValueError, OSError, ImportError) as error:  # ImportError: an extra is missing
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
