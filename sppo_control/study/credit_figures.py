"""The pictures of scripts/credit.py: the map, noise against horizon, and one setting from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap
from matplotlib.ticker import NullFormatter

FloatArray = npt.NDArray[np.float64]
REACH = 6
"""The colours end at a factor of 2^6 = 64."""
COLOURS = {
    "SPPO": "#1b6ca8",
    "PPO": "#d1495b",
    "PPO, lambda 0.95": "#e39b3c",
    "PPO, gamma 0.99, lambda 0.95": "#7a4f9a",
    "REINFORCE": "#4a4a4a",
    "RLOO": "#2a9d8f",
    "GRPO": "#77b05d",
    "ReMax": "#a8a8a8",
}


class Panel(NamedTuple):
    """One heat map: log2 of (share of the gain with one advantage per episode / the other's)."""

    title: str
    x: FloatArray
    y: FloatArray
    ratio: FloatArray
    """(len(y), len(x))"""
    xlabel: str
    ylabel: str
    dots: Sequence[Mapping[str, Any]] = ()
    """measured points: x, y, ratio (log2), learned (bool)"""
    log_x: bool = True
    log_y: bool = True


def factor(log2: float) -> str:
    """A factor in words: "x 4" for 2, "x 1/4" for -2."""
    if abs(log2) > 20:
        return "x > 10^6" if log2 > 0 else "x < 1/10^6"
    n = 2.0 ** abs(log2)
    text = f"{n:,.0f}" if n >= 10 or abs(n - round(n)) < 0.05 else f"{n:.1f}"
    return f"x {text}" if log2 >= 0 or text == "1" else f"x 1/{text}"


def draw_map(rows: Sequence[Sequence[Panel]], names: Sequence[str], title: str, note: str, width: float = 2.75) -> Any:
    """Heat maps, one row of panels per opponent, with the line of equality and dots on the same scale of colours.

    Args:
        rows: panels.
        names: of the opponents, one per row; empty for none.
        title: what was found.
        note: how to read it.
        width: of a panel, inches.
    """
    columns = max(map(len, rows))
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(width * columns + 1.4, 2.2 * len(rows) + 1.7),
        dpi=150,
        layout="constrained",
        squeeze=False,
    )
    colours = ListedColormap(plt.get_cmap("RdBu")(np.linspace(0.04, 0.96, 4 * REACH)))
    drawn: Any = None
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            ax = axes[i, j]
            drawn = ax.pcolormesh(
                panel.x,
                panel.y,
                np.clip(panel.ratio, -REACH, REACH),
                cmap=colours,
                vmin=-REACH,
                vmax=REACH,
                shading="nearest",
                rasterized=True,
            )
            if (panel.ratio > 0).any() and (panel.ratio < 0).any():
                ax.contour(panel.x, panel.y, panel.ratio, levels=[0.0], colors="black", linewidths=1.8)
            for dot in panel.dots:
                ax.scatter(
                    dot["x"],
                    dot["y"],
                    c=[np.clip(dot["ratio"], -REACH, REACH)],
                    cmap=colours,
                    vmin=-REACH,
                    vmax=REACH,
                    s=62 if dot["learned"] else 44,
                    marker="D" if dot["learned"] else "o",
                    edgecolor="black",
                    linewidth=1.0,
                    zorder=3,
                    clip_on=False,
                )
            ax.set(xscale="log" if panel.log_x else "linear", yscale="log" if panel.log_y else "linear")
            if i == 0 or panel.title != rows[0][min(j, len(rows[0]) - 1)].title:
                ax.set_title(panel.title, fontsize=9)
            if i == len(rows) - 1 or panel.xlabel != rows[-1][min(j, len(rows[-1]) - 1)].xlabel:
                ax.set_xlabel(panel.xlabel, fontsize=8.5)
            if j == 0 or panel.ylabel != row[0].ylabel:
                name = f"{names[i]}\n\n" if len(names) and j == 0 else ""
                ax.set_ylabel(f"{name}{panel.ylabel}", fontsize=8.5)
            if panel.log_y and panel.y.max() < 1:
                ax.set_yticks([0.01, 0.03, 0.1, 0.3], labels=["0.01", "0.03", "0.1", "0.3"])
                ax.yaxis.set_minor_formatter(NullFormatter())
            if panel.log_x and panel.x.max() <= 1:
                ticks = [x for x in (0.01, 0.03, 0.1, 0.3, 1.0) if x <= 1.001 * panel.x.max()]
                ax.set_xticks(ticks, labels=[f"{x:.0%}".replace("%", " %") for x in ticks])
                ax.xaxis.set_minor_formatter(NullFormatter())
            ax.tick_params(labelsize=8)
            ax.set_xlim(panel.x.min(), panel.x.max())
            ax.set_ylim(panel.y.min(), panel.y.max())
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_ticks([-6, -4, -2, 0, 2, 4, 6], labels=[factor(x) if x else "equal" for x in (-6, -4, -2, 0, 2, 4, 6)])
    bar.set_label(
        "gain per update with one advantage per episode,\nas a factor of the gain with the other", fontsize=8.5
    )
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=11.5, weight="bold")
    figure.supxlabel(note, fontsize=8.5, color="0.25")
    return figure


def draw_noise(
    curves: Mapping[str, Mapping[str, tuple[FloatArray, FloatArray]]], dots: Sequence[Mapping[str, Any]]
) -> Any:
    """Noise scale against horizon, one panel per place of the decisions: lines are theory, points are measured.

    Args:
        curves: panel -> algorithm -> (horizons, noise scales).
        dots: measured: panel, algorithm, horizon, noise, error (one standard error).
    """
    figure, axes = plt.subplots(
        1,
        len(curves),
        figsize=(3.1 * len(curves) + 1.2, 4.3),
        dpi=150,
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (panel, lines) in zip(axes[0], curves.items(), strict=True):
        for i, (name, (x, y)) in enumerate(lines.items()):
            colour = COLOURS[name.partition(";")[0]]
            ax.plot(
                x,
                y,
                "--" if ";" in name else "-",
                color=colour,
                linewidth=1.6,
                label=name.replace(";", ","),
                zorder=3 - 0.1 * i,
            )
            mine = [d for d in dots if d["panel"] == panel and d["algorithm"] == name]
            ax.errorbar(
                [d["horizon"] for d in mine],
                [d["noise"] for d in mine],
                yerr=[2 * d["error"] for d in mine],
                fmt="o",
                color=colour,
                markeredgecolor="black",
                markeredgewidth=0.6,
                markersize=5,
                capsize=2,
                zorder=4,
            )
        ax.set(xscale="log", yscale="log", title=panel, xlabel="horizon T (steps)", ylim=(3, 3e6))
        ax.title.set_fontsize(10)
        ax.grid(alpha=0.25)
    axes[0, 0].set_ylabel("noise scale: episodes per update\nat which noise equals signal")
    figure.suptitle(
        "With one advantage per episode, noise grows with the horizon.\n"
        "With one per step it need not, if the critic is right and nothing is discounted away",
        fontsize=11,
        weight="bold",
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
        title="Lines: theory. Points: sampled, with 2 standard errors. Critics are exact where no error is named.",
        title_fontsize=8.5,
    )
    return figure


def draw_setting(
    table: Sequence[Mapping[str, Any]], advantage: Mapping[str, FloatArray], steps: npt.NDArray[np.int64], title: str
) -> Any:
    """One setting: the advantage of successes from step to step, and each algorithm's share of the gain.

    Args:
        table: rows with name, share, measured, error (of the measurement).
        advantage: algorithm -> mean advantage of successful episodes at each step, (T,).
        steps: the deciding steps.
        title: the setting.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), dpi=150, layout="constrained")
    T = len(next(iter(advantage.values())))
    for step in steps if len(steps) <= 20 else ():
        left.axvline(
            step / T, color="#2a9d4a", alpha=0.45, linewidth=1.5, label="deciding step" if step == steps[0] else None
        )
    for name, curve in advantage.items():
        left.plot(np.arange(T) / T, curve, color=COLOURS.get(name, "0.5"), label=name, linewidth=1.6)
    left.axhline(0, color="0.3", linewidth=0.8)
    left.set(
        xlabel="progress of the episode, t / T",
        ylabel="mean advantage of a success",
        title="What a success is paid at each step",
    )
    left.legend(fontsize=8, frameon=False)
    names = [row["name"] for row in table]
    y = np.arange(len(names))[::-1]
    known = [(at, row) for at, row in zip(y, table, strict=True) if row["share"] is not None]
    right.barh(
        [at for at, _ in known],
        [row["share"] for _, row in known],
        color=[COLOURS.get(r["name"].partition(";")[0], "0.6") for _, r in known],
        alpha=0.75,
        label="theory",
    )
    right.errorbar(
        [row["measured"] for row in table],
        y,
        xerr=[2 * row["error"] for row in table],
        fmt="o",
        color="black",
        markersize=4,
        capsize=2,
        label="measured, 2 standard errors",
    )
    low = min((row["share"] for _, row in known if row["share"] > 1e-6), default=1e-3)
    right.set(
        xscale="log",
        xlim=(max(low / 3, 1e-6), 1.2),
        xlabel="share of the gain of an exact gradient",
        title="What one update is expected to gain",
    )
    right.set_yticks(y, [name.replace(";", ",") for name in names], fontsize=8)
    right.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure
