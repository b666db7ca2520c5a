"""V against the success of each prompt: the statistics by hand, and a whole run with the tiny adder."""

import json

import numpy as np
import pytest
import torch

import difficulty_llm
from sppo_control import errors, outcomes

pytest.importorskip("transformers", reason="needs the extra llm")
pytest.importorskip("datasets", reason="needs the extra llm")

import sppo_llm
from sppo_control.llm import PromptCritic, addition


def test_ranks_and_their_correlation():
    assert outcomes.ranks(np.array([0.5, 0.1, 0.5, 0.9])).tolist() == [2.5, 1.0, 2.5, 4.0]
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert difficulty_llm.spearman(x, x**3) == pytest.approx(1)
    assert difficulty_llm.spearman(x, -x) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (1, 1, 1, 1, 0)
    assert difficulty_llm.spearman(x, np.array([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(1 - 6 * 4 / 120)
    assert difficulty_llm.spearman(x, np.full(5, 0.5)) is None
    assert difficulty_llm.interval(x, np.full(5, 0.5), 1) == []


def test_the_interval_covers_the_correlation_and_shrinks():
    rng = np.random.default_rng(0)
    widths = []
    for n in (30, 300):
        x = rng.normal(size=n)
        y = x + rng.normal(size=n)
        low, high = difficulty_llm.interval(x, y, 1)
        assert low < difficulty_llm.spearman(x, y) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_probe_leaves_each_prompt_out():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(20, 6)), rng.random(20)
    guess = difficulty_llm.probe(X, y)
    centred = X - X.mean(0)
    penalty = np.trace(centred @ centred.T) / 20
    for i in (0, 7):
        rest = np.arange(20) != i
        A = np.column_stack([centred, np.ones(20)])
        w = np.linalg.solve(A[rest].T @ A[rest] + penalty * np.eye(7), A[rest].T @ y[rest])
        assert guess[i] == pytest.approx(A[i] @ w)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the tiny adder with checkpoints at the updates 0, 1 and 2, and problems for it."""
    folder = tmp_path_factory.mktemp("difficulty")
    args = sppo_llm.Args(
        batch_size=32, total_episodes=64, eval_prompts=4, save_every=1, device="cpu", runs_dir=str(folder / "runs")
    )
    rows = addition.rows(addition.problems(12, np.random.default_rng(5)))
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sppo_llm.train(args).folder, folder / "problems.jsonl"


def test_a_run_at_two_checkpoints(run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    folder, problems = run
    args = difficulty_llm.Args(
        run=folder, problems=problems, out=tmp_path / "out", figure=tmp_path / "figure.png", prompts=10, samples=6,
        updates=(2, 0), reward="after-equals", device="cpu",
    )  # fmt: skip
    difficulty_llm.main(args)
    told = capsys.readouterr().out
    first, last = json.loads((tmp_path / "out" / "difficulty.json").read_text())["checkpoints"]
    assert (first["update"], last["update"]) == (0, 2)
    assert first["V"] == [0.5] * 10
    assert first["spearman"] is None, "the critic's head is 0 before the training"
    assert -1 <= first["probe"] <= 1
    prompts = [json.loads(line)["prompt"] for line in problems.read_text().splitlines()[:10]]
    V = PromptCritic.from_pretrained(folder / "checkpoints" / "000002" / "critic", dtype=torch.float32).predict(prompts)
    assert last["V"] == pytest.approx(V.tolist(), abs=1e-4)
    records = [
        json.loads(line) for line in (tmp_path / "out" / "responses_000002" / "problems.jsonl").read_text().splitlines()
    ]
    assert len(records) == 60
    success = [np.mean([r["outcome"] for r in records if r["problem"] == i]) for i in range(10)]
    assert last["success"] == pytest.approx(success, abs=1e-4)
    assert 0 < np.mean(success) < 1
    assert last["spearman"] == pytest.approx(difficulty_llm.spearman(V.double().numpy(), np.array(success)))
    assert last["mean_error"] == pytest.approx(np.abs(np.array(success) - V.numpy()).mean(), abs=1e-3)
    assert f"| 2 | {last['spearman']:.2f} [" in told
    assert "| 0 | - |" in told
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": (0, 7)}, "--updates: .* has no checkpoint 7; it has 0, 1, 2"),
        ({"prompts": 13}, "must have 13 rows with the texts prompt and answer, it has 12; ask for fewer --prompts"),
        ({"problems": None}, "--problems .*: there is no such file"),
    ],
)
def test_refusals(run, changes, message, tmp_path):
    folder, problems = run
    if "problems" in changes:
        changes = {"problems": tmp_path / "absent.jsonl"}
    args = {"run": folder, "problems": problems, "out": tmp_path / "out", "device": "cpu", "prompts": 5, **changes}
    with pytest.raises(errors.UserError, match=message):
        difficulty_llm.main(difficulty_llm.Args(**args))
    assert not (tmp_path / "out").exists()


def test_only_a_run_with_a_critic_of_prompts(run, tmp_path):
    folder, problems = run
    other = tmp_path / "run"
    other.mkdir()
    config = json.loads((folder / "config.json").read_text()) | {"script": "ppo_llm.py"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UserError, match=r"is of ppo_llm\.py, and only sppo_llm\.py has a critic of prompts"):
        difficulty_llm.main(difficulty_llm.Args(run=other, problems=problems, device="cpu"))
