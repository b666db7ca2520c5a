"""Take the critic out of a run of sppo_llm.py, measure it on the held-out prompts, and save it with a card.

    python scripts/critic_card.py --run runs/addition__sppo_llm__1__20261126-120000 --out critics/addition

1. Load policy and critic from the run's newest checkpoint, or from the one that --run names.
2. Write --k responses to each held-out prompt and judge them, as in the training.
3. Save the critic with README.md, calibration.png and critic_card.json into --out. docs/critic.md explains the numbers.

The folder is a critic for `PromptCritic.from_pretrained`, and for `--critic` of another run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tqdm import tqdm

import sppo_llm
from sppo_control import checkpoints, cli, extras, limits, streams
from sppo_control.errors import UserError
from sppo_control.llm.critic import load_critic
from sppo_control.llm.critic_card import make_card
from sppo_control.llm.responses import evaluate
from sppo_control.llm.setup import check_device, load_data, load_policy, stop_texts, task_name
from sppo_control.outputs import Folder


@dataclass
class Args:
    run: Path | None = None
    """a run folder of sppo_llm.py, or one of its checkpoints"""
    out: Annotated[Path, Folder()] = Path("critic")
    """folder for the critic and its card"""
    k: int = 8
    """responses to each held-out prompt"""
    reward: str | None = None
    """the run's --reward, if that is a module outside of the current folder"""
    base_model: str | None = None
    """what the critic was made from, for the card; None is what the run was given"""
    license: str | None = None
    """the base model's licence, for the card; None looks into the README.md beside the base model"""
    seed: int = 1
    """of the responses"""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is cuda where there is one"""
    batch_size: int | None = None
    """responses in memory at once; None is what the run had"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        check_device(self.device)
        if self.run is None:
            raise ValueError("--run is missing; name a run folder of sppo_llm.py, or one of its checkpoints")


def arguments_of(args: Args) -> tuple[sppo_llm.Args, Path]:
    """The run's arguments, and the checkpoint that is meant.

    Raises:
        UserError: it is no run of sppo_llm.py, or has no checkpoint.
    """
    assert args.run is not None
    run = checkpoints.run_folder(args.run)
    if (script := checkpoints.read_config(run)["script"]) != "sppo_llm.py":
        raise UserError(f"--run {args.run} was written by {script}; V(s_p) is the critic of sppo_llm.py")
    words = ["--resume", str(args.run), *(["--reward", args.reward] if args.reward else [])]
    stored = cli.parse_args(sppo_llm.Args, None, words)
    checkpoint = checkpoints.checkpoint_to_resume(args.run)
    return stored, checkpoints.newest(run) if checkpoint is None else checkpoint


def main(args: Args) -> None:
    extras.require("plots", "matplotlib", wanted_by="scripts/critic_card.py")
    stored, checkpoint = arguments_of(args)
    base = args.base_model or stored.critic or stored.model or "the tiny adder of sppo_control"
    run = dataclasses.replace(
        stored,
        model=str(checkpoint / "policy"),
        device=args.device,
        micro_batch_size=args.batch_size or stored.micro_batch_size,
    )
    policy, tokenizer = load_policy(run)
    critic = load_critic(checkpoint / "critic", tokenizer, dtype=torch.float32).to(policy.device)
    _, held_out, reward = load_data(run, tokenizer, policy, critic)
    sampling = (run.max_response_length, run.temperature, run.micro_batch_size, run.bf16, stop_texts(run.stop))
    outcomes = []
    for number in tqdm(range(args.k), unit="response", desc="per prompt", disable=None):
        seed = int(streams.new_rng("critic_card.py", args.seed, number).integers(2**31))
        found = evaluate(policy, tokenizer, held_out, reward, seed, *sampling)
        outcomes.append(torch.from_numpy(found.outcome).double())
    state = checkpoints.read_json(checkpoint / "state.json")
    named = f"{checkpoint.parents[1].name}, checkpoint {checkpoint.name}"
    of = "additions of one to four digits" if run.dataset is None else f"prompts of {task_name(run)}"
    skipping = ", ".join(
        f"{limits.flag(name)} {x}"
        for name in ("skip_prompts_below", "skip_prompts_above")
        if (x := getattr(run, name)) is not None
    )
    card = make_card(
        critic, held_out.ids, torch.stack(outcomes, 1),
        data=f"{len(held_out):,} held-out {of}, {args.k} responses to each", policy=named, base_model=str(base),
        trained_on=f"{state['episodes']:,} responses to other {of}" + (f", with {skipping}" if skipping else ""),
        sampling=f"temperature {run.temperature:g}, at most {run.max_response_length:,} tokens, judged by {run.reward}",
        license=args.license, batch_size=run.micro_batch_size or 64,
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    critic.save_pretrained(args.out, card=card)
    numbers = card.calibration
    assert numbers is not None
    print(
        f"{numbers.outcomes:,} responses to {numbers.prompts:,} held-out prompts, {numbers.success:.3f} of them right\n"
        f"Brier {numbers.brier:.4f} (base rate {numbers.base_rate_brier:.4f}), ECE {numbers.ece:.4f}, AUC {numbers.auc}, "
        f"Spearman {numbers.spearman}\nwritten to {args.out}"
    )


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
