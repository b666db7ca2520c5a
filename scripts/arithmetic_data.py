"""Write the sums of sppo_control/llm/arithmetic.py into files, for a real pretrained language model.

python scripts/arithmetic_data.py            # runs/arithmetic/train.jsonl and held_out.jsonl
python scripts/arithmetic_data.py --mixed    # some sums much harder than others
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sppo_control import cli, limits
from sppo_control.errors import UserError
from sppo_control.llm import arithmetic
from sppo_control.outputs import Folder


@dataclass
class Args:
    out: Annotated[Path, Folder()] = Path("runs/arithmetic")
    """folder for train.jsonl and held_out.jsonl"""
    held_out: int = 512
    """sums in held_out.jsonl; the others are in train.jsonl"""
    mixed: bool = False
    """numbers of one to three digits in place of two"""
    seed: int = 0
    """of the parts and the solved examples"""

    def __post_init__(self) -> None:
        limits.check_limits(self)


def main(args: Args) -> None:
    try:
        parts = arithmetic.make_rows(args.held_out, args.seed, args.mixed)
    except ValueError as error:
        raise UserError(f"--held-out: {error}") from error
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train.jsonl", "held_out.jsonl"), parts, strict=True):
        (args.out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} sums in {args.out / name}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
