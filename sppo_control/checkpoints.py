"""Checkpoints: weights as safetensors, counters as JSON, in a folder that is written as a whole or not at all.

| in a run folder                     | what                                                                   |
| ----------------------------------- | ---------------------------------------------------------------------- |
| config.json                         | arguments, versions, git commit, layout                                |
| checkpoints/<update>/<part>.safetensors | a `Tensors` part: a network, an optimiser, a window of contexts    |
| checkpoints/<update>/<part>/        | a `Folder` part: a Hugging Face model                                  |
| checkpoints/<update>/state.json     | counters, layout, and the SHA-256 of every file of the checkpoint      |

Whatever is read here may come from a stranger. Loading it never executes code. Files that are damaged, or that are not
what they should be, are refused with one line that names the file and the entry.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import FileError, UserError

LAYOUT = 2
"""Of run folders and checkpoints. 1 (up to version 0.1.0) had one optimiser for policy and critic."""


@runtime_checkable
class Tensors(Protocol):
    """A part of a checkpoint that is a file of named tensors."""

    def named_tensors(self) -> dict[str, Tensor]:
        """All that the file must hold."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take on what `named_tensors` gave; ValueError if names or shapes do not fit."""
        ...

    def file_metadata(self) -> dict[str, str]:
        """What the file says of itself; may be empty."""
        ...


class Folder(Protocol):
    """A part of a checkpoint that writes a folder of its own, as Hugging Face's models do."""

    def save_pretrained(self, folder: Path) -> None:
        """Write everything into `folder`, which exists."""
        ...

    def load_pretrained(self, folder: Path) -> None:
        """Take on the weights in `folder`; OSError, ValueError or RuntimeError if they do not fit."""
        ...


Part = Tensors | Folder
"""What a checkpoint is made of."""


class OptimizerState:
    """An optimiser's state as a part of a checkpoint; its hyper-parameters come from the run's arguments."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def named_tensors(self) -> dict[str, Tensor]:
        """<parameter's number>.<key>: of Adam exp_avg, exp_avg_sq and step; nothing before the first step."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{key}": x for index, values in state.items() for key, x in values.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take on a state.

        Raises:
            ValueError: entries are missing or foreign, or of other shapes or dtypes, or not finite.
        """
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, x in sorted(tensors.items()):
            found = re.fullmatch(r"(\d{1,9})\.(exp_avg|exp_avg_sq|max_exp_avg_sq|step)", name, flags=re.ASCII)
            if found is None:
                raise ValueError(f"{name!r} is no entry of an optimiser; its entries are <number>.exp_avg and the like")
            index, key = int(found[1]), found[2]
            if index >= len(parameters):
                raise ValueError(
                    f"the optimiser has {len(parameters)} parameters, and the file has a state for number {index}"
                )
            parameter = parameters[index]
            shape, dtype = ((), torch.float32) if key == "step" else (tuple(parameter.shape), parameter.dtype)
            if tuple(x.shape) != shape:  # torch would find out in the middle of an update
                raise ValueError(
                    f"{key} of the optimiser's parameter {index} has shape {tuple(x.shape)}, the parameter {shape}"
                )
            check_values(name, x, dtype)
            if (key != "exp_avg" and (x < 0).any()) or (key == "step" and not 1 <= float(x) == int(x)):
                raise ValueError(f"{name} has a value that is not possible: {float(x.min())}")
            state.setdefault(index, {})[key] = x
        for index, values in state.items():
            needed = {"exp_avg", "exp_avg_sq", "step"}
            needed |= {"max_exp_avg_sq"} if self.optimizer.defaults.get("amsgrad") else set()
            if set(values) != needed:
                names = ", ".join(f"{index}.{key}" for key in sorted(needed ^ set(values)))
                raise ValueError(f"{names}: missing, or not of this optimiser")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def file_metadata(self) -> dict[str, str]:
        """Nothing."""
        return {}


# ------------------------------------------------------------------------------------------------ finding checkpoints
def run_folder(path: Path) -> Path:
    """The run folder that `path` names: itself, or the parent of a checkpoint in it.

    Raises:
        UserError: there is no run.
    """
    reason = "no config.json there"
    try:
        for folder in (path, path.parent.parent):
            if (folder / "config.json").is_file():
                return folder
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{str(path)[:200]} is neither a run folder nor a checkpoint of one: {reason}")


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder of checkpoints, oldest first; half-written ones have other names."""
    found = [path for path in folder.glob("*") if re.fullmatch(r"[0-9]{1,18}", path.name)]
    return sorted(found, key=lambda path: (int(path.name), path.name))


def newest(run: Path, at_most: int | None = None) -> Path:
    """The newest complete checkpoint of a run folder.

    Args:
        run: the folder.
        at_most: take none of more updates than this.

    Raises:
        UserError: there is none.
    """
    found = complete(run / "checkpoints")
    fitting = [path for path in found if at_most is None or int(path.name) <= at_most]
    if not fitting:
        why = f" of at most {at_most} updates" if found else "; did the run stop before its first?"
        raise UserError(f"{run} has no complete checkpoint{why}")
    return fitting[-1]


def checkpoint_to_resume(path: Path) -> Path | None:
    """The checkpoint that `path` names, else the newest one of the run; None if the run died before its first.

    Raises:
        UserError: there is no run.
    """
    run = run_folder(path)
    if path.resolve() != run.resolve():
        return path
    return newest(run) if complete(run / "checkpoints") else None


def check_layout(path: Path, stored: Mapping[str, Any]) -> None:
    """Refuse a run folder or checkpoint whose layout this version does not read.

    Args:
        path: of the run or checkpoint, for the message.
        stored: its config.json or state.json.

    Raises:
        UserError: names the version that reads it.
    """
    layout = stored.get("layout", 1)
    if layout != LAYOUT:
        versions = stored.get("versions")
        known = versions.get("sppo-control", "a later one") if isinstance(versions, dict) else "a later one"
        version = "0.1.0" if layout == 1 else short(known).strip("'")
        commit = f" (git commit {short(stored['git_commit'])})" if stored.get("git_commit") else ""
        raise UserError(
            f"{path} has layout {short(layout)}, this version reads layout {LAYOUT}; version {version}{commit} wrote it "
            "and can resume it. scripts/evaluate.py still reads its policy"
        )


# ------------------------------------------------------------------------------------------------ a schema per file
Check = Callable[[Any], bool]


def is_number(x: Any) -> bool:
    """A finite int or float."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def is_count(x: Any) -> bool:
    """A whole number from 0 to 2^63 - 1."""
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**63


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_object(x: Any) -> bool:
    return isinstance(x, dict)


def _is_rate(x: Any) -> bool:
    return is_number(x) and 0 <= x <= 1


def _is_evaluation(x: Any) -> bool:
    """What `outcomes.Evaluation.as_dict` gives. A measure may be NaN, because an environment may report NaN."""
    if not isinstance(x, dict) or not _is_rate(x.get("rate")) or not is_count(x.get("episodes")):
        return False
    interval, measures = x.get("interval"), x.get("measures", {})
    pair = isinstance(interval, list) and len(interval) == 2 and all(map(_is_rate, interval))
    return pair and isinstance(measures, dict) and all(isinstance(v, int | float) for v in measures.values())


def _is_outcomes(x: Any) -> bool:
    return isinstance(x, list) and all(map(_is_rate, x))


def _is_digests(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) for v in x.values())


_ANY_CONFIG: Mapping[str, tuple[Check, str]] = {"args": (_is_object, "an object")}
CONFIG: Mapping[str, tuple[Check, str]] = {
    **_ANY_CONFIG,
    "script": (_is_text, "a text"),
    "layout": (is_count, "a whole number"),
    "git_commit": (lambda x: x is None or _is_text(x), "a text or null"),
    "versions": (_is_object, "an object"),
    "machine": (_is_object, "an object"),
}
"""What config.json must contain: entry -> (test, what the message says is allowed). Other entries are left alone."""
STATE: Mapping[str, tuple[Check, str]] = {
    "layout": (is_count, "a whole number"),
    "update": (is_count, "a whole number of at least 0"),
    "sha256": (_is_digests, "an object of SHA-256 digests"),
}
"""Likewise state.json. What else a checkpoint counts is in `COUNTERS`, and its reader says which it needs."""
COUNTERS: Mapping[str, tuple[Check, str]] = {
    "update": (is_count, "a whole number of at least 0"),
    "steps": (is_count, "a whole number of at least 0"),
    "episodes": (is_count, "a whole number of at least 0"),
    "seconds": (lambda x: is_number(x) and x >= 0, "a number of at least 0"),
    "recent_outcomes": (_is_outcomes, "a list of numbers in [0, 1]"),
}
SUMMARY: Mapping[str, tuple[Check, str]] = {
    "before": (_is_evaluation, "an evaluation: rate, interval, episodes, measures"),
    "after": (_is_evaluation, "an evaluation: rate, interval, episodes, measures"),
    **dict.fromkeys(("updates", "steps", "episodes"), COUNTERS["steps"]),
    "seconds": COUNTERS["seconds"],
    **{
        key: (lambda x: x is None or (is_number(x) and x >= 0), "null or a number of at least 0")
        for key in ("steps_per_second", "peak_memory_mib")
    },
}
"""Likewise summary.json, where every entry may be absent: the run is not over."""


def read_config(run: Path) -> dict[str, Any]:
    """The config.json of a run folder. Of another layout only the arguments are looked at; see `check_layout`.

    Raises:
        FileError: it cannot be read, or an entry is missing or of another type.
    """
    path = run / "config.json"
    config = read_json(path)
    return check_entries(path, config, CONFIG if config.get("layout") == LAYOUT else _ANY_CONFIG)


def read_summary(run: Path) -> dict[str, Any]:
    """The summary.json of a run folder; empty where there is none yet.

    Raises:
        FileError: it cannot be read, or an entry is of another type.
    """
    path = run / "summary.json"
    if not path.exists():
        return {}
    summary = read_json(path)
    return check_entries(path, summary, {key: rule for key, rule in SUMMARY.items() if key in summary})


def read_state(folder: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The state.json of a checkpoint.

    Args:
        folder: the checkpoint.
        keys: what it must contain beside what every checkpoint contains.

    Raises:
        UserError: another layout; it cannot be read; an entry is missing, of another type, or changed.
    """
    path = folder / "state.json"
    state = read_json(path)
    check_layout(folder, state)
    # names the entry, where the digest would name the file alone
    check_entries(path, state, {key: rule for key, rule in COUNTERS.items() if key in keys or key in state})
    check_entries(path, state, {**STATE, **{key: (lambda x: True, "") for key in keys if key not in COUNTERS}})
    if folder.name.isdigit() and int(folder.name) != state["update"]:
        raise FileError(f'{path}: "update" is {state["update"]}, which does not fit the name of its folder')
    if state["sha256"].get("state.json") != _digest_of_state(state):
        raise FileError(f"{path} is damaged or was changed after it was written (SHA-256 differs)")
    return state


def check_entries(path: Path, found: Any, schema: Mapping[str, tuple[Check, str]]) -> dict[str, Any]:
    """Refuse a JSON object whose entries are not as a schema says; returns the object.

    Raises:
        FileError: names the file and the entry.
    """
    for key, (allowed, words) in schema.items():
        if key not in found:
            raise FileError(f'{path} has no entry "{key}"')
        if not allowed(found[key]):
            raise FileError(f'{path}: "{key}" must be {words}, got {short(found[key])}')
    return found


def short(value: Any) -> str:
    """A stranger's value for a message of one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"something of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_module(value: Any, run: Path, named: str | None, flag: str = "--env-id") -> None:
    """Refuse to import a module that only a stored file names.

    A value "module:id" makes Python import the module, which executes its code. A run folder from a stranger could name any
    module that is installed. Allowed is what the user types, and a module of the current folder, which is the user's own.

    Args:
        value: what the file says; without a ":" nothing is imported, and nothing is refused.
        run: the run folder or policy file, for the message. A module inside the run folder is a stranger's too.
        named: what the command line says, if it does.
        flag: how the command line says it.

    Raises:
        UserError: names the module and the flag that allows it.
    """
    module, _, _ = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not module or value == named or _is_users_own(module.partition(".")[0], run):
        return
    raise UserError(
        f"{run} wants the module {short(module)} to be imported, which is no module of the current folder. Importing "
        f"executes its code. If you trust it, add {flag} {short(value)}"
    )


def _is_users_own(package: str, run: Path) -> bool:
    """Whether importing `package` would take a file or folder of that name directly in the current folder."""
    here = Path.cwd().resolve()
    if not package.isidentifier() or here.is_relative_to(run.resolve()):
        return False
    if package in sys.builtin_module_names:
        return False
    try:
        spec = PathFinder.find_spec(package)  # of a top-level name; executes nothing
    except (ImportError, ValueError, OSError):
        return False
    if spec is None:
        return False
    origins = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    allowed = {here / f"{package}.py", here / package, here / package / "__init__.py"}
    return bool(origins) and all(Path(origin).resolve() in allowed for origin in origins)


# ------------------------------------------------------------------------------------------------ writing and reading
def write_checkpoint(target: Path, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Write all of a checkpoint, or nothing: `<name>.safetensors` or a folder `<name>` per part, and `state.json`.

    It is written into a temporary folder beside `target`, which gets its name once everything is on disk.

    Raises:
        UserError: it cannot be written. What was there before is as it was.
    """
    with writing(target):
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
        try:
            for name, part in parts.items():
                if isinstance(part, Tensors):
                    write_tensors(temporary / f"{name}.safetensors", part)
                else:
                    (temporary / name).mkdir()
                    part.save_pretrained(temporary / name)
            digests = {
                _relative(file, temporary): digest(file) for file in sorted(temporary.rglob("*")) if file.is_file()
            }
            whole = {**state, "layout": LAYOUT, "sha256": digests}
            digests["state.json"] = _digest_of_state(whole)
            write_json(temporary / "state.json", whole)
            for file in temporary.rglob("*"):
                sync(file)
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(target.parent)


def read_checkpoint(folder: Path, parts: Mapping[str, Part], keys: Sequence[str]) -> dict[str, Any]:
    """Load what `write_checkpoint` wrote into `parts`; returns those entries of its state that `keys` names.

    Raises:
        UserError: another layout; a file is missing or damaged, or belongs to another network.
    """
    damaged = f"the checkpoint {folder} is damaged or belongs to another network"
    try:
        state = read_state(folder, keys)
        for name, part in parts.items():
            if isinstance(part, Tensors):
                path = folder / f"{name}.safetensors"
                with naming_file(path):
                    tensors = load_file(path)
                    part.load_tensors(tensors)
                check_digests(folder, state, path)
            else:
                check_digests(folder, state, folder / name)
                with naming_file(folder / name):
                    part.load_pretrained(folder / name)
        return {key: state[key] for key in keys}
    except FileError as error:
        raise FileError(f"{damaged}: {error}") from error


def check_digests(folder: Path, state: Mapping[str, Any], path: Path) -> None:
    """Compare a file of a checkpoint, or all files in a folder of it, with the SHA-256 that were noted at writing.

    Raises:
        FileError: names a file that is missing, foreign or changed.
    """
    noted: dict[str, str] = {name: value for name, value in state["sha256"].items() if name != "state.json"}
    if path.is_dir():
        below = "" if path == folder else f"{_relative(path, folder)}/"
        noted = {name: value for name, value in noted.items() if name.startswith(below)}
        found = {_relative(file, folder) for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
        found.discard("state.json")
    else:
        name = _relative(path, folder)
        noted, found = {n: value for n, value in noted.items() if n == name}, {name}
    for name in sorted(found - set(noted)):
        raise FileError(f"{folder / name} does not belong to this checkpoint: state.json does not list it")
    if not noted:
        raise FileError(f"{path}: state.json lists no file of that name")
    for name, value in noted.items():
        if not (folder / name).is_file():
            raise FileError(f"{folder / name} is missing")
        if digest(folder / name) != value:
            raise FileError(f"{folder / name} is damaged or was changed after it was written (SHA-256 differs)")


def check_own_digest(path: Path) -> None:
    """Where a file is part of a checkpoint, compare it with the SHA-256 in the state.json beside it.

    Raises:
        FileError: it differs, or the state.json is damaged.
    """
    if not re.fullmatch("[0-9]+", path.resolve().parent.name) or not (path.parent / "state.json").is_file():
        return  # a file of its own
    if read_json(path.parent / "state.json").get("layout", 1) == LAYOUT:  # older ones have no digests
        check_digests(path.parent, read_state(path.parent), path)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_state(state: Mapping[str, Any]) -> str:
    """SHA-256 of all that a state.json says, but for this number itself."""
    files = {name: value for name, value in state["sha256"].items() if name != "state.json"}
    return hashlib.sha256(json.dumps({**state, "sha256": files}, sort_keys=True).encode()).hexdigest()


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def check_values(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Refuse a stored tensor of another dtype, or with NaN or infinite values.

    Raises:
        ValueError: names the tensor.
    """
    if x.dtype != dtype:
        raise ValueError(
            f"{name} has dtype {str(x.dtype).removeprefix('torch.')}, not {str(dtype).removeprefix('torch.')}"
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} has NaN or infinite values")


def check_like(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], owner: str) -> None:
    """Refuse tensors that differ from what is expected in names, shapes or dtypes, or that are not finite.

    Args:
        tensors: what a file contains.
        expected: what it must contain.
        owner: what they are for, for the message.

    Raises:
        ValueError: names the tensors.
    """
    want, got = ({name: tuple(x.shape) for name, x in sorted(y.items())} for y in (expected, tensors))
    if got != want:
        raise ValueError(f"tensors {got} do not fit {owner}, which has {want}")
    for name, x in expected.items():
        check_values(name, tensors[name], x.dtype)


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn whatever a library says of a file that it cannot use into one line that names the file.

    Raises:
        FileError: anything failed.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:  # libraries raise what they like at damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileError(f"{path}: {reason if len(reason) <= 600 else reason[:597] + '...'}") from error


def write_tensors(path: Path, part: Tensors) -> None:
    """Write a part's tensors and metadata as safetensors."""
    tensors = {name: x.clone() for name, x in part.named_tensors().items()}  # views of one tensor may not be saved
    save_file(tensors, path, metadata=part.file_metadata() or None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileError: no such file, or not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise FileError(f"cannot read {path}: it is nested too deeply") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise FileError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise FileError(f"cannot read {path}: it must be a JSON object, got {short(found)}")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, all of it or nothing.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with writing(path):
        try:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


_WAYS_OUT = {
    (errno.ENOSPC, errno.EDQUOT): "make room on the disk",
    (errno.EFBIG,): "raise the limit of file sizes (ulimit -f)",
    (errno.EROFS, errno.EACCES, errno.EPERM): "make the folder writable",
    (errno.ENOENT, errno.ENOTDIR): "the folder was moved or removed, so put it back",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into one line with the way out.

    Raises:
        UserError: an error of the operating system, or of safetensors, whose errors are often the same.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := re.search(r"os error (\d+)", str(error))):
            number = int(found[1])
        way_out = next((words for numbers, words in _WAYS_OUT.items() if number in numbers), "see what is wrong there")
        reason = os.strerror(number) if number is not None else " ".join(str(error).split())
        raise UserError(f"cannot write {path} ({reason}); {way_out}") from error


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half-written in a run folder."""
    for folder in (run / "checkpoints").glob(".writing-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in run.glob(".*.json.writing"):
        with contextlib.suppress(OSError):
            file.unlink()


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, whole or not at all: a kill half-way leaves a folder that `remove_leftovers` knows.

    Raises:
        UserError: it cannot be removed.
    """
    hidden = folder.with_name(f".writing-{folder.name}")
    with writing(folder):
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        shutil.rmtree(hidden)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    if sys.platform == "win32":  # folders cannot be opened there, and fsync wants a file open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
