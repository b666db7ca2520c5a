"""Grade one exercise: run its checks in a process of their own, and say in plain words what is wrong.

Whatever a student's code does, the student gets one clear message: it raises, returns nothing, prints, never ends, calls
sys.exit, or changes the random state of everybody. This module itself imports no torch.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import linecache
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

SECONDS = 20.0
"""Seconds of computing that the checks of one exercise may take. `SECONDS` in the module of checks replaces it."""
PATIENCE = 3
"""The checks may take so many times `SECONDS` if the process does not compute, or has to wait for others."""
STARTING = 60.0
"""Seconds for the start of the process, before the first check."""
PRINTED = 2000
"""Characters of what the student's code printed that are shown."""
LARGEST_FILE = 64 * 1024**2
"""Bytes that the student's code may print or write into one file."""
INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    ", "break_long_words": False}
ROOT = Path(__file__).resolve().parents[2]


class Mistake(Exception):
    """A check fails: one plain sentence about the likely mistake, with the smallest numbers that show it."""


@dataclass(frozen=True)
class Check:
    """One thing that a solution must do."""

    name: str
    """what must hold, in a few words"""
    run: Callable[[ModuleType], None]
    """takes the student's module, and raises `Mistake` if it does not hold"""


NO_HINT = (
    "The message of `check` says what is wrong. If a given part is broken, `reset` puts the template back and keeps "
    "your text in a backup file.",
)
"""For a check without hints of its own, such as that the settings are as they were."""


@dataclass
class Outcome:
    """What grading found."""

    passed: list[str] = field(default_factory=list)
    """names of the checks that hold, up to the first that fails"""
    total: int = 0
    """number of checks; 0 if the file cannot even be imported"""
    failed: str = ""
    """name of the check that fails"""
    message: str = ""
    """what is wrong; empty if the exercise is solved"""
    todo: bool = False
    """a function still says NotImplementedError"""
    notes: list[str] = field(default_factory=list)
    """what is not wrong, but should not be"""
    printed: str = ""
    """the last characters that the student's code printed"""
    seconds: float = 0.0

    @property
    def solved(self) -> bool:
        """Whether all checks hold."""
        return not self.message


# ------------------------------------------------------------------------------------------------- in this process
def run_checks(
    module: ModuleType, checks: Sequence[Check], say: Callable[[dict[str, Any]], None] = lambda event: None
) -> Outcome:
    """Run checks on a module in this process, up to the first that fails.

    Before each check the random states of Python, NumPy and torch are seeded, and afterwards they are as before.

    Args:
        module: the student's module, already executed.
        checks: in the order in which they are tried.
        say: is told of each check that begins.

    Returns:
        What was found. Nothing that the student's code raises leaves this function.
    """
    found = Outcome(total=len(checks))
    for check in checks:
        say({"begins": check.name})
        notes: list[str] = []
        try:
            with _same_state(notes):
                check.run(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            found.failed, found.message = check.name, _words(error, module)
            found.todo = isinstance(error, NotImplementedError)
            return found
        finally:
            found.notes += [note for note in notes if note not in found.notes]
        found.passed.append(check.name)
    return found


@contextlib.contextmanager
def _same_state(notes: list[str]) -> Iterator[None]:
    """Seed all random numbers, and put back what the code inside changed for the whole process."""
    import random

    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    settings: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "whether torch records gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch.use_deterministic_algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
    }
    before = {name: get() for name, (get, _) in settings.items()}
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.default_generator.manual_seed(0)  # torch.manual_seed also asks other devices, which takes milliseconds
    seeds = []
    manual_seed = torch.manual_seed

    def watched(seed: int) -> torch.Generator:
        seeds.append(seed)
        return manual_seed(seed)

    torch.manual_seed = watched
    try:
        yield
    finally:
        torch.manual_seed = manual_seed
        if seeds:
            notes.append(
                f"your code calls torch.manual_seed({seeds[0]}), which changes the random numbers of the whole program; "
                "use a torch.Generator of your own"
            )
        for name, (get, put) in settings.items():
            if get() != before[name]:
                notes.append(f"your code changes {name} for the whole program: {before[name]} became {get()}")
                put(before[name])
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _words(error: BaseException, module: ModuleType) -> str:
    """An error of a check in words for the student."""
    if isinstance(error, Mistake):
        return str(error)
    file = getattr(module, "__file__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if file is not None and f.filename == file]
    name = Path(file).name if file else module.__name__
    if isinstance(error, NotImplementedError):
        return f"`{frames[-1].name}` is not written yet." if frames else "A function is not written yet."
    if isinstance(error, AttributeError) and error.obj is module:
        return f"{name} has no `{error.name}` any more. Keep the names of the template."
    text = " ".join(str(error).split())[:300]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SystemExit):
        said = f"it calls sys.exit({text})" if text else "it calls sys.exit"
    if isinstance(error, EOFError) and "input" in (frames[-1].line or "" if frames else ""):
        said = "it calls input(), but nobody can answer while it is graded"
    if isinstance(error, RecursionError):
        said = "it calls itself without end (RecursionError)"
    if not frames:
        return f"The check cannot use your code: {said}. Look at arguments and at what is returned."
    line = (frames[-1].line or "").strip()
    return f"Line {frames[-1].lineno} of {name}, in `{frames[-1].name}`: {said}." + (f"\n    {line}" if line else "")


def load(path: Path) -> ModuleType:
    """Execute a student's file as a module that has the file's name.

    Raises:
        Mistake: it cannot be read, is no Python, or raises.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module  # dataclasses look there
    try:
        source = path.read_text(encoding="utf-8")
        code = compile(source, str(path), "exec")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path.name} cannot be read: {error}") from None
    except (SyntaxError, ValueError) as error:
        where = f"Line {error.lineno} of " if isinstance(error, SyntaxError) and error.lineno else ""
        line = (error.text or "").rstrip() if isinstance(error, SyntaxError) else ""
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise Mistake(f"{where}{path.name} is not Python: {message}." + (f"\n    {line}" if line else "")) from None
    linecache.checkcache(str(path))
    try:
        exec(code, module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Mistake(f"The file cannot be imported. {_words(error, module)}") from None
    return module


def hints_of(stem: str, check: str) -> tuple[str, ...]:
    """The hints for one check of an exercise, from the first to the most open.

    Args:
        stem: such as e01_bandit.
        check: the check's name.
    """
    hints: dict[str, tuple[str, ...]] = checks_of(stem).HINTS
    return hints.get(check, NO_HINT)


def checks_of(stem: str) -> ModuleType:
    """The module of checks of an exercise: `CHECKS`, and `HINTS`, which has the hints for each check by its name.

    Raises:
        ValueError: there is none of this name.
    """
    require_exercise(stem)
    return importlib.import_module(f"{__package__}.checks.{stem}")


def require_exercise(stem: str) -> None:
    """Refuse a name that no exercise has; this imports nothing.

    Raises:
        ValueError: there is no exercise of this name.
    """
    if not (Path(__file__).parent / "checks" / f"{stem}.py").is_file():
        raise ValueError(
            f"there is no exercise {stem!r}; the file keeps the name that it has in the course, such as e01_bandit.py"
        )


# ----------------------------------------------------------------------------------------- in a process of its own
def work(path: Path, events: Path, seconds: float | None = None) -> None:
    """What the process does: load, check, and write events, one JSON per line. It ends itself when the time is over."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    out = events.open("a", encoding="utf-8")
    lock = threading.Lock()

    def say(event: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(event) + "\n")
            out.flush()

    checks = checks_of(path.stem)
    say({"ready": len(checks.CHECKS)})
    limit = float(getattr(checks, "SECONDS", SECONDS)) if seconds is None else seconds
    student = threading.get_ident()

    def watch() -> None:
        begin, used = time.monotonic(), time.process_time()
        # Time of this process, because the machine may be busy with something else; and waiting is not endless either.
        while time.process_time() - used < limit and time.monotonic() - begin < PATIENCE * limit:
            time.sleep(0.1)
        frame = sys._current_frames().get(student)
        line = None
        while frame is not None:
            if frame.f_code.co_filename == str(path):
                line = frame.f_lineno
                break
            frame = frame.f_back
        say({"late": limit, "line": line})
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    try:
        module = load(path)
    except Mistake as mistake:
        found = Outcome(message=str(mistake), failed="the file can be imported")
    else:
        found = run_checks(module, checks.CHECKS, say)
    found.seconds = time.perf_counter() - start
    say({"end": {name: value for name, value in vars(found).items() if name != "printed"}})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads and exit handlers of the student's code do not matter any more


def outcome_of(path: Path, seconds: float | None = None) -> Outcome:
    """Grade an exercise's file in a process of its own.

    Args:
        path: the student's file; its name says which exercise it is.
        seconds: of computing that are allowed; None is what the exercise says.

    Returns:
        What was found.

    Raises:
        ValueError: there is no exercise of this name.
    """
    path = path.resolve()
    require_exercise(path.stem)
    with tempfile.TemporaryDirectory(prefix="course_") as folder:
        events, printed = Path(folder, "events"), Path(folder, "printed")
        events.touch()
        start = time.perf_counter()
        with printed.open("wb") as out:
            words = [str(path), str(events), *([] if seconds is None else [str(seconds)])]
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=path.parent,
                env=_environment(), start_new_session=sys.platform != "win32",
            )  # fmt: skip
            try:
                code = _wait(process)
            finally:
                _kill(process)
        said = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        with printed.open("rb") as file:
            file.seek(max(0, printed.stat().st_size - 4 * PRINTED))
            text = file.read().decode("utf-8", errors="replace").strip()
    found = _read(said, code, path, text)
    found.printed = text[-PRINTED:]
    found.seconds = found.seconds or time.perf_counter() - start
    return found


def _environment() -> dict[str, str]:
    # In a clone the child finds this very copy of the package, wherever it runs.
    here = [str(ROOT)] if (ROOT / "pyproject.toml").is_file() else []
    paths = [*here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status; None if the process had to be killed. It ends itself unless its code blocks even that."""
    try:
        return process.wait(STARTING + 2 * PATIENCE * SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process, if it still runs, and all that it started."""
    if process.poll() is not None:
        return
    if sys.platform != "win32":
        import signal

        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()


def _read(said: list[dict[str, Any]], code: int | None, path: Path, printed: str) -> Outcome:
    for event in said:
        if "end" in event:
            return Outcome(**event["end"])
    ready = next((event for event in said if "ready" in event), None)
    begun = [event["begins"] for event in said if "begins" in event]
    where = begun[-1] if begun else "the file can be imported"
    found = Outcome(passed=begun[:-1], total=ready["ready"] if ready and begun else 0, failed=where)
    late = next((event for event in said if "late" in event), None)
    if late is not None or code is None:
        line = f" Line {late['line']} of {path.name} was running." if late and late.get("line") else ""
        limit = f"{late['late']:g} s" if late else "the time allowed"
        found.message = f"Your code does not end within {limit}.{line} Is there a loop without an end?"
    elif ready is None:
        said_last = printed.splitlines()[-1] if printed else f"exit status {code}"
        found.message = f"The grader cannot start, which is not your fault: {said_last}"
    else:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        found.message = f"Your code ended the whole process ({how}). Is there os._exit, a crash, or too little memory?"
    return found


# ------------------------------------------------------------------------------------------------------- the report
def report(path: Path, found: Outcome) -> str:
    """What a student reads after grading, as text."""
    lines = [f"    holds   {name}" for name in found.passed]
    if found.printed:
        lines += [
            "",
            "    Printed while it was graded:",
            *(f"    | {line}" for line in found.printed.splitlines()[-20:]),
            "",
        ]
    lines += [f"    note    {note}" for note in found.notes]
    if found.solved:
        return "\n".join([f"{path.stem}: solved ({found.total} checks, {found.seconds:.1f} s)", *lines])
    state = "not finished" if found.todo else "not solved"
    later = found.total - len(found.passed) - 1
    rest = f", {later} later {'one is' if later == 1 else 'ones are'} not tried yet" if later > 0 else ""
    count = f" (check {len(found.passed) + 1} of {found.total} fails{rest})" if found.total else ""
    if found.todo:
        count = f" ({len(found.passed)} of {found.total} checks hold)"
    lines += [f"    {'to do' if found.todo else 'FAILS':7} {found.failed}", ""]
    for line in found.message.splitlines():  # lines of code, which begin with spaces, are not wrapped
        lines += [f"    {line}"] if line.startswith(" ") else textwrap.wrap(line, 100, **INDENT)
    number = path.stem.partition("_")[0]
    lines += ["", f"    A hint: python -m sppo_control.course hint {number}"]
    return "\n".join([f"{path.stem}: {state}{count}", *lines])


def grade(file: str | Path) -> int:
    """Grade an exercise's file and print what was found. It is the last line of each exercise.

    Args:
        file: the student's file.

    Returns:
        The exit status: 0 if the exercise is solved, 1 if not, 2 if there is no such exercise.
    """
    path = Path(file)
    try:
        found = outcome_of(path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(path, found))
    return 0 if found.solved else 1


def unwritten(source: str) -> bool:
    """Whether a function of this source still ends in `raise NotImplementedError`; then grading has nothing to add."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Raise):
            exc = node.body[-1].exc
            name = exc.func if isinstance(exc, ast.Call) else exc
            if isinstance(name, ast.Name) and name.id == "NotImplementedError":
                return True
    return False
