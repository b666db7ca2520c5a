"""The card of a saved critic: what it predicts, of which data, and how far its probabilities can be trusted.

    card = make_card(critic, prompts, outcomes, data="500 held-out additions", policy="runs/addition.../policy")
    critic.save_pretrained("critics/addition", card=card)       # README.md, calibration.png, critic_card.json

The folder can be put on the Hugging Face Hub as it is; README.md begins with the fields that the Hub reads.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sppo_control import core
from sppo_control.markdown import markdown_table
from sppo_control.outcomes import ranks, spearman

if TYPE_CHECKING:
    from sppo_control.llm.critic import Prompt, PromptCritic

CARD, PLOT, NUMBERS = "README.md", "calibration.png", "critic_card.json"
"""The three files. They are written and removed together, so that no numbers stay beside another critic."""
BINS = 10
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One of ten equal bins of V: how many outcomes, mean V, share of successes with its 95 % Wilson interval."""

    low: float
    high: float
    outcomes: int
    v: float
    success: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """How good V is as a probability.

    | field             | meaning                                                                                        |
    | ----------------- | ---------------------------------------------------------------------------------------------- |
    | prompts, outcomes | how many prompts, and outcomes R in all                                                        |
    | success           | mean R                                                                                         |
    | brier             | mean (V - R)^2                                                                                 |
    | base_rate_brier   | the same if V were mean R for every prompt: success x (1 - success)                            |
    | ece               | expected calibration error, ten bins                                                           |
    | auc               | probability that V of a success is above V of a failure, ties half; None if all R are equal    |
    | spearman          | rank correlation of V and the success rate of the prompt; None with one outcome per prompt,    |
    |                   | or if V or all rates are equal                                                                 |
    | bins              | those that have outcomes                                                                       |
    """

    prompts: int
    outcomes: int
    success: float
    brier: float
    base_rate_brier: float
    ece: float
    auc: float | None
    spearman: float | None
    bins: tuple[Bin, ...]


def calibration(v0: Tensor, outcomes: Tensor) -> Calibration:
    """Compare V(s_p) with outcomes of responses to the same prompts.

    Args:
        v0: V, (n,), in [0, 1].
        outcomes: R, 0 or 1, (n,) or (n, k): k responses to each prompt.

    Raises:
        ValueError: shapes that do not fit, no prompt, V outside [0, 1], or an outcome other than 0 and 1.
    """
    R = torch.as_tensor(outcomes, dtype=torch.float64)
    V = torch.as_tensor(v0, dtype=torch.float64)
    R = R[:, None] if R.ndim == 1 else R
    if V.ndim != 1 or R.ndim != 2 or len(V) != len(R) or not R.numel():
        raise ValueError(
            f"v0 must be (n,) and outcomes (n,) or (n, k), with at least one prompt, got {tuple(v0.shape)} and "
            f"{tuple(outcomes.shape)}"
        )
    if not bool(((V >= 0) & (V <= 1)).all()):
        raise ValueError(f"v0 must be probabilities from 0 to 1, got {V[~((V >= 0) & (V <= 1))][:3].tolist()}")
    if not bool(((R == 0) | (R == 1)).all()):
        raise ValueError(f"outcomes must be 0 or 1, got {R[(R != 0) & (R != 1)][:3].tolist()}")
    each, flat = V[:, None].expand(R.shape).flatten(), R.flatten()
    mean = float(flat.mean())
    where = (each * BINS).long().clamp(max=BINS - 1)
    bins = []
    for i in range(BINS):
        if count := int((where == i).sum()):
            inside = where == i
            wins = int(flat[inside].sum())
            interval = core.wilson_interval(wins, count)
            bins.append(Bin(i / BINS, (i + 1) / BINS, count, float(each[inside].mean()), wins / count, interval))
    return Calibration(
        prompts=len(V), outcomes=len(flat), success=mean, brier=float(core.brier_score(each, flat)),
        base_rate_brier=mean * (1 - mean), ece=float(core.expected_calibration_error(each, flat, BINS)),
        auc=_auc(each.numpy(), flat.numpy()),
        spearman=spearman(V.numpy(), R.mean(1).numpy()) if R.shape[1] > 1 else None,
        bins=tuple(bins),
    )  # fmt: skip


def _auc(v0: Floats, outcome: Floats) -> float | None:
    n, m = int((outcome == 1).sum()), int((outcome == 0).sum())
    if not n or not m:
        return None
    return float((ranks(v0)[outcome == 1].sum() - n * (n + 1) / 2) / (n * m))  # Mann-Whitney


@dataclass(frozen=True)
class CriticCard:
    """What README.md of a saved critic says.

    Args:
        data: which prompts the numbers are of, in words.
        policy: whose success V predicts: a name, a folder or a Hub id.
        base_model: what the backbone was made from: a name, a folder or a Hub id.
        calibration: the numbers; None where nothing was judged.
        trained_on: what the critic has learnt from, in words.
        sampling: how the responses were written and judged, in words.
        license: of the base model, as the Hub names it (apache-2.0); None where it is not known.
    """

    data: str
    policy: str
    base_model: str
    calibration: Calibration | None = None
    trained_on: str = ""
    sampling: str = ""
    license: str | None = None

    def text(self, plot: bool = True) -> str:
        """README.md. `plot`: whether the picture is beside it."""
        head = ["---", "library_name: sppo-control", *([f"license: {_quoted(self.license)}"] if self.license else [])]
        if self.base_model.count("/") == 1 and not os.path.exists(self.base_model):  # else it is no id of the Hub
            head.append(f"base_model: {_quoted(self.base_model)}")
        head += ["tags:", "- sppo", "- critic", "- success-prediction", "---"]
        known = self.license is not None
        lines = [
            *head, "", "# A critic: how likely is success on a prompt?", "",
            f"V(s_p) is the probability that one response of the policy `{self.policy}` to the prompt s_p is right. The "
            "critic reads the prompt alone. It was trained by Sequence-Level PPO (arXiv 2604.08865).", "",
            "    from sppo_control.llm import PromptCritic", "",
            '    critic = PromptCritic.from_pretrained("<this folder>")',
            "    critic.predict([...])  # texts or chat messages -> probabilities, float32", "",
            "V belongs to that policy at that moment of its training, and to prompts like those below. Of other policies "
            "or other prompts it says nothing that was measured.", "", "## Data", "",
            f"- Measured on: {self.data}",
            *([f"- Trained on: {self.trained_on}"] if self.trained_on else []),
            *([f"- Responses: {self.sampling}"] if self.sampling else []),
            f"- Policy: `{self.policy}`", f"- Base model of the backbone: `{self.base_model}`",
            f"- Licence of the base model: {self.license}. It holds for these weights too." if known
            else "- Licence of the base model: not recorded here. It holds for these weights too, so look it up before you "
            "pass them on.", "", "## Calibration", "",
        ]  # fmt: skip
        if (found := self.calibration) is None:
            return "\n".join([*lines, "Not measured: no response was judged.", ""])
        better = "better" if found.brier < found.base_rate_brier else "not better"
        rows = [
            ("prompts, outcomes", f"{found.prompts:,}, {found.outcomes:,}"),
            ("share of successes (the base rate)", f"{found.success:.3f}"),
            ("Brier score, mean (V - R)^2", f"{found.brier:.4f}"),
            ("the same of a critic that always says the base rate", f"{found.base_rate_brier:.4f}"),
            ("expected calibration error, ten bins", f"{found.ece:.4f}"),
            ("AUC: V of a success above V of a failure", _number(found.auc, "undefined: all outcomes are equal")),
            ("Spearman: V and the success rate of each prompt",
             _number(found.spearman, "undefined: one outcome per prompt, or no differences")),
        ]  # fmt: skip
        lines += [
            markdown_table(("", "value"), rows),
            "",
            f"This critic is {better} than the base rate by its Brier score.",
        ]
        k = found.outcomes // found.prompts
        if found.spearman is not None:
            lines += [f"A success rate from {k} responses is itself noisy, so even a perfect V would not reach 1 here."]
        lines += ["", f"![Share of successes against V]({PLOT})"] if plot else []
        bins = [
            (f"{b.low:.1f} to {b.high:.1f}", f"{b.outcomes:,}", f"{b.v:.3f}",
             f"{b.success:.3f} [{b.interval[0]:.3f}, {b.interval[1]:.3f}]")
            for b in found.bins
        ]  # fmt: skip
        lines += ["", markdown_table(("V", "outcomes", "mean V", "successes, 95 % Wilson interval"), bins), ""]
        if k > 1:
            lines += [
                f"The {k} outcomes of one prompt are not independent, so the intervals of bins with few prompts are too "
                "narrow.",
                "",
            ]
        return "\n".join(lines)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write README.md, critic_card.json and, where matplotlib is installed, calibration.png into a folder."""
        folder = Path(folder)
        plot = self.calibration is not None and find_spec("matplotlib") is not None
        if plot:
            assert self.calibration is not None
            (folder / PLOT).write_bytes(draw(self.calibration))
        (folder / CARD).write_text(self.text(plot), encoding="utf-8")
        (folder / NUMBERS).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def _quoted(text: str | None) -> str:
    return json.dumps(text)


def _number(x: float | None, instead: str) -> str:
    return instead if x is None else f"{x:.3f}"


def remove_card(folder: Path) -> None:
    """Take away the card of an earlier critic in this folder; other files of these names stay."""
    if (folder / NUMBERS).is_file():
        for name in (CARD, PLOT, NUMBERS):
            (folder / name).unlink(missing_ok=True)


def draw(found: Calibration) -> bytes:
    """The calibration plot as a PNG file: share of successes against V, and how many outcomes each bin has."""
    from matplotlib.figure import Figure  # without pyplot, so a program that draws for itself keeps its own settings

    figure = Figure(figsize=(4.4, 4.6), dpi=130, layout="constrained")
    top, low = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    top.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1)
    v, success = [b.v for b in found.bins], [b.success for b in found.bins]
    ends = [
        [max(b.success - b.interval[0], 0) for b in found.bins],
        [max(b.interval[1] - b.success, 0) for b in found.bins],
    ]
    top.errorbar(v, success, yerr=ends, fmt="o", color="#2e6f95", capsize=2, markersize=5)
    top.axhline(found.success, color="#d1495b", linewidth=0.9)
    top.text(0.01, found.success, " base rate", color="#d1495b", va="bottom", fontsize=8)
    top.set(ylabel="share of successes", ylim=(-0.03, 1.03), xlim=(-0.03, 1.03))
    auc = "" if found.auc is None else f", AUC {found.auc:.2f}"
    top.set_title(
        f"{found.outcomes:,} outcomes, Brier {found.brier:.3f} (base rate {found.base_rate_brier:.3f}){auc}", fontsize=8
    )
    low.bar(
        [b.low for b in found.bins],
        [b.outcomes for b in found.bins],
        1 / BINS,
        align="edge",
        color="#2e6f95",
        alpha=0.5,
    )
    low.set(xlabel="V(s_p)", ylabel="outcomes")
    for axes in (top, low):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def make_card(
    critic: PromptCritic,
    prompts: Sequence[Prompt],
    outcomes: Tensor | Sequence[Any],
    *,
    data: str,
    policy: str,
    base_model: str | None = None,
    trained_on: str = "",
    sampling: str = "",
    license: str | None = None,
    batch_size: int = 16,
) -> CriticCard:
    """Measure a critic on prompts whose responses were judged.

    Args:
        critic: says V.
        prompts: n texts, chats or lists of token ids. They should not be those that it was trained on.
        outcomes: R, 0 or 1, (n,) or (n, k): k responses of the policy to each.
        data, policy, trained_on, sampling: see `CriticCard`.
        base_model: None is what the backbone's configuration names.
        license: of the base model; None reads it from the README.md beside it, if it is in a folder here.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: see `PromptCritic.predict` and `calibration`.
    """
    name = base_model or str(critic.backbone.config._name_or_path) or "not recorded"
    found = calibration(critic.predict(prompts, batch_size), torch.as_tensor(outcomes))
    return CriticCard(data, policy, name, found, trained_on, sampling, license or base_license(name))


def base_license(folder: str | os.PathLike[str]) -> str | None:
    """The licence that the README.md in a folder names in its head; None where there is none."""
    try:
        lines = (Path(folder) / CARD).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")
    return None
