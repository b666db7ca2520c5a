"""Docstrings of this project are Markdown with Google's sections. Here their text becomes what Sphinx reads."""

import importlib
import itertools
import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note):\s*$")


def inline(text: str) -> str:
    """One line: `code` becomes ``code``, and characters that mean something in reStructuredText lose their meaning."""
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = f"``{piece.strip('`')}``"
            if i + 1 < len(pieces) and re.match(r"[\w\[(]", pieces[i + 1]):
                pieces[i] += r"\ "  # the end of code must not touch a letter
            if pieces[i - 1] and re.search(r"\w$", pieces[i - 1]):
                pieces[i] = r"\ " + pieces[i]
        else:
            pieces[i] = re.sub(r"([\\*|])", r"\\\1", piece)
            pieces[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", pieces[i])  # a_<t would be a link
    return re.sub(r"^(\s*|.*: )([A-Za-z])\.(?=\s|$)", r"\1\2\\.", "".join(pieces))  # "B." would begin a list


def table(rows: list[str], indent: str) -> list[str]:
    """A Markdown table as a list-table. The columns end where those of the line of dashes do."""
    rows = [row.strip() for row in rows]
    borders = [i for i, letter in enumerate(rows[1]) if letter == "|"]
    aligned = all(all(i < len(row) and row[i] == "|" for i in borders) for row in rows)
    split = (
        [[row[a + 1 : b].strip() for a, b in itertools.pairwise(borders)] for row in rows]
        if aligned
        else [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    )
    lines = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in [split[0], *split[2:]]:
        for i, cell in enumerate(row):
            lines.append(f"{indent}   {'* -' if i == 0 else '  -'} {inline(cell)}")
    return ["", *lines, ""]


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring in reStructuredText; Google's sections remain, for napoleon."""
    result: list[str] = []
    in_section, i = False, 0
    while i < len(lines):
        line = lines[i]
        stripped = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if stripped and not indent:
            in_section = bool(SECTION.match(line))
        if stripped.startswith("|") and i + 1 < len(lines) and re.match(r"\|[\s:|-]+\|$", lines[i + 1].strip()):
            end = i
            while end < len(lines) and lines[end].strip().startswith("|"):
                end += 1
            result += table(lines[i:end], indent)
            i = end
            continue
        if stripped and indent and not in_section and (not result or not result[-1].strip()):
            end = i  # an indented block after an empty line is code
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
                end += 1
            block = lines[i:end]
            while block and not block[-1].strip():
                block.pop()
            code = [f"    {text[4:] if text[:4].isspace() else text.lstrip()}" for text in block]
            result += [".. code-block:: text", "", *code, ""]
            i = end
            continue
        if re.match(r"\s*(- |\d+\. )", line) and result and result[-1].strip() and not in_section:
            before = result[-1]
            if not re.match(r"\s*(- |\d+\. )", before) and not before.startswith("  "):
                result.append("")
        result.append(inline(line))
        i += 1
    return result


def _before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    text = restructured(lines)
    if what in ("attribute", "data", "property"):  # napoleon would take words before a colon for the type
        app.plain_docstrings[name] = text
        lines.clear()
    else:
        lines[:] = text


def _after_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if name in app.plain_docstrings:
        lines[:] = app.plain_docstrings.pop(name)


def _without_builtins(app: Any) -> list[Any]:
    # viewcode counts properties as things of the module builtins, and would list it without having a page of it
    getattr(app.env, "_viewcode_modules", {}).pop("builtins", None)
    return []


class Exports(SphinxDirective):
    """A list of the names that a package offers, each a link to the module in which it is written."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = importlib.import_module(self.arguments[0])
        links = []
        for name in sorted(package.__all__, key=str.lower):
            thing = getattr(package, name)
            home = getattr(thing, "__module__", None)
            whole = f"{home}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else f"{package.__name__}.{name}"
            links.append(f"{{py:obj}}`{name} <{whole}>`")
        return self.parse_text_to_nodes(f"Names of the package: {', '.join(links)}.")


def setup(app: Any) -> dict[str, bool]:
    app.plain_docstrings = {}
    app.connect("autodoc-process-docstring", _before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=900)
    app.connect("html-collect-pages", _without_builtins, priority=1)
    app.add_directive("exports", Exports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
