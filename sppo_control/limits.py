"""Which numbers make sense, in one table: what is outside is a slip of the keyboard or a unit mistaken for another.

The command line of every script is held to it (cli.py). Rules between arguments are elsewhere: in `__post_init__` of each
script's `Args`, in arguments.py and in llm/setup.py. The ranges here are wide. They keep out what can only fail later: as
NaN, as a sum that does not fit its type, or as memory that no machine has.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

LEARNING_RATE = (1e-10, 10.0)
SIZE = (1, 2**31 - 1)
SEED = (0, 2**32 - 1)
BATCH = (1, 2**20)
WIDTH = (1, 2**16)
SHARE = (0.0, 1.0)
SECONDS = (1e-3, 1e7)
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": LEARNING_RATE,
    "critic_learning_rate": LEARNING_RATE,
    "expert_learning_rate": LEARNING_RATE,
    "clone_learning_rate": LEARNING_RATE,
    "clip_coef": (1e-6, 100.0),
    "ent_coef": (0.0, 100.0),
    "max_grad_norm": (1e-8, 1e12),
    "adam_eps": (1e-12, 1e6),
    "temperature": (0.0, 1e3),
    "gamma": SHARE,
    "gae_lambda": SHARE,
    "critic_gae_lambda": SHARE,
    "success_return": (-1e30, 1e30),
    "reward_scale": (1e-10, 1e10),
    "log_std": (-20.0, 20.0),
    "expert_log_std": (-20.0, 20.0),
    "expert_success": (0.001, 0.999),
    "min_success": SHARE,
    "max_success": SHARE,
    "target": SHARE,
    "skip_prompts_below": SHARE,
    "skip_prompts_above": SHARE,
    "retry_skipped_prompts": SHARE,
    "forgets_carry": SHARE,
    "wrong_digit": SHARE,
    "seed": SEED,
    "seeds": SEED,
    "tuning_seeds": SEED,
    "total_timesteps": (1, 2**62),
    "total_episodes": (1, 2**62),
    "expert_timesteps": (1, 2**62),
    "sb3_timesteps": (1, 2**62),
    "num_envs": BATCH,
    "expert_num_envs": BATCH,
    "batch_size": BATCH,
    "horizon": SIZE,
    "max_response_length": (1, 2**24),
    "max_prompt_length": (1, 2**24),
    "num_minibatches": BATCH,
    "micro_batch_size": BATCH,
    "group_size": BATCH,
    "batch": BATCH,
    "decisions": SIZE,
    "gain": (-50.0, 50.0),
    "offset": (-50.0, 50.0),
    "spread": (0.0, 50.0),
    "right": (0.001, 0.999),
    "critic_error": (0.0, 10.0),
    "context_error": (0.0, 10.0),
    "critic_knows": SHARE,
    "critic_sees_from": SHARE,
    "k": BATCH,
    "update_epochs": (1, 10**6),
    "critic_steps": (1, 10**6),
    "critic_layers": (1, 1000),
    "critic_batch_size": (1, 2**24),
    "critic_window": (1, 10**6),
    "critic_warmup_batches": (0, SIZE[1]),
    "clone_batch": (1, 2**24),
    "clone_updates": SIZE,
    "max_steps": SIZE,
    "eval_every": SIZE,
    "eval_episodes": SIZE,
    "eval_prompts": SIZE,
    "prompts": SIZE,
    "samples": BATCH,
    "window": SIZE,
    "episodes": SIZE,
    "contexts": SIZE,
    "num_contexts": (1, 10**6),
    "demonstrations": SIZE,
    "held_out": SIZE,
    "video_episodes": (1, 10_000),
    "save_every": (1, 2**62),
    "update": (0, 2**62),
    "updates": (0, 2**62),
    "hidden": WIDTH,
    "critic_hidden": WIDTH,
    "width": (24, WIDTH[1]),
    "layers": (1, 1000),
    "points": SIZE,
    "smooth": SIZE,
    "rounds": (1, 10**6),
    "rungs": (1, 1000),
    "trials": (1, 10**6),
    "startup_trials": (0, 10**6),
    "kills": (1, 10**6),
    "jobs": (1, 4096),
    "seconds": SECONDS,
    "timeout": SECONDS,
    "time_limit": SECONDS,
    "minutes": (1e-3, 10_000.0),
}
"""Argument -> smallest and largest value. Arguments that are None are left alone, and of several values each counts."""


EPISODE = 200 * (4 * 4 + 1)
"""Least bytes of an episode in memory. It is as long as the shortest task of this package; a step has an observation, an
action, a log-probability and a reward of one float32 each, and a mask."""


def flag(name: str) -> str:
    """The flag of an argument: critic_steps -> --critic-steps."""
    return "--" + name.replace("_", "-")


def check_limits(args: Any) -> None:
    """Refuse numbers outside `LIMITS`. NaN is outside, and so is what is not finite or has more than 63 bits.

    Args:
        args: a dataclass; its field's names are those of the table.

    Raises:
        ValueError: names the argument, what is allowed, and the value.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        for x in value if isinstance(value, tuple | list) else (value,):
            if not isinstance(x, int | float | np.number) or isinstance(x, bool):
                continue
            if field.name not in LIMITS:
                if not -(2**63) < x < 2**63:
                    raise ValueError(f"{flag(field.name)} must be finite and below 2^63, got {x}")
                continue
            low, high = LIMITS[field.name]
            if not low <= x <= high:
                raise ValueError(f"{flag(field.name)} must be from {low:g} to {_words(high)}, got {x}")


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
    """A largest value as people read it: 2^31 - 1, 2^20, 100."""
    n = int(high)
    if n == high and n >= 2**16:
        for power, text in ((n, ""), (n + 1, " - 1")):
            if power & (power - 1) == 0:
                return f"2^{power.bit_length() - 1}{text}"
    return f"{high:g}"
