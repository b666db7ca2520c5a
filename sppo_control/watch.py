"""The live view of --watch: a picture of braille dots above the progress bar, drawn again while a run trains.

On the left are success and V(s_0) against the budget of the run. On the right are the paths of the newest episodes through
the plane of the first two entries of the observation, successes and failures in two colours. A view only reads what it is
given, so the run is the same with and without it.

It needs a terminal that knows the escape sequences of ANSI and a font with braille patterns (Unicode, U+2800 to U+28FF).
It moves the cursor up and clears lines, and changes no other state of the terminal.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

Dots = npt.NDArray[np.bool_]
"""(4 * lines, 2 * columns), True where a dot is set; row 0 is at the top."""

BINS = 512
"""The curves are kept as means of so many equal parts of the budget, so that a long run needs no more memory."""
PATHS = 8
"""Episodes whose paths are shown."""
LINES, FEWEST_LINES, FEWEST_COLUMNS, TWO_PANELS = 10, 5, 40, 76
"""Lines of the picture; fewest lines and columns of it; columns from which there is room for the paths."""
AXES = "obs 0 right, obs 1 up"
GREEN, RED, BLUE = "32", "31", "36"
BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""Bit of each dot of a character in its code point, U+2800 on (Unicode, block Braille Patterns)."""


class Layer(NamedTuple):
    """Dots of one colour."""

    dots: Dots
    colour: str
    """ANSI number, such as "32" for green"""


def braille(layers: Sequence[Layer], colours: bool = True) -> list[str]:
    """Lines of text that show the layers, the later ones in front: a character has the colour of the last that is in it.

    Args:
        layers: at least one, all of one shape.
        colours: whether to write escape sequences.

    Raises:
        ValueError: layers of no or of different shapes, or sides that are not multiples of 4 and 2.
    """
    shapes = {layer.dots.shape for layer in layers}
    if len(shapes) != 1 or any(len(shape) != 2 or shape[0] % 4 or shape[1] % 2 for shape in shapes):
        raise ValueError(f"layers must have one shape (4 * lines, 2 * columns), got {sorted(shapes)}")
    ((height, width),) = shapes
    cells = [layer.dots.reshape(height // 4, 4, width // 2, 2).swapaxes(1, 2) for layer in layers]
    codes = (np.logical_or.reduce(cells) * BITS).sum(axis=(2, 3))
    front = np.full(codes.shape, -1)
    for i, cell in enumerate(cells):
        front[cell.any(axis=(2, 3))] = i
    lines = []
    for row, owners in zip(codes.tolist(), front.tolist(), strict=True):
        text, now = "", -1
        for code, owner in zip(row, owners, strict=True):
            if colours and owner not in (now, -1):
                text, now = text + f"\x1b[{layers[owner].colour}m", owner
            text += chr(0x2800 + code)
        lines.append(text + ("\x1b[0m" if now != -1 else ""))
    return lines


def line_dots(x: npt.ArrayLike, y: npt.ArrayLike, lines: int, columns: int) -> Dots:
    """A curve through points, joined by straight lines.

    Args:
        x, y: (n,), in units of the picture: 0 is its left or lower edge and 1 its right or upper edge. What is outside is
            moved to the edge, and points with NaN are left out.
        lines, columns: size of the picture in characters, at least 1.

    Returns:
        (4 * lines, 2 * columns), bool.

    Raises:
        ValueError: x and y have different lengths, or a size is below 1.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must be (n,) alike, got {x.shape} and {y.shape}")
    if lines < 1 or columns < 1:
        raise ValueError(f"lines and columns must be at least 1, got {lines} and {columns}")
    height, width = 4 * lines, 2 * columns
    dots = np.zeros((height, width), np.bool_)
    real = ~(np.isnan(x) | np.isnan(y))
    column = np.clip(np.floor(x[real].clip(0, 1) * width), 0, width - 1)
    row = np.clip(np.floor((1 - y[real].clip(0, 1)) * height), 0, height - 1)
    if len(column) == 1:
        dots[int(row[0]), int(column[0])] = True
    for a, b, c, d in zip(column[:-1], row[:-1], column[1:], row[1:], strict=True):
        steps = int(max(abs(c - a), abs(d - b))) + 1
        dots[np.rint(np.linspace(b, d, steps)).astype(int), np.rint(np.linspace(a, c, steps)).astype(int)] = True
    return dots


def can_show(file: TextIO) -> str | None:
    """Why a view cannot be drawn on this file; None if it can."""
    if not file.isatty():
        return "standard error is not a terminal"
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return "the terminal does not know how to move its cursor (TERM is dumb)"
    try:
        chr(0x28FF).encode(file.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return f"the terminal's encoding {file.encoding} has no braille patterns; a UTF-8 locale has"
    return None


class View:
    """The picture above a progress bar of tqdm.

    Args:
        bar: the bar. It is on the cursor's line, and so is the cursor after each drawing.
        budget: where x ends, above 0.
        seconds: least time between two drawings.

    Raises:
        ValueError: budget is not above 0.
    """

    def __init__(self, bar: Any, budget: int, seconds: float = 0.2) -> None:
        if budget <= 0:
            raise ValueError(f"budget must be above 0, got {budget}")
        self.bar, self.budget, self.seconds = bar, budget, seconds
        self._sums = {name: np.zeros((BINS, 2)) for name in ("success", "v0")}  # of the values, and their number
        self._low, self._high = np.full(2, np.nan), np.full(2, np.nan)  # the axes of the paths
        self._next, self._drawn, self._size = -math.inf, 0, (0, 0)

    def add(self, x: int, success: float, episodes: Any, metrics: Mapping[str, float]) -> None:
        """Note one update, and draw if it is time.

        Args:
            x: progress at its end.
            success: what the curve shows, in [0, 1].
            episodes: the batch: `outcome` (B,) and, for the paths, `obs` (B, T, D) and `lengths` (B,). It is not kept.
            metrics: TensorBoard tag -> value; critic/v0_mean, losses/approx_kl and losses/clipfrac are shown.
        """
        where = min(BINS - 1, int(x / self.budget * BINS))
        for name, value in (("success", success), ("v0", metrics.get("critic/v0_mean", math.nan))):
            if math.isfinite(value):
                self._sums[name][where] += value, 1
        now = time.monotonic()
        if now < self._next and x < self.budget:
            return
        self._next = now + self.seconds
        size = self._terminal()
        lines = min(LINES, size[1] - 4)
        if lines < FEWEST_LINES or size[0] < FEWEST_COLUMNS:
            self._drawn = 0  # a later picture begins on new lines
            return
        colours = not os.environ.get("NO_COLOR")
        self._show(self.picture(size[0] - 1, lines, success, episodes, metrics, colours), size)

    def picture(
        self,
        columns: int,
        lines: int,
        success: float,
        episodes: Any,
        metrics: Mapping[str, float],
        colours: bool = True,
    ) -> list[str]:
        """The text of the picture: a title, `lines` lines of dots, and a line of numbers.

        No line is wider than `columns` characters. For the other arguments see `add`.
        """
        obs = getattr(episodes, "obs", None)
        two = columns >= TWO_PANELS and obs is not None and obs.shape[-1] >= 2
        right = max(26, 2 * lines + 8) if two else 0  # about a square: a character is twice as high as wide
        left = columns - 6 - (right + 2 if two else 0)
        curves = braille([self._curve("v0", left, lines), self._curve("success", left, lines)], colours)
        marks = ["1.0 ┤", *["    │"] * (lines - 2), "0.0 ┤"]
        rows = [f"{mark}{curve}" for mark, curve in zip(marks, curves, strict=True)]
        ink = (lambda text, colour: f"\x1b[{colour}m{text}\x1b[0m") if colours else (lambda text, colour: text)
        words = [(f"success {success:.2f}", GREEN)]
        for name, tag, form in (("V(s_0)", "critic/v0_mean", ".2f"), ("KL", "losses/approx_kl", ".4f"),
                                ("clipped", "losses/clipfrac", ".3f")):  # fmt: skip
            if math.isfinite(value := metrics.get(tag, math.nan)):
                words.append((f"{name} {value:{form}}", BLUE if name == "V(s_0)" else "0"))
        numbers, used = "     ", 5
        for text, colour in words:
            if used + len(text) + 3 <= 5 + left:
                numbers, used = numbers + ink(text, colour) + "   ", used + len(text) + 3
        title = "     success and V(s_0) against the budget"[: 5 + left]
        if not two:
            return [title, *rows, numbers.rstrip()]
        layers = self._paths(episodes, right, lines)
        won, shown = int(episodes.outcome[:PATHS].sum()), min(PATHS, len(episodes.outcome))
        head = f"{shown} newest paths, {won} succeed"[:right]
        rows = [f"{row}  {path}" for row, path in zip(rows, braille(layers, colours), strict=True)]
        gap = " " * (7 + left - used)
        return [f"{title:<{5 + left}}  {head}", *rows, f"{numbers}{gap}{AXES[:right]}"]

    def forget(self) -> None:
        """Something else was written: the next picture begins on new lines, and the last one stays where it is."""
        self._drawn = 0

    def close(self) -> None:
        """Leave the last picture as it is, and the terminal in its usual colour."""
        if self._size != (0, 0):
            self.bar.fp.write("\x1b[0m")
            self.bar.fp.flush()

    # -- parts of the picture
    def _curve(self, name: str, columns: int, lines: int) -> Layer:
        total, number = self._sums[name].T
        there = number > 0
        x = (np.arange(BINS)[there] + 0.5) / BINS
        return Layer(line_dots(x, total[there] / number[there], lines, columns), GREEN if name == "success" else BLUE)

    def _paths(self, episodes: Any, columns: int, lines: int) -> list[Layer]:
        """Failures, and successes in front of them."""
        lengths = episodes.lengths[:PATHS].tolist()
        obs = episodes.obs[:PATHS, :, :2].detach().cpu().numpy().astype(np.float64)
        paths = [path[:n] for path, n in zip(obs, lengths, strict=True)]
        together = np.concatenate(paths)
        low, high = together.min(0), together.max(0)
        if np.isfinite(self._low).all():  # the axes widen at once and narrow slowly, so that the picture is still
            low, high = np.minimum(low, 0.9 * self._low + 0.1 * low), np.maximum(high, 0.9 * self._high + 0.1 * high)
        self._low, self._high = low, high
        span = np.where(self._high > self._low, self._high - self._low, 1.0)
        layers = {won: np.zeros((4 * lines, 2 * columns), np.bool_) for won in (False, True)}
        for path, outcome in zip(paths, episodes.outcome.tolist(), strict=False):
            x, y = ((path - self._low) / span).T
            layers[outcome > 0.5] |= line_dots(x, y, lines, columns)
        return [Layer(layers[False], RED), Layer(layers[True], GREEN)]

    # -- the terminal
    def _terminal(self) -> tuple[int, int]:
        """Columns and lines; (0, 0) where the system does not say."""
        try:
            return tuple(os.get_terminal_size(self.bar.fp.fileno()))  # type: ignore[return-value]
        except (OSError, ValueError, AttributeError):
            return 0, 0

    def _show(self, picture: Sequence[str], size: tuple[int, int]) -> None:
        """Write it above the bar's line, over the last one unless the terminal has another size now."""
        up = self._drawn if self._size == size else 0
        move = f"\x1b[{up}A" if up else ""
        with self.bar.get_lock():
            self.bar.fp.write("\r" + move + "".join(f"{line}\x1b[K\n" for line in picture))
            self.bar.fp.flush()
            self.bar.refresh()
        self._drawn, self._size = len(picture), size
