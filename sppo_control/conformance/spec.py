"""The specification: which functions an adapter may offer, which properties they must have, and the usual mistakes.

`SPEC_VERSION` changes whenever a property is added, removed or changed, so that a report says what it was measured by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..markdown import markdown_table
from . import cases, reference
from .cases import Maker

SPEC_VERSION = "2026.11"
"""Year and month, like the Array API's standard."""

PPO = "PPO, Schulman et al., arXiv 1707.06347"
GAE = "GAE, Schulman et al., arXiv 1506.02438, eq. 16"
SPPO = "SPPO, Wang et al., arXiv 2604.08865"
GRPO = "GRPO, Shao et al., arXiv 2402.03300, section 4.1.2"
UPDATE = """The little model of `update(params, batch) -> params`.

`params` has `policy` W (D, K) and `critic` w (D,). `batch` has `obs` (B, T, D), `context` (B, D), `action` (B, T),
`logp_old` (B, T), `mask` (B, T), `outcome` (B,), and the numbers `learning_rate`, `clip_coef` and `micro_batch_size`.
The policy is softmax(obs W), the critic is V(s_0) = sigmoid(context w). One update is one optimiser step on the clipped
surrogate (SPPO's eq. 3, mean over real steps, A from eq. 1) plus the critic's cross-entropy (eq. 2, mean over episodes),
over the whole batch, whatever the micro-batches are."""


@dataclass(frozen=True)
class Function:
    """Something that an adapter may offer."""

    name: str
    arrays: tuple[str, ...]
    """its first arguments, in this order"""
    outputs: tuple[str, ...]
    """what it returns"""
    reference: Callable[..., dict[str, Any]]
    faults: Mapping[str, str]
    """the usual mistakes: name and one sentence"""
    optional_arrays: tuple[str, ...] = ()
    """arrays that are passed by name"""
    loss: bool = False
    """whether the first output is a scalar to minimise"""
    also: tuple[str, ...] = ()
    """other names under which adapters may offer it"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """options that are passed to an adapter without a default for them: the defaults of `core.py`"""


@dataclass(frozen=True)
class Property:
    """Something that must hold."""

    id: str
    says: str
    """what must hold, in one sentence"""
    make: Maker
    keys: tuple[str, ...]
    """outputs to compare, or `gradient of NAME`"""
    equation: str
    source: str
    function: Function = field(repr=False)
    gradients: tuple[str, ...] = ()
    """arrays that have a gradient in this property"""
    needs: tuple[str, ...] = ()
    """attributes that the adapter must have"""


# ---------------------------------------------------------------------------------------------------- the mistakes
NO_GRADIENT = {
    "loss_without_gradient": "The loss has no gradient, for example because it was turned into a plain number."
}
HALF = {"sums_in_half_precision": "Half-precision numbers are summed in half precision, which overflows."}

SEQUENCE_ADVANTAGE = Function(
    "sequence_advantage", ("outcome", "value_logit"), ("advantage",), reference.sequence_advantage,
    {
        "advantage_sign_turned": "The advantage is V - R, so failures are made likelier.",
        "advantage_from_the_logit": "The critic's logit is subtracted from R as if it were a probability.",
        "advantage_not_detached": "The advantage has a gradient, so the policy's loss also trains the critic.",
        "advantage_without_baseline": "V(s_0) is not subtracted, so the advantage is the outcome.",
        "advantage_normalised": "The advantages of a batch are normalised, which the equation does not do.",
    },
)  # fmt: skip
GENERALIZED_ADVANTAGE = Function(
    "generalized_advantage", ("reward", "value", "mask"), ("advantage", "returns"), reference.generalized_advantage,
    {
        "gae_next_value_is_the_next_column": "The next step's value is read from the next column, even if that is padding.",
        "gae_lambda_for_one_minus_lambda": "The value of the next step is weighted by lambda, not by 1 - lambda.",
        "gae_next_value_not_discounted": "The value of the next step is not multiplied by gamma.",
        "gae_recursion_without_lambda": "The return of the next step is weighted by gamma only, without lambda.",
        "gae_padding_is_discounted": "Steps of padding discount the return as real steps do.",
        "gae_advantage_is_the_return": "The value is not subtracted, so the advantage is the return.",
        "gae_value_keeps_its_gradient": "The advantage has a gradient, which reaches the critic.",
        "gae_returns_in_reverse_order": "The returns are computed backwards and not turned round.",
        "gae_end_is_bootstrapped": "The last step is bootstrapped with its value, but a terminal state has value 0.",
        "gae_padding_is_real": "Padding is treated as real steps: its rewards and values enter the recursion.",
        "gae_padding_not_zero": "Returns on padding are not 0 but what the value function says there.",
        "gae_gamma_ignored": "The given gamma is ignored; 1 is used.",
        "gae_lambda_ignored": "The given lambda is ignored; 1 is used.",
        "gae_returns_are_rewards_to_go": "The returns are discounted rewards, not A + V.",
        "gae_advantage_whitened": "The advantages are normalised over the batch, inside the function that computes them.",
        "gae_padding_ends_the_episode": "The recursion starts anew at padding, as if the episode ended there.",
        "gae_padding_kept": "Padding is removed by multiplication, but NaN times 0 is NaN, and the steps before get it.",
        "gae_padding_cleared_late": "Padding is set to 0 after the recursion, but NaN there has reached the steps before.",
    },
    defaults={"gamma": 1.0, "gae_lambda": 1.0},
)  # fmt: skip
INTERLEAVED = {"groups_are_interleaved_rows": "Each N-th row is taken as one group, not N rows in a row."}
GROUP_RELATIVE = Function(
    "group_relative_advantage", ("outcome",), ("advantage",), reference.group_relative_advantage,
    {
        "group_mean_of_the_whole_batch": "GRPO's mean is over the batch, not over the group of one context.",
        "group_deviation_of_a_sample": "The deviation is that of a sample (divided by N - 1), not of the population.",
        "group_equality_by_the_mean": "Equal outcomes are recognised by a distance of 0 from a rounded mean.",
        **INTERLEAVED,
        "group_normalisation_inverted": "The division by the standard deviation happens where it is switched off.",
        "group_never_divided": "The advantage is never divided by the standard deviation.",
        "group_always_divided": "The advantage is divided by the standard deviation even where that is switched off.",
        "group_deviation_of_the_whole_batch": "The standard deviation is over the batch, not over the group.",
        "group_deviation_of_zero_not_caught": "A group of equal outcomes is divided by a standard deviation of 0.",
        "group_epsilon_1e_4": "1e-4 is added to the standard deviation.",
        "group_epsilon_1e_5": "1e-5 is added to the standard deviation.",
        "group_epsilon_1e_6": "1e-6 is added to the standard deviation.",
    },
    defaults={"normalize_std": True},
)  # fmt: skip
LEAVE_ONE_OUT = Function(
    "leave_one_out_advantage", ("outcome",), ("advantage",), reference.leave_one_out_advantage,
    {
        "leave_one_out_includes_itself": "The baseline is the mean of the whole group, the episode itself included.",
        "leave_one_out_divided_by_n": "The sum of N - 1 other outcomes is divided by N.",
        "leave_one_out_of_the_whole_batch": "The baseline is the mean of all other outcomes of the batch.",
        **INTERLEAVED,
    },
)  # fmt: skip
GREEDY_BASELINE = Function(
    "greedy_baseline_advantage", ("outcome", "greedy_outcome"), ("advantage",), reference.greedy_baseline_advantage,
    {
        "greedy_baseline_sign_turned": "The advantage is the greedy outcome minus the sampled one.",
        "greedy_baseline_is_its_mean": "The baseline is the mean greedy outcome, not that of the same context.",
    },
)  # fmt: skip
NORMALIZED = Function(
    "normalized_advantage", ("advantage", "mask"), ("advantage",), reference.normalized_advantage,
    {
        "normalised_by_the_populations_deviation": "Advantages are divided by the deviation of a population (N), not of a "
        "sample (N - 1).",
        "normalised_over_episodes": "Each episode counts once in the mean of advantages, however many steps it has.",
        "normalised_rounding_errors": "Advantages that are equal up to rounding are scaled to size one.",
        "epsilon_always_in_the_deviation": "Epsilon is added to the deviation where the variance is asked for.",
        "epsilon_always_in_the_variance": "Epsilon is added to the variance where the deviation is asked for.",
        "normalised_over_padding": "Padding counts in the mean and in the deviation.",
        "advantage_not_centred": "The mean is not subtracted.",
    },
    defaults={"eps": 1e-8, "eps_in": "std"},
)  # fmt: skip
TRACKER = Function(
    "beta_tracker", ("alpha", "beta", "outcome", "context", "kl"), ("alpha", "beta"), reference.beta_tracker,
    {
        "tracker_forgets_each_episode": "A context with several episodes forgets its successes for each of them.",
        "tracker_forgets_unvisited_contexts": "Contexts that no episode had forget, too.",
        "tracker_counts_successes_as_failures": "The count of failures grows with successes.",
        "tracker_half_life_in_e": "The forgetting is a power of e, not of 2, of the KL divergence in half-lives.",
    },
    defaults={"kl_half": 0.06, "rho_min": 0.875, "rho_max": 0.96},
)  # fmt: skip
POLICY = Function(
    "policy_loss", ("logp", "logp_old", "advantage", "mask"),
    ("loss", "old_approx_kl", "approx_kl", "clipfrac", "ratio_min", "ratio_max"), reference.policy_loss,
    {
        "maximum_for_minimum": "The larger of the clipped and unclipped objective is taken, not the smaller.",
        "ratio_clipped_from_above_only": "The ratio is not clipped at 1 - eps.",
        "ratio_upside_down": "The ratio is old over new.",
        "old_log_probability_not_detached": "The old log-probability gets a gradient.",
        "advantage_in_the_loss_not_detached": "The loss has a gradient for the advantage, which trains the critic.",
        "loss_sign_turned": "The objective is minimised, not maximised.",
        "empty_rows_in_the_divisor": "In sequence-mean a row of padding alone counts as a sequence.",
        "empty_rows_divided_by_zero": "In sequence-mean a row of padding alone gives 0 / 0.",
        "sequence_mean_over_the_padded_length": "A sequence's mean is over its padded length.",
        "mean_over_padding": "The sum over real steps is divided by all steps, padding included.",
        "token_mean_and_fixed_swapped": "Token-mean divides by B x T, padding included, and fixed by the real steps.",
        "surrogate_denominator_ignored": "The given divisor is ignored, so micro-batches do not add up.",
        "overflowing_ratio_not_caught": "A ratio that overflows gives a NaN gradient where 0 is right.",
        "old_log_probability_padding_kept": "Padding is removed by multiplication, but NaN times 0 is NaN.",
        "padding_is_real": "The mask is ignored, so padding is trained.",
        "sequence_ratio_is_the_product": "An episode's ratio is the product of its steps' ratios, not a mean.",
        "sequence_ratio_over_padding": "The mean of an episode's ratio is over padding, too.",
        "sequence_ratio_ignored": "The ratio is that of each step where the episode's is asked for.",
        "episodes_ratio_is_the_product": "One ratio per episode, the product of its steps' ratios, is clipped as a whole.",
        "ratio_not_clipped": "The ratio is not clipped at all.",
        "minimum_omitted": "The clipped objective alone counts; there is no minimum with the unclipped one.",
        "log_probability_for_ratio": "The loss is A log pi (REINFORCE), without the ratio to the policy that acted.",
        "dual_clip": "For negative advantages the objective is bounded at 3 A (dual clip), which PPO's objective is not.",
        "clip_coef_ignored": "The given clip_coef is ignored; 0.2 is used.",
        "advantage_normalised_in_the_loss": "The loss normalises the advantages by itself.",
        "reduction_ignored": "The reduction is ignored; all are the mean over real steps.",
        "sequence_mean_in_place_of_token_mean": "Each sequence counts the same where each step should.",
        "sequence_sums_for_sequence_means": "A sequence's sum is taken, not its mean.",
        "fixed_leaves_out_empty_rows": "In fixed a row of padding alone is not counted in B.",
        "sum_for_mean": "The sum over real steps is not divided.",
        "kl_sign_turned": "The plain estimate of the KL divergence has the wrong sign.",
        "approximate_kl_with_a_wrong_term": "log r is added in r - 1 - log r.",
        "clip_fraction_of_the_log_ratio": "The share of clipped steps is counted on the logarithm of the ratio.",
        "smallest_ratio_sees_padding": "Padding counts as a ratio of 1 in the smallest ratio.",
        "largest_ratio_sees_padding": "Padding counts as a ratio of 1 in the largest ratio.",
        "kl_of_the_sequences_ratio": "KL is estimated from one ratio per episode, which hides most of it.",
        "padding_removed_after_the_ratio": "Padding is removed after the ratio, so NaN there reaches the gradient, but "
        "not the loss.",
        **HALF,
        **NO_GRADIENT,
    },
    loss=True,
    also=("clipped_surrogate",),
    defaults={"clip_coef": 0.2, "reduction": "token-mean", "denominator": None, "ratio": "step"},
)  # fmt: skip
BERNOULLI = Function(
    "bernoulli_value_loss", ("value_logit", "outcome"), ("loss",), reference.bernoulli_value_loss,
    {
        "cross_entropy_trains_the_outcome": "The critic's target gets a gradient.",
        "cross_entropy_denominator_ignored": "The given divisor is ignored, so micro-batches do not add up.",
        "cross_entropy_of_a_rounded_probability": "The logarithm of a rounded sigmoid is infinite at large logits.",
        "squared_error_for_cross_entropy": "The loss is (V - R)^2, not the cross-entropy.",
        "half_squared_error_for_cross_entropy": "The loss is (V - R)^2 / 2, not the cross-entropy.",
        "sigmoid_twice": "The sigmoid is applied twice, because a probability is passed where a logit is expected.",
        "cross_entropy_summed": "The sum over the batch is not divided.",
        **NO_GRADIENT,
    },
    loss=True,
    defaults={"denominator": None},
)  # fmt: skip
SQUARED = Function(
    "squared_value_loss", ("value", "returns", "mask"), ("loss",), reference.squared_value_loss,
    {
        "squared_error_without_the_half": "The squared error is not halved, so its gradient is twice V - G.",
        "returns_not_detached": "The returns, the critic's target, get a gradient.",
        "squared_error_mean_over_padding": "The squared error is averaged over padding too.",
        "squared_error_padding_kept": "Padding is removed by multiplication, but NaN times 0 is NaN.",
        "squared_error_denominator_ignored": "The given divisor is ignored, so micro-batches do not add up.",
        "squared_error_summed": "The sum over real steps is not divided.",
        "value_clipping_takes_the_smaller_error": "The clipped value loss takes the smaller of both errors.",
        "value_clipped_around_the_return": "It may move from its return, not from where it was, so nothing is clipped.",
        "squared_error_padding_removed_after_the_square": "Padding is removed after the square, so NaN there reaches the "
        "gradient, but not the loss.",
        "value_clipping_without_maximum": "The clipped error alone counts; there is no maximum with the unclipped one.",
        **HALF,
        **NO_GRADIENT,
    },
    optional_arrays=("value_old",),
    loss=True,
    defaults={"denominator": None, "value_old": None, "clip_coef": 0.2},
)  # fmt: skip
MASKED_MEAN = Function(
    "masked_mean", ("x", "mask"), ("mean",), reference.masked_mean,
    {"masked_mean_over_padding": "A mean over real steps is divided by all steps.", **HALF},
)  # fmt: skip
EXPLAINED = Function(
    "explained_variance", ("prediction", "target", "mask"), ("explained_variance",), reference.explained_variance,
    {
        "explained_variance_by_the_prediction": "The variance of the error is divided by the prediction's variance.",
        "explained_variance_of_a_constant_target": "A constant target is recognised by a variance of 0 after rounding.",
        "explained_variance_over_padding": "Padding counts in both variances.",
    },
)  # fmt: skip
BRIER = Function(
    "brier_score", ("probability", "outcome"), ("score",), reference.brier_score,
    {"brier_score_not_squared": "The Brier score is the mean absolute error."},
)  # fmt: skip
CALIBRATION = Function(
    "expected_calibration_error", ("probability", "outcome"), ("calibration_error",), reference.expected_calibration_error,
    {
        "calibration_bins_rounded": "Predictions go to the nearest edge of a bin, not into the bin that they are in.",
        "calibration_gaps_never_cancel": "The gaps of single predictions are added up, not those of a bin's means.",
    },
    defaults={"num_bins": 10},
)  # fmt: skip
WILSON = Function(
    "wilson_interval", (), ("low", "high"), reference.wilson_interval,
    {
        "wilson_interval_too_wide": "In the Wilson interval z^2 / 4n replaces z^2 / 4n^2.",
        "normal_interval_for_wilson": "The interval is the normal one, p +- z sqrt(p (1 - p) / n).",
    },
    defaults={"z": 1.959964},
)  # fmt: skip
WHOLE_UPDATE = Function(
    "update", (), ("policy", "critic"), reference.update,
    {
        "update_advantage_not_detached": "The advantage is not detached, so the policy's loss also trains the critic.",
        "update_critic_trained_before_the_advantage": "The advantage is computed with a critic that was trained on "
        "these outcomes before.",
        "update_old_log_probability_computed_again": "logp_old is computed again with current weights, so the ratio is 1.",
        "update_ascends": "The weights move up the loss, not down.",
        "update_steps_on_each_micro_batch": "Each micro-batch makes an optimiser step of its own.",
        "update_micro_batch_means_added": "The micro-batches' means are added, so the step grows with their number.",
        "update_micro_batch_means_averaged": "The micro-batches' means are averaged, so steps in a short one count more.",
        "update_last_micro_batch_only": "The gradient is cleared before each micro-batch, so only the last one counts.",
        "update_trains_padding": "The mask is ignored, so padding is trained.",
        "update_critic_not_trained": "The critic's loss has no gradient, so the critic never learns.",
        "update_critic_squared_error": "The critic's loss is the squared error, not the cross-entropy.",
        "update_advantage_normalised": "The advantages of a batch are normalised.",
        "update_gradient_never_cleared": "The gradient of the update before is not cleared.",
        "update_moments_lost_on_resume": "The optimiser's state is not stored, so it starts anew after a resume.",
        "update_step_count_lost_on_resume": "The optimiser's moments are stored, but not its count of steps.",
    },
)  # fmt: skip
FUNCTIONS = (
    SEQUENCE_ADVANTAGE, GENERALIZED_ADVANTAGE, GROUP_RELATIVE, LEAVE_ONE_OUT, GREEDY_BASELINE, NORMALIZED, TRACKER, POLICY,
    BERNOULLI, SQUARED, WHOLE_UPDATE, MASKED_MEAN, EXPLAINED, BRIER, CALIBRATION, WILSON,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- the properties
def _properties() -> tuple[Property, ...]:
    found: list[Property] = []

    def add(
        function: Function, name: str, says: str, make: Maker, keys: tuple[str, ...], gradients: tuple[str, ...],
        equation: str, source: str, needs: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        every = keys + tuple(f"gradient of {g}" for g in gradients)
        found.append(
            Property(f"{function.name}.{name}", says, make, every, equation, source, function, gradients, needs)
        )

    A, loss = ("advantage",), ("loss",)
    equation = "A = R - sigmoid(v)"
    add(
        SEQUENCE_ADVANTAGE,
        "value",
        "The advantage is the outcome minus the critic's probability of success.",
        cases.sequence_advantage,
        A,
        (),
        equation,
        f"{SPPO}, eq. 1",
    )
    add(
        SEQUENCE_ADVANTAGE,
        "detached",
        "The advantage has no gradient.",
        cases.sequence_advantage,
        (),
        ("value_logit",),
        equation,
        f"{SPPO}, eq. 1",
    )

    equation = "G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}), A_t = G_t - V_t"
    for name, says, make, keys in (
        ("plain", "At gamma = lambda = 1 the advantage is the sum of later rewards minus V.", cases.gae(plain=True), A),
        ("value", "The advantage follows gamma and lambda.", cases.gae(), A),
        ("returns", "The returns are A + V.", cases.gae(), ("returns",)),
        ("padding", "Padding at the end of an episode changes nothing.", cases.gae("right"), A),
        ("padding_anywhere", "Padding between steps is skipped.", cases.gae("any"), (*A, "returns")),
        ("padding_values", "NaN and infinity in padding do not matter, and the result there is 0.",
         cases.gae("right", spoiled=True), (*A, "returns")),
    ):  # fmt: skip
        add(GENERALIZED_ADVANTAGE, name, says, make, keys, (), equation, GAE)
    add(GENERALIZED_ADVANTAGE, "detached", "The advantage has no gradient.", cases.gae(), (), ("value",), equation, GAE)

    equation = "A_i = (R_i - mean of the group) / std of the group"
    for name, says, make in (
        ("value", "Outcomes are centred and divided by the population's deviation within their group.", cases.groups()),
        (
            "equal_outcomes",
            "A group of equal outcomes gives 0, also where its mean is rounded.",
            cases.groups(constant=True),
        ),
        ("without_deviation", "normalize_std=False only subtracts the mean (Dr. GRPO).", cases.groups(normalize=False)),
    ):
        add(GROUP_RELATIVE, name, says, make, A, (), equation, GRPO)
    add(
        LEAVE_ONE_OUT,
        "value",
        "The baseline is the mean of the other outcomes of the group.",
        cases.groups(),
        A,
        (),
        "A_i = R_i - sum over j != i of R_j / (N - 1)",
        "RLOO, Ahmadian et al., arXiv 2402.14740",
    )
    add(
        GREEDY_BASELINE,
        "value",
        "The baseline is the outcome of the greedy episode of the same context.",
        cases.greedy,
        A,
        (),
        "A_i = R_i - R_i(greedy)",
        "ReMax, Li et al., arXiv 2310.10505, eq. 7",
    )

    equation = "(A - mean) / (std + eps), or (A - mean) / sqrt(std^2 + eps)"
    for name, says, make in (
        ("value", "Advantages get mean 0 and the deviation of a sample becomes 1.", cases.normalized()),
        ("padding", "Padding does not count.", cases.normalized("any")),
        ("per_episode", "One advantage per episode counts once for each of its real steps.",
         cases.normalized("right", per_episode=True)),
        ("constant", "Advantages that are equal up to rounding give 0.", cases.normalized(constant=True)),
        ("epsilon", "eps is added where eps_in says.", cases.normalized(options=True)),
    ):  # fmt: skip
        add(NORMALIZED, name, says, make, A, (), equation, "CleanRL's norm_adv; verl's masked_whiten")
    add(
        TRACKER,
        "value",
        "A visited context forgets once per batch and counts its outcomes.",
        cases.tracker,
        ("alpha", "beta"),
        (),
        "alpha <- rho alpha + R, rho = 2^(-KL / kl_half) in [rho_min, rho_max]",
        "SPO, Xu and Ding, arXiv 2509.13232",
    )

    equation = "L_t = min(r_t A, clip(r_t, 1 - eps, 1 + eps) A), r_t = exp(logp - logp_old)"
    source = f"{PPO}, eq. 7; {SPPO}, eq. 3"
    p = cases.policy
    for name, says, make in (
        ("clip", "The loss is minus the clipped surrogate, and its gradient follows.", p()),
        ("advantage_per_step", "Advantages may be one per step.", p(per_step=True)),
        ("clip_coef", "clip_coef sets the range of the ratio.", p(clip=True)),
        ("padding", "Padding does not count in the mean and has no gradient.", p("right")),
        ("padding_anywhere", "Padding may be anywhere in a row.", p("any")),
        (
            "padding_values",
            "NaN and infinity in padding reach neither the loss nor the gradient.",
            p("right", spoiled=True),
        ),
        ("large_ratio", "A ratio too large for its dtype is clipped where A >= 0, with gradient 0.", p(huge=True)),
    ):
        add(POLICY, name, says, make, loss, ("logp",), equation, source)
    add(
        POLICY,
        "detached",
        "logp_old and the advantage are constants.",
        p("right"),
        (),
        ("logp_old", "advantage"),
        equation,
        source,
    )
    add(
        POLICY,
        "half_precision",
        "Sums over many steps do not overflow in float16.",
        cases.half_policy,
        loss,
        (),
        equation,
        source,
    )
    for name, says, make in (
        ("sequence_mean", "sequence-mean is a mean of sequences' means.", p("right", reduction="sequence-mean")),
        ("sequence_mean_empty_row", "In sequence-mean a row without a real step does not count.",
         p("empty", reduction="sequence-mean")),
        ("fixed", "fixed divides by B x T, T the padded length (Dr. GRPO).", p("empty", reduction="fixed")),
        ("micro_batches", "A given denominator replaces the divisor, so micro-batches add up.", p("right", divided=True)),
        ("micro_batches_sequence_mean", "Also in sequence-mean.", p("right", divided=True, reduction="sequence-mean")),
        ("sequence_ratio", "ratio='sequence' clips an episode's geometric mean ratio (GSPO).", p("any", sequence=True)),
        ("sequence_ratio_sequence_mean", "Also in sequence-mean, which is GSPO's objective.",
         p("right", sequence=True, reduction="sequence-mean")),
    ):  # fmt: skip
        add(
            POLICY,
            name,
            says,
            make,
            loss,
            ("logp",),
            "r = exp(mean over the episode of logp - logp_old)" if "ratio" in name else equation,
            "GSPO, Zheng et al., arXiv 2507.18071, eq. 7" if "ratio" in name else source,
        )
    for key, says, equation in (
        ("old_approx_kl", "The plain estimate of KL is the mean of -log r over real steps.", "mean(-log r)"),
        ("approx_kl", "The second estimate of KL is the mean of r - 1 - log r.", "mean(r - 1 - log r)"),
        ("clipfrac", "The clip fraction is the share of real steps outside the range.", "mean(|r - 1| > eps)"),
        ("ratio_min", "The smallest ratio is over real steps.", "min r"),
        ("ratio_max", "The largest ratio is over real steps.", "max r"),
    ):
        add(
            POLICY,
            key,
            says,
            p("right", near=key == "clipfrac"),
            (key,),
            (),
            equation,
            "http://joschu.net/blog/kl-approx.html",
        )
    add(
        POLICY,
        "kl_of_a_sequence_ratio",
        "With ratio='sequence' KL is still that of the steps.",
        p("right", sequence=True),
        ("approx_kl", "old_approx_kl"),
        (),
        "mean(r_t - 1 - log r_t)",
        "http://joschu.net/blog/kl-approx.html",
    )

    equation = "mean of -R log V - (1 - R) log(1 - V), V = sigmoid(v); gradient V - R"
    for name, says, make in (
        ("value", "The loss is the mean cross-entropy, and its gradient is V - R.", cases.bernoulli()),
        ("fraction", "Outcomes may be fractions: success rates.", cases.bernoulli(fraction=True)),
        ("large_logit", "Large logits give finite losses.", cases.bernoulli(large=True)),
        (
            "micro_batches",
            "A given denominator replaces B, so that micro-batches add up.",
            cases.bernoulli(divided=True),
        ),
    ):
        add(BERNOULLI, name, says, make, loss, ("value_logit",), equation, f"{SPPO}, eq. 2")
    add(
        BERNOULLI,
        "detached",
        "The outcome is a constant.",
        cases.bernoulli(),
        (),
        ("outcome",),
        equation,
        f"{SPPO}, eq. 2",
    )

    equation = "mean over real steps of (V_t - G_t)^2 / 2; gradient V_t - G_t"
    for name, says, make in (
        ("value", "The loss is half the mean squared error, and its gradient is V - G.", cases.squared()),
        ("padding", "Padding does not count.", cases.squared("any")),
        ("padding_values", "NaN and infinity in padding do not matter.", cases.squared("right", spoiled=True)),
        (
            "micro_batches",
            "A given denominator replaces the number of real steps.",
            cases.squared("right", divided=True),
        ),
    ):
        add(SQUARED, name, says, make, loss, ("value",), equation, f"{PPO}, eq. 9")
    add(
        SQUARED,
        "detached",
        "The returns are constants.",
        cases.squared("right"),
        (),
        ("returns",),
        equation,
        f"{PPO}, eq. 9",
    )
    add(
        SQUARED,
        "half_precision",
        "Sums over many steps do not overflow in float16.",
        cases.half_squared,
        loss,
        (),
        equation,
        f"{PPO}, eq. 9",
    )
    add(
        SQUARED,
        "clipped",
        "With old values the larger of both errors counts.",
        cases.squared("right", clip=True),
        loss,
        ("value",),
        "max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2) / 2",
        "OpenAI's baselines, ppo2",
    )

    both, equation = ("policy", "critic"), "theta <- theta - step(gradient of (L_policy + L_critic))"
    source = f"{SPPO}, eq. 1 to 3"
    add(
        WHOLE_UPDATE,
        "one_step",
        "One update is one optimiser step on the policy's and the critic's loss.",
        cases.update(),
        both,
        (),
        equation,
        source,
    )
    add(WHOLE_UPDATE, "padding", "Padding is not trained.", cases.update("right"), both, (), equation, source)
    add(
        WHOLE_UPDATE,
        "micro_batches",
        "Micro-batches give the update of the whole batch.",
        cases.update("right", micro=True),
        both,
        (),
        equation,
        source,
    )
    add(
        WHOLE_UPDATE,
        "two_updates",
        "A second update starts from a cleared gradient.",
        cases.update(updates=2),
        both,
        (),
        equation,
        source,
    )
    add(
        WHOLE_UPDATE,
        "resume",
        "An update after save and load is the one that would have come without.",
        cases.update(updates=2, resume=True),
        both,
        (),
        equation,
        source,
        ("resume",),
    )

    add(
        MASKED_MEAN,
        "value",
        "The mean is over real steps.",
        cases.mean("any"),
        ("mean",),
        (),
        "sum(m x) / sum(m)",
        "definition",
    )
    add(
        MASKED_MEAN,
        "half_precision",
        "Sums do not overflow in float16.",
        cases.half_mean,
        ("mean",),
        (),
        "sum(m x) / sum(m)",
        "definition",
    )
    equation = "1 - Var(target - prediction) / Var(target)"
    add(
        EXPLAINED,
        "value",
        "It compares the error's variance with the target's.",
        cases.explained(),
        ("explained_variance",),
        (),
        equation,
        "definition",
    )
    add(
        EXPLAINED,
        "constant",
        "A constant target gives NaN, also where its mean is rounded.",
        cases.explained(constant=True),
        ("explained_variance",),
        (),
        equation,
        "definition",
    )
    add(
        BRIER,
        "value",
        "It is the mean squared error of a probability.",
        cases.probabilities,
        ("score",),
        (),
        "mean (V - R)^2",
        "Brier, 1950",
    )
    add(
        CALIBRATION,
        "value",
        "Gaps are those of the means in each bin.",
        cases.probabilities,
        ("calibration_error",),
        (),
        "sum over bins of share x |mean V - mean R|",
        "Guo et al., arXiv 1706.04599, eq. 3",
    )
    add(
        WILSON,
        "value",
        "Both ends are those of the score interval.",
        cases.counts,
        ("low", "high"),
        (),
        "(p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)",
        "Wilson, 1927",
    )
    return tuple(found)  # fmt: skip


PROPERTIES = _properties()


def specification() -> list[dict[str, str]]:
    """The properties as plain data: id, what it says, equation and source, in the order of a report."""
    return [
        {"id": p.id, "function": p.function.name, "says": p.says, "equation": p.equation, "source": p.source}
        for p in PROPERTIES
    ]


def page() -> str:
    """The properties and the mistakes as two Markdown tables."""
    escaped = [{key: text.replace("|", "\\|") for key, text in entry.items()} for entry in specification()]
    rows = [(f"`{e['id']}`", e["says"], f"{e['equation']} ({e['source']})") for e in escaped]
    wrong = [(f"`{name}`", sentence) for name, sentence in mistakes().items()]
    return "\n".join(
        [
            f"Version {SPEC_VERSION}, {len(rows)} properties.",
            "",
            markdown_table(("property", "what must hold", "equation and source"), rows),
            "",
            f"{len(wrong)} usual mistakes have a name.",
            "",
            markdown_table(("mistake", "what it is"), wrong),
        ]
    )


def mistakes() -> dict[str, str]:
    """All named mistakes with their sentences."""
    return {name: sentence for function in FUNCTIONS for name, sentence in function.faults.items()}
