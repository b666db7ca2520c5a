"""Starting policies: the shipped ones against their cards, and the script that makes them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pretrain
import sppo_envs
from sppo_control import cli, core, errors
from sppo_control.policies import load_policy
from sppo_control.rollout import evaluate, success_by_context
from sppo_control.starts import shipped_policy

ROOT = Path(__file__).resolve().parents[1]
TASKS = tuple(task for task in sppo_envs.TASKS + sppo_envs.HARDER if task != "sppo/FarHopper-v0")  # which has none
QUICK = {"expert_success": 0.2, "demonstrations": 64, "eval_episodes": 128, "clone_updates": 400, "eval_every": 100}
TWO_CHECKPOINTS = {"expert_success": 0.6}


# ------------------------------------------------------------------------------------------------- shipped policies
@pytest.mark.parametrize(
    "env_id", [pytest.param(id_, marks=[pytest.mark.slow] if "Hopper" in id_ else []) for id_ in TASKS]
)
def test_shipped_policy_matches_its_card(env_id):
    """Fresh episodes agree with the card's rates (99.994 % intervals of both), and the rate is in the task's band."""
    card = json.loads(shipped_policy(env_id).with_suffix(".json").read_text())
    args = cli.make_args(pretrain.Args, env_id=env_id)
    assert card["env_id"] == env_id
    assert card["band"] == [args.min_success, args.max_success]
    sampled = card["success_sampled"]
    assert args.min_success <= sampled["measures"].get("balanced", sampled["rate"]) <= args.max_success
    given = {k: v for k, v in card["arguments"].items() if v is not None}  # cards of discrete actions: no log_std
    recipe = {k: args.aim if k == "target" else getattr(args, k) for k in given}
    assert recipe == given, "the shipped policy is the one that the script makes by default"
    assert shipped_policy(env_id).stat().st_size < 100_000
    episodes = 128 if "Lander" in env_id or "Hopper" in env_id else 1024
    envs = sppo_envs.make_task(env_id, 128)
    policy = load_policy(shipped_policy(env_id), envs)
    for name, greedy in (("sampled", False), ("greedy", True)):
        result = evaluate(envs, policy, episodes, np.random.default_rng(77), greedy)
        low, high = core.wilson_interval(round(card[f"success_{name}"]["rate"] * 1024), 1024, z=4)
        mine = core.wilson_interval(int(result.outcome.sum()), episodes, z=4)
        assert mine[0] <= high
        assert mine[1] >= low
        assert result.as_dict()["measures"].keys() == card[f"success_{name}"]["measures"].keys()


def test_pendulums_start_includes_episodes_that_balance():
    card = json.loads(shipped_policy("sppo/SparsePendulum-v0").with_suffix(".json").read_text())
    assert card["success_sampled"]["measures"]["balanced"] > 0.05


@pytest.mark.parametrize("env_id", ["sppo/ContextCartPole-v0", "sppo/ContextPendulum-v0"])
def test_contexts_of_varied_difficulty(env_id):
    """The design criterion: from a fifth of the contexts success is rare, from another fifth it is nearly sure."""
    envs = sppo_envs.make_task(env_id, 64)
    policy = load_policy(shipped_policy(env_id), envs)
    contexts, rate = success_by_context(envs, policy, 100, np.random.default_rng(3))
    assert contexts.shape == (100, envs.single_observation_space.shape[0])
    assert len(contexts.unique(dim=0)) == 100
    assert (rate < 0.2).float().mean() >= 0.2
    assert (rate > 0.8).float().mean() >= 0.2


# ------------------------------------------------------------------------------------------------------- the script
def make(tmp_path, name, **changes):
    args = pretrain.Args(
        **{**QUICK, "out": str(tmp_path / name), "work_dir": str(tmp_path / f"work-{name}"), **changes}
    )
    pretrain.main(args)
    return args


@pytest.mark.parametrize(
    "band", [pytest.param((0.02, 0.9), id="met"), pytest.param((0.9, 0.95), id="missed", marks=pytest.mark.slow)]
)
def test_is_deterministic_and_writes_a_card(tmp_path, band):
    """A missed band is an error and must not take the place of a policy that is there already."""
    met, contents = band[0] < 0.5, []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        (out / "PrecisionCartPole-v0.safetensors").write_bytes(b"precious")
        if met:
            make(tmp_path, name, min_success=band[0], max_success=band[1])
        else:
            with pytest.raises(errors.UserError, match=r"outside the band \[0.9, 0.95\]"):
                make(tmp_path, name, min_success=band[0], max_success=band[1])
        kept = (out / "PrecisionCartPole-v0.safetensors").read_bytes()
        assert (kept == b"precious") is not met
        stem = out / ("PrecisionCartPole-v0" if met else "PrecisionCartPole-v0.missed")
        card = json.loads(Path(f"{stem}.json").read_text())
        assert card["in_band"] is met is (band[0] <= card["success_sampled"]["rate"] <= band[1])
        contents.append(Path(f"{stem}.safetensors").read_bytes())
    assert contents[0] == contents[1]


def launch(tmp_path, name, *words):
    flags = [w for k, v in (QUICK | TWO_CHECKPOINTS).items() for w in (f"--{k.replace('_', '-')}", str(v))]
    folders = ["--out", str(tmp_path / name), "--work-dir", str(tmp_path / f"work-{name}")]
    command = [sys.executable, str(ROOT / "scripts" / "pretrain.py"), *flags, *folders, "--max-success", "0.9", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.slow
def test_killed_and_started_again_ends_the_same(tmp_path):
    """SIGKILL while the expert is trained, Ctrl-C later on; also as two stages. The policy is the same, bit for bit."""
    make(tmp_path, "whole", max_success=0.9, **TWO_CHECKPOINTS)
    folder = tmp_path / "work-cut" / "PrecisionCartPole-v0__1"
    for _ in range(10):  # on a busy machine this process may look too late; then once more
        first = launch(tmp_path, "cut")
        while not list(folder.glob("0*")) and first.poll() is None:
            time.sleep(0.01)
        first.kill()
        first.wait()
        if list(folder.glob("0*")) and not (folder / "expert.safetensors").exists():
            break
        shutil.rmtree(tmp_path / "work-cut", ignore_errors=True)
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
    assert list(folder.glob("0*")), "never killed between its first checkpoint and its end"
    second = launch(tmp_path, "cut", "--stage", "expert")
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "continue with --stage sft" in out
    assert not (tmp_path / "cut" / "PrecisionCartPole-v0.safetensors").exists()
    shutil.copytree(tmp_path / "work-cut", tmp_path / "kept")
    for _ in range(10):
        third = launch(tmp_path, "cut", "--stage", "sft")
        while not list(folder.glob("demonstrations*.safetensors")) and third.poll() is None:
            time.sleep(0.01)
        time.sleep(0.05)
        third.send_signal(signal.SIGINT)
        _, err = third.communicate(timeout=120)
        if third.returncode == 130:  # else it had ended
            break
        assert third.returncode == 0, err
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.rmtree(tmp_path / "work-cut", ignore_errors=True)
        shutil.copytree(tmp_path / "kept", tmp_path / "work-cut")
    assert third.returncode == 130, err
    assert "continues from the last checkpoint" in err
    assert launch(tmp_path, "cut").wait(timeout=120) == 0
    policies = [(tmp_path / n / "PrecisionCartPole-v0.safetensors").read_bytes() for n in ("whole", "cut")]
    assert policies[0] == policies[1]
    with pytest.raises(errors.UserError, match=r"was begun with --gamma 0\.99; use the same, remove it"):
        make(tmp_path, "cut", gamma=0.5, **TWO_CHECKPOINTS)


def interrupted(error):
    """What torch and safetensors do with a KeyboardInterrupt while they read a file: they raise another error."""

    def read(*args, **kwargs):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if error is None:
                raise
            raise error from None

    return read


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("load_file", ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")),
        ("load_policy", errors.UserError("it is damaged")),
        ("load_file", None),
        ("evaluate", None),  # after the files: in the cloning
        ("make_policy", SystemExit(2)),
    ],
)
def test_ctrl_c_is_ctrl_c_whatever_it_meets(tmp_path, monkeypatch, capsys, function, error):
    words = ["--out", str(tmp_path / "out"), "--work-dir", str(tmp_path / "work"), "--demonstrations", "64"]
    folder = pretrain.work_folder(pretrain.Args(work_dir=str(tmp_path / "work")))
    shutil.copy(shipped_policy("sppo/PrecisionCartPole-v0"), folder / "expert.safetensors")
    demonstrations = {"obs": torch.zeros(8, 4), "actions": torch.zeros(8, dtype=torch.int64)}
    save_file(demonstrations, folder / "demonstrations_64.safetensors")
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(pretrain, function, interrupted(error))
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main(pretrain.main, pretrain.Args, pretrain.__doc__)
    assert stop.value.code == 130
    err = capsys.readouterr().err
    assert err.endswith("\nStopped; the same command continues from the last checkpoint.\n")
    assert "error" not in err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_damaged_file_is_still_an_error(tmp_path, monkeypatch, capsys):
    folder = pretrain.work_folder(pretrain.Args(work_dir=str(tmp_path / "work")))
    (folder / "expert.safetensors").write_text("no weights")
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--out", str(tmp_path), "--work-dir", str(tmp_path / "work")])
    with pytest.raises(SystemExit) as stop:
        cli.main(pretrain.main, pretrain.Args, pretrain.__doc__)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_demonstrations_are_successes_only_and_in_pendulum_balanced_ones():
    """An expert that hardly ever balances: the shipped start. Spinning episodes succeed and must not be kept."""
    env_id = "sppo/SparsePendulum-v0"
    args = cli.make_args(pretrain.Args, env_id=env_id, demonstrations=5)
    envs = sppo_envs.make_task(env_id, args.expert_num_envs)
    obs, actions = pretrain.collect(args, load_policy(shipped_policy(env_id), envs))
    assert obs.shape == (5 * 1000, 3)
    assert actions.shape == (5 * 1000, 1)
    assert (obs.view(5, 1000, 3)[:, -90:, 0] > 0.8).all()


@pytest.mark.slow
def test_cloning_goes_back_when_success_leaps_over_the_band(tmp_path):
    """At a high learning rate success leaps from 0 to above the band; taken back and halved, it stops inside."""
    args = make(tmp_path, "a", clone_updates=4000, min_success=0.02, max_success=0.2, clone_learning_rate=3e-3)
    card = json.loads((tmp_path / "a" / "PrecisionCartPole-v0.json").read_text())
    assert card["in_band"]
    demos = load_file(next((Path(args.work_dir) / "PrecisionCartPole-v0__1").glob("demonstrations*.safetensors")))
    args.max_success = 1.0
    envs = sppo_envs.make_task(args.env_id, 256)
    policy, _ = pretrain.clone(args, demos["obs"], demos["actions"])
    leapt = evaluate(envs, policy, 1024, np.random.default_rng(0)).rate
    assert leapt > 0.2, "without going back the same steps overshoot"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_success": 0.5, "max_success": 0.4}, "--min-success must be below --max-success, got 0.5 and 0.4"),
        ({"target": 0.9}, "--target must be above 0 and not above --max-success, got 0.9"),
        ({"expert_success": 1.0}, "--expert-success must be from 0.001 to 0.999, got 1.0"),
        ({"demonstrations": 0}, "--demonstrations must be from 1 to .*, got 0"),
        ({"reward_scale": float("nan")}, "--reward-scale must be from 1e-10 to .*, got nan"),
        ({"clone_learning_rate": -1.0}, "--clone-learning-rate must be from 1e-10 to 10, got -1.0"),
        ({"log_std": float("nan")}, "--log-std must be from -20 to 20, got nan"),
        ({"gamma": 1.5}, "--gamma must be from 0 to 1, got 1.5"),
        ({"success_return": 1.0}, "--success-return is only for --demonstrations-from"),
        ({"stage": "expert", "demonstrations_from": "x.npz"}, "--demonstrations-from exclude each other"),
    ],
)
def test_impossible_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        pretrain.Args(**changes)


def test_a_clone_needs_an_expert(tmp_path):
    with pytest.raises(errors.UserError, match=r"no expert at .*; make it with --stage expert"):
        make(tmp_path, "a", stage="sft")


def test_an_expert_that_does_not_get_there_says_so(tmp_path):
    with pytest.raises(
        errors.UserError, match=r"after .* steps, but --expert-success is 0\.99; raise --expert-timesteps"
    ):
        make(tmp_path, "a", expert_success=0.99, expert_timesteps=20_000)


@pytest.mark.parametrize(
    ("expert_of", "message"),
    [
        ("sppo/PrecisionCartPole-v0", "has other spaces than sppo/StopMountainCar-v0"),
        ("nope", "--expert-of nope has no dense"),
    ],
)
def test_an_expert_of_an_unfitting_task_is_refused(tmp_path, expert_of, message):
    args = pretrain.Args(
        env_id="sppo/StopMountainCar-v0",
        expert_of=expert_of,
        out=str(tmp_path / "out"),
        work_dir=str(tmp_path / "work"),
    )
    with pytest.raises(errors.UserError, match=message):
        pretrain.main(args)
    assert not list(tmp_path.iterdir())


def test_a_harder_task_is_cloned_from_the_expert_of_its_mother_task():
    args = cli.make_args(pretrain.Args, env_id="sppo/StopMountainCar-v0")
    assert args.expert_of == "sppo/SparseMountainCar-v0"
    assert args.of_expert.env_id == "sppo/SparseMountainCar-v0"
    assert args.of_expert.expert_of is None
    plain = pretrain.Args(env_id="sppo/SparseMountainCar-v0")
    assert plain.of_expert == plain
