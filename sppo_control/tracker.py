"""SPO's baseline: a success rate per context or prompt, with memory. Control and language models use it alike."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .checkpoints import check_like


class ValueTracker:
    """The state of SPO's baseline: counts of successes and failures per context; `core.beta_tracker` changes them.

    Args:
        contexts: C, at least 1. With one context the value is a mean over batches, with memory.
        prior_value: V before any visit, in [0, 1]; SPO estimates it with the starting policy.
        prior_weight: visits that the prior counts for, above 0; SPO's is 1 / (1 - rho_min) = 8.

    Raises:
        ValueError: one of them is outside its range.
    """

    def __init__(self, contexts: int, prior_value: float, prior_weight: float = 8.0) -> None:
        if not isinstance(contexts, int) or contexts < 1:
            raise ValueError(f"contexts must be at least 1, got {contexts!r}; it is a whole number")
        if not 0 <= prior_value <= 1:
            raise ValueError(f"prior_value must be in [0, 1], got {prior_value!r}; it is a success rate")
        if not 0 < prior_weight < math.inf:
            raise ValueError(f"prior_weight must be above 0 and finite, got {prior_weight!r}")
        self.alpha = torch.full((contexts,), prior_weight * prior_value)
        self.beta = torch.full((contexts,), prior_weight * (1 - prior_value))
        self.kl = torch.zeros(contexts)
        """how far the policy has gone since the last visit of each context, in nats"""

    @property
    def value(self) -> Tensor:
        """V = alpha / (alpha + beta), (C,)."""
        return self.alpha / (self.alpha + self.beta)

    def named_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must contain."""
        return {"alpha": self.alpha, "beta": self.beta, "kl": self.kl}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `named_tensors` returned.

        Raises:
            ValueError: the names, shapes or dtypes are different, or a value is not possible.
        """
        own = self.named_tensors()
        check_like(tensors, own, "this tracker of values")
        if not all(bool((x >= 0).all()) and bool(x.isfinite().all()) for x in tensors.values()):
            raise ValueError("a count or a KL divergence of this tracker is negative or not finite")
        if not bool((tensors["alpha"] + tensors["beta"] > 0).all()):
            raise ValueError("alpha and beta are both 0 for a context of this tracker")
        for name, x in own.items():
            x.copy_(tensors[name])

    def file_metadata(self) -> dict[str, str]:
        """Metadata for a file of these tensors: none."""
        return {}
