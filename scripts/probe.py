"""Look inside the critics of finished runs: what does V know, and when does it know it?

    python scripts/probe.py --what tail --runs runs/<ppo run> runs/<sppo run> --out results/tail.json
    python scripts/probe.py --what calibration --runs runs/benchmark --updates 10 40 --out results/calibration.json

`tail`: V along whole episodes, successes and failures apart, at 50 points between the first action and the last. PPO's
critic sees every state s_t; SPPO's sees s_0 alone, so that its V is one number an episode. `auc` is the probability that
V of a random success exceeds V of a random failure, ties counting half (0.5: V cannot tell them apart). The paper's claim
(Wang et al., arXiv 2604.08865, figures 1 and 9): a critic of every token can only near the end.

`calibration`: V(s_0) of fresh contexts against the success rate over many episodes from each of them (figure 7).

--runs takes run folders, and folders to be searched for them; of what a search finds, the runs without a critic (GRPO,
RLOO, ReMax) are left out. Policy and critic are of one checkpoint, which is named. Equal arguments give equal episodes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

import sppo_envs
from sppo_control import checkpoints, cli, core, errors, runs
from sppo_control.networks import Critic
from sppo_control.policies import Policy, load_policy
from sppo_control.rollout import rollout, success_by_context

POINTS = 50
"""K, points of an episode's progress from 0 (first action) to 1 (last action)."""
FloatArray = npt.NDArray[np.float64]


@dataclass
class Args:
    what: Literal["tail", "calibration"]
    """V along episodes, or V(s_0) against success rates"""
    runs: tuple[Path, ...]
    """run folders, and folders to be searched for some"""
    out: Path
    """JSON file to write"""
    update: int | None = None
    """tail: take the newest checkpoint of at most so many updates; None is the newest of all"""
    updates: tuple[int, ...] = ()
    """calibration: the same, one or several; none is the newest of all"""
    env_id: str | None = None
    """only runs of this task"""
    seeds: tuple[int, ...] = ()
    """only runs of these seeds; none is all"""
    episodes: int | None = None
    """tail: of each run, None is 256; calibration: from each context, None is 64"""
    contexts: int = 200
    """calibration: of each checkpoint"""
    seed: int = 1
    """of contexts and actions"""

    def __post_init__(self) -> None:
        self.episodes = {"tail": 256, "calibration": 64}[self.what] if self.episodes is None else self.episodes
        if self.updates if self.what == "tail" else self.update is not None:
            raise ValueError("--update belongs to --what tail, --updates to --what calibration")
        for name, least in {"episodes": 1, "contexts": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


@dataclass
class Probe:
    """A checkpoint of a run, ready to act and to judge; `about`: env_id, run, seed, update."""

    algorithm: str
    about: dict[str, Any]
    envs: Any
    policy: Policy
    critic: Critic

    def values(self, obs: Tensor) -> FloatArray:
        """V of observations, (..., D) -> (...), as the run's advantage has it: PPO's plain critic knows no sigmoid."""
        with torch.no_grad():
            output = self.critic(obs)
            return (output if self.algorithm == "ppo" else torch.sigmoid(output)).double().numpy()


def algorithm_of(config: dict[str, Any]) -> str:
    """A run's algorithm, as scripts/benchmark.py names it; empty if it has no critic."""
    if config.get("script") == "sppo_cartpole.py":
        return "sppo" if config["args"].get("critic_steps", 0) > 0 else "sppo-paper"
    if config.get("script") == "ppo_cartpole.py":
        return "ppo-bce" if config["args"]["critic_loss"] == "bce" else "ppo"
    return ""


def find_runs(args: Args) -> dict[Path, dict[str, Any]]:
    """The run folders that --runs means, each with its config.json."""
    found: dict[Path, dict[str, Any]] = {}
    for path in args.runs:
        configs = {p.parent: checkpoints.read_json(p) for p in sorted(path.rglob("config.json"))}
        if not configs:
            raise errors.UserError(f"there is no run in {path}: no config.json in it or below it")
        critics = {folder: config for folder, config in configs.items() if algorithm_of(config)}
        if path in configs.keys() - critics.keys():
            raise errors.UserError(f"{path} has no critic to look into: {configs[path].get('script')} trains none")
        if less := len(configs) - len(critics):
            print(f"note: {less} runs in {path} have no critic and are left out", file=sys.stderr)
        for folder, config in critics.items():
            trained = config["args"]
            if args.env_id in (None, trained["env_id"]) and (not args.seeds or trained["seed"] in args.seeds):
                found[folder.resolve()] = config
    tasks = sorted({config["args"]["env_id"] for config in found.values()})
    if not tasks:
        raise errors.UserError("no run with a critic is left; look at --runs, --env-id and --seeds")
    if args.what == "tail" and len(tasks) > 1:
        raise errors.UserError(f"--what tail takes runs of one task, got {', '.join(tasks)}; choose one with --env-id")
    return found


def load(args: Args, stack: contextlib.ExitStack) -> list[Probe]:
    """All checkpoints that are asked for; `stack` closes their environments."""
    probes, made = [], {}  # runs of the same task share their environments
    for run, config in find_runs(args).items():
        trained = config["args"]
        task = {k: trained[k] for k in ("env_id", "success_return", "horizon", "engine") if trained.get(k) is not None}
        checkpoints.check_module(trained["env_id"], run, args.env_id)  # before make_task imports it
        if (key := str(task)) not in made:
            at_a_time = min(args.episodes, 64) if args.what == "tail" else args.episodes
            made[key] = sppo_envs.make_task(num_envs=at_a_time, **task)
            stack.callback(made[key].close)
        for folder in dict.fromkeys(checkpoints.newest(run, update) for update in args.updates or (args.update,)):
            policy = load_policy(folder / "policy.safetensors", made[key])
            critic = Critic(made[key].single_observation_space.shape[0], trained.get("critic_hidden", (64, 64)))
            state = checkpoints.read_checkpoint(folder, {"critic": critic}, ("update",))
            about = {"env_id": trained["env_id"], "run": run.name, "seed": trained["seed"], **state}
            probes.append(Probe(algorithm_of(config), about, made[key], policy, critic))
    return probes


def tail(probe: Probe, args: Args, bar: Any) -> dict[str, Any]:
    """V along the episodes of one checkpoint."""
    rng, sees = np.random.default_rng(args.seed), None if probe.algorithm.startswith("ppo") else 1  # states an episode
    curves, outcomes = np.empty((0, POINTS)), np.empty(0, dtype=np.bool_)  # (episodes, K), (episodes,)
    while (missing := args.episodes - len(curves)) > 0:
        episodes = rollout(probe.envs, probe.policy, rng)
        value = probe.values(episodes.obs[:missing, :sees])  # (B, T), or (B, 1) for s_0 alone
        real = zip(value, episodes.lengths.tolist(), strict=False)
        curves = np.concatenate([curves, [resample(v[:length]) for v, length in real]])
        outcomes = np.concatenate([outcomes, episodes.outcome[:missing].numpy() > 0.5])
        bar.update(len(value))
    won, lost = curves[outcomes], curves[~outcomes]
    about = {"algorithm": probe.algorithm.partition("-")[0], "variant": probe.algorithm, **probe.about}
    return {**about, "successes": spread(won), "failures": spread(lost), "auc": auc(won, lost)}


def resample(values: FloatArray) -> FloatArray:
    """V at T >= 1 steps -> V at K points of progress, straight lines between steps."""
    return np.interp(np.linspace(0, 1, POINTS), np.linspace(0, 1, len(values)), values)


def spread(curves: FloatArray) -> dict[str, Any]:
    """Mean, 10th and 90th percentile over episodes, (n, K) -> (K,) each; NaN where there is no episode."""
    x, progress = curves if len(curves) else np.full((1, POINTS), np.nan), np.linspace(0, 1, POINTS)
    low, high = np.percentile(x, [10, 90], axis=0)
    return {"progress": progress, "mean": x.mean(0), "low": low, "high": high, "episodes": len(curves)}


def auc(successes: FloatArray, failures: FloatArray) -> FloatArray:
    """Probability that V of a success exceeds V of a failure, ties half, at each point: (n, K) and (m, K) -> (K,)."""
    if (n := len(successes)) == 0 or (m := len(failures)) == 0:
        return np.full(POINTS, np.nan)
    # Mann and Whitney: the rank of a success among all says how many failures lie below it
    rank = np.stack([ranks(column) for column in np.concatenate([successes, failures]).T])  # (K, n + m)
    return (rank[:, :n].sum(1) - n * (n + 1) / 2) / (n * m)


def ranks(x: FloatArray) -> FloatArray:
    """1 for the smallest; equal numbers share the mean of their ranks; (n,) -> (n,)."""
    _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[index]


def correlation(x: FloatArray, y: FloatArray) -> float:
    """Pearson's; NaN where all of x or all of y is one number."""
    return np.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


def calibration(probe: Probe, args: Args, bar: Any) -> dict[str, Any]:
    """V(s_0) against the success rate of the contexts of one checkpoint."""
    rng, parts = np.random.default_rng(args.seed), []
    for _ in range(args.contexts):  # singly, for the progress bar
        parts.append(success_by_context(probe.envs, probe.policy, 1, rng))
        bar.update()
    contexts, rates = (torch.cat(x) for x in zip(*parts, strict=True))
    v0, rate = probe.values(contexts), rates.double().numpy()  # (C,), (C,)
    # (V - R)^2 of a single outcome is (1 - V)^2 in a success, V^2 in a failure
    brier = (rate * (1 - v0) ** 2 + (1 - rate) * v0**2).mean()
    ece = core.expected_calibration_error(torch.from_numpy(v0), torch.from_numpy(rate))
    return {
        "algorithm": probe.algorithm, **probe.about, "contexts": args.contexts, "episodes": args.episodes,
        "v0": v0, "rate": rate, "pearson": correlation(v0, rate), "spearman": correlation(ranks(v0), ranks(rate)),
        "brier": float(brier), "ece": float(ece),
    }  # fmt: skip


def plain(x: Any) -> Any:
    """JSON-ready: arrays become lists, NaN null."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray):
        return [plain(value) for value in x.tolist()]
    return None if x != x else x  # NaN alone differs from itself


def main(args: Args) -> None:
    with contextlib.ExitStack() as stack:
        # all that can be refused, before the long work
        probes = load(args, stack)
        with contextlib.suppress(OSError):
            args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.out.is_dir() or not (args.out.parent.is_dir() and os.access(args.out.parent, os.W_OK)):
            raise errors.UserError(f"cannot write {args.out}: name a file in a folder that is writable")

        measure, each = (tail, args.episodes) if args.what == "tail" else (calibration, args.contexts)
        found = []
        with tqdm(total=each * len(probes), unit="episode" if measure is tail else "context", desc=args.what) as bar:
            for probe in probes:
                bar.write(f"{probe.about['run']}: checkpoint of update {probe.about['update']}", file=sys.stderr)
                found.append(plain(measure(probe, args, bar)))
    content = {"env_id": probes[0].about["env_id"], "runs": found} if args.what == "tail" else {"rows": found}
    checkpoints.write_json(args.out, {**content, **runs.versions()})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
