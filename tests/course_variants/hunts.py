"""What the variants of the bug hunts share: parts of an exercise's files as text."""

import ast
from pathlib import Path

EXERCISES = Path(__file__).resolve().parents[2] / "exercises"


def parts(path):
    """Functions and classes of a file: name -> source."""
    source = path.read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


def planted(stem):
    """The functions and classes of the template that differ from the solution's: the bug."""
    right = parts(EXERCISES / "solutions" / f"{stem}.py")
    found = [text for name, text in parts(EXERCISES / f"{stem}.py").items() if text != right[name]]
    assert len(found) == 1, "one place has the bug"
    return found[0]


def changed(stem, name, *pairs):
    """A function of the solution in which each pair's first text is replaced by its second."""
    text = parts(EXERCISES / "solutions" / f"{stem}.py")[name]
    for old, new in pairs:
        assert text.count(old) == 1, f"{stem}.{name} has {text.count(old)} times {old!r}"
        text = text.replace(old, new)
    return text
