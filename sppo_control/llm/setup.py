"""What the language-model scripts share before their loop begins: arguments checked, policy, critic, prompts, reward.

Each script's arguments are its own dataclass; the fields used here are the same in all of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from sppo_control.llm import addition, critic
from sppo_control.llm.critic import PromptCritic
from sppo_control.llm.prompts import Prompts, Reward, load_prompts, make_reward
from sppo_control.llm.responses import check_head
from sppo_control.llm.tokenizers import load_tokenizer

ADDER = Path(__file__).parents[1] / "pretrained" / "addition"
"""The tiny model that adds, where no --model is given: sppo_control.llm.addition, made by scripts/pretrain_llm.py."""

_TINY: dict[str, Any] = {"learning_rate": 3e-4, "critic_learning_rate": 1e-3, "total_episodes": 24_576, "batch_size": 128,
         "max_response_length": addition.MAX_RESPONSE + 1, "eval_prompts": 512}  # fmt: skip
_REAL: dict[str, Any] = {"learning_rate": 1e-6, "critic_learning_rate": 1e-5, "total_episodes": 51_200, "batch_size": 256,
         "max_response_length": 3072, "eval_prompts": 128}  # fmt: skip


def fill_args(args: Any) -> None:
    """Put the defaults of the tiny adder, or of real models, where an argument is None, and refuse impossible values;
    called by the scripts' `Args.__post_init__`.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.reward is None:
        args.reward = "after-equals" if args.dataset is None else "math"
    for name, default in (_TINY if args.model is None else _REAL).items():
        if getattr(args, name, 0) is None:
            setattr(args, name, default)
    at_least_one = ("total_episodes", "batch_size", "num_minibatches", "update_epochs", "max_response_length",
                    "max_prompt_length", "eval_prompts", "save_every", "micro_batch_size", "critic_steps")  # fmt: skip
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(at_least_one, (lambda x: x >= 1, "at least 1")),
        **dict.fromkeys(
            ("learning_rate", "critic_learning_rate", "clip_coef", "max_grad_norm", "temperature"),
            (lambda x: 0 < x < math.inf, "above 0"),
        ),
        **dict.fromkeys(("gamma", "gae_lambda"), (lambda x: 0 <= x <= 1, "in [0, 1]")),
        "group_size": (lambda x: x >= 2, "at least 2"),
        **dict.fromkeys(("seed", "critic_warmup_batches"), (lambda x: x >= 0, "0 or above")),
    }
    for name, (allowed, words) in rules.items():
        value = getattr(args, name, None)
        if value is not None and not allowed(value):
            raise ValueError(f"--{name.replace('_', '-')} must be {words}, got {value}")
    for name in ("num_minibatches", "group_size"):
        if args.batch_size % getattr(args, name, 1):
            raise ValueError(
                f"--{name.replace('_', '-')} must divide --batch-size, got {getattr(args, name)} for {args.batch_size}"
            )
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch sees no CUDA device here; use --device cpu")


def task_name(args: Any) -> str:
    """For the run folder: the dataset's name, or "addition"."""
    return "addition" if args.dataset is None else Path(args.dataset).stem


def load_policy(args: Any) -> tuple[PreTrainedModel, Any]:
    """The policy in float32 on the device, without dropout, and its tokenizer.

    Raises:
        OSError: no such model.
        ValueError: another output head than a product; no end-of-text token; prompts made for another tokenizer.
    """
    disable_progress_bar()  # of files with one shard
    path = ADDER if args.model is None else args.model
    with naming("--model", path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokenizer = load_tokenizer(path)
    if args.dataset is None and (missing := set(addition.ALPHABET) - set(tokenizer.get_vocab())):
        raise ValueError(
            f"the additions need the characters {', '.join(sorted(missing))} as tokens; give a --dataset for {args.model}"
        )
    model.to(args.device)
    _no_dropout(model)
    check_head(model, list(range(min(8, len(tokenizer)))))
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Of what training mode switches on, checkpointing alone is wanted.
    return model.train(args.gradient_checkpointing), tokenizer


def load_critic(args: Any, policy: PreTrainedModel, tokenizer: Any) -> PromptCritic:
    """SPPO's critic on the device: a copy of the policy, or --critic, a critic's folder, or a language model's folder or
    Hub id.

    Raises:
        OSError: no such model.
        ValueError: another tokenizer than the policy's, or a smaller vocabulary.
    """
    if args.critic is None:
        return PromptCritic.from_backbone(policy, tokenizer)  # on the policy's device
    with naming("--critic", args.critic):
        return critic.load_critic(args.critic, tokenizer, dtype=torch.float32).to(args.device)


def load_data(args: Any, tokenizer: Any) -> tuple[Prompts, Prompts, Reward]:
    """Prompts for training, held-out prompts for evaluation, and the reward.

    Raises:
        ValueError, OSError: see `load_prompts`; too few prompts for one batch.
    """
    prompts = load_prompts(args.dataset, tokenizer, args.dataset_split, args.max_prompt_length, args.long_prompts)
    if prompts.num_long:
        print(f"{prompts.num_long} prompts are longer than --max-prompt-length {args.max_prompt_length} and left out")
    train, held_out = prompts.split(args.eval_prompts)
    train.batch(0, args.batch_size // getattr(args, "group_size", 1), args.seed)
    return train, held_out, make_reward(args.reward)


class PolicyFolder:
    """The policy as a part of a checkpoint: a Hugging Face folder, which `AutoModelForCausalLM` and TRL read."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def save_pretrained(self, folder: Path) -> None:
        """Weights, configuration and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load_pretrained(self, folder: Path) -> None:
        """Take on the folder's weights."""
        _load(self.model, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


class CriticFolder:
    """SPPO's critic as a part of a checkpoint: a folder for `PromptCritic.from_pretrained`."""

    def __init__(self, critic: PromptCritic) -> None:
        self.critic = critic

    def save_pretrained(self, folder: Path) -> None:
        """Backbone, head and tokenizer."""
        self.critic.save_pretrained(folder)

    def load_pretrained(self, folder: Path) -> None:
        """Take on the folder's weights."""
        _load(self.critic, PromptCritic.from_pretrained(folder, dtype=torch.float32))


@contextlib.contextmanager
def naming(flag: str, path: str | Path) -> Iterator[None]:
    """What the libraries say of a model that they cannot load is long, and does not always name it."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"{flag} {path} is neither a model's folder nor a Hub id that can be reached: {reason}"
        ) from error


def _load(module: nn.Module, saved: nn.Module) -> None:
    module.load_state_dict(saved.state_dict())


def _no_dropout(model: nn.Module) -> None:
    """With dropout the ratio of an unchanged policy would not be 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
