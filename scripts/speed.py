"""Measure speed in environment steps per second, always together with a peer on the same cores.

All contestants run in turns within each round, so that other load on the machine affects all of them. Ratios are between
measurements of the same round.

--what training: whole runs of the scripts, with rollouts, updates, TensorBoard, progress bar and checkpoints. Each run is a
separate process. The peer is PPO of Stable-Baselines3, without logging. It has the same task, starting policy, batch,
epochs, minibatches and network sizes.

--what engines: three measurements for each task.

- (a) its engine alone, with random actions
- (b) rollouts of the shipped policy in this engine
- (c) Gymnasium's SyncVectorEnv, with random actions

EnvPool alone is measured as it is by default. It starts a new episode as soon as one ends, so no environment waits for the
batch. The numpy engines alone run whole batches of episodes.

    make bench        # or: pip install -c constraints.txt -e '.[bench,tasks]' && python scripts/speed.py --what engines
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import sppo_envs
from sppo_control import checkpoints, cli, extras, limits, runs
from sppo_control.outputs import File
from sppo_control.rollout import rollout
from sppo_control.starts import shipped_policy, starting_policy
from sppo_envs.engines import EnvPoolVectorEnv, cores

ENV_ID = "sppo/PrecisionCartPole-v0"
B, H, EPOCHS, MINIBATCHES = 64, 200, 4, 4
TARGETS = {"sppo": 8.0, "ppo": 5.0}


@dataclass
class Args:
    what: Literal["training", "engines"] = "training"
    """what to measure; the text above describes both"""
    rounds: int = 6
    """number of rounds; each contestant is measured once per round"""
    seconds: float = 2.0
    """engines: seconds per measurement"""
    num_envs: int | None = None
    """engines: B, the number of environments; None means each task's default"""
    total_timesteps: int = 700_000
    """training: environment steps per run of this project's scripts"""
    sb3_timesteps: int = 128_000
    """training: environment steps per run of Stable-Baselines3"""
    out: Annotated[str | None, File(".json", new_folder=True)] = None
    """JSON file for the table; None means runs/speed_<what>.json"""
    worker: Literal["sb3"] | None = None
    """internal: run as the measured process"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        if self.out is None and self.worker is None:
            self.out = f"runs/speed_{self.what}.json"
        if self.num_envs is not None:
            limits.check_memory({f"--num-envs {self.num_envs}": self.num_envs * limits.EPISODE})


def measure_sb3(timesteps: int) -> dict[str, Any]:
    """Train PPO of Stable-Baselines3. Returns steps, seconds and peak memory (MiB)."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: gym.make(ENV_ID)] * B)
    model = PPO(
        "MlpPolicy", envs, n_steps=H, batch_size=B * H // MINIBATCHES, n_epochs=EPOCHS, learning_rate=1e-3, gamma=1.0,
        gae_lambda=1.0, normalize_advantage=False, max_grad_norm=1.0, device="cpu",
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
    )  # fmt: skip
    # It begins with the shipped starting policy, so that its episodes are as long as those of the scripts.
    start = starting_policy(sppo_envs.make_task(ENV_ID, 1), ENV_ID, str(shipped_policy(ENV_ID)), False, ())
    ours = [m for m in start.to_sequential() if isinstance(m, torch.nn.Linear)]
    theirs = [m for m in model.policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)]
    for a, b in zip(ours, [*theirs, model.policy.action_net], strict=True):
        b.load_state_dict(a.state_dict())
    began = time.perf_counter()
    model.learn(timesteps)
    seconds = time.perf_counter() - began
    return {"steps": model.num_timesteps, "seconds": seconds, "peak_memory_mib": runs.peak_memory_mib()}


def measure(name: str, args: Args) -> dict[str, float]:
    """Run one contestant in a separate process."""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        if name == "sb3":
            command = [str(Path(__file__).resolve()), "--worker", "sb3", "--sb3-timesteps", str(args.sb3_timesteps)]
        else:
            command = [
                str(here / f"{name}_cartpole.py"), "--env-id", ENV_ID, "--total-timesteps", str(args.total_timesteps),
                "--num-envs", str(B), "--update-epochs", str(EPOCHS), "--num-minibatches", str(MINIBATCHES),
                "--eval-episodes", "64", "--runs-dir", folder,
            ]  # fmt: skip
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        if name == "sb3":
            return json.loads(done.stdout.splitlines()[-1])
        return json.loads(next(Path(folder).glob("*/summary.json")).read_text())


# --------------------------------------------------------------------------------------------------------- engines
def random_actions(space: gym.Space[Any], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random actions: (*shape,) for a Discrete space, (*shape, A) for a Box."""
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, int(space.n), shape).astype(np.int32)
    assert isinstance(space, gym.spaces.Box)
    return rng.uniform(space.low, space.high, (*shape, *space.low.shape)).astype(np.float32)


def steps_alone(envs: Any, seconds: float) -> float:
    """Steps per second of whole batches of episodes with random actions. Only steps of unfinished episodes count."""
    rng, steps, began = np.random.default_rng(0), 0, time.perf_counter()
    actions = random_actions(envs.single_action_space, (envs.horizon, envs.num_envs), rng)
    while not steps or time.perf_counter() - began < seconds:
        envs.reset(seed=int(rng.integers(2**30)))
        done = np.zeros(envs.num_envs, dtype=bool)
        for action in actions:
            steps += envs.num_envs - int(done.sum())
            done = envs.step(action)[2]
            if done.all():
                break
    return steps / (time.perf_counter() - began)


def steps_with_autoreset(envs: Any, space: gym.Space[Any], num_envs: int, seconds: float) -> float:
    """Steps per second with random actions, if every environment begins a new episode by itself."""
    actions = random_actions(space, (100, num_envs), np.random.default_rng(0))
    envs.reset()
    steps, began = 0, time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        for action in actions:
            envs.step(action)
        steps += num_envs * len(actions)
    return steps / (time.perf_counter() - began)


def measure_engines(args: Args) -> None:
    """Print the table of engines and write it as JSON."""
    rows: dict[str, dict[str, Any]] = {}
    for env_id in tqdm(sppo_envs.TASKS, unit="task", desc="engines"):
        task = sppo_envs.task(env_id)
        assert task is not None and task.peer is not None  # noqa: PT018 - true for every task of this package
        num_envs = args.num_envs or task.defaults.num_envs
        envs = sppo_envs.make_task(env_id, num_envs)
        policy = starting_policy(envs, env_id, None, False, ())
        space = envs.single_action_space
        sync = gym.make_vec(task.peer, num_envs=num_envs, vectorization_mode="sync")
        engine, pool = type(envs).__name__, None
        if isinstance(envs, EnvPoolVectorEnv):
            pool = envs.bare_pool()
        row: dict[str, Any] = {"num_envs": num_envs, "engine": engine, "bare": [], "rollout": [], "sync": []}
        rng = np.random.default_rng(0)
        rollout(envs, policy, rng)  # warm-up
        for _ in range(args.rounds):
            if pool is None:
                row["bare"].append(steps_alone(envs, args.seconds))
            else:
                row["bare"].append(steps_with_autoreset(pool, space, num_envs, args.seconds))
            steps, began = 0, time.perf_counter()
            while not steps or time.perf_counter() - began < args.seconds:
                steps += rollout(envs, policy, rng).num_steps
            row["rollout"].append(steps / (time.perf_counter() - began))
            row["sync"].append(steps_with_autoreset(sync, space, num_envs, args.seconds))
        row["rollout_to_bare"] = statistics.median(a / b for a, b in zip(row["rollout"], row["bare"], strict=True))
        row["bare_to_sync"] = statistics.median(a / b for a, b in zip(row["bare"], row["sync"], strict=True))
        rows[env_id] = row
        envs.close()
    print(
        "\n(steps/s, medians)\n| task | B | engine | alone | rollout | rollout / alone | SyncVectorEnv | alone / Sync |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for env_id, row in rows.items():
        bare, roll, sync_speed = (f"{statistics.median(row[k]):,.0f}" for k in ("bare", "rollout", "sync"))
        print(
            f"| {env_id} | {row['num_envs']} | {row['engine']} | {bare} | {roll} | {row['rollout_to_bare']:.2f} | "
            f"{sync_speed} | {row['bare_to_sync']:.1f} |"
        )
    write_table(args, {"cores": cores(), "rounds": args.rounds, **runs.versions(), "rows": rows})


def write_table(args: Args, table: dict[str, Any]) -> None:
    """Write the table as a JSON file."""
    assert args.out is not None  # Args fills it in
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(out, table)
    print(f"\nwritten to {out}")


def main(args: Args) -> None:
    if args.worker:
        print(json.dumps(measure_sb3(args.sb3_timesteps)))
        return
    if args.what == "engines":
        measure_engines(args)
        return
    extras.require("bench", "stable_baselines3", wanted_by="the comparison")
    sb3 = version("stable-baselines3")
    names = ("sppo", "ppo", "sb3")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tqdm(total=args.rounds * len(names), unit="run", desc="speed") as bar:
        for _ in range(args.rounds):
            for name in names:
                rows[name].append(measure(name, args))
                bar.update()

    speed = {name: [r["steps"] / r["seconds"] for r in row] for name, row in rows.items()}
    table: dict[str, Any] = {
        "task": ENV_ID,
        "setting": {"num_envs": B, "horizon": H, "epochs": EPOCHS, "minibatches": MINIBATCHES, "network": "64x64 tanh"},
        "versions": {"torch": torch.__version__, "stable-baselines3": sb3, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "rows": {},
    }
    print(f"\n{ENV_ID}, B = {B}, H = {H}, {EPOCHS} epochs, {MINIBATCHES} minibatches, {os.cpu_count()} cores\n")
    print("| | steps/s, median (range) | times SB3, median (range) | target | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    labels = {"sppo": "sppo_cartpole.py", "ppo": "ppo_cartpole.py", "sb3": f"Stable-Baselines3 {sb3}, PPO"}
    for name in names:
        ratio = [a / b for a, b in zip(speed[name], speed["sb3"], strict=True)]
        memory, target = max(r["peak_memory_mib"] for r in rows[name]), TARGETS.get(name)
        verdict = "-" if target is None else f"{target:g}: {'met' if statistics.median(ratio) >= target else 'MISSED'}"
        table["rows"][name] = {
            "steps_per_second": speed[name], "ratio": ratio, "median_ratio": statistics.median(ratio),
            "target_ratio": target, "peak_memory_mib": memory,
        }  # fmt: skip
        print(
            f"| {labels[name]} | {statistics.median(speed[name]):,.0f} ({min(speed[name]):,.0f} to {max(speed[name]):,.0f})"
            f" | {statistics.median(ratio):.1f} ({min(ratio):.1f} to {max(ratio):.1f}) | {verdict} | {memory:.0f} MiB |"
        )
    write_table(args, table)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
