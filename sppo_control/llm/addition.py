"""The tiny task of the language-model scripts: addition. The model writes out the working, column by column, with carries.

    prompt    4821+396=
    response  1670291183214050=5217        1+6=07, 2+9=11, 8+3+1=12, 4+0+1=05, as below

Columns come from the right. Each is four characters: the two digits, the sum's last digit, the carry. Then come "=" and the
sum. Only what follows the last "=" is judged. The working is free, but a model with the right working gets the right sum.
The longest response is 22 tokens and the end token. The vocabulary is 14 tokens, made here: nothing is downloaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config

ALPHABET = "0123456789+="
MAX_DIGITS = 4
MAX_RESPONSE = 4 * MAX_DIGITS + 1 + MAX_DIGITS + 1 + 1
"""Tokens of the longest right response, end token included."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(ALPHABET)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=64
    )


def config(width: int = 96, layers: int = 3) -> Qwen2Config:
    """Qwen2 with 0.33 M parameters."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=len(ALPHABET) + 2, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 24, num_key_value_heads=width // 24, max_position_embeddings=64,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def problems(n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """n pairs of numbers of one to four digits; all four lengths are equally likely."""
    digits = rng.integers(1, MAX_DIGITS + 1, size=(n, 2))
    low = np.where(digits == 1, 0, 10 ** (digits - 1))
    return [(int(a), int(b)) for a, b in rng.integers(low, 10**digits)]


def rows(pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The problems as a dataset with the columns prompt and answer."""
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]


def demonstration(
    a: int, b: int, rng: np.random.Generator, forgets_carry: float = 0.0, wrong_digit: float = 0.0
) -> str:
    """A response to "a+b=", by a demonstrator who makes mistakes.

    Args:
        a, b: 0 to 9999.
        rng: draws the mistakes.
        forgets_carry: how often a carry of 1 is written as 0.
        wrong_digit: how often a column's digit is a wrong one.

    Returns:
        Without mistakes, the right working and sum. With mistakes, a sum that agrees with the wrong working.
    """
    working, total, carry = [], "", 0
    for column in range(max(len(str(a)), len(str(b)))):
        x, y = (n // 10**column % 10 for n in (a, b))
        digit, carry_out = (x + y + carry) % 10, (x + y + carry) // 10
        if carry_out and rng.random() < forgets_carry:
            carry_out = 0
        if rng.random() < wrong_digit:
            digit = (digit + int(rng.integers(1, 10))) % 10
        working.append(f"{x}{y}{digit}{carry_out}")
        total, carry = str(digit) + total, carry_out
    return "".join(working) + "=" + (("1" if carry else "") + total)
