"""Why is V(s_0) coarse? Fit new critics to many episodes of one policy, which stands still, and see what helps.

For each run the policy of one checkpoint acts. New critics learn from 256 to 16,384 episodes of it, with few or many
updates, more units, or more inputs. All are compared with success rates of new contexts. This separates too few episodes,
too few updates, too small a network and inputs that are hard, and all of them from a policy that moves while its critic
learns.

    python scripts/critic_why.py --runs runs/critic_second_tuning/longer --env-id sppo/ContextPendulum-v0
    python scripts/critic_why.py                  # prints the table of results/critic_why.json again

The critics are trained as sppo_cartpole.py trains its own: same loss, optimiser, learning rate and batch.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import probe
import sppo_cartpole
from critic_control import mean, numbers
from sppo_control import checkpoints, cli, core, errors, limits, runs
from sppo_control.markdown import markdown_table
from sppo_control.networks import Adam, Critic, clip_grad_norm_
from sppo_control.outcomes import correlation, ranks
from sppo_control.outputs import File
from sppo_control.rollout import rollout, success_by_context

ROOT = Path(__file__).resolve().parents[1]
MEASURES = ("spearman", "best_spearman", "brier", "best_brier", "base", "share", "ece")
HEAD = (
    "critic",
    "episodes",
    "updates",
    "policies",
    "Spearman",
    "perfect V",
    "Brier",
    "perfect V",
    "base rate",
    "share",
    "ECE",
)
WIDE = (256, 256)
"""units of the wider critic"""
DEGREE = 4
"""of the products of observations that `products` adds"""
NEAREST = 64
"""nearest contexts whose mean outcome is the estimate without a network"""


@dataclass
class Args:
    runs: tuple[Path, ...] = ()
    """run folders of sppo_cartpole.py, and folders in which to search for them; without any, --out is read and printed"""
    out: Annotated[Path, File(".json")] = ROOT / "results" / "critic_why.json"
    """JSON file of the results"""
    env_id: str | None = None
    """only runs of this task"""
    update: int = 60
    """take the newest checkpoint of at most this many updates"""
    episodes: tuple[int, ...] = (256, 1024, 4096, 16384)
    """episodes that a critic learns from; multiples of 64"""
    updates: tuple[int, ...] = (240, 1200, 4800)
    """updates of a critic"""
    contexts: int = 200
    """new contexts on which all are compared, with 64 episodes from each"""
    seed: int = 1
    """of episodes, weights and batches"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        for name in ("episodes", "updates"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty; name one number or more")
        if 0 in self.updates:
            raise ValueError("--updates must be at least 1, got 0")
        if odd := [n for n in self.episodes if n % 64]:
            raise ValueError(f"--episodes must be multiples of 64, because so many run at a time; got {odd[0]}")
        limits.check_memory({f"--episodes {max(self.episodes)}": max(self.episodes) * 64})


def products(obs: Tensor, degree: int = DEGREE) -> Tensor:
    """All products of up to `degree` observations, (n, D) -> (n, C). Of cos and sin they are the harmonics of the angle."""
    columns = range(obs.shape[1])
    chosen = [c for d in range(1, degree + 1) for c in itertools.combinations_with_replacement(columns, d)]
    return torch.stack([obs[:, list(c)].prod(dim=1) for c in chosen], dim=1)


def fit(
    contexts: Tensor, outcomes: Tensor, new: Tensor, hidden: Sequence[int], updates: Sequence[int], seed: int
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Train a new critic as sppo_cartpole.py does; after each of `updates`, (number, V of the new contexts (C,)).

    Args:
        contexts: (n, D), scaled.
        outcomes: R, (n,).
        new: (C, D), scaled alike.
        hidden: layers of the critic.
        updates: when to look.
        seed: of weights and batches.
    """
    args, rng = sppo_cartpole.Args(), np.random.default_rng(seed)
    torch.manual_seed(seed)
    critic = Critic(contexts.shape[1], hidden)
    optimizer = Adam(critic.parameters(), lr=args.critic_learning_rate, eps=1e-5, fused=True)
    for update in range(1, max(updates) + 1):
        rows = torch.from_numpy(rng.integers(len(contexts), size=args.critic_batch_size))
        loss = core.bernoulli_value_loss(critic(contexts[rows]), outcomes[rows])
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(critic.parameters(), args.max_grad_norm)
        optimizer.step()
        if update in updates:
            with torch.no_grad():
                yield update, torch.sigmoid(critic(new)).double().numpy()


def nearest(contexts: Tensor, outcomes: Tensor, new: Tensor) -> np.ndarray[Any, Any]:
    """Mean outcome of the nearest contexts, at most `NEAREST`: an estimate that needs no training. (C,)"""
    found = torch.cdist(new, contexts).topk(min(NEAREST, len(contexts)), largest=False).indices
    return outcomes[found].mean(dim=1).double().numpy()


def measured(v0: np.ndarray[Any, Any], rate: Tensor, episodes: int) -> dict[str, float]:
    """Spearman, Brier, ECE and what a perfect V has; the names are those of MEASURES."""
    p = rate.double().numpy()
    row = {
        "rate": p, "episodes": episodes, "spearman": correlation(ranks(v0), ranks(p)),
        "brier": float((p * (1 - v0) ** 2 + (1 - p) * v0**2).mean()),
        "ece": float(core.expected_calibration_error(torch.from_numpy(v0), rate.double())),
    }  # fmt: skip
    found = numbers(row)
    return {name: found[name] for name in MEASURES}


def compare(one: probe.Probe, args: Args, bar: Any) -> list[dict[str, Any]]:
    """All critics for the policy of one checkpoint."""
    rng, scale = np.random.default_rng(args.seed), one.critic.obs_scale
    new, rate = success_by_context(one.envs, one.policy, args.contexts, rng)
    batches = [rollout(one.envs, one.policy, rng) for _ in range(max(args.episodes) // one.envs.num_envs)]
    contexts = torch.cat([b.context for b in batches]) * scale
    outcomes = torch.cat([b.outcome for b in batches])
    rows: list[dict[str, Any]] = []

    def add(name: str, episodes: int, updates: int, v0: np.ndarray[Any, Any]) -> None:
        about = {**one.about, "critic": name, "episodes": episodes, "updates": updates}
        rows.append(about | measured(v0, rate, one.envs.num_envs))

    usual, far = sppo_cartpole.Args().critic_hidden, new * scale
    add("the run's own", 0, 0, one.values(new))
    kinds = [("as in training", usual, n, contexts, far) for n in args.episodes]
    kinds += [("wide", WIDE, max(args.episodes), contexts, far)]
    kinds += [("products", usual, max(args.episodes), products(contexts), products(far))]
    for name, hidden, n, inputs, asked in kinds:
        for update, v0 in fit(inputs[:n], outcomes[:n], asked, hidden, args.updates, args.seed):
            add(name, n, update, v0)
        bar.update()
    for n in args.episodes:
        add("nearest", n, 0, nearest(contexts[:n], outcomes[:n], far))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the policies, as Markdown."""
    lines = []
    for cell in dict.fromkeys((row["critic"], row["episodes"], row["updates"]) for row in rows):
        mine = [row for row in rows if (row["critic"], row["episodes"], row["updates"]) == cell]
        name, episodes, updates = cell
        words = [name, f"{episodes:,}" if episodes else "-", f"{updates:,}" if updates else "-", str(len(mine))]
        lines.append([*words, *(f"{mean(mine, measure):.3f}" for measure in MEASURES)])
    return markdown_table(HEAD, lines)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that this script wrote.

    Raises:
        FileError: it is damaged or another script's.
    """
    rows = checkpoints.read_json(path).get("rows")
    try:
        good = bool(rows) and all(
            isinstance(row["critic"], str)
            and all(checkpoints.is_count(row[name]) for name in ("episodes", "updates", "seed"))
            and all(isinstance(row[name], float) for name in MEASURES)
            for row in rows  # type: ignore[union-attr]
        )
    except (KeyError, TypeError):
        good = False
    if not good:
        raise errors.FileError(f"{path} was not written by scripts/critic_why.py; --runs makes a new one")
    return rows  # type: ignore[return-value]


def main(args: Args) -> None:
    if args.runs:
        wanted = probe.Args(
            what="calibration", runs=args.runs, out=args.out, updates=(args.update,), env_id=args.env_id, seed=args.seed
        )
        with contextlib.ExitStack() as stack:
            probes = [one for one in probe.load(wanted, stack) if (one.algorithm, one.setting) == ("sppo", "")]
            if not probes:
                raise errors.UserError("--runs has no run of sppo_cartpole.py with the default critic")
            with tqdm(total=(len(args.episodes) + 2) * len(probes), unit="critic", desc="critic_why") as bar:
                rows = [row for one in probes for row in compare(one, args, bar)]
        checkpoints.write_json(args.out, {"env_id": probes[0].about["env_id"], "rows": rows, **runs.versions()})
    print(table(read(args.out)))


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
