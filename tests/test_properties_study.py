"""Properties of sppo_control/study: the right number, or a refusal that names the argument.

The references are loops. Where the code resamples, the reference draws the same random numbers.
"""

import itertools
import json
import math
import re
import statistics as plain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import Properties, refused
from scipy import stats

from sppo_control.errors import UserError
from sppo_control.study import credit, grids, rates, registered, results, statistics, tables, variants
from sppo_control.study.results import Arm, Study, StudyRun
from sppo_envs import credit as chains

PROPERTIES = Properties(
    results={
        "read_runs": "reads files; tests/test_report.py", "Study.read_json": "reads files; tests/test_report.py",
        "Arm": "a tuple", "read_table": "reads files; tests/test_tools_command_lines.py",
    },
    rates={"Choice": "a tuple"},
    grids={"read_toml": "reads files; test_grid_files and the tests of plans"},
    statistics={"Informative": "a tuple"},
    registered={"read_plan": "reads a file; below", "Comparison": "a record", "Plan": "a record"},
    variants={"Look": "a tuple", "Variant": "a tuple"},
    credit={"Sample": "values only", "wrong_values": "noise; tests/test_credit.py"},
)  # fmt: skip
of = PROPERTIES.of
FEW = settings(max_examples=max(20, settings.default.max_examples // 10))
"""For what resamples a hundred times and more in each case."""
SEED = st.integers(0, 2**32 - 1)
TASKS = ("sppo/Pole-v0", "sppo/Car-v0")


def test_every_public_function_has_a_property():
    PROPERTIES.check(statistics, results, tables, variants, rates, grids, registered, credit)


def sample(rng, n, ties=None):
    """n success rates, with ties or without."""
    ties = bool(rng.integers(2)) if ties is None else ties
    return (rng.integers(0, 5, n) / 4 if ties else rng.random(n)).tolist()


def study_run(rng, task="sppo/Pole-v0", algorithm="sppo", setting="", seed=1, budget=None, points=None):
    points = int(rng.integers(1, 12)) if points is None else points
    steps = np.cumsum(rng.integers(1, 50, points)).astype(float)
    budget = int(rng.choice([steps[-1], max(1, steps[-1] - 1)])) if budget is None else budget
    rate = rates.rate_of(setting)
    return StudyRun(
        task, algorithm, setting, seed, {"episodes": steps / 2, "steps": steps, "seconds": steps * 0.1},
        np.array(sample(rng, points)), float(rng.random()), float(rng.choice([0.9, rng.random()])), points, 300.0,
        {"total_timesteps": budget, "learning_rate": 1e-3 if math.isnan(rate) else rate, "critic_hidden": [16, 8],
         "critic_steps": int(rng.integers(0, 3)), "critic_window": int(rng.integers(1, 3)), "critic_learning_rate": 1e-3},
        {"balanced": 0.5} if rng.integers(2) else {},
    )  # fmt: skip


def iqm_by_hand(values):
    values = sorted(values)
    cut = len(values) // 4
    kept = values[cut : len(values) - cut]
    return sum(kept) / len(kept)


def interval_by_hand(statistic, *samples, resamples):
    rng = np.random.default_rng(0)
    rows = [[[s[i] for i in row] for row in rng.integers(0, len(s), (resamples, len(s)))] for s in samples]
    found = [statistic(*drawn) for drawn in zip(*rows, strict=True)]
    return np.percentile(found, 2.5), np.percentile(found, 97.5)


def p_by_hand(a, b):
    """Every way to split the ranks in two, with the mean rank for ties; two-sided."""
    both = [*a, *b]
    ranks = [sum(y < x for y in both) + (sum(y == x for y in both) + 1) / 2 for x in both]
    sums = [sum(rank) for rank in itertools.combinations(ranks, len(a))]
    mine = sum(ranks[: len(a)])
    tail = min(sum(s <= mine for s in sums), sum(s >= mine for s in sums))
    return min(1.0, 2 * tail / len(sums))


def holm_by_hand(p):
    tests = sorted((x, i) for i, x in enumerate(p) if not math.isnan(x))
    corrected, largest = [math.nan] * len(p), 0.0
    for k, (x, i) in enumerate(tests):
        largest = max(largest, x * (len(tests) - k))
        corrected[i] = min(1.0, largest)
    return corrected


def smoothed_by_hand(run, axis):
    y = run.success.tolist()
    means = [plain.fmean(y[max(0, i - 2) : i + 3]) for i in range(len(y))]
    return [0.0, *run.x[axis]], [run.before, *means]


def time_by_hand(run, axis, threshold):
    x, y = smoothed_by_hand(run, axis)
    for i in range(len(y)):
        if y[i] >= threshold:
            return 0.0 if i == 0 else x[i - 1] + (threshold - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1])
    return math.inf


def estimate_by_hand(middle, ends, sign=""):
    return f"{middle:{sign}.3f}" + (
        " (one seed)" if math.isnan(ends[0]) else f" [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"
    )


# ------------------------------------------------------------------------------------------------------ statistics
@of(statistics, "smoothed", "time_to")
@of(results, "StudyRun", "StudyRun.budget", "StudyRun.area")
@given(SEED, st.sampled_from(results.AXES), st.floats(0, 1))
def test_curves(seed, axis, threshold):
    run = study_run(np.random.default_rng(seed))
    x, y = statistics.smoothed(run, axis)
    expected_x, expected_y = smoothed_by_hand(run, axis)
    assert x.tolist() == expected_x
    np.testing.assert_allclose(y, expected_y, atol=1e-12)
    if all(abs(v - threshold) > 1e-9 for v in expected_y):
        assert statistics.time_to(run, axis, threshold) == pytest.approx(time_by_hand(run, axis, threshold))
    budget, area, before = run.arguments["total_timesteps"], 0.0, 0.0
    for end, success in zip(run.x["steps"], run.success, strict=True):
        area += success * (min(end, budget) - before)
        before = min(end, budget)
    assert run.budget == budget
    assert run.area == pytest.approx(area / budget)
    for bad in (-0.1, 1.1, math.nan):
        refused(lambda bad=bad: statistics.time_to(run, axis, bad), "threshold")


@of(statistics, "band")
@FEW
@given(SEED, st.integers(1, 3), st.sampled_from(results.AXES))
def test_band(seed, n, axis):
    rng = np.random.default_rng(seed)
    runs = [study_run(rng, points=3) for _ in range(n)]
    grid, middle, low, high = statistics.band(runs, axis)
    np.testing.assert_allclose(grid, [i / 80 * min(run.x[axis][-1] for run in runs) for i in range(81)], atol=1e-9)
    curves = [smoothed_by_hand(run, axis) for run in runs]
    at = [[np.interp(point, *curve) for curve in curves] for point in grid]
    np.testing.assert_allclose(middle, [iqm_by_hand(values) for values in at], atol=1e-9)
    if n == 1:
        assert np.isnan([low, high]).all()
    else:
        assert (np.min(at, axis=1) - 1e-9 <= low).all()
        assert (low <= high).all()
        assert (high <= np.max(at, axis=1) + 1e-9).all()
    refused(lambda: statistics.band([], axis), "runs")


@of(statistics, "iqm", "difference")
@given(SEED, st.integers(1, 9), st.integers(1, 9))
def test_interquartile_means(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = sample(rng, n), sample(rng, m)
    assert statistics.iqm(a) == pytest.approx(iqm_by_hand(a))
    assert statistics.iqm(a, b) == pytest.approx(iqm_by_hand([*a, *b]))
    assert statistics.difference(a, b) == pytest.approx(iqm_by_hand(a) - iqm_by_hand(b))
    assert statistics.difference(a, b, b, a) == pytest.approx(0, abs=1e-12)
    for bad in ((), ([],), ([], [])):
        refused(lambda bad=bad: statistics.iqm(*bad), "samples")
    for bad in ((a,), (a, b, a), (a, [])):
        refused(lambda bad=bad: statistics.difference(*bad), "samples")


@of(statistics, "interval")
@FEW
@given(SEED, st.integers(1, 6), st.integers(2, 6), st.integers(2, 60))
def test_interval(seed, n, m, resamples):
    rng = np.random.default_rng(seed)
    a, b = sample(rng, n), sample(rng, m)
    found = statistics.interval(statistics.iqm, a, resamples=resamples)
    expected = (math.nan,) * 2 if n == 1 else interval_by_hand(iqm_by_hand, a, resamples=resamples)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if n > 1:
        found = statistics.interval(statistics.difference, a, b, resamples=resamples)
        expected = interval_by_hand(lambda x, y: iqm_by_hand(x) - iqm_by_hand(y), a, b, resamples=resamples)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    refused(lambda: statistics.interval(statistics.iqm, a, resamples=1), "resamples")
    refused(lambda: statistics.interval(statistics.iqm), "samples")


@of(statistics, "p_value")
@given(SEED, st.integers(1, 5), st.integers(1, 5))
def test_p_value(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = sample(rng, n), sample(rng, m)
    expected = p_by_hand(a, b) if min(n, m) > 1 else math.nan
    assert statistics.p_value(a, b) == pytest.approx(expected, nan_ok=True)
    assert statistics.p_value(b, a) == pytest.approx(expected, nan_ok=True)
    refused(lambda: statistics.p_value([*a, math.nan], b), "a")
    refused(lambda: statistics.p_value(a, [math.nan, *b]), "b")


@of(statistics, "spearman_ceiling")
@FEW
@given(SEED, st.integers(1, 5), st.integers(1, 9), st.sampled_from([1.0, 0.05]))
def test_spearman_ceiling(seed, contexts, rollouts, size):
    rate = size * np.array(sample(np.random.default_rng(seed), contexts))
    rng, found = np.random.default_rng(0), []

    def ranks(x):
        return [sum(y < z for y in x) + (sum(y == z for y in x) + 1) / 2 for z in x]

    for _ in range(100):
        noise, measured = rng.random(contexts), rng.binomial(rollouts, rate).tolist()
        if max(measured) > min(measured):
            found.append(plain.correlation(ranks((rate + 1e-9 * noise).tolist()), ranks(measured)))
    expected = plain.fmean(found) if found and max(rate) > min(rate) else math.nan
    assert statistics.spearman_ceiling(rate, rollouts) == pytest.approx(expected, nan_ok=True, abs=1e-9)
    for bad in ([], [0.5, 1.5], [-0.1], [math.nan, 0.5]):
        refused(lambda bad=bad: statistics.spearman_ceiling(bad, rollouts), "rate")
    refused(lambda: statistics.spearman_ceiling(rate, 0), "rollouts")


@of(statistics, "informative")
@given(SEED, st.integers(2, 4), st.integers(2, 5))
def test_informative(seed, algorithms, seeds):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(algorithms, seeds)).tolist()
    found = statistics.informative(samples)
    means = [plain.fmean(x) for x in samples]
    assert found.spread == pytest.approx(max(means) - min(means))
    assert found.yes == (found.spread > 2 * found.half_width)
    moved = statistics.informative([[3 * y + 1 for y in x] for x in samples[::-1]])
    assert moved.ratio == pytest.approx(found.ratio), "neither units nor order matter"
    for bad in ([], [[0.5, math.nan]], [[0.5], []]):
        refused(lambda bad=bad: statistics.informative(bad), "samples")


@of(statistics, "holm")
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8))
def test_holm(p):
    assert statistics.holm(iter(p)).tolist() == pytest.approx(holm_by_hand(p), nan_ok=True)
    for bad in (-0.01, 1.01, math.inf):
        refused(lambda bad=bad: statistics.holm([*p, bad]), "p")


@of(statistics, "estimate", "summary")
@FEW
@given(SEED, st.integers(0, 6), st.integers(0, 3), st.sampled_from(["", "+"]))
def test_numbers_in_tables(seed, n, missing, sign):
    rng = np.random.default_rng(seed)
    values = sample(rng, n)
    ends = (values[0], values[-1]) if n > 1 else (math.nan,) * 2
    middle = iqm_by_hand(values) if n else 0.25
    assert statistics.estimate(middle, ends, sign) == estimate_by_hand(middle, ends, sign)
    given_values = [*values, *[None, math.nan, math.inf][:missing]]
    text = statistics.summary(rng.permutation(given_values).tolist())
    some = f" ({n} of {n + missing} seeds)" if missing else ""
    if n:
        middle, _, rest = text.partition(" ")
        assert float(middle) == pytest.approx(iqm_by_hand(values), abs=6e-4)
        assert rest.endswith(f"]{some}" if n > 1 else f"(one seed){some}")
    else:
        assert text == "undefined"


# --------------------------------------------------------------------------------------------------------- results
def study_of(seed, tasks=TASKS, algorithms=("sppo", "ppo", "mine"), settings=("", "critic-hidden=16 8")):
    """A study whose arms are there by chance, and have 1 to 4 runs."""
    rng = np.random.default_rng(seed)
    study = Study([])
    for task, algorithm, setting in itertools.product(tasks, algorithms, settings):
        if rng.integers(4):
            budget = int(rng.choice([40, 40, 40, 50]))
            seeds = rng.choice(6, int(rng.integers(1, 5)), replace=False).tolist()
            arm = [study_run(rng, task, algorithm, setting, s, budget) for s in seeds]
            study.arms[Arm(task, algorithm, setting)] = arm
    study.runs = [run for arm in study.arms.values() for run in arm]
    study.tasks = list(dict.fromkeys(task for task, _, _ in study.arms))
    return study


@of(results, "Study", "Study.main", "Study.with_algorithms", "Study.varied", "describe")
@given(SEED, st.integers(1, 3))
def test_arms_of_a_study(seed, least):
    study = study_of(seed, settings=("", "critic-steps=2", "critic-window=1,num-envs=8"))
    assert bool(study) == bool(study.runs)
    for task, algorithm in itertools.product(TASKS, ("sppo", "ppo", "mine", "none")):
        there = [s for t, a, s in study.arms if (t, a) == (task, algorithm)]
        often = {s: sum((t, z) == (task, s) for t, _, z in study.arms) for s in there}
        found = study.main(task, algorithm)
        if not there:
            assert found is None
        else:
            assert found in study.arms
            assert found[:2] == (task, algorithm)
            assert found.setting == "" or ("" not in there and often[found.setting] == max(often.values()))
    for task, arms in study.with_algorithms(("sppo", "ppo"), least).items():
        assert len(arms) >= least
        assert all(arm is study.arms[study.main(task, name)] for name, arm in arms.items())
    names = ("critic-steps", "critic-window")
    for task, by_algorithm in study.varied(names, ("sppo", "mine")).items():
        assert len({value for by_value in by_algorithm.values() for value in by_value}) > 1
        for algorithm, by_value in by_algorithm.items():
            assert algorithm in ("sppo", "mine")
            for value, arm in by_value.items():
                assert (arm[0].env_id, arm[0].algorithm) == (task, algorithm)
                assert results.describe(arm[0], names) == value
    for run in study.runs:
        assert results.describe(run, ("critic-hidden",)) == "16x8"
        steps, window = run.arguments["critic_steps"], run.arguments["critic_window"]
        words = "newest batch" if window == 1 else f"last {window} batches"
        expected = f"{steps} steps, {words}" if steps else "on the policy's minibatches (paper)"
        assert results.describe(run, names) == f"{expected}, rate 0.001"


@of(results, "stages", "separable", "span", "short")
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 5)), max_size=8, unique=True),
    st.booleans(),
)
def test_stages_and_spans(keys, last):
    entries = [{"algorithm": a, "seed": s, "update": u} for a, s, u in keys]
    by_run = {}
    for a, s, u in sorted(keys, key=lambda key: key[2]):
        by_run.setdefault((a, s), []).append(u)
    found = [sorted((e["algorithm"], e["seed"], e["update"]) for e in stage) for stage in results.stages(entries, last)]
    longest = max(map(len, by_run.values()), default=0)
    expected = [sorted((*run, u[i]) for run, u in by_run.items() if i < len(u)) for i in range(longest)]
    assert found == ([sorted((*run, u[-1]) for run, u in by_run.items())] * (longest > 0) if last else expected)
    for _, s, u in keys:
        groups = {"successes": {"episodes": s}, "failures": {"episodes": u}}
        assert results.separable(groups) == (s > 0 and u > 0)
    numbers = [u for *_, u in keys]
    if numbers:
        low, high = min(numbers), max(numbers)
        assert results.span(iter(numbers)) == (f"{low}" if low == high else f"{low} to {high}")
    else:
        refused(lambda: results.span(numbers), "numbers")
    assert [results.short(x) for x in ("sppo/Car-v0", "Car-v0", "a/b/Car-v1")] == ["Car", "Car", "Car-v1"]


# ---------------------------------------------------------------------------------------------------------- tables
def cells(table):
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines() if line.startswith("| ")][
        2:
    ]


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """The tables are of many intervals; the interval itself has a property above."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(statistics.interval.__kwdefaults__, "resamples", 20)
        yield


@of(tables, "speed", "table_of_arms", "table_of_pairs", "tables")
@FEW
@given(SEED)
def test_tables_of_arms_and_pairs(seed):
    study = study_of(seed, algorithms=("sppo", "ppo"))
    rows = cells(tables.table_of_arms(study))
    assert len(rows) == len(study.arms)
    for row, ((task, algorithm, setting), arm) in zip(rows, study.arms.items(), strict=True):
        after = [run.after for run in arm]
        assert row[:4] == [results.short(task), algorithm, setting or "-", str(len(arm))]
        assert float(row[4].split()[0]) == pytest.approx(iqm_by_hand(after), abs=6e-4)
        balanced = [run for run in arm if "balanced" in run.measures]
        assert row[5].startswith("0.500" if balanced else "-")
        assert float(row[6].split()[0]) == pytest.approx(iqm_by_hand([run.area for run in arm]), abs=6e-4)
        assert row[7] == f"{sum(x >= 0.9 for x in after)} of {len(arm)}"
        fell = sum(min(smoothed_by_hand(run, "steps")[1][1:]) == 0 for run in arm)
        assert row[8] == f"{fell} of {len(arm)}"
        for cell, threshold in ((row[9], 0.8), (row[10], 0.9)):
            times = [time_by_hand(run, "steps", threshold) for run in arm]
            assert cell == tables.speed(arm, threshold)
            reached = sum(map(math.isfinite, times))
            assert cell.endswith(f"({reached} of {len(arm)})")
            assert cell.startswith("never") == math.isinf(np.median(times))
            if not cell.startswith("never"):
                assert float(cell.split()[2]) == pytest.approx(np.median(times) / 1e6, abs=6e-4)
    for main in (True, False):
        text = tables.table_of_pairs(study, main)
        p, expected = [], []
        for (task, algorithm, setting), arm in study.arms.items():
            if algorithm == "sppo" and (setting == "" or not main):
                other = study.main(task, "sppo")
            else:
                other = (
                    Arm(task, "sppo", setting) if Arm(task, "sppo", setting) in study.arms else study.main(task, "sppo")
                )
            mine = Arm(task, algorithm, setting)
            if (study.main(task, algorithm) == mine) != main or other is None or other == mine:
                continue
            sppo = study.arms[other]
            if len({run.budget for run in [*arm, *sppo]}) > 1:
                assert results.short(task) in text.partition("because their budgets of steps differ: ")[2]
                continue
            pair = [([f(r) for r in arm], [f(r) for r in sppo]) for f in (lambda r: r.after, lambda r: r.area)]
            p += [p_by_hand(a, b) if min(len(a), len(b)) > 1 else math.nan for a, b in pair]
            expected.append((results.short(task), algorithm, [iqm_by_hand(a) - iqm_by_hand(b) for a, b in pair]))
        corrected, rows = holm_by_hand(p), cells(text)
        assert [row[:2] for row in rows[: len(expected)]] == [[task, algorithm] for task, algorithm, _ in expected]
        for i, (row, (*_, differences)) in enumerate(zip(rows, expected, strict=False)):
            for j, at in ((2 * i, 6), (2 * i + 1, 8)):
                assert float(row[at].split()[0]) == pytest.approx(differences[j % 2], abs=6e-4)
                assert row[at + 1] == ("-" if math.isnan(p[j]) else f"{p[j]:.4f} ({corrected[j]:.4f})")
        assert all(row[0] == f"all {len(study.tasks)} tasks" for row in rows[len(expected) :])
        assert text.startswith("| " if expected else "None.")
    whole = tables.tables(study, "make it")
    assert "Made by `make it`" in whole
    assert ("## Each algorithm" in whole) == bool(study.arms)


@of(tables, "table_of_probes")
@FEW
@given(SEED, st.integers(0, 3), st.integers(1, 3))
def test_table_of_probes(seed, runs, updates):
    rng, study = np.random.default_rng(seed), Study([])
    numbers = {}
    for s, u in itertools.product(range(runs), range(updates)):
        values = {name: float(rng.random()) for name in results.MEASURES}
        row = {
            "env_id": TASKS[0],
            "algorithm": "sppo",
            "seed": s,
            "update": 10 * u + s,
            "rate": [0.0, 1.0],
            "episodes": 4,
        }
        study.calibration.append({**row, "contexts": 2, **values})
        numbers.setdefault(u, []).append(values)
        group = {"episodes": int(rng.integers(2)), "progress": [0.0, 1.0]}
        tail = {
            "algorithm": "ppo",
            "seed": s,
            "update": u,
            "successes": group,
            "failures": {"episodes": 1},
            "auc": [0.0, 1.0],
        }
        study.tails.append((TASKS[1], [tail]))
    text = tables.table_of_probes(study)
    rows = [row for row in cells(text) if row[1] == "sppo"]
    assert len(rows) == len(numbers)
    for row, (u, values) in zip(rows, numbers.items(), strict=True):
        assert row[2:5] == [results.span(10 * u + s for s in range(runs)), str(runs), "2"]
        for cell, name in zip([row[5], row[6], *row[8:]], results.MEASURES, strict=True):
            assert float(cell.split()[0]) == pytest.approx(iqm_by_hand([v[name] for v in values]), abs=6e-4)
        assert float(row[7].split()[0]) == 1.0, "rates 0 and 1 are told apart by any number of rollouts"
    separable = sum(results.separable(found[0]) for _, found in study.tails)
    assert text.count("| Car | ppo |") == separable
    assert text.count("0.250 (one seed) | 0.500 (one seed) | 0.750 (one seed) | 0.900 (one seed) | 1.000") == separable


# -------------------------------------------------------------------------------------------------------- variants
WORDS = st.one_of(
    st.sampled_from(list(variants.VARIANTS)), st.text(max_size=6), st.sampled_from(["gone/mine.py", "x" * 300 + ".py"])
)


@of(variants, "find", "in_order", "looks", "Variant.look")
@given(st.lists(WORDS, max_size=4))
def test_variants(words):
    known = [word for word in words if word in variants.VARIANTS]
    if len(known) < len(words) or len(set(words)) < len(words):
        with pytest.raises(ValueError, match=r"^must (be|have|not)"):
            variants.find(words)
    else:
        assert variants.find(iter(words)) == [variants.VARIANTS[word] for word in words]
    table = list(variants.VARIANTS)
    expected = sorted(set(words), key=lambda w: (w not in table, table.index(w) if w in table else 0, w))
    assert variants.in_order(iter(words)) == expected
    looks = variants.looks(words)
    assert sorted(looks) == sorted(set(words))
    for word in known:
        v = variants.VARIANTS[word]
        assert looks[word] == v.look == (v.label, v.colour, v.line)
    own = [looks[word].colour for word in expected if word not in table]
    assert own == [variants.OWN_COLOURS[i % len(variants.OWN_COLOURS)] for i in range(len(own))]


@of(variants, "of_run")
@given(
    st.sampled_from(list(variants.VARIANTS.values())),
    st.dictionaries(st.sampled_from(["gamma", "seed"]), st.integers()),
)
def test_the_variant_of_a_run(variant, others):
    arguments = {
        **others,
        "critic_recipe": "window",
        "critic_loss": "mse",
        "skip_uniform_batches": False,
        "group_size": 8,
    }
    words = [*variant.flags]
    while words:
        name = words.pop(0)[2:].replace("-", "_")
        value = words.pop(0) if words and not words[0].startswith("--") else not name.startswith("no_")
        number = re.fullmatch(r"[0-9.]+", str(value))
        arguments[name.removeprefix("no_")] = float(value) if number else value
    assert variants.of_run(variant.script, arguments) == variant
    assert variants.of_run("mine.py", arguments) is None


# ----------------------------------------------------------------------------------------------------------- grids
SETTINGS = st.lists(st.tuples(st.sampled_from(["learning-rate", "critic_hidden", " num-envs "]),
                              st.sampled_from(["3e-4", "16 16", "8"])), max_size=3)  # fmt: skip


@of(grids, "flags_of", "key")
@given(SETTINGS)
def test_flags_of_a_setting(pairs):
    expected = []
    for name, value in pairs:
        expected += ["--" + name.strip().replace("_", "-"), *value.split()]
    assert grids.flags_of(",".join(f"{name}={value}" for name, value in pairs)) == expected
    assert grids.key("env_ids") == "env-ids"


GOOD = {
    "env_ids": ("a", "b"), "algorithms": ("sppo", "ppo"), "seeds": (1, 2), "settings": ("", "learning-rate=1e-3"),
    "starts": Path("s"), "eval_episodes": 4, "points": 7, "out": Path("x.parquet"), "work_dir": Path("w"),
}  # fmt: skip
BAD = {
    "env_ids": [(), ("a", "a")], "algorithms": [(), ("sppo", "sppo"), ("none",), ("x" * 300 + ".py",)],
    "seeds": [(), (1, 1)], "settings": [(), ("", ""), ("seed=1",), ("num-envs=8,env_id=a",)], "eval_episodes": [0, -5],
    "points": [0, -1], "out": [Path("x.csv"), Path("x"), Path("x" * 300)],
}  # fmt: skip


@of(grids, "Grid")
@given(st.fixed_dictionaries({}, optional={name: st.just(x) for name, x in GOOD.items() if name != "env_ids"}),
       st.sampled_from([(name, x) for name, many in BAD.items() for x in many]))  # fmt: skip
def test_grids(some, wrong):
    assert grids.Grid(**{**some, "env_ids": ("a",)}).env_ids == ("a",)
    name, value = wrong
    with pytest.raises(ValueError, match=f"^(--)?{grids.key(name)} must "):
        grids.Grid(**{"env_ids": ("a",), **some, name: value})


LEAF = st.one_of(st.integers(-2, 9), st.booleans(), st.sampled_from(["a", "sppo", "x.parquet", ""]), st.just(1.5))
VALUE = st.one_of(LEAF, st.lists(LEAF, max_size=2))


@of(grids, "read_grids")
@given(
    st.dictionaries(st.sampled_from([*map(grids.key, GOOD), "seed", "jobs"]), VALUE, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_grid_files(tmp_path_factory, changed, above, damaged):
    """Good values with some replaced: a list of grids, or a UserError that names the file and the key."""
    file = tmp_path_factory.getbasetemp() / "grids.toml"
    good = {
        grids.key(name): list(x) if isinstance(x, tuple) else str(x) if isinstance(x, Path) else x
        for name, x in GOOD.items()
    }
    kept = {name: x for name, x in good.items() if name not in changed}

    def lines(values):
        return "".join(f"{name} = {json.dumps(x)}\n" for name, x in values.items())

    text = (lines(changed) if above else "") + "[[grid]]\n" + lines(kept) + ("" if above else lines(changed))
    file.write_text(text[:-3] if damaged else text)
    refusal = ""
    try:
        (grid,) = grids.read_grids(file)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert str(file) in refusal
        assert damaged or any(name in refusal for name in changed)
        return
    for name, x in {**kept, **changed}.items():
        mine = getattr(grid, name.replace("-", "_"))
        assert damaged or (
            list(mine) if isinstance(x, list) else type(x)(mine) if isinstance(x, int) else str(mine)
        ) == (str(Path(x)) if isinstance(x, str) else x)


@of(grids, "change")
@given(st.fixed_dictionaries({}, optional={
    "env_ids": st.sampled_from([("a",), ("b", "a"), ("c",)]), "algorithms": st.sampled_from([("ppo",), ("sppo", "rloo")]),
    "seeds": st.just((7,)), "points": st.sampled_from([3, 0]),
}))  # fmt: skip
def test_changes_of_grids(given_values):
    both = [grids.Grid(**GOOD), grids.Grid(**{**GOOD, "env_ids": ("b",), "algorithms": ("grpo",)})]
    tasks, algorithms = given_values.get("env_ids"), given_values.get("algorithms")
    expected = []
    for grid in both:
        t = tuple(x for x in grid.env_ids if tasks is None or x in tasks)
        a = tuple(x for x in grid.algorithms if algorithms is None or x in algorithms)
        if t and a:
            expected.append((t, a, given_values.get("seeds", (1, 2)), given_values.get("points", 7)))
    wrong = {*(tasks or ())} - {x for t, *_ in expected for x in t}
    wrong |= {*(algorithms or ())} - {x for _, a, *_ in expected for x in a}
    if given_values.get("points") == 0 and expected:
        refused(lambda: grids.change(both, given_values), "points")
    elif wrong:
        refused(lambda: grids.change(both, given_values), *wrong)
    else:
        assert [(g.env_ids, g.algorithms, g.seeds, g.points) for g in grids.change(both, given_values)] == expected


# ----------------------------------------------------------------------------------------------------------- rates
RATES = ("learning-rate=1e-4", "learning-rate=1e-3", "learning_rate = 3e-3")


@of(rates, "rate_of", "Choice.rate")
@given(
    st.one_of(st.floats(1e-9, 1e3), st.text("-+.0123456789eE", max_size=5), st.text(max_size=5)),
    st.sampled_from([" = ", "="]),
)
def test_rate_of_a_setting(value, sign):
    found = rates.rate_of(f"learning-rate{sign}{value}")
    try:
        number = float(value if isinstance(value, float) else value.strip())
    except ValueError:
        number = math.nan
    assert found == number or math.isnan(found)
    assert isinstance(value, str) or found == value
    assert math.isnan(rates.rate_of(f"learning-rate=1e-3,seed{sign}{value}"))
    assert rates.Choice("learning-rate=1e-3", {}).rate == 1e-3


@of(rates, "Question", "Question.names")
@given(st.sampled_from([
    ("env_ids", ()), ("env_ids", ("a", "a")), ("algorithms", ("ppo",)), ("algorithms", ()), ("algorithms", ("sppo", "x")),
    ("algorithms", ("sppo", "sppo")), ("seeds", ()), ("seeds", (1, 1)), ("tuning_seeds", (11,)), ("seeds", (201,)),
]))  # fmt: skip
def test_questions(wrong):
    assert rates.Question().names == ["sppo", "ppo", "grpo", "rloo", "remax"]
    name, value = wrong
    refused(lambda: rates.Question(**{name: value}), "--" + name.replace("_", "-"))


@of(rates, "choose", "read", "lacking", "in_words", "listed", "compared", "commands")
@of(rates, "scores_of", "rates_of", "at_the_ends", "table")
@FEW
@given(SEED, st.booleans())
def test_choice_of_rates(seed, complete):
    rng = np.random.default_rng(seed)
    question = rates.Question(env_ids=TASKS, algorithms=("sppo", "ppo"), tuning_seeds=(1, 2), seeds=(3, 4, 6))
    default = {TASKS[0]: 1e-3, TASKS[1]: 1e-4}
    tuning = [study_run(rng, t, a, s, k, 40) for t, a, s, k in itertools.product(TASKS, ("sppo", "ppo"), RATES, (1, 2))]
    if not complete:
        tuning.pop(int(rng.integers(len(tuning))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "read_runs", lambda paths, starts: (tuning, ["a line"]))
        if not complete:
            refused(lambda: rates.choose(question, default), "lacks 1 of 24 runs", error=UserError)
            return
        choices, lines = rates.choose(question, default)
    assert lines == ["a line"]
    for (task, algorithm), choice in choices.items():
        scores = {
            s: plain.fmean(r.area for r in tuning if (r.env_id, r.algorithm, r.setting) == (task, algorithm, s))
            for s in RATES
        }
        assert choice.scores == pytest.approx(scores)
        assert choice.scores[choice.setting] == max(choice.scores.values())
        assert rates.scores_of(choice) == [
            f"{'**' * (s == choice.setting)}{x:.3f}{'**' * (s == choice.setting)}" for s, x in scores.items()
        ]
    assert rates.rates_of(TASKS[0], choices, default) == ["1e-4", "1e-3 (default)", "3e-3"]
    for task in TASKS:
        ends = [a for (t, a), c in choices.items() if t == task and c.setting != RATES[1]]
        assert rates.at_the_ends(task, choices).endswith(f"{', '.join(ends)}." if ends else "")
        assert bool(rates.at_the_ends(task, choices)) == bool(ends)
    arms = rates.compared(choices, default)
    for (task, algorithm), arm in arms.items():
        setting = choices[task, algorithm].setting
        assert arm == (task, algorithm, "" if rates.rate_of(setting) == default[task] else setting)

    found = {arm: {k: study_run(rng, *arm, k, 40) for k in question.seeds if rng.integers(3)} for arm in arms.values()}
    gaps = rates.lacking(arms.values(), found, question.seeds)
    for arm in arms.values():
        assert gaps.get(arm, []) == [k for k in question.seeds if k not in found[arm]]
    words = rates.in_words(gaps)
    assert all(f"{arm.env_id} seeds {rates.listed(missing)}" in words for arm, missing in gaps.items())
    made = rates.commands(gaps, question)
    assert len(made) == len({(arm.env_id, arm.setting) for arm in gaps})
    for arm in gaps:
        (line,) = [
            x for x in made if f" {arm.env_id} " in x and (arm.setting in x if arm.setting else "--settings" not in x)
        ]
        assert f" {arm.algorithm} " in line.partition("--algorithms")[2]
    for seeds in ([3, 4, 5], [3, 4, 6], [3, 4], [3], []):
        assert rates.listed(seeds) == ("3 to 5" if seeds == [3, 4, 5] else ", ".join(map(str, seeds)))

    found = {arm: {k: study_run(rng, *arm, k, 40) for k in question.seeds} for arm in arms.values()}
    text, p, corrected = rates.table(question, choices, found, default), [], []
    for task in TASKS:
        ppo, sppo = ([found[arms[task, a]][k] for k in question.seeds] for a in ("ppo", "sppo"))
        p += [p_by_hand([f(r) for r in ppo], [f(r) for r in sppo]) for f in (lambda r: r.after, lambda r: r.area)]
    corrected = holm_by_hand(p)
    rows = [row for row in cells(text) if row[0] == "ppo"]
    for i, row in enumerate(rows):
        assert row[6] == f"{p[2 * i]:.4f} ({corrected[2 * i]:.4f})"
        assert row[8] == f"{p[2 * i + 1]:.4f} ({corrected[2 * i + 1]:.4f})"
        after = [run.after for run in found[arms[TASKS[i], "ppo"]].values()]
        assert float(row[5].split()[0]) == pytest.approx(iqm_by_hand(after), abs=6e-4)
        assert row[9] == f"{sum(x >= 0.9 for x in after)} of 3"


# ---------------------------------------------------------------------------------------------- registered comparisons
PLAN = """
[sets]
one = ["sppo/Pole-v0 low"]
two = ["sppo/Pole-v0 low", "sppo/Car-v0 high"]
[[comparison]]
a = "ppo"
b = "sppo"
sets = ["one", "two"]
[[comparison]]
a = "sppo-norm"
b = "sppo"
sets = ["two"]
[[explored]]
a = "sppo-norm, clip-coef=0.1"
b = "ppo"
sets = ["two"]
"""


def plan_of(folder, text=PLAN):
    (folder / "plan.toml").write_text(text)
    return registered.read_plan(folder / "plan.toml")


@of(registered, "collapsed", "table_of_arms", "table_of_collapses", "table_of_comparisons", "short", "Plan.cells")
@FEW
@given(SEED)
def test_registered_comparisons(tmp_path_factory, seed):
    rng, plan = np.random.default_rng(seed), plan_of(tmp_path_factory.getbasetemp())
    cells_of_plan = [("sppo/Pole-v0", "low"), ("sppo/Car-v0", "high")]
    assert [*plan.cells] == cells_of_plan
    arms = {
        (*cell, algorithm): [study_run(rng, cell[0], algorithm, seed=i) for i in range(rng.integers(0, 5))]
        for cell in cells_of_plan for algorithm in ("ppo", "sppo", "sppo-norm, clip-coef=0.1")
    }  # fmt: skip
    bad = {
        key: [r for r in runs if r.after < max(smoothed_by_hand(r, "episodes")[1]) / 2] for key, runs in arms.items()
    }
    for key, runs in arms.items():
        assert [r for r in runs if registered.collapsed(r)] == bad[key]
    rows = cells(registered.table_of_arms(plan, arms))
    expected = [
        (cell, a) for cell in cells_of_plan for a in variants.in_order(["ppo", "sppo", "sppo-norm, clip-coef=0.1"])
    ]
    expected = [(*cell, a) for cell, a in expected if arms[*cell, a]]
    assert [(row[0], row[1]) for row in rows] == [(registered.short(task, start), a) for task, start, a in expected]
    for row, key in zip(rows, expected, strict=True):
        assert row[2] == str(len(arms[key]))
        assert float(row[4].split()[0]) == pytest.approx(iqm_by_hand([r.area for r in arms[key]]), abs=6e-4)
        assert float(row[5].split()[0]) == pytest.approx(iqm_by_hand([r.after for r in arms[key]]), abs=6e-4)
        assert row[6] == str(len(bad[key]))
    pairs = [("ppo", "sppo", cell) for cell in (cells_of_plan[0], *cells_of_plan)]
    pairs += [("sppo-norm", "sppo", cell) for cell in cells_of_plan]
    explored = [("sppo-norm, clip-coef=0.1", "ppo", cell) for cell in cells_of_plan]
    for comparisons, of_them in ((plan.comparisons, pairs), (plan.explored, explored)):  # each has a Holm of its own
        check_comparisons(cells(registered.table_of_comparisons(comparisons, plan, arms)), of_them, arms, bad)
    for comparisons, a, b in ((plan.comparisons, "ppo", "sppo"), (plan.explored, "sppo-norm, clip-coef=0.1", "ppo")):
        for row in cells(registered.table_of_collapses(comparisons, plan, arms)):
            assert row[1] == f"{a} - {b}"
            of_set = cells_of_plan[: 1 if row[2] == "one" else 2]
            counts = []
            for at, x in ((3, a), (4, b)):
                total, collapsed = (sum(len(of[*cell, x]) for cell in of_set) for of in (arms, bad))
                assert row[at] == f"{collapsed} of {total}"
                counts.append((collapsed, total - collapsed))
            assert row[5] == f"{stats.fisher_exact(counts).pvalue:.4f}"


def check_comparisons(rows, pairs, arms, bad):
    p = []
    assert [(row[1], row[2]) for row in rows] == [(f"{a} - {b}", registered.short(*cell)) for a, b, cell in pairs]
    for row, (a, b, cell) in zip(rows, pairs, strict=True):
        sides = [arms.get((*cell, x), []) for x in (a, b)]
        assert row[3] == f"{len(sides[0])}, {len(sides[1])}"
        areas = [[r.area for r in side] for side in sides]
        p.append(p_by_hand(*areas) if min(map(len, sides)) > 1 else math.nan)
        assert (row[4] == "not run") == (not all(sides))
        if all(sides):
            assert float(row[4].split()[0]) == pytest.approx(iqm_by_hand(areas[0]) - iqm_by_hand(areas[1]), abs=6e-4)
            assert row[5] == ", ".join(str(len(bad[*cell, x])) for x in (a, b))
    for row, raw, corrected in zip(rows, p, holm_by_hand(p), strict=True):
        assert row[6] == ("-" if math.isnan(raw) else f"{raw:.4f} ({corrected:.4f})")


@of(registered, "table_of_agreement")
@pytest.mark.parametrize(
    ("here", "verdict"),
    [
        ([0.5, 0.5], "yes"), ([0.5], "yes"), ([0.3, 0.8], "yes"), ([0.4, 0.4], "yes"),
        ([0.55, 0.95], "overlap"), ([0.05, 0.45], "overlap"),
        ([0.9, 0.9], "no"), ([0.1, 0.1], "no"), ([0.9], "no"), ([0.1], "no"), ([0.61, 0.99], "no"), ([0.01, 0.39], "no"),
    ],
)  # fmt: skip
def test_agreement_asks_whether_a_difference_lies_in_the_interval_of_other_runs(tmp_path, here, verdict):
    """The other runs' interval is [0.4, 0.6], because one side is 0.4 and 0.6 and the other 0."""

    def runs(areas):
        x, arguments = {"steps": np.ones(1)}, {"total_timesteps": 1}
        return [
            StudyRun("sppo/Pole-v0", "", "", i, x, np.array([area]), 0.0, 0.0, 1, 0.0, arguments, {})
            for i, area in enumerate(areas)
        ]

    plan, cell = plan_of(tmp_path), ("sppo/Pole-v0", "low")
    others = {(*cell, "ppo"): runs([0.4, 0.6, 0.4, 0.6]), (*cell, "sppo"): runs([0.0, 0.0])}
    arms = {(*cell, "ppo"): runs(here), (*cell, "sppo"): runs([0.0] * len(here))}
    sentence, _, table = registered.table_of_agreement(plan, arms, others).partition("\n\n")
    counts = [2 * (verdict == v) for v in ("yes", "overlap", "no")]
    assert [int(x) for x in re.findall(r"\d+", sentence)] == [2, *counts]
    rows = cells(table)
    assert [row[2] for row in rows] == ["Pole (low)"] * 2  # the plan has this task twice, and no runs of others
    for row in rows:
        assert (row[1], row[3], row[5], row[7]) == ("ppo - sppo", f"{len(here)}, {len(here)}", "4, 2", verdict)
        assert float(row[4].split()[0]) == pytest.approx(sum(here) / len(here), abs=6e-4)
        assert row[6] == "+0.500 [+0.400, +0.600]"
    for missing in ({**others, (*cell, "sppo"): runs([0.0])}, {(*cell, "ppo"): runs([0.4, 0.6])}, {}):
        with pytest.raises(UserError, match="two seeds of both there"):
            registered.table_of_agreement(plan, arms, missing)
    with pytest.raises(UserError, match="two seeds of both there"):
        registered.table_of_agreement(plan, {(*cell, "ppo"): runs(here)}, others)


@of(registered, "table_of_ablation")
@FEW
@given(SEED)
def test_the_ablation_counts_runs_by_what_their_arguments_say(seed):
    rng, cell = np.random.default_rng(seed), ("sppo/Car-v0", "low")
    arms, counts = {}, {}
    for name in ("ppo", "sppo, adam-eps=1", "ppo-norm", "ppo-standard", "reinforce", "sppo-skip"):
        for where in (cell, ("sppo/Car-v0", "high")):
            runs = [study_run(rng, where[0], name.partition(", ")[0], seed=i) for i in range(rng.integers(1, 4))]
            for run in runs:
                run.arguments.update(norm_adv=rng.choice(["none", "minibatch"]), adam_eps=rng.choice([1e-5, 1.0]))
                run.arguments["skip_uniform_batches"] = bool(rng.integers(2))
                if where == cell and name not in ("ppo-standard", "reinforce"):
                    a = run.arguments
                    kind = (name.partition(",")[0].partition("-")[0], "no" if a["norm_adv"] == "none" else "yes",
                            "momentum" if a["adam_eps"] == 1 else "Adam", a["skip_uniform_batches"])  # fmt: skip
                    counts.setdefault(kind, []).append(run.after < 0.5)
            arms[*where, name] = runs
    for row in cells(registered.table_of_ablation(arms, *cell)):
        for skip, text in zip((False, True), row[3:], strict=True):
            runs = counts.pop((*row[:3], skip), [])
            assert text == f"{sum(runs)} of {len(runs)}"
    assert not counts


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[sets]", "[set]", "[sets]"), ('one = ["sppo/Pole-v0 low"]', 'one = ["sppo/Pole-v0"]', "one"),
        ('one = ["sppo/Pole-v0 low"]', "one = []", "one"), ('a = "ppo"', 'a = "dqn"', "comparison 1: a"),
        ('sets = ["two"]', 'sets = ["three"]', "three"), ('b = "sppo"', "", "comparison 1"), ("[sets]", "[sets", "TOML"),
        ('b = "ppo"', 'b = "ppo clip-coef=0.1"', "explored 1: b"), ('b = "ppo"', "b = 1", "explored 1: b"),
        ("[sets]", "title = 1\n[sets]", "title"),
        ("[[explored]]", "[explored]", "[[explored]]"), ("[[explored]]", "[[tried]]", "[[explored]]"),
        (PLAN[PLAN.index("[[comparison]]") :], "", "[[comparison]]"),
    ],
)  # fmt: skip
def test_a_plan_with_a_mistake_is_refused(old, new, named, tmp_path):
    assert len(plan_of(tmp_path).comparisons) == 2
    with pytest.raises(UserError, match=re.escape(named)):
        plan_of(tmp_path, PLAN.replace(old, new))
    with pytest.raises(UserError, match="cannot read"):
        registered.read_plan(tmp_path / "absent.toml")


# ------------------------------------------------------------------------------------------------ chains of credit.py
def drawn_chain(seed):
    """A chain, a policy, a critic of states and one of contexts, and a generator."""
    rng = np.random.default_rng(seed)
    deciding = str(rng.choice(["early", "even", "late", "all", "hidden"]))
    decisions = int(rng.integers(1, 6))
    horizon = int(rng.integers(decisions, 25))
    gain, offset, spread = rng.uniform(-8, 8), rng.uniform(-4, 4), rng.choice([0.0, rng.uniform(0, 3)])
    chain = chains.Chain(horizon, deciding, decisions, gain, offset, float(spread), int(rng.integers(1, 6)))
    right = rng.uniform(0.05, 0.95, horizon)
    states = rng.standard_normal((horizon, chain.contexts, len(chain.steps) + 1))
    return chain, right, states, rng.standard_normal(chain.contexts), rng


@of(credit, "uniform_policy", "segment_values", "exact_values", "occupancy", "resolved_variance", "true_gradient")
@given(SEED)
def test_values_are_martingales_and_what_they_resolve_is_part_of_the_variance(seed):
    chain, right, _, _, rng = drawn_chain(seed)
    U, weight = credit.segment_values(chain, right), credit.occupancy(chain, right)
    np.testing.assert_allclose(weight.sum(1), 1)
    value = credit.exact_values(chain, right)
    assert ((value >= 0) & (value <= 1)).all()
    for t in range(chain.horizon):
        np.testing.assert_allclose(value[t] @ weight[t], U[0][:, 0], rtol=1e-9)
    variance = (U[0][:, 0] * (1 - U[0][:, 0])).mean()
    assert 0 <= credit.resolved_variance(chain, right) <= variance + 1e-12
    gamma = rng.uniform(0.5, 1)
    np.testing.assert_allclose(credit.exact_values(chain, right, gamma)[0], value[0] * gamma ** (chain.horizon - 1))
    g = credit.true_gradient(chain, right)
    assert (g[~chain.mark] == 0).all()
    assert (g[chain.mark] * np.sign(chain.gain) >= -1e-15).all()
    half = credit.uniform_policy(chain)
    assert half.tolist() == [0.5] * chain.horizon
    refused(lambda: credit.uniform_policy(chain, rng.choice([0.0, 1.0, -1.0, math.nan])), "right")


@of(credit, "Gradient", "Gradient.share_of_gain", "Gradient.noise_scale", "Gradient.bias", "Gradient.signal")
@of(credit, "Gradient.cosine", "context_gradient", "greedy_gradient", "group_gradient", "state_gradient")
@given(SEED)
def test_baselines_never_bias_and_the_exact_critic_has_the_least_noise(seed):
    chain, right, states, contexts, rng = drawn_chain(seed)
    g = credit.true_gradient(chain, right)
    size, batch = int(rng.integers(2, 7)), int(rng.integers(1, 100))
    unbiased = [
        credit.context_gradient(chain, right, contexts), credit.greedy_gradient(chain, right),
        credit.state_gradient(chain, right, states), credit.state_gradient(chain, right, states, noise=rng.uniform(0, 2)),
        credit.group_gradient(chain, right, size, False), credit.group_gradient(chain, right, size, False, False),
    ]  # fmt: skip
    biased = [
        credit.group_gradient(chain, right, size, True),
        credit.state_gradient(chain, right, states, rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 1)),
    ]
    for gradient in unbiased + biased:
        assert (gradient.variance > -1e-12).all()
        assert gradient.floor >= 0
        assert -1 - 1e-9 <= gradient.cosine(g) <= 1 + 1e-9
        share = gradient.share_of_gain(g, batch)
        assert 0 <= share <= 1 + 1e-9
        assert gradient.share_of_gain(g, 2 * batch) >= share * (1 - 1e-9)
    for gradient in unbiased:
        np.testing.assert_allclose(gradient.mean, g, atol=1e-12)
        assert gradient.bias(g) < 1e-6
        assert gradient.signal(g) == pytest.approx(1, abs=1e-6)
        noise = gradient.noise_scale(g)
        assert gradient.share_of_gain(g, batch) == pytest.approx(
            batch / (batch + noise + batch * gradient.floor / (g @ g))
        )
    half = credit.uniform_policy(chain)  # where the squared score is a constant, and only the critic's error counts
    exact = credit.state_gradient(chain, half, credit.exact_values(chain, half)).variance.sum()
    for other in (states, rng.random(states.shape)):
        assert exact <= credit.state_gradient(chain, half, other).variance.sum() + 1e-12
    v0 = credit.segment_values(chain, half)[0][:, 0]
    assert exact <= credit.context_gradient(chain, half, v0).variance.sum() + 1e-12
    refused(lambda: credit.state_gradient(chain, right, states[..., None]), "value")
    refused(lambda: credit.group_gradient(chain, right, 1, True), "size")


@of(credit, "sample", "sampled_advantage", "estimates", "measured_gradient", "measured_share", "measured_noise")
@given(SEED)
def test_samples_are_episodes_of_the_chain_and_moments_are_those_of_numpy(seed):
    chain, right, states, _, rng = drawn_chain(seed)
    group = int(rng.integers(2, 5))
    episodes = credit.sample(chain, right, 8 * group, rng, group)
    assert (episodes.context.reshape(-1, group) == episodes.context[::group, None]).all()
    decisions = episodes.actions * chain.mark
    np.testing.assert_array_equal(episodes.n, decisions.cumsum(1) - decisions)
    assert set(episodes.outcome.tolist()) <= {0.0, 1.0}
    A = credit.sampled_advantage("ppo", episodes, states)
    expected = episodes.outcome[:, None] - states[np.arange(chain.horizon), episodes.context[:, None], episodes.n]
    np.testing.assert_allclose(A, expected, atol=1e-9)
    each = credit.estimates(right, episodes, A)
    np.testing.assert_allclose(each, A * (episodes.actions - right))
    np.testing.assert_allclose(credit.estimates(right, episodes, A, group), each.reshape(8, group, -1).mean(1))
    found = credit.measured_gradient(each, 3)
    np.testing.assert_allclose(found.mean, each.mean(0))
    np.testing.assert_allclose(found.variance, 3 * each.var(0, ddof=1))
    g = rng.uniform(1, 2, chain.horizon)
    noise, error = credit.measured_noise(each, g, 3)
    assert noise == pytest.approx(found.noise_scale(g))
    assert error >= 0
    share, error = credit.measured_share(each, g, batch=5, episodes=3)
    length = found.mean @ found.mean - found.variance.sum() / 3 / len(each)
    assert share == pytest.approx((found.mean @ g) ** 2 / (g @ g) / (length + found.variance.sum() / 5))
    assert error >= 0
    refused(lambda: credit.sampled_advantage("sppo", episodes), "value")


@of(tables, "table_of_tasks")
@FEW
@given(SEED)
def test_table_of_tasks(seed):
    study = study_of(seed, algorithms=("sppo", "ppo"))
    rows = cells(tables.table_of_tasks(study, "low"))
    assert {row[0] for row in rows} <= {results.short(task) for task in study.tasks}
    for row in rows:
        task = next(t for t in study.tasks if results.short(t) == row[0])
        mains = [study.main(task, algorithm) for algorithm in ("sppo", "ppo")]
        areas = [[run.area for run in study.arms[main]] for main in mains if main is not None]
        found = statistics.informative(areas)
        assert row[1:3] == ["low", str(len(areas))]
        assert row[4:7] == [f"{x:.3f}" if math.isfinite(x) else "-" for x in found[:3]]
        assert row[7] == ("yes" if found.yes else "no")


@of(tables, "table_of_settings")
@FEW
@given(SEED)
def test_table_of_settings(seed):
    study = study_of(seed, settings=("", "critic-steps=2", "critic-window=1,num-envs=8"))
    rows = cells(tables.table_of_settings(study, "low"))
    assert len(rows) == len(study.arms)
    for row, (arm, runs) in zip(rows, study.arms.items(), strict=True):
        means = {a: sum(run.area for run in r) / len(r) for a, r in study.arms.items() if a[:2] == arm[:2]}
        assert row[:4] == [results.short(arm.env_id), "low", arm.algorithm, arm.setting or "-"]
        assert [int(s) for s in row[4].split(", ")] == sorted(run.seed for run in runs)
        assert float(row[5].strip("*")) == pytest.approx(means[arm], abs=6e-4)
        others = [mean for other, mean in means.items() if other != arm]
        if others and abs(means[arm] - max(others)) > 1e-9:
            assert row[5].startswith("**") == (means[arm] > max(others))
        elif not others:
            assert "*" not in row[5]


@of(results, "check_seeds")
@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_seeds_that_are_not_there_are_named(seeds, there):
    missing = [seed for seed in seeds if seed not in there]
    if not missing:
        results.check_seeds(seeds, iter(there))
        return
    with pytest.raises(UserError) as caught:
        results.check_seeds(seeds, iter(there))
    before, _, after = str(caught.value).partition(": no such runs; there are ")
    assert before == f"--seeds {' '.join(map(str, missing))}"
    assert after == (", ".join(map(str, sorted(set(there)))) or "none")
