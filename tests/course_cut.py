"""Make an exercise's template from its solution: bodies become `raise NotImplementedError`.

    PYTHONPATH=. python tests/course_cut.py e02_sequence_advantage

A function whose docstring ends in "Given." keeps its body. So do classes' other members. Bug hunts are written by hand.
"""

import ast
import sys
from pathlib import Path

EXERCISES = Path(__file__).resolve().parents[1] / "exercises"


def cut(source: str) -> str:
    """The template of a solution."""
    lines = source.splitlines(keepends=True)
    places = []
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(member for c in classes for member in c.body)]:
        if not isinstance(node, ast.FunctionDef):
            continue
        says = ast.get_docstring(node) or ""
        if not says or says.endswith("Given."):
            continue
        places.append((node.body[0].end_lineno, node.end_lineno, node.col_offset + 4))
    for first, last, indent in sorted(places, reverse=True):
        lines[first:last] = [" " * indent + "raise NotImplementedError\n"]
    return "".join(lines)


if __name__ == "__main__":
    for stem in sys.argv[1:]:
        (EXERCISES / f"{stem}.py").write_text(cut((EXERCISES / "solutions" / f"{stem}.py").read_text()))
