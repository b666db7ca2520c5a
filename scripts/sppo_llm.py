"""Sequence-Level PPO (SPPO) on a language model: the whole response is one action of a contextual bandit.

1. Sample one response to each of B prompts. A reward function says R = 1 where it is right, else 0.
2. Advantage: A = R - V(s_p), one number a response, the same for all of its tokens.
3. Critic: V(s_p) is a model with a scalar head at the last token of the prompt s_p; trained on R with cross-entropy.
4. Policy: PPO's clipped surrogate with the ratio of each token. No group of responses, no GAE, no KL penalty.

    python scripts/sppo_llm.py                                    # a tiny transformer learns to add, a minute on a CPU
    python scripts/sppo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl \\
        --critic Qwen/Qwen2.5-Math-1.5B --bf16 --gradient-checkpointing --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. For several GPUs take SPPOTrainer or verl
(docs/llm.md). Needs the extra `llm`: pip install -c constraints.txt -e '.[llm]'.

Source: Wang et al., arXiv 2604.08865, equations 1-3: sppo_control/core.py. Deviation: the critic is trained on its own, for
--critic-steps updates a batch (1 is the paper's). Logged values: docs/metrics.md; results: docs/llm.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_

from sppo_control import cli, core, runs
from sppo_control.llm.critic import train_critic
from sppo_control.llm.prompts import RewardName
from sppo_control.llm.responses import evaluate, generate, policy_log_probs, sample_table
from sppo_control.llm.setup import (
    CriticFolder,
    PolicyFolder,
    fill_args,
    load_critic,
    load_data,
    load_policy,
    task_name,
)


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
    critic: str | None = None
    """a critic's folder, or a model of the policy's tokenizer, which may be smaller; None copies the policy"""
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
    critic_learning_rate: float | None = None
    """of the critic (Adam)"""
    batch_size: int | None = None
    """B, responses an update"""
    update_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """minibatches of B / num_minibatches responses each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm, policy and critic each"""
    critic_steps: int = 4
    """updates of the critic a batch, each on all its prompts"""
    critic_warmup_batches: int = 0
    """batches for the critic alone before the first update of the policy"""

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
    critic = load_critic(args, policy, tokenizer)
    prompts, held_out, reward = load_data(args, tokenizer)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.critic_learning_rate)
    micro = args.micro_batch_size or args.minibatch_size
    autocast = functools.partial(
        torch.autocast, torch.device(args.device).type, torch.bfloat16, args.bf16, cache_enabled=False
    )
    sampling = (args.max_response_length, args.temperature, args.micro_batch_size, args.bf16)

    with runs.Run(args, __file__, task_name(args), unit="response") as run:
        before = run.once("before", lambda: evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling))
        run.start(
            policy=PolicyFolder(policy, tokenizer),
            critic=CriticFolder(critic),
            optimizer=optimizer,
            critic_optimizer=critic_optimizer,
        )
        while run.episodes < args.total_episodes:
            # ---- rollout: one response to each of B prompts
            rows = prompts.batch(run.update, args.batch_size, args.seed)
            sample_seed = int(run.new_rng("rollout").integers(2**31))
            responses = generate(policy, tokenizer, prompts, rows, reward, sample_seed, *sampling)
            mask, R = responses.mask, responses.outcome  # (B, T), (B,)

            # ---- advantage: A = R - V(s_p), by a critic that has not seen these outcomes
            with torch.no_grad(), autocast():
                value_logit = torch.cat(
                    [critic(*part) for part in zip(*(x.split(micro) for x in responses.prompts), strict=True)]
                )
            adv = core.sequence_advantage(R, value_logit)  # (B,)

            # ---- update
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            warming_up = run.update < args.critic_warmup_batches
            for _ in range(0 if warming_up else args.update_epochs):
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

            # critic: binary cross-entropy at the prompt alone
            with autocast():
                value_losses = train_critic(
                    critic, critic_optimizer, *responses.prompts, R, args.critic_steps,
                    micro_batch_size=args.micro_batch_size, max_grad_norm=args.max_grad_norm,
                )  # fmt: skip
            run.check_finite(value_loss=value_losses.mean())

            # ---- log
            v0 = torch.sigmoid(value_logit)
            if run.update % args.save_every == 0:
                table = sample_table(prompts, rows, responses, v0)
                run.writer.add_text("samples", table, run.progress + args.batch_size)
            run.end_update(
                responses,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/skipped": float(warming_up),
                    **stats.scalars(),
                    "losses/value_loss": float(value_losses.mean()),
                    "losses/explained_variance": float(core.explained_variance(v0, R)),
                    "advantages/mean": float(adv.mean()),
                    "advantages/std": float(adv.std(correction=0)),
                    "critic/v0_mean": float(v0.mean()),
                    "critic/brier": float(core.brier_score(v0, R)),
                    "critic/ece": float(core.expected_calibration_error(v0, R)),
                },
            )
        run.finish(evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling), before)
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
