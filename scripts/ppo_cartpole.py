"""Token-level PPO: every step has its own value and its own advantage. The baseline that SPPO is compared with.

1. Run B whole episodes. Each starts in a context s_0 and ends with an outcome R, 1 for success or 0.
2. Advantage: GAE(gamma, lambda) with a critic V(s_t); at the default gamma = lambda = 1 it is A_t = R - V(s_t).
3. Policy: PPO's clipped surrogate with the ratio of each step, several epochs over minibatches of episodes.
4. Critic: V sees every state and is trained on the returns, with the squared error or (--critic-loss bce, the paper's
   ablation) with binary cross-entropy on sigmoid(v).
5. No normalisation of advantages, no clipping of the value loss, no KL penalty.

    python scripts/ppo_cartpole.py                                               # Precision CartPole
    python scripts/ppo_cartpole.py --critic-loss bce                             # the ablation of figure 4
    python scripts/ppo_cartpole.py --env-id CartPole-v1 --success-return 475     # any Gymnasium task

Source: Schulman et al., arXiv 1707.06347; gamma = lambda = 1 as in SPPO, Wang et al., arXiv 2604.08865, section 5.3.
The file differs from scripts/sppo_cartpole.py only in the critic. Equations: sppo_control/core.py. Logged values:
docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_

import sppo_envs
from sppo_control import arguments, cli, core, runs
from sppo_control.networks import Critic
from sppo_control.policies import starting_policy
from sppo_control.rollout import evaluate, rollout


@dataclass
class Args:
    env_id: str = "sppo/PrecisionCartPole-v0"
    """a task of this package, or any Gymnasium id with a vector observation and discrete or box actions"""
    success_return: float | None = None
    """for other environments: an episode whose return reaches this number is a success"""
    horizon: int | None = None
    """longest episode in steps; None is the task's own"""
    engine: sppo_envs.Engine = "auto"
    """what runs the environments; auto is the fastest there is (docs/tasks.md)"""
    start: str | None = None
    """starting policy: a .safetensors file or a checkpoint; None is the one shipped for the task, else random weights"""
    from_scratch: bool = False
    """start with random weights even where a starting policy is shipped"""
    seed: int = 1
    """of environments, actions, shuffling and random weights"""
    total_timesteps: int | None = None
    """environment steps of the whole run; this and what else is None below has a default of the task's own, in
    sppo_control/defaults.py"""

    learning_rate: float | None = None
    """of the policy (Adam)"""
    critic_learning_rate: float = 1e-3
    """of the critic (Adam)"""
    num_envs: int | None = None
    """B, episodes an update"""
    update_epochs: int = 4
    """passes over each batch"""
    num_minibatches: int | None = None
    """minibatches of B / num_minibatches episodes each"""
    critic_loss: Literal["mse", "bce"] = "mse"
    """squared error, or binary cross-entropy on sigmoid(v)"""
    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 1.0
    """lambda of generalized advantage estimation"""
    clip_coef: float = 0.2
    """epsilon of the clipped ratio"""
    ent_coef: float = 0.0
    """weight of an entropy bonus"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm, policy and critic each"""
    skip_uniform_batches: bool = False
    """leave out the update where all outcomes of the batch are equal"""
    hidden: tuple[int, ...] = (64, 64)
    """hidden layers of a policy that starts from random weights"""
    critic_hidden: tuple[int, ...] = (64, 64)
    """hidden layers of the critic"""

    eval_episodes: int = 1024
    """episodes of the evaluations before and after training"""
    save_every: int = 20
    """updates between checkpoints"""
    runs_dir: str = "runs"
    """parent of the run's folder"""
    resume: str | None = None
    """go on with this run: its folder or one of its checkpoints; the other arguments are read from there"""

    @property
    def minibatch_size(self) -> int:
        """Episodes a minibatch."""
        return self.num_envs // self.num_minibatches

    def __post_init__(self) -> None:
        arguments.fill_args(self)


def train(args: Args) -> runs.Run:
    # ---- setup
    torch.manual_seed(args.seed)  # random weights; every other random number comes from run.rng
    envs = sppo_envs.make_task(args.env_id, args.num_envs, args.success_return, args.horizon, args.engine)
    policy = starting_policy(envs, args.env_id, args.start, args.from_scratch, args.hidden)
    critic = Critic(envs.single_observation_space.shape[0], args.critic_hidden, policy.obs_scale.tolist())
    optimizer = torch.optim.Adam(
        [
            {"params": list(policy.parameters()), "lr": args.learning_rate},
            {"params": list(critic.parameters()), "lr": args.critic_learning_rate},
        ],
        eps=1e-5,
        fused=True,
    )

    with runs.Run(args, __file__, args.env_id) as run:
        before = run.once("before", lambda: evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")))
        run.start(policy=policy, critic=critic, optimizer=optimizer)
        while run.steps < args.total_timesteps:
            # ---- rollout: B whole episodes under the current policy
            episodes = rollout(envs, policy, run.new_rng("rollout"))
            logp_old, mask, R = episodes.logp, episodes.mask, episodes.outcome  # (B, T), (B, T), (B,)

            # ---- advantage: GAE over V(s_t); A_t = R - V(s_t) at gamma = lambda = 1
            with torch.no_grad():
                value = critic(episodes.obs)  # (B, T)
                if args.critic_loss == "bce":
                    value = torch.sigmoid(value)
            adv, returns = core.generalized_advantage(episodes.reward, value, mask, args.gamma, args.gae_lambda)
            # with lambda < 1 a return is a weighted mean of probabilities: rounding may carry it past 1
            returns = returns.clamp(0.0, 1.0)

            # ---- update
            stats, shuffle = runs.Means(), run.new_rng("shuffle")
            skipped = args.skip_uniform_batches and R.min() == R.max()
            for _ in range(0 if skipped else args.update_epochs):
                for mb in torch.from_numpy(shuffle.permutation(args.num_envs)).split(args.minibatch_size):
                    # policy: clipped surrogate, mean over the minibatch's steps
                    obs = episodes.obs[mb]
                    logp, entropy = policy.log_prob(obs, episodes.actions[mb])
                    surrogate = core.clipped_surrogate(
                        logp, logp_old[mb], adv[mb], mask[mb], args.clip_coef, reduction="token-mean"
                    )
                    mean_entropy = core.masked_mean(entropy, mask[mb])
                    policy_loss = surrogate.loss
                    if args.ent_coef > 0:
                        policy_loss = policy_loss - args.ent_coef * mean_entropy

                    # critic: every real step
                    value_new = critic(obs)
                    if args.critic_loss == "bce":
                        value_loss = core.bernoulli_value_loss(value_new[mask[mb]], returns[mb][mask[mb]])
                    else:
                        value_loss = core.squared_value_loss(value_new, returns[mb], mask[mb])

                    # one backward pass serves both: the networks share no weight
                    optimizer.zero_grad()
                    (policy_loss + value_loss).backward()
                    grad_norm = clip_grad_norm_(policy.parameters(), args.max_grad_norm, foreach=False)
                    critic_grad_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm, foreach=False)
                    run.check_finite(policy_loss=policy_loss, value_loss=value_loss)
                    run.check_finite(policy_gradient_norm=grad_norm, critic_gradient_norm=critic_grad_norm)
                    optimizer.step()

                    stats.add_surrogate(surrogate, entropy=mean_entropy.detach())
                    stats.add(surrogate.num_steps, value_loss=value_loss.detach())
                    stats.add(1, grad_norm=grad_norm)

            # ---- log
            v0, real_adv = value[:, 0], adv[mask]  # episodes start at t = 0: padding stands on the right
            run.end_update(
                episodes,
                {
                    "charts/learning_rate": args.learning_rate,
                    "charts/skipped": float(skipped),
                    **stats.scalars(),
                    "losses/explained_variance": float(core.explained_variance(value, returns, mask)),
                    "advantages/mean": float(real_adv.mean()),
                    "advantages/std": float(real_adv.std(correction=0)),
                    "critic/v0_mean": float(v0.mean()),
                    "critic/brier": float(core.brier_score(v0, R)),
                    "critic/ece": float(core.expected_calibration_error(v0, R)),
                },
            )
        run.finish(evaluate(envs, policy, args.eval_episodes, run.new_rng("evaluate")), before)
    envs.close()
    return run


if __name__ == "__main__":
    cli.main(train, Args, __doc__)
