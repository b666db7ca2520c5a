"""One way to load a tokenizer: the saved one, whatever model lies beside it."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Names in tokenizer_config.json of the class that is nothing but its tokenizer.json."""


def is_generic(path_or_hub_id: str | os.PathLike[str], **kwargs: Any) -> bool:
    """Whether what lies there says that it is a PreTrainedTokenizerFast (named TokenizersBackend since transformers 5).

    Args:
        path_or_hub_id: a folder, or a repository of the Hub, of which tokenizer_config.json is fetched if it is not cached.
        kwargs: where and what to fetch: `revision`, `cache_dir`, `token`, `local_files_only`, `subfolder`; others are
            passed over.
    """
    return get_tokenizer_config(path_or_hub_id, **kwargs).get("tokenizer_class") in GENERIC


def load_tokenizer(path_or_hub_id: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved there; executes no code from there.

    `AutoTokenizer` alone does not do: for some model types, qwen2 among them, it distrusts a generic `tokenizer_class` and
    builds the model's usual tokenizer around the saved vocabulary, which splits texts differently. Right for old uploads of
    these models, wrong for a tokenizer of one's own, such as one of characters.

    Args:
        path_or_hub_id: a folder, or a repository of the Hub.
        kwargs: for `from_pretrained`, as `padding_side` or `revision`; `trust_remote_code` stays False.

    Raises:
        OSError, ValueError: no tokenizer there, or one that needs code from there.
    """
    kind = PreTrainedTokenizerFast if is_generic(path_or_hub_id, **kwargs) else AutoTokenizer
    return kind.from_pretrained(path_or_hub_id, **{**kwargs, "trust_remote_code": False})
