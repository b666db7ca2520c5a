"""Calibration on the control tasks beside a perfect V: numbers by hand, and the page has the table of the file."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed: extra study")
pytest.importorskip("pandas", reason="pandas is not installed: extra study")

import critic_control
from sppo_control.study.results import Study

ROOT = Path(__file__).resolve().parents[1]


def row(rate, n=10, **changes):
    made = {"env_id": "sppo/ContextPendulum-v0", "algorithm": "sppo", "seed": 1, "update": 20, "rate": rate, "episodes": n,
            "contexts": len(rate), "v0": rate, "spearman": 0.5, "brier": 0.2, "ece": 0.1, "pearson": 0.4}  # fmt: skip
    return made | changes


@pytest.mark.slow
def test_a_perfect_v_has_the_brier_score_of_chance_alone():
    """Mean p (1 - p), and 10 / 9 of it, because rates of 10 episodes are themselves chance."""
    found = critic_control.numbers(row([0.0, 0.5, 1.0, 0.2]))
    assert found["best_brier"] == pytest.approx((0.25 + 0.16) / 4 * 10 / 9)
    mean = 1.7 / 4
    assert found["base"] == pytest.approx(mean * (1 - mean))
    assert found["open"] == 0.5
    assert (found["spearman"], found["brier"], found["ece"]) == (0.5, 0.2, 0.1)
    rng, p, n = np.random.default_rng(0), np.array([0.1, 0.4, 0.7]), 4
    drawn = [critic_control.numbers(row(list(rng.binomial(n, p) / n), n))["best_brier"] for _ in range(300)]
    assert np.mean(drawn) == pytest.approx((p * (1 - p)).mean(), abs=0.01), "without the factor it is 0.14, not 0.18"


def test_a_perfect_v_is_calibrated_and_ranks_well_where_contexts_differ():
    sure = critic_control.numbers(row([0.0] * 50 + [1.0] * 50, 64))
    assert sure["best_ece"] == sure["best_brier"] == 0
    spread = critic_control.numbers(row(list(np.linspace(0, 1, 101)), 64))
    assert spread["best_spearman"] > 0.97
    assert sure["best_spearman"] == pytest.approx(np.sqrt(3) / 2, abs=0.02), "half and half, ranks random within"
    assert 0 < spread["best_ece"] < 0.03


def test_means_are_over_seeds_and_points_in_time_apart():
    rows = [row([0.0, 1.0], seed=s, update=u, spearman=x) for s, u, x in
            [(1, 20, 0.2), (1, 60, 0.6), (2, 20, 0.4), (2, 61, None)]]  # fmt: skip
    found = critic_control.groups(rows)
    assert [(task, name, updates, len(seeds)) for task, name, updates, seeds in found] == [
        ("ContextPendulum", "sppo", "20", 2), ("ContextPendulum", "sppo", "60 to 61", 2),
    ]  # fmt: skip
    lines = critic_control.table(found).splitlines()
    assert lines[2].startswith("| ContextPendulum | sppo | 20 | 2 | 0.300 |")
    assert lines[3].startswith("| ContextPendulum | sppo | 60 to 61 | 2 | 0.600 |"), "a constant V has no correlation"


def test_the_page_has_the_table_of_the_file():
    study = Study([ROOT / "results" / "calibration.json"])
    text = critic_control.table(critic_control.groups(study.calibration))
    assert text in (ROOT / "docs" / "critic_control.md").read_text(), "python scripts/critic_control.py"
