"""Training speed against Stable-Baselines3: environment steps per second of whole runs, rollout and update together.

Each measurement is a process of its own; they alternate (sppo, ppo, sb3, sppo, ppo, sb3, ...) on the same cores, so that
what a busy machine does to one it does to all, and the ratio is taken within a round. Ours are real runs of the scripts,
with TensorBoard, progress bar and checkpoints; Stable-Baselines3's PPO gets the same task, starting weights, batch,
epochs, minibatches and network sizes, and no logging.

    make bench        # or: pip install -c constraints.txt -e '.[bench]' && python scripts/speed.py
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
from typing import Any, Literal

import gymnasium as gym
import torch
import tyro
from tqdm import tqdm

import sppo_envs
from sppo_control import runs
from sppo_control.policies import shipped_policy, starting_policy

ENV_ID = "sppo/PrecisionCartPole-v0"
B, H, EPOCHS, MINIBATCHES = 64, 200, 4, 4
TARGETS = {"sppo": 8.0, "ppo": 5.0}


@dataclass
class Args:
    rounds: int = 6
    """how often each is measured"""
    total_timesteps: int = 700_000
    """of each run of ours"""
    sb3_timesteps: int = 128_000
    """of each run of Stable-Baselines3"""
    out: str = "runs/speed.json"
    """where the table goes as JSON"""
    worker: Literal["sb3"] | None = None
    """internal: be the measured process"""


def measure_sb3(timesteps: int) -> dict[str, float]:
    """Train Stable-Baselines3's PPO; returns steps, seconds, peak memory (MiB)."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: gym.make(ENV_ID)] * B)
    model = PPO(
        "MlpPolicy", envs, n_steps=H, batch_size=B * H // MINIBATCHES, n_epochs=EPOCHS, learning_rate=1e-3, gamma=1.0,
        gae_lambda=1.0, normalize_advantage=False, max_grad_norm=1.0, device="cpu",
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
    )  # fmt: skip
    # The shipped starting policy, so that episodes are as long as ours.
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
    """Run one contestant in a process of its own."""
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


def main(args: Args) -> None:
    if args.worker:
        print(json.dumps(measure_sb3(args.sb3_timesteps)))
        return
    try:
        sb3 = version("stable-baselines3")
    except ModuleNotFoundError:
        sys.exit("the peer is missing: pip install -c constraints.txt -e '.[bench]'")
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
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(table, indent=2) + "\n")
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
