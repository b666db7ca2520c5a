"""Small batches for the conformance kit: each is drawn from whole numbers, so that Hypothesis can shrink it.

A maker takes a source of whole numbers and returns a `Case`. The source is Hypothesis while a counter-example is searched
and shrunk, and a generator of random numbers for the batches that tell mistakes apart. Numbers are eighths, so that they
are short in decimals and exact in each dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Source(Protocol):
    """Whole numbers, from wherever."""

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high."""


class RandomSource:
    """Whole numbers of a generator of NumPy."""

    def __init__(self, seed: Sequence[int]) -> None:
        self.rng = np.random.default_rng(list(seed))

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, each equally likely."""
        return int(self.rng.integers(low, high + 1))


class DrawnSource:
    """Whole numbers of Hypothesis, which are shrunk towards the one next to 0."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        from hypothesis import strategies

        return int(self.draw(strategies.integers(low, high)))


@dataclass
class Case:
    """One batch: arrays by name, and the other arguments."""

    arrays: dict[str, Array]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    """The dtype that the case needs; None is the adapter's."""


Maker = Callable[[Source], Case]


def _eighths(s: Source, shape: tuple[int, ...], low: int, high: int) -> Array:
    return np.array([s.integer(low, high) / 8 for _ in range(int(np.prod(shape)))], dtype=np.float64).reshape(shape)


def _outcomes(s: Source, n: int) -> Array:
    """Failures and successes, and a fraction now and then."""
    return np.array([(0.0, 1.0, 1.0, 0.0, 0.5, 0.25)[s.integer(0, 5)] for _ in range(n)])


def _lengths(s: Source, rows: int, steps: int) -> Array:
    """Masks with padding on the right; a row has one real step at least."""
    return np.arange(steps) < np.array([steps - s.integer(0, steps - 1) for _ in range(rows)])[:, None]


def _anywhere(s: Source, rows: int, steps: int) -> Array:
    """Masks with padding anywhere; a row has one real step at least."""
    mask = np.array([[s.integer(0, 1) == 0 for _ in range(steps)] for _ in range(rows)]).reshape(rows, steps)
    mask[~mask.any(axis=1), s.integer(0, steps - 1)] = True
    return mask


def _mask(s: Source, kind: str, rows: int, steps: int) -> Array:
    if kind == "full":
        return np.ones((rows, steps), dtype=bool)
    mask = _lengths(s, rows, steps) if kind in ("right", "empty") else _anywhere(s, rows, steps)
    if kind == "empty":
        mask[-1] = False
    return mask


def _spoil(mask: Array, *arrays: Array) -> None:
    """NaN and infinity into the padding."""
    for array in arrays:
        array[~mask] = np.resize([np.nan, np.inf, -np.inf], int((~mask).sum()))


# ---------------------------------------------------------------------------------------------------- advantages
def sequence_advantage(s: Source) -> Case:
    """Two to four episodes."""
    n = s.integer(1, 4)
    return Case({"outcome": _outcomes(s, n), "value_logit": _eighths(s, (n,), -24, 24)})


def gae(kind: str = "full", *, plain: bool = False, spoiled: bool = False) -> Maker:
    """Rewards, values and a mask; `plain` has gamma = lambda = 1."""

    def make(s: Source) -> Case:
        rows, steps = s.integer(1, 2), s.integer(1, 4) if kind == "full" else s.integer(2, 4)
        mask = _mask(s, kind, rows, steps)
        reward, value = _eighths(s, (rows, steps), 0, 8), _eighths(s, (rows, steps), -8, 8)
        if spoiled:
            _spoil(mask, reward, value)
        options = {} if plain else {"gamma": 1 - s.integer(0, 4) / 8, "gae_lambda": 1 - s.integer(0, 8) / 8}
        return Case({"reward": reward, "value": value, "mask": mask}, options)

    return make


def groups(*, normalize: bool | None = None, constant: bool = False) -> Maker:
    """Outcomes of one to three groups of two to four; `constant`: all outcomes of a group are the same tenths."""

    def make(s: Source) -> Case:
        number, n = s.integer(1, 3), s.integer(2, 4)
        if constant:
            n = s.integer(2, 8)
            outcome = np.repeat([s.integer(1, 9) / 10 for _ in range(number)], n)
        else:
            outcome = _outcomes(s, number * n)
        options: dict[str, Any] = {"group_size": n}
        return Case({"outcome": outcome}, options if normalize is None else {**options, "normalize_std": normalize})

    return make


def greedy(s: Source) -> Case:
    """Outcomes of sampled and of greedy episodes."""
    n = s.integer(1, 4)
    return Case({"outcome": _outcomes(s, n), "greedy_outcome": _outcomes(s, n)})


def normalized(
    kind: str = "full", *, per_episode: bool = False, constant: bool = False, options: bool = False
) -> Maker:
    """Advantages to normalise; `options` also draws eps and where it is added."""

    def make(s: Source) -> Case:
        rows, steps = s.integer(1, 3), s.integer(1, 3)
        mask = _mask(s, kind, rows, steps)
        shape = (rows,) if per_episode else (rows, steps)
        A = _eighths(s, shape, -8, 8)
        if constant:
            A = np.full(shape, s.integer(1, 9) / 7 * 1000.0 ** s.integer(0, 3))
        words = {"eps": s.integer(1, 4) / 8, "eps_in": ("std", "variance")[s.integer(0, 1)]} if options else {}
        return Case({"advantage": A, "mask": mask}, words)

    return make


def tracker(s: Source) -> Case:
    """Counts of one to three contexts, and one to four episodes."""
    contexts, n = s.integer(1, 3), s.integer(1, 4)
    return Case(
        {
            "alpha": _eighths(s, (contexts,), 0, 24),
            "beta": _eighths(s, (contexts,), 0, 24),
            "outcome": _outcomes(s, n),
            "context": np.array([s.integer(0, contexts - 1) for _ in range(n)], dtype=np.int64),
            "kl": np.array([s.integer(0, 16) / 1000 for _ in range(contexts)]),
        }
    )


# -------------------------------------------------------------------------------------------------------- losses
def policy(
    kind: str = "full", *, per_step: bool = False, spoiled: bool = False, clip: bool = False, reduction: str | None = None,
    divided: bool = False, sequence: bool = False, huge: bool = False, near: bool = False,
) -> Maker:  # fmt: skip
    """Log-probabilities, advantages and a mask. `huge`: the ratio overflows; `divided`: a denominator is given.

    `near`: the ratios are near 1 - eps and 1 + eps, where r - 1 and log r are on different sides.
    """

    def make(s: Source) -> Case:
        rows, steps = s.integer(1, 3), s.integer(1, 3) if kind == "full" else s.integer(2, 3)
        if kind == "empty":
            rows += 1
        mask = _mask(s, kind, rows, steps)
        logp, old = -_eighths(s, (rows, steps), 0, 16), -_eighths(s, (rows, steps), 0, 16)
        shape = (rows, steps) if per_step else (rows,)
        A = _eighths(s, shape, -8, 8)
        if near:
            old = logp - _eighths(s, (rows, steps), -6, 4)
        if huge:
            A, old = np.abs(A), old - 1000
        if spoiled:
            _spoil(mask, logp, old)
        options: dict[str, Any] = {}
        if near:
            options["clip_coef"] = 0.5
        if clip:
            options["clip_coef"] = (0.2, 0.1, 0.3, 0.5)[s.integer(0, 3)]
        if reduction is not None:
            options["reduction"] = reduction
        if divided:
            options["denominator"] = float(s.integer(1, 9))
        if sequence:
            options["ratio"] = "sequence"
        return Case({"logp": logp, "logp_old": old, "advantage": A, "mask": mask}, options)

    return make


def half_policy(s: Source) -> Case:
    """More steps than the largest number of float16, all with the same advantage."""
    steps = 33000 + s.integer(0, 1)
    zeros = np.zeros((2, steps))
    return Case(
        {"logp": zeros - 1, "logp_old": zeros - 1, "advantage": np.ones(2), "mask": np.ones((2, steps), dtype=bool)},
        dtype="float16",
    )


def bernoulli(*, fraction: bool = False, large: bool = False, divided: bool = False) -> Maker:
    """Logits and outcomes; `large`: the sigmoid rounds to 0 or 1."""

    def make(s: Source) -> Case:
        n = s.integer(1, 4)
        v = _eighths(s, (n,), -24, 24)
        if large:
            v = v * 400
        R = _eighths(s, (n,), 0, 8) if fraction else np.array([float(s.integer(0, 1)) for _ in range(n)])
        return Case({"value_logit": v, "outcome": R}, {"denominator": float(s.integer(1, 9))} if divided else {})

    return make


def squared(kind: str = "full", *, spoiled: bool = False, divided: bool = False, clip: bool = False) -> Maker:
    """Values, returns and a mask; `clip`: also the old values and a clip range."""

    def make(s: Source) -> Case:
        rows, steps = s.integer(1, 2), s.integer(1, 3) if kind == "full" else s.integer(2, 3)
        mask = _mask(s, kind, rows, steps)
        value, returns, old = (_eighths(s, (rows, steps), -8, 8) for _ in range(3))
        if spoiled:
            _spoil(mask, value, returns)
        arrays = {"value": value, "returns": returns, "mask": mask}
        options: dict[str, Any] = {"denominator": float(s.integer(1, 9))} if divided else {}
        if clip:
            arrays["value_old"] = old
            options["clip_coef"] = (0.2, 0.3)[s.integer(0, 1)]
        return Case(arrays, options)

    return make


def half_squared(s: Source) -> Case:
    """More steps than the largest number of float16, all with the same error."""
    steps = 33000 + s.integer(0, 1)
    zeros = np.zeros((2, steps))
    return Case({"value": zeros + 2, "returns": zeros, "mask": np.ones((2, steps), dtype=bool)}, dtype="float16")


# ---------------------------------------------------------------------------------------------------- statistics
def mean(kind: str) -> Maker:
    """Numbers and a mask."""

    def make(s: Source) -> Case:
        rows, steps = s.integer(1, 2), s.integer(1, 3)
        return Case({"x": _eighths(s, (rows, steps), -8, 8), "mask": _mask(s, kind, rows, steps)})

    return make


def half_mean(s: Source) -> Case:
    """Numbers whose sum is too large for float16."""
    return Case(
        {"x": np.full((1, 3), 30000.0 + 16 * s.integer(0, 1)), "mask": np.ones((1, 3), dtype=bool)}, dtype="float16"
    )


def explained(*, constant: bool = False) -> Maker:
    """Predictions and targets; `constant`: all targets are the same tenths."""

    def make(s: Source) -> Case:
        n = s.integer(2, 6)
        target = np.full(n, s.integer(1, 9) / 10) if constant else _outcomes(s, n)
        mask = _anywhere(s, 1, n)[0]
        return Case({"prediction": _eighths(s, (n,), 0, 8), "target": target, "mask": mask})

    return make


def probabilities(s: Source) -> Case:
    """Predicted probabilities, none at the edge of a bin, and outcomes. They are near each other, so that bins fill."""
    n = s.integer(1, 8)
    return Case(
        {"probability": np.array([(2 * s.integer(4, 12) + 1) / 32 for _ in range(n)]), "outcome": _outcomes(s, n)}
    )


def counts(s: Source) -> Case:
    """Successes and trials."""
    trials = s.integer(1, 20)
    return Case({}, {"successes": s.integer(0, trials), "trials": trials})


# ------------------------------------------------------------------------------------------------- whole updates
def update(kind: str = "full", *, micro: bool = False, updates: int = 1, resume: bool = False) -> Maker:
    """Weights and a batch of the little model; see `spec.UPDATE`."""

    def make(s: Source) -> Case:
        rows, steps = (
            s.integer(2, 4) if micro else s.integer(1, 3),
            s.integer(1, 3) if kind == "full" else s.integer(2, 3),
        )
        arrays = {
            "policy": _eighths(s, (2, 2), -8, 8),
            "critic": _eighths(s, (2,), -8, 8),
            "obs": _eighths(s, (rows, steps, 2), -8, 8),
            "context": _eighths(s, (rows, 2), -8, 8),
            "action": np.array([s.integer(0, 1) for _ in range(rows * steps)], dtype=np.int64).reshape(rows, steps),
            "logp_old": -_eighths(s, (rows, steps), 0, 8),
            "outcome": np.array([float(s.integer(0, 1)) for _ in range(rows)]),
            "mask": _mask(s, kind, rows, steps),
        }
        options = {
            "learning_rate": 0.5, "clip_coef": 0.2, "updates": updates, "resume": resume,
            "micro_batch_size": s.integer(1, 2) if micro else rows,
        }  # fmt: skip
        return Case(arrays, options)

    return make
