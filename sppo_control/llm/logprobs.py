"""Log-probabilities of given tokens from hidden states and the output head, without the (B, T, V) logits.

| symbol | shape     | meaning                                                              |
| ------ | --------- | -------------------------------------------------------------------- |
| hidden | (B, T, D) | the backbone's last hidden states; row t predicts tokens[:, t]       |
| weight | (V, D)    | the output head, `model.get_output_embeddings().weight`              |
| z      | (n, k)    | a tile of logits, n tokens by k words: (hidden weight^T + bias) / temperature |
| lse    | (B T,)    | log sum_v exp z_v, kept from the forward pass                        |

One tile of logits exists at a time. The forward pass goes over a token's tiles with a running maximum and keeps one
number, lse. The backward pass computes each tile again and turns it, in place, into the gradient with respect to z,

    d logp / d z = onehot(token) - p        d entropy / d z = -p (log p + entropy)        p = exp(z - lse)

That is one matrix product more than the naive way (four instead of three), but without its passes over (B T, V) memory.
Gradients are always summed over tiles in float32, because rounding each tile's part to bfloat16 would bias them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sppo_control import extras

Backend = Literal["auto", "torch", "trl"]
"""Who computes; see `token_log_probs`."""
_BACKENDS = get_args(Backend)  # ahead of the function, because torch.compile of torch 2.6 cannot trace get_args

TILES = {"cpu": (512, 4096)}
"""Tokens and words of a tile. On the CPU they are 8 MiB of float32, which fits into a cache."""
TILE = (4096, 8192)
"""The same on other devices, where starting a computation costs so much that tiles must be large."""


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns: `logp` (B, T), and `entropy` (B, T) or None; 0 where the mask is False."""

    logp: Tensor
    entropy: Tensor | None


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    vocabulary_chunk: int | None = None,
    entropy: bool = False,
    mask: Tensor | None = None,
    backend: Backend = "auto",
) -> TokenLogProbs:
    """log softmax((hidden weight^T + bias) / temperature) at `tokens`, with gradients of hidden, weight and bias.

    Under autocast the products have autocast's dtype, as with `torch.nn.Linear`. Softmax and logarithm are always in
    float32 (float64 for float64 inputs). Under `torch.compile` the computation stays one operator, so the compiler cannot
    join the chunks again. Second derivatives are not available.

    Args:
        hidden: (B, T, D), floating.
        weight: (V, D), in hidden's dtype unless autocast is on.
        tokens: (B, T), int64, in [0, V) wherever the mask is True.
        bias: (V,), or None.
        temperature: divides the logits; above 0. Use the sampler's.
        chunk_size: tokens per tile; None is 512 on the CPU and 4096 elsewhere.
        vocabulary_chunk: words per tile; None is 4096 on the CPU and 8192 elsewhere.
        entropy: whether to compute the entropy of each token's distribution too; it has gradients.
        mask: (B, T), bool. Rows where it is False are not computed. There logp and entropy are 0, without gradient,
            whatever hidden and tokens contain. Counting these rows synchronises host and device.
        backend: "torch" is the plain implementation in this file, for every device and dtype. "trl" is TRL's
            `trl.kernels.ChunkedLogProbFunction`: Triton on CUDA, float32 sums (so not for float64), another chunk_size.
            "auto" is "trl" for CUDA tensors if TRL and Triton are installed, and "torch" otherwise and under torch.compile.

    Returns:
        TokenLogProbs, float32, or float64 for float64 inputs.

    Raises:
        ValueError: wrong shapes or dtypes; a token outside [0, V) (on the CPU; elsewhere the device stops);
            temperature or a chunk not above 0; an unknown backend; float64 with "trl".
        ImportError: "trl" without TRL, or with an older TRL.
    """
    _check(hidden, weight, tokens, bias, mask)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; for greedy decoding use 1.0 here")
    default = TILES.get(hidden.device.type, TILE)
    chunk_size = default[0] if chunk_size is None else chunk_size
    vocabulary_chunk = default[1] if vocabulary_chunk is None else vocabulary_chunk
    for name, size in (("chunk_size", chunk_size), ("vocabulary_chunk", vocabulary_chunk)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if backend not in _BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; allowed: {', '.join(map(repr, _BACKENDS))}")

    if backend == "trl" or (backend == "auto" and _has_fused_kernel(hidden)):
        return _trl(hidden, weight, tokens, bias, temperature, vocabulary_chunk, entropy, mask)
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # float64 is exempt from autocast
        dtype = torch.get_autocast_dtype(device)
    logp, h, _ = _forward(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        tokens.reshape(-1),
        None if mask is None else mask.reshape(-1),
        temperature,
        chunk_size,
        vocabulary_chunk,
        entropy,
        dtype,
    )
    return TokenLogProbs(logp.view(tokens.shape), h.view(tokens.shape) if entropy else None)


# ------------------------------------------------------------------------------------------------------ plain torch
# A custom operator, not an autograd.Function: torch.compile takes it as it is. It would unroll the loops over tiles of a
# Function into a graph for each number of tokens.
@torch.library.custom_op("sppo_control::token_log_probs", mutates_args=())
def _forward(
    hidden: Tensor,  # (N, D), N = B T
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,  # (N,)
    mask: Tensor | None,  # (N,)
    temperature: float,
    chunk_size: int,
    vocabulary_chunk: int,
    entropy: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """logp (N,), entropy (N,) or (0,), lse (N,)"""
    logp = hidden.new_zeros(hidden.shape[0], dtype=_sum_dtype(dtype))
    h, lse = torch.zeros_like(logp if entropy else logp[:0]), torch.zeros_like(logp)
    tiles = _Tiles(weight, bias, temperature, chunk_size, vocabulary_chunk, dtype)
    for rows in _rows(hidden, mask).split(chunk_size):
        x, token = hidden[rows].to(dtype), tokens[rows]
        if x.device.type == "cpu" and not ((token >= 0) & (token < len(weight))).all():
            raise ValueError(
                f"tokens must lie in [0, {len(weight)}), the rows of weight, got {int(token.min())} to "
                f"{int(token.max())}; set mask to False where there is no token"
            )
        at_token, total, plogp = lse.new_zeros(3, len(x)).unbind()
        largest = torch.full_like(total, torch.finfo(total.dtype).min)  # not -inf, which times 0 is NaN
        for start in range(0, len(weight), vocabulary_chunk):
            z, _ = tiles(x, start)
            inside, index = _inside(token, start, z)
            at_token = torch.where(inside, z.gather(1, index)[:, 0], at_token)
            before, largest = largest, torch.maximum(largest, z.amax(1))
            e = z.sub_(largest[:, None]).exp_()
            shift = before - largest
            if entropy:  # sum of e log e; the part from earlier tiles is moved to the new maximum
                plogp = shift.exp() * (plogp + total * shift) + torch.xlogy(e, e).sum(1)
            total = shift.exp() * total + e.sum(1)
        lse[rows] = largest + total.log()
        logp[rows] = (at_token - largest) - total.log()
        if entropy:
            h[rows] = total.log() - plogp / total
    return logp, h, lse


@torch.library.custom_op("sppo_control::token_log_probs_backward", mutates_args=())
def _backward(
    grad_logp: Tensor | None,  # (N,)
    grad_entropy: Tensor | None,  # (N,)
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    h: Tensor,
    lse: Tensor,
    temperature: float,
    chunk_size: int,
    vocabulary_chunk: int,
    dtype: torch.dtype,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; (0,) where not needed."""
    grad_hidden = hidden.new_zeros(hidden.shape if needs_hidden else 0)
    grad_weight = lse.new_zeros(weight.shape if needs_weight else 0)
    grad_bias = lse.new_zeros(len(weight) if needs_bias else 0)
    tiles = _Tiles(weight, bias, temperature, chunk_size, vocabulary_chunk, dtype)
    for rows in _rows(hidden, mask).split(chunk_size):
        x, token = hidden[rows].to(dtype), tokens[rows]
        grad_x = torch.zeros_like(x, dtype=lse.dtype)
        for start in range(0, len(weight), vocabulary_chunk):
            z, w = tiles(x, start)
            words = slice(start, start + len(w))
            p = z.sub_(lse[rows, None]).exp_()
            # The incoming gradient is one number per token, so it scales the token's row.
            if grad_entropy is not None:
                g = torch.xlogy(p, p).addcmul_(p, h[rows, None]).mul_(-grad_entropy[rows, None])
                if grad_logp is not None:
                    g.addcmul_(p, -grad_logp[rows, None])
            else:
                assert grad_logp is not None
                g = p.mul_(-grad_logp[rows, None])
            if grad_logp is not None:
                inside, index = _inside(token, start, z)
                g.scatter_add_(1, index, torch.where(inside, grad_logp[rows], 0.0)[:, None])
            g.div_(temperature)
            low = tiles.low(g)
            if needs_hidden:
                _add_product(grad_x, g, low, w)
            if needs_weight:
                _add_product(grad_weight[words], g.t(), low.t(), x)
            if needs_bias:
                grad_bias[words] += g.sum(0)
        if needs_hidden:
            grad_hidden[rows] = grad_x.to(hidden.dtype)
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias if bias is None else grad_bias.to(bias.dtype)


class _Tiles:
    """Tiles of logits, always in the same memory, because fresh memory for each tile costs more than the softmax.

    Products are written into it with out=, which autocast does not change.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        temperature: float,
        chunk_size: int,
        vocabulary_chunk: int,
        dtype: torch.dtype,
    ) -> None:
        self.weight, self.bias, self.temperature = weight, bias, temperature
        self.width, self.dtype = vocabulary_chunk, dtype
        size = chunk_size * min(vocabulary_chunk, len(weight))
        self.product = weight.new_empty(size, dtype=dtype)
        wide = _sum_dtype(dtype)
        self.wide = self.product if wide == dtype else weight.new_empty(size, dtype=wide)

    def __call__(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """x (n, D) -> z (n, k), float32 or float64, and weight's rows (k, D) in x's dtype. The next call overwrites z."""
        w = self.weight[start : start + self.width].to(self.dtype)
        out = self.product[: len(x) * len(w)].view(len(x), len(w))
        if self.bias is None:
            torch.mm(x, w.t(), out=out)
        else:
            torch.addmm(self.bias[start : start + self.width].to(self.dtype), x, w.t(), out=out)
        z = self.wide[: out.numel()].view(out.shape)
        if z.dtype != out.dtype:
            z.copy_(out)
        return (z if self.temperature == 1.0 else z.div_(self.temperature)), w

    def low(self, g: Tensor) -> Tensor:
        """g (n, k) in the dtype of the products"""
        return g if g.dtype == self.dtype else self.product[: g.numel()].view(g.shape).copy_(g)


def _add_product(total: Tensor, a: Tensor, low: Tensor, b: Tensor) -> None:
    """total += a b, summed in total's dtype, which is also a's; low is a in b's dtype."""
    if b.dtype != total.dtype and total.is_cuda:
        torch.addmm(total, low, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a, b.to(total.dtype))


def _inside(token: Tensor, start: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each token is in the tile, (n,), and its column there, (n, 1); for other tokens any column."""
    column = token - start
    return (column >= 0) & (column < z.shape[1]), column.clamp(0, z.shape[1] - 1)[:, None]


def _rows(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Indices of the rows to compute."""
    return torch.arange(len(hidden), device=hidden.device) if mask is None else mask.nonzero()[:, 0]


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@_forward.register_fake
def _(hidden, weight, bias, tokens, mask, temperature, chunk_size, vocabulary_chunk, entropy, dtype):  # type: ignore[no-untyped-def]
    n = hidden.shape[0]
    return tuple(hidden.new_empty(k, dtype=_sum_dtype(dtype)) for k in (n, n if entropy else 0, n))


@_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    grad_logp, grad_entropy, hidden, weight, bias, tokens, mask, h, lse, temperature, chunk_size, vocabulary_chunk, dtype,
    needs_hidden, needs_weight, needs_bias,
):  # fmt: skip
    return (
        hidden.new_empty(hidden.shape if needs_hidden else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
        (lse if bias is None else bias).new_empty(weight.shape[0] if needs_bias else 0),
    )


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, weight, bias, tokens, mask, temperature, chunk_size, vocabulary_chunk, ctx.entropy, dtype = inputs
    _, h, lse = output
    ctx.settings = (temperature, chunk_size, vocabulary_chunk, dtype)
    ctx.set_materialize_grads(False)  # so an entropy that is only logged costs nothing in the backward pass
    ctx.save_for_backward(hidden, weight, bias, tokens, mask, h, lse)


def _derivative(ctx, grad_logp, grad_entropy, _):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad[:3]
    grad_entropy = grad_entropy if ctx.entropy else None  # compilers also pass a gradient of the empty output
    if grad_logp is None and grad_entropy is None:
        return (None,) * 10
    grads = _backward(grad_logp, grad_entropy, *ctx.saved_tensors, *ctx.settings, *needs)
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), *((None,) * 7)


_forward.register_autograd(_derivative, setup_context=_save)


# -------------------------------------------------------------------------------------------------------------- TRL
def _has_fused_kernel(hidden: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and hidden.is_cuda
        and hidden.dtype != torch.float64
        and find_spec("triton") is not None
        and find_spec("trl") is not None
    )


def _trl(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    bias: Tensor | None,
    temperature: float,
    vocabulary_chunk: int,
    entropy: bool,
    mask: Tensor | None,
) -> TokenLogProbs:
    if hidden.dtype == torch.float64:
        raise ValueError('backend "trl" sums in float32, hidden is float64; use backend="torch"')
    extras.require("llm", "trl", wanted_by='backend="trl"')
    try:
        from trl.kernels import ChunkedLogProbFunction
    except ImportError as error:  # an older version
        raise ImportError(f'backend="trl" needs TRL 1.16: {error}; run: {extras.install("llm")}') from error
    x = hidden.reshape(-1, hidden.shape[-1]) if mask is None else hidden[mask]
    token = tokens.reshape(-1) if mask is None else tokens[mask]
    width = min(vocabulary_chunk, len(weight))
    outputs = ("entropy",) if entropy else ()
    logp, h, *_ = ChunkedLogProbFunction.apply(x, weight, bias, token, temperature, width, None, 1.0, outputs)

    def spread(value: Tensor) -> Tensor:  # (n,) -> (B, T)
        return value.view(tokens.shape) if mask is None else value.new_zeros(mask.shape).masked_scatter(mask, value)

    return TokenLogProbs(spread(logp), spread(h) if entropy else None)


# ----------------------------------------------------------------------------------------------------------- checks
def _check(hidden: Tensor, weight: Tensor, tokens: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    if hidden.ndim != 3 or weight.ndim != 2 or hidden.shape[2] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (B, T, D) and weight (V, D), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not hidden.is_floating_point():
        raise ValueError(f"hidden must be floating, got {hidden.dtype}")
    for name, x, shape, dtype in (
        ("tokens", tokens, hidden.shape[:2], torch.int64),
        ("mask", mask, hidden.shape[:2], torch.bool),
        ("bias", bias, weight.shape[:1], weight.dtype),
    ):
        if x is not None and (x.shape != shape or x.dtype != dtype):
            raise ValueError(f"{name} must be {tuple(shape)} {dtype}, got {tuple(x.shape)} {x.dtype}")
    if weight.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; convert one of them, or call this under torch.autocast"
        )
