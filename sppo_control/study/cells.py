"""The cells of grids: what identifies a run, and whether a results file contains it, made in the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sppo_control import errors
from sppo_control.study.grids import Grid


@dataclass(frozen=True)
class Cell:
    """One run. `starts` is the folder of its starting policies; "shipped" means the package's own.

    Two folders may have the same name. `start_sha256`, the digest of the run's starting policy, tells them apart. In the
    same way `script_sha256` tells the user's own scripts apart. Neither is part of a cell's identity, because older
    results files do not have them. "" means that there is no such file.
    """

    env_id: str
    algorithm: str
    setting: str
    seed: int
    starts: str
    start_sha256: str = dataclasses.field(default="", compare=False)
    script_sha256: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.algorithm} {self.env_id} seed {self.seed}" + (f" {self.setting}" if self.setting else "")


CELL_COLUMNS = [f.name for f in dataclasses.fields(Cell) if f.compare]
"""The columns of a results file that say which cell a row belongs to."""


class Job(NamedTuple):
    """A cell, and everything that is needed to run it."""

    cell: Cell
    words: list[str]
    """the training script and its flags"""
    folder: Path
    """folder of its log and its run"""
    grid: Grid
    """the grid that the cell is from; it sets the most points per curve and the results file"""


def refuse_others(table: Any, jobs: Sequence[Job]) -> None:
    """Check that the cells in a results file are what these jobs would make now.

    Raises:
        UserError: a cell has another number of evaluation episodes, or of updates per point. Or a run of the same task
            began with another starting policy from a folder of the same name. Or another script of the same name made a
            run. Nobody could tell such runs apart later.
    """
    made = {Cell(*cell): rows for cell, rows in table.groupby(CELL_COLUMNS, sort=False)} if len(table) else {}
    starts = table.groupby(["env_id", "starts"])["start_sha256"].unique() if "start_sha256" in table else {}
    scripts = table.groupby("algorithm")["script_sha256"].unique() if "script_sha256" in table else {}
    # The length of the longest curve. The file does not contain --points, but this value of it makes the same curves.
    points = max((len(made[job.cell]) for job in jobs if job.cell in made), default=0)
    found: dict[str, list[Cell]] = {}
    for cell, _, _, grid in jobs:
        if others := different(cell.start_sha256, starts.get((cell.env_id, cell.starts), ())):
            what = f"{cell.env_id} from starting policies {cell.starts!r} whose sha256 is {others}"
            found.setdefault(f"{what}, not {cell.start_sha256[:8]}", []).append(cell)
        elif others := different(cell.script_sha256, scripts.get(cell.algorithm, ())):
            what = f"{cell.algorithm} by a script whose sha256 is {others}"
            found.setdefault(f"{what}, not {cell.script_sha256[:8]}", []).append(cell)
        elif cell in made:
            episodes, updates = made[cell]["eval_episodes"].iloc[0], made[cell]["updates"]
            if episodes != grid.eval_episodes:
                found.setdefault(f"--eval-episodes {episodes}, not {grid.eval_episodes}", []).append(cell)
            elif updates.min() != -(-updates.max() // grid.points):  # updates per point, see rows_of
                found.setdefault(f"--points {points}, not {grid.points}", []).append(cell)
    if found:
        texts = [f"{what} ({len(cells)} cells of this grid, the first is {cells[0]})" for what, cells in found.items()]
        raise errors.UserError(
            f"--out {jobs[0].grid.out} was made with other values: {'; '.join(texts)}. Use the values that it was made "
            "with, and give other starting policies or scripts another name; or another --out"
        )


def different(now: str, known: Iterable[Any]) -> str:
    """The digests in a results file that differ from the present one. Old rows have none, and "" matches everything."""
    return (
        ", ".join(digest[:8] for digest in known if isinstance(digest, str) and digest not in ("", now)) if now else ""
    )
