"""REINFORCE Leave-One-Out (RLOO) on a language model: the baseline is the mean outcome of the prompt's other responses.

The same script is REINFORCE, REINFORCE++ and SPO, which differ in the baseline and the normalisation, not in the loop.

1. Sample N responses to each of B / N prompts. A reward function gives the outcome R: 1 if the response is right, else 0.
2. Advantage: A_i = R_i - mean of the other N - 1 outcomes of the prompt. It is one number per response.
3. Policy: PPO's clipped surrogate with one ratio per token.
4. There is no critic, no division by a standard deviation and no KL penalty.

    python scripts/rloo_llm.py                                    # a tiny transformer learns to add
    python scripts/rloo_llm.py --group-size 1                     # REINFORCE, baseline: the batch's mean
    python scripts/rloo_llm.py --group-size 1 --norm-adv batch    # REINFORCE++
    python scripts/rloo_llm.py --norm-adv batch                   # REINFORCE++ with a group's baseline
    python scripts/rloo_llm.py --group-size 1 --norm-adv batch --baseline tracked    # SPO
    python scripts/rloo_llm.py --model Qwen/Qwen2.5-Math-1.5B --dataset train.jsonl --bf16 --gradient-checkpointing \\
        --micro-batch-size 4

A dataset has the columns `prompt` (text, or chat messages) and `answer`. This needs the extra `llm`:
pip install -c constraints.txt -e '.[llm]'.

The x-axis counts all N responses per prompt.

Source: Kool et al., 2019; Ahmadian et al., arXiv 2402.14740 (without clipping there, because it makes one step per
batch). REINFORCE++: Hu et al., arXiv 2501.03262. SPO: Xu and Ding, arXiv 2509.13232 (docs/rloo.md says what differs). This
file differs from scripts/grpo_llm.py in the advantage. Equations: sppo_control/core.py. Logged values: docs/metrics.md.
Results: docs/llm_addition.md.
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
from sppo_control.tracker import ValueTracker


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
    """N, responses to each prompt; it must divide B. 1 is REINFORCE: the baseline is the mean of all other responses"""
    baseline: Literal["others", "tracked"] = "others"
    """others: mean of the group's other outcomes; tracked: SPO's success rate of the prompt so far, with --group-size 1"""
    update_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """minibatches of B / num_minibatches responses each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    norm_adv: Literal["none", "minibatch", "batch"] = "none"
    """(A - mean) / std over the tokens of each minibatch (CleanRL), or once over those of the batch (verl)"""
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
    def baseline_size(self) -> int:
        """Responses that share a baseline."""
        return self.batch_size if self.group_size == 1 else self.group_size

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
        # SPO: successes and failures per prompt. The prior is the success rate of the starting policy.
        tracker = ValueTracker(len(prompts), before["rate"])
        parts = {"tracker": tracker} if args.baseline == "tracked" else {}
        run.start(policy=PolicyFolder(policy, tokenizer), optimizer=optimizer, **parts)
        while run.episodes < args.total_episodes:
            # ---- rollout: N responses to each of B / N prompts
            some_rows = prompts.batch(run.update, args.batch_size // args.group_size, args.seed)
            rows = [row for row in some_rows for _ in range(args.group_size)]  # rows of a group are neighbours
            sample_seed = int(run.new_rng("rollout").integers(2**31))
            old = args.num_minibatches > 1  # else the first forward pass of the training gives them
            responses = generate(policy, tokenizer, prompts, rows, reward, sample_seed, *sampling, log_probs=old)
            mask, R = responses.mask, responses.outcome  # (B, T), (B,)

            # ---- advantage (Kool et al.): A_i = R_i - mean of the other outcomes of the group
            if args.baseline == "others":
                adv = core.leave_one_out_advantage(R, args.baseline_size)  # (B,)
            else:  # SPO: R_i - the prompt's success rate before this batch
                prompt, counts = torch.tensor(rows), (tracker.alpha, tracker.beta)  # (B,), (prompts,) each
                adv = R - tracker.value[prompt].to(R.device)
                tracker.alpha, tracker.beta = core.beta_tracker(*counts, R.cpu(), prompt, tracker.kl)
                tracker.kl[prompt] = 0.0
            baseline = R - adv  # (B,), for the log
            A = adv.clone()  # what the policy gets
            if args.norm_adv == "batch":
                A = core.normalized_advantage(adv, mask, eps_in="variance")

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
                if args.norm_adv == "minibatch":
                    A[mb] = core.normalized_advantage(adv[mb], mask[mb])
                num_tokens = mask[mb].sum()
                for part in mb.split(micro):  # micro-batches: their gradients add up to the minibatch's
                    some = responses.take(part)
                    logp, entropy = policy_log_probs(policy, some, args.temperature, args.bf16)  # (b, t) each
                    logp_old = responses.old_log_probs(part, logp, unchanged=step == 0)
                    surrogate = core.clipped_surrogate(
                        logp, logp_old, A[part], some.mask, args.clip_coef, "token-mean", num_tokens
                    )
                    run.check_finite(policy_loss=surrogate.loss)
                    surrogate.loss.backward()
                    stats.add_surrogate(surrogate, core.masked_mean(entropy.detach(), some.mask), num_tokens)
                grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                run.check_finite(policy_gradient_norm=grad_norm)
                optimizer.step()
                stats.add(1, grad_norm=grad_norm)

            if args.baseline == "tracked":
                tracker.kl += stats["approx_kl"]  # how far the policy has gone since each prompt's last visit

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
