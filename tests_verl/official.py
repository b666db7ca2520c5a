"""The official settings of SPPO, line by line, and the table of recipes/verl/README.md that compares the recipes with them.

The values are from run_scripts/ of github.com/sustech-nlp/SPPO at commit 55e8a72, where a script names them, and from the
defaults of its fork of verl (trainer/config) where not. Write the table again:

    PYTHONPATH=.:tests_verl .venv-verl/bin/python tests_verl/official.py
"""

from __future__ import annotations

import pathlib

from omegaconf import OmegaConf

README = pathlib.Path(__file__).resolve().parents[1] / "recipes/verl/README.md"
RECIPES = {  # recipe -> official script
    "sppo_1_5b": "run_ds1.5B_PPO_SEQUENCE_shuffle.sh",
    "sppo_7b": "run_R1-7B_DAPO_SEQUENCE.sh",
    "sppo_7b_critic_1_5b": "run_R1-7B_DAPO_SEQUENCE_small_critic.sh",
}
SMALL, LARGE = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
A, R, C = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "critic"

# verl 0.9.1's name, official values of the three scripts (one value: the same in all three), why ours differs ("" is equal)
LINES: list[tuple[str, tuple[object, ...], str]] = [
    ("algorithm.adv_estimator", ("sequence_level_adv",), "the same formula, by the plug-in's name"),
    ("algorithm.use_kl_in_reward", (False,), ""),
    ("data.train_batch_size", (256, 512, 512), ""),
    ("data.shuffle", (True,), ""),
    ("data.trust_remote_code", (True,), "these tokenizers need no code of others"),
    ("data.max_prompt_length", (1024, 2048, 2048), ""),
    ("data.max_response_length", (8192,), ""),
    ("data.filter_overlong_prompts", (True, False, False), ""),
    ("data.truncation", ("error", "left", "left"), ""),
    ("actor_rollout_ref.model.path", (SMALL, LARGE, LARGE), ""),
    ("actor_rollout_ref.model.use_remove_padding", (True,), ""),
    ("actor_rollout_ref.model.enable_gradient_checkpointing", (True,), ""),
    (f"{A}.optim.lr", (1e-6,), ""),
    (f"{A}.optim.lr_scheduler_type", ("constant",), ""),
    (
        f"{A}.optim.total_training_steps",
        (500, 200, 200),
        "verl sets it to the run's steps; a constant rate does not use it",
    ),
    (f"{A}.optim.lr_warmup_steps_ratio", (0.0,), ""),
    (f"{A}.optim.weight_decay", (0.01, 0.1, 0.1), ""),
    (f"{A}.optim.betas", ([0.9, 0.999],), ""),
    (f"{A}.optim.clip_grad", (1.0,), ""),
    (f"{A}.use_torch_compile", (True,), ""),
    (f"{A}.fsdp_config.param_offload", (False, True, True), ""),
    (f"{A}.fsdp_config.optimizer_offload", (False, True, True), ""),
    (f"{A}.strategy", ("fsdp",), ""),
    (f"{A}.policy_loss.loss_mode", ("vanilla",), "the same formula, by the plug-in's name"),
    (f"{A}.loss_agg_mode", ("token-mean",), "the official mean is over each micro-batch, see below"),
    (f"{A}.clip_ratio", (0.2,), ""),
    (f"{A}.clip_ratio_low", (0.2,), ""),
    (f"{A}.clip_ratio_high", (0.2,), ""),
    (f"{A}.clip_ratio_c", (3.0,), ""),
    (f"{A}.entropy_coeff", (0,), ""),
    (f"{A}.use_kl_loss", (False,), ""),
    (f"{A}.ppo_epochs", (1,), ""),
    (f"{A}.shuffle", (False,), ""),
    (f"{A}.use_dynamic_bsz", (False,), ""),
    (f"{A}.ppo_mini_batch_size", (128, 32, 32), ""),
    (f"{A}.ppo_micro_batch_size_per_gpu", (2, 1, 1), ""),
    (f"{R}.log_prob_use_dynamic_bsz", (False,), ""),
    (f"{R}.log_prob_micro_batch_size_per_gpu", (2, 1, 1), ""),
    (f"{R}.n", (1,), ""),
    (f"{R}.do_sample", (True,), ""),
    (f"{R}.temperature", (0.6,), ""),
    (f"{R}.top_p", (1,), ""),
    (f"{R}.top_k", (-1,), ""),
    (f"{R}.val_kwargs.do_sample", (True,), ""),
    (f"{R}.val_kwargs.temperature", (0.6,), ""),
    (f"{R}.val_kwargs.top_p", (1.0,), ""),
    (f"{R}.val_kwargs.n", (1,), ""),
    (f"{R}.max_model_len", (9216, 20480, 20480), ""),
    (f"{R}.max_num_batched_tokens", (24576, 32768, 32768), ""),
    (f"{R}.max_num_seqs", (1024,), ""),
    (f"{R}.enforce_eager", (True,), ""),
    (f"{R}.tensor_model_parallel_size", (1, 4, 4), ""),
    (f"{R}.name", ("vllm",), ""),
    (f"{R}.mode", ("sync",), "verl 0.9.1 has no other"),
    (f"{R}.gpu_memory_utilization", (0.8,), ""),
    (f"{C}.enable", (True,), ""),
    (f"{C}.model.path", (SMALL, LARGE, SMALL), ""),
    (f"{C}.model.use_remove_padding", (False,), ""),
    (f"{C}.model.enable_gradient_checkpointing", (True,), ""),
    (f"{C}.optim.lr", (5e-6, 1e-5, 1e-5), ""),
    (f"{C}.optim.lr_scheduler_type", ("constant",), ""),
    (f"{C}.optim.weight_decay", (0.01,), ""),
    (f"{C}.optim.betas", ([0.9, 0.999],), ""),
    (f"{C}.optim.clip_grad", (1.0,), ""),
    (f"{C}.fsdp.param_offload", (False,), ""),
    (f"{C}.fsdp.optimizer_offload", (False,), ""),
    (f"{C}.use_dynamic_bsz", (False,), ""),
    (f"{C}.ppo_mini_batch_size", (128, 32, 32), ""),
    (f"{C}.ppo_micro_batch_size_per_gpu", (1,), ""),
    (f"{C}.ppo_epochs", (1,), ""),
    (f"{C}.shuffle", (False,), ""),
    ("trainer.critic_warmup", (0,), ""),
    ("trainer.balance_batch", (True,), ""),
    ("trainer.logger", (["console", "wandb"],), "wandb needs an account"),
    ("trainer.n_gpus_per_node", (4,), ""),
    ("trainer.nnodes", (1,), ""),
    ("trainer.total_epochs", (30,), ""),
    ("trainer.total_training_steps", (2000, 200, 200), ""),
    ("trainer.val_before_train", (True,), ""),
    ("trainer.save_freq", (2, 10, 10), ""),
    ("trainer.test_freq", (10, 2, 2), ""),
    (
        "trainer.project_name",
        ("SPPO",),
        "a name of our own; so are the experiments' names and the folder of checkpoints",
    ),
]


def official(values: tuple[object, ...], index: int) -> object:
    """The value of one script: of three, or the one that all have."""
    return values[index] if len(values) > 1 else values[0]


def plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def shown(values: list[object]) -> str:
    texts = [f"{x:g}" if isinstance(x, float) else str(x).removeprefix("deepseek-ai/DeepSeek-R1-") for x in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def table(configs: list) -> str:
    """The Markdown table.

    Args:
        configs: the composed configurations of `RECIPES`, in their order.
    """
    rows = ["| setting | official: 1.5B / 7B / 7B with small critic | ours | difference |", "| --- | --- | --- | --- |"]
    for key, values, why in LINES:
        theirs = shown([official(values, index) for index in range(len(configs))])
        ours = shown([plain(OmegaConf.select(config, key)) for config in configs])
        rows.append(f"| `{key}` | {theirs} | {'the same' if ours == theirs else ours} | {why} |")
    return "\n".join(rows) + "\n"


def parts(text: str) -> tuple[str, str, str]:
    """The README before the table, the table, and what follows."""
    head, begin, rest = text.partition("<!-- official: begin -->\n")
    middle, end, tail = rest.partition("<!-- official: end -->")
    assert begin, "the README has no mark where the table begins"
    assert end, "the README has no mark where the table ends"
    return head + begin, middle, end + tail


if __name__ == "__main__":
    import conftest  # noqa: F401  (the environment of these tests, before verl)
    from verl_batch import compose

    before, _, after = parts(README.read_text())
    README.write_text(before + table([compose(recipe) for recipe in RECIPES]) + after)
