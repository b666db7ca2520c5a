"""Make the starting policy of a task: better than chance, far from solved, so that reinforcement learning has work left.

1. Expert (--stage expert): PPO on the task's dense shaped reward, until its success rate reaches --expert-success.
2. Demonstrations: successful episodes of the expert; failures are dropped.
3. Behaviour cloning of a fresh network (--stage sft), stopped early: at the first evaluation that reaches --target, the
   middle of the band. Where success leaps over the band, the last steps are taken back and made again at half the
   learning rate.

In the pendulum tasks "success" means here, in all three steps, an episode that balanced: spinning through the top at the
right moment meets Sparse Pendulum's criterion too, and is not worth imitating.

    python scripts/pretrain.py                                      # rebuilds Precision CartPole's shipped policy
    python scripts/pretrain.py --env-id sppo/SparsePendulum-v0
    python scripts/pretrain.py --seed 7 --out mine                  # another one; the shipped policy stays

Writes <task>.safetensors and its card <task>.json (recipe, versions, success). Stopped at any moment and started again,
it goes on where it was; the end is the same, bit for bit. These are the three stages of Wang et al., arXiv 2604.08865,
section 5.3; the paper gives neither hyper-parameters nor success rates. What is None below is taken from RECIPES.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import sppo_envs
from sppo_control import cli, core, errors, runs
from sppo_control.checkpoints import OptimizerState, complete, read_checkpoint, read_json, write_checkpoint, write_json
from sppo_control.networks import Critic
from sppo_control.policies import (
    GaussianPolicy,
    Policy,
    load_policy,
    make_policy,
    save_policy,
    shipped_policy,
)  # fmt: skip
from sppo_control.rollout import evaluate, rollout


@dataclass
class Args:
    env_id: str = "sppo/PrecisionCartPole-v0"
    """a task of this package"""
    stage: Literal["expert", "sft", "all"] = "all"
    """expert: stop when the expert stands in --work-dir; sft: clone the expert that stands there; all: both"""
    seed: int = 1
    """of everything random"""
    out: str | None = None
    """folder for the policy and its card; None is the package's own, sppo_control/pretrained"""
    work_dir: str = "runs/pretrain"
    """parent of the folder for what is not finished yet: the expert and its demonstrations"""
    engine: sppo_envs.Engine = "auto"
    """what runs the environments"""

    expert_success: float | None = None
    """sampled success rate at which the expert is good enough"""
    expert_timesteps: int | None = None
    """give up if the expert needs more environment steps"""
    expert_num_envs: int | None = None
    """episodes an update"""
    expert_learning_rate: float | None = None
    """of policy and critic (Adam)"""
    expert_log_std: float | None = None
    """log standard deviation that the expert starts with; None in tasks with discrete actions"""
    reward_scale: float | None = None
    """dense rewards are multiplied by this, so that values are of size 1 to 10"""
    gamma: float | None = None
    """discount of the dense reward"""
    gae_lambda: float | None = None
    """lambda of the expert's advantage estimation"""

    demonstrations: int | None = None
    """successful episodes to clone"""
    log_std: float | None = None
    """log standard deviation of the clone, not trained while cloning; None in tasks with discrete actions"""
    clone_learning_rate: float | None = None
    """Adam; small, so that success rises over many steps and the band is not jumped over"""
    clone_batch: int = 1024
    """steps a minibatch"""
    clone_updates: int = 5_000
    """give up after so many"""
    eval_every: int | None = None
    """updates of cloning between evaluations"""
    min_success: float | None = None
    """lower end of the band, sampled actions"""
    max_success: float | None = None
    """upper end of the band"""
    target: float | None = None
    """cloning stops when success reaches this; None is the middle of the band"""
    eval_episodes: int | None = None
    """episodes of every evaluation of the clone while it is trained; the last one has 1024"""

    def __post_init__(self) -> None:
        if self.env_id not in RECIPES:
            raise ValueError(f"--env-id must be one of {', '.join(RECIPES)}, got {self.env_id!r}")
        for name, value in (DEFAULTS | RECIPES[self.env_id]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not 0 <= self.min_success < self.max_success <= 1:
            raise ValueError(
                f"need 0 <= --min-success < --max-success <= 1, got {self.min_success}, {self.max_success}"
            )
        if self.target is None:
            self.target = (self.min_success + self.max_success) / 2
        if not 0 < self.target <= self.max_success:
            raise ValueError(f"--target must lie above 0 and not above --max-success, got {self.target}")
        if not 0 < self.expert_success < 1:
            raise ValueError(f"--expert-success must lie between 0 and 1, got {self.expert_success}")
        counts = ("expert_num_envs", "demonstrations", "clone_batch", "clone_updates", "eval_every", "eval_episodes")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


DEFAULTS: dict[str, Any] = {
    "expert_success": 0.9, "expert_timesteps": 4_000_000, "expert_num_envs": 64, "expert_learning_rate": 1e-3,
    "reward_scale": 0.01, "gamma": 0.99, "gae_lambda": 0.95,
    "demonstrations": 512, "clone_learning_rate": 3e-4, "min_success": 0.05, "max_success": 0.35, "eval_episodes": 1024,
    "eval_every": 10,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "sppo/PrecisionCartPole-v0": {},
    "sppo/SparseMountainCar-v0": {
        "expert_num_envs": 16, "expert_log_std": 0.0, "demonstrations": 64, "log_std": -1.0, "clone_learning_rate": 1e-4,
    },
    # 0.3 of the episodes succeed by spinning: few balanced ones are wanted beside them.
    "sppo/SparsePendulum-v0": {
        "expert_num_envs": 16, "reward_scale": 0.1, "expert_log_std": 0.0, "demonstrations": 128, "log_std": -0.5,
        "clone_learning_rate": 1e-3, "eval_episodes": 256, "eval_every": 4, "target": 0.08,
    },
    "sppo/SparseLunarLander-v0": {
        "expert_num_envs": 32, "expert_success": 0.8, "reward_scale": 0.05, "gamma": 0.999, "gae_lambda": 0.98,
        "demonstrations": 256, "eval_episodes": 256,
    },
    "sppo/SparseHopper-v0": {
        "expert_num_envs": 32, "expert_success": 0.3, "reward_scale": 0.01, "expert_log_std": -0.5,
        "demonstrations": 64, "log_std": -1.5, "eval_episodes": 256,
    },
    "sppo/ContextCartPole-v0": {"expert_success": 0.5, "min_success": 0.25, "max_success": 0.55},
    "sppo/ContextPendulum-v0": {
        "expert_success": 0.7, "reward_scale": 0.1, "expert_log_std": 0.0, "log_std": -1.5,
        "min_success": 0.25, "max_success": 0.55,
    },
}  # fmt: skip
"""Of each task, what differs from DEFAULTS."""
EXPERT_ARGS = (
    "env_id", "seed", "engine", "expert_success", "expert_num_envs", "expert_learning_rate", "expert_log_std",
    "reward_scale", "gamma", "gae_lambda",
)  # fmt: skip
"""What an expert depends on: one made with other values cannot be gone on with."""


def is_demonstration(info: dict[str, Any]) -> Any:
    """Which episodes count as successes here, (B,) bool: those that succeeded and, where the task tells, balanced."""
    return info["success"] & info.get("balanced", True)


def generator(args: Args, stage: int, count: int) -> np.random.Generator:
    """Random numbers of one piece of work, the same whether or not what came before was done in this process."""
    return np.random.default_rng([args.seed, stage, count])


# ---------------------------------------------------------------------------------------------------- 1. expert
def train_expert(args: Args, folder: Path) -> Policy:
    """Token-level PPO on the dense reward; goes on from the newest checkpoint in `folder`."""
    envs = sppo_envs.make_task(args.env_id, args.expert_num_envs, engine=args.engine, dense=True)
    judged = sppo_envs.make_task(args.env_id, args.expert_num_envs, engine=args.engine)
    torch.manual_seed(args.seed)
    policy = make_policy(envs)
    if isinstance(policy, GaussianPolicy):
        nn.init.constant_(policy.log_std, args.expert_log_std)
    critic = Critic(envs.single_observation_space.shape[0], obs_scale=policy.obs_scale.tolist())
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=args.expert_learning_rate, fused=True)
    policy.env_id = args.env_id
    parts = {"policy": policy, "critic": critic, "optimizer": OptimizerState(optimizer)}
    state = {"update": 0, "steps": 0, "success": 0.0}
    written = complete(folder)
    if written:
        state = read_checkpoint(written[-1], parts, tuple(state))

    with tqdm(
        total=args.expert_timesteps, initial=state["steps"], unit="step", unit_scale=True, desc="expert",
        postfix=f"success {state['success']:.2f}", dynamic_ncols=True,
    ) as bar:  # fmt: skip
        while state["success"] < args.expert_success:
            if state["steps"] >= args.expert_timesteps:
                raise errors.UserError(
                    f"the expert's success rate is {state['success']:.2f} after {state['steps']:,} steps, "
                    f"{args.expert_success} was asked for; raise --expert-timesteps (it goes on from here)"
                )
            rng = generator(args, 1, state["update"])
            episodes = rollout(envs, policy, rng)
            mask = episodes.mask
            with torch.no_grad():
                value = critic(episodes.obs)
            adv, returns = core.generalized_advantage(
                episodes.reward * args.reward_scale, value, mask, args.gamma, args.gae_lambda
            )
            # steps of all episodes in one row: N = number of real steps
            obs, actions, logp_old, returns = (
                episodes.obs[mask],
                episodes.actions[mask],
                episodes.logp[mask],
                returns[mask],
            )
            adv = (adv[mask] - adv[mask].mean()) / (adv[mask].std(correction=0) + 1e-8)
            real = torch.ones(len(adv), 1, dtype=torch.bool)
            for _ in range(4):
                for mb in torch.from_numpy(rng.permutation(len(adv))).split(max(1024, len(adv) // 16)):
                    logp, _ = policy.log_prob(obs[mb], actions[mb])
                    columns = (x[:, None] for x in (logp, logp_old[mb], adv[mb]))
                    loss = core.clipped_surrogate(*columns, real[: len(mb)]).loss
                    loss = loss + core.squared_value_loss(
                        critic(obs[mb])[:, None], returns[mb][:, None], real[: len(mb)]
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                    nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
                    optimizer.step()
            state["update"] += 1
            state["steps"] += episodes.num_steps
            bar.update(episodes.num_steps)
            if state["update"] % 10 == 0:
                result = evaluate(judged, policy, max(128, args.expert_num_envs), generator(args, 2, state["update"]))
                state["success"] = float(is_demonstration(result.info).mean())
                bar.set_postfix_str(
                    f"success {state['success']:.2f}, steps an episode {episodes.lengths.float().mean():.0f}"
                )
                write_checkpoint(folder / f"{state['update']:06d}", parts, state)
                for old in written:
                    shutil.rmtree(old)
                written = [folder / f"{state['update']:06d}"]
    envs.close()
    judged.close()
    return policy


# -------------------------------------------------------------------------------------------- 2. demonstrations
def collect(args: Args, expert: Policy) -> tuple[Tensor, Tensor]:
    """Steps of the expert's successful episodes: observations (N, D) and actions (N,) or (N, A)."""
    envs = sppo_envs.make_task(args.env_id, args.expert_num_envs, engine=args.engine)
    kept: list[tuple[Tensor, Tensor]] = []
    batches = 0
    with tqdm(total=args.demonstrations, unit="episode", desc="demonstrations", dynamic_ncols=True) as bar:
        while len(kept) < args.demonstrations:
            episodes = rollout(envs, expert, generator(args, 3, batches))
            batches += 1
            good = np.flatnonzero(is_demonstration(episodes.info))[: args.demonstrations - len(kept)]
            kept += [(episodes.obs[i][episodes.mask[i]], episodes.actions[i][episodes.mask[i]]) for i in good]
            bar.update(len(good))
            if batches * args.expert_num_envs > 200 * args.demonstrations:
                raise errors.UserError(
                    f"only {len(kept)} of {batches * args.expert_num_envs} episodes of the expert succeeded; raise "
                    "--expert-success or lower --demonstrations"
                )
    envs.close()
    return torch.cat([obs for obs, _ in kept]), torch.cat([actions for _, actions in kept])


# --------------------------------------------------------------------------------------------------- 3. cloning
def clone(args: Args, obs: Tensor, actions: Tensor) -> tuple[Policy, int]:
    """Maximum likelihood on the demonstrations, stopped inside the band. Returns the policy and the number of updates."""
    envs = sppo_envs.make_task(args.env_id, min(256, args.eval_episodes), engine=args.engine)
    torch.manual_seed(args.seed)
    policy = make_policy(envs)
    parameters = list(policy.parameters())
    if isinstance(policy, GaussianPolicy):
        nn.init.constant_(policy.log_std, args.log_std)
        parameters = [policy.flat]
    optimizer = torch.optim.Adam(parameters, lr=args.clone_learning_rate, fused=True)
    rng = generator(args, 4, 0)

    before = policy.flat.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    with tqdm(total=args.clone_updates, unit="update", desc="cloning", dynamic_ncols=True) as bar:
        for update in range(1, args.clone_updates + 1):
            batch = torch.from_numpy(rng.integers(len(obs), size=args.clone_batch))
            loss = -policy.log_prob(obs[batch], actions[batch])[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            if update % args.eval_every:
                continue
            # The first look is cheap; only a rate near the target is worth all episodes.
            rate = is_demonstration(evaluate(envs, policy, min(256, args.eval_episodes), rng).info).mean()
            if rate > args.target / 2 and args.eval_episodes > 256:
                rate = is_demonstration(evaluate(envs, policy, args.eval_episodes, rng).info).mean()
            bar.set_postfix_str(f"success {rate:.2f}")
            if rate > args.max_success:
                with torch.no_grad():
                    policy.flat.copy_(before[0])
                optimizer.param_groups[0]["lr"] /= 2
                optimizer.load_state_dict({**optimizer.state_dict(), "state": before[1]})
            elif rate >= args.target:
                break
            before = policy.flat.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    envs.close()
    return policy, update


# -------------------------------------------------------------------------------------------------- all of them
def work_folder(args: Args) -> Path:
    """The folder of unfinished work, which must have been begun with the same arguments."""
    folder = Path(args.work_dir) / f"{args.env_id.split('/')[-1]}__{args.seed}"
    recipe = {name: getattr(args, name) for name in EXPERT_ARGS}
    if (folder / "recipe.json").is_file():
        stored = read_json(folder / "recipe.json")
        different = [f"--{k.replace('_', '-')} {stored.get(k)}" for k, v in recipe.items() if stored.get(k) != v]
        if different:
            raise errors.UserError(
                f"{folder} was begun with {' '.join(different)}; use the same, remove it, or name another --work-dir"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "recipe.json", recipe)
    return folder


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Ctrl-C inside ends the script with status 130 and one line, whatever became of the KeyboardInterrupt: where it meets
    torch or safetensors reading a file, they make a ValueError of it, which looks like a damaged file."""
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    old = None
    with contextlib.suppress(ValueError):  # not in the main thread: no signals there
        old = signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException:
        if not pressed:
            raise
        print("\nStopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    finally:
        if old is not None:
            signal.signal(signal.SIGINT, old)


def main(args: Args) -> None:
    with ctrl_c():
        make(args)


def make(args: Args) -> None:
    """Do what is wanted and not done yet."""
    out = shipped_policy(args.env_id).parent if args.out is None else Path(args.out)
    out.mkdir(parents=True, exist_ok=True)  # now, so that a folder that cannot be written costs no work
    folder = work_folder(args)
    expert_path, demonstrations_path = (
        folder / "expert.safetensors",
        folder / f"demonstrations_{args.demonstrations}.safetensors",
    )
    started = time.perf_counter()
    torch.set_num_threads(
        1
    )  # so that the number of cores does not change the sums; these networks gain nothing by more
    envs = sppo_envs.make_task(args.env_id, args.expert_num_envs, engine=args.engine)
    try:
        if not expert_path.is_file():
            if args.stage == "sft":
                raise errors.UserError(f"no expert at {expert_path}; make it with --stage expert")
            save_policy(train_expert(args, folder), expert_path.with_suffix(".writing"), args.env_id)
            os.replace(expert_path.with_suffix(".writing"), expert_path)
        expert = load_policy(expert_path, envs)
        if args.stage == "expert":
            print(f"the expert stands in {expert_path}; go on with --stage sft")
            return
        if not demonstrations_path.is_file():
            obs, actions = collect(args, expert)
            save_file({"obs": obs, "actions": actions}, demonstrations_path.with_suffix(".writing"))
            os.replace(demonstrations_path.with_suffix(".writing"), demonstrations_path)
        demonstrations = load_file(demonstrations_path)
        policy, updates = clone(args, demonstrations["obs"], demonstrations["actions"])
    finally:
        envs.close()
    finish(args, out, policy, updates, len(demonstrations["obs"]), time.perf_counter() - started)


def finish(args: Args, out: Path, policy: Policy, updates: int, steps: int, seconds: float | None) -> None:
    """Evaluate on episodes that did not choose when to stop; write the policy and its card."""
    envs = sppo_envs.make_task(args.env_id, 256, engine=args.engine)
    card: dict[str, Any] = {
        "env_id": args.env_id,
        "recipe": f"PPO on the dense reward to sampled success {args.expert_success}; {args.demonstrations} successful "
        f"episodes cloned ({steps} steps); stopped after {updates} updates of Adam, inside the band.",
        "command": f"python scripts/pretrain.py --env-id {args.env_id} --seed {args.seed}",
        "arguments": {k: v for k, v in asdict(args).items() if k not in ("out", "work_dir", "stage")},
        "band": [args.min_success, args.max_success],
    }
    for name, greedy in (("sampled", False), ("greedy", True)):
        result = evaluate(envs, policy, 1024, generator(args, 5, int(greedy)), greedy)
        card[f"success_{name}"] = result.as_dict()
        print(f"success {name:8} {result}   (1024 episodes, 95 % Wilson interval)")
        for measure, value in card[f"success_{name}"]["measures"].items():
            print(f"        mean of {measure} {value:.3f}")
        if not greedy:
            in_band = bool(args.min_success <= is_demonstration(result.info).mean() <= args.max_success)
    envs.close()
    card |= {"in_band": in_band, "seconds": seconds, **runs.versions()}

    name = shipped_policy(args.env_id).name
    # A policy outside the band never takes the place of one that may be inside it.
    path = out / (name if in_band else name.replace(".safetensors", ".missed.safetensors"))
    save_policy(policy, path, args.env_id)
    write_json(path.with_suffix(".json"), card)
    print(f"wrote {path} and its card" + ("" if seconds is None else f" in {seconds:.0f} s"))
    if not in_band:
        raise errors.UserError(
            f"the success rate is outside the band [{args.min_success}, {args.max_success}]; try another --seed or a "
            "smaller --clone-learning-rate"
        )


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
