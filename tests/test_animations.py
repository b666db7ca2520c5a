"""scripts/animations.py: both sides play the same episodes, pictures of them in their places, small files, refusals."""

import io

import numpy as np
import pytest

import animations
import evaluate
import sppo_cartpole
import sppo_envs
from sppo_control import errors
from sppo_control.policies import load_policy
from sppo_control.starts import shipped_policy

PIL = pytest.importorskip("PIL", reason="pillow is not installed: extra video")
pytest.importorskip("pygame", reason="pygame is not installed: extra video")
from PIL import Image  # noqa: E402

ID = "sppo/PrecisionCartPole-v0"
DOCS = animations.ROOT / "docs" / "animations"


def side(colour, steps, success):
    return animations.Side([np.full((10, 20, 3), colour, np.uint8)] * len(steps), steps, success)


def test_the_shorter_side_waits_for_the_longer_one():
    pairs = [
        (side(10, [0, 2], False), side(200, [0, 2, 4, 5], True)),
        (side(10, [0, 2, 4], True), side(200, [0], False)),
    ]
    pictures, times = animations.frames(pairs, ("before", "after"), 20)
    tick, stay = animations.TICK, animations.STAY
    assert times == [tick, tick, tick, stay, tick, tick, stay]
    red, green, grey = ((int(c[1:3], 16), int(c[3:5], 16), int(c[5:], 16)) for c in (
        animations.INK[False], animations.INK[True], animations.EDGE))  # fmt: skip
    frame = [tuple(picture.getpixel((x, picture.height - 1)) for x in (0, picture.width - 1)) for picture in pictures]
    assert frame == [(grey, grey), (red, grey), (red, grey), (red, green), (grey, red), (grey, red), (green, red)]
    assert animations.frames(pairs, ("before", "after"), 20, thin=2)[1] == [2 * tick, 2 * tick, stay, 2 * tick, stay]
    middle = pictures[0].height - 8
    assert [pictures[0].getpixel((x, middle))[0] for x in (12, pictures[0].width - 12)] == [10, 200]


def test_a_file_shows_its_pictures_for_their_times():
    pictures = [Image.new("RGB", (40, 30), (0, 0, 40 * i)) for i in range(5)]
    for picture in pictures:
        picture.paste(animations.INK[True], (0, 0, 10, 10))
    with Image.open(io.BytesIO(animations.encode(pictures, [80, 80, 80, 80, 1200], 16))) as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        for i, picture in enumerate(pictures):
            film.seek(i)
            assert film.info["duration"] == (1200 if i == 4 else 80)
            shown = film.convert("RGB")
            assert shown.getpixel((5, 5)) == picture.getpixel((5, 5)), "the colours of the text are exact"
            assert abs(shown.getpixel((30, 20))[2] - 40 * i) < 20


def test_recorded_steps_are_those_of_the_episode():
    envs = sppo_envs.make_task(ID, 1)
    policy, args = load_policy(shipped_policy(ID), envs), evaluate.Args(run=(ID,), seed=3)
    with evaluate.drawable(ID, None, None, "auto") as env:
        for number in (1, 2):
            length, outcome = list(evaluate.play(env, policy, args, number))[-1]
            found = animations.record(env, policy, args, number, 30)
            assert found.steps == [*range(0, length, 30), length]
            assert found.success == outcome
            assert len(found.pictures) == len(found.steps)
            assert (found.pictures[0] != found.pictures[1]).any()


def test_a_short_run_is_drawn_with_the_same_starts_on_both_sides(tmp_path, monkeypatch):
    given = {
        "env_id": ID,
        "horizon": 20,
        "num_envs": 16,
        "total_timesteps": 900,
        "eval_episodes": 32,
        "learning_rate": 0.01,
    }
    run = sppo_cartpole.train(sppo_cartpole.Args(**given, kernels="torch", runs_dir=str(tmp_path))).folder
    recorded, real = [], animations.record

    def record(*args):
        recorded.append(real(*args))
        return recorded[-1]

    monkeypatch.setattr(animations, "record", record)
    args = animations.Args(runs=(str(run),), episodes=2, out=tmp_path / "out")
    animations.main(args)
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "PrecisionCartPole-v0.gif"
    with Image.open(path) as film:
        assert film.n_frames == sum(max(len(recorded[i].steps), len(recorded[i + 2].steps)) for i in range(2))
    before, after = recorded[:2], recorded[2:]
    for one, other in zip(before, after, strict=True):
        assert (one.pictures[0] == other.pictures[0]).all(), "the same initial state"
    assert any((one.pictures[-1] != other.pictures[-1]).any() for one, other in zip(before, after, strict=True))
    assert (before[0].pictures[0] != before[1].pictures[0]).any()
    once = path.read_bytes()
    monkeypatch.setattr(animations, "QUALITY", ((200, 32, 1), (60, 12, 3)))
    monkeypatch.setattr(animations, "MOST_BYTES", 1)  # then the smallest one is taken
    animations.draw(run, args)
    assert path.stat().st_size < len(once) / 2
    (run / "summary.json").unlink()
    with pytest.raises(errors.UserError, match="not a finished run"):
        animations.draw(run, args)


def test_each_task_has_its_animation_and_they_are_small():
    files = {path.name: path.stat().st_size for path in DOCS.glob("*")}
    assert set(files) == {f"{env_id.split('/')[1]}.gif" for env_id in sppo_envs.TASKS}
    assert max(files.values()) <= animations.MOST_BYTES
    assert sum(files.values()) <= 4_000_000
