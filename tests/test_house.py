"""Which package may import which: the trunk knows nothing of tasks and networks, the two halves nothing of each other."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRUNK = {
    "core",
    "errors",
    "events",
    "extras",
    "limits",
    "markdown",
    "outcomes",
    "checkpoints",
    "cli",
    "runs",
    "streams",
}
"""Shared by both halves."""
ALLOWED = {
    "core": set(),
    "errors": set(),
    "extras": set(),
    "markdown": set(),
    "outcomes": {"core"},
    "checkpoints": {"errors"},
    "events": set(),
    "limits": {"cli"},
    "streams": set(),
    "cli": {"checkpoints", "errors"},
    "runs": {"checkpoints", "core", "errors", "events", "outcomes", "streams"},
    # the control half
    "networks": {"checkpoints"},
    "policies": {"checkpoints", "errors", "networks"},
    "rollout": {"checkpoints", "outcomes", "policies"},
    "starts": {"policies", "sppo_envs"},
    "arguments": {"cli", "limits"},
    # environments
    "sppo_envs": {"extras"},
    # the language-model half and the study
    "llm": TRUNK,
    "study": {"core", "errors", "checkpoints", "extras", "markdown"},
    "pretrained": set(),
    "__init__": set(),
}
"""Each module or package of the project: which others it may import. Scripts may import all of them."""


def modules():
    """Name of the module or package -> its files."""
    found = {}
    for path in sorted((ROOT / "sppo_control").rglob("*.py")):
        parts = path.relative_to(ROOT / "sppo_control").with_suffix("").parts
        found.setdefault(parts[0], []).append(path)
    return {**found, "sppo_envs": sorted((ROOT / "envs" / "sppo_envs").rglob("*.py"))}


def imports(path, package):
    """Modules and packages of this project that a file imports, itself left out."""
    found = set()
    inside = path.relative_to(ROOT / ("envs" if package == "sppo_envs" else ".")).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*inside[: len(inside) - node.level], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sppo_envs":
                found.add("sppo_envs")
            elif parts[0] == "sppo_control" and len(parts) > 1:
                found.add(parts[1])
    return found - {package}


@pytest.mark.parametrize("package", modules())
def test_each_package_imports_only_what_it_may(package):
    assert package in ALLOWED, f"say in ALLOWED what {package} may import"
    for path in modules()[package]:
        extra = imports(path, package) - ALLOWED[package]
        assert not extra, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(extra))}"


def test_the_rules_have_no_circle():
    seen = set()

    def visit(name, above):
        assert name not in above, f"circle: {' -> '.join([*above, name])}"
        if name not in seen:
            for other in ALLOWED[name]:
                visit(other, [*above, name])
            seen.add(name)

    for name in ALLOWED:
        visit(name, [])


def test_imports_are_found():
    """A rule that sees nothing would always hold."""
    assert imports(ROOT / "sppo_control" / "runs.py", "runs") >= {"checkpoints", "core", "outcomes"}
    assert "core" in imports(ROOT / "sppo_control" / "llm" / "critic.py", "llm")


def test_nothing_of_the_trunk_needs_an_environment_or_a_network():
    """As a process sees it, not only as the text says."""
    import subprocess

    code = (
        "import sys; from sppo_control import core, errors, extras, outcomes, checkpoints, cli, runs; "
        "bad = {'gymnasium', 'sppo_envs', 'sppo_control.networks', 'sppo_control.policies', 'sppo_control.rollout'}; "
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
