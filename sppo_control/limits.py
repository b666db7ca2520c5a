"""Which numbers make sense, in one table: what is outside is a slip of the keyboard or a unit mistaken for another.

Each training script has further rules (arguments.py, llm/setup.py). The ranges here are wide. They keep out what can only
fail later: as NaN, as a sum that does not fit its type, or as memory that no machine has.
"""

from __future__ import annotations

import math
import os
from typing import Any

from .cli import flag

LEARNING_RATE = (1e-10, 10.0)
SIZE = (1, 2**31 - 1)
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": LEARNING_RATE,
    "critic_learning_rate": LEARNING_RATE,
    "clip_coef": (1e-6, 100.0),
    "ent_coef": (0.0, 100.0),
    "max_grad_norm": (1e-8, 1e12),
    "temperature": (1e-3, 1e3),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "success_return": (-1e30, 1e30),
    "seed": (0, 2**32 - 1),
    "total_timesteps": (1, 2**62),
    "total_episodes": (1, 2**62),
    "num_envs": (1, 2**20),
    "batch_size": (1, 2**20),
    "horizon": SIZE,
    "max_response_length": (1, 2**24),
    "max_prompt_length": (1, 2**24),
    "num_minibatches": (1, 2**20),
    "micro_batch_size": (1, 2**20),
    "group_size": (1, 2**20),
    "update_epochs": (1, 10**6),
    "critic_steps": (1, 10**6),
    "critic_batch_size": (1, 2**24),
    "critic_window": (1, 10**6),
    "critic_warmup_batches": (0, SIZE[1]),
    "eval_episodes": SIZE,
    "eval_prompts": SIZE,
    "episodes": SIZE,
    "video_episodes": (1, 10_000),
    "save_every": (1, 2**62),
}
"""Argument -> smallest and largest value. Arguments that are None are left alone."""
LARGEST_WIDTH = 2**16
"""Of a hidden layer."""


def check_limits(args: Any) -> None:
    """Refuse values outside `LIMITS`; NaN is outside.

    Raises:
        ValueError: names the argument, what is allowed, and the value.
    """
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name, None)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{flag(name)} must be from {low:g} to {_words(high)}, got {value}")
    for name in ("hidden", "critic_hidden"):
        for width in getattr(args, name, None) or ():
            if width > LARGEST_WIDTH:
                raise ValueError(f"{flag(name)} must be widths of at most {LARGEST_WIDTH}, got {width}")


def check_memory(what: dict[str, int], limit: int | None = None) -> None:
    """Refuse sizes that this machine cannot hold, before anything is allocated.

    Args:
        what: flags and values, in words -> bytes that they need at least.
        limit: bytes; None is the machine's memory.

    Raises:
        ValueError: names the flags, the bytes and the limit.
    """
    limit = memory_bytes() if limit is None else limit
    for words, needed in what.items():
        if needed > limit:
            raise ValueError(
                f"{words} may need {needed / 2**30:,.1f} GiB, and this machine has {limit / 2**30:,.1f} GiB; lower it"
            )


def memory_bytes() -> int:
    """The machine's memory; 1 TiB where the system does not say, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**40


def _words(high: float) -> str:
    power = math.log2(high + 1) if high == int(high) else 0.0
    if high >= 2**20 and power == int(power):
        return f"2^{int(power)} - 1"
    return f"2^{int(math.log2(high))}" if high >= 2**20 and math.log2(high) == int(math.log2(high)) else f"{high:g}"
