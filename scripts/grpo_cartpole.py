"""Group Relative Policy Optimization (GRPO): the baseline is what other episodes from the same context achieved.

1. Run B whole episodes, N from each of B / N contexts s_0. Each ends with an outcome R: 1 for success, 0 for failure.
2. Advantage: A_i = (R_i - mean) / std over the N outcomes of a context. It is the same for all steps of the episode.
3. Policy: PPO's clipped surrogate with one ratio per step, for several epochs over minibatches of episodes.
4. There is no critic and no KL penalty. A context whose N outcomes are equal teaches nothing.

    python scripts/grpo_cartpole.py                                              # Precision CartPole
    python scripts/grpo_cartpole.py --no-normalize-std --reduction fixed         # Dr. GRPO
    python scripts/grpo_cartpole.py --ratio sequence --reduction sequence-mean --clip-coef 0.0004    # GSPO
    python scripts/grpo_cartpole.py --env-id CartPole-v1 --success-return 100    # any Gymnasium task

Source: Shao et al., arXiv 2402.03300, section 4.1.2; N = 8 as in SPPO, Wang et al., arXiv 2604.08865. Dr. GRPO: Liu
et al., arXiv 2503.20783. GSPO: Zheng et al., arXiv 2507.18071. This file differs
from scripts/sppo_cartpole.py in the advantage and has no critic. Equations: sppo_control/core.py. Logged values:
docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import sppo_envs
from sppo_control import arguments, cli, compiled, core, runs
from sppo_control.networks import Adam, clip_grad_norm_
from sppo_control.outcomes import advantage_scalars
from sppo_control.rollout import evaluate, rollout
from sppo_control.starts import look_first, starting_policy


@dataclass
class Args:
    env_id: str = "sppo/PrecisionCartPole-v0"
    """a task of this package, your own (module:id) or a Gymnasium id; --env-id X --help shows the numbers for X"""
    success_return: float | None = None
    """for a task without a success rule: an episode whose return reaches this number is a success"""
    horizon: int | None = None
    """longest episode in steps; None is the task's limit"""
    engine: sppo_envs.Engine = "auto"
    """what runs the environments; auto is the fastest one that is installed (docs/tasks.md)"""
    kernels: compiled.Kernels = "auto"
    """numba: compiled networks and rollouts; torch: plain torch, the reference; auto: numba where it is installed"""
    start: str | None = None
    """starting policy: a .safetensors file or a checkpoint; None is the task's starting policy, else random weights"""
    from_scratch: bool = False
    """start with random weights even if the task has a starting policy"""
    seed: int = 1
    """of environments, actions, shuffling and random weights"""
    total_timesteps: int = 2_000_000
    """environment steps of the whole run"""

    learning_rate: float = 1e-3
    """of the policy (Adam)"""
    num_envs: int = 64
    """B, episodes per update"""
    group_size: int = 8
    """N, episodes that start in the same context; a divisor of --num-envs"""
    update_epochs: int = 4
    """passes over each batch"""
    num_minibatches: int = 4
    """minibatches per pass, of B / num_minibatches episodes each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    ent_coef: float = 0.0
    """weight of an entropy bonus"""
    max_grad_norm: float = 1.0
    """longer gradients are scaled down to this norm"""
    skip_uniform_batches: bool = False
    """no update when all outcomes of the batch are equal"""
    normalize_std: bool = True
    """divide A by the group's standard deviation; Dr. GRPO does not"""
    reduction: core.Reduction = "token-mean"
    """mean over the minibatch's steps, mean of the episodes' means (GSPO), or sum / (b x horizon) (fixed: Dr. GRPO)"""
    ratio: core.Ratio = "step"
    """step: each step has its own ratio; sequence: one per episode (GSPO), with a much smaller --clip-coef"""
    hidden: tuple[int, ...] = (64, 64)
    """hidden layers of a policy that starts from random weights"""

    eval_episodes: int = 1024
    """episodes per evaluation; one is before training, one after it"""
    save_every: int = 20
    """updates between checkpoints"""
    runs_dir: str = "runs"
    """folder in which the run's folder is made"""
    resume: str | None = None
    """go on with this run: its folder or one of its checkpoints; the other arguments are read from there"""
    check: bool = False
    """check the task and exit"""

    @staticmethod
    def defaults(env_id: str) -> dict[str, Any]:
        """Defaults that depend on the task."""
        return sppo_envs.task_defaults(env_id)

    @property
    def minibatch_size(self) -> int:
        """Episodes per minibatch."""
        return self.num_envs // self.num_minibatches

    def __post_init__(self) -> None:
        arguments.check_args(self)


def train(args: Args) -> runs.Run:
    # ---- setup
    look_first(args, shared_contexts=True)  # a few short episodes of a foreign task, or --check
    torch.manual_seed(args.seed)  # for random weights; every other random number comes from run.new_rng
    envs = sppo_envs.make_task(args.env_id, args.num_envs, args.success_return, args.horizon, args.engine)
    fixed = args.minibatch_size * envs.horizon
    denominator = fixed if args.reduction == "fixed" else None  # the same for all minibatches of the run
    policy = starting_policy(envs, args.env_id, args.start, args.from_scratch, args.hidden, args.resume)
    # fused: one call per step instead of a dozen. The network is so small that calls cost more than arithmetic.
    optimizer = Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)

    with compiled.use(args), runs.Run(args, __file__, args.env_id) as run:
        before = run.once("before", lambda: evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")))
        run.start(policy=policy, optimizer=optimizer)
        while run.steps < args.total_timesteps:
            # ---- rollout: B whole episodes with the current policy, N from each context
            episodes = rollout(envs, policy, run.new_rng("rollout"), group_size=args.group_size)
            logp_old, mask, R = episodes.logp, episodes.mask, episodes.outcome  # (B, T), (B, T), (B,)

            # ---- advantage (GRPO, section 4.1.2): A_i = (R_i - mean) / std over the group
            groups = R.unflatten(0, (-1, args.group_size))  # (B / N, N)
            baseline = groups.mean(1).repeat_interleave(args.group_size)  # (B,), for the log
            adv = core.group_relative_advantage(R, args.group_size, args.normalize_std)  # (B,)

            # ---- minibatches: whole episodes, in a new random order for each epoch
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            skipped = args.skip_uniform_batches and bool(R.min() == R.max())
            minibatches = [
                mb
                for _ in range(0 if skipped else args.update_epochs)
                for mb in torch.from_numpy(shuffle.permutation(args.num_envs)).split(args.minibatch_size)
            ]

            # ---- policy (PPO, eq. 7): clipped surrogate, the episode's A at each of its steps
            for mb in minibatches:
                logp, entropy = policy.log_prob(episodes.obs[mb], episodes.actions[mb])  # (b, T) each
                surrogate = core.clipped_surrogate(
                    logp, logp_old[mb], adv[mb], mask[mb], args.clip_coef, args.reduction, denominator, args.ratio
                )
                mean_entropy = core.masked_mean(entropy, mask[mb])
                policy_loss = surrogate.loss
                if args.ent_coef > 0:
                    policy_loss = policy_loss - args.ent_coef * mean_entropy

                optimizer.zero_grad()
                policy_loss.backward()
                grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                run.check_finite(policy_loss=policy_loss, policy_gradient_norm=grad_norm)
                optimizer.step()
                stats.add_surrogate(surrogate, entropy=mean_entropy.detach(), denominator=denominator)
                stats.add(1, grad_norm=grad_norm)

            # ---- log
            run.end_update(
                episodes,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/skipped": float(skipped),
                    **stats.scalars(),
                    **advantage_scalars(adv, baseline, R),
                },
            )
        run.finish(evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")), before)
    envs.close()
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
