"""Whole episodes in lockstep: B environments start together, and the batch is complete when the last one has finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .core import wilson_interval
from .policies import Policy


@dataclass(frozen=True)
class Episodes:
    """B whole episodes, padded on the right to the longest one, T steps; tensors on the CPU.

    | field    | shape, dtype                          | meaning                                                    |
    | -------- | ------------------------------------- | ---------------------------------------------------------- |
    | obs      | (B, T, D) float32                     | observation before each action                             |
    | actions  | (B, T) int64 or (B, T, A) float32     | as sampled (continuous ones before clipping to the bounds) |
    | logp     | (B, T) float32                        | log-probability of each action under the policy that acted |
    | reward   | (B, T) float32                        | the environment's                                          |
    | mask     | (B, T) bool                           | True on real steps                                         |
    | outcome  | (B,) float32                          | R: 1 for success, 0 for failure                            |
    | info     | name -> (B,) array                    | what the environment reported at each episode's end        |
    """

    obs: Tensor
    actions: Tensor
    logp: Tensor
    reward: Tensor
    mask: Tensor
    outcome: Tensor
    info: dict[str, npt.NDArray[Any]]

    @property
    def context(self) -> Tensor:
        """s_0, (B, D) float32: all that SPPO's critic sees."""
        return self.obs[:, 0]

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, (B,) int64."""
        return self.mask.sum(dim=1)

    @property
    def num_steps(self) -> int:
        """Environment steps taken, padding not counted."""
        return int(self.mask.sum())

    @property
    def episode_return(self) -> Tensor:
        """Sum of the environment's own rewards, (B,) float32; equal to the outcome in a task of sppo_envs."""
        if "episode_return" in self.info:
            return torch.from_numpy(self.info["episode_return"].astype(np.float32))
        return self.reward.sum(dim=1)


def rollout(
    envs: gym.vector.VectorEnv,
    policy: Policy,
    rng: np.random.Generator,
    greedy: bool = False,
    horizon: int | None = None,
) -> Episodes:
    """Reset all environments and run each to the end of its episode.

    Args:
        envs: B environments with autoreset off which leave finished episodes alone and report `success` in `info`, such
            as `sppo_envs.make_task` makes.
        policy: acts through `policy.behaviour()`.
        rng: initial states and sampled actions are drawn from it and from nothing else.
        greedy: take the most probable action (the mean, for continuous actions).
        horizon: longest episode in steps; None takes the attribute `envs.horizon`.

    Returns:
        `Episodes`, T being the longest episode's length.

    Raises:
        RuntimeError: an episode is not over after `horizon` steps.
    """
    num_envs = envs.num_envs
    horizon = int(getattr(envs, "horizon")) if horizon is None else horizon  # noqa: B009 - VectorEnv does not declare it
    act, box = policy.behaviour(), envs.single_action_space
    bounds = (box.low, box.high) if isinstance(box, gym.spaces.Box) else None
    # One seed a batch, drawn here, makes the environments' randomness a function of rng alone: they hold no state
    # that a resumed run would have to restore.
    seed = int(rng.integers(2**31 - num_envs))
    noise = None if greedy else policy.noise(rng, horizon, num_envs)

    raw, _ = envs.reset(seed=seed)
    obs = np.asarray(raw, dtype=np.float32)
    done = np.zeros(num_envs, dtype=np.bool_)
    all_obs, all_actions, all_outputs, all_rewards, all_masks = [], [], [], [], []
    for t in range(horizon):
        action, output = act(obs, None if noise is None else noise[t])
        all_obs.append(obs)
        all_actions.append(action)
        all_outputs.append(output)
        all_masks.append(~done)
        raw, reward, terminated, truncated, info = envs.step(action if bounds is None else np.clip(action, *bounds))
        obs = np.asarray(raw, dtype=np.float32)
        all_rewards.append(reward)
        done = done | terminated | truncated
        if done.all():
            break
    else:
        raise RuntimeError(f"{int((~done).sum())} of {num_envs} episodes were not over after {horizon} steps")

    actions = _batch_first(all_actions)
    with torch.no_grad():
        logp, _ = policy.log_prob_given(_batch_first(all_outputs), actions)
    return Episodes(
        obs=_batch_first(all_obs),
        actions=actions,
        logp=logp,
        reward=_batch_first(all_rewards).float(),
        mask=_batch_first(all_masks),
        outcome=torch.from_numpy(np.asarray(info["success"]).astype(np.float32)),
        info={key: value.copy() for key, value in info.items() if not key.startswith("_")},
    )


def _batch_first(steps: list[npt.NDArray[Any]]) -> Tensor:
    """T arrays (B, ...) -> tensor (B, T, ...), contiguous"""
    return torch.from_numpy(np.stack(steps, axis=1))


@dataclass(frozen=True)
class Evaluation:
    """Success of a policy over a number of episodes."""

    outcome: npt.NDArray[np.bool_]
    """(episodes,)"""
    info: dict[str, npt.NDArray[Any]]
    """What the environment reported at each episode's end; each (episodes,)."""

    @property
    def rate(self) -> float:
        """Share of episodes that succeeded."""
        return float(self.outcome.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `rate`."""
        return wilson_interval(int(self.outcome.sum()), len(self.outcome))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.3f} [{low:.3f}, {high:.3f}]"


def evaluate(
    envs: gym.vector.VectorEnv, policy: Policy, episodes: int, rng: np.random.Generator, greedy: bool = False
) -> Evaluation:
    """Success over the first `episodes` episodes of as many batches as that takes.

    Args:
        envs: see `rollout`.
        policy: see `rollout`.
        episodes: at least 1.
        rng: see `rollout`.
        greedy: see `rollout`.

    Raises:
        ValueError: episodes below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    batches = [rollout(envs, policy, rng, greedy) for _ in range(-(-episodes // envs.num_envs))]
    outcome = torch.cat([b.outcome for b in batches])[:episodes].numpy() > 0.5
    keys = set.intersection(*(set(b.info) for b in batches))
    return Evaluation(outcome, {k: np.concatenate([b.info[k] for b in batches])[:episodes] for k in sorted(keys)})
