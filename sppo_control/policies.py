"""Policies and critics for vectors of observations: small tanh networks, as in CleanRL.

A policy exists twice over the same weights: as a torch module, which computes log-probabilities for training, and as
`Policy.behaviour`, a plain numpy forward pass that acts during rollouts (a step of 64 environments costs half of
what it costs through torch, most of which is call overhead).

Sampling is written as a deterministic function of the network's output and of noise drawn beforehand (Gumbel noise for
discrete actions, normal noise for continuous ones); no noise gives the greedy action.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FloatArray = npt.NDArray[np.float32]
Behaviour = Callable[[FloatArray, FloatArray | None], tuple[npt.NDArray[Any], FloatArray]]
"""(observations (B, D), noise (B, A) or None for greedy) -> actions (B,) int64 or (B, A) float32, and the network's
outputs (B, A): logits or means"""


class _TanhMLP(torch.autograd.Function):
    """A whole tanh network as one autograd node over one flat parameter vector.

    Half of the time of a small network goes into elementwise passes over activations and into the bookkeeping of six
    parameters and a dozen nodes. tanh(z) = 2 s - 1 with s = sigmoid(2z), which torch computes twice as fast; the factors
    2 and the -1 are folded into the matrix products, W tanh(z) + b = (2 W) s + (b - W 1), so that a layer is one product
    and one sigmoid, in place. `Network.to_sequential` is the plain version, and the tests hold the two equal.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """x (N, sizes[0]), flat (parameters,) -> (N, sizes[-1])."""
        layers = _split(flat, sizes)
        inputs = []  # of every layer: x, then the s of each hidden layer
        for i, (weight, bias) in enumerate(layers):
            inputs.append(x)
            if i > 0:
                weight, bias = 2 * weight, bias - weight.sum(dim=1)
            last = i == len(layers) - 1
            gain = 1 if last else 2
            x = torch.addmm(bias, x, weight.t(), beta=gain, alpha=gain)
            if not last:
                x.sigmoid_()
        ctx.save_for_backward(flat, *inputs)
        ctx.sizes = sizes
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Gradients of x (None if not asked for) and of flat."""
        flat, *inputs = ctx.saved_tensors
        layers = _split(flat, ctx.sizes)
        grad_flat = torch.empty_like(flat)
        grad_layers = _split(grad_flat, ctx.sizes)
        (grad,) = grads  # of the layer's output, (N, out)
        for i in reversed(range(len(layers))):
            weight, s = layers[i][0], inputs[i]
            grad_weight, grad_bias = grad_layers[i]
            torch.sum(grad, dim=0, out=grad_bias)
            if s.shape[1] < grad.shape[1]:  # the long dimension last: MKL takes a fifth of the time at 4 x 64
                grad_weight.copy_((s.t() @ grad).t())
            else:
                torch.mm(grad.t(), s, out=grad_weight)
            if i > 0:  # the layer's true input is 2 s - 1, and d tanh / dz = 4 s (1 - s)
                grad_weight.mul_(2).sub_(grad_bias[:, None])
                grad = torch.ops.aten.sigmoid_backward(grad @ (4 * weight), s)
        return (grad @ layers[0][0] if ctx.needs_input_grad[0] else None), grad_flat, None


def _split(flat: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Views of the flat vector: weight (out, in) and bias (out,) of each layer."""
    layers, start = [], 0
    for fan_in, fan_out in itertools.pairwise(sizes):
        middle, end = start + fan_in * fan_out, start + (fan_in + 1) * fan_out
        layers.append((flat[start:middle].view(fan_out, fan_in), flat[middle:end]))
        start = end
    return layers


class Network(nn.Module):
    """A tanh network, observations (..., D) -> (..., outputs); observations are first multiplied by the fixed
    `obs_scale` (D,). `to_sequential` gives the same function in plain torch layers.

    All weights live in one vector, `flat`, so that zeroing, clipping and stepping each handle one tensor; `layers`
    gives views of it. They start orthogonal (gain sqrt 2, the last layer `last_gain`) with zero biases, as CleanRL's.
    """

    obs_scale: Tensor

    def __init__(
        self, obs_dim: int, outputs: int, hidden: Sequence[int], obs_scale: Sequence[float] | None, last_gain: float
    ) -> None:
        super().__init__()
        scale = torch.ones(obs_dim) if obs_scale is None else torch.tensor(list(obs_scale), dtype=torch.float32)
        if scale.shape != (obs_dim,):
            raise ValueError(f"obs_scale must have {obs_dim} numbers, one an observation, got {len(scale)}")
        self.register_buffer("obs_scale", scale)
        self.sizes = (obs_dim, *hidden, outputs)
        self.flat = nn.Parameter(
            torch.zeros(sum((i + 1) * o for i, o in zip(self.sizes, self.sizes[1:], strict=False)))
        )
        for i, (weight, _) in enumerate(self.layers()):
            nn.init.orthogonal_(weight, last_gain if i == len(hidden) else math.sqrt(2))

    def forward(self, obs: Tensor) -> Tensor:
        """(..., D) float32 -> (..., outputs) float32."""
        rows = (obs * self.obs_scale).flatten(0, -2)  # (N, D)
        return _TanhMLP.apply(rows, self.flat, self.sizes).unflatten(0, obs.shape[:-1])

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (out, in) and bias (out,) of each layer: views of `flat`, without gradient."""
        return _split(self.flat.detach(), self.sizes)

    def named_weights(self) -> dict[str, Tensor]:
        """All that a file must hold, under conventional names: layers.<i>.weight (out, in), layers.<i>.bias (out,),
        obs_scale (D,), and log_std (A,) of a Gaussian policy. Views without gradient: writing to them loads weights."""
        weights = {"obs_scale": self.obs_scale}
        for i, (weight, bias) in enumerate(self.layers()):
            weights |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        return weights | {name: p.detach() for name, p in self.named_parameters() if name != "flat"}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights of `named_weights`' names and shapes into this network.

        Raises:
            ValueError: another set of names or shapes.
        """
        targets = self.named_weights()
        expected, found = ({k: tuple(w.shape) for k, w in sorted(x.items())} for x in (targets, weights))
        if found != expected:
            raise ValueError(f"tensors {found} do not fit this {type(self).__name__}, which has {expected}")
        for name, target in targets.items():
            target.copy_(weights[name])

    def to_sequential(self) -> nn.Sequential:
        """A copy in plain torch, nn.Linear and nn.Tanh, with the observation scale folded into the first layer."""
        modules: list[nn.Module] = []
        for i, (weight, bias) in enumerate(self.layers()):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                linear.weight.copy_(weight * self.obs_scale if i == 0 else weight)
                linear.bias.copy_(bias)
            modules += [linear, nn.Tanh()]
        return nn.Sequential(*modules[:-1])

    def numpy_forward(self) -> Callable[[FloatArray], FloatArray]:
        """The network as a numpy function (N, D) -> (N, outputs), with the weights of now; same algebra as `forward`."""
        folded = []
        for i, (weight, bias) in enumerate(self.layers()):
            last = i == len(self.sizes) - 2
            if i == 0:
                weight = weight * self.obs_scale
            else:
                weight, bias = 2 * weight, bias - weight.sum(dim=1)
            gain = 1 if last else 2
            folded.append(((gain * weight).t().contiguous().numpy(), (gain * bias).numpy()))
        *hidden, (last_weight, last_bias) = folded

        def forward(obs: FloatArray) -> FloatArray:
            x = obs
            for weight, bias in hidden:
                x = x @ weight
                x += bias
                torch.from_numpy(x).sigmoid_()  # faster than numpy's exp or tanh
            return x @ last_weight + last_bias

        return forward


class Critic(Network):
    """A value network: observations (..., D) -> (...,), a logit or a value.

    SPPO gives it the initial state only, (B, D) -> (B,); token-level PPO every step, (B, T, D) -> (B, T).
    """

    def __init__(
        self, obs_dim: int, hidden: Sequence[int] = (64, 64), obs_scale: Sequence[float] | None = None
    ) -> None:
        super().__init__(obs_dim, 1, hidden, obs_scale, last_gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """(..., D) float32 -> (...,) float32."""
        return super().forward(obs).squeeze(-1)


class Policy(Network):
    """What `CategoricalPolicy` and `GaussianPolicy` share; see `make_policy`."""

    num_outputs: int

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
        envs: observations Box (D,); actions Discrete or Box (A,). An attribute `obs_scale` is used where it has one.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: another kind of space.
    """
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        raise ValueError(
            f"observations must be a Box of shape (D,), got {obs_space}; gymnasium.wrappers.FlattenObservation makes one"
        )
    args = (obs_space.shape[0], *_action_size(action_space), hidden, getattr(envs.unwrapped, "obs_scale", None))
    return CategoricalPolicy(*args) if isinstance(action_space, gym.spaces.Discrete) else GaussianPolicy(*args)


def _action_size(space: gym.Space[Any]) -> tuple[int]:
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return (int(space.n),)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return (space.shape[0],)
    raise ValueError(f"actions must be Discrete (counted from 0) or a float Box of shape (A,), got {space}")


def save_policy(policy: Policy, path: Path, env_id: str) -> None:
    """Write `policy.named_weights()` as safetensors, with the kind of policy and the task's id as metadata."""
    # One metadata entry: safetensors writes several in random order, and equal policies are to be equal files.
    about = {"policy": type(policy).__name__, "env_id": env_id, "format": 1}
    weights = {name: weight.clone() for name, weight in policy.named_weights().items()}  # views may not be saved
    save_file(weights, path, metadata={"sppo_control": json.dumps(about)})


def load_policy(path: Path, envs: gym.vector.VectorEnv) -> Policy:
    """Read a policy written by `save_policy`; hidden widths are taken from the file.

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
        policy.load_weights(weights)
    except ValueError as error:
        raise ValueError(f"{path}, made for {about['env_id']}, cannot act in this environment: {error}") from error
    return policy


def shipped_policy(env_id: str) -> Path:
    """Where the package keeps the starting policy of a task; the file may not exist."""
    return Path(__file__).parent / "pretrained" / f"{env_id.split('/')[-1]}.safetensors"


def starting_policy(
    envs: gym.vector.VectorEnv, env_id: str, start: str | None, from_scratch: bool, hidden: Sequence[int]
) -> Policy:
    """The policy that training begins with: `start` if given, else the one shipped for the task, else random weights.

    Args:
        envs: whose spaces it must fit.
        env_id: the task.
        start: a file written by `save_policy`, or a folder that holds one as policy.safetensors (a checkpoint).
        from_scratch: random weights even where a policy is shipped.
        hidden: hidden widths of random weights.

    Raises:
        ValueError, FileNotFoundError: see `load_policy` and `make_policy`.
    """
    path = shipped_policy(env_id) if start is None else Path(start)
    if path.is_dir():
        path = path / "policy.safetensors"
    if from_scratch or (start is None and not path.is_file()):
        return make_policy(envs, hidden)
    return load_policy(path, envs)
