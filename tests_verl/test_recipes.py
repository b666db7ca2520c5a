"""The recipes against the official settings, line by line; and the dry run, which builds the whole configuration."""

import os
import pathlib
import subprocess
import sys

import official
import pandas as pd
import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl_batch import compose

from sppo_control.llm import verl_plugin

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIFFERENT = {  # the only lines that may differ, so that another difference needs a reason here and in the README
    "algorithm.adv_estimator", "data.trust_remote_code", "actor_rollout_ref.actor.optim.total_training_steps",
    "actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.rollout.mode", "trainer.logger", "trainer.project_name",
}  # fmt: skip


@pytest.fixture(scope="module")
def configs():
    return [compose(recipe) for recipe in official.RECIPES]


@pytest.mark.parametrize("index", range(3), ids=list(official.RECIPES))
def test_every_official_value_is_ours_or_its_difference_is_explained(configs, index):
    missing = object()
    for key, values, why in official.LINES:
        ours = official.plain(OmegaConf.select(configs[index], key, default=missing))
        assert ours is not missing, f"{key} is no setting of verl 0.9.1"
        assert bool(why) == (key in DIFFERENT), key
        if not why:
            assert ours == official.official(values, index), key


def test_the_readmes_table_is_the_composed_recipes(configs):
    _, table, _ = official.parts(official.README.read_text())
    assert table == official.table(configs), "write it again: the command is in tests_verl/official.py"


def test_the_recipes_loss_is_the_official_ones_but_for_its_name(configs):
    """vanilla of verl has the dual clip at clip_ratio_c, so ours is the one that has it too."""
    for config in configs:
        assert get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode) is (
            verl_plugin.sppo_dual_clip_policy_loss
        )
        assert get_adv_estimator_fn(config.algorithm.adv_estimator) is verl_plugin.sppo_advantage
    # 7B: micro-batches of one response, so the official token-mean per micro-batch is this one
    modes = [config.actor_rollout_ref.actor.loss_agg_mode for config in configs]
    assert modes == ["token-mean", "seq-mean-token-mean", "seq-mean-token-mean"]
    assert [config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu for config in configs] == [2, 1, 1]


@pytest.mark.parametrize("recipe", official.RECIPES)
def test_recipes_are_valid_for_verl_with_their_models(recipe, tiny_models):
    overrides = [f"actor_rollout_ref.model.path={tiny_models['policy']}"]
    if "critic" in recipe:
        overrides.append(f"critic.model.path={tiny_models['critic']}")
    config = compose(recipe, overrides)
    verl_plugin.check_config(config)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    assert need_critic(config)
    assert not need_reference_policy(config)
    critic = omega_conf_to_dataclass(config.critic)
    assert critic.model.path == tiny_models["critic" if "critic" in recipe else "policy"]


# ------------------------------------------------------------------------------------------------------- the reward
def test_the_recipes_reward_judges_what_comes_after_thinking(configs):
    assert {config.reward.custom_reward_function.name for config in configs} == {"paper_reward"}
    reward = verl_plugin.paper_reward
    assert reward(r"\boxed{7}</think>It is \boxed{204}.", "204") == 1.0
    assert reward(r"\boxed{204}</think>That was easy.", "204", data_source="math") == 0.0
    assert reward(r"It is \fbox{204.001}.", 204) == 1.0
    assert verl_plugin.boxed_reward(r"\boxed{204}</think>That was easy.", "204") == 1.0
    assert verl_plugin.boxed_reward(r"\boxed{204.001}", "204") == 0.0


# ------------------------------------------------------------------------------------------------------- the dry run
def snippet():
    text = official.README.read_text()
    return text[text.index("```python\n") + len("```python\n") : text.index("```\n\n")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The README's example, its rows repeated."""
    folder = tmp_path_factory.mktemp("data")
    code = compile(snippet(), "README.md", "exec")
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(code, {})
    finally:
        os.chdir(before)
    rows = pd.read_parquet(folder / "train.parquet")
    assert rows["prompt"][0][0]["content"] == r"What is 7 x 8? Please output the final answer within \boxed{}."
    pd.concat([rows] * 600).to_parquet(folder / "train.parquet")
    return folder


def dry_run(folder, recipe, *overrides):
    """As a user starts it: no CPU platform of the tests, no network, no models."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")} | {"PYTHON": sys.executable}
    command = [str(ROOT / "recipes/verl/run_sppo.sh"), recipe, "--dry-run", *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)


def test_dry_run_builds_the_whole_configuration_and_says_what_a_run_would_do(data, tmp_path):
    files = [f"data.train_files=[{data}/train.parquet,{data}/train.parquet]", f"data.val_files={data}/train.parquet"]
    done = dry_run(tmp_path, "sppo_7b_critic_1_5b", *files, "trainer.nnodes=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[validate_config] All configuration checks passed successfully!" in done.stdout  # verl's own
    for line in (
        "trainer: SPPOTrainerSync",
        f"policy, critic: {official.LARGE}, {official.SMALL}",
        "GPUs: 8",
        "training prompts: 2400 rows, 4 batches of 512 per epoch",
        "validation prompts: 1200",
        "steps: 120, 30.0 epochs",
        "updates per batch: policy 16, critic 16",
        "policy: AdamW, lr 1e-06, weight decay 0.1",
        "policy's loss: sppo_dual_clip, seq-mean-token-mean",
        "critic: AdamW, lr 1e-05, weight decay 0.01",
        "sampling: temperature 0.6, top-p 1, prompts up to 2048, responses up to 8192 tokens",
        "Nothing was started",
    ):
        assert line in done.stdout, line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def dry():
    """The functions of dry_run.py, in this process: each process of verl takes eight seconds to begin."""
    sys.path.insert(0, str(ROOT / "recipes/verl"))
    import dry_run as module

    yield module
    sys.path.remove(str(ROOT / "recipes/verl"))


def test_dry_run_of_every_recipe(dry, data):
    updates = {
        "sppo_1_5b": "policy 2, critic 2",
        "sppo_7b": "policy 16, critic 16",
        "sppo_7b_critic_1_5b": "policy 16, critic 16",
    }
    for recipe, text in updates.items():
        config = compose(recipe, [f"data.train_files={data}/train.parquet", f"data.val_files={data}/train.parquet"])
        made = dry.build(config)
        assert made["critic"].optim.lr == (5e-6 if recipe == "sppo_1_5b" else 1e-5)
        assert made["actor"].strategy == "fsdp"
        assert f"updates per batch: {text}" in dry.plan(config, made, dry.check_data(config))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("actor_rollout_ref.rollout.n=8", "rollout.n must be 1 for SPPO, got 8"),
        ("trainer.v1.trainer_mode=sppo_", "'sppo_'|sppo_ "),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=1024", "train_batch_size"),
        ("actor_rollout_ref.rollout.name=???", "without a value: actor_rollout_ref.rollout.name"),
        ("actor_rollout_ref.actor.optim.lr_scheduler_type=linear", "FSDPOptimizerConfig"),
        ("critic.ppo_micro_batch_size_per_gpu=null", "micro_batch_size"),
        ("trainer.n_gpus_per_node=5", "must be divisible by minimal possible batch size"),
    ],
)
def test_dry_run_refuses_a_wrong_configuration(dry, override, text):
    config = compose("sppo_1_5b", [override])
    with pytest.raises(Exception, match=text):
        dry.build(config)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows.drop(columns="reward_model"), "lacks the columns reward_model"),
        (lambda rows: rows[:100], "data.train_files have 100 rows, fewer than a batch of 256"),
        (
            lambda rows: rows.assign(reward_model=[{"ground_truth": r"\frac"}] * len(rows)),
            "none of the 1000 answers can be read",
        ),
        (lambda rows: rows.assign(reward_model=[{"ground_truth": None}] * len(rows)), "None"),
    ],
)
def test_dry_run_refuses_wrong_data(dry, data, tmp_path, change, text):
    change(pd.read_parquet(data / "train.parquet")).to_parquet(tmp_path / "x.parquet")
    config = compose("sppo_1_5b", [f"data.train_files={tmp_path}/x.parquet", f"data.val_files={data}/train.parquet"])
    with pytest.raises(ValueError, match=text):
        dry.check_data(config)
    config.data.train_files = str(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"data.train_files: there is no file .*y.parquet"):
        dry.check_data(config)
