"""REINFORCE Leave-One-Out (RLOO): the baseline is the mean outcome of the other episodes from the same context.

The same script is REINFORCE, REINFORCE++ and SPO, which differ in the baseline and the normalisation, not in the loop.

1. Run B whole episodes, N from each of B / N contexts s_0. Each ends with an outcome R: 1 for success, 0 for failure.
2. Advantage: A_i = R_i - mean of the other N - 1 outcomes of the context. It is the same for all steps of the episode.
3. Policy: PPO's clipped surrogate with one ratio per step, for several epochs over minibatches of episodes.
4. There is no critic, no division by a standard deviation and no KL penalty.

    python scripts/rloo_cartpole.py                                              # Precision CartPole
    python scripts/rloo_cartpole.py --group-size 1                               # REINFORCE, baseline: the batch's mean
    python scripts/rloo_cartpole.py --group-size 1 --norm-adv batch              # REINFORCE++
    python scripts/rloo_cartpole.py --norm-adv batch                             # REINFORCE++ with a group's baseline
    python scripts/rloo_cartpole.py --group-size 1 --baseline tracked --num-contexts 256 --norm-adv batch    # SPO
    python scripts/rloo_cartpole.py --env-id CartPole-v1 --success-return 100    # any Gymnasium task

Source: Kool et al., 2019; Ahmadian et al., arXiv 2402.14740 (without clipping there, because it makes one step per
batch). REINFORCE++: Hu et al., arXiv 2501.03262. SPO: Xu and Ding, arXiv 2509.13232. This file differs from
scripts/sppo_cartpole.py in the advantage and has no critic. Equations: sppo_control/core.py. Logged values:
docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import sppo_envs
from sppo_control import arguments, cli, compiled, core, runs
from sppo_control.networks import Adam, clip_grad_norm_
from sppo_control.outcomes import advantage_scalars
from sppo_control.rollout import ValueTracker, evaluate, rollout
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
    """N, episodes per context; a divisor of --num-envs. 1 is REINFORCE: the baseline is the mean of all other episodes"""
    baseline: Literal["others", "tracked"] = "others"
    """others: mean of the group's other outcomes; tracked: SPO's success rate so far, which needs --group-size 1"""
    num_contexts: int | None = None
    """so many initial states, drawn once, that come again and again; None draws new ones for each episode"""
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
    norm_adv: Literal["none", "minibatch", "batch"] = "none"
    """(A - mean) / std over the steps of each minibatch (CleanRL), or once over those of the batch (verl, SPO)"""
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
    def baseline_size(self) -> int:
        """Episodes that share a baseline."""
        return self.num_envs if self.group_size == 1 else self.group_size

    @property
    def cells(self) -> int:
        """Contexts of the tracker. Without --num-contexts no context comes twice, so all are one."""
        return self.num_contexts or 1

    @property
    def minibatch_size(self) -> int:
        """Episodes per minibatch."""
        return self.num_envs // self.num_minibatches

    def __post_init__(self) -> None:
        arguments.check_args(self)


def draw_contexts(args: Args, rng: np.random.Generator) -> tuple[Tensor, list[int] | None]:
    """Which context each episode of a batch has, (B,) int64, and the seeds that its environments are reset with."""
    if args.num_contexts is None:
        return torch.zeros(args.num_envs, dtype=torch.int64), None
    drawn = rng.integers(args.num_contexts, size=args.num_envs // args.group_size).repeat(args.group_size)
    pool = np.random.default_rng([args.seed, args.num_contexts]).integers(2**31, size=args.num_contexts)
    return torch.from_numpy(drawn), pool[drawn].tolist()


def train(args: Args) -> runs.Run:
    # ---- setup
    shared = args.group_size > 1 or args.num_contexts is not None
    look_first(args, shared_contexts=shared)  # a few short episodes of a foreign task, or --check
    torch.manual_seed(args.seed)  # for random weights; every other random number comes from run.new_rng
    envs = sppo_envs.make_task(args.env_id, args.num_envs, args.success_return, args.horizon, args.engine)
    policy = starting_policy(envs, args.env_id, args.start, args.from_scratch, args.hidden, args.resume)
    # fused: one call per step instead of a dozen. The network is so small that calls cost more than arithmetic.
    optimizer = Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)

    with compiled.use(args), runs.Run(args, __file__, args.env_id) as run:
        before = run.once("before", lambda: evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")))
        # SPO: successes and failures per context. The prior is the success rate of the starting policy.
        tracker = ValueTracker(args.cells, before["rate"])
        parts = {"tracker": tracker} if args.baseline == "tracked" else {}
        run.start(policy=policy, optimizer=optimizer, **parts)
        while run.steps < args.total_timesteps:
            # ---- rollout: B whole episodes with the current policy, N from each context
            rng = run.new_rng("rollout")
            context, seeds = draw_contexts(args, rng)  # (B,) int64; None draws new initial states
            episodes = rollout(envs, policy, rng, group_size=args.group_size, seeds=seeds)
            logp_old, mask, R = episodes.logp, episodes.mask, episodes.outcome  # (B, T), (B, T), (B,)

            # ---- advantage (Kool et al.): A_i = R_i - mean of the other outcomes of the group
            if args.baseline == "others":
                adv = core.leave_one_out_advantage(R, args.baseline_size)  # (B,)
            else:  # SPO: R_i - the context's success rate before this batch
                adv = R - tracker.value[context]
                tracker.alpha, tracker.beta = core.beta_tracker(tracker.alpha, tracker.beta, R, context, tracker.kl)
                tracker.kl[context] = 0.0
            baseline = R - adv  # (B,), for the log
            A = core.normalized_advantage(adv, mask, eps_in="variance") if args.norm_adv == "batch" else adv

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
                A_mb = core.normalized_advantage(A[mb], mask[mb]) if args.norm_adv == "minibatch" else A[mb]
                logp, entropy = policy.log_prob(episodes.obs[mb], episodes.actions[mb])  # (b, T) each
                surrogate = core.clipped_surrogate(
                    logp, logp_old[mb], A_mb, mask[mb], args.clip_coef, reduction="token-mean"
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
                stats.add_surrogate(surrogate, entropy=mean_entropy.detach())
                stats.add(1, grad_norm=grad_norm)

            if args.baseline == "tracked" and not skipped:
                tracker.kl += stats["approx_kl"]  # how far the policy has gone since each context's last visit

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
