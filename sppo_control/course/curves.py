"""What the checks of the bug hunts share: a curve drawn as text, and whether the settings are as they were.

A bug hunt is a whole training program with one bug. Its checks come in this order, and grading ends at the first that
fails. First: settings, task, and mistakes that the program did not have before. Then the curve, whose message shows
the symptom and not the place. Last the place of the bug, for changes that hide the symptom.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from .compare import numbers, show
from .grading import Mistake

WIDTH, HEIGHT = 30, 6
"""Of one curve, in characters; each has 2 x 4 braille dots."""
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a braille character: column, then row from above."""


def chart(title: str, mine: Sequence[float], right: Sequence[float], low: float, high: float) -> str:
    """The student's curve beside that of a right program, on the same axes, as text.

    Args:
        title: what the curves show.
        mine: any number of values.
        right: the same number of values or another one.
        low: the value at the bottom; a curve that is below is drawn there.
        high: the value at the top.

    Returns:
        Nine lines.
    """
    panels = [_panel(mine, low, high), _panel(right, low, high)]
    labels = [f"{high:.3g}", *[""] * (HEIGHT - 2), f"{low:.3g}"]
    wide = max(map(len, labels))
    rows = [f"{title}, from the first update to the last"]
    rows += [f"{'':{wide}}  {'your program':{WIDTH}}  {'':{wide}}  a right program"]
    for label, a, b in zip(labels, *panels, strict=True):
        rows.append(f"{label:>{wide}} |{a}  {label:>{wide}} |{b}")
    rows.append(f"{'':{wide}} +{'-' * WIDTH}  {'':{wide}} +{'-' * WIDTH}")
    return "\n".join(rows)


def _panel(values: Sequence[float], low: float, high: float) -> list[str]:
    columns = 2 * WIDTH
    at = np.linspace(0, len(values) - 1, columns)
    line = np.interp(
        at, np.arange(len(values)), np.nan_to_num(np.asarray(values, float), nan=low, posinf=high, neginf=low)
    )
    rows = np.rint((high - np.clip(line, low, high)) / (high - low) * (4 * HEIGHT - 1)).astype(int)
    cells = np.zeros((HEIGHT, WIDTH), int)
    before = rows[0]
    for column, row in enumerate(rows):
        step = 1 if row > before else -1
        for y in {row, *range(before + step, row, step)} if row != before else {row}:  # a steep curve has no gaps
            cells[y // 4, column // 2] |= DOTS[column % 2][y % 4]
        before = row
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def settings(student: ModuleType, **right: float) -> None:
    """Refuse other settings than the template's.

    Raises:
        Mistake: a setting is another one.
    """
    for name, value in right.items():
        found = getattr(student, name)
        if found != value:
            raise Mistake(
                f"{name} is {found}, and was {value}. Another setting can hide the symptom, but the bug is still there; "
                "put it back."
            )


def returned(found: Any, names: Sequence[str], function: str) -> tuple[Any, ...]:
    """The parts of the tuple that a function returned.

    Raises:
        Mistake: it is no tuple of these parts.
    """
    if not isinstance(found, tuple) or len(found) != len(names):
        count = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise Mistake(f"{function} returns {count}, where a tuple of {len(names)} is right: {', '.join(names)}.")
    return found


def series(found: Any, length: int, what: str) -> list[float]:
    """A curve as a list of numbers.

    Raises:
        Mistake: it has another length, or is no list of numbers.
    """
    values = [float(x) for x in numbers(found, (length,), what)]
    if not np.isfinite(values).all():
        raise Mistake(f"{what} has a value that is not finite: {show(values)}.")
    return values


def same_as_policy(said: float, exact: float, margin: float, what: str) -> None:
    """Compare what `train` says at its end with what the policy that it returns does.

    Raises:
        Mistake: they differ by more than the margin.
    """
    if abs(said - exact) > margin:
        raise Mistake(
            f"The curve is not true: it says that {what} is {said:.2f} at the end, but with the policy that train returns "
            f"it is {exact:.2f}. The curve must show the policy as it is."
        )


def not_mended(sentence: str, *charts: str) -> Mistake:
    """The mistake that shows the symptom, and no more."""
    return Mistake("\n\n".join([f"The curve is not mended: {sentence}", *charts]))


@contextlib.contextmanager
def replaced(student: ModuleType, **names: Any) -> Iterator[None]:
    """Put other objects into the student's module for a while, for example to look at what is called."""
    before = {name: getattr(student, name) for name in names}
    vars(student).update(names)
    try:
        yield
    finally:
        vars(student).update(before)


def probabilities(logits: Any, shape: tuple[int, int], what: str) -> np.ndarray:
    """Softmax of a policy's table, in float64.

    Raises:
        Mistake: it is no table of this shape, or is not finite.
    """
    table: Tensor = numbers(logits, shape, what).detach()
    if not table.isfinite().all():
        raise Mistake(f"{what} has a number that is not finite.")
    return table.softmax(-1).numpy()
