"""Policies and critics for vectors of observations: small tanh networks, as in CleanRL.

A policy exists twice over the same weights: as a torch module, which computes log-probabilities for training, and as
`Policy.behaviour`, a plain numpy forward pass that acts during rollouts (a step of 64 environments costs half of
what it costs through torch, most of which is call overhead).

Sampling is written as a deterministic function of the network's output and of noise drawn beforehand (Gumbel noise for
discrete actions, normal noise for continuous ones); no noise gives the greedy action.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .checkpoints import write_tensors
from .networks import FloatArray, Network
from .spaces import action_size, observation_scale, unsupported

Behaviour = Callable[[FloatArray, FloatArray | None], tuple[npt.NDArray[Any], FloatArray]]
"""(observations (B, D), noise (B, A) or None for greedy) -> actions (B,) int64 or (B, A) float32, and the network's
outputs (B, A): logits or means"""


class Policy(Network):
    """What `CategoricalPolicy` and `GaussianPolicy` share; see `make_policy`."""

    num_outputs: int
    env_id = ""
    """The task that it was made for, which its file names."""

    def file_metadata(self) -> dict[str, str]:
        """Kind of policy, task and format."""
        # One entry: safetensors writes several in random order, and equal policies are to be equal files.
        about = {"policy": type(self).__name__, "env_id": self.env_id, "format": 1}
        return {"sppo_control": json.dumps(about)}

    def log_prob(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of given actions, and the policy's entropy at the same observations.

        Args:
            obs: (..., D) float32.
            actions: (...,) int64 or (..., A) float32.

        Returns:
            logp (...,) and entropy (...,), in nats.
        """
        return self.log_prob_given(self(obs), actions)

    def log_prob_given(self, output: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """As `log_prob`, from the network's outputs (..., A) (logits or means) in place of observations."""
        raise TypeError("use CategoricalPolicy or GaussianPolicy")

    def noise(self, rng: np.random.Generator, *shape: int) -> FloatArray:
        """Noise for `behaviour`, (*shape, A) float32."""
        raise TypeError("use CategoricalPolicy or GaussianPolicy")

    def behaviour(self) -> Behaviour:
        """The policy as a numpy function, with the weights of now."""
        raise TypeError("use CategoricalPolicy or GaussianPolicy")


class CategoricalPolicy(Policy):
    """Discrete actions: a softmax over the network's outputs."""

    def __init__(
        self, obs_dim: int, num_actions: int, hidden: Sequence[int] = (64, 64), obs_scale: Sequence[float] | None = None
    ) -> None:
        super().__init__(obs_dim, num_actions, hidden, obs_scale, last_gain=0.01)
        self.num_outputs = num_actions

    def log_prob_given(self, output: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy.log_prob_given`; actions (...,) int64."""
        log_p = torch.log_softmax(output, dim=-1)  # (..., A)
        logp = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return logp, -(log_p.exp() * log_p).sum(-1)

    def noise(self, rng: np.random.Generator, *shape: int) -> FloatArray:
        """Gumbel noise: argmax(logits + noise) is a sample of the softmax."""
        exponential = rng.standard_exponential((*shape, self.num_outputs), dtype=np.float32)
        return -np.log(exponential + np.float32(1e-30))  # a float32 draw may be exactly 0

    def behaviour(self) -> Behaviour:
        """See `Policy.behaviour`; actions (B,) int64."""
        forward = self.numpy_forward()

        def act(obs: FloatArray, noise: FloatArray | None) -> tuple[npt.NDArray[np.int64], FloatArray]:
            logits = forward(obs)
            return (logits if noise is None else logits + noise).argmax(axis=1), logits

        return act


class GaussianPolicy(Policy):
    """Continuous actions: independent normals, the mean from the network, the log standard deviation a parameter.

    Actions are stored as sampled; environments receive them clipped to their bounds (as CleanRL does).
    """

    def __init__(
        self, obs_dim: int, action_dim: int, hidden: Sequence[int] = (64, 64), obs_scale: Sequence[float] | None = None
    ) -> None:
        super().__init__(obs_dim, action_dim, hidden, obs_scale, last_gain=0.01)
        self.num_outputs = action_dim
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def log_prob_given(self, output: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy.log_prob_given`; actions (..., A) float32."""
        z = (actions - output) * (-self.log_std).exp()
        constant = self.log_std.sum() + 0.5 * math.log(2 * math.pi) * self.num_outputs
        logp = -0.5 * z.square().sum(-1) - constant
        return logp, (constant + 0.5 * self.num_outputs).expand_as(logp)

    def noise(self, rng: np.random.Generator, *shape: int) -> FloatArray:
        """Standard normal noise: mean + std * noise is a sample."""
        return rng.standard_normal((*shape, self.num_outputs), dtype=np.float32)

    def behaviour(self) -> Behaviour:
        """See `Policy.behaviour`; actions (B, A) float32, not clipped."""
        forward, log_std = self.numpy_forward(), self.log_std.detach().numpy()

        def act(obs: FloatArray, noise: FloatArray | None) -> tuple[FloatArray, FloatArray]:
            mean = forward(obs)
            return (mean if noise is None else mean + np.exp(log_std) * noise), mean

        return act


def make_policy(envs: gym.vector.VectorEnv, hidden: Sequence[int] = (64, 64)) -> Policy:
    """A policy with random weights for the spaces of `envs`, drawn from torch's global generator.

    Args:
        envs: observations Box (D,); actions Discrete or a Box of floats, see `sppo_control.spaces`. An attribute
            `obs_scale` is used where it has one.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: another kind of space.
    """
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    problem = unsupported(obs_space, action_space)
    if problem is not None:
        raise ValueError(problem)
    assert isinstance(obs_space, gym.spaces.Box)
    scale = getattr(envs.unwrapped, "obs_scale", None)
    args = (
        obs_space.shape[0],
        action_size(action_space),
        hidden,
        observation_scale(obs_space) if scale is None else scale,
    )
    return CategoricalPolicy(*args) if isinstance(action_space, gym.spaces.Discrete) else GaussianPolicy(*args)


def save_policy(policy: Policy, path: Path, env_id: str) -> None:
    """Write `policy.named_tensors()` as safetensors, with the kind of policy and the task's id as metadata."""
    policy.env_id = env_id
    write_tensors(path, policy)


def load_policy(path: Path, envs: gym.vector.VectorEnv) -> Policy:
    """Read a policy written by `save_policy`; hidden widths and `env_id` are taken from the file.

    Raises:
        ValueError: not a policy file, or one for other spaces than those of `envs`.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no starting policy at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("sppo_control", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    if about.get("format") != 1:
        raise ValueError(f"{path} holds no policy of this package (metadata {about}); scripts/pretrain.py writes them")
    depth = sum(name.endswith(".weight") for name in weights)
    policy = make_policy(envs, hidden=[weights[f"layers.{i}.weight"].shape[0] for i in range(depth - 1)])
    try:
        if about["policy"] != type(policy).__name__:
            raise ValueError(f"a {about['policy']} does not fit, a {type(policy).__name__} is needed")
        policy.load_tensors(weights)
    except ValueError as error:
        raise ValueError(f"{path}, made for {about['env_id']}, cannot act in this environment: {error}") from error
    policy.env_id = about["env_id"]
    return policy
