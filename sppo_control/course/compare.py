"""What the checks share: read what a student's function returns, compare it, and name the mistake.

A check gives tiny inputs first, so that the numbers in its message can be followed by hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .grading import Mistake

Case = tuple[dict[str, Any], dict[str, Any]]
"""Arrays as nested lists, and options."""
NAMES = {"returns": "the return", "advantage": "the advantage", "loss": "the loss"}
NAN = "A number is NaN: a division 0 / 0, the logarithm of 0, or NaN times 0."
UNKNOWN = "This is not right, and it is none of the usual mistakes."
TOLERANCE = 1e-5
"""Relative and absolute. It admits float32, and epsilons of 1e-6 and below."""


def show(x: Any) -> str:
    """Numbers as short text."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if isinstance(x, Tensor):
        x = x.detach().tolist()
    if isinstance(x, float):
        return f"{x:.4g}" if x != 0 else "0"
    if isinstance(x, list | tuple):
        return f"[{', '.join(map(show, x))}]"
    if isinstance(x, Mapping):
        return ", ".join(f"{name} = {show(value)}" for name, value in x.items())
    return str(x)


def numbers(found: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """What a student's function returned, as a float64 tensor that keeps its gradient.

    Args:
        found: a tensor, an array, a number or a list.
        shape: the shape that is right.
        what: its name in messages.

    Raises:
        Mistake: it is nothing of this kind, or has another shape or dtype.
    """
    if found is None:
        raise Mistake(f"{what} is None. Does the function end in `return`?")
    if isinstance(found, tuple):
        raise Mistake(f"{what} is a tuple of {len(found)}, where one array of shape {shape} is right.")
    if not isinstance(found, Tensor):
        try:
            array = np.asarray(found)
        except (ValueError, TypeError, RuntimeError):
            array = np.asarray(None)
        if array.dtype == object or array.dtype.kind in "USV":
            raise Mistake(f"{what} is of type {type(found).__name__}, where numbers of shape {shape} are right.")
        found = torch.from_numpy(np.array(array))
    if found.is_complex() or found.dtype == torch.bool:
        raise Mistake(f"{what} has dtype {str(found.dtype).removeprefix('torch.')}, where real numbers are right.")
    if tuple(found.shape) != shape:
        hint = ""
        if len(found.shape) == 2 and len(shape) == 1 and tuple(found.shape) == (shape[0], shape[0]):
            hint = " A (B,) and a (B, 1) were broadcast to (B, B)."
        elif not shape:
            hint = " Is a mean or a sum left out?"
        raise Mistake(f"{what} has shape {tuple(found.shape)}, right is {shape}.{hint}")
    return found.double()


def same(found: Tensor, right: Any) -> bool:
    """Whether numbers agree up to rounding; NaN agrees with NaN."""
    right = torch.as_tensor(right, dtype=torch.float64).detach()
    return found.shape == right.shape and torch.allclose(found.detach(), right, TOLERANCE, TOLERANCE, equal_nan=True)


def expect(found: Any, right: Any, what: str, given: Any = "", mistakes: Mapping[str, Any] | None = None) -> Tensor:
    """Compare one answer with the right one.

    Args:
        found: what the student's function returned.
        right: numbers.
        what: the name of the answer in messages.
        given: the inputs, which the message repeats.
        mistakes: a sentence about a usual mistake -> the answer that it gives, of any shape.

    Returns:
        The answer as a float64 tensor.

    Raises:
        Mistake: they differ.
    """
    right = torch.as_tensor(right, dtype=torch.float64).detach()
    tail = f" With {show(given)}, {what} is " if given else f" {what[:1].upper()}{what[1:]} is "
    for sentence, wrong in (mistakes or {}).items():
        wrong = torch.as_tensor(wrong, dtype=torch.float64).detach()
        if wrong.shape == right.shape and same(wrong, right):
            continue  # these inputs do not show it
        try:
            mine = numbers(found, tuple(wrong.shape), what)
        except Mistake:
            continue
        if same(mine, wrong):
            raise Mistake(f"{sentence}{tail}{show(mine)}, right is {show(right)}.")
    mine = numbers(found, tuple(right.shape), what)
    if same(mine, right):
        return mine
    mask = given.get("mask") if isinstance(given, Mapping) else None
    raise Mistake(f"{_what_is_wrong([(mine, right, mask)])}{tail}{show(mine)}, right is {show(right)}.")


def _what_is_wrong(answers: Sequence[tuple[Tensor, Tensor, Any]]) -> str:
    """A sentence about answers that no known mistake gives: mine, right, and the mask if there is one."""
    mine, right = (torch.cat([answer[i].detach().flatten() for answer in answers]) for i in (0, 1))
    if mine.isnan().any() and not right.isnan().any():
        return NAN
    if same(mine, -right):
        return "The sign is turned."
    largest = right.abs().argmax()
    factor = mine[largest] / right[largest]
    if right[largest] and mine.isfinite().all() and factor and same(mine, factor * right):
        # One number alone is always some multiple of what is right; that helps only if it is a small whole number of times.
        whole = any(1 < round(f) <= 64 and abs(f - round(f)) < 1e-4 for f in (float(factor), float(1 / factor)))
        if whole or (right != 0).sum() > 1:
            return f"It is {show(factor)} times what is right."
    masks = [torch.as_tensor(mask) for _, _, mask in answers if mask is not None]
    if len(masks) == len(answers) and all(m.shape == a[0].shape for m, a in zip(masks, answers, strict=True)):
        real = torch.cat([mask.flatten() > 0 for mask in masks])
        if same(mine[real], right[real]):
            return "The real steps are right, but padding does not have 0."
    return UNKNOWN


def against(
    function: Callable[..., Any],
    cases: Sequence[Mapping[str, Any]],
    right: Callable[..., Any],
    what: str,
    mistakes: Mapping[str, Callable[..., Any]],
) -> None:
    """Compare a student's function with the right one on some inputs, and name the mistake that explains all answers.

    Args:
        function: the student's.
        cases: arguments by name, passed in this order; the smallest first.
        right: takes the same arguments and returns numbers.
        what: the name of the answer in messages.
        mistakes: a sentence, or the name of a mistake of the conformance kit -> a function that makes it.

    Raises:
        Mistake: an answer differs.
    """
    found = [call(function, *case.values()) for case in cases]
    for case, x in zip(cases, found, strict=True):
        correct = torch.as_tensor(right(*case.values()), dtype=torch.float64).detach()
        try:
            expect(x, correct, what)
            continue
        except Mistake:
            pass
        named = {}
        for name, wrong in mistakes.items():
            with contextlib.suppress(ZeroDivisionError, RuntimeError, ValueError):
                answers = [torch.as_tensor(wrong(*c.values()), dtype=torch.float64).detach() for c in cases]
                if all(_agrees(x, y, what) for x, y in zip(found, answers, strict=True)):
                    named = {sentence(name): wrong(*case.values())}
                    break
        if not named and len(cases) > 1:  # what holds in one case only may be chance
            with contextlib.suppress(Mistake):
                rights = [torch.as_tensor(right(*c.values()), dtype=torch.float64).detach() for c in cases]
                mines = [numbers(y, tuple(z.shape), what) for y, z in zip(found, rights, strict=True)]
                words = _what_is_wrong([(m, z, c.get("mask")) for m, z, c in zip(mines, rights, cases, strict=True)])
                named = {words: numbers(x, tuple(correct.shape), what)}
        expect(x, correct, what, case, named)


def _agrees(found: Any, wrong: Tensor, what: str) -> bool:
    try:
        return same(numbers(found, tuple(wrong.shape), what), wrong)
    except Mistake:
        return False


def sentence(name: str) -> str:
    """The conformance kit's sentence about a mistake of this name; what is no such name stays as it is."""
    if " " in name:
        return name
    from ..conformance.spec import mistakes

    return mistakes()[name]


def faults(name: str) -> Mapping[str, str]:
    """The mistakes that the conformance kit knows of one of its functions, with their sentences."""
    from ..conformance.spec import FUNCTIONS

    return next(f for f in FUNCTIONS if f.name == name).faults


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a student's function on copies of tensors.

    Raises:
        Mistake: it changes an argument in place, which the caller still needs.
    """
    copies = [_copy(x) for x in arguments]
    found = function(*copies, **named)
    for x, y in zip(arguments, copies, strict=True):
        if isinstance(x, Tensor) and not torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)):
            raise Mistake(
                f"The function changes its argument in place: {show(x)} became {show(y)}. The caller still needs it; "
                "work on a copy."
            )
    return found


def _copy(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def gradient(function: Callable[..., Any], arguments: Sequence[Any], of: int, what: str) -> Tensor:
    """Gradient of a scalar that a student's function returns, with respect to one argument; 0 if it does not depend on it.

    Raises:
        Mistake: the function does not return a scalar, or it has no gradient at all.
    """
    copies = [_copy(x) for x in arguments]
    copies[of] = copies[of].detach().clone().requires_grad_()
    found = numbers(function(*copies), (), what)
    if not found.requires_grad:
        raise Mistake(f"The gradient is lost: {what} has none, for example because of detach(), item() or numpy().")
    (result,) = torch.autograd.grad(found, [copies[of]], allow_unused=True)
    return torch.zeros_like(copies[of]) if result is None else result


def no_gradient(found: Any, sentence: str) -> None:
    """Raise Mistake with this sentence if a tensor still has a gradient."""
    if isinstance(found, Tensor) and found.requires_grad:
        raise Mistake(sentence)


# ------------------------------------------------------------------------------------------ the conformance kit
def against_kit(
    name: str,
    answer: Callable[[dict[str, Tensor], dict[str, Any]], Mapping[str, Any]],
    cases: Sequence[Case],
    *,
    leave_out: Sequence[str] = (),
    gradients: Sequence[str] = (),
    more: Mapping[str, Callable[[dict[str, Tensor], dict[str, Any]], Mapping[str, Tensor]]] | None = None,
) -> None:
    """Compare a student's function with the conformance kit's reference, and name the mistake by the kit's sentences.

    Args:
        name: the function of the kit's specification.
        answer: takes arrays by name and options, calls the student, and returns outputs by the kit's names.
        cases: arrays as nested lists (floating ones become float64, bools stay) and options; the smallest first.
        leave_out: mistakes that cannot be made here.
        gradients: arrays whose gradient of the output (a scalar) is compared too.
        more: other mistakes, which are tried first: a sentence, or a name of the kit -> outputs of arrays and options.

    Raises:
        Mistake: an answer differs. Its sentence is the first mistake that explains the answers of all cases.
    """
    from ..conformance.spec import FUNCTIONS

    function = next(f for f in FUNCTIONS if f.name == name)

    def reference(case: Case, *faults: str) -> dict[str, Tensor]:
        x = _tensors(case[0], gradients)
        return _with_gradients(function.reference(x, case[1], frozenset(faults)), x, gradients)

    answers: list[tuple[Case, dict[str, Tensor]]] = []
    bad: tuple[Case, str, Tensor, Tensor] | None = None
    for case in cases:
        x, right = _tensors(case[0], gradients), reference(case)
        found = {key: numbers(y, tuple(right[key].shape), key) for key, y in answer(x, case[1]).items()}
        if gradients and not next(iter(found.values())).requires_grad:
            raise Mistake(
                "The gradient is lost: the loss has none, because of detach(), item() or numpy(), for example."
            )
        mine = _with_gradients(found, x, gradients)
        answers.append((case, mine))
        for key, value in mine.items():
            if bad is None and not same(value, right[key]):
                bad = case, key, value, right[key]
    if bad is None:
        return

    def other(case: Case, name: str) -> dict[str, Tensor]:
        x = _tensors(case[0], gradients)
        return _with_gradients((more or {})[name](x, case[1]), x, gradients)

    guesses: list[tuple[str, Callable[[Case, str], dict[str, Tensor]]]] = [(name, other) for name in more or {}]
    guesses += [(fault, reference) for fault in function.faults if fault not in leave_out]
    words = ""
    for name_of, make in guesses:
        try:
            if all(same(y, make(case, name_of)[key]) for case, mine in answers for key, y in mine.items()):
                words = sentence(name_of)
                break
        except (RuntimeError, KeyError):  # this mistake does not go with these inputs
            continue
    (arrays, options), key, value, correct = bad
    if not words:
        several = [(mine[key], reference(case)[key], case[0].get("mask")) for case, mine in answers if key in mine]
        words = _what_is_wrong(several)
    what = NAMES.get(key, key)
    raise Mistake(
        f"{words or UNKNOWN} With {show(arrays | options)}, {what} is {show(value)}, right is {show(correct)}."
    )


def _tensors(arrays: Mapping[str, Any], gradients: Sequence[str]) -> dict[str, Tensor]:
    made = {}
    for name, x in arrays.items():
        array = np.asarray(x)
        made[name] = torch.from_numpy(array.astype(np.float64) if array.dtype.kind == "f" else array.copy())
        if name in gradients:
            made[name].requires_grad_()
    return made


def _with_gradients(outputs: Mapping[str, Tensor], x: Mapping[str, Tensor], of: Sequence[str]) -> dict[str, Tensor]:
    """Outputs without gradient, and `gradient of NAME` of the first output, a scalar."""
    found = {name: y.detach() for name, y in outputs.items()}
    for name in of:
        y = next(iter(outputs.values()))
        g = torch.autograd.grad(y, x[name], retain_graph=True, allow_unused=True)[0] if y.requires_grad else None
        found[f"gradient of {name}"] = torch.zeros_like(x[name]) if g is None else g
    return found
