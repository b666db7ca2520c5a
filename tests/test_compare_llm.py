"""The comparison of runs of a language model: numbers that can be worked out by hand, and foreign files."""

import json
from pathlib import Path

import numpy as np
import pytest

import compare_llm
from compare_llm import Trained, several
from sppo_control import errors, runs

ROOT = Path(__file__).resolve().parents[1]


def trained(algorithm, success, seconds, seed=1, dataset="data", after=90):
    """A run whose updates have 10 responses and take `seconds` each."""
    success = np.array(success, float)
    return Trained(
        algorithm, seed, 10 * len(success), success, np.full(len(success), float(seconds)),
        {"successes": 20, "problems": 100}, {"successes": after, "problems": 100}, {"dataset": dataset},
    )  # fmt: skip


def cells(table):
    """Rows of a Markdown table, as dictionaries."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


SLOW = trained("sppo", [0.2, 0.4, 0.6, 0.8, 1.0], 3)
FAST = trained("grpo", [0.2, 0.2, 0.4, 0.4, 0.6], 2)


def test_when_a_threshold_is_reached():
    assert SLOW.means(2)[1:] == pytest.approx([0.3, 0.5, 0.7, 0.9])
    assert np.isnan(SLOW.means(2)[0])
    assert SLOW.reached(0.5, 2) == (30, 9.0), "a mean that is equal to the threshold reaches it"
    assert SLOW.reached(0.51, 2) == (40, 12.0)
    assert SLOW.reached(0.95, 2) is None
    assert SLOW.reached(1.0, 1) == (50, 15.0)


def test_the_mean_within_some_seconds():
    assert SLOW.mean_within(15) == pytest.approx(0.6)
    assert SLOW.mean_within(3) == pytest.approx(0.2)
    assert SLOW.mean_within(7) == pytest.approx((3 * 0.2 + 3 * 0.4 + 1 * 0.6) / 7), (
        "a part of an update counts as a part"
    )


def test_the_tables():
    (one, two) = cells(compare_llm.table_of_algorithms([SLOW, FAST], 2))
    assert (one["algorithm"], one["seeds"], one["held out after"]) == ("SPPO, critic of 6 layers", "1", "0.900")
    assert (one["mean over 50 responses"], two["mean over 50 responses"]) == ("0.600", "0.360")
    within_10 = (3 * 0.2 + 3 * 0.4 + 3 * 0.6 + 1 * 0.8) / 10
    assert one["mean over 10 s"] == f"{within_10:.3f}", "the seconds of the shortest run"
    assert two["mean over 10 s"] == "0.360"
    assert (one["responses to 0.5"], one["seconds to 0.5"], one["seconds per update"]) == ("30", "9", "3.0")
    assert (two["responses to 0.5"], two["responses to 0.6"]) == ("50", "-, 0 of 1")
    one, two = cells(compare_llm.table_of_runs([SLOW, FAST], 2))
    assert (one["held out before"], one["after"]) == ("0.200 [0.133, 0.289]", "0.900 [0.826, 0.945]")
    assert (one["to 0.8: responses; seconds"], two["to 0.8: responses; seconds"]) == ("50; 15 s", "-")


def test_the_way_to_grpos_peak():
    never, other_seed = trained("ppo", [0.1] * 5, 1), trained("rloo", [0.9] * 5, 1, seed=2)
    (sppo, ppo) = cells(compare_llm.table_of_peaks([SLOW, FAST, never, other_seed], 2))
    assert sppo["GRPO's peak"] == "0.500"
    assert (sppo["GRPO reaches it"], sppo["this reaches it"]) == ("50; 10 s", "30; 9 s")
    assert (sppo["times fewer responses"], sppo["times fewer seconds"]) == ("1.67", "1.11")
    assert (ppo["algorithm"], ppo["this reaches it"], ppo["times fewer seconds"]) == ("PPO", "never", "-")
    assert compare_llm.table_of_peaks([SLOW], 2) == "", "without GRPO there is no peak"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([3], "3"), ([1, 2, 6], "2 (1 to 6)"), ([1, 4], "2 (1 to 4)"), ([6, None, 1], "6 (1 to 6), 2 of 3"),
        ([None, None, 1], "-, 1 of 3"), ([None], "-, 0 of 1"),
    ],
)  # fmt: skip
def test_several_seeds(values, text):
    """A run that never got there is later than all others."""
    assert several(values, "{:.0f}") == text


# ---------------------------------------------------------------------------------------------------- from disk and back
def results_folder(folder, name="sppo", ended=True, tags=("success_rate", "cpu_seconds"), untimed=0):
    """What llm_real.py leaves: a run of two updates, and the evaluations."""
    run = folder / name / "held__sppo_llm__3__now"
    run.mkdir(parents=True)
    args = {"seed": 3, "total_episodes": 20, "dataset": "somewhere/data/train.jsonl", "learning_rate": 1e-5}
    config = {"args": args, "script": "sppo_llm.py", "layout": runs.LAYOUT, **runs.versions()}
    (run / "config.json").write_text(json.dumps(config))
    writer = runs.Writer(run, 1)
    for step, success, seconds in ((10, 0.25, 7.0), (20, 0.75, 8.0)):
        for tag, value in zip(("success_rate", "cpu_seconds"), (success, seconds), strict=True):
            if tag in tags and (tag != "cpu_seconds" or step != untimed):
                writer.add_scalar(f"charts/{tag}", value, step)
    writer.close()
    for which, right in (("before", 4), *([(f"after_{name}", 30)] if ended else [])):
        (folder / which).mkdir(exist_ok=True)
        sums = {"problems": 40, "verdicts": {"correct": right, "wrong": 40 - right}}
        (folder / which / "results.json").write_text(json.dumps({"results": {"sums": sums}}))
    return folder


def test_folders_become_a_file_that_gives_the_same_tables(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    results_folder(tmp_path / "seed3")
    results_folder(tmp_path / "seed3", "grpo", ended=False)
    out, figure = tmp_path / "compare.json", tmp_path / "compare.png"
    compare_llm.main(compare_llm.Args((tmp_path / "seed3",), out, figure, window=2))
    told = capsys.readouterr()
    assert "has not ended" in told.err
    assert "grpo" in told.err
    (row,) = json.loads(out.read_text())["runs"]
    assert (row["algorithm"], row["seed"], row["success"], row["cpu_seconds"]) == ("sppo", 3, [0.25, 0.75], [7.0, 8.0])
    assert (row["before"], row["after"]) == (
        {"successes": 4, "problems": 40},
        {"successes": 30, "problems": 40},
    )
    assert row["settings"] == {"learning_rate": 1e-5, "dataset": "data"}
    assert figure.stat().st_size > 10_000
    compare_llm.main(compare_llm.Args((out,), window=2))
    assert capsys.readouterr().out == told.out


def test_a_file_keeps_every_digit_of_success():
    """One of 64 responses has six digits. Rounded to four, a mean of 1/2 may not reach 1/2 when the file is read again."""
    assert compare_llm.as_json(trained("sppo", [0.015625, 0.984375], 3))["success"] == [0.015625, 0.984375]


def test_the_runs_on_a_gpu_are_read_too():
    """Their first table in docs/llm_real.md was made by other code, the second by this script."""
    found = compare_llm.read([ROOT / "docs" / "llm_real_cuda.json"])
    rows = cells(compare_llm.table_of_runs(found, 4))
    assert [row["seed"] for row in rows] == ["1", "2", "3"] * 2
    page = (ROOT / "docs" / "llm_real.md").read_text()
    for row in rows:
        at = [row[f"to {x}: responses; seconds"].partition(";")[0] for x in (0.6, 0.8)]
        name = row["algorithm"][:4]
        line = f"| {name} | {row['seed']} | {row['held out before']} | {row['after']} | {row['mean over training']} |"
        assert f"{line} {at[0]} | {at[1]} |" in page
    assert compare_llm.table_of_peaks(found, 4) in page


def test_what_cannot_be_compared_is_refused(tmp_path):
    def refused(*results, message):
        with pytest.raises(errors.UserError, match=message):
            compare_llm.main(compare_llm.Args(results))

    results_folder(tmp_path / "a")
    refused(tmp_path / "a", tmp_path / "a", message="sppo 3 is there twice; name each run once")
    refused(tmp_path / "a", message="--window must be at most 2, the updates of a run, got 8")
    results_folder(tmp_path / "b", ended=False)
    refused(tmp_path / "b", message="b has no run of llm_real.py that has ended")
    results_folder(tmp_path / "c", tags=("success_rate",))
    refused(tmp_path / "c", message="no curve 'charts/cpu_seconds'; .* was it trained by llm_real.py?")
    for what, other in (
        ("responses", trained("ppo", [0.5] * 9, 1)),
        ("data", trained("ppo", [0.5] * 5, 1, dataset="mixed")),
    ):
        file = tmp_path / f"{what}.json"
        file.write_text(json.dumps({"runs": [compare_llm.as_json(SLOW), compare_llm.as_json(other)]}))
        refused(file, message=f"the runs differ in {what}")
    results_folder(tmp_path / "d", untimed=20)
    refused(tmp_path / "d", message="2 updates have a success rate and 1 have seconds")
