"""The small tools: contexts.py draws what it prints; speed.py counts the steps that were really made."""

import json
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

import contexts
import plot
import speed
import sppo_envs
from sppo_control import errors
from sppo_control.policies import load_policy
from sppo_control.rollout import success_by_context
from sppo_control.starts import shipped_policy


def test_contexts_prints_the_rates_of_its_contexts_and_draws_them(tmp_path, capsys):
    env_id, out = "sppo/ContextCartPole-v0", tmp_path / "c.svg"
    contexts.main(contexts.Args(env_ids=(env_id,), contexts=12, episodes=8, seed=4, out=out))
    printed = capsys.readouterr().out
    envs = sppo_envs.make_task(env_id, 8)
    _, rate = success_by_context(envs, load_policy(shipped_policy(env_id), envs), 12, np.random.default_rng(4))
    low, high = (rate < 0.2).float().mean(), (rate > 0.8).float().mean()
    assert f"mean {rate.mean():.3f}; {low:.0%} of contexts below 0.2, {high:.0%} above 0.8" in printed
    assert re.search(r"the start explains \d+% of the variance of R", printed)
    assert out.read_text().count("<path") > 20


def test_contexts_takes_a_task_without_a_success_rule(tmp_path, capsys):
    policy, shares = str(shipped_policy("sppo/PrecisionCartPole-v0")), []
    for success_return in (5.0, 501.0):
        args = {"env_ids": ("CartPole-v1",), "policy": policy, "contexts": 4, "episodes": 4, "out": tmp_path / "c.png"}
        contexts.main(contexts.Args(**args, success_return=success_return))
        shares.append(float(re.search(r"mean ([\d.]+)", capsys.readouterr().out)[1]))
    assert shares == [1.0, 0.0]


def run_folder(folder, script, args, curve):
    """A run folder with one curve, [(x, y), ...]."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"script": script, "args": args}))
    with SummaryWriter(str(folder)) as writer:
        for x, y in curve:
            writer.add_scalar("charts/success_rate", y, x)
    return folder


def drawn(monkeypatch, args):
    """The axes that plot.py draws."""
    saved = []
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed: extra plots")
    monkeypatch.setattr(figure.Figure, "savefig", lambda figure, path: saved.append(figure))
    plot.main(args)
    return saved[0].axes[0]


def test_plot_draws_runs_of_both_kinds_with_their_units(tmp_path, monkeypatch):
    curve = [(1000 * i, 0.1 * i) for i in range(1, 8)]
    poles = [
        run_folder(tmp_path / f"p{i}", "sppo_cartpole.py", {"env_id": "Pole-v0", "seed": i}, curve[: 7 - i])
        for i in (0, 1)
    ]
    axes = drawn(monkeypatch, plot.Args(tuple(poles), smooth=1))
    assert axes.get_xlabel() == "environment steps, millions"
    assert axes.get_legend_handles_labels()[1] == ["SPPO, Pole-v0 (2 seeds, mean)"]
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([(x / 1e6, y) for x, y in curve]), rel=1e-6)
    mean = axes.lines[2].get_xdata()
    assert (mean[0], mean[-1]) == pytest.approx((0.001, 0.006))

    adds = run_folder(tmp_path / "addition__grpo_llm__1__now", "grpo_llm.py", {"dataset": None}, curve)
    axes = drawn(monkeypatch, plot.Args((adds,), smooth=3))
    assert axes.get_xlabel() == "responses, thousands"
    assert axes.get_legend_handles_labels()[1] == ["GRPO, addition (1 run)"]
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([(x / 1e3, y - 0.1) for x, y in curve[2:]]), rel=1e-6)

    with pytest.raises(errors.UserError, match="no common axis"):
        plot.main(plot.Args((*poles, adds)))
    with pytest.raises(errors.UserError, match="has no curve 'x'; it has charts/success_rate"):
        plot.main(plot.Args((adds,), tag="x"))


def test_plot_leaves_out_what_is_no_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "study.parquet").write_text("")
    for name, config in (("broken", "{"), ("list", "[]"), ("no_events", '{"script": "ppo_cartpole.py", "args": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    run_folder(tmp_path / "run", "ppo_cartpole.py", {"env_id": "Pole-v0"}, [(1, 0.5), (2, 0.5)])
    axes = drawn(monkeypatch, plot.Args(tuple(sorted(tmp_path.iterdir()))))
    assert axes.get_legend_handles_labels()[1] == ["PPO, Pole-v0 (1 run)"]
    unread = "no curve that can be read (cannot read"
    whys = {"broken": unread, "folder": "no run in it", "list": unread, "no_events": "no curve 'charts/success_rate'"}
    notes = capsys.readouterr().err.splitlines()
    for note, (name, why) in zip(notes, {**whys, "study.parquet": "no run in it"}.items(), strict=True):
        assert note.startswith(f"note: {tmp_path / name} has {why}")
        assert note.endswith("; it is left out")
    with pytest.raises(errors.UserError, match=r"folder has no run in it: .*; .*study.parquet has no run in it"):
        plot.main(plot.Args((tmp_path / "folder", tmp_path / "study.parquet")))


def test_plot_draws_short_runs(tmp_path, monkeypatch):
    """Of two updates, of one, and two whose steps do not overlap."""
    for i, curve in enumerate(([(1000, 0.2), (2000, 0.4)], [(5000, 0.6)])):
        run_folder(tmp_path / str(i), "sppo_cartpole.py", {"env_id": "Pole-v0", "seed": i}, curve)
    axes = drawn(monkeypatch, plot.Args((tmp_path / "0",)))
    for line in axes.lines:  # thin line, mean
        assert line.get_xydata()[[0, -1]] == pytest.approx(np.array([[0.001, 0.2], [0.002, 0.4]]))
    axes = drawn(monkeypatch, plot.Args((tmp_path / "1",)))
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([[0.005, 0.6]]))
    assert axes.lines[0].get_marker() == ".", "a point without a line would not be seen"
    axes = drawn(monkeypatch, plot.Args((tmp_path / "0", tmp_path / "1")))
    assert len(axes.lines[2].get_xdata()) == 0
    assert axes.get_legend_handles_labels()[1] == ["SPPO, Pole-v0 (2 seeds, mean)"]


def test_plot_tells_settings_apart(tmp_path, monkeypatch):
    """The same seed twice: by the argument in which the runs differ, not by what the same run may change when resumed."""
    for i, (rate, seed, more) in enumerate(((1e-3, 1, 9), (1e-3, 2, 8), (3e-3, 1, 7))):
        args = {"env_id": "Pole-v0", "seed": seed, "learning_rate": rate, "hidden": [8, 8], "total_timesteps": more}
        run_folder(tmp_path / str(i), "sppo_cartpole.py", args, [(1, 0.1 * i), (2, 0.1 * i)])
    axes = drawn(monkeypatch, plot.Args(tuple(tmp_path / str(i) for i in range(3))))
    assert axes.get_legend_handles_labels()[1] == [
        "SPPO, Pole-v0, --learning-rate 0.001 (2 seeds, mean)", "SPPO, Pole-v0, --learning-rate 0.003 (1 run)",
    ]  # fmt: skip
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([0.0, 0.1, 0.05, 0.2, 0.2])


def test_plot_refuses_in_one_line(tmp_path):
    for words, message in (
        ([], "name at least one run folder"),
        (["--smooth", "0", "x"], "--smooth must be from 1 to"),
    ):
        done = subprocess.run([sys.executable, plot.__file__, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr


class Clock:
    """Time passes only when `seconds` are asked for."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)


def test_speed_counts_unfinished_episodes_only(monkeypatch):
    """Three episodes of 1, 2 and 4 steps: 7 steps per batch, whatever the batch waits for."""
    clock = Clock(monkeypatch)

    class Envs:
        num_envs, horizon, single_action_space = 3, 10, gym.spaces.Discrete(2)

        def reset(self, seed):
            self.t = 0

        def step(self, action):
            self.t += 1
            clock.now += 0.1
            return None, None, np.array([1, 2, 4]) <= self.t, None, {}

    assert speed.steps_alone(Envs(), seconds=0.75) == pytest.approx(14 / 0.8)


def test_speed_counts_every_environment_where_episodes_start_anew(monkeypatch):
    clock = Clock(monkeypatch)

    class Envs:
        def reset(self):
            pass

        def step(self, action):
            assert action.shape == (5, 2)
            clock.now += 0.001

    box = gym.spaces.Box(-1, 1, (2,), np.float32)
    assert speed.steps_with_autoreset(Envs(), box, 5, seconds=0.25) == pytest.approx(5 / 0.001)


def test_engine_table_names_every_task_and_its_peer(tmp_path, capsys):
    out = tmp_path / "speed.json"
    speed.main(speed.Args(what="engines", rounds=1, seconds=0.01, num_envs=2, out=str(out)))
    table, printed = json.loads(out.read_text())["engines"], capsys.readouterr().out
    assert set(table["rows"]) == set(sppo_envs.TASKS)
    for env_id, row in table["rows"].items():
        assert row["rollout_to_bare"] == pytest.approx(row["rollout"][0] / row["bare"][0])
        assert row["bare_to_sync"] == pytest.approx(row["bare"][0] / row["sync"][0])
        assert re.search(rf"\| {env_id} \| 2 \| {row['engine']} \|", printed)
        dynamics = gym.make(sppo_envs.task(env_id).peer).observation_space
        assert dynamics.shape == sppo_envs.make_task(env_id, 1).single_observation_space.shape
