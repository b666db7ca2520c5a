"""Shared policies: what is in the folder, that it gives the same policy back, what is refused; and scripts/enjoy.py."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

import enjoy
import evaluate
import share
import sppo_cartpole
import sppo_envs
from sppo_control import checkpoints, cli, errors, extras, hub, videos
from sppo_control.policies import load_policy

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"total_timesteps": 240, "num_envs": 16, "eval_episodes": 4, "seed": 7, "kernels": "torch", "horizon": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run whose horizon is not the task's."""
    folder = tmp_path_factory.mktemp("runs")
    return sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(folder))).folder


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "pole"
    share.main(share.Args(str(run), to_folder=folder, episodes=40, video=False))
    return folder


def main(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
    cli.main(module.main, module.Args, "test")


def refusal(monkeypatch, capsys, module, *words):
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, module, *words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_folder_gives_bitwise_the_same_policy_and_the_same_success(run, shared, capsys):
    newest = checkpoints.newest(run) / "policy.safetensors"
    assert (shared / "policy.safetensors").read_bytes() == newest.read_bytes()
    path, task = evaluate.find(str(shared), evaluate.Args((str(shared),)))
    assert task == {"env_id": "sppo/PrecisionCartPole-v0", "success_return": None, "horizon": 5, "engine": "auto"}
    envs = sppo_envs.make_task(num_envs=40, **task)
    policy, trained = load_policy(path, envs), load_policy(newest, envs)
    for name, x in trained.named_tensors().items():
        assert torch.equal(policy.named_tensors()[name], x)
    again = evaluate.evaluate_in_batches(envs, policy, evaluate.Args((str(shared),), episodes=40))
    about = hub.read_run(shared)
    assert about["after"] == {**again.as_dict(), "interval": list(again.interval)}
    args = sppo_cartpole.Args(start=str(shared), horizon=5)
    started = sppo_cartpole.starting_policy(envs, args.env_id, args.start, False, args.hidden)
    assert all(torch.equal(x, started.named_tensors()[name]) for name, x in trained.named_tensors().items())


def test_the_folder_says_what_made_it(run, shared):
    about, config = hub.read_run(shared), checkpoints.read_config(run)
    assert sorted(p.name for p in shared.iterdir()) == [
        "README.md",
        "policy.safetensors",
        "run.json",
        "sppo_cartpole.py",
    ]
    assert (shared / "sppo_cartpole.py").read_bytes() == (ROOT / "scripts" / "sppo_cartpole.py").read_bytes()
    assert about["exact"] is True
    assert config["script_sha256"] == about["sha256"]["sppo_cartpole.py"]
    assert about["args"] == config["args"]
    assert (about["steps"], about["episodes"], about["update"]) == (240, 48, 3)
    assert about["before"] == json.loads((run / "summary.json").read_text())["before"]


def test_the_hub_reads_the_card(shared):
    cards = pytest.importorskip("huggingface_hub")
    card = cards.ModelCard.load(shared / "README.md")
    (result,) = card.data.eval_results
    after = hub.read_run(shared)["after"]
    low, high = after["interval"]
    assert (result.task_type, result.dataset_type) == ("reinforcement-learning", "sppo/PrecisionCartPole-v0")
    assert (result.metric_type, result.metric_value) == ("success_rate", after["rate"])
    assert result.metric_name == f"success rate of 40 sampled episodes, 95 % Wilson interval {low:.3f} to {high:.3f}"
    assert card.data.library_name == "sppo_control"
    assert {"reinforcement-learning", "sppo", "arxiv:2604.08865"} <= set(card.data.tags)
    assert f"Success **{after['rate']:.3f}**" in card.content
    assert "`policy.safetensors`" in card.content
    assert "sppo evaluate --run FOLDER --episodes 40 --seed 1 " in card.content
    assert "| `horizon` | 5 |" in card.content


def test_a_replay_is_in_the_folder(run, tmp_path):
    extras.require("video", "PIL", "imageio", "imageio_ffmpeg", "pygame")
    share.main(share.Args(str(run), to_folder=tmp_path / "x", episodes=8, video_episodes=1))
    assert (tmp_path / "x" / "replay.mp4").read_bytes()[4:8] == b"ftyp"
    assert "[replay.mp4](replay.mp4)" in (tmp_path / "x" / "README.md").read_text()
    assert "replay.mp4" in hub.read_run(tmp_path / "x")["sha256"]


# -------------------------------------------------------------------------------------------------------- the source
def test_only_the_script_that_made_the_run_is_shared(run, tmp_path, monkeypatch):
    name, config = "sppo_cartpole.py", checkpoints.read_config(run)
    mine, other = tmp_path / "a" / name, tmp_path / "other.py"
    mine.parent.mkdir()
    mine.write_text("# mine")
    other.write_text("# other")
    assert share.source({**config, "script_sha256": checkpoints.digest(mine)}, mine, tmp_path) == (mine, True)
    with pytest.raises(errors.UserError, match="its SHA-256 is another one"):
        share.source({**config, "script_sha256": checkpoints.digest(mine)}, other, tmp_path)
    with pytest.raises(errors.UserError, match="there is no such file"):
        share.source({**config, "script": "nope.py", "git_commit": None}, None, tmp_path)
    here = ROOT / "scripts" / name
    assert share.source({"script": name, "git_commit": None}, None, tmp_path) == (here, False), "runs from before"

    asked = []

    def git(command, **kwargs):
        asked.append(command[-1])
        return types.SimpleNamespace(returncode=0, stdout=b"# mine")

    monkeypatch.setattr(share.subprocess, "run", git)
    wanted = {"script": name, "git_commit": "abc", "script_sha256": checkpoints.digest(mine)}
    path, exact = share.source(wanted, None, tmp_path)
    assert (path.read_text(), exact) == ("# mine", True), "from the clone's history"
    assert asked == [f"abc:./{name}"]


# ---------------------------------------------------------------------------------------------------------- refusals
def test_what_was_changed_is_refused(shared, tmp_path, monkeypatch, capsys):
    for name, change, words in (
        ("policy.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "policy.safetensors is damaged or was changed"),
        ("sppo_cartpole.py", lambda b: b + b"#", "sppo_cartpole.py is damaged or was changed"),
        ("run.json", lambda b: b.replace(b'"format": 1', b'"format": 2'), '"format" must be 1'),
        ("run.json", lambda b: b.replace(b'"policy.safetensors": "', b'"../x": "'), '"sha256" must be'),
        ("run.json", lambda b: b.replace(b'"horizon": 5', b'"horizon": "x"'), '"horizon" of "args"'),
        ("run.json", lambda b: b"[", "run.json"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(shared, copy)
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        assert words in refusal(monkeypatch, capsys, enjoy, "--run", copy, "--render", "none")


def test_a_strangers_module_is_not_imported(shared, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(shared, copy)
    (copy / "evil.py").write_text("raise SystemExit('imported')")
    text = (copy / "run.json").read_text().replace('"env_id": "sppo/PrecisionCartPole-v0"', '"env_id": "evil:x-v0"')
    (copy / "run.json").write_text(text)
    assert "wants the module 'evil' to be imported" in refusal(monkeypatch, capsys, enjoy, "--run", copy)


def test_share_refuses_before_the_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate_in_batches", lambda *args: pytest.fail("it worked"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for words, message in (
        (["--run", run], "name --to-folder, or --push-to-hub, or both"),
        (["--run", run, "--to-folder", tmp_path / "full"], "is not empty"),
        (["--run", run, "--push-to-hub", "only-a-name"], "--push-to-hub: a repository of the Hub is user/name"),
        (["--run", "sppo/PrecisionCartPole-v0", "--to-folder", tmp_path / "new"], "is neither a run folder nor"),
    ):
        assert message in refusal(monkeypatch, capsys, share, *words)
    assert not (tmp_path / "new").exists()


def test_a_folder_is_written_whole_or_not_at_all(shared, tmp_path, monkeypatch):
    about = hub.read_run(shared)
    monkeypatch.setattr(hub, "card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.write_folder(tmp_path / "new", {hub.POLICY: shared / hub.POLICY}, about)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    hub.write_folder(tmp_path / "new", {hub.POLICY: shared / hub.POLICY}, about)
    with pytest.raises(errors.UserError, match="is not empty"):
        hub.write_folder(tmp_path / "new", {hub.POLICY: shared / hub.POLICY}, about)


# ------------------------------------------------------------------------------------------------------- the network
class Api:
    """What `huggingface_hub.HfApi` has, without a network."""

    def __init__(self):
        self.calls = []

    def whoami(self):
        return {"name": "me"}

    def create_repo(self, name, exist_ok):
        self.calls.append((name, exist_ok))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))


def test_push_and_load_go_through_huggingface_hub(run, shared, tmp_path, monkeypatch, capsys):
    package = pytest.importorskip("huggingface_hub")
    api = Api()
    monkeypatch.setattr(package, "HfApi", lambda: api)
    main(monkeypatch, share, "--run", run, "--push-to-hub", "me/pole", "--episodes", 8, "--no-video")
    names = ["README.md", "policy.safetensors", "run.json", "sppo_cartpole.py"]
    assert api.calls == [("me/pole", True), ("me/pole", names)]
    assert "pushed to https://huggingface.co/me/pole" in capsys.readouterr().out

    monkeypatch.setattr(package, "snapshot_download", lambda name, allow_patterns: str(shared))
    main(monkeypatch, enjoy, "--run", "hf:me/pole", "--render", "none", "--episodes", 3)
    said = capsys.readouterr().out
    assert f"{shared / 'policy.safetensors'}" in said
    monkeypatch.setattr(package, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert "contains no policy of this package" in refusal(monkeypatch, capsys, enjoy, "--run", "hf:me/other")
    assert "user/name" in refusal(monkeypatch, capsys, enjoy, "--run", "hf:nobody")

    monkeypatch.setattr(api, "whoami", lambda: 1 / 0)
    words = ["--run", run, "--push-to-hub", "me/pole", "--episodes", 8, "--no-video"]
    assert "the Hub does not know who you are" in refusal(monkeypatch, capsys, share, *words)
    assert len(api.calls) == 2


# ------------------------------------------------------------------------------------------------------------- enjoy
def test_enjoy_prints_the_outcomes_that_the_episodes_have(run, monkeypatch, capsys):
    main(monkeypatch, enjoy, "--run", run, "--render", "none", "--episodes", 6, "--seed", 3, "--horizon", 200)
    lines = capsys.readouterr().out.splitlines()
    path, task = evaluate.find(str(run), evaluate.Args((str(run),), horizon=200))
    envs = sppo_envs.make_task(num_envs=1, **task)
    policy, env = load_policy(path, envs), sppo_envs.make_one(task["env_id"], None, 200)
    played = [list(videos.play(env, policy, 3, number))[-1] for number in range(1, 7)]
    expected = [
        f"episode {i}: {'success' if won else 'failure'} after {length} steps"
        for i, (length, won) in enumerate(played, 1)
    ]
    assert lines[1:] == [*expected, f"success {sum(won for _, won in played)} of 6 sampled episodes"]


def test_enjoy_opens_a_window_or_says_what_else_there_is(run, monkeypatch, capsys):
    made, real = [], sppo_envs.make_one
    monkeypatch.setattr(sppo_envs, "make_one", lambda *args, render_mode: made.append(render_mode) or real(*args))
    monkeypatch.setattr(enjoy.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "needs a screen; use --video" in refusal(monkeypatch, capsys, enjoy, "--run", run)
    monkeypatch.setenv("DISPLAY", ":0")
    main(monkeypatch, enjoy, "--run", run, "--episodes", 1)
    main(monkeypatch, enjoy, "--run", run, "--episodes", 1, "--render", "none")
    assert made == ["human", None]


def test_enjoy_writes_a_video(run, tmp_path, monkeypatch, capsys):
    extras.require("video", "PIL", "pygame")
    main(monkeypatch, enjoy, "--run", run, "--episodes", 1, "--video", tmp_path / "v.gif")
    assert (tmp_path / "v.gif").read_bytes()[:3] == b"GIF"
    assert "wrote" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- --capture-video
def test_videos_are_captured_and_no_number_of_the_run_changes(run, tmp_path):
    extras.require("video", "PIL", "imageio", "imageio_ffmpeg", "pygame")
    filmed = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), capture_video=True, save_every=2))
    assert sorted(p.name for p in (filmed.folder / "videos").iterdir()) == ["000000.mp4", "000002.mp4", "000003.mp4"]
    assert (filmed.folder / "videos" / "000002.mp4").read_bytes()[4:8] == b"ftyp"
    for name in ("policy", "critic", "optimizer", "recent"):
        file = f"000003/{name}.safetensors"
        assert (filmed.folder / "checkpoints" / file).read_bytes() == (run / "checkpoints" / file).read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (filmed.folder, run)]
    assert summaries[0]["after"] == summaries[1]["after"]


def test_time_spent_on_videos_is_no_time_of_training(tmp_path, monkeypatch):
    def film(folder, update):
        return 1000.0

    monkeypatch.setattr(videos, "camera", lambda args, policy: film)
    run = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), save_every=1))
    assert run.seconds < 0, "the time that the film says is taken off"


def test_a_camera_that_breaks_is_one_line_and_training_goes_on(tmp_path, monkeypatch, capsys):
    extras.require("video", "PIL", "imageio", "imageio_ffmpeg", "pygame")
    monkeypatch.setattr(videos, "write", lambda *args: 1 / 0)
    run = sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), capture_video=True))
    assert run.update == 3
    assert capsys.readouterr().err.count("--capture-video has no video of update") == 2


def test_what_cannot_be_drawn_is_refused_before_there_is_a_run(tmp_path, monkeypatch):
    extras.require("video", "PIL", "imageio", "imageio_ffmpeg")
    real = sppo_envs.make_one
    monkeypatch.setattr(sppo_envs, "make_one", lambda *args, render_mode: real(*args))  # its render() gives None
    with pytest.raises(errors.UserError, match="--capture-video: cannot draw sppo/PrecisionCartPole-v0"):
        sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), capture_video=True))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(extras.MissingExtra, match="--capture-video needs"):
        sppo_cartpole.train(sppo_cartpole.Args(**SMALL, runs_dir=str(tmp_path), capture_video=True))
