"""A saved critic with its card: the numbers are recomputed by hand, what is saved is what was trained, bad prompts are
named."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: extra llm")
pytest.importorskip("datasets", reason="datasets is not installed: extra llm")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: extra plots")

import critic_card as script
import ppo_llm
import sppo_llm
from sppo_control import checkpoints, core
from sppo_control.errors import UserError
from sppo_control.llm import PromptCritic, addition, prompts, setup
from sppo_control.llm.critic import find_critic, load_critic
from sppo_control.llm.critic_card import CriticCard, base_license, calibration, make_card
from sppo_control.llm.setup import ADDER, keep_layers
from sppo_control.outcomes import Evaluation

PROMPTS = ["1+2=", "12+34=", "999+1=", "5555+4321=", "7+7=", "80+9="]


@pytest.fixture
def critic():
    """The adder with one layer and a head that is not zero."""
    made = PromptCritic.from_backbone(ADDER)
    keep_layers(made, 1)
    torch.nn.init.normal_(made.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return made


# ---------------------------------------------------------------------------------------------------------- numbers
V = torch.tensor([0.05, 0.25, 0.25, 0.5, 0.8, 1.0])
R = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])


def test_the_numbers_are_those_of_plain_loops():
    found = calibration(V, R)
    pairs = [(float(v), int(r)) for v, row in zip(V, R, strict=True) for r in row]
    mean = sum(r for _, r in pairs) / 18
    assert (found.prompts, found.outcomes, found.success) == (6, 18, pytest.approx(mean))
    assert found.brier == pytest.approx(sum((v - r) ** 2 for v, r in pairs) / 18)
    assert found.base_rate_brier == pytest.approx(sum((mean - r) ** 2 for _, r in pairs) / 18)
    wins = [v for v, r in pairs if r]
    losses = [v for v, r in pairs if not r]
    auc = sum((w > x) + 0.5 * (w == x) for w in wins for x in losses) / len(wins) / len(losses)
    assert found.auc == pytest.approx(auc)
    # Ranks by hand: V has a tie at 2.5; the rates 0, 1/3, 1/3, 2/3, 1, 1 have the ranks 1, 2.5, 2.5, 4, 5.5, 5.5.
    a, b = np.array([1, 2.5, 2.5, 4, 5, 6]), np.array([1, 2.5, 2.5, 4, 5.5, 5.5])
    a, b = a - a.mean(), b - b.mean()
    assert found.spearman == pytest.approx(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
    by_bin = {}
    for v, r in pairs:
        by_bin.setdefault(min(int(v * 10), 9), []).append((v, r))
    assert [round(x.low * 10) for x in found.bins] == sorted(by_bin) == [0, 2, 5, 8, 9]
    gap = 0.0
    for x, rows in zip(found.bins, (by_bin[i] for i in sorted(by_bin)), strict=True):
        v, r = np.mean(rows, axis=0)
        assert (x.outcomes, x.v, x.success) == (len(rows), pytest.approx(v), pytest.approx(r))
        assert x.interval == pytest.approx(core.wilson_interval(sum(int(one) for _, one in rows), len(rows)))
        gap += abs(v - r) * len(rows) / 18
    assert found.ece == pytest.approx(gap)


def test_one_outcome_per_prompt_and_outcomes_that_are_all_equal():
    one = calibration(V, R[:, 0])
    assert (one.outcomes, one.spearman) == (6, None)
    assert one.auc == calibration(V, R[:, :1]).auc is not None
    equal = calibration(V, torch.ones(6, 2))
    assert (equal.auc, equal.spearman, equal.base_rate_brier) == (None, None, 0.0)
    assert calibration(torch.full((6,), 0.5), R).spearman is None
    text = CriticCard("x", "x", "x", equal).text()
    assert "undefined: all outcomes are equal" in text
    assert "not better than the base rate" in text


@pytest.mark.parametrize(
    ("v0", "outcomes", "message"),
    [
        (V, R[:5], r"v0 must be \(n,\) and outcomes .* got \(6,\) and \(5, 3\)"),
        (V[:0], R[:0], "at least one prompt"),
        (V + 0.1, R, r"v0 must be probabilities from 0 to 1, got \[1.1"),
        (torch.where(V == 1, torch.nan, V), R, r"v0 must be probabilities from 0 to 1, got \[nan"),
        (V, R * 2, r"outcomes must be 0 or 1, got \[2.0"),
        (V, R / 1.0 + torch.nan, r"outcomes must be 0 or 1, got \[nan"),
    ],
)
def test_numbers_of_bad_values_are_refused(v0, outcomes, message):
    with pytest.raises(ValueError, match=message):
        calibration(v0, outcomes)


# ----------------------------------------------------------------------------------------------------- save and load
def test_a_critic_of_some_layers_comes_back_bit_for_bit_and_its_card_goes_with_it(critic, tmp_path):
    outcomes = torch.tensor([1, 0, 1, 0, 1, 1])
    card = make_card(
        critic, PROMPTS, outcomes, data="six sums", policy="the adder", base_model="me/tiny", license="mit"
    )
    critic.save_pretrained(tmp_path, card=card)
    loaded = PromptCritic.from_pretrained(tmp_path)
    assert len(loaded.backbone.layers) == loaded.backbone.config.num_hidden_layers == 1
    assert loaded.state_dict().keys() == critic.state_dict().keys()
    for name, x in critic.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], x), name
    assert torch.equal(loaded.predict(PROMPTS), critic.predict(PROMPTS))
    text, numbers = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "critic_card.json").read_text())
    brier = float((critic.predict(PROMPTS).double() - outcomes).square().mean())
    assert numbers["calibration"]["brier"] == pytest.approx(brier, abs=1e-6)
    assert f"| Brier score, mean (V - R)^2 | {brier:.4f} |" in text
    assert f"always says the base rate | {4 / 6 * 2 / 6:.4f} |" in text
    assert text.startswith('---\nlibrary_name: sppo-control\nlicense: "mit"\nbase_model: "me/tiny"\ntags:\n')
    assert "six sums" in text
    assert "prompts, outcomes | 6, 6 |" in text
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert "![Share of successes against V](calibration.png)" in text


def test_the_card_of_another_critic_does_not_stay(critic, tmp_path):
    critic.save_pretrained(tmp_path, card=make_card(critic, PROMPTS, [1, 0] * 3, data="x", policy="x"))
    critic.save_pretrained(tmp_path)
    assert not {"README.md", "calibration.png", "critic_card.json"} & {path.name for path in tmp_path.iterdir()}
    (tmp_path / "README.md").write_text("mine")
    critic.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine", "it is not ours"


def test_a_card_without_numbers_or_licence_says_so(tmp_path):
    text = CriticCard("nothing yet", "p", "some/model").text()
    assert "Not measured: no response was judged." in text
    assert "not recorded here. It holds for these weights too" in text
    assert "license:" not in text
    assert "base_model" not in CriticCard("x", "p", "the tiny adder").text()
    CriticCard("x", "p", "m").write(tmp_path)
    assert not (tmp_path / "calibration.png").exists()


def test_the_licence_is_read_from_the_base_models_readme(tmp_path, critic):
    assert base_license(tmp_path) is None
    (tmp_path / "README.md").write_text("license: gpl\n")
    assert base_license(tmp_path) is None, "not in the head"
    (tmp_path / "README.md").write_text("---\ntags:\n- x\nlicense: 'apache-2.0'\n---\nlicense: mit\n")
    assert base_license(tmp_path) == "apache-2.0"
    made = make_card(critic, PROMPTS, [1, 0] * 3, data="x", policy="x", base_model=str(tmp_path))
    assert made.license == "apache-2.0"


# ----------------------------------------------------------------------------------------------------------- predict
def test_predict_reads_texts_chats_ids_arrays_and_tensors_alike(critic):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    critic.tokenizer.chat_template = template
    ids = critic.tokenizer(PROMPTS[1])["input_ids"]
    forms = [PROMPTS[1], [{"role": "user", "content": PROMPTS[1]}], ids, tuple(ids), np.array(ids), torch.tensor(ids)]
    values = critic.predict(forms)
    assert values.dtype == torch.float32
    with torch.no_grad():
        x = torch.tensor([ids])
        alone = torch.sigmoid(critic(x, torch.ones_like(x)))
    torch.testing.assert_close(values, alone.expand(6), rtol=0, atol=1e-6)
    assert (critic.predict(PROMPTS) - alone).abs().max() > 0.01, "else this says nothing"
    for size in (1, 2, 100):
        torch.testing.assert_close(critic.predict(PROMPTS, size), critic.predict(PROMPTS), rtol=0, atol=1e-6)
    assert critic.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("1+1=", ValueError, "prompts must be a list, got one string"),
        ([{"role": "user", "content": "1+1="}], ValueError, r"the messages of one chat; pass \[messages\]"),
        (["1+1=", 5], TypeError, "the prompt at index 1 is '5'; give a text, a list of chat messages"),
        (["1+1=", None], TypeError, "the prompt at index 1 is 'None'"),
        ([[2, "3"]], TypeError, "the prompt at index 0"),
        ([[2, True]], TypeError, "the prompt at index 0"),
        ([[2.0, 3.0]], TypeError, "the prompt at index 0"),
        (["1+1=", ""], ValueError, "the prompt at index 1 has no token"),
        ([[2], []], ValueError, "the prompt at index 1 has no token"),
        ([[2, 999]], ValueError, "makes a token 999, and the critic has embeddings for 0 to 13"),
        ([[2, -1]], ValueError, "the prompt at index 0 has the token -1"),
        ([[2] * 65], ValueError, "a prompt of 65 tokens exceeds the 64 positions of the critic"),
        (["1=", [{"role": "user", "content": "1+1="}]], ValueError, "the prompt at index 1: .* no chat template"),
    ],
)
def test_predict_names_the_prompt_that_it_cannot_read(critic, given, error, message):
    critic.tokenizer.chat_template = None
    with pytest.raises(error, match=message):
        critic.predict(given)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)])
def test_predict_refuses_other_batch_sizes(critic, size, error):
    with pytest.raises(error, match="batch_size must be"):
        critic.predict(PROMPTS, size)


def test_predict_does_not_return_nan(critic):
    critic.head.weight.data[0, 0] = torch.nan
    critic.train()
    with pytest.raises(ValueError, match="V of the prompt at index 0 is NaN"):
        critic.predict(PROMPTS)
    assert critic.training, "it is left as it was"


# ------------------------------------------------------------------------------------------------ runs and their critics
@pytest.fixture(scope="module", autouse=True)
def additions():
    """The additions are made once for all."""
    with pytest.MonkeyPatch.context() as patch:
        made = prompts.load_prompts(None, addition.tokenizer())
        patch.setattr(setup, "load_prompts", lambda *args: made)
        yield made


SMALL = {"batch_size": 16, "total_episodes": 32, "eval_prompts": 24, "save_every": 1, "device": "cpu", "seed": 9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two updates, whose learning rate is large enough that V differs."""
    folder = tmp_path_factory.mktemp("run")
    with contextlib.redirect_stdout(io.StringIO()):
        made = sppo_llm.train(sppo_llm.Args(**SMALL, critic_layers=1, runs_dir=str(folder), critic_learning_rate=1e-2))
    return made


def test_predict_is_the_value_that_the_training_used(run):
    """V of the second update's prompts, from the first checkpoint after an update; the log has their mean."""
    critic = PromptCritic.from_pretrained(run.folder / "checkpoints" / "000001" / "critic")
    tags = (run.folder / "checkpoints" / "000002" / "critic", run.parts["critic"].critic)
    assert torch.equal(PromptCritic.from_pretrained(tags[0]).predict(PROMPTS), tags[1].predict(PROMPTS))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        real = core.sequence_advantage
        patch.setattr(core, "sequence_advantage", lambda R, v: seen.append(torch.sigmoid(v)) or real(R, v))
        patch.setattr(sppo_llm, "generate", spy := Spy(sppo_llm.generate))
        args = sppo_llm.Args(
            **{**SMALL, "total_episodes": 16},
            runs_dir=str(run.folder.parent),
            critic=str(run.folder / "checkpoints" / "000001"),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            sppo_llm.train(args)
    ((_, given, rows),) = spy.calls
    torch.testing.assert_close(seen[0], critic.predict([given.texts[row] for row in rows]), rtol=0, atol=1e-6)
    assert seen[0].std() > 1e-4


class Spy:
    """Notes tokenizer, prompts and rows of each call of `generate`."""

    def __init__(self, real):
        self.real, self.calls = real, []

    def __call__(self, model, tokenizer, given, rows, *args, **kwargs):
        self.calls.append((tokenizer, given, list(rows)))
        return self.real(model, tokenizer, given, rows, *args, **kwargs)


def test_an_earlier_runs_critic_is_found_from_its_folders(run, tmp_path):
    last = run.folder / "checkpoints" / "000002"
    for path in (run.folder, last, last / "critic"):
        assert find_critic(path) == last / "critic"
        loaded = load_critic(path, addition.tokenizer())
        assert torch.equal(loaded.head.weight, run.parts["critic"].critic.head.weight)
    assert find_critic(tmp_path) is None
    assert find_critic(ADDER) is None, "a language model"
    assert load_critic(ADDER, addition.tokenizer()).head.weight.abs().max() == 0
    output = tmp_path / "trl"
    shutil.copytree(last / "critic", output / "critic")
    assert find_critic(output) == output / "critic", "as SPPOTrainer saves it"


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_the_critic_of_a_ppo_run_is_refused_if_its_head_says_no_logit(run, tmp_path, loss):
    copy = tmp_path / run.folder.name
    shutil.copytree(run.folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"script": "ppo_llm.py", "args": {**config["args"], "critic_loss": loss}}
    (copy / "config.json").write_text(json.dumps(config))
    if loss == "bce":
        assert find_critic(copy) is not None
        return
    for path in (copy, copy / "checkpoints" / "000001", copy / "checkpoints" / "000001" / "critic"):
        with pytest.raises(UserError, match=r"a critic of ppo_llm.py with --critic-loss mse: its head says V itself"):
            find_critic(path)
    assert ppo_llm.Args().critic_loss == "mse"


def test_the_script_measures_the_held_out_prompts(run, tmp_path, monkeypatch, capsys):
    draws = iter([[True] * 8 + [False] * 16, [True] * 4 + [False] * 20])
    seeds = []

    def evaluate(policy, tokenizer, given, reward, seed, *sampling):
        seeds.append((seed, sampling, len(given)))
        return Evaluation(np.array(next(draws)), {})

    monkeypatch.setattr(script, "evaluate", evaluate)
    script.main(script.Args(run=run.folder / "checkpoints" / "000001", out=tmp_path / "critic", k=2, device="cpu"))
    numbers = json.loads((tmp_path / "critic" / "critic_card.json").read_text())
    assert numbers["calibration"]["outcomes"] == 48
    assert numbers["calibration"]["success"] == 12 / 48
    loaded = PromptCritic.from_pretrained(tmp_path / "critic")
    trained = PromptCritic.from_pretrained(run.folder / "checkpoints" / "000001" / "critic")
    assert torch.equal(loaded.predict(PROMPTS), trained.predict(PROMPTS))
    held_out = sppo_llm.load_data(sppo_llm.Args(**SMALL), addition.tokenizer())[1]
    v0 = trained.predict(held_out.texts).double()
    R = torch.tensor([[1.0, i < 4] if i < 8 else [0.0, 0.0] for i in range(24)], dtype=torch.float64)
    assert numbers["calibration"]["brier"] == pytest.approx(float((v0[:, None] - R).square().mean()), abs=1e-6)
    assert len({seed for seed, _, _ in seeds}) == 2
    assert [x[1:] for x in seeds] == [((24, 1.0, None, False, ()), 24)] * 2
    text = (tmp_path / "critic" / "README.md").read_text()
    assert "24 held-out additions of one to four digits, 2 responses to each" in text
    assert "16 responses to other additions" in text
    assert f"{run.folder.name}, checkpoint 000001" in text
    assert "Brier" in capsys.readouterr().out


def test_the_script_wants_a_run_of_sppo_llm(run, tmp_path):
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint"):
        script.main(script.Args(run=tmp_path, out=tmp_path / "x"))
    copy = tmp_path / "other"
    shutil.copytree(run.folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "script": "grpo_llm.py"}))
    with pytest.raises(UserError, match=r"was written by grpo_llm.py; V\(s_p\) is the critic of sppo_llm.py"):
        script.main(script.Args(run=copy, out=tmp_path / "x"))
    assert not Path(tmp_path, "x").exists()
    assert checkpoints.read_config(run.folder)["script"] == "sppo_llm.py"
