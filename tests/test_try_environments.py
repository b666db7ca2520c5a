"""scripts/try_environments.py: what becomes of an environment is read from what the scripts print and write."""

import json
import re
import sys
from pathlib import Path

import pytest

import try_environments
from sppo_control import cli
from try_environments import Args, attempt, module, read, table

ENTRY = {"id": "Some-v0", "success-return": 3}


@pytest.fixture
def scripts(monkeypatch):
    """In place of the scripts: what --check and training return, and the words that they were given."""
    words, answers = [], {"check": (0, "Some-v0: 9 hold, 0 fail, 1 note\n"), "train": (0, ""), "summary": None}

    def run(folder, given, args):
        words.append(given)
        if "--check" in given:
            return answers["check"]
        if answers["summary"]:
            path = Path(folder) / "runs" / "x" / "summary.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(answers["summary"]))
        return answers["train"]

    monkeypatch.setattr(try_environments, "run", run)
    return words, answers


def test_trained(scripts):
    words, answers = scripts
    answers["summary"] = {"before": {"rate": 0.25}, "after": {"rate": 1.0}}
    assert attempt(ENTRY, Args()) == ("9 hold, 0 fail", "trained", "0.25 -> 1.00")
    assert words[0] == ["--env-id", "Some-v0", "--success-return", "3", "--check"]
    attempt({**ENTRY, "horizon": 7, "total-timesteps": 99}, Args())
    assert words[3][4:8] == ["--horizon", "7", "--total-timesteps", "99"]
    assert "--from-scratch" in words[3]


@pytest.mark.parametrize(
    ("check", "train", "expected"),
    [
        (
            (1, "x: 0 hold, 1 fail, 0 notes\n  fails  spaces fit; so\n"),
            (2, "note\nerror: no | fit\n"),
            ("refused", "no \\| fit"),
        ),
        ((2, "error: x: No module named 'y'"), (2, ""), ("not installed", "")),
        ((0, ""), (1, "Traceback\nValueError: 3"), ("failed", "ValueError: 3")),
        ((0, ""), (124, ""), ("failed", "not done after 180 s")),
        ((0, ""), (1, "stopped: NaN"), ("failed", "stopped: NaN")),
    ],
)
def test_all_else(check, train, expected, scripts):
    _, answers = scripts
    answers |= {"check": check, "train": train}
    found, *rest = attempt(ENTRY, Args())
    assert tuple(rest) == expected
    assert ("(spaces fit)" in found) == ("fails" in check[1])


def test_a_wrapped_environment_is_a_module_that_works(tmp_path, monkeypatch):
    import gymnasium as gym

    text = module(
        {"id": "FrozenLake-v1", "wrapper": "gymnasium.wrappers:FlattenObservation", "options": {"is_slippery": False}}
    )
    (tmp_path / "tried.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        env = gym.make("tried:tried/It-v0")
        assert env.observation_space.shape == (16,)
        for seed in range(8):  # on ice that is not slippery, a step leads where it should
            env.reset(seed=seed)
            assert env.step(1)[0].argmax() == 4
    finally:
        gym.registry.pop("tried/It-v0", None)
        sys.modules.pop("tried", None)


def test_the_list_is_readable_and_the_page_shows_it(tmp_path, monkeypatch, capsys):
    """Every environment of the list has its row, in the list's order."""
    entries = read(Args().environments)
    assert len(entries) >= 30
    page = Args().out.read_text()
    assert re.findall(r"^\| `(\S+)` \|", page, flags=re.M) == [entry["id"] for entry in entries]
    (tmp_path / "bad.toml").write_text('[[environment]]\nid = "x"\nsucess-return = 3\n')
    monkeypatch.setattr(sys, "argv", ["x", "--environments", str(tmp_path / "bad.toml")])
    with pytest.raises(SystemExit):
        cli.main(try_environments.main, Args, "")
    assert "environment 1: needs an id, and may have" in capsys.readouterr().err


def test_only_the_table_is_replaced(tmp_path, scripts, monkeypatch):
    (tmp_path / "list.toml").write_text('[[environment]]\nid = "Some-v0"\n')
    (tmp_path / "page.md").write_text("# Title\n\n| environment | OLD |\n| --- | --- |\n\nThe end.\n")
    try_environments.main(Args(tmp_path / "list.toml", tmp_path / "page.md"))
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# Title\n\n| environment | wrapper |")
    assert text.endswith("|\n\nThe end.\n")
    assert "OLD" not in text
    before = text
    try_environments.main(Args(tmp_path / "list.toml", tmp_path / "page.md", only=("Some-v0",)))
    assert (tmp_path / "page.md").read_text() == before
    assert table([(ENTRY, ("c", "trained", ""))]).count("\n") == 2
