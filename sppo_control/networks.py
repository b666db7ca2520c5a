"""Small tanh networks, as in CleanRL.

Each has one flat parameter vector. A forward pass in torch serves training, one in numpy serves acting.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import compiled
from .checkpoints import check_like

FloatArray = npt.NDArray[np.float32]


class Network(nn.Module):
    """A tanh network, observations (..., D) -> (..., outputs).

    Observations are first multiplied by the fixed `obs_scale` (D,). `to_sequential` gives the same function in plain
    torch layers. All weights are in one vector, `flat`, so that zeroing, clipping and the optimiser each handle one
    tensor. `layers` gives views of it. As in CleanRL, weights are orthogonal at first (gain sqrt 2, in the last layer
    `last_gain`), and biases are 0.
    """

    obs_scale: Tensor

    def __init__(
        self, obs_dim: int, outputs: int, hidden: Sequence[int], obs_scale: Sequence[float] | None, last_gain: float
    ) -> None:
        super().__init__()
        scale = torch.ones(obs_dim) if obs_scale is None else torch.tensor(list(obs_scale), dtype=torch.float32)
        if scale.shape != (obs_dim,):
            raise ValueError(f"obs_scale must have {obs_dim} numbers, one per observation, got {len(scale)}")
        self.register_buffer("obs_scale", scale)
        self.sizes = (obs_dim, *hidden, outputs)
        self.flat = nn.Parameter(
            torch.zeros(sum((i + 1) * o for i, o in zip(self.sizes, self.sizes[1:], strict=False)))
        )
        for i, (weight, _) in enumerate(self.layers()):
            nn.init.orthogonal_(weight, last_gain if i == len(hidden) else math.sqrt(2))

    def forward(self, obs: Tensor) -> Tensor:
        """(..., D) float32 -> (..., outputs) float32."""
        if compiled.suits(obs, self.sizes):
            return compiled.network(obs, self.obs_scale, self.flat, self.sizes)
        rows = (obs * self.obs_scale).flatten(0, -2)  # (N, D)
        return _TanhMLP.apply(rows, self.flat, self.sizes).unflatten(0, obs.shape[:-1])

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (out, in) and bias (out,) of each layer: views of `flat`, without gradient."""
        return _split(self.flat.detach(), self.sizes)

    def named_tensors(self) -> dict[str, Tensor]:
        """All that a file must contain, under conventional names.

        These are layers.<i>.weight (out, in), layers.<i>.bias (out,), obs_scale (D,), and log_std (A,) of a Gaussian
        policy. They are views without gradient, so writing to them loads weights.
        """
        weights = {"obs_scale": self.obs_scale}
        for i, (weight, bias) in enumerate(self.layers()):
            weights |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        return weights | {name: p.detach() for name, p in self.named_parameters() if name != "flat"}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into this network; they must have the names and shapes that `named_tensors` gives.

        Raises:
            ValueError: the names, shapes or dtypes are different, or a value is not finite.
        """
        targets = self.named_tensors()
        check_like(tensors, targets, f"this {type(self).__name__}")
        for name, target in targets.items():
            target.copy_(tensors[name])

    def file_metadata(self) -> dict[str, str]:
        """Metadata for a file of these tensors: none."""
        return {}

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
        """The network as a numpy function (N, D) -> (N, outputs), with its present weights; same algebra as `forward`."""
        if compiled.suits(self.obs_scale, self.sizes):
            return compiled.numpy_forward(self.obs_scale, self.flat, self.sizes)
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

    SPPO gives it only the initial state, (B, D) -> (B,). Token-level PPO gives it every step, (B, T, D) -> (B, T).
    """

    def __init__(
        self, obs_dim: int, hidden: Sequence[int] = (64, 64), obs_scale: Sequence[float] | None = None
    ) -> None:
        super().__init__(obs_dim, 1, hidden, obs_scale, last_gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """(..., D) float32 -> (...,) float32."""
        if compiled.suits(obs, self.sizes):
            return compiled.value(obs, self.obs_scale, self.flat, self.sizes)
        return super().forward(obs).squeeze(-1)


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to a common norm of at most `max_norm`, bit for bit as `torch.nn.utils.clip_grad_norm_`.

    torch's takes longer for one small tensor, which makes 5 % of a training run (docs/speed.md).

    Args:
        parameters: those without a gradient do not count.
        max_norm: longer gradients get this norm.

    Returns:
        The norm before, a scalar.

    Raises:
        ValueError: no parameter has a gradient.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        raise ValueError("parameters have no gradient; call loss.backward() first")
    norms = [torch.linalg.vector_norm(grad) for grad in grads]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)
    return norm


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, whose very code runs here: equal bit for bit, with the same checkpoints.

    torch marks the methods of an optimizer for torch.compile. The first call of a marked method imports torch._dynamo, and
    that takes more than a second (docs/speed.md). Here the marks are taken off. So do not step it inside of a function that
    torch.compile compiles; torch's own class is for that.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As that of `torch.optim.Adam`."""
        return _adam_step(self, closure)


_adam_step = inspect.unwrap(torch.optim.Adam.step)


# ------------------------------------------------------------------------------------------ the hand-written gradient
class _TanhMLP(torch.autograd.Function):
    """A whole tanh network as one autograd node over one flat parameter vector.

    A small network spends half of its time on elementwise passes over activations, and on the bookkeeping of six
    parameters and a dozen nodes. This version needs less of both.

    It uses tanh(z) = 2 s - 1 with s = sigmoid(2z), because torch computes the sigmoid twice as fast. The factors 2 and
    the -1 become part of the matrix products: W tanh(z) + b = (2 W) s + (b - W 1). So a layer is one product and one
    sigmoid, in place. `Network.to_sequential` is the plain version, and tests check that the two are equal.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """x (N, sizes[0]), flat (parameters,) -> (N, sizes[-1])."""
        layers = _split(flat, sizes)
        inputs = []  # the input of each layer: x, then the s of each hidden layer
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
        """Gradients of x (None if it is not needed) and of flat."""
        flat, *inputs = ctx.saved_tensors
        layers = _split(flat, ctx.sizes)
        grad_flat = torch.empty_like(flat)
        grad_layers = _split(grad_flat, ctx.sizes)
        (grad,) = grads  # gradient of the layer's output, (N, out)
        for i in reversed(range(len(layers))):
            weight, s = layers[i][0], inputs[i]
            grad_weight, grad_bias = grad_layers[i]
            torch.sum(grad, dim=0, out=grad_bias)
            if s.shape[1] < grad.shape[1]:  # With the long dimension last, MKL takes a fifth of the time at 4 x 64.
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
