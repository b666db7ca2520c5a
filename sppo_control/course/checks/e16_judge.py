"""Checks of e16_judge."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import curves
from ..compare import call, expect, numbers, same, show
from ..grading import Check, Mistake

SECONDS = 60.0  # a mend with loops takes longer
SEEDS = (1, 2)
RIGHT = (0.17, 0.34, 0.54, 0.74, 0.87, 0.94, 0.97, 0.99, 0.99, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Probability of the best word with a right program, the mean of 10 seeds, at each second update."""
BEST = [(3 * prompt + 1) % 8 for prompt in range(12)]


def settings(student: ModuleType) -> None:
    curves.settings(student, PROMPTS=12, WORDS=8, GROUP=4, UPDATES=40, LEARNING_RATE=0.5)


def task(student: ModuleType) -> None:
    prompt, word = torch.arange(12).repeat_interleave(8), torch.arange(8).repeat(12)
    right = (prompt * 5 % 12).float() + (word == torch.tensor(BEST)[prompt]).float()
    if not torch.equal(student.judge(prompt, word), right):
        raise Mistake("judge has changed. It likes some prompts better than others, and that is no bug.")
    prompt, word = student.sample(torch.zeros(12, 8), torch.Generator().manual_seed(0))
    counts = torch.bincount(prompt, minlength=12).tolist()
    if tuple(prompt.shape) != (48,) or tuple(word.shape) != (48,) or counts != [4] * 12:
        raise Mistake(f"sample must give 4 answers to each of 12 prompts; the numbers of answers are {counts}.")
    prompt, word = student.sample(50 * torch.eye(12, 8), torch.Generator().manual_seed(0))
    if (word != prompt)[prompt < 8].any():
        raise Mistake("sample gives a word to another prompt than the one whose logits it was drawn from.")
    logits = torch.stack([torch.zeros(12), torch.arange(12) / 4], 1)
    prompt, word, adv = torch.tensor([0, 4, 8]), torch.tensor([0, 1, 0]), torch.tensor([1.0, -1.0, 0.5])
    steps = -adv * torch.log_softmax(logits, -1)[prompt, word]
    given = {"prompt": prompt, "word": word, "adv": adv}
    mistakes = {"It is a sum, not a mean.": steps.sum()}
    expect(student.policy_loss(logits, prompt, word, adv), steps.mean(), "policy_loss", given, mistakes)


def groups(student: ModuleType, before_the_curve: bool) -> None:
    """The advantages of a batch in the order in which `sample` gives it."""
    prompt, _ = student.sample(torch.zeros(12, 8), torch.Generator().manual_seed(0))
    order = torch.argsort(prompt, stable=True)  # the places of the first prompt's answers, of the second's ...
    points = torch.zeros(48)
    points[order] = (torch.arange(12)[:, None] + torch.tensor([0.0, 0.0, 1.0, 3.0])).flatten()
    found = numbers(call(student.group_advantage, points), (48,), "group_advantage")
    found = torch.round(found, decimals=2)  # whatever epsilon is

    def scaled(table: Tensor, axis: int) -> Tensor:
        return (table - table.mean(axis, keepdim=True)) / (table.std(axis, keepdim=True) + 1e-4)

    def close(wrong: Tensor) -> bool:
        return bool((found - wrong).abs().max() < 0.012)

    right = torch.zeros(48)
    right[order] = scaled(points[order].reshape(12, 4), 1).flatten()
    planted = scaled(points.reshape(4, 12), 0).flatten()
    if close(right) or close(right * (4 / 3) ** 0.5) or (before_the_curve and close(planted)):  # either deviation
        return
    mean_only, own = torch.zeros(48), points[order].reshape(12, 4)
    mean_only[order] = (own - own.mean(1, keepdim=True)).flatten()
    turned = torch.zeros(48)
    turned[order] = right[order].reshape(12, 4).T.flatten()
    who = "Answers to different prompts are compared"
    content = f"{who}: the groups are right in shape, but not in content."
    sentences = [
        (f"{who}: reshape puts answers of several prompts into one group.", planted),
        (f"{who}: mean and std run over the prompts, not over a group.", scaled(points.reshape(12, 4), 0).flatten()),
        (f"{who}: mean and std are over the whole batch.", scaled(points, 0)),
        (
            f"The std is now that of the population, which would be right too. But {who[0].lower()}{who[1:]}, as before.",
            planted * (4 / 3) ** 0.5,
        ),
        (content, scaled(points.reshape(4, 12), 1).flatten()),
        (content, scaled(points.reshape(12, 4), 1).flatten()),
        (
            "The groups are right, but the advantages come back in another order: each belongs to another answer.",
            turned,
        ),
        ("The mean of the group is subtracted, but the difference is not divided by the group's std.", mean_only),
        ("The mean of the group is not subtracted.", points),
    ]
    first, truth = show(found[order[:4]]), show(torch.round(right[order[:4]], decimals=2))
    numbers_said = (
        f"The first prompt's answers have 0, 0, 1 and 3 points. Their advantages are {first}, right is {truth}."
    )
    for sentence, wrong in sentences:
        if close(wrong):
            raise Mistake(f"{sentence} {numbers_said}")
    if same(found, -torch.round(right, decimals=2)):
        raise Mistake(f"The sign is turned. {numbers_said}")
    raise Mistake(f"The advantages are wrong, and not by a usual mistake. {numbers_said}")


def equal_points(student: ModuleType) -> None:
    found = numbers(student.group_advantage(torch.full((48,), 7.0)), (48,), "group_advantage")
    if not same(found, torch.zeros(48)):
        raise Mistake(f"When all answers have the same points, their advantages are {show(found[:4])}, right is 0.")


def best(logits: Any) -> float:
    """Probability of the best word, the mean over prompts."""
    return float(curves.probabilities(logits, (12, 8), "the logits")[np.arange(12), BEST].mean())


def curve(student: ModuleType) -> None:
    for seed in SEEDS:
        found, logits = curves.returned(student.train(seed), ("probabilities", "logits"), "train")
        values = curves.series(found, 40, "the list of probabilities")
        drawn = curves.chart("Probability of the best word", values, RIGHT, 0, 1)
        exact = best(logits)
        if exact < 0.9:
            raise curves.not_mended(
                f"after 40 updates the best word has probability {exact:.2f}, with a right program 1.00 (seed {seed}).",
                drawn,
            )
        curves.same_as_policy(values[-1], exact, 0.1, "the probability of the best word")
    print(drawn)


CHECKS = (
    Check("the settings are as they were", settings),
    Check("the task is as it was", task),
    Check("equal points are no reason to learn", equal_points),
    Check("nothing else is broken", lambda student: groups(student, before_the_curve=True)),
    Check("the best words are learned", curve),
    Check("the advantages of a batch are right", lambda student: groups(student, before_the_curve=False)),
)
CLOSER = (
    "Which prompts go wrong? Print the mean advantage of each prompt's four answers in the first update. What should it be "
    "in GRPO?",
    "sample gives 48 answers in one row. In which order are the prompts? Call group_advantage with points that are the "
    "number of the prompt.",
    "reshape keeps the order of a row: the first answers fill the first row of the table. In which axis are the answers to "
    "one prompt now?",
)
HINTS = dict.fromkeys(
    (
        "equal points are no reason to learn",
        "the best words are learned",
        "the advantages of a batch are right",
    ),
    CLOSER,
)
