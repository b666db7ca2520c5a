"""scripts/evaluate.py: the numbers against an independent count, what --run may name, pictures against episodes stepped by
hand, refusals before the long work."""

import gc
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import evaluate
import sppo_cartpole
import sppo_envs
from sppo_control import cli, extras, streams, videos
from sppo_control.policies import load_policy, make_policy, save_policy
from sppo_control.rollout import rollout
from sppo_control.starts import shipped_policy

ID, CAR, PENDULUM = "sppo/PrecisionCartPole-v0", "sppo/SparseMountainCar-v0", "sppo/SparsePendulum-v0"
LANDER, HOPPER = "sppo/SparseLunarLander-v0", "sppo/SparseHopper-v0"
NEEDS = {LANDER: ("Box2D", "pygame"), HOPPER: ("mujoco", "imageio")}


def missing(*modules):
    return [m for m in modules if importlib.util.find_spec(m) is None]


def needs(*modules):
    return pytest.mark.skipif(bool(missing(*modules)), reason=f"not installed: {', '.join(missing(*modules))}")


def mujoco_draws():
    """Asked in another process, independently of the script's own choice."""
    code = (
        f"import gymnasium, sppo_envs; e = gymnasium.make('{HOPPER}', render_mode='rgb_array'); e.reset(); e.render()"
    )
    return any(
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": gl}, capture_output=True
        ).returncode
        == 0
        for gl in ("egl", "osmesa")
    )


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Variables that the script sets are gone after each test."""
    for name in ("MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose checkpoints have different weights."""
    args = sppo_cartpole.Args(
        total_timesteps=30_000, num_envs=16, num_minibatches=2, eval_episodes=16, save_every=10, seed=3,
        runs_dir=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return sppo_cartpole.train(args).folder


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory):
    args = sppo_cartpole.Args(
        env_id="CartPole-v1", success_return=30, horizon=60, total_timesteps=500, num_envs=8, num_minibatches=2,
        eval_episodes=8, learning_rate=1e-3, seed=3, runs_dir=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return sppo_cartpole.train(args).folder


def random_policy(path, env_id, seed=0):
    torch.manual_seed(seed)
    policy = make_policy(sppo_envs.make_task(env_id, 1, engine="sync"))
    save_policy(policy, path, env_id)
    return policy


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", *map(str, words)])
    cli.main(evaluate.main, evaluate.Args, evaluate.__doc__)


def numbers(monkeypatch, tmp_path, *words):
    main(monkeypatch, *words, "--json", tmp_path / "out.json")
    return json.loads((tmp_path / "out.json").read_text())["evaluations"]


def count(policy_file, episodes, num_envs, seed, greedy=False, **task):
    """Outcomes and side measures, without the script and without rollout.evaluate."""
    envs = sppo_envs.make_task(num_envs=num_envs, **task)
    policy, rng = load_policy(policy_file, envs), streams.new_rng("evaluate.py", seed)
    batches = [rollout(envs, policy, rng, greedy) for _ in range(-(-episodes // num_envs))]
    outcome = [bool(x) for b in batches for x in b.outcome][:episodes]
    info = {k: np.array([x for b in batches for x in b.info[k]][:episodes]) for k in batches[0].info}
    return np.array(outcome), info


# ------------------------------------------------------------------------------------------------------- the numbers
def test_rate_interval_and_measures_equal_an_independent_count(monkeypatch, tmp_path, capsys):
    file = tmp_path / "p.safetensors"
    random_policy(file, PENDULUM)
    words = (file, "--episodes", 1000, "--num-envs", 240, "--seed", 6, "--horizon", 20)  # 240 does not divide 1000
    (found,) = numbers(monkeypatch, tmp_path, *words)
    won, info = count(file, 1000, 240, 6, env_id=PENDULUM, horizon=20)
    k, z, n = int(won.sum()), 1.959964, 1000
    assert 5 < k < 995
    assert (found["episodes"], found["successes"], found["rate"]) == (n, k, k / n)
    half = z / (1 + z * z / n) * np.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    middle = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    np.testing.assert_allclose(found["interval_95"], [middle - half, middle + half], atol=1e-6)
    assert set(found["measures"]) == {"balanced", "upright_share"}
    balanced, share = info["balanced"], info["upright_share"]
    for group, members in {"all": won | True, "successes": won, "failures": ~won}.items():
        assert found["measures"]["balanced"][group] == {
            "share": pytest.approx(balanced[members].mean()), "count": balanced[members].sum(),
        }  # fmt: skip
        assert found["measures"]["upright_share"][group] == {
            "mean": pytest.approx(share[members].mean()),
            "percentile_5": pytest.approx(np.quantile(share[members], 0.05)),
            "median": pytest.approx(np.median(share[members])),
            "percentile_95": pytest.approx(np.quantile(share[members], 0.95)),
        }
    assert 0 < balanced[won].sum() < k, "some successes must have passed by the top, or the test shows nothing"

    printed = capsys.readouterr().out
    assert f"{k} of 1000 sampled episodes" in printed
    assert re.search(rf"balanced +{k} successes +{balanced[won].mean():.3f} \({balanced[won].sum()}\)", printed)
    assert re.search(rf"upright_share +{1000 - k} failures +{share[~won].mean():.4g} ", printed)


def test_one_outcome_only_has_one_group(monkeypatch, tmp_path):
    (found,) = numbers(monkeypatch, tmp_path, ID, "--episodes", 5, "--horizon", 1, "--greedy", "--seed", 8)
    assert found["rate"] in (0, 1)
    assert set(found["measures"]["final_angle"]) == {"all"}


def test_json_says_what_was_evaluated(monkeypatch, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("old")
    (found,) = numbers(monkeypatch, tmp_path, ID, "--episodes", 20, "--seed", 7, "--num-envs", 8, "--engine", "sync")
    assert found["policy"] == str(shipped_policy(ID))
    expected = {"env_id": ID, "actions": "sampled", "seed": 7, "num_envs": 8, "engine": "sync", "horizon": None}
    assert {k: found[k] for k in expected} == expected
    assert "versions" in json.loads(out.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"], "no temporary file may be left"


def test_greedy_takes_the_most_probable_action(monkeypatch, tmp_path):
    (sampled,) = numbers(monkeypatch, tmp_path, ID, "--episodes", 128)
    (greedy,) = numbers(monkeypatch, tmp_path, ID, "--episodes", 128, "--greedy")
    won, _ = count(shipped_policy(ID), 128, 64, 1, greedy=True, env_id=ID)
    assert greedy["successes"] == won.sum() != sampled["successes"]
    assert (sampled["actions"], greedy["actions"]) == ("sampled", "greedy")


# --------------------------------------------------------------------------------------------------- what --run means
def test_run_checkpoint_file_and_task_lead_to_the_right_weights(run_dir, monkeypatch, tmp_path):
    (run_dir / "checkpoints" / ".writing-999999").mkdir(exist_ok=True)  # what a killed run leaves behind
    names = sorted(p.name for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())
    first, last = (run_dir / "checkpoints" / name / "policy.safetensors" for name in (names[0], names[-1]))
    copy = shutil.copy(last, tmp_path / "copy.safetensors")
    asked = {run_dir: last, last.parent: last, first.parent: first, first: first, copy: copy, ID: shipped_policy(ID)}
    found = numbers(monkeypatch, tmp_path, *asked, "--episodes", 64, "--num-envs", 32)
    assert len(found) == len(asked)
    for block, file in zip(found, asked.values(), strict=True):
        won, info = count(file, 64, 32, 1, env_id=ID)
        assert block["successes"] == won.sum()
        assert block["measures"]["final_angle"]["all"]["mean"] == pytest.approx(info["final_angle"].mean(), abs=1e-12)
        assert block["policy"] == str(file)
    assert found[0]["measures"] != found[2]["measures"], "two checkpoints of equal weights: the test shows nothing"


def test_a_run_in_a_foreign_environment_keeps_its_rules(foreign_run, monkeypatch, tmp_path):
    policy = sorted((foreign_run / "checkpoints").iterdir())[-1] / "policy.safetensors"
    (found,) = numbers(monkeypatch, tmp_path, foreign_run, "--episodes", 40, "--num-envs", 8)
    won, _ = count(policy, 40, 8, 1, env_id="CartPole-v1", success_return=30, horizon=60)
    assert found["successes"] == won.sum()
    assert 0 < found["rate"] < 1
    assert (found["env_id"], found["success_return"], found["horizon"]) == ("CartPole-v1", 30, 60)
    assert found["measures"]["episode_length"]["all"]["percentile_95"] <= 60
    (other,) = numbers(monkeypatch, tmp_path, foreign_run, "--episodes", 40, "--success-return", 5, "--horizon", 9)
    assert (other["success_return"], other["horizon"], other["rate"]) == (5, 9, 1)
    (other,) = numbers(monkeypatch, tmp_path, foreign_run, "--episodes", 8, "--env-id", ID)
    assert (other["env_id"], other["success_return"], other["horizon"]) == (ID, None, None), "rules of another task"


def test_the_engine_of_the_run_is_used(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    config = json.loads((copy / "config.json").read_text())
    config["args"]["engine"] = "sync"
    (copy / "config.json").write_text(json.dumps(config))
    assert evaluate.find(str(copy), evaluate.Args((str(copy),)))[1]["engine"] == "sync"
    assert evaluate.find(str(copy), evaluate.Args((str(copy),), engine="numpy"))[1]["engine"] == "numpy"


# ----------------------------------------------------------------------------------------------------------- pictures
class Recorder(gym.Wrapper):
    """Notes seeds and actions."""

    def reset(self, *, seed=None, options=None):
        self.seed, self.actions = seed, []
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.actions.append(action)
        return self.env.step(action)


@pytest.mark.parametrize(
    ("env_id", "greedy"),
    [
        *[pytest.param(i, False, marks=needs(*NEEDS.get(i, ()))) for i in sppo_envs.TASKS],
        (PENDULUM, True),
        ("CartPole-v1", False),
    ],
)
def test_a_played_episode_is_a_rollout_and_a_hand_stepped_one(env_id, greedy, tmp_path):
    """Same seed, same actions, clipped to the same bounds, same outcome, by three ways."""
    torch.manual_seed(0)
    rules = {"success_return": 15.0} if env_id == "CartPole-v1" else {"horizon": 60}
    envs = sppo_envs.make_task(env_id, 1, engine="sync", **rules)
    policy, args = make_policy(envs), evaluate.Args((env_id,), greedy=greedy, seed=4)

    def make():
        return gym.make(env_id, **({} if env_id == "CartPole-v1" else {"horizon": 60}))

    def task(env):
        return (
            sppo_envs.OutcomeReward(env, lambda o, i: i["episode_return"] >= 15) if "success_return" in rules else env
        )

    outcomes = []
    for number in (1, 2, 3):
        recorder = Recorder(task(make()))
        steps = list(evaluate.play(recorder, policy, args, number))
        episode = rollout(envs, policy, streams.new_rng("video", 4, number), greedy)
        actions = episode.actions[0].numpy()
        if isinstance(envs.single_action_space, gym.spaces.Box):
            assert greedy or (np.abs(actions) > envs.single_action_space.high).any(), "nothing to clip"
            actions = np.clip(actions, envs.single_action_space.low, envs.single_action_space.high)
        np.testing.assert_array_equal(recorder.actions, actions)
        length, success = len(actions), bool(episode.outcome[0])
        assert steps == [*((t, None) for t in range(length)), (length, success)]

        by_hand = task(make())
        by_hand.reset(seed=recorder.seed)
        for action in recorder.actions:
            *_, over, _, info = by_hand.step(action)
        assert over
        assert info["success"] == success
        outcomes.append((length, success, recorder.seed))
    assert len(set(outcomes)) == 3, "episodes must differ"


def stepped_by_hand(number, moments, horizon=200):
    """Pictures at some moments of the episode that rollout plays from the generator of that number; its outcome, length."""
    envs = sppo_envs.make_task(ID, 1, horizon=horizon, engine="sync")
    episode = rollout(envs, load_policy(shipped_policy(ID), envs), streams.new_rng("video", 1, number))
    env = gym.make(ID, render_mode="rgb_array", horizon=horizon)
    env.reset(seed=int(streams.new_rng("video", 1, number).integers(2**31 - 1)))
    wanted, pictures = moments(len(episode.actions[0])), {}
    for t, action in enumerate([*episode.actions[0].numpy(), None]):
        if t in wanted:
            pictures[t] = env.render()
        if action is not None:
            env.step(action)
    return list(pictures.values()), bool(episode.outcome[0]), len(episode.actions[0])


def shown(capsys):
    return [int(n) for n in re.search(r"episodes ([\d, ]+) of the first", capsys.readouterr().out).group(1).split(",")]


@needs("PIL", "pygame")
def test_film_strip_shows_those_episodes_at_those_moments(monkeypatch, tmp_path, capsys):
    from PIL import Image

    out = tmp_path / "strip.png"
    out.write_bytes(b"old")
    main(monkeypatch, ID, "--episodes", 64, "--video", out)
    strip = np.asarray(Image.open(out).convert("RGB"))
    columns, width = 6, evaluate.FORMATS[".png"][0]
    assert strip.shape[1] == columns * (width + 6) + 6
    chosen, outcomes = shown(capsys), []
    assert len(chosen) == 4
    height = (strip.shape[0] - 30) // 4
    for i, number in enumerate(chosen):
        pictures, success, length = stepped_by_hand(number, lambda n: [round(n * j / 5) for j in range(6)])
        outcomes.append(success)
        cells = []
        for j, picture in enumerate(pictures):
            text = f"episode {number}: {'success' if success else 'failure'}, step {round(length * j / 5)}/{length}"
            expected = np.asarray(videos.captioned(picture, width, text, success))
            top, left = 30 + i * height, 6 + j * (width + 6)
            cells.append(strip[top : top + expected.shape[0], left : left + width])
            np.testing.assert_array_equal(cells[-1], expected)
        assert all((a != b).any() for a, b in itertools.combinations([c[18:] for c in cells], 2)), "nothing moves"
    assert sum(outcomes) == 2, "two successes, two failures"
    assert [p.name for p in tmp_path.iterdir()] == ["strip.png"]


@needs("PIL", "pygame")
def test_captions_differ_in_words_and_colour():
    picture = np.full((50, 100, 3), 200, dtype=np.uint8)
    good, bad = (np.asarray(videos.captioned(picture, 60, "x", s)).reshape(-1, 3) for s in (True, False))
    assert good.shape == (60 * (30 + 18), 3)
    assert any(g > r and g > b for r, g, b in good.astype(int))
    assert any(r > g and r > b for r, g, b in bad.astype(int))


@needs("PIL", "pygame")
def test_episodes_chosen_where_only_one_outcome_occurs_are_the_first(monkeypatch, tmp_path, capsys):
    random_policy(tmp_path / "p.safetensors", CAR)
    main(monkeypatch, tmp_path / "p.safetensors", "--episodes", 8, "--horizon", 20, "--video", tmp_path / "v.png")
    assert shown(capsys) == [1, 2, 3, 4]
    words = (ID, "--episodes", 64, "--video", tmp_path / "v.png", "--video-episodes", 1)
    main(monkeypatch, *words)
    assert shown(capsys) == [1]


def movie(monkeypatch, capsys, out, horizon):
    """Make it; returns its first episode's number and the lengths of both."""
    main(monkeypatch, ID, "--episodes", 64, "--video", out, "--video-episodes", 2, "--horizon", horizon)
    assert not list(out.parent.glob(".*"))
    chosen = shown(capsys)
    assert len(chosen) == 2
    return chosen[0], [stepped_by_hand(number, lambda n: [], horizon)[2] for number in chosen]


@needs("PIL", "pygame")
def test_gif(monkeypatch, tmp_path, capsys):
    from PIL import Image

    number, lengths = movie(monkeypatch, capsys, tmp_path / "v.gif", 200)
    assert (tmp_path / "v.gif").stat().st_size < 2**20
    gif = Image.open(tmp_path / "v.gif")
    frames, durations = [], []
    for i in range(gif.n_frames):
        gif.seek(i)
        frames.append(np.asarray(gif.convert("RGB")).astype(int))
        durations.append(gif.info["duration"])
    skip = -(-max(lengths) // 40)
    assert len(frames) == sum(len(range(0, n, skip)) + 1 for n in lengths) <= 2 * 41
    ends = [i for i, d in enumerate(durations) if d > 1000]
    assert ends == [-(-lengths[0] // skip), len(frames) - 1], "each episode's end stays for a second"
    (end,), success, length = stepped_by_hand(number, lambda n: [n])
    text = f"episode {number}: {'success' if success else 'failure'}, step {length}/{length}"
    expected = np.asarray(videos.captioned(end, frames[0].shape[1], text, success)).astype(int)
    assert np.abs(frames[ends[0]] - expected).mean() < 3, "the palette changes colours a little, not the picture"
    assert np.abs(frames[0][18:] - frames[ends[0]][18:]).max() > 100, "nothing moves"


@needs("PIL", "pygame", "imageio", "imageio_ffmpeg")
def test_mp4(monkeypatch, tmp_path, capsys):
    import imageio.v2 as imageio

    _, lengths = movie(monkeypatch, capsys, tmp_path / "v.mp4", 50)
    with imageio.get_reader(tmp_path / "v.mp4") as reader:
        frames, fps = [np.asarray(f).astype(int) for f in reader], reader.get_meta_data()["fps"]
    assert fps == 30
    skip = -(-max(lengths) // 240)
    assert len(frames) == sum(len(range(0, n, skip)) + 1 + 30 for n in lengths)
    assert frames[0].shape == (480 * 2 // 3 + 18, 480, 3)
    assert np.abs(frames[0][18:] - frames[lengths[0]][18:]).max() > 100, "nothing moves"


@needs("PIL", "pygame")
def test_a_failure_half_way_leaves_the_old_file(monkeypatch, tmp_path):
    calls, real = [], videos.captioned

    def breaks(*args):
        calls.append(1)
        if len(calls) > 14:  # of 11 pictures an episode, or 6 in a strip: mp4 has begun to write
            raise RuntimeError("disk full")
        return real(*args)

    monkeypatch.setattr(videos, "captioned", breaks)
    for ending in (".png", ".gif", *([] if missing("imageio", "imageio_ffmpeg") else [".mp4"])):
        out = tmp_path / f"v{ending}"
        out.write_bytes(b"precious")
        calls.clear()
        with pytest.raises(RuntimeError, match="disk full"):
            main(monkeypatch, ID, "--episodes", 8, "--horizon", 10, "--video", out)
        assert out.read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*"))


@needs("PIL", "pygame")
def test_an_episode_that_does_not_repeat_is_not_passed_off_as_the_same(monkeypatch, tmp_path, capsys):
    real, played = evaluate.play, []

    def unseeded(env, policy, args, number):
        played.append(number)
        return real(env, policy, args, len(played))

    monkeypatch.setattr(evaluate, "play", unseeded)
    assert "did not repeat" in refusal(monkeypatch, capsys, ID, "--episodes", 64, "--video", tmp_path / "v.png")
    assert not list(tmp_path.iterdir())


@needs("pygame")
def test_pictures_of_a_foreign_environment_follow_its_success_rule(foreign_run):
    args = evaluate.Args((str(foreign_run),))
    path, task = evaluate.find(str(foreign_run), args)
    policy = load_policy(path, sppo_envs.make_task(num_envs=1, **task))
    with evaluate.drawable(**task) as env:
        played = [list(evaluate.play(env, policy, args, number))[-1] for number in range(1, 30)]
    assert {success for _, success in played} == {True, False}
    assert all(success == (length >= 30) for length, success in played), "CartPole pays 1 a step"
    assert max(length for length, _ in played) <= 60
    (length, _), *_ = played
    for reach, success in ((length, True), (length + 0.5, False)):
        with evaluate.drawable(**{**task, "success_return": reach}) as env:
            assert list(evaluate.play(env, policy, args, 1))[-1] == (length, success)


@needs("PIL", "mujoco", "imageio")
@pytest.mark.slow
def test_hopper_is_drawn_without_a_screen_and_stays_in_sight(monkeypatch, tmp_path):
    from PIL import Image

    random_policy(tmp_path / "p.safetensors", HOPPER)
    code = """if True:  # in a process of its own: what MuJoCo draws with is chosen once
        import evaluate, numpy as np, sys
        words = "p.safetensors --episodes 4 --engine sync --horizon 5 --video v.png --video-episodes 1"
        sys.argv = ["evaluate.py", "--run", *words.split()]
        evaluate.cli.main(evaluate.main, evaluate.Args, "")
        env = evaluate.drawable("sppo/SparseHopper-v0", None, None, "auto")
        env.reset(seed=0)
        for x in (0.0, 5.0):
            q = env.unwrapped.data.qpos.copy()
            q[0] = x
            env.unwrapped.set_state(q, env.unwrapped.data.qvel)
            red, green, blue = np.moveaxis(env.render().astype(int), -1, 0)
            print("robot", ((red > blue + 25) & (red > green + 10)).sum())  # pixels of its colour
        env.close()
    """
    bare = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")}
    bare["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
    if process.returncode != 0 and not mujoco_draws():
        pytest.skip("MuJoCo cannot draw here: neither EGL (libegl1) nor OSMesa (libosmesa6)")
    assert process.returncode == 0, process.stderr
    strip = np.asarray(Image.open(tmp_path / "v.png").convert("RGB")).astype(int)
    assert strip.shape[1] == 6 * 226 + 6
    assert np.abs(strip[60:, 6:226] - strip[60:, 6 + 5 * 226 : 6 * 226]).max() > 50, "nothing moves"
    here, far = (int(n) for n in re.findall(r"robot (\d+)", process.stdout))
    assert here > 500
    assert far > 0.8 * here


def test_what_works_here_is_chosen_for_mujoco(monkeypatch):
    monkeypatch.setattr(videos.sys, "platform", "linux")
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: name)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    tried, works = [], set()

    def trial(command, env, capture_output):
        tried.append(env["MUJOCO_GL"])
        return subprocess.CompletedProcess(command, 0 if tried[-1] in works else 1)

    monkeypatch.setattr(videos.subprocess, "run", trial)
    for usable, chosen in (({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa"), (set(), None)):
        works = usable
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        videos.prepare_drawing()
        assert os.environ.get("MUJOCO_GL") == chosen
    assert tried == ["egl", "egl", "osmesa", "egl", "osmesa"]
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"
    tried.clear()
    monkeypatch.setenv("MUJOCO_GL", "glfw")  # the user's choice stands
    videos.prepare_drawing()
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    videos.prepare_drawing()
    assert "MUJOCO_GL" not in os.environ
    assert not tried


# ----------------------------------------------------------------------------------------------------------- refusals
def refusal(monkeypatch, capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, *words)
    assert stop.value.code == 2
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().err).split())  # without the box around it


@pytest.fixture
def no_work(monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("refuse before the long work")

    monkeypatch.setattr(evaluate, "evaluate", work)
    monkeypatch.setattr(evaluate, "play", work)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], f"no policy at absent; give a run folder, a checkpoint, a policy file or one of .*{ID}"),
        ([], "--run takes one policy or more.*got 0"),
        ([ID, "--episodes", "0"], "--episodes must be from 1 to .* got 0"),
        ([ID, "--num-envs", "0"], "--num-envs must be from 1 to .* got 0"),
        ([ID, "--video-episodes", "0"], "--video-episodes must be from 1 to .* got 0"),
        ([ID, "--seed", "-1"], "--seed must be from 0 to .* got -1"),
        ([ID, "--horizon", "0"], "--horizon must be from 1 to .* got 0"),
        ([ID, "--video", "v.avi"], r"cannot write --video v.avi: its name must end in .png or .gif or .mp4"),
        (
            [ID, "--video", "nowhere/v.png"],
            "cannot write --video nowhere/v.png: .* name a file in a folder that exists",
        ),
        ([ID, "--json", "nowhere/n.json"], "cannot write --json nowhere/n.json"),
        ([ID, "--json", "."], r"cannot write --json \.: it is a folder; name a file"),
        ([ID, ID, "--video", "v.png"], "--run takes one policy or more, with --video one, got 2"),
        (
            [ID, "--env-id", PENDULUM],
            f"made for {ID}, cannot act in this environment: a CategoricalPolicy does not fit",
        ),
        ([ID, "--env-id", "Acrobot-v1", "--success-return", "-100"], "cannot act in this environment: tensors"),
        ([ID, "--env-id", "CartPole-v1"], "CartPole-v1 has no success rule: pass --success-return"),
        ([ID, "--env-id", "CartPol-v1"], "did you mean CartPole-v1"),
        ([ID, "--success-return", "5"], "has a success rule of its own"),
        ([ID, "--engine", "envpool"], f"{ID} has the engines numpy, processes and sync"),
    ],
)
def test_refusals(words, message, no_work, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = refusal(monkeypatch, capsys, *words)
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_damaged_foreign_and_incomplete_things_are_refused(no_work, run_dir, monkeypatch, capsys, tmp_path):
    policy = sorted((run_dir / "checkpoints").glob("0*"))[-1] / "policy.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(policy.read_bytes()[:-100])
    assert "cut.safetensors is not a readable safetensors file" in refusal(
        monkeypatch, capsys, tmp_path / "cut.safetensors"
    )
    error = refusal(monkeypatch, capsys, policy.with_name("critic.safetensors"))
    assert "critic.safetensors contains no policy of this package" in error
    young = tmp_path / "young"
    (young / "checkpoints" / ".writing-1").mkdir(parents=True)
    shutil.copy(run_dir / "config.json", young)
    assert "young has no complete checkpoint" in refusal(monkeypatch, capsys, young)
    monkeypatch.setattr(evaluate, "shipped_policy", lambda env_id: tmp_path / env_id)
    assert f"no policy at {tmp_path / ID}" in refusal(monkeypatch, capsys, ID)


@pytest.mark.parametrize(
    ("ending", "absent"), [(".png", ["PIL"]), (".gif", ["PIL"]), (".mp4", ["imageio", "imageio_ffmpeg"])]
)
def test_a_missing_package_is_named_with_the_command(ending, absent, no_work, monkeypatch, capsys, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda m: None if m in absent else real(m))
    error = refusal(monkeypatch, capsys, ID, "--video", tmp_path / f"v{ending}")
    assert f"{absent[0]}, which --video {tmp_path / f'v{ending}'} needs, is not installed" in error
    assert error.endswith(f"run: {extras.install('video')}")


@needs("PIL")
@pytest.mark.filterwarnings("ignore:.*render_mode='rgb_array'")
def test_what_cannot_be_drawn_is_refused(no_work, monkeypatch, capsys, tmp_path):
    random = tmp_path / "p.safetensors"
    torch.manual_seed(0)
    save_policy(make_policy(sppo_envs.make_task("toy_env:toy/Sign-v0", 1, 1.5)), random, "toy_env:toy/Sign-v0")
    words = ("--env-id", "toy_env:toy/Sign-v0", "--success-return", 1.5, "--video", tmp_path / "v.png")
    error = refusal(monkeypatch, capsys, random, *words)
    assert "--video: cannot draw toy_env:toy/Sign-v0" in error
    monkeypatch.setitem(sys.modules, "pygame", None)
    error = refusal(monkeypatch, capsys, ID, "--video", tmp_path / "v.png")
    assert extras.install("video") in error
    assert f"pygame, which --video of {ID} needs, is not installed" in error


@needs("PIL", "mujoco", "imageio")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mujoco_without_a_way_to_draw_names_the_packages(no_work, monkeypatch, capsys, tmp_path):
    random_policy(tmp_path / "p.safetensors", HOPPER)
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    words = (tmp_path / "p.safetensors", "--engine", "sync", "--episodes", 1, "--video", tmp_path / "v.png")
    error = refusal(monkeypatch, capsys, *words)
    gc.collect()  # Gymnasium's half-made viewer complains when it is collected: now, and not in the middle of a test
    assert f"cannot draw {HOPPER}" in error
    assert "apt install libegl1 libgl1-mesa-dri, or libosmesa6" in error


def test_help_shows_every_argument(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main(evaluate.main, evaluate.Args, evaluate.__doc__)
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in evaluate.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in out
