"""One way to load a tokenizer: the saved one, whatever model is beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Names in tokenizer_config.json of the class that adds nothing to its tokenizer.json."""


def is_generic(path_or_hub_id: str | os.PathLike[str], **kwargs: Any) -> bool:
    """Whether the saved class is PreTrainedTokenizerFast (named TokenizersBackend since transformers 5).

    Args:
        path_or_hub_id: a folder, or a repository of the Hub; its tokenizer_config.json is fetched if it is not cached.
        kwargs: where and what to fetch: `revision`, `cache_dir`, `token`, `local_files_only`, `subfolder`. Others are
            ignored.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    return get_tokenizer_config(path_or_hub_id, **kwargs).get("tokenizer_class") in GENERIC


def load_tokenizer(path_or_hub_id: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved there. No code from there is executed.

    `AutoTokenizer` alone is not enough. For some model types (qwen2 is one) it does not trust a generic `tokenizer_class`.
    It builds the model's usual tokenizer around the saved vocabulary, which splits texts differently. That is right for old
    uploads of these models, and wrong for your own tokenizer, such as one of characters.

    Args:
        path_or_hub_id: a folder, or a repository of the Hub.
        kwargs: for `from_pretrained`, such as `padding_side` or `revision`; `trust_remote_code` stays False.

    Raises:
        OSError, ValueError: there is no tokenizer, or it needs code from there.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if is_generic(path_or_hub_id, **kwargs) else AutoTokenizer
    return kind.from_pretrained(path_or_hub_id, **{**kwargs, "trust_remote_code": False})
