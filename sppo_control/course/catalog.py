"""Which exercises there are, what their docstrings say about them, and how far a student's folder is."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..markdown import markdown_table
from . import grading
from .grading import ROOT, Outcome

STATE_FILE = ".course.json"
"""In the student's folder: the grade of each file with a hash of its text, and the number of hints shown."""
FIELDS = ("Difficulty", "Minutes", "Teaches")


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its docstring describes it."""

    stem: str
    """such as e01_bandit"""
    title: str
    difficulty: int
    """from 1 to 5"""
    minutes: int
    """that it takes, roughly"""
    teaches: str

    @property
    def number(self) -> str:
        """Such as e01."""
        return self.stem.partition("_")[0]


def shipped() -> Path:
    """The folder of the exercises as they come with the package: in it, or in the clone around it."""
    inside = Path(__file__).parent / "exercises"
    return inside if inside.is_dir() else ROOT / "exercises"


def read(path: Path) -> Exercise:
    """What an exercise's docstring says.

    Raises:
        ValueError: a line is missing or impossible.
    """
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    found = {name: value for line in lines[:6] for name, _, value in [line.partition(": ")] if name in FIELDS}
    difficulty = re.fullmatch(r"([1-5])/5", found.get("Difficulty", ""))
    minutes = re.fullmatch(r"[1-9]\d*", found.get("Minutes", ""))
    if not lines or not difficulty or not minutes or not found.get("Teaches"):
        raise ValueError(
            f"{path.name}: the docstring must begin with a title, then the lines 'Difficulty: 2/5', 'Minutes: 15' and "
            f"'Teaches: ...', got {lines[:5]}"
        )
    return Exercise(path.stem, lines[0].rstrip("."), int(difficulty[1]), int(minutes[0]), found["Teaches"])


def exercises() -> list[Exercise]:
    """All exercises of the course, in its order."""
    return [read(path) for path in sorted(shipped().glob("e[0-9][0-9]_*.py"))]


def page() -> str:
    """The exercises as a table in Markdown, and a line with their sum."""
    found = exercises()
    rows = [(f"`{e.stem}`", e.title, f"{e.difficulty}/5", str(e.minutes), e.teaches) for e in found]
    table = markdown_table(("exercise", "title", "difficulty", "minutes", "it teaches"), rows)
    return f"{table}\n\n{len(found)} exercises, about {round(sum(e.minutes for e in found) / 60)} hours."


def find(name: str) -> Exercise:
    """The exercise of this name: 2, e02, e02_sequence_advantage, with or without .py and a folder.

    Raises:
        UserError: there is none.
    """
    stem = Path(name).name.removesuffix(".py")
    number = f"e{int(stem):02d}" if stem.isdecimal() and len(stem) < 9 else stem
    for exercise in exercises():
        if number in (exercise.stem, exercise.number):
            return exercise
    raise UserError(f"there is no exercise {name!r}; there are {', '.join(e.number for e in exercises())}")


# ------------------------------------------------------------------------------------------------ a student's folder
class Folder:
    """A student's folder: files, grades and hints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = {"grades": {}, "hints": {}}
        try:
            stored = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # damaged or absent: everything is graded again
            stored = None
        if isinstance(stored, dict):
            for key in self.state:
                if isinstance(stored.get(key), dict):
                    self.state[key] = stored[key]

    @classmethod
    def found(cls, given: Path | None) -> Folder:
        """The folder that is given, or this one, or `exercises` in it.

        Raises:
            UserError: no exercise is there.
        """
        places = [given] if given is not None else [Path(), Path("exercises")]
        for place in places:
            if any(place.glob("e[0-9][0-9]_*.py")):
                return cls(place)
        where = f"in {given}" if given is not None else "here"
        raise UserError(
            f"there are no exercises {where}; python -m sppo_control.course start my_course copies them into a new folder"
        )

    @property
    def is_shipped(self) -> bool:
        """Whether it is the folder of the exercises as they come, so that there is no other copy of them."""
        return self.path.resolve() == shipped().resolve()

    def file(self, exercise: Exercise) -> Path:
        """The student's file."""
        return self.path / f"{exercise.stem}.py"

    def hint(self, exercise: Exercise) -> tuple[str, int, int, str] | None:
        """The next hint for the check that fails now. A file that was changed since it was graded is graded first.

        Returns:
            The hint, its number from 1, how many this check has, and the check's name. After the last hint it is the last
            one again. None if the exercise is solved.

        Raises:
            UserError: the file is not there.
        """
        grade = self.state["grades"].get(exercise.stem)
        if not isinstance(grade, dict) or grade.get("key") != self._key(exercise) or "failed" not in grade:
            self.grade(exercise)
            grade = self.state["grades"][exercise.stem]
        if grade["solved"]:
            return None
        check = grade["failed"]
        hints = grading.hints_of(exercise.stem, check)
        given = self.state["hints"].get(exercise.stem)
        given = given if isinstance(given, dict) else {}
        before = given.get(check, 0)
        number = min(before + 1 if isinstance(before, int) else 1, len(hints))
        self.state["hints"][exercise.stem] = {**given, check: number}
        self._save()
        return hints[number - 1], number, len(hints), check

    def grade(self, exercise: Exercise) -> Outcome:
        """Grade the student's file now, and keep the grade.

        Raises:
            UserError: the file is not there.
        """
        path, key = self.file(exercise), self._key(exercise)
        if key is None:
            raise UserError(
                f"there is no file {path}; python -m sppo_control.course reset {exercise.number} makes it again"
            )
        found = grading.outcome_of(path)
        self.state["grades"][exercise.stem] = {
            "key": key, "solved": found.solved, "passed": len(found.passed), "total": found.total, "failed": found.failed
        }  # fmt: skip
        self._save()
        return found

    def status(self, exercise: Exercise, say: Callable[[str], None] = lambda text: None) -> str:
        """One of solved, not started, missing, `n/m checks` and `cannot run`. What was changed since is graded again."""
        key = self._key(exercise)
        if key is None:
            return "missing"
        grade = self.state["grades"].get(exercise.stem)
        if not isinstance(grade, dict) or grade.get("key") != key:
            if self._untouched(exercise):
                return "not started"
            say(f"grading {exercise.stem} ...")
            self.grade(exercise)
            grade = self.state["grades"][exercise.stem]
        if grade["solved"]:
            return "solved"
        return f"{grade['passed']}/{grade['total']} checks" if grade["total"] else "cannot run"

    def current(self, say: Callable[[str], None] = lambda text: None) -> Exercise | None:
        """The first exercise that is not solved; None if all are."""
        for exercise in exercises():
            if self.status(exercise, say) not in ("solved", "missing"):
                return exercise
        return None

    def reset(self, exercise: Exercise) -> Path | None:
        """Put the exercise's template back.

        Returns:
            The file that now has the student's text; None if there was none.

        Raises:
            UserError: the folder is the one that the templates are in.
        """
        path = self.file(exercise)
        kept: Path | None = None
        if self.is_shipped:
            raise UserError(
                f"{path} is itself the template, so there is no copy to put back; git checkout {path} does it, and "
                "python -m sppo_control.course start my_course makes a folder of your own"
            )
        if path.exists():
            number = 1
            while (free := path.with_name(f"{path.name}.backup{number}")).exists():
                number += 1
            kept = path.replace(free)
        shutil.copyfile(shipped() / path.name, path)
        for part in self.state.values():
            part.pop(exercise.stem, None)
        self._save()
        return kept

    def _untouched(self, exercise: Exercise) -> bool:
        """Whether grading has nothing to add, because the file is still the template."""
        text = self.file(exercise).read_text(encoding="utf-8", errors="replace")
        if self.is_shipped:
            return grading.unwritten(text)
        return text == (shipped() / f"{exercise.stem}.py").read_text(encoding="utf-8")

    def _key(self, exercise: Exercise) -> str | None:
        """A hash of the student's text and of the checks; None if there is no file."""
        checks = Path(__file__).parent / "checks" / f"{exercise.stem}.py"
        try:
            return hashlib.sha256(self.file(exercise).read_bytes() + b"\0" + checks.read_bytes()).hexdigest()[:16]
        except OSError:
            return None

    def _save(self) -> None:
        part = self.path / f"{STATE_FILE}.part"
        try:
            part.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
            part.replace(self.path / STATE_FILE)
        except OSError as error:
            raise UserError(f"cannot write {self.path / STATE_FILE}: {error}; make the folder writable") from error


def start(target: Path, solutions: bool = False) -> list[Path]:
    """Copy the exercises into a folder, which is made if there is none.

    Args:
        target: the folder.
        solutions: copy the solutions too, into a folder in it.

    Returns:
        The files.

    Raises:
        UserError: an exercise is there already, or nothing can be written there.
    """
    sources = sorted(shipped().glob("e[0-9][0-9]_*.py"))
    pairs = [(source, target / source.name) for source in sources]
    if solutions:
        folder = shipped() / "solutions"
        pairs += [(source, target / "solutions" / source.name) for source in sorted(folder.glob("e*.py"))]
    for _, copy in pairs:
        if copy.exists():
            raise UserError(f"{copy} is there already and is not overwritten; name another folder")
    try:
        for source, copy in pairs:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    except OSError as error:
        raise UserError(f"cannot copy the exercises to {target}: {error}; name another folder") from error
    return [copy for _, copy in pairs]
