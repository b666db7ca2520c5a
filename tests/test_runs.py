"""Whole runs of the scripts: learning and its control, resuming after SIGKILL and Ctrl-C, logs, refusals."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_cartpole
import pretrain
import sppo_cartpole
from sppo_control import core, runs
from sppo_control.policies import shipped_policy

ROOT = Path(__file__).resolve().parents[1]
ID = "sppo/PrecisionCartPole-v0"
SCRIPTS = {"sppo_cartpole": sppo_cartpole, "ppo_cartpole": ppo_cartpole}
SMALL = {"total_timesteps": 100_000, "num_envs": 16, "num_minibatches": 2, "eval_episodes": 16, "save_every": 4}


def curves(folder):
    """tag -> [(step, value)], without the one tag that depends on the clock."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def flags(values):
    return [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]


# ------------------------------------------------------------------------------------------------------- learning
def train(script, tmp_path, **changes):
    args = script.Args(**{"runs_dir": str(tmp_path), "eval_episodes": 512, **changes})
    return json.loads((script.train(args).folder / "summary.json").read_text())


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_learns_precision_cartpole(script, tmp_path):
    summary = train(script, tmp_path, total_timesteps=450_000, seed=11)
    assert summary["before"]["rate"] < 0.35
    assert summary["after"]["rate"] > 0.75
    assert summary["episodes"] == 64 * summary["updates"]


def test_shuffled_outcomes_do_not_learn(tmp_path, monkeypatch):
    """The negative control: the same run, but R belongs to another episode of the batch."""
    real, rng = sppo_cartpole.rollout, np.random.default_rng(0)

    def shuffled(*args, **kwargs):
        episodes = real(*args, **kwargs)
        return dataclasses.replace(episodes, outcome=episodes.outcome[torch.from_numpy(rng.permutation(64))])

    monkeypatch.setattr(sppo_cartpole, "rollout", shuffled)
    summary = train(sppo_cartpole, tmp_path, total_timesteps=450_000, seed=11)
    assert summary["after"]["rate"] < 0.6  # a random walk of the policy may drift up a little; learning reaches 0.85


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_learns_a_users_own_continuous_environment(script, tmp_path):
    summary = train(
        script, tmp_path, env_id="toy_env:toy/Sign-v0", success_return=2.0, total_timesteps=12_000, seed=3, num_envs=64,
        learning_rate=3e-3,
    )  # fmt: skip
    assert summary["before"]["rate"] < 0.5
    assert summary["after"]["rate"] > 0.75


def test_bce_critic_learns_the_success_rate(tmp_path):
    summary = train(ppo_cartpole, tmp_path, total_timesteps=260_000, critic_loss="bce", seed=11)
    assert summary["after"]["rate"] > 0.5
    folder = next(tmp_path.iterdir())
    v0 = [value for _, value in curves(folder)["critic/v0_mean"]]
    assert all(0 < v < 1 for v in v0), "with BCE the critic's output is a probability"


# --------------------------------------------------------------------------------------------------- determinism
def test_same_seed_same_weights_other_seed_others(tmp_path):
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path / name), seed=seed))
        files.append((run.checkpoints()[-1] / "policy.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


# ------------------------------------------------------------------------------------------------------- resuming
def launch(script, *words, **kwargs):
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **kwargs)


def wait_for_checkpoint(folder, update, process):
    """The run folder, once the checkpoint is there."""
    for _ in range(6000):
        found = list(folder.glob(f"*/checkpoints/{update:06d}"))
        if found:
            return found[0].parents[1]
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint {update}: {process.communicate()}")


@pytest.fixture(scope="module", params=SCRIPTS)
def uninterrupted(request, tmp_path_factory):
    script = SCRIPTS[request.param]
    run = script.train(script.Args(**SMALL, runs_dir=str(tmp_path_factory.mktemp("whole")), seed=9))
    return request.param, run.folder


def assert_same_run(folder, reference):
    last, expected = (sorted((f / "checkpoints").iterdir())[-1] for f in (folder, reference))
    assert last.name == expected.name
    for file in sorted(expected.glob("*.safetensors")):
        assert (last / file.name).read_bytes() == file.read_bytes(), file.name
    a, b = curves(folder), curves(reference)
    assert a.keys() == b.keys()
    for tag, points in b.items():
        np.testing.assert_array_equal(np.array(a[tag]), np.array(points), err_msg=tag)
    after = [json.loads((f / "summary.json").read_text()) for f in (folder, reference)]
    assert after[0]["after"] == after[1]["after"]
    assert after[0]["before"] == after[1]["before"]


def test_killed_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    """SIGKILL at two moments, the second with a half-written event record; weights, optimiser and curve bit for bit."""
    script, reference = uninterrupted
    first = launch(script, *flags(SMALL), "--runs-dir", str(tmp_path), "--seed", "9")
    folder = wait_for_checkpoint(tmp_path, 4, first)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second = launch(script, "--resume", str(folder))
    wait_for_checkpoint(tmp_path, 12, second)
    time.sleep(0.05)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    assert "after" not in json.loads((folder / "summary.json").read_text())
    with open(max(folder.glob("events*"), key=lambda p: p.stat().st_mtime), "ab") as file:
        file.write(b"\x40\x00\x00\x00\x00")
    (folder / "checkpoints" / ".writing-dead").mkdir()
    third = launch(script, "--resume", str(folder))
    out, err = third.communicate(timeout=120)
    assert third.returncode == 0, err
    assert "success   before" in out
    assert not list((folder / "checkpoints").glob(".writing-*"))
    assert_same_run(folder, reference)


@pytest.mark.parametrize("uninterrupted", ["sppo_cartpole"], indirect=True)  # the handler is shared code
def test_ctrl_c_saves_says_how_to_resume_and_exits_130(uninterrupted, tmp_path):
    script, reference = uninterrupted
    process = launch(script, *flags(SMALL), "--runs-dir", str(tmp_path), "--seed", "9")
    folder = wait_for_checkpoint(tmp_path, 4, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    update = int(re.search(r"Stopped after update (\d+)", err).group(1))
    assert (folder / "checkpoints" / f"{update:06d}").is_dir()
    command = re.search(rf"python (scripts/{script}\.py) --resume (\S+)", err)
    resumed = launch(script, "--resume", command.group(2))
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert_same_run(folder, reference)


@pytest.mark.parametrize("uninterrupted", ["sppo_cartpole"], indirect=True)
def test_killed_before_the_first_checkpoint(uninterrupted, tmp_path):
    """What such a run leaves behind: config.json, perhaps a half-written checkpoint. Resuming begins anew in it."""
    _, reference = uninterrupted
    folder = tmp_path / "early"
    (folder / "checkpoints" / ".writing-dead").mkdir(parents=True)
    (folder / "config.json").write_bytes((reference / "config.json").read_bytes())
    sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), seed=9, resume=str(folder)))
    assert_same_run(folder, reference)


def test_resume_from_an_earlier_checkpoint_recomputes_the_rest(uninterrupted, tmp_path):
    import shutil

    script, reference = uninterrupted
    folder = tmp_path / "copy"
    shutil.copytree(reference, folder)
    module = SCRIPTS[script]
    args = module.Args(**SMALL, runs_dir=str(tmp_path), seed=9, resume=str(folder / "checkpoints" / "000008"))
    module.train(args)
    assert_same_run(folder, reference)


def run_main(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    runs.main(SCRIPTS[script].train, SCRIPTS[script].Args, "test")


def refusal(monkeypatch, capsys, *words, script="sppo_cartpole"):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, script, *words)
    assert stop.value.code == 2
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().err).split())  # without the box around it


def test_a_resumed_run_keeps_its_arguments(uninterrupted, monkeypatch, capsys):
    script, folder = uninterrupted
    error = refusal(monkeypatch, capsys, "--resume", str(folder), "--learning-rate", "0.5", script=script)
    assert "--learning-rate is 0.001 in the run to be resumed and cannot become 0.5" in error
    assert "--total-timesteps" in error


def test_a_run_can_be_lengthened(tmp_path, monkeypatch, capsys):
    short = sppo_cartpole.train(
        sppo_cartpole.Args(**{**SMALL, "total_timesteps": 30_000}, runs_dir=str(tmp_path / "a"), seed=9)
    )
    run_main(monkeypatch, "sppo_cartpole", "--resume", str(short.folder), "--total-timesteps", "60000")
    whole = sppo_cartpole.train(
        sppo_cartpole.Args(**{**SMALL, "total_timesteps": 60_000}, runs_dir=str(tmp_path / "b"), seed=9)
    )
    assert_same_run(short.folder, whole.folder)


def test_damaged_and_missing_checkpoints(tmp_path, monkeypatch, capsys):
    run = sppo_cartpole.train(sppo_cartpole.Args(**{**SMALL, "total_timesteps": 10_000}, runs_dir=str(tmp_path)))
    assert "neither a run folder" in refusal(monkeypatch, capsys, "--resume", str(tmp_path / "nothing"))
    policy = run.checkpoints()[-1] / "policy.safetensors"
    good = policy.read_bytes()
    policy.write_bytes(good[:-100])
    error = refusal(monkeypatch, capsys, "--resume", str(run.folder))
    assert "is damaged or belongs to another network" in error
    assert policy.read_bytes() == good[:-100], "nothing may be overwritten"
    error = refusal(monkeypatch, capsys, "--resume", str(run.checkpoints()[0].with_name("000777")))
    assert "000777 is damaged" in error
    error = refusal(monkeypatch, capsys, "--resume", str(run.folder), script="ppo_cartpole")
    assert "was started by sppo_cartpole.py" in error


# --------------------------------------------------------------------------------------------- the folder and its logs
def test_run_folder_holds_what_the_docs_say(uninterrupted):
    script, folder = uninterrupted
    assert re.fullmatch(rf"sppo-PrecisionCartPole-v0__{script}__9__\d{{8}}-\d{{6}}(-\d+)?", folder.name)
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["seed"] == 9
    assert config["args"]["hidden"] == [64, 64]
    assert set(config["versions"]) == {"python", "sppo-control", "torch", "numpy", "gymnasium", "safetensors"}
    checkpoint = sorted((folder / "checkpoints").iterdir())[-1]
    assert {p.name for p in checkpoint.iterdir()} == {
        "policy.safetensors", "critic.safetensors", "optimizer.safetensors", "state.json",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] >= SMALL["total_timesteps"]
    assert summary["steps_per_second"] == pytest.approx(summary["steps"] / summary["seconds"])


def test_every_emitted_tag_is_documented_and_the_reverse(uninterrupted):
    _, folder = uninterrupted
    documented = set(re.findall(r"^\| `(\w+/\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), flags=re.M))
    emitted = set(curves(folder)) | {"charts/SPS"}
    assert emitted == documented


def test_logged_values_are_those_of_the_batch(uninterrupted):
    _, folder = uninterrupted
    logged = curves(folder)
    steps = [step for step, _ in logged["charts/success_rate"]]
    lengths = np.array([value for _, value in logged["charts/episodic_length"]])
    assert np.array_equal(np.diff([0, *steps]), np.round(16 * lengths)), "the x-axis counts real steps"
    assert [v for _, v in logged["charts/episodes"]] == [16 * (i + 1) for i in range(len(steps))]
    rates = np.array([v for _, v in logged["charts/success_rate"]])
    assert np.array_equal(rates * 16, np.round(rates * 16))
    assert [v for _, v in logged["charts/episodic_return"]] == rates.tolist()
    advantage = np.array([v for _, v in logged["advantages/mean"]])
    if "sppo" in folder.name.split("__")[1]:
        v0 = np.array([v for _, v in logged["critic/v0_mean"]])
        np.testing.assert_allclose(advantage, rates - v0, atol=1e-6)


def test_means_are_weighted_over_all_minibatches():
    means = runs.Means()
    means.add(1, x=torch.tensor(1.0))
    means.add(3, x=torch.tensor(5.0))
    assert means["x"] == 4.0
    assert (means.min("x"), means.max("x")) == (1.0, 5.0)


# ------------------------------------------------------------------------------------------------------- refusals
def test_a_non_finite_gradient_stops_the_run_with_the_last_good_checkpoint(tmp_path):
    args = sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), learning_rate=1e38)
    with pytest.raises(runs.NonFiniteError, match=r"in update 1; the last good checkpoint is .*000000\.") as stop:
        sppo_cartpole.train(args)
    checkpoint = re.search(r"checkpoint is (\S+)\. ", str(stop.value)).group(1)
    start = (Path(checkpoint) / "policy.safetensors").read_bytes()
    assert start == shipped_policy(ID).read_bytes(), "the last good weights are those before the bad update"


def test_every_non_finite_value_is_named(tmp_path):
    run = sppo_cartpole.train(sppo_cartpole.Args(**{**SMALL, "total_timesteps": 3_000}, runs_dir=str(tmp_path)))
    for name in ("policy_loss", "value_loss", "policy_gradient_norm"):
        for value in (float("nan"), float("inf")):
            with pytest.raises(runs.NonFiniteError, match=f"{name.replace('_', ' ')} is {value} in update 2"):
                run.check_finite(fine=torch.tensor(1.0), **{name: torch.tensor(value)})


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    began = []
    monkeypatch.setattr(sppo_cartpole, "rollout", lambda *a, **k: began.append(1))
    monkeypatch.setattr(sppo_cartpole, "evaluate", lambda *a, **k: began.append(1))
    error = refusal(monkeypatch, capsys, "--runs-dir", str(tmp_path / "file"))
    assert "cannot write the run folder" in error
    assert "--runs-dir" in error
    assert not began


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-minibatches", "5"], "--num-minibatches must divide --num-envs.*got 5 for 64"),
        (["--learning-rate", "-1"], "--learning-rate must be above 0, got -1.0"),
        (["--total-timesteps", "0"], "--total-timesteps must be at least 1, got 0"),
        (["--clip-coef", "0"], "--clip-coef must be above 0"),
        (["--seed", "-1"], "--seed must be 0 or above"),
        (["--hidden", "64", "0"], "--hidden must be widths of at least 1"),
        (["--start", "x", "--from-scratch"], "exclude each other"),
        (["--start", "absent.safetensors"], "no starting policy at absent.safetensors"),
        (["--env-id", "CartPole-v1"], "CartPole-v1 has no success rule: pass --success-return"),
        (["--env-id", "CartPol-v1", "--success-return", "5"], "did you mean .*CartPole-v1"),
        (["--success-return", "5"], "has a success rule of its own"),
    ],
)
def test_impossible_arguments(words, message, monkeypatch, capsys, tmp_path):
    error = refusal(monkeypatch, capsys, "--runs-dir", str(tmp_path), *words)
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir()), "no folder may be left behind"


def test_both_scripts_share_arguments_and_defaults():
    ours, theirs = (
        {f.name: (f.type, f.default) for f in dataclasses.fields(s.Args)} for s in (sppo_cartpole, ppo_cartpole)
    )
    assert {k: v for k, v in theirs.items() if k in ours} == ours
    assert set(theirs) - set(ours) == {"critic_loss", "gamma", "gae_lambda"}


def test_help_shows_every_argument_with_its_meaning():
    process = launch("ppo_cartpole", "--help", env={**os.environ, "COLUMNS": "100"})
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for field in dataclasses.fields(ppo_cartpole.Args):
        assert f"--{field.name.replace('_', '-')}" in out
    assert "Token-level PPO" in out
    assert "episodes an update" in out


# ------------------------------------------------------------------------------------------------- shipped policies
def test_shipped_policy_matches_its_card():
    import sppo_envs
    from sppo_control.policies import load_policy
    from sppo_control.rollout import evaluate

    card = json.loads(shipped_policy(ID).with_suffix(".json").read_text())
    assert card["in_band"]
    assert 0.15 <= card["success_sampled"]["rate"] <= 0.35
    assert shipped_policy(ID).stat().st_size < 100_000
    envs = sppo_envs.make_task(ID, 256)
    for name, greedy in (("sampled", False), ("greedy", True)):
        result = evaluate(envs, load_policy(shipped_policy(ID), envs), 2048, np.random.default_rng(77), greedy)
        low, high = core.wilson_interval(int(card[f"success_{name}"]["rate"] * 1024 + 0.5), 1024, z=4)
        assert low <= result.rate <= high


@pytest.mark.parametrize("band", [(0.02, 0.9), (0.9, 0.95)], ids=["met", "missed"])
def test_pretrain_is_deterministic_and_writes_a_card(tmp_path, band):
    """A missed band is an error and must not take the place of a policy that is there already."""
    met, contents = band[0] < 0.5, []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        (out / "PrecisionCartPole-v0.safetensors").write_bytes(b"precious")
        args = pretrain.Args(
            out=str(out), expert_success=0.2, demonstrations=64, eval_episodes=128, clone_updates=400, eval_every=100,
            min_success=band[0], max_success=band[1],
        )  # fmt: skip
        with (
            contextlib.nullcontext() if met else pytest.raises(runs.UserError, match=r"outside the band \[0.9, 0.95\]")
        ):
            pretrain.main(args)
        kept = (out / "PrecisionCartPole-v0.safetensors").read_bytes()
        assert (kept == b"precious") is not met
        stem = out / ("PrecisionCartPole-v0" if met else "PrecisionCartPole-v0.missed")
        card = json.loads(Path(f"{stem}.json").read_text())
        assert card["in_band"] is met is (band[0] <= card["success_sampled"]["rate"] <= band[1])
        contents.append(Path(f"{stem}.safetensors").read_bytes())
    assert contents[0] == contents[1]
