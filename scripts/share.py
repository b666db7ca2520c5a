"""Share a trained policy: a folder in the format of the Hugging Face Hub, with a model card, a replay and the source.

    python scripts/share.py --run runs/<folder> --to-folder shared/pole                  # needs no network
    python scripts/share.py --run runs/<folder> --push-to-hub user/sppo-pole             # needs a token: HF_TOKEN

    python scripts/enjoy.py --run shared/pole                                            # or --run hf:user/sppo-pole
    python scripts/evaluate.py --run shared/pole
    python scripts/sppo_cartpole.py --start shared/pole

The success in the card is measured here, on --episodes new episodes, with its 95 % interval. The policy's file is copied
byte for byte. The training script in the folder is exactly the one that made the run: its SHA-256 is in the run's
config.json, and a script that was changed since then is looked for in the clone's history. docs/sharing.md says more.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import evaluate
import sppo_envs
from sppo_control import cli, errors, hub, limits, videos
from sppo_control.checkpoints import digest, read_config, read_json, read_summary, run_folder
from sppo_control.outputs import Folder
from sppo_control.policies import load_policy


@dataclass
class Args:
    run: str
    """a run folder (its newest checkpoint), or a checkpoint of one"""
    to_folder: Annotated[Path | None, Folder()] = None
    """folder to write; it must not exist, or be empty"""
    push_to_hub: str | None = None
    """user/name of a repository on the Hugging Face Hub; it is made if there is none"""
    script: Path | None = None
    """the file that made the run, if it is not in scripts/"""
    episodes: int = 1024
    """whole episodes for the success in the card"""
    greedy: bool = False
    """the most probable action (the mean, if continuous) in place of a sampled one"""
    seed: int = 1
    """of these episodes"""
    video: bool = True
    """record replay.mp4, which needs the extra video"""
    video_episodes: int = 4
    """episodes in it"""

    def __post_init__(self) -> None:
        if self.to_folder is None and self.push_to_hub is None:
            raise ValueError("name --to-folder, or --push-to-hub, or both")
        if self.push_to_hub is not None:
            try:
                hub.check_repository(self.push_to_hub)
            except ValueError as error:
                raise ValueError(f"--push-to-hub: {error}") from error
        if self.to_folder is not None and self.to_folder.is_dir() and any(self.to_folder.iterdir()):
            raise ValueError(f"--to-folder {self.to_folder} is not empty; name a new folder, or remove it")
        limits.check_limits(self)
        if self.video:
            videos.require(Path(hub.REPLAY), "--video, which is on by default (--no-video),")


def source(config: dict[str, Any], given: Path | None, work: Path) -> tuple[Path, bool]:
    """The training script of a run, and whether it is known to be exactly the one that made it.

    Args:
        config: of the run.
        given: --script.
        work: folder for a file from the clone's history.

    Raises:
        UserError: it is not there.
    """
    name, wanted, commit = Path(config["script"]).name, config.get("script_sha256"), config.get("git_commit")
    here = Path(__file__).resolve().with_name(name)
    candidates = [given] if given is not None else [here]
    old = work / name
    if given is None and isinstance(commit, str) and commit.isalnum():
        show = ["git", "-C", str(here.parent), "show", f"{commit}:./{name}"]
        done = subprocess.run(show, capture_output=True, check=False)
        if done.returncode == 0:
            old.write_bytes(done.stdout)
            candidates.insert(0 if wanted is None else 1, old)  # a run without a digest: most likely the commit's
    found = [path for path in candidates if path.is_file()]
    for path in found:
        if wanted is not None and digest(path) == wanted:
            return path, True
    if wanted is None and found:
        return found[0], False
    why = "its SHA-256 is another one" if found else "there is no such file"
    where = ", ".join(map(str, candidates))
    raise errors.UserError(
        f"the script that made this run, {name}, is not here: {why} ({where}); name it with --script"
    )


def main(args: Args) -> None:
    # ---- all that can be refused, before the long work
    run = run_folder(Path(args.run))
    config, summary = read_config(run), read_summary(run)
    path, task = evaluate.find(args.run, evaluate.Args((args.run,)))
    if "before" not in summary:
        raise errors.UserError(f"{run} was stopped before its first evaluation; resume it")
    if args.push_to_hub is not None:
        hub.account()
    with tempfile.TemporaryDirectory() as work:
        script, exact = source(config, args.script, Path(work))
        envs = sppo_envs.make_task(num_envs=min(64, args.episodes), **task)
        policy = load_policy(path, envs)
        if args.video:
            videos.prepare_drawing()
            env = videos.drawable(**task)
        # ---- episodes
        how = evaluate.Args((args.run,), episodes=args.episodes, greedy=args.greedy, seed=args.seed)
        result = evaluate.evaluate_in_batches(envs, policy, how)
        envs.close()
        files = {hub.POLICY: path, Path(config["script"]).name: script}
        if args.video:
            files[hub.REPLAY] = Path(work) / hub.REPLAY
            videos.record(env, policy, files[hub.REPLAY], args.seed, range(1, args.video_episodes + 1), args.greedy)
            env.close()
        state = read_json(path.parent / "state.json")
        about = {
            "script": Path(config["script"]).name, "exact": exact, "args": config["args"], "before": summary["before"],
            "after": result.as_dict(), "actions": "greedy" if args.greedy else "sampled", "evaluation_seed": args.seed,
            "update": state["update"], "steps": state.get("steps", 0), "episodes": state.get("episodes", 0),
            "versions": config.get("versions", {}), "git_commit": config.get("git_commit"),
        }  # fmt: skip
        folder = args.to_folder or Path(work) / "shared"
        hub.write_folder(folder, files, about)
        print(f"success {result} in {args.episodes} {about['actions']} episodes")
        if args.to_folder is not None:
            print(f"wrote {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
        if args.push_to_hub is not None:
            print(f"pushed to {hub.upload(folder, args.push_to_hub)}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
