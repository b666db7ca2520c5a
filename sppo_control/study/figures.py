"""The figures of scripts/report.py: what each one shows, which results it needs, and how it is drawn."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import EngFormatter, MaxNLocator

from sppo_control import core
from sppo_control.study.results import CRITIC, MEASURES, TAIL, Study, StudyRun, separable, short, span, stages
from sppo_control.study.statistics import band, interval, iqm, summary
from sppo_control.study.variants import VARIANTS, Look, in_order

Looks = dict[str, Look]
METHODS = ("sppo", "ppo", "grpo", "rloo", "reinforce", "remax")
LABELS = {"episodes": "episodes", "steps": "environment steps", "seconds": "seconds of training"}
LINES = (
    "Line: interquartile mean over seeds (n is in the titles). Band: its 95 % percentile bootstrap interval over seeds. "
    "Curves are moving means of 5 points, up to the end of the shortest run. Rollouts for baselines are counted too."
)
BARS = (
    "Marks: interquartile mean over seeds (n is at the left), with its 95 % percentile bootstrap interval over seeds."
)


# ------------------------------------------------------------------------------------------------------- panels
def count(arms: Iterable[Sequence[Any]]) -> str:
    """How many runs the arms have: "n = 3", or "n = 3 to 10"."""
    return f"n = {span(map(len, arms))}"


def panels(rows: int, columns: int, height: float = 1.9) -> tuple[Any, Any]:
    """A figure as wide as a README's column, and its axes (rows, columns)."""
    width = 8.0 if columns > 1 else 5.5
    return plt.subplots(rows, columns, figsize=(width, height * rows + 1.0), squeeze=False, layout="constrained")


def draw_curves(axes: Any, arms: dict[str, Sequence[StudyRun]], axis: str, looks: Looks) -> None:
    """One line with its band per algorithm, against "episodes", "steps" or "seconds"."""
    for i, (name, arm) in enumerate(arms.items()):
        grid, middle, low, high = band(arm, axis)
        look = looks[name]
        axes.plot(grid, middle, look.line, color=look.colour, linewidth=1.6, label=look.label, zorder=3 - 0.05 * i)
        axes.fill_between(grid, low, high, color=look.colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=LABELS[axis], ylim=(-0.03, 1.03), xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if axis != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def finish(figure: Any, columns: int = 4, free: Any = None) -> Any:
    """Add grids and one legend, above all panels or in a free panel."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        handles |= {
            label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True) if label not in handles
        }
    if free is not None:
        free.set_axis_off()
        labels = [textwrap.fill(label, 30) for label in handles]  # a text wider than the panel would be cut off
        free.legend(handles.values(), labels, loc="center left", frameon=False).set_in_layout(False)
    elif handles:
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def panel_per_task(tasks: dict[str, dict[str, Sequence[StudyRun]]], axis: str, looks: Looks, columns: int) -> Any:
    """One panel per task."""
    across = min(len(tasks), 3)
    figure, axes = panels(-(-len(tasks) // across), across)
    for at, (task, arms) in zip(axes.flat, tasks.items(), strict=False):
        draw_curves(at, arms, axis, looks)
        at.set_title(f"{short(task)}, {count(arms.values())}")
    for at in axes[:, 0]:
        at.set_ylabel("success rate")
    free = list(axes.flat[len(tasks) :])
    for at in free[1:]:
        at.remove()
    return finish(figure, columns, free[0] if free else None)


def fig8(tasks: dict[str, Any], looks: Looks) -> Any:
    """Success against episodes.

    Paper: SPPO matches or beats PPO on five tasks; on Hopper and MountainCar PPO stays near zero. Here: the same two
    algorithms with one set of hyper-parameters per task. Panels of context tasks are not in the paper.
    """
    return panel_per_task(tasks, "episodes", looks, 2)


def fig8_all(tasks: dict[str, Any], looks: Looks) -> Any:
    """Success against episodes, for every algorithm.

    The paper has no such figure for control. A group of GRPO counts as N episodes. ReMax's greedy episodes count too.
    """
    return panel_per_task(tasks, "episodes", looks, 3)


def context_pendulum(tasks: dict[str, Any], looks: Looks) -> Any:
    """Success against episodes on a task where V(s_0) has something to learn: the first picture of the README."""
    (arms,) = tasks.values()
    figure, ((axes,),) = plt.subplots(1, 1, figsize=(8, 3.9), squeeze=False, layout="constrained")
    draw_curves(axes, arms, "episodes", looks)
    axes.set(ylabel="success rate", title=f"Context Pendulum, {count(arms.values())}")
    for name, arm in arms.items():  # write each name at the end of its line
        grid, middle, *_ = band(arm, "episodes")
        axes.annotate(looks[name].label, (grid[-1], middle[-1]), (6, 0), textcoords="offset points", va="center",
                      color=looks[name].colour)  # fmt: skip
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def fig5(tasks: dict[str, Any], looks: Looks) -> Any:
    """Success against seconds of training, and against environment steps.

    Paper: on language models, SPPO reaches GRPO's peak 5.9 times sooner in wall-clock time. Here: control tasks. The
    seconds depend on the load of the machine during the study.
    """
    figure, axes = panels(len(tasks), 2)
    for row, (task, arms) in zip(axes, tasks.items(), strict=True):
        for at, axis in zip(row, ("seconds", "steps"), strict=True):
            draw_curves(at, arms, axis, looks)
            at.set_title(f"{short(task)}, {count(arms.values())}")
        row[0].set_ylabel("success rate")
    return finish(figure, 6)


def fig4(tasks: dict[str, Any], looks: Looks) -> Any:
    """Left: PPO with a critic trained with BCE. Right: no update on batches of equal outcomes.

    Paper, left: this PPO collapses as PPO does, so the gain comes from the sequence-level formulation and not from the
    loss. The right column is not in the paper. It omits what is suspected to cause PPO's flat lines.
    """
    figure, axes = panels(len(tasks), 2)
    for row, (task, arms) in zip(axes, tasks.items(), strict=True):
        for at, variants in zip(row, (("ppo-bce",), ("sppo-skip", "ppo-skip")), strict=True):
            shown = {a: runs for a, runs in arms.items() if a in ("sppo", "ppo", *variants)}
            if set(variants) & set(shown):
                draw_curves(at, shown, "steps", looks)
                at.set_title(f"{short(task)}, {count(shown.values())}")
            else:
                at.text(0.5, 0.5, f"no runs of {' or '.join(variants)}", ha="center", transform=at.transAxes)
        row[0].set_ylabel("success rate")
    return finish(figure, 3)


def grpo_points(size: int) -> tuple[Any, Any, Any]:
    """p = k / N for k successes of N, and the advantages that core gives a success and a failure there."""
    points = []
    for k in range(1, size):
        advantage = core.group_relative_advantage((torch.arange(size) < k).double(), size)
        points.append((k / size, float(advantage[0]), float(advantage[-1])))
    p, won, lost = np.array(points).T
    return p, won, lost


def fig2(sizes: Sequence[int], looks: Looks) -> Any:
    """GRPO's advantage against the success rate p.

    Paper (and appendix A): sqrt((1 - p) / p) for a success and -sqrt(p / (1 - p)) for a failure. Both are unbounded as
    the outcome becomes rare. Here: dots are core.group_relative_advantage for k successes out of N. SPPO's R - V with
    V = p is there for comparison.
    """
    figure, axes = panels(1, 1, 3.2)
    at, p = axes[0, 0], np.linspace(0.005, 0.995, 400)
    green, blue = VARIANTS["grpo"].colour, VARIANTS["sppo"].colour
    for curve, text, place in (
        (np.sqrt((1 - p) / p), r"success: $\sqrt{(1-p)/p}$", (0.2, 3.6)),
        (-np.sqrt(p / (1 - p)), r"failure: $-\sqrt{p/(1-p)}$", (0.52, -4.2)),
    ):
        at.plot(p, curve, color=green)
        at.text(*place, f"GRPO, {text}", color=green)
    for size, mark in zip(sizes, ("o", "."), strict=True):
        k, won, lost = grpo_points(size)
        look = {"markerfacecolor": "white" if mark == "o" else "black", "markeredgecolor": "black", "zorder": 3}
        at.plot([*k, *k], [*won, *lost], mark, markersize=5, **look, label=f"core, k of N = {size}")
    at.plot(p, 1 - p, "--", color=blue)
    at.plot(p, -p, "--", color=blue)
    at.text(0.03, 0.25, "SPPO with V = p: 1 - p, -p", color=blue, va="center", fontsize=8)
    at.set(xlabel="success rate p", ylabel="advantage", ylim=(-8.5, 8.5), xlim=(0, 1))
    return finish(figure)


def fig1(tails: list[Any], looks: Looks) -> Any:
    """Tail effect: V along successful and failed episodes.

    Paper (figures 1 and 9, language models): a critic at every token tells right from wrong only near the end. So earlier
    steps get no signal. Here: PPO's V(s_t), and on the right how well it separates the two (0.5 means not at all). SPPO's
    V(s_0) is one number per episode.
    """
    rows = [(task, chosen) for task, found in tails for chosen in stages(found)]
    figure, axes = panels(len(rows), 2, 2.2)
    for (left, right), (task, chosen) in zip(axes, rows, strict=True):
        for algorithm in in_order(r["algorithm"] for r in chosen):
            members, look = [r for r in chosen if r["algorithm"] == algorithm], looks[algorithm]
            for outcome, line, shade in (("successes", "-", look.colour), ("failures", "--", "#7F7F7F")):
                having = [r[outcome] for r in members if r[outcome]["episodes"]]
                if having:
                    x = np.array(having[0]["progress"])
                    mean, low, high = (
                        iqm([np.interp(x, r["progress"], r[name]) for r in having], axis=0) for name in TAIL[1:]
                    )
                    left.plot(x, mean, line, color=look.colour, label=f"{look.label}, {outcome}")
                    if algorithm.startswith("ppo"):
                        left.fill_between(x, low, high, color=shade, alpha=0.22, linewidth=0)
            both = [r for r in members if separable(r)]
            if both:
                x = np.array(both[0]["successes"]["progress"])
                values = np.stack([np.interp(x, r["successes"]["progress"], r["auc"]) for r in both], axis=-1)
                right.plot(x, iqm(values), look.line, color=look.colour)
                right.fill_between(x, *interval(iqm, values), color=look.colour, alpha=0.15, linewidth=0)
        number = count([r for r in chosen if r["algorithm"] == a] for a in {r["algorithm"] for r in chosen})
        updates = f"update {span(r['update'] for r in chosen)}"
        right.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        for at, label in ((left, "V"), (right, "P(V of a success >\nV of a failure)")):
            at.set(title=f"{short(task)}, {updates}, {number}", xlabel="share of the episode", ylabel=label)
            at.set_ylim(min(-0.03, at.get_ylim()[0]), max(1.03, at.get_ylim()[1]))
    return finish(figure)


def reliability(v0: Any, rate: Any, bins: int = 10) -> tuple[Any, Any, Any]:
    """Mean V, mean success and number of contexts in each bin of V that has any; the bins are those of the ECE."""
    member = np.clip((v0 * bins).astype(int), 0, bins - 1)  # V of a critic with squared loss may be outside [0, 1]
    number = np.bincount(member, minlength=bins)
    v_sum, rate_sum = (np.bincount(member, weights=x, minlength=bins)[number > 0] for x in (v0, rate))
    number = number[number > 0]
    return v_sum / number, rate_sum / number, number


def fig7(rows: list[Any], looks: Looks) -> Any:
    """Calibration: V(s_0) against success over 64 rollouts of each context, for the contexts of all seeds.

    The last panel is a reliability diagram; the area of a dot shows the number of contexts. Paper (language model, 200
    prompts): Pearson 0.642, Spearman 0.664, and most predictions are between 0.6 and 0.7. Here: the last update in the
    file.
    """
    tasks = list(dict.fromkeys(row["env_id"] for row in rows))
    last = {task: stages([row for row in rows if row["env_id"] == task], last=True)[0] for task in tasks}
    algorithms = in_order(row["algorithm"] for row in rows)
    figure, axes = panels(len(tasks), len(algorithms) + 1, 2.9)
    for row, task in zip(axes, tasks, strict=True):
        row[-1].set_title(f"{short(task)}\nreliability, 10 bins")
        for at, algorithm in zip(row, algorithms, strict=False):
            members, look = [row for row in last[task] if row["algorithm"] == algorithm], looks[algorithm]
            if not members:
                at.remove()
                continue
            v0, rate = (np.concatenate([np.asarray(r[name], float) for r in members]) for name in ("v0", "rate"))
            text = [f"{short(task)}", f"{look.label}, n = {len(members)} seeds"]
            for name in MEASURES:
                label = name.upper() if name == "ece" else name.capitalize()
                text.append(f"{label} {summary(r[name] for r in members)}")
            at.scatter(v0, rate, s=9, color=look.colour, alpha=0.35, linewidth=0)
            at.set_title("\n".join(text), fontsize=7.5)
            x, y, number = reliability(v0, rate)
            row[-1].plot(x, y, look.line, color=look.colour, label=look.label)
            row[-1].scatter(x, y, s=8 + 120 * number / number.sum(), color=look.colour)
        for at in (a for a in row if a.figure is not None):
            at.plot([0, 1], [0, 1], ":", color="black", linewidth=0.8)
            at.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="V(s_0)", aspect="equal")
        row[0].set_ylabel(f"success over {last[task][0]['episodes']} rollouts")
        row[-1].set_ylabel("success in the bin")
    return finish(figure)


def fig6(tasks: dict[str, Any], looks: Looks) -> Any:
    """Critic size: memory, time and success.

    Paper (7B policy): a 1.5B critic saves 12.8 points of the device's memory, and SPPO is no worse with it. Here: peak
    memory of the process (about 300 MiB of it are PyTorch alone), milliseconds per update (with rollouts), and success.
    """
    figure, axes = panels(len(tasks), 3, 2.4)
    for row, (task, arms) in zip(axes, tasks.items(), strict=True):
        widths = {name: arm[0].arguments["critic_hidden"] for sizes in arms.values() for name, arm in sizes.items()}
        order = sorted(widths, key=lambda name: (sum(a * b for a, b in itertools.pairwise(widths[name])), widths[name]))
        for algorithm, sizes in arms.items():
            look, names = looks[algorithm], [name for name in order if name in sizes]
            for at, (label, value) in zip(row, SIZE_PANELS.items(), strict=True):
                values = [[value(run) for run in sizes[name]] for name in names]
                middle = np.array([iqm(v) for v in values])
                reach = np.abs(np.array([interval(iqm, v) for v in values]).T - middle)
                at.errorbar([order.index(n) for n in names], middle, reach, fmt="o" + look.line, color=look.colour,
                            markersize=4, capsize=2, label=look.label)  # fmt: skip
                at.set(title=label, xlabel="critic's hidden layers")
                at.set_xticks(range(len(order)), order, rotation=30)
        row[2].set(ylim=(-0.03, 1.03))
        policy = "x".join(map(str, next(iter(next(iter(arms.values())).values()))[0].arguments["hidden"]))
        number = count(arm for sizes in arms.values() for arm in sizes.values())
        row[0].set_ylabel(f"{short(task)}\npolicy {policy}, {number}")
    return finish(figure)


SIZE_PANELS: dict[str, Callable[[StudyRun], float]] = {
    "peak memory, MiB": lambda run: run.peak_memory_mib,
    "ms per update": lambda run: 1000 * run.x["seconds"][-1] / run.updates,
    "final success": lambda run: run.after,
}


def critics(tasks: dict[str, Any], looks: Looks) -> Any:
    """SPPO with critics that are trained in different ways.

    They differ in the number of critic updates per batch, in how many recent batches these draw from, and in the learning
    rate. The paper trains the critic on the policy's minibatches. It has no such figure.
    """
    merged = {
        task: {k: v for sizes in reversed(arms.values()) for k, v in sizes.items()} for task, arms in tasks.items()
    }
    names = sorted({n for arms in merged.values() for n in arms}, key=lambda n: (n[0] != "o", len(n.split()[0]), n))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    lines = itertools.cycle(("-", "--", "-.", ":"))
    how = {n: Look(n, matplotlib.colors.to_hex(c), next(lines)) for n, c in zip(names, colours, strict=True)}
    return panel_per_task({t: {n: arms[n] for n in names if n in arms} for t, arms in merged.items()}, "steps", how, 2)


def arms_of_plan(tasks: dict[str, dict[str, Sequence[StudyRun]]], looks: Looks) -> Any:
    """Average success of each algorithm, one panel per task: a point per run, and the interval over seeds.

    Args:
        tasks: title of the panel -> algorithm -> runs; an algorithm has the same row in all panels of a row.
        looks: of all algorithms.
    """
    across = min(len(tasks), 3)
    most = max(map(len, tasks.values()))
    figure, axes = panels(-(-len(tasks) // across), across, 0.19 * most + 0.5)
    for at, (title, arms) in zip(axes.flat, tasks.items(), strict=False):
        for row, (name, runs) in enumerate(arms.items()):
            values = [run.area for run in runs]
            middle, (low, high) = iqm(values), interval(iqm, values)
            at.plot(values, [row] * len(values), "o", color=looks[name].colour, alpha=0.35, markersize=4, mew=0)
            at.plot([low, high], [row, row], color=looks[name].colour, linewidth=1.6)
            at.plot(middle, row, "|", color=looks[name].colour, markersize=11, mew=2)
        at.set_yticks(range(len(arms)), [f"{name} ({len(runs)})" for name, runs in arms.items()])
        at.set(xlim=(-0.03, 1.03), ylim=(len(arms) - 0.5, -0.5))
        at.set_title(title, fontsize=9)
        at.tick_params(axis="y", labelsize=8)
    for at in axes.flat[len(tasks) :]:
        at.remove()
    for at in figure.axes[-across:]:
        at.set_xlabel("average success")
    return finish(figure)


ADDITION = {
    "SPPO 128 x 1": Look("SPPO, 128 prompts x 1 response", "#0072B2"),
    "PPO 128 x 1": Look("PPO, 128 x 1", "#D55E00"),
    "GRPO 16 x 8": Look("GRPO, 16 x 8", "#009E73"),
    "GRPO 128 x 8": Look("GRPO, 128 x 8", "#004D38", "--"),
}
"""Variants of scripts/speed_llm.py that are drawn. The others differ from the first only in the critic's steps."""


def addition(rows: list[Any], looks: Looks) -> Any:
    """A tiny transformer learns to add: mean outcome of the last 1,024 training responses.

    Its x-axes are responses and CPU seconds of one thread. Paper (1.5B and 7B models): SPPO reaches GRPO's peak 5.9 times
    sooner.
    """
    figure, axes = panels(1, 2, 2.8)
    for name, look in ADDITION.items():
        curves = [np.array(row["curve"], float) for row in rows if row["variant"] == name]
        curves = [curve for curve in curves if len(curve) >= round(1024 / curve[0, 0])]
        for i, curve in enumerate(curves):
            batches = max(1, round(1024 / curve[0, 0]))
            mean = np.convolve(curve[:, 2], np.ones(batches) / batches, "valid")
            for at, x in zip(axes[0], curve[batches - 1 :, :2].T, strict=True):
                label = f"{look.label} (n = {len(curves)})" if i == 0 else None
                at.plot(x, mean, look.line, color=look.colour, linewidth=0.9, label=label)
    for at, label in zip(axes[0], ("responses", "CPU seconds of one thread"), strict=True):
        at.axhline(0.9, color="black", linewidth=0.8, linestyle=":")
        at.set(xlabel=label, xlim=(0, None), ylim=(0.3, 0.95))
    axes[0, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0, 0].set_ylabel("right among the last 1,024 responses")
    return finish(figure, 2)


# ----------------------------------------------------------------------------------------------------- registry
class Figure(NamedTuple):
    """How a figure is drawn, and what it needs."""

    draw: Callable[[Any, Looks], Any]
    """draws the figure, from the result of `what` and the look of each algorithm"""
    what: Callable[[Study], Any]
    """finds what the figure shows; empty if the results do not contain it"""
    needs: str
    """what the message names if `what` finds nothing"""
    note: str = LINES
    """the note below the picture"""


def own(study: Study) -> list[str]:
    """Algorithms in the files that are not in the table of variants: the user's own training scripts."""
    return [name for name in study.looks if name not in VARIANTS]


def ablated(study: Study) -> dict[str, Any]:
    """Tasks with a variant of figure 4 and something to compare it with: {task: {algorithm: runs}}."""
    variants = {"ppo-bce", "ppo-skip", "sppo-skip"}
    found = study.with_algorithms(("sppo", "sppo-skip", "ppo", "ppo-bce", "ppo-skip"))
    return {t: arms for t, arms in found.items() if variants & set(arms) and set(arms) - variants}


FIGURES = {
    "fig1": Figure(fig1, lambda s: s.tails, "tail.json of scripts/probe.py",
                   "Line: interquartile mean over seeds (n is in the titles). Bands on the left: 10th to 90th percentile "
                   "of PPO's episodes; coloured for successes, grey for failures. Bands on the right: 95 % bootstrap "
                   "interval over seeds."),
    "fig2": Figure(fig2, lambda s: (8, 64), "nothing", "No runs are needed: equations and sppo_control/core.py."),
    "fig4": Figure(fig4, ablated, "runs of ppo-bce, ppo-skip or sppo-skip beside ppo or sppo on one task"),
    "fig5": Figure(fig5, lambda s: s.with_algorithms(in_order({*METHODS, *own(s)})), "runs of two algorithms on one task"),
    "fig6": Figure(fig6, lambda s: s.varied(("critic-hidden",), ("sppo", "ppo")), "settings critic-hidden=...", BARS),
    "fig7": Figure(fig7, lambda s: s.calibration, "calibration.json of scripts/probe.py",
                   "Numbers: interquartile mean over seeds, with its 95 % bootstrap interval over seeds. "
                   "Paper (language model, 200 prompts): Pearson 0.642, Spearman 0.664."),
    "fig8": Figure(fig8, lambda s: s.with_algorithms(("sppo", "ppo")), "runs of sppo and ppo on one task"),
    "fig8_all": Figure(fig8_all, lambda s: s.with_algorithms(dict.fromkeys(a for _, a, _ in s.arms)),
                       "runs of two algorithms on one task"),
    "context_pendulum": Figure(
        context_pendulum,
        lambda s: {t: arms for t, arms in s.with_algorithms(("sppo", "ppo", "reinforce", "grpo")).items()
                   if t == "sppo/ContextPendulum-v0"},
        "runs of two algorithms on sppo/ContextPendulum-v0"),
    "critics": Figure(critics, lambda s: s.varied(CRITIC, ("sppo", "sppo-paper")),
                      "SPPO with settings critic-steps=..., critic-window=... or critic-learning-rate=..."),
    "addition": Figure(addition, lambda s: [row for row in s.additions if row["variant"] in ADDITION],
                       "speed_llm_addition.json of scripts/speed_llm.py",
                       "One line per seed. A run ends when it reaches 0.92, or at the end of its budget."),
}  # fmt: skip
