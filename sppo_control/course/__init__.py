"""A course in exercises that grade themselves: from a bandit with two arms to one update of a language model.

    python -m sppo_control.course start my_course     # copies the exercises into a folder
    cd my_course && python -m sppo_control.course watch

Each exercise is one file, which also grades itself: `python e01_bandit.py`. docs/course.md has the list.
"""

from .grading import Check, Mistake, grade

__all__ = ["Check", "Mistake", "grade"]
