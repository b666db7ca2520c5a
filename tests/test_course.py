"""The course: each checker accepts what is right in any style, rejects what is wrong, and names the mistake."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from course_cut import cut

from sppo_control.course import Check, Mistake, catalog, grading

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ROOT / "exercises"
STEMS = [path.stem for path in sorted(EXERCISES.glob("e[0-9][0-9]_*.py"))]
VARIANTS = {stem: importlib.import_module(f"course_variants.{stem}") for stem in STEMS}


def source(stem, folder="solutions"):
    return (EXERCISES / folder / f"{stem}.py").read_text()


def graded(stem, text):
    """Grade this text in this process."""
    module = ModuleType(stem)
    module.__file__ = str(EXERCISES / f"{stem}.py")
    sys.modules[stem] = module
    exec(compile(text, module.__file__, "exec"), module.__dict__)
    return grading.run_checks(module, grading.checks_of(stem).CHECKS)


# ---------------------------------------------------------------------------------------------------- each exercise
def test_there_are_enough_exercises_and_each_has_all_its_parts():
    assert len(STEMS) >= 16
    assert len({stem.partition("_")[0] for stem in STEMS}) == len(STEMS), "two have one number"
    for place, ending in (("exercises/solutions", "py"), ("sppo_control/course/checks", "py")):
        there = {path.stem for path in (ROOT / place).glob(f"e*.{ending}")}
        assert there == set(STEMS), place
    assert {path.stem for path in (ROOT / "tests" / "course_variants").glob("e*.py")} == set(STEMS)
    for exercise in catalog.exercises():
        checks = grading.checks_of(exercise.stem)
        assert all(isinstance(check, Check) for check in checks.CHECKS)
        names = [check.name for check in checks.CHECKS]
        assert len(set(names)) == len(names)
        # Each check that asks for something new has hints of its own; the others only guard what was given.
        given = [name for name in names if re.search("as (it|they) (was|were)$|nothing else is broken", name)]
        assert set(checks.HINTS) == set(names) - set(given)
        assert all(isinstance(hint, str) for hints in checks.HINTS.values() for hint in hints)
        assert all(len(hints) >= 1 for hints in checks.HINTS.values())
        assert len(VARIANTS[exercise.stem].WRONG) >= 5


def test_the_page_has_the_table_of_the_docstrings():
    text = (ROOT / "docs" / "course.md").read_text()
    assert catalog.page() in text, 'python -c "from sppo_control.course import catalog; print(catalog.page())"'


@pytest.mark.parametrize("stem", STEMS)
def test_the_template_is_the_solution_with_its_bodies_cut(stem):
    template = source(stem, "")
    assert template.endswith(
        'if __name__ == "__main__":\n    from sppo_control.course import grade\n\n    raise SystemExit(grade(__file__))\n'
    )
    if grading.unwritten(template):
        assert template == cut(source(stem)), f"python tests/course_cut.py {stem}"
    else:  # a bug hunt
        assert template.split('"""')[1] == source(stem).split('"""')[1], "the solution has another docstring"
        assert template != source(stem)


@pytest.mark.parametrize("stem", STEMS)
def test_a_template_is_not_solved_and_says_what_to_do(stem):
    found = graded(stem, source(stem, ""))
    assert not found.solved
    assert len(found.message) > 20
    if grading.unwritten(source(stem, "")):
        assert found.todo
        assert "is not written yet" in found.message


@pytest.mark.parametrize("stem", STEMS)
def test_a_solution_passes(stem):
    found = graded(stem, source(stem))
    assert found.solved, found.message
    assert found.notes == []
    assert len(found.passed) == found.total > 0


@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem in STEMS for name in VARIANTS[stem].RIGHT])
def test_a_right_variant_is_accepted(stem, name):
    found = graded(stem, source(stem) + "\n\n" + VARIANTS[stem].RIGHT[name])
    assert found.solved, f"{found.failed}: {found.message}"


@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem in STEMS for name in VARIANTS[stem].WRONG])
def test_a_wrong_variant_is_rejected_by_its_name(stem, name):
    text, words = VARIANTS[stem].WRONG[name]
    found = graded(stem, source(stem) + "\n\n" + text)
    assert not found.solved, "it is accepted"
    assert words in found.message, f"{found.failed}: {found.message}"


def test_a_check_can_fail():
    """The helper of these tests would notice."""

    def run(module):
        raise Mistake("no")

    found = grading.run_checks(ModuleType("m"), [Check("a", lambda module: None), Check("b", run)])
    assert (found.passed, found.failed, found.message, found.solved) == (["a"], "b", "no", False)
