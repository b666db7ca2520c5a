"""Prompts: what a dataset may look like and what is refused, the batches of an epoch, the rewards by name."""

import json
import sys
from itertools import chain

import pytest

pytest.importorskip("trl", reason="trl is not installed: extra llm")

import datasets
from tokenizers import processors

from sppo_control import cli
from sppo_control.llm import addition, prompts
from sppo_control.llm.prompts import Prompts, load_prompts, make_reward

TEMPLATE = "{% for m in messages %}{{ m['content'] }}+{% endfor %}{% if add_generation_prompt %}={% endif %}"
CHAT = [{"role": "system", "content": "0"}, {"role": "user", "content": "12"}]


@pytest.fixture(autouse=True)
def _no_traces(tmp_path, monkeypatch):
    """What datasets keeps of a file it has read goes into a temporary folder, and no Hub is asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def tokenizer():
    """Puts its end token in front of each text, as others put a begin token."""
    made = addition.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    return made


@pytest.fixture
def write(tmp_path):
    def write(rows, name="data.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def texts(n):
    return [{"prompt": f"{i}+" + "1" * (i % 3) + "=", "answer": str(i)} for i in range(n)]


def some(n):
    return Prompts([str(i) for i in range(n)], [[2, 3 + i % 5] for i in range(n)], [f"a{i}" for i in range(n)])


# -------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("column", ["answer", "solution"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "folder"])
def test_files_of_each_kind_are_read_in_their_order(kind, column, tmp_path, tokenizer):
    rows = [{"prompt": row["prompt"], column: row["answer"], "level": 3} for row in texts(7)]
    data, path = datasets.Dataset.from_list(rows), tmp_path / f"data.{kind}"
    if kind == "folder":
        path.mkdir()
        data.to_json(path / "train.jsonl")
        data.select(range(2)).to_json(path / "test.jsonl")
        assert len(load_prompts(path, tokenizer, "test")) == 2
    else:
        {"jsonl": data.to_json, "json": data.to_json, "parquet": data.to_parquet, "csv": data.to_csv}[kind](path)
    read = load_prompts(str(path), tokenizer)
    assert read.texts == [row["prompt"] for row in rows]
    assert read.answers == [str(i) for i in range(7)]
    assert read.ids == [tokenizer(text)["input_ids"] for text in read.texts]
    assert read.num_long == 0


def test_a_column_answer_comes_before_solution(write, tokenizer):
    path = write([{"prompt": "1", "solution": "a proof", "answer": "2"}])
    assert load_prompts(path, tokenizer).answers == ["2"]


def test_answers_may_be_numbers(write, tokenizer):
    assert load_prompts(write([{"prompt": "1", "answer": 4}]), tokenizer).answers == ["4"]


def test_texts_get_the_special_tokens_and_chat_messages_the_template(write, tokenizer):
    """The template writes what special tokens a chat has; a second begin token would be another prompt."""
    tokenizer.chat_template = TEMPLATE
    read = load_prompts(write([{"prompt": CHAT, "answer": "12"}]), tokenizer)
    assert read.texts == ["0+12+="]
    assert read.ids == [tokenizer("0+12+=")["input_ids"][1:]]
    read = load_prompts(write([{"prompt": "12=", "answer": "12"}]), tokenizer)
    assert read.texts == ["12="]
    assert read.ids == [[1, *tokenizer("12=", add_special_tokens=False)["input_ids"]]]


def test_a_reward_gets_the_columns_of_its_prompts(write):
    rows = [{"prompt": "1" * n, "solution": f"s{n}", "levels": [n, n + 1]} for n in range(1, 7)]
    read = load_prompts(write(rows), addition.tokenizer(), max_prompt_length=5)
    _, held_out = read.split(3)
    numbers = [len(text) for text in held_out.texts]
    assert held_out.reward_columns([2, 0, 2]) == {
        "prompt": ["1" * numbers[i] for i in (2, 0, 2)],
        "solution": [f"s{numbers[i]}" for i in (2, 0, 2)],
        "answer": [f"s{numbers[i]}" for i in (2, 0, 2)],
        "levels": [[numbers[i], numbers[i] + 1] for i in (2, 0, 2)],
    }


def test_a_dataset_may_lack_answers_if_the_reward_needs_none(write):
    for rows in ([{"prompt": "1", "level": 2}], [{"prompt": "1", "answer": None, "level": 2}]):
        read = load_prompts(write(rows), addition.tokenizer(), needs_answer=False)
        assert read.answers == [""]
        assert read.reward_columns([0])["level"] == [2]


def test_long_prompts_are_counted_and_left_out(write):
    path, plain = write(texts(10)), addition.tokenizer()
    read = load_prompts(path, plain, max_prompt_length=3)
    assert read.texts == [row["prompt"] for row in texts(10) if len(row["prompt"]) <= 3]
    assert read.answers == ["0", "3", "6", "9"]
    assert read.num_long == 6
    assert load_prompts(path, plain, max_prompt_length=5).num_long == 0
    assert [part.num_long for part in read.split(1)] == [6, 6], "the count stays when prompts are held out"


# -------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"question": "1", "answer": "1"}], {}, r'no column prompt, it has answer, question; rename.*"prompt"'),
        ([{"prompt": "1", "gold": "1"}], {}, r'no column answer or solution, it has gold, prompt; rename.*"answer"'),
        ([{"prompt": "1", "answer": "1"}, {"prompt": "2", "answer": None}], {}, "the answer in row 1 is None; a right"),
        ([{"prompt": "1", "answer": "1"}, {"prompt": "", "answer": "1"}], {}, "the prompt in row 1 is empty"),
        ([{"prompt": "1", "answer": "1"}, {"prompt": None, "answer": "1"}], {}, "the prompt in row 1 is None, neither"),
        ([{"prompt": 12, "answer": "1"}], {}, "the prompt in row 0 is 12, neither a text nor a list of chat messages"),
        ([{"prompt": CHAT, "answer": "1"}], {}, "chat messages, and the tokenizer has no chat template"),
        (
            texts(10), {"max_prompt_length": 3, "long_prompts": "error"},
            "6 of 10 prompts are longer than --max-prompt-length 3, the longest has 5 tokens; raise it, or",
        ),
        (texts(10), {"max_prompt_length": 2}, "no prompt is left; 10 are longer than --max-prompt-length 2"),
        ([], {}, "data.jsonl: it is empty"),
    ],
)  # fmt: skip
def test_bad_datasets_are_refused(rows, settings, message, write):
    with pytest.raises(ValueError, match=message):
        load_prompts(write(rows), addition.tokenizer(), **settings)


def test_bad_files_are_refused_by_name(tmp_path):
    plain = addition.tokenizer()
    with pytest.raises(FileNotFoundError, match=r"no such dataset: .*absent\.jsonl"):
        load_prompts(tmp_path / "absent.jsonl", plain)
    with pytest.raises(FileNotFoundError, match="nobody/nothing: neither a file or folder here nor a reachable Hub id"):
        load_prompts("nobody/nothing", plain)
    (tmp_path / "notes.txt").write_text("1+1=")
    with pytest.raises(ValueError, match=r"notes\.txt is none of \.jsonl, \.json, \.parquet, \.csv"):
        load_prompts(tmp_path / "notes.txt", plain)
    for kind in ("jsonl", "parquet"):
        (tmp_path / f"torn.{kind}").write_text('{"prompt": "1+1=", "answ')
        with pytest.raises(ValueError, match=rf"cannot read .*torn\.{kind}"):
            load_prompts(tmp_path / f"torn.{kind}", plain)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "1", "answer": "1"}\n')
    with pytest.raises(ValueError, match="validation"):
        load_prompts(folder, plain, "validation")


# --------------------------------------------------------------------------------------------------------- batches
def test_a_batch_visits_each_prompt_once_an_epoch():
    data = some(12)
    epochs = [[data.batch(4 * epoch + i, 3, 7) for i in range(4)] for epoch in range(5)]
    for epoch in epochs:
        assert all(len(batch) == 3 for batch in epoch)
        assert sorted(chain(*epoch)) == list(range(12))
    assert len({tuple(chain(*epoch)) for epoch in epochs}) == 5, "each epoch has an order of its own"


def test_an_epochs_incomplete_batch_is_left_out_and_not_always_the_same_prompts():
    data, left_out = some(11), set()
    for epoch in range(60):
        seen = list(chain(*(data.batch(3 * epoch + i, 3, 7) for i in range(3))))
        assert len(seen) == len(set(seen)) == 9
        left_out |= set(range(11)) - set(seen)
    assert left_out == set(range(11))


def test_a_batch_is_a_function_of_seed_and_update():
    a, b = some(50), some(50)
    forwards = [a.batch(update, 8, 3) for update in range(14)]
    backwards = [b.batch(update, 8, 3) for update in reversed(range(14))]
    assert forwards == backwards[::-1]
    assert a.batch(0, 8, 4) != forwards[0]


def test_too_few_prompts_for_a_batch_are_refused():
    assert sorted(some(4).batch(9, 4, 0)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="--batch-size asks for 5 prompts per update, and there are 4 to train on"):
        some(4).batch(0, 5, 0)


def test_split_keeps_each_prompt_with_its_tokens_and_answer():
    data = some(20)
    train, held_out = data.split(6)
    assert (len(train), len(held_out)) == (14, 6)
    assert sorted(train.texts + held_out.texts, key=int) == data.texts
    for part in (train, held_out):
        assert part.texts == sorted(part.texts, key=int), "in the dataset's order"
        for text, ids, answer in zip(part.texts, part.ids, part.answers, strict=True):
            assert (ids, answer) == ([2, 3 + int(text) % 5], f"a{text}")
    assert held_out.texts != data.texts[:6]
    assert held_out.texts != data.texts[-6:]
    for wrong in (0, 20, 21):
        with pytest.raises(ValueError, match=f"--eval-prompts must be at least 1 .* got {wrong} of 20"):
            data.split(wrong)


# --------------------------------------------------------------------------------------------------------- rewards
@pytest.mark.parametrize(
    ("name", "response", "answer", "outcome"),
    [
        ("exact", "42", "42", 1.0),
        ("exact", " 42\n", "42", 1.0),
        ("exact", "042", "42", 0.0),
        ("exact", "=42", "42", 0.0),
        ("after-equals", "1670=17=42", "42", 1.0),
        ("after-equals", "= 42", "42", 1.0),
        ("after-equals", "42", "42", 0.0),
        ("after-equals", "42=", "42", 0.0),
        ("after-equals", "42=41", "42", 0.0),
        ("after-equals", "=42=", "42", 0.0),
        ("math", r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
        ("math", r"\boxed{2} or \boxed{3}", "2", 0.0),
        ("math", "2", "2", 0.0),
    ],
)
def test_rewards(name, response, answer, outcome):
    assert make_reward(name)([response, "no"], {"answer": [answer, answer]}) == [outcome, 0.0]


@pytest.mark.parametrize("name", ["exact", "after-equals", "math"])
@pytest.mark.parametrize("number", [0.5, -1.0, float("nan"), None])
def test_rewards_other_than_0_and_1_are_refused(name, number, monkeypatch):
    monkeypatch.setattr(prompts, "exact_match", lambda text, answer: number)
    monkeypatch.setattr(prompts.MathReward, "__call__", lambda self, texts, answer: [number] * len(texts))
    with pytest.raises(ValueError, match="must be 0"):
        make_reward(name)(["1="], {"answer": ["1"]})


JUDGES = """
import numpy as np
import torch

seen = []

def judge(responses, columns):
    seen.append((responses, columns))
    return [len(response) > level for response, level in zip(responses, columns["level"])]

def array(responses, columns):
    return np.array(judge(responses, columns))

def tensor(responses, columns):
    return torch.tensor(judge(responses, columns))

def number(responses, columns):
    return 1.0

def short(responses, columns):
    return [1.0]

def half(responses, columns):
    return [1.0, 0.5]

def nan(responses, columns):
    return [float("nan"), 1.0]

def nothing(responses, columns):
    return [0, None]

def forgets(responses, columns):
    pass

def breaks(responses, columns):
    raise ValueError("of the user")
"""


@pytest.fixture
def judges(tmp_path, monkeypatch):
    """A module of the user in the current folder."""
    (tmp_path / "own_judges.py").write_text(JUDGES)
    (tmp_path / "own_broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_judges"
    sys.modules.pop("own_judges", None)


@pytest.mark.parametrize("function", ["judge", "array", "tensor"])
def test_a_reward_of_ones_own(function, judges):
    columns = {"answer": ["a", "b"], "level": [3, 1]}
    outcomes = make_reward(f"{judges}:{function}")(["no", "yes"], columns)
    assert outcomes == [0.0, 1.0]
    assert {type(outcome) for outcome in outcomes} == {float}
    assert sys.modules[judges].seen == [(["no", "yes"], columns)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("number", "must return a list of 2 outcomes, one per response, got 1.0"),
        ("short", "must return a list of 2 outcomes, one per response, got 1"),
        ("forgets", "must return a list of 2 outcomes, one per response, got None"),
        ("half", r"must return 0 \(failure\) or 1 \(success\) for each response, got 0.5 at index 1; threshold it"),
        ("nan", "got nan at index 0"),
        ("nothing", "got None at index 1"),
    ],
)
def test_what_a_reward_of_ones_own_may_not_return(function, message, judges):
    with pytest.raises(ValueError, match=rf"^--reward own_judges:{function} .*{message}") as caught:
        make_reward(f"{judges}:{function}")(["a", "b"], {})
    assert cli.is_refusal(caught.value)


def test_what_the_users_code_raises_keeps_its_traceback(judges):
    with pytest.raises(ValueError, match="of the user") as caught:
        make_reward(f"{judges}:breaks")(["a"], {})
    assert not cli.is_refusal(caught.value)
    assert "own_judges.py, line " in cli._blame(caught.value)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found") as imported:
        make_reward("own_broken:judge")
    assert not cli.is_refusal(imported.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "none of math, exact, after-equals; a function of your own is module:function"),
        ("own_judges:", "none of math"),
        (":judge", "none of math"),
        ("own_judges:not a name", "none of math"),
        ("..own_judges:judge", "none of math"),
        ("own_judgs:judge", "there is no module own_judgs, neither in .* nor among the installed packages"),
        ("own_judges.sub:judge", "there is no module own_judges.sub"),
        ("own_judges:jury", r"own_judges\.py has no function jury"),
        ("own_judges:seen", r"own_judges\.py has no function seen"),
    ],
)
def test_rewards_that_do_not_exist_are_refused(name, message, judges):
    with pytest.raises(ValueError, match=rf"^--reward {name}:? .*{message}") as caught:
        make_reward(name)
    assert cli.is_refusal(caught.value)
