"""plain_english.py: what it counts, and what it must not count, on small made-up texts."""

import json

import pytest

import plain_english
from sppo_control import errors


def counted(tmp_path, text, name="page.md"):
    """Findings of a file with this text, as (line, category)."""
    (tmp_path / name).write_text(text)
    _, found = plain_english.findings(tmp_path / name)
    return [(f.line, f.category) for f in found]


def words(n):
    return "word " * (n - 1) + "end"


@pytest.mark.parametrize(
    ("n", "expected"),
    [(25, []), (26, [(1, "over 25")]), (30, [(1, "over 25")]), (31, [(1, "over 30"), (1, "over 25")])],
)
def test_long_sentences_begin_above_25_and_30_words(tmp_path, n, expected):
    assert counted(tmp_path, words(n) + ".\n") == expected


@pytest.mark.parametrize(
    ("category", "word"),
    [
        *[("stand", w) for w in ("stands", "stand", "Stood")],
        *[("lie", w) for w in ("lies", "Lie", "lay")],
        *[("own", w) for w in ("of its own", "of their own", "of\nits own")],
    ],
)
def test_words_are_found(tmp_path, category, word):
    assert counted(tmp_path, f"First line.\nIt {word} here.\n") == [(2, category)]


@pytest.mark.parametrize(
    "word",
    ["standard", "understood", "a stand-alone file", "layer", "belies", "replay", "its own", "of our own", "`lies`"],
)
def test_other_words_are_not_found(tmp_path, word):
    assert counted(tmp_path, f"It says {word} here.\n") == []


PER = [
    "64 episodes an update",
    "steps a batch",
    "once a step",
    "twice an epoch",
    "four times a minibatch",
    "one row an episode",
    "with one step a batch",
    "one plain step a micro-batch",
    "updates of the critic a batch",
    "tokens\na response",
]


@pytest.mark.parametrize("text", PER)
def test_a_in_place_of_per_is_found(tmp_path, text):
    assert counted(tmp_path, f"This is {text}, as said.\n") == [(1, "a=per")]


@pytest.mark.parametrize(
    "text",
    [
        "64 episodes per update",
        "in each step a batch is drawn",
        "it runs a task",
        "one batch of a run",
        "which steps an environment",
        "`once` a step",
    ],
)
def test_other_articles_are_not_found(tmp_path, text):
    assert counted(tmp_path, f"This is what we mean: {text}.\n") == []


# ---------------------------------------------------------------------------------------------------- sentences
def pieces(text):
    return [(u.line, u.text) for unit in plain_english.markdown_units(text) for u in plain_english.sentences(unit)]


def test_a_sentence_ends_at_its_point_not_at_a_decimal_or_an_abbreviation():
    text = "It is 0.5 (Wang et al. 2026, eq. 3). **Then?** Yes! In docs/a.md too, e.g. here."
    sentences = ["It is 0.5 (Wang et al. 2026, eq. 3).", "**Then?**", "Yes!", "In docs/a.md too, e.g. here."]
    assert pieces(text) == [(1, s) for s in sentences]


def test_a_sentence_goes_on_over_lines_and_knows_its_first():
    assert pieces("One.\nTwo is\nlong. Three.\n\nFour") == [
        (1, "One."),
        (2, "Two is\nlong."),
        (3, "Three."),
        (5, "Four"),
    ]


def test_entries_of_a_docstring_are_units():
    text = "Raises:\n    ValueError: one\n        goes on\n    OSError: two\n\nAfter"
    assert pieces(text) == [(2, "ValueError: one\ngoes on"), (4, "OSError: two"), (6, "After")]


def test_code_over_two_lines_keeps_the_numbers_of_lines_right():
    assert pieces("Call `a\nb`.\nThen.") == [(1, "Call code\n."), (3, "Then.")]


def test_units_of_markdown():
    text = """# Heading

Text before.
- item one
  goes on
- item two

| a b | c |
| --- | --- |
| x<br>y | `p|q` z |
"""
    expected = [(1, "Heading"), (3, "Text before."), (4, "item one\ngoes on"), (6, "item two")]
    assert pieces(text) == [*expected, (8, "a b"), (8, "c"), (10, "x<br>"), (10, "y"), (10, "code z")]


def test_code_blocks_are_not_prose(tmp_path):
    text = (
        "Before.\n\n    it stands\n\n    it lies\n\nBetween.\n\n```python\nit stands\n\n# it lies\n```\n\n> It lay.\n"
    )
    assert counted(tmp_path, text) == [(15, "lie")]
    assert counted(tmp_path, "- item\n\n    it lies, a paragraph of the item\n") == [(3, "lie")]


def test_words_are_counted_after_markup():
    text = (
        "See [the *long* page](a/very/long/address.md), `python -c 'a b c'` and ![one picture](p.png) - 0.9 [0.8, 1.0]."
    )
    ((_, sentence),) = pieces(text)
    assert plain_english.num_words(sentence) == 10  # an interval and code: one word each


# ---------------------------------------------------------------------------------------------------- other languages
PYTHON = '''"""Module that stands.

Args:
    a: lies here
    b: lay there,
        and goes on

    it_stands("code")
"""

X = "a string that lies"
"""What stands below a constant."""


class Args:
    """Of its own."""

    rate: int = 1
    """episodes an update"""  # once a step

    def f(self):
        f"stands {self}"
        # a comment that
        # lies down

        # ---- stands
        x = 1  # noqa: stands
'''


def test_units_of_python(tmp_path):
    found = [(1, "stand"), (4, "lie"), (5, "lie"), (12, "stand"), (16, "own"), (19, "a=per"), (19, "a=per")]
    assert counted(tmp_path, PYTHON, "code.py") == [*found, (24, "lie"), (26, "stand")]


def test_comments_on_lines_below_one_another_are_one_sentence_others_not():
    source = "# one\n# two\nx = 1  # three\n# four\n  # five\n\n# six\n"
    expected = [(1, "one\ntwo"), (3, "three"), (4, "four"), (5, "five"), (7, "six")]
    assert [tuple(u) for u in plain_english.shell_units(source)] == expected
    assert [tuple(u) for u in plain_english.python_units(source.replace("  # five", "# five"))][2:] == [
        (4, "four\nfive"),
        (7, "six"),
    ]


def test_shell_and_yaml_comments(tmp_path):
    assert counted(tmp_path, "#!/bin/bash\necho it stands # it lies\necho a#stands\n", "run.sh") == [(2, "lie")]


# ---------------------------------------------------------------------------------------------------- the whole script
def test_folders_totals_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("docs/figures/tables.md", "docs/figures/rates.md", "docs/.hidden/x.md", "docs/x.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("It stands.\n")
    (tmp_path / "docs" / "a.md").write_text("It stands. It lies.\n")
    (tmp_path / "docs" / "b.py").write_text("# it stands\n")
    out = tmp_path / "counts.json"
    docs = plain_english.Path("docs")
    plain_english.main(plain_english.Args(paths=(docs, docs / "a.md"), list=True, json=out))
    printed = capsys.readouterr().out
    assert "docs/a.md:1: lie: It stands. It lies." in printed
    result = json.loads(out.read_text())
    assert list(result["files"]) == ["docs/a.md", "docs/b.py"]
    assert result["files"]["docs/a.md"]["sentences"] == 2
    got = {kind: (row["stand"], row["lie"]) for kind, row in result["totals"].items()}
    assert got == {"Markdown": (1, 1), "Python": (1, 0), "other": (0, 0), "all": (2, 1)}
    assert len(result["findings"]) == 3

    with pytest.raises(errors.UserError, match="nowhere is neither"):
        plain_english.main(plain_english.Args(paths=(plain_english.Path("nowhere"),)))
    with pytest.raises(errors.UserError, match=r"x\.txt is neither"):
        plain_english.main(plain_english.Args(paths=(docs / "x.txt",)))
