"""Look into the critics of finished runs: what does V know, and when does it know it?

    python scripts/probe.py --what tail --runs runs/<ppo run> runs/<sppo run> --out results/tail.json
    python scripts/probe.py --what calibration --runs runs/benchmark --updates 10 40 --out results/calibration.json
    python scripts/probe.py --commands results/commands/probes.toml         # several such commands from a TOML file

`tail`: V along whole episodes, at 50 points from the first action to the last, separately for successes and failures.
PPO's critic sees every state s_t. SPPO's critic sees only s_0, so its V is one number per episode. `auc` is the probability
that V of a random success is greater than V of a random failure. Ties count half, so 0.5 means that V cannot tell them
apart. The paper claims that a critic at every token can do so only near the end (Wang et al., arXiv 2604.08865, figures 1
and 9).

`calibration`: V(s_0) of new contexts against the success rate over many episodes from each of them (figure 7). A run whose
critic was trained on another window, or for longer or earlier, has that in its name: "sppo, critic-window=16".

--runs takes run folders, and folders in which to search for runs. A search leaves out runs without a critic (GRPO, RLOO,
ReMax). Policy and critic are from the same checkpoint, and the output names it. Equal arguments give equal episodes. The
script needs the extra `study`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

import sppo_cartpole
import sppo_envs
from evaluate import check_task
from sppo_control import checkpoints, cli, core, errors, limits, runs
from sppo_control.networks import Critic
from sppo_control.outcomes import correlation, ranks
from sppo_control.outputs import File
from sppo_control.policies import Policy, load_policy
from sppo_control.rollout import rollout, success_by_context

with cli.one_line_errors():
    from sppo_control.study import variants

POINTS = 50
"""K, the number of points of an episode's progress, from 0 (first action) to 1 (last action)."""
CRITICS = ("sppo_cartpole.py", "ppo_cartpole.py")
"""Scripts whose runs have a critic of states."""
SCHEDULE = {
    field.name: field.default
    for field in dataclasses.fields(sppo_cartpole.Args)
    if field.name in ("critic_steps", "critic_batch_size", "critic_window", "critic_warmup_batches")
}
"""How long and on what a critic is trained, with the defaults. Runs that differ in it must not be mixed up."""
FloatArray = npt.NDArray[np.float64]


@dataclass
class Args:
    what: Literal["tail", "calibration"]
    """V along episodes, or V(s_0) against success rates"""
    runs: tuple[Path, ...]
    """run folders, and folders in which to search for runs"""
    out: Annotated[Path, File(".json", new_folder=True)]
    """JSON file to write"""
    update: int | None = None
    """tail: take the newest checkpoint of at most this many updates; None means the newest of all"""
    updates: tuple[int, ...] = ()
    """calibration: the same, for one or several numbers; without any, the newest of all"""
    env_id: str | None = None
    """only runs of this task"""
    seeds: tuple[int, ...] = ()
    """only runs of these seeds; without any, all runs"""
    episodes: int | None = None
    """tail: episodes per run, None means 256; calibration: episodes per context, None means 64"""
    contexts: int = 200
    """calibration: contexts per checkpoint"""
    seed: int = 1
    """seed of contexts and actions"""

    def __post_init__(self) -> None:
        self.episodes = {"tail": 256, "calibration": 64}[self.what] if self.episodes is None else self.episodes
        if self.updates if self.what == "tail" else self.update is not None:
            raise ValueError("--update belongs to --what tail, --updates to --what calibration")
        if not self.runs:
            raise ValueError("--runs takes one folder or more, got none")
        limits.check_limits(self)
        at_a_time = min(self.num_episodes, 64) if self.what == "tail" else self.num_episodes
        limits.check_memory({f"--episodes {self.episodes}": at_a_time * limits.EPISODE})

    @property
    def num_episodes(self) -> int:
        """`episodes`. It is a number as soon as the arguments have been checked."""
        assert self.episodes is not None
        return self.episodes


@dataclass
class Probe:
    """A loaded checkpoint of a run: its policy, its critic and its environments."""

    algorithm: str
    setting: str
    """how its critic was trained, where that is not the default: "critic-warmup-batches=5"; else empty"""
    sigmoid: bool
    """whether V is the sigmoid of the critic's output"""
    about: dict[str, Any]
    """env_id, run, seed, update"""
    envs: Any
    policy: Policy
    critic: Critic

    def values(self, obs: Tensor) -> FloatArray:
        """V of observations, (..., D) -> (...), as in the run's advantage. Not every critic of PPO has a sigmoid."""
        with torch.no_grad():
            output = self.critic(obs)
            return (torch.sigmoid(output) if self.sigmoid else output).double().numpy()


def algorithm_of(config: dict[str, Any]) -> str:
    """A run's algorithm, as scripts/benchmark.py names it; empty if the run has no critic that this script knows."""
    variant = variants.of_run(config.get("script", ""), config["args"])
    return variant.name if variant and variant.script in CRITICS else ""


def setting_of(config: dict[str, Any]) -> str:
    """How long and on what a run's critic was trained, where it differs from its variant; written as for benchmark.py."""
    trained, variant = config["args"], variants.of_run(config.get("script", ""), config["args"])
    chosen = variant.flags if variant else ()
    return ",".join(
        f"{flag}={trained[name]}"
        for name, default in SCHEDULE.items()
        if (flag := name.replace("_", "-")) and f"--{flag}" not in chosen and trained.get(name, default) != default
    )


def find_runs(args: Args) -> dict[Path, dict[str, Any]]:
    """The run folders that --runs selects, each with the content of its config.json."""
    found: dict[Path, dict[str, Any]] = {}
    for path in args.runs:
        configs = {p.parent: checkpoints.read_config(p.parent) for p in sorted(path.rglob("config.json"))}
        if not configs:
            raise errors.UserError(f"there is no run in {path}: no config.json in it or below it")
        critics = {folder: config for folder, config in configs.items() if algorithm_of(config)}
        if path in configs.keys() - critics.keys():
            raise errors.UserError(f"{path} has no critic to look into: {configs[path].get('script')} trains none")
        if less := len(configs) - len(critics):
            print(f"note: {less} runs in {path} have no critic and are left out", file=sys.stderr)
        for folder, config in critics.items():
            trained = config["args"]
            check_task(folder / "config.json", trained)
            widths = trained.get("critic_hidden", [])
            sizes = cli.fits(widths, tuple[int, ...]) and all(1 <= width <= limits.WIDTH[1] for width in widths)
            if not cli.fits(trained.get("seed"), int) or not sizes:
                raise errors.FileError(
                    f'{folder / "config.json"}: "seed" or "critic_hidden" of "args" is of another type'
                )
            if args.env_id in (None, trained["env_id"]) and (not args.seeds or trained["seed"] in args.seeds):
                found[folder.resolve()] = config
    tasks = sorted({config["args"]["env_id"] for config in found.values()})
    if not tasks:
        raise errors.UserError("no run with a critic is left; look at --runs, --env-id and --seeds")
    if args.what == "tail" and len(tasks) > 1:
        raise errors.UserError(f"--what tail takes runs of one task, got {', '.join(tasks)}; choose one with --env-id")
    return found


def load(args: Args, stack: contextlib.ExitStack) -> list[Probe]:
    """All selected checkpoints; `stack` closes their environments."""
    probes, made = [], {}  # runs of the same task share environments
    for run, config in find_runs(args).items():
        trained = config["args"]
        task = {k: trained[k] for k in ("env_id", "success_return", "horizon", "engine") if trained.get(k) is not None}
        checkpoints.check_module(trained["env_id"], run, args.env_id)  # before make_task imports it
        if (key := str(task)) not in made:
            at_a_time = min(args.num_episodes, 64) if args.what == "tail" else args.num_episodes
            made[key] = sppo_envs.make_task(num_envs=at_a_time, **task)
            stack.callback(made[key].close)
        for folder in dict.fromkeys(checkpoints.newest(run, update) for update in args.updates or (args.update,)):
            policy = load_policy(folder / "policy.safetensors", made[key])
            critic = Critic(made[key].single_observation_space.shape[0], trained.get("critic_hidden", (64, 64)))
            state = checkpoints.read_checkpoint(folder, {"critic": critic}, ("update",))
            about = {"env_id": trained["env_id"], "run": run.name, "seed": trained["seed"], **state}
            sigmoid = trained.get("critic_loss", "bce") == "bce"  # SPPO has only this loss
            name = algorithm_of(config), setting_of(config)
            probes.append(Probe(*name, sigmoid, about, made[key], policy, critic))
    return probes


def tail(probe: Probe, args: Args, bar: Any) -> dict[str, Any]:
    """V along episodes of one checkpoint."""
    # `sees` is how many states of an episode the critic sees; None means all.
    rng, sees = np.random.default_rng(args.seed), None if probe.algorithm.startswith("ppo") else 1
    curves, outcomes = np.empty((0, POINTS)), np.empty(0, dtype=np.bool_)  # (episodes, K), (episodes,)
    while (missing := args.num_episodes - len(curves)) > 0:
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
    """V at T >= 1 steps -> V at K points of progress, with straight lines between steps."""
    return np.interp(np.linspace(0, 1, POINTS), np.linspace(0, 1, len(values)), values)


def spread(curves: FloatArray) -> dict[str, Any]:
    """Mean, 10th and 90th percentile over episodes, (n, K) -> (K,) each; NaN if there is no episode."""
    x, progress = curves if len(curves) else np.full((1, POINTS), np.nan), np.linspace(0, 1, POINTS)
    low, high = np.percentile(x, [10, 90], axis=0)
    return {"progress": progress, "mean": x.mean(0), "low": low, "high": high, "episodes": len(curves)}


def auc(successes: FloatArray, failures: FloatArray) -> FloatArray:
    """Probability that V of a success is greater than V of a failure at each point; (n, K) and (m, K) -> (K,).

    Ties count half.
    """
    if (n := len(successes)) == 0 or (m := len(failures)) == 0:
        return np.full(POINTS, np.nan)
    # Mann-Whitney: the rank of a success among all episodes says how many failures are below it.
    rank = np.stack([ranks(column) for column in np.concatenate([successes, failures]).T])  # (K, n + m)
    return (rank[:, :n].sum(1) - n * (n + 1) / 2) / (n * m)


def calibration(probe: Probe, args: Args, bar: Any) -> dict[str, Any]:
    """V(s_0) against success rates, for contexts of one checkpoint."""
    rng, parts = np.random.default_rng(args.seed), []
    for _ in range(args.contexts):  # one at a time, for the progress bar
        parts.append(success_by_context(probe.envs, probe.policy, 1, rng))
        bar.update()
    contexts, rates = (torch.cat(x) for x in zip(*parts, strict=True))
    v0, rate = probe.values(contexts), rates.double().numpy()  # (C,), (C,)
    # (V - R)^2 of a single outcome is (1 - V)^2 for a success and V^2 for a failure.
    brier = (rate * (1 - v0) ** 2 + (1 - rate) * v0**2).mean()
    ece = core.expected_calibration_error(torch.from_numpy(v0), torch.from_numpy(rate))
    name = ", ".join(filter(None, (probe.algorithm, probe.setting)))
    return {
        "algorithm": name, **probe.about, "contexts": args.contexts, "episodes": args.num_episodes,
        "v0": v0, "rate": rate, "pearson": correlation(v0, rate), "spearman": correlation(ranks(v0), ranks(rate)),
        "brier": float(brier), "ece": float(ece),
    }  # fmt: skip


def plain(x: Any) -> Any:
    """The same value for JSON: arrays become lists, and NaN becomes null."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray):
        return [plain(value) for value in x.tolist()]
    return None if x != x else x  # only NaN differs from itself


def main(args: Args) -> None:
    with contextlib.ExitStack() as stack:
        # Refuse all that can be refused, before the long work.
        probes = load(args, stack)
        measure, each = (tail, args.num_episodes) if args.what == "tail" else (calibration, args.contexts)
        found = []
        with tqdm(total=each * len(probes), unit="episode" if measure is tail else "context", desc=args.what) as bar:
            for probe in probes:
                bar.write(f"{probe.about['run']}: checkpoint of update {probe.about['update']}", file=sys.stderr)
                found.append(plain(measure(probe, args, bar)))
    content = {"env_id": probes[0].about["env_id"], "runs": found} if args.what == "tail" else {"rows": found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(args.out, {**content, **runs.versions()})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__, command_files=True)
