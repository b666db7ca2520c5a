"""Checkpoints: weights as safetensors, counters as JSON, a folder that is written as a whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UserError
from .policies import Network, Policy, save_policy
from .rollout import ContextWindow


class Folder(Protocol):
    """A part of a checkpoint that writes a folder of its own, as Hugging Face's models do."""

    def save_pretrained(self, folder: Path) -> None:
        """Write everything into `folder`, which is there."""
        ...

    def load_pretrained(self, folder: Path) -> None:
        """Take on the weights in `folder`; OSError, ValueError or RuntimeError if they do not fit."""
        ...


Part = Network | torch.optim.Optimizer | ContextWindow | Folder
"""What a checkpoint is made of."""


def run_folder(path: Path) -> Path:
    """The run folder that `path` names: itself, or the parent of a checkpoint in it.

    Raises:
        UserError: there is no run.
    """
    for folder in (path, path.parent.parent):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"{path} is neither a run folder nor a checkpoint of one: no config.json there")


# --------------------------------------------------------------------------------------------------- checkpoints
def write_checkpoint(target: Path, parts: Mapping[str, Part], state: Mapping[str, Any], task: str) -> None:
    """Write `<name>.safetensors` (or a folder `<name>`) for each part and `state.json` into the folder `target`, all of it
    or nothing: into a temporary folder beside it first, renamed once it is on disk."""
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    for name, part in parts.items():
        path = temporary / f"{name}.safetensors"
        if isinstance(part, Policy):
            save_policy(part, path, task)
        elif isinstance(part, _TENSOR_PARTS):
            save_file(_tensors(part), path)
        else:
            (temporary / name).mkdir()
            part.save_pretrained(temporary / name)
    write_json(temporary / "state.json", state)
    for file in temporary.rglob("*"):
        sync(file)
    os.rename(temporary, target)
    sync(target.parent)


def read_checkpoint(folder: Path, parts: Mapping[str, Part], keys: Sequence[str]) -> dict[str, Any]:
    """Load what `write_checkpoint` wrote into `parts`; returns its state, which holds all of `keys`.

    Raises:
        UserError: a file is missing or damaged, or belongs to another network.
    """
    try:
        for name, part in parts.items():
            if isinstance(part, _TENSOR_PARTS):
                _load_tensors(part, load_file(folder / f"{name}.safetensors"))
            else:
                part.load_pretrained(folder / name)
        state = read_json(folder / "state.json")
        return {key: state[key] for key in keys}
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError, UserError) as error:
        raise UserError(f"the checkpoint {folder} is damaged or belongs to another network: {error}") from error


# ------------------------------------------------------------------------------------------------------- helpers
_TENSOR_PARTS = (Network, torch.optim.Optimizer, ContextWindow)


def _tensors(part: Network | torch.optim.Optimizer | ContextWindow) -> dict[str, Tensor]:
    """Weights of a network, or an optimiser's state (its hyper-parameters come from the arguments)."""
    if isinstance(part, Network):
        return {name: x.clone() for name, x in part.named_weights().items()}
    if isinstance(part, ContextWindow):
        return {name: x.clone() for name, x in part.named_tensors().items()}
    state = part.state_dict()["state"]
    return {f"{index}.{key}": x for index, values in state.items() for key, x in values.items()}


def _load_tensors(part: Network | torch.optim.Optimizer | ContextWindow, tensors: dict[str, Tensor]) -> None:
    if isinstance(part, Network):
        part.load_weights(tensors)
        return
    if isinstance(part, ContextWindow):
        for name, x in part.named_tensors().items():
            x.copy_(tensors[name])
        return
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in part.param_groups for p in group["params"]]
    for name, x in tensors.items():
        index, key = name.split(".")
        if int(index) >= len(parameters):
            raise ValueError(f"the optimiser has {len(parameters)} parameters, and the file a state for number {index}")
        if key != "step" and x.shape != parameters[int(index)].shape:  # torch would find out in the middle of an update
            shapes = tuple(x.shape), tuple(parameters[int(index)].shape)
            raise ValueError(
                f"{key} of the optimiser's parameter {index} has shape {shapes[0]}, the parameter {shapes[1]}"
            )
        state.setdefault(int(index), {})[key] = x
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


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
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
