"""Success rate of a policy, what its episodes were like in numbers, and a video or film strip of some of them.

    python scripts/evaluate.py --run runs/<folder>                           # a run's newest checkpoint
    python scripts/evaluate.py --run sppo/PrecisionCartPole-v0 --greedy      # the starting policy of a task
    python scripts/evaluate.py --run runs/<a> runs/<b> --json rates.json     # several policies, on equal terms
    python scripts/evaluate.py --run runs/<folder> --video strip.png         # film strip; .gif or .mp4: a moving picture

Actions are sampled, as in training; --greedy takes the most probable one. Equal arguments give equal episodes.
Videos need no screen, but the extra `video`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

import sppo_envs
from sppo_control import cli, errors, hub, limits, runs, streams, videos
from sppo_control.checkpoints import check_module, newest, read_config, short, write_json
from sppo_control.outcomes import Evaluation, joined
from sppo_control.outputs import File
from sppo_control.policies import Policy, load_policy, read_policy
from sppo_control.rollout import evaluate
from sppo_control.starts import shipped_policy
from sppo_control.videos import FORMATS, drawable, prepare_drawing


@dataclass
class Args:
    run: tuple[str, ...]
    """run folders (their newest checkpoint), checkpoints of runs, policy files, folders of share.py, hf:user/name, or
    tasks' ids (their starting policy)"""
    episodes: int = 1024
    """whole episodes each"""
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
    num_envs: int = 64
    """episodes at a time; another number gives other episodes"""
    engine: sppo_envs.Engine | None = None
    """what steps the environments (envs/sppo_envs/engines.py); None is the run's, else the fastest there is"""
    json: Annotated[Path | None, File()] = None
    """write the numbers to this file too"""
    video: Annotated[Path | None, File(*FORMATS)] = None
    """film strip (.png) or moving picture (.gif, .mp4) of some more episodes; needs a single --run"""
    video_episodes: int = 4
    """episodes to show: half successes, half failures, where there are such (1: the first one, whatever its outcome)"""

    def __post_init__(self) -> None:
        if not self.run or (self.video is not None and len(self.run) > 1):
            raise ValueError(f"--run takes one policy or more, with --video one, got {len(self.run)}")
        limits.check_limits(self)
        sizes = f"--num-envs {self.num_envs}" + (f" with --horizon {self.horizon}" if self.horizon else "")
        limits.check_memory({sizes: min(self.num_envs, self.episodes) * (self.horizon or 200) * 17})
        if self.video is not None:
            videos.require(self.video, f"--video {self.video}")


def find(name: str, args: Args) -> tuple[Path, dict[str, Any]]:
    """The policy file that a value of --run means, and the task: arguments of `sppo_envs.make_task`."""
    path = hub.download(name.removeprefix(hub.PREFIX)) if name.startswith(hub.PREFIX) else Path(name)
    if not path.exists() and (":" in name or sppo_envs.task(name) is not None):
        path = shipped_policy(name) or path
    if (path / "config.json").is_file():
        path = newest(path)
    path = path / "policy.safetensors" if path.is_dir() else path
    if not path.is_file():
        ids = ", ".join(sppo_envs.TASKS + sppo_envs.HARDER)
        raise errors.UserError(f"no policy at {path}; give a run folder, a checkpoint, a policy file or one of {ids}")
    made_for = read_policy(path)[0]["env_id"]
    task: dict[str, Any] = {"env_id": made_for, "success_return": None, "horizon": None, "engine": "auto"}
    source, checkpoints, trained = path, path.resolve().parent.parent, None
    if checkpoints.name == "checkpoints" and (checkpoints.parent / "config.json").is_file():
        source = checkpoints.parent
        trained = read_config(source)["args"]
        check_task(source / "config.json", trained)
    elif hub.is_shared(path.parent):
        source = path.parent
        trained = hub.read_run(source)["args"]
        check_task(source / hub.RUN, trained)
    if trained is not None and args.env_id in (None, trained["env_id"]):  # else its rules are of another environment
        task |= {key: trained[key] for key in task if trained.get(key) is not None}
    if args.env_id is None:
        check_module(task["env_id"], source, None)
    return path, task | {key: getattr(args, key) for key in task if getattr(args, key) is not None}


def check_task(config: Path, trained: dict[str, Any]) -> None:
    """Refuse what a config.json says of its task if it is of another type."""
    hints = {"env_id": str, "success_return": float | None, "horizon": int | None, "engine": sppo_envs.Engine}
    for key, hint in hints.items():
        if not cli.fits(trained.get(key, None if key != "engine" else "auto"), hint):
            raise errors.FileError(
                f'{config}: "{key}" of "args" is {short(trained.get(key))}, of another type or missing'
            )
    if (horizon := trained.get("horizon")) is not None and horizon < 1:
        raise errors.FileError(f'{config}: "horizon" of "args" must be at least 1, got {horizon}')


def evaluate_in_batches(envs: Any, policy: Policy, args: Args) -> Evaluation:
    """The same as `evaluate`, a batch at a time for the sake of a progress bar."""
    rng, parts = streams.new_rng("evaluate.py", args.seed), []
    with tqdm(total=args.episodes, unit="episode", desc="evaluating", delay=1, leave=False) as bar:
        while bar.n < args.episodes:
            parts.append(evaluate(envs, policy, min(envs.num_envs, args.episodes - bar.n), rng, args.greedy))
            bar.update(len(parts[-1].outcome))
    return Evaluation(np.concatenate([p.outcome for p in parts]), joined([p.info for p in parts]))


def report(path: Path, task: dict[str, Any], result: Evaluation, args: Args) -> dict[str, Any]:
    """Print one block; returns its numbers."""
    won, actions = result.outcome, "greedy" if args.greedy else "sampled"
    n, k = len(won), int(won.sum())
    print(f"\n{task['env_id']}   {path}")
    print(f"success {result}   {k} of {n} {actions} episodes, 95 % Wilson interval")
    groups = {"all": won >= 0} | ({"successes": won, "failures": ~won} if 0 < k < n else {})
    measures: dict[str, dict[str, dict[str, Any]]] = {}
    for name, values in result.info.items():
        if name == "success" or values.ndim != 1 or values.dtype.kind not in "biuf":
            continue
        if not measures:
            print(f"{'at the end':<16} {'of':<14} {'share or mean':<14} {'5 %':>9} {'50 %':>9} {'95 %':>9}")
        measures[name] = {}
        for group, members in groups.items():
            told = members & np.isfinite(values)
            x, label = values[told], f"{told.sum()} {group}"
            if not len(x):
                continue
            if x.dtype == bool:
                numbers, text = {"share": float(x.mean()), "count": int(x.sum())}, f"{x.mean():.3f} ({x.sum()})"
            else:
                low, middle, high = np.percentile(x, [5, 50, 95]).tolist()
                numbers = {"mean": float(x.mean()), "percentile_5": low, "median": middle, "percentile_95": high}
                text = f"{x.mean():<14.4g} {low:>9.4g} {middle:>9.4g} {high:>9.4g}"
            few = {"reported": len(x)} if len(x) < members.sum() else {}
            measures[name][group] = numbers | few
            print(f"{name:<16} {label:<14} {text}")
    rate = {"episodes": n, "successes": k, "rate": result.rate, "interval_95": result.interval, "actions": actions}
    return {"policy": str(path), **task, **rate, "seed": args.seed, "num_envs": args.num_envs, "measures": measures}


def play(env: Any, policy: Policy, args: Args, number: int) -> Iterator[tuple[int, bool | None]]:
    """Episode `number` of these arguments, step by step; see `videos.play`."""
    return videos.play(env, policy, args.seed, number, args.greedy)


def film(env: Any, policy: Policy, result: Evaluation, title: str, args: Args, path: Path) -> None:
    """Choose episodes, play them again with the camera on, write the file."""
    (width, most), want = FORMATS[path.suffix], args.video_episodes
    tries = 12 * want if 0 < result.rate < 1 and want > 1 else want
    numbers = tqdm(range(1, tries + 1), desc="choosing", unit="episode", delay=1, leave=False)
    played = [(number, *list(play(env, policy, args, number))[-1]) for number in numbers]  # number, length, success
    by_outcome = ([e for e in played if e[2] == outcome] for outcome in (True, False))
    alternating = [e for pair in itertools.zip_longest(*by_outcome) for e in pair if e is not None]
    chosen = sorted(alternating[:want])
    print(f"\nvideo: episodes {', '.join(str(number) for number, *_ in chosen)} of the first {tries}")
    skip, fps = videos.pace(env, max(length for _, length, _ in chosen), most)

    def pictures(number: int, length: int, success: bool) -> list[Any]:
        movie, strip = [*range(0, length, skip), length], np.linspace(0, length, most).round()
        moments = set(strip if path.suffix == ".png" else movie)
        return videos.pictures(env, play(env, policy, args, number), number, length, success, moments, width)

    episodes = (pictures(*episode) for episode in tqdm(chosen, desc="drawing", unit="episode", delay=1, leave=False))
    videos.write(path, episodes, fps, title)
    print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)")


def main(args: Args) -> None:
    # ---- all that can be refused, before the long work
    found = [find(name, args) for name in args.run]
    if args.video is not None:
        prepare_drawing()
    with contextlib.ExitStack() as stack:
        ready, numbers = [], []
        for path, task in found:
            envs = sppo_envs.make_task(num_envs=min(args.num_envs, args.episodes), **task)
            stack.callback(envs.close)
            ready.append((path, task, envs, load_policy(path, envs)))
        if args.video is not None:
            env = stack.enter_context(drawable(**task))
        # ---- episodes
        for path, task, envs, policy in ready:
            result = evaluate_in_batches(envs, policy, args)
            numbers.append(report(path, task, result, args))
        if args.json is not None:
            write_json(args.json, {"evaluations": numbers, **runs.versions()})
            print(f"wrote {args.json}")
        if args.video is not None:
            title = f"{task['env_id']}, {numbers[0]['actions']} actions: success {result} in {args.episodes} episodes"
            film(env, policy, result, title, args, args.video)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
