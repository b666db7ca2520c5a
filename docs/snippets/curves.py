"""Six curves of some runs in one picture. python docs/snippets/curves.py runs/<one> runs/<another> curves.png"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PANELS = {
    "charts/success_rate": "success rate of the batch",
    "critic/v0_mean": "mean V(s_0): the critic's forecast of it",
    "critic/brier": "Brier score: squared error of V(s_0)",
    "losses/entropy": "entropy of the policy, nats",
    "losses/approx_kl": "approximate KL per update, nats",
    "losses/clipfrac": "share of clipped steps",
}
"""TensorBoard tag -> title of its panel."""
LOOKS = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#000000", ":"))


def read(folder, tag):
    """Steps in millions and values of one curve of a run folder."""
    points = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    return [point.step / 1e6 for point in points], [point.value for point in points]


def main(folders, out):
    figure, axes = plt.subplots(3, 2, figsize=(7.6, 8), dpi=130, layout="constrained", sharex=True)
    for axis, (tag, title) in zip(axes.flat, PANELS.items(), strict=True):
        for folder, (colour, line) in zip(folders, LOOKS, strict=False):
            name = Path(folder).resolve().name.split("__")[1].split("_")[0].upper()
            axis.plot(*read(folder, tag), line, color=colour, linewidth=1.4, label=name)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("environment steps, millions")
    figure.savefig(out)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[-1].endswith(".png"):
        sys.exit("usage: python docs/snippets/curves.py RUN_FOLDER [RUN_FOLDER ...] PICTURE.png")
    main(sys.argv[1:-1], sys.argv[-1])
