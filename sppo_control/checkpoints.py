"""Checkpoints: weights as safetensors, counters as JSON, in a folder that is written as a whole or not at all.

| in a run folder                     | what                                                                   |
| ----------------------------------- | ---------------------------------------------------------------------- |
| config.json                         | arguments, versions, git commit, layout                                |
| checkpoints/<update>/<part>.safetensors | a `Tensors` part: a network, an optimiser, a window of contexts    |
| checkpoints/<update>/<part>/        | a `Folder` part: a Hugging Face model                                  |
| checkpoints/<update>/state.json     | counters, layout                                                       |

Loading one never executes code.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UserError

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
            ValueError: it is of another number of parameters, or of other shapes.
        """
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, x in tensors.items():
            index, key = name.split(".")
            if int(index) >= len(parameters):
                raise ValueError(
                    f"the optimiser has {len(parameters)} parameters, and the file has a state for number {index}"
                )
            if (
                key != "step" and x.shape != parameters[int(index)].shape
            ):  # torch would find out in the middle of an update
                shapes = tuple(x.shape), tuple(parameters[int(index)].shape)
                raise ValueError(
                    f"{key} of the optimiser's parameter {index} has shape {shapes[0]}, the parameter {shapes[1]}"
                )
            state.setdefault(int(index), {})[key] = x
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
    for folder in (path, path.parent.parent):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"{path} is neither a run folder nor a checkpoint of one: no config.json there")


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder of checkpoints, oldest first; half-written ones have other names."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


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
        version = "0.1.0" if layout == 1 else stored.get("versions", {}).get("sppo-control", "a later one")
        commit = f" (git commit {stored['git_commit']})" if stored.get("git_commit") else ""
        raise UserError(
            f"{path} has layout {layout}, this version reads layout {LAYOUT}; version {version}{commit} wrote it and "
            "can resume it. scripts/evaluate.py still reads its policy"
        )


# ------------------------------------------------------------------------------------------------ writing and reading
def write_checkpoint(target: Path, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Write `<name>.safetensors` (or a folder `<name>`) for each part and `state.json` into the folder `target`, all of it
    or nothing: into a temporary folder beside it first, renamed once it is on disk."""
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    for name, part in parts.items():
        if isinstance(part, Tensors):
            write_tensors(temporary / f"{name}.safetensors", part)
        else:
            (temporary / name).mkdir()
            part.save_pretrained(temporary / name)
    write_json(temporary / "state.json", {**state, "layout": LAYOUT})
    for file in temporary.rglob("*"):
        sync(file)
    os.rename(temporary, target)
    sync(target.parent)


def read_checkpoint(folder: Path, parts: Mapping[str, Part], keys: Sequence[str]) -> dict[str, Any]:
    """Load what `write_checkpoint` wrote into `parts`; returns its state, which has all of `keys`.

    Raises:
        UserError: another layout; a file is missing or damaged, or belongs to another network.
    """
    damaged = f"the checkpoint {folder} is damaged or belongs to another network"
    try:
        state = read_json(folder / "state.json")
    except UserError as error:
        raise UserError(f"{damaged}: {error}") from error
    check_layout(folder, state)
    try:
        for name, part in parts.items():
            if isinstance(part, Tensors):
                part.load_tensors(load_file(folder / f"{name}.safetensors"))
            else:
                part.load_pretrained(folder / name)
        return {key: state[key] for key in keys}
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{damaged}: {error}") from error


def write_tensors(path: Path, part: Tensors) -> None:
    """Write a part's tensors and metadata as safetensors."""
    tensors = {name: x.clone() for name, x in part.named_tensors().items()}  # views of one tensor may not be saved
    save_file(tensors, path, metadata=part.file_metadata() or None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, all of it or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
