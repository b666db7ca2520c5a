"""Verifiable rewards: 1.0 where the answer is right, else 0.0.

`MathReward` runs math-verify in a separate process. The verifier's time limit is a Unix signal. That works only in the main
thread, and cannot interrupt a computation inside C, such as 9^(9^9). A process can always be stopped, and its crash or its
memory does not affect the training.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
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
    return float(completion_text(completion).strip() == answer_text(answer))


def answer_text(answer: Any) -> str:
    """A right answer of a dataset as text: 204.0, which some file formats make of 204, is "204"; "007" stays.

    Raises:
        ValueError: it is neither text nor a number (None, NaN, infinity, a truth value, a list), or empty; LaTeX in it has
            lost a backslash.
    """
    if isinstance(answer, str) and lost_backslash(answer):
        raise ValueError(
            f"{answer!r}, which has lost a backslash; in JSON and in Python it is written twice, as \\\\frac"
        )
    if isinstance(answer, str) and (text := answer.strip().strip("\ufeff\u200b").strip()):
        return text
    if hasattr(answer, "item") and getattr(answer, "shape", None) == ():  # a NumPy number: 0.1 in float32 is 0.1
        answer = float(str(answer)) if str(answer.dtype) in ("float16", "float32") else answer.item()
    if isinstance(answer, int | float | Decimal) and not isinstance(answer, bool) and math.isfinite(answer):
        exact = not isinstance(answer, float) or abs(answer) < 2**53
        return str(int(answer)) if answer == int(answer) and exact else str(answer)
    raise ValueError(f"{answer!r}; a right answer is a text that is not empty, or a finite number")


_LOST = re.compile(
    r"[\x07\x08]|\x0c(?:(?:rac|box)\s*\{|orall\b)|\x0b(?:ec\s*\{|dots\b)"
    r"|\t(?:(?:ext(?:bf|rm|it)?|frac)\s*\{|imes\b|heta\b|riangle)|\r(?:ight[)\]}|.\\]|m\s*\{|angle\b)"
)


def lost_backslash(text: str) -> bool:
    r"""Whether LaTeX in it was written with single backslashes where "\f" is a form feed. Of "\frac{1}{2}" a form feed and
    rac{1}{2} is left, which math-verify reads as a product of letters."""
    return _LOST.search(text) is not None


def gold_text(answer: str) -> str:
    r"""What of a right answer is compared: the last \boxed{...} of a whole solution, or what follows the last "####", as in
    GSM8K, or all of it."""
    return last_boxed(answer) or answer.rpartition("####")[2].strip() or answer.strip()


def last_boxed(text: str) -> str | None:
    r"""What is in the last \boxed{...}, or the number behind \boxed; None where there is none or it is not closed.

    Only the last one counts, so a response cannot try several answers.
    """
    start = bare = None
    for match in re.finditer(r"\\boxed(?:\s*\{|\s*(?P<bare>[-+]?(?:\d[\d.,/]*)?\d)(?=[\s$.,;)]|\\\)|\\\]|$))", text):
        start = match.end()
        bare = match["bare"]
    if start is None or bare is not None:  # \boxed 5
        return bare
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # \{ and \} are characters, not braces
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : start + match.start()].strip()
    return None


def paper_answer(text: str) -> str:
    r"""What the official SPPO code judges of a response: the text after the last </think>, all of it where there is none.

    There \fbox{...} counts as \boxed{...} if no \boxed is in it (github.com/sustech-nlp/SPPO, commit 55e8a72).
    """
    text = text.rpartition("</think>")[2]
    return text if r"\boxed" in text else text.replace(r"\fbox", r"\boxed")


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
    Numbers are compared exactly: 0.333333 is not 1/3. The one exception is a decimal of ten or more digits for a number
    whose decimals have no end (1/3, pi), right to its last digit. An answer in words is compared as words, because
    math-verify reads "east" as a product, equal to "seat". docs/llm_evaluate.md says what else is read, and how.

    `counts` says what happened to all completions so far:

    | key             | completions that                                                                        |
    | --------------- | --------------------------------------------------------------------------------------- |
    | total           | were scored                                                                             |
    | correct         | scored 1.0                                                                              |
    | unparsed        | have no \boxed{...}, or one that math-verify cannot read; they score 0.0                |
    | answer_unparsed | have a right answer that math-verify cannot read: mend the dataset; they score 0.0      |
    | timed_out       | were not decided within `timeout` seconds; they score 0.0                               |
    | crashed         | made the verifier fail or run out of memory; they score 0.0                             |

    `verdicts` has what happened to each completion of the last call. With TRL the share of each is also logged, as
    `math_reward/<key>`. It needs a Unix system. Several threads may call it (they wait for each other), and it can be
    pickled.

    Args:
        timeout: seconds per completion, above 0.
        memory_gib: address space of the verifier's process, above 0.
        tolerance: numbers x and gold are equal if |x - gold| <= tolerance |gold|; from 0 to below 1. 0 is exact.

    Raises:
        ValueError: timeout or memory_gib is not above 0; a tolerance out of its range.
        MissingExtra: math-verify is not installed.
    """

    __name__ = "math_reward"  # TRL's name for the metrics

    def __init__(self, timeout: float = 5.0, memory_gib: float = 4.0, tolerance: float = 0.0) -> None:
        for name, number in (("timeout", timeout), ("memory_gib", memory_gib)):
            if not number > 0:
                raise ValueError(f"{name} must be above 0, got {number}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")
        from sppo_control import extras

        extras.require("llm", "math_verify", wanted_by="MathReward")
        self.timeout, self.memory_gib, self.tolerance = timeout, memory_gib, tolerance
        keys = ("total", "correct", "unparsed", "answer_unparsed", "timed_out", "crashed")
        self.counts = dict.fromkeys(keys, 0)
        self.verdicts: list[str] = []
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
        verdicts = [self.verdict(completion_text(c), a) for c, a in zip(completions, answers, strict=True)]
        self.verdicts = verdicts
        if log_metric is not None and completions:
            for key in self.counts.keys() - {"total", "correct"}:
                log_metric(f"{self.__name__}/{key}", (self.counts[key] - before[key]) / len(completions))
        return [float(verdict == "correct") for verdict in verdicts]

    def close(self) -> None:
        """Stop the verifier's process; the next call starts a new one."""
        if self._worker is not None and self._owner == os.getpid():
            self._worker.kill()
            self._worker.communicate()
        self._worker = None

    def check(self, answers: Sequence[Any]) -> dict[int, str]:
        """Which right answers cannot be read, found once before training. With them R is 0 unless the text is the same.

        Args:
            answers: n texts or numbers.

        Returns:
            index -> answer_unparsed, timed_out or crashed; empty where all can be read.

        Raises:
            ValueError: an answer is neither text nor a number, with its index.
        """
        found, known = {}, {}
        for index, answer in enumerate(_texts("answer", answers)):
            gold = _parts(gold_text(answer))[1]
            if gold not in known:
                number = _split_unit(gold)[0]
                plain = re.fullmatch(r"[+-]?\d+(\.\d+)?", number) or _is_words(gold) or _is_label(number)
                asked = "answer_unparsed" if _is_sentence(number) else None
                known[gold] = "correct" if plain else asked or self._ask(_for_verifier(number), _for_verifier(number))
            if known[gold] not in ("correct", "wrong"):
                found[index] = known[gold]
        return found

    def verdict(self, text: str, answer: Any) -> str:
        """correct, wrong, or why there is no verdict: a key of `counts`. It is counted."""
        boxed = last_boxed(text)
        verdict = self._compare(gold_text(answer_text(answer)), boxed) if boxed else "unparsed"
        with self._lock:
            self.counts["total"] += 1
            if verdict != "wrong":
                self.counts[verdict] += 1
        return verdict

    def _compare(self, gold: str, boxed: str) -> str:
        if boxed == gold:
            return "correct"
        (gold_label, gold), (label, boxed) = _parts(gold), _parts(boxed)
        if gold_label and label and gold_label != label:
            return "wrong"
        if gold_label and label and not (gold and boxed):  # one of them is only the letter
            return "correct"
        if bool(gold_label) != bool(label) and re.fullmatch("[A-J]", boxed if gold_label else gold):
            return "correct" if (gold_label or gold) == (label or boxed) else "wrong"
        if boxed == gold:
            return "correct"
        if not boxed:
            return "unparsed" if not label else "wrong"
        if not gold:  # the right answer is a letter, and this is none
            return "wrong"
        if _is_words(gold) or _is_short_word(gold, boxed):
            return "correct" if _words(boxed).casefold() == _words(gold).casefold() else "wrong"
        bases = [_NUMERAL.fullmatch(text) for text in (gold, boxed)]
        if any(bases):  # the problem names the base, so it may be missing in one of the two
            numerals = [(match["digits"] if match else text) for match, text in zip(bases, (gold, boxed), strict=True)]
            named = {_base(match) for match in bases if match}
            alike = len({numeral.lstrip("0").casefold() for numeral in numerals}) == 1
            return "correct" if alike and len(named) == 1 else "wrong"
        gold, unit = _split_unit(gold)
        boxed, other = _split_unit(boxed, loose=re.fullmatch(r"[-+]?[\d.,]+", gold) is not None)
        if _is_label(gold) or _TIME.fullmatch(boxed):  # 10-12, 2024-01-02 and 3:05 are no differences and no ratios
            alike = not (unit and other and unit != other) and _label(boxed) == _label(gold)
            return "correct" if alike else "wrong"
        if unit and other:
            if unit.dimensions != other.dimensions:
                return "wrong"
            if (ratio := unit.factor / other.factor) != 1:
                gold = rf"({gold}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
        if boxed == gold:
            return "correct"
        verdict = self._ask(_for_verifier(gold), _for_verifier(boxed))
        return "answer_unparsed" if verdict == "wrong" and _is_sentence(gold) else verdict

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
            [sys.executable, "-P", __file__, *map(str, (self.timeout, self.memory_gib, self.tolerance))],
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
                f"run: {sys.executable} -P {__file__} {self.timeout} {self.memory_gib} {self.tolerance}"
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
    return _texts(name, columns[name])


def _texts(name: str, answers: Sequence[Any]) -> list[str]:
    texts = []
    for index, answer in enumerate(answers):
        try:
            texts.append(answer_text(answer))
        except ValueError as error:
            raise ValueError(f"the column {name!r} at index {index} is {error}") from None
    return texts


# ---------------------------------------------------------------------------------------------- reading an answer
def _split_unit(text: str, loose: bool = False) -> tuple[str, Any]:
    from sppo_control.llm.units import split_unit  # not at the top: the verifier's process has no package

    return split_unit(text, loose)


_SPACE = r"\s|~|\\[ ,;:!](?!\w)|\\q?quad\b"
_FONT = r"\\(?:text|textbf|textrm|textsf|textit|mathrm|mathbf|mathsf|boldsymbol|bm|rm|bf|mbox)"
_LABEL = re.compile(
    rf"\s*(?:{_FONT}\s*\{{\s*\(\s*(?P<a>[A-J])\s*\)\s*\}}|\(\s*{_FONT}\s*\{{\s*(?P<b>[A-J])\s*\}}\s*\)"
    rf"|\((?P<c>[A-J])\)(?=\s*(?:[-\d.$]|\\[dt]?frac|\\sqrt|\\pi|\\text|\\?\s*$))"
    rf"|{_FONT}\s*\{{\s*(?P<d>[A-J])\s*\}}(?=\s*$)"
    rf"|{_FONT}\s*\{{\s*\((?P<e>[A-J])\)\s*(?P<rest>[^{{}}]+)\}}(?=\s*$))"
    r"(?:\\[ ,;:!]|\\q?quad\b|[\s~:])*"
)
r"""The letter of a multiple choice in front of the answer, as AMC's \textbf{(B)}\ 12."""
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
_NUMERAL = re.compile(
    rf"(?P<digits>-?[0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?|[A-F]+(?=_\{{?16))_\s*\{{?\s*(?:{_FONT}\s*\{{)?\s*\(?"
    rf"(?P<base>\d+|{'|'.join(_BASES)})\)?\s*\}}?\s*\}}?"
)
"""A numeral and its base, as 2516_8. math-verify does not read the base."""
_SHORT_WORDS = frozenset(
    "an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|ok|on|or|ox|so|to|up|us|we|ne|nw|se|sw".split("|")  # noqa: SIM905
)
"""Words and points of the compass of two letters. Other pairs of letters are products: ab is ba."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SIGNS = {
    "\u2212": "-", "\u00d7": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "º": "°", "°": r"^\circ ", r"\degree": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "\u222a": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "θ": r"\theta ", "∅": r"\emptyset ",
}  # fmt: skip
_SEPARATOR = r"(?:\\[,:;! ]|\\thinspace\b\s*|\{,\}|\{\\,\}|,\\!|\\!,\\!|~| )"
_THOUSANDS = re.compile(rf"(?<![\d.,\w])\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)")
_REPEATING = re.compile(
    r"(?P<whole>\d*)\.(?P<once>\d*)(?:\\(?:overline|overbar|bar|dot)\s*(?:\{(?P<a>\d+)\}|(?P<b>\d))(?!\d*\\dot)"
    r"|\\dot\s*\{(?P<c>\d)\}(?P<d>\d*)\\dot\s*\{(?P<e>\d)\}|\((?P<f>\d+)\)(?!\s*[\d(]))"
)


def _parts(text: str) -> tuple[str, str]:
    r"""(letter of a multiple choice or "", answer in plain LaTeX): \textbf{(B)}\ 10\,000. is ("B", "10000")."""
    text = _plain(text)
    if match := _LABEL.match(text):
        letter = next(match[name] for name in "abcde" if match[name])
        return letter, _plain(match["rest"] or text[match.end() :])
    return "", text


def _plain(text: str) -> str:
    r"""The answer without \[ \], $ $, full stop and font, its signs and numbers as LaTeX has them."""
    before = None
    while text != before:  # $\text{3.}$ has several of them
        before = text
        text = re.sub(rf"(?:{_SPACE}|(?<!\\)\\){{1,8}}$|^(?:{_SPACE}){{1,8}}", "", text).strip("\ufeff\u200b`")
        text = re.sub(r"^\*\*([^*]*)\*\*$|^\\underline\s*\{([^{}]*)\}$", lambda match: match[1] or match[2] or "", text)
        for left, right in ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"), (r"\displaystyle", "")):
            inner = text[len(left) : len(text) - len(right)]
            if text.startswith(left) and text.endswith(right) and len(text) >= len(left + right) and left not in inner:
                text = inner.strip()
        if not re.search(r"(?:\\(?:right|left)|\.)\.$", text):
            text = text.removesuffix(".").removesuffix(r"\\").strip()
        text = re.sub(rf"{_FONT}\s*\{{\s*([-+\d.,]+)\s*\}}", r"\1", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = "".join(_one_character(character) for character in text)
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    text = unicodedata.normalize("NFKC", text)  # digits of full width, spaces of other widths
    for sign, index in (("√", ""), ("∛", "[3]"), ("∜", "[4]")):
        inner = r"\s*\(((?:[^()]|\([^()]*\))*)\)"
        text = re.sub(
            rf"{sign}{inner}|{sign}\s*\{{([^{{}}]*)\}}|{sign}\s*(\d+(?:\.\d+)?|[A-Za-z]|\\pi)", _root(index), text
        )
    text = re.sub(r"\\(?:textcolor|color)\s*\{\w+\}", "", text)
    text = re.sub(r"(?<=[\w)}])\s*\*\*\s*(-?\d+)", r"^{\1}", text)  # 2**10
    text = re.sub(r"(?<=\d)\s*[xX*]\s*(?=10\s*\^)", r" \\times ", text)  # 3 x 10^8
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|(?<![\\A-Za-z])sqrt\s*\{([^{}]*)\}()", _root(""), text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    text = _REPEATING.sub(_repeating, text)
    text = _THOUSANDS.sub(lambda match: re.sub(_SEPARATOR, "", match[0]), text)
    text = re.sub(r"^([+-]?)(\d+)\s+(\d+)\s*/\s*(\d+)$", r"\1\2\\frac{\3}{\4}", text)
    return text.strip()


def _root(index: str) -> Callable[[re.Match[str]], str]:
    return lambda match: rf"\sqrt{index}{{{match[1] or match[2] or match[3]}}}"


def _one_character(character: str) -> str:
    r"""½ -> \frac{1}{2}; digits of any script and dashes of any length -> those of ASCII."""
    if character.isascii():
        return character
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    if unicodedata.category(character) == "Pd":
        return "-"
    if character in "\u2044\u2215":  # other slashes
        return "/"
    kind = unicodedata.decomposition(character)
    if not kind.startswith("<fraction>"):
        return character
    top, _, bottom = unicodedata.normalize("NFKC", character).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _repeating(match: re.Match[str]) -> str:
    r"""0.1\overline{6} -> \frac{1}{6}"""
    once = match["once"]
    period = match["a"] or match["b"] or match["f"] or f"{match['c']}{match['d']}{match['e']}"
    number = Fraction(int(f"{match['whole']}{once}{period}") - int(f"{match['whole']}{once}" or 0)) / (
        (10 ** len(period) - 1) * 10 ** len(once)
    )
    return rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


def _for_verifier(text: str) -> str:
    """The text with what math-verify would misread in other words: 4.5e33 is no Euler's number, and bases count."""
    text = re.sub(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?!\w)", r"\1 \\times 10^{\2}", text)
    return _NUMERAL.sub(lambda match: rf"({match['digits']} \omega^{{{_base(match)}}})", text)


def _base(match: re.Match[str]) -> int:
    return _BASES.get(match["base"]) or int(match["base"])


_TIME = re.compile(r"\d{1,2}:0\d|0\d:\d\d")
_LABELS = re.compile(rf"\d+(?:-{{1,2}}\d+)+|{_TIME.pattern}")


def _is_label(gold: str) -> bool:
    """A range, a date or a time, as 10-12, 2024-01-02 and 3:05."""
    return _LABELS.fullmatch(gold.replace(" ", "")) is not None and not re.search(r"\s-|-\s", gold)


def _label(text: str) -> list[str]:
    return [part.lstrip("0") or "0" for part in re.findall(r"\d+|[^-:\d\s]+", text)] + re.findall("[-:]", text)[:1]


_SENTENCE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:and|or|mod|if|for|where|with)\b)[A-Za-z]{2,}\s+(?!(?:and|or|mod|if|for|where|with)\b)[A-Za-z]{2,}\b"
    r"|(?<![\\A-Za-z])(?!(?:log|exp|sin|cos|tan|sqrt)\b)[A-Za-z]{3,}(?:\s*:|\s+[-\d])|\d\s+\(?(?!(?:and|mod|sin|cos|tan|log|exp)\b)[A-Za-z]{3,}|[\"?]|\d,\s+[A-Za-z]{2,}\b"
    r"|\$.*\$\s*[A-Za-z]{2,}"
)


def _is_sentence(gold: str) -> bool:
    """Whether the answer is a sentence with a number in it, which math-verify reads as a product of letters."""
    return _SENTENCE.search(gold) is not None


def _is_words(gold: str) -> bool:
    """Whether the answer is compared as words: three letters or more, or one that the dataset marks as a text."""
    text = re.fullmatch(r"[A-Za-z][A-Za-z\s]+", words := _words(gold))
    return text is not None and (len(words) > 2 or re.match(r"\\(?:text|textbf|mathrm)\b", gold) is not None)


def _is_short_word(gold: str, boxed: str) -> bool:
    return gold.casefold() in _SHORT_WORDS and re.fullmatch(r"[A-Za-z]+", _words(boxed)) is not None


def _words(text: str) -> str:
    r"""The text without \text{...} around its parts and with single spaces."""
    return " ".join(re.sub(rf"{_FONT}\s*\{{([^{{}}]*)\}}", r"\1", text).split()).removesuffix(".")


# ------------------------------------------------------------------------------------------- the verifier's process
def _verdict(gold: str, boxed: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    # Only LaTeX: math-verify's plain expressions use sympy's parse_expr, which calls eval.
    one = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    if (usual := getattr(one, "normalization_config", None)) is not None:  # it is not in the stand-ins of the tests
        # What it takes for units are also variables: it reads 3t as 3. `split_unit` has split them off.
        one = dataclasses.replace(one, normalization_config=dataclasses.replace(usual, units=False))
    config = [one]
    parsed = []
    for text, failure in ((gold, "answer_unparsed"), (boxed, "unparsed")):
        found = parse(f"\\boxed{{{text}}}", config, extraction_mode="first_match", parsing_timeout=None)
        if all(isinstance(x, str) for x in found):  # unreadable input comes back as text, or not at all
            return failure
        parsed.append(found)
    return "correct" if verify(*parsed, timeout_seconds=None, raise_on_error=True) else "wrong"


def _compare_exactly(tolerance: float) -> None:
    """Have math-verify compare numbers by `equal`, wherever they are (alone, in sets, tuples, intervals, matrices).

    Its own comparison rounds decimals to six places and takes small differences for none: 9.1e-31 is 1.6e-19.
    """
    import sympy  # type: ignore[import-untyped]
    from latex2sympy2_extended import latex2sympy2  # type: ignore[import-untyped]

    grader: Any = sys.modules["math_verify.grader"]
    original, symbolic = grader.sympy_numeric_eq, latex2sympy2._Latex2Sympy.parse_number

    def parse_number(self: Any, text: str) -> Any:
        number = symbolic(self, text)  # decimals become fractions, so nothing is rounded
        return sympy.Rational(str(number)) if isinstance(number, sympy.Float) else number

    def equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
        if isinstance(a, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(b, sympy.MatrixBase | sympy.MatrixExpr):
            return bool(original(a, b, float_rounding, numeric_precision))  # asks for each element here
        values = [[grader.safe_sympy_doit(x)] for x in (a, b)]
        parts = [grader.get_pct_val(x) for x in (a, b)]
        for number, part, other in zip(values, parts, reversed(parts), strict=True):
            if part is not None and other is None:  # 50 % is 0.5 and 50, but 50 % is not 0.5 %
                number.append(grader.safe_sympy_doit(part))
        return any(_numbers_equal(x, y, tolerance) for y in values[0] for x in values[1])

    latex2sympy2._Latex2Sympy.parse_number = parse_number
    grader.sympy_numeric_eq = equal
    # Its own pattern finds a complex number in "2 i" and none in "2i", so the two had different symbols.
    parser: Any = sys.modules["math_verify.parser"]
    parser.should_treat_as_complex = lambda text: re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", text) is not None


def _numbers_equal(x: Any, gold: Any, tolerance: float) -> bool:
    """Two sympy expressions; False where one of them is no number."""
    import sympy

    if x == gold:
        return True
    if not (getattr(x, "is_number", False) and getattr(gold, "is_number", False)):
        return False
    exact = isinstance(x, sympy.Rational) and isinstance(gold, sympy.Rational)
    a, b = (x, gold) if exact else (sympy.N(x, 60), sympy.N(gold, 60))
    if not (a.is_finite and b.is_finite):
        return False
    if tolerance and abs(a - b) <= sympy.Rational(str(tolerance)) * abs(b):
        return True
    if not exact and abs(a - b) <= abs(b) * sympy.Float("1e-50", 60):
        return True
    return any(_ends_as(p, q, abs(a - b)) for p, q in ((x, gold), (gold, x)))


def _ends_as(decimal: Any, endless: Any, difference: Any) -> bool:
    """Whether the first number is a decimal of ten digits or more that agrees with the second, which has no end."""
    places = _places(decimal)
    if places is None or places == 0 or _places(endless) is not None:
        return False
    return len(str(abs(decimal.p * 10**places // decimal.q))) >= 10 and difference * 10**places <= 1


def _places(x: Any) -> int | None:
    """Decimal places of a number; None where they have no end."""
    if not getattr(x, "is_Rational", False) or not x.is_finite:
        return None
    rest, counts = int(x.q), []
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        counts.append(count)
    return max(counts) if rest == 1 else None


def _serve(timeout: float, memory_gib: float, tolerance: float) -> None:
    """Answer requests, one JSON line per request, until the pipe closes."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the verifier prints must not get into the answers
    logging.disable(logging.CRITICAL)
    limit = int(memory_gib * 2**30)
    try:
        import resource  # Unix only, as the timer below; MathReward says so elsewhere

        import math_verify  # noqa: F401

        if "math_verify.grader" in sys.modules:  # it is not in the stand-ins of the tests
            _compare_exactly(tolerance)
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
    _serve(*map(float, sys.argv[1:4]))
