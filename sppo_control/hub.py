"""Trained policies as folders in the format of the Hugging Face Hub: weights, model card, replay, and the source.

| file                 | what                                                                                     |
| -------------------- | ---------------------------------------------------------------------------------------- |
| policy.safetensors   | the policy, byte for byte as in the run's checkpoint                                     |
| run.json             | arguments, versions, git commit, success before and after, SHA-256 of every other file   |
| README.md            | the model card, with a `model-index` that the Hub reads                                  |
| <script>.py          | the training script that made it, as in CleanRL's models                                 |
| replay.mp4           | some episodes                                                                            |

A folder may come from a stranger. Reading it never executes code: the script in it is there to be read, and is not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import extras
from .checkpoints import check_entries, digest, is_count, read_json, write_json, writing
from .errors import FileError, UserError

RUN = "run.json"
POLICY = "policy.safetensors"
REPLAY = "replay.mp4"
FORMAT = 1
"""Of run.json."""
PREFIX = "hf:"
"""hf:user/name is a repository of the Hub, where a path could stand."""
TITLES = {
    "sppo_cartpole": "SPPO",
    "ppo_cartpole": "PPO",
    "grpo_cartpole": "GRPO",
    "rloo_cartpole": "RLOO",
    "remax_cartpole": "ReMax",
}
"""Training script -> the algorithm's name in a card."""


def is_shared(path: Path) -> bool:
    """Whether a path is a folder that `write_folder` wrote."""
    return (path / RUN).is_file() and (path / POLICY).is_file()


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a folder, after a look at the digests of the files that it names.

    Raises:
        FileError: an entry is missing or of another type; a file is missing or was changed.
    """
    path = folder / RUN
    about = check_entries(
        path,
        read_json(path),
        {
            "format": (lambda x: x == FORMAT and is_count(x), f"{FORMAT}, the format that this version reads"),
            "args": (lambda x: isinstance(x, dict), "an object"),
            "script": (lambda x: isinstance(x, str), "a text"),
            "sha256": (_are_digests, "an object of file names and SHA-256 digests"),
        },
    )
    for name in (POLICY, *about["sha256"]):
        file = folder / name
        if not file.is_file():
            raise FileError(f"{file} is missing")
        if digest(file) != about["sha256"].get(name):
            raise FileError(f"{file} is damaged or was changed after it was shared (SHA-256 differs)")
    return about


def _are_digests(x: Any) -> bool:
    return isinstance(x, dict) and all(
        re.fullmatch(r"[\w.-]{1,200}", name) and name not in (".", "..") and isinstance(value, str)
        for name, value in x.items()
    )


def write_folder(folder: Path, files: Mapping[str, Path], about: Mapping[str, Any]) -> None:
    """Write a folder, all of it or nothing.

    Args:
        folder: it must not exist, or be empty.
        files: name in the folder -> the file to copy; with `POLICY`.
        about: what `card` reads; run.json has it too.

    Raises:
        UserError: it cannot be written, or is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder, or remove it")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            for name, file in files.items():
                shutil.copyfile(file, temporary / name)
            digests = {name: digest(temporary / name) for name in sorted(files)}
            write_json(temporary / RUN, {"format": FORMAT, **about, "sha256": digests})
            (temporary / "README.md").write_text(card(about, tuple(files)), encoding="utf-8")
            os.chmod(temporary, 0o755)  # mkdtemp's is for its owner alone
            if folder.exists():
                folder.rmdir()
            os.rename(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def card(about: Mapping[str, Any], files: tuple[str, ...]) -> str:
    """The model card: metadata for the Hub, then what a reader wants to know.

    Args:
        about: script, args (with env_id, seed), before and after (rate, interval, episodes), actions, steps, episodes,
            evaluation_seed, versions, git_commit, exact (whether the script is known to be the one that made the run).
        files: names of the files in the folder.
    """
    args, after, before = about["args"], about["after"], about["before"]
    env_id, name = args["env_id"], about["script"].removesuffix(".py")
    algorithm = TITLES.get(name, name)
    low, high = after["interval"]
    what = (
        f"success rate of {after['episodes']} {about['actions']} episodes, 95 % Wilson interval {low:.3f} to {high:.3f}"
    )
    text = json.dumps  # a JSON text is a YAML text
    lines = [
        "---",
        "library_name: sppo_control",
        "pipeline_tag: reinforcement-learning",
        "tags:",
        *(
            f"- {text(tag)}"
            for tag in (env_id, algorithm.lower(), "reinforcement-learning", "sparse-reward", "arxiv:2604.08865")
        ),
        "model-index:",
        f"- name: {text(f'{algorithm} on {env_id}')}",
        "  results:",
        "  - task:",
        "      type: reinforcement-learning",
        "      name: reinforcement-learning",
        "    dataset:",
        f"      name: {text(env_id)}",
        f"      type: {text(env_id)}",
        "    metrics:",
        "    - type: success_rate",
        f"      value: {after['rate']!r}",
        f"      name: {text(what)}",
        "      verified: false",
        "---",
        "",
        f"# {algorithm} on {env_id}",
        "",
        f"Success **{after['rate']:.3f}** [{low:.3f}, {high:.3f}]: {what}.",
        f"Before training it was {before['rate']:.3f} [{before['interval'][0]:.3f}, {before['interval'][1]:.3f}].",
        f"Trained for {about['steps']:,} environment steps in {about['episodes']:,} episodes, seed {args['seed']}.",
        "The only reward is one bit at the end of an episode. This is one run, so it says little about the algorithm.",
        "",
    ]
    if REPLAY in files:
        lines += [f"[{REPLAY}]({REPLAY}) shows some of its episodes.", ""]
    exact = (
        "the training script, exactly as it was"
        if about["exact"]
        else "the training script; it may differ from the run's"
    )
    known = {
        POLICY: "the policy: a tanh network, and how its observations are scaled",
        RUN: "arguments, versions, evaluations, SHA-256 of the other files",
        about["script"]: exact,
        REPLAY: "episodes",
    }
    lines += ["| file | what |", "| --- | --- |", *(f"| `{n}` | {known.get(n, '')} |" for n in (*files, RUN)), ""]
    lines += [
        "    pip install sppo-control",
        "    sppo enjoy --run hf:USER/NAME                    # a window; or --run FOLDER, after a download",
        f"    sppo evaluate --run FOLDER --episodes {after['episodes']} --seed {about['evaluation_seed']}"
        + (" --greedy" if about["actions"] == "greedy" else "")
        + "    # the number above again",
        "    sppo train --start FOLDER --env-id " + env_id + "        # train it further",
        "",
        f"Commit {about['git_commit'] or 'not known'}; "
        + ", ".join(
            f"{package} {version}" for package, version in about["versions"].items() if "not installed" not in version
        )
        + ".",
        "",
        "| argument | value |",
        "| --- | --- |",
        *(f"| `{key}` | {str(value).replace('|', ' ')} |" for key, value in args.items()),
        "",
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- the network
def check_repository(name: str) -> None:
    """Refuse what is no name of a repository on the Hub.

    Raises:
        ValueError: it is not user/name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, flags=re.ASCII):
        raise ValueError(f"a repository of the Hub is user/name, got {name[:80]!r}")


def account() -> str:
    """The user whose token huggingface_hub finds: HF_TOKEN, or that of `hf auth login`.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        UserError: there is no valid token, or no network.
    """
    extras.require("hub", "huggingface_hub", wanted_by="--push-to-hub")
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().whoami()["name"])
    except Exception as error:  # of requests, of the Hub
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--push-to-hub: the Hub does not know who you are ({reason}); set HF_TOKEN, or run `hf auth login`. "
            "--to-folder needs neither"
        ) from error


def upload(folder: Path, name: str) -> str:
    """Upload a folder to a repository, which is made if it is not there. Returns its address.

    Raises:
        UserError: the Hub refuses it.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A policy trained with sppo_control")
    except Exception as error:
        raise UserError(f"--push-to-hub {name}: {' '.join(str(error).split())[:300]}") from error
    return str(url)


def download(name: str) -> Path:
    """A folder of the Hub on this machine, from the cache of huggingface_hub if it is there.

    Args:
        name: user/name.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        UserError: it is no name of a repository; there is no such repository, no network, or no policy in it.
    """
    try:
        check_repository(name)
    except ValueError as error:
        raise UserError(f"{PREFIX}{name[:80]}: {error}") from error
    extras.require("hub", "huggingface_hub", wanted_by=f"{PREFIX}{name}")
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.py", "*.md", "*.mp4"])
        )
    except Exception as error:
        raise UserError(f"cannot load {PREFIX}{name}: {' '.join(str(error).split())[:300]}") from error
    if not is_shared(folder):
        raise UserError(f"{PREFIX}{name} contains no policy of this package: it has no {RUN} and {POLICY}")
    return folder
