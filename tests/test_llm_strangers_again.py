"""More of the strangers of test_llm_strangers.py: units, ranges, percentages, damaged files, chats and tokenizers."""

import decimal
import json
import time

import pytest

pytest.importorskip("trl", reason="trl is not installed: extra llm")

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from sppo_control.llm import MathReward, PromptCritic, addition
from sppo_control.llm.prompts import Prompts, load_prompts, make_reward, report_prompts
from sppo_control.llm.responses import generate, stop_length
from sppo_control.llm.rewards import answer_text, last_boxed, lost_backslash
from sppo_control.llm.tokenizers import prompt_ids, prompt_text
from sppo_control.llm.units import split_unit


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("math_verify", reason="math_verify is not installed: extra llm")
    made = MathReward(timeout=60)
    yield made
    assert made.counts["crashed"] == made.counts["timed_out"] == 0
    made.close()


# ----------------------------------------------------------------------------------------------------- units
@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # math-verify takes these letters for units
        ("3t", "3", 0), ("x^{2}t", "x^2", 0), ("2ab", "2", 0), ("5d", "5", 0), (r"\frac{1}{2}h", r"\frac{1}{2}", 0),
        ("3t", "t \\cdot 3", 1), ("2 i", "2i", 1), (r"1+2\mathrm{i}", r"1 + 2 \cdot i", 1), ("2i", "2", 0), ("2i", "3i", 0),
        ("2mg", "2", None), ("12n", "12", 0),
        # two units
        ("5 kg", "5 g", 0), ("5 kg", "5000 g", 1), ("5 kg", "5 pounds", 0), ("2 hours", "2 minutes", 0),
        ("2 hours", "120 min", 1), (r"\frac{5}{2}\text{ hours}", "150 minutes", 1), (r"5\text{ cm}", r"5\text{ m}", 0),
        ("60 km/h", r"60\text{ km per hour}", 1), ("60 mph", "60 km/h", 0), ("5 cm^2", "5 square centimeters", 1),
        (r"5\text{ cm}^2", r"5\text{ cm}^3", 0), (r"144\text{ in}^2", "1 sq ft", 1), ("5 L", "5000 mL", 1),
        ("500 cents", r"\$5", 1), ("€5", r"\$5", 0), (r"20^\circ C", r"20^\circ F", 0), (r"90^\circ", "90 rad", 0),
        ("3:05 PM", "3:05 AM", 0), ("3:05 p.m.", "3:05 PM", 1), ("6:10 PM", "3:05 PM", 0),
        # one unit
        ("5 dollars", "5", 1), ("€1,200", "1200", 1), ("5 miles per hour", "5", 1), ("5 oranges", "5", 1),
        (r"10\pi\text{ cm}", r"10\pi", 1), ("1st", "1", 1), (r"5^{\text{th}}", "5", 1),
        ("5 m/s^2", "5", 1), ("5 oranges", "6 oranges", 0), ("3:05 PM", "3:05", 1), (r"2\text{ or }3", "2", 0),
        # percentages
        (r"5\%", r"500\%", 0), (r"1\%", r"100\%", 0), ("0.5%", "50%", 0), (r"5\%", "5.0%", 1), ("100%", "1", 1),
        ("50", "50%", 1), ("0.5", "50%", 1), ("0.005", "50%", 0),
        # ranges, dates and times are no differences and ratios
        ("11-13", "10-12", 0), ("10\u201312", "10-12", 1), ("2024-02-01", "2024-01-02", 0), ("2024-1-2", "2024-01-02", 1),
        ("6:10", "3:05", 0), ("7:30", "07:30", 1), ("2:4", "1:2", 1),
        # signs, scripts, dashes
        ("\u20135", "-5", 1), ("\u20145", "-5", 1), ("\u20115", "-5", 1), ("\u20135", "5", 0), ("\u0663", "3", 1),
        ("\u0967\u0968", "12", 1), ("1\u20442", "1/2", 1), ("\u221c16", "2", 1), ("\u221a((x+1)(x))", r"\sqrt{x(x+1)}", 1),
        ("3 x 10^8", "3e8", 1), ("3x^2", r"3 \cdot x^2", 1), ("2**10", "1024", 1), ("**5**", "5", 1), ("5\\ ", "5", 1),
        (r"\textcolor{red}{5}", "5", 1), (r"\underline{5}", "5", 1), ("-0", "0", 1),
    ],
)  # fmt: skip
def test_what_is_the_same_and_what_only_looks_so(reward, one, other, expected):
    for boxed, gold in ((one, other), (other, one)):
        if expected is not None:
            assert reward([f"so \\boxed{{{boxed}}}"], answer=[gold]) == [expected], (boxed, gold)
    if expected is None:  # two times m times g, unless the answer is a bare number
        assert reward([f"\\boxed{{{other}}}"], answer=[one]) == [0]


@pytest.mark.parametrize(
    ("text", "number", "known"),
    [("5 cm", "5", True), ("5m", "5m", False), ("5 m", "5", True), ("2mg", "2mg", False), (r"2\text{ mg}", "2", True),
     ("5 apples", "5", False), ("5 sin", "5 sin", False), (r"5\mathrm{e}", "5 e", False), ("5 km per", "5 km per", False),
     ("x apples", "x apples", False), ("m", "m", False), ("", "", False), ("5 " + "a" * 300, "5 " + "a" * 300, False)],
)  # fmt: skip
def test_the_unit_is_split_off(text, number, known):
    found, unit = split_unit(text)
    assert (found, unit is not None) == (number, known)


def test_a_letter_is_a_unit_where_no_variable_is_expected():
    assert split_unit("5m", loose=True)[0] == "5"
    assert split_unit("5m^2", loose=True)[0] == "5"
    assert split_unit("5m^2")[0] == "5m^2"
    assert split_unit("2ab", loose=True)[0] == "2ab"


def test_long_answers_are_read_in_no_time(reward):
    start = time.perf_counter()
    for text in ("5 " + "a" * 190 + "!", "5 " + "a " * 95 + "!", "a" + " " * 20_000 + "b", "\u221a(" * 3000):
        split_unit(text)
        reward._compare("7", text[:199])
        last_boxed("\\boxed{" + text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "inside"),
    [(r"so \boxed 5", "5"), (r"$\boxed5$", "5"), (r"\boxed -1,234.5.", "-1,234.5"), (r"\boxed{6} in \boxed form", "6"),
     (r"\boxed 5 no, \boxed{6}", "6"), (r"\boxed{6} no, \boxed 5", "5"), (r"\boxed{5} \boxed{6", None), (r"\boxed x", None),
     (r"\boxed 5x", None)],
)  # fmt: skip
def test_a_box_without_braces_holds_a_number(text, inside):
    assert last_boxed(text) == inside


# ----------------------------------------------------------------------------------------------------- right answers
@pytest.mark.parametrize(
    ("value", "text"),
    [(np.int64(5), "5"), (np.float32(0.1), "0.1"), (np.float64(5.0), "5"), (np.float16(0.1), "0.1"), (-0.0, "0"),
     (decimal.Decimal("2.50"), "2.50"), (decimal.Decimal("3.00"), "3"), (torch.tensor(7), "7"),
     (2**60 + 1, str(2**60 + 1))],
)  # fmt: skip
def test_numbers_of_other_libraries(value, text):
    assert answer_text(value) == text


@pytest.mark.parametrize(
    "value", [np.array([5]), np.bool_(True), b"5", np.float32("nan"), decimal.Decimal("NaN"), 5 + 0j]
)
def test_what_is_no_number_of_another_library(value):
    with pytest.raises(ValueError, match="a right answer is a text that is not empty, or a finite number"):
        answer_text(value)


SENTENCES = [
    "The answer is 5.",
    "5 (five)",
    "Answer: 5",
    "It costs 5 dollars.",
    "$$5$$ is it",
    '{"answer": 5}',
    "about 5",
]


def test_sentences_are_named_as_what_cannot_be_read(reward):
    """math-verify reads them as products of letters, so R was 0 for ever, without a word."""
    fine = [
        "5 dollars",
        "x = 1 or x = 2",
        r"\sin 5",
        "log 5",
        "abc + 5",
        r"5 \text{ if } x > 0",
        "no solution",
        r"5 \pmod 7",
    ]
    assert list(reward.check([*SENTENCES, *fine])) == list(range(len(SENTENCES)))
    for gold in SENTENCES:
        before = reward.counts["answer_unparsed"]
        assert reward([r"\boxed{6}"], answer=[gold]) == [0]
        assert reward.counts["answer_unparsed"] == before + 1
        assert reward([rf"\boxed{{{gold}}}"], answer=[gold]) == [1]


LOST = ["\x0crac{1}{2}", "\x08oxed{5}", "5\times 3", "\text{east}", "\theta", "\x0bec{x}", "\\left(1\right)"]
KEPT = [
    "\frac is no LaTeX\x0c",
    "a\tan apple",
    "one\ntwo",
    "page\x0cbox",
    "a\r\nb",
    r"\frac{1}{2} \times \theta",
    "\ttext",
]


def test_backslashes_that_json_ate():
    assert [text for text in LOST if not lost_backslash(text)] == []
    assert [text for text in KEPT if lost_backslash(text)] == []
    for text in LOST:
        with pytest.raises(
            ValueError, match=r"has lost a backslash; in JSON and in Python it is written twice, as \\\\frac"
        ):
            answer_text(text)
        with pytest.raises(ValueError, match="has lost a backslash"):
            prompt_ids(text, addition.tokenizer())


# ----------------------------------------------------------------------------------------------------- files
def test_no_digit_of_a_file_is_lost(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "1", "answer": 3.14159265358979323846}\n{"prompt": "2", "answer": 1.10}\n'
        '{"prompt": "3", "answer": 12345678901234567.5}\n{"prompt": "4", "answer": -0.0}\n'
    )
    read = load_prompts(path, addition.tokenizer())
    assert read.answers == ["3.14159265358979323846", "1.1", "12345678901234567.5", "0"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "prompt,answer,answer\n1,2,3\n", "line 1 has the column 'answer' twice; leave one out"),
        ("b.jsonl", '{"prompt": "1", "answer": "2", "answer": "3"}', "line 1: 'answer' is there twice in one object"),
        ("c.jsonl", '{"prompt": "1", "answer": "2", "x": {"y": 1, "y": 2}}', "line 1: 'y' is there twice in one object"),
        ("d.csv", "prompt;answer\n1;2\n", "separated by commas, and these seem to be by ';'"),
        ("e.csv", "prompt, answer\n1,2\n", "it has ' answer', prompt; rename yours in the file to \"answer\""),
        ("f.json", '{\n"data": [{"prompt": "1",\n "answer": "2"}]}', "it is one object, with more of them in 'data'"),
        ("g.json", '{"prompt": {"0": "1"}, "answer": {"0": "2"}}', r"in 'prompt'; save a list .* orient='records'"),
        ("h.json", "[" * 100_000, "its brackets are nested too deep"),
        ("i.jsonl", '{"prompt": "a \\ud800 b", "answer": "2"}', "row 0: the prompt .* has half a character at 2"),
        ("j.jsonl", '{"prompt": " \\n ", "answer": "2"}', "the prompt in row 0 is empty"),
        ("k.jsonl", '{"prompt": "1", "answer": "\\frac{1}{2}"}', "the answer in row 0 is .*which has lost a backslash"),
        ("l.csv", 'prompt,answer\n"[{""role"": ""user"", ""content"": ""1""}]",2\n', "is a text with chat messages in it"),
        ("m.csv", "prompt,answer\n\"[{'content': '1', 'role': 'user'}]\",2\n", "is a text with chat messages in it"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named_too(name, data, message, tmp_path):
    (tmp_path / name).write_text(data)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name, addition.tokenizer())


def test_lines_end_where_the_file_says(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer\n1+\u20281=,2\n2+\x0c\x852=,4\n", encoding="utf-8")
    assert load_prompts(tmp_path / "a.csv", addition.tokenizer()).answers == ["2", "4"]
    (tmp_path / "b.json").write_text('{\n  "prompt": "1+1=",\n  "answer": "2"\n}')
    assert load_prompts(tmp_path / "b.json", addition.tokenizer()).answers == ["2"]


def test_short_floats_of_parquet_are_as_they_were_written(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "prompt": ["1", "2"],
        "answer": pa.array([0.1, 3.0], pa.float32()),
        "level": pa.array([0.3, None], pa.float32()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    read = load_prompts(tmp_path / "a.parquet", addition.tokenizer())
    assert read.answers == ["0.1", "3"]
    assert read.columns["level"] == [0.3, None]
    pq.write_table(
        pa.table({"prompt": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), tmp_path / "b.parquet"
    )
    with pytest.raises(ValueError, match=r"cannot read .*b.parquet: it is empty"):
        load_prompts(tmp_path / "b.parquet", addition.tokenizer())


def test_what_else_is_said_before_training():
    tokenizer = addition.tokenizer()
    texts = ["1+1=", "What is 2?", "2+2= ", "3"]
    data = Prompts(
        texts, [prompt_ids(text, tokenizer) for text in texts], ["2", "NaN", "4", "n/a"],
        columns={"prompt": texts}, rows=[0, 2, 4, 6],
    )  # fmt: skip
    assert report_prompts(data, "exact", "x.jsonl", tokenizer) == [
        "x.jsonl: the tokenizer does not know '?', 'a', 'h', 'i', 's', 't', 'w' in 1 of 4 prompts, such as rows 2; the "
        "model cannot read them",
        "x.jsonl: 1 of 4 prompts end in a space, such as rows 4; most tokenizers put the space in front of the next word, "
        "so models answer better without it",
        "x.jsonl: 2 of 4 answers are words for a missing value, such as 'NaN' in rows 2, 6; leave such rows out",
    ]
    nothing = Prompts(["quoi", "non"], [[0] * 4, [0] * 3], ["1", "2"])
    with pytest.raises(ValueError, match="the tokenizer knows no character of any prompt, such as 'quoi'; use the"):
        report_prompts(nothing, "exact", "x.jsonl", tokenizer)
    assert report_prompts(Prompts(["1"], [[3]], ["1"]), "exact", "x.jsonl", tokenizer) == []


# ----------------------------------------------------------------------------------------------------- chats
PLAIN = "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        ([{"from": "human", "value": "1+1"}], PLAIN, "has no role; a message is"),
        ([{"role": "user"}], PLAIN, "the user's message has the content 'None', and a text is needed"),
        ([{"role": "user", "content": " "}], PLAIN, "the user's message has the content ' '"),
        ([{"role": "user", "content": 11}], PLAIN, "the user's message has the content '11'"),
        ([{"role": "user", "content": [{"type": "image"}]}], PLAIN, "has the content .*image.*, and a text is needed"),
        (["1+1"], PLAIN, "the chat message '1\\+1' has no role"),
        ([[{"role": "user", "content": "1"}]], PLAIN, "has no role"),
        ([{"role": "user", "content": "1"}], "{{ raise_exception('no user') }}", "does not take these messages: no user"),
        ([{"role": "user", "content": "1"}], "{% for m in messages %}{{ m", "does not take these messages: "),
        ([{"role": "user", "content": "1+1"}], "hello", "leaves out the user's message '1\\+1'"),
        ([{"role": "system", "content": "9"}, {"role": "user", "content": "1"}],
         "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
         "leaves out the system's message '9'"),
    ],
)  # fmt: skip
def test_a_chat_that_the_model_would_not_read_is_refused(messages, template, message, tmp_path):
    tokenizer = addition.tokenizer()
    tokenizer.chat_template = template
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": messages, "answer": "1"}))
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "a.jsonl", tokenizer)


def test_parts_of_a_message_are_joined():
    tokenizer = addition.tokenizer()
    tokenizer.chat_template = PLAIN
    parts = [{"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "+2"}]}]
    assert prompt_text(parts, tokenizer) == prompt_text([{"role": "user", "content": "1+2"}], tokenizer) == "user1+2="


# ----------------------------------------------------------------------------------------------------- models
def model_of(words):
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=words, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


def test_texts_are_judged_as_they_were_written():
    """Some tokenizers write "1 , 2" as "1, 2" unless they are told not to."""
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "1": 2, ",": 3, ".": 4, "do": 5, "n't": 6}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=True
    )
    seen = []
    data = Prompts(["1"], [[2]], ["1"])
    judge = lambda texts, columns: seen.extend(texts) or [0.0] * len(texts)  # noqa: E731
    written = generate(model_of(7), made, data, [0] * 16, judge, 3, 6)
    for text, tokens, n in zip(seen, written.tokens.tolist(), written.mask.sum(1).tolist(), strict=True):
        assert text == " ".join(made.convert_ids_to_tokens([token for token in tokens[:n] if token > 1]))
    assert any(" ," in text or " ." in text for text in seen)
    assert stop_length(made, [2, 3, 2], [" ,"]) == 2
    assert stop_length(made, [2, 3, 2], ["1,"]) is None


@pytest.mark.parametrize("ends", [None, [], 2, [1, 99], 99])
def test_more_words_than_the_tokenizer_has_and_several_ends(ends):
    model, tokenizer = model_of(64), addition.tokenizer()
    model.generation_config.eos_token_id = ends
    data = Prompts(["1+1=", "1+"], [[3, 12, 3, 13], [3, 12]], ["2", "2"])
    written = generate(model, tokenizer, data, [0, 1] * 4, make_reward("exact"), 3, 6)
    assert written.logp[written.mask].isfinite().all()
    assert written.outcome.tolist() == [float(text == "2") for text in written.texts]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_critic_of_another_type(dtype):
    policy = model_of(14).to(dtype)
    critic = PromptCritic.from_backbone(policy, addition.tokenizer())
    torch.nn.init.normal_(critic.head.weight)
    for side in ("left", "right"):
        critic.tokenizer.padding_side = side
        both, one = critic.predict(["1+1=", "12"]), critic.predict(["12"])
        assert both.isfinite().all()
        torch.testing.assert_close(both[1:], one, atol=2e-2, rtol=0)


@pytest.mark.parametrize("make", [lambda: [np.ones(2)], lambda: [np.ones(1)], lambda: [[1.0]]])
def test_an_outcome_of_several_numbers_is_refused(make, tmp_path, monkeypatch):
    (tmp_path / "their_reward.py").write_text(
        "made = None\ndef judge(texts, columns):\n    texts.clear()\n    return made()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import their_reward

    their_reward.made = make
    with pytest.raises(
        ValueError, match=r"must return 0 .failure. or 1 .success. for each response, got .* at index 0"
    ):
        make_reward("their_reward:judge")(["a"], {"answer": ["1"]})
    their_reward.made = lambda: [1.0]
    assert make_reward("their_reward:judge")(["a"], {"answer": ["1"]}) == [1.0]
