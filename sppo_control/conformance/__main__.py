"""Check an implementation of SPPO, PPO, GRPO, RLOO or ReMax against the equations.

    python -m sppo_control.conformance my_losses:adapter               # or: sppo-conformance my_losses:adapter
    python -m sppo_control.conformance my_losses:adapter --json report.json
    python -m sppo_control.conformance --list                          # the properties and the known mistakes
    python -m sppo_control.conformance --score                         # the kit against known bugs, in a clone
    python -m sppo_control.conformance --peers                         # other libraries through the same door

An adapter is a module, a class, an object or a dictionary that offers some functions; docs/conformance.md has an example.
The exit status is 0 if all that is offered holds or is expected to fail, 1 if something fails, and 2 after wrong use.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import cli
from ..errors import UserError
from ..outputs import File


@dataclass
class Args:
    """The command line."""

    adapter: tyro.conf.Positional[str] = "-"
    """module:name, or a module alone"""
    only: tuple[str, ...] = ()
    """functions or properties to check; none is all"""
    expect: tuple[str, ...] = ()
    """failures that are meant to be so, each NAME=REASON; NAME is a property or a mistake"""
    examples: int = 30
    """batches that Hypothesis tries per property"""
    seed: int = 0
    """of the batches"""
    json: Annotated[Path | None, File(".json", new_folder=True)] = None
    """file of the report; with --peers, what it has about libraries that are not installed here is kept"""
    list: bool = False
    """print the properties and the known mistakes, and check nothing"""
    score: bool = False
    """check the bugs of tests/mutants.toml that are in core.py, and print a table"""
    peers: bool = False
    """check the other libraries that are installed, and print a table"""

    def __post_init__(self) -> None:
        chosen = [self.adapter != "-", self.list, self.score, self.peers]
        if sum(chosen) != 1:
            raise ValueError("name one adapter, module:name, or one of --list, --score and --peers")
        if self.examples < 0:
            raise ValueError(f"examples must be at least 0, got {self.examples}")
        for text in self.expect:
            if not all(text.partition("=")[::2]):
                raise ValueError(f"expect must be NAME=REASON, got {text!r}")


def run(args: Args) -> None:
    """Do what the command line says, and end with its exit status."""
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    if args.list:
        from .spec import SPEC_VERSION, page, specification

        print(page())
        if args.json is not None:
            args.json.write_text(json.dumps({"specification": SPEC_VERSION, "properties": specification()}, indent=1))
        return
    if args.score:
        from . import score

        result = score.score(examples=0)
        print(score.page(result))
        if args.json is not None:
            score.write(result, args.json)
        found, named = score.shares(result)
        sys.exit(0 if found >= 0.95 and named >= 0.8 else 1)
    if args.peers:
        from . import peers

        rows = peers.measure(args.examples)
        if args.json is not None and args.json.exists():  # verl needs an environment of its own
            rows = peers.joined(rows, json.loads(args.json.read_text()))
        print(peers.page(rows))
        if args.json is not None:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
        sys.exit(0 if all(row["ok"] for row in rows if "ok" in row) else 1)
    from .adapters import load
    from .checker import check

    expected = dict(text.split("=", 1) for text in args.expect)
    try:
        report = check(load(args.adapter), expected, only=args.only or None, examples=args.examples, seed=args.seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(report.text())
    if args.json is not None:
        args.json.write_text(report.json() + "\n")
    sys.exit(0 if report.ok else 1)


def main() -> None:
    """The console script, and `python -m`."""
    if sys.argv[0].endswith("__main__.py"):  # help and errors show what was typed
        sys.argv[0] = "python -m sppo_control.conformance"
    cli.main(run, Args, __doc__)


if __name__ == "__main__":
    main()
