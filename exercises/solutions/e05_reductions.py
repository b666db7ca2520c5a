"""Masks and means: three ways to make one number of many steps.

Difficulty: 2/5
Minutes: 20
Teaches: masks, token-mean and sequence-mean, micro-batches

A batch has x, one number per step, (B, T), and a mask that is True on real steps. The loss is one
number. There are three usual ways, and they weigh long and short episodes differently:

    token-mean      the sum over all real steps, divided by their number
                    (PPO; each step counts the same)
    sequence-mean   the mean over the real steps of each episode, then the mean over episodes
                    (GRPO; each episode counts the same)
    fixed           the sum over all real steps, divided by B x T
                    (Dr. GRPO, arXiv 2503.20783; the lengths of others do not matter)

A row may have no real step at all. It does not count in sequence-mean, and it counts in B for
fixed. Values in the padding can be anything, even NaN.

A large batch does not fit into memory, so it is cut into micro-batches, whose gradients are added
up. Then the sum of the micro-batches' losses must be the loss of the whole batch. A mean of means
is not: the lengths differ. So the last divisor, the denominator, is that of the whole batch.
"""

import torch
from torch import Tensor


def reduce(x: Tensor, mask: Tensor, reduction: str, denominator: float | None = None) -> Tensor:
    """x and mask (B, T), and "token-mean", "sequence-mean" or "fixed" -> a scalar with gradient.

    The denominator replaces the last divisor: the number of real steps, or of episodes with a real step, or B x T.
    """
    x = torch.where(mask, x, 0.0)
    lengths = mask.sum(dim=1)
    if reduction == "sequence-mean":
        x = x.sum(dim=1) / lengths.clamp(min=1)
        default = (lengths > 0).sum()
    elif reduction == "token-mean":
        default = lengths.sum()
    else:
        default = mask.numel()
    return x.sum() / (default if denominator is None else denominator)


def whole_batch(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Micro-batches (x, mask), each (b, T) with its own b -> the token-mean of all, as the sum of one loss per part."""
    num_steps = sum(int(mask.sum()) for _, mask in parts)
    return sum(reduce(x, mask, "token-mean", num_steps) for x, mask in parts)


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
