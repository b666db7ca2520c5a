"""Which random numbers are drawn for what: one table, so that no two purposes share a generator.

A generator is made of four whole numbers. numpy fills missing ones with zeros, so [1, 5] and [1, 5, 0, 0] are the same
generator. Training uses three numbers, (seed, update, stream), so its fourth is 0. Every other purpose has a fourth number
of its own, which is never 0. Seeds are below 2^32, because numpy splits larger ones into two numbers.
"""

from __future__ import annotations

import numpy as np

TRAINING = {"rollout": 0, "shuffle": 1, "evaluate": 2, "prompts": 3}
"""Streams of a training update: the third number."""
PURPOSES = {"evaluate.py": 1, "video": 2, "critic_card.py": 3}
"""Everything else: the fourth number.

contexts.py, probe.py and pretrain.py draw from [seed] or [seed, stage, count], as training does. docs/contexts.png, the
files that results/commands/probes.toml makes and every shipped policy were made so, and would become others.
"""
LARGEST_SEED = 2**32 - 1


def training_words(seed: int, update: int, stream: str) -> list[int]:
    """The numbers of one update of a training run."""
    return [seed, update, TRAINING[stream]]


def words(purpose: str, seed: int, number: int = 0) -> list[int]:
    """The numbers of another purpose; `number` counts its generators, an episode of a video for example."""
    return [seed, number, 0, PURPOSES[purpose]]


def new_rng(purpose: str, seed: int, number: int = 0) -> np.random.Generator:
    """A fresh generator for a purpose of `PURPOSES`; equal arguments give equal generators."""
    return np.random.default_rng(words(purpose, seed, number))
