"""The bug hunts: drawn curves, and how far the bug's curve is from the mended one, over seeds."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_course import EXERCISES, STEMS

from sppo_control.course import Mistake, curves, grading

HUNTS = [stem for stem in STEMS if not grading.unwritten((EXERCISES / f"{stem}.py").read_text())]
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


# ------------------------------------------------------------------------------------------------- the other helpers
def test_another_setting_is_refused_and_the_templates_is_not():
    student = SimpleNamespace(BATCH=64, RATE=0.1)
    curves.settings(student, BATCH=64, RATE=0.1)
    with pytest.raises(Mistake, match=r"RATE is 0\.1, and was 0\.2"):
        curves.settings(student, BATCH=64, RATE=0.2)


def test_a_curve_above_or_below_the_policys_figure_is_not_true():
    curves.same_as_policy(0.9, 0.85, 0.1, "success")
    for said in (0.7, 1.0):
        with pytest.raises(Mistake, match=f"success is {said:.2f} at the end, but .* it is 0.85"):
            curves.same_as_policy(said, 0.85, 0.1, "success")


@pytest.mark.parametrize(
    ("found", "words"), [(None, "NoneType"), ([1, 2], "list"), ((1,), "a tuple of 1"), ((1, 2, 3), "a tuple of 3")]
)
def test_what_is_no_pair_is_refused(found, words):
    assert curves.returned((1, 2), ("curve", "logits"), "train") == (1, 2)
    with pytest.raises(Mistake, match=f"train returns {words}, where a tuple of 2 is right: curve, logits"):
        curves.returned(found, ("curve", "logits"), "train")


def test_a_curve_of_another_length_or_with_nan_is_refused():
    assert curves.series([1, 0.5], 2, "the list") == [1.0, 0.5]
    with pytest.raises(Mistake, match=r"the list has shape \(3,\), right is \(2,\)"):
        curves.series([1.0, 0.5, 0.25], 2, "the list")
    with pytest.raises(Mistake, match="not finite"):
        curves.series([1.0, float("nan")], 2, "the list")


def test_names_are_put_back_even_after_an_error():
    student = SimpleNamespace(f=1)

    def use():
        with curves.replaced(student, f=2):
            assert student.f == 2
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert student.f == 1


def test_probabilities_are_a_softmax_and_must_be_finite():
    found = curves.probabilities(torch.tensor([[0.0, np.log(3)], [5.0, 5.0]]), (2, 2), "the logits")
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]], atol=1e-7)
    with pytest.raises(Mistake, match="the logits has a number that is not finite"):
        curves.probabilities(torch.tensor([[0.0, torch.inf]]), (1, 2), "the logits")


# --------------------------------------------------- exact figures of a policy, which do not need the student's code
def policy(rows, columns, column):
    return torch.tensor([[50.0 if j == column(i) else 0.0 for j in range(columns)] for i in range(rows)])


@pytest.mark.parametrize("stem", ["e11_corridor", "e12_quiz", "e13_orchard"])
def test_the_exact_figure_is_the_mean_of_many_episodes(stem):
    module, rng = grading.load(EXERCISES / "solutions" / f"{stem}.py"), np.random.default_rng(0)
    rows = {"e11_corridor": 8, "e12_quiz": 12, "e13_orchard": 11}[stem]
    logits = torch.from_numpy(rng.normal(0, 1, (rows, 2))).float()
    exact = reached(stem, (None, logits))
    if stem == "e11_corridor":
        many = np.mean([float(module.rollout(logits, rng)["outcome"].mean()) for _ in range(40)])
        assert abs(many - exact) < 4 * (exact * (1 - exact) / (40 * 64)) ** 0.5
    elif stem == "e12_quiz":
        assert abs(module.evaluate(logits, rng, 4000) - exact) < 4 * (exact * (1 - exact) / 4000) ** 0.5
    else:
        assert abs(module.evaluate(logits, rng, 4000) - exact) < 0.02 * exact


def test_exact_figures_of_the_best_policies():
    assert grading.checks_of("e11_corridor").success(policy(8, 2, lambda cell: 1)) == pytest.approx(1)
    assert grading.checks_of("e12_quiz").exact(policy(12, 2, lambda k: k == 11)) == pytest.approx(0.92)
    assert grading.checks_of("e13_orchard").exact(policy(11, 2, lambda k: k == 10)) == pytest.approx(1 / 11)
    darts = grading.checks_of("e15_darts").exact
    assert darts(torch.tensor([1.0, 0.5]), torch.tensor(-5.0)) == pytest.approx(1)
    assert darts(torch.tensor([1.0, 0.5]), torch.tensor(np.log(0.3))) == pytest.approx(0.6827, abs=1e-4)
    assert darts(torch.tensor([np.nan, 0.5]), torch.tensor(0.0)) == 0
    assert grading.checks_of("e16_judge").best(policy(12, 8, lambda i: (3 * i + 1) % 8)) == pytest.approx(1)
