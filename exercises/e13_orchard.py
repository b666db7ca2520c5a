"""An orchard that is picked too early.

Difficulty: 4/5
Minutes: 30
Teaches: where the future of a step ends, in generalized advantage estimation

A colleague trains PPO in an orchard. Each day a tree is left alone or picked. It ripens by 1 per day, and a harvest pays
(ripeness / 10) squared; then the tree begins anew. A tree that is left alone at ripeness 10 dies, and the episode ends.
The best policy waits for 10 days and picks on the 11th, which is 1 / 11 = 0.091 per day. There is no time limit in the
task. But for more variety each episode is cut off after 3 days, and a tree of random ripeness takes its place.

"It gets worse and not better. In the evaluation the random policy earns 0.025 per day, and the trained one 0.010. It
picks new trees at ripeness 1. More updates or a larger gamma do not help." Another program, with the same task and the
same settings, soon reaches 0.08.

There is one bug in this file. Find it and mend it. Leave the settings, the task (`Orchard`) and `evaluate` as they
are: they are right. The grader calls `generalized_advantage`, `losses` and `train`, so keep their names, arguments and
results.
"""

from __future__ import annotations

import numpy as np
import torch

# ---- settings
RIPE = 10  # ripeness is 0 to 10
CUT = 3  # days after which an episode is cut off
ENVS, STEPS = 64, 9  # B environments, T steps per update
UPDATES, EPOCHS = 48, 2
GAMMA, LAMBDA, CLIP = 0.97, 0.9, 0.2
LEARNING_RATE = 0.1


class Orchard:
    """B trees. An episode that has ended or is cut off starts again at once with a tree of random ripeness."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        self.rng, self.count = rng, count
        self.ripeness, self.day = rng.integers(RIPE + 1, size=count), np.zeros(count, np.int64)

    def step(self, pick: np.ndarray) -> dict[str, np.ndarray]:
        """One day; arrays of shape (B,).

        Returns:
            final: the ripeness after this day; reward; terminated: the tree died; truncated: the episode was cut off;
            ripeness: that of the next step, which after a restart is the new tree's.
        """
        reward = np.where(pick, (self.ripeness / RIPE) ** 2, 0.0).astype(np.float32)
        terminated = ~pick & (self.ripeness == RIPE)
        final = np.where(pick | terminated, 0, self.ripeness + 1)
        self.day += 1
        truncated = ~terminated & (self.day == CUT)
        over = terminated | truncated
        self.ripeness = np.where(over, self.rng.integers(RIPE + 1, size=self.count), final)
        self.day[over] = 0
        return {
            "final": final,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "ripeness": self.ripeness,
        }


def generalized_advantage(
    reward: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
) -> torch.Tensor:
    """A_t = delta_t + gamma lambda A_{t+1}, with delta_t = r_t + gamma V(s_{t+1}) - V(s_t); all are (T, B).

    Args:
        reward: r_t.
        value: V(s_t), of the state before the step.
        next_value: V of the state after the step, which is not the state in which a restarted episode begins.
        terminated: bool, the episode ended at this step.
        truncated: bool, the episode was cut off after this step.
    """
    advantage = torch.zeros_like(reward)
    carry = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        over = terminated[t] | truncated[t]
        delta = reward[t] + GAMMA * next_value[t] * ~over - value[t]
        carry = delta + GAMMA * LAMBDA * carry * ~over
        advantage[t] = carry
    return advantage


def losses(
    logits: torch.Tensor, values: torch.Tensor, batch: dict[str, torch.Tensor], logp_old: torch.Tensor
) -> torch.Tensor:
    """PPO's clipped surrogate and half the squared error of the critic, as one scalar."""
    logp = torch.log_softmax(logits, -1)[batch["ripeness"], batch["action"]]  # (T, B)
    ratio, adv = torch.exp(logp - logp_old), batch["advantage"]
    policy_loss = -torch.minimum(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).mean()
    return policy_loss + 0.5 * (values[batch["ripeness"]] - batch["target"]).square().mean()


def evaluate(logits: torch.Tensor, rng: np.random.Generator, trees: int = 100, days: int = 55) -> float:
    """Mean reward per day of new trees in an episode of 55 days without a cut."""
    picks = torch.softmax(logits, -1)[:, 1].detach().numpy()
    ripeness, alive, total = np.zeros(trees, np.int64), np.ones(trees, bool), 0.0
    for _ in range(days):
        pick = alive & (rng.random(trees) < picks[ripeness])
        total += float(((ripeness[pick] / RIPE) ** 2).sum())
        alive &= pick | (ripeness < RIPE)
        ripeness = np.where(pick, 0, np.minimum(ripeness + 1, RIPE))
    return total / (trees * days)


def train(seed: int) -> tuple[list[float], torch.Tensor]:
    """Mean reward per day in evaluation, one per 4 updates, and the trained logits (RIPE + 1, 2)."""
    rng, test_rng = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    logits = torch.zeros(RIPE + 1, 2, requires_grad=True)  # actions: leave alone (0), pick (1)
    values = torch.zeros(RIPE + 1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, values], lr=LEARNING_RATE)
    envs, curve = Orchard(ENVS, rng), []
    for update in range(UPDATES):
        # ---- T steps of B environments, with the current policy
        picks, rows = torch.softmax(logits, -1)[:, 1].detach().numpy(), []
        for _ in range(STEPS):
            before = envs.ripeness
            pick = rng.random(ENVS) < picks[before]
            rows.append({"before": before, "action": pick.astype(np.int64), **envs.step(pick)})
        steps = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}  # each (T, B)

        # ---- advantages and the critic's targets
        with torch.no_grad():
            value, next_value = values[steps["before"]], values[steps["final"]]
            logp_old = torch.log_softmax(logits, -1)[steps["before"], steps["action"]]
        adv = generalized_advantage(steps["reward"], value, next_value, steps["terminated"], steps["truncated"])
        batch = {"ripeness": steps["before"], "action": steps["action"], "advantage": adv, "target": adv + value}

        # ---- a few epochs over the whole batch
        for _ in range(EPOCHS):
            loss = losses(logits, values, batch, logp_old)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if update % 4 == 3:
            curve.append(evaluate(logits, test_rng))
    return curve, logits.detach()


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
