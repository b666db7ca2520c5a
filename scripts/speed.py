"""Measure speed in environment steps per second, always together with a peer on the same cores.

All contestants run in turns within each round, so that other load on the machine affects all of them. Ratios are between
measurements of the same round. Each run is a separate process. All results go into one JSON file, one section for each
--what. --what tables writes them into README.md and docs/speed.md.

--what training: whole runs of the scripts, with rollouts, updates, TensorBoard, progress bar and checkpoints. Two peers
have the same batch, epochs, minibatches and network sizes: PPO of Stable-Baselines3, from the same starting policy and
without logging, and with --purejaxrl PureJaxRL's ppo.py, compiled before the clock starts.

--what processes: two processes side by side, each with one thread on its own core; the sum of their speeds.

--what start: the command `python scripts/sppo_cartpole.py` from its start to its summary, and until it succeeds in 95 %
of the last 256 episodes.

--what scale: speed and memory for other horizons, batches and widths.

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
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import sppo_envs
from sppo_control import checkpoints, cli, compiled, extras, limits, runs
from sppo_control.markdown import markdown_table
from sppo_control.outputs import File
from sppo_control.rollout import rollout
from sppo_control.starts import shipped_policy, starting_policy
from sppo_envs.engines import EnvPoolVectorEnv, cores

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "sppo/PrecisionCartPole-v0"
B, H, EPOCHS, MINIBATCHES = 64, 200, 4, 4
TARGETS = {"sppo": {"sb3": 8.0, "purejaxrl": 1.3}, "ppo": {"sb3": 6.0, "purejaxrl": 1.0}}
LABELS = {
    "sppo": "`sppo_cartpole.py`",
    "ppo": "`ppo_cartpole.py`",
    "sppo_torch": "`sppo_cartpole.py --kernels torch`",
    "ppo_torch": "`ppo_cartpole.py --kernels torch`",
    "sb3": "Stable-Baselines3, PPO",
    "purejaxrl": "PureJaxRL, PPO",
}
SCALE = {
    "horizon": [200, 1_000, 10_000, 100_000],
    "batch": [64, 256, 1_024, 4_096],
    "width": [64, 128, 256, 512, 1_024],
}
"""What --what scale varies. Horizons are those of Sparse Pendulum with 4 episodes, because none of them ends early."""


@dataclass
class Args:
    what: Literal["training", "processes", "start", "scale", "engines", "tables"] = "training"
    """what to measure; the text above describes it"""
    rounds: int = 6
    """number of rounds; each contestant is measured once per round"""
    seconds: float = 2.0
    """engines: seconds per measurement"""
    num_envs: int | None = None
    """engines: B, the number of environments; None means each task's default"""
    total_timesteps: int = 1_280_000
    """training and processes: environment steps per run of this project's scripts and of PureJaxRL"""
    sb3_timesteps: int = 128_000
    """training: environment steps per run of Stable-Baselines3"""
    purejaxrl: str | None = None
    """training and processes: folder of PureJaxRL's repository; None leaves it out"""
    jax_python: str = ".venv-jax/bin/python"
    """a Python with jax, flax, optax, distrax and gymnax < 1, which runs PureJaxRL"""
    out: Annotated[str, File(".json", new_folder=True)] = "runs/speed.json"
    """JSON file that gets the section"""
    worker: Literal["sb3"] | None = None
    """internal: run as the measured process"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        if self.num_envs is not None:
            limits.check_memory({f"--num-envs {self.num_envs}": self.num_envs * limits.EPISODE})


PUREJAXRL = """
import json, resource, sys, time
from unittest.mock import MagicMock
for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
    sys.modules[name] = MagicMock()  # its file of wrappers imports them, its CartPole does not use them
sys.path.insert(0, sys.argv[1] + "/purejaxrl")
from importlib.metadata import version
import jax, ppo
config = json.loads(sys.argv[2])
key = jax.random.PRNGKey(0)
began = time.perf_counter()
train = jax.jit(ppo.make_train(config)).lower(key).compile()
compiled = time.perf_counter()
jax.block_until_ready(train(key))
ended = time.perf_counter()
steps = config["TOTAL_TIMESTEPS"] // (config["NUM_ENVS"] * config["NUM_STEPS"]) * config["NUM_ENVS"] * config["NUM_STEPS"]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"steps": steps, "seconds": ended - compiled, "compile_seconds": compiled - began,
                  "peak_memory_mib": memory, "jax": version("jax"), "gymnax": version("gymnax")}))
"""
"""Runs in another Python: argv is the repository and the configuration."""


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


def command(name: str, args: Args, folder: str) -> list[str]:
    """The command of one contestant."""
    if name == "sb3":
        return [
            sys.executable, str(Path(__file__).resolve()), "--worker", "sb3", "--sb3-timesteps", str(args.sb3_timesteps),
        ]  # fmt: skip
    if name == "purejaxrl":
        assert args.purejaxrl is not None
        config = {
            "ENV_NAME": "CartPole-v1", "NUM_ENVS": B, "NUM_STEPS": H, "TOTAL_TIMESTEPS": args.total_timesteps,
            "UPDATE_EPOCHS": EPOCHS, "NUM_MINIBATCHES": MINIBATCHES, "LR": 1e-3, "ANNEAL_LR": False, "GAMMA": 1.0,
            "GAE_LAMBDA": 1.0, "CLIP_EPS": 0.2, "ENT_COEF": 0.0, "VF_COEF": 0.5, "MAX_GRAD_NORM": 1.0,
            "ACTIVATION": "tanh", "DEBUG": False,
        }  # fmt: skip
        return [args.jax_python, "-c", PUREJAXRL, args.purejaxrl, json.dumps(config)]
    script, _, kernels = name.partition("_")
    return [
        sys.executable, str(ROOT / "scripts" / f"{script}_cartpole.py"), "--env-id", ENV_ID, "--total-timesteps",
        str(args.total_timesteps), "--num-envs", str(B), "--update-epochs", str(EPOCHS), "--num-minibatches",
        str(MINIBATCHES), "--eval-episodes", "64", "--kernels", kernels or "numba", "--runs-dir", folder,
    ]  # fmt: skip


def measure(name: str, args: Args, processes: int = 1) -> list[dict[str, Any]]:
    """Run one contestant, in one process or in several at the same time, each with one thread on its own core."""
    with tempfile.TemporaryDirectory() as folder:
        started: list[subprocess.Popen[str]] = []
        cores_here = sorted(os.sched_getaffinity(0))
        for core in range(processes):
            words = command(name, args, f"{folder}/{core}")
            env = {**os.environ, "OMP_NUM_THREADS": "1"} if processes > 1 else dict(os.environ)
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
            if processes > 1:
                os.sched_setaffinity(process.pid, {cores_here[core]})
            started.append(process)
        results = []
        for core, process in enumerate(started):
            out, err = process.communicate()
            if process.returncode:
                sys.exit(f"{name} failed:\n{err}")
            if name in ("sb3", "purejaxrl"):
                results.append(json.loads(out.splitlines()[-1]))
            else:
                results.append(json.loads(next(Path(folder, str(core)).glob("*/summary.json")).read_text()))
    return results


def contestants(args: Args) -> list[str]:
    """Names of those that can run."""
    names = ["sppo", "ppo"]
    if args.what == "training":
        extras.require("bench", "stable_baselines3", wanted_by="the comparison")
        names += ["sppo_torch", "ppo_torch", "sb3"]
    if args.purejaxrl is not None:
        if not (Path(args.purejaxrl) / "purejaxrl" / "ppo.py").is_file():
            raise ValueError(f"--purejaxrl {args.purejaxrl} has no purejaxrl/ppo.py; name a clone of its repository")
        if not Path(args.jax_python).is_file():
            raise ValueError(f"--jax-python {args.jax_python} is not there; make .venv-jax/.bench makes it")
        names.append("purejaxrl")
    return names


def compare(args: Args) -> dict[str, Any]:
    """Alternate the contestants; the section of the JSON file."""
    names, processes = contestants(args), 2 if args.what == "processes" else 1
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    with tqdm(total=args.rounds * len(names), unit="run", desc=args.what) as bar:
        for _ in range(args.rounds):
            for name in names:
                found[name].append(measure(name, args, processes))
                bar.update()
    speed = {name: [sum(r["steps"] / r["seconds"] for r in runs) for runs in rows] for name, rows in found.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        peers = [peer for peer in ("sb3", "purejaxrl") if peer in names]
        first = found[name][0][0]
        rows[name] = {
            "steps_per_second": speed[name],
            "peak_memory_mib": max(r["peak_memory_mib"] for runs in found[name] for r in runs),
            "ratios": {peer: [a / b for a, b in zip(speed[name], speed[peer], strict=True)] for peer in peers},
            **{key: first[key] for key in ("jax", "gymnax", "compile_seconds") if key in first},
        }
    setting = {"num_envs": B, "horizon": H, "epochs": EPOCHS, "minibatches": MINIBATCHES, "network": "64x64 tanh"}
    return {"task": ENV_ID, "processes": processes, "setting": setting, "rows": rows}


# ----------------------------------------------------------------------------------------------------- one command
def start(args: Args) -> dict[str, Any]:
    """Seconds from the start of `python scripts/sppo_cartpole.py` to its summary, and to 95 % success."""
    rows = []
    for _ in tqdm(range(args.rounds), unit="run", desc="start"):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, str(ROOT / "scripts" / "sppo_cartpole.py"), "--runs-dir", folder]
            began, clock = time.time(), time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            seconds = time.perf_counter() - clock
            run = next(Path(folder).glob("*"))
            summary = json.loads((run / "summary.json").read_text())
            curve = checkpoints_curve(run)
            reached = [i for i in range(3, len(curve)) if np.mean([v for _, v in curve[i - 3 : i + 1]]) >= 0.95]
            rows.append(
                {
                    "seconds": seconds,
                    "training_seconds": summary["seconds"],
                    "steps": summary["steps"],
                    "seconds_to_095": curve[reached[0]][0] - began if reached else None,
                    "success_after": summary["after"]["rate"],
                }
            )
    return {"command": "python scripts/sppo_cartpole.py", "rows": rows}


def checkpoints_curve(run: Path) -> list[tuple[float, float]]:
    """(time of the update, success rate) of each update."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [(e.wall_time, e.value) for e in events.Scalars("charts/success_rate")]


# ----------------------------------------------------------------------------------------------------------- scale
def scale(args: Args) -> dict[str, Any]:
    """Speed and memory for other horizons, batches and widths; each is three updates of SPPO in its own process."""
    rows: list[dict[str, Any]] = []
    cases = [
        (what, value, kernels) for what, values in SCALE.items() for value in values for kernels in ("numba", "torch")
    ]
    for what, value, kernels in tqdm(cases, unit="run", desc="scale"):
        envs, horizon = (4, value) if what == "horizon" else (value if what == "batch" else B, H)
        task = "sppo/SparsePendulum-v0" if what == "horizon" else ENV_ID
        width = str(value) if what == "width" else "64"
        words = [
            sys.executable, str(ROOT / "scripts" / "sppo_cartpole.py"), "--env-id", task, "--horizon", str(horizon),
            "--num-envs", str(envs), "--num-minibatches", "4", "--hidden", width, width, "--from-scratch",
            "--critic-hidden", width, width, "--eval-episodes", str(envs),
            "--kernels", "auto" if kernels == "numba" else kernels,
            "--total-timesteps", str(max(8 * envs * horizon, 200_000) if task != ENV_ID else max(64_000, 3 * envs * 20)),
        ]  # fmt: skip
        best: dict[str, Any] = {}
        for _ in range(max(1, args.rounds // 2)):
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run([*words, "--runs-dir", folder], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
                run = json.loads(next(Path(folder).glob("*/summary.json")).read_text())
            if not best or run["steps_per_second"] > best["steps_per_second"]:
                best = {key: run[key] for key in ("steps_per_second", "peak_memory_mib", "steps", "updates")}
        rows.append({"what": what, "value": value, "kernels": kernels, **best})
    return {"rows": rows}


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


def measure_engines(args: Args) -> dict[str, Any]:
    """All tasks; the section of the JSON file."""
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
        with compiled.use("auto"):
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
    return {"rows": rows}


# ---------------------------------------------------------------------------------------------------------- tables
def ranged(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Section -> its table in Markdown."""
    made: dict[str, str] = {}
    for what in ("training", "processes"):
        if what in found:
            rows = []
            for name, row in found[what]["rows"].items():
                cells = [LABELS[name]]
                for peer in ("sb3", "purejaxrl"):
                    ratio, target = row["ratios"].get(peer), TARGETS.get(name, {}).get(peer)
                    if what == "processes":
                        target = 1.5 if (name, peer) == ("sppo", "purejaxrl") else None
                    verdict = ""
                    if ratio and target:
                        verdict = f"; target {target:g} {'met' if statistics.median(ratio) >= target else 'MISSED'}"
                    cells.append("-" if ratio is None or name == peer else ranged(ratio, 2) + verdict)
                cells += [ranged(row["steps_per_second"], 0), f"{row['peak_memory_mib']:.0f} MiB"]
                rows.append(cells)
            head = ["", "times SB3", "times PureJaxRL", "steps/s", "peak memory"]
            made[what] = markdown_table(head, rows)
    if "start" in found:
        rows = []
        for key, label in (
            ("seconds", "from the command to the summary, s"),
            ("seconds_to_095", "from the command to 95 % success, s"),
            ("training_seconds", "training alone, s"),
            ("success_after", "success after"),
        ):
            values = [row[key] for row in found["start"]["rows"]]
            rows.append([label, "-" if None in values else ranged(values, 3 if key == "success_after" else 1)])
        made["start"] = markdown_table(["`python scripts/sppo_cartpole.py`", "median (range)"], rows)
    if "scale" in found:
        by = {(r["what"], r["value"], r["kernels"]): r for r in found["scale"]["rows"]}
        rows = [
            [what, f"{value:,}"]
            + [f"{by[what, value, k]['steps_per_second']:,.0f}" for k in ("numba", "torch")]
            + [f"{by[what, value, k]['peak_memory_mib']:.0f} MiB" for k in ("numba", "torch")]
            for what, values in SCALE.items()
            for value in values
            if (what, value, "numba") in by
        ]
        head = ["varied", "value", "steps/s, numba", "steps/s, torch", "memory, numba", "memory, torch"]
        made["scale"] = markdown_table(head, rows)
    if "engines" in found:
        head = ["task", "B", "engine", "alone", "rollout", "rollout / alone", "SyncVectorEnv", "alone / Sync"]
        rows = []
        for env_id, row in found["engines"]["rows"].items():
            bare, roll, sync = (f"{statistics.median(row[k]):,.0f}" for k in ("bare", "rollout", "sync"))
            ratios = (f"{row['rollout_to_bare']:.2f}", f"{row['bare_to_sync']:.1f}")
            rows.append([env_id, str(row["num_envs"]), row["engine"], bare, roll, ratios[0], sync, ratios[1]])
        made["engines"] = markdown_table(head, rows)
    return made


def insert(page: Path, made: dict[str, str]) -> None:
    """Replace what is between `<!-- speed: NAME -->` and `<!-- end -->` in a page by the table NAME."""
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        before, mark, rest = text.partition(f"<!-- speed: {name} -->\n")
        if mark:
            text = before + mark + table + "\n" + rest[rest.index("<!-- end -->") :]
    page.write_text(text, encoding="utf-8")


def draw_scale(found: dict[str, Any], out: Path) -> None:
    """Speed and memory against horizon, batch and width."""
    extras.require("plots", "matplotlib", wanted_by="--what tables")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = {
        "horizon": "horizon, steps (Pendulum, B = 4)",
        "batch": "B, episodes per batch",
        "width": "width of each layer",
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex="col")
    for column, (what, label) in enumerate(labels.items()):
        for row, (key, name) in enumerate(
            (("steps_per_second", "steps per second"), ("peak_memory_mib", "memory, MiB"))
        ):
            for kernels, color in (("numba", "#4e79a7"), ("torch", "#e15759")):
                rows = [r for r in found["rows"] if r["what"] == what and r["kernels"] == kernels]
                axes[row, column].loglog(
                    [r["value"] for r in rows], [r[key] for r in rows], "o-", color=color, label=f"--kernels {kernels}"
                )
            axes[row, column].grid(alpha=0.3, which="both")
            if column == 0:
                axes[row, column].set_ylabel(name)
        axes[1, column].set_xlabel(label)
    axes[0, 0].legend()
    figure.suptitle("sppo_cartpole.py: cost per step stays or falls with horizon and batch")
    figure.savefig(out, dpi=130, metadata={"Description": "python scripts/speed.py --what tables"})
    plt.close(figure)


def main(args: Args) -> None:
    if args.worker:
        print(json.dumps(measure_sb3(args.sb3_timesteps)))
        return
    out = Path(args.out)
    found = json.loads(out.read_text()) if out.is_file() else {}
    if args.what == "tables":
        for page in ("README.md", "docs/speed.md"):
            insert(ROOT / page, tables(found))
        if "scale" in found:
            draw_scale(found["scale"], ROOT / "docs" / "figures" / "speed_scale.png")
        return
    measures = {"training": compare, "processes": compare, "start": start, "scale": scale, "engines": measure_engines}
    section = measures[args.what](args)
    found[args.what] = {**section, "rounds": args.rounds, "cores": cores(), **runs.versions()}
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(out, found)
    print(f"\n{tables(found)[args.what]}\n\nwritten to {out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
