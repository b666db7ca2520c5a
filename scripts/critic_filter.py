"""Measure what skipping hopeless and solved prompts is worth: SPPO on a mixture of additions, with and without the filter.

The training prompts are of three kinds:

- open, half of them: the additions of sppo_llm.py, of one to four digits;
- hopeless, a quarter: numbers of six or seven digits, whose working does not fit into the 24 tokens of a response;
- solved, a quarter: numbers without a carry, which the policy adds nearly always right after a few updates.

What is measured is the success on held-out additions of the first kind, every 1,024 responses. Evaluation takes no part in
the seconds, which are CPU time of one thread. A run ends when the mean of two evaluations in a row is 0.9.

    python scripts/critic_filter.py                # ten minutes; writes docs/critic_filter.json and the figure beside it
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

import sppo_llm
from sppo_control import checkpoints, cli, errors, extras, limits, runs
from sppo_control.llm import addition
from sppo_control.llm.prompts import Prompts, load_prompts, make_reward
from sppo_control.llm.responses import evaluate
from sppo_control.llm.tokenizers import prompt_ids
from sppo_control.markdown import markdown_table
from sppo_control.outputs import File

ROOT = Path(__file__).resolve().parents[1]
VARIANTS: dict[str, dict[str, float]] = {
    "every prompt": {},
    "0.1 to 0.9, retry 0.05": {"skip_prompts_below": 0.1, "skip_prompts_above": 0.9},
}
"""name -> arguments of sppo_llm.py"""
EVERY, TARGETS, HELD_OUT = 1024, (0.8, 0.9), 256
KINDS = ("open", "hopeless", "solved")


@dataclass
class Args:
    seeds: tuple[int, ...] = (11, 12, 13, 14, 15)
    """of the runs"""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """which of them"""
    total_episodes: int = 16_384
    """responses after which a run ends, whatever it has reached"""
    out: Annotated[Path, File(".json")] = ROOT / "docs" / "critic_filter.json"
    """curves; runs that are in it are not done again"""
    figure: Annotated[Path | None, File(".png")] = ROOT / "docs" / "figures" / "critic_filter.png"
    """the picture of it"""
    dataset: Annotated[Path | None, File(".jsonl")] = None
    """write the mixture into this file, and do nothing else"""
    worker: str | None = None
    """used by this script itself: variant and seed of one run"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        for name in self.variants:
            if name not in VARIANTS:
                raise ValueError(f"--variants {name!r} is none of {', '.join(map(repr, VARIANTS))}")
        if self.worker is not None:
            name, _, seed = self.worker.rpartition(":")
            if name not in VARIANTS or not seed.isdecimal():
                raise ValueError(f"--worker {self.worker!r} is not a variant, a colon and a seed; leave it out")


def mixture(n: int = 2048, seed: int = 0) -> list[dict[str, str]]:
    """2 n open prompts and n of the other kinds, all different, with the columns prompt, answer and kind."""
    rng, found = np.random.default_rng(seed), []
    for kind in KINDS:
        pairs: dict[tuple[int, ...], None] = {}
        while len(pairs) < (2 * n if kind == "open" else n):
            if kind == "open":
                pair: tuple[int, ...] = addition.problems(1, rng)[0]
            elif kind == "hopeless":
                pair = (int(rng.integers(10**5, 10**7)), int(rng.integers(10**5, 10**7)))
            else:
                digits = [sorted(rng.integers(0, 10, size=2).tolist()) for _ in range(int(rng.integers(2, 5)))]
                pair = tuple(int("".join(map(str, row))) for row in zip(*[(a, b - a) for a, b in digits], strict=True))
            pairs[pair] = None
        found += [{**row, "kind": kind} for row in addition.rows([(a, b) for a, b in pairs])]
    return found


def write(rows: Sequence[dict[str, str]], path: Path) -> None:
    """The prompts as a dataset for sppo_llm.py."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def held_out(train: Sequence[dict[str, str]], tokenizer: Any) -> Prompts:
    """Additions of the first kind that no training prompt is."""
    there = {row["prompt"] for row in train}
    whole = load_prompts(None, tokenizer)
    rows = [row for row in range(len(whole)) if whole.texts[row] not in there][:HELD_OUT]
    return Prompts(
        [whole.texts[i] for i in rows], [prompt_ids(whole.texts[i], tokenizer) for i in rows],
        [whole.answers[i] for i in rows],
    )  # fmt: skip


class Reached(Exception):
    """The target was reached."""


def one_run(name: str, seed: int, total_episodes: int) -> dict[str, Any]:
    """The curve of one run: responses, CPU seconds and held-out success; and how many responses each kind got."""
    curve: list[tuple[int, float, float]] = []
    kinds: list[list[int]] = []
    tokenizer = addition.tokenizer()
    train = mixture()
    kind_of = {row["prompt"]: KINDS.index(row["kind"]) for row in train}
    prompts, reward = held_out(train, tokenizer), make_reward("after-equals")
    clock = {"began": 0.0}

    class Watched(runs.Run):
        def start(self, **parts: Any) -> None:
            super().start(**parts)
            clock["began"] = time.process_time()

        def end_update(self, episodes: Any, metrics: Any, baseline: Any = None) -> None:
            super().end_update(episodes, metrics, baseline)
            texts = tokenizer.batch_decode(episodes.prompt_ids, skip_special_tokens=True)
            kinds.append(np.bincount([kind_of[text] for text in texts], minlength=3).tolist())
            if self.episodes % EVERY == 0:
                now = time.process_time()
                model = self.parts["policy"].model  # type: ignore[union-attr]
                rate = evaluate(model, tokenizer, prompts, reward, self.episodes, addition.MAX_RESPONSE + 1).rate
                curve.append((self.episodes, now - clock["began"], rate))
                clock["began"] += time.process_time() - now
                if reached(curve, TARGETS[-1]) is not None:
                    raise Reached

    torch.set_num_threads(1)
    runs.Run = Watched  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Reached):
        dataset = Path(folder, "mixture.jsonl")
        write(train, dataset)
        sppo_llm.train(
            sppo_llm.Args(
                dataset=str(dataset), seed=seed, runs_dir=folder, total_episodes=total_episodes, eval_prompts=1,
                save_every=10**6, device="cpu", critic_layers=1, critic_steps=2, **VARIANTS[name],  # type: ignore[arg-type]
            )
        )  # fmt: skip
    return {"variant": name, "seed": seed, "curve": curve, "kinds": np.array(kinds).reshape(-1, 8, 3).sum(1).tolist()}


def reached(curve: Sequence[Sequence[float]], target: float) -> tuple[float, float] | None:
    """Responses and seconds when the mean of two evaluations in a row first was the target."""
    for i in range(1, len(curve)):
        if (curve[i - 1][2] + curve[i][2]) / 2 >= target:
            return curve[i][0], curve[i][1]
    return None


def read(out: Path) -> list[dict[str, Any]]:
    """The runs that are already in the file.

    Raises:
        UserError: the file is of another script.
    """
    rows: Any = checkpoints.read_json(out).get("rows") if out.is_file() else []
    try:
        for row in rows:
            good = row["variant"] in VARIANTS and checkpoints.is_count(row["seed"]) and row["curve"]
            points = [x for point in row["curve"] for x in point] + [x for point in row["kinds"] for x in point]
            if not good or not all(map(checkpoints.is_number, points)) or {len(x) for x in row["curve"]} != {3}:
                raise ValueError("a run is not a variant, a seed and a curve of three numbers per point")
    except (TypeError, KeyError, ValueError) as error:
        raise errors.UserError(
            f"--out {out} was not written by critic_filter.py ({type(error).__name__}: {error}); name another file"
        ) from error
    return list(rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Responses and seconds to the targets, and who got the responses, as Markdown."""
    head = ["", *(f"{what} to {target}" for target in TARGETS for what in ("responses", "seconds"))]
    lines = []
    for name in VARIANTS:
        if not (mine := [row for row in rows if row["variant"] == name]):
            continue
        cells = [name]
        for target in TARGETS:
            found = [reached(row["curve"], target) for row in mine]
            for index in (0, 1):
                known = sorted(x[index] for x in found if x is not None)
                middle = (len(mine) - 1) // 2  # a run that never reached it counts as the latest
                median = f"{known[middle]:,.0f}" if len(known) > middle else "-"
                ends = f" ({known[0]:,.0f} to {known[-1]:,.0f})" if known else ""
                cells.append(f"{median}{ends}" + (f", {len(known)} of {len(mine)}" if len(known) < len(mine) else ""))
        share = np.mean([np.sum(row["kinds"], axis=0) / np.sum(row["kinds"]) for row in mine], axis=0)
        cost = float(np.median([1000 * row["curve"][-1][1] / row["curve"][-1][0] for row in mine]))
        lines.append([*cells, f"{cost:.1f}", *(f"{x:.2f}" for x in share)])
    return markdown_table([*head, "s per 1,000 responses", *KINDS], lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Held-out success against responses and against seconds, one line per run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), dpi=140, layout="constrained", sharey=True)
    for index, (axes, words) in enumerate(zip(panels, ("responses", "CPU seconds"), strict=True)):
        for name, color in zip(VARIANTS, ("0.45", "#d1495b"), strict=True):
            for i, row in enumerate(row for row in rows if row["variant"] == name):
                curve = np.array(row["curve"])
                axes.plot(
                    curve[:, index], curve[:, 2], color=color, alpha=0.7, linewidth=1.1, label=None if i else name
                )
        axes.axhline(TARGETS[-1], color="0.7", linewidth=0.8, linestyle=":")
        axes.set(xlabel=words)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="success, held-out open additions")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main(args: Args) -> None:
    if args.worker is not None:
        name, _, number = args.worker.rpartition(":")
        print(json.dumps(one_run(name, int(number), args.total_episodes)))
        return
    if args.dataset is not None:
        write(mixture(), args.dataset)
        return
    if args.figure is not None:
        extras.require("plots", "matplotlib", wanted_by="--figure")
    rows = read(args.out)
    there = {(row["variant"], row["seed"]) for row in rows}
    cells = [(name, seed) for seed in args.seeds for name in args.variants if (name, seed) not in there]
    for name, seed in tqdm(cells, unit="run"):
        command = [sys.executable, __file__, "--worker", f"{name}:{seed}", "--total-episodes", str(args.total_episodes)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}, seed {seed} failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        checkpoints.write_json(
            args.out, {"command": "python scripts/critic_filter.py", "rows": rows, **runs.versions()}
        )
    print(f"\n{table(rows)}")
    if args.figure is not None:
        draw(rows, args.figure)
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
