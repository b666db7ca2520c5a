"""Checks of e05_reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import against, expect, gradient, numbers, sentence, show
from ..grading import Check, Mistake

nan = float("nan")
Part = tuple[Tensor, Tensor]


def _case(x: list[list[float]], lengths: list[int], reduction: str, denominator: float | None = None) -> dict[str, Any]:
    mask = torch.arange(len(x[0])) < torch.tensor(lengths)[:, None]
    case = {"x": torch.tensor(x, dtype=torch.float64), "mask": mask, "reduction": reduction}
    return case if denominator is None else {**case, "denominator": denominator}


def _right(x: Tensor, mask: Tensor, reduction: str, denominator: float | None = None) -> Tensor:
    x, lengths = torch.where(mask, x, 0.0), mask.sum(dim=1)
    if reduction == "sequence-mean":
        return (x.sum(1) / lengths.clamp(min=1)).sum() / (denominator or (lengths > 0).sum())
    return x.sum() / (denominator or (mask.sum() if reduction == "token-mean" else mask.numel()))


def _with(reduction: str) -> Any:
    return lambda x, mask, r, d=None: _right(x, mask, reduction, d)


def _only_sequence(rows: Callable[[Tensor, Tensor], Tensor], count_empty: bool) -> Any:
    """A wrong sequence-mean, with these numbers per row; the other reductions are right."""

    def wrong(x: Tensor, mask: Tensor, reduction: str, denominator: float | None = None) -> Tensor:
        if reduction != "sequence-mean":
            return _right(x, mask, reduction, denominator)
        usual = len(mask) if count_empty else mask.any(1).sum()
        return rows(torch.where(mask, x, 0.0), mask).sum() / (denominator or usual)

    return wrong


WRONG: dict[str, Any] = {
    "padding_is_real": lambda x, mask, r, d=None: _right(x, torch.ones_like(mask), r, d),
    "reduction_ignored": _with("token-mean"),
    "sequence_mean_in_place_of_token_mean": lambda x, mask, r, d=None: _right(
        x, mask, "sequence-mean" if r == "token-mean" else r, d
    ),
    "mean_over_padding": lambda x, mask, r, d=None: _right(x, mask, "fixed" if r == "token-mean" else r, d),
    "token_mean_and_fixed_swapped": lambda x, mask, r, d=None: _right(
        x, mask, {"fixed": "token-mean", "token-mean": "fixed"}.get(r, "sequence-mean"), d
    ),
    "sum_for_mean": lambda x, mask, r, d=None: _right(x, mask, r, 1.0),
    "sequence_sums_for_sequence_means": _only_sequence(lambda x, mask: x.sum(1), False),
    "sequence_mean_over_the_padded_length": _only_sequence(lambda x, mask: x.mean(1), False),
    "empty_rows_in_the_divisor": _only_sequence(lambda x, mask: x.sum(1) / mask.sum(1).clamp(min=1), True),
    "empty_rows_divided_by_zero": _only_sequence(lambda x, mask: x.sum(1) / mask.sum(1), False),
    "fixed_leaves_out_empty_rows": lambda x, mask, r, d=None: _right(
        x, mask, r, d or float(mask.any(1).sum() * mask.shape[1])
    ),
    "surrogate_denominator_ignored": lambda x, mask, r, d=None: _right(x, mask, r),
    "The loss is divided by the usual divisor, and by the denominator too. It replaces the last divisor.":
    lambda x, mask, r, d=None: _right(x, mask, r) / (d or 1.0),
}  # fmt: skip

TOKEN = [
    _case([[1.0, 3.0], [4.0, 9.0]], [2, 1], "token-mean"),
    _case([[1.0, 2.0, 3.0], [5.0, 1.0, 7.0]], [3, 1], "token-mean"),
]
SEQUENCE = [
    _case([[1.0, 3.0], [4.0, 9.0]], [2, 1], "sequence-mean"),
    _case([[1.0, 2.0, 3.0], [5.0, 1.0, 7.0]], [2, 1], "sequence-mean"),
]
FIXED = [_case([[1.0, 3.0], [4.0, 9.0]], [2, 1], "fixed"), _case([[1.0, 2.0, 3.0], [5.0, 1.0, 7.0]], [2, 0], "fixed")]
EMPTY = [
    _case([[1.0, 3.0], [4.0, 9.0]], [1, 0], "sequence-mean"),
    _case([[1.0, 2.0, 6.0], [5.0, 1.0, 7.0], [1.0, 1.0, 1.0]], [2, 3, 0], "sequence-mean"),
]
DIVIDED = [
    _case([[1.0, 3.0], [4.0, 9.0]], [2, 1], "token-mean", 6.0),
    _case([[1.0, 3.0], [4.0, 9.0]], [2, 1], "sequence-mean", 5.0),
    _case([[1.0, 3.0], [4.0, 9.0]], [2, 1], "fixed", 8.0),
]


def _means(student: ModuleType, cases: Sequence[dict[str, Any]]) -> None:
    against(student.reduce, cases, _right, "the loss", WRONG)


def spoiled(student: ModuleType) -> None:
    x = torch.tensor([[1.0, nan], [4.0, float("inf")]], dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, False]])
    for reduction in ("token-mean", "sequence-mean", "fixed"):
        found = numbers(student.reduce(x.clone(), mask, reduction), (), "the loss")
        if not found.isfinite():
            raise Mistake(
                f"{sentence('old_log_probability_padding_kept')} With x = [[1, nan], [4, inf]] and padding in the second "
                f"column, the {reduction} is {show(found)}, right is {show(_right(x, mask, reduction))}."
            )
        expect(found, _right(x, mask, reduction), "the loss", {"x": x, "mask": mask, "reduction": reduction})
        g = gradient(student.reduce, (x, mask, reduction), 0, "the loss")
        right = mask / float({"token-mean": 2, "sequence-mean": 2, "fixed": 4}[reduction])
        expect(g, right, f"the gradient of the {reduction}", {"x": x, "mask": mask})


def _parts(lengths: Sequence[Sequence[int]]) -> list[Part]:
    rows = iter(range(1, 10))
    return [
        (
            torch.tensor([[float(next(rows))] * 2 for _ in part], dtype=torch.float64),
            torch.arange(2) < torch.tensor(part)[:, None],
        )
        for part in lengths
    ]


def micro(student: ModuleType) -> None:
    def right(parts: list[Part]) -> Tensor:
        return _right(torch.cat([x for x, _ in parts]), torch.cat([m for _, m in parts]), "token-mean")

    def means(parts: list[Part]) -> Tensor:
        return torch.stack([_right(x, m, "token-mean") for x, m in parts])

    against(
        student.whole_batch,
        [{"parts": _parts([[2], [1]])}, {"parts": _parts([[2, 1], [1]])}, {"parts": _parts([[1], [2, 2], [2]])}],
        right,
        "the loss of the whole batch",
        {
            "update_micro_batch_means_added": lambda parts: means(parts).sum(),
            "update_micro_batch_means_averaged": lambda parts: means(parts).mean(),
            "update_last_micro_batch_only": lambda parts: _right(parts[-1][0], parts[-1][1], "token-mean"),
            "The sums are not divided by the number of real steps.": lambda parts: (
                right(parts) * sum(int(m.sum()) for _, m in parts)
            ),
            "The sum is divided by the number of episodes, not of real steps.": lambda parts: (
                right(parts) * sum(int(m.sum()) for _, m in parts) / sum(len(m) for _, m in parts)
            ),
            "The sum is divided by all steps, padding included.": lambda parts: (
                right(parts) * sum(int(m.sum()) for _, m in parts) / sum(m.numel() for _, m in parts)
            ),
        },
    )


CHECKS = (
    Check("token-mean: each real step counts the same", lambda s: _means(s, TOKEN)),
    Check("sequence-mean: each episode counts the same", lambda s: _means(s, SEQUENCE + TOKEN)),
    Check("fixed: divided by B x T", lambda s: _means(s, FIXED + TOKEN)),
    Check("in sequence-mean a row without a real step does not count", lambda s: _means(s, EMPTY)),
    Check("a given denominator replaces the last divisor", lambda s: _means(s, DIVIDED)),
    Check("NaN in padding reaches neither the loss nor its gradient", spoiled),
    Check("micro-batches add up to the whole batch", micro),
)
HINTS = {
    "token-mean: each real step counts the same": (
        "Make the padding 0 first: torch.where(mask, x, 0.0). The sums are then those of the real steps.",
    ),
    "sequence-mean: each episode counts the same": (
        "mask.sum(dim=1) are the episodes' lengths. For a row of padding it is 0: divide by lengths.clamp(min=1).",
    ),
    "fixed: divided by B x T": ("mask.numel() is B x T. It counts the padding too, and that is the point of it.",),
    "in sequence-mean a row without a real step does not count": (
        "Where the mask is all False the length is 0. Such a row has no mean: divide by lengths.clamp(min=1), and "
        "leave it out of the last divisor.",
    ),
    "a given denominator replaces the last divisor": (
        "The last divisor is mask.sum(), (lengths > 0).sum() or mask.numel(), if no denominator is given.",
    ),
    "NaN in padding reaches neither the loss nor its gradient": (
        "Multiply NaN by 0 and it stays NaN. torch.where(mask, x, 0.0) first, before anything is computed from x.",
    ),
    "micro-batches add up to the whole batch": (
        "For whole_batch, count the real steps of all parts first, and give that number to each part as the denominator.",
    ),
}
