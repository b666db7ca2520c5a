"""Prompts and their answers, from a dataset or made here, as token ids; and the rewards by name."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sppo_control.llm import addition
from sppo_control.llm.rewards import COLUMNS, MathReward, answer_text, check_outcomes, exact_match
from sppo_control.llm.tokenizers import prompt_ids, prompt_text

TEXTS = ("prompt", "question", "problem", *COLUMNS)
"""Columns of a .csv file that stay texts, so that an answer 007 does."""
REWARDS = ("math", "exact", "after-equals")
"""What is the answer: a boxed formula, compared by math-verify; the whole response; what follows the last "="."""
Reward = Callable[[list[str], dict[str, list[Any]]], list[float]]
"""(n responses, columns of their prompts with n entries each) -> n numbers, 0.0 or 1.0"""


@dataclass(frozen=True)
class Prompts:
    """Prompts that are short enough, in the dataset's order.

    | field       | type                   | meaning                                         |
    | ----------- | ---------------------- | ----------------------------------------------- |
    | texts       | list[str]              | as the policy reads them                        |
    | ids         | list[list[int]]        | their tokens                                    |
    | answers     | list[str]              | the right answers; "" where the dataset has none |
    | num_long    | int                    | prompts that were too long and are left out     |
    | columns     | dict[str, list]        | the dataset's columns, as they are in it        |
    | rows        | list[int]              | their rows in the dataset, from 0; [] is all of them |
    """

    texts: list[str]
    ids: list[list[int]]
    answers: list[str]
    num_long: int = 0
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, held_out: int) -> tuple[Prompts, Prompts]:
        """Prompts for training, and held-out prompts. Which ones are held out depends only on the two numbers.

        The two parts share no prompt: of a prompt that the dataset has several times, and that is held out, none is trained
        on. White space makes no other prompt.

        Raises:
            ValueError: nothing would be left to train on.
        """
        if not 1 <= held_out < len(self):
            raise ValueError(
                f"--eval-prompts must be at least 1 and leave prompts for training, got {held_out} of {len(self)}"
            )
        order = np.random.default_rng(0).permutation(len(self)).tolist()
        held = {self._key(row) for row in order[:held_out]}
        train = sorted(row for row in order[held_out:] if self._key(row) not in held)
        if not train:
            raise ValueError(f"no prompt is left for training: all {len(self)} are the same as a held-out one")
        return self._take(train), self._take(sorted(order[:held_out]))

    def _key(self, row: int) -> str:
        return " ".join(self.texts[row].split())

    def repeated(self) -> dict[str, list[int]]:
        """The prompts that are there several times -> their indices. White space makes no other prompt."""
        rows: dict[str, list[int]] = {}
        for row in range(len(self)):
            rows.setdefault(self._key(row), []).append(row)
        return {key: found for key, found in rows.items() if len(found) > 1}

    def _take(self, rows: list[int]) -> Prompts:
        pick = lambda column: [column[row] for row in rows]  # noqa: E731
        columns = {name: pick(column) for name, column in self.columns.items()}
        numbers = pick(self.rows) if self.rows else list(rows)
        return Prompts(pick(self.texts), pick(self.ids), pick(self.answers), self.num_long, columns, numbers)

    def reward_columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """What a reward reads beside the responses: the columns of `rows`. `answer` is always among them."""
        columns = {"answer": self.answers, **self.columns}
        return {name: [column[row] for row in rows] for name, column in columns.items()}

    def batch(self, update: int, size: int, seed: int) -> list[int]:
        """The rows of an update's batch: epochs of shuffled prompts, without an epoch's incomplete last batch.

        They depend only on (seed, update), so a resumed run sees the same prompts as an uninterrupted one.

        Raises:
            ValueError: there are fewer prompts than one batch.
        """
        per_epoch = len(self) // size
        if per_epoch == 0:
            raise ValueError(f"--batch-size asks for {size} prompts per update, and there are {len(self)} to train on")
        epoch, index = divmod(update, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        return order[index * size : (index + 1) * size].tolist()


def load_prompts(
    dataset: str | os.PathLike[str] | None,
    tokenizer: Any,
    split: str = "train",
    max_prompt_length: int | None = None,
    long_prompts: Literal["drop", "error"] = "drop",
    needs_answer: bool = True,
) -> Prompts:
    """Read a dataset.

    Args:
        dataset: a .jsonl, .json, .parquet or .csv file, a folder or a Hub id. It has a column `prompt` (text, or chat
            messages, which get the tokenizer's chat template) and a column `answer` or `solution`. None makes about
            17,000 additions, always the same ones.
        tokenizer: the policy's.
        split: of the dataset.
        max_prompt_length: longest prompt in tokens; None is no limit.
        long_prompts: what happens to longer ones: they are counted and left out, or refused.
        needs_answer: whether a dataset without a column `answer` or `solution` is refused, and an answer that is None.

    Raises:
        ValueError: a column is missing; an answer is missing or no text or number; a prompt is empty, too long, not a text,
            or begins with two begin-of-text tokens; none is left.
        OSError: there is no such dataset.
    """
    rows: Any
    if dataset is None:
        pairs = dict.fromkeys(addition.problems(20_000, np.random.default_rng(0)))
        rows, columns = addition.rows(list(pairs)), {"prompt", "answer"}
    else:
        rows = read_dataset(dataset, split)
        columns = set(rows.column_names)
    answer = next((name for name in COLUMNS if name in columns), None)
    for name, there, wanted in (
        ("prompt", "prompt" in columns, "prompt"),
        ("answer", answer is not None or not needs_answer, " or ".join(COLUMNS)),
    ):
        if not there:
            raise ValueError(f"{dataset} has no column {wanted}, it has {_mend_columns(columns, name, dataset)}")
    texts, ids, answers, kept, numbers = [], [], [], [], []
    num_long = longest = 0
    for index, row in enumerate(rows):
        right = None if answer is None else row[answer]
        if needs_answer or right is not None:
            try:
                right = answer_text(right)
            except ValueError as error:
                if needs_answer:
                    raise ValueError(
                        f"{dataset}: the {answer} in row {index} is {error}; mend or leave out such rows"
                    ) from None
                right = str(right)
        if not isinstance(row["prompt"], str | list):
            raise ValueError(
                f"{dataset}: the prompt in row {index} is {row['prompt']!r}, neither a text nor a list of chat messages"
            )
        try:
            text, tokens = prompt_text(row["prompt"], tokenizer), prompt_ids(row["prompt"], tokenizer)
        except ValueError as error:
            raise ValueError(f"{dataset}, row {index}: {error}") from error
        if not tokens or not text.strip():
            raise ValueError(f"{dataset}: the prompt in row {index} is empty; leave such rows out")
        longest = max(longest, len(tokens))
        if max_prompt_length is not None and len(tokens) > max_prompt_length:
            num_long += 1
            continue
        texts.append(text)
        ids.append(tokens)
        answers.append("" if right is None else right)
        kept.append(row)
        numbers.append(index)
    if num_long and long_prompts == "error":
        raise ValueError(
            f"{num_long} of {num_long + len(ids)} prompts are longer than --max-prompt-length {max_prompt_length}, the "
            f"longest has {longest} tokens; raise it, or leave them out with --long-prompts drop"
        )
    if not ids:
        raise ValueError(
            f"{dataset}: no prompt is left; {num_long} are longer than --max-prompt-length {max_prompt_length}"
        )
    return Prompts(
        texts, ids, answers, num_long, {name: [row[name] for row in kept] for name in sorted(columns)}, numbers
    )


def _mend_columns(columns: set[str], name: str, dataset: Any) -> str:
    """The columns that are there, and how to make one of them `name`."""
    shown = ", ".join(column if column == column.strip() and column else repr(column) for column in sorted(columns))
    text = str(dataset)
    if text.endswith(".csv") and (sign := next((x for x in ";\t|" if any(x in column for column in columns)), None)):
        return f"{shown}; the columns of a .csv file are separated by commas, and these seem to be by {sign!r}"
    if text.endswith((".csv", ".json", ".jsonl")):
        return f'{shown}; rename yours in the file to "{name}"'
    return f'{shown}; rename yours: datasets.load_dataset(...).rename_column("<its name>", "{name}").to_json("train.jsonl")'


class Rows:
    """Rows of a text file, as a Hugging Face `Dataset` gives them, but with each value as the file has it: a `Dataset`
    makes one type of a column, and so 204.0 of 204."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.column_names = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({name: row.get(name) for name in self.column_names} for row in self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        return [row.get(name) for row in self.rows]


def _read_text(path: Path) -> Rows:
    """A .jsonl, .json (a list of objects, or JSON Lines) or .csv file in UTF-8, with or without a byte order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"cannot read {path}: it is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise ValueError(f"cannot read {path}: it is empty")
    if path.suffix == ".csv":
        return Rows(_read_csv(path, text))
    whole = None
    if path.suffix == ".json" and text.lstrip().startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):  # JSON Lines, which are read below
            whole = _parse(text)
    if path.suffix == ".json" and (text.lstrip().startswith("[") or whole is not None):
        try:
            whole = _parse(text) if whole is None else whole
        except ValueError as error:
            raise ValueError(f"cannot read {path}: {error}") from error
        if isinstance(whole, dict) and any(isinstance(value, list | dict) for value in whole.values()):
            inside = next(name for name, value in whole.items() if isinstance(value, list | dict))
            raise ValueError(
                f"cannot read {path}: it is one object, with more of them in {inside!r}; save a list of rows, each an "
                "object with the columns' names (in pandas orient='records')"
            )
        found = list(enumerate(whole if isinstance(whole, list) else [whole]))
        where = "row"
    else:
        found, where = [], "line"
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    found.append((number, _parse(line)))
                except json.JSONDecodeError as error:
                    raise ValueError(f"cannot read {path}: line {number} is not JSON: {error}") from error
                except ValueError as error:
                    raise ValueError(f"cannot read {path}: line {number}: {error}") from error
    for number, row in found:
        if not isinstance(row, dict):
            raise ValueError(
                f"cannot read {path}: {where} {number} is {str(row)[:40]!r}, not an object with the columns' names"
            )
    if not found:
        raise ValueError(f"cannot read {path}: it is empty")
    return Rows([row for _, row in found])


def _parse(text: str) -> Any:
    """JSON in which no name is there twice, and no digit is lost: a number that float cannot hold is a Decimal.

    Raises:
        ValueError: it is not such JSON.
    """

    def number(digits: str) -> float | Decimal:
        rounded = float(digits)
        return rounded if math.isinf(rounded) or Decimal(digits) == Decimal(repr(rounded)) else Decimal(digits)

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            names = [name for name, _ in found]
            raise ValueError(
                f"{next(x for x in names if names.count(x) > 1)!r} is there twice in one object; leave one out"
            )
        return made

    try:
        return json.loads(text, parse_float=number, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def _read_csv(path: Path, text: str) -> list[dict[str, Any]]:
    """Rows of texts; numbers in columns other than `TEXTS`, if the whole column has such."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # not splitlines: U+2028 ends no line
    rows: list[dict[str, Any]] = []
    try:
        names = list(reader.fieldnames or ())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"cannot read {path}: line 1 has the column {twice[0]!r} twice; leave one out")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"cannot read {path}: line {reader.line_num} has not the {len(reader.fieldnames or ())} columns of "
                    "line 1"
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"cannot read {path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"cannot read {path}: it is empty")
    for name in set(rows[0]) - set(TEXTS):
        for kind in (int, float):
            try:
                numbers = [kind(row[name]) for row in rows]
            except ValueError:
                continue
            if all(str(number) == row[name] for number, row in zip(numbers, rows, strict=True)):
                for number, row in zip(numbers, rows, strict=True):
                    row[name] = number
                break
    return rows


def read_dataset(dataset: str | os.PathLike[str], split: str) -> Any:
    """`Rows` of a local text file, or a Hugging Face `Dataset` from a .parquet file, a folder, or the Hub.

    Raises:
        ValueError: another kind of file, an empty or damaged file, or no such split.
        OSError: there is neither such a file nor a Hub id that can be reached.
    """
    import datasets  # type: ignore[import-untyped]

    path = Path(dataset)
    kinds = (".jsonl", ".json", ".parquet", ".csv")
    if path.suffix in kinds:
        if not path.is_file():
            raise FileNotFoundError(f"no such dataset: {path}")
        if path.suffix != ".parquet":
            return _read_text(path)
        try:
            return _widened(datasets.load_dataset("parquet", data_files=str(path), split="train"))
        except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
            reason = str(error.__cause__ or error) or "it is empty"  # StopIteration says nothing
            reason = "it is empty" if "BatchSize must be greater than 0" in reason else reason
            raise ValueError(f"cannot read {path}: {reason}") from error
    if path.is_file():
        raise ValueError(f"{path} is none of {', '.join(kinds)}")
    try:
        return _widened(datasets.load_dataset(str(dataset), split=split))
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"no dataset {dataset}: neither a file or folder here nor a reachable Hub id"
        ) from error


def _widened(data: Any) -> Any:
    """The dataset, in which 0.1 of a column of float32 is 0.1, and not 0.10000000149."""
    narrow = {
        name: np.dtype(feature.dtype)
        for name, feature in data.features.items()
        if getattr(feature, "dtype", "") in ("float16", "float32")
    }
    if not narrow:
        return data
    widen = lambda name, x: x if x is None or name not in narrow else float(str(narrow[name].type(x)))  # noqa: E731
    return Rows([{name: widen(name, x) for name, x in row.items()} for row in data])


def report_prompts(prompts: Prompts, reward: str, source: str, tokenizer: Any = None) -> list[str]:
    """What the user should know of a dataset before training: prompts that are there twice, answers that cannot be read.

    Args:
        prompts: all that were kept.
        reward: its name; only "math" reads answers.
        source: of the prompts, for the messages.
        tokenizer: the policy's; None does not ask whether it knows the prompts' characters.

    Returns:
        Lines to print; none if all is well.

    Raises:
        ValueError: no answer can be read; the tokenizer knows no character of any prompt.
    """
    lines, number = [], prompts.rows or range(len(prompts))
    if tokenizer is not None and (lost := unknown_characters(prompts, tokenizer)):
        characters = sorted(set().union(*lost.values()))
        lines.append(
            f"{source}: the tokenizer does not know {', '.join(map(repr, characters[:8]))}"
            f"{' ...' if len(characters) > 8 else ''} in {len(lost)} of {len(prompts)} prompts, such as "
            f"{_named(number, list(lost))}; the model cannot read them"
        )
    asked = prompts.columns.get("prompt", [])
    if spaced := [row for row, text in enumerate(asked) if isinstance(text, str) and text.endswith(" ")]:
        lines.append(
            f"{source}: {len(spaced)} of {len(prompts)} prompts end in a space, such as {_named(number, spaced)}; most "
            "tokenizers put the space in front of the next word, so models answer better without it"
        )
    if absent := [row for row, text in enumerate(prompts.answers) if text.casefold() in ABSENT]:
        lines.append(
            f"{source}: {len(absent)} of {len(prompts)} answers are words for a missing value, such as "
            f"{prompts.answers[absent[0]]!r} in {_named(number, absent)}; leave such rows out"
        )
    if twice := prompts.repeated():
        lines.append(
            f"{source}: {sum(map(len, twice.values())) - len(twice)} of {len(prompts)} prompts are there already, such as "
            f"{_named(number, next(iter(twice.values())))}; held-out prompts are not trained on"
        )
    apart = [rows for rows in twice.values() if len({prompts.answers[row] for row in rows}) > 1]
    for rows in apart[:5]:
        held = " and ".join(dict.fromkeys(repr(prompts.answers[row]) for row in rows))
        lines.append(
            f"{source}: one prompt has several right answers, {held}, in {_named(number, rows)}; mend or leave out"
        )
    return lines + report_answers(prompts.answers, source, number) if reward == "math" else lines


def report_answers(answers: Sequence[Any], source: str, number: Sequence[int] | None = None) -> list[str]:
    """The right answers that `MathReward` cannot read.

    Args:
        answers: n texts or numbers.
        source: of the answers, for the messages.
        number: their rows, n of them; None is 0 to n - 1.

    Returns:
        Lines to print, with rows, values and shares; none if all can be read.

    Raises:
        ValueError: none can be read.
    """
    lines, number = [], number or range(len(answers))
    verifier = MathReward()
    unread = verifier.check(answers)
    verifier.close()
    if len(unread) == len(answers):
        raise ValueError(
            f"{source}: none of the {len(answers)} answers can be read, the first is {answers[0]!r}; an answer is a "
            "formula or words, bare, in \\boxed{...} or behind ####"
        )
    for key in ("answer_unparsed", "timed_out", "crashed"):
        rows = [row for row, why in unread.items() if why == key]
        if rows:
            shown = "; ".join(f"row {number[row]}: {answers[row]!r}" for row in rows[:5])
            lines.append(
                f"{source}: {len(rows)} of {len(answers)} answers ({len(rows) / len(answers):.1%}) {WHY[key]}, so only the "
                f"same text is right: {shown}{' ...' if len(rows) > 5 else ''}"
            )
    return lines


ABSENT = frozenset(("nan", "none", "null", "n/a", "#n/a", "na", "nat", "<na>"))
"""What programs write for a value that is missing."""


def unknown_characters(prompts: Prompts, tokenizer: Any) -> dict[int, set[str]]:
    """Index of a prompt -> its characters that are not in its tokens. Spaces, case and width are not looked at.

    Raises:
        ValueError: no prompt has any other character.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    unknown = {tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids(getattr(model, "unk_token", None) or "")}
    plain = lambda text: set(unicodedata.normalize("NFKC", text).casefold()) - set(" \t\n\r")  # noqa: E731
    known = tokenizer.batch_decode([[token for token in ids if token not in unknown] for ids in prompts.ids])
    lost = {row: plain(text) - plain(read) for row, (text, read) in enumerate(zip(prompts.texts, known, strict=True))}
    lost = {row: found for row, found in lost.items() if found}
    if len(lost) == len(prompts) and all(found == plain(prompts.texts[row]) for row, found in lost.items()):
        raise ValueError(
            f"the tokenizer knows no character of any prompt, such as {prompts.texts[0][:40]!r}; use the tokenizer and "
            "model for this language"
        )
    return lost


WHY = {
    "answer_unparsed": "cannot be read by math-verify",
    "timed_out": "take math-verify too long",
    "crashed": "make math-verify fail",
}
"""Keys of `MathReward.counts` for right answers that are of no use."""


def _named(number: Sequence[int], rows: Sequence[int]) -> str:
    return f"rows {', '.join(str(number[row]) for row in rows[:5])}{' ...' if len(rows) > 5 else ''}"


def check_reward(name: str) -> None:
    """Refuse a --reward that cannot be one. Nothing is imported.

    Raises:
        ValueError: it is neither a known name nor module:function.
    """
    module, colon, function = name.partition(":")
    if name not in REWARDS and not (
        colon and function.isidentifier() and all(map(str.isidentifier, module.split(".")))
    ):
        raise ValueError(
            f"--reward {name} is none of {', '.join(REWARDS)}; a function of your own is module:function, such as "
            "my_module:judge"
        )


def make_reward(name: str) -> Reward:
    """A reward by its name, or the user's own function module:function. It checks that every outcome is 0 or 1.

    The user's function is called with the responses and with the dataset's columns, `answer` among them. The module may be
    in the current folder.

    Raises:
        ValueError: see `check_reward`; there is no such module or function. When called: the outcomes are not one 0 or 1
            per response.
        Exception: what the user's module raises when it is imported, and the function when it is called.
    """
    check_reward(name)
    if name == "math":
        verifier = MathReward()
        score: Reward = lambda texts, columns: verifier(texts, answer=columns["answer"])  # noqa: E731
    elif name == "exact":
        score = lambda texts, columns: list(map(exact_match, texts, columns["answer"]))  # noqa: E731
    elif name == "after-equals":
        score = lambda texts, columns: [  # noqa: E731
            exact_match(text.rpartition("=")[2] if "=" in text else "", answer)
            for text, answer in zip(texts, columns["answer"], strict=True)
        ]
    else:
        return _own_reward(name)

    def checked(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        outcomes = score(texts, columns)
        check_outcomes(outcomes)
        return outcomes

    if name == "math":
        checked.verifier = verifier  # type: ignore[attr-defined]  # `generate` logs why there was no verdict
    return checked


def _own_reward(name: str) -> Reward:
    """The user's function, imported. What it returns is checked, and becomes a list of floats."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise ValueError(
            f"--reward {name}: there is no module {module_name}, neither in {Path.cwd()} nor among the installed packages"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--reward {name}: {module.__file__} has no function {function_name}")

    def checked(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        returned = function(list(texts), columns)
        outcomes = returned.tolist() if hasattr(returned, "tolist") else returned  # an array or a tensor
        if not isinstance(outcomes, list | tuple) or len(outcomes) != len(texts):
            got = f"{len(outcomes)}" if isinstance(outcomes, list | tuple) else repr(returned)[:40]
            raise ValueError(
                f"--reward {name} must return a list of {len(texts)} outcomes, one per response, got {got}"
            )
        for index, outcome in enumerate(outcomes):
            if np.ndim(outcome) != 0 or outcome not in (0, 1):
                raise ValueError(
                    f"--reward {name} must return 0 (failure) or 1 (success) for each response, got {outcome!r} at index "
                    f"{index}; threshold it, as in [float(x > 0.5) for x in ...]"
                )
        return [float(outcome) for outcome in outcomes]

    return checked
