"""Single-line bugs, and which test catches each: a check of the tests.

    python scripts/mutants.py --json runs/mutants.json                  # all of them; run it again to go on
    python scripts/mutants.py --only advantage-sign-turned              # some of them
    python scripts/mutants.py --files sppo_control/core.py              # those of some files

1. tests/mutants.toml lists the bugs. Each has a name, one sentence about the mistake, a file, and old and new code.
2. The checkout is copied into a temporary folder. There all tests of the list must pass without a bug.
3. Each bug is put into the copy, one at a time. Its tests run until the first failure.
4. A bug that no test notices survives. It needs a better test, or a reason in the list.

The exit status is 1 if fewer than 95 % of the bugs are caught, and 2 if a bug does not fit its file.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

from tqdm import tqdm

from sppo_control import checkpoints, cli
from sppo_control.errors import UserError
from sppo_control.markdown import markdown_table
from sppo_control.outputs import File

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.95
"""Share of the bugs that must be caught."""
NOTHING, TOO_LATE = "SURVIVED", "the time limit"
FORK = multiprocessing.get_context("forkserver")
"""Makes the processes that run tests. Importing these packages takes longer than most tests, so it is done once."""
FORK.set_forkserver_preload(
    [
        "pytest", "numpy", "torch", "torch._dynamo", "torch.utils.tensorboard", "gymnasium", "safetensors.torch", "tyro",
        "datasets", "transformers",
    ]
)  # fmt: skip


@dataclass
class Args:
    mutants: Path = ROOT / "tests" / "mutants.toml"
    """the list of bugs"""
    only: tuple[str, ...] = ()
    """names of the bugs to try; none is all"""
    files: tuple[str, ...] = ()
    """files or folders whose bugs are tried; none is all"""
    jobs: int = 1
    """bugs that are tried at the same time, each in its own copy"""
    time_limit: float = 300.0
    """seconds for the tests of one bug; a bug that needs longer is caught"""
    json: Annotated[Path | None, File(".json", new_folder=True)] = None
    """file of the results; what is in it and has not changed is not run again"""
    markdown: Annotated[Path | None, File(".md")] = None
    """Markdown page to write, with a table of all bugs"""

    def __post_init__(self) -> None:
        if self.markdown is not None and (self.only or self.files):
            raise ValueError("--markdown writes a page of all bugs; leave out --only and --files, or --markdown")


@dataclass(frozen=True)
class Mutant:
    """One bug."""

    name: str
    """says the mistake, in words with hyphens"""
    mistake: str
    """one plain sentence"""
    file: str
    """where it is, from the root of the repository"""
    old: str
    """the right code, exactly"""
    new: str
    """the wrong code"""
    tests: tuple[str, ...]
    """test files, or file::test, that should notice it"""
    count: int = 1
    """how often the right code is in the file"""
    nth: int = 1
    """which of these places is changed, from 1"""
    reason: str = ""
    """of a bug that no test can notice, or need not: why"""

    def apply(self, text: str) -> str:
        """The file's text with the bug.

        Raises:
            UserError: the right code is not in the text as often as stated, or the wrong code is no Python.
        """
        found = text.count(self.old)
        if found != self.count:
            raise UserError(f"{self.name}: the old code occurs {found} times in {self.file}, not {self.count}")
        pieces = text.split(self.old)
        mutated = self.old.join(pieces[: self.nth]) + self.new + self.old.join(pieces[self.nth :])
        try:
            ast.parse(mutated)
        except SyntaxError as error:
            raise UserError(f"{self.name}: {self.file} with the new code is no Python: {error}") from error
        return mutated


def read(file: Path) -> list[Mutant]:
    """The list of bugs.

    Raises:
        UserError: it cannot be read, or an entry is wrong.
    """
    try:
        entries = tomllib.loads(file.read_text())["mutant"]
        if not isinstance(entries, list):
            raise ValueError("each mutant begins with a line [[mutant]]")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"cannot read --mutants {file}: {error}") from error
    hints = get_type_hints(Mutant)
    mutants = []
    for i, entry in enumerate(entries, start=1):
        try:
            if wrong := [key for key, value in entry.items() if key in hints and not cli.fits(value, hints[key])]:
                raise TypeError(f"{', '.join(wrong)} of another type")
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
        except (AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{file}, mutant {i}: {error}") from error
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", mutant.name):
            raise UserError(f"{file}, mutant {i}: the name must be words with hyphens, got {mutant.name!r}")
        if mutant.old == mutant.new or not mutant.tests or not 1 <= mutant.nth <= mutant.count:
            raise UserError(f"{mutant.name}: needs another new code than the old one, a test, and 1 <= nth <= count")
        mutants.append(mutant)
    names = [mutant.name for mutant in mutants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file}: two mutants are called {', '.join(twice)}")
    return mutants


def chosen(args: Args, mutants: Sequence[Mutant]) -> list[Mutant]:
    """The bugs that the command line names.

    Raises:
        UserError: a name or a file has no bug.
    """
    if unknown := set(args.only) - {mutant.name for mutant in mutants}:
        raise UserError(f"no mutant is called {', '.join(sorted(unknown))}; names are in {args.mutants}")

    def within(mutant: Mutant, path: str) -> bool:
        return Path(mutant.file).is_relative_to(path)

    if empty := [path for path in args.files if not any(within(mutant, path) for mutant in mutants)]:
        raise UserError(f"no mutant is in {', '.join(empty)}")
    return [
        mutant
        for mutant in mutants
        if (not args.only or mutant.name in args.only)
        and (not args.files or any(within(mutant, path) for path in args.files))
    ]


def fingerprint(mutant: Mutant) -> str:
    """Changes with the bug, its file and its tests: then an old result counts no longer."""
    files = sorted({mutant.file, *(test.partition("::")[0] for test in mutant.tests)})
    about = [mutant.file, mutant.old, mutant.new, mutant.count, mutant.nth, mutant.tests]
    digest = hashlib.sha256(json.dumps(about).encode())
    for file in files:
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()[:16]


def copy_checkout(target: Path) -> None:
    """All files that git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"git cannot list the files of {ROOT}: {error}") from error
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(copy: Path, tests: Sequence[str], time_limit: float | None) -> tuple[int | None, str]:
    """Run tests in a copy until the first failure.

    Returns:
        pytest's exit status, None past the time limit; and what it printed.
    """
    with tempfile.NamedTemporaryFile() as out:
        process = FORK.Process(target=pytest_in, args=(copy, tests, out.name))
        process.start()
        try:
            process.join(time_limit)
            if process.exitcode is None:
                return None, ""
            return process.exitcode, Path(out.name).read_text(errors="replace")
        finally:
            if process.is_alive():
                os.killpg(process.ident or 0, signal.SIGKILL)  # its worker processes too
                process.join()


def pytest_in(copy: Path, tests: Sequence[str], out: str) -> None:
    """What a process of `run_tests` does; it ends with pytest's exit status."""
    import pytest

    os.setsid()
    file, nothing = os.open(out, os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
    for theirs, ours in ((0, nothing), (1, file), (2, file)):
        os.dup2(ours, theirs)
    paths = [str(copy / name) for name in ("", "envs", "scripts")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of processes that the tests start
    os.chdir(copy)
    sys.dont_write_bytecode = True
    # What this script has imported of the project is not the copy's.
    for name in [name for name in sys.modules if name.partition(".")[0] == "sppo_control"]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]))


def failed_test(out: str) -> str | None:
    """The first test that failed, from what pytest printed."""
    found = re.search(r"^(?:FAILED|ERROR) (tests\S*?::[^\s\[]+)", out, flags=re.M)
    return None if found is None else found[1]


def try_mutant(copy: Path, mutant: Mutant, time_limit: float) -> str:
    """The test that catches the bug, `TOO_LATE`, or `NOTHING`.

    Raises:
        UserError: the tests cannot be run with it.
    """
    path = copy / mutant.file
    right = path.read_text()
    path.write_text(mutant.apply(right))
    try:
        status, out = run_tests(copy, mutant.tests, time_limit)
    finally:
        path.write_text(right)
    if status is None:
        return TOO_LATE
    if status == 0:
        return NOTHING
    caught = failed_test(out)
    if status != 1 or caught is None:
        raise UserError(f"{mutant.name}: pytest ended with status {status}:\n{out[-1500:]}")
    return caught


def pick_copy_and_try(copies: queue.Queue[Path], mutant: Mutant, time_limit: float) -> str:
    """`try_mutant` in a copy that nobody else uses."""
    copy = copies.get()
    try:
        return try_mutant(copy, mutant, time_limit)
    finally:
        copies.put(copy)


def page(results: Sequence[tuple[Mutant, str]]) -> str:
    """All results as a Markdown page."""
    survivors = [mutant for mutant, caught in results if caught == NOTHING]
    files = list(dict.fromkeys(mutant.file for mutant, _ in results))
    lines = [
        "# Mutants: single-line bugs and the tests that catch them",
        "",
        "A mutant is the code with one small mistake in it. A good test suite fails for each of them. "
        "[tests/mutants.toml](../tests/mutants.toml) has the exact change of each one. "
        "Names and sentences are meant for teaching too: each is a mistake that people make.",
        "",
        f"{len(results)} mutants were tried. {len(results) - len(survivors)} were caught, {len(survivors)} survived.",
        "",
        "They were chosen by hand, and some tests were written because a mutant had survived. "
        "So the number says how well the tests guard against these mistakes, not against all mistakes.",
        "",
        "`make mutants` makes this page. The column on the right names the first test that failed.",
        *([""] if survivors else []),
    ]
    for mutant in survivors:
        lines += [f"- `{mutant.name}` survives: {mutant.reason or 'no reason is given.'}"]
    for file in files:
        rows = [
            [f"`{mutant.name}`", mutant.mistake.replace("|", "\\|"), caught if "::" not in caught else f"`{caught}`"]
            for mutant, caught in results
            if mutant.file == file
        ]
        lines += ["", f"## {file}", "", markdown_table(["mutant", "mistake", "caught by"], rows)]
    return "\n".join(lines).rstrip() + "\n"


def main(args: Args) -> None:
    # Without bytecode: Python would take that of the right file for a bug of the same length in the same second.
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    mutants = chosen(args, read(args.mutants))
    stored = {} if args.json is None or not args.json.is_file() else checkpoints.read_json(args.json)
    for name, x in stored.items():
        if not isinstance(x, dict) or not all(isinstance(x.get(key), str) for key in ("fingerprint", "caught_by")):
            raise UserError(
                f"--json {args.json} was not written by this script: look at {name!r}, or name another file"
            )
    for mutant in mutants:
        mutant.apply((ROOT / mutant.file).read_text())  # all must fit before the first one runs
    marks = {mutant.name: fingerprint(mutant) for mutant in mutants}
    done = {name: x for name, x in stored.items() if name not in marks or x["fingerprint"] == marks[name]}
    to_do = [mutant for mutant in mutants if mutant.name not in done]

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for i in range(min(args.jobs, len(to_do))):
            (copy := Path(folder, str(i))).mkdir()
            copy_checkout(copy)
            copies.put(copy)
        if to_do:
            tests = sorted({test for mutant in to_do for test in mutant.tests})
            print(f"{len(to_do)} mutants to try. First their tests run without a bug.", flush=True)
            status, out = run_tests(copies.queue[0], tests, None)
            if status != 0:
                raise UserError(f"the tests fail without any bug, so they can tell nothing:\n{out[-1500:]}")
        with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(to_do), unit="mutant") as bar:
            started = {pool.submit(pick_copy_and_try, copies, mutant, args.time_limit): mutant for mutant in to_do}
            try:
                for future in as_completed(started):
                    mutant, caught = started[future], future.result()
                    done[mutant.name] = {**asdict(mutant), "caught_by": caught, "fingerprint": marks[mutant.name]}
                    if args.json is not None:
                        args.json.parent.mkdir(parents=True, exist_ok=True)
                        checkpoints.write_json(args.json, done)
                    if caught == NOTHING:
                        bar.write(f"{mutant.name}: {NOTHING}")
                    bar.update()
            finally:
                pool.shutdown(cancel_futures=True)

    results = [(mutant, done[mutant.name]["caught_by"]) for mutant in mutants]
    width = max(len(mutant.name) for mutant in mutants)
    for mutant, caught in results:
        print(f"{mutant.name:{width}}  {caught}")
        if caught == NOTHING:
            print(f"{'':{width}}  {mutant.mistake} Reason: {mutant.reason or 'none is given.'}")
    if args.markdown is not None:
        args.markdown.write_text(page(results))
    num_caught = sum(caught != NOTHING for _, caught in results)
    print(f"\n{num_caught} of {len(results)} mutants are caught, {num_caught / len(results):.1%}.")
    if num_caught < LEAST * len(results):
        sys.exit(1)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
