"""Rules between the arguments of the control scripts; called by every `Args.__post_init__`.

The range of each argument is in limits.py.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from . import compiled
from .limits import check_limits, check_memory, flag

WINDOW_ONLY = ("critic_steps", "critic_batch_size", "critic_window")
"""What belongs to the critic's recipe "window". The recipe "paper" trains on the policy's minibatches instead."""


def check_args(args: Any) -> None:
    """Refuse impossible values, and make the path of --start absolute.

    Raises:
        ValueError: names the argument, its value, what is allowed and how to mend it.
    """
    if getattr(args, "critic_steps", 1) == 0:
        raise ValueError("--critic-steps must be at least 1, got 0; the paper's recipe is --critic-recipe paper")
    check_limits(args)
    check_memory(_bytes(args))
    compiled.resolve(args.kernels, compiled.widths(args))  # refuses numba where it is not there, or cannot do the work
    if args.num_envs % args.num_minibatches:
        raise ValueError(
            f"--num-minibatches must divide --num-envs, because a minibatch is a number of whole episodes; "
            f"got {args.num_minibatches} for {args.num_envs}"
        )
    group = getattr(args, "group_size", None)
    if group is not None and args.num_envs % group:
        raise ValueError(f"--group-size must divide --num-envs, got {group} for {args.num_envs}")
    if group is not None and getattr(args, "baseline_size", group) < 2:
        least = "--num-envs must be at least 2" if hasattr(args, "baseline_size") else "--group-size must be at least 2"
        raise ValueError(f"{least}, because an episode is compared with others, got 1")
    if getattr(args, "baseline", "others") == "tracked" and group != 1:
        raise ValueError(
            f"--baseline tracked needs --group-size 1, got {group}: SPO runs one episode per context and compares it with "
            "the context's earlier ones"
        )
    if getattr(args, "clip_vloss", False) and args.critic_loss != "mse":
        raise ValueError(
            f"--clip-vloss clips the squared error, so it needs --critic-loss mse, got {args.critic_loss}; leave one out"
        )
    if args.start is not None and args.from_scratch:
        raise ValueError("--start and --from-scratch exclude each other; leave one out")
    if args.start is not None:  # a run may be resumed from another folder
        args.start = os.path.abspath(args.start)
    if getattr(args, "critic_recipe", "window") == "paper":
        defaults = {field.name: field.default for field in dataclasses.fields(args)}
        for name in WINDOW_ONLY:
            if getattr(args, name) != defaults[name]:
                raise ValueError(
                    f"{flag(name)} {getattr(args, name)} has no meaning here: --critic-recipe paper trains the critic on "
                    "the policy's minibatches; leave it out, or use --critic-recipe window"
                )


def _bytes(args: Any) -> dict[str, int]:
    """What the sizes need at least: the smallest observation is one float32, and so is the smallest action.

    A batch of a task without --horizon is taken as 200 steps long, as short as the shortest task of this package.
    """
    b, step = args.num_envs, 4 * 4 + 1  # observation, action, log-probability, reward; mask
    horizon = args.horizon or 200
    whole = f"--num-envs {b}" + (f" with --horizon {horizon}" if args.horizon else "")
    needed = {whole: b * horizon * step}
    for name in ("hidden", "critic_hidden"):
        widths = getattr(args, name, ())
        size = sum(i * o for i, o in zip((1, *widths), (*widths, 1), strict=True))
        needed[f"{flag(name)} {' '.join(map(str, widths))}"] = 4 * 4 * size  # weights, gradient, two moments
    if (window := getattr(args, "critic_window", None)) is not None:
        needed[f"--critic-window {window} with --num-envs {b}"] = window * b * 2 * 4
        size = args.critic_batch_size
        width = max(args.critic_hidden, default=1)
        needed[f"--critic-batch-size {size} with --critic-hidden {width}"] = size * (2 + 3 * width) * 4
    return needed
