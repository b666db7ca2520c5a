"""Checks of e03_gae."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import Case, against_kit, call, faults, no_gradient
from ..grading import Check, Mistake

nan, inf = float("nan"), float("inf")


def _case(reward: Any, value: Any, mask: Any, gamma: float, gae_lambda: float) -> Case:
    return {"reward": reward, "value": value, "mask": mask}, {"gamma": gamma, "gae_lambda": gae_lambda}


PLAIN = [
    _case([[1.0]], [[0.5]], [[True]], 1.0, 1.0),
    _case([[0.0, 1.0]], [[0.25, 0.5]], [[True, True]], 1.0, 1.0),
    _case([[0.0, 0.0, 1.0], [0.5, 0.0, 0.0]], [[0.5, 0.25, 0.75], [0.5, 0.5, 1.0]], [[True] * 3] * 2, 1.0, 1.0),
]
DISCOUNTED = [
    _case([[0.0, 1.0]], [[0.0, 0.5]], [[True, True]], 0.5, 0.0),
    _case([[0.0, 1.0]], [[0.25, 0.5]], [[True, True]], 1.0, 0.5),
    _case([[0.0, 0.0, 1.0]], [[0.5, 0.25, 0.75]], [[True] * 3], 0.5, 0.75),
]
PADDED = [
    _case([[1.0, 0.0]], [[0.5, 0.25]], [[True, False]], 1.0, 0.5),
    _case([[0.0, 1.0, 1.0, 0.0]], [[0.5, 0.25, 1.0, 0.5]], [[True, True, False, False]], 0.5, 0.5),
    _case([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.5] * 3, [0.25] * 3], [[True, True, False], [True] * 3], 0.5, 1.0),
]
SPOILED = [
    _case([[1.0, nan]], [[0.5, nan]], [[True, False]], 1.0, 1.0),
    _case([[0.0, 1.0, inf]], [[0.5, 0.25, nan]], [[True, True, False]], 0.5, 0.5),
]


def _both(student: ModuleType, x: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[Any, Any]:
    found = call(student.gae, x["reward"], x["value"], x["mask"], options["gamma"], options["gae_lambda"])
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Mistake(f"gae must return two arrays, advantage and returns, but it returns {type(found).__name__}.")
    return found[0], found[1]


def _delta(x: dict[str, Tensor], options: dict[str, Any], mistake: str) -> dict[str, Tensor]:
    """The recursion over TD errors with one mistake; the kit's reference is one over returns."""
    gamma, decay = options["gamma"], options["gamma"] * options["gae_lambda"]
    r, V, mask = x["reward"], x["value"], x["mask"]
    real = torch.ones_like(mask) if mistake == "padding" else mask
    A, rows = torch.zeros_like(V[:, 0]), []
    for t in reversed(range(V.shape[1])):
        after = V[:, t + 1] if t + 1 < V.shape[1] else torch.zeros_like(A)
        if mistake not in ("column", "padding"):
            after = torch.where(mask[:, t + 1], after, 0.0) if t + 1 < V.shape[1] else after
        after = after if mistake == "undiscounted" else gamma * after
        A = torch.where(real[:, t], r[:, t] + after - V[:, t] + decay * A, 0.0)
        rows.append(A)
    A = torch.stack(rows if mistake == "reverse" else rows[::-1], dim=1)
    return {"advantage": A, "returns": torch.where(real, A + V, 0.0)}


MORE = {
    name: lambda x, options, mistake=mistake: _delta(x, options, mistake)
    for name, mistake in {
        "gae_next_value_not_discounted": "undiscounted",
        "The loop goes backwards, and the advantages are not turned round.": "reverse",
        "gae_next_value_is_the_next_column": "column",
        "gae_padding_is_real": "padding",
    }.items()
}


def _compare(student: ModuleType, cases: Sequence[Case], *keys: str) -> None:
    def answer(x: dict[str, Tensor], options: dict[str, Any]) -> Mapping[str, Any]:
        both = dict(zip(("advantage", "returns"), _both(student, x, options), strict=True))
        return {key: both[key] for key in keys}

    left = ["gae_value_keeps_its_gradient"]
    if keys == ("returns",):  # the advantage is right already
        left += ["gae_lambda_ignored", "gae_gamma_ignored"]
    if cases is SPOILED:
        left = list(faults("generalized_advantage"))
    against_kit("generalized_advantage", answer, cases, leave_out=left, more=None if cases is SPOILED else MORE)


def detached(student: ModuleType) -> None:
    x = {"reward": torch.ones(1, 2), "value": torch.zeros(1, 2, requires_grad=True), "mask": torch.ones(1, 2) > 0}
    for name, found in zip(("advantage", "return"), _both(student, x, {"gamma": 1.0, "gae_lambda": 0.5}), strict=True):
        no_gradient(
            found,
            f"The {name} has a gradient, which reaches the critic. With a value that requires a gradient, requires_grad of "
            f"the {name} is True, right is False.",
        )


CHECKS = (
    Check("at gamma = lambda = 1 the advantage is R - V_t", lambda s: _compare(s, PLAIN, "advantage")),
    Check("gamma and lambda weigh what comes later", lambda s: _compare(s, DISCOUNTED, "advantage")),
    Check("the return is A + V", lambda s: _compare(s, PLAIN + DISCOUNTED, "returns")),
    Check("padding changes nothing, and has 0", lambda s: _compare(s, PADDED, "advantage", "returns")),
    Check("NaN in padding does no harm", lambda s: _compare(s, SPOILED, "advantage", "returns")),
    Check("nothing has a gradient", detached),
)
HINTS = {
    "at gamma = lambda = 1 the advantage is R - V_t": (
        "Go backwards: t = T - 1 first. A_{t+1} and V_{t+1} start at 0, because the last state is terminal.",
    ),
    "gamma and lambda weigh what comes later": (
        "delta_t = r_t + gamma V_{t+1} - V_t, and A_t = delta_t + gamma lambda A_{t+1}. V_{t+1} has gamma alone.",
    ),
    "the return is A + V": ("Add the value that the advantage was made with: R_t = A_t + V_t.",),
    "padding changes nothing, and has 0": (
        "The last real step of a short row is not the last column. Its V_{t+1} is 0, whatever the next column has.",
        "Then V_{t+1} of the last real step is 0 by itself. Set A to 0 where the mask is False, at each step of the loop.",
    ),
    "NaN in padding does no harm": (
        "Make the padding harmless before the loop: reward = torch.where(mask, reward, 0.0), and the same for the value.",
    ),
    "nothing has a gradient": ("torch.no_grad() around it all, or detach() at the end, for both results.",),
}
