"""Draw logged curves of runs as a picture: one thin line a run, a thick one for the mean of each script.

    pip install -c constraints.txt -e '.[plots]'
    python scripts/plot.py runs/*PrecisionCartPole* --out curve.png
    python scripts/plot.py runs/addition* --out addition.png            # of sppo_llm.py, ppo_llm.py, grpo_llm.py

The tags are those of docs/metrics.md.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@dataclass
class Args:
    runs: tyro.conf.Positional[list[Path]] = field(default_factory=list)
    """run folders"""
    out: Path = Path("curve.png")
    """picture to write; the ending decides the format (.png, .svg, .pdf)"""
    tag: str = "charts/success_rate"
    """see docs/metrics.md"""
    smooth: int = 5
    """moving average over so many updates"""


def main(args: Args) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        sys.exit("matplotlib is missing: pip install -c constraints.txt -e '.[plots]'")
    curves, units = defaultdict(list), set()
    for folder in args.runs:
        if not (folder / "config.json").is_file():
            sys.exit(f"error: {folder} is no run folder: no config.json there")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        if args.tag not in events.Tags()["scalars"]:
            sys.exit(f"error: {folder} has no curve {args.tag!r}; it has {', '.join(events.Tags()['scalars'])}")
        points = np.array([(e.step, e.value) for e in events.Scalars(args.tag)])
        config = json.loads((folder / "config.json").read_text())
        task = config["args"].get("env_id") or folder.resolve().name.split("__")[0]
        curves[f"{config['script'].split('_')[0].upper()}, {task}"].append(points)
        units.add(("environment steps, millions", 1e6) if "env_id" in config["args"] else ("responses, thousands", 1e3))
    if not curves:
        sys.exit("error: name at least one run folder")
    if len(units) > 1:
        sys.exit("error: runs in environments and of language models have no common axis; name one kind")
    unit, scale = units.pop()

    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150, layout="constrained")
    kernel = np.ones(args.smooth) / args.smooth
    for i, (name, runs) in enumerate(sorted(curves.items(), reverse=True)):
        smoothed = [(p[args.smooth - 1 :, 0], np.convolve(p[:, 1], kernel, "valid")) for p in runs]
        for steps, values in smoothed:
            axes.plot(steps / scale, values, color=f"C{i}", alpha=0.35, linewidth=0.8)
        grid = np.linspace(max(s[0] for s, _ in smoothed), min(s[-1] for s, _ in smoothed), 200)
        mean = np.mean([np.interp(grid, *s) for s in smoothed], axis=0)
        label = f"{name} ({len(runs)} {'run' if len(runs) == 1 else 'seeds, mean'})"
        axes.plot(grid / scale, mean, color=f"C{i}", linewidth=2, label=label)
    axes.set(xlabel=unit, ylabel=args.tag.split("/")[-1].replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
