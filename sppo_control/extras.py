"""Optional packages: one wording for what is missing and how to get it, in a clone and after `pip install`."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message has the command that installs it."""

    def __init__(self, package: str, extra: str, wanted_by: str | None = None) -> None:
        need = f", which {wanted_by} needs," if wanted_by else ""
        super().__init__(f"{package}{need} is not installed; run: {install(extra)}", name=package)


def install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, for a clone and for an installed package."""
    pins = "constraints-verl.txt" if extra == "verl" else "constraints.txt"  # verl has an environment of its own
    return f"pip install 'sppo-control[{extra}]' (in a clone: pip install -c {pins} -e '.[{extra}]')"


def require(extra: str, *modules: str, wanted_by: str | None = None) -> None:
    """See that modules can be imported, without importing them.

    Args:
        extra: the extra of pyproject.toml that brings them.
        modules: top-level module names.
        wanted_by: what needs them, for the message: a flag, a task, a script.

    Raises:
        MissingExtra: names the first one that is missing.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtra(module, extra, wanted_by)
