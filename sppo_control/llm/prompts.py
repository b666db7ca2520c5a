"""Prompts and their answers, from a dataset or made here, as token ids; and the rewards by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sppo_control.llm import addition
from sppo_control.llm.rewards import COLUMNS, MathReward, check_outcomes, exact_match

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
    """

    texts: list[str]
    ids: list[list[int]]
    answers: list[str]
    num_long: int = 0
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, held_out: int) -> tuple[Prompts, Prompts]:
        """Prompts for training, and held-out prompts. Which ones are held out depends only on the two numbers.

        Raises:
            ValueError: nothing would be left to train on.
        """
        if not 1 <= held_out < len(self):
            raise ValueError(
                f"--eval-prompts must be at least 1 and leave prompts for training, got {held_out} of {len(self)}"
            )
        order = np.random.default_rng(0).permutation(len(self)).tolist()
        return self._take(sorted(order[held_out:])), self._take(sorted(order[:held_out]))

    def _take(self, rows: list[int]) -> Prompts:
        pick = lambda column: [column[row] for row in rows]  # noqa: E731
        columns = {name: pick(column) for name, column in self.columns.items()}
        return Prompts(pick(self.texts), pick(self.ids), pick(self.answers), self.num_long, columns)

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
        ValueError: a column is missing; an answer is None; a prompt is empty, too long or not a text; none is left.
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
            raise ValueError(
                f"{dataset} has no column {wanted}, it has {', '.join(sorted(columns))}; rename yours: "
                f'datasets.load_dataset(...).rename_column("<its name>", "{name}").to_json("train.jsonl")'
            )
    texts, ids, answers, kept = [], [], [], []
    num_long = longest = 0
    for index, row in enumerate(rows):
        right = None if answer is None else row[answer]
        if right is None and needs_answer:
            raise ValueError(f"{dataset}: the answer is None in row {index}; leave such rows out")
        if not isinstance(row["prompt"], str | list):
            raise ValueError(
                f"{dataset}: the prompt in row {index} is {row['prompt']!r}, neither a text nor a list of chat messages"
            )
        text = prompt_text(row["prompt"], tokenizer)
        tokens = list(tokenizer(text, add_special_tokens=isinstance(row["prompt"], str))["input_ids"])
        if not tokens:
            raise ValueError(f"{dataset}: the prompt in row {index} is empty; leave such rows out")
        longest = max(longest, len(tokens))
        if max_prompt_length is not None and len(tokens) > max_prompt_length:
            num_long += 1
            continue
        texts.append(text)
        ids.append(tokens)
        answers.append("" if right is None else str(right))
        kept.append(row)
    if num_long and long_prompts == "error":
        raise ValueError(
            f"{num_long} of {num_long + len(ids)} prompts are longer than --max-prompt-length {max_prompt_length}, the "
            f"longest has {longest} tokens; raise it, or leave them out with --long-prompts drop"
        )
    if not ids:
        raise ValueError(
            f"{dataset}: no prompt is left; {num_long} are longer than --max-prompt-length {max_prompt_length}"
        )
    return Prompts(texts, ids, answers, num_long, {name: [row[name] for row in kept] for name in sorted(columns)})


def read_dataset(dataset: str | os.PathLike[str], split: str) -> Any:
    """A Hugging Face `Dataset` from a local file or folder, or the Hub.

    Raises:
        ValueError: another kind of file, an empty or damaged file, or no such split.
        OSError: there is neither such a file nor a Hub id that can be reached.
    """
    import datasets  # type: ignore[import-untyped]

    path = Path(dataset)
    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if path.suffix in kinds:
        if not path.is_file():
            raise FileNotFoundError(f"no such dataset: {path}")
        try:
            return datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train")
        except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
            reason = str(error.__cause__ or error) or "it is empty"  # StopIteration says nothing
            raise ValueError(f"cannot read {path}: {reason}") from error
    if path.is_file():
        raise ValueError(f"{path} is none of {', '.join(kinds)}")
    try:
        return datasets.load_dataset(str(dataset), split=split)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"no dataset {dataset}: neither a file or folder here nor a reachable Hub id"
        ) from error


def prompt_text(prompt: str | Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """The text that the policy reads: a string as it is, or chat messages through the chat template.

    Raises:
        ValueError: the tokenizer has no chat template for the messages.
    """
    if isinstance(prompt, str):
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the prompts are chat messages, and the tokenizer has no chat template; make them texts")
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


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
        returned = function(texts, columns)
        outcomes = returned.tolist() if hasattr(returned, "tolist") else returned  # an array or a tensor
        if not isinstance(outcomes, list | tuple) or len(outcomes) != len(texts):
            got = f"{len(outcomes)}" if isinstance(outcomes, list | tuple) else repr(returned)[:40]
            raise ValueError(
                f"--reward {name} must return a list of {len(texts)} outcomes, one per response, got {got}"
            )
        for index, outcome in enumerate(outcomes):
            if outcome not in (0, 1):
                raise ValueError(
                    f"--reward {name} must return 0 (failure) or 1 (success) for each response, got {outcome!r} at index "
                    f"{index}; threshold it, as in [float(x > 0.5) for x in ...]"
                )
        return [float(outcome) for outcome in outcomes]

    return checked
