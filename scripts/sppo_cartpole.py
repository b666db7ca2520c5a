"""Sequence-Level PPO (SPPO): the whole episode is one action of a contextual bandit.

1. Run B whole episodes. Each starts in a context s_0 and ends with an outcome R: 1 for success, 0 for failure.
2. Advantage (eq. 1): A = R - V(s_0). It is one number per episode, the same for all steps of the episode.
3. Policy (eq. 3): PPO's clipped surrogate with one ratio per step, for several epochs over minibatches of episodes.
4. Critic (eq. 2): V reads the initial state only. It is trained on R with binary cross-entropy.
5. There is no GAE, no value of later states and no KL penalty. Advantages are normalised only with --norm-adv.

    python scripts/sppo_cartpole.py                                              # Precision CartPole
    python scripts/sppo_cartpole.py --env-id sppo/SparsePendulum-v0              # another task, with its own numbers
    python scripts/sppo_cartpole.py --env-id CartPole-v1 --success-return 100    # any Gymnasium task

One default is not the paper's: how the critic is trained. Here it makes 20 updates per batch, on contexts of the last
four batches. With --critic-recipe paper it is trained on the minibatches of the policy. docs/results.md compares both.

Source: Wang et al., arXiv 2604.08865, equations 1 to 3. The paper does not give network sizes, learning rates, epochs,
minibatches and gradient clipping. Those were chosen here. Equations: sppo_control/core.py. Logged values:
docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

import sppo_envs
from sppo_control import arguments, cli, compiled, core, runs
from sppo_control.networks import Adam, Critic, clip_grad_norm_
from sppo_control.outcomes import advantage_scalars
from sppo_control.rollout import ContextWindow, evaluate, rollout
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
    update_epochs: int = 4
    """passes over each batch"""
    num_minibatches: int = 4
    """minibatches per pass, of B / num_minibatches episodes each"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    ent_coef: float = 0.0
    """weight of an entropy bonus"""
    max_grad_norm: float = 1.0
    """longer gradients are scaled down to this norm; policy and critic each"""
    adam_eps: float = 1e-5
    """of the policy's Adam; with 1 a small gradient makes a small step, as in gradient descent with momentum"""
    skip_uniform_batches: bool = False
    """no update when all outcomes of the batch are equal"""
    norm_adv: Literal["none", "minibatch", "batch"] = "none"
    """(A - mean) / std over the steps of each minibatch (CleanRL), or once over those of the batch (verl)"""
    ratio: core.Ratio = "step"
    """step: each step has its own ratio; sequence: one per episode (GSPO), with a much smaller --clip-coef"""
    hidden: tuple[int, ...] = (64, 64)
    """hidden layers of a policy that starts from random weights"""

    critic_recipe: Literal["window", "paper"] = "window"
    """window: random contexts of the newest batches; paper: the minibatches of the policy"""
    critic_learning_rate: float = 3e-3
    """of the critic (Adam); with --critic-recipe paper the default is 1e-3"""
    critic_steps: int = 20
    """window recipe: critic updates per batch"""
    critic_batch_size: int = 128
    """window recipe: contexts per critic update"""
    critic_window: int = 4
    """window recipe: the contexts come from so many of the newest batches"""
    critic_warmup_batches: int = 0
    """batches for the critic alone, before the first update of the policy"""
    critic_hidden: tuple[int, ...] = (64, 64)
    """hidden layers of the critic"""

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
    def defaults(env_id: str, critic_recipe: str) -> dict[str, Any]:
        """Defaults that depend on the task and on the critic's recipe."""
        paper = {"critic_learning_rate": 1e-3} if critic_recipe == "paper" else {}
        return sppo_envs.task_defaults(env_id) | paper

    @property
    def minibatch_size(self) -> int:
        """Episodes per minibatch."""
        return self.num_envs // self.num_minibatches

    def __post_init__(self) -> None:
        arguments.check_args(self)


def train(args: Args) -> runs.Run:
    # ---- setup
    look_first(args)  # a few short episodes of a foreign task, or --check
    torch.manual_seed(args.seed)  # for random weights; every other random number comes from run.new_rng
    envs = sppo_envs.make_task(args.env_id, args.num_envs, args.success_return, args.horizon, args.engine)
    obs_dim = envs.single_observation_space.shape[0]
    policy = starting_policy(envs, args.env_id, args.start, args.from_scratch, args.hidden, args.resume)
    critic = Critic(obs_dim, args.critic_hidden, policy.obs_scale.tolist())
    recent = ContextWindow(args.critic_window, args.num_envs, obs_dim)  # (s_0, R) of the newest batches
    # fused: one call per step instead of a dozen. The networks are so small that calls cost more than arithmetic.
    optimizer = Adam(policy.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True)
    critic_optimizer = Adam(critic.parameters(), lr=args.critic_learning_rate, eps=1e-5, fused=True)

    with compiled.use(args), runs.Run(args, __file__, args.env_id) as run:
        before = run.once("before", lambda: evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")))
        run.start(policy=policy, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer, recent=recent)
        while run.steps < args.total_timesteps:
            # ---- rollout: B whole episodes with the current policy
            episodes = rollout(envs, policy, run.new_rng("rollout"))
            logp_old, mask, R = episodes.logp, episodes.mask, episodes.outcome  # (B, T), (B, T), (B,)

            # ---- advantage (eq. 1): A = R - V(s_0), with a critic that has not seen these outcomes
            with torch.no_grad():
                value_logit = critic(episodes.context)  # (B,)
            adv = A = core.sequence_advantage(R, value_logit)  # (B,); A is what the policy gets
            if args.norm_adv == "batch":
                A = core.normalized_advantage(adv, mask, eps_in="variance")

            # ---- minibatches: whole episodes, in a new random order for each epoch
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            skipped = args.skip_uniform_batches and bool(R.min() == R.max())
            minibatches = [
                mb
                for _ in range(0 if skipped else args.update_epochs)
                for mb in torch.from_numpy(shuffle.permutation(args.num_envs)).split(args.minibatch_size)
            ]

            # ---- policy (eq. 3): clipped surrogate, the episode's A at each of its steps
            warming_up = run.update < args.critic_warmup_batches  # then only the critic is trained
            for mb in [] if warming_up else minibatches:
                A_mb = core.normalized_advantage(A[mb], mask[mb]) if args.norm_adv == "minibatch" else A[mb]
                logp, entropy = policy.log_prob(episodes.obs[mb], episodes.actions[mb])  # (b, T) each
                surrogate = core.clipped_surrogate(
                    logp, logp_old[mb], A_mb, mask[mb], args.clip_coef, reduction="token-mean", ratio=args.ratio
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

            # ---- critic (eq. 2): binary cross-entropy between V(s_0) and R
            recent.add(episodes)
            if args.critic_recipe == "paper":
                batches = [(episodes.context[mb], R[mb]) for mb in minibatches]
            else:  # a context is one row, so many updates cost little
                num_updates = 0 if skipped else args.critic_steps
                batches = [recent.sample(args.critic_batch_size, shuffle) for _ in range(num_updates)]
            for contexts, outcomes in batches:
                value_loss = core.bernoulli_value_loss(critic(contexts), outcomes)
                critic_optimizer.zero_grad()
                value_loss.backward()
                critic_grad_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm)
                run.check_finite(value_loss=value_loss, critic_gradient_norm=critic_grad_norm)
                critic_optimizer.step()
                stats.add(len(outcomes), value_loss=value_loss.detach())

            # ---- log
            v0 = torch.sigmoid(value_logit)  # V(s_0), (B,)
            run.end_update(
                episodes,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/skipped": float(skipped),
                    "charts/warmup": float(warming_up),
                    **stats.scalars(),
                    **advantage_scalars(adv, v0, R),
                },
            )
        run.finish(evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")), before)
    envs.close()
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
