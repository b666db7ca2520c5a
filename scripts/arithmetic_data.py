"""Write the sums of sppo_control/llm/arithmetic.py into files, for a real pretrained language model.

python scripts/arithmetic_data.py            # runs/arithmetic/train.jsonl and held_out.jsonl
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sppo_control import cli
from sppo_control.llm import arithmetic


@dataclass
class Args:
    out: Path = Path("runs/arithmetic")
    """folder for train.jsonl and held_out.jsonl"""
    held_out: int = 512
    """sums in held_out.jsonl; the others are in train.jsonl"""
    seed: int = 0
    """of the parts and the solved examples"""


def main(args: Args) -> None:
    parts = arithmetic.make_rows(args.held_out, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train.jsonl", "held_out.jsonl"), parts, strict=True):
        (args.out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} sums in {args.out / name}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
