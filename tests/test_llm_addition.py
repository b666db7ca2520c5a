"""The tiny task: demonstrations are right except for mistakes at the stated rates. The tokenizer gives back what it was
given, and the shipped model adds as well as its card says."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("trl", reason="trl is not installed: extra llm")

from transformers import AutoModelForCausalLM

from sppo_control.llm import addition
from sppo_control.llm.prompts import load_prompts, make_reward
from sppo_control.llm.responses import evaluate
from sppo_control.llm.setup import ADDER
from sppo_control.llm.tokenizers import load_tokenizer


def columns(text):
    """The working as rows of (first digit, second digit, sum's digit, carry), and what follows the "="."""
    working, total = text.split("=")
    assert len(working) % 4 == 0
    return np.array([int(c) for c in working]).reshape(-1, 4), total


def close(successes, trials, rate):
    """Five standard deviations of a binomial."""
    return abs(successes - trials * rate) <= 5 * math.sqrt(trials * rate * (1 - rate))


@pytest.fixture(scope="module")
def pairs():
    edges = [(0, 0), (9, 9), (5, 5), (0, 9999), (9999, 9999), (1, 9999), (999, 1), (90, 9), (4821, 396)]
    return edges + addition.problems(3000, np.random.default_rng(1))


@pytest.fixture(scope="module")
def additions():
    return load_prompts(None, addition.tokenizer())


# ------------------------------------------------------------------------------------------------------ demonstrations
def test_the_example_of_the_docstring():
    text = addition.demonstration(4821, 396, np.random.default_rng(0))
    assert text == "1670291183214050=5217"
    assert "4821+396=" in addition.__doc__
    assert text in addition.__doc__


def test_clean_demonstrations_are_right_column_by_column(pairs):
    for a, b in pairs:
        table, total = columns(addition.demonstration(a, b, np.random.default_rng(0)))
        assert total == str(a + b)
        assert len(table) == max(len(str(a)), len(str(b)))
        assert [int("".join(map(str, digits[::-1]))) for digits in table.T[:2]] == [a, b]
        carry = 0
        for x, y, digit, carry_out in table.tolist():
            assert divmod(x + y + carry, 10) == (carry_out, digit)
            carry = carry_out


@pytest.mark.parametrize(("forgets_carry", "wrong_digit"), [(0.6, 0.06), (0.25, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_mistakes_happen_at_the_stated_rates_and_the_sum_agrees_with_the_working(pairs, forgets_carry, wrong_digit):
    rng = np.random.default_rng(0)
    carries = forgotten = digits = slips = 0
    off_by = []
    for a, b in pairs:
        table, total = columns(addition.demonstration(a, b, rng, forgets_carry, wrong_digit))
        carry = 0
        for x, y, digit, carry_out in table.tolist():
            due, right = divmod(x + y + carry, 10)
            carries, forgotten = carries + due, forgotten + (due != carry_out)
            digits, slips = digits + 1, slips + (digit != right)
            off_by.append((digit - right) % 10)
            assert carry_out <= due, "a carry may be forgotten, not invented"
            carry = carry_out
        assert total == ("1" if carry else "") + "".join(map(str, table[::-1, 2]))
    assert min(carries, digits) > 1000
    assert close(forgotten, carries, forgets_carry)
    assert close(slips, digits, wrong_digit)
    for wrong in range(1, 10):
        assert close(off_by.count(wrong), digits, wrong_digit / 9), "all other digits equally often"


def test_mistakes_are_a_function_of_the_generator():
    texts = [addition.demonstration(9999, 9999, np.random.default_rng(seed), 0.5, 0.5) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_lengths_never_exceed_the_longest_response(pairs):
    tokenizer, longest = addition.tokenizer(), 0
    for a, b in pairs:
        for mistakes in ((0.0, 0.0), (0.5, 0.5)):
            text = addition.demonstration(a, b, np.random.default_rng(a), *mistakes)
            longest = max(longest, len(tokenizer(text + "<eos>")["input_ids"]))
    assert longest == addition.MAX_RESPONSE
    assert len("9999+9999=") + longest <= addition.config().max_position_embeddings


# ------------------------------------------------------------------------------------------------------------ problems
def test_all_lengths_are_equally_frequent():
    numbers = np.array(addition.problems(20_000, np.random.default_rng(3)))
    assert numbers.shape == (20_000, 2)
    for column in numbers.T:
        for digits in range(1, addition.MAX_DIGITS + 1):
            some = column[(column >= (digits > 1) * 10 ** (digits - 1)) & (column < 10**digits)]
            assert close(len(some), 20_000, 1 / addition.MAX_DIGITS)
            if digits < 3:
                assert set(some.tolist()) == set(range((digits > 1) * 10 ** (digits - 1), 10**digits))
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.05, "the two numbers do not depend on each other"


def test_rows_ask_and_answer():
    assert addition.rows([(12, 930), (0, 0)]) == [
        {"prompt": "12+930=", "answer": "942"},
        {"prompt": "0+0=", "answer": "0"},
    ]


def test_prompts_are_the_same_ones_each_time_and_held_out_ones_are_not_trained_on(additions):
    train, held_out = additions.split(512)
    assert len(held_out) == 512
    assert len(train) + 512 == len(additions) == len(set(additions.texts)) > 15_000
    assert not set(train.texts) & set(held_out.texts)
    for prompt, answer in zip(held_out.texts, held_out.answers, strict=True):
        assert sum(map(int, prompt.rstrip("=").split("+"))) == int(answer)
    again = load_prompts(None, addition.tokenizer()).split(512)[1]
    assert again == held_out
    assert set(additions.split(16)[1].texts) < set(held_out.texts), "fewer held-out prompts are some of the same"


# ----------------------------------------------------------------------------------------------------------- tokenizer
@pytest.fixture(scope="module", params=["made", "reloaded", "shipped"])
def tokenizer(request, tmp_path_factory):
    if request.param == "shipped":
        return load_tokenizer(ADDER)
    if request.param == "made":
        return addition.tokenizer()
    folder = tmp_path_factory.mktemp("adder")
    addition.tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return load_tokenizer(folder)


def test_tokenizer_has_a_token_for_each_character_and_gives_texts_back(tokenizer):
    assert len(tokenizer) == addition.config().vocab_size == 14
    assert sorted(tokenizer.get_vocab().values()) == list(range(14))
    text = "4821+396=1670291183214050=5217"
    ids = tokenizer(text)["input_ids"]
    assert ids == [2 + addition.ALPHABET.index(c) for c in text]
    assert tokenizer.decode(ids) == text
    ended = tokenizer(text + "<eos>")["input_ids"]
    assert ended == [*ids, 1]
    assert tokenizer.decode([*ended, 0, 0], skip_special_tokens=True) == text


def test_tokenizer_pads_on_the_left_with_a_token_of_its_own(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert (addition.config().pad_token_id, addition.config().eos_token_id) == (0, 1)
    batch = tokenizer(["1+2=", "10+2="], padding=True)
    assert batch["input_ids"][0] == [0, *tokenizer("1+2=")["input_ids"]]
    assert batch["attention_mask"] == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


# ------------------------------------------------------------------------------------------------------- shipped model
def test_shipped_model_adds_as_well_as_its_card_says(additions):
    card = json.loads((ADDER / "card.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(ADDER)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    expected = addition.config(card["recipe"]["width"], card["recipe"]["layers"]).to_dict()
    ours = model.config.to_dict()
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "eos_token_id", "pad_token_id", "bos_token_id"):
        assert ours[name] == expected[name], name

    held_out = additions.split(512)[1]
    said = card["accuracy"]
    assert said["episodes"] == 512
    result = evaluate(
        model, load_tokenizer(ADDER), held_out, make_reward("after-equals"), 12345, addition.MAX_RESPONSE + 1
    )
    deviation = math.sqrt(2 * said["rate"] * (1 - said["rate"]) / 512)  # of the difference of two samples
    assert abs(result.rate - said["rate"]) < 3.5 * deviation
    assert 0.2 < said["rate"] < 0.6, "neither hopeless nor done"

    lengths = np.array([max(map(len, text.rstrip("=").split("+"))) for text in held_out.texts])
    for digits, rate in said["by_longer_numbers_digits"].items():
        some = result.outcome[lengths == int(digits)]
        assert abs(some.mean() - rate) < 4 * math.sqrt(2 * 0.25 / len(some))
        assert rate > 0.1, "some success at each length, or no reward ever follows"
    by_length = [said["by_longer_numbers_digits"][str(n)] for n in lengths]
    assert np.mean(by_length) == pytest.approx(said["rate"])
