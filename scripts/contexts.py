"""Show how difficult a task's contexts are for a policy: success over many episodes from each of many initial states.

A critic that sees the initial state only has something to learn where these rates differ. Each row of the picture is a
task: on the left how the rates are spread, on the right where in the space of initial states success is likely.

    pip install -c constraints.txt -e '.[plots]'
    python scripts/contexts.py --out docs/contexts.png                        # the context tasks, shipped policies
    python scripts/contexts.py --env-ids sppo/PrecisionCartPole-v0 --policy runs/<run>/checkpoints/<update>
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

import sppo_envs
from sppo_control.policies import starting_policy
from sppo_control.rollout import success_by_context

AXES = {
    "sppo/PrecisionCartPole-v0": (0, 1, "position (m)", "velocity (m/s)"),
    "sppo/ContextCartPole-v0": (0, 1, "position (m)", "velocity (m/s)"),
    "sppo/SparsePendulum-v0": (None, 2, "angle from upright (rad)", "angular velocity (rad/s)"),
    "sppo/ContextPendulum-v0": (None, 2, "angle from upright (rad)", "angular velocity (rad/s)"),
}
"""Which two observations the picture shows; None is the angle of (cos, sin). Other tasks: the first two."""


@dataclass
class Args:
    env_ids: tuple[str, ...] = ("sppo/ContextCartPole-v0", "sppo/ContextPendulum-v0")
    """tasks of this package"""
    policy: str | None = None
    """a policy file or checkpoint that fits all of them; None takes each task's shipped one"""
    contexts: int = 300
    """initial states"""
    episodes: int = 64
    """from each"""
    seed: int = 1
    """of initial states and actions"""
    out: Path = Path("contexts.png")
    """picture to write; the ending decides the format (.png, .svg, .pdf)"""


def main(args: Args) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        sys.exit("matplotlib is missing: pip install -c constraints.txt -e '.[plots]'")
    figure, rows = plt.subplots(
        len(args.env_ids), 2, figsize=(9, 3.2 * len(args.env_ids)), dpi=150, layout="constrained", squeeze=False
    )
    for env_id, (left, right) in zip(args.env_ids, rows, strict=True):
        envs = sppo_envs.make_task(env_id, args.episodes)
        policy = starting_policy(envs, env_id, args.policy, False, (64, 64))
        rng = np.random.default_rng(args.seed)
        parts = [success_by_context(envs, policy, 1, rng) for _ in tqdm(range(args.contexts), desc=env_id)]
        obs, rate = (torch.cat(x).numpy() for x in zip(*parts, strict=True))
        low, high = (rate < 0.2).mean(), (rate > 0.8).mean()
        print(f"{env_id}: mean {rate.mean():.3f}; {low:.0%} of contexts below 0.2, {high:.0%} above 0.8")

        left.hist(rate, bins=np.linspace(0, 1, 21), color="C0")
        left.set(
            title=f"{env_id}\n{low:.0%} below 0.2, {high:.0%} above 0.8",
            xlabel=f"success rate over {args.episodes} episodes", ylabel=f"of {args.contexts} contexts",
        )  # fmt: skip
        i, j, x_name, y_name = AXES.get(env_id, (0, 1, "observation 0", "observation 1"))
        x = np.arctan2(obs[:, 1], obs[:, 0]) if i is None else obs[:, i]
        dots = right.scatter(x, obs[:, j], c=rate, cmap="viridis", vmin=0, vmax=1, s=14, edgecolor="0.4", linewidth=0.3)
        right.set(title="where they lie", xlabel=x_name, ylabel=y_name)
        figure.colorbar(dots, ax=right, label="success rate")
    figure.savefig(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
