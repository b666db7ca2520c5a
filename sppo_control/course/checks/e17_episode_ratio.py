"""Checks of e17_episode_ratio."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import NAN, against, call, numbers, show
from ..grading import Check, Mistake


def _case(ratio: list[list[float]], lengths: list[int], clip_coef: float | None = None) -> dict[str, Any]:
    r = torch.tensor(ratio, dtype=torch.float64)
    mask = torch.arange(r.shape[1]) < torch.tensor(lengths)[:, None]
    case: dict[str, Any] = {"logp": torch.full_like(r, -1.0), "logp_old": -1.0 - r.log(), "mask": mask}
    return case if clip_coef is None else {**case, "clip_coef": clip_coef}


FULL = [_case([[2.0]], [1]), _case([[4.0, 1.0]], [2]), _case([[0.5, 0.5, 2.0], [1.0, 2.0, 4.0]], [3, 3])]
PADDED = [_case([[4.0, 4.0]], [1]), _case([[2.0, 8.0, 1.0], [0.5, 3.0, 3.0]], [2, 1])]


def _log_ratio(logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logp - old, 0.0)


def _ratio(logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return (_log_ratio(logp, old, mask).sum(1) / mask.sum(1)).exp()


RATIO: dict[str, Callable[..., Any]] = {
    "sequence_ratio_is_the_product": lambda logp, old, m: _log_ratio(logp, old, m).sum(1).exp(),
    "sequence_ratio_over_padding": lambda logp, old, m: _log_ratio(logp, old, m).mean(1).exp(),
    "padding_is_real": lambda logp, old, m: (logp - old).mean(1).exp(),
    "This is the arithmetic mean of the ratios. The geometric mean is exp of the mean of the logarithms.":
    lambda logp, old, m: torch.where(m, (logp - old).exp(), 0.0).sum(1) / m.sum(1),
    "ratio_upside_down": lambda logp, old, m: 1 / _ratio(logp, old, m),
    "This is the logarithm of the ratio; exp is missing.": lambda logp, old, m: _ratio(logp, old, m).log(),
    "There is one ratio for the whole batch; each episode has its own.": lambda logp, old, m: (
        _log_ratio(logp, old, m).sum() / m.sum()
    ).exp().expand(len(m)),
    "sequence_ratio_ignored": lambda logp, old, m: _log_ratio(logp, old, m).exp(),
}  # fmt: skip


def ratio(student: ModuleType) -> None:
    against(student.episode_ratio, FULL, _ratio, "the ratio", RATIO)


def padded(student: ModuleType) -> None:
    against(student.episode_ratio, PADDED + FULL, _ratio, "the ratio", RATIO)


def _kl(logp: Tensor, old: Tensor, mask: Tensor) -> list[float]:
    x = (logp - old)[mask]
    return [float(-x.mean()), float((x.exp() - 1 - x).mean())]


def _sequence_mean(logp: Tensor, old: Tensor, mask: Tensor) -> list[float]:
    rows = torch.tensor([_kl(*(x[i : i + 1] for x in (logp, old, mask))) for i in range(len(mask))])
    return [float(x) for x in rows.mean(0)]


def kl(student: ModuleType) -> None:
    def answer(logp: Tensor, old: Tensor, mask: Tensor) -> list[float]:
        found = student.kl_estimates(logp, old, mask)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Mistake(f"kl_estimates must return two numbers, k1 and k3, but it returns {show(found)}.")
        return [float(numbers(x, (), name)) for x, name in zip(found, ("k1", "k3"), strict=True)]

    def of(k1: Callable[[Tensor], Tensor], k3: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        return lambda logp, old, m: [float(f((logp - old)[m]).mean()) for f in (k1, k3)]

    def plain(x: Tensor) -> Tensor:
        return -x

    def second(x: Tensor) -> Tensor:
        return x.exp() - 1 - x

    against(
        answer,
        FULL[:2] + PADDED,
        _kl,
        "(k1, k3)",
        {
            "kl_sign_turned": of(lambda x: x, second),
            "approximate_kl_with_a_wrong_term": of(plain, lambda x: x.exp() - 1 + x),
            "1 is not subtracted in r - 1 - log r.": of(plain, lambda x: x.exp() - x),
            "k3 is that of the inverse ratio: r is pi / pi_old.": of(plain, lambda x: (-x).exp() - 1 + x),
            "k2 = (log r)^2 / 2 is another estimate; k3 is r - 1 - log r.": of(plain, lambda x: x.square() / 2),
            "Both are in the other order: first k1, then k3.": of(second, plain),
            "kl_of_the_sequences_ratio": lambda logp, old, m: [
                _kl(logp, old, m)[0],
                float(second(_ratio(logp, old, m).log()).mean()),
            ],
            "sequence_mean_in_place_of_token_mean": _sequence_mean,
            "Padding counts in the means.": lambda logp, old, m: _kl(logp, old, torch.ones_like(m)),
            "The sums over real steps are divided by all steps, padding included.": lambda logp, old, m: [
                x * float(m.double().mean()) for x in _kl(logp, old, m)
            ],
        },
    )


def fraction(student: ModuleType) -> None:
    def right(logp: Tensor, old: Tensor, m: Tensor, eps: float) -> Tensor:
        return (((logp - old)[m].exp() - 1).abs() > eps).double().mean()

    def episodes(logp: Tensor, old: Tensor, m: Tensor, eps: float) -> Tensor:
        return ((_ratio(logp, old, m) - 1).abs() > eps).double().mean()

    against(
        student.clip_fraction,
        [
            _case([[1.5, 1.0]], [2], 0.2),
            _case([[0.5, 1.0]], [2], 0.2),
            _case([[1.55, 1.0]], [2], 0.5),
            _case([[1.5, 1.0, 3.0, 3.0], [0.5, 1.0, 1.0, 1.0]], [2, 4], 0.3),
        ],
        right,
        "the clip fraction",
        {
            "clip_fraction_of_the_log_ratio": lambda logp, old, m, eps: ((logp - old)[m].abs() > eps).double().mean(),
            "Only ratios above 1 + eps count, but those below 1 - eps do as well.": lambda logp, old, m, eps: (
                (logp - old)[m].exp() > 1 + eps
            ).double().mean(),
            "Padding counts.": lambda logp, old, m, eps: right(logp, old, torch.ones_like(m), eps),
            "The count is divided by all steps, padding included.": lambda logp, old, m, eps: right(logp, old, m, eps)
            * m.double().mean(),
            "This is the number of steps, not their share.": lambda logp, old, m, eps: right(logp, old, m, eps) * m.sum(),
            "This is the share that is not clipped.": lambda logp, old, m, eps: 1 - right(logp, old, m, eps),
            "This is the share of episodes with a clipped ratio; here steps are counted.": episodes,
        },
    )  # fmt: skip


def spoiled(student: ModuleType) -> None:
    case = _case([[2.0, 1.0], [0.5, 0.5]], [1, 2])
    case["logp"][0, 1] = float("nan")
    case["logp_old"][0, 1] = -float("inf")
    found = [call(student.episode_ratio, *case.values()), *student.kl_estimates(*case.values())]
    found.append(student.clip_fraction(*case.values(), 0.2))
    for x, name in zip(found, ("the ratio", "k1", "k3", "the clip fraction"), strict=True):
        value = numbers(x, (2,) if name == "the ratio" else (), name)
        if not value.isfinite().all():
            raise Mistake(
                f"{NAN} With NaN in the padding, {name} is {show(value)}. Select with the mask, do not multiply."
            )


CHECKS = (
    Check("the ratio is the geometric mean", ratio),
    Check("padding is not in the mean", padded),
    Check("k1 and k3", kl),
    Check("the clip fraction", fraction),
    Check("NaN in padding does no harm", spoiled),
)
HINTS = {
    "the ratio is the geometric mean": (
        "Make log r = logp - logp_old first, and set it to 0 in the padding with torch.where.",
        "The mean is over real steps: divide the sum of a row by mask.sum(dim=1).",
    ),
    "padding is not in the mean": (
        "After torch.where(mask, log r, 0.0) the padding adds nothing to the sum. Divide by the number of real "
        "steps, not by T.",
    ),
    "k1 and k3": (
        "x[mask] is a flat tensor of the real steps alone. Its mean is the mean over all real steps of the batch.",
        "k1 is -log r and k3 is r - 1 - log r. In both r = pi / pi_old.",
    ),
    "the clip fraction": (
        "The clip fraction looks at the ratio itself, (r - 1).abs() > eps, not at its logarithm. Only real steps are "
        "counted, above and below the line: x[mask].",
    ),
    "NaN in padding does no harm": ("torch.where(mask, x, 0.0) selects; x * mask multiplies, and NaN times 0 is NaN.",),
}
