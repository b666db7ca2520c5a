"""Whole runs of the scripts: learning and its control, resuming after SIGKILL and Ctrl-C, logs, refusals."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import first_page
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import grpo_cartpole
import ppo_cartpole
import remax_cartpole
import rloo_cartpole
import sppo_cartpole
import sppo_envs
from sppo_control import cli, core, errors, extras, runs
from sppo_control.networks import Critic
from sppo_control.starts import shipped_policy

ROOT = Path(__file__).resolve().parents[1]
ID = "sppo/PrecisionCartPole-v0"
SCRIPTS = {"sppo_cartpole": sppo_cartpole, "ppo_cartpole": ppo_cartpole}
CRITIC_FREE = {"grpo_cartpole": grpo_cartpole, "rloo_cartpole": rloo_cartpole, "remax_cartpole": remax_cartpole}
ALL = SCRIPTS | CRITIC_FREE
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
    args = cli.make_args(script.Args, **{"runs_dir": str(tmp_path), "eval_episodes": 512, **changes})
    return json.loads((script.train(args).folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[] if s == "sppo_cartpole" else [pytest.mark.slow]) for s in ALL if s != "remax_cartpole"],
)
def test_learns_precision_cartpole(script, tmp_path):
    script = ALL[script]
    summary = train(script, tmp_path, total_timesteps=450_000, seed=11, kernels="torch")
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


def test_a_run_with_a_relative_start_is_resumed_from_another_folder(tmp_path, monkeypatch):
    """Also when that file is gone: the checkpoint has the weights, and says how wide the network is."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    shutil.copy(shipped_policy(ID), "mine.safetensors")
    small = {**SMALL, "seed": 9, "start": "mine.safetensors", "total_timesteps": 10_000}
    whole = sppo_cartpole.train(sppo_cartpole.Args(**small, runs_dir=str(tmp_path / "whole")))
    assert json.loads((whole.folder / "config.json").read_text())["args"]["start"] == str(home / "mine.safetensors")
    short = sppo_cartpole.train(sppo_cartpole.Args(**small | {"total_timesteps": 5_000}, runs_dir=str(tmp_path)))
    (home / "mine.safetensors").unlink()
    monkeypatch.chdir(elsewhere)
    run_main(monkeypatch, "sppo_cartpole", "--resume", str(short.folder), "--total-timesteps", "10000")
    assert_same_run(short.folder, whole.folder)


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


@pytest.mark.parametrize("uninterrupted", ["sppo_cartpole"], indirect=True)  # the run folder is shared code
def test_killed_before_the_first_checkpoint(uninterrupted, tmp_path):
    """What such a run leaves behind: config.json, perhaps a half-written checkpoint. Resuming begins anew in it."""
    _, reference = uninterrupted
    folder = tmp_path / "early"
    (folder / "checkpoints" / ".writing-dead").mkdir(parents=True)
    (folder / "config.json").write_bytes((reference / "config.json").read_bytes())
    sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), seed=9, resume=str(folder)))
    assert_same_run(folder, reference)


def test_resume_from_an_earlier_checkpoint_recomputes_the_rest(uninterrupted, tmp_path):
    script, reference = uninterrupted
    folder = tmp_path / "copy"
    shutil.copytree(reference, folder)
    module = SCRIPTS[script]
    args = module.Args(**SMALL, runs_dir=str(tmp_path), seed=9, resume=str(folder / "checkpoints" / "000008"))
    module.train(args)
    assert_same_run(folder, reference)


def run_main(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    cli.main(ALL[script].train, ALL[script].Args, "test")


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


def test_a_run_with_annealed_rates_cannot_be_lengthened(tmp_path, monkeypatch, capsys):
    """Its length decides each learning rate. Resumed as it is, it has the same weights as a run that was not stopped."""
    args = {"env_id": ID, "num_envs": 16, "horizon": 5, "eval_episodes": 16, "save_every": 1, "seed": 4}
    args |= {"anneal_lr": True, "total_timesteps": 320, "norm_adv": "minibatch", "critic_warmup_batches": 1}
    whole = ppo_cartpole.train(ppo_cartpole.Args(**args, runs_dir=str(tmp_path / "a")))
    cut = ppo_cartpole.train(ppo_cartpole.Args(**args, runs_dir=str(tmp_path / "b")))
    for later in cut.checkpoints()[3:]:
        shutil.rmtree(later)
    error = refusal(monkeypatch, capsys, "--resume", str(cut.folder), "--total-timesteps", "640", script="ppo_cartpole")
    assert "--total-timesteps is 320 in the run to be resumed and cannot become 640" in error
    run_main(monkeypatch, "ppo_cartpole", "--resume", str(cut.folder))
    assert_same_run(cut.folder, whole.folder)


def test_spos_tracker_is_in_the_checkpoint(tmp_path, monkeypatch):
    args = {"env_id": ID, "num_envs": 16, "eval_episodes": 16, "save_every": 1, "seed": 4, "total_timesteps": 8000}
    args |= {"group_size": 1, "baseline": "tracked", "num_contexts": 5, "norm_adv": "batch"}
    whole = rloo_cartpole.train(rloo_cartpole.Args(**args, runs_dir=str(tmp_path / "a")))
    cut = rloo_cartpole.train(rloo_cartpole.Args(**args, runs_dir=str(tmp_path / "b")))
    assert (cut.checkpoints()[0] / "tracker.safetensors").is_file()
    for later in cut.checkpoints()[2:]:
        shutil.rmtree(later)
    run_main(monkeypatch, "rloo_cartpole", "--resume", str(cut.folder))
    assert_same_run(cut.folder, whole.folder)


def test_arguments_that_exclude_each_other(monkeypatch, capsys):
    for script, words, message in (
        ("ppo_cartpole", ["--clip-vloss", "--critic-loss", "bce"], "--clip-vloss clips the squared error"),
        ("rloo_cartpole", ["--baseline", "tracked"], "--baseline tracked needs --group-size 1, got 8"),
    ):
        assert message in refusal(monkeypatch, capsys, *words, script=script)


def test_damaged_and_missing_checkpoints(tmp_path, monkeypatch, capsys):
    run = sppo_cartpole.train(sppo_cartpole.Args(**{**SMALL, "total_timesteps": 10_000}, runs_dir=str(tmp_path)))
    assert "neither a run folder" in refusal(monkeypatch, capsys, "--resume", str(tmp_path / "nothing"))
    policy = run.checkpoints()[-1] / "policy.safetensors"
    good = policy.read_bytes()
    policy.write_bytes(good[:-100])
    error = refusal(monkeypatch, capsys, "--resume", str(run.folder))
    assert "is damaged or belongs to another network" in error
    assert policy.read_bytes() == good[:-100], "nothing may be overwritten"
    policy.write_bytes(good)
    optimizer = run.checkpoints()[-1] / "optimizer.safetensors"
    state = load_file(optimizer)
    for name, x, message in (
        ("0.exp_avg", state["0.exp_avg"][:-1].clone(), "exp_avg of the optimiser's parameter 0 has shape"),
        ("9.exp_avg", state["0.exp_avg"].clone(), "and the file has a state for number 9"),
    ):
        save_file({**state, name: x}, optimizer)
        assert message in refusal(monkeypatch, capsys, "--resume", str(run.folder))
    error = refusal(monkeypatch, capsys, "--resume", str(run.checkpoints()[0].with_name("000777")))
    assert "000777 is damaged" in error
    error = refusal(monkeypatch, capsys, "--resume", str(run.folder), script="ppo_cartpole")
    assert "was made by another script or version: unknown arguments ['critic_batch_size', 'critic_recipe'," in error
    bare = rloo_cartpole.train(rloo_cartpole.Args(**{**SMALL, "total_timesteps": 3_000}, runs_dir=str(tmp_path / "b")))
    with pytest.raises(errors.UserError, match=r"was started by rloo_cartpole\.py, not by grpo_cartpole\.py"):
        grpo_cartpole.train(grpo_cartpole.Args(**SMALL, resume=str(bare.folder)))


# --------------------------------------------------------------------------------------------- the folder and its logs
def test_run_folder_holds_what_the_docs_say(uninterrupted):
    script, folder = uninterrupted
    assert re.fullmatch(rf"sppo-PrecisionCartPole-v0__{script}__9__\d{{8}}-\d{{6}}(-\d+)?", folder.name)
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["seed"] == 9
    assert config["args"]["hidden"] == [64, 64]
    assert set(config["versions"]) >= {"python", "sppo-control", "torch", "numpy", "gymnasium", "safetensors"}
    assert config["args"]["num_minibatches"] == 2
    assert config["args"]["learning_rate"] == 1e-3, "the task's own default must be stored as the number it was"
    checkpoint = sorted((folder / "checkpoints").iterdir())[-1]
    parts = {"policy.safetensors", "critic.safetensors", "state.json"}
    parts |= {"optimizer.safetensors", "critic_optimizer.safetensors"}
    assert {p.name for p in checkpoint.iterdir()} == parts | ({"recent.safetensors"} if "sppo" in script else set())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] >= SMALL["total_timesteps"]
    assert summary["steps_per_second"] == pytest.approx(summary["steps"] / summary["seconds"])


def test_every_emitted_tag_is_documented_and_the_reverse(uninterrupted):
    _, folder = uninterrupted
    """The task's own measures/... are documented with the task; see the test of every script and task."""
    section = (ROOT / "docs" / "metrics.md").read_text().split("## Language models")[0]
    documented = set(re.findall(r"^\| `(\w+/\w+)` \|", section, flags=re.M))
    emitted = {tag for tag in curves(folder) if not tag.startswith("measures/")} | {"charts/SPS"}
    assert emitted == documented
    assert first_page.charts(folder, emitted) == first_page.SIDE_BY_SIDE


@pytest.mark.parametrize("script", CRITIC_FREE)
def test_scripts_without_critic_emit_the_same_tags_but_its_loss_and_its_warm_up(script, tmp_path, uninterrupted):
    run = CRITIC_FREE[script].train(CRITIC_FREE[script].Args(**SMALL, runs_dir=str(tmp_path)))
    assert set(curves(run.folder)) == set(curves(uninterrupted[1])) - {"losses/value_loss", "charts/warmup"}
    assert first_page.charts(run.folder, curves(run.folder)) == first_page.SIDE_BY_SIDE


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
    args = sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path))
    args.learning_rate = 1e38  # which the command line refuses
    with pytest.raises(errors.NonFiniteError, match=r"in update 1; the last good checkpoint is .*000000\.") as stop:
        sppo_cartpole.train(args)
    checkpoint = re.search(r"checkpoint is (\S+)\. ", str(stop.value)).group(1)
    start = (Path(checkpoint) / "policy.safetensors").read_bytes()
    assert start == shipped_policy(ID).read_bytes(), "the last good weights are those before the bad update"


def test_every_non_finite_value_is_named(tmp_path):
    run = sppo_cartpole.train(sppo_cartpole.Args(**{**SMALL, "total_timesteps": 3_000}, runs_dir=str(tmp_path)))
    for name in ("policy_loss", "value_loss", "policy_gradient_norm"):
        for value in (float("nan"), float("inf")):
            with pytest.raises(errors.NonFiniteError, match=f"{name.replace('_', ' ')} is {value} in update 2"):
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
        (["--learning-rate", "-1"], "--learning-rate must be from 1e-10 to 10, got -1.0"),
        (["--total-timesteps", "0"], "--total-timesteps must be from 1 to .*, got 0"),
        (["--clip-coef", "0"], "--clip-coef must be from 1e-06 to 100, got 0"),
        (["--seed", "-1"], "--seed must be from 0 to"),
        (["--hidden", "64", "0"], "--hidden must be from 1 to .*, got 0"),
        (["--critic-hidden", "0"], "--critic-hidden must be from 1 to .*, got 0"),
        (
            ["--critic-steps", "0"],
            "--critic-steps must be at least 1, got 0; the paper's recipe is --critic-recipe paper",
        ),
        (
            ["--critic-recipe", "paper", "--critic-steps", "5"],
            "--critic-steps 5 has no meaning here: --critic-recipe paper",
        ),
        (["--critic-recipe", "paper", "--critic-batch-size", "5"], "--critic-batch-size 5 has no meaning here"),
        (["--critic-recipe", "pape"], "invalid choice|--critic-recipe"),
        (["--start", "x", "--from-scratch"], "exclude each other"),
        (["--start", "absent.safetensors"], "no starting policy at .*absent.safetensors"),
        (["--env-id", "CartPole-v1"], "CartPole-v1 has no success rule: pass --success-return"),
        (["--env-id", "CartPol-v1", "--success-return", "5"], "did you mean .*CartPole-v1"),
        (["--success-return", "5"], "has a success rule of its own"),
        (["--env-id", "sppo/SparseHoper-v0"], "did you mean .*sppo/SparseHopper-v0"),
        (["--horizon", "0"], "--horizon must be from 1 to .*, got 0"),
        (["--engine", "envpool"], "sppo/PrecisionCartPole-v0 has the engines numpy, processes and sync, not envpool"),
        (
            ["--start", "sppo_control/pretrained/SparsePendulum-v0.safetensors"],
            "made for sppo/SparsePendulum-v0, cannot act in this environment: a GaussianPolicy does not fit",
        ),
        (
            ["--env-id", "sppo/SparsePendulum-v0", "--start", "sppo_control/pretrained/SparseHopper-v0.safetensors"],
            r"made for sppo/SparseHopper-v0, cannot act .*'obs_scale': \(11,\).* do not fit",
        ),
    ],
)
def test_impossible_arguments(words, message, monkeypatch, capsys, tmp_path):
    error = refusal(monkeypatch, capsys, "--runs-dir", str(tmp_path), *words)
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir()), "no folder may be left behind"


@pytest.mark.parametrize("env_id", sppo_envs.TASKS)
def test_each_task_has_its_own_defaults_and_every_one_can_be_overridden(env_id, monkeypatch):
    own = sppo_envs.task_defaults(env_id)
    args = cli.make_args(sppo_cartpole.Args, env_id=env_id)
    assert {name: getattr(args, name) for name in own} == own
    assert (
        own["num_envs"]
        == {"Mou": 8, "Hop": 8, "Lun": 16, "Pen": 16, "Pre": 64, "Con": 64}[re.sub("sppo/(Sparse)?", "", env_id)[:3]]
    ), "the paper's trajectories per update"
    words = ["--num-envs", "12", "--num-minibatches", "3", "--learning-rate", "0.5", "--total-timesteps", "77"]
    monkeypatch.setattr(sys, "argv", ["x", "--env-id", env_id, *words])
    args = cli.parse_args(sppo_cartpole.Args, "test")
    assert (args.num_envs, args.num_minibatches, args.learning_rate, args.total_timesteps) == (12, 3, 0.5, 77)


@pytest.mark.parametrize("script", ALL)
@pytest.mark.parametrize("env_id", sppo_envs.TASKS)
def test_every_script_runs_every_task_from_its_starting_policy(env_id, script, tmp_path):
    """Two updates of short episodes; the first checkpoint is the shipped policy, the measures are the documented ones."""
    B = sppo_envs.task_defaults(env_id)["num_envs"]
    batch = 2 * B if script == "remax_cartpole" else B  # its greedy episodes count
    args = cli.make_args(
        ALL[script].Args,
        env_id=env_id, horizon=20, total_timesteps=batch * 20 + 1, eval_episodes=4, runs_dir=str(tmp_path),
    )  # fmt: skip
    run = ALL[script].train(args)
    assert (run.update, run.episodes) in {(2, 2 * batch), (3, 3 * batch)}
    policies = [(c / "policy.safetensors").read_bytes() for c in run.checkpoints()]
    assert policies[0] == shipped_policy(env_id).read_bytes()
    if any(value for _, value in curves(run.folder)["losses/grad_norm"]):
        assert policies[-1] != policies[0]
    measures = {tag.split("/")[1] for tag in curves(run.folder) if tag.startswith("measures/")}
    section = (ROOT / "docs" / "tasks.md").read_text().split(f"## {env_id}")[1].split("\n## ")[0]
    assert measures == set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M))


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("sppo/SparseLunarLander-v0", "Box2D", "box2d"), ("sppo/SparseHopper-v0", "mujoco", "mujoco")],
)
def test_missing_extras_give_the_command_that_installs_them(env_id, module, extra, tmp_path):
    script = ROOT / "scripts" / "sppo_cartpole.py"
    argv = [str(script), "--env-id", env_id, "--engine", "sync", "--runs-dir", str(tmp_path)]
    # in a process of its own: here the module may have been imported already
    code = (
        f"import runpy, sys; sys.modules[{module!r}] = None; sys.argv = {argv!r}; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith(f"is not installed; run: {extras.install(extra)}")
    assert not list(tmp_path.iterdir())


def test_all_scripts_share_arguments_and_defaults():
    fields = {name: {f.name: (f.type, f.default) for f in dataclasses.fields(s.Args)} for name, s in ALL.items()}
    own = {
        "sppo_cartpole": {
            "critic_recipe", "critic_learning_rate", "critic_steps", "critic_batch_size", "critic_window", "critic_hidden",
            "critic_warmup_batches", "norm_adv", "ratio", "adam_eps",
        },
        "ppo_cartpole": {
            "critic_learning_rate", "critic_hidden", "critic_loss", "gamma", "gae_lambda", "critic_gae_lambda",
            "critic_warmup_batches", "norm_adv", "clip_vloss", "anneal_lr", "adam_eps",
        },
        "grpo_cartpole": {"group_size", "normalize_std", "reduction", "ratio"},
        "rloo_cartpole": {"group_size", "norm_adv", "baseline", "num_contexts"}, "remax_cartpole": set(),
    }  # fmt: skip
    common = set(fields["sppo_cartpole"]) - own["sppo_cartpole"]
    for name, ours in fields.items():
        assert set(ours) == common | own[name], name
        assert all(ours[k] == fields["sppo_cartpole"][k] for k in common), name


# ----------------------------------------------------------------------------------- what the update is computed from
ADVANTAGES = {
    "grpo": (grpo_cartpole, {}, lambda R, v, g: (R - R.view(-1, 8).mean(1).repeat_interleave(8))
             / R.view(-1, 8).std(1, correction=0).clamp(min=1e-9).repeat_interleave(8)),
    "rloo": (rloo_cartpole, {"group_size": 4}, lambda R, v, g: (R - R.view(-1, 4).mean(1).repeat_interleave(4)) * 4 / 3),
    "reinforce": (rloo_cartpole, {"group_size": 1}, lambda R, v, g: (R - R.mean()) * 16 / 15),
    "remax": (remax_cartpole, {}, lambda R, v, g: R - g),
    "sppo": (sppo_cartpole, {}, lambda R, v, g: R - v),
    "sppo, paper's recipe": (sppo_cartpole, {"critic_recipe": "paper"}, lambda R, v, g: R - v),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVANTAGES)
def test_each_script_computes_its_advantage_from_the_episodes_it_ran(name, tmp_path, monkeypatch):
    """What reaches the loss, episode by episode, against the formula; contexts shared as the algorithm wants them."""
    script, changes, formula = ADVANTAGES[name]
    rollouts, losses, real_rollout, real_loss = [], [], script.rollout, core.clipped_surrogate

    def spy_rollout(envs, policy, rng, *args, **kwargs):
        rollouts.append((real_rollout(envs, policy, rng, *args, **kwargs), kwargs))
        return rollouts[-1][0]

    def spy_loss(logp, logp_old, advantage, *args, **kwargs):
        losses.append((logp_old, advantage))
        return real_loss(logp, logp_old, advantage, *args, **kwargs)

    monkeypatch.setattr(script, "rollout", spy_rollout)
    monkeypatch.setattr(core, "clipped_surrogate", spy_loss)
    # In a group of one context of ContextCartPole all outcomes tend to be equal, and every advantage would be 0.
    env_id = ID if name in ("grpo", "rloo") else "sppo/ContextCartPole-v0"
    args = {"env_id": env_id, "num_envs": 16, "num_minibatches": 1, "update_epochs": 1}
    run = script.train(script.Args(**args, **changes, total_timesteps=1, eval_episodes=1, runs_dir=str(tmp_path)))
    episodes = rollouts[0][0]
    R, greedy = episodes.outcome, None
    groups = R.view({"grpo": 2, "rloo": 4}.get(name, 1), -1).mean(1)
    assert ((groups > 0) & (groups < 1)).any(), "a group with both outcomes is needed for this to say anything"
    assert len(episodes.context.unique(dim=0)) == 16 // {"grpo": 8, "rloo": 4}.get(name, 1)
    if name == "remax":
        assert rollouts[1][1] == {"greedy": True}
        assert torch.equal(rollouts[1][0].context, episodes.context)
        greedy = rollouts[1][0].outcome
        assert run.steps == episodes.num_steps + rollouts[1][0].num_steps
    else:
        assert len(rollouts) == 1
        assert run.steps == episodes.num_steps
    v0 = None
    if script is sppo_cartpole:
        critic = Critic(4, obs_scale=run.parts["policy"].obs_scale.tolist())
        critic.load_tensors(load_file(run.checkpoints()[0] / "critic.safetensors"))
        v0 = torch.sigmoid(critic(episodes.context)).detach()
    ((logp_old, advantage),) = losses
    order = [int((episodes.logp == row).all(1).nonzero()[0, 0]) for row in logp_old]
    assert sorted(order) == list(range(16))
    torch.testing.assert_close(advantage, formula(R, v0, greedy)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("script", ALL)
def test_uniform_batches_are_left_out_on_request(script, tmp_path):
    """A task that always fails: with the flag no weight moves and the curve says so; without it, critics at least learn."""
    weights = {}
    for skip in (False, True):
        args = ALL[script].Args(
            horizon=1, total_timesteps=40, num_envs=16, num_minibatches=2, eval_episodes=1, from_scratch=True,
            env_id="sppo/SparseMountainCar-v0", skip_uniform_batches=skip, runs_dir=str(tmp_path / str(skip)),
        )  # fmt: skip
        run = ALL[script].train(args)
        assert {v for _, v in curves(run.folder)["charts/skipped"]} == {float(skip)}
        name = "critic" if script in SCRIPTS else "policy"
        weights[skip] = [(c / f"{name}.safetensors").read_bytes() for c in run.checkpoints()]
    assert weights[True][0] == weights[True][-1]
    if script in SCRIPTS:
        assert weights[False][0] != weights[False][-1]


def test_critic_on_its_own_learns_more_and_leaves_the_policy_alone(tmp_path):
    """Many critic updates per batch: V(s_0) tells contexts apart where the paper's recipe hardly does; resumable."""
    args = {"env_id": "sppo/ContextCartPole-v0", "total_timesteps": 150_000, "eval_episodes": 16, "save_every": 5}
    own = {"critic_steps": 30, "critic_window": 2, "critic_learning_rate": 1e-2}
    brier = {}
    for name, changes in {"paper": {"critic_recipe": "paper", "critic_learning_rate": 1e-3}, "own": own}.items():
        run = sppo_cartpole.train(sppo_cartpole.Args(**args, **changes, runs_dir=str(tmp_path / name)))
        brier[name] = np.mean([v for _, v in curves(run.folder)["critic/brier"][-5:]])
    assert brier["own"] < brier["paper"] - 0.03, brier
    resumed = tmp_path / "resumed"
    shutil.copytree(run.folder, resumed)
    again = sppo_cartpole.Args(**args, **own, resume=str(resumed / "checkpoints" / "000005"), runs_dir=str(tmp_path))
    sppo_cartpole.train(again)
    assert_same_run(resumed, run.folder)


def test_smaller_critics_are_that_small(tmp_path):
    for script in SCRIPTS.values():
        args = script.Args(**{**SMALL, "total_timesteps": 3_000}, critic_hidden=(5,), runs_dir=str(tmp_path))
        critic = load_file(script.train(args).checkpoints()[-1] / "critic.safetensors")
        assert [critic[f"layers.{i}.weight"].shape for i in range(2)] == [(5, 4), (1, 5)]


def ppo_targets(tmp_path, monkeypatch, **changes):
    """What PPO's critic is trained on in one update, and core's returns of the same episodes."""
    seen, real = [], core.generalized_advantage
    monkeypatch.setattr(core, "generalized_advantage", lambda *args: seen.append(real(*args)) or seen[-1])
    targets = []
    for name in ("squared_value_loss", "bernoulli_value_loss"):
        loss = getattr(core, name)

        def spy(value, target, *rest, loss=loss, **named):
            targets.append(target)
            return loss(value, target, *rest, **named)

        monkeypatch.setattr(core, name, spy)
    values = {"env_id": ID, "num_envs": 8, "num_minibatches": 1, "update_epochs": 1, "total_timesteps": 1}
    ppo_cartpole.train(ppo_cartpole.Args(**values, **changes, eval_episodes=1, runs_dir=str(tmp_path)))
    return targets[0], seen[0][1]


def test_the_squared_loss_is_trained_on_the_returns_as_they_are(tmp_path, monkeypatch):
    """At lambda < 1 a return mixes in values, which an untrained critic puts outside [0, 1]."""
    target, returns = ppo_targets(tmp_path, monkeypatch, gae_lambda=0.5)
    assert returns.min() < -0.01, "without a return outside [0, 1] this would say nothing"
    assert sorted(target.flatten().tolist()) == sorted(returns.flatten().tolist())


def test_the_bce_loss_is_trained_on_returns_within_0_and_1(tmp_path, monkeypatch):
    real = core.generalized_advantage
    monkeypatch.setattr(core, "generalized_advantage", lambda *args: tuple(x * 1.5 for x in real(*args)))
    target, returns = ppo_targets(tmp_path, monkeypatch, critic_loss="bce")
    assert returns.max() > 1
    assert (target.min(), target.max()) == (0, 1)
