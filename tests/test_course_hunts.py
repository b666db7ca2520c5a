"""The bug hunts: drawn curves, and how far the bug's curve is from the mended one, over seeds."""

import importlib

import numpy as np
import pytest
from test_course import EXERCISES, STEMS

from sppo_control.course import Mistake, curves, grading

HUNTS = [stem for stem in STEMS if hasattr(grading.checks_of(stem), "curve")]
STORED = {  # curves of a right program in the checks: name, and index in what train returns
    "e11_corridor": [("RIGHT", 0, 2)],
    "e12_quiz": [("TRAINING", 0, 1), ("EVALUATION", 1, 1)],
    "e13_orchard": [("RIGHT", 0, 1)],
    "e14_flat_critic": [("BRIER", 0, 2)],
    "e15_darts": [("RIGHT", 0, 2)],
    "e16_judge": [("RIGHT", 0, 2)],
}


def reached(stem, results):
    """The figure that the check of the curve looks at; larger is better."""
    checks = grading.checks_of(stem)
    if stem == "e14_flat_critic":
        return -float(np.mean(results[0][-5:]))
    figure = {"e11_corridor": "success", "e16_judge": "best"}.get(stem, "exact")
    parts = results[1:] if stem == "e15_darts" else results[-1:]
    return getattr(checks, figure)(*parts)


def test_there_are_six():
    assert sorted(STORED) == HUNTS


@pytest.mark.parametrize("stem", HUNTS)
def test_the_stored_curve_is_a_right_programs(stem):
    checks = grading.checks_of(stem)
    results = grading.load(EXERCISES / "solutions" / f"{stem}.py").train(3)
    for name, index, every in STORED[stem]:
        stored, found = np.array(getattr(checks, name)), np.array(results[index])[::every]
        assert stored.shape == found.shape
        spread = stored.max() - stored.min()
        assert np.abs(stored - found).mean() < 0.15 * spread, (stored, found)
        assert abs(stored[-3:].mean() - found[-3:].mean()) < 0.15 * spread


@pytest.mark.slow
@pytest.mark.parametrize("stem", HUNTS)
def test_over_ten_seeds_the_bug_and_the_mend_are_far_apart(stem, monkeypatch):
    bug, mend = (grading.load(EXERCISES / folder / f"{stem}.py") for folder in ("", "solutions"))
    seeds = range(1, 11)
    bad, good = ([reached(stem, module.train(seed)) for seed in seeds] for module in (bug, mend))
    print(f"{stem}: bug {min(bad):.3f} to {max(bad):.3f}, mended {min(good):.3f} to {max(good):.3f}")
    assert min(good) - max(bad) > max(np.std(good), np.std(bad))
    checks = importlib.import_module(f"sppo_control.course.checks.{stem}")
    monkeypatch.setattr(checks, "SEEDS", seeds)
    checks.curve(mend)  # no seed is rejected
    for seed in seeds:
        monkeypatch.setattr(checks, "SEEDS", (seed,))
        with pytest.raises(Mistake, match="The curve is not mended"):
            checks.curve(bug)


# ------------------------------------------------------------------------------------------------------------ charts
def dots(text, panel):
    """Rows of a panel as a matrix of booleans, from above."""
    rows = [line.split("|")[1 + panel][: curves.WIDTH] for line in text.splitlines()[2 : 2 + curves.HEIGHT]]
    out = np.zeros((4 * curves.HEIGHT, 2 * curves.WIDTH), bool)
    for i, row in enumerate(rows):
        for j, character in enumerate(row):
            for x in range(2):
                for y in range(4):
                    out[4 * i + y, 2 * j + x] = (ord(character) - 0x2800) >> ((0, 1, 2, 6), (3, 4, 5, 7))[x][y] & 1
    return out


def test_a_line_goes_from_the_lower_left_to_the_upper_right():
    drawn = dots(curves.chart("x", [0.0, 1.0], [1.0, 0.0], 0, 1), 0)
    assert drawn[-1, 0]
    assert drawn[0, -1]
    assert not drawn[0, 0]
    assert not drawn[-1, -1]
    assert drawn.any(0).all(), "a column is empty"
    assert np.array_equal(dots(curves.chart("x", [0.0, 1.0], [1.0, 0.0], 0, 1), 1), drawn[:, ::-1])


def test_a_jump_has_no_gap_and_what_is_outside_is_at_the_edge():
    drawn = dots(curves.chart("x", [-5.0] * 30 + [7.0] * 30, [0.0], 0, 1), 0)
    assert drawn[-1, 0]
    assert drawn[0, -1]
    assert drawn.any(1).all(), "a row is empty"
    assert dots(curves.chart("x", [float("nan")] * 5, [0.0], 0, 1), 0)[-1].all()


def test_axes_have_their_limits():
    lines = curves.chart("Success", [0.5], [0.5], 0, 0.25).splitlines()
    assert lines[0].startswith("Success")
    assert lines[2].startswith("0.25 |")
    assert lines[1 + curves.HEIGHT].startswith("   0 |")
    assert len(lines) == curves.HEIGHT + 3
