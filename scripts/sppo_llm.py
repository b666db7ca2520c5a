"""Sequence-Level PPO (SPPO) on a language model: the whole response is one action of a contextual bandit.

1. Sample one response to each of B prompts. A reward function gives the outcome R: 1 if the response is right, else 0.
2. Advantage (eq. 1): A = R - V(s_p). It is one number per response, the same for all of its tokens.
3. Policy (eq. 3): PPO's clipped surrogate with one ratio per token.
4. Critic (eq. 2): a model with a scalar head at the last token of the prompt s_p. It is trained on R with cross-entropy.
5. There is no group of responses, no GAE and no KL penalty.

    python scripts/sppo_llm.py                                    # a tiny transformer learns to add, a minute on a CPU
    python scripts/sppo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl \\
        --critic Qwen/Qwen2.5-Math-1.5B --bf16 --gradient-checkpointing --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. For several GPUs use SPPOTrainer or verl
(docs/llm.md). This needs the extra `llm`: pip install -c constraints.txt -e '.[llm]'.

With --skip-prompts-below and --skip-prompts-above step 1 leaves out prompts that the critic calls hopeless or solved.

One default is not the paper's: how the critic is trained. Here it makes 4 updates per batch, each on all prompts of the
batch. With --critic-recipe paper it is trained on the minibatches of the policy.

Source: Wang et al., arXiv 2604.08865, equations 1 to 3. Equations: sppo_control/core.py. Logged values: docs/metrics.md.
Results: docs/llm_addition.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.utils import clip_grad_norm_

from sppo_control import cli, core, runs, tracking
from sppo_control.llm.critic import critic_batches, train_critic
from sppo_control.llm.prompt_filter import RETRY, others, values_of
from sppo_control.llm.responses import evaluate, generate, policy_log_probs, sample_table
from sppo_control.llm.setup import (
    CriticFolder,
    PolicyFolder,
    check_args,
    load_data,
    load_policy,
    make_critic,
    make_filter,
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
    """a critic's folder, an earlier run's, or a model with the policy's tokenizer, which may be smaller; None copies the
    policy"""
    critic_layers: int | None = None
    """layers of the critic, the first ones of the model named above; None is all"""
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
    ratio: core.Ratio = "step"
    """step: each token has its own ratio; sequence: one per response (GSPO), with a much smaller --clip-coef"""
    max_grad_norm: float = 1.0
    """longer gradients are scaled down to this norm; policy and critic each"""

    critic_recipe: Literal["window", "paper"] = "window"
    """window: random contexts of the newest batches; paper: the minibatches of the policy"""
    critic_learning_rate: float = 1e-3
    """of the critic (Adam)"""
    critic_steps: int = 4
    """window recipe: critic updates per batch"""
    critic_batch_size: int | None = None
    """window recipe: contexts per critic update; None is the whole newest batch, so nothing is drawn"""
    critic_warmup_batches: int = 0
    """batches for the critic alone, before the first update of the policy"""

    skip_prompts_below: float | None = None
    """write no response where V(s_p) is smaller, because the prompt is hopeless; None skips none (docs/critic.md)"""
    skip_prompts_above: float | None = None
    """write no response where V(s_p) is larger, because the prompt is solved; None skips none"""
    retry_skipped_prompts: float = RETRY
    """probability that such a prompt is kept after all, so that a wrong V is noticed"""

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
    skip = make_filter(args, critic, prompts)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.critic_learning_rate, fused=True)
    micro = args.micro_batch_size or args.minibatch_size
    # Without the cache, which would keep old bfloat16 copies of the weights after an optimiser step.
    autocast = torch.autocast(policy.device.type, torch.bfloat16, args.bf16, cache_enabled=False)
    value = values_of(critic, prompts, args.micro_batch_size)
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
            warming_up = run.update < args.critic_warmup_batches  # then only the critic is trained, on all prompts
            rows, skipped = prompts.batch(run.update, args.batch_size, args.seed), {}
            if skip.active and not warming_up:
                choice = run.new_rng("prompts")
                with autocast:
                    chosen = skip.choose(rows, others(len(prompts), rows, choice), value, choice)
                rows, skipped = chosen.kept, chosen.scalars()
            sample_seed = int(run.new_rng("rollout").integers(2**31))
            old = args.num_minibatches > 1  # else the first forward pass of the training gives them
            responses = generate(policy, tokenizer, prompts, rows, reward, sample_seed, *sampling, log_probs=old)
            mask, R = responses.mask, responses.outcome  # (B, T), (B,)

            # ---- minibatches: whole responses, in a new random order for each epoch
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            minibatches = [
                mb
                for _ in range(args.update_epochs)
                for mb in torch.from_numpy(shuffle.permutation(args.batch_size)).split(args.minibatch_size)
            ]

            # ---- critic (eq. 2): binary cross-entropy between V(s_p) and R, at the prompts alone
            if args.critic_recipe == "paper":
                batches = minibatches
            else:
                batches = critic_batches(args.batch_size, args.critic_steps, args.critic_batch_size, shuffle)
            value_logit = torch.empty_like(R)  # V(s_p) before these steps, so that it has not seen these outcomes
            with autocast:
                value_losses = train_critic(  # one per critic update
                    critic, critic_optimizer, *responses.prompts, R, batches, args.micro_batch_size, args.max_grad_norm,
                    value_logit,
                )  # fmt: skip
            run.check_finite(value_loss=value_losses.mean())

            # ---- advantage (eq. 1): A = R - V(s_p), with the critic as it was before
            adv = core.sequence_advantage(R, value_logit)  # (B,)
            A = adv.clone()  # what the policy gets
            if args.norm_adv == "batch":
                A = core.normalized_advantage(adv, mask, eps_in="variance")

            # ---- policy (eq. 3): clipped surrogate, the response's A at each of its tokens
            for step, mb in enumerate([] if warming_up else minibatches):
                optimizer.zero_grad()
                if args.norm_adv == "minibatch":
                    A[mb] = core.normalized_advantage(adv[mb], mask[mb])
                num_tokens = mask[mb].sum()
                for part in mb.split(micro):  # micro-batches: their gradients add up to the minibatch's
                    some = responses.take(part)
                    logp, entropy = policy_log_probs(policy, some, args.temperature, args.bf16)  # (b, t) each
                    logp_old = responses.old_log_probs(part, logp, unchanged=step == 0)
                    surrogate = core.clipped_surrogate(
                        logp, logp_old, A[part], some.mask, args.clip_coef, "token-mean", num_tokens, args.ratio
                    )
                    run.check_finite(policy_loss=surrogate.loss)
                    surrogate.loss.backward()
                    stats.add_surrogate(surrogate, core.masked_mean(entropy.detach(), some.mask), num_tokens)
                grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                run.check_finite(policy_gradient_norm=grad_norm)
                optimizer.step()
                stats.add(1, grad_norm=grad_norm)

            # ---- log
            v0 = torch.sigmoid(value_logit)  # V(s_p), (B,)
            if run.update % args.save_every == 0:
                table = sample_table(prompts, rows, responses, v0)
                run.writer.add_text("samples", table, run.progress + args.batch_size)
            run.end_update(
                responses,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/warmup": float(warming_up),
                    **stats.scalars(),
                    "losses/value_loss": float(value_losses.mean()),
                    **advantage_scalars(adv, v0, R),
                    **skipped,
                },
            )
        run.finish(evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling), before)
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
