"""Average@k of a language model on mathematical benchmarks: k responses per problem, judged by their final answers.

    python scripts/evaluate_llm.py                                       # the tiny adder of this package, some seconds
    python scripts/evaluate_llm.py --model runs/<folder> --benchmarks addition      # the policy of a run of sppo_llm.py
    python scripts/evaluate_llm.py --model Qwen/Qwen2.5-Math-1.5B-Instruct --bf16 --max-response-length 3072 \\
        --benchmarks aime24 aime25 amc23 math500 minerva                 # from the Hub; --protocol sppo-paper: as the paper
    python scripts/evaluate_llm.py --model <folder> --benchmarks aime24=aime24.jsonl mine=problems.parquet

Every finished batch is kept in --out. After a stop the same command goes on, with the same result. docs/llm_evaluate.md
explains columns, prompts and the interval. This needs the extra `llm`: pip install -c constraints.txt -e '.[llm]'.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from sppo_control import checkpoints, cli, errors, limits, runs
from sppo_control.checkpoints import complete
from sppo_control.llm import addition
from sppo_control.llm.average_at_k import Record, open_folder, read_records, results_table, summarize
from sppo_control.llm.context import check_context, check_ids
from sppo_control.llm.prompts import (
    Prompts,
    check_reward,
    load_prompts,
    make_reward,
    read_dataset,
    report_answers,
)
from sppo_control.llm.responses import generate
from sppo_control.llm.rewards import COLUMNS, MathReward, answer_text, paper_answer
from sppo_control.llm.setup import ADDER, check_device, find_device, naming, require_packages, stop_texts
from sppo_control.llm.tokenizers import load_tokenizer, prompt_ids, prompt_text
from sppo_control.outputs import Folder, only_writer

BENCHMARKS = {
    # name: (Hub id, column of the question, column of the answer); the split is "test"
    "aime24": ("math-ai/aime24", "problem", "solution"),  # 30 problems; a solution looks like \boxed{204}
    "aime25": ("math-ai/aime25", "problem", "answer"),  # 30
    "amc23": ("math-ai/amc23", "question", "answer"),  # 40
    "math500": ("HuggingFaceH4/MATH-500", "problem", "answer"),  # 500
    "minerva": ("math-ai/minervamath", "question", "answer"),  # 272
}
QUESTIONS = ("question", "problem", "prompt")
"""Columns that may contain the question in your own file; the first one present is taken."""
TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
PAPER_TEMPLATE = "{question} Please output the final answer within \\boxed{}."
"""The message in the evaluation files of the official code (github.com/sustech-nlp/SPPO, commit 55e8a72)."""
FREE = ("model", "batch_size", "device")
"""Settings that may differ when an evaluation goes on. Other weights are noticed, whatever their name. With another batch
size or device the remaining samples are different ones, which are as good."""


@dataclass
class Args:
    model: str | None = None
    """Hugging Face folder, Hub id, or run folder (its newest checkpoint); None is the tiny adder of this package"""
    benchmarks: tuple[str, ...] | None = None
    """aime24, aime25, amc23, math500, minerva: from the Hub. name=file: from a .jsonl, .json, .parquet or .csv file.
    addition: held-out additions; None is also these, if there is no --model"""
    k: int | None = None
    """responses per problem; None is 16, as in the paper (additions: 4; --temperature 0: 1)"""
    temperature: float | None = None
    """of sampling, from the full distribution; 0 takes the likeliest token; None is 0.6, as in the paper (additions: 1)"""
    max_response_length: int | None = None
    """longest response in tokens; None is 8192, as in the paper (additions: 24, which is enough)"""
    reward: str | None = None
    """math, exact, after-equals, or your own module:function, as in the training scripts (docs/llm.md); None is
    after-equals for additions, else math"""
    protocol: Literal["ours", "sppo-paper"] = "ours"
    """sppo-paper: prompt, judged part and tolerance of the official SPPO code (docs/llm_evaluate.md)"""
    tolerance: float | None = None
    """reward math: relative, between numbers; None is 0, and with --protocol sppo-paper 1e-4"""
    stop: tuple[str, ...] | None = None
    """texts that end a response, such as "\\n"; None leaves it to the end-of-text token, which always ends it"""
    prompt_template: str | None = None
    """what the model is asked, with {question} in it; None is the protocol's (docs/llm_evaluate.md)"""
    prompt_format: Literal["auto", "chat", "text"] = "auto"
    """a chat message, or plain text; auto is chat if the tokenizer has a chat template"""
    seed: int = 1
    """of the samples"""
    batch_size: int = 64
    """responses in memory at once"""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is cuda where there is one"""
    bf16: bool = False
    """weights and computation in bfloat16 instead of float32"""
    out: Annotated[Path | None, Folder()] = None
    """folder for responses and results; None is a folder in runs/ with a name made of the model and these settings"""

    def __post_init__(self) -> None:
        if self.benchmarks is None and self.model is None:
            self.benchmarks = ("addition",)
        known = f"{', '.join(BENCHMARKS)} or addition; a file of your own is name=file"
        if not self.benchmarks:
            raise ValueError(f"--benchmarks: name at least one of {known}")
        names = list(self.sources)
        for name, source in self.sources.items():
            if not source and name not in (*BENCHMARKS, "addition"):
                raise ValueError(f"--benchmarks {name} is none of {known}")
            if not re.fullmatch(r"\w[\w.-]*", name) or (source and name in ("addition", "mean")):
                raise ValueError(f"--benchmarks {name}={source}: choose another name, of letters, digits, _, . and -")
        if len(names) < len(self.benchmarks):
            raise ValueError(f"--benchmarks {' '.join(self.benchmarks)}: a name is there twice")
        if self.model is None and names != ["addition"]:
            raise ValueError(f"--benchmarks {' '.join(self.benchmarks)} needs a --model: the tiny adder only adds")
        adds = names == ["addition"]
        if self.protocol == "sppo-paper" and ("addition" in names or self.reward not in (None, "math")):
            raise ValueError(
                "--protocol sppo-paper judges \\boxed{...}: no --benchmarks addition, no --reward but math"
            )
        if self.tolerance is not None and ("addition" in names or self.reward not in (None, "math")):
            raise ValueError("--tolerance is for --reward math, which compares numbers; leave it out")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"--tolerance must be at least 0 and below 1, got {self.tolerance}")
        if self.temperature is None:
            self.temperature = 1.0 if adds else 0.6
        if self.k is None:
            self.k = 1 if self.temperature == 0 else 4 if adds else 16
        if self.max_response_length is None:
            self.max_response_length = addition.MAX_RESPONSE + 1 if adds else 8192
        limits.check_limits(self)
        if self.temperature == 0 and self.k > 1:
            raise ValueError(f"--temperature 0 gives the same response every time; use --k 1, got {self.k}")
        if self.prompt_template is not None and "{question}" not in self.prompt_template:
            raise ValueError(f"--prompt-template must have {{question}} in it, got {self.prompt_template!r}")
        if "addition" in names and (self.prompt_template is not None or self.prompt_format == "chat"):
            raise ValueError("--benchmarks addition has its own prompts: no --prompt-template, no --prompt-format chat")
        check_device(self.device)
        if self.reward is not None:
            check_reward(self.reward)
        stop_texts(self.stop)
        if self.device == "auto":
            self.device = find_device("auto").type

    @property
    def sources(self) -> dict[str, str]:
        """Name -> file; the file is "" for a known benchmark."""
        return {name: source for name, _, source in (text.partition("=") for text in self.benchmarks or ())}


class Judge:
    """The reward for `generate`. It keeps its last verdicts: correct, wrong, or a key of `MathReward.counts`."""

    def __init__(self, name: str, protocol: str = "ours", tolerance: float | None = None) -> None:
        paper = protocol == "sppo-paper"
        self.part = paper_answer if paper else str
        tolerance = (1e-4 if paper else 0.0) if tolerance is None else tolerance
        self.math = MathReward(tolerance=tolerance) if name == "math" else None
        self.reward = make_reward(name)
        self.verdicts: list[str] = []

    def __call__(self, texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        if self.math is None:
            self.verdicts = ["correct" if right else "wrong" for right in self.reward(texts, columns)]
        else:
            self.verdicts = [
                self.math.verdict(self.part(text), answer)
                for text, answer in zip(texts, columns["answer"], strict=True)
            ]
        return [float(verdict == "correct") for verdict in self.verdicts]


# -------------------------------------------------------------------------------------------------- model and problems
def find_model(name: str | None) -> str:
    """What to load: the newest policy of a run folder, or the name as it is."""
    if name is None:
        return str(ADDER)
    found = complete(Path(name, "checkpoints"))
    path = found[-1] if found else Path(name)
    return str(path / "policy") if (path / "policy").is_dir() else name


def fingerprint(model: Any) -> str:
    """Digest of about 4096 numbers of each weight tensor. Any training changes some of them."""
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        some = x.flatten()[:: max(1, x.numel() // 4096)].double().cpu().numpy()
        digest.update(name.encode() + some.tobytes())
    return digest.hexdigest()[:12]


def load_problems(name: str, source: str, tokenizer: Any, args: Args) -> Prompts:
    """All problems of a benchmark, in the file's order.

    Raises:
        ValueError: a column is missing; a question or an answer is empty; there is no chat template, but one is needed.
        OSError: there is neither such a file nor a Hub id that can be reached.
    """
    if name == "addition":
        if missing := set(addition.ALPHABET) - set(tokenizer.get_vocab()):
            raise ValueError(f"addition needs the characters {', '.join(sorted(missing))} as tokens of {args.model}")
        return load_prompts(None, tokenizer).split(512)[1]  # the training scripts hold out the same ones
    hub_id, *columns = BENCHMARKS.get(name, ("", "", ""))
    rows = read_dataset(source or hub_id, "test")
    found = []
    for names in [(column,) for column in columns] if hub_id else [QUESTIONS, COLUMNS]:
        present = [column for column in names if column in rows.column_names]
        if not present:
            mend = f"; if it is not in the format of {hub_id}, give it another name: mine={source}" if hub_id else ""
            raise ValueError(
                f"{source or hub_id} has no column {' or '.join(names)}, it has {', '.join(rows.column_names)}{mend}"
            )
        found.append(present[0])
    question, answer = found
    # A column `prompt` is what the training scripts read: the model's whole input. Other columns have the bare question.
    template = args.prompt_template or (
        "{question}" if question == "prompt" else TEMPLATE if args.protocol == "ours" else PAPER_TEMPLATE
    )
    chat = args.prompt_format == "chat" or (
        args.prompt_format == "auto" and question != "prompt" and bool(tokenizer.chat_template)
    )
    if args.prompt_format == "chat" and not tokenizer.chat_template:
        raise ValueError(f"--prompt-format chat: the tokenizer of {args.model} has no chat template; use text")
    texts, ids, answers = [], [], []
    for index, row in enumerate(rows):
        prompt, right = row[question], row[answer]
        if not isinstance(prompt, str | list) or not prompt:
            raise ValueError(f"{source or hub_id}: {question} is {prompt!r} in row {index}; leave such rows out")
        try:
            right = answer_text(right)
        except ValueError as error:
            raise ValueError(f"{source or hub_id}: {answer} in row {index} is {error}; leave such rows out") from None
        if isinstance(prompt, str):  # chat messages get only the chat template
            prompt = template.replace("{question}", prompt)
            prompt = [{"role": "user", "content": prompt}] if chat else prompt
        try:
            texts.append(prompt_text(prompt, tokenizer))
            ids.append(prompt_ids(prompt, tokenizer))
        except ValueError as error:
            raise ValueError(f"{source or hub_id}, row {index}: {error}") from error
        answers.append(right)
    if not ids:
        raise ValueError(f"{source or hub_id} has no rows")
    all_columns = {name: list(rows[name]) for name in rows.column_names}
    return Prompts(texts, ids, answers, columns={**all_columns, "answer": answers})  # as the benchmark names it


def check_length(prompts: Prompts, name: str, model: Any, args: Args) -> None:
    """Refuse what does not fit into the model's context. Beyond it, models write nonsense without an error."""
    assert args.max_response_length is not None  # Args fills it in
    try:
        check_ids(model, prompts.ids, str(args.model))
        longest = max(map(len, prompts.ids))
        check_context(model.config, str(args.model), longest, args.max_response_length, "--max-response-length")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


# ---------------------------------------------------------------------------------------------------------- responses
def respond(name: str, prompts: Prompts, model: Any, tokenizer: Any, args: Args, out: Path) -> list[Record]:
    """Records of k responses per problem. Those that are not in the benchmark's file are sampled and appended to it."""
    assert args.k is not None  # Args fills these in
    assert args.temperature is not None
    assert args.max_response_length is not None
    judge = Judge(args.reward or ("after-equals" if name == "addition" else "math"), args.protocol, args.tolerance)
    path = out / f"{name}.jsonl"
    pairs = [(problem, sample) for sample in range(args.k) for problem in range(len(prompts))]
    with only_writer(path), path.open("a+b") as file:
        done = read_records(file, len(prompts), args.k)
        with tqdm(total=len(pairs), initial=len(done), desc=name, unit="response", dynamic_ncols=True) as bar:
            # The batches are always the same ones, and each has its seed. A batch that was written in part is sampled
            # again as a whole, so its missing responses are the same as without a stop.
            for start in range(0, len(pairs), args.batch_size):
                batch = pairs[start : start + args.batch_size]
                if all(pair in done for pair in batch):
                    continue
                seed = np.random.SeedSequence([args.seed, zlib.crc32(name.encode()), start]).generate_state(1)[0]
                try:
                    responses = generate(
                        model, tokenizer, prompts, [problem for problem, _ in batch], judge, int(seed),
                        args.max_response_length, args.temperature, stop=stop_texts(args.stop), log_probs=False,
                    )  # fmt: skip
                except torch.OutOfMemoryError as error:
                    raise errors.UserError(
                        f"{name}: no memory for --batch-size {args.batch_size}; start again with a smaller one"
                    ) from error
                fresh = {
                    pair: {
                        "problem": pair[0], "sample": pair[1], "outcome": int(responses.outcome[i]),
                        "verdict": judge.verdicts[i], "truncated": bool(responses.info["truncated"][i]),
                        "tokens": int(responses.lengths[i]), "response": responses.texts[i],
                    }
                    for i, pair in enumerate(batch)
                    if pair not in done
                }  # fmt: skip
                file.write(b"".join(json.dumps(record).encode() + b"\n" for record in fresh.values()))
                file.flush()
                os.fsync(file.fileno())
                done |= fresh
                bar.set_postfix_str(f"right {np.mean([r['outcome'] for r in done.values()]):.3f}", refresh=False)
                bar.update(len(fresh))
    return [done[pair] for pair in pairs]


def main(args: Args) -> dict[str, dict[str, Any]]:
    # ---- all that can be refused, before the long work
    require_packages()
    import datasets  # type: ignore[import-untyped]
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    assert args.k is not None  # Args fills it in
    if args.reward is not None:
        make_reward(args.reward)
    datasets.disable_progress_bars()
    disable_progress_bar()
    path = find_model(args.model)
    with naming("--model", path):
        AutoConfig.from_pretrained(path)  # without a model its message is short, the tokenizer's is long
        tokenizer = load_tokenizer(path)
    problems = {name: load_problems(name, source, tokenizer, args) for name, source in args.sources.items()}
    model: Any  # its methods are typed as those of a decorator
    with naming("--model", path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if args.bf16 else torch.float32)
    for name, prompts in problems.items():
        check_length(prompts, name, model, args)
        if name != "addition" and args.reward in (None, "math"):
            for line in report_answers(prompts.answers, args.sources[name] or name):
                print(line)
    names = ("k", "temperature", "max_response_length", "reward", "prompt_template", "prompt_format", "seed", "bf16",
             "batch_size", "device")  # fmt: skip
    settings = {"model": path, **{key: getattr(args, key) for key in names}, "weights": fingerprint(model)}
    if args.protocol != "ours":
        settings["protocol"] = args.protocol
    if args.tolerance is not None:
        settings["tolerance"] = args.tolerance
    if args.stop:  # a new key would give folders of earlier evaluations another name
        settings["stop"] = list(args.stop)
    fixed = json.dumps([value for key, value in settings.items() if key not in FREE])
    code = hashlib.sha256(fixed.encode()).hexdigest()[:8]
    out = args.out or Path("runs") / f"evaluate_llm__{Path(args.model or ADDER).name}__{code}"
    described = {
        name: {
            "source": args.sources[name] or BENCHMARKS.get(name, (name,))[0], "problems": len(prompts),
            "digest": hashlib.sha256(json.dumps([prompts.ids, prompts.answers]).encode()).hexdigest()[:12],
            "first_prompt": prompts.texts[0],
        }
        for name, prompts in problems.items()
    }  # fmt: skip
    open_folder(out, settings, described, FREE)

    # ---- responses
    model.to(args.device)
    records = {name: respond(name, prompts, model, tokenizer, args, out) for name, prompts in problems.items()}

    # ---- results
    results = summarize(records, args.k)
    checkpoints.write_json(
        out / "results.json", {"k": args.k, "results": results, "settings": settings, **runs.versions()}
    )
    print(f"\n{results_table(results, args.k)}\n\nper cent; intervals by bootstrap over problems; written to {out}")
    for name, result in results.items():
        if rows := result.get("unreadable_answers"):
            print(
                f"{name}: math-verify cannot read the right answers in rows {rows} of the benchmark; mend or drop them"
            )
    return results


if __name__ == "__main__":
    try:
        cli.main(main, Args, __doc__)
    except KeyboardInterrupt:
        print(f"\nStopped; finished batches are kept. Go on with: {shlex.join(['python', *sys.argv])}", file=sys.stderr)
        sys.exit(130)
