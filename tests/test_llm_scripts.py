"""Whole runs of the language-model scripts: the run folder and its logs, resuming after SIGKILL and Ctrl-C, what the update
is computed from, and refusals. Most of them on the shipped adder, four updates of 16 responses."""

import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: extra llm")

import first_page
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    OPTConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

import grpo_llm
import ppo_llm
import pretrain_llm
import rloo_llm
import sppo_llm
from sppo_control import cli, core, limits, runs
from sppo_control.llm import PromptCritic, addition, prompts, responses, setup
from sppo_control.llm.setup import ADDER
from sppo_control.llm.tokenizers import load_tokenizer
from sppo_control.outcomes import Evaluation

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"sppo_llm": sppo_llm, "ppo_llm": ppo_llm, "grpo_llm": grpo_llm, "rloo_llm": rloo_llm}
REPEATS = ("rloo_llm", "ppo_llm")
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in REPEATS else []) for name in SCRIPTS]
"""rloo_llm.py differs from grpo_llm.py in its advantage alone, which tests/test_flags_llm.py checks. ppo_llm.py saves and
resumes by the same lines as sppo_llm.py."""
WITH_CRITIC = ["sppo_llm", "ppo_llm"]
SMALL = {"batch_size": 16, "num_minibatches": 2, "total_episodes": 64, "eval_prompts": 16, "save_every": 2,
         "device": "cpu", "seed": 9}  # fmt: skip
ONE = {**SMALL, "total_episodes": 16, "num_minibatches": 1, "save_every": 1}
"""One update in one step of the optimiser."""


@functools.cache
def additions():
    return prompts.load_prompts(None, addition.tokenizer())


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    """What datasets keeps of a file it has read goes into a temporary folder; no Hub is asked; the additions are made
    once for all."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    real = setup.load_prompts
    monkeypatch.setattr(
        setup, "load_prompts", lambda *args: additions() if (args[0], args[3]) == (None, None) else real(*args)
    )


def flags(values):
    return [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def train(script, folder, **values):
    return SCRIPTS[script].train(cli.make_args(SCRIPTS[script].Args, **{**SMALL, "runs_dir": str(folder), **values}))


def run_main(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
    cli.main(SCRIPTS[script].train, SCRIPTS[script].Args, "test")


def refusal(monkeypatch, capsys, script, *words):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, script, *words)
    assert stop.value.code == 2
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().err).split())  # without the box around it


def curves(folder):
    """tag -> [(step, value)] as TensorBoard shows them, without the one tag that depends on the clock; texts too."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        if tag.startswith(("_hparams_", "custom_scalars__")):  # for the pages of hyperparameters and of chosen curves
            continue
        values = [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(tag)]
        found[tag] = [(step, value.decode() if isinstance(value, bytes) else value) for step, value in values]
    del found["charts/SPS"]
    return found


def checkpoints(folder):
    return sorted((folder / "checkpoints").iterdir())


def assert_same_run(folder, reference):
    last, expected = checkpoints(folder)[-1], checkpoints(reference)[-1]
    assert last.name == expected.name
    weights = sorted(file.relative_to(expected) for file in expected.rglob("*.safetensors"))
    assert len(weights) >= 2
    for file in weights:
        assert (last / file).read_bytes() == (expected / file).read_bytes(), file
    states = [json.loads((checkpoint / "state.json").read_text()) for checkpoint in (last, expected)]
    clock_and_place = {"seconds": 0, "config": "", "sha256": ""}  # config.json names the folder
    assert states[0] | clock_and_place == states[1] | clock_and_place
    a, b = curves(folder), curves(reference)
    del a["hyperparameters/text_summary"], b["hyperparameters/text_summary"]  # another folder
    assert a.keys() == b.keys()
    for tag, points in b.items():
        np.testing.assert_array_equal(np.array(a[tag]), np.array(points), err_msg=tag)
    after = [json.loads((f / "summary.json").read_text()) for f in (folder, reference)]
    for key in ("before", "after", "steps", "episodes", "updates"):
        assert after[0][key] == after[1][key]


def save_model(folder, alphabet=addition.ALPHABET, seed=0):
    """A tiny random policy and its tokenizer, of these characters."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(alphabet) + 2, hidden_size=16, initializer_range=0.2, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    saved = json.loads(addition.tokenizer().backend_tokenizer.to_str())
    saved["model"]["vocab"] = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    tokenizer = addition.tokenizer()
    tokenizer.save_pretrained(folder)
    (Path(folder) / "tokenizer.json").write_text(json.dumps(saved))
    return str(folder)


@pytest.fixture(scope="module")
def small_critic(tmp_path_factory):
    """A critic smaller than the policy, whose head is not zero: V differs from prompt to prompt."""
    folder = tmp_path_factory.mktemp("critic")
    made = PromptCritic.from_backbone(save_model(folder / "model", seed=3))
    torch.nn.init.normal_(made.head.weight, std=0.5)
    made.save_pretrained(folder / "critic")
    return str(folder / "critic")


@pytest.fixture(scope="module", params=EVERY)
def whole(request, tmp_path_factory):
    """An uninterrupted run: its script, the run and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run = train(request.param, tmp_path_factory.mktemp("whole"))
    return SimpleNamespace(script=request.param, run=run, folder=run.folder, out=out.getvalue())


# ---------------------------------------------------------------------------------------------- the folder and its logs
def test_run_folder_is_complete(whole):
    assert re.fullmatch(rf"addition__{whole.script}__9__\d{{8}}-\d{{6}}(-\d+)?", whole.folder.name)
    config = json.loads((whole.folder / "config.json").read_text())
    assert config["args"]["seed"] == 9
    assert config["args"]["learning_rate"] > 0, "defaults are stored as the numbers they were"
    assert set(config["versions"]) >= {"python", "sppo-control", "torch", "transformers"}
    assert [checkpoint.name for checkpoint in checkpoints(whole.folder)] == ["000000", "000002", "000004"]
    parts = {"policy", "optimizer.safetensors", "state.json"}
    if whole.script in WITH_CRITIC:
        parts |= {"critic", "critic_optimizer.safetensors"}
    for checkpoint in checkpoints(whole.folder):
        assert {path.name for path in checkpoint.iterdir()} == parts
    summary = json.loads((whole.folder / "summary.json").read_text())
    for moment in ("before", "after"):
        assert summary[moment]["episodes"] == 16
        assert set(summary[moment]["measures"]) == {"truncated"}
    assert (summary["updates"], summary["episodes"]) == (4, 64)


def test_policy_folder_is_a_hugging_face_model_with_its_tokenizer(whole):
    first, _, last = (checkpoint / "policy" for checkpoint in checkpoints(whole.folder))
    assert (first / "model.safetensors").read_bytes() == (ADDER / "model.safetensors").read_bytes()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(last), load_tokenizer(last)
    trained = whole.run.parts["policy"].model
    assert type(model) is type(trained)
    for name, x in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name
        assert x.dtype == torch.float32
    assert tokenizer("12+3=")["input_ids"] == addition.tokenizer()("12+3=")["input_ids"]
    assert model.generation_config.to_diff_dict() == trained.generation_config.to_diff_dict()
    assert model.generation_config.eos_token_id == 1
    start = AutoModelForCausalLM.from_pretrained(first)
    moved = sum(not torch.equal(x, y) for x, y in zip(model.parameters(), start.parameters(), strict=True))
    assert moved == len(list(model.parameters())), "every weight was trained"


def test_critic_folder_is_a_prompt_critic(whole):
    if whole.script not in WITH_CRITIC:
        assert not list(whole.folder.rglob("critic*"))
        return
    first, _, last = (PromptCritic.from_pretrained(c / "critic") for c in checkpoints(whole.folder))
    assert first.predict(["1+2=", "345+678="]).tolist() == [0.5, 0.5]
    trained = whole.run.parts["critic"].critic
    assert torch.equal(last.predict(["1+2=", "345+678="]), trained.predict(["1+2=", "345+678="]))
    assert all(not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))


def test_the_run_counts_responses(whole):
    assert (whole.run.unit, whole.run.progress, whole.run.budget) == ("response", 64, 64)
    assert (whole.run.bar.n, whole.run.bar.total, whole.run.bar.unit) == (64, 64, "response")
    logged = curves(whole.folder)
    for tag, points in logged.items():
        if tag not in ("samples/text_summary", "hyperparameters/text_summary", "losses/explained_variance"):
            assert [step for step, _ in points] == [16, 32, 48, 64], tag
    assert [step for step, _ in logged["samples/text_summary"]] == [16, 48]
    assert [value for _, value in logged["charts/episodes"]] == [16, 32, 48, 64]
    lengths = np.array([value for _, value in logged["charts/episodic_length"]]) * 16
    np.testing.assert_allclose(lengths, np.round(lengths), atol=1e-4)
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["steps"] == round(lengths.sum()) > 64 * 5, "steps are tokens"
    assert summary["steps_per_second"] == pytest.approx(summary["steps"] / summary["seconds"])
    assert re.search(rf"\(16 sampled responses, 95 % Wilson.*tokens/s   \({summary['steps']:,} tokens, 64 responses, 4 upd",
                     whole.out, flags=re.S)  # fmt: skip
    assert "truncated " in whole.out


def test_logged_values_are_those_of_the_batch(whole):
    logged = {tag: np.array([value for _, value in points]) for tag, points in curves(whole.folder).items()}
    rates = logged["charts/success_rate"]
    assert np.array_equal(rates * 16, np.round(rates * 16))
    assert rates.max() > 0
    assert np.array_equal(logged["charts/episodic_return"], rates)
    truncated = logged["measures/truncated"] * 16
    assert np.array_equal(truncated, np.round(truncated))
    if whole.script in WITH_CRITIC:
        assert logged["charts/warmup"].tolist() == [0.0] * 4
    if whole.script == "sppo_llm":
        np.testing.assert_allclose(logged["advantages/mean"], rates - logged["critic/v0_mean"], atol=1e-6)
    if whole.script in WITH_CRITIC:
        assert logged["critic/v0_mean"][0] == (0.5 if whole.script == "sppo_llm" else 0.0), "a head of zeros"
    else:
        np.testing.assert_allclose(logged["critic/v0_mean"], rates, atol=1e-6)
        np.testing.assert_allclose(logged["advantages/mean"], 0, atol=1e-6)
    assert (logged["losses/entropy"] > 0).all()
    assert (logged["losses/approx_kl"] > 0).all()
    assert (logged["losses/ratio_min"] < 1).all()
    assert (logged["losses/ratio_max"] > 1).all()


def test_texts_show_prompts_responses_and_outcomes(whole):
    (_, table), _ = curves(whole.folder)["samples/text_summary"]
    header, _, *rows = table.splitlines()
    assert header == "| prompt | response | answer | R | V |"
    assert len(rows) == 6
    for row in rows:
        pattern = r"\| `(.*?)=` \| `(.*?)`.*? \| `(\d+)` \| (\d) \| (\S+) \|"
        prompt, response, answer, R, v = re.fullmatch(pattern, row).groups()
        a, b = prompt.split("+")
        assert int(a) + int(b) == int(answer)
        assert (R == "1") == (response.rpartition("=")[2] == answer and "=" in response)
        assert 0 <= float(v) <= 1


def test_every_emitted_tag_is_documented_and_the_reverse(whole):
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(\w+/\w+)` \|", text, flags=re.M))
    section = text.split("## Language models")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+/\w+)` \|", section, flags=re.M)) < documented, "those that differ, and new ones"
    documented |= set(re.findall(r"`(measures/\w+)`", section))
    emitted = {tag for tag in curves(whole.folder) if not tag.endswith("text_summary")} | {"charts/SPS"}
    assert re.search("do not log `charts/skipped`", " ".join(section.split()))
    absent = {f"measures/{why}" for why in ("unparsed", "answer_unparsed", "timed_out", "crashed")}  # of --reward math
    absent |= {"prompts/v0_offered", "prompts/retried", "prompts/filled"}  # of --skip-prompts-below and -above
    absent |= {"charts/skipped"} | (set() if whole.script in WITH_CRITIC else {"losses/value_loss", "charts/warmup"})
    assert emitted == documented - absent
    assert first_page.charts(whole.folder, emitted) == first_page.SIDE_BY_SIDE


# ------------------------------------------------------------------------------------------------------- resuming
def doomed(script, words, moment):
    """In a process of its own: a run that ends itself by SIGKILL."""
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    module, calls = SCRIPTS[script], []

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "in the fourth update":  # two checkpoints are written, and the curves go on beyond them
        real = module.generate

        def generate(*args, **kwargs):
            calls.append(1)
            return kill() if len(calls) == 4 else real(*args, **kwargs)

        module.generate = generate
    else:
        rename = os.rename
        os.rename = lambda a, b: kill() if str(b).endswith("000002") else rename(a, b)
    sys.argv = [f"{script}.py", *words]
    cli.main(module.train, module.Args, "test")


@pytest.fixture(scope="module")
def processes():
    """Children of a process that has imported everything once and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        process = context.Process(target=int)
        process.start()
        process.join(120)
    return context


def next_second(folder):
    """TensorBoard reads files in the order of their names, which hold the second they were begun in: no run is resumed in
    the second in which it began, unless by a test."""
    while int(time.time()) <= int(max(file.stat().st_mtime for file in folder.glob("events*"))):
        time.sleep(0.05)


@pytest.mark.parametrize("moment", ["in the fourth update", "in writing a checkpoint"])
def test_killed_and_resumed_equals_uninterrupted(whole, moment, processes, tmp_path, monkeypatch):
    """Weights, optimisers, curves and samples bit for bit."""
    words = [*flags(SMALL), "--runs-dir", str(tmp_path / "runs")]
    process = processes.Process(target=doomed, args=(whole.script, words, moment))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    saved = {path.name for path in checkpoints(folder)}
    if moment == "in the fourth update":
        assert saved == {"000000", "000002"}
        with open(next(folder.glob("events*")), "ab") as file:
            file.write(b"\x40\x00\x00\x00\x00")  # half a record
    else:
        assert "000000" in saved
        assert len(saved) == 2
        assert "000002" not in saved
    assert "after" not in json.loads((folder / "summary.json").read_text())
    next_second(folder)
    run_main(monkeypatch, whole.script, "--resume", folder)
    assert_same_run(folder, whole.folder)
    assert not list((folder / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("whole", ["sppo_llm"], indirect=True)  # the handler is shared code
def test_ctrl_c_saves_exits_130_and_the_printed_command_goes_on(whole, tmp_path, monkeypatch, capfd):
    module, calls, real = SCRIPTS[whole.script], [], SCRIPTS[whole.script].generate

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "generate", interrupted)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, whole.script, *flags(SMALL), "--runs-dir", tmp_path / "runs")
    assert stop.value.code == 130
    error = capfd.readouterr().err
    assert "Finishing this update" in error
    assert "Stopped after update 3 (48 responses); saved." in error
    python, *command = re.search(rf"python scripts/{whole.script}\.py --resume \S+", error).group().split()
    assert python == "python"
    (folder,) = (tmp_path / "runs").iterdir()
    assert checkpoints(folder)[-1].name == "000003"
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "success   before" in done.stdout
    assert_same_run(folder, whole.folder)


def test_a_lengthened_run_equals_a_long_one(whole, tmp_path, monkeypatch):
    short = train(whole.script, tmp_path, total_episodes=32)
    next_second(short.folder)
    run_main(monkeypatch, whole.script, "--resume", short.folder, "--total-episodes", "64")
    assert_same_run(short.folder, whole.folder)


@pytest.mark.parametrize("whole", ["sppo_llm"], indirect=True)  # shared code
def test_what_may_change_when_a_run_is_resumed(whole, monkeypatch, capsys):
    error = refusal(monkeypatch, capsys, whole.script, "--resume", whole.folder, "--temperature", "0.5")
    assert "--temperature is 1.0 in the run to be resumed and cannot become 0.5" in error
    assert error.endswith("These may change: --resume, --save-every, --total-episodes, --track")
    error = refusal(monkeypatch, capsys, whole.script, "--resume", whole.folder, "--eval-prompts", "8")
    assert "--eval-prompts is 16" in error, "other held-out prompts would be other prompts to train on"


@pytest.mark.parametrize("whole", ["sppo_llm"], indirect=True)  # shared code
@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *((part, "cut") for part in ("policy/model", "critic/model", "critic/head", "critic_optimizer")),
        *((part, "missing") for part in ("policy/model", "critic/model", "critic/head", "critic_optimizer")),
        *((part, "of another network") for part in ("policy/model", "critic/model", "critic/head", "critic_optimizer")),
    ],
)
def test_damaged_checkpoints_are_refused(whole, part, damage, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(whole.folder, folder)
    file = checkpoints(folder)[-1] / f"{part}.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        tensors = {name: x[:-1].clone() if x.ndim else x for name, x in load_file(file).items()}
        file.unlink()
        save_file(tensors, file, metadata={"format": "pt"})
    error = refusal(monkeypatch, capsys, whole.script, "--resume", folder)
    assert "000004 is damaged or belongs to another network" in error


# ----------------------------------------------------------------------------------- what the update is computed from
class Spy:
    """Remembers the arguments and results of a function, which is called as ever."""

    def __init__(self, monkeypatch, owner, name, wrap=None):
        self.calls, real = [], getattr(owner, name)

        def call(*args, **kwargs):
            result = (wrap or real)(*args, **kwargs)
            self.calls.append((args, kwargs, result))
            return result

        self.real = real
        monkeypatch.setattr(owner, name, call)


def order(logp_old, batch):
    """Which response of the batch each row is."""
    assert sorted(logp_old.tolist()) == sorted(batch.logp.tolist())
    return [int((batch.logp == row).all(1).nonzero()[0, 0]) for row in logp_old]


def test_sppo_takes_the_advantage_from_the_critic_before_its_update_and_the_critic_sees_prompts_alone(
    small_critic, tmp_path, monkeypatch
):
    generated, losses = Spy(monkeypatch, sppo_llm, "generate"), Spy(monkeypatch, core, "clipped_surrogate")
    fitted = Spy(monkeypatch, sppo_llm, "train_critic")
    read = []
    real = PromptCritic.forward
    monkeypatch.setattr(PromptCritic, "forward", lambda self, *x: read.append(x) or real(self, *x))
    run = train("sppo_llm", tmp_path, **{**ONE, "total_episodes": 32}, critic=small_critic, critic_learning_rate=0.01)
    assert len(generated.calls) == len(losses.calls) == len(fitted.calls) == 2
    for update in range(2):
        batch, ((_, logp_old, adv, mask, *rest), _, _) = generated.calls[update][2], losses.calls[update]
        assert 0 < batch.outcome.mean() < 1, "both outcomes are needed for this to say anything"
        assert rest == [run.args.clip_coef, "token-mean", batch.mask.sum(), "step"]
        assert torch.equal(mask, batch.mask[order(logp_old, batch)])
        values = []
        for checkpoint in checkpoints(run.folder)[update : update + 2]:
            with torch.no_grad():
                values.append(torch.sigmoid(PromptCritic.from_pretrained(checkpoint / "critic")(*batch.prompts)))
        assert (values[0] - values[1]).abs().max() > 0.01, "before and after its update can be told apart"
        assert values[0].std() > 0.01
        torch.testing.assert_close(adv, (batch.outcome - values[0])[order(logp_old, batch)], rtol=0, atol=1e-6)
        (_, _, ids, prompt_mask, outcome, *_), _, _ = fitted.calls[update]
        assert torch.equal(ids, batch.prompt_ids)
        assert torch.equal(prompt_mask, batch.prompt_mask)
        assert torch.equal(outcome, batch.outcome)
    seen = {tuple(row[m].tolist()) for ids, some in read for row, m in zip(ids, some, strict=True)}
    asked = {tuple(row[m].tolist()) for *_, b in generated.calls for row, m in zip(*b.prompts, strict=True)}
    assert seen == asked


def test_other_responses_do_not_change_sppos_values(small_critic, tmp_path, monkeypatch):
    values, texts, real = [], [], sppo_llm.generate
    spy = Spy(monkeypatch, core, "sequence_advantage")
    for shift in (0, 1):

        def other(*args, shift=shift, **kwargs):
            texts.append((made := real(*args[:5], args[5] + shift, *args[6:], **kwargs)).texts)
            return made

        monkeypatch.setattr(sppo_llm, "generate", other)
        train("sppo_llm", tmp_path, **ONE, critic=small_critic)
        values.append(spy.calls[-1][0][1])
    assert texts[0] != texts[1]
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("critic_loss", ["mse", "bce"])
def test_ppos_reward_stands_on_the_last_token_and_its_advantage_is_r_minus_v(
    critic_loss, small_critic, tmp_path, monkeypatch
):
    generated, losses = Spy(monkeypatch, ppo_llm, "generate"), Spy(monkeypatch, core, "clipped_surrogate")
    gae = Spy(monkeypatch, core, "generalized_advantage")
    fitted = Spy(monkeypatch, core, "squared_value_loss" if critic_loss == "mse" else "bernoulli_value_loss")
    run = train("ppo_llm", tmp_path, **ONE, critic=small_critic, critic_loss=critic_loss)
    ((_, _, batch),), (((_, logp_old, adv, mask, *_), _, _),) = generated.calls, losses.calls
    (((reward, value, gae_mask, gamma, lam), _, _),) = gae.calls
    R, real = batch.outcome, batch.mask
    assert 0 < R.mean() < 1
    assert (gamma, lam) == (1.0, 1.0)
    assert torch.equal(gae_mask, real)
    for row, n, r in zip(reward.tolist(), batch.lengths.tolist(), R.tolist(), strict=True):
        assert row == [0.0] * (n - 1) + [r] + [0.0] * (len(row) - n)
    critic = PromptCritic.from_pretrained(checkpoints(run.folder)[0] / "critic")
    with torch.no_grad():
        v = responses.token_values(critic, batch)
        v = v if critic_loss == "mse" else torch.sigmoid(v)
    torch.testing.assert_close(value[real], v[real], rtol=0, atol=1e-5)
    assert v[real].std() > 0.01
    rows = order(logp_old, batch)
    torch.testing.assert_close(adv[mask], (R[:, None] - v)[rows][mask], rtol=0, atol=1e-5)
    (((_, target, *_), _, _),) = fitted.calls
    target = target[mask] if critic_loss == "mse" else target
    torch.testing.assert_close(target, R[:, None].expand(v.shape)[rows][mask], rtol=0, atol=1e-5)


def test_ppos_gamma_and_lambda_reach_its_advantage(tmp_path, monkeypatch):
    gae, losses = Spy(monkeypatch, core, "generalized_advantage"), Spy(monkeypatch, core, "clipped_surrogate")
    train("ppo_llm", tmp_path, **ONE, gamma=0.9, gae_lambda=0.8)
    ((_, _, (adv, _)),) = gae.calls
    assert gae.calls[0][0][3:] == (0.9, 0.8)
    assert sorted(losses.calls[0][0][2].flatten().tolist()) == sorted(adv.flatten().tolist())


@pytest.mark.parametrize("settings", [{"gamma": 0.9}, {"gae_lambda": 0.5}])
@pytest.mark.parametrize("critic_loss", ["mse", "bce"])
def test_ppos_targets_are_cores_returns_even_outside_0_and_1(
    critic_loss, settings, small_critic, tmp_path, monkeypatch
):
    """Squared error knows no bounds; V at random tokens of this critic lies outside [0, 1], and so do the returns."""
    gae = Spy(monkeypatch, core, "generalized_advantage")
    fitted = Spy(monkeypatch, core, "squared_value_loss" if critic_loss == "mse" else "bernoulli_value_loss")
    train("ppo_llm", tmp_path, **ONE, critic=small_critic, critic_loss=critic_loss, **settings)
    ((args, _, (_, returns)),), (((_, target, *_), _, _),) = gae.calls, fitted.calls
    mask = args[2]
    if critic_loss == "mse" and "gae_lambda" in settings:
        assert returns.min() < 0, "else this says nothing"
    target = target[target != 0] if critic_loss == "mse" else target
    expected = returns[mask & (returns != 0)] if critic_loss == "mse" else returns[mask]
    torch.testing.assert_close(target.sort().values, expected.sort().values, rtol=0, atol=1e-6)


def test_the_critics_recipes(small_critic, tmp_path, monkeypatch):
    """window: updates on all prompts in their order, or on drawn ones; paper: the policy's minibatches, in their order."""
    generated, losses = Spy(monkeypatch, sppo_llm, "generate"), Spy(monkeypatch, core, "clipped_surrogate")
    fitted = Spy(monkeypatch, sppo_llm, "train_critic")

    def batches(**values):
        for spy in (generated, losses, fitted):
            spy.calls.clear()
        train(
            "sppo_llm", tmp_path, **{**ONE, "update_epochs": 2, "num_minibatches": 4, "critic": small_critic, **values}
        )
        ((args, _, result),) = fitted.calls
        assert result.shape == (len(args[5]),)
        return [rows.tolist() for rows in args[5]]

    assert batches() == batches(critic_batch_size=16) == [list(range(16))] * 4, "the default"
    assert batches(critic_steps=2) == [list(range(16))] * 2
    drawn = batches(critic_steps=5, critic_batch_size=8)
    assert [len(rows) for rows in drawn] == [8] * 5
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(16))
    assert drawn[0] != drawn[2]
    assert batches(critic_steps=5, critic_batch_size=8) == drawn
    paper = batches(critic_recipe="paper")
    batch = generated.calls[0][2]
    trained = [order_within(logp_old, batch) for (_, logp_old, *_), _, _ in losses.calls]
    assert paper == trained
    assert [len(rows) for rows in paper] == [4] * (2 * 4)
    assert paper[:4] != paper[4:]


def order_within(logp_old, batch):
    """Which responses of the batch a minibatch has; it is cut to its longest response."""
    width = logp_old.shape[1]
    return [int((batch.logp[:, :width] == row).all(1).nonzero()[0, 0]) for row in logp_old]


def test_a_warm_up_by_the_papers_recipe_trains_the_critic(tmp_path):
    run = train("sppo_llm", tmp_path, save_every=1, critic_warmup_batches=1, critic_recipe="paper")
    first, second = (c / "critic" / "head.safetensors" for c in checkpoints(run.folder)[:2])
    assert first.read_bytes() != second.read_bytes()
    assert [value for _, value in curves(run.folder)["charts/warmup"]] == [1.0, 0.0, 0.0, 0.0]


def test_grpos_groups_share_a_prompt_and_advantages_are_per_group(tmp_path, monkeypatch):
    generated, losses = Spy(monkeypatch, grpo_llm, "generate"), Spy(monkeypatch, core, "clipped_surrogate")
    run = train("grpo_llm", tmp_path, **{**ONE, "total_episodes": 32}, group_size=4)
    assert run.episodes == 32, "all responses of a group count"
    varied = 0
    for (args, _, batch), ((_, logp_old, adv, *_), _, _) in zip(generated.calls, losses.calls, strict=True):
        groups = np.array(args[3]).reshape(4, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 4
        ids = batch.prompt_ids.view(4, 4, -1)
        assert (ids == ids[:, :1]).all()
        R = batch.outcome.view(4, 4)
        varied += int((R.std(1) > 0).sum())
        std = R.std(1, correction=0, keepdim=True)
        expected = torch.where(std > 0, (R - R.mean(1, keepdim=True)) / std.clamp(min=1e-6), 0.0).flatten()
        torch.testing.assert_close(adv, expected[order(logp_old, batch)], rtol=1e-3, atol=1e-4)
    assert varied > 2


@pytest.mark.parametrize("script", EVERY)
def test_first_ratio_is_1(script, tmp_path):
    logged = curves(train(script, tmp_path, **ONE).folder)
    for tag in ("losses/ratio_min", "losses/ratio_max"):
        assert logged[tag][0][1] == pytest.approx(1.0, abs=1e-5)
    assert logged["losses/clipfrac"][0][1] == 0.0


@pytest.mark.parametrize("script", EVERY)
def test_one_minibatch_needs_no_pass_for_the_old_log_probabilities(script, tmp_path, monkeypatch):
    """The same weights with the pass and without it, over several epochs, and a forward pass fewer."""
    module, asked, passes, weights = SCRIPTS[script], [], [], []
    real, forward = module.generate, responses.policy_log_probs

    def counted(*args):
        passes.append(1)
        return forward(*args)

    monkeypatch.setattr(responses, "policy_log_probs", counted)
    monkeypatch.setattr(module, "policy_log_probs", counted)
    for old in (None, True):

        def generate(*args, log_probs, old=old):
            asked.append(log_probs)
            return real(*args, log_probs=log_probs or bool(old))

        monkeypatch.setattr(module, "generate", generate)
        run = train(script, tmp_path / str(old), **{**ONE, "update_epochs": 2, "micro_batch_size": 8})
        weights.append(list(run.parts["policy"].model.parameters()))
    assert asked == [False, False]
    assert len(passes) == 2 * 2 + 3 * 2, "of 16 responses, 8 at a time"
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-5)


@pytest.mark.parametrize("script", EVERY)
def test_several_minibatches_need_it(script, tmp_path, monkeypatch):
    real, asked = SCRIPTS[script].generate, []
    monkeypatch.setattr(
        SCRIPTS[script], "generate", lambda *args, log_probs: asked.append(log_probs) or real(*args, log_probs=False)
    )
    with pytest.raises(ValueError, match="call generate with log_probs=True"):
        train(script, tmp_path)
    assert asked == [True]


def test_a_run_of_one_minibatch_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    values = {"num_minibatches": 1, "update_epochs": 2, "save_every": 1, "critic_layers": 1}
    whole = train("sppo_llm", tmp_path / "whole", **values, total_episodes=32)
    short = train("sppo_llm", tmp_path / "short", **values, total_episodes=16)
    next_second(short.folder)
    run_main(monkeypatch, "sppo_llm", "--resume", short.folder, "--total-episodes", "32")
    assert_same_run(short.folder, whole.folder)


def first_gradients(script, folder, **values):
    """The policy's and the critic's gradients at the first step of each optimiser, and all sizes of batches."""
    found = {}

    def look(optimizer, args, kwargs):
        group = optimizer.param_groups[0]
        found.setdefault(group["lr"], [p.grad.clone() for p in group["params"]])

    hook = register_optimizer_step_pre_hook(look)
    try:
        run = train(script, folder, **ONE, learning_rate=1e-3, **values)
    finally:
        hook.remove()
    assert len(found) == (2 if script in WITH_CRITIC else 1)
    return {"policy" if lr == 1e-3 else "critic": grads for lr, grads in found.items()}, run


def cosine(a, b):
    a, b = (torch.cat([x.flatten() for x in part]) for part in (a, b))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def critic_of(script, small_critic):
    return {"critic": small_critic, "critic_learning_rate": 2e-3} if script in WITH_CRITIC else {}


@pytest.mark.parametrize("script", EVERY)
def test_micro_batches_and_bfloat16(script, small_critic, tmp_path, monkeypatch):
    """On the same responses micro-batches of 3 give the same gradient, and bfloat16 nearly the same."""
    module, given, sizes = SCRIPTS[script], [], []
    real, hidden, forward = module.generate, responses.hidden_states, PromptCritic.forward

    def same(*args, log_probs):
        given.append(args[8:])
        return real(*args[:8], None, False, log_probs=log_probs)

    monkeypatch.setattr(module, "generate", same)
    monkeypatch.setattr(responses, "hidden_states", lambda m, r, b: sizes.append(len(r.tokens)) or hidden(m, r, b))
    monkeypatch.setattr(PromptCritic, "forward", lambda self, *x: sizes.append(len(x[0])) or forward(self, *x))
    critic = critic_of(script, small_critic)
    whole, _ = first_gradients(script, tmp_path, **critic)
    assert set(sizes) == {16}
    sizes.clear()
    parts, _ = first_gradients(script, tmp_path, micro_batch_size=3, **critic)
    assert set(sizes) == {3, 1}
    low, run = first_gradients(script, tmp_path, bf16=True, **critic)
    assert given == [(None, False, ()), (3, False, ()), (None, True, ())]
    assert {p.dtype for p in run.parts["policy"].model.parameters()} == {torch.float32}
    for name, grads in whole.items():
        for got, expected in zip(parts[name], grads, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6 + 1e-5 * float(expected.abs().max()))
        assert cosine(low[name], grads) > 0.97, name
        assert not any(torch.equal(a, b) for a, b in zip(low[name], grads, strict=True) if b.any())


@pytest.mark.parametrize("script", EVERY)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing_recomputes_and_gives_the_same_weights(script, tmp_path, monkeypatch):
    weights, calls = [], []
    real = Qwen2MLP.forward
    monkeypatch.setattr(Qwen2MLP, "forward", lambda self, x: calls.append(1) or real(self, x))
    counts = []
    for checkpointing in (False, True):
        calls.clear()
        run = train(script, tmp_path, **{**ONE, "num_minibatches": 2}, gradient_checkpointing=checkpointing)
        weights.append((checkpoints(run.folder)[-1] / "policy" / "model.safetensors").read_bytes())
        counts.append(len(calls))
    assert weights[0] == weights[1]
    assert counts[1] == counts[0] + 2 * 3, "the policy's three layers, once more for each minibatch"


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_policies_with_dropout_of_any_kind_are_trained_without_it(tmp_path):
    sizes = {"vocab_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": None,
             "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
    drop = {"attention_dropout": 0.5, "hidden_dropout": 0.5}
    for config, checkpointing in (
        (Qwen2Config(**sizes, intermediate_size=16, num_key_value_heads=1, attention_dropout=0.5), True),
        (GPT2Config(**sizes, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5), True),
        (OPTConfig(**sizes, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.5), True),
        (BloomConfig(**sizes, **drop), False),
        (FalconConfig(**sizes, **drop), False),
    ):
        folder = tmp_path / config.model_type
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        addition.tokenizer().save_pretrained(folder)
        args = SimpleNamespace(
            model=folder, dataset=None, reward="exact", device="cpu", gradient_checkpointing=checkpointing
        )
        policy, tokenizer = setup.load_policy(args)
        data = prompts.Prompts(["1+2="], [[3, 12, 4, 13]], ["3"])
        made = responses.generate(policy, tokenizer, data, [0] * 4, lambda texts, columns: [0.0] * 4, 1, 5)
        assert torch.equal(responses.policy_log_probs(policy, made, 1.0).logp.detach(), made.logp), config.model_type


@pytest.mark.parametrize("script", WITH_CRITIC)
def test_warm_up_trains_the_critic_alone(script, tmp_path, small_critic):
    run = train(script, tmp_path, save_every=1, critic_warmup_batches=2, critic=small_critic)
    weights = {
        part: [(c / part / "model.safetensors").read_bytes() for c in checkpoints(run.folder)]
        for part in ("policy", "critic")
    }
    assert weights["policy"][0] == weights["policy"][1] == weights["policy"][2]
    assert len(set(weights["policy"])) == 3
    assert len(set(weights["critic"])) == 5
    assert not load_file(checkpoints(run.folder)[2] / "optimizer.safetensors"), "the optimiser has not moved either"
    logged = curves(run.folder)
    assert [value for _, value in logged["charts/warmup"]] == [1.0, 1.0, 0.0, 0.0]
    assert "charts/skipped" not in logged
    assert len(logged["losses/value_loss"]) == 4
    assert [step for step, _ in logged["losses/policy_loss"]] == [48, 64]


@pytest.mark.parametrize("script", WITH_CRITIC)
@pytest.mark.parametrize("kind", ["critic", "critic without tokenizer", "language model"])
def test_a_critic_may_be_smaller_than_the_policy(script, kind, small_critic, tmp_path):
    folder = small_critic
    if kind == "language model":
        folder = Path(small_critic).parent / "model"
    elif kind == "critic without tokenizer":
        made = PromptCritic.from_pretrained(small_critic)
        made.tokenizer = None
        made.save_pretrained(folder := tmp_path / "critic")
    run = train(script, tmp_path / "runs", **ONE, critic=str(folder))
    first, last = (PromptCritic.from_pretrained(c / "critic") for c in checkpoints(run.folder))
    assert first.backbone.config.hidden_size == last.backbone.config.hidden_size == 16
    expected = PromptCritic.from_pretrained(small_critic)
    for name, x in expected.backbone.state_dict().items():
        assert torch.equal(first.backbone.state_dict()[name], x)
    assert first.head.weight.any() == (kind != "language model")
    assert len(last.predict(["1+2="])) == 1, "it is saved with the policy's tokenizer"


@pytest.mark.parametrize("whole", ["sppo_llm"], indirect=True)
def test_another_run_starts_from_a_checkpoints_folders(whole, tmp_path):
    last = checkpoints(whole.folder)[-1]
    model = {"model": str(last / "policy"), "critic": str(last / "critic"), "max_response_length": 24}
    run = train("sppo_llm", tmp_path, **ONE, **model)
    for part in ("policy", "critic"):
        ours, theirs = (c / part / "model.safetensors" for c in (checkpoints(run.folder)[0], last))
        assert ours.read_bytes() == theirs.read_bytes(), part


# ------------------------------------------------------------------------------------------------- a user's own task
@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A tiny random policy of letters, and prompts for it."""
    folder = tmp_path_factory.mktemp("own")
    rows = [{"prompt": "abc"[i % 3] * (1 + i % 4) + "d" * (i // 3), "answer": "e"} for i in range(40)]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": save_model(folder / "model", "abcdef"), "dataset": str(folder / "words.jsonl")}


@pytest.mark.parametrize("script", EVERY)
def test_a_users_own_model_and_dataset_train_end_to_end(script, own, tmp_path, monkeypatch, capsys):
    """One of eight tokens is right, and becomes the most probable one."""
    settings = SMALL | own | {
        "total_episodes": 160, "reward": "exact", "temperature": 0.9, "max_response_length": 1, "learning_rate": 0.01,
        "max_prompt_length": 14, "runs_dir": tmp_path,
    }  # fmt: skip
    run_main(monkeypatch, script, *flags(settings))
    assert "3 prompts are longer than --max-prompt-length 14 and left out" in capsys.readouterr().out
    (folder,) = tmp_path.glob("words__*")
    assert folder.name.startswith(f"words__{script}__9__")
    logged = curves(folder)
    rates = [value for _, value in logged["charts/success_rate"]]
    assert rates[0] < 0.5
    assert np.mean(rates[-3:]) > 0.9
    assert "`e`" in logged["samples/text_summary"][0][1]
    assert load_tokenizer(checkpoints(folder)[-1] / "policy")("abe")["input_ids"] == [2, 3, 6]


def shown_defaults(monkeypatch, capsys, script, *words):
    """argument -> the default that --help shows, as text."""
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, script, *words, "--help")
    assert stop.value.code == 0
    text = " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().out).split())
    found = {}
    for field in dataclasses.fields(SCRIPTS[script].Args):
        flag = f"--{field.name.replace('_', '-')}"
        entry = re.search(
            rf"{flag}(?![\w-])[^()]*?(?:\((?!default)[^()]*\)[^()]*?)*\(default: ([^)]*)\)", text.split(" options ")[-1]
        )
        found[field.name] = entry[1]
    return found


@pytest.mark.parametrize("script", EVERY)
@pytest.mark.parametrize("given", ["the adder", "a model"])
def test_help_and_programs_and_config_have_the_same_defaults(script, given, tmp_path, monkeypatch, capsys):
    """Those of docs/llm.md: of the tiny adder, and of real models."""
    module, words, values = SCRIPTS[script], [], {}
    if given == "a model":  # a tiny random one, which has the characters of the additions
        values = {"model": save_model(tmp_path / "model")}
        words = flags(values)
    args = cli.make_args(module.Args, **values)
    assert cli.parse_args(module.Args, None, words) == args
    shown = shown_defaults(monkeypatch, capsys, script, *words)
    for name, text in shown.items():
        value = getattr(args, name)
        assert "".join(text.split()) == str(value) or float(text) == value, name  # a long path is wrapped
    section = (ROOT / "docs" / "llm.md").read_text().split("## Defaults")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `--(\S+)` \| (\S+) \| (\S+) \|$", section, flags=re.M)
    documented = {row[0].replace("-", "_"): float(row[1 + (given == "a model")].replace(",", "")) for row in rows}
    assert len(documented) == 6
    for name, value in documented.items():
        if script in WITH_CRITIC or name != "critic_learning_rate":
            assert getattr(args, name) == value, name
    run = module.runs.Run(dataclasses.replace(args, runs_dir=str(tmp_path)), f"{script}.py", "task", unit="response")
    stored = json.loads((run.folder / "config.json").read_text())["args"]
    assert stored == dataclasses.asdict(args) | {"runs_dir": str(tmp_path)}
    assert {name for name in stored if stored[name] is None} <= {
        "model", "dataset", "critic", "critic_layers", "max_prompt_length", "critic_batch_size", "micro_batch_size",
        "resume", "stop", "track", "critic_gae_lambda", "skip_prompts_below", "skip_prompts_above",
    }, "elsewhere a number is shown"  # fmt: skip


def test_what_is_given_stands_before_defaults():
    for script in SCRIPTS.values():
        assert cli.make_args(script.Args, model="some/model", learning_rate=0.5).learning_rate == 0.5
        assert script.Args() == cli.make_args(script.Args)
        assert cli.make_args(script.Args).reward == "after-equals"
        assert cli.make_args(script.Args, dataset="x.jsonl").reward == "math"
        assert cli.make_args(script.Args, dataset="x.jsonl", reward="exact").reward == "exact"
        parsed = cli.parse_args(script.Args, None, ["--dataset", "x.jsonl", "--batch-size", "16"])
        assert (parsed.reward, parsed.batch_size) == ("math", 16)


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert setup.find_device("auto").type == expected
        assert setup.find_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    "script", ["sppo_llm", *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS if name != "sppo_llm")]
)
def test_help_needs_no_extra_and_a_run_names_it_in_one_line(script, tmp_path):
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('transformers', 'tokenizers', 'datasets', 'trl')))\n"
        f"sys.argv = ['{script}.py', *sys.argv[1:]]\n"
        f"runpy.run_path('scripts/{script}.py', run_name='__main__')"
    )
    python = [sys.executable, "-c", code]
    shown = subprocess.run([*python, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert "--learning-rate" in shown.stdout
    run = subprocess.run([*python, "--runs-dir", str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert run.stderr == (
        "error: transformers, which this script needs, is not installed; run: pip install 'sppo-control[llm]' "
        "(in a clone: pip install -c constraints.txt -e '.[llm]')\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_language_model_scripts_load_nothing_of_the_control_half():
    """As a process sees it; tests/test_house.py has the rule for each import."""
    code = (
        "import sys, grpo_llm, ppo_llm, rloo_llm, sppo_llm, evaluate_llm, pretrain_llm, sppo_control.llm.verl_plugin\n"
        "from sppo_control.llm import SPPOTrainer\n"
        "print(*sys.modules)"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "sppo_control.llm.trainer" in loaded
    control = {"networks", "policies", "rollout", "arguments", "defaults", "starts"}
    assert not loaded & {"gymnasium", "sppo_envs", *(f"sppo_control.{name}" for name in control)}


def test_all_scripts_share_arguments():
    fields = {name: {f.name: f.type for f in dataclasses.fields(s.Args)} for name, s in SCRIPTS.items()}
    critic = {"critic", "critic_learning_rate", "critic_warmup_batches"}
    own = {
        "sppo_llm": critic | {"critic_recipe", "critic_steps", "critic_batch_size", "critic_layers", "norm_adv", "ratio",
                             "skip_prompts_below", "skip_prompts_above", "retry_skipped_prompts"},
        "ppo_llm": critic | {"critic_loss", "gamma", "gae_lambda", "critic_gae_lambda", "norm_adv"},
        "grpo_llm": {"group_size", "normalize_std", "ratio"},
        "rloo_llm": {"baseline", "group_size", "norm_adv"},
    }  # fmt: skip
    common = set(fields["sppo_llm"]) - own["sppo_llm"]
    for name, ours in fields.items():
        assert set(ours) == common | own[name], name
        assert all(ours[k] == fields["sppo_llm"][k] for k in common), name


@pytest.mark.parametrize("script", EVERY)
def test_help_shows_every_argument(script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, script, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(SCRIPTS[script].Args):
        assert f"--{field.name.replace('_', '-')}" in shown


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("script", EVERY)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size 15 --num-minibatches 2", "--num-minibatches must divide --batch-size, got 2 for 15"),
        ("--learning-rate 0", "--learning-rate must be from 1e-10 to 10, got 0.0"),
        ("--temperature 0", "--temperature must be at least 0.001 in training, got 0.0"),
        ("--micro-batch-size 0", "--micro-batch-size must be from 1 to 2^20, got 0"),
        ("--seed -1", "--seed must be from 0 to 2^32 - 1, got -1"),
        ("--device cuda", "--device cuda: torch sees no CUDA device here; use --device cpu"),
        (
            "--reward maths",
            "--reward maths is none of math, exact, after-equals; a function of your own is module:function",
        ),
        ("--reward nowhere:judge", "--reward nowhere:judge: there is no module nowhere, neither in "),
        ("--stop=", "--stop must not be empty; leave it out"),
        ("--model absent/model", "--model absent/model is neither a model's folder nor a Hub id that can be reached: "),
        ("--dataset absent.jsonl", "no such dataset: absent.jsonl"),
    ],
)
def test_impossible_arguments_of_all_scripts(script, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refusal(monkeypatch, capsys, script, "--runs-dir", tmp_path / "runs", *words.split())
    assert message in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (
            "grpo_llm",
            "--group-size 1",
            "--group-size must be at least 2, because a response is compared with others",
        ),
        (
            "rloo_llm",
            "--batch-size 1 --group-size 1",
            "--batch-size must be at least 2, because a response is compared",
        ),
        ("grpo_llm", "--group-size 3", "--group-size must divide --batch-size, got 3 for 16"),
        (
            "sppo_llm",
            "--critic-steps 0",
            "--critic-steps must be at least 1, got 0; the paper's recipe is --critic-recipe pa",
        ),
        ("sppo_llm", "--critic-batch-size 0", "--critic-batch-size must be from 1 to 2^24, got 0"),
        (
            "sppo_llm",
            "--critic-batch-size 17",
            "--critic-batch-size must be at most --batch-size, because the window is the",
        ),
        (
            "sppo_llm",
            "--critic-recipe paper --critic-steps 2",
            "--critic-steps 2 means nothing with --critic-recipe paper, which trains the critic on the policy's mini",
        ),
        (
            "sppo_llm",
            "--critic-recipe paper --critic-batch-size 8",
            "--critic-batch-size 8 means nothing with --critic-recipe paper",
        ),
        ("sppo_llm", "--critic-warmup-batches -1", "--critic-warmup-batches must be from 0 to 2^31 - 1, got -1"),
        ("sppo_llm", "--critic-learning-rate inf", "--critic-learning-rate must be from 1e-10 to 10, got inf"),
        ("ppo_llm", "--gamma 1.5", "--gamma must be from 0 to 1, got 1.5"),
        ("ppo_llm", "--gae-lambda -1", "--gae-lambda must be from 0 to 1, got -1.0"),
        (
            "sppo_llm",
            "--critic absent/model",
            "--critic absent/model is neither a model's folder nor a Hub id that can be reached: ",
        ),
        ("sppo_llm", "--critic OWN", "the critic's tokenizer is not the policy's: 14 and 8 tokens"),
        ("ppo_llm", "--critic FEW", "the critic knows 8 tokens, the policy's tokenizer has 14"),
        (
            "grpo_llm",
            "--model OWN",
            "the additions need the characters +, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, = as tokens; give a",
        ),
        ("sppo_llm", "--dataset NO_ANSWERS", "has no column answer or solution, it has gold, prompt; rename yours"),
        (
            "sppo_llm",
            "--dataset TEN",
            "--eval-prompts must be at least 1 and leave prompts for training, got 16 of 10",
        ),
        (
            "sppo_llm",
            "--dataset TEN --eval-prompts 4",
            "--batch-size asks for 16 prompts per update, and there are 6 to train",
        ),
        (
            "grpo_llm",
            "--dataset TEN --eval-prompts 9",
            "--batch-size asks for 2 prompts per update, and there are 1 to train",
        ),
        (
            "sppo_llm",
            "--dataset TEN --max-prompt-length 3 --long-prompts error",
            "10 of 10 prompts are longer than --max-",
        ),
        ("ppo_llm", "--dataset TEN --model GEMMA2", "Gemma2ForCausalLM changes its logits after the output head"),
    ],
)
def test_impossible_data_and_models(script, words, message, own, tmp_path, monkeypatch, capsys):
    """One line, status 2, and no folder is left behind."""
    few = PromptCritic.from_backbone(own["model"])
    few.tokenizer = None
    few.save_pretrained(tmp_path / "few")
    for name, column, n in (("ten", "answer", 10), ("no_answers", "gold", 40)):
        rows = [json.dumps({"prompt": f"{i}+1=", column: str(i + 1)}) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    gemma = Gemma2Config(
        vocab_size=14, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(gemma).save_pretrained(tmp_path / "gemma2")
    addition.tokenizer().save_pretrained(tmp_path / "gemma2")
    paths = {
        "OWN": own["model"], "FEW": tmp_path / "few", "TEN": tmp_path / "ten.jsonl", "GEMMA2": tmp_path / "gemma2",
        "NO_ANSWERS": tmp_path / "no_answers.jsonl",
    }  # fmt: skip
    words = [paths.get(word, word) for word in words.split()]
    capsys.readouterr()
    error = refusal(monkeypatch, capsys, script, *flags(SMALL), "--runs-dir", tmp_path / "runs", *words)
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_rewards_other_than_0_and_1_are_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prompts, "exact_match", lambda text, answer: 0.5)
    monkeypatch.setattr(sppo_llm, "generate", None)
    error = refusal(monkeypatch, capsys, "sppo_llm", *flags(SMALL), "--runs-dir", tmp_path)
    assert error.startswith("error: SPPO's rewards must be 0 (failure) or 1 (success), got 0.5 at index 0.")


@pytest.mark.parametrize("script", EVERY)
def test_a_non_finite_loss_stops_the_run(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(limits.LIMITS, "learning_rate", (0, 1e38))  # else the command line refuses it
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, script, *flags(SMALL), "--learning-rate", "1e37", "--runs-dir", tmp_path)
    assert re.match(
        r"stopped: policy (loss|gradient norm) is \S+ in update 1; the last .*000000\. A low", stop.value.code
    )


# --------------------------------------------------------------------------------------------- the starting policy
def test_demonstrations_are_responses_that_end(monkeypatch):
    tokenizer = addition.tokenizer()
    args = pretrain_llm.Args(batch_size=64, forgets_carry=0.0, wrong_digit=0.0)
    batch = pretrain_llm.demonstrations(args, tokenizer, np.random.default_rng(0))
    assert len(batch.tokens) == 64
    for row in range(64):
        prompt = tokenizer.decode(batch.prompt_ids[row][batch.prompt_mask[row]])
        response = batch.tokens[row][batch.mask[row]].tolist()
        assert batch.mask[row, : len(response)].all()
        assert batch.prompt_mask[row, -1]
        assert response[-1] == 1
        a, b = map(int, prompt.rstrip("=").split("+"))
        text = addition.demonstration(a, b, np.random.default_rng(0))
        assert tokenizer.decode(response[:-1]) == text
        assert batch.texts[row] == text + "<eos>"


def test_pretraining_writes_model_tokenizer_and_card(tmp_path, capsys):
    cards = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        pretrain_llm.main(
            pretrain_llm.Args(out=str(tmp_path / name), width=24, layers=1, max_steps=3, target=0.0, seed=seed)
        )
        cards.append(json.loads((tmp_path / name / "card.json").read_text()))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "a"), load_tokenizer(tmp_path / "a")
    assert tokenizer("1+2=")["input_ids"] == [3, 12, 4, 13]
    card = cards[0]
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert (card["steps"], card["recipe"]["width"], card["accuracy"]["episodes"]) == (3, 24, 512)
    assert set(card["accuracy"]["by_longer_numbers_digits"]) == {"1", "2", "3", "4"}
    assert "out" not in card["recipe"]
    assert "of 512 held-out additions" in capsys.readouterr().out


def test_pretraining_learns_and_stops_at_the_target_only(tmp_path, monkeypatch):
    losses = Spy(monkeypatch, core, "masked_mean")
    args = pretrain_llm.Args(out=str(tmp_path), width=24, layers=1, max_steps=60, target=0.9, learning_rate=1e-2)
    with pytest.raises(SystemExit, match=r"after 60 steps 0\.\d+ are right, the target is 0\.9; nothing written"):
        pretrain_llm.main(args)
    assert not list(tmp_path.iterdir())
    assert -losses.calls[0][2].item() == pytest.approx(np.log(14), abs=0.1)
    assert -losses.calls[-1][2].item() < 2.35


# ------------------------------------------------------------------------------------------------------ other hardware
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("script", EVERY)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_a_run_on_cuda_is_resumed_bit_for_bit(script, tmp_path, monkeypatch):
    settings = {"device": "cuda", "bf16": True, "micro_batch_size": 3, "gradient_checkpointing": True}
    whole, short = (
        train(script, tmp_path / "a", **settings),
        train(script, tmp_path / "b", **settings, total_episodes=32),
    )
    assert next(whole.parts["policy"].model.parameters()).is_cuda
    run_main(monkeypatch, script, "--resume", short.folder, "--total-episodes", "64")
    assert_same_run(short.folder, whole.folder)


def test_a_note_that_all_failed_names_the_reward(capsys):
    book = SimpleNamespace(
        summary={}, unit="response", args=SimpleNamespace(reward="math"), _equal=(0, 0.0), _said=False
    )
    book.bar, book.view = SimpleNamespace(write=print), None
    runs.Run.once(book, "before", lambda: Evaluation(np.zeros(8, dtype=bool), {}))
    for _ in range(20):
        runs.Run._watch(book, torch.zeros(64))
    before, after = capsys.readouterr().err.splitlines()
    asks = r"the answer must be in \boxed{}; other rewards: --reward exact, after-equals, module:function"
    for line, number in ((before, "8"), (after, "1,280")):
        assert line.startswith(f"note: no response of {number} ")
        assert line.endswith(f"The reward is math: {asks}")
