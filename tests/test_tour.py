"""docs/tour.md, a notebook as text: its cells run, they learn, and the three lines are the same three times."""

import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tour.md").read_text()
CELLS = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", PAGE, flags=re.M | re.S)
THREE = (
    "A = core.sequence_advantage(R, critic(s0))",
    'policy_loss = core.clipped_surrogate(logp, logp_old, A, mask, 0.2, "token-mean").loss',
    "value_loss = core.bernoulli_value_loss(critic(s0), R)",
)


def test_it_is_a_notebook_that_myst_nb_and_jupytext_read():
    head, _, rest = PAGE.removeprefix("---\n").partition("\n---\n")
    for line in ("    extension: .md", "    format_name: myst", "  language: python", "  name: python3"):
        assert line in head.splitlines(), line
    assert rest.startswith("\n# ")
    assert len(CELLS) == PAGE.count("```{code-cell}") == 7


def test_the_same_three_lines_in_each_part_and_at_the_end():
    parts = re.split(r"^## ", PAGE, flags=re.M)[1:]
    assert len(parts) == 4
    for part in parts[:3]:
        lines = [line.strip().partition("  #")[0] for line in part.splitlines()]
        found = [line for line in lines if "core." in line]
        assert found == list(THREE)
    assert [line.strip() for line in parts[3].splitlines() if line.startswith("    ")] == list(THREE)


@pytest.fixture
def quick(monkeypatch):
    """The names that the cells leave behind, after a few updates of each part, without a network."""
    for name in ("matplotlib", "transformers", "tokenizers"):
        pytest.importorskip(name, reason=f"{name} is not installed: extras study and llm")
    import matplotlib.pyplot

    def refuse(*args, **kwargs):
        raise OSError("the tour asks the network")

    matplotlib.use("Agg")
    matplotlib.pyplot.close("all")  # of other tests
    monkeypatch.setenv("SPPO_TOUR_QUICK", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    names, threads = {"__name__": "tour"}, torch.get_num_threads()
    try:
        for i, cell in enumerate(CELLS):
            exec(compile(cell, f"<cell {i} of docs/tour.md>", "exec"), names)
        yield names
    finally:
        matplotlib.pyplot.close("all")
        torch.set_num_threads(threads)


def test_its_cells_run_and_the_bandit_learns(quick):
    best, uniform = quick["P"].max(dim=1).values.mean(), quick["P"].mean()
    success = quick["room_success"].mean()
    assert uniform + 0.6 * (best - uniform) < success <= best
    assert (quick["room_value"] - quick["room_success"]).abs().max() < 0.15, "V(s_0) is the success rate of the room"
    assert quick["room_value"].argsort().tolist() == quick["room_success"].argsort().tolist()
    assert [len(quick[name]) for name in ("bandit", "cartpole", "language")] == [150, 2, 1]
    start = [np.mean([row[0] for row in quick[name]]) for name in ("cartpole", "language")]
    assert all(0.1 < rate < 0.7 for rate in start), "the shipped policies succeed sometimes"
    assert quick["language"][0][1] == 0.5, "a new critic says 1/2"
    import matplotlib.pyplot as plt

    assert len(plt.get_fignums()) == 3


def seconds():
    """Of processor time, of all processes that have ended; others may be busy on this machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_the_whole_tour_learns_in_less_than_three_minutes():
    """In a fresh process, cell by cell, as the site runs it."""
    code = f"""
import matplotlib
matplotlib.use("Agg")
names = {{"__name__": "tour"}}
for cell in {CELLS!r}:
    exec(compile(cell, "docs/tour.md", "exec"), names)
import numpy as np
for part in ("bandit", "cartpole", "language"):
    success, value = np.array(names[part]).T
    print(part, success[:5].mean(), success[-10:].mean(), value[-10:].mean())
"""
    env = {k: v for k, v in os.environ.items() if k != "SPPO_TOUR_QUICK"} | {"HF_HUB_OFFLINE": "1"}
    began = seconds()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert seconds() - began < 180, "of one core, on any number of them"
    rates = {words[0]: [float(x) for x in words[1:]] for words in map(str.split, done.stdout.splitlines()[-3:])}
    for part, gain in (("bandit", 0.1), ("cartpole", 0.25), ("language", 0.25)):
        first, last, value = rates[part]
        assert last > first + gain, part
        assert abs(value - last) < 0.15, part
