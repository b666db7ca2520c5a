"""SPPO in stock verl 0.9.1 (Ray, FSDP or Megatron, vLLM), as a plug-in: there is no fork, and no file of verl changes.

verl imports this module in each of its processes (entry-point group `verl.plugins`, see pyproject.toml), so install it on
every node. The import registers four names, which the configuration selects (recipes/verl does):

| setting                    | name             | what                                                                   |
| -------------------------- | ---------------- | ---------------------------------------------------------------------- |
| `algorithm.adv_estimator`  | `sppo`           | `sppo_advantage`: R - sigmoid(V(s_p)) on every response token          |
| `actor.policy_loss.loss_mode` | `sppo`        | `sppo_policy_loss`: the clipped surrogate, no dual clip                |
|                            | `sppo_dual_clip` | the same with verl's dual clip, at `actor.clip_ratio_c`                |
| `trainer.v1.trainer_mode`  | `sppo`           | `SPPOTrainerSync`: the critic reads prompts only (`PromptCriticWorker`), |
|                            |                  | is trained with `sppo_value_loss`, and its values reach the estimator  |

The equations are those of `sppo_control.core`; this file only translates tensors. The critic's recipe is the paper's: it is
trained on the minibatches of the policy, `ppo_mini_batch_size` prompts each.

The reduction is `actor.loss_agg_mode`, by verl's name. verl adds up the losses of micro-batches and averages over dp_size
ranks. With these denominators the result is core's on verl's global mini-batch, however that was divided:

| verl's `loss_agg_mode`    | core's reduction | denominator passed to core                                              |
| ------------------------- | ---------------- | ----------------------------------------------------------------------- |
| `token-mean`              | `token-mean`     | batch_num_tokens / dp_size                                              |
| `seq-mean-token-mean`     | `sequence-mean`  | global_batch_size / dp_size (verl counts the rows it fills up with)     |
| `seq-mean-token-sum-norm` | `fixed`          | global_batch_size x loss_scale_factor / dp_size; the factor (H) must be |
|                           |                  | set, since verl's default is the width of each micro-batch              |

verl's other two modes are sums over tokens. SPPO does not define them, so they are refused. The official SPPO code takes
the mean over the tokens of each micro-batch. With one sequence per micro-batch (its 7B script) that is
`seq-mean-token-mean`; with two (1.5B) it is none of the three. The critic's loss is always the mean over the mini-batch's
sequences, without the rows that verl fills up with.

Run on CPU (tests_verl): registration by stock verl; a dry run of the recipes; losses and gradients against core. With
verl's FSDP2 engine on gloo: a whole update by the policy's and the critic's worker; SPPOTrainerSync.fit on Ray, two ranks.
Not run: CUDA, NCCL, flash attention, FSDP1, Megatron, generation by vLLM or SGLang and the transfer of weights to it,
models of real size. So `verl.trainer.main_ppo` has not been run from end to end.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from typing import Any

import torch
from torch import Tensor

from sppo_control import core, extras
from sppo_control.llm.rewards import MathReward, paper_answer

INSTALL = f"pip install torch==2.13.0; {extras.install('verl')}"
"""verl needs torch first, and a separate environment, because TRL needs another version of transformers."""
REDUCTIONS: dict[str, core.Reduction] = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "sequence-mean",
    "seq-mean-token-sum-norm": "fixed",
}


# ---------------------------------------------------------------------------------------------------- advantage
def sppo_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, values: Tensor | None = None, **unused: Any
) -> tuple[Tensor, Tensor]:
    """SPPO's advantage (eq. 1) in the form of a verl advantage estimator.

    Args:
        token_level_rewards: (B, T), floating; the outcome R of a response is their sum, 0 or 1.
        response_mask: (B, T), bool or integer; 1 on tokens the policy wrote.
        values: (B, T), the critic's logits. Column t has read the prompt and t tokens, so the first one is the logit of
            V(s_p).

    Returns:
        advantages (B, T), A on the response and 0 elsewhere; returns (B, T), R everywhere, which is the critic's target.

    Raises:
        ValueError: `values` is missing, or an outcome is not 0 or 1.
    """
    if values is None:
        raise ValueError("the sppo estimator got no critic values; set trainer.v1.trainer_mode=sppo, which passes them")
    outcome = token_level_rewards.sum(dim=-1)  # (B,)
    wrong = (outcome != 0) & (outcome != 1)  # a NaN is wrong too
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"outcomes must be 0 (failure) or 1 (success), got {outcome[row].item()} in row {row}; let the reward function"
            " return 0.0 or 1.0 (boxed_reward in this module does) and leave algorithm.use_kl_in_reward off"
        )
    logit = values[:, 0]
    advantage = core.sequence_advantage(outcome.to(_wide(logit)), logit.to(_wide(logit)))
    return torch.where(response_mask.bool(), advantage[:, None], 0.0), outcome[:, None].expand_as(values).clone()


# -------------------------------------------------------------------------------------------------- policy loss
def sppo_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    dual_clip: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """`core.clipped_surrogate` in the form of a verl policy loss (SPPO, eq. 3).

    Args:
        old_log_prob, advantages: (B, T).
        log_prob: (B, T), with gradient.
        response_mask: (B, T), bool.
        loss_agg_mode: a key of `REDUCTIONS`.
        config: verl's ActorConfig; `clip_ratio`, `clip_ratio_c` and `global_batch_info` are read.
        rollout_is_weights: (B, T), at least 0, verl's rollout correction; it scales the advantage.
        dual_clip: caps the ratio of negative advantages at `clip_ratio_c` (Ye et al., arXiv 1912.09729, eq. 5).

    Returns:
        The loss, a scalar, and statistics of this micro-batch before the dual clip. verl gives each micro-batch the same
        weight in their mean.

    Raises:
        ValueError: an unknown reduction, or one without its denominator; two clip ranges; `clip_ratio_c` inside them.
    """
    clip_coef = _clip_coef(config)
    if loss_agg_mode not in REDUCTIONS:
        raise ValueError(f"actor.loss_agg_mode={loss_agg_mode!r} is no mean; set one of {', '.join(REDUCTIONS)}")
    denominator = _denominator(loss_agg_mode, config.global_batch_info)
    if not response_mask.any():  # only rows that verl fills batches up with; FSDP still waits for a backward pass
        return log_prob[:, :0].sum(), dict.fromkeys(("actor/ppo_kl", "actor/approx_kl", "actor/pg_clipfrac"), 0.0)
    if rollout_is_weights is not None:
        advantages = advantages * rollout_is_weights

    arguments = (old_log_prob, advantages, response_mask, clip_coef, REDUCTIONS[loss_agg_mode], denominator)
    plain = core.clipped_surrogate(log_prob, *arguments)
    loss = plain.loss
    if dual_clip:
        if not config.clip_ratio_c > 1 + clip_coef:
            raise ValueError(f"clip_ratio_c must be above 1 + clip_ratio = {1 + clip_coef}, got {config.clip_ratio_c}")
        # For A < 0, max(min(r A, clip(r) A), c A) is the plain surrogate at min(r, c), because c is outside the clip range.
        # For A >= 0 the clip range has already cut such ratios.
        capped = torch.minimum(log_prob, old_log_prob + math.log(config.clip_ratio_c))
        loss = core.clipped_surrogate(capped, *arguments).loss
    metrics = {"ppo_kl": plain.old_approx_kl, "approx_kl": plain.approx_kl, "pg_clipfrac": plain.clipfrac}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


# It has a separate name, because verl's `clip_ratio_c` is always set: its default is 3.0.
sppo_dual_clip_policy_loss = functools.partial(sppo_policy_loss, dual_clip=True)


def _clip_coef(config: Any) -> float:
    """The one eps of eq. 3. verl has three fields for it, and the other two do not follow when the first is changed."""
    names = ("clip_ratio", "clip_ratio_low", "clip_ratio_high")
    found = {name: config.get(name) for name in names if config.get(name) is not None}
    if len(set(found.values())) != 1:
        raise ValueError(f"SPPO clips both sides at one eps: set actor.{', '.join(names)} to one number, got {found}")
    return float(found["clip_ratio"])


def _denominator(loss_agg_mode: str, info: dict[str, Any]) -> float | None:
    """The table in the module's docstring; None (this batch's count) if verl has given no global count."""
    fixed, dp_size = loss_agg_mode == "seq-mean-token-sum-norm", info.get("dp_size", 1)
    length = info.get("loss_scale_factor") if fixed else 1
    if not length:
        raise ValueError(f"{loss_agg_mode} needs actor.loss_scale_factor, got {length}; set data.max_response_length's")
    count = info.get("batch_num_tokens" if loss_agg_mode == "token-mean" else "global_batch_size")
    if count is None and (fixed or dp_size > 1):
        raise ValueError(f"{loss_agg_mode} needs verl's global counts, got {info}; call it through verl's ppo_loss")
    return None if count is None else count * length / dp_size


# ------------------------------------------------------------------------------------------------------- critic
def crop_to_prompt(data: Any) -> Any:
    """What the critic sees of a batch: every prompt, and one response token, so that verl's values stay aligned.

    V(s_p) is read at the last prompt token. In a causal model the cropped tokens cannot influence it.

    Args:
        data: TensorDict of B rows from verl's TransferQueue. Jagged: `input_ids`, `position_ids` (B, P + T), `prompts`
            (B, P), `responses`, `response_mask`, `loss_mask` (B, T); while training also `returns` (B, T).

    Returns:
        A shallow copy in which T is 1 for these fields. verl sums `loss_mask` over the mini-batch of all ranks and calls it
        batch_num_tokens. Here that is the number of sequences, without the rows that verl fills up with.

    Raises:
        ValueError: `position_ids` is of an image-text model.
    """
    if data["position_ids"].dim() != 2:
        raise ValueError(f"the critic reads text only, got position_ids of {data['position_ids'].dim()} dimensions")
    prompt_plus_one = (data["prompts"].offsets().diff() + 1).tolist()
    cropped = data.copy()
    for key in ("input_ids", "position_ids"):
        cropped[key] = _jagged([row[:n] for row, n in zip(data[key].unbind(), prompt_plus_one, strict=True)])
    for key in ("responses", "response_mask", "loss_mask", "returns"):
        if key in data.keys():  # noqa: SIM118 (a TensorDict iterates over rows)
            cropped[key] = _jagged([row[:1] for row in data[key].unbind()])
    return cropped


def sppo_value_loss(model_output: dict[str, Any], data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """`core.bernoulli_value_loss` on V(s_p) alone (SPPO, eq. 2), in the form of a verl critic loss.

    Args:
        model_output: `values`, jagged (B, P + 1), with gradient; only the value at the last prompt token receives one.
        data: a micro-batch of `crop_to_prompt`, with verl's `batch_num_tokens` and `dp_size`.

    Returns:
        The loss: over micro-batches and ranks it adds up to the mean over the real sequences of verl's mini-batch. And
        loss, mean V and Brier score as metrics that add up in the same way.

    Raises:
        ValueError: the responses are longer than one token, so they were not cropped.
        ImportError: verl is not installed.
    """
    _need_verl()
    from verl.utils.metric import AggregationType, Metric

    values, longest = model_output["values"], int(data["responses"].offsets().diff().max())
    if longest != 1:
        raise ValueError(f"the critic's responses must be one token, got {longest}; crop_to_prompt the batch")
    logit = values.values()[values.offsets()[1:] - 2]  # (B,): the last prompt token is the second last token
    real = data["loss_mask"].values().bool()
    outcome = data["returns"].values()[real].to(_wide(logit))
    logit = logit.to(_wide(logit))[real]
    denominator = (data["batch_num_tokens"] or 1) / data["dp_size"]
    loss = core.bernoulli_value_loss(logit, outcome, denominator) if real.any() else values.values()[:0].sum()
    v = logit.detach().sigmoid()
    metrics = {"vf_loss": loss, "v0_mean": v.sum() / denominator, "brier": (v - outcome).square().sum() / denominator}
    return loss, {f"critic/{k}": Metric(value=x, aggregation=AggregationType.SUM) for k, x in metrics.items()}


def _wide(x: Tensor) -> torch.dtype:
    """At least float32, because the eight bits of bfloat16 are too few for a difference of probabilities."""
    return torch.promote_types(x.dtype, torch.float32)


def _jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def boxed_reward(solution_str: str, ground_truth: Any, **unused: Any) -> float:
    """A reward for verl: 1.0 if the last boxed answer is right by `MathReward`, as in the scripts and in TRL, else 0.0.

    Raises:
        ValueError: the right answer is neither text nor a number.
        MissingExtra: math-verify is not installed.
    """
    return float(_judge().verdict(solution_str, ground_truth) == "correct")


def paper_reward(solution_str: str, ground_truth: Any, **unused: Any) -> float:
    """`boxed_reward` with the official code's reading (`rewards.paper_answer`): only the text after the last </think> is
    judged, and numbers have a relative tolerance of 1e-4. It is the reward of the recipes, and of
    `evaluate_llm.py --protocol sppo-paper`.

    Raises:
        ValueError: the right answer is neither text nor a number.
        MissingExtra: math-verify is not installed.
    """
    return float(_judge(1e-4).verdict(paper_answer(solution_str), ground_truth) == "correct")


@functools.cache
def _judge(tolerance: float = 0.0) -> MathReward:
    """One verifier for each process of verl."""
    return MathReward(tolerance=tolerance)


# ------------------------------------------------------------------------------------------------ in verl's processes
def check_config(config: Any) -> None:
    """Refuse settings with which a run would not be SPPO, before anything is started.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """
    actor = config.actor_rollout_ref.actor
    for name, value, allowed in (
        ("algorithm.adv_estimator", config.algorithm.adv_estimator, ("sppo",)),
        ("algorithm.use_kl_in_reward", config.algorithm.use_kl_in_reward, (False,)),
        ("critic.enable", config.critic.enable, (True,)),
        ("actor_rollout_ref.rollout.n", config.actor_rollout_ref.rollout.n, (1,)),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", actor.policy_loss.loss_mode, ("sppo", "sppo_dual_clip")),
        ("actor_rollout_ref.actor.loss_agg_mode", actor.loss_agg_mode, tuple(REDUCTIONS)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(str, allowed))} for SPPO, got {value}")
    _clip_coef(actor)
    _denominator(actor.loss_agg_mode, {"loss_scale_factor": actor.loss_scale_factor, "global_batch_size": 1})


def _need_verl() -> None:
    if importlib.util.find_spec("verl") is None:
        raise ImportError(
            f"the verl plug-in needs verl 0.9.1, in a separate environment; run there: {INSTALL}", name="verl"
        )


def __getattr__(name: str) -> Any:
    if name in ("PromptCriticWorker", "SPPOTrainerSync"):  # not defined below, so verl is absent
        _need_verl()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if importlib.util.find_spec("verl") is not None:
    try:
        import ray
        import transfer_queue as tq
        from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est, register_policy_loss
        from verl.trainer.ppo.utils import Role
        from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer, trainer_base
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.engine_workers import TrainingWorker
    except ImportError:  # verl logs this at DEBUG only, and the user would only see "unknown trainer 'sppo'"
        logging.getLogger(__name__).exception("SPPO is not registered with verl. The tested environment: %s", INSTALL)
        raise

    register_adv_est("sppo")(sppo_advantage)
    register_policy_loss("sppo")(sppo_policy_loss)
    register_policy_loss("sppo_dual_clip")(sppo_dual_clip_policy_loss)

    class PromptCriticWorker(TrainingWorker):
        """verl's critic worker on `crop_to_prompt` of each batch, so the response costs no time and no memory."""

        @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
        def train_mini_batch(self, data: Any) -> Any:
            return super().train_mini_batch(crop_to_prompt(data))

        @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
        def infer_batch(self, data: Any) -> Any:
            output = super().infer_batch(crop_to_prompt(data))
            if output is not None:  # every token gets V(s_p), because the trainer cuts responses out of the full length
                rows = zip(output["values"].unbind(), data["input_ids"].unbind(), strict=True)
                output["values"] = _jagged([row[-2].repeat(len(ids)) for row, ids in rows])
            return output

    def compute_advantage_with_values(data: Any, batch_keys: list[str], adv_estimator: str, **kwargs: Any) -> Any:
        """Replaces verl's function for this, which passes only rewards and mask."""
        given = {key: data.batch[key] for key in ("token_level_rewards", "response_mask", "values")}
        data.batch["advantages"], data.batch["returns"] = get_adv_estimator_fn(adv_estimator)(**given)
        return data

    @register_trainer("sppo")
    class SPPOTrainerSync(PPOTrainerSync):
        """verl's synchronous trainer with SPPO's critic and advantage; everything else is verl's."""

        def __init__(self, config: Any) -> None:
            check_config(config)
            config.trainer.v1.trainer_mode = "sync"  # verl compares this with "sync" where it means "not asynchronous"
            super().__init__(config)

        def _init_tokenizer(self) -> None:
            super()._init_tokenizer()
            critic = omega_conf_to_dataclass(self.config.critic.model)
            if critic.tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ValueError(
                    f"critic.model.path={critic.path}: its tokenizer differs from the policy's; take one alike"
                )

        def _init_resource_pool_mgr(self) -> None:
            super()._init_resource_pool_mgr()
            self.role_worker_mapping[Role.Critic] = ray.remote(PromptCriticWorker)

        def _setup(self) -> None:
            super()._setup()
            self.critic_wg.set_loss_fn(sppo_value_loss)

        def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
            stock = trainer_base.compute_advantage_for_multi_trajectories  # an AttributeError if verl renames it
            trainer_base.compute_advantage_for_multi_trajectories = compute_advantage_with_values
            try:
                return super()._compute_advantage(batch, metrics)
            finally:
                trainer_base.compute_advantage_for_multi_trajectories = stock

        def _compute_metrics(self, batch: Any, *args: Any, **kwargs: Any) -> None:
            # critic/values/* and the explained variance should be those of the probability V, not of its logit
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["values"])
            data["values"] = data["values"].sigmoid()
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=data)
            super()._compute_metrics(batch, *args, **kwargs)
