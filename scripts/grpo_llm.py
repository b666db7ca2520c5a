"""Group Relative Policy Optimization (GRPO) on a language model, the baseline of sppo_llm.py without a critic.

1. Sample N responses to each of B / N prompts. A reward function gives the outcome R: 1 if the response is right, else 0.
2. Advantage (section 4.1.2): A = (R - mean) / std over the N responses to the prompt. It is one number per response.
3. Policy: PPO's clipped surrogate with one ratio per token.
4. There is no KL penalty.

    python scripts/grpo_llm.py                                    # a tiny transformer learns to add
    python scripts/grpo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl --bf16 --gradient-checkpointing \\
        --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. This needs the extra `llm`:
pip install -c constraints.txt -e '.[llm]'.

The x-axis counts all N responses per prompt.

Source: Shao et al., arXiv 2402.03300. Equations: sppo_control/core.py. Logged values: docs/metrics.md. Results:
docs/llm_addition.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.utils import clip_grad_norm_

from sppo_control import cli, core, runs, tracking
from sppo_control.llm.responses import evaluate, generate, policy_log_probs, sample_table
from sppo_control.llm.setup import PolicyFolder, check_args, load_data, load_policy, stop_texts, task_name
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
    group_size: int = 8
    """N, responses to each prompt; it must divide B"""
    update_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """minibatches of B / num_minibatches responses each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    normalize_std: bool = True
    """divide A by the group's standard deviation; Dr. GRPO does not"""
    ratio: core.Ratio = "step"
    """step: each token has its own ratio; sequence: one per response (GSPO), with a much smaller --clip-coef"""
    max_grad_norm: float = 1.0
    """longer gradients are scaled down to this norm"""

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
            values |= {"learning_rate": 1e-6}
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
    prompts, held_out, reward = load_data(args, tokenizer, policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate, fused=True)
    micro = args.micro_batch_size or args.minibatch_size
    sampling = (args.max_response_length, args.temperature, args.micro_batch_size, args.bf16, stop_texts(args.stop))

    with runs.Run(args, __file__, task_name(args), unit="response") as run:
        before = run.once("before", lambda: evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling))
        run.start(policy=PolicyFolder(policy, tokenizer), optimizer=optimizer)
        while run.episodes < args.total_episodes:
            # ---- rollout: N responses to each of B / N prompts
            some_rows = prompts.batch(run.update, args.batch_size // args.group_size, args.seed)
            rows = [row for row in some_rows for _ in range(args.group_size)]  # rows of a group are neighbours
            sample_seed = int(run.new_rng("rollout").integers(2**31))
            old = args.num_minibatches > 1  # else the first forward pass of the training gives them
            responses = generate(policy, tokenizer, prompts, rows, reward, sample_seed, *sampling, log_probs=old)
            mask, R = responses.mask, responses.outcome  # (B, T), (B,)

            # ---- advantage (section 4.1.2): A_i = (R_i - mean) / std over the group
            groups = R.unflatten(0, (-1, args.group_size))  # (B / N, N)
            baseline = groups.mean(1).repeat_interleave(args.group_size)  # (B,), for the log
            adv = core.group_relative_advantage(R, args.group_size, args.normalize_std)  # (B,)

            # ---- minibatches: whole responses, in a new random order for each epoch
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            minibatches = [
                mb
                for _ in range(args.update_epochs)
                for mb in torch.from_numpy(shuffle.permutation(args.batch_size)).split(args.minibatch_size)
            ]

            # ---- policy (PPO, eq. 7): clipped surrogate, the response's A at each of its tokens
            for step, mb in enumerate(minibatches):
                optimizer.zero_grad()
                num_tokens = mask[mb].sum()
                for part in mb.split(micro):  # micro-batches: their gradients add up to the minibatch's
                    some = responses.take(part)
                    logp, entropy = policy_log_probs(policy, some, args.temperature, args.bf16)  # (b, t) each
                    logp_old = responses.old_log_probs(part, logp, unchanged=step == 0)
                    surrogate = core.clipped_surrogate(
                        logp, logp_old, adv[part], some.mask, args.clip_coef, "token-mean", num_tokens, args.ratio
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
                    **stats.scalars(),
                    **advantage_scalars(adv, baseline, R),
                },
            )
        run.finish(evaluate(policy, tokenizer, held_out, reward, args.seed, *sampling), before)
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
