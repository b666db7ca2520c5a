"""What the language-model scripts share before their loop begins: checked arguments, policy, critic, prompts, reward.

Each script has its own dataclass of arguments. The fields that are used here are the same in all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sppo_control import extras, limits
from sppo_control.checkpoints import check_like
from sppo_control.cli import is_refusal
from sppo_control.limits import flag
from sppo_control.llm import addition
from sppo_control.llm.context import check_context, check_ids
from sppo_control.llm.critic import PromptCritic, load_critic
from sppo_control.llm.prompt_filter import PromptFilter, values_of
from sppo_control.llm.prompts import (
    REWARDS,
    Prompts,
    Reward,
    check_reward,
    load_prompts,
    make_reward,
    report_prompts,
)
from sppo_control.llm.responses import check_head
from sppo_control.llm.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADDER = Path(__file__).parents[1] / "pretrained" / "addition"
"""The tiny model that adds, used without --model. scripts/pretrain_llm.py made it; the task is in addition.py."""

WINDOW_ONLY = ("critic_steps", "critic_batch_size")
"""What belongs to the critic's recipe "window". The recipe "paper" trains on the policy's minibatches instead."""


# ----------------------------------------------------------------------------------------------------- arguments
def require_packages() -> None:
    """Every language-model script calls this before it uses a package of the extra `llm`.

    Raises:
        MissingExtra: names the package that is missing and the command that installs it.
    """
    extras.require("llm", "transformers", "datasets", wanted_by="this script")


def check_args(args: Any) -> None:
    """Refuse impossible values; called by the scripts' `Args.__post_init__`.

    Raises:
        ValueError: names the argument, its value, what is allowed and how to mend it.
    """
    if getattr(args, "critic_steps", 1) == 0:
        raise ValueError("--critic-steps must be at least 1, got 0; the paper's recipe is --critic-recipe paper")
    limits.check_limits(args)
    if args.temperature < 1e-3:
        raise ValueError(f"--temperature must be at least 0.001 in training, got {args.temperature}")
    if (size := getattr(args, "baseline_size", getattr(args, "group_size", 2))) < 2:
        words = "--batch-size" if hasattr(args, "baseline_size") else "--group-size"
        raise ValueError(f"{words} must be at least 2, because a response is compared with others, got {size}")
    if getattr(args, "baseline", "others") == "tracked" and args.group_size != 1:
        raise ValueError(
            f"--baseline tracked needs --group-size 1, got {args.group_size}: SPO has one response per prompt and compares "
            "it with the prompt's earlier ones"
        )
    for name in ("num_minibatches", "group_size"):
        if args.batch_size % getattr(args, name, 1):
            raise ValueError(f"{flag(name)} must divide --batch-size, got {getattr(args, name)} for {args.batch_size}")
    if (size := getattr(args, "critic_batch_size", None)) is not None and size > args.batch_size:
        raise ValueError(
            f"--critic-batch-size must be at most --batch-size, because the window is the newest batch; "
            f"got {size} for {args.batch_size}"
        )
    if getattr(args, "critic_recipe", "window") == "paper":
        defaults = {field.name: field.default for field in dataclasses.fields(args)}
        for name in WINDOW_ONLY:
            if getattr(args, name) != defaults[name]:
                raise ValueError(
                    f"{flag(name)} {getattr(args, name)} means nothing with --critic-recipe paper, which trains the "
                    "critic on the policy's minibatches; leave it out, or use --critic-recipe window"
                )
    check_skipping(args)
    check_reward(args.reward)
    stop_texts(args.stop)
    check_device(args.device)


SKIPPING = ("skip_prompts_below", "skip_prompts_above")
"""The bounds on V(s_p) between which a prompt gets a response."""


def check_skipping(args: Any) -> None:
    """Refuse bounds on V between which no prompt can be.

    Raises:
        ValueError: see above; or the probability of a retry is given, and nothing is skipped.
    """
    low, high = (getattr(args, name, None) for name in SKIPPING)
    if low is not None and high is not None and low >= high:
        raise ValueError(
            f"--skip-prompts-below must be below --skip-prompts-above, got {low} and {high}: no prompt would be left"
        )
    default = next((field.default for field in dataclasses.fields(args) if field.name == "retry_skipped_prompts"), None)
    if low is None and high is None and (retry := getattr(args, "retry_skipped_prompts", default)) != default:
        raise ValueError(
            f"--retry-skipped-prompts {retry} means nothing where no prompt is skipped; leave it out, or give "
            "--skip-prompts-below or --skip-prompts-above"
        )


def make_filter(args: Any, critic: PromptCritic, prompts: Prompts) -> PromptFilter:
    """Which prompts get a response. It skips none unless a bound is given.

    Raises:
        ValueError: the bounds leave fewer prompts than one batch. It is asked at the start of a run that has no warm-up of
            the critic; later the critic is another one, and `PromptFilter.choose` fills the batch.
    """
    made = PromptFilter(args.skip_prompts_below, args.skip_prompts_above, args.retry_skipped_prompts)
    if made.active and args.resume is None and not args.critic_warmup_batches:
        words = " and ".join(f"{flag(name)} {x}" for name in SKIPPING if (x := getattr(args, name)) is not None)
        made.require(range(len(prompts)), values_of(critic, prompts, args.micro_batch_size), args.batch_size, words)
    return made


def stop_texts(stop: Sequence[str] | None) -> tuple[str, ...]:
    r"""The texts of --stop, none if it is None. \n, \t, \r and \\ may be written with a backslash, as shells give them.

    Raises:
        ValueError: one is empty.
    """
    if stop is None:
        return ()
    if not all(stop):
        raise ValueError("--stop must not be empty; leave it out, or give the text that ends a response")
    characters = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return tuple(re.sub(r"\\([ntr\\])", lambda match: characters[match[1]], text) for text in stop)


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_device(name: str) -> None:
    """Refuse a --device that is not here, or that cannot train.

    Raises:
        ValueError: says which can.
    """
    try:
        device = find_device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: there is no such device; use cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {name}: only cpu, cuda and mps can train; use --device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {name}: torch sees no Apple GPU here; use --device cpu")


def task_name(args: Any) -> str:
    """For the run folder: the dataset's name, or "addition"."""
    return "addition" if args.dataset is None else Path(args.dataset).stem


# -------------------------------------------------------------------------------------------------- models and data
def load_policy(args: Any) -> tuple[PreTrainedModel, Any]:
    """The policy in float32 on the device, without dropout, and its tokenizer.

    Raises:
        MissingExtra: a package of the extra `llm` is missing.
        OSError: there is no such model.
        ValueError: the output head is more than a product; there is no end-of-text token; the prompts were made for
            another tokenizer.
    """
    require_packages()
    make_reward(args.reward)  # what is wrong with it is said before the model is loaded
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a model of one file needs none
    path = ADDER if args.model is None else args.model
    model: Any  # its methods are typed as those of a decorator
    with naming("--model", path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokenizer = load_tokenizer(path)
    if args.dataset is None and (missing := set(addition.ALPHABET) - set(tokenizer.get_vocab())):
        raise ValueError(
            f"the additions need the characters {', '.join(sorted(missing))} as tokens; give a --dataset for {args.model}"
        )
    model.to(find_device(args.device))
    _no_dropout(model)
    check_head(model, list(range(min(8, len(tokenizer)))))
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Training mode is needed for checkpointing only. Nothing else that it turns on is wanted.
    return model.train(args.gradient_checkpointing), tokenizer


def make_critic(args: Any, policy: PreTrainedModel, tokenizer: Any) -> PromptCritic:
    """The critic on the policy's device: a copy of the policy, or --critic (a critic's folder, or a language model's
    folder or Hub id). With --critic-layers it has only that many.

    Raises:
        OSError: there is no such model.
        ValueError: its tokenizer is not the policy's, or its vocabulary is smaller; it has fewer layers.
    """
    if args.critic is None:
        critic = PromptCritic.from_backbone(policy, tokenizer)
    else:
        with naming("--critic", args.critic):
            critic = load_critic(args.critic, tokenizer, dtype=torch.float32).to(policy.device)
    if (layers := getattr(args, "critic_layers", None)) is not None:
        keep_layers(critic, layers)
    return critic


def keep_layers(critic: PromptCritic, layers: int) -> None:
    """Leave the critic its first layers alone. Its last norm stays.

    Raises:
        ValueError: it has fewer layers, or a backbone whose layers are not in a list `layers`.
    """
    backbone: Any = critic.backbone
    there = getattr(backbone, "layers", None)
    if not isinstance(there, nn.ModuleList):
        raise ValueError(
            f"--critic-layers: the layers of {type(backbone).__name__} have another name than `layers`; leave it out, and "
            "name a smaller model with --critic"
        )
    if not 1 <= layers <= len(there):
        raise ValueError(f"--critic-layers must be from 1 to {len(there)}, which the critic has, got {layers}")
    backbone.layers = there[:layers]
    backbone.config.num_hidden_layers = layers
    if getattr(backbone.config, "layer_types", None) is not None:
        backbone.config.layer_types = backbone.config.layer_types[:layers]


def load_data(
    args: Any, tokenizer: Any, policy: Any = None, critic: PromptCritic | None = None
) -> tuple[Prompts, Prompts, Reward]:
    """Prompts for training, held-out prompts for evaluation, and the reward.

    What the dataset holds that cannot be right (prompts that are there twice, answers that cannot be read) is printed.

    Args:
        args: the script's.
        tokenizer: the policy's.
        policy, critic: they must be able to read the prompts; None checks nothing.

    Raises:
        ValueError, OSError: see `load_prompts` and `report_prompts`; there are too few prompts for one batch; prompt and
            response are longer than the model's context; a token has no embedding.
    """
    prompts = load_prompts(
        args.dataset, tokenizer, args.dataset_split, args.max_prompt_length, args.long_prompts, args.reward in REWARDS
    )
    if prompts.num_long:
        print(f"{prompts.num_long} prompts are longer than --max-prompt-length {args.max_prompt_length} and left out")
    longest = max(map(len, prompts.ids))
    for name, model, response in (
        (args.model or "the tiny adder", policy, args.max_response_length),
        (f"the critic {getattr(args, 'critic', None) or ''}".strip(), getattr(critic, "backbone", None), 0),
    ):
        if model is not None:
            check_ids(model, prompts.ids, name)
            check_context(model.config, name, longest, response, "--max-response-length", "--max-prompt-length")
    if args.dataset is not None:
        for line in report_prompts(prompts, args.reward, str(args.dataset), tokenizer):
            print(line)
    train, held_out = prompts.split(args.eval_prompts)
    train.batch(0, args.batch_size // getattr(args, "group_size", 1), args.seed)
    return train, held_out, make_reward(args.reward)


# ------------------------------------------------------------------------------------------------------ checkpoints
class PolicyFolder:
    """The policy as a part of a checkpoint: a Hugging Face folder, which `AutoModelForCausalLM` and TRL read."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def save_pretrained(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load_pretrained(self, folder: Path) -> None:
        """Take on the folder's weights.

        Raises:
            ValueError: weights are missing, of other shapes, or not finite.
        """
        loaded: Any = type(self.model).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
        )
        saved, about = loaded
        if wrong := sorted([*about["missing_keys"], *about["unexpected_keys"]]):  # missing ones would be random
            raise ValueError(f"weights are missing or foreign: {', '.join(map(str, wrong[:5]))}")
        check_like(saved.state_dict(), self.model.state_dict(), "this model")
        self.model.load_state_dict(saved.state_dict())


class CriticFolder:
    """The critic as a part of a checkpoint: a folder for `PromptCritic.from_pretrained`."""

    def __init__(self, critic: PromptCritic) -> None:
        self.critic = critic

    def save_pretrained(self, folder: Path) -> None:
        """Write backbone, head and tokenizer."""
        self.critic.save_pretrained(folder)

    def load_pretrained(self, folder: Path) -> None:
        """Take on the folder's weights.

        Raises:
            ValueError: weights are missing, of other shapes, or not finite.
        """
        saved = PromptCritic.from_pretrained(folder, dtype=torch.float32).state_dict()
        check_like(saved, self.critic.state_dict(), "this critic")
        self.critic.load_state_dict(saved)


@contextlib.contextmanager
def naming(argument: str, path: str | Path) -> Iterator[None]:
    """Say in one line which model could not be loaded. The libraries' messages are long, and some do not name it."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and is_refusal(error):  # our own, which is one line
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OSError(
            f"{argument} {path} is neither a model's folder nor a Hub id that can be reached: {reason}"
        ) from error


def _no_dropout(model: nn.Module) -> None:
    """With dropout the ratio of an unchanged policy would not be 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
