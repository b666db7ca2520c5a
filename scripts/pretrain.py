"""Make the starting policy of a task: better than chance, but far from solving it, so that training has work left.

1. Expert (--stage expert): PPO on the task's dense shaped reward, until its success rate reaches --expert-success.
2. Demonstrations: successful episodes of the expert. Failed episodes are dropped.
3. Behaviour cloning (--stage sft): a new network learns the demonstrations. It stops early, at the first evaluation that
   reaches --target, which is by default the middle of the band. If success overshoots the band, the last steps are undone
   and the learning rate is halved.

With --demonstrations-from, stages 1 and 2 are skipped, and the given demonstrations are cloned. A task without a dense
reward needs them.

    python scripts/pretrain.py                                      # rebuilds Precision CartPole's shipped policy
    python scripts/pretrain.py --env-id sppo/SparsePendulum-v0
    python scripts/pretrain.py --seed 7 --out mine                  # another policy; the shipped one is not changed
    python scripts/pretrain.py --env-id mytasks:my/Task-v0          # your own task, docs/tasks.md
    python scripts/pretrain.py --env-id mytasks:my/Task-v0 --demonstrations-from demonstrations.npz

The script writes <task>.safetensors and its card <task>.json (recipe, versions, success). Training with the same --env-id
begins with this policy. The script can be stopped at any moment. The same command then continues, and the result is the
same, bit for bit. The three stages are those of Wang et al., arXiv 2604.08865, section 5.3. The paper gives neither
hyper-parameters nor success rates.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import sppo_envs
from sppo_control import cli, core, errors, limits, runs
from sppo_control.checkpoints import (
    OptimizerState,
    Part,
    complete,
    read_checkpoint,
    read_json,
    write_checkpoint,
    write_json,
)
from sppo_control.demonstrations import read_demonstrations
from sppo_control.networks import Adam, Critic
from sppo_control.outputs import File, Folder, check_output
from sppo_control.policies import GaussianPolicy, Policy, load_policy, make_policy, save_policy
from sppo_control.rollout import evaluate, rollout
from sppo_control.starts import policy_name, shipped_policy


@dataclass
class Args:
    env_id: str = "sppo/PrecisionCartPole-v0"
    """the task; its own values replace the defaults below (python scripts/pretrain.py --env-id ID --help shows them)"""
    stage: Literal["expert", "sft", "all"] = "all"
    """expert: only train the expert, into --work-dir; sft: clone the expert that is there; all: do both"""
    demonstrations_from: str | None = None
    """demonstrations to clone in place of an expert's: minari:<dataset id>, or a .npz or .safetensors file. The file has
    observations (N, D) and actions (N,) or (N, A)."""
    success_return: float | None = None
    """with --demonstrations-from, for environments that do not report success: an episode with at least this return
    succeeds"""
    seed: int = 1
    """seed of everything random"""
    out: Annotated[str | None, Folder()] = None
    """folder for the policy and its card. None means the folder where training looks: sppo_control/pretrained. For your own
    task it is the folder pretrained beside its module."""
    work_dir: Annotated[str, Folder()] = "runs/pretrain"
    """parent of the folder for intermediate results: the expert and its demonstrations"""
    engine: sppo_envs.Engine = "auto"
    """engine that runs the environments"""

    expert_of: str | None = None
    """task whose expert and demonstrations are cloned: one with the same spaces. None means --env-id itself."""
    expert_success: float = 0.9
    """sampled success rate at which the expert is good enough"""
    expert_timesteps: int = 4_000_000
    """give up if the expert needs more environment steps than this"""
    expert_num_envs: int = 64
    """episodes per update"""
    expert_learning_rate: float = 1e-3
    """learning rate of Adam for the expert's policy and critic"""
    expert_log_std: float = 0.0
    """initial log standard deviation of the expert; only for continuous actions"""
    reward_scale: float = 0.01
    """dense rewards are multiplied by this, so that values are of size 1 to 10"""
    gamma: float = 0.99
    """discount of the dense reward"""
    gae_lambda: float = 0.95
    """lambda of the expert's advantage estimation"""

    demonstrations: int = 512
    """successful episodes to clone"""
    log_std: float = -1.0
    """log standard deviation of the clone, which is not trained; only for continuous actions"""
    clone_learning_rate: float = 3e-4
    """learning rate of Adam while cloning; it is small, so that success does not jump over the band"""
    clone_batch: int = 1024
    """steps per minibatch"""
    clone_updates: int = 5_000
    """give up after this number of updates"""
    eval_every: int = 10
    """number of updates between evaluations of the clone"""
    eval_episodes: int = 1024
    """episodes per evaluation while the clone is trained; the final evaluation has 1024"""
    min_success: float = 0.05
    """lower end of the band of success rates, with sampled actions"""
    max_success: float = 0.35
    """upper end of the band"""
    target: float | None = None
    """cloning stops when success reaches this; None means the middle of the band"""
    imitate: str = "success"
    """measure that is true for episodes worth imitating: success, or a stricter one; all success rates here count it"""

    @staticmethod
    def defaults(env_id: str) -> dict[str, Any]:
        """The task's own recipe."""
        task = sppo_envs.task(env_id)
        return asdict(sppo_envs.Recipe() if task is None else task.recipe)

    def __post_init__(self) -> None:
        if self.demonstrations_from is not None and self.stage == "expert":
            raise ValueError("--stage expert and --demonstrations-from exclude each other; leave one out")
        if self.demonstrations_from is not None:
            self.expert_of = None  # a recipe's; nobody asks an expert
        if self.success_return is not None and self.demonstrations_from is None:
            raise ValueError(
                "--success-return is only for --demonstrations-from, because an expert's task reports success itself"
            )
        limits.check_limits(self)
        if not self.min_success < self.max_success:
            raise ValueError(
                f"--min-success must be below --max-success, got {self.min_success} and {self.max_success}"
            )
        if not 0 < self.aim <= self.max_success:
            raise ValueError(f"--target must be above 0 and not above --max-success, got {self.aim}")
        limits.check_memory({f"--expert-num-envs {self.expert_num_envs}": self.expert_num_envs * limits.EPISODE})

    @property
    def aim(self) -> float:
        """Success rate at which cloning stops."""
        return (self.min_success + self.max_success) / 2 if self.target is None else self.target

    @property
    def of_expert(self) -> Args:
        """The arguments of the expert and its demonstrations: the same, on the task of --expert-of if there is one."""
        return self if self.expert_of is None else replace(self, env_id=self.expert_of, expert_of=None)

    @property
    def file(self) -> str:
        """File name of the policy."""
        return policy_name(self.env_id)


EXPERT_ARGS = (
    "env_id", "seed", "engine", "expert_success", "expert_num_envs", "expert_learning_rate", "expert_log_std",
    "reward_scale", "gamma", "gae_lambda", "imitate",
)  # fmt: skip
"""The arguments that an expert depends on. Work that was begun with other values cannot be continued."""


def worth_imitating(args: Args, info: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Which episodes count as successes here, (B,) bool.

    Raises:
        UserError: the task does not report --imitate as a boolean.
    """
    value = info.get(args.imitate)
    if value is None or value.dtype != np.bool_:
        known = [name for name, x in sorted(info.items()) if x.dtype == np.bool_]
        raise errors.UserError(f"--imitate must be one of {', '.join(known)}, got {args.imitate!r}")
    return value


def environments(args: Args, num_envs: int, dense: bool = False) -> Any:
    """`num_envs` environments of the task."""
    return sppo_envs.make_task(args.env_id, num_envs, args.success_return, engine=args.engine, dense=dense)


def generator(args: Args, stage: int, count: int) -> np.random.Generator:
    """The random numbers of one piece of work. They do not depend on what was done before it in this process."""
    return np.random.default_rng([args.seed, stage, count])


# ---------------------------------------------------------------------------------------------------- 1. expert
def train_expert(args: Args, folder: Path) -> Policy:
    """Token-level PPO on the dense reward. It continues from the newest checkpoint in `folder`."""
    envs, judged = environments(args, args.expert_num_envs, dense=True), environments(args, args.expert_num_envs)
    torch.manual_seed(args.seed)
    policy = make_policy(envs)
    if isinstance(policy, GaussianPolicy):
        nn.init.constant_(policy.log_std, args.expert_log_std)
    critic = Critic(envs.single_observation_space.shape[0], obs_scale=policy.obs_scale.tolist())
    optimizer = Adam([*policy.parameters(), *critic.parameters()], lr=args.expert_learning_rate, fused=True)
    policy.env_id = args.env_id
    parts: dict[str, Part] = {"policy": policy, "critic": critic, "optimizer": OptimizerState(optimizer)}
    state: dict[str, Any] = {"update": 0, "steps": 0, "success": 0.0}
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
                    f"but --expert-success is {args.expert_success}; raise --expert-timesteps (it continues from here)"
                )
            rng = generator(args, 1, state["update"])
            episodes = rollout(envs, policy, rng)
            mask = episodes.mask
            with torch.no_grad():
                value = critic(episodes.obs)
            adv, returns = core.generalized_advantage(
                episodes.reward * args.reward_scale, value, mask, args.gamma, args.gae_lambda
            )
            # the real steps of all episodes in one row, N of them
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
                    logp, old, A = (x[:, None] for x in (logp, logp_old[mb], adv[mb]))
                    loss = core.clipped_surrogate(logp, old, A, real[: len(mb)]).loss
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
                state["success"] = float(worth_imitating(args, result.info).mean())
                bar.set_postfix_str(
                    f"success {state['success']:.2f}, steps per episode {episodes.lengths.float().mean():.0f}"
                )
                write_checkpoint(folder / f"{state['update']:06d}", parts, state)
                for earlier in written:
                    shutil.rmtree(earlier)
                written = [folder / f"{state['update']:06d}"]
    envs.close()
    judged.close()
    return policy


# -------------------------------------------------------------------------------------------- 2. demonstrations
def collect(args: Args, expert: Policy) -> tuple[Tensor, Tensor]:
    """Steps of the expert's successful episodes: observations (N, D) and actions (N,) or (N, A)."""
    envs = environments(args, args.expert_num_envs)
    kept: list[tuple[Tensor, Tensor]] = []
    batches = 0
    with tqdm(total=args.demonstrations, unit="episode", desc="demonstrations", dynamic_ncols=True) as bar:
        while len(kept) < args.demonstrations:
            episodes = rollout(envs, expert, generator(args, 3, batches))
            batches += 1
            good = np.flatnonzero(worth_imitating(args, episodes.info))[: args.demonstrations - len(kept)]
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
    """Maximum likelihood on the demonstrations, stopped inside the band. Returns policy and number of updates."""
    envs = environments(args, min(256, args.eval_episodes))
    torch.manual_seed(args.seed)
    policy = make_policy(envs)
    parameters = list(policy.parameters())
    if isinstance(policy, GaussianPolicy):
        nn.init.constant_(policy.log_std, args.log_std)
        parameters = [policy.flat]
    optimizer = Adam(parameters, lr=args.clone_learning_rate, fused=True)
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
            # A cheap evaluation first. All episodes are used only if the rate is near the target.
            rate = worth_imitating(args, evaluate(envs, policy, min(256, args.eval_episodes), rng).info).mean()
            if rate > args.aim / 2 and args.eval_episodes > 256:
                rate = worth_imitating(args, evaluate(envs, policy, args.eval_episodes, rng).info).mean()
            bar.set_postfix_str(f"success {rate:.2f}")
            if rate > args.max_success:
                with torch.no_grad():
                    policy.flat.copy_(before[0])
                optimizer.param_groups[0]["lr"] /= 2
                optimizer.load_state_dict({**optimizer.state_dict(), "state": before[1]})
            elif rate >= args.aim:
                break
            before = policy.flat.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    envs.close()
    return policy, update


# -------------------------------------------------------------------------------------------------- all of them
def work_folder(args: Args) -> Path:
    """The folder of intermediate results. They must have been begun with the same arguments."""
    folder = Path(args.work_dir) / f"{Path(args.file).stem}__{args.seed}"
    recipe = {name: getattr(args, name) for name in EXPERT_ARGS}
    if (folder / "recipe.json").is_file():
        stored = read_json(folder / "recipe.json")
        different = [f"{cli.flag(k)} {stored.get(k)}" for k, v in recipe.items() if stored.get(k) != v]
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
    """Ctrl-C inside this context ends the script with status 130 and a message of one line.

    This is so even if the KeyboardInterrupt becomes another exception. While torch or safetensors read a file, they turn
    it into a ValueError, which looks like a damaged file.
    """
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    old = None
    with contextlib.suppress(ValueError):  # raised outside the main thread, where signals do not arrive
        old = signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException:
        if not pressed:
            raise
        print("\nStopped; the same command continues from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    finally:
        if old is not None:
            signal.signal(signal.SIGINT, old)


def main(args: Args) -> None:
    with ctrl_c():
        make(args)


def make(args: Args) -> None:
    """Do the stages that are wanted and not done yet."""
    taught = args.of_expert.env_id
    task = sppo_envs.task(taught)
    if args.demonstrations_from is None and (task is None or not task.has_dense_reward):
        raise errors.UserError(
            f"{'' if args.expert_of is None else '--expert-of '}{taught} has no dense reward to train an expert on; give "
            "demonstrations to clone: --demonstrations-from FILE (docs/tasks.md)"
        )
    if args.expert_of is not None:
        spaces = [
            (e.single_observation_space, e.single_action_space)
            for a in (args, args.of_expert)
            if (e := environments(a, 1))
        ]
        if spaces[0] != spaces[1]:
            raise errors.UserError(
                f"--expert-of {args.expert_of} has other spaces than {args.env_id}; name a task with the same ones"
            )
    home = shipped_policy(args.env_id)
    if args.out is None and home is None:
        raise errors.UserError(
            f"{args.env_id} is not in one of your files; name a folder for its starting policy with --out"
        )
    path = home if args.out is None else Path(args.out) / (args.file if home is None else home.name)
    assert path is not None
    for file in (path, path.with_suffix(".json")):  # now, so that no work is lost
        check_output("--out", file, File(new_folder=True))
    sppo_envs.first_look(args.env_id, args.success_return, engine=args.engine)
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    # One thread, so that the number of cores does not change the sums. More threads would not be faster here.
    torch.set_num_threads(1)
    envs = environments(args, args.expert_num_envs)
    try:
        if args.demonstrations_from is None:
            found = expert_demonstrations(args.of_expert, envs)
            on = "" if args.expert_of is None else f" of {args.expert_of}"
            origin = (
                f"PPO on the dense reward{on} to sampled success {args.expert_success}; {args.demonstrations} successful "
                "episodes cloned"
            )
        else:
            found = read_demonstrations(args.demonstrations_from, envs)
            digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in found)).hexdigest()
            origin = f"demonstrations from {args.demonstrations_from} cloned, SHA-256 {digest}"
        if found is None:
            return
        policy, updates = clone(args, *found)
    finally:
        envs.close()
    recipe = f"{origin} ({len(found[0])} steps); stopped after {updates} updates of Adam"
    finish(args, path, policy, recipe, time.perf_counter() - started)


def expert_demonstrations(args: Args, envs: Any) -> tuple[Tensor, Tensor] | None:
    """Demonstrations of the expert, which is trained if there is none yet; None if only the expert is wanted."""
    folder = work_folder(args)
    expert_path = folder / "expert.safetensors"
    demonstrations_path = folder / f"demonstrations_{args.demonstrations}.safetensors"
    if not expert_path.is_file():
        if args.stage == "sft":
            raise errors.UserError(f"no expert at {expert_path}; make it with --stage expert")
        save_policy(train_expert(args, folder), expert_path.with_suffix(".writing"), args.env_id)
        os.replace(expert_path.with_suffix(".writing"), expert_path)
    expert = load_policy(expert_path, envs)
    if args.stage == "expert":
        print(f"the expert is in {expert_path}; continue with --stage sft")
        return None
    if not demonstrations_path.is_file():
        obs, actions = collect(args, expert)
        save_file({"obs": obs, "actions": actions}, demonstrations_path.with_suffix(".writing"))
        os.replace(demonstrations_path.with_suffix(".writing"), demonstrations_path)
    demonstrations = load_file(demonstrations_path)
    return demonstrations["obs"], demonstrations["actions"]


def finish(args: Args, path: Path, policy: Policy, recipe: str, seconds: float) -> None:
    """Evaluate on new episodes, which did not choose when to stop. Then write the policy and its card."""
    envs = environments(args, 256)
    given = "" if args.demonstrations_from is None else f" --demonstrations-from {args.demonstrations_from}"
    rule = "" if args.success_return is None else f" --success-return {args.success_return:g}"
    recipe_of_task = args.defaults(args.env_id)
    own = "".join(
        f" {cli.flag(k)} {v}" for k in recipe_of_task if (v := getattr(args, k)) not in (recipe_of_task[k], None)
    )
    card: dict[str, Any] = {
        "env_id": args.env_id,
        "recipe": "",
        "command": f"python scripts/pretrain.py --env-id {args.env_id}{own} --seed {args.seed}{given}{rule}",
        "arguments": {k: v for k, v in asdict(args).items() if k not in ("out", "work_dir", "stage")}
        | {"target": args.aim},
        "band": [args.min_success, args.max_success],
    }
    for name, greedy in (("sampled", False), ("greedy", True)):
        result = evaluate(envs, policy, 1024, generator(args, 5, int(greedy)), greedy)
        card[f"success_{name}"] = result.as_dict()
        print(f"success {name:8} {result}   (1024 episodes, 95 % Wilson interval)")
        for measure, value in card[f"success_{name}"]["measures"].items():
            print(f"        mean of {measure} {value:.3f}")
        if not greedy:
            in_band = bool(args.min_success <= worth_imitating(args, result.info).mean() <= args.max_success)
    envs.close()
    card["recipe"] = f"{recipe}, {'inside' if in_band else 'outside'} the band."
    card |= {"in_band": in_band, "seconds": seconds, **runs.versions()}

    if not in_band:  # it must not replace a policy that may be inside the band
        path = path.with_name(f"{path.stem}.missed{path.suffix}")
    save_policy(policy, path, args.env_id)
    write_json(path.with_suffix(".json"), card)
    print(f"wrote {path} and its card in {seconds:.0f} s")
    if not in_band:
        raise errors.UserError(
            f"the success rate is outside the band [{args.min_success}, {args.max_success}]; try another --seed or a "
            "smaller --clone-learning-rate"
        )


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
