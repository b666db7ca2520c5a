"""scripts/report_rates.py: which learning rate is chosen, what is said to be missing, what the table is made of."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

pytest.importorskip("sppo_control.study", exc_type=ImportError)  # the reason names the package
from test_report import CAR, POLE, cells, level, rows, write

import benchmark
import report_rates
from sppo_control import cli, extras
from sppo_control.study import rates
from sppo_control.study.statistics import estimate, holm, interval, iqm, p_value

ROOT = Path(__file__).resolve().parents[1]
RATES = {POLE: (1e-3, ("3e-4", "1e-3", "3e-3")), CAR: (3e-4, ("1e-4", "3e-4", "1e-3"))}
"""The default and what is tried."""
AREAS = {  # of each algorithm at these rates: what it has on the tuning seeds
    POLE: {"sppo": (0.2, 0.5, 0.4), "ppo": (0.3, 0.6, 0.7), "grpo": (0.9, 0.9, 0.9)},
    CAR: {"sppo": (0.5, 0.4, 0.3), "ppo": (0.7, 0.1, 0.7), "grpo": (0.1, 0.2, 0.8)},
}
CHOSEN = {
    (POLE, "sppo"): "learning-rate=1e-3", (POLE, "ppo"): "learning-rate=3e-3", (POLE, "grpo"): "learning-rate=1e-3",
    (CAR, "sppo"): "learning-rate=1e-4", (CAR, "ppo"): "learning-rate=1e-4", (CAR, "grpo"): "learning-rate=1e-3",
}  # fmt: skip
"""GRPO on the pole: equal everywhere, so the default. PPO on the car: its ends are equal, so the smaller."""


def runs_at(task, algorithm, rate, seed, success, named=True, **more):
    arguments = {"learning_rate": float(rate), **more.pop("arguments", {})}
    setting = f"learning-rate={rate}" if named else ""
    return rows(task, algorithm, setting, seed, success, arguments=arguments, **more)


def tuning_runs():
    """Three seeds whose mean is what AREAS says, though the seeds differ, as do their ends."""
    return [
        runs_at(task, algorithm, rate, seed, level(area + offset), after=1 - area)
        for task, algorithms in AREAS.items()
        for algorithm, areas in algorithms.items()
        for rate, area in zip(RATES[task][1], areas, strict=True)
        for seed, offset in ((201, -0.0625), (202, 0.0), (203, 0.0625))
    ]


def fresh(task, algorithm, seed):
    """Success along a fresh run, and after it."""
    generator = np.random.default_rng([len(task), len(algorithm), seed])
    return generator.uniform(0.3, 0.9, 20), generator.uniform(0.8, 1.0)


def fresh_runs(named):
    """Of the chosen rates: those of the file with the rates in their names, or those of the file without settings; in
    each some that must not be taken."""
    found = []
    for (task, algorithm), setting in CHOSEN.items():
        rate = setting.partition("=")[2]
        if (float(rate) != RATES[task][0]) == named:
            for seed in (11, 12, 13, 14):
                success, after = fresh(task, algorithm, seed)
                found.append(runs_at(task, algorithm, rate, seed, success, named, after=after))
    if named:
        found.append(runs_at(POLE, "sppo", "3e-3", 11, level(0.0)))  # not its rate
        found.append(runs_at(POLE, "sppo", "1e-3", 11, level(0.0)))  # its rate, but the study's runs are taken
    else:
        found.append(runs_at(CAR, "sppo", "3e-4", 11, level(0.0), named=False))  # the default, which it did not choose
        found.append(runs_at(POLE, "sppo", "5e-4", 99, level(0.0), named=False))  # of an older default, another seed
        found.append(rows(POLE, "sppo", "critic-recipe=paper", 11, level(0.0), arguments={"learning_rate": 1e-3}))
        found.append(rows(POLE, "sppo", "critic-recipe=paper,learning-rate=3e-3", 11, level(0.0)))
        found.append(rows("sppo/SparseHopper-v0", "sppo", "", 11, level(0.0), arguments={"learning_rate": 5.0}))
    return found


def write_all(folder, tuning=None, rates=None, study=None):
    """The three files, whole unless their runs are given, and arguments that name them."""
    write(folder / "tuning.parquet", *(tuning_runs() if tuning is None else tuning))
    write(folder / "rates.parquet", *(fresh_runs(True) if rates is None else rates))
    write(folder / "study.parquet", *(fresh_runs(False) if study is None else study))
    return make_args(folder)


def make_args(folder, **changes):
    files = {name: folder / f"{name}.parquet" for name in ("tuning", "rates", "study")}
    settings = {"what": "table", "starts": folder / "fresh", "env_ids": (POLE, CAR), "algorithms": ("sppo", "ppo", "grpo"),
                "seeds": (11, 12, 13, 14), "out": folder / "new" / "rates.md"}  # fmt: skip
    return report_rates.Args(**{**files, **settings, **changes})


def choose(args):
    return rates.choose(args, report_rates.default_rates(args))


def without(parts, *gone):
    """Without some runs: (task, algorithm, setting, seed)."""
    kept = [part for part in parts if tuple(part[0][k] for k in ("env_id", "algorithm", "setting", "seed")) not in gone]
    assert len(kept) == len(parts) - len(gone)
    return kept


# ------------------------------------------------------------------------------------------------------ choosing
def test_the_rate_with_the_highest_average_over_training_is_chosen(tmp_path):
    choices, lines = choose(write_all(tmp_path))
    assert {key: choice.setting for key, choice in choices.items()} == CHOSEN
    for (task, algorithm), choice in choices.items():
        assert list(choice.scores) == [f"learning-rate={rate}" for rate in RATES[task][1]]
        assert list(choice.scores.values()) == pytest.approx(AREAS[task][algorithm])
    assert lines[0].startswith(
        f"`{tmp_path / 'tuning.parquet'}`: 54 runs, seeds 201, 202, 203; starting policies fresh"
    )


def test_the_chosen_rates_and_what_is_still_to_run_are_printed(tmp_path, capsys):
    """Nothing of the other rates is there yet, and two seeds of one algorithm are missing in the study."""
    gone = [(POLE, "grpo", "", seed) for seed in (12, 14)]
    args = write_all(tmp_path, study=without(fresh_runs(False), *gone))
    args.rates.unlink()
    report_rates.main(make_args(tmp_path, what="choose"))
    said = capsys.readouterr().out
    table = {row["algorithm"]: row for row in cells(said, POLE)}
    assert table["ppo"] == {
        "algorithm": "ppo", "chosen": "learning-rate=3e-3", "3e-4": "0.300", "1e-3 (default)": "0.600", "3e-3": "**0.700**",
    }  # fmt: skip
    assert table["sppo"]["1e-3 (default)"] == "**0.500**"
    head, *commands = said[said.index("18 of 24") :].splitlines()
    assert head == "18 of 24 runs are still to be made:"
    read, grids = [], {}
    for line in commands:
        words = shlex.split(line)
        assert words[:2] == ["python", "scripts/benchmark.py"]
        (grid,) = tyro.cli(benchmark.Args, args=words[2:]).grids()
        read.append((*grid.env_ids, *grid.settings, grid.algorithms))
        grids[read[-1]] = grid
    assert read == [
        (POLE, "learning-rate=3e-3", ("ppo",)), (POLE, "", ("grpo",)),
        (CAR, "learning-rate=1e-4", ("sppo", "ppo")), (CAR, "learning-rate=1e-3", ("grpo",)),
    ]  # fmt: skip
    for (_, setting, _), grid in grids.items():
        assert (grid.starts, grid.seeds) == (args.starts, args.seeds)
        assert grid.out == (args.rates if setting else args.study)
    missing = grids[POLE, "", ("grpo",)]
    assert {job[0] for job in benchmark.jobs_of(missing)} == {
        benchmark.Cell(POLE, "grpo", "", seed, "fresh") for seed in args.seeds
    }, "it would not be the runs that are looked for"


def test_nothing_is_to_be_run_when_all_is_there(tmp_path, capsys):
    write_all(tmp_path)
    report_rates.main(make_args(tmp_path, what="choose"))
    said = capsys.readouterr().out
    assert said.endswith("All runs are there.\n")
    assert "benchmark.py" not in said
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------------- table
def test_the_table_compares_fresh_seeds_at_the_chosen_rates(tmp_path, capsys):
    args = write_all(tmp_path)
    report_rates.main(args)
    text = args.out.read_text()
    assert text in capsys.readouterr().out
    assert [p.name for p in args.out.parent.iterdir()] == ["rates.md"]
    expected, p = {}, {}
    for task, algorithm in CHOSEN:
        curves, after = zip(*(fresh(task, algorithm, seed) for seed in args.seeds), strict=True)
        expected[task, algorithm] = after, [curve.mean() for curve in curves]
    for task, algorithm in CHOSEN:
        if algorithm != "sppo":
            for k in (0, 1):
                p[task, algorithm, k] = p_value(expected[task, algorithm][k], expected[task, "sppo"][k])
    corrected = dict(zip(p, holm(p.values()), strict=True))
    for task, name in ((POLE, "## PrecisionCartPole"), (CAR, "## SparseMountainCar")):
        table = {row["algorithm"]: row for row in cells(text, name)}
        assert list(table) == ["sppo", "ppo", "grpo"]
        for algorithm, row in table.items():
            after, area = expected[task, algorithm]
            assert row["chosen rate"] == CHOSEN[task, algorithm].partition("=")[2]
            assert row["final success"] == estimate(iqm(after), interval(iqm, after))
            assert row["average over training"] == estimate(iqm(area), interval(iqm, area))
            assert row["solved"] == f"{sum(a >= 0.9 for a in after)} of 4"
            for k, column in enumerate(("p (Holm)", "p (Holm) 2")):
                key = task, algorithm, k
                assert row[column] == ("-" if algorithm == "sppo" else f"{p[key]:.4f} ({corrected[key]:.4f})")
            bold = [column for column, cell in row.items() if cell.startswith("**")]
            default = " (default)" * (float(row["chosen rate"]) == RATES[task][0])
            assert bold == [f"tuning: {row['chosen rate']}{default}"]
    assert len({row["solved"] for name in ("## Pre", "## Spa") for row in cells(text, name)}) > 1
    assert text.count("beyond it may be a better one") == 2
    assert "a better one: ppo." in text
    assert "a better one: sppo, ppo, grpo." in text
    assert "mean over seeds 201 to 203;" in text
    assert "seeds 11 to 14, which chose nothing" in text
    assert "20,000 environment steps per run." in text


def test_the_command_on_the_page_makes_it_again(tmp_path):
    args = write_all(tmp_path)
    report_rates.main(args)
    text = args.out.read_text()
    words = shlex.split(text[text.index("`") + 1 :].partition("`")[0])
    assert words[:2] == ["python", "scripts/report_rates.py"]
    args.out.unlink()
    report_rates.main(tyro.cli(report_rates.Args, args=words[2:]))
    assert args.out.read_text() == text
    assert report_rates.command(report_rates.Args(what="table")) == "python scripts/report_rates.py --what table"


def test_one_file_is_enough_where_it_has_all(tmp_path):
    """No other rate than the defaults was chosen: results/rates.parquet was never made."""
    write_all(tmp_path)
    (tmp_path / "rates.parquet").unlink()
    args = make_args(tmp_path, env_ids=(POLE,), algorithms=("sppo", "grpo"))
    report_rates.main(args)
    assert "| grpo | 1e-3 |" in args.out.read_text()


# ------------------------------------------------------------------------------------------------------ refusals
def refused(capsys, args):
    words = report_rates.command(args).split()[4:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report_rates.py", "--what", args.what, *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main(report_rates.main, report_rates.Args, report_rates.__doc__)
    assert stopped.value.code == 2
    assert not args.out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("what", ["choose", "table"])
def test_missing_runs_of_the_tuning_are_named(tmp_path, capsys, what):
    gone = [(POLE, "ppo", "learning-rate=3e-4", seed) for seed in (201, 203)]
    gone += [(CAR, "grpo", f"learning-rate={rate}", 202) for rate in RATES[CAR][1]]
    write_all(tmp_path, tuning=without(tuning_runs(), *gone))
    assert refused(capsys, make_args(tmp_path, what=what)) == (
        f"error: {tmp_path / 'tuning.parquet'} lacks 5 of 54 runs: {POLE} seeds 201, 203: ppo learning-rate=3e-4; {CAR} "
        "seeds 202: grpo learning-rate=1e-4, grpo learning-rate=3e-4, grpo learning-rate=1e-3\n"
    )


def test_missing_fresh_runs_are_named(tmp_path, capsys):
    gone = [(CAR, "sppo", "learning-rate=1e-4", 12), (CAR, "ppo", "learning-rate=1e-4", 12)]
    write_all(tmp_path, rates=without(fresh_runs(True), *gone))
    error = refused(capsys, make_args(tmp_path, seeds=(11, 12, 13, 14, 15)))
    assert "lack 8 of 30 runs: " in error
    assert f"{CAR} seeds 12, 15: sppo learning-rate=1e-4, ppo learning-rate=1e-4; " in error
    assert f"{POLE} seeds 15: sppo, ppo learning-rate=3e-3, grpo; " in error
    assert error.endswith("--what choose prints the commands that make them\n")


def test_files_that_do_not_fit(tmp_path, capsys):
    def tried(*rates):
        return [
            runs_at(CAR, a, r, s, level(0.5)) for a in ("sppo", "ppo", "grpo") for r in rates for s in (201, 202, 203)
        ]

    pole = [part for part in tuning_runs() if part[0]["env_id"] == POLE]
    for files, message in (
        ({"tuning": pole}, f"must have the default rate 0.0003 of {CAR} and another one, it has nothing"),
        ({"tuning": pole + tried("1e-4", "1e-3")}, "and another one, it has learning-rate=1e-4, learning-rate=1e-3"),
        ({"tuning": pole + tried("3e-4")}, f"of {CAR} and another one, it has learning-rate=3e-4"),
        ({"tuning": pole + tried("3e-4", "0.0003")}, f"one rate of {CAR} under two names: learning-rate="),
        (
            {"study": [*fresh_runs(False), runs_at(POLE, "ppo", "5e-4", 14, level(0.5), named=False)]},
            f"ppo {POLE} seed 14 without settings had the learning rate 0.0005, not 0.001; was the task's default changed?",
        ),
        (
            {"rates": [*fresh_runs(True), runs_at(CAR, "grpo", "3e-3", 14, level(0.5), budget=10_000)]},
            f"the runs of {CAR} have unequal --total-timesteps: 10000, 20000",
        ),
        ({"tuning": [rows(starts="shipped", success=level(0.5))]}, "no runs from the starting policies 'fresh'"),
    ):
        write_all(tmp_path, **files)
        assert message in refused(capsys, make_args(tmp_path)), message
    (tmp_path / "tuning.parquet").unlink()
    assert "no results file" in refused(capsys, make_args(tmp_path))


def test_out_that_cannot_be_written(tmp_path, capsys):
    args = write_all(tmp_path)
    (tmp_path / "new").write_text("a file")
    assert f"cannot write --out {args.out}: " in refused(capsys, args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": ("sppo", "sac")}, "--algorithms must be of sppo, .*, got sac"),
        ({"algorithms": ("ppo",)}, "--algorithms must contain sppo"),
        ({"seeds": (11, 11)}, r"--seeds must be different values, at least one, got \(11, 11\)"),
        ({"env_ids": ()}, r"--env-ids must be different values, at least one, got \(\)"),
        ({"seeds": (11, 202, 201)}, r"a rate looks too good on seeds that chose it, got \[201, 202\]"),
    ],
)
def test_impossible_arguments(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **changes)


def test_missing_packages_are_named():
    code = "import sys; sys.modules['pandas'] = None; sys.path.insert(0, 'scripts'); import report_rates"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"error: pandas, which the study needs, is not installed; run: {extras.install('study')}\n"
