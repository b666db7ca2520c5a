"""Token-level PPO: every step has its own value and its own advantage. SPPO is compared with this baseline.

1. Run B whole episodes. Each starts in a context s_0 and ends with an outcome R: 1 for success, 0 for failure.
2. Advantage: GAE(gamma, lambda) with a critic V(s_t). With the default gamma = lambda = 1 it is A_t = R - V(s_t).
3. Policy: PPO's clipped surrogate with one ratio per step, for several epochs over minibatches of episodes.
4. Critic: V reads every state. It is trained on the returns with the squared error, or, with --critic-loss bce, with
   binary cross-entropy on sigmoid(v) (the paper's ablation).
5. By default advantages are not normalised, the value loss is not clipped and there is no KL penalty. What people who
   run PPO leave switched on is switched off here, as in SPPO; --norm-adv, --clip-vloss and --anneal-lr switch it on.

    python scripts/ppo_cartpole.py                                               # Precision CartPole
    python scripts/ppo_cartpole.py --norm-adv minibatch --gamma 0.99 --gae-lambda 0.95 --clip-vloss
    python scripts/ppo_cartpole.py --critic-loss bce                             # the ablation of figure 4
    python scripts/ppo_cartpole.py --env-id CartPole-v1 --success-return 100     # any Gymnasium task

Source: Schulman et al., arXiv 1707.06347 (PPO) and 1506.02438 (GAE). gamma = lambda = 1 as in SPPO, Wang et al., arXiv
2604.08865, section 5.3. Critic's warm-up and own lambda: VC-PPO, Yuan et al., arXiv 2503.01491. This file differs from
scripts/sppo_cartpole.py only in the critic and the advantage; see it with `diff scripts/sppo_cartpole.py
scripts/ppo_cartpole.py`. Equations: sppo_control/core.py. Logged values: docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

import sppo_envs
from sppo_control import arguments, cli, compiled, core, runs
from sppo_control.networks import Adam, Critic, clip_grad_norm_
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
    anneal_lr: bool = False
    """both learning rates fall in a straight line to 0 at --total-timesteps"""
    hidden: tuple[int, ...] = (64, 64)
    """hidden layers of a policy that starts from random weights"""

    critic_loss: Literal["mse", "bce"] = "mse"
    """squared error, or binary cross-entropy on sigmoid(v)"""
    critic_learning_rate: float = 1e-3
    """of the critic (Adam)"""
    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 1.0
    """lambda of generalized advantage estimation"""
    critic_gae_lambda: float | None = None
    """lambda of the critic's targets, if not --gae-lambda; VC-PPO has 1 here and 0.95 there"""
    clip_vloss: bool = False
    """V may move by --clip-coef per batch, and then has no gradient; only for mse"""
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
    look_first(args)  # a few short episodes of a foreign task, or --check
    torch.manual_seed(args.seed)  # for random weights; every other random number comes from run.new_rng
    envs = sppo_envs.make_task(args.env_id, args.num_envs, args.success_return, args.horizon, args.engine)
    obs_dim = envs.single_observation_space.shape[0]
    policy = starting_policy(envs, args.env_id, args.start, args.from_scratch, args.hidden, args.resume)
    critic = Critic(obs_dim, args.critic_hidden, policy.obs_scale.tolist())
    # fused: one call per step instead of a dozen. The networks are so small that calls cost more than arithmetic.
    optimizer = Adam(policy.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True)
    critic_optimizer = Adam(critic.parameters(), lr=args.critic_learning_rate, eps=1e-5, fused=True)

    with compiled.use(args), runs.Run(args, __file__, args.env_id) as run:
        before = run.once("before", lambda: evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")))
        run.start(policy=policy, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer)
        while run.steps < args.total_timesteps:
            if args.anneal_lr:
                left = 1 - run.steps / args.total_timesteps
                optimizer.param_groups[0]["lr"] = left * args.learning_rate
                critic_optimizer.param_groups[0]["lr"] = left * args.critic_learning_rate

            # ---- rollout: B whole episodes with the current policy
            episodes = rollout(envs, policy, run.new_rng("rollout"))
            logp_old, mask, R = episodes.logp, episodes.mask, episodes.outcome  # (B, T), (B, T), (B,)

            # ---- advantage (GAE, eq. 16): A_t = R - V(s_t) at gamma = lambda = 1
            with torch.no_grad():
                value = critic(episodes.obs)  # (B, T)
                if args.critic_loss == "bce":
                    value = torch.sigmoid(value)
            adv, returns = core.generalized_advantage(episodes.reward, value, mask, args.gamma, args.gae_lambda)
            if args.critic_gae_lambda is not None:
                own = (args.gamma, args.critic_gae_lambda)
                _, returns = core.generalized_advantage(episodes.reward, value, mask, *own)
            A = adv  # (B, T), for the policy
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

            # ---- policy (PPO, eq. 7): clipped surrogate, each step with its own A_t
            warming_up = run.update < args.critic_warmup_batches  # then only the critic is trained
            for mb in [] if warming_up else minibatches:
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

            # ---- critic (PPO, eq. 9): the returns of all real steps
            if args.critic_loss == "bce":
                returns = returns.clamp(0.0, 1.0)  # means of probabilities, but rounding may carry them past 1
            for mb in minibatches:
                value_new = critic(episodes.obs[mb])  # (b, T)
                if args.critic_loss == "bce":
                    value_loss = core.bernoulli_value_loss(value_new[mask[mb]], returns[mb][mask[mb]])
                else:
                    value_old = value[mb] if args.clip_vloss else None
                    value_loss = core.squared_value_loss(
                        value_new, returns[mb], mask[mb], value_old=value_old, clip_coef=args.clip_coef
                    )
                critic_optimizer.zero_grad()
                value_loss.backward()
                critic_grad_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm)
                run.check_finite(value_loss=value_loss, critic_gradient_norm=critic_grad_norm)
                critic_optimizer.step()
                stats.add(mask[mb].sum(), value_loss=value_loss.detach())

            # ---- log
            v0 = value[:, 0]  # V(s_0), (B,)
            run.end_update(
                episodes,
                {
                    "charts/learning_rate": optimizer.param_groups[0]["lr"],
                    "charts/skipped": float(skipped),
                    "charts/warmup": float(warming_up),
                    **stats.scalars(),
                    **advantage_scalars(adv[mask], v0, R),
                    "losses/explained_variance": float(core.explained_variance(value, returns, mask)),  # of all steps
                },
            )
        run.finish(evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")), before)
    envs.close()
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
