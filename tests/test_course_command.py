"""The course's command, and the process in which a student's code is graded, whatever that code does."""

import faulthandler
import os
import queue
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from course_cut import cut

from sppo_control import errors
from sppo_control.course import Check, catalog, grading
from sppo_control.course import __main__ as command

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ROOT / "exercises"
SOLUTION = (EXERCISES / "solutions" / "e02_sequence_advantage.py").read_text()
TEMPLATE = (EXERCISES / "e02_sequence_advantage.py").read_text()


# -------------------------------------------------------------------------------------- what a student's code may do
class Forked:
    """In place of subprocess.Popen: the same work in a fork of this process, which has imported torch already."""

    def __init__(self, words, stdin, stdout, stderr, cwd, env, start_new_session):
        assert words[1:3] == ["-m", "sppo_control.course.worker"]
        assert stdin == subprocess.DEVNULL
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                sys.stdin, sys.stdout, sys.stderr = (
                    os.fdopen(i, mode, 1) for i, mode in ((0, "r"), (1, "w"), (2, "w"))
                )
                os.chdir(cwd)
                faulthandler.disable()  # pytest's, which would write about a crash that is part of a test
                grading.work(Path(words[3]), Path(words[4]), *map(float, words[5:]))
            finally:
                os._exit(77)

    def wait(self, timeout=None):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    poll = wait


@pytest.fixture
def student(tmp_path, monkeypatch):
    """Grades this text as exercise e02, in a process of its own."""
    monkeypatch.setattr(grading.subprocess, "Popen", Forked)

    def grade(text, seconds=None):
        path = tmp_path / "e02_sequence_advantage.py"
        path.write_text(text)
        return grading.outcome_of(path, seconds)

    return grade


def inside(line, text=SOLUTION):
    """The solution with this line at the beginning of its first function."""
    head = text.index("    return (outcome")
    return text[:head] + f"    {line}\n" + text[head:]


LINE = 1 + SOLUTION[: SOLUTION.index("    return (outcome")].count("\n")
BAD = {
    "sys.exit": (inside("import sys; sys.exit('bye')"), "it calls sys.exit(bye)"),
    "exit while it is imported": ("raise SystemExit(0)\n" + SOLUTION, "cannot be imported"),
    "os._exit": (inside("import os; os._exit(0)"), "ended the whole process (exit status 0)"),
    "a crash": (inside("import os; os.kill(os.getpid(), 11)"), "ended the whole process (signal 11)"),
    "input": (inside("input('a number? ')"), "nobody can answer"),
    "an exception": (inside("1 / 0"), f"Line {LINE} of e02_sequence_advantage.py, in `sequence_advantage`: ZeroDiv"),
    "recursion": (inside("return sequence_advantage(outcome, value_logit)"), "calls itself without end"),
    "no Python": (SOLUTION.replace("import torch\n", "import torch torch\n"), "is not Python: invalid syntax"),
    "a zero byte": (SOLUTION + "\0", "is not Python"),
    "a missing module": ("import no_such_module\n" + SOLUTION, "No module named 'no_such_module'"),
    "another name": (SOLUTION.replace("def per_step", "def each_step"), "has no `per_step` any more"),
    "other arguments": (SOLUTION.replace("(outcome: Tensor, value_logit: Tensor)", "(outcome)"), "cannot use your code"),
    "nothing": (SOLUTION.replace("return (outcome", "(outcome"), "is None"),
    "a text": (SOLUTION.replace("return (outcome", "return 'A' or (outcome"), "of type str"),
    "not a number": (SOLUTION.replace("return (outcome", "return torch.nan * (outcome"), "NaN"),
    "yes and no": (SOLUTION.replace("return (outcome", "return (outcome > 0) | (outcome"), ""),
    "todo": (TEMPLATE, "`sequence_advantage` is not written yet"),
    "a file that is too large": (inside("open('x', 'w').write('x' * 70_000_000)"), "File too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_whatever_a_students_code_does_there_is_one_message(student, name):
    text, words = BAD[name]
    found = student(text)
    assert not found.solved
    assert words in found.message
    assert "defect" not in found.message
    assert "cannot start" not in found.message


@pytest.mark.parametrize("place", ["in a function", "while it is imported", "asleep"])
def test_code_that_never_ends_is_stopped_and_its_line_is_named(student, place):
    text = {
        "in a function": inside("while True: pass"),
        "while it is imported": "while True: pass\n" + SOLUTION,
        "asleep": inside("import time; time.sleep(1000)"),
    }[place]
    found = student(text, seconds=0.2)
    line = 1 if place == "while it is imported" else LINE
    assert f"does not end within 0.2 s. Line {line} of e02_sequence_advantage.py was running" in found.message


def test_what_is_printed_is_shown_but_not_much_of_it(student):
    found = student("print('\\033[31mstart')\n" + inside("print('x' * 100_000); print('the end')"))
    assert found.solved
    assert len(found.printed) <= grading.PRINTED
    assert found.printed.endswith("the end")
    assert "    | the end" in grading.report(Path("e02.py"), found)


STATES = {
    "torch.manual_seed(3)": "calls torch.manual_seed(3)",
    "torch.set_num_threads(2)": "the number of torch's threads for the whole program: 1 became 2",
    "torch.set_default_dtype(torch.float64)": "torch's default dtype",
    "torch.set_grad_enabled(False)": "whether torch records gradients",
}


@pytest.mark.parametrize("line", STATES)
def test_changes_for_the_whole_program_are_said_and_taken_back(line):
    torch.set_num_threads(1)
    seen = []

    def run(module):
        seen.append((random.random(), np.random.random(), torch.rand(())))  # noqa: NPY002
        exec(line)

    before = torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled()
    checks = [Check("a", run), Check("b", run)]
    found = grading.run_checks(type(sys)("m"), checks)
    assert found.solved
    assert len(found.notes) == 1, "each thing is said once"
    assert STATES[line] in found.notes[0]
    assert seen[0] == seen[1], "each check begins with the same random numbers"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled()) == before[1:]
    assert torch.get_num_threads() == 1
    assert "note" in grading.report(Path("m.py"), found)


def test_a_file_of_another_name_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SOLUTION)
    assert grading.grade(tmp_path / "mine.py") == 2
    assert "there is no exercise 'mine'" in capsys.readouterr().err


def test_an_exercise_grades_itself_in_less_than_ten_seconds(tmp_path):
    """The real thing: python e02_....py, in a folder outside of the clone."""
    path = tmp_path / "e02_sequence_advantage.py"
    path.write_text(SOLUTION)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, path.name], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "e02_sequence_advantage: solved (5 checks" in done.stdout


def test_importing_the_course_is_light():
    code = "import sys; from sppo_control.course import grade; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.stdout.split() == [b"False", b"False"]


# --------------------------------------------------------------------------------------------------- the command
@pytest.fixture
def fast(monkeypatch):
    """Grades in this process, and notes what is graded."""
    graded = []

    def outcome_of(path, seconds=None):
        graded.append(path.stem)
        try:
            module = grading.load(path)
        except grading.Mistake as mistake:
            return grading.Outcome(message=str(mistake), failed="the file can be imported")
        return grading.run_checks(module, grading.checks_of(path.stem).CHECKS)

    monkeypatch.setattr(grading, "outcome_of", outcome_of)
    return graded


@pytest.fixture
def folder(tmp_path, fast):
    """A student's folder with the first three exercises."""
    catalog.start(tmp_path / "mine")
    for path in (tmp_path / "mine").glob("e*.py"):
        if path.stem[:3] not in ("e01", "e02", "e03"):
            path.unlink()
    return catalog.Folder(tmp_path / "mine")


def solve(folder, stem):
    (folder.path / f"{stem}.py").write_text((EXERCISES / "solutions" / f"{stem}.py").read_text())


def run(monkeypatch, capsys, *words):
    """Exit status and printed text of a command line."""
    monkeypatch.setattr(sys, "argv", ["sppo-course", *map(str, words)])
    status = 0
    try:
        command.main()
    except SystemExit as end:
        status = end.code or 0
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_start_copies_the_exercises_and_nothing_else(tmp_path, monkeypatch, capsys):
    status, text = run(monkeypatch, capsys, "start", tmp_path / "a" / "b")
    assert status == 0
    assert "python -m sppo_control.course watch" in text
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert names == sorted(path.name for path in EXERCISES.glob("e*.py"))
    (tmp_path / "a" / "b" / "e01_bandit.py").write_text("mine")
    status, text = run(monkeypatch, capsys, "start", tmp_path / "a" / "b")
    assert status == 2
    assert "is there already" in text
    assert (tmp_path / "a" / "b" / "e01_bandit.py").read_text() == "mine"
    run(monkeypatch, capsys, "start", tmp_path / "c", "--solutions")
    assert (tmp_path / "c" / "solutions" / "e01_bandit.py").read_text() == (
        EXERCISES / "solutions" / "e01_bandit.py"
    ).read_text()


def test_list_and_progress_find_the_state_by_grading_what_has_changed(folder, fast, monkeypatch, capsys):
    status, text = run(monkeypatch, capsys, "list", "--folder", folder.path)
    assert status == 0
    assert re.search(r"e01 +A bandit with two arms.* 1/5 +20 +not started +the policy gradient", text)
    assert re.search(r"e20 .*missing", text)
    assert fast == [], "a template needs no grading"
    solve(folder, "e01_bandit")
    (folder.path / "e02_sequence_advantage.py").write_text(
        SOLUTION.replace("advantage[:, None]", "2 * advantage[:, None]")
    )
    (folder.path / "e03_gae.py").write_text("1 / 0")

    status, text = run(monkeypatch, capsys, "progress", "--folder", folder.path)
    assert "1 of" in text
    assert "next: e02_sequence_advantage (2/5 checks)" in text
    status, text = run(monkeypatch, capsys, "list", "--folder", folder.path)
    assert re.search(r"e01 .* solved ", text)
    assert re.search(r"e02 .* 2/5 checks ", text)
    assert re.search(r"e03 .* cannot run ", text)
    assert fast == ["e01_bandit", "e02_sequence_advantage", "e03_gae"], "each once, although it was asked for twice"


def test_check_takes_the_named_or_the_first_unsolved_exercise(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.path)
    for name in ("2", "e02", "e02_sequence_advantage", "mine/e02_sequence_advantage.py"):
        status, text = run(monkeypatch, capsys, "check", name)
        assert status == 1
        assert "e02_sequence_advantage: not finished (0 of 5 checks hold)" in text
        assert "hint e02" in text
    solve(folder, "e01_bandit")
    solve(folder, "e02_sequence_advantage")
    status, text = run(monkeypatch, capsys, "check", "e02")
    assert status == 0
    assert "e02_sequence_advantage: solved" in text
    status, text = run(monkeypatch, capsys, "check")
    assert "e03_gae: not finished" in text
    solve(folder, "e03_gae")
    status, text = run(monkeypatch, capsys, "check")
    assert status == 0
    assert "3 of" in text


def test_hints_come_one_by_one_for_the_check_that_fails(folder, monkeypatch, capsys):
    path = folder.path / "e02_sequence_advantage.py"
    hints = grading.checks_of("e02_sequence_advantage").HINTS
    tries = (
        (TEMPLATE, "the advantage is R - sigmoid(v)"),
        (SOLUTION.replace(".detach()", ""), "the advantage has no gradient"),
        (SOLUTION.replace("torch.where(mask, advantage[:, None], 0.0)", "advantage[:, None] * mask"),
         "what is in the padding never matters"),
    )  # fmt: skip
    for text, check in tries:
        path.write_text(text)
        for number, hint in enumerate([*hints[check], hints[check][-1]], start=1):
            status, said = run(monkeypatch, capsys, "hint", "2", "--folder", folder.path)
            assert status == 0
            assert f"The check that fails: {check}\n" in said
            assert f"Hint {min(number, len(hints[check]))} of {len(hints[check])}: {hint}" in said
            assert ("solutions/e02_sequence_advantage.py" in said) == (number >= len(hints[check]))
    solve(folder, "e02_sequence_advantage")
    assert "is solved" in run(monkeypatch, capsys, "hint", "2", "--folder", folder.path)[1]


def test_a_check_without_hints_of_its_own_says_how_to_go_back(folder, monkeypatch, capsys):
    (folder.path / "e01_bandit.py").write_text("1 / 0\n")
    text = run(monkeypatch, capsys, "hint", "1", "--folder", folder.path)[1]
    assert "The check that fails: the file can be imported" in text
    assert f"Hint 1 of 1: {grading.NO_HINT[0]}" in text


def test_a_report_says_how_many_checks_were_not_tried(folder, monkeypatch, capsys):
    path = folder.path / "e02_sequence_advantage.py"
    path.write_text(SOLUTION.replace(".detach()", ""))
    assert (
        "(check 2 of 5 fails, 3 later ones are not tried yet)"
        in run(monkeypatch, capsys, "check", "2", "--folder", folder.path)[1]
    )
    path.write_text(SOLUTION.replace("torch.where(mask, advantage[:, None], 0.0)", "advantage[:, None] * mask"))
    assert "(check 5 of 5 fails)" in run(monkeypatch, capsys, "check", "2", "--folder", folder.path)[1]


def test_reset_keeps_the_students_text(folder, monkeypatch, capsys):
    path = folder.path / "e01_bandit.py"
    template = path.read_text()
    for number in (1, 2):
        path.write_text(f"my try {number}")
        status, text = run(monkeypatch, capsys, "reset", "e01", "--folder", folder.path)
        assert status == 0
        assert path.read_text() == template
        assert path.with_name(f"e01_bandit.py.backup{number}").read_text() == f"my try {number}"
        assert f"backup{number}" in text
    path.unlink()
    assert run(monkeypatch, capsys, "reset", "e01", "--folder", folder.path)[0] == 0
    assert path.read_text() == template
    assert run(monkeypatch, capsys, "hint", "e01", "--folder", folder.path)[1].startswith("The check that fails: ")
    status, text = run(monkeypatch, capsys, "reset", "e01", "--folder", EXERCISES)
    assert status == 2
    assert "git checkout" in text


def test_watch_grades_at_each_save_and_goes_on_when_solved(folder, fast, capsys):
    edits = [
        lambda: None,
        lambda: (folder.path / "e01_bandit.py").write_text("def score(theta, arm): return 0.0\n"),
        lambda: None,
        lambda: (folder.path / "e01_bandit.py").unlink(),  # as some editors do before they write
        lambda: solve(folder, "e01_bandit"),
        lambda: solve(folder, "e02_sequence_advantage"),
        lambda: solve(folder, "e03_gae"),
    ]
    command.watch(folder, wait=lambda seconds: edits.pop(0)())
    text = capsys.readouterr().out
    assert edits == []
    assert [stem[:3] for stem in fast] == ["e01", "e01", "e01", "e02", "e02", "e03", "e03"]
    order = ["e01_bandit: not finished", "e01_bandit: not solved", "e01_bandit: solved", "e02_sequence_advantage: not f",
             "e02_sequence_advantage: solved", "e03_gae: not finished", "e03_gae: solved", "3 of"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_watch_obeys_what_is_typed(folder, fast, capsys):
    typed = queue.Queue()
    words = ["h", "what?", "H", "q"]
    command.watch(folder, catalog.find("e02"), typed, wait=lambda seconds: typed.put(words.pop(0).lower()))
    text = capsys.readouterr().out
    assert words == []
    assert text.count("Hint 1 of 1: ") == 2
    assert fast == ["e02_sequence_advantage"]


def test_a_damaged_state_file_is_read_as_none(folder):
    for text in ("{", "[]", '{"grades": 3, "hints": {"e01_bandit": "x"}}', "\0", "[" * 100_000):
        (folder.path / catalog.STATE_FILE).write_text(text)
        again = catalog.Folder(folder.path)
        assert again.status(catalog.find("e01")) == "not started"
        found = again.hint(catalog.find("e01"))
        assert found is not None
        assert found[1] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["start"], "start needs a folder"),
        (["hint"], "hint needs an exercise"),
        (["reset"], "reset needs an exercise"),
        (["list", "e01"], "list takes no name"),
        (["progress", "e01"], "progress takes no name"),
        (["list", "--solutions"], "--solutions belongs to start"),
        (["fly"], "fly"),
        (["check", "e99", "--folder", str(EXERCISES)], "there is no exercise 'e99'"),
        (["check", "9" * 400, "--folder", str(EXERCISES)], "there is no exercise"),
        (["list", "--folder", "nowhere"], "there are no exercises in nowhere"),
        (["list"], "there are no exercises here"),
        (["start", ""], "start needs a folder"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    status, text = run(monkeypatch, capsys, *words)
    assert status == 2
    assert said in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_in_a_clone_the_shipped_folder_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = catalog.Folder.found(None)
    assert folder.is_shipped
    assert folder.status(catalog.find("e02")) == "not started"


def test_docstrings_that_do_not_say_what_they_must_are_refused(tmp_path):
    path = tmp_path / "e01_bandit.py"
    for old, new in (("Difficulty: 1/5", "Difficulty: 6/5"), ("Minutes: 10", "Minutes: ten"), ("Teaches: ", "Shows: ")):
        path.write_text(SOLUTION.replace(old, new))
        with pytest.raises(ValueError, match="must begin with a title"):
            catalog.read(path)


def test_missing_files_are_said(folder):
    (folder.path / "e01_bandit.py").unlink()
    with pytest.raises(errors.UserError, match="reset e01 makes it again"):
        folder.grade(catalog.find("e01"))
    assert "missing files: e01_bandit" in command.progress(folder)


def test_a_template_is_cut_from_its_solution():
    text = 'def f():\n    """Does."""\n    x = 1\n    return x\n\n\ndef g():\n    """Is. Given."""\n    return 2\n'
    assert cut(text) == text.replace("    x = 1\n    return x\n", "    raise NotImplementedError\n")
    assert grading.unwritten(cut(text))
    assert not grading.unwritten(text)
    assert not grading.unwritten("def f(:")
