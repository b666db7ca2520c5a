"""Draw the explanatory pictures of the docs, which need no results of runs.

    pip install -c constraints.txt -e '.[plots]'
    python scripts/drawings.py                     # all of them, into docs/figures

--what episode: one episode under token-level PPO and under SPPO, with the value and the advantage of each step.

--what bandit: the two views of one response: a decision process with a choice per token, and a bandit with one choice.

--what rooms: the modules of this project and their imports, which are read from the code. Below them is the path of one
batch from its initial states to the checkpoint.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from sppo_control import cli, extras
from sppo_control.outputs import Folder

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Args:
    what: Literal["all", "episode", "bandit", "rooms"] = "all"
    """which picture; the text above describes them"""
    out: Annotated[Path, Folder()] = ROOT / "docs" / "figures"
    """folder to write to"""


# ------------------------------------------------------------------------------------------------ one episode
def draw_episode(plt: Any) -> Any:
    """A successful episode of ten steps: V and A under PPO (above) and under SPPO (below)."""
    steps = np.arange(10)
    value = np.array([0.4, 0.4, 0.42, 0.45, 0.44, 0.5, 0.58, 0.72, 0.9, 0.98])  # invented: it knows only near the end
    figure, rows = plt.subplots(2, 1, figsize=(8, 5.4), dpi=150, layout="constrained", sharex=True)
    for axes, v, title in (
        (rows[0], value, "token-level PPO: one action per step.  A_t = R - V(s_t)"),
        (rows[1], value[:1], "SPPO: the whole episode is one action.  A = R - V(s_0)"),
    ):
        level = v if len(v) > 1 else np.repeat(v, 10)
        axes.axhline(1, color="0.3", linewidth=1)
        axes.text(9.45, 1.03, "R = 1", ha="right", va="bottom", color="0.3")
        axes.bar(steps, 1 - level, bottom=level, width=0.5, color="#2a9d4a", alpha=0.35)
        axes.plot(steps[: len(v)], v, "o-", color="#d1495b", markersize=7, label="V, what the critic says")
        axes.bar([0], [0], color="#2a9d4a", alpha=0.35, label="A, the advantage of the step")
        if len(v) == 1:
            axes.plot([0, 9.25], [v[0], v[0]], ":", color="#d1495b", linewidth=1)
        for t, low in zip(steps, level, strict=True):
            inside = 1 - low > 0.15
            axes.text(
                t, (1 + low) / 2 if inside else low - 0.09, f"{1 - low:.2f}", ha="center", va="center", fontsize=8
            )
        axes.set(title=title, ylim=(0, 1.18), xlim=(-0.6, 9.6), ylabel="probability of success")
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].legend(frameon=False, loc="lower left", ncols=2, fontsize=9)
    rows[1].annotate(
        "the critic reads s_0 only", (0, 0.4), (0.6, 0.14), arrowprops={"arrowstyle": "->", "color": "0.3"}
    )
    rows[1].set(xticks=steps, xticklabels=[f"s_{t}" for t in steps], xlabel="step of the episode (token of a response)")
    return figure


# ------------------------------------------------------------------------------------------ two views of a response
TOKENS = ("7", "x6=", "42", "<end>")
"""A response of four tokens to the prompt "What is 7 x 6?", as an example."""


def draw_bandit(plt: Any) -> Any:
    """Above, the token-level MDP: a state, a value and an advantage per token. Below, the bandit: one of each."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    critic, gain, ink = "#d1495b", "#2a9d4a", "0.3"
    figure, rows = plt.subplots(2, 1, figsize=(9, 6), dpi=150, layout="constrained")
    n, gap = len(TOKENS), 2.0

    def box(axes: Any, x: float, y: float, width: float, text: str, color: str, face: str = "white") -> None:
        style = "round,pad=0.06"
        axes.add_patch(
            FancyBboxPatch((x - width / 2, y - 0.22), width, 0.44, boxstyle=style, fc=face, ec=color, zorder=3)
        )
        axes.text(x, y, text, ha="center", va="center", fontsize=10, zorder=4)

    def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str, **more: Any) -> None:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=color, zorder=2, **more))

    for axes, title in (
        (rows[0], "token-level MDP (PPO, gamma = lambda = 1): a state, a value and an advantage per token"),
        (rows[1], "sequence-level bandit (SPPO): one context, one action, one outcome"),
    ):
        whole = axes is rows[1]
        states = [0] if whole else range(n)
        for t in states:
            box(axes, t * gap, 1.0, 0.9, f"$s_{t}$", ink)
            box(axes, t * gap, 0.0, 0.9, f"$V(s_{t})$", critic, "#fbeced")
            arrow(axes, (t * gap, 0.72), (t * gap, 0.3), critic)
        for t, token in enumerate(TOKENS):
            x = (t + 0.5) * gap
            if not whole:
                arrow(axes, (t * gap + 0.53, 1.0), ((t + 1) * gap - 0.53, 1.0), ink)
            axes.text(x, 1.12, f"$a_{t}$", ha="center", va="bottom", color=ink, fontsize=10)
            axes.text(x, 1.42, token, ha="center", va="bottom", family="monospace", fontsize=11, weight="bold")
            if not whole:
                axes.text(x, 0.62, f"$A_{t} = R - V(s_{t})$", ha="center", va="center", color=gain, fontsize=8.5)
        if whole:
            corner, width = (0.5 * gap - 0.3, 1.16), (n - 1) * gap + 0.6
            style = "round,pad=0.08"
            axes.add_patch(FancyBboxPatch(corner, width, 0.58, boxstyle=style, fc="#eef6ef", ec=gain, zorder=0))
            arrow(axes, (0.53, 1.0), (n * gap - 0.53, 1.0), gain, linewidth=3)
            axes.text(
                n * gap / 2, 0.62, "the whole response is one action", ha="center", va="center", color=ink, fontsize=10
            )
            words = "$A = R - V(s_0)$, the same for each of its tokens"
            axes.text(n * gap / 2, 0.22, words, ha="center", va="center", color=gain, fontsize=11)
        box(axes, n * gap, 1.0, 0.9, "$R$", gain, "#e6f4ea")
        axes.text(n * gap, 0.62, "1: right\n0: wrong", ha="center", va="top", fontsize=9, color=ink)
        axes.text(0, 1.42, "What is\n7 x 6?", ha="center", va="bottom", family="monospace", fontsize=9, weight="bold")
        axes.set(xlim=(-0.8, n * gap + 0.8), ylim=(-0.4, 1.95), title=title)
        axes.axis("off")
    return figure


# ---------------------------------------------------------------------------------------------------- the rooms
def modules() -> dict[str, list[Path]]:
    """Each module or package of the project (core, runs, llm, ..., sppo_envs), with its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "sppo_control").rglob("*.py")):
        found.setdefault(path.relative_to(ROOT / "sppo_control").with_suffix("").parts[0], []).append(path)
    return {**found, "sppo_envs": sorted((ROOT / "envs" / "sppo_envs").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules and packages of this project that a file imports, with their names in `modules`."""
    top = ROOT / "envs" if ROOT / "envs" in path.parents else ROOT
    inside = path.relative_to(top).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: Iterable[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            if parts[0] == "sppo_envs":
                found.add("sppo_envs")
            elif parts[0] == "sppo_control" and len(parts) > 1:
                found.add(parts[1])
    return found


PLACES = {  # name: x, y of the middle of its box; arrows of imports go to the left, from scripts to equations
    "core": (0.95, 7.0), "errors": (0.95, 6.45), "streams": (0.95, 5.9), "events": (0.95, 5.35), "extras": (0.95, 4.8),
    "markdown": (0.95, 4.25), "tracking": (3.0, 7.55), "commands": (0.95, 7.55), "hub": (5.05, 4.5), "videos": (8.6, 1.55),
    "tracker": (5.05, 6.3), "watch": (3.0, 5.9),
    "outcomes": (3.0, 7.0), "checkpoints": (3.0, 6.3), "outputs": (3.0, 5.4), "limits": (3.0, 4.5), "cli": (5.05, 5.4),
    "runs": (5.05, 7.0),
    "networks": (5.05, 3.2), "compiled": (3.0, 3.2), "kernels": (3.0, 2.4), "policies": (5.05, 2.3), "spaces": (5.05, 1.15),
    "arguments": (7.2, 3.55),
    "rollout": (7.2, 2.75), "starts": (7.2, 1.95), "demonstrations": (7.2, 1.15), "sppo_envs": (3.0, 1.15),
    "llm": (7.2, 7.0), "study": (7.2, 4.95), "conformance": (7.2, 5.95), "course": (9.25, 5.95),
    "scripts/*_llm.py": (10.4, 7.0), "scripts/report.py, ...": (10.4, 4.95), "scripts/*_cartpole.py": (10.4, 3.0),
    "scripts/pretrain.py, ...": (10.4, 1.5),
}  # fmt: skip
ROOMS = {  # title: colour, corner, width, height
    "trunk": ("#e8eef7", (0.1, 3.98), 5.85, 3.47),
    "language models": ("#f3e9f7", (6.3, 6.55), 1.85, 0.9),
    "conformance kit": ("#eef2d8", (6.3, 5.5), 1.85, 0.9),
    "study": ("#f7e9e9", (6.3, 4.5), 1.85, 0.9),
    "course": ("#f4efe4", (8.35, 5.5), 1.85, 0.9),
    "control half": ("#e9f5ec", (2.1, 0.75), 6.05, 3.12),
    "tasks": ("#fdf1dd", (2.15, 0.8), 1.75, 0.9),
}
SCRIPTS = {
    "scripts/*_llm.py": ("sppo_llm", "ppo_llm", "grpo_llm", "rloo_llm"),
    "scripts/report.py, ...": ("report", "benchmark", "plot"),
    "scripts/*_cartpole.py": ("sppo_cartpole", "ppo_cartpole", "grpo_cartpole", "rloo_cartpole", "remax_cartpole"),
    "scripts/pretrain.py, ...": ("pretrain", "evaluate", "contexts"),
}
BATCH = (
    ("s_0, R", "sppo_envs", "B episodes begin\nand end"),
    ("Episodes", "rollout.py", "obs, actions, logp,\nmask, outcome"),
    ("A = R - V(s_0)", "core.py, eq. 1", "one number\nper episode"),
    ("policy step", "core.py, eq. 3", "clipped surrogate,\nminibatches"),
    ("critic step", "core.py, eq. 2", "cross-entropy of\nV(s_0) and R"),
    ("curves", "runs.py", "TensorBoard,\nprogress bar"),
    ("checkpoint", "checkpoints.py", "weights, optimisers,\ncounters"),
)
"""The path of one batch. For each step: its name, its file, and what it does or contains."""


def arrows() -> dict[str, set[str]]:
    """Which module imports which. An import that follows from others is omitted: a to c, if a to b and b to c."""
    direct = {name: set().union(*(imports(path) for path in paths)) - {name} for name, paths in modules().items()}
    for name, files in SCRIPTS.items():
        direct[name] = set().union(*(imports(ROOT / "scripts" / f"{file}.py") for file in files))
    direct = {
        name: {other for other in targets if other in PLACES} for name, targets in direct.items() if name in PLACES
    }

    def reach(name: str) -> set[str]:
        return set().union(*(direct[other] | reach(other) for other in direct[name])) if direct[name] else set()

    return {
        name: {t for t in targets if all(t not in direct[o] | reach(o) for o in targets)}
        for name, targets in direct.items()
    }


def draw_rooms(plt: Any) -> Any:
    """Boxes are files or packages. An arrow goes from the importing one to the imported one."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    figure, (axes, path) = plt.subplots(
        2, 1, figsize=(12, 9.2), dpi=130, layout="constrained", height_ratios=[7.4, 1.8]
    )
    for title, (color, corner, width, height) in ROOMS.items():
        axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", color=color, zorder=0))
        axes.text(corner[0] + 0.1, corner[1] + height - 0.03, title, va="top", fontsize=9, color="0.35", style="italic")
    for name, targets in arrows().items():
        x, y = PLACES[name]
        half = 1.2 if "/" in name else 0.76
        color = "#b07aa1" if "llm" in name else "#4e79a7" if y > 4 else "#59a14f"
        label = (
            name
            if "/" in name
            else f"{name}/"
            if name in ("llm", "study", "conformance", "course", "sppo_envs")
            else f"{name}.py"
        )
        box = FancyBboxPatch(
            (x - half, y - 0.2), 2 * half, 0.4, boxstyle="round,pad=0.04", fc="white", ec="0.3", zorder=3
        )
        axes.add_patch(box)
        axes.text(x, y, label, ha="center", va="center", fontsize=9, zorder=4, family="monospace")
        for other in sorted(targets):  # in one order, so that the file is the same each time
            c, d = PLACES[other]
            if c < x - 0.1:
                start, end, bend = (x - half - 0.05, y), (c + 0.82, d), 0.06 if abs(y - d) > 0.1 else 0.0
            else:
                up = d > y
                start, end, bend = (x, y + (0.25 if up else -0.25)), (c, d - (0.25 if up else -0.25)), 0.0
            style: dict[str, Any] = {
                "arrowstyle": "-|>",
                "mutation_scale": 9,
                "linewidth": 1,
                "alpha": 0.85,
                "zorder": 2,
            }
            axes.add_patch(FancyArrowPatch(start, end, color=color, connectionstyle=f"arc3,rad={bend}", **style))
    axes.set(xlim=(0, 12), ylim=(0.6, 7.6), title="who imports whom (an arrow that follows from others is left out)")
    axes.axis("off")
    for i, (what, where, words) in enumerate(BATCH):
        box = FancyBboxPatch((i * 1.72 + 0.05, 0.35), 1.3, 0.5, boxstyle="round,pad=0.04", fc="#fbf7e6", ec="0.3")
        path.add_patch(box)
        path.text(i * 1.72 + 0.7, 0.6, what, ha="center", va="center", fontsize=9.5, weight="bold")
        path.text(i * 1.72 + 0.7, 1.02, where, ha="center", va="bottom", fontsize=8.5, family="monospace")
        path.text(i * 1.72 + 0.7, 0.22, words, ha="center", va="top", fontsize=8.5, color="0.3")
        if i:
            ends = (i * 1.72 - 0.3, 0.6), (i * 1.72 - 0.02, 0.6)
            path.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=12, color="0.3"))
    path.set(xlim=(0, 12), ylim=(-0.25, 1.35), title="the path of one batch, from initial states to checkpoint")
    path.axis("off")
    return figure


DRAWINGS = {
    "episode": ("one_episode", draw_episode),
    "bandit": ("mdp_bandit", draw_bandit),
    "rooms": ("rooms", draw_rooms),
}


def main(args: Args) -> None:
    extras.require("plots", "matplotlib", wanted_by="scripts/drawings.py")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    args.out.mkdir(parents=True, exist_ok=True)
    for name, (file, draw) in DRAWINGS.items():
        if args.what in ("all", name):
            figure = draw(plt)
            figure.savefig(args.out / f"{file}.png", metadata={"Software": None})
            plt.close(figure)
            print(f"wrote {args.out / file}.png")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
