"""What the tests of properties share: which functions must have one, refusals that name an argument, padded batches."""

import inspect
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st


# ------------------------------------------------------------------------------------- which functions have a property
def public(module):
    """Public names of a module: its functions and classes, and the methods and properties that its classes define."""
    names = set()
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            names.add(name)
        elif inspect.isclass(thing):
            names.add(name)
            names |= {
                f"{name}.{member}"
                for member, x in vars(thing).items()
                if not member.startswith("_") and (inspect.isfunction(x) or isinstance(x, property))
            }
    return names


class Properties:
    """Notes which functions a test is about, so that a function without a test is found."""

    def __init__(self, **without):
        """`without`: name of a module -> {name of a function: why it has no property}."""
        self.without, self.covered = without, {}

    def of(self, module, *names):
        """The decorated test is about these functions of the module."""

        def note(test):
            self.covered.setdefault(module.__name__, set()).update(names)
            return test

        return note

    def check(self, *modules):
        """Every public function has a test or a reason, none has both, and no name is out of date."""
        for module in modules:
            short = module.__name__.rpartition(".")[2]
            covered, without = self.covered.get(module.__name__, set()), set(self.without.get(short, {}))
            assert covered | without == public(module), f"of {module.__name__}: tests or reasons, and what is there"
            assert not covered & without, f"of {module.__name__}: both a test and a reason"


def refused(call, *names, error=(ValueError, TypeError)):
    """The call ends in a ValueError or TypeError (no other kind) whose message has one of these names as a word."""
    with pytest.raises(error) as caught:
        call()
    assert re.search(rf"(?<![A-Za-z_])({'|'.join(map(re.escape, names))})(?![A-Za-z_])", str(caught.value)), (
        f"no {' or '.join(names)} in: {caught.value}"
    )


# -------------------------------------------------------------------------------------------------- padded batches
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGE = {torch.float16: 1e2, torch.bfloat16: 1e9, torch.float32: 1e9, torch.float64: 1e90}
"""Sizes whose squares, and sums of a hundred of them, are far from overflow."""


def eps(*dtypes):
    return max(torch.finfo(dtype).eps for dtype in dtypes)


@dataclass
class Drawn:
    """Shapes, a dtype and a generator, of which everything else is made. That is quicker than drawing each number."""

    B: int
    T: int
    seed: int
    dtype: torch.dtype
    padding: str
    kind: str

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def mask(self):
        """(B, T) bool with at least one True; rows may be all padding."""
        B, T, rng = self.B, self.T, self.rng
        lengths = rng.integers(0, T + 1, B)
        mask = np.arange(T) < lengths[:, None]
        if self.padding == "left":
            mask = mask[:, ::-1]
        elif self.padding == "holes":
            mask = rng.random((B, T)) < rng.random()
        elif self.padding == "none":
            mask = np.ones((B, T), bool)
        mask = mask.copy()
        if not mask.any():
            mask[rng.integers(B), rng.integers(T)] = True
        return torch.from_numpy(mask)

    def numbers(self, *shape, size=None):
        """Real numbers of one of several kinds, up to `size` in magnitude, with this dtype."""
        rng, size = (
            self.rng,
            min(LARGE[self.dtype], 1e9 if self.dtype != torch.float64 else 1e60) if size is None else size,
        )
        if self.kind == "plain":
            x = rng.standard_normal(shape).clip(-size, size)
        elif self.kind == "few":
            x = rng.choice([-1.0, 0.0, 0.5, 1.0], shape)
        elif self.kind == "equal":
            x = np.full(shape, rng.choice([0.0, 0.1, 1 / 3, 0.7, 1.0]))
        else:
            x = rng.choice([-1, 1], shape) * np.exp(rng.uniform(-12, math.log(size), shape))
        return torch.from_numpy(x).to(self.dtype)

    def outcomes(self, *shape):
        """In [0, 1]."""
        rng = self.rng
        if self.kind == "plain":
            x = rng.integers(0, 2, shape).astype(float)
        elif self.kind == "few":
            x = rng.integers(0, 17, shape) / 16
        elif self.kind == "equal":
            x = np.full(shape, rng.choice([0.0, 0.1, 1 / 3, 0.7, 1.0]))
        else:
            x = rng.random(shape)
        return torch.from_numpy(x).to(self.dtype)

    def spoilt(self, x, mask):
        """The same, with numbers in the padding that must not matter."""
        bad = torch.tensor([math.nan, math.inf, -math.inf, torch.finfo(x.dtype).max, -torch.finfo(x.dtype).max])
        return torch.where(mask, x, bad[torch.from_numpy(self.rng.integers(len(bad), size=tuple(x.shape)))].to(x.dtype))


def drawn(dtypes=DTYPES, max_b=8, max_t=12):
    return st.builds(
        Drawn, st.integers(1, max_b), st.integers(1, max_t), st.integers(0, 2**32 - 1), st.sampled_from(dtypes),
        st.sampled_from(["right", "left", "holes", "none"]), st.sampled_from(["plain", "few", "equal", "wide"]),
    )  # fmt: skip


def close(actual, expected, error=0.0):
    """`actual` equals the reference up to `error` (of any shape) and half a unit in its own last place.

    Where the reference is NaN or infinite in this dtype, so must be the number.
    """
    dtype = actual.dtype
    expected = torch.as_tensor(np.asarray(expected, np.float64))
    assert actual.shape == expected.shape
    slack = torch.as_tensor(np.asarray(error, np.float64)) + 2 * eps(dtype) * expected.abs() + torch.finfo(dtype).tiny
    limit = torch.finfo(dtype).max
    inside = expected.abs() + slack < limit
    different = ~((actual.double() - expected).abs() <= slack)
    assert not (inside & different).any(), f"{actual} is not {expected} up to {slack}"
    beyond = ~(expected.abs() - slack < limit)  # also where it is NaN
    assert not (beyond & actual.isfinite()).any(), f"{actual} is finite, and the reference is {expected}"
