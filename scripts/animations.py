"""Animated episodes of each task, before training on the left and after it on the right.

    pip install -c constraints.txt -e '.[tasks,video]'
    python scripts/animations.py                                        # trains SPPO on all tasks, then draws: half an hour
    python scripts/animations.py --env-ids sppo/SparsePendulum-v0       # one task
    python scripts/animations.py --runs runs/<folder>                   # draws a run that is there, of any task

Both sides play the same episodes: the same initial states, and the same random numbers for the sampled actions. They are
episodes 1, 2, 3, ... of the seed; none is chosen. The success rates above them are those of summary.json.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import evaluate
import sppo_cartpole
import sppo_envs
from sppo_control import checkpoints, cli, errors, extras, limits
from sppo_control.outputs import Folder
from sppo_control.policies import Policy, load_policy

ROOT = Path(__file__).resolve().parents[1]
MOST_PICTURES = 40
"""Per episode."""
MOST_BYTES = 400_000
"""Of a file."""
QUALITY = ((200, 32, 1), (200, 16, 1), (200, 16, 2), (160, 16, 2), (160, 16, 3), (120, 12, 4))
"""Width of one side in pixels, number of colours, and of how many pictures one is kept; the first that makes the file small
enough is taken."""
TICK, STAY = 80, 1200
"""Milliseconds that a picture is shown, and the last one of an episode."""
INK = {None: "#24292f", True: "#1a7f37", False: "#b42318"}
"""Colour of the text while an episode runs, after a success, after a failure."""
EDGE = "#d0d7de"
"""Colour of the frame while an episode runs."""


@dataclass
class Args:
    env_ids: tuple[str, ...] = sppo_envs.TASKS
    """tasks to train on and to draw"""
    runs: tuple[str, ...] = ()
    """run folders to draw; then nothing is trained, and --env-ids is not read"""
    episodes: int = 3
    """episodes to show"""
    seed: int = 1
    """of the training, and of the episodes that are shown"""
    total_timesteps: int | None = None
    """environment steps of each training; None is the task's own number"""
    out: Annotated[Path, Folder()] = ROOT / "docs" / "animations"
    """folder to write to; a file is named after its task"""
    runs_dir: Annotated[str, Folder()] = "runs"
    """folder in which the trainings' folders are made"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        if "" in self.runs:
            raise ValueError("--runs must not be empty; name a run folder")
        if not self.env_ids and not self.runs:
            raise ValueError("--env-ids must name at least one task")
        for env_id in () if self.runs else self.env_ids:
            if sppo_envs.task(env_id) is None:
                ids = ", ".join(sppo_envs.TASKS + sppo_envs.HARDER)
                raise ValueError(
                    f"--env-ids {env_id}: no such task; there are {ids}. For others train, then use --runs"
                )


class Side(NamedTuple):
    """One policy's episode: its pictures, and what is written over them."""

    pictures: list[Any]
    """(height, width, 3) uint8 each"""
    steps: list[int]
    """which step each picture shows; the first is 0, the last is the episode's end"""
    success: bool


def record(env: Any, policy: Policy, args: evaluate.Args, number: int, skip: int) -> Side:
    """Play episode `number` with the camera on; every `skip`-th step and the last one are kept."""
    pictures, steps, success = [], [], False
    for t, outcome in evaluate.play(env, policy, args, number):
        if t % skip == 0 or outcome is not None:
            pictures.append(env.render())
            steps.append(t)
        success = bool(outcome)
    return Side(pictures, steps, success)


def panel(picture: Any, width: int, title: str, text: str, ended: bool | None) -> Any:
    """A picture under two lines of text, in a frame; `ended` is None while the episode runs, else its outcome."""
    from PIL import Image, ImageDraw

    height = picture.shape[0] * width // picture.shape[1]
    whole = Image.new("RGB", (width + 4, height + 38), "white")
    whole.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), (2, 36))
    draw = ImageDraw.Draw(whole)
    draw.text((4, 2), title, fill=INK[None], font_size=13)
    draw.text((4, 18), text, fill=INK[ended], font_size=13)
    draw.rectangle((0, 34, width + 3, height + 37), outline=EDGE if ended is None else INK[ended], width=2)
    return whole


def frames(
    pairs: Sequence[tuple[Side, Side]], titles: tuple[str, str], width: int, thin: int = 1
) -> tuple[list[Any], list[int]]:
    """The pictures of the whole animation, every `thin`-th and each episode's last, and for how many milliseconds each is
    shown.

    The side whose episode ends first keeps its last picture until the other one ends.
    """
    from PIL import Image

    pictures, times = [], []
    for number, pair in enumerate(pairs, start=1):
        count = max(len(side.pictures) for side in pair)
        kept = sorted({*range(0, count, thin), count - 1})
        for i in kept:
            panels = []
            for side, title in zip(pair, titles, strict=True):
                j = min(i, len(side.pictures) - 1)
                over = j == len(side.pictures) - 1
                what = ("success" if side.success else "failure") if over else f"step {side.steps[j]}"
                text = f"episode {number}: {what}"
                panels.append(panel(side.pictures[j], width, title, text, side.success if over else None))
            gap = 8
            both = Image.new("RGB", (2 * panels[0].width + gap, panels[0].height), "white")
            both.paste(panels[0], (0, 0))
            both.paste(panels[1], (panels[0].width + gap, 0))
            pictures.append(both)
            times.append(STAY if i == count - 1 else thin * TICK)
    return pictures, times


def encode(pictures: Sequence[Any], times: Sequence[int], colours: int) -> bytes:
    """A GIF that repeats. All pictures share one palette, so that only what moves is stored."""
    from PIL import Image, ImageColor

    some = pictures[:: max(1, len(pictures) // 8)]
    sheet = Image.new("RGB", (some[0].width, some[0].height * len(some)))
    for i, picture in enumerate(some):
        sheet.paste(picture, (0, i * picture.height))
    exact = [value for ink in ("white", EDGE, *INK.values()) for value in ImageColor.getrgb(ink)]
    found = sheet.quantize(colours - len(exact) // 3, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(exact + found[: 3 * colours - len(exact)])
    first, *rest = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=list(times), loop=0, optimize=True)
    return file.getvalue()


def draw(run: Path, args: Args) -> Path:
    """The animation of one run: its first checkpoint against its newest one.

    Raises:
        UserError: the run has no two checkpoints, is not finished, or its task cannot be drawn.
    """
    saved, summary = checkpoints.complete(run / "checkpoints"), checkpoints.read_summary(run)
    if len(saved) < 2 or "before" not in summary or "after" not in summary:
        raise errors.UserError(f"--runs {run}: not a finished run; finish it with --resume {run}, or name another")
    looked = evaluate.Args(run=(str(run),), seed=args.seed)
    _, task = evaluate.find(str(run), looked)
    with contextlib.ExitStack() as stack:
        envs = sppo_envs.make_task(num_envs=1, **task)
        stack.callback(envs.close)
        policies = [load_policy(path / "policy.safetensors", envs) for path in (saved[0], saved[-1])]
        env = stack.enter_context(evaluate.drawable(**task))
        numbers = range(1, args.episodes + 1)
        lengths = [max(t for t, _ in evaluate.play(env, p, looked, number)) for p in policies for number in numbers]
        skip = math.ceil(max(lengths) / MOST_PICTURES)
        before, after = ([record(env, policy, looked, number, skip) for number in numbers] for policy in policies)
    titles = f"before: success {summary['before']['rate']:.2f}", f"after: success {summary['after']['rate']:.2f}"
    for width, colours, thin in QUALITY:
        data = encode(*frames(list(zip(before, after, strict=True)), titles, width, thin), colours)
        if len(data) <= MOST_BYTES:
            break
    path = args.out / f"{task['env_id'].split('/')[-1].split(':')[-1]}.gif"
    args.out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    print(
        f"wrote {path} ({len(data) / 1000:.0f} kB, {width} pixels per side, {colours} colours, {titles[0]}, {titles[1]})"
    )
    return path


def train(env_id: str, args: Args) -> Path:
    """Train SPPO on the task from its starting policy, as the script does; the run's folder."""
    given: dict[str, Any] = {"env_id": env_id, "seed": args.seed, "runs_dir": args.runs_dir}
    if args.total_timesteps is not None:
        given["total_timesteps"] = args.total_timesteps
    return sppo_cartpole.train(cli.make_args(sppo_cartpole.Args, **given)).folder


def main(args: Args) -> None:
    extras.require("video", "PIL", wanted_by="scripts/animations.py")
    evaluate.prepare_drawing()
    given = [checkpoints.run_folder(Path(run)) for run in args.runs]
    for env_id in () if given else args.env_ids:  # what cannot be drawn is said before the long work
        evaluate.drawable(env_id, None, None, "auto").close()
    for run in given or (train(env_id, args) for env_id in args.env_ids):
        draw(run, args)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
