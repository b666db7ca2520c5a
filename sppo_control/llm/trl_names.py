"""What `SPPOTrainer` uses of TRL's GRPOTrainer beyond its documented arguments, in one place.

TRL 1.16 documents no points at which GRPOTrainer may be overridden. Its public arguments do most of the work: generation,
reward functions, datasets, PEFT, the optimiser. The names below are the rest. TRL may rename them in any release, so they
are checked when the trainer is imported, and tests/test_llm_trl_names.py checks that this list is neither too short nor too
long.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

METHODS: dict[str, str] = {
    "_calculate_rewards": "wrapped: it returns the rewards of all processes, from which R is made",
    "_compute_loss": "wrapped: it says which batch the log-probabilities are for",
    "_generate_and_score_completions": "wrapped: the advantages of its batch are replaced",
    "_get_per_token_logps_and_entropies": "wrapped: ratios that overflow are made finite",
    "_get_train_sampler": "replaced: an order that a resumed run can continue",
    "_prepare_inputs": "wrapped: the paper's recipe needs the shuffled minibatches",
    "_tokenize_prompts": "replaced for text: the ids that the critic makes",
    "_save_optimizer_and_scheduler": "wrapped (of transformers' Trainer): the critic's state is saved as well",
    "_load_optimizer_and_scheduler": "wrapped (of transformers' Trainer): the critic's state is loaded as well",
    "_push_from_checkpoint": "wrapped (of transformers' Trainer): the critic is uploaded as well",
    "save_model": "wrapped (public): the critic is saved as well",
}
"""Methods that SPPOTrainer overrides -> what it does there."""

ATTRIBUTES: dict[str, str] = {
    "_buffered_inputs": "the rest of a generation batch, saved in checkpoints",
    "_logs": "the table of completions; its advantages are replaced",
    "_metrics": "what is logged",
    "_step": "how much of a generation batch is spent",
    "chat_template": "not None: TRL makes the prompts' ids",
    "chat_template_kwargs": "not empty: TRL makes the prompts' ids",
    "environment_factories": "not None: the prompts are the environment's",
    "epsilon_high": "the upper end of the clip range",
    "num_iterations": "how often a generation batch is used",
    "reward_funcs": "their columns are checked",
    "reward_weights": "R is the weighted sum",
    "shuffle_dataset": "whether prompts are permuted",
    "tools": "not empty: TRL makes the prompts' ids",
}
"""Attributes of an instance -> what they are used for."""

CARD = ("_tag_names", "_name", "_paper")
"""Class attributes that SPPOTrainer sets for TRL's model card. Without them only the card would change."""


def missing(trainer: type[Any]) -> list[str]:
    """The names of `METHODS` and `ATTRIBUTES` that a trainer class does not have.

    Args:
        trainer: TRL's GRPOTrainer. An attribute counts if the file of the class sets it on `self`.
    """
    source = Path(inspect.getfile(trainer)).read_text(encoding="utf-8")
    gone = [name for name in METHODS if not callable(getattr(trainer, name, None))]
    return gone + [name for name in ATTRIBUTES if f"self.{name} =" not in source and f"self.{name}:" not in source]


def check(trainer: type[Any]) -> None:
    """Say which names are missing, instead of a failure in the middle of a training run.

    Raises:
        ImportError: a name is missing. It names TRL's version and what each name is needed for.
    """
    if gone := missing(trainer):
        uses = "; ".join(f"{name} ({(METHODS | ATTRIBUTES)[name]})" for name in gone)
        raise ImportError(
            f"SPPOTrainer does not fit TRL {version('trl')}, whose {trainer.__name__} lacks {uses}. "
            "Install a version inside the range of the extra llm in pyproject.toml"
        )
