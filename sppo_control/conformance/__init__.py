"""Conformance kit: check somebody's advantages, losses and updates against the equations, and name the mistake.

    from sppo_control.conformance import check

    report = check({"sequence_advantage": my_function})
    assert report.ok, report

On the command line it is `python -m sppo_control.conformance module:adapter`, or `sppo-conformance module:adapter`. In
pytest it is `pytest --sppo-adapter module:adapter`. docs/conformance.md says how to write an adapter.

This file imports nothing, because pytest loads the package's plug-in in each of its runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checker import Report as Report
    from .checker import check as check
    from .spec import SPEC_VERSION as SPEC_VERSION
    from .spec import specification as specification

_PLACES = {"check": "checker", "Report": "checker", "SPEC_VERSION": "spec", "specification": "spec"}
__all__ = ["SPEC_VERSION", "Report", "check", "specification"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
