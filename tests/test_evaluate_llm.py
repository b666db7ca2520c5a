"""scripts/evaluate_llm.py: Average@k and its interval against numbers by hand, the five benchmarks' formats, prompts as the
model reads them, stopping and going on, refusals before the long work."""

import itertools
import json
import runpy
import shutil
import string
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("datasets", reason="datasets is not installed: extra llm")

import datasets
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import evaluate_llm
from evaluate_llm import Args, Judge
from sppo_control import errors, outputs
from sppo_control.llm import MathReward, average_at_k, responses
from sppo_control.llm.rewards import paper_answer
from sppo_control.llm.setup import ADDER

CHAT = "<bos>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."

# The benchmarks in their Hub's columns. math500 has a worked solution as well, which is not the answer column.
FORMATS = {
    "aime24": [
        {"id": 60, "problem": "Aya walks.", "solution": r"\boxed{204}", "url": "u"},
        {"id": 61, "problem": "Find $m$.", "solution": r"\boxed{073}", "url": "v"},
    ],
    "aime25": [
        {"problem": "Sum the bases.", "answer": "70", "id": "0"},
        {"problem": "Area?", "answer": "588", "id": "1"},
    ],
    "amc23": [
        {"id": 0, "question": "Cities?", "answer": 27.0, "url": "u"},
        {"id": 1, "question": "How many?", "answer": 36.0, "url": "v"},
    ],
    "math500": [
        {"problem": "Polar?", "solution": r"We have \boxed{7}.", "answer": r"\left( 3, \frac{\pi}{2} \right)",
         "subject": "Precalculus", "level": 2, "unique_id": "a"},
        {"problem": "East?", "solution": r"Hence \boxed{8}.", "answer": r"\text{east}",
         "subject": "Algebra", "level": 1, "unique_id": "b"},
    ],
    "minerva": [
        {"question": "Luminosity?", "answer": "4.5e33"},
        {"question": "Slope?", "answer": "1.6"},
    ],
}  # fmt: skip
ANSWERS = {
    "aime24": ["204", "073"], "aime25": ["70", "588"], "amc23": ["27.0", "36.0"],
    "math500": [r"\left( 3, \frac{\pi}{2} \right)", r"\text{east}"], "minerva": ["4.5e33", "1.6"],
}  # fmt: skip
HUB = {
    "math-ai/aime24": "aime24", "math-ai/aime25": "aime25", "math-ai/amc23": "amc23",
    "HuggingFaceH4/MATH-500": "math500", "math-ai/minervamath": "minerva",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Neither runs/ nor the cache of `datasets` are left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def tokenizer(chat_template):
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3} | {c: i + 4 for i, c in enumerate(string.printable)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    made.chat_template = chat_template
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of tiny random models, one with a chat template, one without."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=104, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, eos_token_id=1, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    folders = {}
    for name, template in {"chat": CHAT, "plain": None}.items():
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
        tokenizer(template).save_pretrained(folders[name])
    return SimpleNamespace(**folders)


def write(name, rows):
    """A .jsonl or .parquet file."""
    if name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows).replace('"cut"', '{"problem": "2'))
    else:
        datasets.Dataset.from_list(rows).to_parquet(name)
    return name


def additions(n=20):
    return write("add.jsonl", [{"prompt": f"{37 * i}+{91 * i}=", "answer": str(128 * i)} for i in range(1, n + 1)])


def adder(**kwargs):
    """The shipped adder on 20 additions: 60 responses in 8 batches, a quarter of a second."""
    settings = {
        "model": str(ADDER), "benchmarks": (f"mine={additions()}",), "k": 3, "temperature": 1.0, "batch_size": 8,
        "max_response_length": 24, "reward": "after-equals", "device": "cpu", "out": Path("out"),
    }  # fmt: skip
    return Args(**{**settings, **kwargs})


class Canned:
    """In place of `generate`: `write(prompts, row, sample)` is the response; what it was called with is kept."""

    def __init__(self, monkeypatch, write):
        self.write, self.calls, self.seen = write, [], Counter()
        monkeypatch.setattr(evaluate_llm, "generate", self)

    def __call__(
        self, model, tokenizer, prompts, rows, reward, seed, max_response_length, temperature, stop, log_probs
    ):
        self.calls.append(SimpleNamespace(prompts=prompts, rows=rows, seed=seed, dtype=model.dtype, stop=stop))
        texts = []
        for row in rows:
            texts.append(self.write(prompts, row, self.seen[prompts.texts[row]]))
            self.seen[prompts.texts[row]] += 1
        return SimpleNamespace(
            outcome=torch.tensor(reward(texts, prompts.reward_columns(rows))), texts=texts,
            lengths=torch.tensor([len(text) for text in texts]),
            info={"truncated": np.array([text.endswith("...") for text in texts])},
        )  # fmt: skip


def read(folder):
    """The records of the benchmark `mine`."""
    return [json.loads(line) for line in (Path(folder) / "mine.jsonl").read_text().splitlines()]


def no_work(monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("generate was called")

    monkeypatch.setattr(evaluate_llm, "generate", work)


def table_row(output, name):
    (line,) = [line for line in output.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


# ------------------------------------------------------------------------------------------------------------ numbers
def test_average_pass_and_verdicts_by_hand(made, monkeypatch, capsys):
    right = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]  # problem, sample

    def response(prompts, row, sample):
        return rf"\boxed{{{row}}}" if right[row][sample] else "so..." if row == 1 else r"none"

    canned = Canned(monkeypatch, response)
    file = write("q.jsonl", [{"question": f"Which? {i}", "answer": i} for i in range(4)])
    args = Args(model=made.chat, benchmarks=(f"mine={file}",), k=3, max_response_length=16)
    results = evaluate_llm.main(args)

    found = results["mine"]
    assert found["average_at_k"] == pytest.approx(6 / 12)
    assert found["pass_at_k"] == pytest.approx(3 / 4)
    assert found["truncated"] == pytest.approx(2 / 12)
    assert found["verdicts"] == {"correct": 6, "unparsed": 6}
    assert found["mean_tokens"] == pytest.approx((6 * 9 + 2 * 5 + 4 * 4) / 12)
    # the 4^4 equally likely resamples of the problems' means, enumerated: in twelfths
    sums = sorted(sum(some) for some in itertools.product([3, 1, 0, 2], repeat=4))
    low, high = sums[int(0.025 * 256)] / 12, sums[int(0.975 * 256)] / 12
    assert (low, high) == (2 / 12, 10 / 12)
    assert found["interval_95"] == pytest.approx([low, high])

    (out,) = Path("runs").iterdir()
    assert out.name.startswith(f"evaluate_llm__{Path(made.chat).name}__")
    assert json.loads((out / "results.json").read_text())["results"] == json.loads(json.dumps(results))
    cells = ["mine", "4", "50.0 [16.7, 83.3]", "75.0", "16.7", "50.0", "0.0", "7"]
    assert table_row(capsys.readouterr().out, "mine") == cells
    records = read(out)
    assert [[r["outcome"] for r in records if r["problem"] == i] for i in range(4)] == right
    assert records[5] == {
        "problem": 1, "sample": 1, "outcome": 0, "verdict": "unparsed", "truncated": True, "tokens": 5, "response": "so...",
    }  # fmt: skip

    canned.calls.clear()  # the same settings, the same folder; others, another one
    assert evaluate_llm.main(args) == results
    assert not canned.calls
    canned.seen.clear()
    evaluate_llm.main(replace(args, seed=2))
    assert len(list(Path("runs").iterdir())) == 2


def records_of(outcome):
    """Records for a (problems, k) array."""
    rest = {"verdict": "wrong", "truncated": False, "tokens": 1}
    return [{"problem": i, "sample": j, "outcome": int(x), **rest} for (i, j), x in np.ndenumerate(outcome)]


def half_width(interval):
    return (interval[1] - interval[0]) / 2


def test_the_interval_is_over_problems_not_responses():
    outcome = np.repeat(np.arange(100) % 4 == 0, 16).reshape(100, 16)  # 16 equal responses are one piece of evidence
    result = average_at_k.summarize({"x": records_of(outcome)}, 16)["x"]
    assert result["average_at_k"] == 0.25
    assert half_width(result["interval_95"]) == pytest.approx(1.96 * np.sqrt(0.25 * 0.75 / 100), rel=0.06)
    assert np.mean(result["interval_95"]) == pytest.approx(0.25, abs=0.01)


def test_the_mean_of_benchmarks_weighs_them_equally_and_takes_them_as_independent():
    few, many = np.arange(400).reshape(400, 1) < 300, np.arange(1600).reshape(1600, 1) < 400  # 0.75, 0.25
    results = average_at_k.summarize({"a": records_of(few), "b": records_of(many), "c": records_of(few)}, 1)
    mean = results["mean"]
    assert mean["average_at_k"] == mean["pass_at_k"] == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    variance = (2 * 0.1875 / 400 + 0.1875 / 1600) / 9
    assert half_width(mean["interval_95"]) == pytest.approx(1.96 * np.sqrt(variance), rel=0.06)
    low, high = (100 * x for x in mean["interval_95"])
    row = table_row(average_at_k.results_table(results, 1), "mean")
    assert row == ["mean", "", f"58.3 [{low:.1f}, {high:.1f}]", "58.3", "", "", "", ""]
    assert "mean" not in average_at_k.summarize({"a": records_of(few)}, 1)


def test_the_mean_lies_in_its_interval_where_no_problem_is_solved():
    none = records_of(np.zeros((30, 2)))
    mean = average_at_k.summarize({"a": none, "b": none}, 2)["mean"]
    assert mean["interval_95"] == pytest.approx((0.0, np.sqrt(2 * 0.11352**2) / 2), abs=1e-4)


@pytest.mark.parametrize(
    ("right", "interval"),
    [(0, [0.0, 3.8415 / 33.8415]), (1, [30 / 33.8415, 1.0])],  # Wilson's: z^2 / (n + z^2), z = 1.96
)
def test_no_problem_solved_is_no_certainty(right, interval):
    result = average_at_k.summarize({"x": records_of(np.full((30, 4), right))}, 4)["x"]
    assert result["average_at_k"] == right
    assert result["interval_95"] == pytest.approx(interval, abs=1e-5)


def test_verdicts_of_the_verifier():
    judge = Judge("math")
    texts = [r"\boxed{1/2}", r"\boxed{3}", "1", r"\boxed{5}"]
    assert judge(texts, {"answer": [r"\frac{1}{2}", "4", "1", "???"]}) == [1.0, 0.0, 0.0, 0.0]
    assert judge.verdicts == ["correct", "wrong", "unparsed", "answer_unparsed"]
    judge.math.close()
    exact = Judge("exact")
    assert exact([" 1", "2"], {"answer": ["1", "1"]}) == [1.0, 0.0]
    assert exact.verdicts == ["correct", "wrong"]


def test_what_the_verifier_could_not_decide_is_shown(made, monkeypatch, capsys):
    Canned(monkeypatch, lambda prompts, row, sample: r"\boxed{5}")
    verdicts = ["timed_out", "crashed", "answer_unparsed", "answer_unparsed"]
    monkeypatch.setattr(MathReward, "verdict", lambda self, text, answer: verdicts[int(answer)])
    file = write("q.jsonl", [{"question": f"{i}", "answer": str(i)} for i in range(4)])
    evaluate_llm.main(Args(model=made.chat, benchmarks=(f"mine={file}",), k=2, max_response_length=16))
    output = capsys.readouterr().out
    assert table_row(output, "mine")[5:7] == ["0.0", "100.0"]
    assert "mine: math-verify cannot read the right answers in rows [2, 3] of the benchmark" in output


# -------------------------------------------------------------------------------------------------- problems and prompts
@pytest.mark.parametrize("where", ["jsonl", "parquet", "hub"])
def test_the_five_benchmarks(made, monkeypatch, where):
    canned = Canned(
        monkeypatch, lambda prompts, row, sample: rf"\boxed{{{ANSWERS[names[len(canned.calls) - 1]][row]}}}"
    )
    names = list(FORMATS)
    if where == "hub":
        asked = []

        def from_hub(dataset, split):
            asked.append((dataset, split))
            return datasets.Dataset.from_list(FORMATS[HUB[dataset]])

        monkeypatch.setattr(evaluate_llm, "read_dataset", from_hub)
        given = tuple(names)
    else:
        given = tuple(f"{name}={write(f'{name}.{where}', rows)}" for name, rows in FORMATS.items())
    results = evaluate_llm.main(
        Args(model=made.chat, benchmarks=given, k=1, max_response_length=16, out=Path("out"), batch_size=2)
    )
    if where == "hub":
        assert asked == [(hub_id, "test") for hub_id in HUB]
    assert {name: result["average_at_k"] for name, result in results.items()} == dict.fromkeys([*names, "mean"], 1.0)
    for name, call in zip(names, canned.calls, strict=True):
        questions = [row.get("problem") or row["question"] for row in FORMATS[name]]
        assert call.prompts.texts == [f"<bos><user>{question}{INSTRUCTION}<assistant>" for question in questions]
    described = json.loads(Path("out/settings.json").read_text())["benchmarks"]
    sources = [text.partition("=")[2] for text in given] if where != "hub" else list(HUB)
    assert [described[name]["source"] for name in names] == sources
    assert described["minerva"]["first_prompt"] == f"<bos><user>Luminosity?{INSTRUCTION}<assistant>"


def prompt_of(monkeypatch, row, **kwargs):
    """The only prompt, and its tokens, as `generate` gets them."""
    canned = Canned(monkeypatch, lambda prompts, row, sample: "")
    file = write("one.jsonl", [{**row, "answer": "1"}])
    evaluate_llm.main(Args(benchmarks=(f"mine={file}",), k=1, max_response_length=4, **kwargs))
    (call,) = canned.calls
    return call.prompts.texts[0], call.prompts.ids[0]


def test_prompts_as_the_model_reads_them(made, monkeypatch):
    chat, plain = {"model": made.chat}, {"model": made.plain}
    own = {"prompt_template": "Q: {question} {{}} \\boxed{}\n"}
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    for row, kwargs, text in [
        ({"question": "1?"}, chat, f"<bos><user>1?{INSTRUCTION}<assistant>"),
        ({"problem": "1?"}, plain, f"1?{INSTRUCTION}"),
        ({"question": "1?"}, chat | {"prompt_format": "text"}, f"1?{INSTRUCTION}"),
        ({"question": "1?"}, chat | own, "<bos><user>Q: 1? {{}} \\boxed{}\n<assistant>"),
        ({"question": "1?", "prompt": "no"}, plain | own, "Q: 1? {{}} \\boxed{}\n"),
        ({"prompt": "1+1="}, chat, "1+1="),  # as in training: the whole of what the model reads
        ({"prompt": "1+1="}, chat | {"prompt_format": "chat"}, "<bos><user>1+1=<assistant>"),
        ({"prompt": messages}, chat, "<bos><system>s<user>u<assistant>"),
    ]:
        found, ids = prompt_of(monkeypatch, row, **kwargs)
        assert found == text
        assert ids[0] == 2  # begins with <bos>, from the chat template or from the tokenizer,
        assert ids.count(2) == 1  # not from both
        shutil.rmtree("runs")


def test_without_arguments_the_shipped_adder_adds_what_training_held_out():
    args = Args()
    assert (args.benchmarks, args.k, args.temperature) == (("addition",), 4, 1.0)
    results = evaluate_llm.main(Args(k=1, device="cpu", batch_size=256, seed=2))
    card = json.loads((ADDER / "card.json").read_text())["accuracy"]
    assert results["addition"]["problems"] == card["episodes"] == 512
    assert results["addition"]["average_at_k"] == pytest.approx(card["rate"], abs=0.075)  # 2.5 standard errors of both


def test_defaults_of_real_models_are_the_papers():
    args = Args(model="m", benchmarks=("aime24", "math500"))
    assert (args.k, args.temperature, args.max_response_length) == (16, 0.6, 8192)


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_weights_in_the_precision_asked_for(monkeypatch, bf16, dtype):
    canned = Canned(monkeypatch, lambda prompts, row, sample: "")
    evaluate_llm.main(adder(bf16=bf16))
    assert {call.dtype for call in canned.calls} == {dtype}


def test_the_newest_complete_checkpoint_of_a_run(tmp_path):
    for folder in ("run/checkpoints/000009", "run/checkpoints/000010", "new/checkpoints/.writing-x"):
        (tmp_path / folder / "policy").mkdir(parents=True)
    assert evaluate_llm.find_model(str(tmp_path / "run")) == str(tmp_path / "run/checkpoints/000010/policy")
    old = str(tmp_path / "run/checkpoints/000009")
    assert evaluate_llm.find_model(old) == f"{old}/policy"
    assert evaluate_llm.find_model(str(tmp_path / "new")) == str(tmp_path / "new")  # nothing whole in it yet
    assert evaluate_llm.find_model("org/model") == "org/model"
    assert evaluate_llm.find_model(None) == str(ADDER)


def test_temperature_0_takes_the_likeliest_tokens():
    texts = []
    for seed in (1, 2):
        args = adder(temperature=0.0, k=None, seed=seed, out=Path(f"greedy{seed}"))
        assert args.k == 1
        evaluate_llm.main(args)
        texts.append([record["response"] for record in read(f"greedy{seed}")])
    assert texts[0] == texts[1]
    evaluate_llm.main(adder(k=1))
    assert [record["response"] for record in read("out")] != texts[0]


# ----------------------------------------------------------------------------------------------- stopping and going on
def counted(monkeypatch):
    """The real `generate`, and the seeds with which it is called."""
    seeds = []

    def generate(*args, **kwargs):
        seeds.append(args[5])
        return responses.generate(*args, **kwargs)

    monkeypatch.setattr(evaluate_llm, "generate", generate)
    return seeds


def test_a_killed_evaluation_goes_on_and_ends_the_same(monkeypatch):
    seeds = counted(monkeypatch)
    expected = evaluate_llm.main(adder())
    file = Path("out/mine.jsonl")
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 60
    assert len(set(seeds)) == len(seeds) == 8
    first = list(seeds)
    by_sample = [[r["response"] for r in read("out") if r["sample"] == sample] for sample in range(3)]
    assert by_sample[0] != by_sample[1] != by_sample[2]  # not the same random numbers again

    def goes_on(left, batches):
        file.write_bytes(left)
        seeds.clear()
        assert evaluate_llm.main(adder()) == expected
        assert file.read_bytes() == whole
        assert seeds == first[-batches:] if batches else not seeds  # what was finished was not sampled again

    goes_on(b"".join(lines[:20]) + lines[20][:30], 6)  # in the middle of the third batch, half a line
    goes_on(b"".join(lines[:16]), 6)  # between batches
    goes_on(whole[:-1], 1)  # all but the last line's end
    goes_on(lines[0][:-2], 8)
    goes_on(b"", 8)
    goes_on(whole, 0)


def test_each_batch_is_on_disk_before_the_next(monkeypatch):
    kept = []
    Canned(monkeypatch, lambda prompts, row, sample: kept.append(len(read("out"))) or "")
    evaluate_llm.main(adder())
    assert kept == [i // 8 * 8 for i in range(60)]


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    evaluate_llm.main(adder())
    calls = []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return responses_generate(*args, **kwargs)

    responses_generate = responses.generate
    monkeypatch.setattr(responses, "generate", stops)
    command = ["evaluate_llm.py", "--model", str(ADDER), "--benchmarks", "mine=add.jsonl", "--k", "3", "--temperature", "1",
               "--batch-size", "8", "--max-response-length", "24", "--reward", "after-equals", "--device", "cpu",
               "--out", "a b"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(evaluate_llm.__file__, run_name="__main__")
    assert stopped.value.code == 130
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Go on with" in line]
    assert line.startswith("Stopped; finished batches are kept. Go on with: python ")
    assert " --model " in line
    assert line.endswith("--device cpu --out 'a b'")
    whole = Path("out/mine.jsonl").read_bytes()
    assert Path("a b/mine.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:16])
    runpy.run_path(evaluate_llm.__file__, run_name="__main__")
    assert Path("a b/mine.jsonl").read_bytes() == whole


def test_seeds_depend_on_seed_benchmark_and_batch_alone(made, monkeypatch):
    canned = Canned(monkeypatch, lambda prompts, row, sample: "")
    file = write("q.jsonl", [{"question": f"{i}", "answer": "1"} for i in range(3)])

    def seeds(out, names, **kwargs):
        canned.calls.clear()
        evaluate_llm.main(
            Args(model=made.plain, benchmarks=tuple(f"{n}={file}" for n in names), k=2, max_response_length=4,
                 batch_size=3, out=Path(out), **kwargs)
        )  # fmt: skip
        return [call.seed for call in canned.calls]

    both = seeds("ab", "ab")
    assert len(set(both)) == 4
    assert seeds("b", "b") == both[2:]
    assert set(seeds("other", "ab", seed=2)).isdisjoint(both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 4}, "--k is 3 in out and cannot become 4; name another --out"),
        ({"temperature": 0.5}, "--temperature is 1.0 in out and cannot become 0.5"),
        ({"seed": 2}, "--seed is 1 in out and cannot become 2"),
        ({"max_response_length": 25}, "--max-response-length is 24 in out and cannot become 25"),
        ({"reward": "exact"}, "--reward is after-equals in out and cannot become exact"),
        ({"prompt_template": "{question}"}, "--prompt-template is None in out and cannot become {question}"),
        ({"prompt_format": "text"}, "--prompt-format is auto in out and cannot become text"),
        ({"bf16": True}, "--bf16 is False in out and cannot become True"),
    ],
)
def test_other_settings_are_refused(monkeypatch, change, message):
    Canned(monkeypatch, lambda prompts, row, sample: "")
    evaluate_llm.main(adder())
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    no_work(monkeypatch)
    with pytest.raises(errors.UserError) as refused:
        evaluate_llm.main(adder(**change))
    assert str(refused.value).startswith(message)
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def test_other_weights_and_other_problems_are_refused(monkeypatch):
    canned = Canned(monkeypatch, lambda prompts, row, sample: "")
    shutil.copytree(ADDER, "model")
    shutil.copytree(ADDER, "trained")
    weights = load_file("trained/model.safetensors")
    weights["model.norm.weight"] += 1e-4
    save_file(weights, "trained/model.safetensors", metadata={"format": "pt"})
    evaluate_llm.main(adder(model="model"))
    shutil.move("model", "moved")
    canned.calls.clear()
    evaluate_llm.main(adder(model="moved"))  # the same model under another name
    assert not canned.calls
    with pytest.raises(
        errors.UserError, match=r"--model is model \(\w{12}\) in out and cannot become trained \(\w{12}\)"
    ):
        evaluate_llm.main(adder(model="trained"))
    additions(19)
    args = adder(model="moved")
    additions(19)
    with pytest.raises(
        errors.UserError,
        match=r"--benchmarks mine is add.jsonl \(20 problems, \w{12}\) in out and cannot become add.jsonl \(19 problems, ",
    ):
        evaluate_llm.main(args)


def test_batch_size_may_change_and_a_benchmark_may_be_added(monkeypatch):
    canned = Canned(monkeypatch, lambda prompts, row, sample: "")
    evaluate_llm.main(adder())
    file = Path("out/mine.jsonl")
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:20]))
    canned.calls.clear()
    evaluate_llm.main(adder(batch_size=15))
    assert [len(call.rows) for call in canned.calls] == [15, 15, 15]  # the second 15 hold the first missing ones
    pairs = Counter((r["problem"], r["sample"]) for r in read("out"))
    assert pairs == Counter(itertools.product(range(20), range(3)))  # each once
    results = evaluate_llm.main(adder(benchmarks=("mine=add.jsonl", "again=add.jsonl")))
    assert set(results) == {"mine", "again", "mean"}
    assert set(json.loads(Path("out/settings.json").read_text())["benchmarks"]) == {"mine", "again"}


@pytest.mark.parametrize("damage", [b"{}\n", b'{"problem": 1, "sa\n', b'{"problem": 99, "sample": 0, "outcome": 1}\n'])
def test_a_damaged_line_is_named_and_may_be_deleted(monkeypatch, damage):
    Canned(monkeypatch, lambda prompts, row, sample: "")
    expected = evaluate_llm.main(adder())
    file = Path("out/mine.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
    with pytest.raises(
        errors.UserError, match=r"line 5 of out/mine.jsonl is damaged .* delete the line, and start again"
    ):
        evaluate_llm.main(adder())
    file.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    assert evaluate_llm.main(adder()) == expected


def test_a_folder_of_something_else_is_left_alone(monkeypatch):
    no_work(monkeypatch)
    Path("out").mkdir()
    write("out/mine.jsonl", [{"problem": "1?", "answer": "1"}])
    with pytest.raises(errors.UserError, match=r"--out out is not of an evaluation \(no settings.json\)"):
        evaluate_llm.main(adder())
    assert [path.name for path in Path("out").iterdir()] == ["mine.jsonl"]


def test_two_processes_do_not_write_one_file(monkeypatch):
    Canned(monkeypatch, lambda prompts, row, sample: "")
    Path("out").mkdir()
    args = adder(out=Path("out"))
    with outputs.only_writer(Path("out/mine.jsonl")):
        monkeypatch.setattr(evaluate_llm, "open_folder", lambda *args: None)
        with pytest.raises(errors.UserError, match=r"another process \(process .*\) is writing out/mine.jsonl"):
            evaluate_llm.main(args)


def test_no_memory_keeps_what_is_finished(monkeypatch):
    def write(prompts, row, sample):
        if sample == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ""

    Canned(monkeypatch, write)
    with pytest.raises(errors.UserError, match=r"mine: no memory for --batch-size 8; start again with a smaller one"):
        evaluate_llm.main(adder())
    assert len(Path("out/mine.jsonl").read_bytes().splitlines()) == 16


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"benchmarks": ("aime26",)}, r"--benchmarks aime26 is none of aime24, aime25, amc23, math500, minerva or addi"),
        ({}, r"--benchmarks: name at least one of aime24, .* a file of your own is name=file"),
        ({"benchmarks": ()}, r"--benchmarks: name at least one of"),
        ({"benchmarks": ("a=1.jsonl", "a=2.jsonl")}, r"--benchmarks a=1.jsonl a=2.jsonl: a name is there twice"),
        ({"benchmarks": ("../a=1.jsonl",)}, r"--benchmarks ../a=1.jsonl: choose another name"),
        ({"benchmarks": ("mean=1.jsonl",)}, r"--benchmarks mean=1.jsonl: choose another name"),
        ({"benchmarks": ("aime24",), "model": None}, r"--benchmarks aime24 needs a --model: the tiny adder only adds"),
        ({"benchmarks": ("aime24",), "k": 0}, r"--k must be from 1 to 2\^20, got 0"),
        ({"benchmarks": ("aime24",), "batch_size": 0}, r"--batch-size must be from 1 to 2\^20, got 0"),
        ({"benchmarks": ("aime24",), "temperature": -0.1}, r"--temperature must be from 0 to 1000, got -0.1"),
        ({"benchmarks": ("aime24",), "temperature": 0.0, "k": 2}, r"--temperature 0 gives the same .* use --k 1, got 2"),
        ({"benchmarks": ("aime24",), "prompt_template": "Hi"}, r"--prompt-template must have \{question\} in it, got 'Hi'"),
        ({"benchmarks": ("addition",), "prompt_format": "chat"}, r"--benchmarks addition has its own prompts"),
    ],
)  # fmt: skip
def test_impossible_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Args(**{"model": "m", **kwargs})


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("aime24", None, r"no such dataset: aime24.jsonl"),
        ("aime24", [{"problem": "1?", "answer": "1"}],
         r"aime24.jsonl has no column solution, it has problem, answer; if .* of math-ai/aime24, .* mine=aime24.jsonl"),
        ("amc23", [{"problem": "1?", "answer": "1"}], r"amc23.jsonl has no column question, it has problem, answer"),
        ("mine", [{"text": "1?", "answer": "1"}], r"mine.jsonl has no column question or problem or prompt, it has text"),
        ("mine", [{"problem": "1?", "result": "1"}], r"mine.jsonl has no column answer or solution, it has problem, resul"),
        ("mine", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": None}],
         r"mine.jsonl: answer in row 1 is None; .*; leave such rows out"),
        ("mine", [{"problem": "1?", "answer": float("nan")}], r"mine.jsonl: answer in row 0 is nan; a right answer"),
        ("mine", [{"problem": "1?", "answer": ["1", "2"]}], r"mine.jsonl: answer in row 0 is \['1', '2'\]; a"),
        ("mine", [{"problem": None, "answer": "1"}, {"problem": "1", "answer": "1"}], r"problem is None in row 0"),
        ("mine", [], r"cannot read mine.jsonl: it is empty"),
        ("mine", [{"problem": "1?", "answer": "1"}, "cut"], r"cannot read mine.jsonl: line 2 is not JSON"),
        ("mine", [{"problem": "1?" * 150, "answer": "1"}], r"a prompt of 301 tokens .* exceed the 256 positions .* out$"),
        ("mine", [{"problem": "1?" * 75, "answer": "1"}], r"151 tokens and --max-response-length 200 .*-length 105 or les"),
    ],
)  # fmt: skip
def test_unusable_files_are_refused_before_the_long_work(made, monkeypatch, name, rows, message):
    no_work(monkeypatch)
    if rows is not None:
        write(f"{name}.jsonl", rows)
    args = Args(
        model=made.plain,
        benchmarks=(f"{name}={name}.jsonl",),
        k=1,
        max_response_length=200,
        prompt_template="{question}",
    )
    with pytest.raises((ValueError, OSError), match=message):
        evaluate_llm.main(args)
    assert not Path("runs").exists()


def test_unusable_models_are_refused(made, monkeypatch):
    no_work(monkeypatch)
    write("mine.jsonl", [{"problem": "1?", "answer": "1"}])
    args = {"benchmarks": ("mine=mine.jsonl",), "k": 1, "max_response_length": 4}
    with pytest.raises(
        ValueError, match=r"--prompt-format chat: the tokenizer of .*plain.* has no chat template; use text"
    ):
        evaluate_llm.main(Args(model=made.plain, prompt_format="chat", **args))
    for name in ("./none", "/none", "a/b/none"):
        with pytest.raises(
            OSError, match=rf"^--model {name} is neither a model's folder nor a Hub id that can be reached"
        ):
            evaluate_llm.main(Args(model=name, **args))
    Path("empty").mkdir()
    with pytest.raises(
        OSError, match=r"^--model ./empty is neither a model's folder .*: Unrecognized model in ./empty"
    ):
        evaluate_llm.main(Args(model="./empty", **args))
    shutil.copytree(made.plain, "letters")
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "1": 2}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained("letters")
    with pytest.raises(ValueError, match=r"addition needs the characters \+, 0, 2, .* as tokens of ./letters"):
        evaluate_llm.main(Args(model="./letters", benchmarks=("addition",)))


def test_the_command_line_ends_with_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate_llm.py", "--model", str(ADDER), "--benchmarks", "aime24=none.parquet"])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(evaluate_llm.__file__, run_name="__main__")
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: no such dataset: none.parquet"


# --------------------------------------------------------------------------------------------------- the paper's protocol
def test_the_table_of_the_two_protocols_is_right():
    import protocol_table

    text = protocol_table.PAGE.read_text()
    assert protocol_table.page(text) == text
    assert sum(map(len, protocol_table.KINDS.values())) == 100


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a</think>b", "b"), ("a</think>b</think>c", "c"), ("a", "a"), ("</think>", ""),
        (r"\fbox{1}", r"\boxed{1}"), (r"\boxed{1} \fbox{2}", r"\boxed{1} \fbox{2}"),
        (r"\boxed{1}</think>\fbox{2}", r"\boxed{2}"),
    ],
)  # fmt: skip
def test_what_the_paper_judges_of_a_response(text, part):
    assert paper_answer(text) == part


def test_the_papers_protocol_changes_prompt_verdict_and_folder(made, monkeypatch, capsys):
    canned = Canned(monkeypatch, lambda prompts, row, sample: r"\boxed{2}</think>\fbox{1.00001}")
    file = write("q.jsonl", [{"question": "1?", "answer": "1"}])
    rates = []
    for settings in ({}, {"protocol": "sppo-paper"}, {"protocol": "sppo-paper", "tolerance": 0.0}):
        args = Args(model=made.plain, benchmarks=(f"mine={file}",), k=1, max_response_length=16, **settings)
        rates.append(evaluate_llm.main(args)["mine"]["average_at_k"])
    assert rates == [0.0, 1.0, 0.0]
    assert len(list(Path("runs").iterdir())) == 3
    firsts = {
        json.loads((path / "settings.json").read_text())["benchmarks"]["mine"]["first_prompt"]
        for path in Path("runs").iterdir()
    }
    assert firsts == {
        evaluate_llm.TEMPLATE.replace("{question}", "1?"),
        r"1? Please output the final answer within \boxed{}.",
    }
    assert canned.calls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 1.0}, "--tolerance must be at least 0 and below 1, got 1.0"),
        ({"tolerance": float("nan")}, "--tolerance must be at least 0 and below 1, got nan"),
        ({"tolerance": 0.1, "reward": "exact"}, "--tolerance is for --reward math"),
        ({"protocol": "sppo-paper", "reward": "exact"}, "--protocol sppo-paper judges"),
        ({"protocol": "sppo-paper", "benchmarks": ("addition",)}, "--protocol sppo-paper judges"),
    ],
)
def test_settings_that_do_not_fit_the_protocol(settings, message):
    with pytest.raises(ValueError, match=message):
        Args(**{"model": "m", "benchmarks": ("amc23",), **settings})
