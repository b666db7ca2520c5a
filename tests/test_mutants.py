"""The list of single-line bugs fits the code, and scripts/mutants.py tells caught bugs from survivors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mutants
from sppo_control.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LIST = mutants.read(ROOT / "tests" / "mutants.toml")


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in LIST}))
def test_the_mutants_of_each_file_fit_it(file):
    """The old code is there as often as stated, the new code is Python, and the tests exist."""
    text = (ROOT / file).read_text()
    for mutant in LIST:
        if mutant.file == file:
            assert mutant.apply(text) != text, mutant.name
            assert mutant.mistake.endswith("."), mutant.name
            assert len(mutant.mistake.split()) <= 25, mutant.name
            for test in mutant.tests:
                where, _, function = test.partition("::")
                assert f"def {function}" in (ROOT / where).read_text(), mutant.name


def test_there_are_many_of_every_kind():
    def number(*paths):
        return sum(any(Path(mutant.file).is_relative_to(path) for path in paths) for mutant in LIST)

    assert len(LIST) >= 120
    assert number("sppo_control/core.py") >= 35
    assert number("sppo_control/rollout.py") >= 10
    assert number("sppo_control/policies.py", "sppo_control/networks.py") >= 12
    assert number("envs") >= 15
    assert number("sppo_control/runs.py", "sppo_control/checkpoints.py") >= 12
    assert number(*(f"scripts/{name}_cartpole.py" for name in ("sppo", "ppo", "grpo", "rloo", "remax"))) >= 25
    assert number("sppo_control/llm", *(f"scripts/{name}_llm.py" for name in ("sppo", "ppo", "grpo"))) >= 20


def test_the_page_has_every_mutant():
    page = (ROOT / "docs" / "mutants.md").read_text()
    files = dict.fromkeys(mutant.file for mutant in LIST)
    by_file = [mutant.name for file in files for mutant in LIST if mutant.file == file]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.M) == by_file, "run make mutants"
    assert f"{len(LIST)} mutants were tried. " in page


ENTRY = """
[[mutant]]
name = "one-for-two"
mistake = "One is taken for two."
file = "a.py"
old = '1'
new = '2'
count = 2
nth = 2
tests = ["tests/test_a.py"]
"""


def test_the_place_that_is_named_is_changed(tmp_path):
    (tmp_path / "list.toml").write_text(ENTRY)
    (mutant,) = mutants.read(tmp_path / "list.toml")
    assert mutant.apply("x = 1, 1\n") == "x = 1, 2\n"
    for text, message in (("x = 1\n", "occurs 1 times in a.py, not 2"), ("x = 1 1\n", "is no Python")):
        with pytest.raises(UserError, match=f"one-for-two: .*{message}"):
            mutant.apply(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("new = '2'", "new = '1'", "another new code"),
        ("nth = 2", "nth = 3", "1 <= nth <= count"),
        ('"one-for-two"', '"One"', "words with hyphens"),
        ("count", "counts", "unexpected keyword"),
        ("[[mutant]]", "[[bug]]", "cannot read"),
        ("[[mutant]]", ENTRY + "[[mutant]]", "two mutants are called one-for-two"),
    ],
)
def test_wrong_entries_are_refused(old, new, message, tmp_path):
    (tmp_path / "list.toml").write_text(ENTRY.replace(old, new))
    with pytest.raises(UserError, match=message):
        mutants.read(tmp_path / "list.toml")


def test_only_and_files_choose():
    assert [m.name for m in mutants.chosen(mutants.Args(only=("loss-sign-turned",)), LIST)] == ["loss-sign-turned"]
    some = mutants.chosen(mutants.Args(files=("envs",)), LIST)
    assert some
    assert all(m.file.startswith("envs/") for m in some)
    with pytest.raises(UserError, match="no mutant is called absent"):
        mutants.chosen(mutants.Args(only=("absent",)), LIST)
    with pytest.raises(UserError, match=r"no mutant is in setup\.py"):
        mutants.chosen(mutants.Args(files=("setup.py",)), LIST)


@pytest.fixture
def little(tmp_path, monkeypatch):
    """A repository of one function and one test, with three bugs; `git` is not asked."""
    files = {
        "a.py": "def double(x):\n    return 2 * x\n",
        "tests/test_a.py": "import a\n\n\ndef test_double():\n    assert a.double(0) == 0\n    assert a.double(3) > 3\n",
        "list.toml": "".join(
            ENTRY.replace("one-for-two", name).replace("'1'", "'return 2 * x'").replace("'2'", f"'return {new}'")
            .replace("count = 2\nnth = 2\n", "")
            for name, new in (("caught-one", "x"), ("surviving-one", "4 * x"), ("endless-one", "double(x) if x else 1"))
        ),
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)

    def copy_checkout(target):
        for name, text in files.items():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text(text)

    def run_tests(copy, tests, time_limit):  # the real one prepares a process with torch, which takes seconds
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=time_limit)
        return done.returncode, done.stdout

    monkeypatch.setattr(mutants, "copy_checkout", copy_checkout)
    monkeypatch.setattr(mutants, "run_tests", run_tests)
    return tmp_path


def test_bugs_are_caught_or_survive_and_results_are_kept(little, capsys):
    args = mutants.Args(mutants=little / "list.toml", json=little / "r.json", markdown=little / "page.md")
    with pytest.raises(SystemExit) as stop:
        mutants.main(args)
    assert stop.value.code == 1, "two of three are fewer than 95 %"
    out = capsys.readouterr().out
    assert "2 of 3 mutants are caught, 66.7%" in out
    found = {name: x["caught_by"] for name, x in json.loads((little / "r.json").read_text()).items()}
    caught = "tests/test_a.py::test_double"
    assert found == {"caught-one": caught, "surviving-one": "SURVIVED", "endless-one": caught}
    page = (little / "page.md").read_text()
    assert "3 mutants were tried. 2 were caught, 1 survived." in page
    assert "- `surviving-one` survives: no reason is given." in page
    assert (little / "a.py").read_text() == "def double(x):\n    return 2 * x\n", "the checkout stays as it is"
    with pytest.raises(SystemExit):
        mutants.main(args)
    assert "mutants to try" not in capsys.readouterr().out, "what has not changed is not run again"
    (little / "tests" / "test_a.py").write_text("import a\n\n\ndef test_double():\n    assert False\n")
    assert (
        mutants.fingerprint(mutants.read(args.mutants)[0])
        != json.loads((little / "r.json").read_text())["caught-one"]["fingerprint"]
    )
