"""scripts/compare.py: whether the runs of other seeds fall into the intervals of the shipped ones."""

from pathlib import Path

import pandas as pd
import pytest

import compare
from sppo_control.errors import UserError

ROOT = Path(__file__).parents[1]
TASK = "sppo/ContextCartPole-v0"
PLAN = f"""
[sets]
contexts = ["{TASK} starts"]
[[comparison]]
a = "ppo-standard"
b = "sppo"
sets = ["contexts"]
"""


@pytest.fixture(scope="module")
def shipped():
    """The runs of two algorithms on one task, seeds 21 to 28."""
    table = pd.read_parquet(ROOT / "results" / "second.parquet")
    return table[(table["env_id"] == TASK) & table["algorithm"].isin(["sppo", "ppo-standard"]) & (table["seed"] <= 28)]


@pytest.fixture
def files(shipped, tmp_path, monkeypatch):
    """A folder with all eight seeds, those of a stranger with two, and a plan."""
    monkeypatch.chdir(tmp_path)
    shipped.to_parquet("all.parquet")
    shipped[shipped["seed"].isin([21, 22])].to_parquet("mine.parquet")
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def report(files, *paths, **arguments):
    """The Markdown file that the command writes."""
    out = files / "out.md"
    compare.main(compare.Args(paths, plan=files / "plan.toml", out=out, **arguments))
    if arguments.get("picture", True):
        assert out.with_suffix(".png").stat().st_size > 5000
    return out.read_text()


def test_no_run_is_compared_with_itself(files):
    """Both files have seeds 21 and 22; the other side keeps the six seeds that only it has."""
    text = report(files, files / "mine.parquet", against=files / "all.parquet")
    assert "4 of its runs are left out, because they are on both sides." in text
    row = next(line for line in text.splitlines() if line.startswith("| 1 | ppo-standard - sppo")).split(" | ")
    assert (row[3], row[5]) == ("2, 2", "6, 6")
    assert "1 differences. In the interval" in text
    assert "WARNING" not in text
    other = report(files, files / "all.parquet", against=files / "all.parquet", seeds=(21, 22))
    assert next(line for line in other.splitlines() if line.startswith("| 1 | ")).split(" | ") == row


def test_without_against_there_is_no_such_table(files):
    text = report(files, files / "mine.parquet")
    assert "fall into the intervals" not in text
    assert "--against" not in text


def test_other_starting_policies_of_the_same_name_are_said(files, shipped):
    shipped.assign(seed=shipped["seed"] + 10, start_sha256="0" * 64).to_parquet("mine.parquet")
    text = report(files, files / "mine.parquet", against=files / "all.parquet")
    assert "WARNING: the starting policies of ContextCartPole (starts) are others here than there." in text
    assert "are left out" not in text


def test_seeds_without_a_run_are_refused_before_a_file_is_written(files):
    with pytest.raises(UserError, match=r"--seeds 23 99: no such runs; there are 21, 22$"):
        report(files, files / "mine.parquet", seeds=(21, 23, 99))
    assert not (files / "out.md").exists()


def test_explored_comparisons_have_tables_of_their_own(files):
    """And a picture and an ablation are only there if they are asked for: the plan has no task of --ablation."""
    explored = PLAN[PLAN.index("[[comparison]]") :].replace("comparison", "explored").replace("ppo-standard", "sppo")
    (files / "plan.toml").write_text(PLAN + explored)
    text = report(files, files / "all.parquet", picture=False)
    parts = dict(part.partition("\n\n")[::2] for part in text.split("\n## ")[1:])
    expected = [
        "Registered comparisons",
        "Collapsed runs",
        "Explored comparisons",
        "Collapsed runs, explored",
        "All arms",
    ]
    assert list(parts) == expected
    for title, left in zip(expected[:4], ("ppo-standard", "ppo-standard", "sppo", "sppo"), strict=True):
        assert f"| 1 | {left} - sppo |" in parts[title]
    assert "--no-picture" in text
    assert text.startswith("# Comparisons\n")
    assert not (files / "out.png").exists()
    (files / "plan.toml").write_text('title = "Mine"\n' + PLAN.replace("comparison", "explored"))
    titled = report(files, files / "all.parquet")
    assert titled.startswith("# Mine\n")
    assert "Registered" not in titled
    ablation = report(files, files / "all.parquet", ablation=f"{TASK} starts")
    assert "## Runs that end below 0.5 on ContextCartPole (starts)" in ablation
