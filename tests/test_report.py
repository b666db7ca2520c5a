"""scripts/report.py: its statistics against known numbers, the numbers that the figures draw (not their pixels), its tables
and files, and what it refuses before the long work."""

import dataclasses
import json
import math
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import tyro

pytest.importorskip("sppo_control.study", exc_type=ImportError)  # the reason names the package
import matplotlib.image
import pandas as pd
from PIL import Image

import report
from sppo_control import cli, core, extras
from sppo_control.errors import UserError
from sppo_control.study import figures, tables, variants
from sppo_control.study.results import Study, read_runs
from sppo_control.study.statistics import (
    band,
    difference,
    holm,
    informative,
    interval,
    iqm,
    p_value,
    smoothed,
    spearman_ceiling,
    time_to,
)

POLE, CAR = "sppo/PrecisionCartPole-v0", "sppo/SparseMountainCar-v0"
LINEAR = np.arange(1, 101) / 100


def rows(
    env_id=POLE, algorithm="sppo", setting="", seed=1, success=LINEAR, after=None, budget=None, before=0.0, **more
):
    """One run as scripts/benchmark.py writes it: 1000 steps, 5 episodes, 0.5 s and 2 updates a point."""
    n = len(success)
    arguments = {"total_timesteps": budget or 1000 * n, "hidden": [64, 64], "critic_hidden": [64, 64], "critic_steps": 0,
                 "critic_window": 1, "critic_learning_rate": 1e-3, **more.pop("arguments", {})}  # fmt: skip
    same = {"env_id": env_id, "algorithm": algorithm, "setting": setting, "seed": seed, "starts": "fresh", "commit": "abc",
            "versions": "{}", "arguments": json.dumps(arguments), "peak_memory_mib": 300.0, "success_before": before,
            "success_after": float(success[-1]) if after is None else after, "eval_episodes": 256,
            "measures_after": "{}", **more}  # fmt: skip
    return [
        {**same, "episodes": 5 * i, "steps": 1000 * i, "seconds": 0.5 * i, "updates": 2 * i, "success_rate": float(y)}
        for i, y in enumerate(success, 1)
    ]


def write(path, *parts):
    pd.DataFrame([row for part in parts for row in part]).to_parquet(path)
    return path


def runs_of(tmp_path, *parts):
    return read_runs([write(tmp_path / "runs.parquet", *parts)])[0]


def level(y, points=20):
    return np.full(points, y)


@pytest.fixture(autouse=True)
def no_open_figures():
    """pyplot keeps every figure, and warns of many."""
    yield
    figures.plt.close("all")


# ---------------------------------------------------------------------------------------------------- statistics
def test_iqm_leaves_out_a_quarter_at_each_end():
    assert iqm([-50.0, 0, 1, 2, 3, 4, 5, 600]) == 2.5
    assert iqm([1.0, 2, 6]) == 3  # three quarters of a run are none
    assert iqm([-50.0, 0, 1, 2], [3, 4, 5, 600]) == 2.5  # pooled
    assert iqm(np.array([[0.0, 1, 1, 9], [0, 2, 2, 9]])).tolist() == [1, 2]
    assert difference([3.0, 3], [1, 1]) == 2


def test_interval_contains_the_truth_about_19_times_of_20():
    rng = np.random.default_rng(1)
    ends = [interval(iqm, rng.normal(0.5, 0.1, 40), resamples=500) for _ in range(200)]
    covered = np.mean([low < 0.5 < high for low, high in ends])
    assert 0.88 < covered < 0.985
    assert 0.04 < np.mean([high - low for low, high in ends]) < 0.09  # 4 standard errors of about 0.017
    assert interval(iqm, [0.75, 0.75, 0.75]) == (0.75, 0.75)
    assert np.isnan(interval(iqm, [0.7])).all()
    assert interval(iqm, [0.1, 0.2, 0.6]) == interval(iqm, [0.1, 0.2, 0.6])


def test_interval_resamples_within_tasks():
    tasks = [0.0] * 5, [1.0] * 5  # no spread within a task, all of it between them
    assert interval(iqm, *tasks) == (0.5, 0.5)
    low, high = interval(iqm, np.concatenate(tasks))
    assert low < 0.2 < 0.8 < high


def test_permutation_test():
    assert p_value([0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]) == pytest.approx(2 / 252)
    assert p_value([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) == pytest.approx(0.1)
    assert p_value([0.5] * 5, [0.5] * 5) == 1
    rng = np.random.default_rng(0)
    equal = np.array([p_value(rng.normal(size=6), rng.normal(size=6)) for _ in range(100)])
    assert 0.0 <= np.mean(equal < 0.05) <= 0.12
    assert 0.3 < np.mean(equal > 0.5) < 0.7
    assert np.isnan(p_value([1.0], [0.0, 0.1]))


def test_holm():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm([0.6, 0.7]).tolist() == [1, 1]


def test_informative_compares_the_spread_with_the_interval_of_one():
    """By hand: means 0.1 and 0.4, variance 0.01 in each, 4 degrees of freedom, so t = 2.7764 and t * 0.1 / sqrt(3)."""
    found = informative([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]])
    assert found[:3] == pytest.approx((0.3, 0.160299, 0.3 / 0.160299), rel=1e-4)
    assert not found.yes
    assert informative([[0.0, 0.1, 0.2], [0.33, 0.43, 0.53]]).yes
    assert informative([[0.5, 0.5], [0.6, 0.6]]) == (pytest.approx(0.1), 0, math.inf, True)
    for samples in ([[0.1, 0.2]], [[0.1, 0.2], [0.9]], [[0.5, 0.5], [0.5, 0.5]]):
        assert np.isnan(informative(samples).ratio)
        assert not informative(samples).yes


def test_report_prints_which_tasks_are_informative_for_each_start(tmp_path, capsys):
    far = [
        rows(algorithm=a, seed=s, success=level(y + s / 100)) for a, y in (("sppo", 0.9), ("ppo", 0.1)) for s in (1, 2)
    ]
    near = [rows(CAR, a, seed=s, success=level(0.5 + s / 100), starts="low") for a in ("sppo", "ppo") for s in (1, 2)]
    file = write(tmp_path / "r.parquet", *far, *near)
    report.main(report.Args((file,), tmp_path / "out", ("informative",)))
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "Pole" in line or "Car" in line]
    assert [(x[0], x[1], x[4], x[7]) for x in lines] == [
        ("| PrecisionCartPole", "fresh", "0.800", "yes |"),
        ("| SparseMountainCar", "low", "0.000", "no |"),
    ]
    assert not (tmp_path / "out").exists()


def test_report_prints_the_mean_of_every_setting_on_the_seeds_that_are_asked_for(tmp_path, capsys):
    runs = [
        rows(algorithm=a, setting=setting, seed=s, success=level(y if s < 3 else 1 - y))  # seed 3 says the contrary
        for a, setting, y in (("sppo", "", 0.4), ("sppo", "learning-rate=0.01", 0.6), ("ppo", "", 0.9))
        for s in (1, 2, 3)
    ]
    low = rows(CAR, "sppo", seed=3, success=level(0.25), starts="low")
    file = write(tmp_path / "r.parquet", *runs, low)
    report.main(report.Args((file,), tmp_path / "out", ("settings",), seeds=(1, 2)))
    cells = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(x[1], x[2], x[3], x[4], x[5]) for x in cells] == [
        ("fresh", "sppo", "-", "1, 2", "0.400 |"),
        ("fresh", "sppo", "learning-rate=0.01", "1, 2", "**0.600** |"),
        ("fresh", "ppo", "-", "1, 2", "0.900 |"),  # nothing to choose from
    ]
    report.main(report.Args((file,), tmp_path / "out", ("settings",)))
    text = capsys.readouterr().out
    assert "| sppo | - | 1, 2, 3 | 0.467 |" in text
    assert "| SparseMountainCar | low | sppo | - | 3 | 0.250 |" in text
    with pytest.raises(UserError, match=r"--seeds 1: no such runs; there are 3"):  # not an empty table
        report.main(report.Args((file,), tmp_path / "out", ("settings",), starts="low", seeds=(1,)))
    with pytest.raises(UserError, match="elsewhere"):
        report.main(report.Args((file,), tmp_path / "out", ("settings",), starts="elsewhere", seeds=(1,)))
    assert not (tmp_path / "out").exists()


def test_report_takes_only_the_seeds_that_are_asked_for(tmp_path):
    file = write(tmp_path / "r.parquet", *[rows(seed=s, success=level(s / 10)) for s in (1, 2)])
    report.main(report.Args((file,), tmp_path / "out", ("tables",), seeds=(2,)))
    text = (tmp_path / "out/tables.md").read_text()
    assert "--figures tables --seeds 2`" in text  # the command that makes it again
    assert "of these only the seeds 2" in text
    assert "| PrecisionCartPole | sppo | - | 1 | 0.200 (one seed) |" in text
    with pytest.raises(UserError, match=r"--seeds 3: no such runs; there are 1, 2"):
        report.main(report.Args((file,), tmp_path / "out", ("tables",), seeds=(2, 3)))


def test_time_to_a_threshold(tmp_path):
    (run,) = runs_of(tmp_path, rows())  # success i / 100 at point i; a moving mean leaves a straight line straight
    assert time_to(run, "steps", 0.8) == pytest.approx(80_000)
    assert time_to(run, "episodes", 0.905) == pytest.approx(452.5)  # between two points
    assert time_to(run, "seconds", 0.8) == pytest.approx(40)
    assert time_to(run, "steps", 1.0) == np.inf  # reached by the last point alone, not by its mean with others
    assert time_to(dataclasses.replace(run, before=0.95), "steps", 0.9) == 0


def test_smoothing_is_the_mean_of_five_points(tmp_path):
    (run,) = runs_of(tmp_path, rows(success=np.eye(10)[4], before=0.25))
    x, y = smoothed(run, "steps")
    assert (x[0], y[0]) == (0, 0.25)  # before training
    assert y[1:] == pytest.approx([0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0, 0])
    (run,) = runs_of(tmp_path, rows(success=[1.0, 0.0]))
    assert smoothed(run, "steps")[1].tolist() == [0, 0.5, 0.5]


def test_area_counts_steps_up_to_the_budget(tmp_path):
    (run,) = runs_of(tmp_path, rows(success=[0.5, 0.5, 1.0, 1.0], budget=4000))
    assert run.area == pytest.approx(0.75)
    (run,) = runs_of(tmp_path, rows(success=[0.5, 0.5, 1.0, 1.0], budget=3000))
    assert run.area == pytest.approx(2 / 3)
    table = pd.DataFrame(rows(success=[0.0, 1.0], budget=10_000)).assign(steps=[9000, 10_000])
    table[::-1].to_parquet(tmp_path / "a.parquet")  # neither equal steps nor sorted
    assert read_runs([tmp_path / "a.parquet"])[0][0].area == pytest.approx(0.1)


def test_band_ends_where_the_shortest_run_ends(tmp_path):
    found = runs_of(
        tmp_path, rows(success=level(0.2, 50), before=0.2), rows(seed=2, success=level(0.6, 30), before=0.6)
    )
    for axis, end in {"steps": 30_000, "episodes": 150, "seconds": 15}.items():
        grid, middle, low, high = band(found, axis)
        assert (grid[0], grid[-1]) == (0, end)
        assert middle == pytest.approx(np.full(len(grid), 0.4))
        assert low == pytest.approx(np.full(len(grid), 0.2))
        assert high == pytest.approx(np.full(len(grid), 0.6))
    assert np.isnan(band(found[:1], "steps")[2]).all()


# --------------------------------------------------------------------------------------------------------- study
def test_which_runs_stand_for_an_algorithm(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        rows(), rows(setting="learning-rate=1"), rows(algorithm="ppo", setting="learning-rate=1"),
        rows(CAR, setting="learning-rate=2"), rows(CAR, setting="learning-rate=1"),
        rows(CAR, "ppo", setting="learning-rate=2"), rows(CAR, "new"),
    )  # fmt: skip
    study = Study([path])
    assert study.main(POLE, "sppo") == (POLE, "sppo", "")
    assert study.main(POLE, "ppo") == (POLE, "ppo", "learning-rate=1")
    assert study.main(CAR, "sppo") == (CAR, "sppo", "learning-rate=2")  # which PPO has too
    assert study.main(CAR, "grpo") is None
    assert list(study.with_algorithms(("sppo", "ppo", "new"), 3)) == [CAR]
    assert [a for t, a, _ in study.arms if t == CAR] == ["sppo", "sppo", "ppo", "new"]


def test_settings_that_differ_in_named_arguments_only(tmp_path):
    sized = [rows(setting=f"critic-hidden={n} {n}", arguments={"critic_hidden": [n, n]}) for n in (8, 128)]
    other = rows(setting="critic-hidden=8 8,learning-rate=1", arguments={"critic_hidden": [8, 8]})
    path = write(tmp_path / "a.parquet", rows(), *sized, other, rows(CAR), rows(algorithm="ppo"))
    found = Study([path]).varied(("critic-hidden",), ("sppo", "ppo"))
    assert {t: {a: set(sizes) for a, sizes in arms.items()} for t, arms in found.items()} == {
        POLE: {"sppo": {"8x8", "64x64", "128x128"}, "ppo": {"64x64"}}
    }
    assert [run.setting for run in found[POLE]["sppo"]["8x8"]] == ["critic-hidden=8 8"]


# ------------------------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize("size", [2, 8, 64])
def test_fig2_code_lies_on_theory(size):
    p, won, lost = figures.grpo_points(size)
    assert p.tolist() == [k / size for k in range(1, size)]
    assert won == pytest.approx(np.sqrt((1 - p) / p))
    assert lost == pytest.approx(-np.sqrt(p / (1 - p)))
    figure = figures.fig2((8, 64), {})
    drawn = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert len(drawn["core, k of N = 8"]) == 14
    for x, y in drawn["core, k of N = 64"]:
        assert abs(y) == pytest.approx(np.sqrt((1 - x) / x if y > 0 else x / (1 - x)))


def test_reliability_bins_are_those_of_the_ece():
    rng = np.random.default_rng(0)
    v0, rate = np.append(rng.random(500), [0.0, 1.0]), np.append(rng.random(500), [0.0, 1.0])
    x, y, number = figures.reliability(v0, rate)
    assert len(number) == 10
    ece = float(core.expected_calibration_error(torch.from_numpy(v0), torch.from_numpy(rate)))
    assert float(np.sum(number * abs(x - y)) / len(v0)) == pytest.approx(ece)
    x, y, number = figures.reliability(np.array([0.05, 0.15, 0.16]), np.array([0.0, 0.5, 1.0]))
    assert (x.tolist(), y.tolist(), number.tolist()) == ([0.05, pytest.approx(0.155)], [0, 0.75], [1, 2])
    # PPO's plain critic knows no sigmoid: what leaves [0, 1] belongs to the outermost bins
    x, y, number = figures.reliability(np.array([-0.4, 0.05, 1.3]), np.array([0.0, 0.5, 1.0]))
    assert (y.tolist(), number.tolist()) == ([0.25, 1.0], [2, 1])


def tail(algorithm, seed, update, ends=(0.9, 0.1), episodes=(10, 10)):
    progress = [0.0, 0.5, 1.0]
    group = [
        {"progress": progress, "mean": [0.5, 0.5, end], "low": [0.4] * 3, "high": [0.6, 0.6, 1.0], "episodes": n}
        for end, n in zip(ends, episodes, strict=True)
    ]
    runs = {"algorithm": algorithm, "seed": seed, "update": update, "successes": group[0], "failures": group[1]}
    return {**runs, "auc": [0.5, 0.6, 1.0] if all(episodes) else None}


def learnt(variant, seed, batch):
    """A run of scripts/speed_llm.py --what addition: 8 updates of 2 seconds each, from 0 to 0.7."""
    return {"variant": variant, "seed": seed, "curve": [[batch * (i + 1), 2.0 * (i + 1), 0.1 * i] for i in range(8)]}


def calibration(algorithm, seed, update, pearson, **more):
    v0, rate = [0.1, 0.2, 0.8], [0.0, 0.5, 1.0]
    return {"env_id": POLE, "algorithm": algorithm, "seed": seed, "update": update, "contexts": 3, "episodes": 64, "v0": v0,
            "rate": rate, "pearson": pearson, "spearman": 1.0, "brier": 0.1, "ece": 0.2, **more}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files that feed every figure."""
    folder = tmp_path_factory.mktemp("results")
    parts = []
    for task in (POLE, CAR):
        for k, algorithm in enumerate(("sppo", "sppo-skip", "ppo", "ppo-bce", "grpo")):
            for seed in range(4):
                curve = np.clip(np.linspace(0.1, 0.9 - 0.1 * k, 20) + 0.02 * seed, 0, 1)
                parts.append(rows(task, algorithm, seed=seed, success=curve, before=0.1))
    for size in (8, 256):
        more = {"setting": f"critic-hidden={size} {size}", "arguments": {"critic_hidden": [size, size]}}
        parts += [rows(seed=seed, success=level(0.5), peak_memory_mib=300.0 + size, **more) for seed in range(3)]
    for steps in (20, 120):
        more = {"setting": f"critic-steps={steps}", "arguments": {"critic_steps": steps, "critic_window": 4}}
        parts += [rows(seed=seed, success=level(0.7), **more) for seed in range(3)]
    files = [write(folder / "study.parquet", *parts), folder / "tail.json", folder / "calibration.json"]
    tails = [tail("ppo", s, u + s) for s in (1, 2, 3) for u in (10, 90)] + [tail("ppo", 4, 10, episodes=(10, 0))]
    tails += [tail("sppo", s, 20, (0.5, 0.5)) for s in (1, 2, 3)]
    files[1].write_text(json.dumps({"env_id": POLE, "runs": tails}))
    measured = [calibration("sppo", s, u, p) for s in (1, 2, 3) for u, p in ((10, 0.1), (50, 0.6 + s / 100))]
    measured += [calibration("sppo-paper", s, 50, None if s == 1 else 0.3) for s in (1, 2, 3)]
    files[2].write_text(json.dumps({"rows": measured}))
    files.append(folder / "speed_llm_addition.json")
    files[3].write_text(
        json.dumps(
            {
                "rows": [
                    learnt("SPPO 128 x 1", 1, 512),
                    learnt("SPPO 128 x 1", 2, 512),
                    learnt("GRPO 128 x 8", 1, 1024),
                    learnt("SPPO, 1 critic step", 1, 512),
                ]
            }
        )
    )
    more = [
        rows("sppo/ContextPendulum-v0", algorithm, seed=seed, success=np.linspace(0.2, top, 20), before=0.1)
        for algorithm, top in (("sppo", 0.9), ("ppo", 0.7))
        for seed in range(3)
    ]
    return [*files, write(folder / "contexts.parquet", *more)]


@pytest.fixture(scope="module")
def study(inputs):
    return Study([file for file in inputs if file.name != "contexts.parquet"])


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """All figures and tables of these files."""
    out = tmp_path_factory.mktemp("report") / "new" / "figures"
    report.main(report.Args(tuple(inputs), out))
    return out


def draw(study, name):
    return figures.FIGURES[name].draw(figures.FIGURES[name].what(study), study.looks)


def test_every_figure_is_written_twice_and_is_not_blank(made):
    assert {p.name for p in made.iterdir()} == {"tables.md"} | {
        f"{name}.{ending}" for name in figures.FIGURES for ending in ("png", "svg")
    }
    for name in figures.FIGURES:
        pixels = matplotlib.image.imread(made / f"{name}.png")[..., :3]
        assert min(pixels.shape[:2]) > 300, name
        dark = (pixels.min(axis=2) < 0.95).mean()
        assert 0.01 < dark < 0.6, name
        svg = ElementTree.parse(made / f"{name}.svg")
        assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 50, name


def test_the_command_in_a_pictures_metadata_makes_it_again(made, inputs, tmp_path):
    for name in ("fig2", "fig7", "fig8"):
        words = shlex.split(Image.open(made / f"{name}.png").text["Description"])
        assert words == shlex.split(report.command(report.Args(tuple(inputs), made), name))
        assert words[:2] == ["python", "scripts/report.py"]
        before = (made / f"{name}.svg").read_bytes(), (made / f"{name}.png").read_bytes()
        (made / f"{name}.svg").unlink()
        report.main(tyro.cli(report.Args, args=words[2:]))
        assert ((made / f"{name}.svg").read_bytes(), (made / f"{name}.png").read_bytes()) == before


def test_spearman_ceiling():
    """Distinct rates over many rollouts: 1. Half of the contexts at 0 and half at 1 are two groups, inside which
    the ranks of V are random. For large n, Spearman is the correlation of U(0, 1) with its upper half, sqrt(3) / 2."""
    assert spearman_ceiling(np.linspace(0.02, 0.98, 49), 10**6) == pytest.approx(1, abs=1e-3)
    assert spearman_ceiling([0.0] * 500 + [1.0] * 500, 64) == pytest.approx(math.sqrt(3) / 2, abs=2e-3)
    assert spearman_ceiling(np.linspace(0.4, 0.6, 100), 4) < 0.4  # four rollouts tell little
    assert math.isnan(spearman_ceiling([1.0] * 5, 64))


def test_fig8_draws_iqm_with_its_interval_in_the_algorithms_colours(study):
    figure = draw(study, "fig8")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["PrecisionCartPole, n = 4", "SparseMountainCar, n = 4"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == {"SPPO", "PPO"}
    for label, algorithm in (("SPPO", "sppo"), ("PPO", "ppo")):
        grid, middle, _, _ = band(study.arms[POLE, algorithm, ""], "episodes")
        assert np.array_equal(lines[label].get_xydata(), np.stack([grid, middle], axis=1))
        assert lines[label].get_color() == variants.VARIANTS[algorithm].colour
    assert len(draw(study, "fig8_all").axes[0].lines) == 5


def test_fig5_and_fig4_have_a_row_a_task(study):
    for name in ("fig5", "fig4"):
        axes = draw(study, name).axes
        assert len(axes) == 4, name
    drawn = [{line.get_label() for line in a.lines} for a in draw(study, "fig4").axes[:2]]
    assert drawn == [{"SPPO", "PPO", "PPO + BCE"}, {"SPPO", "PPO", "SPPO, no uniform batches"}]
    ends = [a.lines[0].get_xdata()[-1] for a in draw(study, "fig5").axes[:2]]
    assert ends == [10, 20_000]  # seconds, steps


def test_fig6_measures_by_size(study):
    memory, time, success = draw(study, "fig6").axes
    sppo = {a: a.lines[0] for a in (memory, time, success)}
    assert [t.get_text() for t in memory.get_xticklabels()] == ["8x8", "64x64", "256x256"]
    assert sppo[memory].get_ydata().tolist() == [308, 300, 556]
    assert sppo[time].get_ydata() == pytest.approx([250] * 3)  # 0.5 s for two updates
    assert sppo[success].get_ydata() == pytest.approx([0.5, 0.93, 0.5])


def test_additions_are_means_of_1024_responses_where_the_last_of_them_was_written(study):
    lines = [axes.lines[:-1] for axes in draw(study, "addition").axes]  # the last one is the threshold
    sppo, again, grpo = lines[0]
    assert (sppo.get_label(), grpo.get_label()) == ("SPPO, 128 prompts x 1 response (n = 2)", "GRPO, 128 x 8 (n = 1)")
    assert again.get_label().startswith("_")
    assert sppo.get_xdata().tolist() == [1024 + 512 * i for i in range(7)]
    assert sppo.get_ydata() == pytest.approx([0.05 + 0.1 * i for i in range(7)])
    assert grpo.get_xdata().tolist() == [1024 * (i + 1) for i in range(8)]
    assert grpo.get_ydata() == pytest.approx([0.1 * i for i in range(8)])
    assert [line.get_xdata()[0] for line in lines[1]] == [4, 4, 2]


def test_critics_are_named_by_how_they_are_trained(study):
    axes = [a for a in draw(study, "critics").axes if a.lines]
    assert [a.get_title() for a in axes] == ["PrecisionCartPole, n = 3 to 4"]
    assert [line.get_label() for line in axes[0].lines] == [
        "on the policy's minibatches (paper), rate 0.001",
        "20 steps, last 4 batches, rate 0.001",
        "120 steps, last 4 batches, rate 0.001",
    ]


def test_fig1_shows_updates_in_rows_and_leaves_out_seeds_without_failures(study):
    figure = draw(study, "fig1")
    assert [a.get_title() for a in figure.axes[::2]] == [
        "PrecisionCartPole, update 10 to 20, n = 3 to 4",
        "PrecisionCartPole, update 91 to 93, n = 3",
    ]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines["SPPO, successes"].tolist() == [0.5] * 3
    assert lines["PPO, failures"] == pytest.approx([0.5, 0.5, 0.1])
    assert figure.axes[1].lines[-2].get_ydata() == pytest.approx([0.5, 0.6, 1.0])


def test_variants_of_an_algorithm_in_one_tail_file_are_not_pooled(tmp_path):
    """probe.py writes the algorithm that a variant is of, and the variant beside it."""
    found = [{**tail("ppo", s, 10), "variant": "ppo"} for s in (1, 2)]
    found += [{**tail("ppo", s, 10, (0.7, 0.3)), "variant": "ppo-bce", "auc": [0.5, 0.7, 0.9]} for s in (1, 2, 3)]
    path = tmp_path / "tail.json"
    path.write_text(json.dumps({"env_id": POLE, "runs": found}))
    study = Study([path])
    left, right = draw(study, "fig1").axes
    assert left.get_title() == "PrecisionCartPole, update 10, n = 2 to 3"
    ends = {line.get_label(): line.get_ydata()[-1] for line in left.lines}
    assert ends == pytest.approx({
        "PPO, successes": 0.9, "PPO, failures": 0.1, "PPO + BCE, successes": 0.7, "PPO + BCE, failures": 0.3,
    })  # fmt: skip
    assert len(left.collections) == 4  # a critic of every step has bands, whatever its loss
    assert [line.get_ydata()[1] for line in right.lines[:2]] == pytest.approx([0.6, 0.7])
    assert len({line.get_color() for line in right.lines[:2]}) == 2
    table = {row["algorithm"]: row for row in cells(tables.tables(study, "the command"), "## Tail effect")}
    assert {a: (row["seeds"], row["at 0.5"][:5]) for a, row in table.items()} == {
        "ppo": ("2", "0.600"), "ppo-bce": ("3", "0.700"),
    }  # fmt: skip


def test_fig7_takes_each_seeds_last_update_and_says_what_is_undefined(study):
    sppo, paper, reliable = draw(study, "fig7").axes
    assert "Pearson 0.620 [0.610, 0.630]" in sppo.get_title()
    assert "n = 3 seeds" in sppo.get_title()
    assert "Pearson 0.300 [0.300, 0.300] (2 of 3 seeds)" in paper.get_title()
    assert len(sppo.collections[0].get_offsets()) == 9
    assert reliable.lines[0].get_xydata().tolist() == pytest.approx(np.array([[0.1, 0], [0.2, 0.5], [0.8, 1]]))


def test_every_variant_looks_different():
    looks = variants.looks([*variants.VARIANTS, "mine", "yours"])
    assert len({look.colour for look in looks.values()}) == len({look.label for look in looks.values()}) == len(looks)
    assert not set(variants.OWN_COLOURS) & {variant.colour for variant in variants.VARIANTS.values()}


# -------------------------------------------------------------------------------------------------------- tables
def cells(text, heading):
    """Rows of the first table below a heading, as dictionaries; the columns p, p 2 for repeated names."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    head = [name + (" 2" if name in table[0][:i] else "") for i, name in enumerate(table[0])]
    assert all(len(row) == len(head) for row in table)
    return [dict(zip(head, row, strict=True)) for row in table[2:]]


def test_table_of_algorithms(tmp_path):
    parts = [rows(seed=seed, success=LINEAR, after=after) for seed, after in enumerate((1.0, 0.9, 0.899))]
    parts += [rows(algorithm="ppo", seed=s, success=level(0.85 if s else 0.1, 100)) for s in range(3)]
    parts += [rows(algorithm="grpo", seed=s, success=level(0.85 if s > 1 else 0.1, 100)) for s in range(3)]
    for seed, n in enumerate((4, 6)):  # points at 0; the moving mean is of 5
        parts.append(rows(algorithm="rloo", seed=seed, success=np.repeat([0.5, 0.0, 0.5], (9, n, 9))))
    parts.append(rows(algorithm="remax", success=LINEAR, measures_after=json.dumps({"balanced": 0.25})))
    text = tables.tables(Study([write(tmp_path / "a.parquet", *parts)]), "the command")
    sppo, ppo, grpo, rloo, remax = cells(text, "## Each algorithm")
    assert (sppo["task"], sppo["algorithm"], sppo["setting"], sppo["seeds"]) == ("PrecisionCartPole", "sppo", "-", "3")
    assert sppo["final success"] == "0.933 [0.899, 1.000]"
    assert sppo["solved"] == "2 of 3"
    assert (sppo["fell to 0"], rloo["fell to 0"]) == ("0 of 3", "1 of 2")
    assert sppo["area"] == "0.505 [0.505, 0.505]"
    assert sppo["to 0.8: episodes / steps / seconds"] == "400 / 0.080 M / 40.0 (3 of 3)"
    assert sppo["to 0.9: episodes / steps / seconds"] == "450 / 0.090 M / 45.0 (3 of 3)"
    assert sppo["seconds in all"] == "50.0"
    assert ppo["to 0.8: episodes / steps / seconds"] == "5 / 0.001 M / 0.5 (2 of 3)"
    assert ppo["to 0.9: episodes / steps / seconds"] == "never (0 of 3)"
    assert grpo["to 0.8: episodes / steps / seconds"] == "never (1 of 3)"
    assert (remax["final success"], remax["balanced"]) == ("1.000 (one seed)", "0.250 (one seed)")
    assert sppo["balanced"] == "-"
    assert "`the command`" in text
    assert "95 % bootstrap intervals of the interquartile mean" in text
    assert "4 runs" not in text
    assert "12 runs, seeds 0, 1, 2; starting policies fresh; commit abc; " in text.replace(", 1; ", ", 1, 2; ")


def test_table_against_sppo(tmp_path):
    def four(task, algorithm, centre, **more):
        spread = (-0.03, -0.01, 0.01, 0.03)
        return [rows(task, algorithm, seed=s, success=level(centre + d), **more) for s, d in enumerate(spread)]

    slow = {"setting": "learning-rate=1"}
    parts = [
        *four(POLE, "sppo", 0.8),
        *four(POLE, "ppo", 0.5),
        *four(POLE, "grpo", 0.8),
        *four(POLE, "sppo", 0.3, **slow),
    ]
    parts += [*four(POLE, "ppo", 0.5, **slow), *four(CAR, "sppo", 0.6), *four(CAR, "ppo", 0.7)]
    parts += [*four(CAR, "grpo", 0.6, budget=5000), rows(CAR, "remax", success=level(0.1))]
    parts += [rows(CAR, "ppo", seed=9, success=level(0.1))]  # SPPO has no seed 9: not in what is pooled over tasks
    text = tables.tables(Study([write(tmp_path / "a.parquet", *parts)]), "the command")
    main = {(row["task"], row["algorithm"]): row for row in cells(text, "## Against SPPO")}
    ppo, grpo = main["PrecisionCartPole", "ppo"], main["PrecisionCartPole", "grpo"]
    assert ppo["final success: difference"].startswith("-0.300 [-0.3")
    assert ppo["area: difference"].startswith("-0.300 [-0.3")
    # 2 of 70 ways; six tests: PPO and GRPO here, PPO there, two columns each; the second smallest is times 5 at least
    assert ppo["p (Holm)"] == ppo["p (Holm) 2"] == "0.0286 (0.1714)"
    assert grpo["p (Holm)"] == "1.0000 (1.0000)"
    assert main["SparseMountainCar", "remax"]["p (Holm)"] == "-"  # one seed
    assert "(one seed)" in main["SparseMountainCar", "remax"]["area: difference"]
    pooled = main["all 2 tasks", "ppo"]
    assert pooled["seeds: its, SPPO's"] == "8, 8"
    expected = difference(*([c + d for d in (-0.03, -0.01, 0.01, 0.03)] for c in (0.5, 0.7, 0.8, 0.6)))
    assert pooled["area: difference"].startswith(f"{expected:+.3f} [")
    assert "Not compared with SPPO, because their budgets of steps differ: SparseMountainCar grpo." in text
    assert ("all 2 tasks", "grpo") not in main
    rest = {(row["algorithm"], row["setting"]): row for row in cells(text, "Other settings")}
    assert rest["sppo", "learning-rate=1"]["SPPO's setting"] == "-"
    assert rest["sppo", "learning-rate=1"]["area: difference"].startswith("-0.500")
    assert rest["ppo", "learning-rate=1"]["SPPO's setting"] == "learning-rate=1"  # equal settings where SPPO has them
    assert rest["ppo", "learning-rate=1"]["area: difference"].startswith("+0.200")


def test_table_of_probes(study):
    text = tables.tables(study, "the command")
    rows = {(row["algorithm"], row["update"]): row for row in cells(text, "## Calibration")}
    assert rows["sppo", "10"]["Pearson"] == "0.100 [0.100, 0.100]"
    assert rows["sppo", "50"]["Pearson"] == "0.620 [0.610, 0.630]"
    assert rows["sppo-paper", "50"]["seeds"] == "3"
    rows = {(row["algorithm"], row["update"]): row for row in cells(text, "## Tail effect")}
    assert rows["ppo", "11 to 13"]["seeds"] == "3"  # the fourth had no failure
    assert rows["ppo", "91 to 93"]["at 0.75"] == "0.800 [0.800, 0.800]"


def test_tables_are_printed_and_written(inputs, tmp_path, capsys):
    report.main(report.Args((inputs[0],), tmp_path, ("tables",)))
    text = (tmp_path / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["tables.md"]


# ------------------------------------------------------------------------------------------------------ refusals
def refused(capsys, out, *words):
    """The error of a command that ends with status 2 and writes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report.py", *map(str, words), "--out", str(out)])
        with pytest.raises(SystemExit) as stopped:
            cli.main(report.main, report.Args, report.__doc__)
    assert stopped.value.code == 2
    assert not out.is_dir() or not list(out.iterdir())
    return capsys.readouterr().err


def broken(tmp_path, name, change):
    table = pd.DataFrame(rows(success=level(0.5, 3)))
    change(table).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path / f"{name}.parquet"


def test_refusals_of_results_files(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "text.parquet").write_text("no table")
    good = write(tmp_path / "good.parquet", rows())
    for words, message in {
        (tmp_path / "none.parquet",): "no results file",
        (tmp_path / "text.parquet",): "is damaged, or is not a Parquet file",
        (broken(tmp_path, "b", lambda t: t.drop(columns=["steps", "seed"])),): "no column seed, steps",
        (broken(tmp_path, "c", lambda t: t.assign(steps=np.nan)),): "missing or impossible values in steps",
        (
            broken(tmp_path, "d", lambda t: t.assign(success_rate="high")),
        ): "missing or impossible values in success_rate",
        (broken(tmp_path, "e", lambda t: t.assign(setting=None)),): "missing or impossible values in setting",
        (broken(tmp_path, "f", lambda t: t[:0]),): "has no runs",
        (good, write(tmp_path / "again.parquet", rows())): f"the run {POLE} sppo 1 is in {good} and in",
        (
            good,
            write(tmp_path / "o.parquet", rows(seed=2, starts="shipped")),
        ): "starting policies: fresh, shipped; choose",
        (good, "--starts", "shipped"): "no runs from the starting policies 'shipped'; there are fresh",
        (tmp_path / "table.csv",): "must end in .parquet or .json",
        (): "--results is empty",
        (good, "--figures", "fig3"): "--figures must be of fig1, fig2",
        (good, "--figures", "fig2", "fig8"): "fig8 needs runs of sppo and ppo on one task",
        (good, "--figures", "fig7", "fig1"): "fig7 needs calibration.json of scripts/probe.py",
    }.items():
        assert message in refused(capsys, out, *(["--results", *words] if words else [])), message
    hashed = [write(tmp_path / f"h{i}.parquet", rows(seed=i, start_sha256=h)) for i, h in enumerate("aba")]
    error = refused(capsys, out, "--results", good, *hashed)
    assert (
        f"runs of {POLE} from different starting policies, all named fresh; give their files in separate commands"
        in error
    )
    scratch = write(tmp_path / "scratch.parquet", rows(seed=5, start_sha256=""))
    assert len(read_runs([good, hashed[0], hashed[2], scratch])[0]) == 4
    report.main(report.Args((good, tmp_path / "o.parquet"), out, ("tables",), starts="fresh"))
    assert "1 runs" in (out / "tables.md").read_text()


def test_refusals_of_probe_files(tmp_path, capsys):
    without = {key: value for key, value in calibration("sppo", 1, 1, 0.5).items() if key != "ece"}
    for content, message in (
        ("{", "cannot read"),
        (json.dumps({"a": 1}), "neither runs (tail.json) nor rows (calibration.json, speed_llm_addition.json)"),
        (json.dumps({"rows": [without]}), "'ece' is missing"),
        (json.dumps({"rows": [calibration("sppo", 1, 1, 0.5, v0=[0.5])]}), "was not written by scripts/probe.py"),
        (json.dumps({"rows": [calibration("sppo", 3, 1, 0.5, v0=[0.5, 0.5, None])]}), "missing in sppo seed 3"),
        (json.dumps({"runs": [tail("ppo", 1, 1)]}), "'env_id' is missing"),
        (
            json.dumps({"rows": [{**learnt("x", 1, 2), "curve": [[1, 2]]}]}),
            "the curve of x seed 1 is not a list of three",
        ),
        (json.dumps({"rows": [{"curve": []}]}), "'variant' is missing"),
        (
            json.dumps({"env_id": POLE, "runs": [{**tail("ppo", 1, 1), "auc": [1.0]}]}),
            "was not written by scripts/probe",
        ),
    ):
        path = tmp_path / "probe.json"
        path.write_text(content)
        assert message in refused(capsys, tmp_path / "out", "--results", path), message


def test_out_that_cannot_be_written(tmp_path, capsys, inputs):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"cannot write --out {out}" in refused(capsys, out, "--results", inputs[0])


def test_nothing_is_left_of_a_report_that_fails(tmp_path, inputs, monkeypatch):
    old = tmp_path / "fig2.png"
    old.write_text("old")

    def fail(what, looks):
        raise RuntimeError("in the middle")

    monkeypatch.setitem(figures.FIGURES, "fig8", figures.FIGURES["fig8"]._replace(draw=fail))
    with pytest.raises(RuntimeError, match="in the middle"):
        report.main(report.Args((inputs[0],), tmp_path, ("fig2", "fig8")))
    assert [p.name for p in tmp_path.iterdir()] == ["fig2.png"]
    assert old.read_text() == "old"


def test_what_the_results_cannot_feed_is_named(tmp_path, capsys):
    report.main(report.Args((write(tmp_path / "a.parquet", rows(), rows(seed=2)),), tmp_path / "out"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"fig2.png", "fig2.svg", "tables.md"}
    said = capsys.readouterr().out
    for name in ("fig1", "fig4", "fig5", "fig6", "fig7", "fig8", "fig8_all", "critics"):
        assert f"left out {name}: it needs {figures.FIGURES[name].needs}" in said


def test_missing_packages_are_named():
    code = "import sys; sys.modules['matplotlib'] = None; sys.path.insert(0, 'scripts'); import report"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: matplotlib, which the study needs, is not installed; run: {extras.install('study')}\n"
    )
    code = "import sys; sys.modules['scipy'] = None; import sppo_control.study"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith(
        f"MissingExtra: scipy, which the study needs, is not installed; run: {extras.install('study')}\n"
    )
