"""How fast and how big on language models, always beside a peer, in turns within each round, so that what a busy machine
does to one it does to all. Ratios are taken within a round.

--what loss: from hidden states to the gradients of hidden states and output head, through SPPO's clipped surrogate:
(a) naive: logits, log_softmax, gather; (b) ours: `sppo_control.llm.token_log_probs`; (c) TRL's chunked kernel (Triton on
CUDA, torch elsewhere); (d) Liger's fused GRPO loss, without its reference model and torch.compile. Whatever is not
installed is left out and named. Peak memory is what a fresh process holds at most above its inputs, gradients included;
"less gradients" leaves out the gradients of hidden and head, which each variant must return. Seconds are by the clock, and,
for --device cpu, of CPU time as well, which other work on the machine disturbs less.

    pip install -c constraints.txt -e '.[llm]' && pip install --no-deps liger-kernel
    python scripts/speed_llm.py --what loss               # about five minutes on one core; --device cuda on a GPU
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from sppo_control import core, runs
from sppo_control.llm import token_log_probs

# (vocabulary, sequences, tokens in each, width). The second differs from the first in length alone.
SIZES = {
    "cpu": [(32_000, 8, 256, 256), (32_000, 8, 512, 256), (32_000, 4, 512, 512), (151_936, 2, 512, 256)],
    "cuda": [(32_000, 8, 1024, 2048), (32_000, 8, 2048, 2048), (151_936, 1, 4096, 1536), (151_936, 1, 8192, 1536)],
}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
PACKAGES = {"naive": "torch", "ours": "sppo-control", "trl": "trl", "liger": "liger-kernel"}


@dataclass
class Args:
    what: Literal["loss"] = "loss"
    """see above"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where the tensors are; cuda computes in bfloat16"""
    rounds: int = 5
    """how often each is measured"""
    out: str = "docs/speed_llm_loss.json"
    """where the table goes as JSON"""
    worker: str | None = None
    """internal: be the measured process, variant:index of the size"""


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
    logp_old = -torch.full((B, T), float(V)).log()  # ratios around 1 would need the logits; here some are clipped
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
    """Bytes held at most above the inputs; for a process of its own."""
    loss_and_gradient(name, make_batch((64, 1, 8, 8), device))  # libraries are loaded before the count starts
    batch = make_batch(size, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss_and_gradient(name, batch)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is held now
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


# -------------------------------------------------------------------------------------------------------- the frame
def child(args: Args, worker: str) -> Any:
    """What this script prints last as the worker of that name, in a fresh process."""
    command = [sys.executable, __file__, "--what", args.what, "--device", args.device, "--worker", worker]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


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


def main(args: Args) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA device here; use --device cpu")
    if args.worker:
        name, index = args.worker.split(":")
        print(json.dumps(peak_memory(name, SIZES[args.device][int(index)], args.device)))
        return
    table = measure_loss(args)
    head = {
        "command": f"python scripts/speed_llm.py --what {args.what} --device {args.device} --rounds {args.rounds}",
        "device": device_name(args.device),
        "dtype": str(DTYPES[args.device]),
        "torch_threads": torch.get_num_threads(),
        "packages": {package: version(package) for package in PACKAGES.values() if installed(package)},
        **runs.versions(),
    }
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(out, head | table)
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
