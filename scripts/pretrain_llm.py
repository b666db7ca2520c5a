"""Make the starting policy of the language-model scripts: a tiny transformer that adds, and is often wrong.

It is trained from random weights on demonstrations with mistakes: forgotten carries and wrong digits
(sppo_control/llm/addition.py). Training stops when about a third of the held-out additions are right.

Clean demonstrations do not work. A model trained on them and stopped early never solves long numbers, so it would get no
reward there.

    python scripts/pretrain_llm.py               # about two minutes on one core; writes sppo_control/pretrained/addition
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from sppo_control import checkpoints, cli, core, runs
from sppo_control.llm import addition
from sppo_control.llm.prompts import load_prompts, make_reward
from sppo_control.llm.responses import Responses, evaluate, policy_log_probs
from sppo_control.llm.setup import ADDER, require_packages
from sppo_control.outcomes import Evaluation
from sppo_control.outputs import Folder


@dataclass
class Args:
    out: Annotated[str, Folder()] = str(ADDER)
    """folder for the model, its tokenizer and its card"""
    seed: int = 0
    """of weights and demonstrations"""
    width: int = 96
    """hidden size, a multiple of 24"""
    layers: int = 3
    """decoder layers"""
    forgets_carry: float = 0.75
    """how often the demonstrator forgets a carry"""
    wrong_digit: float = 0.06
    """how often the demonstrator writes a wrong digit"""
    learning_rate: float = 1e-3
    """Adam, warmed up over 100 steps"""
    batch_size: int = 128
    """demonstrations per step"""
    max_steps: int = 4000
    """give up after so many steps"""
    target: float = 0.35
    """stop when this share of held-out additions is right, sampled at temperature 1"""

    def __post_init__(self) -> None:
        if self.width % 24:
            raise ValueError(f"--width must be a multiple of 24, got {self.width}")


def demonstrations(args: Args, tokenizer: addition.PreTrainedTokenizerFast, rng: np.random.Generator) -> Responses:
    """A batch of demonstrations as responses."""
    pairs = addition.problems(args.batch_size, rng)
    prompts = tokenizer([row["prompt"] for row in addition.rows(pairs)], padding=True, return_tensors="pt")
    written = [addition.demonstration(a, b, rng, args.forgets_carry, args.wrong_digit) + "<eos>" for a, b in pairs]
    responses = tokenizer(written, padding=True, padding_side="right", return_tensors="pt")
    mask = responses["attention_mask"].bool()
    return Responses(
        prompts["input_ids"], prompts["attention_mask"].bool(), responses["input_ids"], mask,
        torch.zeros(mask.shape), torch.zeros(len(pairs)), written, {},
    )  # fmt: skip


def main(args: Args) -> None:
    require_packages()
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tokenizer = addition.tokenizer()
    model = Qwen2ForCausalLM(addition.config(args.width, args.layers))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    _, held_out = load_prompts(None, tokenizer).split(512)
    reward = make_reward("after-equals")
    Path(args.out).mkdir(parents=True, exist_ok=True)  # fails before the work, not after it

    def accuracy() -> Evaluation:
        return evaluate(model, tokenizer, held_out, reward, args.seed, addition.MAX_RESPONSE + 1)

    began = time.perf_counter()
    bar = tqdm(range(1, args.max_steps + 1), unit="step", dynamic_ncols=True)
    for step in bar:
        batch = demonstrations(args, tokenizer, rng)
        logp = policy_log_probs(model, batch, temperature=1.0).logp
        loss = -core.masked_mean(logp, batch.mask)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, step / 100)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == args.max_steps:
            result = accuracy()
            bar.set_postfix_str(f"loss {float(loss.detach()):.3f}, right {result.rate:.3f}")
            if result.rate >= args.target:
                bar.close()
                break
    else:
        sys.exit(
            f"after {args.max_steps} steps {result.rate:.3f} are right, the target is {args.target}; nothing written"
        )

    by_length = {}
    lengths = np.array([max(map(len, text.rstrip("=").split("+"))) for text in held_out.texts])
    for digits in range(1, addition.MAX_DIGITS + 1):
        by_length[str(digits)] = float(result.outcome[lengths == digits].mean())
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    card = {
        "command": "python scripts/pretrain_llm.py", "recipe": {k: v for k, v in asdict(args).items() if k != "out"},
        "steps": step, "seconds": round(time.perf_counter() - began, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": {**result.as_dict(), "by_longer_numbers_digits": by_length}, **runs.versions(),
    }  # fmt: skip
    checkpoints.write_json(Path(args.out) / "card.json", card)
    print(f"right {result} of {len(held_out)} held-out additions, by digits of the longer number: {by_length}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
