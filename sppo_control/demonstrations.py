"""Demonstrations from a file or a Minari data set: observations and actions, checked before any work begins."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import UserError
from .extras import require
from .policies import CategoricalPolicy, make_policy
from .spaces import to_samples


def read_demonstrations(name: str, envs: gym.vector.VectorEnv) -> tuple[Tensor, Tensor]:
    """The user's demonstrations: observations (N, D) float32 and actions (N,) int64 or (N, A) float32.

    Args:
        name: value of --demonstrations-from.
        envs: the demonstrations must fit their spaces.

    Raises:
        ValueError: no policy of this package fits the spaces.
        UserError: an array is wrong; the message says which one, and what it must be.
        MissingExtra: minari is not installed.
    """
    if name.startswith("minari:"):
        require("minari", "minari", wanted_by=f"--demonstrations-from {name}")
        import minari

        try:
            dataset = minari.load_dataset(name.removeprefix("minari:"), download=True)
            episodes = [(e.observations, e.actions) for e in dataset.iterate_episodes()]
            # An episode has one observation more than actions: no action follows the last one.
            pairs = [(np.asarray(obs)[: len(actions)], np.asarray(actions)) for obs, actions in episodes]
            arrays = {"observations": np.concatenate([p[0] for p in pairs])}
            arrays["actions"] = np.concatenate([p[1] for p in pairs])
        except (
            ValueError,
            LookupError,
            TypeError,
            OSError,
        ) as error:  # also for observations in dictionaries or tuples
            raise UserError(f"cannot read {name}: {error}") from error
    else:
        arrays = read_arrays(Path(name))
    missing = {"observations", "actions"} - arrays.keys()
    if missing:
        raise UserError(f"{name} has no {' and no '.join(sorted(missing))}; it has {', '.join(sorted(arrays))}")

    obs, actions = arrays["observations"], arrays["actions"]
    like = make_policy(envs)  # it refuses spaces that no policy of this package fits
    space = envs.single_action_space
    first = int(space.start) if isinstance(space, gym.spaces.Discrete) else 0
    discrete = isinstance(like, CategoricalPolicy)
    wanted = {
        "observations": ("fiu", like.sizes[0]),
        "actions": ("iu", None) if discrete else ("fiu", like.num_outputs),
    }
    for key, (kinds, columns) in wanted.items():
        x = arrays[key]
        shape = "(N,)" if columns is None else f"(N, {columns})"
        fits = x.ndim == 1 if columns is None else x.ndim == 2 and x.shape[1] == columns
        if not fits or x.dtype.kind not in kinds:
            kind = "whole numbers" if kinds == "iu" else "numbers"
            raise UserError(f"{key} of {name} must be {kind} of shape {shape}, got {x.dtype} of shape {x.shape}")
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
            raise UserError(f"{key} of {name} must be finite, but row {row} is {x[row]}")
    if not len(obs) == len(actions) > 0:
        raise UserError(f"{name} must have one action per observation, got {len(obs)} and {len(actions)}")
    if discrete and not (actions.min() >= first and actions.max() < first + like.num_outputs):
        row = int(np.flatnonzero((actions < first) | (actions >= first + like.num_outputs))[0])
        last = first + like.num_outputs - 1
        raise UserError(f"actions of {name} must be {first} to {last}, but row {row} is {actions[row]}")
    actions = to_samples(space, actions)
    actions = actions.astype(np.int64 if discrete else np.float32)
    return torch.from_numpy(obs.astype(np.float32)), torch.from_numpy(actions)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a .npz or .safetensors file. Reading it never executes code.

    Raises:
        UserError: the file is of another kind, or cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return {
                key: x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy() for key, x in load_file(path).items()
            }
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
    except (OSError, EOFError, ValueError, TypeError, SafetensorError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read --demonstrations-from {path}: {error}") from error
    raise UserError(f"--demonstrations-from takes .npz, .safetensors or minari:<dataset id>, got {path}")
