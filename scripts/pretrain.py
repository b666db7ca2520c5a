"""Make the starting policy of a task: better than chance, far from solved, so that reinforcement learning has work left.

1. Expert: PPO on the task's dense shaped reward, until its sampled success rate reaches --expert-success.
2. Demonstrations: successful episodes of the expert; failures are dropped.
3. Behaviour cloning of a fresh network, stopped early: at the first evaluation that reaches the middle of the band.

    python scripts/pretrain.py                          # rebuilds the shipped policy
    python scripts/pretrain.py --seed 7 --out mine      # another one

Writes <task>.safetensors and its card <task>.json (recipe, versions, success). These are the three stages of Wang et al.,
arXiv 2604.08865, section 5.3; the paper gives neither hyper-parameters nor success rates. Same seed, same machine, same
versions: the same weights, bit for bit.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import sppo_envs
from sppo_control import core, runs
from sppo_control.policies import Critic, Policy, make_policy, save_policy, shipped_policy
from sppo_control.rollout import evaluate, rollout


@dataclass
class Args:
    env_id: str = "sppo/PrecisionCartPole-v0"
    """a task of this package"""
    seed: int = 0
    """of everything random"""
    out: str | None = None
    """folder for the policy and its card; None is the package's own, sppo_control/pretrained"""

    expert_success: float = 0.9
    """sampled success rate at which the expert is good enough"""
    expert_timesteps: int = 3_000_000
    """give up if the expert needs more environment steps"""
    expert_learning_rate: float = 1e-3
    """of policy and critic (Adam)"""
    gamma: float = 0.99
    """discount of the dense reward"""
    gae_lambda: float = 0.95
    """lambda of the expert's advantage estimation"""

    demonstrations: int = 512
    """successful episodes to clone"""
    clone_learning_rate: float = 3e-4
    """Adam; small, so that success rises over many steps and the band is not jumped over"""
    clone_batch: int = 1024
    """steps a minibatch"""
    clone_updates: int = 2_000
    """give up after so many"""
    eval_every: int = 10
    """updates of cloning between evaluations"""
    min_success: float = 0.15
    """lower end of the band, sampled actions"""
    max_success: float = 0.35
    """upper end of the band"""
    eval_episodes: int = 1024
    """episodes of every evaluation of the clone"""

    def __post_init__(self) -> None:
        if self.env_id not in sppo_envs.TASKS:
            raise ValueError(f"--env-id must be one of {', '.join(sppo_envs.TASKS)}, got {self.env_id!r}")
        if not 0 <= self.min_success < self.max_success <= 1:
            raise ValueError(
                f"need 0 <= --min-success < --max-success <= 1, got {self.min_success}, {self.max_success}"
            )
        if not 0 < self.expert_success < 1:
            raise ValueError(f"--expert-success must lie between 0 and 1, got {self.expert_success}")


def train_expert(args: Args, rng: np.random.Generator) -> Policy:
    """Token-level PPO on the dense reward."""
    envs = sppo_envs.make_task(args.env_id, 64, dense=True)
    policy = make_policy(envs)
    critic = Critic(envs.single_observation_space.shape[0], obs_scale=policy.obs_scale.tolist())
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=args.expert_learning_rate, fused=True)
    steps, success = 0, 0.0
    with tqdm(total=args.expert_timesteps, unit="step", unit_scale=True, desc="expert") as bar:
        while success < args.expert_success:
            if steps >= args.expert_timesteps:
                raise runs.UserError(
                    f"the expert's success rate is {success:.2f} after {steps:,} steps, {args.expert_success} was asked "
                    "for; raise --expert-timesteps or lower --expert-success"
                )
            for _ in range(10):
                episodes = rollout(envs, policy, rng)
                logp_old, mask = episodes.logp, episodes.mask
                # (1 - gamma) brings the values of an endless stream of rewards of size 1 to size 1
                reward = episodes.reward * (1 - args.gamma)
                with torch.no_grad():
                    value = critic(episodes.obs)
                adv, returns = core.generalized_advantage(reward, value, mask, args.gamma, args.gae_lambda)
                adv = (adv - adv[mask].mean()) / (adv[mask].std(correction=0) + 1e-8)
                for _ in range(4):
                    for mb in torch.from_numpy(rng.permutation(64)).split(16):
                        logp, _ = policy.log_prob(episodes.obs[mb], episodes.actions[mb])
                        loss = core.clipped_surrogate(logp, logp_old[mb], adv[mb], mask[mb]).loss
                        loss = loss + core.squared_value_loss(critic(episodes.obs[mb]), returns[mb], mask[mb])
                        optimizer.zero_grad()
                        loss.backward()
                        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                        optimizer.step()
                steps += episodes.num_steps
                bar.update(episodes.num_steps)
            success = evaluate(envs, policy, 512, rng).rate
            bar.set_postfix_str(f"success {success:.2f}")
    return policy


def collect(args: Args, expert: Policy, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Steps of successful episodes: observations (N, D) and actions (N,) or (N, A)."""
    envs = sppo_envs.make_task(args.env_id, 256)
    kept: list[tuple[Tensor, Tensor]] = []
    with tqdm(total=args.demonstrations, unit="episode", desc="demonstrations") as bar:
        while bar.n < args.demonstrations:
            episodes = rollout(envs, expert, rng)
            for i in episodes.outcome.nonzero()[: args.demonstrations - bar.n, 0].tolist():
                real = episodes.mask[i]
                kept.append((episodes.obs[i][real], episodes.actions[i][real]))
                bar.update()
    return torch.cat([obs for obs, _ in kept]), torch.cat([actions for _, actions in kept])


def clone(args: Args, obs: Tensor, actions: Tensor, rng: np.random.Generator) -> tuple[Policy, int]:
    """Maximum likelihood on the demonstrations. Returns the policy and the number of updates."""
    envs = sppo_envs.make_task(args.env_id, 256)
    policy = make_policy(envs)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.clone_learning_rate, fused=True)
    with tqdm(total=args.clone_updates, unit="update", desc="cloning") as bar:
        for update in range(1, args.clone_updates + 1):
            batch = torch.from_numpy(rng.integers(len(obs), size=args.clone_batch))
            loss = -policy.log_prob(obs[batch], actions[batch])[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            if update % args.eval_every == 0:
                # The first look is cheap; only a rate near the band is worth all episodes.
                success = evaluate(envs, policy, 256, rng).rate
                if success > args.min_success:
                    success = evaluate(envs, policy, args.eval_episodes, rng).rate
                bar.set_postfix_str(f"success {success:.2f}")
                if success >= (args.min_success + args.max_success) / 2:
                    return policy, update
    return policy, args.clone_updates


def main(args: Args) -> None:
    folder = shipped_policy(args.env_id).parent if args.out is None else Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)  # now, so that a folder that cannot be written costs no work
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    expert = train_expert(args, rng)
    obs, actions = collect(args, expert, rng)
    policy, updates = clone(args, obs, actions, rng)

    envs = sppo_envs.make_task(args.env_id, 256)
    fresh = np.random.default_rng([args.seed, 1])  # episodes that did not choose when to stop
    card: dict[str, Any] = {
        "env_id": args.env_id,
        "recipe": f"PPO on the dense reward to sampled success {args.expert_success}; {args.demonstrations} successful "
        f"episodes cloned ({len(obs)} steps); stopped after {updates} updates of Adam, at the first success rate "
        "that reached the middle of the band.",
        "command": f"python scripts/pretrain.py --env-id {args.env_id} --seed {args.seed}",
        "arguments": {k: v for k, v in asdict(args).items() if k != "out"},
        "band": [args.min_success, args.max_success],
    }
    for name, greedy in (("sampled", False), ("greedy", True)):
        result = evaluate(envs, policy, 1024, fresh, greedy)
        card[f"success_{name}"] = {"rate": result.rate, "interval_95": result.interval, "episodes": 1024}
        print(f"success {name:8} {result}   (1024 episodes, 95 % Wilson interval)")
    in_band = args.min_success <= card["success_sampled"]["rate"] <= args.max_success
    card |= {"in_band": in_band, "seconds": round(time.perf_counter() - started, 1), **runs.versions()}

    name = shipped_policy(args.env_id).name
    # A policy outside the band never takes the place of one that may be inside it.
    path = folder / (name if in_band else name.replace(".safetensors", ".missed.safetensors"))
    save_policy(policy, path, args.env_id)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"wrote {path} and its card in {card['seconds']} s")
    if not in_band:
        raise runs.UserError(
            f"the success rate is outside the band [{args.min_success}, {args.max_success}]; try another --seed or a "
            "smaller --clone-learning-rate"
        )


if __name__ == "__main__":
    runs.main(main, Args, __doc__)
