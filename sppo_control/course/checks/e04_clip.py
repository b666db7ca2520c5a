"""Checks of e04_clip."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import against, numbers, show
from ..grading import Check, Mistake


def _case(ratio: list[list[float]], advantage: list[float], clip_coef: float = 0.2) -> dict[str, Any]:
    logp = torch.full((len(ratio), len(ratio[0])), -1.0, dtype=torch.float64)
    old = logp - torch.tensor(ratio, dtype=torch.float64).log()
    return {"logp": logp, "logp_old": old, "advantage": torch.tensor(advantage).double(), "clip_coef": clip_coef}


POSITIVE = [_case([[2.0]], [1.0]), _case([[0.5]], [1.0]), _case([[1.1, 0.9]], [0.5]), _case([[1.5]], [1.0], 0.3)]
NEGATIVE = [_case([[0.5]], [-1.0]), _case([[2.0]], [-1.0]), _case([[4.0, 0.9]], [-0.5]), _case([[0.5]], [-1.0], 0.3)]
ROWS = [_case([[2.0, 0.5], [2.0, 0.5]], [1.0, -1.0]), _case([[1.0, 3.0, 1.0]], [1.0])]


def _right(logp: Tensor, old: Tensor, A: Tensor, eps: float) -> Tensor:
    r = (logp - old).exp()
    return torch.minimum(r * A[:, None], r.clamp(1 - eps, 1 + eps) * A[:, None])


def _ratio(logp: Tensor, old: Tensor) -> Tensor:
    return (logp - old).exp()


WRONG: dict[str, Any] = {
    "This is the loss, minus the objective. Here the objective itself is asked for.": lambda *x: -_right(*x),
    "ratio_not_clipped": lambda logp, old, A, eps: _ratio(logp, old) * A[:, None],
    "minimum_omitted": lambda logp, old, A, eps: _ratio(logp, old).clamp(1 - eps, 1 + eps) * A[:, None],
    "maximum_for_minimum": lambda logp, old, A, eps: torch.maximum(
        _ratio(logp, old) * A[:, None], _ratio(logp, old).clamp(1 - eps, 1 + eps) * A[:, None]
    ),
    "ratio_clipped_from_above_only": lambda logp, old, A, eps: torch.minimum(
        _ratio(logp, old) * A[:, None], _ratio(logp, old).clamp(max=1 + eps) * A[:, None]
    ),
    "ratio_upside_down": lambda logp, old, A, eps: _right(old, logp, A, eps),
    "The ratio is the difference of the log-probabilities; exp is missing.": lambda logp, old, A, eps: torch.minimum(
        (logp - old) * A[:, None], (logp - old).clamp(1 - eps, 1 + eps) * A[:, None]
    ),
    "log_probability_for_ratio": lambda logp, old, A, eps: logp * A[:, None],
    "clip_coef_ignored": lambda logp, old, A, eps: _right(logp, old, A, 0.2),
    "The product r A is clipped, not r.": lambda logp, old, A, eps: torch.minimum(
        _ratio(logp, old) * A[:, None], (_ratio(logp, old) * A[:, None]).clamp(1 - eps, 1 + eps)
    ),
    "The minimum is taken of r and clip(r), and multiplied by A afterwards. For A < 0 this is the wrong one of both.":
    lambda logp, old, A, eps: torch.minimum(_ratio(logp, old), _ratio(logp, old).clamp(1 - eps, 1 + eps)) * A[:, None],
    "dual_clip": lambda logp, old, A, eps: torch.where(
        A[:, None] < 0, torch.maximum(_right(logp, old, A, eps), 3 * A[:, None]), _right(logp, old, A, eps)
    ),
    "episodes_ratio_is_the_product": lambda logp, old, A, eps: _right(
        (logp - old).sum(1, keepdim=True).expand_as(logp), torch.zeros_like(logp), A, eps
    ),
    "The advantage is broadcast along the steps, not along the episodes. Use advantage[:, None].":
    lambda logp, old, A, eps: torch.minimum(_ratio(logp, old) * A, _ratio(logp, old).clamp(1 - eps, 1 + eps) * A),
    "advantage_normalised_in_the_loss": lambda logp, old, A, eps: _right(
        logp, old, (A - A.mean()) / (A.std(correction=min(1, len(A) - 1)) + 1e-8), eps
    ),
}  # fmt: skip


def positive(student: ModuleType) -> None:
    against(student.clipped_objective, POSITIVE, _right, "L", WRONG)


def every(student: ModuleType) -> None:
    against(student.clipped_objective, NEGATIVE + POSITIVE, _right, "L", WRONG)


def rows(student: ModuleType) -> None:
    against(student.clipped_objective, ROWS + NEGATIVE, _right, "L", WRONG)


def gradients(student: ModuleType) -> None:
    logp = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.1, -1.0]], dtype=torch.float64, requires_grad=True)
    A = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    L = numbers(student.clipped_objective(logp, old, A, 0.2), (1, 2), "L")
    if not L.requires_grad:
        raise Mistake("The gradient is lost: L has none, because of detach(), item() or numpy(), for example.")
    found = torch.autograd.grad(L.sum(), [logp, old, A], allow_unused=True)
    for name, g in zip(("logp_old", "the advantage"), found[1:], strict=True):
        if g is not None and g.abs().sum() > 0:
            what = (
                "The old log-probability gets a gradient"
                if name == "logp_old"
                else "L has a gradient for the advantage"
            )
            tail = "it is a constant" if name == "logp_old" else "which trains the critic"
            raise Mistake(f"{what}, {tail}. With ratios [0.905, 2.718] and A = 1, the gradient of {name} is {show(g)}.")
    right = torch.tensor([[float(torch.exp(torch.tensor(-0.1, dtype=torch.float64))), 0.0]], dtype=torch.float64)
    mine = torch.zeros_like(logp) if found[0] is None else found[0]
    if not torch.allclose(mine, right, 1e-5, 1e-5):
        raise Mistake(
            "The gradient of logp is wrong. With ratios [0.905, 2.718], A = 1 and eps = 0.2, it is "
            f"{show(mine)}, right is {show(right)}: the second step is clipped."
        )


ZERO: list[dict[str, Any]] = [
    {"ratio": r, "advantage": A, "clip_coef": 0.2} for A in (1.0, -1.0) for r in (2.0, 0.5, 1.1, 0.9)
]


def zero(student: ModuleType) -> None:
    def right(r: float, A: float, eps: float) -> float:
        return float((A > 0 and r > 1 + eps) or (A < 0 and r < 1 - eps))

    def answer(r: float, A: float, eps: float) -> float:
        found = student.has_no_gradient(r, A, eps)
        if found is None:
            raise Mistake("has_no_gradient returns None. Does it end in `return`?")
        return float(bool(found))

    against(
        answer,
        ZERO,
        right,
        "has_no_gradient (1 is True)",
        {
            "The sign of the advantage is not looked at. Each ratio outside the limits counts, but for A > 0 a ratio below "
            "1 - eps still has a gradient: it leads back.": lambda r, A, eps: float(abs(r - 1) > eps),
            "The sign of the advantage is turned round.": lambda r, A, eps: right(r, -A, eps),
            "Only the upper limit is looked at.": lambda r, A, eps: float(r > 1 + eps),
            "Only successes are looked at; for A < 0 the lower limit clips.": lambda r, A, eps: float(
                A > 0 and r > 1 + eps
            ),
            "The answer is turned round: this is where there is a gradient.": lambda r, A, eps: 1 - right(r, A, eps),
        },
    )


CHECKS = (
    Check("the objective of an episode with A > 0", positive),
    Check("the objective of an episode with A < 0", every),
    Check("each row has its own advantage, each step its own ratio", rows),
    Check("only logp has a gradient", gradients),
    Check("you know where the gradient is 0", zero),
)
HINTS = {
    "the objective of an episode with A > 0": (
        "r = (logp - logp_old).exp(). torch.clamp(r, 1 - eps, 1 + eps) clips it.",
    ),
    "the objective of an episode with A < 0": (
        "Multiply by A first, then take the minimum: for A < 0 the order of r A and clip(r) A is turned round.",
    ),
    "each row has its own advantage, each step its own ratio": (
        "advantage[:, None] is (B, 1), so that each row has its own.",
    ),
    "only logp has a gradient": (
        "Do not detach logp, and do not write .item() or .data. logp_old and the advantage are data: they have no "
        "gradient.",
    ),
    "you know where the gradient is 0": (
        "For A > 0 the objective grows with r up to 1 + eps, and is flat above. For A < 0 it is flat below 1 - eps.",
    ),
}
