"""The corridor that is unlearned.

Difficulty: 2/5
Minutes: 20
Teaches: what a batch of episodes of different lengths contains, and what of it may be trained

A colleague trains REINFORCE in a corridor of 8 cells. Each episode begins at the left end, and succeeds if it reaches
the exit at the right end within 24 steps. A random walk finds the exit in a quarter of the episodes, so there is enough
to learn from. The advantage is the outcome itself: 1 for success, 0 for failure.

"The first ten updates help a lot: 85 % succeed. Then it forgets what it has learned. After 30 updates fewer than 40 %
succeed. A smaller learning rate makes all of this slower, and no better." Another program, with the same task and the
same settings, reaches 100 % and stays there.

There is one bug in this file. Find it and mend it. Leave the settings and the task as they are. The grader calls
`rollout`, `advantage`, `policy_loss` and `train`, so keep their names, arguments and results.
"""

from __future__ import annotations

import numpy as np
import torch

# ---- settings
CELLS = 8  # the corridor: cell 0 is the left end, cell 7 is the exit
HORIZON = 24  # longest episode, in steps
BATCH = 64  # B, episodes per update
UPDATES = 40
LEARNING_RATE = 0.1


def rollout(logits: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """B whole episodes, padded with zeros to the horizon T.

    Args:
        logits: (CELLS, 2), the policy: one row per cell, for the actions left (0) and right (1).
        rng: random numbers of the actions.

    Returns:
        cell and action (B, T) int64; mask (B, T) bool, True on real steps; outcome (B,) float32, 1 at the exit.
    """
    right = torch.softmax(logits, -1)[:, 1].detach().numpy()  # (CELLS,)
    cells = np.zeros((BATCH, HORIZON), np.int64)
    actions = np.zeros((BATCH, HORIZON), np.int64)
    mask = np.zeros((BATCH, HORIZON), bool)
    position = np.zeros(BATCH, np.int64)
    for t in range(HORIZON):
        alive = position < CELLS - 1  # the others are at the exit: their rows stay padding
        action = rng.random(BATCH) < right[position]
        cells[alive, t], actions[alive, t], mask[alive, t] = position[alive], action[alive], True
        position = np.where(alive, np.maximum(position + np.where(action, 1, -1), 0), position)
    arrays = {"cell": cells, "action": actions, "mask": mask, "outcome": (position == CELLS - 1).astype(np.float32)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def advantage(outcome: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A = R, the same at each step of an episode: (B,) and mask (B, T) to (B, T)."""
    return outcome[:, None].expand(mask.shape)


def policy_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor], adv: torch.Tensor) -> torch.Tensor:
    """-A log pi(a | s), the mean over the real steps of the batch: a scalar."""
    logp = torch.log_softmax(logits, -1)[batch["cell"], batch["action"]]  # (B, T)
    return -(adv * logp)[batch["mask"]].sum() / batch["mask"].sum()


def train(seed: int) -> tuple[list[float], torch.Tensor]:
    """Success rate of each update's batch, and the trained logits (CELLS, 2)."""
    rng = np.random.default_rng(seed)
    logits = torch.zeros(CELLS, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    curve = []
    for _ in range(UPDATES):
        batch = rollout(logits, rng)
        adv = advantage(batch["outcome"], batch["mask"])
        loss = policy_loss(logits, batch, adv)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(batch["outcome"].mean()))
    return curve, logits.detach()


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
