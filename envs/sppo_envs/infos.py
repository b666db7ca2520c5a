"""What environments report at the end of an episode, made equal in all engines: one array (B,) per name.

Kept are numbers and booleans, exactly as they were reported: an entry that is whole in one episode and a fraction in
another becomes float64. Texts, arrays, dictionaries and None are left out. Which episodes have reported an entry is
under the same name with an underscore before it, as in Gymnasium's vector environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Scalar = bool | int | float


def scalars(info: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, Scalar]:
    """The entries of an `info` that are numbers or booleans, as Python's.

    Args:
        info: of one environment.
        without: names to leave out.
    """
    found = {}
    for name, value in info.items():
        if not isinstance(name, str) or name.startswith("_") or name in without:
            continue
        if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 and value.dtype.kind in "biuf":
            value = value.item()
        if isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
            found[name] = value
        elif isinstance(value, int) and abs(value) < 2**1023:  # more than int64 holds
            found[name] = float(value)
    return found


def stacked(infos: Sequence[Mapping[str, Scalar] | None]) -> dict[str, npt.NDArray[Any]]:
    """`scalars` of B environments as arrays (B,): bool, int64 or float64, with the mask `_name` of who reported it."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name in dict.fromkeys(name for info in infos if info is not None for name in info):
        mask = np.array([info is not None and name in info for info in infos])
        values = [info[name] for info in infos if info is not None and name in info]
        found[name] = np.zeros(len(infos), dtype=_dtype(values))
        found[name][mask] = values
        found[f"_{name}"] = mask
    return found


def columns(info: Mapping[str, Any], num_envs: int) -> dict[str, npt.NDArray[Any]]:
    """The entries of a vector environment's `info` that are numbers or booleans, in the form of `stacked`.

    Kept are arrays (B,), and lists and object arrays of B values where some are numbers. A mask is kept if it is not
    all True.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name, value in info.items():
        if not isinstance(name, str) or name.startswith("_"):
            continue
        if isinstance(value, list | tuple) and len(value) == num_envs:
            boxed = np.empty(num_envs, dtype=object)
            boxed[:] = list(value)
            value = boxed
        if not isinstance(value, np.ndarray) or value.shape != (num_envs,):
            continue
        mask = info.get(f"_{name}")
        given = isinstance(mask, np.ndarray) and mask.shape == (num_envs,) and mask.dtype == np.bool_
        reported = np.array(mask) if given else np.ones(num_envs, dtype=np.bool_)
        if value.dtype.kind == "O":
            parts = stacked([scalars({name: x}) if ok else None for x, ok in zip(value, reported, strict=True)])
            if name not in parts:
                continue
            found[name], reported = parts[name], parts[f"_{name}"]
        elif value.dtype.kind in "biuf":
            found[name] = _widest(value)
        else:
            continue
        if not reported.all():
            found[f"_{name}"] = reported
    return found


def _dtype(values: Sequence[Scalar]) -> type:
    if all(isinstance(x, bool) for x in values):
        return np.bool_
    return np.float64 if any(isinstance(x, float) for x in values) else np.int64


def _widest(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if value.dtype.kind == "b":
        return value.copy()
    whole = value.dtype.kind == "i" or (value.dtype.kind == "u" and (value < 2**63).all())
    return value.astype(np.int64 if whole else np.float64)
