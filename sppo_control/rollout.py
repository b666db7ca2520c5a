"""Whole episodes in lockstep: B environments start together, and the batch is complete when the last one is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checkpoints import check_like
from .outcomes import Evaluation, Padded
from .policies import Policy


@dataclass(frozen=True)
class Episodes(Padded):
    """B whole episodes, padded on the right to the length of the longest one, T steps. All tensors are on the CPU.

    | field    | shape, dtype                          | meaning                                                    |
    | -------- | ------------------------------------- | ---------------------------------------------------------- |
    | obs      | (B, T, D) float32                     | observation before each action                             |
    | actions  | (B, T) int64 or (B, T, A) float32     | as sampled (continuous ones before clipping to the bounds) |
    | logp     | (B, T) float32                        | log-probability of each action under the policy that acted |
    | reward   | (B, T) float32                        | the environment's reward                                   |
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
        """The initial state s_0, (B, D) float32. SPPO's critic sees nothing else."""
        return self.obs[:, 0]

    @property
    def episode_return(self) -> Tensor:
        """Return of each episode, (B,) float32.

        It is `info["episode_return"]` if there is one: the sum of the environment's own rewards. Otherwise it is the sum
        of `reward`, which equals the outcome in a task of sppo_envs.
        """
        if "episode_return" in self.info:
            return torch.from_numpy(self.info["episode_return"].astype(np.float32))
        return self.reward.sum(dim=1)


def rollout(
    envs: gym.vector.VectorEnv,
    policy: Policy,
    rng: np.random.Generator,
    greedy: bool = False,
    horizon: int | None = None,
    group_size: int = 1,
) -> Episodes:
    """Reset all environments and run each to the end of its episode.

    Args:
        envs: B environments with autoreset off, such as `sppo_envs.make_task` makes. They must leave finished episodes
            alone, and report `success` in `info`.
        policy: acts through `policy.behaviour()`.
        rng: the only source of randomness, for initial states and sampled actions.
        greedy: take the most probable action (the mean, for continuous actions).
        horizon: most steps per episode; None means `envs.horizon`.
        group_size: N. N consecutive episodes at a time are reset with one seed, so that they share their context s_0.
            They also share everything else in the environment that depends on the seed.

    Returns:
        `Episodes`, where T is the length of the longest episode.

    Raises:
        ValueError: group_size does not divide B.
        RuntimeError: an episode is not over after `horizon` steps.
    """
    num_envs = envs.num_envs
    horizon = int(getattr(envs, "horizon")) if horizon is None else horizon  # noqa: B009 - VectorEnv does not declare it
    act, box = policy.behaviour(), envs.single_action_space
    bounds = (box.low, box.high) if isinstance(box, gym.spaces.Box) else None
    if group_size < 1 or num_envs % group_size:
        raise ValueError(f"group_size must divide the number of environments, got {group_size} for {num_envs}")
    # The seeds come from rng, so the environments' randomness depends on rng alone. A resumed run has no state of the
    # environments to restore.
    seed: Any = int(rng.integers(2**31 - num_envs))
    if group_size > 1:
        seed = np.repeat(rng.integers(2**31, size=num_envs // group_size), group_size).tolist()
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
    """T arrays (B, ...) -> one contiguous tensor (B, T, ...)."""
    return torch.from_numpy(np.stack(steps, axis=1))


class ContextWindow:
    """(s_0, R) pairs of the last W batches, so that SPPO's critic is trained on more than the newest batch.

    Args:
        window: W, at least 1.
        num_envs: B.
        obs_dim: D.
    """

    def __init__(self, window: int, num_envs: int, obs_dim: int) -> None:
        self._contexts = torch.zeros(window, num_envs, obs_dim)
        self._outcomes = torch.zeros(window, num_envs)
        self._batches = torch.zeros((), dtype=torch.int64)  # number of batches so far

    def add(self, episodes: Episodes) -> None:
        """Add a batch. If there are W already, it replaces the oldest one."""
        slot = int(self._batches) % len(self._contexts)
        self._contexts[slot], self._outcomes[slot] = episodes.context, episodes.outcome
        self._batches += 1

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Contexts (size, D) and outcomes (size,), drawn uniformly with replacement."""
        filled = min(int(self._batches), len(self._contexts)) * self._contexts.shape[1]
        rows = torch.from_numpy(rng.integers(filled, size=size))
        return self._contexts.flatten(0, 1)[rows], self._outcomes.flatten()[rows]

    def named_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must contain."""
        return {"contexts": self._contexts, "outcomes": self._outcomes, "batches": self._batches}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `named_tensors` returned.

        Raises:
            ValueError: the names, shapes or dtypes are different, or a value is not possible.
        """
        own = self.named_tensors()
        check_like(tensors, own, "this window of contexts")
        if int(tensors["batches"]) < 0:
            raise ValueError(f"batches must be at least 0, got {int(tensors['batches'])}")
        if not bool(((tensors["outcomes"] >= 0) & (tensors["outcomes"] <= 1)).all()):
            raise ValueError("outcomes has values outside [0, 1]")
        for name, x in own.items():
            x.copy_(tensors[name])

    def file_metadata(self) -> dict[str, str]:
        """Metadata for a file of these tensors: none."""
        return {}


def evaluate(
    envs: gym.vector.VectorEnv, policy: Policy, episodes: int, rng: np.random.Generator, greedy: bool = False
) -> Evaluation:
    """Success over `episodes` episodes, the first of as many batches as are needed.

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


def success_by_context(
    envs: gym.vector.VectorEnv, policy: Policy, contexts: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Success rates of several contexts, each measured with B episodes from it.

    Args:
        envs: see `rollout`; B episodes begin in each context.
        policy: see `rollout`.
        contexts: C, the number of contexts to draw.
        rng: see `rollout`.

    Returns:
        The contexts s_0, (C, D) float32, and the success rate from each, (C,) float32.
    """
    batches = [rollout(envs, policy, rng, group_size=envs.num_envs) for _ in range(contexts)]
    return torch.stack([b.context[0] for b in batches]), torch.stack([b.outcome.mean() for b in batches])
