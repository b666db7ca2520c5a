"""SPPO in TRL 1.14 and 1.16: a subclass of GRPOTrainer, with one generation per prompt and a critic in place of the group.

Compared with a script that uses GRPOTrainer, the two names change, and three lines say how the critic learns:

    from sppo_control.llm import MathReward, SPPOConfig, SPPOTrainer

    args = SPPOConfig(
        output_dir="runs/sppo",
        reduction="token-mean",        # 1  named, see the table
        critic_learning_rate=1e-5,     # 2  its own Adam
        critic_steps=2,                # 3  critic updates per generation batch
    )
    trainer = SPPOTrainer(model="Qwen/Qwen2.5-Math-1.5B", reward_funcs=MathReward(), args=args, train_dataset=dataset)
    trainer.train()                    # then trainer.critic.predict(prompts); each checkpoint also contains the critic

`critic=` takes a `PromptCritic`, its folder, or the folder or Hub id of a language model. Without it the critic starts as
a float32 copy of the policy.

The equations are those of `sppo_control.core`. The advantage (SPPO, eq. 1) is `sequence_advantage`. The critic's loss
(eq. 2) is `bernoulli_value_loss`, through `train_critic`. The clipped ratio per token (eq. 3) is TRL's and equals
`clipped_surrogate` (tests/test_llm_trainer.py). Below, B is the number of sequences in all micro-batches and processes of
one optimiser step, and H is max_completion_length:

| reduction       | TRL's loss_type | divisor                                                                             |
| --------------- | --------------- | ----------------------------------------------------------------------------------- |
| "token-mean"    | "dapo"          | tokens of the generation batch / its optimiser steps: exactly the step's own tokens |
|                 |                 | where a generation batch is one step, else their mean over its steps                |
| "sequence-mean" | "grpo"          | each sequence's tokens, then B                                                      |
| "fixed"         | "dr_grpo"       | B x H                                                                               |

The order for each generation batch is: generate, R, V(s_p), A; then the critic's updates; then the policy's. So V is of a
critic that has not seen these outcomes. See docs/llm_trl.md for arguments, launches and what was not run.
"""

from __future__ import annotations

import inspect
import math
import os
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from datasets import IterableDataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from sppo_control import core
from sppo_control.llm import adapters, trl_names
from sppo_control.llm.context import check_context, check_ids, positions
from sppo_control.llm.critic import PromptCritic, critic_batches, load_critic, train_critic
from sppo_control.llm.critic_card import CriticCard, base_license, calibration, remove_card
from sppo_control.llm.prompt_filter import RETRY, Chosen, PromptFilter
from sppo_control.llm.prompts import report_answers
from sppo_control.llm.rewards import COLUMNS, MathReward, check_outcomes
from sppo_control.llm.tokenizers import is_generic, load_tokenizer, prompt_ids

logger = logging.get_logger(__name__)
trl_names.check(GRPOTrainer)

LOSS_TYPES: dict[str, str] = {"token-mean": "dapo", "sequence-mean": "grpo", "fixed": "dr_grpo"}
"""core's reduction -> TRL's loss_type; the module's docstring has the divisors."""


class _DividesAll(int):
    """TRL requires at least two generations per prompt, and whole groups in a batch. Groups of one are always whole."""

    def __rmod__(self, other: int) -> int:
        return 0


def _argument(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SPPOConfig(GRPOConfig):
    """TRL's GRPOConfig with SPPO's arguments; the learning rate is constant unless asked.

    Raises:
        ValueError: an argument out of its range, or one that does not fit the critic's recipe. Or one that SPPO does not
            have: more than one generation, a KL penalty, rewards divided by their standard deviation, ratios of sequences,
            another loss_type than the reduction's.
    """

    reduction: core.Reduction = _argument("token-mean", "How all tokens' losses become one number.")  # noqa: RUF009
    critic_learning_rate: float = _argument(1e-5, "Of the critic's Adam; constant.")
    critic_recipe: Literal["window", "paper"] = _argument(
        "window", "window: random contexts of the newest batches; paper: the minibatches of the policy."
    )
    critic_steps: int = _argument(1, "Window recipe: critic updates per (generation) batch.")
    critic_batch_size: int | None = _argument(
        None,
        "Window recipe: contexts per critic update, of all processes; None is the whole newest batch, nothing is drawn.",
    )
    critic_warmup_batches: int = _argument(0, "Generation batches for the critic alone, before the first update.")
    skip_prompts_below: float | None = _argument(None, "No response where V(s_p) is smaller: hopeless prompts.")
    skip_prompts_above: float | None = _argument(None, "No response where V(s_p) is larger: solved prompts.")
    retry_skipped_prompts: float = _argument(RETRY, "Probability that such a prompt is kept after all.")
    max_prompt_length: int | None = _argument(None, "Longest training prompt in tokens; None is no limit.")
    long_prompts: Literal["drop", "error"] = _argument(
        "drop", "drop counts longer prompts and leaves them out; error refuses them."
    )
    num_generations: int = _argument(1, "Responses per prompt; only 1 is allowed.")
    loss_type: str = _argument("", "Set by `reduction`.")
    scale_rewards: str = _argument("none", "SPPO does not normalise.")
    lr_scheduler_type: str = _argument("constant", "The policy's learning rate schedule.")
    disable_dropout: bool = _argument(True, "With dropout the ratio of an unchanged policy is not 1.")

    def __post_init__(self) -> None:
        for name, allowed in (
            ("reduction", get_args(core.Reduction)),
            ("critic_recipe", ("window", "paper")),
            ("long_prompts", ("drop", "error")),
        ):
            if (choice := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {choice!r}")
        if self.critic_steps == 0:
            raise ValueError("critic_steps must be at least 1, got 0; the paper's recipe is critic_recipe='paper'")
        for name, least in (
            ("critic_steps", 1),
            ("critic_batch_size", 1),
            ("critic_warmup_batches", 0),
            ("max_prompt_length", 1),
        ):
            if (number := getattr(self, name)) is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        if not self.critic_learning_rate > 0:
            raise ValueError(f"critic_learning_rate must be above 0, got {self.critic_learning_rate}")
        self._check_skipping()
        given = self.num_generations, self.loss_type or LOSS_TYPES[self.reduction]
        self.num_generations, self.loss_type = _DividesAll(2), LOSS_TYPES[self.reduction]
        super().__post_init__()
        self.num_generations = 1
        for name, value, wanted, why in (
            ("num_generations", given[0], 1, "the critic takes the place of the group (TRL's GRPOTrainer has groups)"),
            ("loss_type", given[1], self.loss_type, f"reduction={self.reduction!r} sets it"),
            ("beta", self.beta, 0.0, "SPPO has no KL penalty"),
            ("scale_rewards", self.scale_rewards, "none", "A = R - V(s_p) is not normalised"),
            ("importance_sampling_level", self.importance_sampling_level, "token", "the ratio is that of each token"),
            ("multi_objective_aggregation", self.multi_objective_aggregation, "sum_then_normalize", "R is a plain sum"),
        ):
            if value != wanted:
                raise ValueError(f"{name} must be {wanted!r} for SPPO, got {value!r}: {why}; leave it out")
        self._check_critic()

    def _check_skipping(self) -> None:
        """Refuse bounds on V between which no prompt can be."""
        low, high = self.skip_prompts_below, self.skip_prompts_above
        for name in ("skip_prompts_below", "skip_prompts_above", "retry_skipped_prompts"):
            if (x := getattr(self, name)) is not None and not 0 <= x <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, got {x}")
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"skip_prompts_below must be below skip_prompts_above, got {low} and {high}: no prompt would be left"
            )
        if low is None and high is None and self.retry_skipped_prompts != RETRY:
            raise ValueError(
                f"retry_skipped_prompts={self.retry_skipped_prompts} means nothing where no prompt is skipped; leave it "
                "out, or give skip_prompts_below or skip_prompts_above"
            )

    def _check_critic(self) -> None:
        """Refuse what does not fit the critic's recipe."""
        steps, whole = self.steps_per_generation, self.generation_batch_size
        assert steps is not None  # TRL has filled these in
        assert whole is not None
        if self.critic_recipe == "paper":
            for name, default in (("critic_steps", 1), ("critic_batch_size", None)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} means nothing with critic_recipe='paper', which trains the critic "
                        "on the policy's minibatches; leave it out, or use critic_recipe='window'"
                    )
            if steps % self.gradient_accumulation_steps:
                raise ValueError(
                    "critic_recipe='paper' needs minibatches that are parts of one generation batch: "
                    f"gradient_accumulation_steps must divide steps_per_generation, got {self.gradient_accumulation_steps} "
                    f"and {steps}; or use critic_recipe='window'"
                )
        size = self.critic_batch_size
        if size is not None and (size > whole or size % self.world_size):
            raise ValueError(
                f"critic_batch_size must be at most the generation batch's {whole} prompts, and a multiple of the "
                f"{self.world_size} processes, got {size}"
            )


class EpochSampler(Sampler[int]):
    """TRL's RepeatSampler for one generation per prompt, with an order that depends only on (seed, epoch).

    TRL's sampler draws all permutations from one generator. A resumed run starts that generator again, so it would repeat
    the first epoch's order. Each block of prompts comes `repeat` times, as TRL's loader expects. An incomplete last block
    is left out.

    Args:
        order: gives the prompts' order in the current epoch; called when an iteration begins.
        size: prompts in the dataset.
        block: prompts in a generation batch, of all processes.
        repeat: how often the loader asks for a block.
    """

    def __init__(self, order: Callable[[], list[int]], size: int, block: int, repeat: int) -> None:
        self.order, self.starts, self.block, self.repeat = order, range(0, size - size % block, block), block, repeat

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        for start in self.starts:
            yield from order[start : start + self.block] * self.repeat

    def __len__(self) -> int:
        return len(self.starts) * self.block * self.repeat


class SPPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with SPPO's advantage and critic; see the module's docstring.

    On several processes the critic is replicated (DDP) if the policy is. With FSDP and DeepSpeed it is sharded over all
    processes by FSDP2's `fully_shard`, whatever engine the policy uses.

    Args:
        model, reward_funcs, args and all others: as in GRPOTrainer; args is an SPPOConfig. R is the weighted sum of the
            reward functions, and must be 0 or 1.
        critic: PromptCritic, its folder, or the folder or Hub id of a language model with the policy's tokenizer. None
            copies the policy into float32; of a policy with a LoRA adapter, the copy has the adapter added to its weights.
        critic_peft_config: a `peft.LoraConfig`; then only an adapter and the head of the critic are trained. With
            critic=None the frozen copy keeps the policy's dtype.

    Attributes:
        critic: the PromptCritic. With FSDP and DeepSpeed it is sharded, and all processes must call its methods together.
        num_long_prompts: training prompts longer than max_prompt_length, which are left out.

    Raises:
        TypeError: args is not an SPPOConfig; critic or critic_peft_config has another type; the training dataset is
            streamed.
        ImportError: TRL lacks a name that this class needs (`trl_names`).
        MissingExtra: PEFT is needed and not installed.
        ValueError: prompt and response are longer than the model's or the critic's context; a token, or the padding token,
            has no embedding; no answer can be read by `MathReward`; another tokenizer;
            no critic for a policy that cannot be copied; an adapter that cannot be trained or saved (`adapters`);
            DeepSpeed ZeRO-3; a multimodal model.
            The dataset lacks a column, is smaller than a generation batch, or has long prompts although
            long_prompts="error". While training: rewards that are not 0 or 1.
    """

    _tag_names = ["trl", "sppo"]  # noqa: RUF012, TRL's attributes, for the model card
    _name = "SPPO"
    _paper = {"title": "SPPO: Sequence-Level PPO for Long-Horizon Reasoning Tasks", "id": "2604.08865"}  # noqa: RUF012

    # TRL's types allow None where it cannot be
    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    _logs: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: SPPOConfig | None = None,
        *rest: Any,
        critic: PromptCritic | str | os.PathLike[str] | None = None,
        critic_peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SPPOConfig(f"{name.rsplit('/', 1)[-1] or 'model'}-SPPO")
        if not isinstance(args, SPPOConfig):
            raise TypeError(f"args must be an SPPOConfig, got {type(args).__name__}; it takes the same arguments")
        if len(rest) < 3 and kwargs.get("processing_class") is None:  # GRPOTrainer has it third in `rest`
            kwargs["processing_class"] = _saved_tokenizer(model, args)
        super().__init__(model, reward_funcs, args, *rest, **kwargs)
        self._check_text()
        self._check_data()
        self._critic_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self._critic_bf16 = bool(args.bf16) or self.model.dtype == torch.bfloat16
        self.critic = self._make_critic(critic, critic_peft_config)
        check_context(self.critic.backbone.config, "the critic", self._longest, 0, "", "max_prompt_length")
        self._critic = self._distribute(self.critic)  # what is called in training
        trained = [x for x in self.critic.parameters() if x.requires_grad]  # all, or an adapter and the head
        self.critic_optimizer = torch.optim.Adam(trained, lr=args.critic_learning_rate)
        self._warmup_left = args.critic_warmup_batches
        self._outcome = torch.empty(0)
        self._skip = PromptFilter(args.skip_prompts_below, args.skip_prompts_above, args.retry_skipped_prompts)
        self._judged: deque[tuple[float, float]] = deque(maxlen=JUDGED)  # V before the critic's update, and R
        if self._skip.active and self.environment_factories is not None:
            raise ValueError(
                "skip_prompts_below and skip_prompts_above need prompts that are known before the rollout, and here they "
                "are the environment's; leave both out"
            )

    # ------------------------------------------------------------------------------------------------------- checks
    def _check_text(self) -> None:
        if isinstance(self.processing_class, ProcessorMixin):
            raise ValueError("the critic reads text alone; give a tokenizer as processing_class, not a processor")

    def _check_data(self) -> None:
        data, limit, size = self.train_dataset, self.args.max_prompt_length, self.args.generation_batch_size
        if isinstance(data, IterableDataset):
            raise TypeError(
                "train_dataset must not be streamed, resuming could not skip what was seen: Dataset.from_list(list(stream))"
            )
        self.num_long_prompts, self._longest = 0, 0
        if self.environment_factories is None:  # else the prompts are the environment's
            columns = set(data.column_names)
            for function in (None, *self.reward_funcs):
                if missing := {"prompt"} - columns if function is None else _missing_columns(function, columns):
                    name = "SPPOTrainer" if function is None else getattr(function, "__name__", function)
                    raise ValueError(
                        f"{name} needs the column {', '.join(sorted(missing))} of train_dataset, which has "
                        f"{', '.join(sorted(columns))}; rename yours with dataset.rename_column"
                    )
            self._check_answers(columns)
            self._check_eval()
            ids: list[list[int]] = []
            for start in range(0, len(data), 1000):
                ids += self._tokenize_prompts(data[start : start + 1000]["prompt"])[0]
            lengths = list(map(len, ids))
            if limit is not None:
                self.train_dataset = data.select([row for row, length in enumerate(lengths) if length <= limit])
                self.num_long_prompts = len(data) - len(self.train_dataset)
                text = (
                    f"{self.num_long_prompts} of {len(data)} training prompts are longer than max_prompt_length={limit}"
                )
                if self.num_long_prompts and self.args.long_prompts == "error":
                    raise ValueError(f"{text}, the longest has {max(lengths)} tokens; raise it, or long_prompts='drop'")
                if self.num_long_prompts:
                    logger.warning(f"{text} tokens and are left out")
            self._check_lengths([row for row in ids if limit is None or len(row) <= limit])
        if len(self.train_dataset) < size:
            raise ValueError(
                f"train_dataset has {len(self.train_dataset)} prompts, fewer than one generation batch of {size} "
                "(per_device_train_batch_size x steps_per_generation x processes); lower one of these"
            )

    def _check_lengths(self, ids: list[list[int]]) -> None:
        """Refuse what the policy cannot read, before anything is generated."""
        name = str(self.model.config._name_or_path or type(self.model).__name__)
        check_ids(self.model, ids, name)
        check_ids(self.model, [[self.processing_class.pad_token_id]], f"{name}, which needs one for the padding token,")
        self._longest = max(map(len, ids), default=0)
        response = self.args.max_completion_length
        if positions(self.model.config) is not None:
            check_context(
                self.model.config, name, self._longest, response, "max_completion_length", "max_prompt_length"
            )

    def _check_answers(self, columns: set[str]) -> None:
        """Name the right answers that MathReward cannot read."""
        if any(isinstance(function, MathReward) for function in self.reward_funcs):
            name = next(name for name in COLUMNS if name in columns)
            for line in report_answers(list(self.train_dataset[name]), f"train_dataset, column {name}"):
                logger.warning(line)

    def _check_eval(self) -> None:
        """Say how many prompts of the evaluation are trained on."""
        seen = {str(prompt) for prompt in self.train_dataset["prompt"]}
        data: Any = self.eval_dataset
        sets: dict[str, Any] = data if isinstance(data, dict) else {"eval_dataset": data}
        for name, data in sets.items():
            if data is not None and not isinstance(data, IterableDataset) and "prompt" in data.column_names:
                both = sum(str(prompt) in seen for prompt in data["prompt"])
                if both:
                    logger.warning(f"{both} of {len(data)} prompts of {name} are in train_dataset too")

    def _make_critic(
        self, critic: PromptCritic | str | os.PathLike[str] | None, peft_config: Any = None
    ) -> PromptCritic:
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 cuts every model into pieces while it is loaded, the critic too; "
                "use FSDP (fsdp_version: 2) to shard the policy, or ZeRO stage 1 or 2"
            )
        if critic is None:
            critic = self._copy_policy()
            if peft_config is None:
                critic.backbone.float()  # small steps are lost in bfloat16 weights
            else:
                critic.backbone.to(self.model.dtype)
        elif not isinstance(critic, PromptCritic | str | os.PathLike):
            raise TypeError(f"critic must be a PromptCritic, a path or a Hub id, got {type(critic).__name__}")
        critic = load_critic(critic, self.processing_class)
        if peft_config is not None:
            adapters.add_adapter(critic, peft_config)
        if adapters.is_adapted(critic.backbone) and not any(x.requires_grad for x in critic.backbone.parameters()):
            raise ValueError(
                "no weight of the critic's adapter is trainable: PeftModel.from_pretrained needs is_trainable=True"
            )
        return critic

    def _copy_policy(self) -> PromptCritic:
        policy = self.model
        adapted = adapters.is_adapted(policy)
        base = policy.get_base_model() if adapted else policy
        if not isinstance(base, PreTrainedModel) or getattr(base, "is_quantized", False):
            raise ValueError(
                "without critic= the critic is a copy of the policy, which a quantised model does not allow; "
                f"pass critic='<path or Hub id>' with the tokenizer of {base.config._name_or_path!r}"
            )
        if adapted:
            return PromptCritic(adapters.merged_backbone(policy), self.processing_class).eval()  # type: ignore[arg-type]
        return PromptCritic.from_backbone(policy, self.processing_class)

    def _distribute(self, critic: PromptCritic) -> nn.Module:
        device, world = self.accelerator.device, self.accelerator.num_processes
        if any(x.is_meta for x in critic.parameters()):  # FSDP's cpu_ram_efficient_loading: only rank 0 has weights
            critic.to_empty(device=device)
        else:
            critic.to(device)
        if world == 1:
            return critic
        for x in [*critic.parameters(), *critic.buffers()]:
            dist.broadcast(x.data, src=0)
        if not self._critic_sharded:
            return DistributedDataParallel(critic)
        mesh = init_device_mesh(device.type, (world,))
        layers = set(critic.backbone._no_split_modules or ())
        for module in list(critic.backbone.modules()):
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh)
        fully_shard(critic, mesh=mesh)
        return critic

    # --------------------------------------------------------------------------------------------------------- data
    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """The ids that `critic.predict` makes. With tools, environments or another chat template they are TRL's."""
        if self.environment_factories is not None or self.tools or self.chat_template is not None:
            return super()._tokenize_prompts(prompts)
        if self.chat_template_kwargs:
            return super()._tokenize_prompts(prompts)
        return [prompt_ids(prompt, self.processing_class) for prompt in prompts], None, {}

    def _order(self, epoch: int, stream: int = 0) -> list[int]:
        """The prompts' order in an epoch, the same on every process and after every resume."""
        size = len(self.train_dataset)
        if not self.shuffle_dataset:
            return list(range(size))
        return np.random.default_rng([self.args.seed, epoch, stream]).permutation(size).tolist()

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        # The epoch is the trainer state's, because accelerate does not forward set_epoch() when it skips batches.
        return EpochSampler(
            lambda: self._order(int(self.state.epoch or 0)),
            size=len(self.train_dataset),
            block=self.args.generation_batch_size,
            repeat=self.num_iterations * self.args.steps_per_generation,
        )

    # ------------------------------------------------------------------------------------------------- policy's loss
    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._loss_inputs: dict[str, Any] = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = {}

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's. In the loss, ratios that overflow although A >= 0 are replaced by a finite one, which is clipped too:
        their gradient is 0, and TRL's would be inf x 0. Elsewhere nothing changes. `core.clipped_surrogate` does so."""
        logps, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs = getattr(self, "_loss_inputs", {})
        if (old := inputs.get("old_per_token_logps")) is not None:
            advantage = inputs["advantages"] if inputs["advantages"].ndim == 2 else inputs["advantages"][:, None]
            over = (logps - old > math.log(torch.finfo(logps.dtype).max) - 1) & (advantage >= 0)
            logps = torch.where(over, old + math.log1p(2 * self.epsilon_high), logps)
        return logps, *rest

    # -------------------------------------------------------------------------------------- outcome, advantage, critic
    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)  # (B of all processes, functions)
        outcome = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        outcome[rewards.isnan().all(dim=1)] = torch.nan  # every function returned None
        check_outcomes(outcome)
        self._outcome = outcome
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return self._roll_out(inputs, "eval")[0]
        if self._warmup_left:
            self._warm_up()
        if self._skip.active:
            inputs = self._without_skipped(inputs)
        output, outcome = self._roll_out(inputs, "train")
        if self.args.critic_recipe == "window":
            self._log_critic(self._train_critic(output, outcome))
        else:  # the minibatches are not known yet, see _prepare_inputs
            output["outcome"] = outcome
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's. With critic_recipe="paper" the critic is then trained on the minibatches into which TRL has shuffled a new
        generation batch, in the policy's order. The policy's updates follow, but they do not depend on the critic any more:
        the two share no weights, and the advantages are fixed."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        parts = self._buffered_inputs  # micro-batches
        if self.model.training and self.args.critic_recipe == "paper" and parts is not before:
            output = {key: torch.cat([part[key] for part in parts]) for key in ("prompt_ids", "prompt_mask", "outcome")}
            self._log_critic(self._train_critic(output, output["outcome"]))
        return inputs

    def _without_skipped(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The generation batch without prompts that the critic calls hopeless or solved; others take their places.

        Each process replaces its own rows, by rows of its own share of the dataset. So a prompt may be in a batch twice.
        """
        accelerator, data, size = self.accelerator, self.train_dataset, self.args.per_device_train_batch_size
        # What follows 2 is never 0, so these are no numbers that `_order` or the critic's batches draw.
        rng = np.random.default_rng([self.args.seed, self._critic_updates(), accelerator.process_index, 2])
        mine = np.random.default_rng([self.args.seed, self._critic_updates(), 0, 3]).permutation(len(data))
        others = (data[row] for row in mine[accelerator.process_index :: accelerator.num_processes].tolist())

        def value(rows: list[dict[str, Any]]) -> Tensor:
            ids = self._tokenize_prompts([row["prompt"] for row in rows])[0]
            # Every process makes as many forward passes: a sharded critic needs it.
            passes = -(-len(inputs) // size)
            parts = [ids[start : start + size] or ids[:1] for start in range(0, passes * size, size)]
            with self._autocast():
                return torch.cat([self.critic.predict(part, size) for part in parts])[: len(ids)]

        def anyone(flag: bool) -> bool:
            return bool(accelerator.gather(torch.tensor([int(flag)], device=accelerator.device)).any())

        chosen: Chosen = self._skip.choose(inputs, others, value, rng, anyone)
        numbers = list(chosen.scalars().items())
        found = torch.tensor([[x for _, x in numbers]], device=accelerator.device)
        found = accelerator.gather(found)  # (processes, 5)
        if found[:, -1].sum() and not self._critic_updates():
            raise ValueError(
                f"skip_prompts_below={self._skip.low} and skip_prompts_above={self._skip.high} leave too few of the "
                f"{len(data)} prompts for a generation batch (a new critic says 0.5 of every prompt); widen the bounds, "
                "start from a trained critic, or give critic_warmup_batches"
            )
        for i, (name, _) in enumerate(numbers):
            total = found[:, i].mean() if name == "prompts/v0_offered" else found[:, i].sum()
            self._metrics["train"][name].append(total.item())
        return chosen.kept

    def _log_critic(self, losses: Tensor) -> None:
        self._metrics["train"]["critic/loss"].append(losses[0].item())
        self._metrics["train"]["critic/last_loss"].append(losses[-1].item())

    def _roll_out(self, inputs: list[dict[str, Any]], mode: str) -> tuple[dict[str, Any], Tensor]:
        """TRL's batch with SPPO's advantages (eq. 1), and the outcomes of this process's rows."""
        output = super()._generate_and_score_completions(inputs)
        ids, mask = output["prompt_ids"], output["prompt_mask"]
        size = self.args.per_device_train_batch_size
        with torch.no_grad(), self._autocast():
            logit = torch.cat([self.critic(*rows) for rows in zip(ids.split(size), mask.split(size), strict=True)])
        logit = self.accelerator.gather(logit)  # (B,) of all processes, like the outcomes
        outcome = self._outcome.to(logit.dtype)
        advantage = core.sequence_advantage(outcome, logit)
        if mode == "train":
            self._judged.extend(zip(logit.float().sigmoid().tolist(), outcome.tolist(), strict=True))
        start = self.accelerator.process_index * len(ids)
        output["advantages"] = advantage[start : start + len(ids)]

        v0, metrics = logit.sigmoid(), self._metrics[mode]
        metrics.pop("frac_reward_zero_std", None)  # always 1 for groups of one
        for name, value in (
            ("advantages/mean", advantage.mean()),
            ("advantages/std", advantage.std(correction=0)),
            ("critic/v0_mean", v0.mean()),
            ("critic/brier", core.brier_score(v0, outcome)),
            ("critic/ece", core.expected_calibration_error(v0, outcome)),
        ):
            metrics[name].append(value.item())
        logged = self._logs["advantages"]  # TRL has put a zero into it for each row
        for _ in range(min(len(advantage), len(logged))):
            logged.pop()
        logged.extend(advantage.tolist())
        return output, outcome[start : start + len(ids)]

    def _train_critic(self, output: dict[str, Any], outcome: Tensor) -> Tensor:
        """The critic's updates on a generation batch (eq. 2), by its recipe.

        Each process takes its rows, and all have the same number. DDP or fully_shard averages the gradients. The optimiser
        is torch's, because accelerate's would skip steps while the policy accumulates gradients.
        """
        args, n = self.args, len(outcome)
        if args.critic_recipe == "paper":  # one update per policy minibatch of this process, as often as the policy
            minibatch = args.per_device_train_batch_size * args.gradient_accumulation_steps
            batches = list(torch.arange(n).split(minibatch)) * self.num_iterations
        else:
            size = args.critic_batch_size and args.critic_batch_size // self.accelerator.num_processes
            batches = critic_batches(
                n, args.critic_steps, size, np.random.default_rng([args.seed, self._critic_updates()])
            )
        with self._autocast():
            losses = train_critic(
                self._critic,
                self.critic_optimizer,
                output["prompt_ids"],
                output["prompt_mask"],
                outcome,
                batches,
                micro_batch_size=args.per_device_train_batch_size,
                max_grad_norm=args.max_grad_norm or None,
            )
        return self.accelerator.reduce(losses, reduction="mean")

    def _critic_updates(self) -> int:
        """How many updates the critic has had. Adam counts them, and a resumed run restores Adam's count."""
        return max((int(state["step"]) for state in self.critic_optimizer.state.values()), default=0)

    def _autocast(self) -> torch.autocast:
        # Without the cache, which would keep the old weights after an optimiser step.
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._critic_bf16, cache_enabled=False)

    def _warm_up(self) -> None:
        """Generation batches for the critic alone, in a separate order. The policy and its optimiser do not change."""
        size = self.args.generation_batch_size
        mine = size // self.accelerator.num_processes
        per_epoch = len(self.train_dataset) // size
        metrics, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        for batch in range(self._warmup_left):
            start = batch % per_epoch * size + self.accelerator.process_index * mine
            rows = self._order(batch // per_epoch, stream=1)[start : start + mine]
            losses = self._train_critic(*self._roll_out([self.train_dataset[row] for row in rows], "train"))
            metrics["critic/warmup_loss"].append(losses[0].item())
        self._metrics["train"], self._warmup_left = metrics, 0

    # -------------------------------------------------------------------------------------------------- checkpoints
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as GRPOTrainer does, and the critic into the folder `critic` inside, for `PromptCritic.from_pretrained`.

        Outside of checkpoints the critic gets a card, whose numbers are of the newest responses of the training.
        """
        folder = os.path.join(output_dir or self.args.output_dir, "critic")
        weights = self.critic.state_dict()
        if self._critic_sharded:  # whole on rank 0, empty elsewhere
            weights = get_model_state_dict(self.critic, options=_WHOLE)
        if self.args.should_save and weights:
            final = output_dir is None or not _internal_call
            self.critic.save_pretrained(folder, weights, self.critic_card() if final else None)
        super().save_model(output_dir, _internal_call)

    def critic_card(self) -> CriticCard:
        """The critic's card. Each V in it is of a critic that had not yet seen the outcome it is compared with."""
        name = str(self.model.config._name_or_path) or type(self.model).__name__
        base = str(self.critic.backbone.config._name_or_path) or name
        judged = torch.tensor(list(self._judged), dtype=torch.float64)
        skipping = ""
        if self._skip.active:
            skipping = (
                f" Prompts with V below {self._skip.low} or above {self._skip.high} were skipped: few are among them."
            )
        return CriticCard(
            data=f"the newest {len(judged):,} responses of the training since it was last started, at most {JUDGED:,}. A "
            f"prompt counts as often as it came. V is that of the critic before it was trained on the response.{skipping}",
            policy=name, base_model=base, calibration=calibration(judged[:, 0], judged[:, 1]) if len(judged) else None,
            trained_on=f"{len(self.train_dataset):,} prompts, {self.state.global_step:,} optimiser steps of the policy",
            sampling=f"temperature {self.args.temperature:g}, at most {self.args.max_completion_length:,} tokens",
            license=base_license(base),
        )  # fmt: skip

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """transformers copies the policy's files to what it uploads while training. The critic goes with them."""
        critic = os.path.join(checkpoint_folder, "critic")
        if self.is_world_process_zero() and os.path.isdir(critic):
            remove_card(Path(self.args.output_dir, "critic"))  # of an earlier critic
            shutil.copytree(critic, os.path.join(self.args.output_dir, "critic"), dirs_exist_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = get_optimizer_state_dict(self.critic, self.critic_optimizer, options=_WHOLE)
        if self.args.should_save and state:
            torch.save(state, os.path.join(output_dir, "critic_optimizer.pt"))
        # If several optimiser steps share a generation batch, the rest of that batch is part of the state.
        spent = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rows = {"world": self.args.world_size, "step": self._step, "left": None if spent else self._buffered_inputs}
        os.makedirs(output_dir, exist_ok=True)
        torch.save(rows, os.path.join(output_dir, f"sppo_state_{self.args.process_index}.pt"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        paths = [os.path.join(checkpoint, "critic_optimizer.pt"), os.path.join(checkpoint, "sppo_state_0.pt")]
        for path in paths:
            if self.args.process_index == 0 and not os.path.isfile(path):
                raise FileNotFoundError(
                    f"cannot resume: {path} is missing; SPPOTrainer writes it into each checkpoint unless save_only_model "
                    "is set. To start anew from these weights, pass the folder as model and its folder 'critic' as critic"
                )
        # A sharded critic comes from rank 0, so other nodes need neither its disk nor memory for the whole critic.
        read = self.args.process_index == 0 or not self._critic_sharded
        weights = PromptCritic.from_pretrained(os.path.join(checkpoint, "critic")).state_dict() if read else {}
        state = torch.load(paths[0], map_location="cpu", weights_only=True) if read else {}
        if read and (other := weights.keys() ^ set(self.critic.state_dict())):
            raise ValueError(
                f"cannot resume: the critic of {checkpoint} has other weights than this run's, such as {min(other)}; "
                "give the same critic and the same critic_peft_config as before"
            )
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self._critic_sharded)
        set_model_state_dict(self.critic, weights, options=options)
        set_optimizer_state_dict(self.critic, self.critic_optimizer, state, options=options)
        mine = os.path.join(checkpoint, f"sppo_state_{self.args.process_index}.pt")
        rows = torch.load(mine if os.path.isfile(mine) else paths[1], map_location="cpu", weights_only=True)
        if rows["left"] is not None and rows["world"] != self.args.world_size:
            raise ValueError(
                f"{checkpoint} was written by {rows['world']} processes in the middle of a generation batch, and cannot be "
                f"resumed by {self.args.world_size}; use as many, or a checkpoint at the end of a generation batch"
            )
        self._step, self._warmup_left = rows["step"] if rows["left"] else 0, 0
        self._buffered_inputs = send_to_device(rows["left"], self.accelerator.device)


SequenceLevelPPOTrainer, SequenceLevelPPOConfig = SPPOTrainer, SPPOConfig
"""The same classes. "SPPO" also names Self-Play Preference Optimization, which is another method."""

JUDGED = 4096
"""Responses that the critic's card is made of, at most."""

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _saved_tokenizer(model: Any, args: SPPOConfig) -> Any:
    """The tokenizer beside the policy, if TRL might build another one from it with AutoProcessor; else None."""
    name, where = model if isinstance(model, str) else model.config._name_or_path, {}
    if isinstance(model, str):  # the same revision as TRL takes
        settings: Any = args.model_init_kwargs or {}
        where["revision"] = settings.get("revision")
    if not name or not is_generic(name, **where):
        return None
    return load_tokenizer(name, padding_side="left", truncation_side="left", **where)


def _missing_columns(function: Any, columns: set[str]) -> set[str]:
    """Columns that a reward function needs and the dataset does not have: its parameters without default."""
    if isinstance(function, nn.Module):
        return set()
    if isinstance(function, MathReward):
        return set() if columns & set(COLUMNS) else {" or ".join(COLUMNS)}
    given = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in kinds and p.default is p.empty} - given - columns
