"""Train a real pretrained language model by SPPO, from the model to samples of its responses: what `make llm-real` does.

1. Fetch SmolLM2-135M-Instruct (fetch_smollm2.py).
2. Write sums of two numbers into files (sppo_control/llm/arithmetic.py).
3. Evaluate the model on held-out sums.
4. Train it by sppo_llm.py, or by one of the other training scripts.
5. Evaluate it again, and print responses from before and after.

    python scripts/llm_real.py                                           # about an hour on two cores
    python scripts/llm_real.py --device cuda --bf16 --batch-size 256 --total-episodes 25600
    python scripts/llm_real.py --algorithm grpo                          # or ppo, rloo, reinforce-pp
    python scripts/llm_real.py --critic-layers None                      # SPPO with a critic as large as the policy

Each step's result is kept. After a stop the same command goes on where it was. Runs of several algorithms may share a
folder; each seed needs its own. scripts/compare_llm.py compares them. This needs the extra `llm-real`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import arithmetic_data
import evaluate_llm
import fetch_smollm2
import grpo_llm
import ppo_llm
import rloo_llm
import sppo_llm
from sppo_control import checkpoints, cli, limits, runs
from sppo_control.errors import UserError
from sppo_control.llm.arithmetic import MAX_RESPONSE
from sppo_control.llm.setup import check_device
from sppo_control.outputs import Folder

SCRIPTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sppo": (sppo_llm, {}),
    "ppo": (ppo_llm, {}),
    "grpo": (grpo_llm, {}),
    "rloo": (rloo_llm, {}),
    "reinforce-pp": (rloo_llm, {"group_size": 1, "norm_adv": "batch"}),
}
"""Algorithm -> script, and what it is told beside the settings that all share."""
FREE = ("device", "micro_batch_size", "save_every", "runs_dir", "resume")
"""Arguments in which a run that is already there may differ from what is asked."""
JUDGE: dict[str, Any] = {
    "reward": "sppo_control.llm.arithmetic:first_number", "stop": (r"\n",), "max_response_length": MAX_RESPONSE,
    "temperature": 1.0,
}  # fmt: skip
"""The same in training and in evaluation."""


@dataclass
class Args:
    out: Annotated[Path, Folder()] = Path("runs/llm_real")
    """folder for data, runs and results; another one starts anew"""
    model: Path = fetch_smollm2.Args.out
    """the model's folder, fetched if it is not there"""
    gguf: Path | None = None
    """the model's GGUF file, if it is already here; None fetches it"""
    algorithm: Literal["sppo", "ppo", "grpo", "rloo", "reinforce-pp"] = "sppo"
    """ppo's critic is a copy of the policy, because it reads every token; reinforce-pp is REINFORCE++; groups have 8"""
    mixed: bool = False
    """sums of numbers of one to three digits, some much harder than others"""
    total_episodes: int = 3200
    """responses of the whole run"""
    batch_size: int = 64
    """responses per update"""
    learning_rate: float = 1e-5
    """of the policy"""
    critic_learning_rate: float = 3e-5
    """of the critic"""
    critic_steps: int = 2
    """of SPPO: critic updates per batch"""
    critic_layers: int | None = 6
    """of SPPO: layers of the critic, the first ones of the model; None is a copy of the policy"""
    micro_batch_size: int = 64
    """responses in memory at once"""
    save_every: int = 25
    """updates between checkpoints"""
    seed: int = 1
    """of prompts, responses and shuffling"""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is cuda where there is one"""
    bf16: bool = False
    """compute in bfloat16"""

    @property
    def name(self) -> str:
        """Of the folder of the run, and of that of the evaluation after it."""
        if self.algorithm != "sppo" or self.critic_layers == Args.critic_layers:
            return self.algorithm
        return "sppo-copy" if self.critic_layers is None else f"sppo-{self.critic_layers}-layers"

    @property
    def fetched(self) -> fetch_smollm2.Args:
        """What is fetched: the model, and SPPO's critic."""
        return fetch_smollm2.Args(self.model, self.gguf, critic_layers=self.critic_layers or Args.critic_layers or 1)

    def __post_init__(self) -> None:
        limits.check_limits(self)
        check_device(self.device)
        assert self.fetched.critic  # refuses too many layers


class TimedRun(runs.Run):
    """Logs `charts/cpu_seconds` too, the processor time of each update. Other work on the machine lengthens the time on the
    clock, and this hardly. On a GPU it is not the time of the computation."""

    def start(self, **parts: Any) -> None:
        super().start(**parts)
        self.began = time.process_time()

    def end_update(self, episodes: Any, metrics: Any, baseline: Any = None) -> None:
        cpu_seconds = time.process_time() - self.began
        super().end_update(episodes, {**metrics, "charts/cpu_seconds": cpu_seconds}, baseline)
        self.began = time.process_time()  # without the checkpoint


def train(args: Args, dataset: Path) -> Path:
    """The run's folder, after the training; a run that was stopped goes on, one that has ended is kept.

    Raises:
        UserError: the run that is there has other settings.
    """
    script, own = SCRIPTS[args.algorithm]
    runs_dir = args.out / args.name
    if args.algorithm in ("sppo", "ppo"):
        own = own | {"critic_learning_rate": args.critic_learning_rate}
    if args.algorithm == "sppo":
        critic = None if args.critic_layers is None else str(args.fetched.critic)
        own = own | {"critic": critic, "critic_steps": args.critic_steps}
    made = cli.make_args(
        script.Args, model=str(args.model), dataset=str(dataset), total_episodes=args.total_episodes,
        batch_size=args.batch_size, learning_rate=args.learning_rate, micro_batch_size=args.micro_batch_size,
        seed=args.seed, device=args.device, bf16=args.bf16, eval_prompts=128, save_every=args.save_every,
        runs_dir=str(runs_dir), **JUDGE, **own,
    )  # fmt: skip
    for folder in sorted(runs_dir.glob("*"), reverse=True):
        if (folder / "config.json").is_file():
            stored = checkpoints.read_config(folder)["args"]
            for key, value in json.loads(json.dumps(asdict(made))).items():
                if key not in FREE and key in stored and stored[key] != value:
                    raise UserError(
                        f"{folder} was trained with {limits.flag(key)} {stored[key]}, and not with {value}; name another "
                        "folder with --out"
                    )
            if "after" not in checkpoints.read_summary(folder):
                resumed = cli.parse_args(script.Args, None, ["--resume", str(folder), "--reward", JUDGE["reward"]])
                with mock.patch.object(runs, "Run", TimedRun):
                    script.train(resumed)
            return folder
    with mock.patch.object(runs, "Run", TimedRun):
        return script.train(made).folder


def evaluate(args: Args, model: Path, held_out: Path, out: Path) -> dict[str, Any]:
    """Average@1 on the held-out sums, with its interval."""
    made = evaluate_llm.Args(
        model=str(model), benchmarks=(f"sums={held_out}",), k=1, seed=args.seed, device=args.device, bf16=args.bf16,
        out=out, **JUDGE,
    )  # fmt: skip
    return evaluate_llm.main(made)["sums"]


def print_samples(held_out: Path, before: Path, after: Path, n: int = 10) -> None:
    """The first n responses from before and after the training, as a table."""
    rows, *responses = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (held_out, before / "sums.jsonl", after / "sums.jsonl")
    )
    print(f"\n{'prompt, last line':20}{'answer':8}{'before':20}after")
    for i, row in enumerate(rows[:n]):
        one, two = (
            next(repr(record["response"]) for record in records if record["problem"] == i) for records in responses
        )
        print(f"{row['prompt'].splitlines()[-1]:20}{row['answer']:8}{one:20}{two}")


def main(args: Args) -> None:
    fetch_smollm2.main(args.fetched)
    data = args.out / ("mixed" if args.mixed else "data")
    if not (data / "held_out.jsonl").is_file():
        arithmetic_data.main(arithmetic_data.Args(out=data, mixed=args.mixed))
    held_out, before, after = data / "held_out.jsonl", args.out / "before", args.out / f"after_{args.name}"
    first = evaluate(args, args.model, held_out, before)
    run = train(args, data / "train.jsonl")
    second = evaluate(args, run, held_out, after)
    print_samples(held_out, before, after)
    print()
    for name, result in (("before", first), ("after", second)):
        low, high = result["interval_95"]
        n = result["problems"]
        print(f"{name:8}{result['average_at_k']:.3f} [{low:.3f}, {high:.3f}] of {n} held-out sums, one response each")
    print(f"curves  tensorboard --logdir {run}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
