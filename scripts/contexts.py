"""Show how difficult a task's contexts are for a policy: the success rates from many initial states.

A critic that sees only the initial state has something to learn if these rates differ. How much is printed as one number:
the share of the variance of the outcomes that the initial state explains. Each row of the picture is a task.
The left side shows how the rates are distributed. The right side shows from which initial states success is likely.

    python scripts/contexts.py --out docs/contexts.png                        # the context tasks, their starting policies
    python scripts/contexts.py --env-ids sppo/PrecisionCartPole-v0 --policy runs/<run>/checkpoints/<update>
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from tqdm import tqdm

import sppo_envs
from sppo_control import cli, errors, extras, limits
from sppo_control.outputs import File
from sppo_control.rollout import success_by_context
from sppo_control.starts import shipped_policy, starting_policy

FORMATS = (".png", ".svg", ".pdf")


@dataclass
class Args:
    env_ids: tuple[str, ...] = ("sppo/ContextCartPole-v0", "sppo/ContextPendulum-v0")
    """tasks of this package or of yours"""
    policy: str | None = None
    """a policy file or checkpoint that fits all of the tasks; None means each task's starting policy"""
    success_return: float | None = None
    """for tasks without a success rule: an episode whose return reaches this number is a success"""
    contexts: int = 300
    """number of initial states"""
    episodes: int = 64
    """episodes from each initial state"""
    seed: int = 1
    """seed of initial states and actions"""
    out: Annotated[Path, File(*FORMATS)] = Path("contexts.png")
    """picture to write; its ending decides the format (.png, .svg, .pdf)"""

    def __post_init__(self) -> None:
        if not all(self.env_ids or [""]):
            raise ValueError("--env-ids takes one task or more, got none")
        limits.check_limits(self)
        limits.check_memory({f"--episodes {self.episodes}": self.episodes * limits.EPISODE})


def share_of_the_start(rate: np.ndarray, episodes: int) -> float:
    """The share of the variance of the outcome R that the initial state explains: Var(p(s_0)) / (p (1 - p)).

    It is the largest explained variance that any critic of s_0 can have. 0 means that V(s_0) is a constant. The rates are
    measured, so their own sampling noise, the mean of p (1 - p) / (n - 1), is taken out.

    Args:
        rate: success rates of the initial states, (contexts,).
        episodes: n, episodes behind each rate.

    Returns:
        From 0 to 1; NaN where it cannot be told: one episode per state, one state, or all outcomes equal.
    """
    mean = rate.mean()
    if episodes < 2 or len(rate) < 2 or not 0 < mean < 1:
        return float("nan")
    between = rate.var(ddof=1) - (rate * (1 - rate)).mean() / (episodes - 1)
    return float(np.clip(between / (mean * (1 - mean)), 0, 1))


def axes_of(env_id: str, obs_dim: int) -> tuple[sppo_envs.Axis, ...]:
    """The axes of a task's picture: the task's own, else its first two observations, or its only one."""
    task = sppo_envs.task(env_id)
    if task is not None and task.axes:
        return task.axes
    return tuple(sppo_envs.Axis(f"observation {i}", i) for i in range(min(2, obs_dim)))


def main(args: Args) -> None:
    extras.require("plots", "matplotlib", wanted_by="scripts/contexts.py")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # ---- refuse all that can be refused, before the long work
    ready = []
    for env_id in args.env_ids:
        envs = sppo_envs.make_task(env_id, args.episodes, args.success_return)
        start = shipped_policy(env_id)
        if args.policy is None and (start is None or not start.is_file()):
            raise errors.UserError(
                f"{env_id} has no starting policy; make one with scripts/pretrain.py, or give --policy"
            )
        ready.append((env_id, envs, starting_policy(envs, env_id, args.policy, False, (64, 64))))

    figure, rows = plt.subplots(
        len(ready), 2, figsize=(9, 3.2 * len(ready)), dpi=150, layout="constrained", squeeze=False
    )
    for (env_id, envs, policy), (left, right) in zip(ready, rows, strict=True):
        rng = np.random.default_rng(args.seed)
        parts = [success_by_context(envs, policy, 1, rng) for _ in tqdm(range(args.contexts), desc=env_id)]
        envs.close()
        obs, rate = (torch.cat(x).numpy() for x in zip(*parts, strict=True))
        low, high = (rate < 0.2).mean(), (rate > 0.8).mean()
        share = share_of_the_start(rate, args.episodes)
        print(f"{env_id}: mean {rate.mean():.3f}; {low:.0%} of contexts below 0.2, {high:.0%} above 0.8")
        print(f"    the start explains {share:.0%} of the variance of R: near 0%, V(s_0) is no more than the mean of R")

        left.hist(rate, bins=np.linspace(0, 1, 21), color="C0")
        left.set(
            title=f"{env_id}\n{low:.0%} below 0.2, {high:.0%} above 0.8",
            xlabel=f"success rate over {args.episodes} episodes", ylabel=f"of {args.contexts} contexts",
        )  # fmt: skip
        axes = axes_of(env_id, obs.shape[1])
        x, y = axes[0].values(obs), axes[1].values(obs) if len(axes) == 2 else rate
        dots = right.scatter(x, y, c=rate, cmap="viridis", vmin=0, vmax=1, s=14, edgecolor="0.4", linewidth=0.3)
        right.set(
            title="where they are", xlabel=axes[0].name, ylabel=axes[1].name if len(axes) == 2 else "success rate"
        )
        figure.colorbar(dots, ax=right, label="success rate")
    figure.savefig(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
