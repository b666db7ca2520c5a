"""The real pretrained model: what is fetched is checked, the sums are as they are described, and all steps fit together."""

import collections
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra llm")
pytest.importorskip("datasets", reason="needs the extra llm")

from transformers import LlamaConfig, LlamaForCausalLM

import arithmetic_data
import fetch_smollm2
import llm_real
import plot
import sppo_llm
from sppo_control import cli, errors, runs
from sppo_control.llm import arithmetic
from sppo_control.llm.setup import ADDER


# ------------------------------------------------------------------------------------------------------------- the sums
def test_the_sums_and_their_parts():
    train, held_out = arithmetic.make_rows(512)
    assert (len(train), len(held_out)) == (3583, 512)
    asked, shown = [], [set(), set()]
    for part, rows in enumerate((train, held_out)):
        for row in rows:
            *solved, question = row["prompt"].split("\n")
            a, b = map(int, re.fullmatch(r"(\d\d) \+ (\d\d) =", question).groups())
            assert row["answer"] == str(a + b)
            asked.append(frozenset((a, b)))
            assert len(solved) == 2
            for line in solved:
                x, y, z = map(int, re.fullmatch(r"(\d\d) \+ (\d\d) = (\d+)", line).groups())
                assert x + y == z
                assert {x, y} != {a, b}, "a prompt does not contain its answer"
                shown[part].add(frozenset((x, y)))
    assert len(set(asked)) == len(asked) == 4095, "each sum once, also the other way round"
    assert not set(asked[3583:]) & (shown[0] | shown[1]), "held-out sums are in no other prompt"
    assert arithmetic.make_rows(512) == (train, held_out)
    assert arithmetic.make_rows(512, seed=1) != (train, held_out)
    for wrong in (0, 4093):
        with pytest.raises(ValueError, match=f"held_out must be from 1 to 4092, got {wrong}"):
            arithmetic.make_rows(wrong)


def test_the_mixed_sums():
    train, held_out = arithmetic.make_rows(200, mixed=True)
    asked, kinds = [], collections.Counter()
    for row in (*train, *held_out):
        *solved, question = row["prompt"].split("\n")
        assert len(solved) == 2
        for line in solved:
            x, y, z = map(int, re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", line).groups())
            assert x + y == z
        a, b = re.fullmatch(r"([1-9]\d*) \+ ([1-9]\d*) =", question).groups()
        assert row["answer"] == str(int(a) + int(b))
        asked.append(frozenset((int(a), int(b))))
        kinds[tuple(sorted((len(a), len(b))))] += 1
    assert len(set(asked)) == len(asked), "each sum once, also the other way round"
    assert kinds == {(1, 1): 45, **dict.fromkeys([(1, 2), (2, 2), (1, 3), (2, 3), (3, 3)], 600)}
    assert len(" 1998\n") == arithmetic.MAX_RESPONSE, "the longest answer fits, at a token for each character"


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (" 43\n", 1), ("43", 1), (" 43 \n44", 1), ("\n43", 0), (" 43.", 0), ("143", 0), ("430", 0), ("4 3", 0), ("", 0),
        ("-43", 0),
    ],
)  # fmt: skip
def test_the_first_line_is_judged(response, outcome):
    assert arithmetic.first_number([response, " 44"], {"answer": ["43", 43]}) == [outcome, 0]


# ------------------------------------------------------------------------------------------------------------ the model
@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=14, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    ))  # fmt: skip


def test_the_critics_model_has_the_first_layers(llama):
    small = fetch_smollm2.first_layers(llama, 2)
    ids = torch.tensor([[3, 4, 5]])
    seen = []
    hook = llama.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
    llama(input_ids=ids)
    hook.remove()
    torch.testing.assert_close(small(input_ids=ids).last_hidden_state, llama.model.norm(seen[0]))


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(
        errors.FileError, match=r"model\.gguf is damaged or another file: its SHA-256 is [0-9a-f]{64}, not b179"
    ):
        fetch_smollm2.check_digest(file)


def test_a_model_that_does_not_continue_as_it_should_is_refused():
    with pytest.raises(errors.FileError, match="the converted model continues 'The capital of France is' with"):
        fetch_smollm2.check_continuations(ADDER)


def test_a_folder_is_whole_or_absent(tmp_path):
    def stopped(folder):
        folder.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_smollm2.whole_or_absent(tmp_path / "a" / "model", stopped)
    assert not list((tmp_path / "a").iterdir())
    fetch_smollm2.whole_or_absent(tmp_path / "a" / "model", lambda folder: shutil.copytree(ADDER, folder))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model"]


def test_impossible_arguments_of_the_fetch_are_refused(tmp_path):
    for given, message in (
        ({"critic_layers": 0}, "--critic-layers must be from 1 to 30"),
        ({"gguf": tmp_path / "absent"}, "--gguf .*absent: there is no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch_smollm2.Args(**given)


# ---------------------------------------------------------------------------------------------------------- all of it
def test_all_steps_and_again_after_a_stop(tmp_path, monkeypatch, capsys):
    """With the tiny adder in place of the real model, which reads spaces and line ends as unknown tokens."""
    for name in ("model", "model-6-layers"):
        shutil.copytree(ADDER, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    arithmetic_data.main(arithmetic_data.Args(out=tmp_path / "out" / "data", held_out=40))
    args = llm_real.Args(
        out=tmp_path / "out", model=tmp_path / "model", total_episodes=32, batch_size=16, critic_steps=1, device="cpu"
    )
    llm_real.main(args)
    told = capsys.readouterr().out
    (run,) = (tmp_path / "out" / "sppo").iterdir()
    stored = json.loads((run / "config.json").read_text())["args"]
    assert stored["critic"] == str(tmp_path / "model-6-layers")
    assert (stored["reward"], stored["stop"]) == ("sppo_control.llm.arithmetic:first_number", ["\\n"])
    assert len(re.findall(r"^(before|after) +\d\.\d{3} \[.*\] of 40 held-out sums", told, re.MULTILINE)) == 2
    assert re.search(r"^\d\d \+ \d\d = +\d+ +'", told, re.MULTILINE), "responses to read"

    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({"before": summary["before"]}))  # as a run that was stopped at its end
    ran = []
    monkeypatch.setattr(sppo_llm, "train", lambda given, real=sppo_llm.train: ran.append(real(given)))
    llm_real.main(args)
    assert json.loads((run / "summary.json").read_text())["after"] == summary["after"]
    llm_real.main(args)
    assert len(ran) == 1, "what has ended is not done again"
    assert [path.name for path in (tmp_path / "out" / "sppo").iterdir()] == [run.name]
    seconds = plot.read(run, "charts/cpu_seconds").points
    assert seconds[:, 0].tolist() == [16, 32]
    assert 0 < seconds[:, 1].min() <= seconds[:, 1].sum() < 60
    with pytest.raises(
        errors.UserError, match=r"was trained with --seed 1, and not with 2; name another folder with --out"
    ):
        llm_real.train(dataclasses.replace(args, seed=2), tmp_path / "out" / "data" / "train.jsonl")


@pytest.mark.parametrize(
    ("algorithm", "layers", "folder", "expected"),
    [
        ("sppo", 6, "sppo", {"critic": "model-6-layers", "critic_steps": 5, "critic_learning_rate": 3e-4}),
        ("sppo", 2, "sppo-2-layers", {"critic": "model-2-layers"}),
        ("sppo", None, "sppo-copy", {"critic": None}),
        ("ppo", 6, "ppo", {"critic": None, "critic_learning_rate": 3e-4}),
        ("grpo", 6, "grpo", {"group_size": 8, "normalize_std": True}),
        ("rloo", 6, "rloo", {"group_size": 8, "norm_adv": "none"}),
        ("reinforce-pp", 6, "reinforce-pp", {"group_size": 1, "norm_adv": "batch"}),
    ],
)
def test_each_algorithm_gets_its_arguments(algorithm, layers, folder, expected, monkeypatch):
    """The shared ones, and those of the algorithm."""
    args = llm_real.Args(
        out=Path("out"), model=Path("model"), algorithm=algorithm, critic_layers=layers, critic_steps=5,
        total_episodes=99, batch_size=24, micro_batch_size=7, learning_rate=2e-6, critic_learning_rate=3e-4, bf16=True,
        save_every=3, seed=11, device="cpu",
    )  # fmt: skip
    got = []
    for module in {module for module, _ in llm_real.SCRIPTS.values()}:
        monkeypatch.setattr(
            module,
            "train",
            lambda made, module=module: got.append((module, made, runs.Run)) or SimpleNamespace(folder=1),
        )
    assert llm_real.train(args, Path("data.jsonl")) == 1
    ((module, made, kind),) = got
    assert module is llm_real.SCRIPTS[algorithm][0]
    assert kind is llm_real.TimedRun
    assert runs.Run is not llm_real.TimedRun, "other runs of the process are as they were"
    expected = expected | {
        "model": "model", "dataset": "data.jsonl", "total_episodes": 99, "batch_size": 24, "micro_batch_size": 7,
        "learning_rate": 2e-6, "bf16": True, "save_every": 3, "seed": 11, "device": "cpu", "eval_prompts": 128,
        "runs_dir": f"out/{folder}", "max_response_length": 6, "temperature": 1.0, "stop": (r"\n",),
        "reward": "sppo_control.llm.arithmetic:first_number",
    }  # fmt: skip
    assert {key: getattr(made, key) for key in expected} == expected


def test_a_reward_that_only_a_foreign_run_names_is_not_imported(tmp_path, monkeypatch):
    """Its module would be executed; like that of an environment (test_foreign_files.py)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "installed_judge.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    shutil.copytree(ADDER, tmp_path / "model")
    args = cli.make_args(
        sppo_llm.Args, total_episodes=1, batch_size=2, eval_prompts=2, max_response_length=2, device="cpu"
    )
    folder = sppo_llm.train(args).folder
    config = json.loads((folder / "config.json").read_text())
    config["args"]["reward"] = "installed_judge:judge"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        errors.UserError, match=r"installed_judge.*If you trust it, add --reward 'installed_judge:judge'"
    ):
        cli.parse_args(sppo_llm.Args, None, ["--resume", str(folder)])
    given = cli.parse_args(sppo_llm.Args, None, ["--resume", str(folder), "--reward", "installed_judge:judge"])
    assert given.reward == "installed_judge:judge", "what the user types is trusted"
