"""Videos of policies: episodes that can be repeated, drawn, captioned, and written as film strips or moving pictures.

scripts/evaluate.py and enjoy.py write videos of finished policies. --capture-video writes them while a policy is trained.
The episodes have generators of their own ("video" in streams.py). So no number of a run or an evaluation depends on them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import sppo_envs

from . import extras, streams
from .errors import UserError
from .policies import Policy
from .rollout import noise_of_steps
from .spaces import to_environment

FORMATS = {".png": (220, 6), ".gif": (220, 40), ".mp4": (480, 240)}
"""Endings of a video: width of a picture in pixels, most pictures per episode."""


def require(path: Path, wanted_by: str) -> None:
    """Check that the packages are installed that write a video of this ending.

    Raises:
        MissingExtra: one is not.
    """
    modules = ("PIL", "imageio", "imageio_ffmpeg") if path.suffix == ".mp4" else ("PIL",)
    extras.require("video", *modules, wanted_by=wanted_by)


def prepare_drawing() -> None:
    """Without a screen, MuJoCo must be told how to draw before it is imported: another process tries what works here."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # for pygame
    todo = "MUJOCO_GL" not in os.environ and importlib.util.find_spec("mujoco") is not None
    for gl in ("egl", "osmesa") if todo else ():
        trial = [sys.executable, "-c", f"import mujoco.{gl}; mujoco.{gl}.GLContext(64, 64).make_current()"]
        if subprocess.run(trial, env={**os.environ, "MUJOCO_GL": gl}, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = gl
            return


def drawable(
    env_id: str, success_return: float | None, horizon: int | None, engine: str = "auto", wanted_by: str = "--video"
) -> gym.Env[Any, Any]:
    """One environment of the task that can be drawn, which is tried.

    Args:
        env_id: the task; the next two are as in `sppo_envs.make_task`.
        success_return: see there.
        horizon: see there.
        engine: not used: only Gymnasium's own environments can be drawn.
        wanted_by: the flag that the message names.

    Raises:
        UserError: it cannot be drawn here.
        MissingExtra: the package that draws it is not installed.
    """
    try:
        env = sppo_envs.make_one(env_id, success_return, horizon, render_mode="rgb_array")
        with contextlib.suppress(AttributeError, KeyError):  # MuJoCo: Gymnasium's camera lets robots walk out of sight
            robot: Any = env.unwrapped
            robot.mujoco_renderer.camera_id = robot.model.camera("track").id
        env.reset(seed=0)
        if not isinstance(picture := env.render(), np.ndarray) or picture.ndim != 3:
            raise TypeError("its render() returns no picture")
    except Exception as error:  # renderers raise what they like
        if isinstance(error, gym.error.DependencyNotInstalled):
            extras.require("video", "pygame", wanted_by=f"{wanted_by} of {env_id}")
        hint = "; without a screen MuJoCo needs EGL or OSMesa: apt install libegl1 libgl1-mesa-dri, or libosmesa6"
        hint = hint if any(module.startswith("mujoco") for module in sys.modules) else ""
        raise UserError(f"{wanted_by}: cannot draw {env_id} ({error}){hint}") from error
    return env


def play(env: Any, policy: Policy, seed: int, number: int, greedy: bool = False) -> Iterator[tuple[int, bool | None]]:
    """The same as `rollout` with B = 1, step by step: yields t, from 0 on, and the outcome, None before the end.

    Args:
        env: an environment of `sppo_envs.make_one`.
        policy: acts with its present weights.
        seed: 0 to 2^32 - 1.
        number: of the episode; seed and number determine it.
        greedy: the most probable action in place of a sampled one.
    """
    horizon, act, act_in = env.get_wrapper_attr("horizon"), policy.behaviour(), to_environment(env.action_space)
    rng = streams.new_rng("video", seed, number)
    obs, _ = env.reset(seed=int(rng.integers(2**31 - 1)))
    noise = itertools.repeat(None) if greedy else noise_of_steps(policy, rng, horizon, 1)
    over, t = False, 0
    yield t, None
    while not over:
        action, _ = act(np.asarray(obs, dtype=np.float32)[None], next(noise))
        obs, _, over, _, info = env.step(act_in(action)[0])
        t += 1
        yield t, info["success"] if over else None


def captioned(picture: Any, width: int, text: str, success: bool) -> Any:
    """An image with a line of text above it; both sides even, as mp4 wants them."""
    from PIL import Image, ImageDraw

    height = picture.shape[0] * width // picture.shape[1] // 2 * 2
    whole = Image.new("RGB", (width, height + 18), "white")
    whole.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), (0, 18))
    ImageDraw.Draw(whole).text((4, 2), text, fill="#1a7f37" if success else "#b42318", font_size=12)
    return whole


def pace(env: Any, longest: int, most: int) -> tuple[int, float]:
    """Steps between two pictures of a movie, and pictures per second.

    Args:
        env: its metadata may have `render_fps`.
        longest: steps of the longest episode.
        most: most pictures per episode.
    """
    skip = -(-longest // most)  # rounded up
    return skip, min(30.0, max(10.0, float(env.metadata.get("render_fps") or 30) / skip))


def pictures(
    env: Any,
    played: Iterable[tuple[int, bool | None]],
    number: int,
    length: int,
    success: bool,
    moments: Collection[float],
    width: int,
) -> list[Any]:
    """Captioned pictures of an episode that is played again.

    Args:
        env: as in `play`.
        played: what `play` yields.
        number: of the episode, for the caption.
        length: its steps, as they were the first time.
        success: its outcome then.
        moments: steps to draw, 0 to length.
        width: of a picture, in pixels.

    Raises:
        UserError: the episode went another way.
    """
    taken = []
    for t, outcome in played:
        if outcome != (success if t == length else None):
            raise UserError(f"episode {number} did not repeat: the seed of reset() does not determine it")
        if t in moments:
            text = f"episode {number}: {'success' if success else 'failure'}, step {t}/{length}"
            taken.append(captioned(env.render(), width, text, success))
    return taken


def write(path: Path, episodes: Iterable[list[Any]], fps: float, title: str) -> None:
    """Write a video, all of it or nothing.

    A strip has one row per episode. A movie has one after the other, and the last picture of each stays for a second.

    Args:
        path: its ending is one of `FORMATS`.
        episodes: pictures of `pictures`.
        fps: pictures per second of a movie.
        title: above a strip.
    """
    temporary = path.with_name(f".writing-{path.name}")
    try:
        _write(temporary, episodes, fps, title)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, episodes: Iterable[list[Any]], fps: float, title: str) -> None:
    from PIL import Image, ImageDraw

    if path.suffix == ".mp4":
        import imageio.v2 as imageio

        writer: Any = imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=2)
        with writer:
            for picture in (p for row in episodes for p in row + [row[-1]] * round(fps)):
                writer.append_data(np.asarray(picture))
    elif path.suffix == ".gif":
        rows, tick = list(episodes), 10 * round(100 / fps)  # GIF counts hundredths of a second
        first, *rest = (picture.quantize(32, dither=0) for row in rows for picture in row)
        durations = [ms for row in rows for ms in [tick] * (len(row) - 1) + [tick + 1000]]
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
    else:
        rows = list(episodes)
        width, height = (side + 6 for side in rows[0][0].size)
        whole = Image.new("RGB", (width * max(map(len, rows)) + 6, height * len(rows) + 30), "lightgray")
        ImageDraw.Draw(whole).text((10, 6), title, fill="black", font_size=14)
        for i, row in enumerate(rows):
            for j, picture in enumerate(row):
                whole.paste(picture, (6 + j * width, 30 + i * height))
        whole.save(path)


# ------------------------------------------------------------------------------------------------ while training
CAPTURED = 2
"""Episodes per video of --capture-video: always the same ones, so that videos of a run can be compared."""


def record(env: Any, policy: Policy, path: Path, seed: int, numbers: Iterable[int], greedy: bool = False) -> list[bool]:
    """Write a video of some episodes.

    Args:
        env: of `drawable`.
        policy: acts with its present weights.
        path: .gif or .mp4.
        seed: see `play`.
        numbers: of the episodes.
        greedy: see `play`.

    Returns:
        The outcome of each episode.
    """
    width, most = FORMATS[path.suffix]
    played = [(number, *list(play(env, policy, seed, number, greedy))[-1]) for number in numbers]
    skip, fps = pace(env, max(length for _, length, _ in played), most)
    episodes = (
        pictures(
            env, play(env, policy, seed, n, greedy), n, length, bool(won), {*range(0, length, skip), length}, width
        )
        for n, length, won in played
    )
    write(path, episodes, fps, "")
    return [bool(won) for _, _, won in played]


def camera(args: Any, policy: Policy) -> Callable[[Path, int], float] | None:
    """What --capture-video does after each checkpoint; None without the flag.

    The environment is drawn once here, so that what cannot be drawn is refused before training.

    Args:
        args: a control script's.
        policy: the one that is trained.

    Returns:
        A function of the run folder and the update. It writes videos/<update>.mp4 there, and returns the seconds that it
        took. A failure is one line, and training goes on.

    Raises:
        UserError, MissingExtra: see `drawable` and `require`.
    """
    if not args.capture_video:
        return None
    require(Path("x.mp4"), "--capture-video")
    prepare_drawing()
    env = drawable(args.env_id, args.success_return, args.horizon, wanted_by="--capture-video")

    def film(folder: Path, update: int) -> float:
        began = time.perf_counter()
        try:
            (folder / "videos").mkdir(exist_ok=True)
            record(env, policy, folder / "videos" / f"{update:06d}.mp4", args.seed, range(1, CAPTURED + 1))
        except Exception as error:  # renderers and encoders raise what they like
            print(f"note: --capture-video has no video of update {update}: {error}", file=sys.stderr)
        return time.perf_counter() - began

    return film
