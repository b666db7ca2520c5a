"""SPPO's critic for language models: V(s_p) = sigmoid(v), the probability of success read from the prompt alone.

| symbol         | shape        | meaning                                                     |
| -------------- | ------------ | ----------------------------------------------------------- |
| input_ids      | (B, P), int  | prompts, padded left or right                               |
| attention_mask | (B, P)       | 1 on the prompt's tokens, 0 on padding                      |
| v, value_logit | (B,)         | the scalar head at the last prompt token (SPPO, section 4)  |

A critic is saved separately and is useful without its policy. `PromptCritic.from_pretrained(folder).predict(prompts)` says
how likely the policy is to succeed on each prompt. docs/critic.md is about all of this.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sppo_control import checkpoints, core
from sppo_control.errors import UserError
from sppo_control.llm import adapters
from sppo_control.llm.context import check_context, check_ids
from sppo_control.llm.critic_card import CriticCard, remove_card
from sppo_control.llm.tokenizers import load_tokenizer, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""Text, chat messages, or token ids."""

SHORT = 256
"""Tokens up to which `short_attention` changes anything."""

_MARKER = "prompt_critic.json"
"""The file that is written last: a folder without it does not contain a whole critic."""


class PromptCritic(nn.Module):
    """A backbone and one linear head on its hidden state at the last prompt token.

    The head starts at zero, so V = 1/2 for every prompt and the first advantages are R - 1/2, not noise. Only in that first
    step the backbone's gradient is zero. Make one with `from_backbone` or `from_pretrained`. Both leave it in evaluation
    mode, because dropout would make V random, and the advantage too.

    Args:
        backbone: a Hugging Face model without a language-model head, whose output has `last_hidden_state`. Its last prompt
            position must see the whole prompt, as in every decoder. It is not copied. It may be wrapped by PEFT with one
            LoRA adapter (`adapters.add_adapter` does so).
        tokenizer: the backbone's tokenizer, for `predict`. It must also be the policy's (`check_same_tokenizer`).
    """

    def __init__(self, backbone: PreTrainedModel, tokenizer: Any = None) -> None:
        super().__init__()
        if adapters.is_adapted(backbone):
            adapters.check_backbone(backbone)
        self.backbone = backbone
        self.backbone.config.use_cache = False  # the keys and values of a prompt are never used again
        parameter = next(backbone.parameters())
        config = backbone.config.get_text_config()
        # OPT may project its hidden states to another width; then this is the output's.
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        # The head is small and V depends on its one sum, so it is float32 even with a bfloat16 backbone.
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        self.head = nn.Linear(width, 1, device=parameter.device, dtype=dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.tokenizer = tokenizer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The critic's logit of each prompt.

        Args:
            input_ids: (B, P), int64. Padding may be any token.
            attention_mask: (B, P), bool or int, with at least one True per row.

        Returns:
            value_logit, (B,), in the head's dtype, with gradient.

        Raises:
            ValueError: a wrong shape, or a prompt without a token (on the CPU; elsewhere the device stops).
        """
        if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
            raise ValueError(
                "input_ids and attention_mask must be (B, P) alike, "
                f"got {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
            )
        mask = attention_mask.bool()
        core.require(mask.any(dim=1).all(), "a prompt has no token: a row of attention_mask is all 0")
        # Padding moves to the right, wherever it was. Then every decoder counts positions from 0 at the first real token,
        # and no real token sees padding. position_ids would do the same, but some architectures do not take them.
        order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)  # (B, P)
        input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        with short_attention(self.backbone, input_ids.shape[1]):
            hidden = self.backbone(input_ids=input_ids, attention_mask=mask.to(attention_mask.dtype)).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]  # (B, D)
        with torch.autocast(hidden.device.type, enabled=False):
            # A copy, not a view: FSDP2 attaches a hook to what is returned, and warns that a view may lose it.
            return self.head(last.to(self.head.weight.dtype))[:, 0].clone()

    @torch.no_grad()
    def predict(self, prompts: Sequence[Prompt], batch_size: int = 16) -> Tensor:
        """How likely success is on each prompt.

        Args:
            prompts: n texts or chats, as in the dataset (`tokenizers.prompt_ids` makes the ids, as for the policy), or the
                ids themselves.
            batch_size: prompts per forward pass, at least 1.

        Returns:
            V(s_p), (n,), float32, on the CPU.

        Raises:
            TypeError: a prompt is no text, no chat and no list of token ids; batch_size is no whole number.
            ValueError: there is no tokenizer for texts or chats; one string or one chat instead of a list; an empty prompt,
                or one that begins with two begin-of-text tokens, has a token without an embedding, or is longer than the
                model's positions; batch_size below 1; V is NaN.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list, got one string; pass [{prompts[:20]!r}...]")
        if isinstance(prompts, Mapping) or (len(prompts) and isinstance(prompts[0], Mapping)):
            raise ValueError("prompts must be a list of prompts, got the messages of one chat; pass [messages]")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
            raise TypeError(f"batch_size must be a whole number, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        ids = [self._tokens(prompt, index) for index, prompt in enumerate(prompts)]
        if empty := [index for index, row in enumerate(ids) if not row]:
            raise ValueError(f"the prompt at index {empty[0]} has no token; leave empty prompts out")
        check_ids(self.backbone, ids, "the critic")
        check_context(self.backbone.config, "the critic", max(map(len, ids), default=0), 0, "")
        value = torch.empty(len(ids))
        by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # so each batch has little padding
        training = self.training
        self.eval()
        try:
            for start in range(0, len(ids), batch_size):
                rows = by_length[start : start + batch_size]
                width = len(ids[rows[-1]])
                padded = torch.tensor(
                    [ids[i] + [0] * (width - len(ids[i])) for i in rows], device=self.head.weight.device
                )
                length = torch.tensor([len(ids[i]) for i in rows], device=padded.device)
                mask = torch.arange(width, device=padded.device) < length[:, None]
                value[rows] = torch.sigmoid(self(padded, mask.long())).float().cpu()
        finally:
            self.train(training)
        if bool(value.isnan().any()):
            index = int(value.isnan().nonzero()[0, 0])
            raise ValueError(
                f"V of the prompt at index {index} is NaN: the critic's weights are not finite; take an earlier one"
            )
        return value

    def _tokens(self, prompt: Prompt, index: int = 0) -> list[int]:
        """The ids of one prompt, by the one function that makes them."""
        whole = (int, np.integer)
        if isinstance(prompt, Tensor | np.ndarray):
            prompt = prompt.tolist()
        if isinstance(prompt, Sequence) and len(prompt) and not isinstance(prompt, str):
            if all(isinstance(x, whole) and not isinstance(x, bool) for x in prompt):
                ids = [int(x) for x in prompt]  # type: ignore[arg-type]
                if min(ids) < 0:
                    raise ValueError(f"the prompt at index {index} has the token {min(ids)}; ids are 0 or more")
                return ids
        elif isinstance(prompt, str | Sequence) and not len(prompt):
            return []
        if not isinstance(prompt, str) and not (
            isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)
        ):
            raise TypeError(
                f"the prompt at index {index} is {str(prompt)[:40]!r}; give a text, a list of chat messages, or a list of "
                "token ids"
            )
        if self.tokenizer is None:
            raise ValueError(
                "predict needs a tokenizer; give one: critic.tokenizer = load_tokenizer(...) of sppo_control.llm"
            )
        try:
            return prompt_ids(prompt, self.tokenizer)
        except ValueError as error:
            raise ValueError(f"the prompt at index {index}: {error}") from error

    # ------------------------------------------------------------------------------------------ making, saving, loading
    @classmethod
    def from_backbone(
        cls, model_or_path: PreTrainedModel | str | os.PathLike[str], tokenizer: Any = None, **kwargs: Any
    ) -> PromptCritic:
        """A critic with the weights of a language model and a head of zeros.

        Args:
            model_or_path: a folder, a Hub id, or a Hugging Face model with or without its language-model head. A model is
                copied, so it may be the policy.
            tokenizer: None loads the one beside the weights, if there is one.
            kwargs: for `AutoModel.from_pretrained`. `revision` and where to look are used for the tokenizer too. `dtype` is
                float32 unless given, because the critic is trained and bfloat16 weights lose small updates.

        Raises:
            TypeError: a model with an adapter of PEFT.
        """
        from transformers import AutoModel, PreTrainedModel

        if adapters.is_adapted(model_or_path):
            raise TypeError(
                "a model with an adapter cannot be copied into a critic; merge it first (model.merge_and_unload()), or "
                "wrap a model without language-model head and pass it to PromptCritic(...)"
            )
        if isinstance(model_or_path, PreTrainedModel):
            backbone: PreTrainedModel = copy.deepcopy(model_or_path.base_model)  # type: ignore[assignment]
            backbone.requires_grad_(True)
            backbone.zero_grad(set_to_none=True)
            return cls(backbone, tokenizer).eval()
        backbone = AutoModel.from_pretrained(model_or_path, **{"dtype": torch.float32, **kwargs})
        if tokenizer is None and not (os.path.isdir(model_or_path) and not _has_tokenizer(Path(model_or_path))):
            where = ("revision", "cache_dir", "token", "local_files_only", "subfolder")
            tokenizer = load_tokenizer(model_or_path, **{name: kwargs[name] for name in where if name in kwargs})
        return cls(backbone, tokenizer).eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        state_dict: Mapping[str, Tensor] | None = None,
        card: CriticCard | None = None,
    ) -> None:
        """Write the critic into a folder, which is made if needed.

        It writes the backbone as `AutoModel` saves it (safetensors and JSON), the head (`head.safetensors`), the tokenizer,
        the card, the adapter if there is one (`adapters.ADAPTER`), and last `prompt_critic.json`. Files with other names
        stay. The card of an earlier critic does not.

        Args:
            folder: where to write.
            state_dict: the whole weights, named as in `self.state_dict()`; needed where the critic has only shards of them.
            card: what README.md says (`critic_card.make_card`); None writes none.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.state_dict() if state_dict is None else state_dict
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
        backbone: Any = self.backbone
        about: dict[str, Any] = {"format": 1, "tokenizer": self.tokenizer is not None}
        for name, x in weights.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = x.detach().cpu().contiguous()
        (folder / _MARKER).unlink(missing_ok=True)  # from here to the end the folder does not contain a whole critic
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
            if adapters.is_adapted(backbone):  # format 2, because who does not know it would read another V
                about |= {"format": 2, "adapter": adapters.adapter_fields(backbone.peft_config["default"])}
                parts["backbone"], adapter = adapters.split_weights(parts["backbone"])
                backbone = backbone.get_base_model()
                save_file(adapter, Path(temporary, adapters.ADAPTER))
            backbone.save_pretrained(temporary, state_dict=parts["backbone"])
            save_file(parts["head"], Path(temporary, "head.safetensors"))
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(temporary)
            if card is not None:
                card.write(temporary)
            remove_card(folder)
            Path(temporary, _MARKER).write_text(json.dumps(about) + "\n")
            files = sorted(Path(temporary).iterdir(), key=lambda path: path.name == _MARKER)
            for path in files:
                os.replace(path, folder / path.name)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> PromptCritic:
        """Load what `save_pretrained` wrote. No code from the folder is executed.

        Args:
            folder: where it is.
            kwargs: for `AutoModel.from_pretrained`; `dtype` is the saved one unless given.

        Raises:
            FileNotFoundError: no critic in the folder, or one whose writing was interrupted.
            MissingExtra: it has an adapter, and PEFT is not installed.
            ValueError: weights are missing, or a newer version of this project wrote it.
        """
        from transformers import AutoModel

        folder = Path(folder)
        if not (folder / _MARKER).is_file():
            raise FileNotFoundError(
                f"no critic in {folder}: {_MARKER} is missing (save_pretrained writes it last); for a critic that starts "
                "from a language model use PromptCritic.from_backbone"
            )
        about = json.loads((folder / _MARKER).read_text())
        if about.get("format") not in (1, 2):
            raise ValueError(
                f"{folder / _MARKER} has format {about.get('format')}, and this version reads 1 and 2; upgrade it"
            )
        settings = {"dtype": "auto", **kwargs, "trust_remote_code": False, "use_safetensors": True}
        backbone, info = AutoModel.from_pretrained(folder, output_loading_info=True, **settings)
        if info["missing_keys"]:  # transformers would fill them with random numbers
            raise ValueError(f"{folder} lacks weights of the backbone: {', '.join(sorted(info['missing_keys'])[:5])}")
        tokenizer = None
        if about["tokenizer"]:
            tokenizer = load_tokenizer(folder)
        critic = cls(backbone, tokenizer).eval()
        if "adapter" in about:
            adapters.load_adapter(critic, about["adapter"], load_file(folder / adapters.ADAPTER))
        critic.head.load_state_dict(load_file(folder / "head.safetensors"))
        return critic.eval()


@contextlib.contextmanager
def short_attention(backbone: Any, length: int) -> Iterator[None]:
    """Inside, a Hugging Face model of short sequences has plain matrix products in place of torch's fused attention.

    Only on the CPU and under bfloat16 autocast. There the fused backward pass takes 11 times as long at 64 x 37 tokens
    (80 ms against 7 per layer), 3 times at 32 x 128, and less from 512 on. In float32 the two are alike.

    Args:
        backbone: the model. In training mode nothing changes, because with gradient checkpointing a part of the forward
            pass would happen outside.
        length: tokens of a sequence, padding included.
    """
    use = (
        length <= SHORT
        and next(backbone.parameters()).device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not backbone.training
        and getattr(getattr(backbone, "config", None), "_attn_implementation", None) == "sdpa"
        and backbone._can_set_attn_implementation()  # else transformers would warn in every call
    )
    if use:
        backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        if use:
            backbone.set_attn_implementation("sdpa")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))


def check_same_tokenizer(policy_tokenizer: Any, critic_tokenizer: Any) -> None:
    """The critic reads the policy's token ids, so every id must mean the same to both.

    Raises:
        ValueError: the vocabularies differ, or the tokenizers split a text differently.
    """
    way_out = "use a critic of the same model family, or one trained with the policy's tokenizer"
    policy, critic = policy_tokenizer.get_vocab(), critic_tokenizer.get_vocab()
    if policy != critic:
        differing = sorted(policy.items() ^ critic.items(), key=lambda item: (item[1], item[0]))
        token, index = differing[0]
        raise ValueError(
            f"the critic's tokenizer is not the policy's: {len(policy)} and {len(critic)} tokens, {len(differing)} entries "
            f"differ, the first is {token!r} with id {index}; {way_out}"
        )
    text = "Solve 12 + 345 = ?\n\tLet $x^2 \\le \\frac{1}{3}$, été 数学."
    pieces = [list(t(text)["input_ids"]) for t in (policy_tokenizer, critic_tokenizer)]
    if pieces[0] != pieces[1]:
        raise ValueError(
            f"the critic's tokenizer has the policy's vocabulary, but splits {text!r} into other tokens: "
            f"{pieces[0]} and {pieces[1]}; {way_out}"
        )


def find_critic(path: str | os.PathLike[str]) -> Path | None:
    """The critic's folder that a path means: the path itself, or the one inside the output of an earlier run.

    Such outputs are a run folder of sppo_llm.py (the newest checkpoint is taken), one of its checkpoints, and a folder or
    checkpoint of SPPOTrainer.

    Returns:
        The folder; None where there is none.

    Raises:
        UserError: it is the critic of a run of ppo_llm.py with squared error, whose head says V and not its logit; a run
            without a checkpoint.
    """
    path = Path(path)
    run = path if (path / "checkpoints").is_dir() and (path / "config.json").is_file() else None
    if run is not None:
        path = checkpoints.newest(run)
    found = next((folder for folder in (path, path / "critic") if (folder / _MARKER).is_file()), None)
    if found is None:
        return None
    for above in found.resolve().parents[:3]:
        if (above / "checkpoints").is_dir() and (above / "config.json").is_file():
            config = checkpoints.read_config(above)
            if config["script"] == "ppo_llm.py" and config["args"].get("critic_loss") != "bce":
                raise UserError(
                    f"{found} is a critic of ppo_llm.py with --critic-loss mse: its head says V itself, and SPPO's says "
                    "the logit of V. Take the critic of an SPPO run or of one with --critic-loss bce, or a language model"
                )
    return found


def load_critic(source: PromptCritic | str | os.PathLike[str], policy_tokenizer: Any, **kwargs: Any) -> PromptCritic:
    """A critic for a policy: a given one, one from a critic's folder, or a new one with the weights of a language model.

    Args:
        source: a critic, a folder that `PromptCritic.save_pretrained` wrote, one that contains it (`find_critic`), or the
            folder or Hub id of a language model.
        policy_tokenizer: becomes the critic's, so that the saved critic can predict.
        kwargs: for `AutoModel.from_pretrained`.

    Raises:
        OSError: there is neither a critic nor a language model.
        UserError: see `find_critic`.
        ValueError: its tokenizer is not the policy's, or its vocabulary is smaller.
    """
    if isinstance(source, PromptCritic):
        critic = source
    else:
        there = find_critic(source)
        if there is None:  # so it must be a language model
            critic = PromptCritic.from_backbone(source, **kwargs)
        else:
            critic = PromptCritic.from_pretrained(there, **kwargs)
    if critic.tokenizer is not None:
        check_same_tokenizer(policy_tokenizer, critic.tokenizer)
    elif (rows := len(critic.backbone.get_input_embeddings().weight)) < len(policy_tokenizer):  # type: ignore[arg-type]
        raise ValueError(f"the critic knows {rows} tokens, the policy's tokenizer has {len(policy_tokenizer)}")
    critic.tokenizer = policy_tokenizer
    return critic


# -------------------------------------------------------------------------------------------------------- training
def critic_batches(n: int, steps: int, batch_size: int | None, rng: np.random.Generator) -> list[Tensor]:
    """The critic's updates in the recipe "window", whose window is here the newest batch of n prompts.

    Args:
        n: prompts in the batch.
        steps: critic updates, at least 0.
        batch_size: prompts per update, at most n. None is n: then each update takes all prompts in their order, and
            nothing is drawn. Fewer are drawn without replacement, in a new order when too few are left.
        rng: draws the order.

    Returns:
        Rows of each update, (batch_size,) int64 each.

    Raises:
        ValueError: steps below 0, or batch_size outside 1..n.
    """
    size = n if batch_size is None else batch_size
    if steps < 0 or not 1 <= size <= n:
        raise ValueError(f"need steps >= 0 and batch_size in 1..{n} (the number of prompts), got {steps} and {size}")
    if size == n:
        return [torch.arange(n)] * steps
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.from_numpy(rng.permutation(n))
        batches += order[: n - n % size].split(size)
    return batches[:steps]


def train_critic(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    input_ids: Tensor,
    attention_mask: Tensor,
    outcome: Tensor,
    batches: Sequence[Tensor],
    micro_batch_size: int | None = None,
    max_grad_norm: float | None = None,
    value_logit: Tensor | None = None,
) -> Tensor:
    """One optimiser step per batch, on the binary cross-entropy between V(s_p) and R (SPPO, eq. 2).

    Args:
        critic: a PromptCritic, or what wraps one. It stays in its mode, training or evaluation.
        optimizer: of the critic's parameters.
        input_ids: (N, P).
        attention_mask: (N, P).
        outcome: R, (N,), in [0, 1].
        batches: rows of each step, int64: those of `critic_batches`, or the policy's minibatches (the paper's recipe).
        micro_batch_size: prompts in memory at once; None is the whole batch. It does not change the gradient.
        max_grad_norm: longer gradients are scaled down to this norm; None leaves them.
        value_logit: (N,), is filled with the logits before the first step; None leaves them. Rows of the first step have
            them from its forward pass. The others get a pass of their own.

    Returns:
        The loss of each step, taken before the step, (steps,), without gradient.

    Raises:
        ValueError: micro_batch_size below 1; what the critic and `core.bernoulli_value_loss` raise.
    """
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
    if value_logit is not None:
        others = torch.ones(len(outcome), dtype=torch.bool)
        if len(batches):
            others[batches[0].cpu()] = False
        with torch.no_grad():
            for rows in others.nonzero()[:, 0].to(outcome.device).split(micro_batch_size or len(outcome)):
                if len(rows):
                    value_logit[rows] = critic(input_ids[rows], attention_mask[rows]).to(value_logit.dtype)
    losses = torch.zeros(len(batches), device=outcome.device)
    for step, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        for rows in batch.to(outcome.device).split(micro_batch_size or len(batch)):
            logit = critic(input_ids[rows], attention_mask[rows])
            if value_logit is not None and step == 0:
                value_logit[rows] = logit.detach().to(value_logit.dtype)
            loss = core.bernoulli_value_loss(logit, outcome[rows].to(logit.dtype), denominator=len(batch))
            loss.backward()  # the micro-batches' gradients add up to the batch's
            losses[step] += loss.detach()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(critic.parameters(), max_grad_norm)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses
