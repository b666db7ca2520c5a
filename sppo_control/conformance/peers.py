"""Other libraries through the same door: adapters that call their functions as they are installed.

    python -m sppo_control.conformance sppo_control.conformance.peers:TRLGRPO
    python -m sppo_control.conformance --peers                   # all that are installed, as a table

An adapter only rearranges arguments. `expected_failures` has each deviation, its reason, and the function of the library
that decides it. Most are choices, not defects: a library that never has NaN in its padding need not guard against it.
Where a loss is a method of a trainer, the method is called with a small stand-in for the trainer, which has the attributes
that the method reads. What needs a whole trainer, with a model that generates, is not driven, and the table says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from importlib import metadata
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import core
from ..markdown import markdown_table
from .checker import EXPECTED, HOLDS, NOT_OFFERED, check

PADDED = "Padding is removed by multiplication with the mask; callers have finite numbers there"
CALLER = "It is left to the caller, who computes it without gradient"
OVERFLOW = "A ratio that overflows has a NaN gradient, where the clipped objective has 0"
HALF = "Sums keep the dtype of their input, and a sum over 66000 steps is too large for float16"
FUSED = "The layer around it returns gradients for its input, weight and bias only"
EMPTY = "Every row counts, also one whose tokens are all masked"


class Ours:
    """sppo_control.core."""

    package, what = "sppo-control", "core"

    def __init__(self) -> None:
        for name in (
            "sequence_advantage", "generalized_advantage", "group_relative_advantage", "leave_one_out_advantage",
            "greedy_baseline_advantage", "normalized_advantage", "beta_tracker", "clipped_surrogate",
            "bernoulli_value_loss", "squared_value_loss", "masked_mean", "explained_variance", "brier_score",
            "expected_calibration_error", "wilson_interval",
        ):  # fmt: skip
            setattr(self, name, getattr(core, name))


# ------------------------------------------------------------------------------------------------------------ TRL
class _TRL:
    package = "trl"

    def trainer(self, logp: Tensor, **attributes: Any) -> Any:
        """What TRL's loss methods read of `self`."""
        one = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
        standard: dict[str, Any] = {
            "_get_per_token_logps_and_entropies": lambda *args, **words: (logp, torch.zeros_like(logp), None),
            "accelerator": one,
            "aux_loss_enabled": False,
            "model": SimpleNamespace(training=True),
            "_metrics": {"train": defaultdict(list)},
        }
        return SimpleNamespace(**{**standard, **attributes})

    def inputs(self, mask: Tensor) -> dict[str, Any]:
        """A batch with one prompt token; the ids do not matter, because the model is replaced."""
        one = torch.ones(len(mask), 1, dtype=torch.long)
        return {
            "prompt_ids": one, "prompt_mask": one, "completion_ids": mask.long(), "completion_mask": mask.long(),
        }  # fmt: skip


class TRLGRPO(_TRL):
    """The loss of TRL's GRPOTrainer, without a KL term: loss types bnpo, grpo, dr_grpo and dapo."""

    what = "GRPOTrainer._compute_loss"
    expected_failures: ClassVar[dict[str, str]] = {
        "old_log_probability_padding_kept": f"{PADDED} (`_compute_loss`)",
        "overflowing_ratio_not_caught": f"{OVERFLOW} (`_compute_loss`)",
        "old_log_probability_not_detached": f"{CALLER} (`_generate_and_score_completions`)",
        "advantage_in_the_loss_not_detached": f"{CALLER} (`_generate_and_score_completions`)",
        "sums_in_half_precision": f"{HALF} (`_compute_loss`)",
        "empty_rows_in_the_divisor": f"{EMPTY} (`_compute_loss`, loss type grpo)",
    }

    def policy_loss(
        self, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float = 0.2,
        reduction: str = "token-mean", denominator: float | None = None, ratio: str = "step",
    ) -> Tensor:  # fmt: skip
        """Loss types: bnpo is token-mean, grpo is sequence-mean, dr_grpo is fixed, dapo has a given number of tokens."""
        from trl.trainer.grpo_trainer import GRPOTrainer

        kind = {"token-mean": "bnpo", "sequence-mean": "grpo", "fixed": "dr_grpo"}[reduction]
        if denominator is not None:
            if reduction != "token-mean":
                raise NotImplementedError("only loss type dapo takes a divisor, num_items_in_batch, which is of tokens")
            kind = "dapo"
        stand_in = self.trainer(
            logp, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=0.0, loss_type=kind,
            importance_sampling_level="sequence" if ratio == "sequence" else "token", epsilon_low=clip_coef,
            epsilon_high=clip_coef, use_vllm=False, current_gradient_accumulation_steps=1,
            max_completion_length=logp.shape[1], _entropy_bonus_enabled=False,
            args=SimpleNamespace(delta=None, steps_per_generation=1),
        )  # fmt: skip
        batch = self.inputs(mask) | {"old_per_token_logps": logp_old, "advantages": advantage}
        if denominator is not None:
            batch["num_items_in_batch"] = torch.tensor(denominator)
        return GRPOTrainer._compute_loss(stand_in, None, batch)


class TRLRLOO(_TRL):
    """The loss of TRL's RLOOTrainer: a response is one action, with one ratio."""

    what = "RLOOTrainer._compute_loss"
    expected_failures: ClassVar[dict[str, str]] = {
        "episodes_ratio_is_the_product": "RLOO takes a response as one action, so it has one ratio (`_compute_loss`)",
        "sequence_mean_in_place_of_token_mean": "One ratio per response, so the mean is over responses (`_compute_loss`)",
        "policy_loss.padding_values": f"{PADDED} (`_compute_loss`)",
        "policy_loss.large_ratio": f"{OVERFLOW} (`_compute_loss`)",
        "policy_loss.detached": f"{CALLER} (`_generate_and_score_completions`)",
    }

    def policy_loss(
        self, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float = 0.2
    ) -> Tensor:
        """The old log-probability is summed here, as `_generate_and_score_completions` does it."""
        from trl.trainer.rloo_trainer import RLOOTrainer

        if advantage.ndim == 2:
            raise NotImplementedError("one advantage per response")
        stand_in = self.trainer(logp, epsilon_low=clip_coef, epsilon_high=clip_coef)
        batch = self.inputs(mask) | {"old_logps": (logp_old * mask).sum(1), "advantages": advantage}
        return RLOOTrainer._compute_loss(stand_in, None, batch)


# ------------------------------------------------------------------------------------------- Stable-Baselines3
class SB3GAE:
    """Stable-Baselines3's GAE. It has no padding: the real steps of all episodes are one stream."""

    package, what = "stable-baselines3", "RolloutBuffer.compute_returns_and_advantage"
    framework, dtype = "numpy", "float32"
    expected_failures: ClassVar[dict[str, str]] = {}

    def generalized_advantage(
        self, reward: Any, value: Any, mask: Any, gamma: float = 1.0, gae_lambda: float = 1.0
    ) -> tuple[Any, Any]:
        """Steps are packed into one environment's buffer; episodes begin where `episode_starts` is 1."""
        from gymnasium import spaces
        from stable_baselines3.common.buffers import RolloutBuffer

        box = spaces.Box(-1.0, 1.0, (1,))
        buffer = RolloutBuffer(int(mask.sum()), box, box, "cpu", gae_lambda, gamma, 1)
        first = np.concatenate([np.arange(int(row.sum())) == 0 for row in mask])
        buffer.rewards[:, 0], buffer.values[:, 0] = reward[mask], value[mask]
        buffer.episode_starts[:, 0] = first
        buffer.compute_returns_and_advantage(torch.zeros(1), np.ones(1))
        found = []
        for packed in (buffer.advantages, buffer.returns):
            x = np.zeros_like(reward)
            x[mask] = packed[:, 0]
            found.append(x)
        return found[0], found[1]


class SB3PPO:
    """The losses of Stable-Baselines3's PPO, with normalize_advantage=False. It has no padding: real steps are packed."""

    package, what = "stable-baselines3", "PPO.train"
    expected_failures: ClassVar[dict[str, str]] = {
        "overflowing_ratio_not_caught": f"{OVERFLOW} (`PPO.train`)",
        "squared_error_without_the_half": "It is the mean of (V - G)^2; its default vf_coef = 0.5 halves it (`PPO.train`)",
        "value_clipping_without_maximum": "The clipped value alone is compared with the return (`PPO.train`)",
    }

    def _train(
        self, log_prob: Tensor, values: Tensor, batch: SimpleNamespace, clip: float, clip_value: float | None
    ) -> dict[str, float]:
        """Run PPO.train on one minibatch; gradients are left in the leaves."""
        from stable_baselines3 import PPO

        logged: dict[str, float] = {}
        nothing = lambda *args, **words: None  # noqa: E731
        policy = SimpleNamespace(
            set_training_mode=nothing, optimizer=SimpleNamespace(zero_grad=nothing, step=nothing), parameters=list,
            evaluate_actions=lambda obs, actions: (values, log_prob, torch.zeros_like(log_prob)),
        )  # fmt: skip
        zeros = np.zeros(1)
        stand_in = SimpleNamespace(
            policy=policy, _update_learning_rate=nothing, clip_range=lambda progress: clip, n_epochs=1, batch_size=1,
            clip_range_vf=None if clip_value is None else (lambda progress: clip_value), _current_progress_remaining=1.0,
            rollout_buffer=SimpleNamespace(get=lambda size: [batch], values=zeros, returns=zeros), action_space=None,
            normalize_advantage=False, ent_coef=0.0, vf_coef=1.0, target_kl=None, max_grad_norm=math.inf, _n_updates=0,
            logger=SimpleNamespace(record=lambda key, value, **words: logged.update({key: value})), verbose=0,
        )  # fmt: skip
        train: Any = PPO.train  # typed only where the package is installed
        train(stand_in)
        return logged

    @staticmethod
    def _with_gradient(value: float, leaf: Tensor, x: Tensor, where: Tensor) -> Tensor:
        """A scalar with this value whose gradient with respect to x is the one that was left in the leaf."""
        gradient = torch.zeros_like(x)
        gradient[where] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return _Given.apply(x, torch.tensor(value, dtype=x.dtype), gradient)

    def policy_loss(
        self, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float = 0.2
    ) -> Tensor:
        """The logged policy_gradient_loss, and the gradient of the backward pass."""
        A = advantage[:, None].expand_as(logp) if advantage.ndim == 1 else advantage
        leaf = logp[mask].detach().requires_grad_()
        zeros = torch.zeros_like(leaf)
        batch = SimpleNamespace(
            observations=None, actions=None, advantages=A[mask].detach(), old_log_prob=logp_old[mask].detach(),
            returns=zeros.detach(), old_values=zeros,
        )  # fmt: skip
        logged = self._train(leaf, zeros.detach(), batch, clip_coef, None)
        return self._with_gradient(float(logged["train/policy_gradient_loss"]), leaf, logp, mask)

    def squared_value_loss(
        self, value: Tensor, returns: Tensor, mask: Tensor, value_old: Tensor | None = None, clip_coef: float = 0.2
    ) -> Tensor:
        """The logged value_loss, and the gradient of the backward pass."""
        leaf = value[mask].detach().requires_grad_()
        zeros = torch.zeros_like(leaf).detach()
        batch = SimpleNamespace(
            observations=None, actions=None, advantages=zeros, old_log_prob=zeros, returns=returns[mask].detach(),
            old_values=zeros if value_old is None else value_old[mask].detach(),
        )  # fmt: skip
        logged = self._train(zeros, leaf, batch, 0.2, None if value_old is None else clip_coef)
        return self._with_gradient(float(logged["train/value_loss"]), leaf, value, mask)


class _Given(torch.autograd.Function):
    """A scalar with a given value and gradient, both of which may be NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return outer[0] * ctx.saved_tensors[0], None, None


# ---------------------------------------------------------------------------------------------------------- Liger
class LigerGRPO:
    """Liger's GRPO loss: the part after the fused linear layer. beta = 0, and loss types as in TRL."""

    package, what = "liger-kernel", "LigerFusedLinearGRPOFunction.ppo_loss_fn"
    expected_failures: ClassVar[dict[str, str]] = {
        "old_log_probability_padding_kept": f"{PADDED} (`ppo_loss_fn`)",
        "overflowing_ratio_not_caught": f"{OVERFLOW} (`ppo_loss_fn`)",
        "sums_in_half_precision": f"{HALF} (`ppo_loss_fn`)",
        "empty_rows_in_the_divisor": f"{EMPTY} (`ppo_loss_fn`, loss type grpo)",
        "old_log_probability_not_detached": f"{FUSED} (`LigerFusedLinearPPOBase.backward`)",
        "advantage_in_the_loss_not_detached": f"{FUSED} (`LigerFusedLinearPPOBase.backward`)",
    }

    def policy_loss(
        self, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float = 0.2,
        reduction: str = "token-mean", denominator: float | None = None, ratio: str = "step",
    ) -> Tensor:  # fmt: skip
        """Loss types: bnpo is token-mean, grpo is sequence-mean, dr_grpo is fixed, dapo has a given number of tokens."""
        from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

        if advantage.ndim == 2:
            raise NotImplementedError("one advantage per response")
        kind = {"token-mean": "bnpo", "sequence-mean": "grpo", "fixed": "dr_grpo"}[reduction]
        if denominator is not None:
            if reduction != "token-mean":
                raise NotImplementedError("only loss type dapo takes a divisor, num_items_in_batch, which is of tokens")
            kind = "dapo"
        loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            logp, mask.long(), advantage, mask.long(), old_per_token_logps=logp_old, epsilon_low=clip_coef,
            epsilon_high=clip_coef, beta=0.0, loss_type=kind, max_completion_length=logp.shape[1],
            importance_sampling_level="sequence" if ratio == "sequence" else "token", num_items_in_batch=denominator,
        )  # fmt: skip
        return loss


# -------------------------------------------------------------------------------------------------------- polgrad
class Polgrad:
    """polgrad's reference losses and advantages."""

    package, what = "polgrad", "policy_loss, value_loss, gae, grpo_advantages, rloo_advantages"
    expected_failures: ClassVar[dict[str, str]] = {
        "group_deviation_of_a_sample": "Its default is the deviation of a sample, as torch's `std` (`GroupNormConfig`)",
        "group_epsilon_1e_4": "Its default adds TRL's 1e-4 to the deviation (`GroupNormConfig`)",
        "generalized_advantage.padding_anywhere": "It refuses padding that is not on the right (`_check_right_padded`)",
        "generalized_advantage.padding_values": "It refuses NaN, in padding too (`gae`, `check_finite`)",
        "policy_loss.large_ratio": f"{OVERFLOW} (`_pg_clip`)",
        "policy_loss.fixed": "It refuses a row without a real token (`check_mask`)",
        "policy_loss.sequence_mean_empty_row": "It refuses a row without a real token (`check_mask`)",
        "old_log_probability_not_detached": f"{CALLER} (`policy_loss`)",
        "advantage_in_the_loss_not_detached": f"{CALLER} (`policy_loss`)",
        "returns_not_detached": f"{CALLER} (`value_loss`)",
        "gae_value_keeps_its_gradient": f"{CALLER} (`gae`)",
    }

    def policy_loss(
        self, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float = 0.2,
        reduction: str = "token-mean", ratio: str = "step",
    ) -> Tensor:  # fmt: skip
        """PG_CLIP with the aggregation of the same name."""
        from polgrad import losses
        from polgrad.aggregate import Aggregation

        kind = {
            "token-mean": Aggregation.TOKEN_MEAN, "sequence-mean": Aggregation.SEQ_MEAN_TOKEN_MEAN,
            "fixed": Aggregation.TOKEN_SUM_NORM,
        }[reduction]  # fmt: skip
        config = losses.PolicyLossConfig(
            ratio=losses.RatioKind.SEQUENCE if ratio == "sequence" else losses.RatioKind.TOKEN,
            surrogate=losses.SurrogateKind.PG_CLIP, clip=losses.ClipConfig(clip_coef, clip_coef), aggregation=kind,
            norm_len=logp.shape[1] if reduction == "fixed" else None,
        )  # fmt: skip
        A = advantage[:, None].expand_as(logp) if advantage.ndim == 1 else advantage
        return losses.policy_loss(config, logprobs=logp, old_logprobs=logp_old, advantages=A, response_mask=mask).loss

    def squared_value_loss(
        self, value: Tensor, returns: Tensor, mask: Tensor, value_old: Tensor | None = None, clip_coef: float = 0.2
    ) -> Tensor:
        """Its value_loss, clipped if old values are given."""
        from polgrad import losses
        from polgrad.aggregate import Aggregation

        old = value.detach() if value_old is None else value_old
        return losses.value_loss(
            value, old, returns, mask, clip_eps=None if value_old is None else clip_coef,
            aggregation=Aggregation.TOKEN_MEAN,
        ).loss  # fmt: skip

    def generalized_advantage(
        self, reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Its gae."""
        from polgrad import advantages

        return advantages.gae(reward, value, config=advantages.GAEConfig(gamma, gae_lambda), response_mask=mask)

    def group_relative_advantage(self, outcome: Tensor, group_size: int, normalize_std: bool = True) -> Tensor:
        """Its grpo_advantages with default configuration."""
        from polgrad import advantages

        config = advantages.GroupNormConfig(scale="std" if normalize_std else "none")
        return advantages.grpo_advantages(outcome, _group_ids(outcome, group_size), config)

    def leave_one_out_advantage(self, outcome: Tensor, group_size: int) -> Tensor:
        """Its rloo_advantages."""
        from polgrad import advantages

        return advantages.rloo_advantages(outcome, _group_ids(outcome, group_size))


def _group_ids(outcome: Tensor, group_size: int) -> Tensor:
    return torch.arange(len(outcome)) // group_size


# ----------------------------------------------------------------------------------------------------------- verl
class Verl:
    """verl's core_algos: advantages, policy losses and value loss."""

    package, what = "verl", "core_algos"
    expected_failures: ClassVar[dict[str, str]] = {
        "gae_advantage_whitened": "Advantages are normalised at once (`compute_gae_advantage_return`, `masked_whiten`)",
        **dict.fromkeys(
            ("generalized_advantage.padding", "generalized_advantage.padding_anywhere"),
            "Advantages are normalised at once, and what is in padding is not 0, because the mask is applied later "
            "(`compute_gae_advantage_return`, `masked_whiten`)",
        ),
        "generalized_advantage.padding_values": "Padding is removed by multiplication with the mask; callers have finite "
        "numbers there (`compute_gae_advantage_return`)",
        "generalized_advantage.value": "Advantages are normalised at once, and so a batch of one token is refused "
        "(`compute_gae_advantage_return`, `masked_var`)",
        **dict.fromkeys(
            ("generalized_advantage.returns", "generalized_advantage.detached"),
            "Only a batch of one token fails: it is refused (`masked_var`)",
        ),
        "group_deviation_of_a_sample": "The deviation is that of a sample (`compute_grpo_outcome_advantage`)",
        "group_epsilon_1e_6": "1e-6 is added to the deviation (`compute_grpo_outcome_advantage`)",
        "dual_clip": "clip_ratio_c = 3 bounds the objective of negative advantages (`compute_policy_loss_vanilla`)",
        "fixed_leaves_out_empty_rows": "Rows without a real token do not count (`agg_loss`)",
        "policy_loss.padding_values": "Padding is removed after the ratio, so NaN there reaches the gradient, but not the "
        "loss (`masked_sum`)",
        "policy_loss.detached": f"{CALLER} (`compute_policy_loss_vanilla`)",
        "squared_value_loss.padding_values": "Padding is removed after the square, so NaN there reaches the gradient, but "
        "not the loss (`masked_sum`)",
        "returns_not_detached": f"{CALLER} (`compute_value_loss`)",
        "policy_loss.half_precision": f"{HALF} (`masked_sum`)",
        "squared_value_loss.half_precision": f"{HALF} (`masked_sum`)",
    }

    @staticmethod
    def _at_the_end(outcome: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards of one token per response, and their mask."""
        return outcome[:, None].clone(), torch.ones(len(outcome), 1, dtype=outcome.dtype)

    def generalized_advantage(
        self, reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """compute_gae_advantage_return."""
        from verl.trainer.ppo import core_algos

        return core_algos.compute_gae_advantage_return(reward, value, mask.to(reward.dtype), gamma, gae_lambda)

    def group_relative_advantage(self, outcome: Tensor, group_size: int, normalize_std: bool = True) -> Tensor:
        """compute_grpo_outcome_advantage."""
        from verl.trainer.ppo import core_algos

        ids = _group_ids(outcome, group_size).numpy()
        found, _ = core_algos.compute_grpo_outcome_advantage(
            *self._at_the_end(outcome), ids, norm_adv_by_std_in_grpo=normalize_std
        )
        return found[:, 0]

    def leave_one_out_advantage(self, outcome: Tensor, group_size: int) -> Tensor:
        """compute_rloo_outcome_advantage."""
        from verl.trainer.ppo import core_algos

        ids = _group_ids(outcome, group_size).numpy()
        return core_algos.compute_rloo_outcome_advantage(*self._at_the_end(outcome), ids)[0][:, 0]

    def greedy_baseline_advantage(self, outcome: Tensor, greedy_outcome: Tensor) -> Tensor:
        """compute_remax_outcome_advantage."""
        from verl.trainer.ppo import core_algos

        rewards, mask = self._at_the_end(outcome)
        return core_algos.compute_remax_outcome_advantage(rewards, greedy_outcome, mask)[0][:, 0]

    def policy_loss(
        self, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float = 0.2,
        reduction: str = "token-mean", denominator: float | None = None, ratio: str = "step",
    ) -> Tensor:  # fmt: skip
        """compute_policy_loss_vanilla, or compute_policy_loss_gspo for ratio="sequence"."""
        from verl.trainer.ppo import core_algos
        from verl.workers.config import ActorConfig

        mode = {
            "token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean", "fixed": "seq-mean-token-sum-norm",
        }[reduction]  # fmt: skip
        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=clip_coef, clip_ratio_low=clip_coef,
            clip_ratio_high=clip_coef,
        )  # fmt: skip
        if denominator is not None:
            key = "batch_num_tokens" if reduction == "token-mean" else "global_batch_size"
            config.global_batch_info[key] = denominator
        loss = core_algos.compute_policy_loss_gspo if ratio == "sequence" else core_algos.compute_policy_loss_vanilla
        A = advantage[:, None].expand_as(logp) if advantage.ndim == 1 else advantage
        return loss(logp_old, logp, A, mask.to(logp.dtype), mode, config)[0]

    def squared_value_loss(
        self, value: Tensor, returns: Tensor, mask: Tensor, denominator: float | None = None,
        value_old: Tensor | None = None, clip_coef: float = 0.2,
    ) -> Tensor:  # fmt: skip
        """compute_value_loss; without old values the range is infinite."""
        from verl.trainer.ppo import core_algos

        old, clip = (value.detach(), 1e30) if value_old is None else (value_old, clip_coef)
        return core_algos.compute_value_loss(
            value, returns, old, mask.to(value.dtype), clip, batch_num_tokens=denominator
        )[0]


# ---------------------------------------------------------------------------------------------------------- table
PEERS: tuple[type[Any], ...] = (Ours, TRLGRPO, TRLRLOO, SB3GAE, SB3PPO, LigerGRPO, Polgrad, Verl)
MODULES = {
    "sppo-control": "sppo_control", "trl": "trl", "stable-baselines3": "stable_baselines3", "liger-kernel": "liger_kernel",
    "polgrad": "polgrad", "verl": "verl",
}  # fmt: skip
NOT_DRIVEN = (
    "TRL's advantages (GRPO and RLOO): they are computed inside `_generate_and_score_completions`, which needs "
    "a trainer and a model that generates.",
    "Stable-Baselines3's normalisation of advantages: it is inside `PPO.train`, and the adapter turns it off.",
    "OpenRLHF 0.11.2: it requires flash-attn and deepspeed, which need CUDA, so it was not tried.",
)
"""What was left out, and why."""


def measure(examples: int = 30, peers: tuple[type[Any], ...] = PEERS) -> list[dict[str, Any]]:
    """Check each library that is installed.

    Args:
        examples: see `check`.
        peers: the adapters to check.

    Returns:
        One entry per adapter: package, version, function, and for those that are installed the counts, the deviations
        (name -> reason) and the properties that fail without a known reason.
    """
    rows: list[dict[str, Any]] = []
    for peer in peers:
        row: dict[str, Any] = {"adapter": peer.__name__, "package": peer.package, "what": peer.what}
        rows.append(row)
        if find_spec(MODULES[peer.package]) is None:
            row["missing"] = True
            continue
        row["version"] = metadata.version(peer.package) if peer is not Ours else ""
        report = check(peer, examples=examples)
        reasons: dict[str, list[str]] = {}
        for result in report.results:
            if result.status == EXPECTED:
                reasons.setdefault(result.reason, []).append(result.prop.id)
        row |= {
            "holds": report.count(HOLDS),
            "not_offered": report.count(NOT_OFFERED),
            "deviations": reasons,
            "unexplained": {r.prop.id: r.found for r in report.results if r.status == "fails"},
            "not_seen": list(report.unused),
            "ok": report.ok,
        }
    return rows


def joined(rows: list[dict[str, Any]], stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and for libraries that are not installed here those that were stored in another environment."""
    old = {row["adapter"]: row for row in stored}
    return [old.get(row["adapter"], row) if row.get("missing") else row for row in rows]


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown, with a list of deviations below."""
    table, lists = [], []
    for row in rows:
        name = f"{row['package']} {row.get('version', '')}".strip()
        if row.get("missing"):
            table.append((name, f"`{row['what']}`", "not installed", ""))
            continue
        deviating = sum(len(ids) for ids in row["deviations"].values())
        table.append((name, f"`{row['what']}`", str(row["holds"]), str(deviating)))
        if row["deviations"]:
            lists += [f"{name}, `{row['what']}`:", ""]
            lists += [f"- {reason}. Seen in: {', '.join(ids)}." for reason, ids in row["deviations"].items()]
            lists.append("")
    head = ("library", "what is called", "properties that hold", "that deviate, each understood")
    return "\n".join([markdown_table(head, table), "", *lists, "Not driven:", "", *(f"- {x}" for x in NOT_DRIVEN)])
