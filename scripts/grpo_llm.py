"""Group Relative Policy Optimization (GRPO) on a language model, the baseline of sppo_llm.py without a critic.

1. Sample N responses to each of B / N prompts. A reward function says R = 1 where one is right, else 0.
2. Advantage: A = (R - mean) / std over the prompt's N responses, one number a response, the same for all of its tokens.
3. Policy: PPO's clipped surrogate with the ratio of each token. No KL penalty.

    python scripts/grpo_llm.py                                    # a tiny transformer learns to add
    python scripts/grpo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl --bf16 --gradient-checkpointing \\
        --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. Needs the extra `llm`:
pip install -c constraints.txt -e '.[llm]'.

Source: Shao et al., arXiv 2402.03300: sppo_control/core.py. All N responses count on the x-axis. Logged values:
docs/metrics.md; results: docs/llm.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_

from sppo_control import cli, core, runs
from sppo_control.llm.prompts import RewardName
from sppo_control.llm.responses import evaluate, generate, policy_log_probs, sample_table
from sppo_control.llm.setup import PolicyFolder, fill_args, load_data, load_policy, task_name


@dataclass
class Args:
    model: str | None = None
    """the policy: a Hugging Face folder or Hub id; None is the tiny adder of this package"""
    dataset: str | None = None
    """.jsonl, .json, .parquet or .csv file, folder or Hub id, columns prompt and answer; None is additions"""
    dataset_split: str = "train"
    """of a folder's or Hub's dataset"""
    reward: RewardName | None = None
    """how a response is judged; None is math for a dataset, after-equals for additions"""
    max_prompt_length: int | None = None
    """longest prompt, tokens; None is no limit"""
    long_prompts: Literal["drop", "error"] = "drop"
    """longer ones are counted and left out, or refused"""
    max_response_length: int | None = None
    """longest response, tokens; this and what else is None below: docs/llm.md, Defaults"""
    temperature: float = 1.0
    """of sampling, and of the policy's probabilities"""
    seed: int = 1
    """of prompts, responses and shuffling"""
    total_episodes: int | None = None
    """responses of the whole run"""

    learning_rate: float | None = None
    """of the policy (Adam)"""
    batch_size: int | None = None
    """B, responses an update"""
    group_size: int = 8
    """N, responses to each prompt; divides B"""
    update_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """minibatches of B / num_minibatches responses each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm"""

    device: str = "auto"
    """cpu, cuda, cuda:1; auto is cuda where there is one"""
    bf16: bool = False
    """compute in bfloat16 (weights stay float32)"""
    gradient_checkpointing: bool = False
    """recompute the policy's layers in the backward pass instead of keeping them"""
    micro_batch_size: int | None = None
    """responses in memory at once; does not change the gradient"""

    eval_prompts: int | None = None
    """held-out prompts, one sampled response each, before and after training"""
    save_every: int = 20
    """updates between checkpoints, and between samples of responses in the log"""
    runs_dir: str = "runs"
    """parent of the run's folder"""
    resume: str | None = None
    """go on with this run: its folder or one of its checkpoints; the other arguments are read from there"""

    @property
    def minibatch_size(self) -> int:
        """Responses a minibatch."""
        return self.batch_size // self.num_minibatches

    def __post_init__(self) -> None:
        fill_args(self)


def train(args: Args) -> runs.Run:
    # ---- setup
    policy, tokenizer = load_policy(args)
    prompts, held_out, reward = load_data(args, tokenizer)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate)
    micro = args.micro_batch_size or args.minibatch_size
    sampling = (args.max_response_length, args.temperature, args.micro_batch_size, args.bf16)

    with runs.Run(args, __file__, task_name(args), unit="response") as run:
        before = run.once("before", lambda: evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling))
        run.start(policy=PolicyFolder(policy, tokenizer), optimizer=optimizer)
        while run.episodes < args.total_episodes:
            # ---- rollout: N responses to each of B / N prompts
            some_rows = prompts.batch(run.update, args.batch_size // args.group_size, args.seed)
            rows = [row for row in some_rows for _ in range(args.group_size)]
            sample_seed = int(run.new_rng("rollout").integers(2**31))
            responses = generate(policy, tokenizer, prompts, rows, reward, sample_seed, *sampling)
            mask, R = responses.mask, responses.outcome  # (B, T), (B,)

            # ---- advantage: A_i = (R_i - mean) / std over the group
            groups = R.unflatten(0, (-1, args.group_size))
            baseline = groups.mean(1).repeat_interleave(args.group_size)  # (B,), for the log
            adv = core.group_relative_advantage(R, args.group_size)  # (B,)

            # ---- update
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            for _ in range(args.update_epochs):
                for mb in torch.from_numpy(shuffle.permutation(args.batch_size)).split(args.minibatch_size):
                    optimizer.zero_grad()
                    num_tokens = mask[mb].sum()
                    for part in mb.split(micro):  # micro-batches: their gradients add up to the minibatch's
                        some = responses.take(part)
                        logp, entropy = policy_log_probs(policy, some, args.temperature, args.bf16)
                        surrogate = core.clipped_surrogate(
                            logp, some.logp, adv[part], some.mask, args.clip_coef, "token-mean", num_tokens
                        )
                        run.check_finite(policy_loss=surrogate.loss)
                        surrogate.loss.backward()
                        stats.add_surrogate(surrogate, core.masked_mean(entropy.detach(), some.mask), num_tokens)
                    grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                    run.check_finite(policy_gradient_norm=grad_norm)
                    optimizer.step()
                    stats.add(1, grad_norm=grad_norm)

            # ---- log
            if run.update % args.save_every == 0:
                table = sample_table(prompts, rows, responses, baseline)
                run.writer.add_text("samples", table, run.progress + args.batch_size)
            run.end_update(
                responses,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/skipped": 0.0,
                    **stats.scalars(),
                    "losses/explained_variance": float(core.explained_variance(baseline, R)),
                    "advantages/mean": float(adv.mean()),
                    "advantages/std": float(adv.std(correction=0)),
                    "critic/v0_mean": float(baseline.mean()),
                    "critic/brier": float(core.brier_score(baseline, R)),
                    "critic/ece": float(core.expected_calibration_error(baseline, R)),
                },
            )
        run.finish(evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling), before)
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
