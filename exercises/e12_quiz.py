"""A quiz that is passed in training and failed in the evaluation.

Difficulty: 3/5
Minutes: 25
Teaches: what to check first when success in training and in evaluation differ

A colleague trains a policy for a quiz. At each step it thinks or answers. An answer after k thoughts is right with
probability 0.15 + 0.07 k, and ends the episode. Thinking for a 12th time counts as a wrong answer. So it is best to
think 11 times and then to answer: 92 % are right. 64 environments run side by side.

"My success rate in training rises to 85 %, just as expected. But when I evaluate the policy, only 15 % of its answers
are right. That is worse than before training! Does it overfit?" With another program, in the same task and with the
same settings, both rates rise to about 90 %.

There is one bug in this file. Find it and mend it. Leave the settings, the quiz (`Quiz`) and `evaluate` as they are:
they are right. The grader calls `rollout`, `policy_loss` and `train`, so keep their names, arguments and results.
"""

from __future__ import annotations

import numpy as np
import torch

# ---- settings
THOUGHTS = 11  # most thoughts in an episode
HORIZON = THOUGHTS + 1  # T, longest episode in steps: eleven thoughts and the answer
BATCH = 64  # B, environments: one episode of each per update
UPDATES = 60
EVALUATE_EVERY = 4  # updates
LEARNING_RATE = 0.2


class Quiz:
    """B quizzes side by side. One that ends starts again at once: its next observation is 0 thoughts."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.thoughts = np.zeros(count, np.int64)

    def step(self, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of each quiz.

        Args:
            answer: (B,) bool, True answers, False thinks. After 11 thoughts a further thought is a wrong answer.

        Returns:
            observation (B,) int64, the number of thoughts, of the new quiz where one has ended; success (B,) bool,
            the answer was right; done (B,) bool, the quiz has ended.
        """
        right = self.rng.random(len(answer)) < 0.15 + 0.07 * self.thoughts
        done = answer | (self.thoughts == THOUGHTS)
        self.thoughts = np.where(done, 0, self.thoughts + 1)
        return self.thoughts.copy(), answer & right, done


def rollout(logits: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """One episode of each of B environments, T steps at most.

    Args:
        logits: (THOUGHTS + 1, 2), the policy: one row per number of thoughts, for the actions think (0) and answer (1).
        rng: random numbers of the actions and of the environments.

    Returns:
        thoughts and action (B, T) int64; mask (B, T) bool, True on the episode's steps; outcome (B,) float32, 1 if
        the episode's answer was right.
    """
    answers = torch.softmax(logits, -1)[:, 1].detach().numpy()  # (THOUGHTS + 1,)
    envs = Quiz(BATCH, rng)
    thoughts = np.zeros((BATCH, HORIZON), np.int64)
    actions = np.zeros((BATCH, HORIZON), np.int64)
    mask = np.ones((BATCH, HORIZON), bool)
    outcome = np.zeros(BATCH, bool)
    observation = np.zeros(BATCH, np.int64)
    for t in range(HORIZON):
        action = rng.random(BATCH) < answers[observation]
        thoughts[:, t], actions[:, t] = observation, action
        observation, success, _ = envs.step(action)
        outcome |= success
    arrays = {"thoughts": thoughts, "action": actions, "mask": mask, "outcome": outcome.astype(np.float32)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def policy_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor], baseline: float) -> torch.Tensor:
    """-A log pi(a | s) with A = R - b, summed over an episode's steps, the mean over episodes: a scalar."""
    logp = torch.log_softmax(logits, -1)[batch["thoughts"], batch["action"]]  # (B, T)
    adv = (batch["outcome"] - baseline)[:, None]  # (B, 1)
    return -torch.where(batch["mask"], adv * logp, 0.0).sum(-1).mean()


def evaluate(logits: torch.Tensor, rng: np.random.Generator, episodes: int = 256) -> float:
    """Success rate of single quizzes, each run to its end."""
    answers = torch.softmax(logits, -1)[:, 1].detach().numpy()
    envs, thoughts, running = Quiz(episodes, rng), np.zeros(episodes, np.int64), np.ones(episodes, bool)
    right = 0
    while running.any():
        thoughts, success, done = envs.step(rng.random(episodes) < answers[thoughts])
        right += int((success & running).sum())
        running &= ~done
    return right / episodes


def train(seed: int) -> tuple[list[float], list[float], torch.Tensor]:
    """Success rates in training and in evaluation, one per 4 updates, and the trained logits (THOUGHTS + 1, 2)."""
    rng, test_rng = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    logits = torch.tensor([[1.5, 0.0]]).repeat(THOUGHTS + 1, 1).requires_grad_()  # it rather thinks
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    baseline, training, evaluation = 0.5, [], []
    for update in range(UPDATES):
        batch = rollout(logits, rng)
        loss = policy_loss(logits, batch, baseline)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        success = float(batch["outcome"].mean())
        baseline += 0.1 * (success - baseline)  # a moving average of the success rate
        if update % EVALUATE_EVERY == 0:
            training.append(success)
            evaluation.append(evaluate(logits, test_rng))
    return training, evaluation, logits.detach()


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
