"""Does SPPO's critic know hard prompts from easy ones? V(s_p) against the measured success of each prompt.

At each checkpoint of a run of sppo_llm.py the policy writes --samples responses to each of --prompts prompts. Their share
of right ones is the prompt's success, which V(s_p) of the same checkpoint should be. Printed are

- Spearman's rank correlation of V and success over the prompts, with a bootstrap interval,
- the same of one half of the samples and the other: no critic can be much better,
- the mean of V, of success, and of |V - success|.

    python scripts/arithmetic_data.py --mixed --out runs/mixed
    python scripts/difficulty_llm.py --run runs/llm_real/sppo/<run> --problems runs/mixed/held_out.jsonl \\
        --out runs/difficulty --figure runs/difficulty.png

Before the training V is 1/2 for all prompts, because the critic's head is 0; so it has no correlation. --probe says what
the critic's model knew by then: a ridge regression of success on its hidden states, with each prompt left out in turn.

Each checkpoint's responses are kept in --out, so the same command goes on after a stop. Source: the paper's figure 7.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch

import evaluate_llm
from sppo_control import checkpoints, cli, errors, extras, limits, runs
from sppo_control.llm.critic import PromptCritic
from sppo_control.llm.prompts import check_reward
from sppo_control.llm.setup import check_device
from sppo_control.markdown import markdown_table
from sppo_control.outcomes import spearman
from sppo_control.outputs import File, Folder

Array = npt.NDArray[np.float64]
BENCHMARK = "problems"


@dataclass
class Args:
    run: Path
    """folder of a run of sppo_llm.py"""
    problems: Path = Path("runs/mixed/held_out.jsonl")
    """file with the columns prompt and answer; a row must not be in the run's training data"""
    out: Annotated[Path, Folder()] = Path("runs/difficulty")
    """folder for the responses and for difficulty.json"""
    reward: str = "sppo_control.llm.arithmetic:first_number"
    """the judge, as in the training scripts; the run's own is not used, because importing it would execute its code"""
    figure: Annotated[Path | None, File(".png", ".svg", ".pdf")] = None
    """picture of V against success at each checkpoint, to write"""
    prompts: int = 100
    """the first rows of the file"""
    samples: int = 64
    """responses per prompt and checkpoint"""
    updates: tuple[int, ...] | None = None
    """checkpoints, by their updates; None is all that the run has"""
    probe: bool = True
    """at update 0: what the critic's hidden states say of success"""
    seed: int = 1
    """of the responses and the bootstrap"""
    batch_size: int = 64
    """responses in memory at once"""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is cuda where there is one"""
    bf16: bool = False
    """compute responses in bfloat16"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        check_device(self.device)
        check_reward(self.reward)
        if self.prompts < 3:
            raise ValueError(f"--prompts must be at least 3, for a correlation, got {self.prompts}")
        if self.samples < 2:
            raise ValueError(f"--samples must be at least 2, because halves of them are compared, got {self.samples}")


# --------------------------------------------------------------------------------------------------------- statistics
def interval(x: Array, y: Array, seed: int, resamples: int = 2000) -> list[float]:
    """Where 95 per cent of the correlations of resampled prompts are; empty if there is no correlation."""
    rng = np.random.default_rng(seed)
    drawn = (spearman(x[rows], y[rows]) for rows in rng.integers(len(x), size=(resamples, len(x))))
    found = [rho for rho in drawn if rho is not None]
    return np.quantile(found, [0.025, 0.975]).round(4).tolist() if found else []


def probe(features: Array, success: Array, strength: float = 1.0) -> Array:
    """Success predicted by ridge regression from the other prompts' features, (n,).

    Args:
        features: (n, d).
        success: (n,).
        strength: of the penalty, relative to the features' mean square.
    """
    X = features - features.mean(0)
    kernel = X @ X.T + 1.0  # with a constant
    hat = kernel @ np.linalg.inv(kernel + strength * np.trace(X @ X.T) / len(X) * np.eye(len(X)))
    left_out = 1 - np.diag(hat)  # the fit without row i follows from the fit with it
    return np.asarray(success - (success - hat @ success) / left_out)


# ------------------------------------------------------------------------------------------------------- measurements
def find_checkpoints(args: Args) -> list[Path]:
    """The checkpoints that are asked for, oldest first.

    Raises:
        UserError: no such run, none of sppo_llm.py, or no such checkpoint.
    """
    config = checkpoints.read_config(args.run)
    if config["script"] != "sppo_llm.py":
        raise errors.UserError(f"{args.run} is of {config['script']}, and only sppo_llm.py has a critic of prompts")
    there = {int(folder.name): folder for folder in checkpoints.complete(args.run / "checkpoints")}
    wanted = sorted(there) if args.updates is None else sorted(set(args.updates))
    if missing := [str(update) for update in wanted if update not in there] or not wanted:
        said = ", ".join(missing) if isinstance(missing, list) else "any"
        raise errors.UserError(f"--updates: {args.run} has no checkpoint {said}; it has {', '.join(map(str, there))}")
    return [there[update] for update in wanted]


def read_problems(args: Args) -> list[dict[str, Any]]:
    """The first rows.

    Raises:
        UserError: no such file; too few rows; a row without prompt and answer.
    """
    if not args.problems.is_file():
        raise errors.UserError(f"--problems {args.problems}: there is no such file; see the command in --help")
    try:
        rows = [json.loads(line) for line in args.problems.read_text(encoding="utf-8").splitlines()[: args.prompts]]
        whole = all(isinstance(row["prompt"], str) and isinstance(row["answer"], str) for row in rows)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise errors.UserError(f"--problems {args.problems}: {type(error).__name__}: {error}") from error
    if not whole or len(rows) < args.prompts:
        raise errors.UserError(
            f"--problems {args.problems} must have {args.prompts} rows with the texts prompt and answer, it has "
            f"{len(rows)}; ask for fewer --prompts"
        )
    return rows


def sampled(args: Args, policy: Path, settings: dict[str, Any], file: Path, out: Path) -> Array:
    """Outcomes of all responses, (prompts, samples), with the sampling of the run."""
    stop = settings.get("stop")
    made = evaluate_llm.Args(
        model=str(policy), benchmarks=(f"{BENCHMARK}={file}",), k=args.samples, seed=args.seed, device=args.device,
        bf16=args.bf16, out=out, batch_size=args.batch_size, reward=args.reward, stop=stop and tuple(stop),
        temperature=settings["temperature"], max_response_length=settings["max_response_length"],
    )  # fmt: skip
    evaluate_llm.main(made)
    outcome = np.full((args.prompts, args.samples), np.nan)
    for line in (out / f"{BENCHMARK}.jsonl").read_text().splitlines():
        record = json.loads(line)
        outcome[record["problem"], record["sample"]] = record["outcome"]
    return outcome


@torch.no_grad()
def hidden_states(critic: PromptCritic, prompts: Sequence[str]) -> Array:
    """What the critic's head reads, (prompts, width)."""
    seen: list[torch.Tensor] = []
    hook = critic.head.register_forward_hook(lambda module, given, result: seen.append(given[0].double().cpu()))
    for prompt in prompts:
        critic.predict([prompt])
    hook.remove()
    return np.asarray(torch.cat(seen).numpy())


def measure(args: Args, checkpoint: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """V and success of each prompt at one checkpoint, and how well they agree."""
    outcome = sampled(
        args, checkpoint / "policy", settings, args.out / "problems.jsonl", args.out / f"responses_{checkpoint.name}"
    )
    critic = PromptCritic.from_pretrained(checkpoint / "critic", dtype=torch.float32)
    prompts = [row["prompt"] for row in rows]
    V, success = critic.predict(prompts).double().numpy(), outcome.mean(1)
    result = {
        "update": int(checkpoint.name),
        "spearman": spearman(V, success),
        "interval_95": interval(V, success, args.seed),
        "halves": spearman(outcome[:, ::2].mean(1), outcome[:, 1::2].mean(1)),
        "mean_V": float(V.mean()),
        "mean_success": float(success.mean()),
        "mean_error": float(np.abs(V - success).mean()),
        "V": V.round(4).tolist(),
        "success": success.round(4).tolist(),
    }
    if args.probe and int(checkpoint.name) == 0:
        guess = probe(hidden_states(critic, prompts), success)
        result |= {"probe": spearman(guess, success), "probe_interval_95": interval(guess, success, args.seed)}
    return result


# ------------------------------------------------------------------------------------------------------------- output
def number(rho: float | None, limits_95: Sequence[float] = ()) -> str:
    """A correlation with its interval; - where there is none."""
    if rho is None:
        return "-"
    return f"{rho:.2f}" + (f" [{limits_95[0]:.2f}, {limits_95[1]:.2f}]" if limits_95 else "")


def table(found: Sequence[dict[str, Any]]) -> str:
    """A row per checkpoint."""
    rows = [
        [
            str(row["update"]),
            number(row["spearman"], row["interval_95"]),
            number(row["halves"]),
            *(f"{row[key]:.3f}" for key in ("mean_V", "mean_success", "mean_error")),
        ]
        for row in found
    ]
    head = [
        "update",
        "Spearman of V and success",
        "of two halves",
        "mean V",
        "mean success",
        "mean of their difference",
    ]
    lines = [markdown_table(head, rows)]
    for row in found:
        if "probe" in row:
            rho = number(row["probe"], row["probe_interval_95"])
            lines.append(f"\nWhat the critic's model knew before the training (--probe): Spearman {rho}")
    return "\n".join(lines)


def draw(found: Sequence[dict[str, Any]], samples: int, file: Path) -> None:
    """A panel per checkpoint: V against success, a point per prompt."""
    extras.require("plots", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        1, len(found), figsize=(0.6 + 2.9 * len(found), 3.2), dpi=150, layout="constrained", sharey=True, squeeze=False
    )
    for axes, row in zip(grid[0], found, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(row["success"], row["V"], "o", markersize=3, alpha=0.6)
        axes.set(xlabel=f"success of {samples} responses", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_title(f"update {row['update']}: Spearman {number(row['spearman'])}", fontsize=9)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("V(s_p)")
    with checkpoints.writing(file):
        figure.savefig(file)
    plt.close(figure)


def main(args: Args) -> None:
    folders, rows = find_checkpoints(args), read_problems(args)
    if args.figure is not None:
        extras.require("plots", "matplotlib")
    settings = checkpoints.read_config(args.run)["args"]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for folder in folders:
        found.append(measure(args, folder, settings, rows))
        whole = {"samples": args.samples, "prompts": [row["prompt"] for row in rows], "checkpoints": found}
        checkpoints.write_json(args.out / "difficulty.json", {**whole, **runs.versions()})
    if args.figure is not None:
        draw(found, args.samples, args.figure)
    print(f"\n{table(found)}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
