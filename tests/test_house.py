"""Which package may import which: the trunk knows nothing of tasks and networks, the two halves nothing of each other."""

import subprocess
import sys

import pytest

import drawings
from drawings import ROOT, imports, modules

TRUNK = {
    "core",
    "errors",
    "events",
    "extras",
    "limits",
    "markdown",
    "outcomes",
    "outputs",
    "checkpoints",
    "cli",
    "runs",
    "streams",
    "tracking",
    "tracker",
    "watch",
}
"""Shared by both halves."""
ALLOWED = {
    "core": set(),
    "errors": set(),
    "extras": set(),
    "markdown": set(),
    "outcomes": {"core"},
    "checkpoints": {"errors"},
    "events": {"tracking"},
    "tracking": {"errors", "extras"},
    "commands": set(),
    "limits": set(),
    "outputs": {"checkpoints", "errors", "limits"},
    "streams": set(),
    "tracker": {"checkpoints"},
    "watch": set(),
    "cli": {"checkpoints", "commands", "errors", "limits", "outputs"},
    "runs": {"checkpoints", "core", "errors", "events", "outcomes", "streams", "tracking", "watch"},
    # the control half
    "compiled": {"core", "extras", "kernels"},
    "kernels": {"sppo_envs"},
    "networks": {"checkpoints", "compiled"},
    "spaces": set(),
    "policies": {"checkpoints", "compiled", "errors", "networks", "spaces"},
    "rollout": {"checkpoints", "compiled", "outcomes", "policies", "spaces"},
    "starts": {"checkpoints", "policies", "sppo_envs"},
    "videos": {"errors", "extras", "policies", "rollout", "spaces", "sppo_envs", "streams"},
    "hub": {"checkpoints", "errors", "extras", "limits", "outcomes"},
    "arguments": {"compiled", "limits"},
    "demonstrations": {"errors", "extras", "policies", "spaces"},
    # environments
    "sppo_envs": {"core", "extras", "spaces"},
    # the language-model half and the study
    "llm": TRUNK,
    "study": {"core", "errors", "checkpoints", "extras", "limits", "markdown", "sppo_envs"},
    "conformance": {"cli", "core", "errors", "extras", "markdown", "outputs"},
    "course": {"cli", "conformance", "errors", "markdown"},
    "pretrained": set(),
    "__init__": set(),
}
"""Each module or package of the project: which others it may import. Scripts may import all of them."""


@pytest.mark.parametrize("package", modules())
def test_each_package_imports_only_what_it_may(package):
    assert package in ALLOWED, f"say in ALLOWED what {package} may import"
    for path in modules()[package]:
        extra = imports(path) - {package} - ALLOWED[package]
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
    assert imports(ROOT / "sppo_control" / "runs.py") >= {"checkpoints", "core", "outcomes"}
    assert "core" in imports(ROOT / "sppo_control" / "llm" / "critic.py")


def test_nothing_of_the_trunk_needs_an_environment_or_a_network():
    """As a process sees it, not only as the text says."""
    code = (
        "import sys; from sppo_control import core, errors, extras, outcomes, checkpoints, cli, runs; "
        "bad = {'gymnasium', 'sppo_envs', 'sppo_control.networks', 'sppo_control.policies', 'sppo_control.rollout'}; "
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_drawing_of_the_rooms_shows_every_module():
    missing = set(modules()) - set(drawings.PLACES) - {"__init__", "pretrained"}
    assert not missing, f"give {', '.join(missing)} a place in scripts/drawings.py"
    drawn = drawings.arrows()
    assert drawn["outcomes"] == {"core"}
    assert "checkpoints" in drawn["runs"]
    assert "errors" not in drawn["runs"], "it follows from runs -> checkpoints -> errors"
