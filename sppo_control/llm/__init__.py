"""The language-model adapter: the functions of `sppo_control.core` on language models.

| name              | file        | what it is                                                                  |
| ----------------- | ----------- | --------------------------------------------------------------------------- |
| `token_log_probs` | logprobs.py | log-probabilities (and entropy) of given tokens, without the (B, T, V) logits |
| `PromptCritic`    | critic.py   | V(s_p): a backbone with one scalar head at the last prompt token             |
| `exact_match`     | rewards.py  | 1 where a completion is the answer, else 0                                   |
| `MathReward`      | rewards.py  | the same for boxed mathematical answers, through math-verify                 |
| `load_tokenizer`  | tokenizers.py | the saved tokenizer, whatever model is beside it                           |
| `SPPOConfig`, `SPPOTrainer` | trainer.py | SPPO in TRL: a subclass of its GRPOTrainer                        |
| `SequenceLevelPPOConfig`, `SequenceLevelPPOTrainer` | trainer.py | the same two classes, by a name of their own     |

A name is imported when it is first used. So importing this package needs none of the packages of the extra `llm`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sppo_control import extras

if TYPE_CHECKING:
    from sppo_control.llm.critic import PromptCritic as PromptCritic
    from sppo_control.llm.logprobs import token_log_probs as token_log_probs
    from sppo_control.llm.rewards import MathReward as MathReward
    from sppo_control.llm.rewards import exact_match as exact_match
    from sppo_control.llm.tokenizers import load_tokenizer as load_tokenizer
    from sppo_control.llm.trainer import SequenceLevelPPOConfig as SequenceLevelPPOConfig
    from sppo_control.llm.trainer import SequenceLevelPPOTrainer as SequenceLevelPPOTrainer
    from sppo_control.llm.trainer import SPPOConfig as SPPOConfig
    from sppo_control.llm.trainer import SPPOTrainer as SPPOTrainer

_HOME = {
    "token_log_probs": "logprobs",
    "PromptCritic": "critic",
    "exact_match": "rewards",
    "MathReward": "rewards",
    "load_tokenizer": "tokenizers",
    "SPPOConfig": "trainer",
    "SPPOTrainer": "trainer",
    "SequenceLevelPPOConfig": "trainer",
    "SequenceLevelPPOTrainer": "trainer",
}
_NEEDS = {
    "critic": ("transformers",),
    "tokenizers": ("transformers",),
    "trainer": ("transformers", "datasets", "accelerate", "trl"),
}
"""File -> modules of the extra `llm` without which it is of no use."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import the file that contains `name`.

    Raises:
        AttributeError: there is no such name.
        MissingExtra: a package of the extra `llm` is missing.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    home = _HOME[name]
    extras.require("llm", *_NEEDS.get(home, ()), wanted_by=f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
