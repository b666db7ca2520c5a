"""One way to load a tokenizer: the saved one, whatever model is beside it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from sppo_control.llm.rewards import lost_backslash

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


def prompt_text(prompt: Any, tokenizer: Any) -> str:
    """The text of a prompt: a string as it is, or chat messages through the chat template.

    Messages that end with the assistant's are an answer that was begun; the policy goes on with it.

    Raises:
        ValueError: the tokenizer has no chat template for the messages, or one that leaves out the user's or the system's,
            or that cannot go on with the last one; a message has no role or no content; see `_checked`.
    """
    if isinstance(prompt, str):
        if re.match(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:", prompt):
            raise ValueError(
                f"the prompt {prompt[:40]!r} is a text with chat messages in it; make them a list, with json.loads or "
                "ast.literal_eval, and save as .jsonl"
            )
        return _checked(prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the prompts are chat messages, and the tokenizer has no chat template; make them texts")
    import jinja2

    prompt = [_message(message) for message in prompt]
    how: dict[str, Any] = {"add_generation_prompt": True}
    if prompt and prompt[-1]["role"] == "assistant":
        if prompt[-1]["content"]:
            how = {"continue_final_message": True}
        else:
            prompt = prompt[:-1]  # nothing was begun
    try:
        text = str(tokenizer.apply_chat_template(prompt, tokenize=False, **how))
    except jinja2.TemplateError as error:
        raise ValueError(f"the tokenizer's chat template does not take these messages: {error}") from error
    except ValueError as error:
        if "continue_final_message" not in how:
            raise
        raise ValueError(
            "the chat messages end with the assistant's, and the chat template cannot go on with it; end them with "
            "the user's"
        ) from error
    for message in prompt:
        if message["role"] in ("user", "system") and message["content"].strip() not in text:
            raise ValueError(
                f"the tokenizer's chat template leaves out the {message['role']}'s message {message['content'][:40]!r}; "
                "put it into another message, or give the prompts as texts"
            )
    return _checked(text)


def _message(message: Any) -> dict[str, Any]:
    """A chat message whose content is a text. Templates write an absent field as nothing, without an error.

    Raises:
        ValueError: it has no role or no content, or one that is no text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(
            f"the chat message {str(message)[:60]!r} has no role; a message is {{'role': 'user', 'content': 'What is ...'}}"
        )
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if content is None and message["role"] != "user":
        content = ""
    if not isinstance(content, str) or (message["role"] == "user" and not content.strip()):
        raise ValueError(f"the {message['role']}'s message has the content {str(content)[:60]!r}, and a text is needed")
    return {**message, "content": content}


def _checked(text: str) -> str:
    """The text, if a tokenizer can read it and it says what was meant.

    Raises:
        ValueError: it has half a character; LaTeX in it has lost a backslash.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt {text[:40]!r} has half a character at {error.start}, as where a text was cut; leave it out"
        ) from None
    if lost_backslash(text):
        raise ValueError(
            f"the prompt {text[:40]!r} has lost a backslash; in JSON and in Python it is written twice, as \\\\frac"
        )
    return text


def prompt_ids(prompt: Any, tokenizer: Any) -> list[int]:
    """The token ids of a prompt, for policy, critic and evaluation alike.

    A text gets the special tokens that the tokenizer puts in front of texts. Those that it puts behind them, such as an
    end-of-text token, are left out, because the response follows. A chat has those of its template alone.

    Args:
        prompt: a text, or chat messages (see `prompt_text`).
        tokenizer: the policy's.

    Returns:
        Ids, none for an empty text.

    Raises:
        ValueError: the begin-of-text token would be there twice; see `prompt_text`.
    """
    text = prompt_text(prompt, tokenizer)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if isinstance(prompt, str):
        whole, n = list(tokenizer(text)["input_ids"]), len(ids)
        start = next((i for i in range(len(whole) - n + 1) if whole[i : i + n] == ids), None)
        if start is not None:
            ids = whole[: start + n]
        else:  # its special tokens change how the text is cut
            ids, behind = whole, {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)}
            while ids and ids[-1] in behind and not text.endswith((tokenizer.eos_token or "\0",)):
                ids = ids[:-1]
        if not n and not text:
            return []
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError(
            f"the prompt {text[:40]!r} begins with two {tokenizer.bos_token}: one from its text or chat template, one from "
            "the tokenizer; take it out of the text, or give chat messages in place of a text with the template applied"
        )
    return ids
