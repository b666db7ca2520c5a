"""Policies and critics for vectors of observations: small tanh networks, as in CleanRL.

A policy has two forms with the same weights. The torch module computes log-probabilities for training.
`Policy.behaviour` is a plain numpy forward pass that acts during rollouts. A step of 64 environments costs half as much
with it as with torch, where most of the time is call overhead.

A sampled action is a deterministic function of the network's output and of noise that is drawn before. Discrete actions
use Gumbel noise, continuous ones normal noise. Without noise the action is the greedy one.
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
from safetensors import safe_open
from torch import Tensor, nn

from . import compiled
from .checkpoints import check_entries, check_own_digest, check_values, short, write_tensors, writing
from .errors import FileError
from .networks import FloatArray, Network
from .spaces import action_size, observation_scale, unsupported

Behaviour = Callable[[FloatArray, FloatArray | None], tuple[npt.NDArray[Any], FloatArray]]
"""(observations (B, D), noise (B, A)) -> actions (B,) int64 or (B, A) float32, and the network's outputs (B, A).

The outputs are logits or means. Noise None gives greedy actions."""


class Policy(Network):
    """What `CategoricalPolicy` and `GaussianPolicy` have in common; see `make_policy`."""

    num_outputs: int
    env_id = ""
    """The task that the policy was made for; its file names it."""

    def file_metadata(self) -> dict[str, str]:
        """Kind of policy, task and format."""
        # One entry only: safetensors writes several in random order, and equal policies must give equal files.
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
        """The same as `log_prob`, but from the network's outputs (..., A), logits or means, in place of observations."""
        raise TypeError("use CategoricalPolicy or GaussianPolicy")

    def compiled_std(self) -> FloatArray | None:
        """Standard deviations (A,) for compiled rollouts, of size 0 for discrete actions; None if there are none."""
        return None

    def noise(self, rng: np.random.Generator, *shape: int) -> FloatArray:
        """Noise for `behaviour`, (*shape, A) float32."""
        raise TypeError("use CategoricalPolicy or GaussianPolicy")

    def behaviour(self) -> Behaviour:
        """The policy as a numpy function, with its present weights."""
        raise TypeError("use CategoricalPolicy or GaussianPolicy")


class CategoricalPolicy(Policy):
    """Discrete actions: a softmax over the network's outputs."""

    def __init__(
        self, obs_dim: int, num_actions: int, hidden: Sequence[int] = (64, 64), obs_scale: Sequence[float] | None = None
    ) -> None:
        super().__init__(obs_dim, num_actions, hidden, obs_scale, last_gain=0.01)
        self.num_outputs = num_actions

    def log_prob(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy.log_prob`; actions (...,) int64."""
        if compiled.suits(obs, self.sizes):
            return compiled.categorical_log_prob(obs, actions, self.obs_scale, self.flat, self.sizes)
        return super().log_prob(obs, actions)

    def log_prob_given(self, output: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy.log_prob_given`; actions (...,) int64."""
        log_p = torch.log_softmax(output, dim=-1)  # (..., A)
        logp = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return logp, -(log_p.exp() * log_p).sum(-1)

    def compiled_std(self) -> FloatArray | None:
        """See `Policy.compiled_std`."""
        return np.empty(0, np.float32)

    def noise(self, rng: np.random.Generator, *shape: int) -> FloatArray:
        """Gumbel noise: argmax(logits + noise) is a sample of the softmax."""
        exponential = rng.standard_exponential((*shape, self.num_outputs), dtype=np.float32)
        return -np.log(exponential + np.float32(1e-30))  # a float32 sample may be exactly 0

    def behaviour(self) -> Behaviour:
        """See `Policy.behaviour`; actions (B,) int64."""
        forward = self.numpy_forward()

        def act(obs: FloatArray, noise: FloatArray | None) -> tuple[npt.NDArray[np.int64], FloatArray]:
            logits = forward(obs)
            return (logits if noise is None else logits + noise).argmax(axis=1), logits

        return act


class GaussianPolicy(Policy):
    """Continuous actions: independent normal distributions.

    The mean is the network's output. The log standard deviation is a parameter. Actions are stored as they were sampled,
    but clipped to the bounds for the environment, as in CleanRL.
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

    def compiled_std(self) -> FloatArray | None:
        """See `Policy.compiled_std`."""
        return np.exp(self.log_std.detach().numpy())

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
    """A policy for the spaces of `envs`, with random weights from torch's global generator.

    Args:
        envs: observations Box (D,); actions Discrete or a Box of floats, see `sppo_control.spaces`. Its attribute
            `obs_scale` is used, if it has one.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: a space of another kind.
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
    """Write `policy.named_tensors()` as safetensors, with the kind of policy and the task's id as metadata.

    Raises:
        UserError: it cannot be written.
    """
    policy.env_id = env_id
    with writing(Path(path)):
        write_tensors(path, policy)


def read_policy(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a policy file says of itself (policy: the class, env_id: the task), and its tensors. Executes no code.

    Raises:
        FileError: it cannot be read, is no policy of this package, or has an entry that none has. Or it is part of a
            checkpoint and has changed since that was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("sppo_control", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # SafetensorError, and what torch and json raise at odd contents
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileError(f"{path} is not a readable safetensors file ({short(reason)})") from error
    if not isinstance(about, dict) or type(about.get("format")) is not int or about["format"] != 1:
        raise FileError(
            f"{path} contains no policy of this package (metadata {short(about)}); scripts/pretrain.py writes such files"
        )
    texts: dict[str, tuple[Any, str]] = {key: (lambda x: isinstance(x, str), "a text") for key in ("policy", "env_id")}
    check_entries(path, about, texts)
    for name, x in weights.items():
        try:
            check_values(name, x, torch.float32)
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error
    check_own_digest(path)
    return about, weights


def hidden_widths(path: Path) -> list[int] | None:
    """Widths of the hidden layers of the policy in a file, from its shapes alone; None if it contains no policy."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
        layers = sum(name.endswith(".weight") for name in shapes)
        widths = [shapes[f"layers.{i}.weight"][0] for i in range(layers)]
    except Exception:  # SafetensorError, OSError, and what odd shapes raise
        return None
    return widths[:-1] if widths and all(widths) else None


def load_policy(path: Path, envs: gym.vector.VectorEnv) -> Policy:
    """Read a policy that `save_policy` wrote; the file says its hidden widths and its `env_id`.

    Raises:
        FileError: a ValueError: the file is not a policy, is damaged, or does not fit the spaces of `envs`.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no starting policy at {path}")
    about, weights = read_policy(path)
    depth, hidden = sum(name.endswith(".weight") for name in weights), []
    for i in range(depth):
        weight = weights.get(f"layers.{i}.weight")
        if weight is None or weight.dim() != 2:
            found = "is missing" if weight is None else f"has shape {tuple(weight.shape)}, not two numbers"
            raise FileError(f"{path}, made for {short(about['env_id'])}: layers.{i}.weight {found}")
        hidden.append(weight.shape[0])
    if not all(hidden):
        raise FileError(f"{path}: layers.{hidden.index(0)}.weight has no rows")
    policy = make_policy(envs, hidden=hidden[:-1])
    try:
        if about["policy"] != type(policy).__name__:
            raise ValueError(
                f"a {short(about['policy']).strip(chr(39))} does not fit, a {type(policy).__name__} is needed"
            )
        policy.load_tensors(weights)
    except ValueError as error:
        made_for = short(about["env_id"]).strip("'")
        raise FileError(f"{path}, made for {made_for}, cannot act in this environment: {error}") from error
    policy.env_id = about["env_id"]
    return policy
