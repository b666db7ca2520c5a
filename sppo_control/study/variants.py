"""All algorithm variants of the study in one table: the script that runs each, its flags, and how it is drawn.

A new variant is one more row of `VARIANTS`. A training script outside this project is a variant too. Its name is the
file's name without .py. Results files contain only that name, so they can be drawn on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple


class Look(NamedTuple):
    """How a curve is drawn."""

    label: str
    colour: str
    line: str = "-"


class Variant(NamedTuple):
    """A training script with some flags."""

    name: str
    """its name on the command line and in results files"""
    script: str
    """a file of scripts/, or the full path of a script from elsewhere"""
    flags: tuple[str, ...]
    label: str
    """its name in legends"""
    colour: str
    line: str = "-"

    @property
    def look(self) -> Look:
        """How its curves are drawn."""
        return Look(self.label, self.colour, self.line)


# The colours are Okabe and Ito's, and shades of them. Variants of an algorithm are also dashed or dotted.
_TABLE = (
    Variant("sppo", "sppo_cartpole.py", (), "SPPO", "#0072B2"),
    Variant("sppo-paper", "sppo_cartpole.py", ("--critic-recipe", "paper"), "SPPO, paper's critic", "#56B4E9", "--"),
    Variant("sppo-skip", "sppo_cartpole.py", ("--skip-uniform-batches",), "SPPO, no uniform batches", "#003366", ":"),
    Variant("sppo-norm", "sppo_cartpole.py", ("--norm-adv", "minibatch"), "SPPO, normalised", "#4B0082", "--"),
    Variant(  # a sequence-level ratio beside the sequence-level advantage
        "sppo-ratio", "sppo_cartpole.py", ("--ratio", "sequence", "--clip-coef", "0.01"), "SPPO, one ratio per episode",
        "#8FB8FF", "-.",
    ),
    # PPO: the paper's setting, and as people run it
    Variant("ppo", "ppo_cartpole.py", (), "PPO", "#D55E00"),
    Variant("ppo-bce", "ppo_cartpole.py", ("--critic-loss", "bce"), "PPO + BCE", "#E69F00", "--"),
    Variant("ppo-skip", "ppo_cartpole.py", ("--skip-uniform-batches",), "PPO, no uniform batches", "#803300", "-."),
    Variant("ppo-norm", "ppo_cartpole.py", ("--norm-adv", "minibatch"), "PPO, normalised", "#FF4D4D", "--"),
    Variant(  # verl: masked_whiten over the whole batch, in compute_gae_advantage_return
        "ppo-norm-batch", "ppo_cartpole.py", ("--norm-adv", "batch"), "PPO, normalised per batch", "#F5A3A3", ":"
    ),
    Variant(  # CleanRL's and Stable-Baselines3's defaults of both
        "ppo-gae", "ppo_cartpole.py", ("--gamma", "0.99", "--gae-lambda", "0.95"), "PPO, GAE(0.99, 0.95)", "#B8860B", "-."
    ),
    Variant(
        "ppo-standard",  # all defaults of CleanRL's ppo.py, each beside its flag; docs/ppo.md says what remains different
        "ppo_cartpole.py",
        (
            "--learning-rate", "0.00025",  # learning_rate = 2.5e-4
            "--critic-learning-rate", "0.00025",  # one optimiser there, so the same
            "--anneal-lr",  # anneal_lr = True
            "--gamma", "0.99",  # gamma = 0.99
            "--gae-lambda", "0.95",  # gae_lambda = 0.95
            "--num-minibatches", "4",  # num_minibatches = 4
            "--update-epochs", "4",  # update_epochs = 4
            "--norm-adv", "minibatch",  # norm_adv = True
            "--clip-coef", "0.2",  # clip_coef = 0.2
            "--clip-vloss",  # clip_vloss = True
            "--ent-coef", "0.01",  # ent_coef = 0.01
            "--max-grad-norm", "0.5",  # max_grad_norm = 0.5
        ),
        "PPO, CleanRL's defaults",
        "#8B0000",
    ),
    Variant(  # VC-PPO, arXiv 2503.01491: the critic is trained first, and learns the undiscounted outcome
        "vc-ppo", "ppo_cartpole.py",
        ("--critic-warmup-batches", "5", "--gae-lambda", "0.95", "--critic-gae-lambda", "1"), "VC-PPO", "#6B4226", "--",
    ),
    # groups of episodes from one context
    Variant("grpo", "grpo_cartpole.py", (), "GRPO", "#009E73"),
    Variant(  # Dr. GRPO, arXiv 2503.20783
        "dr-grpo", "grpo_cartpole.py", ("--no-normalize-std", "--reduction", "fixed"), "Dr. GRPO", "#66C2A5", "--"
    ),
    Variant(  # GSPO, arXiv 2507.18071; its range for language models is 3e-4 and 4e-4
        "gspo", "grpo_cartpole.py",
        ("--ratio", "sequence", "--reduction", "sequence-mean", "--clip-coef", "0.01"), "GSPO", "#1B4D3E", "-.",
    ),
    Variant("rloo", "rloo_cartpole.py", (), "RLOO", "#CC79A7"),
    Variant(  # REINFORCE++ with a group's baseline, arXiv 2501.03262
        "reinforce-pp-baseline", "rloo_cartpole.py", ("--norm-adv", "batch"), "REINFORCE++, group baseline", "#7A3B69", "--"
    ),
    # one episode per context
    Variant("reinforce", "rloo_cartpole.py", ("--group-size", "1"), "REINFORCE, batch mean", "#000000"),
    Variant(
        "reinforce-norm", "rloo_cartpole.py", ("--group-size", "1", "--norm-adv", "minibatch"), "REINFORCE, normalised",
        "#8C8C8C", "--",
    ),
    Variant(  # REINFORCE++, arXiv 2501.03262, without its KL penalty
        "reinforce-pp", "rloo_cartpole.py", ("--group-size", "1", "--norm-adv", "batch"), "REINFORCE++", "#4D4D4D", ":"
    ),
    Variant(  # SPO, arXiv 2509.13232; contexts come once, so one tracker serves them all
        "spo", "rloo_cartpole.py", ("--group-size", "1", "--baseline", "tracked", "--norm-adv", "batch"),
        "SPO, one tracker", "#00B7C2", "-",
    ),
    Variant(  # SPO where contexts come again
        "spo-contexts", "rloo_cartpole.py",
        ("--group-size", "1", "--baseline", "tracked", "--norm-adv", "batch", "--num-contexts", "256"), "SPO, 256 contexts",
        "#006D77", "--",
    ),
    Variant("remax", "remax_cartpole.py", (), "ReMax", "#E6C700"),
)  # fmt: skip
VARIANTS = {variant.name: variant for variant in _TABLE}
OWN_COLOURS = ("#7F3C8D", "#8C564B", "#17BECF", "#E7298A", "#66A61E", "#666666")
"""Colours of variants that are not in the table, in the order of their names. The seventh has the first colour again."""


def find(words: Iterable[str]) -> list[Variant]:
    """The variants that these words name; each word is a name in the table or the path of a training script.

    Raises:
        ValueError: a word is unknown, a script is missing, or results files could not tell two variants apart.
    """
    words = list(words)
    if unknown := [word for word in words if word not in VARIANTS and not word.endswith(".py")]:
        raise ValueError(
            f"must be of {', '.join(VARIANTS)}, or the path of a script of your own (path/to/mine.py), "
            f"got {', '.join(unknown)}"
        )
    found: dict[str, Variant] = {}
    for word in words:
        variant = VARIANTS[word] if word in VARIANTS else _own(Path(word))
        if variant.name in found:
            raise ValueError(
                f"must have different names, because results files contain only the names; got two {variant.name}"
            )
        found[variant.name] = variant
    return list(found.values())


def _own(path: Path) -> Variant:
    """A script from outside the table.

    Raises:
        ValueError: there is no such file, or its name is taken.
    """
    if not os.path.isfile(path):  # False, too, for a name that is too long, where Path.is_file raises an OSError
        raise ValueError(f"must be names or existing scripts, and there is no file {path} (looked for in {Path.cwd()})")
    if path.stem in VARIANTS:
        raise ValueError(
            f"must not contain {path}: results files would call it {path.stem}, which is a name in the table; rename it"
        )
    return Variant(path.stem, str(path.resolve()), (), *looks([path.stem])[path.stem])


def of_run(script: str, arguments: Mapping[str, Any]) -> Variant | None:
    """The variant that a run belongs to; None if its script is not in the table.

    Args:
        script: file name of the training script.
        arguments: its arguments, by field name.
    """
    fitting = [
        variant
        for variant in VARIANTS.values()
        if variant.script == script and all(arguments.get(key) == value for key, value in _settings(variant).items())
    ]
    return max(fitting, key=lambda variant: len(variant.flags)) if fitting else None


def _settings(variant: Variant) -> dict[str, Any]:
    """Its flags as arguments: --critic-loss bce becomes {"critic_loss": "bce"}. A flag without a value is True, or False if
    it begins with --no-."""
    found: dict[str, Any] = {}
    for word in variant.flags:
        if word.startswith("--"):
            name = word.removeprefix("--").removeprefix("no-").replace("-", "_")
            found[name] = not word.startswith("--no-")
        else:
            try:
                found[name] = float(word)
            except ValueError:
                found[name] = word
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: first those in the table, in its order, then the others by name."""
    names = set(names)
    return [*(name for name in VARIANTS if name in names), *sorted(names - VARIANTS.keys())]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How these variants are drawn. Other programs may write a path into results; its label is the file's name."""
    names = in_order(names)
    own = [name for name in names if name not in VARIANTS]
    found = {name: VARIANTS[name].look for name in names if name in VARIANTS}
    for i, name in enumerate(own):
        label = PurePosixPath(name.replace("\\", "/")).name.removesuffix(".py")
        found[name] = Look(label, OWN_COLOURS[i % len(OWN_COLOURS)], "-.")
    return found
