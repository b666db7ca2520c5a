"""How many known bugs does the kit find, and how many does it call by their name?

The bugs are the single-line mutants of tests/mutants.toml that are in `sppo_control/core.py`. Each is put into the text of
core.py, which becomes a module of its own: an adapter.
"""

from __future__ import annotations

import ast
import json
import tomllib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..markdown import markdown_table
from .checker import FAILS, check
from .spec import FUNCTIONS, SPEC_VERSION

ROOT = Path(__file__).resolve().parents[2]
CORE = "sppo_control/core.py"
REFUSAL = "It only refuses bad input. The kit does not demand refusals, because many good libraries have none."
NOT_COUNTED = {
    "gamma-above-one-accepted": REFUSAL,
    "outcome-slightly-negative-accepted": REFUSAL,
    "outcome-above-one-accepted": REFUSAL,
}
"""Mutants of core.py that no kit can see in the results of a function that is used as it should be, and why."""


def mutants(root: Path = ROOT) -> list[dict[str, Any]]:
    """The mutants of core.py, as they are in tests/mutants.toml.

    Raises:
        UserError: this is no clone of the repository.
    """
    try:
        entries = tomllib.loads((root / "tests" / "mutants.toml").read_text())["mutant"]
    except OSError as error:
        raise UserError(f"--score needs a clone of the repository: {error}") from None
    return [entry for entry in entries if entry["file"] == CORE]


def _mutate(text: str, mutant: dict[str, Any]) -> tuple[str, int]:
    """The text with the bug, and the line of it."""
    at = -1
    for _ in range(mutant.get("nth", 1)):
        at = text.find(mutant["old"], at + 1)
    if at < 0:
        raise UserError(f"{mutant['name']}: its old code is not in {CORE}")
    return text[:at] + mutant["new"] + text[at + len(mutant["old"]) :], text.count("\n", 0, at) + 1


def _affected(text: str, line: int) -> list[str]:
    """The functions of the specification that run this line of core.py, also through helpers."""
    tree = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    calls = {f.name: {n.id for n in ast.walk(f) if isinstance(n, ast.Name)} for f in tree}
    at = next((f.name for f in tree if f.lineno <= line <= (f.end_lineno or 0)), None)
    if at is None:
        raise UserError(f"line {line} of {CORE} is in no function")
    reached, size = {at}, 0
    while len(reached) > size:
        size = len(reached)
        reached |= {name for name, used in calls.items() if used & reached}
    return [f.name for f in FUNCTIONS if {f.name, *f.also} & reached]


def score(names: Iterable[str] | None = None, examples: int = 0, root: Path = ROOT) -> dict[str, Any]:
    """Check each mutant of core.py.

    Args:
        names: of the mutants to try; None is all that count.
        examples: see `check`. 0 is fastest, because no counter-example is shrunk.
        root: the clone.

    Returns:
        Plain data: for each mutant whether it was found, the first property that fails, and the mistake that the kit names.

    Raises:
        UserError: this is no clone of the repository, or a mutant does not fit core.py.
    """
    text, tried = (root / CORE).read_text(), []
    for mutant in mutants(root):
        name = mutant["name"]
        if name in NOT_COUNTED or (names is not None and name not in names):
            continue
        changed, line = _mutate(text, mutant)
        module = types.ModuleType(f"core_with_{name.replace('-', '_')}")
        exec(compile(changed, f"<core.py with {name}>", "exec"), module.__dict__)
        report = check(module, only=_affected(text, line), examples=examples)
        failed = [result for result in report.results if result.status == FAILS]
        says = list(dict.fromkeys(m for result in failed for m in result.mistakes))
        tried.append(
            {
                "mutant": name,
                "mistake": mutant["mistake"],
                "property": failed[0].prop.id if failed else None,
                "says": says,
                "named": says == [name.replace("-", "_")],
            }
        )
    return {"specification": SPEC_VERSION, "mutants": tried, "not_counted": NOT_COUNTED}


def shares(result: dict[str, Any]) -> tuple[float, float]:
    """Share of the counted mutants that are found, and that are named as what they are."""
    tried = result["mutants"]
    return sum(m["property"] is not None for m in tried) / len(tried), sum(m["named"] for m in tried) / len(tried)


def page(result: dict[str, Any]) -> str:
    """The score as Markdown: one sentence, and a row for each mutant."""
    tried = result["mutants"]
    found, named = (round(share * len(tried)) for share in shares(result))
    rows = [(f"`{m['mutant']}`", f"`{m['property']}`" if m["property"] else "not found", _verdict(m)) for m in tried]
    left_out = [f"- `{name}` is not counted. {why}" for name, why in result["not_counted"].items()]
    return "\n".join(
        [
            f"{len(tried)} bugs were tried with specification {result['specification']}. {found} were found "
            f"({found / len(tried):.1%}), and {named} were named as what they are ({named / len(tried):.1%}).",
            "",
            markdown_table(("bug put into core.py", "first property that fails", "named"), rows),
            "",
            *left_out,
        ]
    )


def _verdict(mutant: dict[str, Any]) -> str:
    if mutant["named"]:
        return "yes"
    return f"as {', '.join(f'`{name}`' for name in mutant['says'])}" if mutant["says"] else "no"


def write(result: dict[str, Any], path: Path) -> None:
    """Write the plain data as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")
