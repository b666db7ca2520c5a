"""What `run_sppo.sh RECIPE --dry-run` does: build the whole configuration as verl's main would, check it, start nothing.

Hydra composes the configuration from verl's own ppo_trainer, the recipe and the command line, exactly as for a run. Then
verl's `validate_config` and the plug-in's `check_config` judge it, every reference in it is resolved, its parts become
verl's own dataclasses, the names that it selects are looked up in verl's registries, and the data's right answers are read
on trial. Models and tokenizers are not read, because they need the network.

Exit status: 0, or 1 with one line that says what is wrong.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass, validate_config

from sppo_control.llm.prompts import report_answers
from sppo_control.llm.verl_plugin import check_config

ANSWERS = 1000
"""Right answers of each file that are read on trial."""


def build(config: DictConfig) -> dict[str, Any]:
    """Check the configuration, and make what a run makes of it before it starts anything.

    Returns:
        role -> verl's dataclass of actor, critic (its model stays a mapping) and rollout, and the class of the trainer.

    Raises:
        Exception: verl's or the plug-in's, about the first setting that is wrong.
    """
    check_config(config)
    unset = {key for key in OmegaConf.missing_keys(config) if not key.startswith("reward.reward_model.")}  # it is off
    if unset:
        raise ValueError(f"without a value: {', '.join(sorted(unset))}")
    whole = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    del whole.critic.model._target_  # verl's validation would read the critic's model from the Hub
    validate_config(whole, use_reference_policy=need_reference_policy(whole), use_critic=need_critic(whole))
    parts = {"actor": whole.actor_rollout_ref.actor, "critic": whole.critic, "rollout": whole.actor_rollout_ref.rollout}
    made: dict[str, Any] = {name: omega_conf_to_dataclass(part) for name, part in parts.items()}
    get_adv_estimator_fn(config.algorithm.adv_estimator)
    get_policy_loss_fn(made["actor"].policy_loss.loss_mode)
    return made | {"trainer": get_trainer_cls(config.trainer.v1.trainer_mode)}


def check_data(config: DictConfig) -> dict[str, int]:
    """Read the data as verl will, and let the reward function judge each file's first row.

    Returns:
        "train_files" and "val_files" -> rows.

    Raises:
        ValueError: a file is missing, lacks a column, is smaller than a batch, or has an answer that cannot be judged.
    """
    reward, rows = get_custom_reward_fn(config), {}
    for key in ("train_files", "val_files"):
        files = config.data[key]
        paths = [files] if isinstance(files, str) else list(files)
        count = 0
        for path in paths:
            if not Path(path).expanduser().is_file():
                raise ValueError(f"data.{key}: there is no file {path}; give data.{key}=FILE.parquet (README.md, data)")
            data = pd.read_parquet(Path(path).expanduser())
            needed = {"data_source", "prompt", "reward_model"}
            if missing := needed - set(data.columns):
                raise ValueError(f"data.{key}: {path} lacks the columns {', '.join(sorted(missing))} (README.md, data)")
            answers = [row.get("ground_truth") for row in data["reward_model"]]
            for line in report_answers(answers[:ANSWERS], f"data.{key}: {path}, reward_model.ground_truth"):
                print(f"warning: {line}")
            reward(
                data_source=data["data_source"][0], solution_str=r"\boxed{0}", ground_truth=answers[0], extra_info={}
            )
            count += len(data)
        rows[key] = count
    if rows["train_files"] < config.data.train_batch_size:
        raise ValueError(
            f"data.train_files have {rows['train_files']} rows, fewer than a batch of {config.data.train_batch_size}"
        )
    return rows


def plan(config: DictConfig, made: dict[str, Any], rows: dict[str, int]) -> str:
    """What a run would do, in lines of `name: value`."""
    actor, critic, gpus = made["actor"], made["critic"], config.trainer.n_gpus_per_node * config.trainer.nnodes
    batch, steps = config.data.train_batch_size, config.trainer.total_training_steps
    per_epoch = rows["train_files"] // batch
    total = min(per_epoch * config.trainer.total_epochs, steps or math.inf)
    lines = {
        "trainer": made["trainer"].__name__,
        "policy, critic": f"{config.actor_rollout_ref.model.path}, {config.critic.model.path}",
        "GPUs": gpus,
        "training prompts": f"{rows['train_files']} rows, {per_epoch} batches of {batch} per epoch",
        "validation prompts": rows["val_files"],
        "steps": f"{total}, {total / per_epoch:.1f} epochs",
        "updates per batch": f"policy {batch // actor.ppo_mini_batch_size * actor.ppo_epochs}, "
        f"critic {batch // critic.ppo_mini_batch_size * critic.ppo_epochs}",
        "policy": f"AdamW, lr {actor.optim.lr:g}, weight decay {actor.optim.weight_decay:g}",
        "policy's loss": f"{actor.policy_loss.loss_mode}, {actor.loss_agg_mode}",
        "critic": f"AdamW, lr {critic.optim.lr:g}, weight decay {critic.optim.weight_decay:g}",
        "sampling": f"temperature {made['rollout'].temperature:g}, top-p {made['rollout'].top_p:g}, "
        f"prompts up to {config.data.max_prompt_length}, responses up to {config.data.max_response_length} tokens",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


@hydra.main(config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Print the plan of a run, or one line that says what is wrong, with exit status 1.

    Args:
        config: the whole configuration, as Hydra composes it for verl's own main.
    """
    try:
        made = build(config)
        text = plan(config, made, check_data(config))
    except Exception as error:  # whatever verl raises; a run would end with it too
        sys.exit(f"error: {type(error).__name__}: {error}")
    print(text)
    print("The configuration is valid. Nothing was started.")


if __name__ == "__main__":
    main()
