"""A judge with moods.

Difficulty: 3/5
Minutes: 20
Teaches: who is compared with whom in GRPO

A colleague trains a small language model with GRPO. It answers 12 prompts with one of 8 words each, and one word per
prompt is the best. A judge gives 1 point more for the best word. But the judge also likes some prompts better than
others, and gives 0 to 11 points more for them, whatever the answer is.

"The model soon gives the same answer to most prompts every time. But only 4 of 12 answers are the best ones. With a
judge who likes all prompts alike it works! I thought that GRPO does not mind the judge's moods?" It does not. Another
program, with the same task and the same settings, reaches 100 %.

There is one bug in this file. Find it and mend it. Leave the settings and the task (`judge`) as they are. The grader
calls `sample`, `group_advantage`, `policy_loss` and `train`, so keep their names, arguments and results.
"""

from __future__ import annotations

import torch

# ---- settings
PROMPTS, WORDS = 12, 8
GROUP = 4  # G, answers per prompt
UPDATES = 40
LEARNING_RATE = 0.5


def judge(prompt: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """Points for each answer: the judge's liking of the prompt, 0 to 11, and 1 more for the best word."""
    return (prompt * 5 % PROMPTS).float() + (word == best_word(prompt)).float()


def best_word(prompt: torch.Tensor) -> torch.Tensor:
    """The best word of each prompt."""
    return (3 * prompt + 1) % WORDS


def sample(logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """G answers to each prompt.

    Args:
        logits: (PROMPTS, WORDS), the policy.
        generator: random numbers.

    Returns:
        prompt and word, both (PROMPTS * G,) int64. The G answers to one prompt are neighbours: 0 0 0 ... 1 1 1 ...
    """
    prompt = torch.arange(PROMPTS).repeat_interleave(GROUP)
    word = torch.multinomial(torch.softmax(logits.detach(), -1)[prompt], 1, generator=generator).squeeze(-1)
    return prompt, word


def group_advantage(reward: torch.Tensor) -> torch.Tensor:
    """A = (R - mean of the group) / (std of the group + 1e-4), for rewards and advantages (PROMPTS * G,)."""
    groups = reward.reshape(-1, GROUP)
    mean, std = groups.mean(1, keepdim=True), groups.std(1, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).flatten()


def policy_loss(logits: torch.Tensor, prompt: torch.Tensor, word: torch.Tensor, adv: torch.Tensor) -> torch.Tensor:
    """-A log pi(word | prompt), the mean over all answers: with one update per batch GRPO's ratio is 1."""
    return -(adv * torch.log_softmax(logits, -1)[prompt, word]).mean()


def train(seed: int) -> tuple[list[float], torch.Tensor]:
    """Probability of the best word, the mean over prompts, one per update, and the trained logits (PROMPTS, WORDS)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(PROMPTS, WORDS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    curve, prompts = [], torch.arange(PROMPTS)
    for _ in range(UPDATES):
        prompt, word = sample(logits, generator)
        adv = group_advantage(judge(prompt, word))
        loss = policy_loss(logits, prompt, word, adv)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(torch.softmax(logits.detach(), -1)[prompts, best_word(prompts)].mean()))
    return curve, logits.detach()


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
