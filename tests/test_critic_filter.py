"""The measurement of the filter: its prompts, when a run has reached its target, and that the page has its table."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: extra llm")
pytest.importorskip("datasets", reason="datasets is not installed: extra llm")

import critic_filter
from sppo_control.errors import UserError
from sppo_control.llm import addition

ROOT = Path(__file__).resolve().parents[1]


def test_the_three_kinds_are_what_they_are_called():
    rows = critic_filter.mixture(100)
    assert len({row["prompt"] for row in rows}) == len(rows) == 400
    assert [sum(row["kind"] == kind for row in rows) for kind in critic_filter.KINDS] == [200, 100, 100]
    rng = np.random.default_rng(0)
    for row in rows:
        a, b = map(int, row["prompt"].rstrip("=").split("+"))
        assert row["answer"] == str(a + b)
        written = addition.demonstration(a, b, rng)
        fits = len(written) + 1 <= 24  # with the end token, in the default --max-response-length
        assert fits == (row["kind"] != "hopeless")
        carries = written.partition("=")[0][3::4]
        if row["kind"] == "solved":
            assert set(carries) == {"0"}
    assert any("1" in addition.demonstration(*map(int, row["prompt"][:-1].split("+")), rng)[3::4] for row in rows[:200])


def test_the_mixture_can_be_written(tmp_path):
    critic_filter.main(critic_filter.Args(dataset=tmp_path / "mixture.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "mixture.jsonl").read_text().splitlines()]
    assert rows == critic_filter.mixture()


def test_held_out_prompts_are_not_in_the_mixture():
    train = critic_filter.mixture(500)
    held_out = critic_filter.held_out(train, addition.tokenizer())
    assert len(held_out) == critic_filter.HELD_OUT
    assert not {row["prompt"] for row in train} & set(held_out.texts)
    assert held_out.answers[0] == str(sum(map(int, held_out.texts[0][:-1].split("+"))))


CURVE = [[1024, 5.0, 0.7], [2048, 10.0, 0.95], [3072, 15.0, 0.84], [4096, 20.0, 0.97]]


def test_a_target_is_reached_by_the_mean_of_two_evaluations():
    assert critic_filter.reached(CURVE, 0.8) == (2048, 10.0)
    assert critic_filter.reached(CURVE, 0.89) == (3072, 15.0)
    assert critic_filter.reached(CURVE, 0.91) is None
    assert critic_filter.reached(CURVE[3:], 0.5) is None, "one alone says nothing"


def test_the_table_counts_a_run_that_never_arrived_as_the_latest():
    def run(seed, curve):
        return {"variant": "every prompt", "seed": seed, "curve": curve, "kinds": [[6, 2, 2], [4, 4, 2]]}

    slow = [[r, s, v / 2] for r, s, v in CURVE]
    text = critic_filter.table([run(1, CURVE), run(2, [*CURVE[:1], [2048, 20.0, 0.99]]), run(3, slow)])
    cells = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert cells == [
        "every prompt", "2,048 (2,048 to 2,048), 2 of 3", "20 (10 to 20), 2 of 3", "- (4,096 to 4,096), 1 of 3",
        "- (20 to 20), 1 of 3", "4.9", "0.50", "0.30", "0.20",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"variant": "x"}, {"seed": "1"}, {"curve": []}, {"curve": [[1, 2]]}, {"kinds": [["x"]]}]
)
def test_a_file_of_another_script_is_refused(change, tmp_path):
    row = {"variant": "every prompt", "seed": 1, "curve": CURVE, "kinds": [[1, 2, 3]]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"rows": [row]}))
    assert critic_filter.read(path) == [row]
    path.write_text(json.dumps({"rows": [{**row, **change}]}))
    with pytest.raises(UserError, match=r"was not written by critic_filter.py"):
        critic_filter.read(path)


def test_the_page_has_the_table_of_the_file():
    rows = critic_filter.read(ROOT / "docs" / "critic_filter.json")
    assert critic_filter.table(rows) in (ROOT / "docs" / "critic.md").read_text(), "python scripts/critic_filter.py"
