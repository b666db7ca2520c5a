"""Grids of runs: every combination of some tasks, algorithms, seeds and settings.

A grid file is TOML. Its keys are the flags of scripts/benchmark.py without their dashes:

    starts = "results/starts"              # above the first [[grid]]: the value of every grid that does not set it

    [[grid]]
    out = "results/study.parquet"
    work-dir = "runs/study"
    env-ids = ["sppo/SparseHopper-v0"]
    algorithms = ["sppo", "ppo"]           # names of variants.py, or paths of scripts of your own
    seeds = [11, 12, 13]
    settings = ["", "learning-rate=1e-3"]  # optional: flags of the training script

Paths are relative to the folder in which the command is started.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_control.errors import UserError
from sppo_control.limits import check_limits
from sppo_control.study import variants

OF_THE_GRID = {  # flag of the training scripts: what sets it in place of a setting
    "--env-id": "--env-ids", "--seed": "--seeds", "--start": "--starts", "--eval-episodes": "--eval-episodes",
    "--runs-dir": "--work-dir", "--resume": "a second start of the same command",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Every combination of these tasks, algorithms, seeds and settings is one run, which is called a cell."""

    env_ids: tuple[str, ...]
    algorithms: tuple[str, ...] = ("sppo", "ppo")
    seeds: tuple[int, ...] = (1, 2, 3)
    settings: tuple[str, ...] = ("",)
    starts: Path | None = None
    eval_episodes: int = 256
    points: int = 100
    out: Path = Path("results/study.parquet")
    work_dir: Path = Path("runs/benchmark")

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: a value is impossible. The message begins with the key as the flag spells it, but without dashes.
        """
        try:
            variants.find(self.algorithms)
        except ValueError as error:
            raise ValueError(f"algorithms {error}") from error
        for name in ("env_ids", "algorithms", "seeds", "settings"):
            values = getattr(self, name)
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"{key(name)} must be different values, at least one, got {values}")
        given = {word for setting in self.settings for word in flags_of(setting)}
        if taken := [flag for flag in OF_THE_GRID if flag in given]:
            instead = ", ".join(OF_THE_GRID[flag] for flag in taken)
            raise ValueError(f"settings must leave {', '.join(taken)} to the grid, that is to {instead}")
        check_limits(self)
        if self.out.suffix != ".parquet" or os.path.isdir(self.out):
            raise ValueError(f"out must be a file whose name ends in .parquet, got {self.out}")


FIELDS = tuple(field.name for field in dataclasses.fields(Grid))
_TYPES: dict[str, tuple[type, bool, str]] = {  # its type, whether it is a list of them, and how messages name it
    "env_ids": (str, True, "a list of texts"),
    "algorithms": (str, True, "a list of texts"),
    "seeds": (int, True, "a list of whole numbers"),
    "settings": (str, True, "a list of texts"),
    "starts": (str, False, "a text"),
    "eval_episodes": (int, False, "a whole number"),
    "points": (int, False, "a whole number"),
    "out": (str, False, "a text"),
    "work_dir": (str, False, "a text"),
}
_NEEDED = ("env_ids", "algorithms", "seeds", "out", "work_dir")


def key(name: str) -> str:
    """The key of a field in grid files: env_ids -> env-ids."""
    return name.replace("_", "-")


def flags_of(setting: str) -> list[str]:
    """ "learning-rate=3e-4,critic-hidden=16 16" -> --learning-rate 3e-4 --critic-hidden 16 16."""
    pairs = (part.partition("=") for part in setting.split(",") if part)
    return [word for name, _, value in pairs for word in (f"--{name.strip().replace('_', '-')}", *value.split())]


def read_toml(file: Path, name: str) -> dict[str, Any]:
    """The content of a TOML file; `name` says in messages what kind of file it is.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not TOML.
    """
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UserError(f"cannot read the {name} {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError
        raise UserError(f"the {name} {file} is not a TOML file: {error}") from error


def read_grids(file: Path) -> list[Grid]:
    """The grids of a file, in order.

    Raises:
        UserError: there is no such file, it is not TOML, or it has no grid. Or a grid has an unknown or missing key, or
            an impossible value. The message names the file, the grid (counted from 1) and the key.
    """
    content = read_toml(file, "grid file")
    grids = content.pop("grid", [])
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise UserError(f"{file} has no grid: each one begins with a line [[grid]]")
    common = _values(content, f"{file}, above the first grid")
    return [_grid(grid, common, f"{file}, grid {i}") for i, grid in enumerate(grids, start=1)]


def _grid(content: Mapping[str, Any], common: Mapping[str, Any], where: str) -> Grid:
    """One [[grid]], together with the values above the first grid of its file."""
    values = {**common, **_values(content, where)}
    if missing := [key(name) for name in _NEEDED if name not in values]:
        raise UserError(f"{where}: {', '.join(missing)} must be given, here or above the first grid")
    try:
        return Grid(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _values(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Field names and values of these keys, with the types of the fields.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    names = {key(name): name for name in FIELDS}
    if unknown := [word for word in content if word not in names]:
        raise UserError(f"{where}: unknown key {', '.join(unknown)}; there are {', '.join(names)}")
    values: dict[str, Any] = {}
    for word, value in content.items():
        kind, many, in_words = _TYPES[names[word]]
        items = value if isinstance(value, list) else [value]
        # `type(item) is kind`, because isinstance would count True as a number.
        if isinstance(value, list) != many or not all(type(item) is kind for item in items):
            raise UserError(f"{where}: {word} must be {in_words}, got {value!r}")
        if names[word] in ("starts", "out", "work_dir"):
            values[names[word]] = Path(value)
        else:
            values[names[word]] = tuple(value) if many else value
    return values


def change(grids: Sequence[Grid], given: Mapping[str, Any]) -> list[Grid]:
    """The grids of a file, changed by the command line.

    Args:
        grids: from a file.
        given: values by field name. `env_ids` and names in `algorithms` choose from those of each grid. Grids with nothing
            left are dropped. Paths in `algorithms` are added to each grid. Every other value replaces the grid's.

    Raises:
        ValueError: no grid has one of the tasks or algorithms, or a value is impossible.
    """
    rest = {name: value for name, value in given.items() if name not in ("env_ids", "algorithms")}
    chosen = given.get("algorithms")
    own = [word for word in chosen or () if word not in variants.VARIANTS]
    variants_wanted = None if chosen is None else {*chosen}
    changed = []
    for grid in grids:
        env_ids = [task for task in grid.env_ids if task in given.get("env_ids", grid.env_ids)]
        algorithms = [a for a in grid.algorithms if variants_wanted is None or a in variants_wanted]
        algorithms += [word for word in own if word not in algorithms]
        if env_ids and algorithms:
            changed.append(dataclasses.replace(grid, env_ids=tuple(env_ids), algorithms=tuple(algorithms), **rest))
    lost = [
        f"{key(name)} {word}"
        for name in ("env_ids", "algorithms")
        for word in given.get(name, ())
        if not any(word in getattr(grid, name) for grid in changed)
    ]
    if lost:
        raise ValueError(f"no grid of the file has {', '.join(lost)}")
    return changed
