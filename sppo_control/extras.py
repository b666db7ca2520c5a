"""Optional packages: one message says what is missing and how to install it, in a clone and after `pip install`."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtra(ImportError):
    """A package of an optional extra is not installed. The message contains the command that installs it."""

    def __init__(self, package: str, extra: str, wanted_by: str | None = None) -> None:
        need = f", which {wanted_by} needs," if wanted_by else ""
        super().__init__(f"{package}{need} is not installed; run: {install(extra)}", name=package)


def install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, for a clone and for an installed package."""
    pins = "constraints-verl.txt" if extra == "verl" else "constraints.txt"  # verl needs a separate environment
    return f"pip install 'sppo-control[{extra}]' (in a clone: pip install -c {pins} -e '.[{extra}]')"


def require(extra: str, *modules: str, wanted_by: str | None = None) -> None:
    """Check that modules can be imported, without importing them.

    Args:
        extra: the extra of pyproject.toml that installs them.
        modules: top-level module names.
        wanted_by: what needs them, as the message should name it: a flag, a task or a script.

    Raises:
        MissingExtra: a module is missing; the message names the first one.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtra(module, extra, wanted_by)
