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


# The colours are Okabe and Ito's, and darker shades of them. Variants of an algorithm are also dashed or dotted.
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("sppo", "sppo_cartpole.py", (), "SPPO", "#0072B2"),
        Variant(
            "sppo-paper", "sppo_cartpole.py", ("--critic-recipe", "paper"), "SPPO, paper's critic", "#56B4E9", "--"
        ),
        Variant(
            "sppo-skip", "sppo_cartpole.py", ("--skip-uniform-batches",), "SPPO, no uniform batches", "#003366", ":"
        ),
        Variant("ppo", "ppo_cartpole.py", (), "PPO", "#D55E00"),
        Variant("ppo-bce", "ppo_cartpole.py", ("--critic-loss", "bce"), "PPO + BCE", "#E69F00", "--"),
        Variant("ppo-skip", "ppo_cartpole.py", ("--skip-uniform-batches",), "PPO, no uniform batches", "#803300", "-."),
        Variant("grpo", "grpo_cartpole.py", (), "GRPO", "#009E73"),
        Variant("rloo", "rloo_cartpole.py", (), "RLOO", "#CC79A7"),
        Variant("reinforce", "rloo_cartpole.py", ("--group-size", "1"), "REINFORCE, batch mean", "#000000"),
        Variant("remax", "remax_cartpole.py", (), "ReMax", "#E6C700"),
    )
}
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
    """Its flags as arguments: --critic-loss bce becomes {"critic_loss": "bce"}. A flag without a value is True."""
    found: dict[str, Any] = {}
    for word in variant.flags:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            found[name] = True
        else:
            found[name] = int(word) if word.isdigit() else word
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
