"""Registration, recipes, losses and gradients of the verl plug-in, against verl's own functions and sppo_control.core."""

import os
import pathlib
import subprocess
import sys

import official
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, PolicyLossConfig
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding
from verl_batch import (
    F64,
    OUTCOMES,
    PROMPT,
    PROMPT_LENGTHS,
    RESPONSE,
    RESPONSE_LENGTHS,
    B,
    compose,
    critic_data,
    jagged,
)

from sppo_control import core
from sppo_control.llm import verl_plugin

ROOT = pathlib.Path(__file__).resolve().parents[1]


def python(code, **environment):
    """Run code in a fresh process as a user would: without the CPU platform of these tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=env, check=False)


# -------------------------------------------------------------------------------------------------- registration
FIND = """
import verl, sys
assert ("sppo_control.llm.verl_plugin" in sys.modules) == {there}
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1 import trainer_base
print(["sppo" in r for r in (ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY, trainer_base.TRAINER_REGISTRY)],
      "sppo_dual_clip" in POLICY_LOSS_REGISTRY)
"""


def test_stock_verl_loads_the_plugin_by_its_entry_point():
    found = python(FIND.format(there=True))
    assert found.stdout.strip().endswith("[True, True, True] True"), found.stderr
    without = python(FIND.format(there=False), VERL_USE_EXTERNAL_PLUGINS="none")
    assert without.stdout.strip().endswith("[False, False, False] False"), without.stderr


def test_a_failure_to_register_is_said_aloud():
    """verl itself logs it at DEBUG only."""
    result = python("import sys; sys.modules['transfer_queue'] = None; import verl")
    assert "SPPO is not registered with verl" in result.stderr
    assert verl_plugin.INSTALL in result.stderr


def test_without_verl_the_module_imports_and_its_verl_parts_name_the_command():
    code = """
import sys; sys.modules["verl"] = None
import torch
from sppo_control.llm import verl_plugin as plugin
a, _ = plugin.sppo_advantage(torch.tensor([[0., 1.]]), torch.tensor([[1, 1]]), torch.zeros(1, 2))
assert a.tolist() == [[0.5, 0.5]]
for use in (lambda: plugin.SPPOTrainerSync, lambda: plugin.sppo_value_loss({}, {})):
    try: use()
    except ImportError as error: assert plugin.INSTALL in str(error)
    else: raise SystemExit("no ImportError")
print("fine")
"""
    result = python(code)
    assert result.stdout.strip() == "fine", result.stderr


# ------------------------------------------------------------------------------------------------- configuration
def test_script_gives_verls_main_the_recipe_and_the_overrides():
    command = [str(ROOT / "recipes/verl/run_sppo.sh")]
    arguments = ["sppo_7b_critic_1_5b", "trainer.nnodes=2", "--cfg", "job"]
    env = os.environ | {"PYTHON": sys.executable}
    printed = subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, check=False)
    assert printed.returncode == 0, printed.stderr
    config = OmegaConf.create(printed.stdout[printed.stdout.index("model_engine:") :])
    assert config == compose("sppo_7b_critic_1_5b", ["trainer.nnodes=2"])
    refused = subprocess.run([*command, "sppo"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert all(name in refused.stderr for name in official.RECIPES)


CONFIG = {
    "algorithm": {"adv_estimator": "sppo", "use_kl_in_reward": False},
    "critic": {"enable": True},
    "actor_rollout_ref": {
        "rollout": {"n": 1},
        "actor": {
            "policy_loss": {"loss_mode": "sppo"},
            "loss_agg_mode": "token-mean",
            "loss_scale_factor": None,
            "clip_ratio": 0.2,
            "clip_ratio_low": 0.2,
            "clip_ratio_high": 0.2,
        },
    },
}


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("algorithm.adv_estimator", "gae", "algorithm.adv_estimator must be sppo for SPPO, got gae"),
        ("algorithm.use_kl_in_reward", True, "use_kl_in_reward must be False"),
        ("critic.enable", None, "critic.enable must be True for SPPO, got None"),
        ("actor_rollout_ref.rollout.n", 8, "rollout.n must be 1 for SPPO, got 8"),
        (
            "actor_rollout_ref.actor.policy_loss.loss_mode",
            "vanilla",
            "must be sppo or sppo_dual_clip for SPPO, got vanilla",
        ),
        ("actor_rollout_ref.actor.loss_agg_mode", "token-sum", "loss_agg_mode must be token-mean or .*got token-sum"),
        ("actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum-norm", "needs actor.loss_scale_factor, got None"),
        ("actor_rollout_ref.actor.clip_ratio", 0.3, "one eps: .*'clip_ratio': 0.3, 'clip_ratio_low': 0.2"),
    ],
)
def test_settings_that_are_not_sppo_are_refused_before_anything_starts(key, value, text):
    verl_plugin.check_config(OmegaConf.create(CONFIG))
    config = OmegaConf.create(CONFIG)
    OmegaConf.update(config, key, value)
    with pytest.raises(ValueError, match=text):
        verl_plugin.SPPOTrainerSync(config)


def test_a_critic_with_another_tokenizer_is_refused(tiny_models):
    trainer = object.__new__(verl_plugin.SPPOTrainerSync)
    model = {"_target_": "verl.workers.config.HFModelConfig"}
    for critic, accepted in (("critic", True), ("stranger", False)):
        trainer.config = OmegaConf.create(
            {
                "actor_rollout_ref": {"model": model | {"path": tiny_models["policy"]}},
                "critic": {"model": model | {"path": tiny_models[critic]}},
            }
        )
        if accepted:
            trainer._init_tokenizer()
        else:
            with pytest.raises(ValueError, match="stranger: its tokenizer differs"):
                trainer._init_tokenizer()


# ----------------------------------------------------------------------------------------------------- advantage
def test_advantage_is_cores_on_every_response_token(batch):
    mask = batch["mask"]
    advantages, returns = get_adv_estimator_fn("sppo")(
        token_level_rewards=batch["rewards"], response_mask=mask.long(), values=batch["values"], config=None, index=None
    )
    expected = core.sequence_advantage(batch["outcome"], batch["logit"])[:, None]
    assert torch.equal(advantages, torch.where(mask, expected, 0.0))
    assert torch.equal(returns, batch["outcome"][:, None].expand(B, RESPONSE))


def test_values_in_bfloat16_do_not_round_the_advantage(batch):
    values = batch["values"].bfloat16()
    advantages, _ = verl_plugin.sppo_advantage(batch["rewards"].float(), batch["mask"], values)
    expected = batch["outcome"].float() - torch.sigmoid(values[:, 0].float())
    assert torch.equal(advantages[:, 0], expected)


@pytest.mark.parametrize("score", [-1.0, 0.5, float("nan"), 2.0])
def test_outcomes_other_than_zero_and_one_are_refused(batch, score):
    batch["rewards"][2, 0] = score
    with pytest.raises(ValueError, match=rf"0 \(failure\) or 1 \(success\), got {score} in row 2; .*boxed_reward"):
        verl_plugin.sppo_advantage(batch["rewards"], batch["mask"], batch["values"])


def test_stock_compute_advantage_passes_no_values_and_ours_does(batch):
    names = {"token_level_rewards": "rewards", "response_mask": "mask", "values": "values"}
    data = DataProto(TensorDict({new: batch[old] for new, old in names.items()}, batch_size=B))
    with pytest.raises(ValueError, match=r"trainer\.v1\.trainer_mode=sppo"):
        compute_advantage(data, adv_estimator="sppo", config={})
    data = verl_plugin.compute_advantage_with_values(data, batch_keys=[], adv_estimator="sppo", num_repeat=1)
    expected = core.sequence_advantage(batch["outcome"], batch["logit"])
    assert torch.equal(data.batch["advantages"][:, 0], expected)


def test_boxed_reward_is_zero_or_one():
    assert (
        verl_plugin.boxed_reward(solution_str=r"so \boxed{42}", ground_truth="42", data_source="x", extra_info={})
        == 1.0
    )
    assert verl_plugin.boxed_reward(solution_str="so 42", ground_truth="42") == 0.0
    assert verl_plugin.boxed_reward(solution_str=r"\boxed{25}", ground_truth="025") == 1.0


# --------------------------------------------------------------------------------------------------- policy loss
MODES = {"token-mean": "token-mean", "seq-mean-token-mean": "sequence-mean", "seq-mean-token-sum-norm": "fixed"}


def actor_config(mode="token-mean", loss="sppo", **settings):
    factor = RESPONSE if mode == "seq-mean-token-sum-norm" else None
    return FSDPActorConfig(
        rollout_n=1,
        use_dynamic_bsz=True,
        loss_agg_mode=mode,
        loss_scale_factor=factor,
        policy_loss=PolicyLossConfig(loss_mode=loss),
        **settings,
    )


def verl_losses(batch, mode, loss="sppo", micro_batch_size=B, dp_size=1, **settings):
    """Losses of verl's `ppo_loss` on verl's own micro-batches, and the gradient of their sum with respect to logp.

    A rank's share of the batch is a number of micro-batches; verl averages the ranks' gradients.
    """
    config = actor_config(mode, loss, **settings)
    mask = batch["mask"]
    advantage = core.sequence_advantage(batch["outcome"], batch["logit"])[:, None]
    padding = torch.where(mask, 0.0, torch.nan)  # what stands there must not matter
    logp = batch["logp"].clone().requires_grad_()
    data = {key: batch[key].clone() for key in ("input_ids", "attention_mask", "position_ids")}
    data |= {"prompts": data["input_ids"][:, :PROMPT], "responses": data["input_ids"][:, PROMPT:]}
    data |= {
        "response_mask": mask.long(),
        "old_log_probs": batch["logp_old"] + padding,
        "advantages": advantage + padding,
    }
    data = left_right_2_no_padding(TensorDict(data | {"row": torch.arange(B)}, batch_size=B))
    tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=micro_batch_size)
    tu.assign_non_tensor(data, dp_size=dp_size, global_batch_size=B, batch_num_tokens=int(mask.sum()))
    losses, metrics = [], []
    for micro in prepare_micro_batches(data)[0]:
        # verl shifts by one: the log-probability of a token stands at the token before it
        rows = [torch.cat([torch.zeros(PROMPT_LENGTHS[i] - 1), logp[i, mask[i]], torch.zeros(1)]) for i in micro["row"]]
        loss, found = ppo_loss(config, {"log_probs": jagged(rows)}, micro)
        losses.append(loss / dp_size)
        metrics.append(found)
    total = torch.stack(losses).sum()
    total.backward()
    return total.detach(), logp.grad, metrics


def core_loss(batch, mode):
    logp = batch["logp"].clone().requires_grad_()
    advantage = core.sequence_advantage(batch["outcome"], batch["logit"])
    result = core.clipped_surrogate(logp, batch["logp_old"], advantage, batch["mask"], reduction=MODES[mode])
    result.loss.backward()
    return result, logp.grad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(B, 1), (2, 1), (1, 2)])
def test_policy_loss_through_verl_is_cores(batch, mode, micro_batch_size, dp_size):
    loss, gradient, metrics = verl_losses(batch, mode, micro_batch_size=micro_batch_size, dp_size=dp_size)
    expected, expected_gradient = core_loss(batch, mode)
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)
    if micro_batch_size == B:
        assert metrics[0]["actor/pg_clipfrac"].aggregate() == pytest.approx(expected.clipfrac.item())
        assert metrics[0]["actor/approx_kl"].aggregate() == pytest.approx(expected.approx_kl.item())


@pytest.mark.parametrize("mode", MODES)
def test_dual_clip_is_off_unless_asked_for_by_name(batch, mode):
    """Against verl's own loss: vanilla has the dual clip at 3.0, and none in effect at a huge value."""
    batch["logp"][1, :3] = batch["logp_old"][1, :3] + 2.0  # ratios of 7.4 in a failure
    assert OUTCOMES[1] == 0
    off, off_gradient, _ = verl_losses(batch, mode)
    on, on_gradient, _ = verl_losses(batch, mode, loss="sppo_dual_clip")
    plain, _ = core_loss(batch, mode)
    assert (off - plain.loss).abs() < 1e-12
    assert off - on > 0.1
    assert off_gradient[1, 0] > 0
    assert on_gradient[1, 0] == 0
    for ours, gradient, c in ((off, off_gradient, 1e9), (on, on_gradient, 3.0)):
        config = actor_config(mode, clip_ratio_c=c)
        config.global_batch_info["loss_scale_factor"] = config.loss_scale_factor
        logp = batch["logp"].clone().requires_grad_()
        advantage = core.sequence_advantage(batch["outcome"], batch["logit"])[:, None].expand_as(logp)
        stock, _ = compute_policy_loss_vanilla(batch["logp_old"], logp, advantage, batch["mask"], mode, config)
        stock.backward()
        torch.testing.assert_close(ours, stock.detach(), rtol=1e-7, atol=0)  # verl adds 1e-8 to lengths
        torch.testing.assert_close(gradient, logp.grad, rtol=1e-7, atol=1e-12)


def test_rows_that_verl_fills_up_with_give_a_zero_that_can_be_differentiated(batch):
    logp = batch["logp"].requires_grad_()
    config = actor_config()
    nothing = torch.zeros_like(batch["mask"])
    loss, metrics = verl_plugin.sppo_policy_loss(batch["logp_old"], logp, logp.detach(), nothing, "token-mean", config)
    loss.backward()
    assert loss == 0
    assert torch.equal(logp.grad, torch.zeros_like(logp))
    _, others = verl_plugin.sppo_policy_loss(
        batch["logp_old"], logp, logp.detach(), batch["mask"], "token-mean", config
    )
    assert metrics.keys() == others.keys()  # verl gathers the same keys from every rank


def test_rollout_correction_weighs_the_objective(batch):
    config, mask = actor_config(), batch["mask"]
    advantage = torch.ones_like(batch["logp"])
    weights = torch.rand(B, RESPONSE, generator=torch.Generator().manual_seed(1), dtype=F64)
    arguments = (batch["logp_old"], batch["logp"], advantage, mask, "token-mean", config, weights)
    ours, stock = verl_plugin.sppo_policy_loss(*arguments)[0], compute_policy_loss_vanilla(*arguments)[0]
    torch.testing.assert_close(ours, stock, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("mode", "settings", "info", "text"),
    [
        ("token-sum", {}, {}, "loss_agg_mode='token-sum' is no mean; set one of token-mean, "),
        ("token-mean", {}, {"dp_size": 2}, "token-mean needs verl's global counts"),
        ("seq-mean-token-sum-norm", {}, {"loss_scale_factor": 7}, "needs verl's global counts"),
        ("seq-mean-token-sum-norm", {}, {"global_batch_size": 6}, "needs actor.loss_scale_factor, got None"),
        ("token-mean", {"clip_ratio_high": 0.28}, {}, "one eps: .*'clip_ratio_high': 0.28"),
        ("token-mean", {"clip_ratio_c": 1.1}, {}, "clip_ratio_c must be above 1 .* = 1.2, got 1.1"),
    ],
)
def test_policy_loss_refuses(batch, mode, settings, info, text):
    config = actor_config(**settings)
    config.global_batch_info.update(info)
    logp, mask = batch["logp"], batch["mask"]
    with pytest.raises(ValueError, match=text):
        verl_plugin.sppo_dual_clip_policy_loss(logp, logp, logp, mask, mode, config)


# -------------------------------------------------------------------------------------------------------- critic
@pytest.mark.parametrize("fill_up", [0, 2])
@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(None, 1), (2, 1), (1, 2)])
def test_critic_loss_is_cores_and_reaches_the_last_prompt_token_only(batch, fill_up, micro_batch_size, dp_size):
    data = verl_plugin.crop_to_prompt(critic_data(batch, fill_up))
    tu.assign_non_tensor(data, micro_batch_size_per_gpu=micro_batch_size or B + fill_up, dp_size=dp_size)
    tu.assign_non_tensor(
        data, batch_num_tokens=int(data["loss_mask"].sum())
    )  # as verl's engines count, before they split
    lengths = (*PROMPT_LENGTHS, *[4] * fill_up)
    g = torch.Generator().manual_seed(1)
    values = [torch.randn(n + 1, generator=g, dtype=F64).requires_grad_() for n in lengths]
    total, brier = 0.0, 0.0
    for micro in prepare_micro_batches(data)[0]:
        loss, metrics = verl_plugin.sppo_value_loss({"values": jagged([values[i] for i in micro["row"]])}, micro)
        total = total + loss / dp_size
        brier += metrics["critic/brier"].aggregate() / dp_size
    total.backward()

    logit = torch.stack([values[i][PROMPT_LENGTHS[i] - 1] for i in range(B)]).detach().requires_grad_()
    expected = core.bernoulli_value_loss(logit, batch["outcome"])
    expected.backward()
    torch.testing.assert_close(total.detach(), expected.detach(), rtol=1e-12, atol=0)
    assert brier == pytest.approx(core.brier_score(logit.sigmoid(), batch["outcome"]).item())
    for i, row in enumerate(values):
        gradient = torch.zeros_like(row)
        if i < B:
            gradient[lengths[i] - 1] = logit.grad[i]
        torch.testing.assert_close(row.grad, gradient, rtol=1e-12, atol=0)


def test_crop_keeps_prompts_and_one_response_token(batch):
    data = critic_data(batch)
    cropped = verl_plugin.crop_to_prompt(data)
    for i, n in enumerate(PROMPT_LENGTHS):
        assert torch.equal(cropped["input_ids"][i], data["input_ids"][i][: n + 1])
        assert torch.equal(cropped["position_ids"][i], torch.arange(n + 1))
        assert torch.equal(cropped["responses"][i], data["responses"][i][:1])
    whole = sum(PROMPT_LENGTHS) + sum(RESPONSE_LENGTHS)
    assert data["input_ids"].offsets()[-1] == whole  # the batch itself is untouched


def test_critic_refuses_what_was_not_cropped_and_images(batch):
    data = critic_data(batch)
    with pytest.raises(ValueError, match="must be one token, got 7"):
        verl_plugin.sppo_value_loss({"values": data["returns"]}, data)
    data["position_ids"] = torch.zeros(B, 4, 13)
    with pytest.raises(ValueError, match="text only, got position_ids of 3 dimensions"):
        verl_plugin.crop_to_prompt(data)
