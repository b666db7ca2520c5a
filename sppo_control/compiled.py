"""Compiled kernels for small networks and for rollouts: the choice between them and plain torch, and the way to them.

Plain torch and numpy are the reference and the default. Inside `with use("numba"):` networks and rollouts take the kernels
of `kernels.py` where these can do the work. Both agree to float32 rounding. Nothing is imported or compiled before that.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from . import core
from .extras import require

Kernels = Literal["auto", "numba", "torch"]
"""numba: compiled kernels. torch: plain torch and numpy. auto: numba where the extra `fast` is installed."""
PACKAGES = ("numba", "scipy", "threadpoolctl")
PART = 256
"""At most so many rows of a batch are taken at a time by one thread."""
EPISODES = 32
"""Episodes of a rollout that one thread takes at a time."""
MOST_PARTS = 64
"""Of a large batch the parts are larger, because each part has its own gradient."""
LARGEST_LOG_RATIO = math.log(np.finfo(np.float32).max) - 1
"""A ratio above its exponential is clipped without being computed, as in `core.clipped_surrogate`."""
LARGEST_WIDTH = 256
"""Wider layers are torch's: there the time is in the matrix products alone, and torch spreads them over all cores."""

_chosen: Literal["numba", "torch"] = "torch"
_threads = 1


def resolve(kernels: Kernels, hidden: Sequence[int] = ()) -> Literal["numba", "torch"]:
    """What `auto` means here, for networks with hidden layers of these widths.

    Raises:
        MissingExtra: numba is asked for and not installed.
        ValueError: numba is asked for, and a layer is too wide for it.
    """
    wide = max(hidden, default=1)
    if kernels == "numba" and wide > LARGEST_WIDTH:
        raise ValueError(
            f"--kernels numba is for layers of at most {LARGEST_WIDTH} units, got {wide}; use --kernels torch, which is as "
            "fast there"
        )
    if wide > LARGEST_WIDTH:
        return "torch"
    if kernels == "numba":
        require("fast", *PACKAGES, wanted_by="--kernels numba")
    if kernels == "auto":
        return "numba" if all(map(find_spec, PACKAGES)) else "torch"
    return kernels


def widths(args: Any) -> tuple[int, ...]:
    """Of the hidden layers that a script's arguments name."""
    return (*args.hidden, *getattr(args, "critic_hidden", ()))


@contextlib.contextmanager
def use(kernels: Kernels | Any) -> Iterator[None]:
    """Take these kernels inside a `with`; afterwards those from before. numba compiles them once on each machine.

    The choice holds for the whole process, not for one thread.

    Args:
        kernels: a name, or a script's arguments. Of these, `auto` is replaced by what it means here. So config.json says
            which kernels a run took, and a resumed run takes the same.

    Raises:
        MissingExtra: see `resolve`.
        ValueError: see `resolve`.
    """
    global _chosen, _threads
    if isinstance(kernels, str):
        chosen = resolve(cast(Kernels, kernels))
    else:
        chosen = kernels.kernels = resolve(kernels.kernels, widths(kernels))
    before, _chosen = _chosen, chosen
    core.compiled = None if chosen == "torch" else sys.modules[__name__]
    torch_threads = torch.get_num_threads()
    if before == "torch":
        _threads = torch_threads
    try:
        if _chosen == "torch":
            yield
            return
        _compile()
        from threadpoolctl import threadpool_limits

        # The threads here are ours. Those of BLAS would only wait beside them, and they do so at full load.
        with threadpool_limits(1, user_api="blas"):
            # What is left for torch is small. Shared out, it would wait for the slower core more often than it gains.
            torch.set_num_threads(1)
            yield
    finally:
        _chosen = before
        core.compiled = None if before == "torch" else sys.modules[__name__]
        torch.set_num_threads(torch_threads)


def chosen() -> Literal["numba", "torch"]:
    """The present choice."""
    return _chosen


def threads() -> int:
    """Threads that share a batch: as many as torch had before `use`."""
    return _threads


# ------------------------------------------------------------------------------------------------------- networks
def suits(obs: Tensor, sizes: Sequence[int]) -> bool:
    """Whether the kernels can do this: chosen, float32 on the CPU, no gradient of the observations, narrow layers."""
    return (
        _chosen == "numba"
        and obs.dtype == torch.float32
        and obs.device.type == "cpu"
        and not obs.requires_grad
        and obs.numel() > 0
        and max(sizes) <= LARGEST_WIDTH
    )


def network(obs: Tensor, scale: Tensor, flat: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A tanh network: obs (..., D) -> (..., O); see `networks.Network`."""
    return _Network.apply(obs, scale, flat, sizes, (*obs.shape[:-1], sizes[-1]))


def value(obs: Tensor, scale: Tensor, flat: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A tanh network with one output: obs (..., D) -> (...,); see `networks.Critic`."""
    return _Network.apply(obs, scale, flat, sizes, obs.shape[:-1])


def categorical_log_prob(
    obs: Tensor, actions: Tensor, scale: Tensor, flat: Tensor, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Log-probability of actions (...,) int64 and the entropy (...,): network and softmax in one."""
    return _Categorical.apply(obs, actions, scale, flat, sizes)


def numpy_forward(scale: Tensor, flat: Tensor, sizes: tuple[int, ...]) -> Callable[[Any], Any]:
    """A function (N, D) float32 -> (N, O) with the present weights, for acting."""
    given = _turned((None, scale.numpy(), flat.detach().numpy(), _array(sizes)))[1:]
    forward, width, hidden = _kernels().network, sum(sizes[1:-1]), np.empty(0, np.float32)

    def act(obs: Any) -> Any:
        nonlocal hidden
        rows = len(obs)
        if len(hidden) != rows * width:
            hidden = np.empty(rows * width, np.float32)
        out = np.empty((rows, sizes[-1]), np.float32)
        forward(np.ascontiguousarray(obs, np.float32), *given, hidden, out, 0, rows)
        return out

    return act


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, obs: Tensor, scale: Tensor, flat: Tensor, sizes: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        given, hidden = _prepared(obs, scale, flat, sizes)
        rows = len(given[0])
        out = np.empty((rows, sizes[-1]), np.float32)
        _spread(_kernels().forward_share, rows, *_turned(given), hidden, out)
        ctx.given, ctx.hidden = given, hidden
        ctx.save_for_backward(flat)
        return torch.from_numpy(out.reshape(shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, None, None]:
        _check_once()
        _ = ctx.saved_tensors  # refuses weights that were changed since
        rows = len(ctx.given[0])
        grad, totals = _rows(grads[0], ctx.given[-1][-1]), _totals(rows, ctx.given)
        _spread(_kernels().backward_share, rows, *ctx.given, ctx.hidden, grad, totals)
        return None, None, _added(totals), None, None


class _Categorical(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, obs: Tensor, actions: Tensor, scale: Tensor, flat: Tensor, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        given, hidden = _prepared(obs, scale, flat, sizes)
        rows, chosen = len(given[0]), actions.contiguous().numpy().reshape(-1)
        log_p, p = np.empty((2, rows, sizes[-1]), np.float32)
        logp, entropy = np.empty((2, rows), np.float32)
        _spread(_kernels().categorical_share, rows, *_turned(given), hidden, chosen, log_p, p, logp, entropy)
        ctx.given, ctx.kept = given, (hidden, chosen, log_p, p, entropy)
        ctx.save_for_backward(flat)
        ctx.set_materialize_grads(False)
        return torch.from_numpy(logp.reshape(actions.shape)), torch.from_numpy(entropy.reshape(actions.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None, None, Tensor, None]:
        _check_once()
        _ = ctx.saved_tensors
        rows = len(ctx.kept[1])
        of_logp, of_entropy = grads
        g_logp = np.zeros(rows, np.float32) if of_logp is None else _rows(of_logp)
        g_entropy = np.empty(0, np.float32) if of_entropy is None else _rows(of_entropy)
        totals = _totals(rows, ctx.given)
        _spread(_kernels().categorical_gradient_share, rows, *ctx.given, *ctx.kept, g_logp, g_entropy, totals)
        return None, None, None, _added(totals), None


def _check_once() -> None:
    # torch's decorator once_differentiable takes 4 us per call, of about 70 calls in an update.
    if torch.is_grad_enabled():
        raise RuntimeError("compiled kernels have no second derivative, so create_graph=True needs --kernels torch")


def _prepared(obs: Tensor, scale: Tensor, flat: Tensor, sizes: tuple[int, ...]) -> tuple[tuple[Any, ...], Any]:
    """Arguments that all kernels begin with, and room for the activations."""
    x = _rows(obs, sizes[0])
    return (x, scale.numpy(), flat.detach().numpy(), _array(sizes)), np.empty(len(x) * sum(sizes[1:-1]), np.float32)


def _readable(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _rows(x: Tensor, *width: int) -> Any:
    """As an array (N, *width). It is shaped here, because each view of a tensor is one more node for autograd."""
    return _readable(x).reshape(-1, *width)


def _turned(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with transposed weights."""
    x, scale, flat, sizes = given
    turned = np.empty_like(flat)
    _kernels().transpose(flat, sizes, turned)
    return x, scale, turned, sizes


@lru_cache(maxsize=64)
def _array(sizes: tuple[int, ...]) -> Any:
    return np.array(sizes, np.int64)


def _part(rows: int) -> int:
    """Rows of a part. The number of parts is even, so that two threads have equal shares."""
    parts = min(MOST_PARTS, 2 * -(-rows // (2 * PART))) if rows > PART else 1
    return -(-rows // parts)


def _totals(rows: int, given: tuple[Any, ...]) -> Any:
    return np.zeros((-(-rows // _part(rows)), len(given[2])), np.float32)


def _added(totals: Any) -> Tensor:
    return torch.from_numpy(totals[0] if len(totals) == 1 else totals.sum(axis=0))


# ------------------------------------------------------------------------------------------- the sums of `core.py`
def sums_suit(*tensors: Tensor) -> bool:
    """Whether the kernels can do `core`'s sums of these: float32 on the CPU, outside of torch.compile."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and not torch.compiler.is_compiling()
    )


def clipped_surrogate(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_coef: float,
    denominator: float | Tensor | None,
) -> tuple[Tensor, ...]:
    """See `core.clipped_surrogate`, with the reduction "token-mean"; the fields of `core.ClippedSurrogate`."""
    return _Surrogate.apply(logp, logp_old, advantage, mask, clip_coef, denominator)


def bernoulli_value_loss(
    value_logit: Tensor, outcome: Tensor, denominator: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `core.bernoulli_value_loss`. The second tensor, a bool, says whether all outcomes are in [0, 1]."""
    return _BernoulliLoss.apply(value_logit, outcome, denominator)


def squared_value_loss(value: Tensor, returns: Tensor, mask: Tensor, denominator: float | Tensor | None) -> Tensor:
    """See `core.squared_value_loss`."""
    return _SquaredLoss.apply(value, returns, mask, denominator)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """See `core.masked_mean`."""
    return _Mean.apply(x, mask)


def lambda_returns(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """The returns of `core.generalized_advantage`."""
    returns = torch.zeros_like(value, memory_format=torch.contiguous_format)
    _kernels().lambda_returns(*map(_readable, (reward, value, mask)), float(gamma), float(gae_lambda), returns.numpy())
    return returns


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, clip_coef: float,
        denominator: float | Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        grad = torch.zeros_like(logp, memory_format=torch.contiguous_format)
        given = [*map(_readable, (logp, logp_old, advantage if advantage.ndim == 2 else advantage[:, None], mask))]
        objective, steps, log_ratios, kl, clipped, smallest, largest = _kernels().clipped_surrogate(
            *given, float(clip_coef), LARGEST_LOG_RATIO, grad.numpy()
        )
        ctx.grad, ctx.divisor = grad, steps if denominator is None else float(denominator)
        numbers = (-objective / ctx.divisor, -log_ratios / steps, kl / steps, clipped / steps, smallest, largest)
        loss, *statistics = torch.tensor(numbers, dtype=torch.float32).unbind()
        num_steps = torch.tensor(steps)
        ctx.mark_non_differentiable(num_steps, *statistics)
        ctx.set_materialize_grads(False)
        return loss, num_steps, *statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_once()
        return ctx.grad * (grads[0] / -ctx.divisor), None, None, None, None, None


class _BernoulliLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value_logit: Tensor, outcome: Tensor, denominator: float | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        grad = torch.zeros_like(value_logit, memory_format=torch.contiguous_format)
        total, inside = _kernels().bernoulli_loss(_readable(value_logit), _readable(outcome), grad.numpy())
        ctx.grad, ctx.divisor = grad, len(value_logit) if denominator is None else float(denominator)
        inside = torch.tensor(inside)
        ctx.mark_non_differentiable(inside)
        return torch.tensor(total / ctx.divisor, dtype=torch.float32), inside

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_once()
        return ctx.grad * (grads[0] / ctx.divisor), None, None


class _SquaredLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, returns: Tensor, mask: Tensor, denominator: float | Tensor | None) -> Tensor:
        grad = torch.zeros_like(value, memory_format=torch.contiguous_format)
        total, count = _kernels().squared_loss(*map(_readable, (value, returns, mask)), grad.numpy())
        ctx.grad, ctx.divisor = grad, count if denominator is None else float(denominator)
        return torch.tensor(total / ctx.divisor, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_once()
        return ctx.grad * (grads[0] / ctx.divisor), None, None, None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        total, steps = _kernels().masked_sum(_readable(x), _readable(mask))
        ctx.mask, ctx.steps = mask, steps
        return torch.tensor(total / steps, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        _check_once()
        return torch.where(ctx.mask, grads[0] / ctx.steps, 0.0), None


# ------------------------------------------------------------------------------------------------------- rollouts
def run_episodes(
    kind: int,
    constants: Any,
    state: Any,
    noise: Callable[[int], Any],
    policy: tuple[Tensor, Tensor, tuple[int, ...], Any],
    horizon: int,
    block: int,
    obs_dim: int,
) -> tuple[Any, ...]:
    """Run B episodes of one of `sppo_envs.dynamics` to their ends.

    Args:
        kind: which dynamics.
        constants: float64, of the dynamics.
        state: initial states (B, S) float64; changed.
        noise: number of steps -> noise (steps, B, A) float32 of the coming steps, or of size 0 for greedy actions.
        policy: obs_scale (D,), flat weights, widths, and standard deviations (A,), of size 0 for a categorical policy.
        horizon: longest episode.
        block: steps for which there are arrays at a time, so that the memory follows the longest episode.
        obs_dim: D.

    Returns:
        obs (B, T, D), actions (B, T) or (B, T, A), outputs (B, T, A), lengths (B,), and what the dynamics remember, (B, 1).
        Only the real steps are written.
    """
    scale, flat, sizes, std = policy
    count, outputs, kernel = len(state), sizes[-1], _kernels().rollout_share
    given = _turned((None, scale.numpy(), flat.detach().numpy(), _array(sizes)))[1:]
    lengths, over, memory = np.zeros(count, np.int64), np.zeros(count, np.bool_), np.zeros((count, 1))
    # Shares do not depend on the number of threads: a product of other shape may round differently.
    share = EPISODES if count >= 2 * EPISODES else -(-count // 2) if count >= EPISODES // 2 else count
    blocks: list[tuple[Any, Any, Any]] = []
    start = 0
    while start < horizon and not over.all():
        steps = min(block, horizon - start)
        obs, out = np.zeros((count, steps, obs_dim), np.float32), np.zeros((count, steps, outputs), np.float32)
        discrete = np.zeros((count, steps) if len(std) == 0 else (0, 0), np.int64)
        continuous = np.zeros((count, steps, outputs) if len(std) else (0, 0, 0), np.float32)
        arguments = (
            kind, constants, state, memory, noise(steps), *given, std, obs, discrete, continuous, out, lengths, over,
            start, horizon,
        )  # fmt: skip
        _together([(kernel, (*arguments, first, min(count, first + share))) for first in range(0, count, share)])
        blocks.append((obs, continuous if len(std) else discrete, out))
        start += steps
    longest = int(lengths.max())
    arrays = [b[0] if len(b) == 1 else np.concatenate(b, axis=1) for b in zip(*blocks, strict=True)]
    return (*(a[:, :longest] for a in arrays), lengths, memory)


# -------------------------------------------------------------------------------------------------------- threads
def _spread(kernel: Any, rows: int, *arguments: Any) -> None:
    """Call a kernel that takes (..., part, taken), on as many threads as there are parts."""
    part = _part(rows)
    parts, taken = -(-rows // part), np.zeros(2, np.int64)
    arguments = (*arguments, part, taken)
    ends = _start(lambda me: kernel(*arguments), min(threads(), parts))
    kernel(*arguments)
    if ends:
        _kernels().wait(taken, parts)
        if taken[1] < parts:
            _finish(ends)


def _together(calls: list[tuple[Any, tuple[Any, ...]]]) -> None:
    """All calls, as many at the same time as there are threads. This thread takes its share."""
    number = min(threads(), len(calls))

    def work(me: int) -> None:
        for kernel, arguments in calls[me::number]:
            kernel(*arguments)

    ends = _start(work, number)
    work(0)
    _finish(ends)


End = SimpleQueue[BaseException | None]


def _start(work: Callable[[int], None], number: int) -> list[End]:
    """Have work(me) done for each me from 1 on, by other threads. Each says its end in one of these queues."""
    ends: list[End] = []
    for me in range(1, number):
        ends.append(SimpleQueue())
        _inbox(os.getpid(), me).put((work, me, ends[-1]))
    return ends


def _finish(ends: list[End]) -> None:
    for error in [end.get() for end in ends]:
        if error is not None:
            raise error


@cache
def _inbox(process: int, me: int) -> SimpleQueue[Any]:
    """Where thread `me` gets its work. A forked process has none of its parent's threads, so it makes new ones.

    A pool of concurrent.futures does the same and takes 30 us more per call, a tenth of a forward pass.
    """
    inbox: SimpleQueue[Any] = SimpleQueue()

    def loop() -> None:
        while True:
            work, me, end = inbox.get()
            try:
                work(me)
                end.put(None)
            except BaseException as error:
                end.put(error)
            del work, end  # they hold arrays

    threading.Thread(target=loop, daemon=True, name=f"kernels-{me}").start()
    return inbox


# -------------------------------------------------------------------------------------------------------- compiling
def _forget_older(folder: Path, pattern: str, source: Path) -> None:
    """Remove the entries of numba's cache that are older than a file whose functions they call.

    numba compiles a function again if its own file has changed. It does not look at the files of functions that it calls.
    The rollout would go on with the dynamics of before.
    """
    changed = source.stat().st_mtime_ns
    for index in folder.glob(pattern):
        if index.stat().st_mtime_ns < changed:
            index.unlink(missing_ok=True)


@cache
def _kernels() -> Any:
    from . import kernels

    cache_folder = Path(kernels.rollout_share.stats.cache_path)
    _forget_older(cache_folder, "kernels.rollout_share-*.nbi", Path(kernels.dynamics.__file__))
    return kernels


@cache
def _compile() -> None:
    """Call each kernel once, on small inputs. numba compiles what is not in its cache on disk."""
    k = _kernels()
    if not list(Path(k.rollout_share.stats.cache_path).glob("kernels.rollout_share-*.nbi")):
        print("note: numba compiles the kernels, once on this machine: about half a minute", file=sys.stderr)
    # Called directly: somebody may be counting torch's backward passes.
    sizes, rows, scale = (2, 3, 2), 4, np.ones(2, np.float32)
    flat, hidden = np.ones(17, np.float32), np.empty(rows * 3, np.float32)
    given, taken = (np.ones((rows, 2), np.float32), scale, flat, _array(sizes), hidden), np.zeros(2, np.int64)
    actions, one, out = np.zeros(rows, np.int64), np.zeros(rows, np.float32), np.zeros((rows, 2), np.float32)
    totals = np.zeros((1, len(flat)), np.float32)
    k.transpose(flat, _array(sizes), flat.copy())
    k.forward_share(*given, out, PART, taken)
    k.backward_share(*given, out, totals, PART, taken)
    k.categorical_share(*given, actions, out, out.copy(), one, one.copy(), PART, taken)
    k.categorical_gradient_share(*given, actions, out, out, one, one, one, totals, PART, taken)
    k.wait(taken, 1)
    matrix, mask = np.zeros((2, 2), np.float32), np.ones((2, 2), np.bool_)
    k.clipped_surrogate(matrix, matrix, matrix, mask, 0.2, LARGEST_LOG_RATIO, matrix.copy())
    k.bernoulli_loss(one, one, one.copy())
    k.squared_loss(matrix, matrix, mask, matrix.copy())
    k.masked_sum(matrix, mask)
    k.lambda_returns(matrix, matrix, mask, 1.0, 1.0, matrix.copy())
    policy = (torch.ones(3), torch.zeros(3 * 2 + 2), (3, 2), np.ones(0, np.float32))
    run_episodes(1, np.ones(8), np.zeros((2, 2)), lambda n: np.zeros((n, 2, 2), np.float32), policy, 2, 2, 3)


if __name__ == "__main__":  # python -m sppo_control.compiled: compile now, so that no training has to
    with use("numba"):
        pass
