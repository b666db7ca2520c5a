"""The site: all pages are in the menu, all public names in the API pages, snippets run, numbers are the study's.

These tests need no Sphinx. The last one builds the site, where Sphinx is installed; `make docs` does the same.
"""

import ast
import importlib
import re
import runpy
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from properties import public

import sppo_control
import sppo_envs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PATH = list(sys.path)
CONF = runpy.run_path(str(DOCS / "conf.py"))
sys.path[:] = PATH  # the settings add folders to it
PAGES = {
    path.relative_to(DOCS).with_suffix("").as_posix()
    for path in DOCS.rglob("*.md")
    if not set(path.relative_to(DOCS).parts) & set(CONF["exclude_patterns"])
}


def test_the_settings_are_strict_and_take_nothing_from_elsewhere():
    assert CONF["nitpicky"]
    assert "suppress_warnings" not in CONF
    assert CONF["html_math_renderer"] == "mathml"
    assert not CONF["nb_ipywidgets_js"]
    assert (CONF["nb_execution_mode"], CONF["nb_execution_raise_on_error"]) == ("force", True)
    assert "-W" in re.search(r"^docs:.*\n(\t.*\n)+", (ROOT / "Makefile").read_text(), flags=re.M)[0]
    for _, pattern in CONF["nitpick_ignore_regex"]:
        assert not re.fullmatch(pattern, "sppo_control.core.sequence_advantage"), pattern
        assert not re.fullmatch(pattern, "sppo_envs.check.check_task"), pattern


def test_every_page_is_in_the_menu():
    listed, reached = {}, set()
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text()
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.M | re.S):
            for entry in (line for line in block.splitlines() if line and not line.startswith(":")):
                name = re.sub(r"^.* <(.*)>$", r"\1", entry)
                path = (Path(page).parent / name).as_posix()
                matches = {p for p in PAGES if Path(p).match(path) and p.count("/") == path.count("/")}
                assert matches or "*" in entry, f"{page}.md lists {entry}, and there is no such page"
                listed.setdefault(page, set()).update(matches - {page})
    waiting = ["index"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += listed.get(page, set()) - reached
    assert reached == PAGES, f"in no toctree of docs/index.md: {sorted(PAGES - reached)}"


FILES = {
    ".".join(path.relative_to(above).with_suffix("").parts).removesuffix(".__init__"): path
    for package in (sppo_control, sppo_envs)
    for above in [Path(package.__file__).parents[1]]
    for path in Path(package.__file__).parent.rglob("*.py")
}
MODULES = sorted(name for name in FILES if not name.endswith("__main__") and ".course.checks" not in name)
"""All modules of both packages, except for command lines and the checks of exercises."""


def test_every_module_has_its_place_in_the_api_pages():
    named = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), flags=re.M)
    ]
    assert len(named) == len(set(named)), "twice"
    with_names = {name for name in MODULES if "def " in source(name) or "class " in source(name)}
    assert with_names <= set(named), f"in no page of docs/api: {sorted(with_names - set(named))}"
    assert set(named) <= set(MODULES), f"no module of this name: {sorted(set(named) - set(MODULES))}"


def source(name):
    return FILES[name].read_text()


def undocumented(body, prefix=""):
    """Public functions, classes, and methods of classes without a docstring."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef) and not prefix:
                yield from undocumented(node.body, f"{node.name}.")


def test_every_public_name_has_a_docstring():
    """Sphinx lists names with a docstring only. So this and the test above put every public name into the API pages."""
    assert len(MODULES) > 50
    assert [f"{name}.{x}" for name in MODULES for x in undocumented(ast.parse(source(name)).body)] == []
    assert list(undocumented(ast.parse("class A:\n    def f(self): ...\n    def _g(self): ...").body)) == ["A", "A.f"]


# ------------------------------------------------------------------------------------------------------------ snippets
def test_each_snippet_is_on_a_page_and_in_a_test():
    pages = "".join((DOCS / f"{page}.md").read_text() for page in PAGES)
    tests = Path(__file__).read_text()
    for path in (DOCS / "snippets").glob("*.py"):
        assert f"snippets/{path.name}" in pages
        assert f'"{path.stem}"' in tests, f"nothing runs {path.name}"


def snippet(name):
    return runpy.run_path(str(DOCS / "snippets" / f"{name}.py"))


def test_the_advantages_of_the_tutorial_are_what_it_says(capsys):
    snippet("advantages")
    printed = capsys.readouterr().out
    assert printed.count("SPPO") == 2
    assert f"```text\n{printed}```" in (DOCS / "tutorial.md").read_text()


def test_a_model_of_ones_own_learns(capsys):
    before, after = snippet("own_model")["main"]()
    assert before < 0.3
    assert after > 0.95
    assert capsys.readouterr().out == f"success {before:.2f} -> {after:.2f}\n"
    said = re.search(r"```text\nsuccess ([\d.]+) -> ([\d.]+)\n```", (DOCS / "own_model.md").read_text())
    assert said is not None
    assert [float(x) for x in said.groups()] == pytest.approx(
        [before, after], abs=0.06
    )  # versions of torch round apart


def test_the_curves_of_the_tutorial_are_those_of_the_runs(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: extra plots")
    from torch.utils.tensorboard import SummaryWriter

    curves = snippet("curves")
    for i, script in enumerate(("sppo_cartpole", "ppo_cartpole")):
        folder = tmp_path / f"task__{script}__1__now"
        with SummaryWriter(str(folder)) as writer:
            for step in (1_000_000, 2_000_000):
                for j, tag in enumerate(curves["PANELS"]):
                    writer.add_scalar(tag, i + j + step / 1e7, step)
    figure = curves["main"](sorted(tmp_path.iterdir(), reverse=True), tmp_path / "curves.png")
    for j, axis in enumerate(figure.axes):
        assert [line.get_label() for line in axis.lines] == ["SPPO", "PPO"]
        for i, line in enumerate(axis.lines):
            assert line.get_xdata() == pytest.approx([1, 2])
            assert line.get_ydata() == pytest.approx([i + j + 0.1, i + j + 0.2], rel=1e-6)


def test_the_change_of_one_line_is_the_batch_mean():
    """The line of the tutorial, in the place of the script's, gives REINFORCE's advantage."""
    import torch

    line = re.search(r"^adv = A = core\.leave_one_out.*$", (DOCS / "tutorial.md").read_text(), flags=re.M)[0]
    script = (ROOT / "scripts" / "sppo_cartpole.py").read_text()
    assert script.count("            adv = A = core.sequence_advantage(") == 1
    names = {"core": sppo_control.core, "R": torch.tensor([1.0, 0.0, 0.0, 1.0]), "args": type("", (), {"num_envs": 4})}
    exec(line, names)
    assert names["A"].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


@pytest.mark.parametrize("name", ["sppo", "ppo", "grpo", "rloo", "remax"])
def test_results_on_the_page_of_an_algorithm_are_those_of_the_tables(name):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / "figures" / "tables.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    right = {(row[0], row[1]): [row[3], row[4], row[6], row[8]] for row in rows if len(row) == 12 and row[2] == "-"}
    section = (DOCS / f"{name}.md").read_text().split("\n## Results\n")[1].split("\n## ")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "]
    shown = {(row[0], row[1].strip("`")): row[2:] for row in shown[2:]}
    assert len(shown) >= 7
    for key, cells in shown.items():
        assert cells == right[key], key
    assert {task for task, _ in shown} == {task for task, _ in right}


# ------------------------------------------------------------------------------------------------------------- the site
def test_links_and_addresses_from_elsewhere_are_found(tmp_path):
    problems = runpy.run_path(str(DOCS / "_ext" / "links.py"))["problems"]
    page = '<h1 id="top">x</h1><a href="b.html#here">b</a><a href="https://example.org">out</a><img src="p.png">'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<p id="here">x</p><a href="a.html#top">a</a><a href="#here">here</a>')
    (tmp_path / "p.png").write_text("")
    (tmp_path / "s.css").write_text("a { background: url(p.png) }")
    assert problems(tmp_path) == []

    (tmp_path / "c.html").write_text(
        '<a href="no.html">1</a><a href="a.html#no">2</a><a href="#no">3</a><img src="no.png"><p style="x: url(//e.org/p)">'
        '<script src="https://e.org/s.js"></script><link rel="stylesheet" href="//e.org/s.css">'
    )
    (tmp_path / "t.css").write_text("@import 'https://e.org/f.css'; a { b: url( 'http://e.org/f' ) }")
    found = problems(tmp_path)
    for part in (
        "c.html links to no.html", "c.html links to a.html#no", "c.html links to #no", "c.html needs no.png",
        "c.html fetches //e.org/p", "c.html fetches https://e.org/s.js", "c.html fetches //e.org/s.css",
        "t.css fetches https://e.org/f.css", "t.css fetches http://e.org/f",
    ):  # fmt: skip
        assert sum(line.startswith(part) for line in found) == 1, part
    assert len(found) == 9


def test_docstrings_become_what_sphinx_reads():
    pytest.importorskip("sphinx", reason="sphinx is not installed: extra docs")
    restructured = runpy.run_path(str(DOCS / "_ext" / "docstrings.py"))["restructured"]
    assert restructured(["A * B of `x`s, a_<t, |A|"]) == [r"A \* B of ``x``\ s, a\_<t, \|A\|"]
    table = ["Text:", "", "| a    | b |", "| ---- | - |", "| p | q| 1 |"]
    assert restructured(table)[3:] == [
        ".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", r"   * - p \| q", "     - 1", "",
    ]  # fmt: skip
    assert restructured(["Text", "", "    python x.py", "", "Args:", "    a: b", "", "        c"]) == [
        "Text", "", ".. code-block:: text", "", "    python x.py", "", "Args:", "    a: b", "", "        c",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_public_name(tmp_path):
    for package in ("sphinx", "myst_nb", "furo", "latex2mathml", "trl", "pandas"):
        pytest.importorskip(package, reason=f"{package} is not installed: extra docs")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    packed = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]  # behind four lines of text
    names = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    for module in MODULES:
        missing = {f"{module}.{name}" for name in public(importlib.import_module(module))} - names
        assert not missing, f"not in the API pages: {sorted(missing)}"
