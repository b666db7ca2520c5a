"""Directives for what may be absent in a checkout: an animation, a file beside the docs."""

import ast
import difflib
import logging
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

FIELDS = ("Difficulty", "Minutes", "Teaches")


class Animation(SphinxDirective):
    """The pictures docs/animations/<name>.gif or .webp, one per argument, in a row; nothing where there is none."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        found = []
        for name in self.arguments[0].split():
            for suffix in ("gif", "webp", "png"):
                relative = f"animations/{name}.{suffix}"
                if self.env.srcdir.joinpath(relative).is_file():
                    found.append(f"/{relative}")
                    break
        if not found:
            return []
        caption = " ".join(self.content)
        row = nodes.container(classes=["animations"])
        row += [nodes.image(uri=uri, alt=caption or uri) for uri in found]
        return [row, *self._caption(caption)]

    def _caption(self, caption: str) -> list[nodes.Node]:
        if not caption:
            return []
        paragraph = nodes.paragraph(classes=["caption"])
        paragraph += nodes.emphasis(caption, caption)
        return [paragraph]


class Difference(SphinxDirective):
    """What the second script changes in the first, from a line that both have; names of files without their folders."""

    required_arguments = 2
    option_spec: ClassVar = {"start-at": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        texts = []
        for argument in self.arguments:
            path = self.env.srcdir.joinpath(argument).resolve()
            self.env.note_dependency(str(path))
            lines = path.read_text(encoding="utf-8").splitlines()
            first = next((i for i, line in enumerate(lines) if line.startswith(self.options.get("start-at", ""))), None)
            if first is None:
                raise self.error(f"{path.name} has no line that begins with {self.options['start-at']}")
            texts.append(lines[first:])
        names = [argument.rpartition("/")[2] for argument in self.arguments]
        block = "\n".join(difflib.unified_diff(*texts, *names, n=2, lineterm=""))
        return [nodes.literal_block(block, block, language="diff")]


class IncludeIfThere(SphinxDirective):
    """The text of a file, relative to the docs, read as Markdown; the directive's content where there is no such file."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        path = self.env.srcdir.joinpath(self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else list(self.content)
        if lines and lines[0].startswith("# "):
            del lines[0]  # the page has its own title
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Exercises(SphinxDirective):
    """A table of the course's exercises from their docstrings; the directive's content where there is no course."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        rows = []
        for path in sorted((self.env.srcdir / ".." / "exercises").glob("e[0-9][0-9]_*.py")):
            self.env.note_dependency(str(path))
            lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem).splitlines()
            about = dict(line.split(": ", 1) for line in lines[1:8] if ": " in line)
            cells = [f"`{path.name}`", lines[0].rstrip("."), *(about.get(k, "") for k in FIELDS)]
            rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        table = ["| file | subject | difficulty | minutes | what it teaches |", "| --- | --- | --- | --- | --- |", *rows]
        return self.parse_text_to_nodes("\n".join(table if rows else self.content))


def _keep_short_code_together(app: Any, doctree: nodes.document, docname: str) -> None:
    # a browser may break --success-return after each hyphen
    for node in doctree.findall(nodes.literal):
        if len(node.astext()) <= 34:
            node["classes"].append("short")


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-resolved", _keep_short_code_together)
    app.add_directive("difference", Difference)
    # The tour and the course are listed by patterns. Sphinx gives this warning no type, so its settings cannot leave it out.
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda r: getattr(r, "subtype", "") != "empty_glob")
    app.add_directive("animation", Animation)
    app.add_directive("exercises", Exercises)
    app.add_directive("include-if-there", IncludeIfThere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
