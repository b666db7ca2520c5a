"""What people look for in a repository: citation, changelog, hooks and workflow fit the project."""

import re
import tomllib
from pathlib import Path

import pytest

import sppo_control

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name):
    yaml = pytest.importorskip("yaml")
    return yaml.load((ROOT / name).read_text(), Loader=yaml.BaseLoader)  # texts stay texts, as the formats want it


def test_the_citation_has_the_software_and_the_paper():
    found = read("CITATION.cff")
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= found.keys()
    assert found["version"] == PROJECT["version"]
    assert found["license"] == PROJECT["license"]
    (paper,) = found["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]][::8] == ["Wang", "Chen"], (
        "nine authors, first and last"
    )
    assert found["date-released"] in (ROOT / "CHANGELOG.md").read_text()


def test_the_badges_are_true():
    """Each says what pyproject.toml says; a badge of a service that nobody set up would be a claim."""
    badges = re.findall(r"img\.shields\.io/badge/([^)]+)\)", (ROOT / "README.md").read_text())
    paper, python = PROJECT["urls"]["Paper"].rpartition("/")[2], PROJECT["requires-python"].removeprefix(">=")
    assert badges == [f"arXiv-{paper}-b31b1b", f"python-%E2%89%A5_{python}-blue", f"licence-{PROJECT['license']}-green"]
    assert "workflows/" not in (ROOT / "README.md").read_text()


def test_the_changelog_begins_with_what_is_unreleased_and_has_this_version():
    versions = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert versions[0] == "Unreleased"
    assert versions[1].startswith(f"{PROJECT['version']} - ")
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    assert [v.split(" - ")[1] for v in versions[1:]] == sorted((v.split(" - ")[1] for v in versions[1:]), reverse=True)
    kinds = set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_package_says_the_version_of_the_project():
    assert sppo_control.__version__ == PROJECT["version"]


def test_hooks_have_the_pinned_version_and_the_workflow_runs_what_ci_runs():
    (hooks,) = read(".pre-commit-config.yaml")["repos"]
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)[1]
    assert hooks["rev"] == f"v{pinned}"
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = read(file.relative_to(ROOT))
        assert file.stem == "config" or {"name", "description", "body"} <= form.keys()


def test_every_extra_that_a_message_names_exists():
    """`extras.require("x", ...)` prints `pip install 'sppo-control[x]'`."""
    named = {"trackio", "wandb"}  # of --track, where the extra is the service
    for file in [*(ROOT / "sppo_control").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        named |= set(re.findall(r'extras\.require\(\s*"(\w[\w-]*)"', file.read_text()))
    assert len(named) > 5
    assert named <= PROJECT["optional-dependencies"].keys()
