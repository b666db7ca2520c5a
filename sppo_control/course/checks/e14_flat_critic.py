"""Checks of e14_flat_critic."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from .. import curves
from ..compare import UNKNOWN, numbers, same, show
from ..grading import Check, Mistake

SECONDS = 60.0  # a mend with loops takes longer
SEEDS = (1, 2)
BRIER = (0.29, 0.22, 0.17, 0.16, 0.17, 0.16, 0.16, 0.16, 0.15, 0.16, 0.15, 0.14, 0.14, 0.13, 0.13)
"""Brier scores of a right program, the mean of 10 seeds, at each second update."""


def settings(student: ModuleType) -> None:
    curves.settings(student, BATCH=128, UPDATES=30, EPOCHS=2, CLIP=0.2, LEARNING_RATE=0.05)


def task(student: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    context = student.sample_contexts(generator)
    if tuple(context.shape) != (128, 2) or context.min() < -1 or context.max() > 1 or context.std() < 0.5:
        raise Mistake("sample_contexts has changed: contexts are (128, 2), uniform in [-1, 1].")
    context = torch.tensor([[0.5, 1.0], [-0.5, 1.0], [0.5, -1.0], [0.5, 0.0]]).repeat(32, 1)
    for action, right in ((1, (1.0, 0.0, 0.0, 0.5)), (0, (0.0, 1.0, 0.0, 0.0))):
        actions = torch.full((128,), action)
        draws = [student.sample_outcomes(context, actions, generator).reshape(32, 4).mean(0) for _ in range(4)]
        if (torch.stack(draws).mean(0) - torch.tensor(right)).abs().max() > 0.15:
            raise Mistake("sample_outcomes has changed: the right action succeeds with probability sigmoid(6 x_2).")


def three_contexts(student: ModuleType, before_the_curve: bool) -> None:
    """Critic, its loss, advantage and policy loss together, since each shape may be another one inside."""
    critic = student.Critic(torch.Generator().manual_seed(0))
    context, outcome = torch.tensor([[0.5, 1.0], [-0.5, -1.0], [0.2, 0.0]]), torch.tensor([1.0, 0.0, 1.0])
    value = critic(context)
    if value.numel() != 3:
        raise Mistake(f"The critic gives shape {tuple(value.shape)} for 3 contexts, where one number each is right.")
    v = value.detach().reshape(3)
    if (v < 0).any() or (v > 1).any():
        raise Mistake(f"The critic's values are no probabilities: {show(v)}. Is the sigmoid left out?")
    if v.max() - v.min() < 1e-4:
        raise Mistake(f"The critic gives the same value for each context: {show(v)}.")

    # ---- the critic's loss
    brier = numbers(student.critic_loss(value, outcome), (), "critic_loss")
    if not brier.requires_grad:
        raise Mistake("critic_loss has no gradient, so the critic cannot learn.")
    crossed = (v[:, None] - outcome).square().mean()
    right = (v - outcome).square().mean()
    critic_is_crossed = same(brier, crossed)
    given = f"V = {show(v)} and R = [1, 0, 1]"
    if not critic_is_crossed and not same(brier, right):
        sentence = UNKNOWN
        if same(brier, (v.mean() - outcome).square().mean()) or same(brier, (v - outcome).mean().square()):
            sentence = "The mean comes before the square: each value must be compared with its own outcome."
        elif same(brier, torch.nn.functional.binary_cross_entropy(v, outcome)):
            sentence = "It is the cross-entropy. It would train the critic too, but it is not the Brier score."
        elif same(brier, (v - outcome).square().sum()):
            sentence = "It is a sum, not a mean."
        raise Mistake(f"{sentence} With {given}, critic_loss is {show(brier)}, right is {show(right)}.")
    (gradient,) = torch.autograd.grad(student.critic_loss(value, outcome), [value], retain_graph=True)
    wanted = 2 * (v - outcome) / 3
    if not critic_is_crossed and not same(gradient.reshape(3).double(), wanted.double()):
        raise Mistake(
            f"With {given}, the gradient of critic_loss is {show(gradient.reshape(3))}, right is {show(wanted)}."
        )

    # ---- the advantage, in the policy's loss
    adv = student.advantage(outcome, value)
    if isinstance(adv, torch.Tensor) and adv.requires_grad:
        raise Mistake("The advantage has a gradient, so the policy's loss also trains the critic.")
    logp_old = torch.log(torch.tensor([0.5, 0.5, 0.5]))
    logp = torch.log(torch.tensor([0.55, 0.45, 0.5])).requires_grad_()
    (found,) = torch.autograd.grad(numbers(student.policy_loss(logp, logp_old, adv), (), "policy_loss"), [logp])
    ratio = torch.exp(logp.detach() - logp_old)
    mine, wanted = found.double(), (-(outcome - v) * ratio / 3).double()
    policy_is_crossed = same(mine, -(outcome - v[:, None]).mean(0) * ratio / 3)
    if not policy_is_crossed and not same(mine, wanted):
        raise Mistake(
            f"{UNKNOWN} With {given}, the gradient of policy_loss with respect to logp is {show(mine)}, right is "
            f"{show(wanted)}."
        )

    if before_the_curve and critic_is_crossed and policy_is_crossed:
        return
    shape = "(B, 1) - (B,) is (B, B): each value is compared with the outcomes of all contexts"
    if critic_is_crossed and policy_is_crossed:
        raise Mistake(f"{shape}. With {given}, critic_loss is {show(brier)}, right is {show(right)}.")
    if critic_is_crossed:
        raise Mistake(f"The advantage is right, but in critic_loss {shape}. With {given}, it is {show(brier)}, right is "
                      f"{show(right)}.")  # fmt: skip
    if policy_is_crossed:
        raise Mistake(
            f"critic_loss is right, but in the advantage {shape}. With {given}, advantage has shape {tuple(adv.shape)}, "
            "right is (3,)."
        )


def curve(student: ModuleType) -> None:
    for seed in SEEDS:
        parts = ("Brier scores", "success rates", "critic")
        brier, success, critic = curves.returned(student.train(seed), parts, "train")
        brier = curves.series(brier, 30, "the list of Brier scores")
        success = curves.series(success, 30, "the list of success rates")
        drawn = curves.chart("The critic's Brier score", brier, BRIER, 0, 0.3)
        if np.mean(success[-5:]) < 0.35:
            raise Mistake(
                f"Success ends at {np.mean(success[-5:]):.2f}, right is about 0.43: the policy does not learn."
            )
        with torch.no_grad():
            grid = [torch.stack([torch.linspace(-1, 1, 20), torch.full((20,), x)], 1) for x in (0.8, -0.8)]
            easy, hard = (float(critic(contexts).mean()) for contexts in grid)
        if easy - hard < 0.4:
            raise curves.not_mended(
                f"the critic's Brier score is {np.mean(brier[-5:]):.2f} at the end, with a right program 0.13. It gives "
                f"easy contexts {easy:.2f} and hard ones {hard:.2f} (seed {seed}).",
                drawn,
            )
        if np.mean(brier[-5:]) > 0.17:
            raise curves.not_mended(
                f"the Brier score is {np.mean(brier[-5:]):.2f} at the end, with a right program 0.13 (seed {seed}).",
                drawn,
            )
    print(drawn)


CHECKS = (
    Check("the settings are as they were", settings),
    Check("the task is as it was", task),
    Check("nothing else is broken", lambda student: three_contexts(student, before_the_curve=True)),
    Check("the Brier score falls", curve),
    Check(
        "critic and advantage are right in three contexts",
        lambda student: three_contexts(student, before_the_curve=False),
    ),
)
CLOSER = (
    "Print the critic's values of a batch at the end. They are nearly the same for all contexts. Of which number are they "
    "a good guess?",
    "Print the shape of each tensor in critic_loss: of value, of outcome, and of their difference.",
    "(B, 1) - (B,) is (B, B), without an error. A layer nn.Linear(32, 1) returns (B, 1).",
)
HINTS = dict.fromkeys(
    (
        "the Brier score falls",
        "critic and advantage are right in three contexts",
    ),
    CLOSER,
)
