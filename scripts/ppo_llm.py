"""Token-level PPO on a language model, the baseline of sppo_llm.py: a critic with a value for every token.

1. Sample one response to each of B prompts. A reward function gives the outcome R: 1 if the response is right, else 0.
2. Advantage (GAE, eq. 16): with gamma = lambda = 1, the default, it is A_t = R - V(s_t).
3. Policy (PPO, eq. 7): the clipped surrogate with one ratio per token.
4. Critic: a model with a scalar head at every token. It is trained on the returns with squared error.
5. There is no KL penalty.

    python scripts/ppo_llm.py                                     # a tiny transformer learns to add
    python scripts/ppo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl --bf16 --gradient-checkpointing \\
        --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. This needs the extra `llm`:
pip install -c constraints.txt -e '.[llm]'.

As in the control scripts, advantages are not normalised.

Source: Schulman et al., arXiv 1707.06347 (PPO) and 1506.02438 (GAE). Equations: sppo_control/core.py. Logged values:
docs/metrics.md. Results: docs/llm_addition.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.utils import clip_grad_norm_

from sppo_control import cli, core, runs, tracking
from sppo_control.llm.responses import evaluate, generate, pad_columns, policy_log_probs, sample_table, token_values
from sppo_control.llm.setup import (
    CriticFolder,
    PolicyFolder,
    check_args,
    load_data,
    load_policy,
    make_critic,
    stop_texts,
    task_name,
)
from sppo_control.outcomes import advantage_scalars


@dataclass
class Args:
    model: str | None = None
    """the policy: a Hugging Face folder or Hub id; None is the tiny adder of this package"""
    dataset: str | None = None
    """.jsonl, .json, .parquet or .csv file, folder or Hub id, with columns prompt and answer; None is additions"""
    dataset_split: str = "train"
    """split of a dataset in a folder or on the Hub"""
    reward: str = "after-equals"
    """what is the answer: a boxed formula (math), the whole response (exact), or what follows the last "=" (after-equals).
    Or module:function, your own: (responses, columns of the dataset) -> outcomes, 0 or 1 (docs/llm.md)"""
    critic: str | None = None
    """a critic's folder, or a model with the policy's tokenizer, which may be smaller; None copies the policy"""
    max_prompt_length: int | None = None
    """longest prompt in tokens; None is no limit"""
    long_prompts: Literal["drop", "error"] = "drop"
    """drop counts longer prompts and leaves them out; error refuses them"""
    max_response_length: int = 24
    """longest response in tokens"""
    stop: tuple[str, ...] | None = None
    """texts that end a response, such as "\\n"; None leaves it to the end-of-text token, which always ends it"""
    temperature: float = 1.0
    """of sampling, and of the policy's probabilities"""
    seed: int = 1
    """of prompts, responses and shuffling"""
    total_episodes: int = 24_576
    """responses of the whole run"""

    learning_rate: float = 3e-4
    """of the policy (Adam)"""
    batch_size: int = 128
    """B, responses per batch"""
    update_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """minibatches of B / num_minibatches responses each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    norm_adv: Literal["none", "minibatch", "batch"] = "none"
    """(A - mean) / std over the tokens of each minibatch (CleanRL), or once over those of the batch (verl)"""
    max_grad_norm: float = 1.0
    """longer gradients are scaled down to this norm; policy and critic each"""

    critic_loss: Literal["mse", "bce"] = "mse"
    """squared error, or cross-entropy between sigmoid(V) and the return"""
    critic_learning_rate: float = 1e-3
    """of the critic (Adam)"""
    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 1.0
    """lambda of GAE"""
    critic_gae_lambda: float | None = None
    """lambda of the critic's targets, if not --gae-lambda; VC-PPO has 1 here and 0.95 there"""
    critic_warmup_batches: int = 0
    """batches for the critic alone, before the first update of the policy"""

    device: str = "auto"
    """cpu, cuda, cuda:1; auto is cuda where there is one"""
    bf16: bool = False
    """compute in bfloat16 (weights stay float32)"""
    gradient_checkpointing: bool = False
    """recompute the policy's layers in the backward pass instead of keeping them"""
    micro_batch_size: int | None = None
    """responses in memory at once; None is all; it does not change the gradient"""

    eval_prompts: int = 512
    """held-out prompts, one sampled response each, before and after training"""
    save_every: int = 20
    """updates between checkpoints, and between samples of responses in the log"""
    runs_dir: str = "runs"
    """folder in which the run's folder is made"""
    track: tracking.Service | None = None
    """also write the curves there (docs/sharing.md); None is TensorBoard's file alone"""
    resume: str | None = None
    """go on with this run: its folder or one of its checkpoints; the other arguments are read from there"""

    @staticmethod
    def defaults(model: str | None, dataset: str | None) -> dict[str, Any]:
        """Defaults that depend on the model and the dataset. The numbers above are for the tiny adder."""
        values: dict[str, Any] = {} if dataset is None else {"reward": "math"}
        if model is not None:  # starting points like the paper's; no run of ours has tested them
            values |= {"max_response_length": 3072, "total_episodes": 51_200, "batch_size": 256, "eval_prompts": 128}
            values |= {"learning_rate": 1e-6, "critic_learning_rate": 1e-5}
        return values

    @property
    def minibatch_size(self) -> int:
        """Responses per minibatch."""
        return self.batch_size // self.num_minibatches

    def __post_init__(self) -> None:
        check_args(self)


def train(args: Args) -> runs.Run:
    # ---- setup
    policy, tokenizer = load_policy(args)
    critic = make_critic(args, policy, tokenizer)
    prompts, held_out, reward = load_data(args, tokenizer, policy, critic)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.critic_learning_rate, fused=True)
    micro = args.micro_batch_size or args.minibatch_size
    sampling = (args.max_response_length, args.temperature, args.micro_batch_size, args.bf16, stop_texts(args.stop))

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
            old = args.num_minibatches > 1  # else the first forward pass of the training gives them
            responses = generate(policy, tokenizer, prompts, rows, reward, sample_seed, *sampling, log_probs=old)
            mask, R = responses.mask, responses.outcome  # (B, T), (B,)

            # ---- advantage (GAE, eq. 16): A_t = R - V(s_t) if gamma = lambda = 1
            with torch.no_grad():
                value = torch.cat(  # (B, T)
                    [
                        pad_columns(token_values(critic, responses.take(part), args.bf16), mask.shape[1])
                        for part in torch.arange(args.batch_size).split(micro)
                    ]
                )
                if args.critic_loss == "bce":
                    value = torch.sigmoid(value)
            last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)  # only the last token has a reward
            token_reward = torch.where(last, R[:, None], 0.0)  # (B, T)
            adv, returns = core.generalized_advantage(token_reward, value, mask, args.gamma, args.gae_lambda)  # (B, T)
            if args.critic_gae_lambda is not None:
                own = (args.gamma, args.critic_gae_lambda)
                _, returns = core.generalized_advantage(token_reward, value, mask, *own)
            A = adv.clone()  # what the policy gets
            if args.norm_adv == "batch":
                A = core.normalized_advantage(adv, mask, eps_in="variance")
            if args.critic_loss == "bce":  # returns are then in [0, 1], but rounding may carry them past 1
                returns = returns.clamp(0.0, 1.0)

            # ---- minibatches: whole responses, in a new random order for each epoch
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            minibatches = [
                mb
                for _ in range(args.update_epochs)
                for mb in torch.from_numpy(shuffle.permutation(args.batch_size)).split(args.minibatch_size)
            ]
            warming_up = run.update < args.critic_warmup_batches  # then only the critic is trained

            # ---- policy (PPO, eq. 7): clipped surrogate, each token's own A_t
            for step, mb in enumerate([] if warming_up else minibatches):
                optimizer.zero_grad()
                if args.norm_adv == "minibatch":
                    A[mb] = core.normalized_advantage(adv[mb], mask[mb])
                num_tokens = mask[mb].sum()
                for part in mb.split(micro):  # micro-batches: their gradients add up to the minibatch's
                    some = responses.take(part)
                    width = some.mask.shape[1]  # of the longest response in it
                    logp, entropy = policy_log_probs(policy, some, args.temperature, args.bf16)  # (b, t) each
                    logp_old = responses.old_log_probs(part, logp, unchanged=step == 0)
                    surrogate = core.clipped_surrogate(
                        logp, logp_old, A[part, :width], some.mask, args.clip_coef, "token-mean", num_tokens
                    )
                    run.check_finite(policy_loss=surrogate.loss)
                    surrogate.loss.backward()
                    stats.add_surrogate(surrogate, core.masked_mean(entropy.detach(), some.mask), num_tokens)
                grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                run.check_finite(policy_gradient_norm=grad_norm)
                optimizer.step()
                stats.add(1, grad_norm=grad_norm)

            # ---- critic (PPO, eq. 9): squared error between V(s_t) and the return, at every token
            value_stats = runs.Means()
            for mb in minibatches:
                critic_optimizer.zero_grad()
                num_tokens = mask[mb].sum()
                for part in mb.split(micro):
                    some = responses.take(part)
                    value_new = token_values(critic, some, args.bf16)  # (b, t)
                    target = returns[part, : some.mask.shape[1]]
                    if args.critic_loss == "bce":
                        value_loss = core.bernoulli_value_loss(value_new[some.mask], target[some.mask], num_tokens)
                    else:
                        value_loss = core.squared_value_loss(value_new, target, some.mask, num_tokens)
                    run.check_finite(value_loss=value_loss)
                    value_loss.backward()
                    share = num_tokens / some.num_steps  # the log wants the mean over the micro-batch's tokens
                    value_stats.add(some.num_steps, value_loss=value_loss.detach() * share)
                critic_grad_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm)
                run.check_finite(critic_gradient_norm=critic_grad_norm)
                critic_optimizer.step()

            # ---- log
            v0 = value[:, 0]  # V before the first token, (B,)
            if run.update % args.save_every == 0:
                table = sample_table(prompts, rows, responses, v0)
                run.writer.add_text("samples", table, run.progress + args.batch_size)
            run.end_update(
                responses,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/warmup": float(warming_up),
                    **stats.scalars(),
                    "losses/value_loss": value_stats["value_loss"],
                    **advantage_scalars(adv[mask], v0, R),
                    "losses/explained_variance": float(core.explained_variance(value, returns, mask)),
                },
            )
        run.finish(evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling), before)
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
