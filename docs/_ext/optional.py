"""Directives for files beside the docs, some of which may be absent: scripts, a plan, the changelog."""

import difflib
import logging
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


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


def _name_what_the_style_needs(app: Any, doctree: nodes.document, docname: str) -> None:
    # a browser may break --success-return after each hyphen
    for node in doctree.findall(nodes.literal):
        if len(node.astext()) <= 34:
            node["classes"].append("short")
    # a phone would make a column of sentences two words wide
    for entry in doctree.findall(nodes.entry):
        if len(entry.astext()) > 40:
            entry["classes"].append("long")


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-resolved", _name_what_the_style_needs)
    app.add_directive("difference", Difference)
    # Some pages are listed by patterns. Sphinx gives this warning no type, so its settings cannot leave it out.
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda r: getattr(r, "subtype", "") != "empty_glob")
    app.add_directive("include-if-there", IncludeIfThere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
