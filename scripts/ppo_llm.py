"""Token-level PPO on a language model, the baseline of sppo_llm.py: a critic that values every token.

1. Sample one response to each of B prompts. A reward function says R = 1 where it is right, else 0.
2. Critic: V(s_t) is a model with a scalar head at every token; trained on the returns with squared error.
3. Advantage: generalised advantage estimation; at gamma = lambda = 1, the default, A_t = R - V(s_t).
4. Policy: PPO's clipped surrogate with the ratio of each token. No KL penalty.

    python scripts/ppo_llm.py                                     # a tiny transformer learns to add
    python scripts/ppo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl --bf16 --gradient-checkpointing \\
        --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. Needs the extra `llm`:
pip install -c constraints.txt -e '.[llm]'.

Source: Schulman et al., arXiv 1707.06347 and 1506.02438: sppo_control/core.py. No normalisation of advantages, as in the
control scripts. Logged values: docs/metrics.md; results: docs/llm.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_

from sppo_control import cli, core, runs
from sppo_control.llm.prompts import RewardName
from sppo_control.llm.responses import evaluate, generate, pad_columns, policy_log_probs, sample_table, token_values
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
    critic_loss: Literal["mse", "bce"] = "mse"
    """squared error, or cross-entropy between sigmoid(V) and the return"""
    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 1.0
    """lambda of GAE"""
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

            # ---- advantage: GAE over V(s_t); A_t = R - V(s_t) at gamma = lambda = 1
            with torch.no_grad():
                value = torch.cat(  # (B, T)
                    [
                        pad_columns(token_values(critic, responses.take(part), args.bf16), mask.shape[1])
                        for part in torch.arange(args.batch_size).split(micro)
                    ]
                )
                if args.critic_loss == "bce":
                    value = torch.sigmoid(value)
            last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)  # the last token has the reward
            token_reward = torch.where(last, R[:, None], 0.0)
            adv, returns = core.generalized_advantage(token_reward, value, mask, args.gamma, args.gae_lambda)
            returns = returns.clamp(0.0, 1.0)  # a weighted mean of probabilities: rounding may carry it past 1

            # ---- update
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            warming_up = run.update < args.critic_warmup_batches
            for _ in range(args.update_epochs):
                for mb in torch.from_numpy(shuffle.permutation(args.batch_size)).split(args.minibatch_size):
                    optimizer.zero_grad()
                    critic_optimizer.zero_grad()
                    num_tokens = mask[mb].sum()
                    for part in mb.split(micro):  # micro-batches: their gradients add up to the minibatch's
                        some = responses.take(part)
                        width = some.mask.shape[1]
                        logp, entropy = policy_log_probs(policy, some, args.temperature, args.bf16)
                        surrogate = core.clipped_surrogate(
                            logp, some.logp, adv[part, :width], some.mask, args.clip_coef, "token-mean", num_tokens
                        )
                        run.check_finite(policy_loss=surrogate.loss)
                        surrogate.loss.backward()
                        stats.add_surrogate(surrogate, core.masked_mean(entropy.detach(), some.mask), num_tokens)

                        # critic: every token
                        value_new = token_values(critic, some, args.bf16)
                        target = returns[part, :width]
                        if args.critic_loss == "bce":
                            value_loss = core.bernoulli_value_loss(value_new[some.mask], target[some.mask], num_tokens)
                        else:
                            value_loss = core.squared_value_loss(value_new, target, some.mask, num_tokens)
                        run.check_finite(value_loss=value_loss)
                        value_loss.backward()
                        share = num_tokens / surrogate.num_steps
                        stats.add(surrogate.num_steps, value_loss=value_loss.detach() * share)
                    grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                    critic_grad_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm)
                    run.check_finite(policy_gradient_norm=grad_norm, critic_gradient_norm=critic_grad_norm)
                    critic_optimizer.step()
                    if not warming_up:
                        optimizer.step()
                    stats.add(1, grad_norm=grad_norm)

            # ---- log
            v0, real_adv = value[:, 0], adv[mask]
            if run.update % args.save_every == 0:
                table = sample_table(prompts, rows, responses, v0)
                run.writer.add_text("samples", table, run.progress + args.batch_size)
            run.end_update(
                responses,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/skipped": float(warming_up),
                    **stats.scalars(),
                    "losses/explained_variance": float(core.explained_variance(value, returns, mask)),
                    "advantages/mean": float(real_adv.mean()),
                    "advantages/std": float(real_adv.std(correction=0)),
                    "critic/v0_mean": float(v0.mean()),
                    "critic/brier": float(core.brier_score(v0, R)),
                    "critic/ece": float(core.expected_calibration_error(v0, R)),
                },
            )
        run.finish(evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling), before)
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
