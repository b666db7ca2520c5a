"""Arguments of the control scripts: what a task takes where the command line is silent, and which values are possible."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from .defaults import defaults


def fill_args(args: Any) -> None:
    """Put the task's own defaults where an argument is None, and refuse impossible values; called by every training
    script's `Args.__post_init__`.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    for name, value in dataclasses.asdict(defaults(args.env_id)).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(
            (
                "total_timesteps",
                "num_envs",
                "update_epochs",
                "num_minibatches",
                "eval_episodes",
                "save_every",
                "horizon",
                "critic_window",
            ),
            (lambda x: x >= 1, "at least 1"),
        ),
        **dict.fromkeys(
            ("learning_rate", "critic_learning_rate", "clip_coef", "max_grad_norm"),
            (lambda x: 0 < x < math.inf, "above 0"),
        ),
        **dict.fromkeys(("gamma", "gae_lambda"), (lambda x: 0 <= x <= 1, "in [0, 1]")),
        **dict.fromkeys(("ent_coef", "seed", "critic_steps"), (lambda x: 0 <= x < math.inf, "0 or above")),
        "success_return": (math.isfinite, "a finite number"),
        "hidden": (lambda x: all(width >= 1 for width in x), "widths of at least 1"),
    }
    for name, (allowed, words) in rules.items():
        value = getattr(args, name, None)
        if value is not None and not allowed(value):
            raise ValueError(f"--{name.replace('_', '-')} must be {words}, got {value}")
    if args.num_envs % args.num_minibatches:
        raise ValueError(
            f"--num-minibatches must divide --num-envs, because a minibatch is a number of whole episodes; "
            f"got {args.num_minibatches} for {args.num_envs}"
        )
    if args.start is not None and args.from_scratch:
        raise ValueError("--start and --from-scratch exclude each other; leave one out")
