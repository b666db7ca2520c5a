"""Calibration on the control tasks beside a perfect V: numbers by hand, and the page has the table of the file."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed: extra study")
pytest.importorskip("pandas", reason="pandas is not installed: extra study")

import critic_control
from sppo_control.errors import UserError
from sppo_control.study.results import Study, StudyRun, read_runs

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
    assert found["share"] == pytest.approx((found["base"] - 0.2) / (found["base"] - found["best_brier"]))
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


def test_the_share_is_0_for_the_base_rate_and_1_for_a_perfect_v():
    rate = [0.0, 0.5, 1.0, 0.5]
    best = 0.125 * 10 / 9
    shares = [critic_control.numbers(row(rate, brier=brier))["share"] for brier in (0.25, best, (0.25 + best) / 2, 0.5)]
    assert shares == pytest.approx([0, 1, 0.5, -0.25 / (0.25 - best)])
    assert np.isnan(critic_control.numbers(row([1.0, 1.0]))["share"]), "nothing to know"


def curve(algorithm, setting, seed, *success, env_id="sppo/ContextPendulum-v0"):
    x = {"steps": np.arange(1.0, len(success) + 1)}
    arguments = {"total_timesteps": len(success)}
    return StudyRun(env_id, algorithm, setting, seed, x, np.array(success), 0.1, 0.2, 60, 1.0, arguments, {})


def stage(algorithm, updates, *shares):
    return "ContextPendulum", algorithm, str(updates), [{"share": share} for share in shares]


def test_comparisons_are_those_of_the_plan():
    """Differences by hand, and Holm's factor is the number of all tests together."""
    warm = "sppo, critic-warmup-batches=2"
    found = [stage("sppo", u, 0.1, 0.2, 0.3) for u in (0, 5, 20, 60)]
    found += [stage(warm, u, 0.5, 0.6, 0.7) for u in (0, 5, 20, 60)] + [
        stage("ppo", u, 0.0, 0.01, 0.02) for u in (5, 20)
    ]
    runs = [curve("sppo", "save-every=5", s, 0.2, 0.4) for s in (1, 2, 3)]
    runs += [curve("sppo", "save-every=5,critic-warmup-batches=2", s, 0.5, 0.7) for s in (1, 2, 3)]
    runs += [curve("sppo", "critic-steps=80", 1, 0.9, 0.9), curve("ppo", "", 1, 0.9, 0.9)]
    runs += [curve("sppo", "save-every=5", 1, 0.9, 0.9, env_id="sppo/ContextCartPole-v0")]
    lines = [line.split(" | ") for line in critic_control.comparisons(found, runs).splitlines()[2:]]
    assert [line[1:4] for line in lines] == [
        [f"{warm} - sppo", what, "3, 3"]
        for what in ("share after 5", "share after 20", "share after 60", "mean success")
    ] + [["ppo - sppo", "share after 20", "3, 3"]]
    assert [line[4] for line in lines] == ["0.600, 0.200"] * 3 + ["0.600, 0.300"] + ["0.010, 0.200"]
    assert all(line[5].startswith("+0.400 [") for line in lines[:3])
    assert lines[4][5].startswith("-0.190 [")
    assert lines[0][6] == "0.1000 (0.5000) |", "2 of 20 ways to split; five tests"
    with pytest.raises(UserError, match=f"mean success of {warm} and sppo on ContextPendulum: there are 3 and 0 runs"):
        critic_control.comparisons(found, runs[3:6])


def test_a_picture_over_training_has_a_line_per_arm(tmp_path, monkeypatch):
    import matplotlib.figure

    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, **_: drawn.append((figure, path)))
    numbers = {"spearman": 0.2, "share": 0.4, "best_spearman": 0.9}
    found = [("T", name, str(u), [numbers | {"share": u / 100}] * 2) for name in ("sppo", "ppo") for u in (0, 10, 60)]
    critic_control.draw_training(found, tmp_path / "x.png")
    ((figure, path),) = drawn
    assert path == tmp_path / "x.png"
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 3]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [([0, 10, 60], [0, 0.1, 0.6])] * 2
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["sppo", "a perfect V of sppo's policies", "ppo"]


@pytest.mark.parametrize("name", ["calibration.json", "calibration_second_tuning.json"])
def test_the_page_has_the_table_of_the_file(name):
    study = Study([ROOT / "results" / name])
    text = critic_control.table(critic_control.groups(study.calibration))
    assert text in (ROOT / "docs" / "critic_control.md").read_text(), f"python scripts/critic_control.py, {name}"


@pytest.mark.slow
def test_the_page_has_the_table_and_the_comparisons_of_the_second_files():
    files = [ROOT / "results" / f"calibration_second{name}.json" for name in ("", "_early", "_others")]
    found = critic_control.groups(Study(files).calibration)
    page = (ROOT / "docs" / "critic_control.md").read_text()
    assert critic_control.table(found) in page, "the command is on the page"
    text = critic_control.comparisons(found, read_runs([ROOT / "results" / "critic_second.parquet"])[0])
    assert text in page, "python scripts/critic_control.py --curves"
