"""Check and train environments that nobody here wrote, and write down what became of each.

    python scripts/try_environments.py                                     # all of results/environments.toml
    python scripts/try_environments.py --only CartPole-v1 --timeout 60     # some of them; the table is then printed only

Each environment is a [[environment]] of the list. It has `id` ("module:id" imports the module) and `success-return`. Where
needed it has `wrapper` ("module:Class" around it), `options` of gym.make, `horizon` and `total-timesteps`. SPPO starts from
random weights. Environments come with packages that this project does not install.

| result        | what it means                                                                        |
| ------------- | ------------------------------------------------------------------------------------ |
| trained       | success before and after a short training                                            |
| refused       | a line that names the thing and the way out, before training                         |
| not installed | its package is missing here                                                          |
| failed        | anything else                                                                        |
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from sppo_control import cli, errors
from sppo_control.outputs import File

ROOT = Path(__file__).resolve().parents[1]
KEYS: dict[str, Any] = {
    "id": str, "success-return": float, "wrapper": str, "options": dict, "horizon": int, "total-timesteps": int,
    "package": str, "note": str,
}  # fmt: skip
"""What an [[environment]] may have, and of which type."""


@dataclass
class Args:
    environments: Path = ROOT / "results" / "environments.toml"
    """list of environments"""
    out: Annotated[Path, File(".md")] = ROOT / "docs" / "environments.md"
    """page whose table is replaced"""
    only: tuple[str, ...] = ()
    """ids to try; none is all. The table is then printed and not written"""
    total_timesteps: int = 15_000
    """environment steps of training, where the list has no number"""
    timeout: int = 180
    """seconds for the check, and for the training, of one environment"""
    jobs: int = 1
    """environments at a time"""


def read(path: Path) -> list[dict[str, Any]]:
    """The environments of a list.

    Raises:
        UserError: the file cannot be read, or an environment has no id or an unknown key.
    """
    try:
        found = tomllib.loads(path.read_text()).get("environment", [])
        if not isinstance(found, list):
            raise ValueError("each environment begins with a line [[environment]]")
    except (OSError, ValueError, RecursionError) as error:
        raise errors.UserError(f"cannot read --environments {path}: {error}") from error
    for number, entry in enumerate(found, start=1):
        where = f"{path}, environment {number}"
        if not isinstance(entry, dict) or "id" not in entry or set(entry) - KEYS.keys():
            raise errors.UserError(f"{where}: needs an id, and may have {', '.join(sorted(KEYS))}")
        if wrong := [key for key, value in entry.items() if not cli.fits(value, KEYS[key])]:
            raise errors.UserError(f"{where}: {', '.join(wrong)} of another type")
    return found


def module(entry: dict[str, Any]) -> str:
    """A module of a user who wraps the environment or makes it with options, as docs/tasks.md says."""
    package, _, name = entry["id"].rpartition(":")
    wrapper, _, what = entry.get("wrapper", "").rpartition(":")
    lines = [
        "import gymnasium as gym",
        *([f"import {package}"] if package else []),
        *([f"import {wrapper}"] if what else []),
    ]
    made = f"gym.make({name!r}, **{entry.get('options', {})!r}, **kwargs)"
    lines += ["", "", "def make(**kwargs):", f"    return {f'{wrapper}.{what}({made})' if what else made}"]
    return "\n".join([*lines, "", "", 'gym.register("tried/It-v0", make)', ""])


def attempt(entry: dict[str, Any], args: Args) -> tuple[str, str, str]:
    """Check and train one environment, each in a new process: what the check says, result, details."""
    with tempfile.TemporaryDirectory() as folder:
        env_id = entry["id"]
        if "wrapper" in entry or "options" in entry:
            (Path(folder) / "tried.py").write_text(module(entry))
            env_id = "tried:tried/It-v0"
        words = ["--env-id", env_id]
        for key in ("success-return", "horizon"):
            words += [f"--{key}", str(entry[key])] if key in entry else []
        code, text = run(folder, [*words, "--check"], args)
        counts = re.search(r"(\d+) hold, (\d+) fail, (\d+) notes?", text)
        check = f"{counts[1]} hold, {counts[2]} fail" if counts else "-"
        fails = [line.split(";")[0].split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("  fails")]
        check += f" ({', '.join(fails)})" if fails else ""
        if "No module named" in text or "is not installed" in text:
            return check, "not installed", ""
        steps = str(entry.get("total-timesteps", args.total_timesteps))
        words += ["--total-timesteps", steps, "--num-envs", "16", "--eval-episodes", "128", "--save-every", "1000"]
        code, text = run(folder, [*words, "--runs-dir", f"{folder}/runs", "--from-scratch"], args)
        for summary in Path(folder).glob("runs/*/summary.json"):
            found = json.loads(summary.read_text())
            if code == 0:
                return check, "trained", f"{found['before']['rate']:.2f} -> {found['after']['rate']:.2f}"
        last = (text.strip().splitlines() or ["no output"])[-1].replace(folder, "...").replace("|", "\\|")
        last = last.replace("tried:tried/It-v0: ", "").replace("tried:tried/It-v0", entry["id"])
        if code == 124:
            return check, "failed", f"not done after {args.timeout} s"
        return check, "refused" if code == 2 and last.startswith("error: ") else "failed", last.removeprefix("error: ")


def run(folder: str, words: list[str], args: Args) -> tuple[int, str]:
    """Exit status and output of scripts/sppo_cartpole.py; 124 where it took too long."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), os.environ.get("PYTHONPATH", "")])
    env = {"SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "sppo_cartpole.py"), *words]
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, timeout=args.timeout, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout


def table(rows: list[tuple[dict[str, Any], tuple[str, str, str]]]) -> str:
    """Markdown."""
    lines = ["| environment | wrapper | success return | check | result | success before and after, or the line |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for entry, (check, result, details) in rows:
        wrapper = entry.get("wrapper", "").rpartition(":")[2] or "-"
        cells = [f"`{entry['id']}`", wrapper, f"{entry.get('success-return', '-')}", check, result, details or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    entries = [entry for entry in read(args.environments) if not args.only or entry["id"] in args.only]
    if not entries:
        raise errors.UserError(f"--only names no environment of {args.environments}")
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        results = zip(entries, pool.map(lambda entry: attempt(entry, args), entries), strict=True)
        for row in tqdm(results, total=len(entries), unit="environment", desc="trying"):
            rows.append(row)
            tqdm.write(table([row]).splitlines()[-1])  # should the rest never come
    made = table(rows)
    print(made)
    if not args.only:
        text = args.out.read_text() if args.out.is_file() else "# Environments that nobody here wrote\n\n"
        before, _, after = text.partition("| environment |")
        rest = after.partition("\n\n")[2]
        args.out.write_text(before + made + "\n" + (f"\n{rest}" if rest else ""))
        print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
