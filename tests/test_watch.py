"""--watch: the dots are the numbers, the picture stays in its place above the bar, and Ctrl-C leaves a usable terminal.

That a watched run is the same run: tests/test_flags.py.
"""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import Properties, refused
from terminal import pictures, terminal, terminal_for_errors
from tqdm import tqdm

from sppo_control import watch

ROOT = Path(__file__).resolve().parents[1]
PROPERTIES = Properties(
    watch={
        "Layer": "a tuple without code", "can_show": "asks the system; test_where_nothing_can_be_drawn",
        "View": "below", "View.add": "it draws by the clock; test_the_picture_stays_above_the_bar",
        "View.forget": "test_after_a_message_the_picture_begins_on_new_lines", "View.close": "test_ctrl_c",
    },
)  # fmt: skip
of = PROPERTIES.of


def test_every_public_function_has_a_property():
    PROPERTIES.check(watch)


def decoded(lines):
    """Braille text -> dots, by the standard's numbering of the eight dots: 1 2 3 7 down the left, 4 5 6 8 the right."""
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines]
    dots = np.zeros((4 * len(plain), 2 * len(plain[0])), bool)
    for i, line in enumerate(plain):
        for j, character in enumerate(line):
            number = ord(character) - 0x2800
            for bit, (down, right) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
                dots[4 * i + down, 2 * j + right] = number >> bit & 1
    return dots


@of(watch, "braille")
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_braille_shows_each_dot_and_the_front_colour(seed, lines, columns, count):
    rng = np.random.default_rng(seed)
    layers = [watch.Layer(rng.random((4 * lines, 2 * columns)) < rng.random() ** 3, str(31 + i)) for i in range(count)]
    text = watch.braille(layers)
    together = np.logical_or.reduce([layer.dots for layer in layers])
    assert np.array_equal(decoded(text), together)
    assert np.array_equal(decoded(watch.braille(layers, colours=False)), together)
    assert "\x1b" not in "".join(watch.braille(layers, colours=False))
    for i, line in enumerate(text):
        colour, j = None, 0
        for escape, character in re.findall(r"\x1b\[(\d+)m|([^\x1b])", line):
            if escape:
                colour = escape
                continue
            cell = [layer for layer in layers if layer.dots[4 * i : 4 * i + 4, 2 * j : 2 * j + 2].any()]
            if cell:
                assert colour == cell[-1].colour, character
            j += 1
        assert colour in (None, "0"), "the line ends in the usual colour"
    refused(lambda: watch.braille([]), "layers")
    refused(lambda: watch.braille([layers[0], watch.Layer(np.zeros((4, 2 * columns + 2), bool), "31")]), "layers")
    refused(lambda: watch.braille([watch.Layer(np.zeros((4 * lines + 1, 2 * columns), bool), "31")]), "layers")


@of(watch, "line_dots")
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9), st.integers(0, 6))
def test_line_dots_join_the_points(seed, lines, columns, n):
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.uniform(-0.2, 1.2, n)), rng.uniform(-0.2, 1.2, n)
    y[rng.random(n) < 0.2] = np.nan
    dots = watch.line_dots(x, y, lines, columns)
    height, width = dots.shape
    assert (height, width) == (4 * lines, 2 * columns)
    places = []
    for a, b in zip(x, y, strict=True):
        if not np.isnan(b):
            places.append(
                (min(height - 1, int((1 - min(max(b, 0), 1)) * height)), min(width - 1, int(min(max(a, 0), 1) * width)))
            )
    assert all(dots[place] for place in places), "each point has its dot"
    assert dots.any() == bool(places)
    for (r, c), (s, d) in itertools.pairwise(places):
        for i in range(1, 20):  # half a dot from the straight line between the two
            t = i / 20
            assert (
                dots[int(np.rint(r + t * (s - r))), max(0, int(c + t * (d - c)) - 1) : int(c + t * (d - c)) + 3].any()
                or dots[
                    max(0, int(r + t * (s - r)) - 1) : int(r + t * (s - r)) + 3, int(np.rint(c + t * (d - c)))
                ].any()
            )
    if places:  # nothing beyond the rows and columns of the points
        rows, cols = np.nonzero(dots)
        assert min(rows) >= min(r for r, _ in places)
        assert max(rows) <= max(r for r, _ in places)
        assert (min(cols), max(cols)) == (min(c for _, c in places), max(c for _, c in places))
    refused(lambda: watch.line_dots(x, np.append(y, 0.5), lines, columns), "x", "y")
    refused(lambda: watch.line_dots(x, y, 0, columns), "lines")
    refused(lambda: watch.line_dots(x, y, lines, 0), "columns")


def batch(rng, outcomes, T=12, D=3):
    B = len(outcomes)
    return SimpleNamespace(
        outcome=torch.tensor(outcomes, dtype=torch.float32),
        obs=torch.from_numpy(rng.normal(size=(B, T, D)).astype(np.float32)), lengths=torch.full((B,), T),
    )  # fmt: skip


METRICS = {"critic/v0_mean": 0.25, "losses/approx_kl": 0.0123, "losses/clipfrac": 0.456}


def view_on(file, budget=1000):
    bar = tqdm(total=budget, file=file, desc="some_script", mininterval=0, position=0)
    return bar, watch.View(bar, budget, seconds=0)


@of(watch, "View.picture")
@given(st.integers(40, 200), st.integers(5, 12), st.integers(0, 2**32 - 1))
def test_no_line_is_wider_than_the_terminal(columns, lines, seed):
    rng = np.random.default_rng(seed)
    _, view = view_on(io.StringIO())
    view._terminal = lambda: (columns + 1, lines + 4)
    outcomes = rng.integers(0, 2, rng.integers(1, 20)).tolist()
    episodes, metrics = (
        batch(rng, outcomes, D=rng.integers(1, 4)),
        {k: x for k, x in METRICS.items() if rng.random() < 0.7},
    )
    view.add(500, 0.75, episodes, metrics)
    for colours in (False, True):
        text = view.picture(columns, lines, 0.75, episodes, metrics, colours)
        plain = [re.sub(r"\x1b\[\d+m", "", line) for line in text]
        assert len(text) == lines + 2
        assert max(map(len, plain)) <= columns
        assert (text == plain) == (not colours)
    if episodes.obs.shape[2] == 1 or columns < watch.TWO_PANELS:
        assert "newest" not in plain[0]
    else:
        shown = outcomes[: watch.PATHS]
        assert plain[0].endswith(f"{len(shown)} newest paths, {sum(shown)} succeed")
    refused(lambda: watch.View(None, 0), "budget")


def test_the_curves_are_the_numbers():
    """Success 0, 1 and 0.5, at the beginning, the middle and the end of the budget; V(s_0) of 0.25 behind it."""
    _, view = view_on(io.StringIO())
    view._terminal = lambda: (0, 0)
    nothing = SimpleNamespace(outcome=torch.ones(1))
    for x, success in ((1, 0.0), (500, 1.0), (999, 0.5)):
        view.add(x, success, nothing, METRICS)
    text = view.picture(66, 10, 0.5, nothing, METRICS)
    assert re.sub(r"\x1b\[\d+m", "", text[-1]).split() == [
        "success",
        "0.50",
        "V(s_0)",
        "0.25",
        "KL",
        "0.0123",
        "clipped",
        "0.456",
    ]
    assert "\x1b[32msuccess 0.50\x1b[0m" in text[-1]
    dots = decoded([line[5:] for line in text[1:-1]])
    assert dots.shape == (40, 120)
    assert dots[39, 0]
    assert not dots[:30, 0].any()
    assert dots[0, 60]
    assert dots[20, 119]
    assert dots[30].all(), "V(s_0)"
    # Two updates of one place are one point, their mean.
    _, view = view_on(io.StringIO())
    view._terminal = lambda: (0, 0)
    for success in (0.0, 0.5):
        view.add(500, success, nothing, {})
    (column,) = np.nonzero(decoded([line[5:] for line in view.picture(66, 10, 0.5, nothing, {}, False)[1:-1]]).any(0))
    (row,) = np.nonzero(decoded([line[5:] for line in view.picture(66, 10, 0.5, nothing, {}, False)[1:-1]]).any(1))
    assert (row.tolist(), column.tolist()) == ([30], [60])


def test_the_paths_are_those_of_the_newest_episodes():
    """Two paths along the edges: one that failed, below, to the right; one that succeeded, at the right, upwards."""
    _, view = view_on(io.StringIO())
    view._terminal = lambda: (0, 0)
    obs = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]], [[4.0, 0.0], [4.0, 1.0], [4.0, 2.0]]])
    episodes = SimpleNamespace(outcome=torch.tensor([0.0, 1.0]), obs=obs, lengths=torch.tensor([2, 3]))
    picture = view.picture(100, 10, 0.5, episodes, {})
    width = 2 * 10 + 8
    assert picture[0].endswith("2 newest paths, 1 succeed")
    dots = decoded([re.sub(r"\x1b\[\d+m", "", line)[-width:] for line in picture[1:-1]])
    assert dots[39].all(), "the padding of the shorter episode, 9, is not in the picture"
    assert dots[:, -1].all()
    assert dots.sum() == 2 * width + 40 - 1
    assert picture[1].endswith("\x1b[32m\u28b8\x1b[0m"), picture[1]
    assert "\x1b[31m" in picture[10]
    assert "\x1b[31m" not in "".join(picture[1:10])


def test_the_picture_stays_above_the_bar(monkeypatch):
    rng = np.random.default_rng(0)
    with terminal_for_errors(monkeypatch) as screen:
        bar, view = view_on(sys.stderr)
        for i in range(1, 5):
            bar.update(250)
            view.add(250 * i, i / 4, batch(rng, [1, 0]), METRICS)
        bar.close()
        view.close()
        assert screen.same_settings()
    lines = screen.screen()
    (title,) = pictures(lines)
    assert title == 0
    assert lines[11].startswith("     success 1.00   V(s_0) 0.25   KL 0.0123   clipped 0.456")
    assert lines[12].startswith("some_script: 100%")
    assert not any(lines[13:])
    assert screen.text.endswith("\x1b[0m")


def test_after_a_message_or_another_size_the_picture_begins_on_new_lines(monkeypatch):
    rng = np.random.default_rng(0)
    with terminal_for_errors(monkeypatch) as screen:
        bar, view = view_on(sys.stderr)
        view.add(100, 0.5, batch(rng, [1, 0]), METRICS)
        bar.write("note: something", file=sys.stderr)
        view.forget()
        view.add(200, 0.5, batch(rng, [1, 0]), METRICS)
        screen.resize(90, 30)
        view.add(300, 0.5, batch(rng, [1, 0]), METRICS)
        view.add(400, 0.5, batch(rng, [1, 0]), METRICS)
        screen.resize(30, 30)
        view.add(500, 0.5, batch(rng, [1, 0]), METRICS)
        screen.resize(90, 8)
        view.add(600, 0.5, batch(rng, [1, 0]), METRICS)
    lines = screen.screen(columns=200)  # as wide as it has ever been, so that no line is broken
    assert len(pictures(lines)) == 3
    assert lines[12] == "note: something"
    assert pictures(lines)[1] == 13


def test_it_draws_a_few_times_per_second_and_at_the_end(monkeypatch):
    bar, _ = view_on(io.StringIO())
    view, drawn, now = watch.View(bar, 1000, seconds=0.2), [], [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(view, "_terminal", lambda: (100, 30))
    monkeypatch.setattr(view, "_show", lambda picture, size: drawn.append(now[0]))
    episodes = batch(np.random.default_rng(0), [1, 0])
    for x in (1, 2, 3, 4, 5):
        view.add(x, 0.5, episodes, METRICS)
        now[0] += 0.125
    assert drawn == [0.0, 0.25, 0.5]
    view.add(1000, 0.5, episodes, METRICS)
    assert drawn[3:] == [0.625]


def test_where_nothing_can_be_drawn(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert watch.can_show(io.StringIO()) == "standard error is not a terminal"
    with terminal() as screen:
        for encoding, words in (
            ("utf-8", None),
            ("ascii", "encoding ascii has no braille patterns"),
            ("latin-1", "latin-1"),
        ):
            with os.fdopen(os.dup(screen.slave), "w", encoding=encoding) as file:
                assert words in watch.can_show(file) if words else watch.can_show(file) is None
                with monkeypatch.context() as patch:
                    patch.setenv("TERM", "dumb")
                    assert "TERM is dumb" in watch.can_show(file)


SMALL = ["--total-timesteps", "100000000", "--num-envs", "16", "--eval-episodes", "16", "--kernels", "torch", "--watch"]


def test_ctrl_c(tmp_path):
    """In a real terminal: the message is not drawn over, exit status 130, and the terminal is as it was."""
    command = [sys.executable, str(ROOT / "scripts" / "sppo_cartpole.py"), *SMALL, "--runs-dir", str(tmp_path)]
    with terminal(120, 40) as screen:
        env = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        process = subprocess.Popen(command, stdin=screen.slave, stdout=screen.slave, stderr=screen.slave, env=env)
        for _ in range(1200):
            if screen.bytes.count(b"newest paths") >= 3 or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert screen.same_settings()
    lines = screen.screen()
    (title,) = pictures(lines)
    assert lines[title + 12].startswith("sppo_cartpole:")
    assert lines[title + 13] == "Finishing this update, then saving; once more to stop at once."
    below = "\n".join(lines[title + 13 :])
    assert re.search(r"Stopped after update \d+", below)
    assert f"--resume {tmp_path}" in below.replace("\n", "")
    colours = re.findall(r"\x1b\[(\d+)m", screen.text)
    assert colours[-1] == "0"
