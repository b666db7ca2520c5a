"""Verifiable rewards: 1.0 where the answer is right, else 0.0.

`MathReward` runs math-verify in a separate process. The verifier's time limit is a Unix signal. That works only in the main
thread, and cannot interrupt a computation inside C, such as 9^(9^9). A process can always be stopped, and its crash or its
memory does not affect the training.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# No torch, and nothing of this package, is imported at the top, because the verifier's process runs this same file.

Completion = str | Sequence[dict[str, Any]]
"""Text, or chat messages; of these the content of the last one counts."""

COLUMNS = ("answer", "solution")
"""Columns of the dataset that may contain the answer; the first one present is taken."""


def completion_text(completion: Completion) -> str:
    """The text of a completion: a string as it is, or the content of the last chat message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # parts of a multimodal message
        return "".join(part.get("text", "") for part in content)
    return content or ""


def exact_match(completion: Completion, answer: str) -> float:
    """1.0 if the completion is the answer, without the spaces around both, else 0.0.

    As a reward function of TRL: `lambda completions, answer, **_: list(map(exact_match, completions, answer))`.
    """
    return float(completion_text(completion).strip() == str(answer).strip())


def last_boxed(text: str) -> str | None:
    r"""What is in the last \boxed{...}; None where there is none or it is not closed.

    Only the last one counts, so a response cannot try several answers.
    """
    start = None
    for match in re.finditer(r"\\boxed\s*\{", text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # \{ and \} are characters, not braces
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : start + match.start()].strip()
    return None


def check_outcomes(rewards: Any) -> None:
    """Refuse rewards that are not 0 or 1.

    Args:
        rewards: a list of numbers, or a tensor of any shape.

    Raises:
        ValueError: one of them is neither 0 nor 1.
    """
    numbers = rewards.flatten().tolist() if hasattr(rewards, "flatten") else list(rewards)
    for index, number in enumerate(numbers):
        if number not in (0, 1):
            raise ValueError(
                f"SPPO's rewards must be 0 (failure) or 1 (success), got {number} at index {index}. Threshold the reward, "
                "as in `lambda **kw: [float(r > 0.5) for r in reward(**kw)]`; with several reward functions, make one "
                "that returns 1.0 where all of them are satisfied. NaN is a reward function that returned None."
            )


class MathReward:
    r"""1.0 where the last \boxed{...} of a completion equals the answer by math-verify, else 0.0.

    As a reward function of TRL: `SPPOTrainer(reward_funcs=MathReward(), ...)`. It reads the column `answer` or `solution`.
    An answer in words is compared as words, because math-verify reads "east" as a product, equal to "seat".

    `counts` says what happened to all completions so far:

    | key             | completions that                                                                        |
    | --------------- | --------------------------------------------------------------------------------------- |
    | total           | were scored                                                                             |
    | correct         | scored 1.0                                                                              |
    | unparsed        | have no \boxed{...}, or one that math-verify cannot read; they score 0.0                |
    | answer_unparsed | have a right answer that math-verify cannot read: mend the dataset; they score 0.0      |
    | timed_out       | were not decided within `timeout` seconds; they score 0.0                               |
    | crashed         | made the verifier fail or run out of memory; they score 0.0                             |

    With TRL the share of each is also logged, as `math_reward/<key>`. It needs a Unix system. Several threads may call it
    (they wait for each other), and it can be pickled.

    Args:
        timeout: seconds per completion, above 0.
        memory_gib: address space of the verifier's process, above 0.

    Raises:
        ValueError: timeout or memory_gib is not above 0.
        MissingExtra: math-verify is not installed.
    """

    __name__ = "math_reward"  # TRL's name for the metrics

    def __init__(self, timeout: float = 5.0, memory_gib: float = 4.0) -> None:
        for name, number in (("timeout", timeout), ("memory_gib", memory_gib)):
            if not number > 0:
                raise ValueError(f"{name} must be above 0, got {number}")
        from sppo_control import extras

        extras.require("llm", "math_verify", wanted_by="MathReward")
        self.timeout, self.memory_gib = timeout, memory_gib
        keys = ("total", "correct", "unparsed", "answer_unparsed", "timed_out", "crashed")
        self.counts = dict.fromkeys(keys, 0)
        self._worker: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def __call__(
        self,
        completions: Sequence[Completion],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Score completions.

        Args:
            completions: n strings or chats.
            log_metric: TRL gives it.
            columns: n entries each. `answer` or `solution` contains the right answers: text or numbers, bare or inside
                \\boxed{...}. Other columns are ignored.

        Returns:
            n numbers, 0.0 or 1.0.

        Raises:
            ValueError: there is no answer column, it has another length, or None is in it.
            RuntimeError: the verifier cannot start.
        """
        answers = _answers(columns, len(completions))
        before = dict(self.counts)
        rewards = [self._score(completion_text(c), a) for c, a in zip(completions, answers, strict=True)]
        if log_metric is not None and completions:
            for key in self.counts.keys() - {"total", "correct"}:
                log_metric(f"{self.__name__}/{key}", (self.counts[key] - before[key]) / len(completions))
        return rewards

    def close(self) -> None:
        """Stop the verifier's process; the next call starts a new one."""
        if self._worker is not None and self._owner == os.getpid():
            self._worker.kill()
            self._worker.communicate()
        self._worker = None

    def _score(self, text: str, answer: str) -> float:
        boxed = last_boxed(text)
        gold = last_boxed(answer) or answer.strip()
        if boxed is None or not boxed:
            verdict = "unparsed"
        elif boxed == gold:
            verdict = "correct"
        elif re.fullmatch(r"[A-Za-z][A-Za-z\s]{2,}", words := _words(gold)):
            verdict = "correct" if _words(boxed).casefold() == words.casefold() else "wrong"
        else:
            verdict = self._ask(_power_of_ten(gold), _power_of_ten(boxed))
        with self._lock:
            self.counts["total"] += 1
            if verdict != "wrong":
                self.counts[verdict] += 1
        return float(verdict == "correct")

    def _ask(self, gold: str, boxed: str) -> str:
        """The verdict of the verifier's process."""
        with self._lock:
            # After a fork the pipe is the parent's. A worker that died since its last verdict did not die of this one.
            if self._worker is None or self._owner != os.getpid() or self._worker.poll() is not None:
                self._worker = self._start()
            assert self._worker.stdin is not None
            assert self._worker.stdout is not None
            try:
                self._worker.stdin.write(json.dumps([gold, boxed]) + "\n")
                self._worker.stdin.flush()
                line = self._worker.stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                return json.loads(line)
            code = self._worker.wait()
            self.close()
            return "timed_out" if code == -getattr(signal, "SIGALRM", 14) else "crashed"

    def _start(self) -> subprocess.Popen[str]:
        # A separate program, not multiprocessing: that would fork a process with threads or CUDA, or import the user's
        # script again. -P keeps this folder out of the import path. A new session does not receive Ctrl-C.
        worker = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.timeout), str(self.memory_gib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert worker.stdout is not None
        ready = worker.stdout.readline()
        if ready != '"ready"\n':
            worker.kill()
            raise RuntimeError(
                f"the verifier's process does not start ({ready.strip() or f'exit code {worker.wait()}'}); to see why, "
                f"run: {sys.executable} -P {__file__} {self.timeout} {self.memory_gib}"
            )
        self._owner = os.getpid()
        return worker

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.close()


def _answers(columns: dict[str, Any], n: int) -> list[str]:
    name = next((name for name in COLUMNS if columns.get(name) is not None), None)
    if name is None:
        given = sorted(key for key, value in columns.items() if isinstance(value, list | tuple))
        raise ValueError(
            f"no answer column: the reward needs one of {', '.join(COLUMNS)}, got {', '.join(given) or 'no column'}; "
            'rename yours with dataset.rename_column("<its name>", "answer")'
        )
    if len(columns[name]) != n:
        raise ValueError(f"the column {name!r} has {len(columns[name])} entries for {n} completions")
    for index, answer in enumerate(columns[name]):
        if answer is None:
            raise ValueError(
                f"the column {name!r} is None at index {index} of this batch; drop such rows with "
                f'dataset.filter(lambda row: row["{name}"] is not None)'
            )
    return [str(answer) for answer in columns[name]]


def _words(text: str) -> str:
    r"""The text without \text{...} around its parts and with single spaces."""
    return " ".join(re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text).split())


def _power_of_ten(text: str) -> str:
    r"""4.5e33, as in Minerva Math, becomes 4.5 \times 10^{33}; math-verify would read Euler's number times 33."""
    number = re.fullmatch(r"([+-]?\d+\.?\d*)[eE]([+-]?\d+)", text)
    return f"{number[1]} \\times 10^{{{number[2]}}}" if number else text


# ------------------------------------------------------------------------------------------- the verifier's process
def _verdict(gold: str, boxed: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    # Only LaTeX: math-verify's plain expressions use sympy's parse_expr, which calls eval.
    config = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
    parsed = []
    for text, failure in ((gold, "answer_unparsed"), (boxed, "unparsed")):
        found = parse(f"\\boxed{{{text}}}", config, extraction_mode="first_match", parsing_timeout=None)
        if all(isinstance(x, str) for x in found):  # unreadable input comes back as text, or not at all
            return failure
        parsed.append(found)
    return "correct" if verify(*parsed, timeout_seconds=None, raise_on_error=True) else "wrong"


def _serve(timeout: float, memory_gib: float) -> None:
    """Answer requests, one JSON line per request, until the pipe closes."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the verifier prints must not get into the answers
    logging.disable(logging.CRITICAL)
    limit = int(memory_gib * 2**30)
    try:
        import resource  # Unix only, as the timer below; MathReward says so elsewhere

        import math_verify  # noqa: F401

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        ready = "ready"
    except Exception as error:
        ready = f"{type(error).__name__}: {error}"
    print(json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        # Nobody handles SIGALRM, so it ends this process at any point. The parent sees it in the exit code.
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            verdict = _verdict(*json.loads(line))
        except Exception:
            verdict = "crashed"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=out, flush=True)


if __name__ == "__main__":
    _serve(float(sys.argv[1]), float(sys.argv[2]))
