"""What a model can take: how many positions it has, and which token ids."""

from __future__ import annotations

from typing import Any

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names that architectures give to the number of positions."""


def positions(config: Any) -> int | None:
    """How many tokens a model can read, prompt and response together.

    Args:
        config: a Hugging Face model's configuration.

    Returns:
        The number; None where no position is too far (ALiBi, state-space models). A YaRN, linear or dynamic factor for
        rotary positions multiplies the original number.
    """
    config = config.get_text_config()
    attention = getattr(config, "attn_config", None)
    if getattr(config, "alibi", False) or getattr(attention, "alibi", False) or config.model_type == "bloom":
        return None
    limit = next((getattr(config, name) for name in LIMITS if isinstance(getattr(config, name, None), int)), None)
    if limit is None:
        return None
    for rope in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in ("yarn", "linear", "dynamic"):
            original = rope.get("original_max_position_embeddings") or limit
            return max(limit, int(original * (rope.get("factor") or 1)))
    return limit


def check_context(config: Any, model: str, longest: int, response: int, flag: str, prompt_flag: str = "") -> None:
    """Refuse prompts and responses that together do not fit. Beyond its positions a model fails, or writes nonsense.

    Args:
        config: the model's.
        model: its name, for the message.
        longest: tokens of the longest prompt.
        response: tokens that are written, at most; 0 for a critic, which reads prompts alone.
        flag: the argument that set `response`.
        prompt_flag: the argument that leaves out long prompts, or "".

    Raises:
        ValueError: they do not fit, with both numbers and the way out.
    """
    limit = positions(config)
    if limit is None or longest + response <= limit:
        return
    room = limit - longest
    ways = [f"use {flag} {room} or less"] if response and room > 0 else []
    if prompt_flag and limit > response:
        ways.append(f"leave long prompts out with {prompt_flag} {limit - response}")
    both = (
        f"a prompt of {longest} tokens and {flag} {response} exceed"
        if response
        else f"a prompt of {longest} tokens exceeds"
    )
    raise ValueError(f"{both} the {limit} positions of {model}; {', or '.join(ways) or 'leave such prompts out'}")


def check_ids(model: Any, ids: list[list[int]], name: str) -> None:
    """Refuse prompts with a token that the model has no embedding of.

    Args:
        model: a Hugging Face model.
        ids: the prompts' tokens.
        name: the model's, for the message.

    Raises:
        ValueError: the largest id, and how many embeddings there are.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max((max(row, default=0) for row in ids), default=0)
    if rows and largest >= rows:  # a sharded model has none here
        raise ValueError(
            f"the tokenizer makes a token {largest}, and {name} has embeddings for 0 to {rows - 1}; save the model after "
            "model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that it was trained with"
        )
