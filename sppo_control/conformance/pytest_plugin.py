"""`pytest --sppo-adapter module:adapter`: each property of the specification is one test.

pytest loads this file in all its runs. So nothing is imported before the option is used.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option --sppo-adapter."""
    group = parser.getgroup("sppo", "conformance of an implementation of PPO, SPPO, GRPO, RLOO or ReMax")
    group.addoption(
        "--sppo-adapter", metavar="MODULE:NAME", help="check this adapter; each property becomes a test (sppo-control)"
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test for each property, if the option is used."""
    place = config.getoption("--sppo-adapter")
    if not place:
        return
    from ..errors import UserError
    from . import adapters, checker, spec

    try:
        thing = adapters.load(place)
        door = adapters.Adapter(thing)
    except (UserError, ValueError) as error:
        raise pytest.UsageError(f"--sppo-adapter {place}: {error}") from None
    cache: dict[str, Any] = {}

    def result(prop: spec.Property) -> checker.Result:
        """A function's properties are checked together, because together they name its mistake."""
        name = prop.function.name
        if name not in cache:
            cache[name] = {r.prop.id: r for r in checker.check(thing, only=[name]).results}
        return cache[name][prop.id]

    items.extend(
        PropertyItem.from_parent(
            session, name=prop.id, nodeid=f"{place}::{prop.id}", prop=prop, result=result, place=place
        )
        for prop in spec.PROPERTIES
        if prop.function.name in door.functions
    )


class PropertyItem(pytest.Item):
    """One property of the specification."""

    def __init__(self, *, prop: Any, result: Any, place: str, **others: Any) -> None:
        super().__init__(**others)
        self.prop, self.result, self.place = prop, result, place

    def runtest(self) -> None:
        """Fail with the finding; skip what is not offered; an expected failure is an xfail."""
        found = self.result(self.prop)
        if found.status == "not offered":
            pytest.skip(found.reason)
        if found.status == "expected failure":
            pytest.xfail(found.reason)
        if found.status == "fails":
            raise NonConformance("\n".join(found.lines()))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The finding alone, without a traceback."""
        if isinstance(excinfo.value, NonConformance):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where it is: the adapter has no line."""
        return self.path, None, f"{self.place} {self.name}"


class NonConformance(Exception):
    """A property does not hold."""
