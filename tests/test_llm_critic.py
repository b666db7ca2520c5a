"""PromptCritic: reads the last prompt token wherever the padding stands, is saved and loaded whole, trains exactly."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytest.importorskip("trl", reason="trl is not installed: extra llm")
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)

from sppo_control import core
from sppo_control.llm import PromptCritic, load_tokenizer
from sppo_control.llm.critic import check_same_tokenizer, critic_batches, short_attention, train_critic
from sppo_control.llm.setup import keep_layers

CHARACTERS = "0123456789+= ?abcdefghijklmnopqrstuvwxyz{}<>"
V = len(CHARACTERS) + 1
CONFIGS = {
    "qwen2": lambda: Qwen2Config(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    ),
    "gpt2": lambda: GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64),  # learned positions
    "bloom": lambda: BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2),  # takes no position_ids
}  # fmt: skip


def tokenizer(characters=CHARACTERS, pattern="."):
    vocabulary = {c: i for i, c in enumerate(["<unk>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def make_critic(kind="qwen2", tokens=None, seed=0):
    """Random weights, the head's too: a head of zeros would hide every mistake."""
    torch.manual_seed(seed)
    critic = PromptCritic(AutoModel.from_config(CONFIGS[kind]()), tokens).eval()
    torch.nn.init.normal_(critic.head.weight)
    torch.nn.init.normal_(critic.head.bias)
    return critic


def prompts(n=4, longest=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = [longest, 1, *torch.randint(2, longest, (n - 2,), generator=g).tolist()]
    return [torch.randint(1, V, (length,), generator=g) for length in lengths]


def whole(n, steps=1):
    """Batches of all n prompts."""
    return [torch.arange(n)] * steps


def pad(rows, side, width=12, filler=5):
    ids, mask = torch.full((len(rows), width), filler), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


# ----------------------------------------------------------------------------------------------------------- forward
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_value_is_the_head_at_the_last_prompt_token_wherever_the_padding_stands(kind):
    critic, rows = make_critic(kind), prompts()
    expected = []
    for row in rows:  # each by itself, without padding, by the definition
        last = critic.backbone(input_ids=row[None]).last_hidden_state[0, -1]
        expected.append(last @ critic.head.weight[0] + critic.head.bias[0])
    expected = torch.stack(expected)
    assert expected.std() > 0.1
    for side in ("left", "right"):
        for filler in (0, 5):
            logit = critic(*pad(rows, side, filler=filler))
            assert logit.shape == (4,)
            torch.testing.assert_close(logit, expected, rtol=1e-4, atol=1e-5)
    left, right = pad(rows, "left"), pad(rows, "right")
    assert torch.equal(critic(*left), critic(*right))
    assert torch.equal(critic(left[0], left[1].bool()), critic(*right))


def test_it_starts_at_one_half_and_its_head_learns_first():
    critic = PromptCritic.from_backbone(AutoModelForCausalLM.from_config(CONFIGS["qwen2"]()))
    ids, mask = pad(prompts(), "left")
    logit = critic(ids, mask)
    assert torch.equal(torch.sigmoid(logit), torch.full((4,), 0.5))
    core.bernoulli_value_loss(logit, torch.tensor([1.0, 0.0, 1.0, 1.0])).backward()
    assert critic.head.weight.grad.abs().sum() > 0
    assert all((p.grad == 0).all() for p in critic.backbone.parameters() if p.grad is not None)


def test_a_critic_from_a_policy_is_a_copy_that_trains():
    policy = AutoModelForCausalLM.from_config(CONFIGS["gpt2"]()).requires_grad_(False).train()
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    critic = PromptCritic.from_backbone(policy)
    assert torch.equal(critic.backbone.wte.weight, policy.transformer.wte.weight)
    assert not critic.training  # GPT-2's dropout would make V random
    ids, mask = pad(prompts(), "left")
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.1)
    train_critic(critic, optimizer, ids, mask, torch.tensor([1.0, 0.0, 1.0, 0.0]), whole(4, steps=3))
    assert not torch.equal(critic.backbone.wte.weight, policy.transformer.wte.weight)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())


def test_head_is_computed_in_float32_under_autocast_and_beside_bfloat16():
    ids, mask = pad(prompts(), "left")
    critic = make_critic()
    exact = critic(ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = critic(ids, mask)
    assert logit.dtype == torch.float32
    assert not torch.equal(logit, logit.bfloat16().float())  # it has more than bfloat16's digits
    torch.testing.assert_close(logit, exact, rtol=0, atol=0.2)
    low = PromptCritic(AutoModel.from_config(CONFIGS["qwen2"]()).bfloat16())
    assert low.head.weight.dtype == low(ids, mask).dtype == torch.float32
    double = PromptCritic(AutoModel.from_config(CONFIGS["qwen2"]()).double())
    assert double(ids, mask).dtype == torch.float64


def test_fsdp2_may_hang_its_hook_on_the_logit():
    """It warns about a view, whose hook an operation in place would drop: the critic's gradient would then be wrong."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        critic, (ids, mask) = make_critic(), pad(prompts(), "left")
        expected = critic(ids, mask)
        fully_shard(critic, mesh=init_device_mesh("cpu", (1,)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(critic(ids, mask), expected)
    finally:
        dist.destroy_process_group()


def test_bad_prompts_are_refused():
    critic = make_critic()
    ids, mask = pad(prompts(), "left")
    mask[2] = 0
    with pytest.raises(ValueError, match="a prompt has no token"):
        critic(ids, mask)
    with pytest.raises(ValueError, match=r"must be \(B, P\) alike, got \(4, 12\) and \(4, 11\)"):
        critic(ids, mask[:, 1:])


# ----------------------------------------------------------------------------------------------------------- predict
def test_predict_is_the_probability_of_each_prompt_in_order():
    critic = make_critic(tokens=tokenizer())
    texts = ["12+30=", "7", "abcdefgh = ?", "1+1=", "99+1="]
    expected = [critic(critic.tokenizer(t, return_tensors="pt")["input_ids"], torch.ones(1, len(t))) for t in texts]
    expected = torch.sigmoid(torch.cat(expected)).detach()
    assert expected.std() > 0.02
    critic.train()
    for batch_size in (1, 2, 16):
        value = critic.predict(texts, batch_size=batch_size)
        assert value.shape == (5,)
        assert value.dtype == torch.float32
        assert not value.requires_grad
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert critic.training
    assert critic.predict([]).shape == (0,)


def test_predict_leaves_dropout_off():
    critic = make_critic("gpt2", tokenizer()).train()
    critic.backbone.drop.p = 0.9
    assert torch.equal(critic.predict(["12+30="]), critic.predict(["12+30="]))


def test_predict_reads_chats_through_the_chat_template():
    critic = make_critic(tokens=tokenizer())
    critic.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    chat = [{"role": "user", "content": "1+1"}]
    assert torch.equal(critic.predict([chat]), critic.predict(["<1+1>="]))


def test_predict_refuses_what_it_cannot_read():
    critic = make_critic()
    with pytest.raises(ValueError, match=r"predict needs a tokenizer; give one: critic.tokenizer = "):
        critic.predict(["1+1="])
    critic.tokenizer = tokenizer()
    with pytest.raises(ValueError, match=r"prompts must be a list, got one string; pass \['1\+1="):
        critic.predict("1+1=")
    with pytest.raises(ValueError, match="prompt at index 1 has no token"):
        critic.predict(["1+1=", ""])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        critic.predict(["1+1="], batch_size=0)


# --------------------------------------------------------------------------------------------------- saved and loaded
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_saved_and_loaded_it_is_the_same(tmp_path, kind):
    critic = make_critic(kind, tokenizer())
    (tmp_path / "notes.txt").write_text("mine")
    critic.save_pretrained(tmp_path)
    loaded = PromptCritic.from_pretrained(tmp_path)
    ids, mask = pad(prompts(), "left")
    assert torch.equal(loaded(ids, mask), critic(ids, mask))
    assert torch.equal(loaded.predict(["12+30="]), critic.predict(["12+30="]))
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "head.safetensors", "prompt_critic.json", "notes.txt"} <= names
    assert not [name for name in names if name.startswith(".") or name.endswith((".bin", ".pt"))]
    make_critic(kind, seed=1).save_pretrained(tmp_path)  # over it, without a tokenizer
    assert PromptCritic.from_pretrained(tmp_path).tokenizer is None
    assert not torch.equal(PromptCritic.from_pretrained(tmp_path)(ids, mask), critic(ids, mask))


def test_dtype_is_the_saved_one_unless_given(tmp_path):
    critic = PromptCritic(make_critic().backbone.bfloat16())
    critic.save_pretrained(tmp_path)
    assert PromptCritic.from_pretrained(tmp_path).backbone.dtype == torch.bfloat16
    assert PromptCritic.from_pretrained(tmp_path, dtype=torch.float32).backbone.dtype == torch.float32
    assert PromptCritic.from_backbone(tmp_path).backbone.dtype == torch.float32  # to be trained


def test_from_backbone_takes_a_folder_and_the_tokenizer_in_it(tmp_path):
    policy = AutoModelForCausalLM.from_config(CONFIGS["qwen2"]())
    policy.save_pretrained(tmp_path)
    critic = PromptCritic.from_backbone(tmp_path)
    assert critic.tokenizer is None
    assert torch.equal(critic.backbone.embed_tokens.weight, policy.model.embed_tokens.weight)
    tokenizer().save_pretrained(tmp_path)
    assert torch.equal(PromptCritic.from_backbone(str(tmp_path)).predict(["1+1="]), torch.tensor([0.5]))


def test_gathered_weights_are_written_instead_of_its_own(tmp_path):
    """A critic sharded over ranks holds parts; rank 0 passes the whole."""
    critic, other = make_critic(), make_critic(seed=1)
    critic.save_pretrained(tmp_path, state_dict=other.state_dict())
    ids, mask = pad(prompts(), "left")
    assert torch.equal(PromptCritic.from_pretrained(tmp_path)(ids, mask), other(ids, mask))


def test_an_interrupted_write_leaves_no_critic_that_loads(tmp_path, monkeypatch):
    critic = make_critic(tokens=tokenizer())
    critic.save_pretrained(tmp_path)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sppo_control.llm.critic.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        critic.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no critic in .*prompt_critic.json is missing"):
        PromptCritic.from_pretrained(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path):
    make_critic().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of the backbone: norm.weight"):
        PromptCritic.from_pretrained(tmp_path)


def test_loading_executes_no_code(tmp_path):
    make_critic().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('evil')\n")
    PromptCritic.from_pretrained(tmp_path, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------------------------------------- tokenizers
SPLIT_ELSEWHERE = "abc += {12}"
"""Each character is a token; Qwen2's own pre-tokenizer makes words, which are not in the vocabulary."""


def write_model(folder, tokens, kind="qwen2"):
    """A folder of a language model, with a tokenizer."""
    AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_a_tokenizer_of_ones_own_is_loaded_as_it_was_saved(tmp_path, kind, name):
    """Beside a Qwen2 model too, for which AutoTokenizer would take Qwen2's pre-tokenizer. Both names were written by
    transformers, by its versions 5 and 4."""
    ids = tokenizer()(SPLIT_ELSEWHERE)["input_ids"]
    assert 0 not in ids
    critic = make_critic(kind, tokenizer())
    critic.save_pretrained(tmp_path / "critic")
    write_model(tmp_path / "model", tokenizer(), kind)
    for folder in ("critic", "model"):
        path = tmp_path / folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        assert settings["tokenizer_class"] == "TokenizersBackend"
        path.write_text(json.dumps({**settings, "tokenizer_class": name}))
    loaded = PromptCritic.from_pretrained(tmp_path / "critic")
    assert loaded.tokenizer(SPLIT_ELSEWHERE)["input_ids"] == ids
    check_same_tokenizer(critic.tokenizer, loaded.tokenizer)
    assert torch.equal(loaded.predict([SPLIT_ELSEWHERE]), critic.predict([SPLIT_ELSEWHERE]))
    assert PromptCritic.from_backbone(tmp_path / "model").tokenizer(SPLIT_ELSEWHERE)["input_ids"] == ids


def test_a_tokenizer_of_the_hub_is_loaded_as_it_was_saved(tmp_path, monkeypatch):
    """From a cache as huggingface_hub lays it out, without a network."""
    repository, commit = tmp_path / "models--somebody--tiny", "c" * 40
    write_model(repository / "snapshots" / commit, tokenizer())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ids = tokenizer()(SPLIT_ELSEWHERE)["input_ids"]
    assert load_tokenizer("somebody/tiny")(SPLIT_ELSEWHERE)["input_ids"] == ids
    assert PromptCritic.from_backbone("somebody/tiny").tokenizer(SPLIT_ELSEWHERE)["input_ids"] == ids
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        load_tokenizer("somebody/else")
    (repository / "refs" / "next").write_text("d" * 40)
    write_model(repository / "snapshots" / ("d" * 40), tokenizer("ab"))
    assert len(PromptCritic.from_backbone("somebody/tiny", revision="next").tokenizer) == 3
    assert len(PromptCritic.from_backbone("somebody/tiny").tokenizer) != 3


def test_a_models_usual_tokenizer_is_left_to_transformers(tmp_path):
    saved = Qwen2Tokenizer({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, [("a", "b")])
    loaded = load_tokenizer(write_model(tmp_path, saved), padding_side="left")
    assert type(loaded) is Qwen2Tokenizer
    assert loaded("aab")["input_ids"] == saved("aab")["input_ids"] == [0, 2]
    assert loaded.padding_side == "left"


@pytest.mark.parametrize("name", ["TokenizersBackend", "EvilTokenizer"])
def test_loading_a_tokenizer_executes_no_code(tmp_path, name):
    write_model(tmp_path, tokenizer())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('evil')\n")
    load_tokenizer(tmp_path, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_another_tokenizer_is_refused():
    check_same_tokenizer(tokenizer(), tokenizer())
    with pytest.raises(ValueError, match=r"46 and 45 tokens, 1 entries differ, the first is 'X' with id 45"):
        check_same_tokenizer(tokenizer(CHARACTERS + "X"), tokenizer())
    with pytest.raises(
        ValueError, match=r"45 and 45 tokens, 4 entries differ, the first is '0' with id 1; use a critic"
    ):
        check_same_tokenizer(tokenizer(), tokenizer("10" + CHARACTERS[2:]))


def test_the_same_vocabulary_with_another_split_is_refused():
    with pytest.raises(ValueError, match="has the policy's vocabulary, but splits"):
        check_same_tokenizer(tokenizer(), tokenizer(pattern=r"\w+"))


# ------------------------------------------------------------------------------------------------------------ training
def data(n=10, seed=3):
    ids, mask = pad(prompts(n, seed=seed), "left")
    return ids, mask, torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)).float()


def trained(micro_batch_size=None, max_grad_norm=None, lr=0.5):
    critic = make_critic().double()
    optimizer = torch.optim.SGD(critic.parameters(), lr=lr)
    losses = train_critic(critic, optimizer, *data(), whole(10), micro_batch_size, max_grad_norm)
    return torch.cat([p.detach().flatten() for p in critic.parameters()]), losses


def test_one_step_is_gradient_descent_on_the_cross_entropy():
    critic = make_critic().double()
    ids, mask, outcome = data()
    loss = core.bernoulli_value_loss(critic(ids, mask), outcome.double())
    gradients = torch.autograd.grad(loss, list(critic.parameters()))
    expected = torch.cat(
        [(p - 0.5 * g).detach().flatten() for p, g in zip(critic.parameters(), gradients, strict=True)]
    )
    weights, losses = trained()
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(losses, loss.detach().float()[None])


@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("batches", [[list(range(10))] * 2, [[7, 1, 2], [0, 1, 9]]])
def test_logits_are_those_before_the_first_step(batches, micro_batch_size):
    """Of all prompts, also where the first step trains on some; and the training is as without them."""
    critic, (ids, mask, outcome) = make_critic().double(), data()
    torch.nn.init.normal_(critic.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(critic)
    expected, found = critic(ids, mask).detach(), torch.full((10,), torch.nan, dtype=torch.float64)
    reads, rows = [], [torch.tensor(batch) for batch in batches]
    critic.register_forward_pre_hook(lambda module, given: reads.append(len(given[0])))
    for which, out in ((critic, found), (other, None)):
        optimizer = torch.optim.SGD(which.parameters(), lr=0.5)
        train_critic(which, optimizer, ids, mask, outcome, rows, micro_batch_size, value_logit=out)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (critic(ids, mask) - expected).abs().max() > 0.01
    for a, b in zip(critic.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(reads) == (20 if len(batches[0]) == 10 else 13) + 10, "no prompt is read twice for it"


def test_short_sequences_in_bfloat16_have_plain_attention():
    critic, (ids, mask, _) = make_critic(), data()
    torch.nn.init.normal_(critic.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    config, kinds = critic.backbone.config, []
    critic.backbone.register_forward_pre_hook(lambda *args: kinds.append(config._attn_implementation))
    full = critic(ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        low = critic(ids, mask)
        critic.backbone.train()
        critic(ids, mask)
        critic.backbone.eval()
        with short_attention(critic.backbone, 257):
            assert config._attn_implementation == "sdpa"
        with pytest.raises(KeyError), short_attention(critic.backbone, 256):
            raise KeyError(config._attn_implementation)
    assert kinds == ["sdpa", "eager", "sdpa"]
    assert config._attn_implementation == "sdpa", "put back, after an error too"
    torch.testing.assert_close(low, full, rtol=0, atol=0.05)


def test_a_critic_keeps_its_first_layers(tmp_path):
    critic, (ids, mask, _) = make_critic(), data()
    torch.nn.init.normal_(critic.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    n = len(critic.backbone.layers)
    before, hidden = critic(ids, mask), []
    critic.backbone.layers[0].register_forward_hook(lambda module, given, out: hidden.append(out))
    for wrong in (0, n + 1):
        with pytest.raises(ValueError, match=rf"--critic-layers must be from 1 to {n}, which the critic has, got"):
            keep_layers(critic, wrong)
    keep_layers(critic, 1)
    after = critic(ids, mask)
    assert len(critic.backbone.layers) == critic.backbone.config.num_hidden_layers == 1
    assert (after - before).abs().max() > 1e-4
    last = critic.backbone.norm(hidden[0])[torch.arange(10), mask.sum(1) - 1]
    torch.testing.assert_close(after, critic.head(last)[:, 0])
    critic.save_pretrained(tmp_path)
    torch.testing.assert_close(PromptCritic.from_pretrained(tmp_path)(ids, mask), after)
    del critic.backbone.layers
    with pytest.raises(ValueError, match="have another name than `layers`"):
        keep_layers(critic, 1)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 10, 64])
def test_micro_batches_add_up_exactly(micro_batch_size):
    """3 does not divide 10: the last one is short and must not weigh more."""
    whole, micro = trained(max_grad_norm=0.1), trained(micro_batch_size, max_grad_norm=0.1)
    torch.testing.assert_close(micro[0], whole[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(micro[1], whole[1])


def test_nothing_of_one_step_is_left_in_the_next():
    def run(parts):
        critic = make_critic().double()
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.5)
        for p in critic.parameters():
            p.grad = torch.ones_like(p)  # somebody's leftovers
        losses = torch.cat([train_critic(critic, optimizer, *data(), whole(10, steps)) for steps in parts])
        return torch.cat([p.detach().flatten() for p in critic.parameters()]), losses

    (one, losses_one), (three, losses_three) = run([3]), run([1, 0, 1, 1])
    assert torch.equal(one, three)
    assert torch.equal(losses_one, losses_three)
    torch.testing.assert_close(run([1])[0], trained()[0], rtol=0, atol=0)


def test_gradients_are_clipped_to_their_norm():
    start = torch.cat([p.detach().flatten() for p in make_critic().double().parameters()])
    assert (trained(max_grad_norm=0.01)[0] - start).norm() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert (trained()[0] - start).norm() > 0.5 * 0.1


def test_batches_of_the_window_are_drawn_without_replacement_and_whole_ones_are_not_drawn():
    def draw(seed, steps=4, size=4):
        return [rows.tolist() for rows in critic_batches(10, steps, size, np.random.default_rng(seed))]

    first = draw(seed=1)
    assert [len(batch) for batch in first] == [4] * 4  # two an epoch; the two prompts left over wait for a new order
    for epoch in (first[:2], first[2:]):
        assert len({i for batch in epoch for i in batch}) == 8
    assert first[:2] != first[2:]
    assert draw(seed=1) == first != draw(seed=2)
    assert draw(seed=1, steps=3) == first[:3]
    for size in (None, 10):
        assert draw(seed=1, steps=2, size=size) == [list(range(10))] * 2
        rng = np.random.default_rng(1)
        critic_batches(10, 2, size, rng)
        assert rng.integers(100) == np.random.default_rng(1).integers(100), "nothing was drawn"


def test_one_step_per_batch_in_their_order():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, ids, mask):
            seen.append(ids[:, 0].tolist())
            return self.w * ids[:, 0].float()

    critic, ids = Spy(), torch.arange(10)[:, None]
    steps = []
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *args: steps.append(len(seen)))
    batches = [torch.tensor(rows) for rows in ([3, 1, 2], [9], [0, 4])]
    losses = train_critic(critic, optimizer, ids, torch.ones_like(ids), torch.ones(10), batches, micro_batch_size=2)
    assert losses.shape == (3,)
    assert seen == [[3, 1], [2], [9], [0, 4]]
    assert steps == [2, 3, 4]


def test_it_learns_which_prompts_succeed():
    """Prompts that end in one token succeed, prompts that end in another fail."""
    critic = PromptCritic(make_critic().backbone, tokenizer())
    easy, hard = [f"{i}+1=" for i in range(8)], [f"{i}+1?" for i in range(8)]
    ids = torch.tensor([critic.tokenizer(t)["input_ids"] for t in easy + hard])
    outcome = torch.tensor([1.0] * 8 + [0.0] * 8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    batches = critic_batches(16, 40, 8, np.random.default_rng(0))
    losses = train_critic(critic, optimizer, ids, torch.ones_like(ids), outcome, batches)
    assert losses[-1] < 0.1 < 0.6 < losses[0]
    assert (critic.predict(easy) > 0.9).all()
    assert (critic.predict(hard) < 0.1).all()
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "got -1 and 4"),
        ({"batch_size": 11}, r"batch_size in 1..10 \(the number of prompts\)"),
        ({"batch_size": 0}, "got 1 and 0"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        critic_batches(**{"n": 10, "steps": 1, "batch_size": 4, "rng": np.random.default_rng(0), **arguments})


def test_micro_batches_of_nothing_are_refused():
    critic = make_critic()
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1, got 0"):
        train_critic(critic, torch.optim.SGD(critic.parameters()), *data(), whole(10), micro_batch_size=0)


def test_outcomes_outside_0_and_1_are_refused():
    critic = make_critic()
    ids, mask, outcome = data()
    with pytest.raises(ValueError, match=r"outcome must be in \[0, 1\]"):
        train_critic(critic, torch.optim.SGD(critic.parameters()), ids, mask, outcome * 2, whole(10))
