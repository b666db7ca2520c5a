"""Grid files: what each refusal names, what flags change, the project's own files; a training script from elsewhere, from a
grid file to a figure."""

import dataclasses
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("sppo_control.study", exc_type=ImportError)  # the reason names the package
import matplotlib.pyplot as plt
import pandas as pd

import benchmark
import ppo_cartpole
import report
from sppo_control import cli, errors
from sppo_control.study import variants
from sppo_control.study.figures import FIGURES
from sppo_control.study.grids import Grid, change, read_grids
from sppo_control.study.results import JSON_COLUMNS, NUMBERS, Study

ROOT = Path(__file__).resolve().parents[1]
POLE, CAR = "sppo/PrecisionCartPole-v0", "sppo/SparseMountainCar-v0"
GOOD = f"""
starts = "fresh"
out = "all.parquet"
eval-episodes = 4

[[grid]]  # takes over all of the above
work-dir = "a"
env-ids = ["{POLE}", "{CAR}"]
algorithms = ["sppo", "ppo"]
seeds = [1, 2]

[[grid]]
out = "rates.parquet"
work-dir = "b"
env-ids = ["{CAR}"]
algorithms = ["grpo"]
seeds = [3]
settings = ["learning-rate=1e-4", "learning-rate=1e-3"]
eval-episodes = 5
points = 7
"""


def write(folder, text):
    (folder / "grids.toml").write_text(text)
    return folder / "grids.toml"


def refused(words, capsys):
    """The error of the command, which must end before anything is run or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmark.py", *map(str, words)])
        patch.setattr(benchmark, "results_of", lambda *_: pytest.fail("a run began"))
        with pytest.raises(SystemExit) as stop:
            cli.main(benchmark.main, benchmark.Args, benchmark.__doc__)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


# ----------------------------------------------------------------------------------------------------- what is read
def test_what_is_above_the_grids_holds_for_each_that_does_not_say_otherwise(tmp_path):
    first, second = read_grids(write(tmp_path, GOOD))
    same = {"starts": Path("fresh")}
    assert first == Grid(
        (POLE, CAR), ("sppo", "ppo"), (1, 2), ("",), **same, eval_episodes=4, points=100, out=Path("all.parquet"),
        work_dir=Path("a"),
    )  # fmt: skip
    assert second == Grid(
        (CAR,), ("grpo",), (3,), ("learning-rate=1e-4", "learning-rate=1e-3"), **same, eval_episodes=5, points=7,
        out=Path("rates.parquet"), work_dir=Path("b"),
    )  # fmt: skip


@pytest.mark.parametrize("file", sorted((ROOT / "results" / "grids").glob("*.toml")), ids=lambda file: file.name)
def test_the_projects_grids_can_be_read_and_share_no_folder(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    grids = benchmark.Args(grid=file.relative_to(ROOT)).grids()
    jobs = [job for of_file in benchmark.all_jobs(grids).values() for job in of_file]
    assert len(jobs) == sum(len(list(benchmark.jobs_of(grid))) for grid in grids), "two grids of the file have a cell"
    assert len({job.folder for job in jobs}) == len(jobs)
    assert len(jobs) == {"study.toml": 1009, "small.toml": 18, "probes.toml": 56, "credit.toml": 48, "second.toml": 1130,
        "second_tuning.toml": 366, "second_why.toml": 248, "second_rates.toml": 100, "second_rates_tuning.toml": 162,
        "critic_second.toml": 60, "critic_second_tuning.toml": 33}[file.name]  # fmt: skip


def test_nothing_of_the_study_is_left_to_run(monkeypatch, capsys):
    """What results/ contains is what the grid file asks for."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "results_of", lambda jobs, _: pytest.fail(f"{jobs[0].cell}") if jobs else [])
    benchmark.main(benchmark.Args(grid=Path("results/grids/study.toml")))
    assert re.findall(r"(\d+) runs added", capsys.readouterr().out) == ["0"] * 5


# -------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [3]", "seed = [3]", "grid 2: unknown key seed; there are env-ids, algorithms, seeds,"),
        ("eval-episodes = 4", "jobs = 4", "above the first grid: unknown key jobs"),
        ("seeds = [3]", "", "grid 2: seeds must be given, here or above the first grid"),
        ('work-dir = "a"', "", "grid 1: work-dir must be given"),
        ("seeds = [3]", "seeds = 3", "grid 2: seeds must be a list of whole numbers, got 3"),
        ("seeds = [3]", 'seeds = ["3"]', "grid 2: seeds must be a list of whole numbers, got ['3']"),
        ("seeds = [3]", "seeds = [true]", "grid 2: seeds must be a list of whole numbers, got [True]"),
        ("points = 7", "points = 7.0", "grid 2: points must be a whole number, got 7.0"),
        ("points = 7", "points = 0", "grid 2: --points must be from 1 to 2^31 - 1, got 0"),
        ('work-dir = "a"', 'work-dir = ["a"]', "grid 1: work-dir must be a text, got ['a']"),
        ('"grpo"]', '"sac"]', "grid 2: algorithms must be of sppo, sppo-paper,"),
        ('"grpo"]', '"gone/mine.py"]', "grid 2: algorithms must be names or existing scripts, and there is no file"),
        (f'["{CAR}"]', '["sppo/Car-v0"]', "grid 2: env-ids must be known environments, got sppo/Car-v0; there are sppo/"),
        ("seeds = [3]", "seeds = [3, 3]", "grid 2: seeds must be different values, at least one, got (3, 3)"),
        ('"learning-rate=1e-3"]', '"seed=3"]', "grid 2: settings must leave --seed to the grid, that is to --seeds"),
        ("rates.parquet", "rates.csv", "grid 2: out must be a file whose name ends in .parquet, got rates.csv"),
    ],
)  # fmt: skip
def test_a_refusal_names_file_grid_and_key(tmp_path, monkeypatch, capsys, old, new, message):
    monkeypatch.chdir(tmp_path)
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    assert f"error: {file}, {message}" in refused(["--grid", file], capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["grids.toml"]


def test_files_that_are_no_grid_files(tmp_path, capsys):
    assert "cannot read the grid file" in refused(["--grid", tmp_path / "none.toml"], capsys)
    assert "is not a TOML file: " in refused(["--grid", write(tmp_path, "[[grid]")], capsys)
    for text in ("seeds = [1]", "grid = 3", "[grid]\nseeds = [1]"):
        assert "grids.toml has no grid: each one begins with a line [[grid]]" in refused(
            ["--grid", write(tmp_path, text)], capsys
        )


def test_results_of_any_grid_that_were_made_otherwise_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    """The first grid is new, the second one's file has a cell with another number of episodes."""
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, GOOD)
    cell = benchmark.all_jobs(read_grids(file))[Path("rates.parquet")][0].cell
    row = {**dataclasses.asdict(cell), **dict.fromkeys(NUMBERS, 1), "eval_episodes": 9, "commit": ""}
    row |= dict.fromkeys(JSON_COLUMNS, "{}")
    pd.DataFrame([row]).to_parquet("rates.parquet")
    assert "--out rates.parquet was made with other values: --eval-episodes 9, not 5 (1 cells" in refused(
        ["--grid", file], capsys
    )
    assert {p.name for p in tmp_path.iterdir()} == {"grids.toml", "rates.parquet"}


# ------------------------------------------------------------------------------------------------ flags beside a file
def changed(folder, **given):
    return [(g.env_ids, g.algorithms, g.seeds) for g in benchmark.Args(grid=write(folder, GOOD), **given).grids()]


def test_flags_choose_among_tasks_and_algorithms_and_replace_the_rest(tmp_path):
    assert changed(tmp_path) == [((POLE, CAR), ("sppo", "ppo"), (1, 2)), ((CAR,), ("grpo",), (3,))]
    assert changed(tmp_path, env_ids=(POLE,)) == [((POLE,), ("sppo", "ppo"), (1, 2))]
    assert changed(tmp_path, algorithms=("ppo", "grpo")) == [((POLE, CAR), ("ppo",), (1, 2)), ((CAR,), ("grpo",), (3,))]
    assert [seeds for *_, seeds in changed(tmp_path, seeds=(7, 8))] == [(7, 8), (7, 8)]
    grids = benchmark.Args(grid=write(tmp_path, GOOD), out=Path("mine.parquet"), work_dir=Path("w"), points=3).grids()
    assert {(g.out, g.work_dir, g.points, g.starts) for g in grids} == {
        (Path("mine.parquet"), Path("w"), 3, Path("fresh"))
    }
    (tmp_path / "mine.py").write_text("")
    own = str(tmp_path / "mine.py")
    assert changed(tmp_path, algorithms=("grpo", own)) == [((POLE, CAR), (own,), (1, 2)), ((CAR,), ("grpo", own), (3,))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env-ids", "sppo/SparseHopper-v0"], "no grid of the file has env-ids sppo/SparseHopper-v0"),
        (["--env-ids", POLE, "--algorithms", "grpo"], f"no grid of the file has env-ids {POLE}, algorithms grpo"),
        (["--algorithms", "rloo"], "no grid of the file has algorithms rloo"),
        (["--seeds", "1", "1"], "--seeds must be different values"),
        (["--out", "x.csv"], "--out must be a file whose name ends in .parquet"),
    ],
)
def test_flags_that_leave_nothing_or_are_impossible_are_refused(tmp_path, capsys, words, message):
    assert message in refused(["--grid", write(tmp_path, GOOD), *words], capsys)


def test_a_cell_of_two_grids_is_run_once_and_never_in_two_ways():
    grid = Grid((POLE,), seeds=(1, 2), work_dir=Path("a"))
    again = dataclasses.replace(grid, seeds=(2, 3), work_dir=Path("b"))
    (jobs,) = benchmark.all_jobs([grid, again]).values()
    assert [(job.cell.seed, job.folder.parent.name) for job in jobs[::2]] == [(1, "a"), (2, "a"), (3, "b")]
    other = dataclasses.replace(again, eval_episodes=9)
    with pytest.raises(errors.UserError, match=r"two grids make sppo .* seed 2 of .*study.parquet in different ways: "):
        benchmark.all_jobs([grid, other])
    assert len(benchmark.all_jobs([grid, dataclasses.replace(other, out=Path("x.parquet"))])) == 2
    assert change([grid], {}) == [grid]


# ------------------------------------------------------------------------------------------- a script from elsewhere
@pytest.mark.slow
def test_a_script_of_ones_own_runs_in_a_grid_and_is_drawn(tmp_path, monkeypatch, capsys):
    """A changed copy of SPPO, named by a path relative to the current folder; two results files, two grids."""
    monkeypatch.chdir(tmp_path)
    Path("lab").mkdir()
    text = (ROOT / "scripts" / "sppo_cartpole.py").read_text()
    Path("lab/mine.py").write_text(text.replace("learning_rate: float = 1e-3", "learning_rate: float = 2e-3"))
    common = f"""
eval-episodes = 4
work-dir = "runs"
env-ids = ["{POLE}"]
settings = ["total-timesteps=2000,num-envs=4,num-minibatches=2,learning-rate=5e-4"]
seeds = [1]
"""
    file = write(tmp_path, f'{common}[[grid]]\nalgorithms = ["lab/mine.py"]\nout = "mine.parquet"\n'
                           '[[grid]]\nalgorithms = ["sppo"]\nout = "ours.parquet"\n')  # fmt: skip
    benchmark.main(benchmark.Args(grid=file))
    assert capsys.readouterr().out.splitlines() == [
        "1 runs added to mine.parquet, 0 cells were there", "1 runs added to ours.parquet, 0 cells were there",
    ]  # fmt: skip
    mine = pd.read_parquet("mine.parquet")
    assert mine.algorithm.unique().tolist() == ["mine"]
    assert list(Path("runs").glob("*__mine__1__*/*__mine__1__*")), "the run is of another script"

    benchmark.main(benchmark.Args(grid=file))
    assert "0 runs added to mine.parquet, 1 cells were there" in capsys.readouterr().out
    Path("lab/mine.py").write_text(text)
    assert "mine by a script whose sha256 is" in refused(["--grid", file, "--seeds", 2], capsys)

    shutil.rmtree("lab")  # another machine has the results only
    report.main(report.Args((Path("mine.parquet"), Path("ours.parquet")), Path("figures")))
    assert {p.name for p in Path("figures").glob("*.png")} == {f"{name}.png" for name in ("fig2", "fig5", "fig8_all")}
    assert "| PrecisionCartPole | mine |" in Path("figures/tables.md").read_text()
    study = Study([Path("mine.parquet"), Path("ours.parquet")])
    for name in ("fig5", "fig8_all"):
        figure = FIGURES[name].draw(FIGURES[name].what(study), study.looks)
        colours = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
        assert colours == {"SPPO": variants.VARIANTS["sppo"].colour, "mine": variants.OWN_COLOURS[0]}
        plt.close(figure)


def test_names_of_own_scripts_are_drawn_wherever_they_were_written():
    looks = variants.looks(["ppo", "/home/her/zeta.py", r"C:\lab\alpha.py", "beta"])
    assert [(name, look.label, look.colour) for name, look in looks.items()] == [
        ("ppo", "PPO", "#D55E00"),
        ("/home/her/zeta.py", "zeta", variants.OWN_COLOURS[0]),
        (r"C:\lab\alpha.py", "alpha", variants.OWN_COLOURS[1]),
        ("beta", "beta", variants.OWN_COLOURS[2]),
    ]
    assert list(looks) == variants.in_order(looks)


def test_a_runs_arguments_say_which_variant_it_is():
    for name, variant in variants.VARIANTS.items():
        module = __import__(Path(variant.script).stem)
        args = cli.parse_args(module.Args, None, list(variant.flags))
        assert variants.of_run(variant.script, dataclasses.asdict(args)).name == name
    assert variants.of_run("mine.py", {}) is None


def test_no_two_variants_are_drawn_alike():
    looks = [(v.colour, v.line) for v in variants.VARIANTS.values()]
    assert len(set(looks)) == len(looks)
    assert len({v.label for v in variants.VARIANTS.values()}) == len(looks)
    assert not {colour for colour, _ in looks} & set(variants.OWN_COLOURS)


def test_the_standard_ppo_has_all_defaults_of_cleanrl():
    """As they are in its ppo.py; vf_coef has no equal, because policy and critic share neither network nor optimiser."""
    args = cli.parse_args(ppo_cartpole.Args, None, list(variants.VARIANTS["ppo-standard"].flags))
    expected = {
        "learning_rate": 2.5e-4, "critic_learning_rate": 2.5e-4, "anneal_lr": True, "gamma": 0.99, "gae_lambda": 0.95,
        "num_minibatches": 4, "update_epochs": 4, "norm_adv": "minibatch", "clip_coef": 0.2, "clip_vloss": True,
        "ent_coef": 0.01, "max_grad_norm": 0.5, "critic_loss": "mse", "critic_gae_lambda": None,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected


# --------------------------------------------------------------------------------------------------- command files
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "commands.toml has no command: each one begins with a line [[command]]"),
        (
            "[[command]]\nfigure = ['fig2']",
            "commands.toml, command 1: unknown key figure; there are results, out, figures",
        ),
        (
            "[[command]]\nfigures = ['fig2']\n[[command]]\nfigures = ['fig3']",
            "commands.toml, command 2: --figures must",
        ),
        ("[command", "cannot read "),
    ],
)
def test_command_files_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "commands.toml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["report.py", "--commands", str(tmp_path / "commands.toml")])
    with pytest.raises(SystemExit) as stop:
        cli.main(lambda args: pytest.fail("a command ran"), report.Args, None, command_files=True)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_command_file_makes_what_its_commands_make(tmp_path, monkeypatch, capsys):
    file = tmp_path / "commands.toml"
    file.write_text(f'[[command]]\nfigures = ["fig2"]\nout = "{tmp_path / "a"}"\n'
                    f'[[command]]\nfigures = ["fig2"]\nout = "{tmp_path / "b"}"\n')  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["report.py", "--commands", str(file)])
    runpy.run_path(report.__file__, run_name="__main__")
    assert {p.parent.name for p in tmp_path.rglob("fig2.png")} == {"a", "b"}
    monkeypatch.setattr(sys, "argv", ["report.py", "--commands", str(file), "--out", "x"])
    with pytest.raises(SystemExit):
        runpy.run_path(report.__file__, run_name="__main__")
    assert "error: --commands takes one file and no other arguments" in capsys.readouterr().err
