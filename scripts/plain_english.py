"""Count what makes the English of this project hard to read, in Markdown, docstrings and comments.

    python scripts/plain_english.py                                # counts per file and in total
    python scripts/plain_english.py --paths docs/llm.md --list     # prints each finding with its file and line
    python scripts/plain_english.py --json counts.json             # the same numbers for a program

| column  | what is counted                                                                          |
| ------- | ---------------------------------------------------------------------------------------- |
| over 30 | sentences of more than 30 words                                                          |
| over 25 | sentences of more than 25 words, those of more than 30 included                          |
| `stand` | `stands`, `stand`, `stood`: usually "is" is meant                                        |
| `lie`   | `lies`, `lie`, `lay`: usually "is" is meant                                              |
| `own`   | `of its own`, `of their own`: usually "its" or "separate" is meant                       |
| `a=per` | "a" or "an" in place of "per", as in `8 episodes a batch` or `once a step` (a heuristic) |

A tool for the writer, not a test: a sentence of 26 words may be the clearest one. Only prose is read.

Markdown: paragraphs, headings and list items. Each table cell is a unit, because no sentence crosses its border.
Code blocks and the rulers of tables are skipped. Inline code counts as one word, and a link as its text.

Python: docstrings, the strings below dataclass fields and constants (read like Markdown), and comments. Shell and
YAML: comments only.

A sentence ends at ".", "!" or "?" before a space, at `<br>`, and at the end of its unit. Abbreviations such as "et al."
and "e.g." do not end a sentence. A word is anything between spaces that has a letter or a digit. An interval such as
[0.1, 0.9] is one word.

The heuristic for "per" looks for "a" or "an" between two nouns from fixed lists. The first is something that is
counted, the second is what it is counted by. The first noun must be a plural (`steps a batch`), or follow a number
(`one row an episode`), or be "once", "twice" or "times". Some of these plurals are verbs too (`it runs a task`), so
they do not count after words such as "it", "which" or "to". The heuristic misses nouns that are not in its lists, and
it can be wrong.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from sppo_control import checkpoints, cli, errors
from sppo_control.outputs import File

GENERATED = {"docs/figures/tables.md", "docs/figures/rates.md"}
"""Files that scripts write."""
KINDS = {".md": "Markdown", ".py": "Python", ".sh": "other", ".yaml": "other", ".yml": "other"}
"""The endings of files that are read, and the total that each belongs to."""
SECTIONS = {"Args:", "Attributes:", "Raises:", "Returns:", "Yields:"}
"""Headings in docstrings: each entry below one is a unit."""
ABBREVIATIONS = {"al.", "approx.", "cf.", "e.g.", "eq.", "eqs.", "fig.", "i.e.", "resp.", "sec.", "vs."}
"""Words whose dot does not end a sentence."""

COUNTED = (
    r"(?:(?:mini|micro-)?batch|chunk|context|core|critic|environment|episode|epoch|gradient|hour|line|minute|number"
    r"|picture|point|problem|process|prompt|response|row|run|sample|second|seed|step|thread|token|update|value)"
)
"""Nouns for what is counted."""
PER = (
    r"(?:algorithm|(?:mini|micro-)?batch|cell|context|core|day|environment|episode|epoch|figure|group|hour|line|minute"
    r"|model|problem|process|prompt|question|response|row|run|second|seed|sequence|setting|stage|state|step|task|time"
    r"|token|update|worker)"
)
"""Nouns for what it is counted by."""
VERBS = ("he", "it", "she", "that", "they", "to", "we", "which", "who", "you", "and", "or", "then", "script", "code")
"""After these words "runs", "steps" and "updates" are verbs."""


_NUMBER = r"(?:\d[\d,.]*|one|two|three|four|five|six|seven|eight|nine|ten|many|most|several|[BGNT])"
_NOT_A_VERB = "".join(rf"(?<!\b{word}\s)" for word in VERBS)
_PER = re.compile(
    rf"(?:\b(?:once|twice|times)|\b{_NUMBER}\s+(?:[\w-]+\s+)?{COUNTED}"
    rf"|{_NOT_A_VERB}\b{COUNTED}e?s(?:\s+of\s+(?:the|its|all)\s+\w+)?)\s+(?:a|an)\s+{PER}\b",
    re.IGNORECASE,
)


def _whole(*words: str) -> re.Pattern[str]:
    """Whole words in any case; not half of a word such as `stand-alone`."""
    return re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])", re.IGNORECASE)


WORDS = {
    "stand": _whole("stands?", "stood"),
    "lie": _whole("lies?", "lay"),
    "own": _whole(r"of\s+(?:its|their)\s+own"),
}
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s+")
CATEGORIES = ("over 30", "over 25", *WORDS, "a=per")


@dataclass
class Args:
    paths: tuple[Path, ...] = tuple(map(Path, ("README.md", "docs", "sppo_control", "envs", "scripts", "recipes")))
    """files, and folders, which are read with all that is in them"""
    list: bool = False
    """print each finding with its file and line"""
    json: Annotated[Path | None, File(".json")] = None
    """write counts and findings to this file too"""


class Unit(NamedTuple):
    """A piece of prose: no sentence of it continues in the next unit."""

    line: int
    """the line of the file where it begins"""
    text: str
    """its text, with the file's line breaks"""


class Finding(NamedTuple):
    """One line of --list."""

    file: str
    line: int
    category: str
    text: str


# ---------------------------------------------------------------------------------------------------- what is prose
def without_markup(text: str) -> str:
    """Inline code becomes the word `code`; links and images become their text. Line breaks stay."""

    def code(match: re.Match[str]) -> str:
        return "code" + "\n" * match[0].count("\n")

    text = re.sub(r"(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)", code, text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"!?\[((?:[^\[\]]|\n)*)\]\([^()\s]*\)", r"\1", text)
    return re.sub(r"<(?:https?|mailto):[^>\s]*>", "link", text)


def without_code_blocks(text: str) -> str:
    """Fenced and indented blocks become empty lines. An indented block begins after an empty line, outside of lists."""
    kept: list[str] = []
    fence, block, listed, blank = "", False, False, True
    for line in text.split("\n"):
        opening = re.match(r"\s*(```+|~~~+)", line)
        if fence or opening:
            if opening and (not fence or opening[1].startswith(fence)):
                fence = "" if fence else opening[1]
            kept.append("")
            continue
        indented = line.startswith("    ")
        block = (indented and not listed and (blank or block)) if line.strip() else block
        if line.strip() and not indented:
            listed = bool(_ITEM.match(line)) or (listed and line.startswith(" "))
        blank = not line.strip()
        kept.append("" if block else line)
    return "\n".join(kept)


def markdown_units(text: str, first_line: int = 1) -> Iterator[Unit]:
    """The prose of a Markdown text or a docstring. Its first line is the line `first_line` of its file."""
    begun, lines = first_line, list[str]()
    entry = None  # in a section of a docstring: the indent of its entries, -1 until the first one is seen
    plain = without_markup(without_code_blocks(text)).split("\n")
    for number, line in enumerate([*plain, ""], start=first_line):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if entry == -1 and stripped:
            entry = indent
        item, heading, row = _ITEM.match(line), re.match(r"\s*#{1,6}\s+", line), stripped.startswith("|")
        alone = heading or row or stripped in SECTIONS or not stripped
        if (alone or item or (entry is not None and indent == entry)) and lines:
            yield Unit(begun, "\n".join(lines))
            lines = []
        if row:
            cells = [cell.strip() for cell in stripped.strip("|").split("|")]
            yield from (Unit(number, cell) for cell in cells if re.search(r"\w", cell))
        elif heading:
            yield Unit(number, line[heading.end() :])
        elif stripped and stripped not in SECTIONS:
            begun = begun if lines else number
            lines.append((line[item.end() :] if item else line).strip().lstrip("> "))
        if stripped in SECTIONS:
            entry = -1
        elif not stripped:
            entry = None


def comment_units(comments: Iterable[tuple[int, int, bool, str]]) -> Iterator[Unit]:
    """Units of comments (line, column, whether it is alone on its line, text). Successive lines are one unit."""
    begun, lines, place = 0, list[str](), (-1, -1)
    for line, column, alone, text in comments:
        text = re.sub(r"-{4,}", " ", text.lstrip("#!")).strip()
        follows = alone and place == (line - 1, column)
        if (not follows or not text) and lines:
            yield Unit(begun, "\n".join(lines))
            lines = []
        if text and not re.match(r"(?:fmt|noqa|type|ruff|mypy|pragma)\s*:|/(?:usr/)?bin/", text):
            begun = begun if lines else line
            lines.append(text)
        place = (line, column) if alone else (-1, -1)
    if lines:
        yield Unit(begun, "\n".join(lines))


def python_units(source: str) -> Iterator[Unit]:
    """Docstrings, the strings below fields and constants, and comments."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                first, *rest = text.split("\n")
                margin = min((len(x) - len(x.lstrip()) for x in rest if x.strip()), default=0)
                yield from markdown_units("\n".join([first.strip(), *(x[margin:] for x in rest)]), node.lineno)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = (t for t in tokens if t.type == tokenize.COMMENT)
    plain = ((*t.start, not t.line[: t.start[1]].strip(), without_markup(t.string)) for t in comments)
    yield from comment_units(plain)


def shell_units(source: str) -> Iterator[Unit]:
    """Comments of shell and YAML. They begin with a # at the beginning of a line or after a space."""
    found = ((n, re.search(r"(?:^|\s)(#.*)", line), line) for n, line in enumerate(source.split("\n"), start=1))
    comments = ((n, m.start(1), not line[: m.start(1)].strip(), without_markup(m[1])) for n, m, line in found if m)
    yield from comment_units(comments)


def units(path: Path) -> Iterator[Unit]:
    """The prose of one file."""
    readers: dict[str, Callable[[str], Iterator[Unit]]]
    readers = {"Markdown": markdown_units, "Python": python_units, "other": shell_units}
    try:
        yield from readers[KINDS[path.suffix]](path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, tokenize.TokenError, RecursionError) as error:
        raise errors.UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error


# ---------------------------------------------------------------------------------------------------- what is counted
def sentences(unit: Unit) -> Iterator[Unit]:
    """The sentences of a unit, each with its line."""
    start = 0
    for match in re.finditer(r"[.!?][)\]\"'*_]*(?=\s)|<br\s*/?>|\Z", unit.text):
        last_word = unit.text[start : match.end()].split()[-1:]
        if last_word and last_word[0].lstrip("(").lower() in ABBREVIATIONS and match.end() < len(unit.text):
            continue
        piece = unit.text[start : match.end()]
        if re.search(r"\w", piece):
            blank = len(piece) - len(piece.lstrip())
            yield Unit(unit.line + unit.text.count("\n", 0, start + blank), piece.strip())
        start = match.end()


def num_words(sentence: str) -> int:
    """Number of words: anything between spaces with a letter or a digit. An interval of two numbers is one word."""
    sentence = re.sub(r"\[[+-]?[\d.,]+,\s+[+-]?[\d.,]+\]", "interval", sentence)
    return sum(bool(re.search(r"[^\W_]", word)) for word in sentence.split())


def findings(path: Path) -> tuple[int, list[Finding]]:
    """The number of sentences of a file, and all findings in it."""
    found, count = list[Finding](), 0
    for unit in units(path):
        for sentence in sentences(unit):
            count += 1
            words, flat = num_words(sentence.text), " ".join(sentence.text.split())
            for limit in (30, 25):
                if words > limit:
                    found.append(Finding(str(path), sentence.line, f"over {limit}", f"{words} words: {flat}"))
        for category, pattern in {**WORDS, "a=per": _PER}.items():
            for match in pattern.finditer(unit.text):
                line = unit.line + unit.text.count("\n", 0, match.start())
                around = unit.text[max(0, match.start() - 30) : match.end() + 30]
                found.append(Finding(str(path), line, category, " ".join(around.split())))
    return count, sorted(found, key=lambda f: (f.line, CATEGORIES.index(f.category)))


def files(paths: Iterable[Path]) -> list[Path]:
    """All files to read, each once.

    Raises:
        UserError: a path does not exist, or is a file of another kind.
    """
    out: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in KINDS and p.is_file())
            hidden = [any(part.startswith(".") for part in p.relative_to(path).parts) for p in inside]
            generated = [p.resolve().as_posix().endswith(tuple(f"/{g}" for g in GENERATED)) for p in inside]
            out |= dict.fromkeys(p for p, h, g in zip(inside, hidden, generated, strict=True) if not (h or g))
        elif path.is_file() and path.suffix in KINDS:
            out[path] = None
        else:
            raise errors.UserError(f"{path} is neither a folder nor a file that ends in {', '.join(KINDS)}")
    return list(out)


def main(args: Args) -> None:
    columns = ("sentences", *CATEGORIES)
    counts: dict[str, dict[str, int]] = {}
    totals = {kind: dict.fromkeys(columns, 0) for kind in (*dict.fromkeys(KINDS.values()), "all")}
    everything: list[Finding] = []
    for path in files(args.paths):
        number, found = findings(path)
        of_file = {"sentences": number} | {c: sum(f.category == c for f in found) for c in CATEGORIES}
        counts[str(path)] = of_file
        everything += found
        for total in (totals[KINDS[path.suffix]], totals["all"]):
            for key, value in of_file.items():
                total[key] += value
    if args.list:
        for f in everything:
            print(f"{f.file}:{f.line}: {f.category}: {f.text}")
        print()
    print("".join(f"{name:>10}" for name in columns))
    for name, row in [*counts.items(), *((f"total, {kind}", row) for kind, row in totals.items())]:
        print("".join(f"{value:>10}" for value in row.values()) + f"  {name}")
    if args.json is not None:
        listed = [f._asdict() for f in everything]
        checkpoints.write_json(args.json, {"files": counts, "totals": totals, "findings": listed})
        print(f"wrote {args.json}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
