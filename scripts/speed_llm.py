"""Speed and memory on language models, always compared with other implementations.

The variants take turns within each round, so a busy machine slows all of them alike. Ratios are taken within a round.

--what loss: from hidden states to the gradients of hidden states and output head, through SPPO's clipped surrogate.
(a) naive: logits, log_softmax, gather. (b) ours: `sppo_control.llm.token_log_probs`. (c) TRL's chunked kernel (Triton on
CUDA, torch elsewhere). (d) Liger's fused GRPO loss, without its reference model and torch.compile. What is not installed
is left out and named. Peak memory is the most that a fresh process needs above its inputs, gradients included. "Less
gradients" leaves out the gradients of hidden and head, which each variant must return. Seconds are by the clock. With
--device cpu there is CPU time too, which other work on the machine disturbs less.

--what update: a whole update of SPPO without rollout: old log-probabilities, V, the policy's step, the critic's step. It is
measured with a critic as large as the policy, and with one of about a quarter. Token-level PPO's update with its critic
over every token is the peer. Weights are random. Peak memory is as above, with weights and optimisers.

--what addition: the language-model scripts on additions, five seeds. It measures responses and seconds until the mean
outcome of the last 1,024 responses is 0.8 and 0.9. Seconds are CPU time of one thread, from the first update on, without
the evaluations before and after. Runs that are already in --out are not run again.

--what real: whole updates of sppo_llm.py on a pretrained model, rollout included, and where their time goes. TRL's
GRPOTrainer is the peer, with as many responses per update (groups of 8), the same prompts, lengths, Adam and bfloat16. Both
wait in processes of their own while the other makes an update. No stop text, so that responses are equally long. Then the
parts of the adder's update. The model is that of fetch_smollm2.py.

    pip install -c constraints.txt -e '.[llm]' && pip install --no-deps liger-kernel
    python scripts/speed_llm.py --what loss               # about five minutes on one core; --device cuda on a GPU
    python scripts/speed_llm.py --what update             # about five minutes
    python scripts/speed_llm.py --what addition           # about forty minutes
    python scripts/speed_llm.py --what real --rounds 3    # about three minutes on two cores
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from sppo_control import checkpoints, cli, core, errors, runs
from sppo_control.llm import token_log_probs
from sppo_control.outputs import File

# (vocabulary, sequences, tokens in each, width). The second differs from the first in length alone.
SIZES = {
    "cpu": [(32_000, 8, 256, 256), (32_000, 8, 512, 256), (32_000, 4, 512, 512), (151_936, 2, 512, 256)],
    "cuda": [(32_000, 8, 1024, 2048), (32_000, 8, 2048, 2048), (151_936, 1, 4096, 1536), (151_936, 1, 8192, 1536)],
}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
PACKAGES = {"naive": "torch", "ours": "sppo-control", "trl": "trl", "liger": "liger-kernel"}


@dataclass
class Args:
    what: Literal["loss", "update", "addition", "real"] = "loss"
    """see above"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where the tensors are; cuda computes in bfloat16"""
    rounds: int = 5
    """how often each is measured"""
    seeds: tuple[int, ...] = (11, 12, 13, 14, 15)
    """of --what addition"""
    model: Path = Path("runs/models/SmolLM2-135M-Instruct")
    """of --what real, a folder that fetch_smollm2.py wrote"""
    max_response_length: int = 6
    """of --what real, in tokens"""
    out: Annotated[str | None, File(".json", new_folder=True)] = None
    """JSON file for the table; None is docs/speed_llm_<what>.json, with the device in its name unless it is cpu"""
    worker: str | None = None
    """internal: this is the measured process; variant:index of the size, or variant:seed"""

    def __post_init__(self) -> None:
        if self.device == "cuda" and self.what in ("addition", "real"):
            raise ValueError(f"--device cuda: --what {self.what} is measured on the CPU; use --device cpu")
        if self.what == "real" and not self.model.is_dir():
            raise ValueError(f"--model {self.model}: there is no such folder; make it by scripts/fetch_smollm2.py")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu")
        if self.worker is not None and not re.fullmatch(r".+:\d+", self.worker):
            raise ValueError(f"--worker must be variant:number, got {self.worker}; leave it out")
        if self.out is None and self.worker is None:
            suffix = "" if self.device == "cpu" else f"_{self.device}"
            self.out = f"docs/speed_llm_{self.what}{suffix}.json"
        if not self.seeds:
            raise ValueError("--seeds takes one seed or more, got none")


# ------------------------------------------------------------------------------------------------------------- loss
@dataclass
class Batch:
    """hidden (B, T, D) and weight (V, D) with gradient; tokens, logp_old, mask (B, T); advantage (B,)"""

    hidden: Tensor
    weight: Tensor
    tokens: Tensor
    logp_old: Tensor
    advantage: Tensor
    mask: Tensor


def make_batch(size: tuple[int, int, int, int], device: str) -> Batch:
    V, B, T, D = size
    torch.manual_seed(0)
    hidden, weight = torch.randn(B, T, D), torch.randn(V, D) / D**0.5
    tokens = torch.randint(V, (B, T))
    logp_old = -torch.full((B, T), float(V)).log()  # ratios near 1 would need the logits; here some are clipped
    advantage = torch.randint(0, 2, (B,)).float() - 0.5
    mask = torch.ones(B, T, dtype=torch.bool)  # Liger computes padding too
    hidden, weight = (x.to(device, DTYPES[device]).requires_grad_() for x in (hidden, weight))
    return Batch(hidden, weight, *(x.to(device) for x in (tokens, logp_old, advantage, mask)))


def surrogate(logp: Tensor, b: Batch) -> Tensor:
    return core.clipped_surrogate(logp, b.logp_old, b.advantage, b.mask, reduction="token-mean").loss


def naive(b: Batch) -> Tensor:
    logp = torch.log_softmax((b.hidden @ b.weight.t()).float(), dim=-1)
    return surrogate(logp.gather(-1, b.tokens[..., None])[..., 0], b)


def ours(b: Batch) -> Tensor:
    return surrogate(token_log_probs(b.hidden, b.weight, b.tokens, backend="torch").logp, b)


def trl(b: Batch) -> Tensor:
    return surrogate(token_log_probs(b.hidden, b.weight, b.tokens, backend="trl").logp, b)


def liger(b: Batch) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, loss_type="bnpo")
    return loss(b.hidden, b.weight, b.tokens, b.mask, b.advantage, old_per_token_logps=b.logp_old)[0]


VARIANTS: dict[str, Callable[[Batch], Tensor]] = {"naive": naive, "ours": ours, "trl": trl, "liger": liger}


def loss_and_gradient(name: str, batch: Batch) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of CPU time, and the loss."""
    batch.hidden.grad = batch.weight.grad = None
    synchronize(batch.hidden)
    began, cpu_began = time.perf_counter(), time.process_time()
    loss = VARIANTS[name](batch)
    loss.backward()
    synchronize(batch.hidden)
    return time.perf_counter() - began, time.process_time() - cpu_began, float(loss.detach())


def synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def peak_memory(name: str, size: tuple[int, int, int, int], device: str) -> int:
    """Most bytes in use above the inputs; call it in a fresh process."""
    loss_and_gradient(name, make_batch((64, 1, 8, 8), device))  # libraries are loaded before the count starts
    batch = make_batch(size, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss_and_gradient(name, batch)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is in use now
    before = resident("VmRSS")
    loss_and_gradient(name, batch)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def measure_loss(args: Args) -> dict[str, Any]:
    names = [name for name, package in PACKAGES.items() if installed(package)]
    for name in PACKAGES.keys() - set(names):
        print(f"left out: {name}, {PACKAGES[name]} is not installed")
    rows = []
    print(
        "\n| V | B x T | D | variant | peak MiB | less gradients | times naive | tokens/s | seconds to naive's | CPU s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for index, size in enumerate(SIZES[args.device]):
        V, B, T, D = size
        memory = {name: child(args, f"{name}:{index}") for name in names}
        batch = make_batch(size, args.device)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
        loss: dict[str, float] = {}
        for name in names:
            loss_and_gradient(name, batch)  # warm
        for _ in tqdm(range(args.rounds), unit="round", desc=f"V = {V}, B x T = {B} x {T}", leave=False):
            for name in names:
                spent, cpu_spent, loss[name] = loss_and_gradient(name, batch)
                seconds[name].append(spent)
                cpu_seconds[name].append(cpu_spent)
        gradients = (batch.hidden.nbytes + batch.weight.nbytes) / 2**20
        for name in names:
            ratio, cpu_ratio = (
                [a / b for a, b in zip(measured[name], measured["naive"], strict=True)]
                for measured in (seconds, cpu_seconds)
            )
            row = {
                "vocabulary": V, "sequences": B, "length": T, "width": D, "variant": name,
                "peak_mib": memory[name] / 2**20, "peak_to_naive": memory[name] / memory["naive"],
                "peak_less_gradients_mib": memory[name] / 2**20 - gradients,
                "seconds": seconds[name], "tokens_per_second": B * T / statistics.median(seconds[name]),
                "seconds_to_naive": statistics.median(ratio), "cpu_seconds": cpu_seconds[name],
                "cpu_seconds_to_naive": statistics.median(cpu_ratio) if args.device == "cpu" else None,
                "loss": loss[name],
            }  # fmt: skip
            rows.append(row)
            tqdm.write(
                f"| {V:,} | {B} x {T} | {D} | {name} | {row['peak_mib']:,.0f} | {row['peak_less_gradients_mib']:,.0f} | "
                f"{row['peak_to_naive']:.2f} | {row['tokens_per_second']:,.0f} | "
                f"{row['seconds_to_naive']:.2f} ({min(ratio):.2f} to {max(ratio):.2f}) | "
                + (f"{row['cpu_seconds_to_naive']:.2f} |" if args.device == "cpu" else "- |")
            )
    return {"rows": rows}


# ----------------------------------------------------------------------------------------------------------- update
@dataclass
class UpdateSize:
    """Layers and width of policy and small critic, and the batch."""

    policy: tuple[int, int]
    small_critic: tuple[int, int]
    vocabulary: int
    prompts: int
    prompt_length: int
    response_length: int
    micro_batch_size: int


UPDATES = {
    "cpu": UpdateSize((8, 512), (8, 256), 8_000, 16, 64, 192, 4),
    # Qwen2.5's 1.5B and 0.5B
    "cuda": UpdateSize((28, 1536), (24, 896), 151_936, 8, 512, 8192 - 512, 1),
}
UPDATE_VARIANTS = ("sppo, critic as large", "sppo, critic of a quarter", "ppo, critic as large")


def qwen2(layers: int, width: int, vocabulary: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=math.gcd(width // 64, width // 256 or 1),
        max_position_embeddings=16_384,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def measure_one_update(variant: str, device: str, rounds: int) -> dict[str, Any]:
    """Peak bytes above the start, seconds of each round, parameters; call it in a fresh process."""
    import numpy as np

    from sppo_control.llm import PromptCritic
    from sppo_control.llm.critic import train_critic
    from sppo_control.llm.responses import Responses, policy_log_probs, token_values

    size, bf16 = UPDATES[device], device == "cuda"
    qwen2(1, 64, 64)  # libraries are loaded before the count starts
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    before = 0 if device == "cuda" else resident("VmRSS")
    torch.manual_seed(0)
    policy = qwen2(*size.policy, size.vocabulary).to(device)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    shape = size.small_critic if "quarter" in variant else size.policy
    critic = PromptCritic(qwen2(*shape, size.vocabulary).base_model).to(device)
    if variant.startswith("ppo"):
        critic.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        critic.train()
    optimizer, critic_optimizer = torch.optim.Adam(policy.parameters()), torch.optim.Adam(critic.parameters())

    B, P, T = size.prompts, size.prompt_length, size.response_length
    prompt_ids, tokens = torch.randint(2, size.vocabulary, (B, P)), torch.randint(2, size.vocabulary, (B, T))
    prompt_mask, mask = torch.ones(B, P, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    outcome = torch.randint(0, 2, (B,)).float()
    responses = Responses(
        prompt_ids.to(device), prompt_mask.to(device), tokens.to(device), mask.to(device),
        torch.zeros(B, T, device=device), outcome.to(device), [""] * B, {"truncated": np.zeros(B, dtype=bool)},
    )  # fmt: skip
    parts = torch.arange(B).split(size.micro_batch_size)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def update() -> None:
        with torch.no_grad():
            old = [policy_log_probs(policy, responses.take(part), 1.0, bf16).logp for part in parts]
            if variant.startswith("ppo"):
                value = torch.cat([token_values(critic, responses.take(part), bf16) for part in parts])
                advantage = responses.outcome[:, None] - value  # GAE at gamma = lambda = 1
            else:
                with autocast:
                    logit = torch.cat([critic(*responses.take(part).prompts) for part in parts])
                advantage = core.sequence_advantage(responses.outcome, logit)
        optimizer.zero_grad()
        critic_optimizer.zero_grad()
        for part, logp_old in zip(parts, old, strict=True):
            some = responses.take(part)
            logp = policy_log_probs(policy, some, 1.0, bf16).logp
            core.clipped_surrogate(logp, logp_old, advantage[part], some.mask, 0.2, "token-mean", B * T).loss.backward()
            if variant.startswith("ppo"):
                target = some.outcome[:, None].expand(-1, T)
                core.squared_value_loss(token_values(critic, some, bf16), target, some.mask, B * T).backward()
        optimizer.step()
        if variant.startswith("ppo"):
            critic_optimizer.step()
        else:
            with autocast:
                train_critic(
                    critic, critic_optimizer, *responses.prompts, responses.outcome, [torch.arange(B)],
                    size.micro_batch_size,
                )  # fmt: skip

    update()  # warm; optimisers have their moments from here on
    seconds = []
    for _ in range(rounds):
        synchronize(outcome.to(device))
        clock = time.perf_counter if device == "cuda" else time.process_time
        began = clock()
        update()
        synchronize(outcome.to(device))
        seconds.append(clock() - began)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM") - before
    counts = {"policy": policy, "critic": critic}
    return {"peak_bytes": peak, "seconds": seconds} | {
        f"{name}_parameters": sum(p.numel() for p in model.parameters()) for name, model in counts.items()
    }


def measure_updates(args: Args) -> dict[str, Any]:
    size = UPDATES[args.device]
    print(
        f"\n{size.prompts} responses of {size.response_length} tokens to prompts of {size.prompt_length}, micro-batches of "
        f"{size.micro_batch_size}\n\n| variant | policy | critic | peak MiB | to the first | seconds | to the first |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows: list[dict[str, Any]] = []
    for variant in tqdm(UPDATE_VARIANTS, unit="variant", leave=False):
        row = {"variant": variant, **child(args, f"{variant}:{args.rounds}")}
        rows.append(row)
        seconds, first = statistics.median(row["seconds"]), statistics.median(rows[0]["seconds"])
        tqdm.write(
            f"| {variant} | {row['policy_parameters'] / 1e6:,.1f} M | {row['critic_parameters'] / 1e6:,.1f} M | "
            f"{row['peak_bytes'] / 2**20:,.0f} | {row['peak_bytes'] / rows[0]['peak_bytes']:.2f} | {seconds:.2f} | "
            f"{seconds / first:.2f} |"
        )
    return {"size": asdict(size), "rows": rows}


# --------------------------------------------------------------------------------------------------------- addition
ADDITION: dict[str, tuple[str, dict[str, Any]]] = {
    "SPPO 128 x 1": ("sppo_llm", {}),
    "SPPO, critic of 1 layer, 2 steps": ("sppo_llm", {"critic_layers": 1, "critic_steps": 2}),
    "SPPO, 1 critic step": ("sppo_llm", {"critic_steps": 1}),
    "SPPO, 16 critic steps": ("sppo_llm", {"critic_steps": 16}),
    "PPO 128 x 1": ("ppo_llm", {}),
    "GRPO 16 x 8": ("grpo_llm", {}),
    "GRPO 128 x 8": ("grpo_llm", {"batch_size": 1024, "total_episodes": 65_536}),
}
"""name -> script, arguments; the name says prompts x responses per prompt and update"""
ADDITION_ARGS: dict[str, Any] = {"total_episodes": 16_384, "device": "cpu", "save_every": 10**6}
WINDOW = 1024


class Reached(Exception):
    """The last threshold was reached."""


def addition_run(name: str, seed: int) -> dict[str, Any]:
    """Curve of one run until the last WINDOW responses have a mean outcome of 0.92, or its budget ends."""
    script_name, arguments = ADDITION[name]
    curve: list[tuple[int, float, float]] = []  # responses, CPU seconds, mean outcome of the batch
    began = 0.0

    class Watched(runs.Run):
        def end_update(self, episodes: Any, metrics: Any, baseline: Any = None) -> None:
            super().end_update(episodes, metrics, baseline)
            curve.append((self.episodes, time.process_time() - began, float(episodes.outcome.mean())))
            if first_reached(curve, 0.92) is not None:
                raise Reached

        def start(self, **parts: Any) -> None:
            super().start(**parts)
            nonlocal began
            began = time.process_time()

    torch.set_num_threads(1)
    runs.Run = Watched  # type: ignore[misc]
    script = importlib.import_module(script_name)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Reached):
        script.train(script.Args(**{**ADDITION_ARGS, **arguments, "seed": seed, "runs_dir": folder}))
    return {"variant": name, "seed": seed, "curve": curve}


def measure_addition(args: Args, out: Path) -> dict[str, Any]:
    rows: Any = checkpoints.read_json(out).get("rows") if out.is_file() else []
    try:
        there = {(row["variant"], row["seed"]) for row in rows}
        points = [point for row in rows for point in row["curve"]]
        if not all(map(len, (row["curve"] for row in rows))) or not all(map(is_point, points)):
            raise ValueError("a curve is not a list of three numbers per point")
    except (TypeError, KeyError, ValueError) as error:
        raise errors.UserError(
            f"--out {out} was not written by --what addition ({type(error).__name__}: {error}); name another file"
        ) from error
    cells = [(name, seed) for seed in args.seeds for name in ADDITION if (name, seed) not in there]
    for name, seed in tqdm(cells, unit="run"):
        rows.append(child(args, f"{name}:{seed}"))
        checkpoints.write_json(out, head(args) | {"rows": rows})
    print("\n| | to 0.8: seconds | responses | to 0.9: seconds | responses | seconds per 1,000 responses |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ADDITION:
        mine = [row["curve"] for row in rows if row["variant"] == name]
        cells_text = []
        for threshold in (0.8, 0.9):
            reached = [first_reached(curve, threshold) for curve in mine]
            for index in (1, 0):
                known = sorted(x[index] for x in reached if x is not None)
                # median over all runs; a run that never reached the threshold counts as the latest
                median = known[(len(mine) - 1) // 2] if len(known) > (len(mine) - 1) // 2 else None
                text = "-" if median is None else f"{median:,.0f} ({known[0]:,.0f} to {known[-1]:,.0f})"
                cells_text.append(text + (f", {len(known)} of {len(mine)}" if len(known) < len(mine) else ""))
        cost = statistics.median(1000 * curve[-1][1] / curve[-1][0] for curve in mine)
        print(f"| {name} | {' | '.join(cells_text)} | {cost:.1f} |")
    return {"rows": rows}


def is_point(x: Any) -> bool:
    """Whether an entry of a curve is responses, seconds and mean outcome."""
    return isinstance(x, list) and len(x) == 3 and all(map(checkpoints.is_number, x)) and x[0] > 0


def first_reached(curve: Sequence[Sequence[float]], threshold: float) -> tuple[float, float] | None:
    """Responses and seconds when the mean outcome of the last WINDOW responses first reached the threshold."""
    batches = max(1, round(WINDOW / curve[0][0]))
    for i in range(batches - 1, len(curve)):
        if statistics.fmean(x[2] for x in curve[i - batches + 1 : i + 1]) >= threshold:
            return curve[i][0], curve[i][1]
    return None


# ------------------------------------------------------------------------------------------------------------- real
REAL: dict[str, Any] = {
    "batch_size": 64, "micro_batch_size": 64, "learning_rate": 1e-5, "critic_learning_rate": 3e-5, "critic_steps": 2,
    "critic_layers": 6, "bf16": True, "device": "cpu", "eval_prompts": 1, "save_every": 10**6,
    "reward": "sppo_control.llm.arithmetic:first_number",
}  # fmt: skip
"""sppo_llm.py's arguments: those of llm_real.py, in bfloat16"""
PARTS = {
    "generate": "generation", "policy_log_probs": "policy, forward", "train_critic": "critic",
    "clip_grad_norm_": "clipping",
}  # fmt: skip
"""What sppo_llm.py calls -> the part of an update that it is"""
ADDERS: dict[str, dict[str, Any]] = {
    "the adder": {},
    "the adder, critic of 1 layer, 2 steps": {"critic_layers": 1, "critic_steps": 2},
}
PEERS = ("sppo", "trl", "trl, plain attention")


def write_sums(folder: Path) -> Path:
    """Prompts of arithmetic.py in a file."""
    from sppo_control.llm import arithmetic

    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in arithmetic.make_rows(512)[0]))
    return file


def sppo_updates(turn: Callable[[dict[str, float]], None], **arguments: Any) -> None:
    """Train by sppo_llm.py, and call `turn` with the seconds of each part after each update."""
    import sppo_llm

    spent: dict[str, float] = {}
    inside: list[str] = []

    def timed(owner: Any, name: str, part: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:  # what the critic calls is the critic's
                return real(*args, **kwargs)
            inside.append(part)
            began = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                spent[part] = spent.get(part, 0.0) + time.perf_counter() - began
                inside.pop()

        setattr(owner, name, call)

    class Watched(runs.Run):
        began = 0.0

        def start(self, **parts: Any) -> None:
            super().start(**parts)
            self.began = time.perf_counter()

        def end_update(self, episodes: Any, metrics: Any, baseline: Any = None) -> None:
            super().end_update(episodes, metrics, baseline)
            spent["all"] = time.perf_counter() - self.began
            turn(dict(spent))
            spent.clear()
            self.began = time.perf_counter()

    for name, part in PARTS.items():
        timed(sppo_llm, name, part)
    timed(torch.Tensor, "backward", "policy, backward")
    timed(torch.optim.Adam, "step", "Adam of the policy")
    runs.Run = Watched  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        if "model" in arguments:
            arguments["dataset"] = str(write_sums(Path(folder)))
        sppo_llm.train(cli.make_args(sppo_llm.Args, runs_dir=folder, **arguments))


def trl_updates(turn: Callable[[dict[str, float]], None], model: Path, length: int, attention: str) -> None:
    """Train by TRL's GRPOTrainer, and call `turn` with its seconds after each update."""
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from sppo_control.llm import arithmetic, load_tokenizer

    class Watch(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = self.began or time.perf_counter()  # of the first step; the others begin with their data

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turn({"all": time.perf_counter() - self.began})
            self.began = time.perf_counter()

    def reward(completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
        return [*arithmetic.first_number(completions, {"answer": answer})]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=True, report_to="none", save_strategy="no", disable_tqdm=True,
            per_device_train_batch_size=REAL["batch_size"], num_generations=8, max_completion_length=length, beta=0.0,
            learning_rate=REAL["learning_rate"], gradient_checkpointing=False, temperature=1.0, max_steps=10**6,
            logging_steps=1, dataloader_num_workers=0,
        )  # fmt: skip
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation=attention)
        data: Any = importlib.import_module("datasets").Dataset.from_list(arithmetic.make_rows(512)[0])
        trainer = GRPOTrainer(
            policy, reward, args=config, train_dataset=data, processing_class=load_tokenizer(model), callbacks=[Watch()]
        )
        trainer.train()


def wait_for_turn(result: dict[str, float]) -> None:
    """Print an update's seconds, and go on when the parent writes a line; leave when it closes the pipe."""
    print(json.dumps(result), flush=True)
    if not sys.stdin.readline():
        sys.stdout.flush()
        os._exit(0)


def real_worker(name: str, args: Args) -> None:
    if name in ADDERS:
        sppo_updates(wait_for_turn, device="cpu", eval_prompts=1, save_every=10**6, **ADDERS[name])
    elif name == "sppo":
        sppo_updates(wait_for_turn, model=str(args.model), max_response_length=args.max_response_length, **REAL)
    else:
        attention = "eager" if "plain" in name else "sdpa"
        trl_updates(wait_for_turn, args.model, args.max_response_length, attention)


class Turns:
    """A process that makes an update when it is asked to, and waits in between."""

    def __init__(self, args: Args, name: str) -> None:
        command = [sys.executable, __file__, "--what", "real", "--worker", f"{name}:0", "--model", str(args.model)]
        command += ["--max-response-length", str(args.max_response_length)]
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the process writes into it
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.first = True

    def update(self) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self.first:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        self.first = False
        while line := self.process.stdout.readline():
            if line.startswith('{"') and '"all"' in line:  # TRL prints its log too
                return {name: float(x) for name, x in json.loads(line).items()}
        self.errors.seek(0)
        sys.exit(f"{self.name} failed:\n{self.errors.read()}")

    def end(self) -> None:
        self.process.communicate()


def parts_table(updates: list[dict[str, float]]) -> dict[str, float]:
    """Part -> median seconds; "rest" is what no part covers, "all" the whole update."""
    updates = [{**update, "rest": 2 * update["all"] - sum(update.values())} for update in updates]
    names = [*dict.fromkeys(name for update in updates for name in update if name != "all")]
    return {name: statistics.median(update.get(name, 0.0) for update in updates) for name in [*names, "all"]}


def measure_real(args: Args) -> dict[str, Any]:
    peers = {}
    for name in PEERS:  # one after the other, so that each one's loading and first update do not slow another
        peers[name] = Turns(args, name)
        peers[name].update()  # memory is taken and the optimisers' averages are made in the first
    rows = [
        {name: peer.update() for name, peer in peers.items()}
        for _ in tqdm(range(args.rounds), unit="round", leave=False)
    ]
    for peer in peers.values():
        peer.end()
    parts = {"SmolLM2-135M": parts_table([row["sppo"] for row in rows])}
    for name in ADDERS:
        adder = Turns(args, name)
        parts[name] = parts_table([adder.update() for _ in range(5 + 10 * args.rounds)][5:])
        adder.end()
    B = REAL["batch_size"]
    print("\n| | responses/s | SPPO's, times this |\n| --- | --- | --- |")
    for name in PEERS:
        speeds = [B / row[name]["all"] for row in rows]
        ratios = sorted(row[name]["all"] / row["sppo"]["all"] for row in rows)
        print(
            f"| {name} | {statistics.median(speeds):.2f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    print(
        "\n| part | " + " | ".join(f"{name}, s | share" for name in parts) + " |\n|" + " --- |" * (1 + 2 * len(parts))
    )
    for part in parts["SmolLM2-135M"]:
        cells = " | ".join(f"{t.get(part, 0.0):.3f} | {t.get(part, 0.0) / t['all']:.2f}" for t in parts.values())
        print(f"| {part} | {cells} |")
    return {
        "settings": REAL | {"max_response_length": args.max_response_length, "model": args.model.name},
        "rows": rows, "parts": parts,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the frame
def child(args: Args, worker: str) -> Any:
    """The last line that this script prints as the worker of that name, in a fresh process."""
    command = [sys.executable, __file__, "--what", args.what, "--device", args.device, "--worker", worker]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def work(args: Args) -> Any:
    assert args.worker is not None
    name, number = args.worker.rsplit(":", 1)
    if args.what == "loss":
        return peak_memory(name, SIZES[args.device][int(number)], args.device)
    if args.what == "update":
        return measure_one_update(name, args.device, int(number))
    if args.what == "real":
        return real_worker(name, args)
    return addition_run(name, int(number))


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def head(args: Args) -> dict[str, Any]:
    """What is at the beginning of every table."""
    rounds = "" if args.what == "addition" else f" --rounds {args.rounds}"
    return {
        "command": f"python scripts/speed_llm.py --what {args.what} --device {args.device}{rounds}",
        "device": device_name(args.device),
        "dtype": str(torch.bfloat16 if args.what == "real" else DTYPES[args.device]),
        "torch_threads": torch.get_num_threads(),
        "packages": {package: version(package) for package in PACKAGES.values() if installed(package)},
        **runs.versions(),
    }


def main(args: Args) -> None:
    if args.worker:
        print(json.dumps(work(args)))
        return
    assert args.out is not None  # Args fills it in
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.what == "addition":
        table = measure_addition(args, out)
    else:
        measure = {"loss": measure_loss, "update": measure_updates, "real": measure_real}[args.what]
        table = measure(args)
    checkpoints.write_json(out, head(args) | table)
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
