"""Responses: sampled from the policy's whole distribution, masked after their first end, with the log-probabilities that
the model's own logits give."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: extra llm")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sppo_control.llm import PromptCritic, addition, responses
from sppo_control.llm.prompts import Prompts
from sppo_control.llm.responses import (
    Responses,
    check_head,
    evaluate,
    generate,
    policy_log_probs,
    sample_table,
    token_values,
)

H = 6  # longest response
SIZES = {
    "vocab_size": 14, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    "initializer_range": 0.3,
}  # fmt: skip
ONE_LAYER = {**SIZES, "num_hidden_layers": 1}
GPT2 = {"vocab_size": 14, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.3,
        "bos_token_id": None, "eos_token_id": 1}  # fmt: skip
FAMILIES = {
    "qwen2": Qwen2Config(**SIZES),
    "llama": LlamaConfig(**ONE_LAYER),
    "llama, tied": LlamaConfig(**ONE_LAYER, tie_word_embeddings=True),
    "gpt2, learned positions": GPT2Config(**GPT2),
    "phi, a bias in the head": PhiConfig(**ONE_LAYER),
}


def policy(config=FAMILIES["qwen2"], seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


def all_right(texts, columns):
    return [1.0] * len(texts)


TEXTS = ["1+2=", "9", "123+45=", "7=", "0+00+000=", "55+5="]  # of several lengths
PROMPTS = Prompts(TEXTS, addition.tokenizer()(TEXTS)["input_ids"], [str(i) for i in range(len(TEXTS))])
MANY = list(range(len(TEXTS))) * 4


def sample(model, rows=MANY, seed=3, temperature=0.7, tokenizer=None, reward=all_right, **kwargs):
    return generate(model, tokenizer or addition.tokenizer(), PROMPTS, rows, reward, seed, H, temperature, **kwargs)


def assert_same_responses(got, expected):
    for name in ("prompt_ids", "prompt_mask", "tokens", "mask", "logp", "outcome"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert got.texts == expected.texts
    assert got.info["truncated"].tolist() == expected.info["truncated"].tolist()


@torch.no_grad()
def log_softmax(model, prompt, response, temperature):
    """(n, V), from the model's own logits, of one prompt alone, without padding."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 :]
    return (logits / temperature).log_softmax(-1)[: len(response)]


@pytest.fixture(scope="module")
def qwen():
    return policy()


@pytest.fixture(scope="module")
def batch(qwen):
    made = sample(qwen)
    assert 0 < made.info["truncated"].mean() < 1, "responses that end and responses that do not are both needed"
    assert len(set(made.lengths.tolist())) > 3
    return made


# ---------------------------------------------------------------------------------------------------- what was written
def test_prompts_are_padded_on_the_left_and_repeated_as_asked(qwen):
    made = sample(qwen, rows=[3, 0, 3])
    assert made.prompt_ids.tolist() == [[0, 0, *PROMPTS.ids[3]], PROMPTS.ids[0], [0, 0, *PROMPTS.ids[3]]]
    assert made.prompt_mask.tolist() == [[False, False, True, True], [True] * 4, [False, False, True, True]]
    assert made.prompts == (made.prompt_ids, made.prompt_mask)


ENDS = {
    "an end and padding": ([1], 0),
    "padding is the end": ([1], 1),
    "several ends": ([1, 5, 9], 0),
    "several ends, padding among them": ([1, 5, 9], 1),
    "no padding token": ([1, 5], None),
}


@pytest.mark.parametrize(("name", "batch_size"), [("several ends", 5), *((name, None) for name in ENDS)])
def test_mask_ends_with_the_first_end(name, batch_size, qwen):
    """The end itself counts; what stands after it does not, end or not."""
    ends, pad = ENDS[name]
    model, tokenizer = copy.deepcopy(qwen), addition.tokenizer()
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    made = sample(model, tokenizer=tokenizer, batch_size=batch_size)
    lengths, truncated = [], []
    for row, mask, text in zip(made.tokens.tolist(), made.mask.tolist(), made.texts, strict=True):
        first = next((t for t, token in enumerate(row) if token in ends), None)
        lengths.append(made.tokens.shape[1] if first is None else first + 1)
        truncated.append(first is None)
        assert mask == [t < lengths[-1] for t in range(len(row))]
        assert set(row[lengths[-1] :]) <= {1 if pad is None else pad}
        assert text == tokenizer.decode(row[: lengths[-1]], skip_special_tokens=True)
    assert made.lengths.tolist() == lengths
    assert made.num_steps == sum(lengths)
    assert made.info["truncated"].tolist() == truncated
    assert made.tokens.shape[1] == H
    assert 0 < sum(truncated) < len(truncated)
    stopped_by = {row[n - 1] for row, n, cut in zip(made.tokens.tolist(), lengths, truncated, strict=True) if not cut}
    assert stopped_by == set(ends), "each of the ends was met"
    assert any(0 in row[: n - 1] for row, n in zip(made.tokens.tolist(), lengths, strict=True)), (
        "a padding token that was sampled before the end is a token like any other"
    )


STOPS = {  # the prompts contain "+" and "=", and end with "=" or a digit
    "one character": ("3",),
    "several tokens": ("22", "411"),
    "also across the end of a prompt": ("=", "=5", "7="),
    "a special token": ("<pad>",),
}


@pytest.mark.parametrize(("name", "batch_size"), [("one character", 5), *((name, None) for name in STOPS)])
def test_a_stop_text_ends_a_response_with_the_token_that_completes_it(name, batch_size, qwen, batch):
    """All before it is as without a stop text, and so are responses in which there is none."""
    stop, tokenizer = STOPS[name], addition.tokenizer()
    free = batch if batch_size is None else sample(qwen, batch_size=batch_size)
    made = sample(qwen, stop=stop, batch_size=batch_size)
    T, stopped = made.tokens.shape[1], 0
    # An earlier end of one batch of responses gives the next batch other random numbers.
    for i, n in enumerate(free.lengths.tolist()[:batch_size]):
        row = free.tokens[i, :n].tolist()
        texts = [tokenizer.decode(row[: k + 1]) for k in range(n)]
        first = next((k + 1 for k, text in enumerate(texts) if any(x in text for x in stop)), None)
        stopped += first is not None
        length = n if first is None else first
        assert made.mask[i].tolist() == [t < length for t in range(T)]
        assert made.tokens[i].tolist() == row[:length] + [0] * (T - length)
        assert made.texts[i] == tokenizer.decode(row[:length], skip_special_tokens=True)
        assert made.info["truncated"][i] == (free.info["truncated"][i] and first is None)
        torch.testing.assert_close(made.logp[i, :length], free.logp[i, :length], rtol=0, atol=1e-10)
        assert not made.logp[i, length:].any()
    assert 0 < stopped < len(MANY)


def test_a_stop_text_that_is_never_written_changes_nothing(qwen, batch):
    assert_same_responses(sample(qwen, stop=("0123456789", "\n")), batch)


def test_generation_ends_when_all_responses_have_stopped(qwen):
    made = sample(qwen, stop=tuple(addition.ALPHABET), reward=lambda texts, columns: [float(len(x) < 2) for x in texts])
    assert made.tokens.shape[1] < H
    assert made.outcome.all()
    assert not made.info["truncated"].any()


def test_a_stop_text_may_begin_and_end_inside_a_token_or_a_character():
    words = Tokenizer(models.WordLevel({"ab": 0, "c\nd": 1, "e": 2}, unk_token="e"))
    words.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=words)
    for text, length in {"bc": 3, "\n": 3, "e": 1, "dec": 5, "x": None}.items():
        assert responses.stop_length(made, [2, 0, 1, 2, 1], [text]) == length, text
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=letters)
    ids = made("un été")["input_ids"]
    assert len(ids) == 8, "a token per byte"
    assert responses.stop_length(made, ids, ["é"]) == 5
    assert responses.stop_length(made, ids, ["té"]) == 8
    # `generate` reads only the end of a long response, which here begins inside a character
    long = torch.tensor([made("é" * 14 + "eté")["input_ids"], made("té" + "e" * 29)["input_ids"]])
    assert responses._stopped(made, ["té"], 2)(long, None).tolist() == [True, False]
    assert responses._stopped(made, ["té"], long.shape[1] - 2)(long, None).tolist() == [False, False], "of the prompt"


def test_a_model_without_an_end_is_refused(qwen):
    tokenizer, model = addition.tokenizer(), copy.deepcopy(qwen)
    tokenizer.eos_token = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"no end-of-text token; set tokenizer\.eos_token"):
        sample(model, tokenizer=tokenizer)


def test_the_reward_sees_each_response_with_its_prompts_answer(qwen):
    seen = []

    def reward(texts, columns):
        seen.extend(zip(texts, columns["answer"], strict=True))
        return [float(answer == "3") for answer in columns["answer"]]

    made = sample(qwen, rows=[3, 0, 3, 5], reward=reward)
    assert seen == list(zip(made.texts, ["3", "0", "3", "5"], strict=True))
    assert made.outcome.tolist() == made.episode_return.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert made.outcome.dtype == torch.float32


# --------------------------------------------------------------------------------------------- log-probabilities
@pytest.mark.parametrize(("family", "batch_size"), [("qwen2", 5), *((family, None) for family in FAMILIES)])
def test_logp_and_entropy_are_those_of_the_models_own_logits(family, batch_size):
    """Whatever stands beside a prompt in the batch, at a temperature that is not 1."""
    model, temperature = policy(FAMILIES[family]), 1.7
    made = sample(model, temperature=temperature, batch_size=batch_size)
    logp, entropy = policy_log_probs(model, made, temperature)
    assert torch.equal(logp.detach(), made.logp) or batch_size == 5
    assert made.logp.dtype == torch.float64
    assert len(set(made.lengths.tolist())) > 2
    for i, row in enumerate(MANY):
        n = int(made.lengths[i])
        response = made.tokens[i, :n].tolist()
        expected = log_softmax(model, PROMPTS.ids[row], response, temperature)
        at_tokens = expected[torch.arange(n), torch.tensor(response)]
        for values in (logp, made.logp):
            torch.testing.assert_close(values[i, :n].detach(), at_tokens, rtol=0, atol=1e-10)
            assert not values[i, n:].any()
        torch.testing.assert_close(
            entropy[i, :n].detach(), -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-10, msg="entropy"
        )


def test_logp_of_the_unchanged_policy_is_the_same_to_the_last_bit(qwen, batch):
    """So that the first ratio is 1 exactly, in training mode too."""
    model = copy.deepcopy(qwen).train()
    assert torch.equal(policy_log_probs(model, batch, 0.7).logp.detach(), batch.logp)


def test_the_old_log_probabilities_are_the_first_that_are_computed(qwen, batch):
    """Those of the unchanged policy, kept for later epochs; else those of `generate`; never those of a changed policy."""
    rows, changed = torch.tensor([4, 0, 7]), torch.zeros(3, int(batch.lengths[[4, 0, 7]].max()))
    assert torch.equal(batch.old_log_probs(rows, changed, unchanged=False), batch.take(rows).logp)
    own = replace(batch, logp=batch.logp.clone())  # another pass may have rounded otherwise, as bfloat16 does
    first = own.take(rows).logp + 0.01
    assert torch.equal(own.old_log_probs(rows, first, unchanged=True), first), "so the first ratio is exactly 1"
    torch.testing.assert_close(own.old_log_probs(rows, changed, unchanged=False), first)
    made = sample(qwen, log_probs=False)
    assert made.logp.isnan().all()
    with pytest.raises(ValueError, match="call generate with log_probs=True"):
        made.old_log_probs(rows, changed, unchanged=False)
    logp = policy_log_probs(qwen, made.take(rows), 0.7).logp
    old = made.old_log_probs(rows, logp, unchanged=True)
    assert torch.equal(old, logp)
    assert not old.requires_grad
    later = made.old_log_probs(rows.flip(0), changed, unchanged=False)
    torch.testing.assert_close(later, old.flip(0).to(later.dtype))
    assert made.logp[1].isnan().all()


def test_gradient_of_logp_is_that_of_the_models_own_logits(batch):
    grads = []
    for ours in (True, False):
        model = policy()
        if ours:
            total = policy_log_probs(model, batch, 0.7).logp.sum()
        else:
            total = 0.0
            for i, row in enumerate(MANY):
                prompt, response = PROMPTS.ids[row], batch.tokens[i, : int(batch.lengths[i])]
                logits = model(input_ids=torch.tensor([prompt + response.tolist()])).logits[0, len(prompt) - 1 : -1]
                total = total + (logits / 0.7).log_softmax(-1)[torch.arange(len(response)), response].sum()
        total.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[1].items():
        torch.testing.assert_close(grads[0][name], grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def widened(batch, left, right):
    """The same responses in more padding, with tokens on it that mean something elsewhere."""
    n = len(batch.tokens)
    junk = torch.randint(2, 14, (n, left + right), generator=torch.Generator().manual_seed(0))
    cat = lambda *parts: torch.cat(parts, dim=1)  # noqa: E731
    no = torch.zeros(n, left + right, dtype=torch.bool)
    return Responses(
        cat(junk[:, :left], torch.where(batch.prompt_mask, batch.prompt_ids, 7)), cat(no[:, :left], batch.prompt_mask),
        cat(torch.where(batch.mask, batch.tokens, 9), junk[:, left:]), cat(batch.mask, no[:, left:]),
        cat(batch.logp, torch.full((n, right), torch.nan)), batch.outcome, batch.texts, batch.info,
    )  # fmt: skip


def test_padding_does_not_matter(qwen, batch):
    """Neither its width, nor its tokens, nor what else is in the batch; and `take` is what cuts it off."""
    critic = PromptCritic.from_backbone(qwen)
    torch.nn.init.normal_(critic.head.weight)
    with torch.no_grad():
        values = token_values(critic, batch)
        expected = (*policy_log_probs(qwen, batch, 0.7), torch.where(batch.mask, values, 0.0))
        for left, right in ((0, 0), (5, 0), (0, 4), (3, 2)):
            wide, width = widened(batch, left, right), batch.tokens.shape[1]
            got = (
                *policy_log_probs(qwen, wide, 0.7),
                torch.where(wide.mask, token_values(critic, wide), 0.0),
            )
            for x, y in zip(got, expected, strict=True):
                torch.testing.assert_close(x[:, :width], y, rtol=0, atol=1e-10)
                assert not x[:, width:].any()
        for i in range(len(MANY)):
            alone = batch.take(torch.tensor([i]))
            n = int(batch.lengths[i])
            assert alone.prompt_ids.tolist() == [PROMPTS.ids[MANY[i]]]
            assert alone.tokens.shape == (1, n)
            for x, y in zip((*policy_log_probs(qwen, alone, 0.7), token_values(critic, alone)), expected, strict=True):
                torch.testing.assert_close(x[0], y[i, :n], rtol=0, atol=1e-10)


def test_take_cuts_to_the_widest_and_keeps_values_and_order(batch):
    rows = torch.tensor([7, 1, 13])  # three responses to the prompt of one token
    some = replace(widened(batch, 3, 2), info={"index": np.arange(len(MANY))}).take(rows)
    width = int(batch.lengths[rows].max())
    assert some.prompt_ids.tolist() == [PROMPTS.ids[1]] * 3
    assert some.prompt_mask.all()
    for name in ("tokens", "mask", "logp"):
        expected = getattr(batch, name)[rows, :width]
        assert torch.equal(getattr(some, name)[some.mask], expected[batch.mask[rows, :width]]), name
        assert getattr(some, name).shape == (3, width)
    assert torch.equal(some.outcome, batch.outcome[rows])
    assert some.texts == [batch.texts[i] for i in rows]
    assert some.info["index"].tolist() == rows.tolist()
    mixed = batch.take(torch.tensor([0, 4]))
    assert mixed.prompt_ids.shape[1] == len(PROMPTS.ids[4])
    assert mixed.prompt_ids[0].tolist() == [0] * (len(PROMPTS.ids[4]) - len(PROMPTS.ids[0])) + PROMPTS.ids[0]


def test_token_values_have_read_the_prompt_and_the_tokens_before(qwen, batch):
    critic = PromptCritic.from_backbone(qwen)
    torch.nn.init.normal_(critic.head.weight)
    values = token_values(critic, batch)
    torch.testing.assert_close(values[:, 0], critic(*batch.prompts), rtol=0, atol=1e-10)
    for i, row in enumerate(MANY):
        for t in range(int(batch.lengths[i])):
            read = torch.tensor([PROMPTS.ids[row] + batch.tokens[i, :t].tolist()])
            torch.testing.assert_close(values[i, t], critic(read, torch.ones_like(read))[0], rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------------- sampling
HABITS = {
    "repetition_penalty": 9.0, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "min_p": 0.5, "typical_p": 0.2,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "min_new_tokens": H, "min_length": 9, "max_length": 3, "max_new_tokens": 2,
    "no_repeat_ngram_size": 1, "bad_words_ids": [[3], [4]], "suppress_tokens": [5, 6], "begin_suppress_tokens": [7],
    "forced_bos_token_id": 8, "forced_eos_token_id": 1, "sequence_bias": [[[9], 10.0]], "do_sample": False,
    "renormalize_logits": True, "use_cache": False, "num_return_sequences": 2, "exponential_decay_length_penalty": (1, 3.0),
    "stop_strings": ["7"], "pad_token_id": 3, "num_beams": 3, "encoder_repetition_penalty": 4.0,
}  # fmt: skip


@pytest.mark.parametrize("habit", ["repetition_penalty", "top_p", "min_new_tokens", "num_beams", "all"])
def test_what_a_model_brings_does_not_change_the_samples(habit, qwen, batch):
    model = copy.deepcopy(qwen)
    brought = HABITS if habit == "all" else {habit: HABITS[habit]}
    for name, value in brought.items():
        assert hasattr(model.generation_config, name), name
        setattr(model.generation_config, name, value)
    before = model.generation_config
    assert_same_responses(sample(model), batch)
    assert model.generation_config is before
    for name, value in brought.items():
        assert getattr(model.generation_config, name) == value


def agrees(tokens, p):
    """Chi-squared, five standard deviations; tokens that are expected less than five times count as one."""
    seen, expected = tokens.bincount(minlength=len(p)).double(), len(tokens) * p
    rare = expected < 5
    seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    freedom = len(expected) - 1
    return ((seen - expected).square() / expected.clamp(min=1.0)).sum() < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_samples_follow_the_policys_whole_distribution(temperature, qwen):
    """The first token, and the second given the first, against the model's own logits."""
    n, prompt = 8000, PROMPTS.ids[0]
    made = generate(qwen, addition.tokenizer(), PROMPTS, [0] * n, all_right, 1, 2, temperature, log_probs=False)
    first = log_softmax(qwen, prompt, [0], temperature)[0].exp()
    assert agrees(made.tokens[:, 0], first)
    assert not agrees(made.tokens[:, 0], log_softmax(qwen, prompt, [0], temperature * 1.2)[0].exp()), (
        "another distribution is told apart"
    )
    assert len(made.tokens[:, 0].unique()) == 14, "no token is out of reach"
    for token in set(range(14)) - {1}:
        some = made.tokens[made.tokens[:, 0] == token, 1]
        assert agrees(some, log_softmax(qwen, prompt, [token, 0], temperature)[1].exp())


def test_same_seed_same_samples_and_no_other_random_number_is_touched(qwen, batch):
    torch.manual_seed(99)
    states = [torch.get_rng_state(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002 - the global one
    assert_same_responses(sample(qwen), batch)
    after = [torch.get_rng_state(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002
    assert torch.equal(after[0], states[0])
    assert after[1:] == states[1:]
    torch.rand(5)
    assert_same_responses(sample(qwen), batch)
    assert sample(qwen, seed=4).texts != batch.texts
    by_prompt = [batch.texts[i :: len(TEXTS)] for i in range(len(TEXTS))]
    assert max(len(set(texts)) for texts in by_prompt) == 4, "one prompt's responses are not copies of each other"


def test_temperature_0_takes_the_most_probable_token(qwen):
    made = sample(qwen, rows=range(len(TEXTS)), temperature=0.0)
    for i, prompt in enumerate(PROMPTS.ids):
        ids = list(prompt)
        for token in made.tokens[i, : int(made.lengths[i])].tolist():
            with torch.no_grad():
                assert token == int(qwen(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    assert torch.equal(made.logp, policy_log_probs(qwen, made, 1.0).logp)


def test_batch_size_limits_what_is_in_memory_together(qwen, monkeypatch):
    whole, sizes = sample(qwen, temperature=0.0), []
    real, hidden = qwen.generate, responses.hidden_states
    monkeypatch.setattr(qwen, "generate", lambda ids, **kwargs: sizes.append(len(ids)) or real(ids, **kwargs))
    monkeypatch.setattr(responses, "hidden_states", lambda m, r, b: sizes.append(len(r.tokens)) or hidden(m, r, b))
    split = sample(qwen, temperature=0.0, batch_size=5)
    assert sizes == [5, 5, 5, 5, 4] * 2
    assert torch.equal(split.tokens, whole.tokens)
    torch.testing.assert_close(split.logp, whole.logp, rtol=0, atol=1e-10)
    assert split.texts == whole.texts


def test_chunks_do_not_repeat_each_others_samples(qwen):
    made = sample(qwen, rows=[0] * 24, batch_size=6, temperature=2.0)
    chunks = [made.texts[i : i + 6] for i in range(0, 24, 6)]
    assert all(a != b for i, a in enumerate(chunks) for b in chunks[:i])


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_sampling_is_done_in_evaluation_mode_and_the_mode_put_back(qwen, batch):
    """Dropout would sample from another policy, and checkpointing of gradients would switch the cache off."""
    model = copy.deepcopy(qwen)
    model.gradient_checkpointing_enable()
    for training in (True, False):
        model.train(training)
        assert_same_responses(sample(model), batch)
        assert model.training == training
        brought = model.generation_config

        def fail(*args, **kwargs):
            raise RuntimeError("out of memory")

        generating, model.generate = model.generate, fail
        with pytest.raises(RuntimeError, match="out of memory"):
            sample(model)
        model.generate = generating
        assert model.training == training
        assert model.generation_config is brought


# ----------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("batch_size", [None, 4])
def test_evaluation_counts_one_response_to_each_prompt(batch_size, qwen, monkeypatch):
    made = sample(qwen, rows=range(len(TEXTS)), temperature=0.0)
    right = {answer: i % 3 == 0 for i, answer in enumerate(PROMPTS.answers)}
    monkeypatch.setattr(responses, "policy_log_probs", None)  # it would be computed for nothing
    result = evaluate(
        qwen, addition.tokenizer(), PROMPTS, lambda texts, columns: [float(right[a]) for a in columns["answer"]], 0, H, 0.0,
        batch_size,
    )  # fmt: skip
    assert result.outcome.tolist() == list(right.values())
    assert result.rate == 2 / 6
    assert result.info["truncated"].tolist() == made.info["truncated"].tolist()
    assert result.as_dict()["measures"] == {"truncated": made.info["truncated"].mean()}


def test_evaluation_repeats_itself_and_its_batches_differ(qwen):
    texts = []

    def reward(some, columns):
        texts.append(some)
        return [0.0] * len(some)

    same = Prompts(TEXTS[:1] * 12, PROMPTS.ids[:1] * 12, ["1"] * 12)
    for seed in (1, 1, 2):
        evaluate(qwen, addition.tokenizer(), same, reward, seed, H, batch_size=6)
    assert texts[:2] == texts[2:4]
    assert texts[0] != texts[1]
    assert texts[:2] != texts[4:]


def test_table_of_samples(batch):
    prompts = Prompts(["a|b\n`c`", "2"], [[2], [3]], ["1|2", "5"])
    made = batch.take(torch.tensor([0, 1]))
    made.texts[:] = ["x", "y"]
    made.info["truncated"][:] = [True, False]
    made.outcome[:] = torch.tensor([0.0, 1.0])
    assert sample_table(prompts, [0, 1], made, torch.tensor([0.25, 0.5])).splitlines()[2:] == [
        r"| `a\|b 'c'` | `x` (truncated) | `1\|2` | 0 | 0.25 |",
        "| `2` | `y` | `5` | 1 | 0.50 |",
    ]
    assert len(sample_table(PROMPTS, MANY, batch, torch.zeros(24), n=3).splitlines()) == 2 + 3


# --------------------------------------------------------------------------------------------------- the output head
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gain", [1.0, 30.0])
def test_models_whose_logits_are_their_heads_product_are_accepted(family, gain):
    model = policy(FAMILIES[family]).float()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(gain)
        before = model(input_ids=torch.tensor([[2, 3]])).logits
        check_head(model, range(8))
        assert torch.equal(model(input_ids=torch.tensor([[2, 3]])).logits, before), "the model is left as it was"


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZES, head_dim=8),
        Gemma2Config(**{**SIZES, "initializer_range": 0.01}, head_dim=8),  # its logits are far below the cap still
        CohereConfig(**SIZES),
        GraniteConfig(**SIZES, logits_scaling=8.0),
    ],
    ids=["gemma2", "gemma2, small logits", "cohere", "granite"],
)
def test_models_which_change_their_logits_after_the_head_are_refused(config):
    with pytest.raises(ValueError, match="changes its logits after the output head"):
        check_head(policy(config).float(), range(8))


# ------------------------------------------------------------------------------------------------------ other hardware
def test_bfloat16_is_computed_and_differs_little(qwen):
    model = copy.deepcopy(qwen).float()
    made = sample(model, bf16=True)
    full, low = policy_log_probs(model, made, 0.7), policy_log_probs(model, made, 0.7, bf16=True)
    assert torch.equal(low.logp, made.logp)
    for x, y in zip(low, full, strict=True):
        assert x.dtype == torch.float32
        assert 1e-4 < (x - y).abs().max() < 0.2
    critic = PromptCritic.from_backbone(model)
    torch.nn.init.normal_(critic.head.weight, std=0.3)
    values = [token_values(critic, made, bf16)[made.mask] for bf16 in (True, False)]
    assert values[0].dtype == torch.float32
    assert 1e-4 < (values[0] - values[1]).abs().max() < 0.2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(qwen):
    model = copy.deepcopy(qwen).cuda()
    state = torch.cuda.get_rng_state()
    assert sample(model, seed=5).texts == sample(model, seed=5).texts
    assert torch.equal(torch.cuda.get_rng_state(), state)
    there, here = sample(model, temperature=0.0, batch_size=5), sample(qwen, temperature=0.0)
    for name in ("prompt_ids", "prompt_mask", "tokens", "mask", "logp", "outcome"):
        x = getattr(there, name)
        assert x.is_cuda, name
        torch.testing.assert_close(x.cpu(), getattr(here, name), rtol=0, atol=2e-6 if name == "logp" else 0)
    assert sample(model, log_probs=False).take(torch.tensor([1, 0])).tokens.is_cuda
    evaluate(model, addition.tokenizer(), PROMPTS, all_right, 0, H)
    check_head(copy.deepcopy(model).float(), range(8))
