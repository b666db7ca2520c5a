"""Checks of e02_sequence_advantage."""

from __future__ import annotations

from types import ModuleType

import torch

from ..compare import Case, against_kit, call, expect, no_gradient
from ..grading import Check, Mistake

CASES: list[Case] = [
    ({"outcome": [1.0], "value_logit": [0.0]}, {}),
    ({"outcome": [0.0], "value_logit": [1.0]}, {}),
    ({"outcome": [1.0, 0.0, 0.0], "value_logit": [-1.0, 2.0, 0.5]}, {}),
]


def value(student: ModuleType) -> None:
    against_kit(
        "sequence_advantage",
        lambda x, _: {"advantage": call(student.sequence_advantage, x["outcome"], x["value_logit"])},
        CASES,
        leave_out=["advantage_not_detached"],
    )


def detached(student: ModuleType) -> None:
    v = torch.zeros(2, requires_grad=True)
    found = student.sequence_advantage(torch.tensor([1.0, 0.0]), v)
    no_gradient(
        found,
        "The advantage has a gradient, so the policy's loss also trains the critic. With value_logit = [0, 0] that "
        "requires a gradient, requires_grad of the advantage is True, right is False.",
    )


def broadcast(student: ModuleType) -> None:
    A, mask = torch.tensor([0.5, -0.25]), torch.tensor([[True, True, False], [True, False, False]])
    right = torch.tensor([[0.5, 0.5, 0.0], [-0.25, 0.0, 0.0]])
    lengths = mask.sum(dim=1, keepdim=True)
    last = torch.tensor([[0.0, 0.5, 0.0], [-0.25, 0.0, 0.0]])
    expect(
        call(student.per_step, A, mask),
        right,
        "the advantage per step",
        {"advantage": A, "mask": mask.int()},
        {
            "Padding has an advantage, so it will be trained.": A[:, None].expand(2, 3),
            "The advantage is shared out among the steps, but each step gets the whole of it.": right / lengths,
            "Only the last step gets the advantage, but all steps of the episode share it.": last,
            "The mask is turned round: padding has the advantage, and real steps have 0.": A[:, None] * ~mask,
            "The advantage is multiplied by the episode's length.": right * lengths,
        },
    )


def square(student: ModuleType) -> None:
    A, mask = torch.tensor([0.5, -0.25]), torch.tensor([[True, True], [True, False]])
    expect(
        call(student.per_step, A, mask),
        torch.tensor([[0.5, 0.5], [-0.25, 0.0]]),
        "the advantage per step",
        {"advantage": A, "mask": mask.int()},
        {
            "The advantage runs along the steps, not along the episodes: it is broadcast as a row. Use advantage[:, None].":
            torch.tensor([[0.5, -0.25], [0.5, 0.0]]),
        },
    )  # fmt: skip


def nan(student: ModuleType) -> None:
    A, mask = torch.tensor([0.5, torch.nan]), torch.tensor([[True, False], [False, False]])
    found = call(student.per_step, A, mask)
    if torch.as_tensor(found).isnan().any():
        raise Mistake(
            "Padding is removed by multiplication, but NaN times 0 is NaN. With advantage = [0.5, nan] and an episode of "
            "padding alone, a step of padding is nan, right is 0. Select with the mask: torch.where(mask, A, 0.0)."
        )
    expect(
        found, torch.tensor([[0.5, 0.0], [0.0, 0.0]]), "the advantage per step", {"advantage": A, "mask": mask.int()}
    )


CHECKS = (
    Check("the advantage is R - sigmoid(v)", value),
    Check("the advantage has no gradient", detached),
    Check("each real step has its episode's advantage", broadcast),
    Check("also where there are as many steps as episodes", square),
    Check("what is in the padding never matters", nan),
)
HINTS = {
    "the advantage is R - sigmoid(v)": ("The critic returns a logit. torch.sigmoid makes a probability of it.",),
    "the advantage has no gradient": ("tensor.detach() has the same numbers and no gradient.",),
    "each real step has its episode's advantage": (
        "advantage[:, None] is (B, 1): each row has its own advantage. Where the mask is False there is 0.",
    ),
    "also where there are as many steps as episodes": (
        "A (B,) and a (B, T) do not broadcast as you want. advantage[:, None] is (B, 1), which does.",
    ),
    "what is in the padding never matters": (
        "torch.where(mask, a, 0.0) selects a where the mask is True. It does not multiply, so NaN in padding is harmless.",
    ),
}
