"""Check an adapter against the specification, shrink what fails, and name the mistake."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from .. import extras
from .adapters import Adapter, Answer, NotOffered, torch_gradients
from .cases import Case, DrawnSource, RandomSource
from .spec import FUNCTIONS, PROPERTIES, SPEC_VERSION, Function, Property, mistakes

HOLDS, FAILS, NOT_OFFERED, EXPECTED = "holds", "fails", "not offered", "expected failure"
TOLERANCE = {"float64": 1e-7, "float32": 3e-5, "float16": 2e-3}
BATCHES = 12
"""Random batches per property that are tried before Hypothesis, and that tell mistakes apart."""


@dataclass
class Result:
    """What was found about one property."""

    prop: Property
    status: str
    reason: str = ""
    """why it is not offered, or why its failure is expected"""
    inputs: dict[str, Any] = field(default_factory=dict)
    """the smallest counter-example, as plain numbers"""
    found: str = ""
    """what the adapter says, and what is right"""
    mistakes: tuple[str, ...] = ()
    """names of the mistakes that together give the adapter's answers"""
    batches: int = 0
    """number of batches on which they do"""
    same_as: str = ""
    """an earlier property that fails, perhaps for the same reason"""
    note: str = ""
    """arguments of the adapter that the kit does not know, which may be the reason"""

    @property
    def sentence(self) -> str:
        """The usual mistake behind the failure."""
        return " And: ".join(self.prop.function.faults[name] for name in self.mistakes)

    def lines(self) -> list[str]:
        """The failure as lines of text."""
        prop = self.prop
        inputs = [f"{name} = {_words(x)}" for name, x in self.inputs.items()]
        lines = [f"must hold: {prop.says}"]
        if inputs:
            lines.append(f"smallest counter-example: {', '.join(inputs)}")
        lines.append(self.found)
        if self.mistakes:
            lines.append(f"likely mistake: {self.sentence} [{', '.join(self.mistakes)}]")
            lines.append(f"    (with it the equation gives your answers on all {self.batches} batches tried)")
        else:
            lines.append("likely mistake: none of the known ones gives these answers")
            lines += [self.note] if self.note else []
        if self.same_as:
            lines.append(f"fails for the same reason as {self.same_as}, perhaps")
        return [*lines, f"equation: {prop.equation}   ({prop.source})"]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        plain: dict[str, Any] = {"id": self.prop.id, "status": self.status}
        if self.reason:
            plain["reason"] = self.reason
        if self.status in (FAILS, EXPECTED):
            plain |= {
                "inputs": self.inputs,
                "found": self.found,
                "mistakes": list(self.mistakes),
                "mistake": self.sentence,
                "batches": self.batches,
                "says": self.prop.says,
                "equation": self.prop.equation,
                "source": self.prop.source,
            }
            if self.same_as:
                plain["same_as"] = self.same_as
            if self.note and not self.mistakes:
                plain["note"] = self.note
        return plain


@dataclass
class Report:
    """What was found about an adapter."""

    results: list[Result]
    framework: str
    seconds: float
    unused: tuple[str, ...] = ()
    """expected failures that did not happen"""

    @property
    def ok(self) -> bool:
        """Whether all that is offered holds or was expected to fail."""
        return not any(result.status == FAILS for result in self.results)

    def count(self, status: str) -> int:
        """Number of properties with this status."""
        return sum(result.status == status for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "specification": SPEC_VERSION,
            "framework": self.framework,
            "seconds": round(self.seconds, 1),
            "ok": self.ok,
            "counts": {status: self.count(status) for status in (HOLDS, FAILS, EXPECTED, NOT_OFFERED)},
            "expected_but_held": list(self.unused),
            "properties": [result.as_dict() for result in self.results],
        }

    def json(self) -> str:
        """As JSON text."""
        return json.dumps(self.as_dict(), indent=1)

    def text(self) -> str:
        """As plain text: one line for each property, and a block for each that fails."""
        width = max(len(result.prop.id) for result in self.results)
        lines: list[str] = []
        skipped = [r for r in self.results if r.status == NOT_OFFERED]
        for result in self.results:
            if result.status == NOT_OFFERED and result.prop.function.name not in self._offered():
                continue
            tail = f"   ({result.reason})" if result.reason else ""
            lines.append(f"{result.prop.id:{width}}  {result.status}{tail}")
            if result.status in (FAILS, EXPECTED):
                lines += [f"    {line}" for line in result.lines()]
        absent = dict.fromkeys(r.prop.function.name for r in skipped if r.prop.function.name not in self._offered())
        if absent:
            lines.append(f"not offered: {', '.join(absent)}")
        lines += [f"expected to fail, but nothing failed so: {name}" for name in self.unused]
        words = {HOLDS: "hold", FAILS: "fail", EXPECTED: "fail as expected", NOT_OFFERED: "are not offered"}
        parts = [f"{self.count(status)} {word}" for status, word in words.items()]
        lines.append(f"{len(self.results)} properties of specification {SPEC_VERSION}: {', '.join(parts)}.")
        return "\n".join(lines)

    __str__ = text

    def _offered(self) -> set[str]:
        return {r.prop.function.name for r in self.results if r.status != NOT_OFFERED}


def _words(x: Any) -> str:
    text = json.dumps(x)
    return text if len(text) <= 160 else f"{text[:120]} ... ({len(text)} characters)"


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 40 else f"{text[:37]}..."


# ------------------------------------------------------------------------------------------------------- the check
def check(
    adapter: Any,
    expected_failures: Mapping[str, str] | None = None,
    *,
    only: Sequence[str] | None = None,
    examples: int = 30,
    seed: int = 0,
) -> Report:
    """Check an adapter against the specification.

    Args:
        adapter: a module, a class, an object or a dictionary that offers some functions of the specification, with the
            argument names and shapes of `sppo_control.core`. It may say `framework` ("torch", "numpy" or "jax"), `dtype`
            ("float64" or "float32") and `expected_failures`.
        expected_failures: name of a property or of a mistake -> why it is meant to be so. A property whose failure is
            explained by expected mistakes alone is an expected failure.
        only: names of functions or properties to check; None is all that the adapter offers.
        examples: batches that Hypothesis tries per property, after twelve random ones; 0 also leaves a counter-example as
            it was found.
        seed: of both. Equal seeds give equal reports.

    Returns:
        The report; `report.ok` says whether all that is offered holds or is expected to fail.

    Raises:
        ValueError: the adapter offers nothing, or a name is unknown.
        MissingExtra: Hypothesis is not installed, and `examples` is not 0.
    """
    if examples:
        extras.require("conformance", "hypothesis", wanted_by="the conformance kit")
    start = time.perf_counter()
    door = Adapter(adapter)
    expected = {**door.expected_failures, **(expected_failures or {})}
    _check_names("expected_failures", expected, {p.id for p in PROPERTIES} | set(mistakes()))
    _check_names("only", only or (), {p.id for p in PROPERTIES} | {f.name for f in FUNCTIONS})
    results: list[Result] = []
    for function in FUNCTIONS:
        mine = [p for p in PROPERTIES if p.function is function]
        if only is not None:
            mine = [p for p in mine if function.name in only or p.id in only]
        if not mine:
            continue
        if function.name not in door.functions:
            results += [Result(p, NOT_OFFERED, "the adapter has no such function") for p in mine]
            continue
        results += _check_function(door, function, mine, examples, seed)
    used = set()
    for result in results:
        if result.status != FAILS:
            continue
        reasons = {result.prop.id} & expected.keys() or (
            set(result.mistakes) if result.mistakes and set(result.mistakes) <= expected.keys() else set()
        )
        if reasons:
            result.status, result.reason = (
                EXPECTED,
                "; ".join(dict.fromkeys(expected[name] for name in sorted(reasons))),
            )
            used |= reasons
    return Report(results, door.framework, time.perf_counter() - start, tuple(sorted(set(expected) - used)))


def _check_names(argument: str, names: Any, allowed: set[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"{argument} has {name!r}, which is neither a property nor a mistake nor a function of the specification; "
                "python -m sppo_control.conformance --list prints them"
            )


class _Evidence:
    """Answers of the adapter in some cases of a property, and of the reference with and without mistakes."""

    def __init__(self, door: Adapter, prop: Property) -> None:
        self.door, self.prop = door, prop
        self.answered: list[tuple[Case, Answer]] = []

    def keys(self, answer: Answer) -> list[str]:
        return [k for k in self.prop.keys if k in answer] if "error" not in answer else []

    def right(self, case: Case, faults: frozenset[str] = frozenset()) -> Answer:
        """The reference's answer, on the numbers that the adapter has seen."""
        dtype = case.dtype or self.door.dtype
        x = {
            name: torch.from_numpy(
                a.astype(dtype).astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a.copy()
            )
            for name, a in case.arrays.items()
        }
        for name in self.prop.gradients:
            x[name].requires_grad_()
        options = {**case.options, "dtype": dtype, "optimizer": self.door.attribute("optimizer") or "sgd"}
        outputs = self.prop.function.reference(x, options, faults)
        answer: Answer = {name: y.detach().numpy() for name, y in outputs.items()}
        if self.prop.gradients:
            leaves = [x[name] for name in self.prop.gradients]
            answer |= torch_gradients(outputs[self.prop.function.outputs[0]], self.prop.gradients, leaves)
        return answer

    def differs(self, case: Case) -> bool:
        return bool(self.difference(case, self.door.answer(self.prop, case), self.right(case)))

    def difference(self, case: Case, answer: Answer, right: Answer) -> str:
        """What is different, in one line; empty if nothing is."""
        if "error" in answer:
            return f"it {answer['error']}"
        tolerance = TOLERANCE[case.dtype or self.door.dtype]
        for key in self.keys(answer):
            a, b = answer[key], right[key]
            if a.shape != b.shape:
                return f"{key} has shape {a.shape}, right is {b.shape}"
            if not np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
                return f"{key} is {_words(_plain(a))}, right is {_words(_plain(b))}"
        return ""


def _check_function(
    door: Adapter, function: Function, properties: list[Property], examples: int, seed: int
) -> list[Result]:
    results, evidence = [], {}
    for number, prop in enumerate(properties):
        seen = evidence[prop.id] = _Evidence(door, prop)
        results.append(_check_property(seen, [seed, number], examples))
    failed = [result for result in results if result.status == FAILS]
    if not failed:
        return results
    offered = [evidence[r.prop.id] for r in results if r.status in (HOLDS, FAILS)]
    # One mistake that explains everything is the best guess. Else each failure is explained for itself.
    named, batches = _diagnose([evidence[r.prop.id] for r in failed], offered)
    for result in failed:
        if named:
            result.mistakes, result.batches = _needed(evidence[result.prop.id], named), batches
        else:
            own = [evidence[result.prop.id]]
            result.mistakes, result.batches = _diagnose(own, own)
    unknown = ", ".join(f"{name} = {_short(x)}" for name, x in door.unknown(function).items())
    if unknown and function.defaults:
        for result in failed:
            result.note = (
                f"{function.name} was called with its own {unknown}, which the kit does not know. If that is one of "
                f"{', '.join(function.defaults)}, give it this name in the adapter"
            )
    # The later properties of an update contain the one step. A name of their own is a reason of their own.
    if failed[0].prop.id == "update.one_step":
        for result in failed[1:]:
            if result.mistakes == failed[0].mistakes:
                result.same_as = failed[0].prop.id
    return results


def _check_property(seen: _Evidence, seed: list[int], examples: int) -> Result:
    prop, door = seen.prop, seen.door
    bad: Case | None = None
    try:
        for number in range(BATCHES):
            case = prop.make(RandomSource([*seed, number]))
            answer = door.answer(prop, case)
            seen.answered.append((case, answer))
            if bad is None and seen.difference(case, answer, seen.right(case)):
                bad = case
            if case.dtype is not None and number >= 1:  # large batches, all much the same
                break
        shrinks = examples and 200
        tries = 0 if case.dtype else examples  # cases of one dtype are large, and all much the same
        small = _smallest(seen, tries if bad is None else shrinks, seed[0])
    except NotOffered as reason:
        return Result(prop, NOT_OFFERED, str(reason))
    bad = small or bad
    if bad is None:
        return Result(prop, HOLDS)
    answer, right = door.answer(prop, bad), seen.right(bad)
    seen.answered.insert(0, (bad, answer))
    inputs = {name: _plain(x) for name, x in bad.arrays.items()} | bad.options
    if bad.dtype:
        inputs["dtype"] = bad.dtype
    return Result(prop, FAILS, inputs=inputs, found=seen.difference(bad, answer, right))


def _smallest(seen: _Evidence, examples: int, seed: int) -> Case | None:
    """The simplest case that fails, as far as Hypothesis finds one."""
    if not examples:
        return None
    import hypothesis
    from hypothesis import strategies
    from hypothesis.errors import NoSuchExample

    @strategies.composite
    def drawn(draw: Any) -> Case:
        return seen.prop.make(DrawnSource(draw))

    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )
    try:
        return hypothesis.find(drawn(), seen.differs, settings=settings, random=random.Random(seed))
    except NoSuchExample:
        return None


def _diagnose(failed: list[_Evidence], every: list[_Evidence]) -> tuple[tuple[str, ...], int]:
    """The fewest mistakes that give the adapter's answers in all cases, and the number of cases; none if none do.

    Those of the failed properties are tried first, because most guesses end there.
    """
    order = [*failed, *(seen for seen in every if seen not in failed)]
    batches = [(seen, case, answer) for seen in order for case, answer in seen.answered]
    names = list(failed[0].prop.function.faults)
    for guess in [(name,) for name in names] + list(combinations(names, 2)):
        faults = frozenset(guess)
        for seen, case, answer in batches:
            try:
                variant = seen.right(case, faults)
            except Exception:  # two mistakes that do not go together
                break
            if seen.difference(case, answer, variant):
                break
        else:
            return guess, len(batches)
    return (), 0


def _needed(seen: _Evidence, named: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the mistakes that this property shows."""
    for size in range(1, len(named)):
        for some in combinations(named, size):
            faults = frozenset(some)
            if not any(seen.difference(case, answer, seen.right(case, faults)) for case, answer in seen.answered):
                return some
    return named


def _plain(x: Any) -> Any:
    """An array as short numbers in lists; NaN and infinity as text, because JSON has none."""
    if isinstance(x, np.ndarray):
        if x.size > 64:
            return f"{x.shape[0]} x {x.shape[-1]} numbers, each {_plain(x.flat[0])}"
        return _plain(x.tolist())
    if isinstance(x, list):
        return [_plain(y) for y in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else str(x)
    return x
