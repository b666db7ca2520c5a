"""LoRA adapters (PEFT, extra `peft`): on the critic's backbone, and a critic that is a copy of a policy with an adapter.

An adapted critic trains the adapter and the head. The backbone's weights are frozen and stay as they are, bit for bit. PEFT
names the parameters of a backbone that it wraps; `PromptCritic.save_pretrained` undoes this, so that the folder contains
the backbone as `AutoModel` writes it, and the adapter in separate files.

| parameter of the wrapped backbone             | saved as                                            |
| --------------------------------------------- | --------------------------------------------------- |
| `base_model.model.<module>.base_layer.weight` | `<module>.weight`, in the backbone's files          |
| `base_model.model.<module>.lora_...`          | the same name, in `ADAPTER`                         |

Source of the method: Hu et al., LoRA, arXiv 2106.09685; the code is PEFT's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sppo_control import extras

if TYPE_CHECKING:
    from sppo_control.llm.critic import PromptCritic

ADAPTER = "critic_adapter.safetensors"
"""The adapter's weights in a critic's folder. PEFT's own name would make `AutoModel` look for another base model."""

FIELDS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "use_dora", "init_lora_weights",
    "fan_in_fan_out", "rank_pattern", "alpha_pattern",
)  # fmt: skip
"""The arguments of `LoraConfig` that a critic's adapter may have. The others keep their defaults."""

_ABOUT = (  # says where a configuration is from or what it is for, not what the adapter computes
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "loftq_config", "runtime_config",
)  # fmt: skip


def is_adapted(model: Any) -> bool:
    """Whether PEFT has wrapped this model. PEFT need not be installed."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def adapter_fields(config: Any) -> dict[str, Any]:
    """What a critic's LoRA configuration sets, ready for JSON.

    Args:
        config: a `peft.LoraConfig`.

    Returns:
        name -> value for `FIELDS`; sets become sorted lists.

    Raises:
        MissingExtra: PEFT is not installed.
        TypeError: it is no LoraConfig.
        ValueError: it sets an argument that is not in `FIELDS`, or an initialisation that changes the frozen weights.
    """
    extras.require("peft", "peft", wanted_by="a critic with an adapter")
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise TypeError(
            f"the critic's adapter must be a peft.LoraConfig, got {type(config).__name__}; others were not tested, and "
            "those that add virtual tokens move the position at which V(s_p) is read"
        )
    given, default = vars(config), vars(LoraConfig())
    for name, value in given.items():
        if name not in FIELDS + _ABOUT and value != default.get(name):
            raise ValueError(
                f"{name}={value!r} is not supported in the critic's adapter; leave it out. Allowed: {', '.join(FIELDS)}"
            )
    if config.init_lora_weights not in (True, False, "gaussian"):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} would change the critic's frozen weights; use True or "
            "'gaussian'"
        )
    return {name: sorted(x) if isinstance(x := given[name], set) else x for name in FIELDS}


def add_adapter(critic: PromptCritic, config: Any) -> None:
    """Freeze the critic's backbone, and wrap it with a LoRA adapter, in place. The head stays trainable.

    The adapter is float32, whatever dtype the backbone has.

    Args:
        critic: without an adapter.
        config: a `peft.LoraConfig`. It is not changed. `task_type` is not used.

    Raises:
        ValueError: the critic has an adapter already; or what `adapter_fields` raises; or no module fits (PEFT's message).
    """
    fields = adapter_fields(config)
    if is_adapted(critic.backbone):
        raise ValueError("the critic has an adapter already; leave critic_peft_config out to train that one")
    from peft import LoraConfig, get_peft_model

    # FEATURE_EXTRACTION: the backbone has no language-model head, so it cannot generate.
    wrapped: Any = get_peft_model(critic.backbone, LoraConfig(**fields, task_type="FEATURE_EXTRACTION"))
    critic.backbone = wrapped.train(critic.training)  # PEFT leaves its new layers in training mode


def check_backbone(backbone: Any) -> None:
    """Refuse a wrapped backbone that a PromptCritic could not save or read.

    Raises:
        ValueError: it has a language-model head, or several adapters; or what `adapter_fields` raises.
    """
    if len(backbone.peft_config) != 1 or "default" not in backbone.peft_config:
        raise ValueError(
            f"the critic's backbone must have one adapter, 'default', got {', '.join(backbone.peft_config)}"
        )
    adapter_fields(backbone.peft_config["default"])
    if backbone.get_base_model().get_output_embeddings() is not None:
        raise ValueError(
            "the critic's backbone must have no language-model head: wrap AutoModel.from_pretrained(...) with PEFT, "
            "or pass the model without an adapter and critic_peft_config=LoraConfig(...)"
        )


def split_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a wrapped backbone as (the backbone's own weights by their own names, the adapter's by PEFT's)."""
    adapter = {name: x for name, x in weights.items() if ".lora_" in name}
    base = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): x
        for name, x in weights.items()
        if name not in adapter
    }
    return base, adapter


def load_adapter(critic: PromptCritic, fields: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Wrap a critic's backbone with a saved adapter.

    Args:
        critic: with the saved backbone, without an adapter.
        fields: what `adapter_fields` returned.
        weights: what `split_weights` returned second.

    Raises:
        MissingExtra: PEFT is not installed.
        ValueError: a name in `fields` is unknown, or weights are missing or too many.
    """
    extras.require("peft", "peft", wanted_by="this critic's adapter")
    if unknown := set(fields) - set(FIELDS):
        raise ValueError(
            f"unknown arguments of the adapter: {', '.join(sorted(unknown))}; allowed: {', '.join(FIELDS)}"
        )
    from peft import LoraConfig

    add_adapter(critic, LoraConfig(**fields))
    wanted = {name for name in critic.backbone.state_dict() if ".lora_" in name}
    if wrong := wanted ^ set(weights):
        raise ValueError(f"{ADAPTER} does not fit the adapter's configuration: {', '.join(sorted(wrong)[:5])}")
    critic.backbone.load_state_dict(dict(weights), strict=False)


def merged_backbone(policy: Any) -> nn.Module:
    """A float32 copy of a policy with a LoRA adapter, without its language-model head: the adapter is added to the weights.

    Raises:
        ValueError: the policy is quantised, or has something of PEFT that is not LoRA, so a copy without PEFT is another
            policy.
    """
    extras.require("peft", "peft", wanted_by="a policy with an adapter")
    from peft.tuners.tuners_utils import BaseTunerLayer

    backbone = copy.deepcopy(policy.get_base_model().base_model).float()
    virtual = any(getattr(config, "is_prompt_learning", False) for config in policy.peft_config.values())
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer) and hasattr(module, "lora_A"):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, module.get_base_layer())
    left = {type(module).__name__ for module in backbone.modules() if type(module).__module__.startswith("peft.")}
    if left or virtual:
        raise ValueError(
            "without critic= the critic is a copy of the policy, which this adapter does not allow "
            f"({', '.join(sorted(left)) or 'virtual tokens'}); pass critic='<path or Hub id>' with the policy's tokenizer"
        )
    return backbone.requires_grad_(True)
