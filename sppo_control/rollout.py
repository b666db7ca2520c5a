"""Whole episodes in lockstep: B environments start together, and the batch is complete when the last one is finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import compiled
from .checkpoints import check_like
from .outcomes import Evaluation, Padded, end_infos, joined
from .policies import Behaviour, FloatArray, Policy
from .spaces import to_environment

NOISE_STEPS = 4096
"""Steps for which noise is drawn at once."""


@dataclass(frozen=True)
class Episodes(Padded):
    """B whole episodes, padded on the right with zeros to the length of the longest one, T steps. All tensors are on the
    CPU.

    | field    | shape, dtype                          | meaning                                                    |
    | -------- | ------------------------------------- | ---------------------------------------------------------- |
    | obs      | (B, T, D) float32                     | observation before each action                             |
    | actions  | (B, T) int64 or (B, T, A) float32     | as sampled, before `spaces.to_environment`                 |
    | logp     | (B, T) float32                        | log-probability of each action under the policy that acted |
    | reward   | (B, T) float32                        | the environment's reward                                   |
    | mask     | (B, T) bool                           | True on real steps                                         |
    | outcome  | (B,) float32                          | R: 1 for success, 0 for failure                            |
    | info     | name -> (B,) array                    | reported at each episode's end; see `outcomes.end_infos`   |
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
    seeds: Sequence[int] | None = None,
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
        seeds: of the environments, one for each. An episode with the seed of an earlier one starts in its context s_0.
            None draws them from `rng`.

    Returns:
        `Episodes`, where T is the length of the longest episode.

    Raises:
        ValueError: horizon below 1; group_size does not divide B, or a group does not share its context; seeds are not
            one per environment. Also if an observation, a reward or an output of the policy is not finite, or `info` has
            no `success` at the end.
        RuntimeError: an episode is not over after `horizon` steps.
    """
    num_envs = envs.num_envs
    horizon = int(getattr(envs, "horizon")) if horizon is None else horizon  # noqa: B009 - VectorEnv does not declare it
    _check_at_least_one(horizon=horizon)
    act, act_in = policy.behaviour(), to_environment(envs.single_action_space)
    if group_size < 1 or num_envs % group_size:
        raise ValueError(f"group_size must divide the number of environments, got {group_size} for {num_envs}")
    # The seeds come from rng, so the environments' randomness depends on rng alone. A resumed run has no state of the
    # environments to restore.
    seed: Any = int(rng.integers(2**31 - num_envs))
    if group_size > 1:
        seed = np.repeat(rng.integers(2**31, size=num_envs // group_size), group_size).tolist()
    if seeds is not None:
        if len(seeds) != num_envs:
            raise ValueError(f"seeds must be one for each of {num_envs} environments, got {len(seeds)}")
        seed = list(seeds)
    dynamics = _compiled_dynamics(envs, policy, horizon)
    noise = None if greedy or dynamics is not None else noise_of_steps(policy, rng, horizon, num_envs)

    done = np.zeros(num_envs, dtype=np.bool_)
    obs = _finite_obs(envs.reset(seed=seed)[0], done, 0, envs)
    if group_size > 1 and (differ := _groups_that_differ(obs, group_size)):
        raise ValueError(
            f"environments {differ[0]} and {differ[1]} of {_name(envs)} were reset with one seed and began in different "
            "states, so that their group does not share a context; draw from self.np_random in reset()"
        )
    if dynamics is not None:
        run = _run_compiled(envs, policy, dynamics, rng, greedy)
    else:
        run = _run_stepwise(envs, act, act_in, obs, noise, horizon)
    ends = end_infos(run.info)
    actions, mask = torch.from_numpy(run.actions), torch.from_numpy(run.mask)
    with torch.no_grad():
        logp, _ = policy.log_prob_given(torch.from_numpy(run.outputs), actions)

    def real(x: Tensor) -> Tensor:  # a gradient of 0 times an infinity in padding would be NaN
        return x.masked_fill_(~mask if x.dim() == 2 else ~mask.unsqueeze(-1), 0)

    return Episodes(
        obs=real(torch.from_numpy(run.obs)),
        actions=real(actions),
        logp=real(logp),
        reward=real(torch.from_numpy(run.reward).float()),
        mask=mask,
        outcome=torch.from_numpy(np.asarray(run.info["success"]).astype(np.float32)),
        info=ends,
    )


class _Run(NamedTuple):
    """Arrays (B, T, ...) of `Episodes`, and the `info` of the last step. What padding holds does not matter."""

    obs: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    outputs: npt.NDArray[Any]
    reward: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    info: Mapping[str, Any]


def _run_stepwise(
    envs: gym.vector.VectorEnv,
    act: Behaviour,
    act_in: Any,
    obs: FloatArray,
    noise: Iterator[FloatArray] | None,
    horizon: int,
) -> _Run:
    """Any environments: the policy in numpy, one step of all of them at a time."""
    num_envs = envs.num_envs
    done = np.zeros(num_envs, dtype=np.bool_)
    all_obs, all_actions, all_outputs, all_rewards, all_masks = [], [], [], [], []
    for t in range(horizon):
        action, output = act(obs, None if noise is None else next(noise))
        if not np.isfinite(output).all():
            _refuse_output(output, done, t, envs)
        all_obs.append(obs)
        all_actions.append(action)
        all_outputs.append(output)
        all_masks.append(~done)
        raw, reward, terminated, truncated, info = envs.step(act_in(action))
        all_rewards.append(_finite_reward(reward, done, t + 1, envs))
        done = done | terminated | truncated
        obs = _finite_obs(raw, done, t + 1, envs)
        if done.all():
            break
    else:
        raise RuntimeError(f"{int((~done).sum())} of {num_envs} episodes were not over after {horizon} steps")
    obs, actions, outputs, reward, mask = (
        np.stack(steps, axis=1) for steps in (all_obs, all_actions, all_outputs, all_rewards, all_masks)
    )
    return _Run(obs, actions, outputs, reward, mask, info)


def _compiled_dynamics(
    envs: gym.vector.VectorEnv, policy: Policy, horizon: int
) -> tuple[int, npt.NDArray[np.float64]] | None:
    """What `NumpyVectorEnv.dynamics` says, if the kernels are chosen and can run these episodes; else None."""
    found = getattr(type(envs), "dynamics", None)  # not of the object: a wrapper passes on its inner environments' one
    suitable = (
        found is not None
        and compiled.suits(policy.obs_scale, policy.sizes)
        and policy.compiled_std() is not None
        and horizon == getattr(envs, "horizon")  # noqa: B009 - VectorEnv does not declare it
    )
    return found(envs) if suitable else None  # type: ignore[misc]


def _run_compiled(
    envs: Any, policy: Policy, dynamics: tuple[int, npt.NDArray[np.float64]], rng: np.random.Generator, greedy: bool
) -> _Run:
    """Tasks whose dynamics are compiled: all steps in one call. The noise is that of `noise_of_steps`."""

    def noise(steps: int) -> FloatArray:
        return np.zeros((0, 0, 0), np.float32) if greedy else policy.noise(rng, steps, envs.num_envs)

    weights = (policy.obs_scale, policy.flat, policy.sizes, policy.compiled_std())
    state = np.ascontiguousarray(envs.state.T)
    obs, actions, outputs, lengths, memory = compiled.run_episodes(
        *dynamics, state, noise, weights, envs.horizon, NOISE_STEPS, policy.sizes[0]
    )
    mask = np.arange(obs.shape[1]) < lengths[:, None]
    if not np.isfinite(outputs).all():
        t = int((~np.isfinite(outputs).all(axis=2) & mask).any(axis=0).argmax())
        _refuse_output(outputs[:, t], ~mask[:, t], t, envs)
    info = envs.settle(np.ascontiguousarray(state.T), int(lengths.max()), memory[:, 0])
    reward = np.zeros(mask.shape)
    reward[np.arange(len(lengths)), lengths - 1] = info["success"]
    return _Run(obs, actions, outputs, reward, mask, info)


def noise_of_steps(policy: Policy, rng: np.random.Generator, horizon: int, num_envs: int) -> Iterator[FloatArray]:
    """Noise (B, A) of each step: what `policy.noise(rng, horizon, num_envs)` draws, but no more than is needed.

    Up to `NOISE_STEPS` steps, all are drawn at once: then what is drawn from `rng` later does not depend on how long the
    episodes were. Beyond that, `NOISE_STEPS` steps are drawn at a time, so that the cost follows the longest episode.

    Raises:
        ValueError: horizon or num_envs below 1.
    """
    _check_at_least_one(horizon=horizon, num_envs=num_envs)
    drawn = policy.noise(rng, min(horizon, NOISE_STEPS), num_envs)

    def steps() -> Iterator[FloatArray]:
        yield from drawn
        for t in range(NOISE_STEPS, horizon, NOISE_STEPS):
            yield from policy.noise(rng, min(NOISE_STEPS, horizon - t), num_envs)

    return steps()


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}; it is a whole number")


def _name(envs: gym.vector.VectorEnv) -> str:
    return str(getattr(envs, "env_id", None) or envs)


def _finite_obs(raw: Any, done: npt.NDArray[np.bool_], step: int, envs: gym.vector.VectorEnv) -> FloatArray:
    """Observations (B, D) as float32. Those of finished episodes are 0 where not finite, or enormous: nothing may depend
    on them.

    Raises:
        ValueError: an unfinished episode's is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        obs = np.asarray(raw, dtype=np.float32)
        if abs(obs.sum()) < 1e18:  # also False for NaN
            return obs
    bad = ~np.isfinite(obs)
    for i, k in np.argwhere(bad & ~done.reshape(-1, *[1] * (obs.ndim - 1)))[:, :2].tolist():
        when = f"after step {step}" if step else "after reset()"
        number = np.asarray(raw)[i, k]
        fits = "" if not np.isfinite(number) else ", which is more than float32 holds"
        raise ValueError(f"{_name(envs)}: observation {k} of environment {i} is {number} {when}{fits}")
    enormous = ~(np.abs(obs) < 1e18) & done.reshape(-1, *[1] * (obs.ndim - 1))
    return np.where(enormous, np.float32(0), obs)


def _finite_reward(reward: Any, done: npt.NDArray[np.bool_], step: int, envs: gym.vector.VectorEnv) -> npt.NDArray[Any]:
    """Rewards (B,). Those after an episode's end are 0 where not finite: nothing may depend on them.

    Raises:
        ValueError: an unfinished episode's is not finite.
    """
    reward = np.asarray(reward)
    if np.isfinite(reward).all():
        return reward
    for i in np.flatnonzero(~np.isfinite(reward) & ~done).tolist():
        raise ValueError(f"{_name(envs)}: the reward of environment {i} is {reward[i]} in step {step}")
    return np.where(np.isfinite(reward), reward, 0.0)


def _refuse_output(output: FloatArray, done: npt.NDArray[np.bool_], t: int, envs: gym.vector.VectorEnv) -> None:
    """
    Raises:
        ValueError: the policy's output for an unfinished episode is not finite.
    """
    for i in np.flatnonzero(~np.isfinite(output).all(axis=1) & ~done).tolist():
        raise ValueError(
            f"{_name(envs)}: the policy's output for environment {i} is {output[i].tolist()} in step {t + 1}, so that "
            "there is no action; a weight of the policy is not finite, or an observation is very large (Task.obs_scale)"
        )


def _groups_that_differ(obs: FloatArray, group_size: int) -> tuple[int, int] | None:
    """Two environments of one group whose observations are not equal."""
    firsts = np.repeat(obs[::group_size], group_size, axis=0)
    other = np.flatnonzero((obs != firsts).reshape(len(obs), -1).any(axis=1)).tolist()
    return (other[0] // group_size * group_size, other[0]) if other else None


class ContextWindow:
    """(s_0, R) pairs of the last W batches, so that SPPO's critic is trained on more than the newest batch.

    Args:
        window: W, at least 1.
        num_envs: B.
        obs_dim: D.

    Raises:
        ValueError: one of them is below 1.
    """

    def __init__(self, window: int, num_envs: int, obs_dim: int) -> None:
        _check_at_least_one(window=window, num_envs=num_envs, obs_dim=obs_dim)
        self._contexts = torch.zeros(window, num_envs, obs_dim)
        self._outcomes = torch.zeros(window, num_envs)
        self._batches = torch.zeros((), dtype=torch.int64)  # number of batches so far

    def add(self, episodes: Episodes) -> None:
        """Add a batch. If there are W already, it replaces the oldest one.

        Raises:
            ValueError: its context is not (B, D), or its outcome not (B,).
        """
        for name, x, own in (
            ("context", episodes.context, self._contexts),
            ("outcome", episodes.outcome, self._outcomes),
        ):
            if x.shape != own.shape[1:]:
                raise ValueError(f"{name} of the episodes must be {tuple(own.shape[1:])}, got {tuple(x.shape)}")
        slot = int(self._batches) % len(self._contexts)
        self._contexts[slot], self._outcomes[slot] = episodes.context, episodes.outcome
        self._batches += 1

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Contexts (size, D) and outcomes (size,), drawn uniformly with replacement.

        Raises:
            ValueError: size below 1, or nothing was added yet.
        """
        _check_at_least_one(size=size)
        if not int(self._batches):
            raise ValueError(f"this window is empty, so there is no sample of size {size}; add a batch first")
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
    _check_at_least_one(episodes=episodes)
    batches = [rollout(envs, policy, rng, greedy) for _ in range(-(-episodes // envs.num_envs))]
    outcome = torch.cat([b.outcome for b in batches])[:episodes].numpy() > 0.5
    return Evaluation(outcome, {name: x[:episodes] for name, x in joined([b.info for b in batches]).items()})


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

    Raises:
        ValueError: contexts below 1.
    """
    _check_at_least_one(contexts=contexts)
    batches = [rollout(envs, policy, rng, group_size=envs.num_envs) for _ in range(contexts)]
    return torch.stack([b.context[0] for b in batches]), torch.stack([b.outcome.mean() for b in batches])
