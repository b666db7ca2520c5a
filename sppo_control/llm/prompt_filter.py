"""Which prompts of a batch are worth a response: those that the critic calls hopeless or solved are skipped.

A = R - V(s_p) is near 0 where V is near 0 or 1 and right. Such a response costs its generation and its update, and changes
little. The critic reads prompts alone, so V is known before anything is generated.

Skipping changes what is trained. Without it the policy climbs the mean success over the dataset's prompts. With it each
prompt has a weight: 1 while low <= V(s_p) <= high, and `retry` outside. A prompt that the critic wrongly calls hopeless
would never be tried again, so nothing would correct the critic; this is why `retry` is above 0 by default. See
docs/critic.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sppo_control.llm.critic import PromptCritic
    from sppo_control.llm.prompts import Prompts

T = TypeVar("T")

RETRY = 0.05
"""Default probability with which a prompt outside the bounds is kept."""


class Chosen(NamedTuple):
    """What `PromptFilter.choose` returns.

    | field    | type      | meaning                                                                           |
    | -------- | --------- | --------------------------------------------------------------------------------- |
    | kept     | list      | B prompts                                                                         |
    | offered  | float     | mean V of the B prompts that came first: what the batch would have been           |
    | below    | int       | prompts that were skipped, because V is below the lower bound                     |
    | above    | int       | the same, above the upper bound                                                   |
    | retried  | int       | prompts of `kept` outside the bounds, kept by chance                              |
    | filled   | int       | prompts of `kept` outside the bounds, kept because no others were left            |
    """

    kept: list[Any]
    offered: float
    below: int
    above: int
    retried: int
    filled: int

    def scalars(self) -> dict[str, float]:
        """The numbers under their TensorBoard tags; docs/metrics.md explains them."""
        names = ("below", "above", "retried", "filled")
        return {"prompts/v0_offered": self.offered} | {f"prompts/{name}": float(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class PromptFilter:
    """Bounds on V(s_p) between which a prompt is worth a response.

    Args:
        low: prompts with a smaller V are skipped; None skips none.
        high: prompts with a larger V are skipped; None skips none.
        retry: probability with which a prompt outside the bounds is kept after all.

    Raises:
        ValueError: a number outside [0, 1], or low is not below high.
    """

    low: float | None = None
    high: float | None = None
    retry: float = RETRY

    def __post_init__(self) -> None:
        for name in ("low", "high", "retry"):
            if (x := getattr(self, name)) is not None and not 0 <= x <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, got {x}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(
                f"low must be below high, got {self.low} and {self.high}: no prompt has a V between them, so none is left"
            )

    @property
    def active(self) -> bool:
        """Whether anything can be skipped."""
        return self.low is not None or self.high is not None

    def sides(self, v0: Tensor) -> Tensor:
        """Where each prompt is: -1 below the bounds, 0 between them (bounds included), 1 above; int8.

        Raises:
            ValueError: a V that is NaN or outside [0, 1].
        """
        if not bool(((v0 >= 0) & (v0 <= 1)).all()):
            raise ValueError(f"V must be probabilities from 0 to 1, got {v0[~((v0 >= 0) & (v0 <= 1))][:3].tolist()}")
        # V is float32, so the bounds are rounded alike; else V = 0.05 would be above --skip-prompts-below 0.05.
        low, high = (
            torch.tensor(x, dtype=v0.dtype, device=v0.device)
            for x in (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)
        )
        return (v0 > high).to(torch.int8) - (v0 < low).to(torch.int8)

    def choose(
        self,
        offered: Sequence[T],
        others: Iterator[T],
        value: Callable[[list[T]], Tensor],
        rng: np.random.Generator,
        anyone: Callable[[bool], bool] = bool,
    ) -> Chosen:
        """A batch without the prompts that are not worth a response.

        The prompts of `offered` come first, so a filter that skips nothing changes nothing. Each that is skipped is
        replaced by the next of `others`. Where `others` ends before the batch is full, skipped ones fill it in their order.

        Args:
            offered: the B prompts of the batch as it would be, at least one.
            others: further prompts, in the order in which they are tried.
            value: V(s_p) of some prompts, (n,). It is called with B prompts at a time, or with what is left.
            rng: decides which prompts outside the bounds are kept: one number per prompt that is looked at.
            anyone: says whether this is true on any process. All processes then call `value` equally often, which a sharded
                critic needs.

        Returns:
            See `Chosen`.

        Raises:
            ValueError: see `sides`; no prompt was offered.
        """
        size = len(offered)
        if size == 0:
            raise ValueError("offered must have at least one prompt")
        kept: list[T] = []
        skipped: list[tuple[T, int]] = []
        chunk, mine, first = list(offered), True, math.nan
        retried = 0
        while True:
            v0 = value(chunk)
            if math.isnan(first):
                first = float(v0.double().mean())
            if mine:
                sides, chance = self.sides(v0).tolist(), rng.random(len(chunk))
                for item, side, x in zip(chunk, sides, chance.tolist(), strict=True):
                    if len(kept) == size:
                        break  # what comes after the last one that is kept is not counted
                    if side == 0 or x < self.retry:
                        kept.append(item)
                        retried += side != 0
                    else:
                        skipped.append((item, side))
            more = list(itertools.islice(others, size)) if len(kept) < size else []
            if not anyone(bool(more)):
                break
            chunk, mine = more or chunk, bool(more)  # a process that needs no more computes values for nothing
        filled = size - len(kept)
        kept += [item for item, _ in skipped[:filled]]
        left = [side for _, side in skipped[filled:]]
        return Chosen(kept, first, left.count(-1), left.count(1), retried, filled)

    def require(self, items: Sequence[T], value: Callable[[list[T]], Tensor], size: int, words: str) -> None:
        """Refuse bounds that leave too few prompts for one batch, before anything is generated.

        Args:
            items: all prompts.
            value: V(s_p) of some of them, (n,). It is called with `size` prompts at a time, until enough are found.
            size: B, prompts per batch.
            words: the arguments and their values, for the message.

        Raises:
            ValueError: fewer than B prompts have a V between the bounds.
        """
        left, low, high = 0, math.inf, -math.inf
        for start in range(0, len(items), size):
            v0 = value(list(items[start : start + size]))
            left += int((self.sides(v0) == 0).sum())
            low, high = min(low, float(v0.min())), max(high, float(v0.max()))
            if left >= size:
                return
        raise ValueError(
            f"{words} leave {left} of {len(items)} prompts, fewer than a batch of {size}: the critic's V is from {low:.3f} "
            f"to {high:.3f} (a new critic says 0.5 of every prompt); widen the bounds, or start from a trained critic"
        )


def values_of(critic: PromptCritic, prompts: Prompts, batch_size: int | None) -> Callable[[list[int]], Tensor]:
    """The function that `PromptFilter` calls, for rows of a dataset.

    Args:
        critic: says V.
        prompts: the dataset.
        batch_size: prompts in memory at once; None is all that are asked for.
    """
    return lambda rows: critic.predict([prompts.ids[row] for row in rows], batch_size or len(rows))


def others(n: int, offered: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """The rows 0 to n - 1 without the offered ones, in a random order."""
    there = set(offered)
    return (row for row in rng.permutation(n).tolist() if row not in there)
