"""Watch a policy: in a window, or as a video.

    python scripts/enjoy.py --run runs/<folder>                     # a window; the newest checkpoint of a run
    python scripts/enjoy.py --run sppo/SparsePendulum-v0            # the starting policy of a task
    python scripts/enjoy.py --run shared/pole --video pole.mp4      # a folder of scripts/share.py, without a screen
    python scripts/enjoy.py --run hf:user/sppo-pole                 # the same, from the Hugging Face Hub

It prints the outcome of each episode. For a success rate take scripts/evaluate.py, which runs hundreds of episodes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import evaluate
import sppo_envs
from sppo_control import cli, errors, extras, limits, videos
from sppo_control.outputs import File
from sppo_control.policies import Policy, load_policy


@dataclass
class Args:
    run: str
    """a run folder (its newest checkpoint), a checkpoint, a policy file, a folder of share.py, hf:user/name, or a task's id
    (its starting policy)"""
    episodes: int = 5
    """whole episodes"""
    greedy: bool = False
    """the most probable action (the mean, if continuous) in place of a sampled one"""
    seed: int = 1
    """of environments and actions"""
    env_id: str | None = None
    """act in this environment; None is the one that the policy was trained in"""
    success_return: float | None = None
    """an episode whose return reaches this is a success, where nothing else says what success is; None is the run's"""
    horizon: int | None = None
    """longest episode in steps; None is the run's, else the task's"""
    render: Literal["human", "none"] = "human"
    """human: a window; none: outcomes alone"""
    video: Annotated[Path | None, File(".gif", ".mp4")] = None
    """write a video in place of opening a window"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        if self.video is not None:
            videos.require(self.video, f"--video {self.video}")


def window(task: dict[str, Any], render: str) -> Any:
    """One environment of the task, with a window if wanted.

    Raises:
        UserError: there is no screen, or the environment cannot be drawn.
    """
    mode = "human" if render == "human" else None
    if mode and sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise errors.UserError("--render human needs a screen; use --video FILE.mp4, or --render none")
    try:
        return sppo_envs.make_one(task["env_id"], task["success_return"], task["horizon"], render_mode=mode)
    except Exception as error:  # renderers raise what they like
        if mode is None:
            raise
        extras.require("video", "pygame", wanted_by="--render human")
        raise errors.UserError(f"--render human: cannot draw {task['env_id']} ({error})") from error


def watch(env: Any, policy: Policy, args: Args) -> Iterator[tuple[int, bool]]:
    """Play the episodes; yields the length and the outcome of each."""
    for number in range(1, args.episodes + 1):
        *_, (length, won) = videos.play(env, policy, args.seed, number, args.greedy)
        yield length, bool(won)


def main(args: Args) -> None:
    find = evaluate.Args((args.run,), env_id=args.env_id, success_return=args.success_return, horizon=args.horizon)
    path, task = evaluate.find(args.run, find)
    if args.video is not None:
        videos.prepare_drawing()
    env = window(task, args.render) if args.video is None else videos.drawable(**task)
    envs = sppo_envs.make_task(num_envs=1, **task)
    policy = load_policy(path, envs)
    envs.close()
    print(f"{task['env_id']}   {path}")
    won = []
    for number, (length, success) in enumerate(watch(env, policy, args) if args.video is None else [], start=1):
        won.append(success)
        print(f"episode {number}: {'success' if success else 'failure'} after {length} steps", flush=True)
    if args.video is not None:
        won = videos.record(env, policy, args.video, args.seed, range(1, args.episodes + 1), args.greedy)
        for number, success in enumerate(won, start=1):
            print(f"episode {number}: {'success' if success else 'failure'}")
        print(f"wrote {args.video}")
    env.close()
    print(f"success {sum(won)} of {len(won)} {'greedy' if args.greedy else 'sampled'} episodes")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
