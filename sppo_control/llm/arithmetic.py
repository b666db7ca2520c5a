"""A task for a real pretrained language model: sums of two numbers of two digits, as plain text.

    prompt    70 + 17 = 87
              64 + 49 = 113
              38 + 24 =
    response   62

The mixed sums have numbers of one to three digits, so some are much harder than others.

A model that was trained on texts goes on with the pattern. `first_number` judges the first line of the response. Small
models are often wrong, so there is something to learn.
`scripts/arithmetic_data.py` writes the problems into files.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

EXAMPLES = 2
"""Solved examples in a prompt. With more of them the model is not better, and each update takes longer."""
MAX_RESPONSE = 6
"""Tokens: a space, up to four digits and the end of the line."""
PER_KIND = 600
"""Mixed sums of one kind, such as one digit + three digits."""


def first_number(responses: list[str], columns: dict[str, list[Any]]) -> list[float]:
    """A reward for `--reward sppo_control.llm.arithmetic:first_number`: whether the first line is the answer.

    Args:
        responses: n texts.
        columns: the dataset's; `answer` is read.

    Returns:
        n numbers, 1.0 where the first line is the answer and nothing else but spaces, else 0.0.
    """
    lines = [response.partition("\n")[0] for response in responses]
    return [
        float(re.fullmatch(rf"\s*{re.escape(str(answer))}\s*", line) is not None)
        for line, answer in zip(lines, columns["answer"], strict=True)
    ]


def mixed_sums(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sums of numbers of one to three digits, (3045, 2): of each of the six kinds as many, or all that there are."""
    drawn = []
    for i, j in ((1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)):
        a, b = np.meshgrid(np.arange(10 ** (i - 1), 10**i), np.arange(10 ** (j - 1), 10**j), indexing="ij")
        pairs = np.stack([a, b], axis=-1)[a <= b]  # each sum once
        drawn.append(rng.choice(pairs, min(PER_KIND, len(pairs)), replace=False))
    return rng.permutation(np.concatenate(drawn))


def make_rows(held_out: int, seed: int = 0, mixed: bool = False) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The 4095 sums of two numbers from 10 to 99, or the mixed sums, in two parts.

    Which number comes first is drawn, so each sum is there once.
    The solved examples of all prompts are sums of the training part. So a held-out sum is in no prompt but its own.

    Args:
        held_out: sums in the second part.
        seed: of the parts, the order of the numbers, and the examples.
        mixed: the sums of `mixed_sums`.

    Returns:
        Rows for training, and held-out rows. Each has a prompt and an answer.

    Raises:
        ValueError: one of the parts would be empty, or too small for the examples.
    """
    rng = np.random.default_rng(seed)
    if mixed:
        sums = mixed_sums(rng)
    else:
        sums = rng.permutation([(a, b) for a in range(10, 100) for b in range(a, 100)])  # (4095, 2)
    if not 1 <= held_out < len(sums) - EXAMPLES:
        raise ValueError(f"held_out must be from 1 to {len(sums) - EXAMPLES - 1}, got {held_out}")
    sums = np.where(rng.random((len(sums), 1)) < 0.5, sums, sums[:, ::-1])
    known = len(sums) - held_out

    def row(i: int) -> dict[str, str]:
        drawn = [j for j in held_out + rng.choice(known, EXAMPLES + 1, replace=False) if j != i][:EXAMPLES]
        solved = "".join(f"{a} + {b} = {a + b}\n" for a, b in sums[drawn])
        a, b = sums[i]
        return {"prompt": f"{solved}{a} + {b} =", "answer": str(a + b)}

    return [row(i) for i in range(held_out, len(sums))], [row(i) for i in range(held_out)]
