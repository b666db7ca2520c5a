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
import dis
import inspect
import io
import math
import os
import re
import shutil
import sys
import sysconfig
import textwrap
import tomllib
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro

from . import commands
from .checkpoints import check_layout, check_module, read_config, run_folder, short
from .errors import FileError, NonFiniteError, UserError
from .limits import check_limits
from .limits import flag as flag
from .outputs import check_outputs

ArgsT = TypeVar("ArgsT")


def _project_folders() -> list[Path]:
    """Where this project's environments and scripts are, in a clone and after pip install."""
    root = Path(__file__).resolve().parents[1]
    return [root / "envs" / "sppo_envs", root / "sppo_envs", root / "scripts"]


RESUMABLE_CHANGES = {
    "resume",
    "total_timesteps",
    "total_episodes",
    "save_every",
    "eval_episodes",
    "track",
    "capture_video",
    "watch",
}
"""Arguments that may differ when a run is resumed, because none of them changes what an update computes."""
MODULES = ("env_id", "reward")
"""Arguments that may be module:name, which makes Python import the module."""


def main(
    run: Callable[[ArgsT], Any], args_type: type[ArgsT], description: str | None, command_files: bool = False
) -> None:
    """Entry point of a script.

    Exit status 2 and one line for what the user can mend, 1 and one line for a run that became NaN. Everything else is
    raised on, with a note that says in whose code it happened. Python then prints the traceback and the note, and its exit
    status is 1. See `is_refusal`.

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
    """End the program with one line for what the user can mend; also around imports that need an extra.

    Output that nobody reads any more is no error; see `commands.may_stay_unread`.
    """
    try:
        with commands.may_stay_unread():
            yield
    except NonFiniteError as error:
        sys.exit(f"stopped: {error}")
    except Exception as error:
        if is_refusal(error):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        error.add_note(f"error: {_blame(error)}")
        raise


def is_refusal(error: BaseException) -> bool:
    """Whether an error is a sentence of this project that the user can act on, which needs no traceback.

    It is if it is a `UserError`, or a ValueError, OSError or ImportError that a `raise` statement of this project raised.
    So is an OSError that Python or a library raised for this project, such as one of a file that cannot be opened. All
    else is a defect of somebody's code, often of the user's environment, and its traceback says where.
    """
    if isinstance(error, UserError):
        return True
    if not isinstance(error, ValueError | OSError | ImportError):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return True
    frame, _ = frames[-1]
    if _is_ours(frame.f_code.co_filename):
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None:
            tb = tb.tb_next
        raised = tb is not None and dis.opname[frame.f_code.co_code[tb.tb_lasti]] == "RAISE_VARARGS"
        return raised or isinstance(error, OSError)
    if not isinstance(error, OSError):
        return False
    for frame, _ in reversed(frames):
        file = frame.f_code.co_filename
        if _is_ours(file):
            return True
        if not _is_library(file) or "gymnasium" in Path(file).parts:  # inside an environment
            return False
    return False


def _blame(error: BaseException) -> str:
    """One line about an unexpected error: in whose code it happened. Python prints it below the traceback."""
    name = type(error).__name__
    if "Traceback (most recent call last):" in str(error):  # of a worker process
        return "the environment failed in its worker process; the last lines of the traceback say where"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if _is_ours(file):
            break
        if not _is_library(file):
            return f"{name} in {file}, line {line}, which is not part of sppo_control"
    return f"{name} was not expected here; if none of the files above is yours, it is a defect of sppo_control"


_OURS = (Path(__file__).resolve().parent, *(Path(p).resolve() for p in _project_folders()))


def _is_ours(file: str) -> bool:
    return any(Path(file).resolve().is_relative_to(folder) for folder in _OURS)


def _is_library(file: str) -> bool:
    """Whether a file is Python's own or an installed package's."""
    if file.startswith("<"):
        return True
    path, places = Path(file).resolve(), sysconfig.get_paths()
    libraries = {Path(places[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return "site-packages" in path.parts or any(path.is_relative_to(library) for library in libraries)


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
    several = {name for name, hint in get_type_hints(args_type).items() if "tuple[str" in str(hint)}
    _refuse_empty(words, fields - several)
    try:
        early = _read_early(args_type, {*_decisive(args_type), *({"resume", *MODULES} & fields)}, words)
        resume = early.pop("resume", None)
        if resume is None:
            early = {name: early[name] for name in _decisive(args_type) if name in early}
            default = make_args(args_type, **early) if hasattr(args_type, "defaults") else None
            return _read_words(args_type, description, words, default)
        folder = run_folder(Path(resume))
        stored = _stored_args(args_type, folder, early)
        args = _read_words(args_type, description, words, stored)
    except ValueError as error:
        raise UserError(str(error)) from error
    may_change = RESUMABLE_CHANGES & fields
    if getattr(stored, "anneal_lr", False):  # then the length of the run decides each learning rate
        may_change -= {"total_timesteps"}
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
    except (OSError, ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, UnicodeDecodeError
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
    return found


def _stored_args(args_type: type[ArgsT], folder: Path, given: dict[str, Any]) -> ArgsT:
    """The arguments in a run's config.json.

    Raises:
        UserError: they are not those of this script, of another type, impossible, or name a module that may not be
            imported.
    """
    path, fields = folder / "config.json", {field.name for field in dataclasses.fields(cast(Any, args_type))}
    config = read_config(folder)
    check_layout(folder, config)
    values = config["args"]
    if "kernels" in fields:
        values = {"kernels": "torch", **values}  # runs from before there were others
    if unknown := set(values) - fields:
        raise UserError(f"{folder} was made by another script or version: unknown arguments {sorted(unknown)}")
    for name, hint in get_type_hints(args_type).items():
        if name in values and not fits(values[name], hint):
            words = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise FileError(f'{path}: "{name}" must be of type {words}, got {short(values[name])}')
    for name in MODULES:
        check_module(values.get(name), folder, given.get(name), flag(name))
    # JSON has no tuples, and tyro parses what is still given on the command line over the stored values.
    try:
        return args_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is one of an argument's type; a whole number is also a float, a list also a tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, h) for h in inner)
    if origin is Literal:
        return any(type(value) is type(x) and value == x for x in inner)
    if origin is tuple:
        return isinstance(value, list) and all(fits(x, inner[0]) for x in value)
    if hint in (types.NoneType, None):
        return value is None
    if hint is float:
        return (isinstance(value, float) and math.isfinite(value)) or fits(value, int)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is bool:
        return isinstance(value, bool)
    return isinstance(value, str) if hint in (str, Path) else True


def _refuse_empty(words: Sequence[str], fields: set[str]) -> None:
    """An empty text is a variable of the shell that is not set; as a path it would be the current folder."""
    flags = {flag(name) for name in fields}
    for before, word in zip(("", *words), words, strict=False):
        name = (word.partition("=")[0] if word.endswith("=") else before).replace("_", "-")
        if (not word or word.endswith("=")) and name in flags:
            raise UserError(f"{name} must not be empty; leave it out, or give it a value")


def _read_words(args_type: type[ArgsT], description: str | None, words: Sequence[str], default: ArgsT | None) -> ArgsT:
    """The real parser, and what is checked of every script: numbers make sense, and outputs can be written.

    Raises:
        UserError: what the parser refuses; it prints a box, of which this is the text in one line.
        ValueError: see `check_limits` and `check_outputs`.
    """
    said = io.StringIO()
    columns = os.environ.get("COLUMNS")
    try:
        if not {"-h", "--help"} & set(words):
            os.environ["COLUMNS"] = "10000"  # a box that is narrower would cut long words in two
        with contextlib.redirect_stderr(said):
            args = cast(Any, tyro.cli)(
                args_type, prog=commands.typed or sys.argv[0], description=_wrapped(description), args=words,
                default=default,
            )  # fmt: skip
    except SystemExit:
        if not said.getvalue():  # --help
            raise
        raise UserError(_unboxed(said.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS", None)
        if columns is not None:
            os.environ["COLUMNS"] = columns
    check_limits(args)
    check_outputs(args)
    return args


def _unboxed(box: str) -> str:
    """One line for the parser's box: its first paragraph, and the flags that may have been meant."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    paragraphs: list[list[str]] = [[]]
    for line in (line.strip("│╭╮╰╯ ") for line in text.splitlines()):
        if re.fullmatch(r"[─-]*|─ .* ─*", line):  # a ruler, or the upper edge with the title in it
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    joined = [" ".join(lines) for lines in paragraphs if lines]
    first, *rest = joined if "│" in text else joined[1:]  # a box without edges begins with its title
    if own := re.match(r"Error parsing (?!--)\S+: (.*)", first):  # a ValueError of __post_init__
        return own[1]
    meant = [re.findall(r"(?:^|\s)(--[\w-]+)(?= |$)", words) for words in rest if words.startswith("Perhaps you meant")]
    names = dict.fromkeys(name for found in meant for name in found)
    hint = f"; perhaps you meant {' or '.join(names)}" if names else ""
    return f"{first.rstrip('.')}{hint}; --help shows all flags"


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
