"""Kernels compiled by numba: tanh networks with their gradients, and whole rollouts of the batched tasks.

`compiled.py` chooses and calls them; it alone imports this module, which needs numba and scipy (whose BLAS multiplies the
matrices). Each kernel works on a share of the rows, without Python's lock, so that several threads can share a batch.
Rows are cut into parts of fixed size, and each part has its own gradient. So results do not depend on the number of
threads. numba keeps the compiled code on disk.

The plain versions are `networks.Network`, `policies.Policy.log_prob_given` and `rollout.rollout`. Tests compare them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from sppo_envs import dynamics

Array = Any
OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},  # a NaN stays a NaN
}
SPINS = 20_000
"""Looks at the other threads before a thread goes to sleep: about 100 us. To be woken up takes half of that."""
TILE = 128
"""Rows that pass through all layers together, so that their activations stay in the cache."""


@njit(**OPTIONS)
def tanh_in_place(y: Array, bias: Array) -> None:
    """y (n, H) = tanh(y + bias).

    A rational function of degree 9 / 8, fitted to tanh on [-9, 9] by weighted least squares. The error is 3e-7, which is
    float32 rounding.
    """
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            x = y[i, j] + bias[j]
            x = np.float32(9.0) if x > np.float32(9.0) else x
            x = np.float32(-9.0) if x < np.float32(-9.0) else x
            z = x * x
            p = np.float32(1.3354695318040126e-08)
            p = p * z + np.float32(2.0609110196632098e-05)
            p = p * z + np.float32(0.0034955899703188235)
            p = p * z + np.float32(0.1338102724001742)
            p = p * z + np.float32(0.9999999794698685)
            q = np.float32(7.776573171742518e-07)
            q = q * z + np.float32(0.0003285637728310436)
            q = q * z + np.float32(0.02587698936138393)
            q = q * z + np.float32(0.4671434283639105)
            q = q * z + np.float32(1.0)
            t = x * p / q
            t = np.float32(1.0) if t > np.float32(1.0) else t
            y[i, j] = np.float32(-1.0) if t < np.float32(-1.0) else t


@njit(**OPTIONS)
def transpose(flat: Array, sizes: Array, turned: Array) -> None:
    """Write the weights with each matrix as (in, out) in place of (out, in): a product with it is a quarter faster."""
    at = 0
    for layer in range(len(sizes) - 1):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        for o in range(fan_out):
            for i in range(fan_in):
                turned[at + i * fan_out + o] = flat[at + o * fan_in + i]
            turned[at + fan_in * fan_out + o] = flat[at + fan_in * fan_out + o]
        at += (fan_in + 1) * fan_out


@njit(**OPTIONS)
def network(
    x: Array, scale: Array, turned: Array, sizes: Array, hidden: Array, out: Array, first: int, last: int
) -> None:
    """Rows `first` to `last` of a tanh network: x (N, D) -> out (N, O).

    Args:
        x: float32.
        scale: (D,), multiplies x.
        turned: all weights, as `transpose` writes them.
        sizes: (layers + 1,), widths.
        hidden: (N x all hidden widths,), where the activations are kept, one layer after the other.
        out: written.
        first: the first row.
        last: the row after the last one.
    """
    rows, depth = x.shape[0], len(sizes) - 1
    for r in range(first, last, TILE):
        n = min(TILE, last - r)
        h = x[r : r + n] * scale
        at, place = 0, 0
        for layer in range(depth):
            fan_in, fan_out = sizes[layer], sizes[layer + 1]
            weight = turned[at : at + fan_in * fan_out].reshape(fan_in, fan_out)
            bias = turned[at + fan_in * fan_out : at + (fan_in + 1) * fan_out]
            at += (fan_in + 1) * fan_out
            if layer == depth - 1:
                y = out[r : r + n]
                np.dot(h, weight, y)
                for i in range(n):
                    for j in range(fan_out):
                        y[i, j] += bias[j]
            else:
                y = hidden[place + r * fan_out : place + (r + n) * fan_out].reshape(n, fan_out)
                np.dot(h, weight, y)
                tanh_in_place(y, bias)
                place += rows * fan_out
            h = y


@njit(**OPTIONS)
def network_gradient(
    x: Array, scale: Array, flat: Array, sizes: Array, hidden: Array, grad: Array, total: Array, first: int, last: int
) -> None:
    """Add to `total` the gradient of `flat` from rows `first` to `last`; their outputs have the gradient grad."""
    rows, depth = x.shape[0], len(sizes) - 1
    for r in range(first, last, TILE):
        n = min(TILE, last - r)
        g = grad[r - first : r - first + n]
        at, place = len(flat), len(hidden)
        for back in range(depth):
            layer = depth - 1 - back
            fan_in, fan_out = sizes[layer], sizes[layer + 1]
            at -= (fan_in + 1) * fan_out
            weight = flat[at : at + fan_in * fan_out].reshape(fan_out, fan_in)
            if layer == 0:
                h = x[r : r + n] * scale
            else:
                place -= rows * fan_in
                h = hidden[place + r * fan_in : place + (r + n) * fan_in].reshape(n, fan_in)
            product = np.dot(g.T, h).reshape(fan_in * fan_out)
            for k in range(fan_in * fan_out):
                total[at + k] += product[k]
            bias = total[at + fan_in * fan_out : at + (fan_in + 1) * fan_out]
            for i in range(n):
                for j in range(fan_out):
                    bias[j] += g[i, j]
            if layer > 0:
                below = np.dot(g, weight)
                for i in range(n):
                    for j in range(fan_in):
                        below[i, j] *= np.float32(1.0) - h[i, j] * h[i, j]
                g = below


@njit(cache=True, nogil=True, error_model="numpy")
def log_softmax(y: Array, p: Array) -> None:
    """Each row of y (n, A) becomes its log-probabilities, and p their exponentials.

    In exactly this order: top + log(total) first would lose half of the digits.
    """
    for i in range(y.shape[0]):
        top = y[i, 0]
        for k in range(1, y.shape[1]):
            top = max(top, y[i, k])
        total = np.float32(0.0)
        for k in range(y.shape[1]):
            y[i, k] -= top
            p[i, k] = math.exp(y[i, k])
            total += p[i, k]
        log_total = math.log(total)
        for k in range(y.shape[1]):
            y[i, k] -= log_total
            p[i, k] /= total


# --------------------------------------------------------------------------------- shares of a batch, one per thread
def _fetch_add(typing: Any, array: Any, index: Any, amount: Any) -> Any:
    """fetch_add(array, index, amount): add to an int64 of an array, so that no other thread can come between.

    It returns the value before.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), build


fetch_add: Any = intrinsic(_fetch_add)


@njit(cache=True, nogil=True)
def wait(taken: Array, parts: int) -> None:
    """Wait until other threads have done their last parts, but not for long: one of them may have been stopped."""
    for _ in range(SPINS):
        if fetch_add(taken, 1, 0) >= parts:
            break


@njit(**OPTIONS)
def forward_share(
    x: Array, scale: Array, turned: Array, sizes: Array, hidden: Array, out: Array, part: int, taken: Array
) -> None:
    """Parts of the rows through the network, each time the next one that no thread has taken.

    Args:
        x: (N, D) float32.
        scale: see `network`; so are `turned`, `sizes`, `hidden` and `out`.
        part: rows of a part.
        taken: (2,) int64, shared by all threads: parts that were taken, and parts that are done. 0 at first.
    """
    rows = x.shape[0]
    parts = -(-rows // part)
    k = fetch_add(taken, 0, 1)
    while k < parts:
        first = k * part
        network(x, scale, turned, sizes, hidden, out, first, min(rows, first + part))
        fetch_add(taken, 1, 1)
        k = fetch_add(taken, 0, 1)


@njit(**OPTIONS)
def backward_share(
    x: Array, scale: Array, flat: Array, sizes: Array, hidden: Array, grad: Array, totals: Array, part: int, taken: Array,
) -> None:  # fmt: skip
    """Gradients of the weights: part k of the rows adds to totals[k]; totals (parts, weights), grad (N, O)."""
    rows = x.shape[0]
    parts = -(-rows // part)
    k = fetch_add(taken, 0, 1)
    while k < parts:
        first = k * part
        last = min(rows, first + part)
        network_gradient(x, scale, flat, sizes, hidden, grad[first:last], totals[first // part], first, last)
        fetch_add(taken, 1, 1)
        k = fetch_add(taken, 0, 1)


@njit(**OPTIONS)
def categorical_share(
    x: Array, scale: Array, turned: Array, sizes: Array, hidden: Array, actions: Array, log_p: Array, p: Array,
    logp: Array, entropy: Array, part: int, taken: Array,
) -> None:  # fmt: skip
    """Network and softmax: log-probabilities of actions (N,) int64, the entropy (N,), all (log-)probabilities (N, A)."""
    rows = x.shape[0]
    parts = -(-rows // part)
    k = fetch_add(taken, 0, 1)
    while k < parts:
        first = k * part
        last = min(rows, first + part)
        network(x, scale, turned, sizes, hidden, log_p, first, last)
        log_softmax(log_p[first:last], p[first:last])
        for i in range(first, last):
            logp[i] = log_p[i, actions[i]]
            mean = np.float32(0.0)
            for k in range(log_p.shape[1]):
                mean += p[i, k] * log_p[i, k]
            entropy[i] = -mean
        fetch_add(taken, 1, 1)
        k = fetch_add(taken, 0, 1)


@njit(**OPTIONS)
def categorical_gradient_share(
    x: Array, scale: Array, flat: Array, sizes: Array, hidden: Array, actions: Array, log_p: Array, p: Array,
    entropy: Array, grad_logp: Array, grad_entropy: Array, totals: Array, part: int, taken: Array,
) -> None:  # fmt: skip
    """Gradients of the weights from those of logp (N,) and of entropy (N,), or an empty array for none."""
    rows, outputs = log_p.shape
    grad = np.empty((min(part, rows), outputs), np.float32)
    parts = -(-rows // part)
    k = fetch_add(taken, 0, 1)
    while k < parts:
        first = k * part
        last = min(rows, first + part)
        for i in range(first, last):
            g = grad_logp[i]
            for k in range(outputs):
                grad[i - first, k] = (g if k == actions[i] else np.float32(0.0)) - g * p[i, k]
                if len(grad_entropy) > 0:
                    grad[i - first, k] -= grad_entropy[i] * p[i, k] * (log_p[i, k] + entropy[i])
        network_gradient(x, scale, flat, sizes, hidden, grad, totals[first // part], first, last)
        fetch_add(taken, 1, 1)
        k = fetch_add(taken, 0, 1)


# ------------------------------------------------------------------------------------------------- losses of `core.py`
# Sums are in float64. They are in the order of the steps, because a test compares repeated runs bit for bit.
@njit(**OPTIONS)
def exponential_near_zero(x: Array, y: Array, out: Array) -> None:
    """out (T,) float64 = exp(x - y), of float32 (T,); right to 1e-11 where |x - y| <= 1, and of no use elsewhere.

    Taylor's series to degree 13. The log-ratios of an update are small. Without a branch eight of them are computed at
    once, which takes a tenth of the time of eight calls of exp.
    """
    for t in range(len(out)):
        z = np.float64(x[t] - y[t])
        p = 1.0 / 6227020800.0
        p = p * z + 1.0 / 479001600.0
        p = p * z + 1.0 / 39916800.0
        p = p * z + 1.0 / 3628800.0
        p = p * z + 1.0 / 362880.0
        p = p * z + 1.0 / 40320.0
        p = p * z + 1.0 / 5040.0
        p = p * z + 1.0 / 720.0
        p = p * z + 1.0 / 120.0
        p = p * z + 1.0 / 24.0
        p = p * z + 1.0 / 6.0
        p = p * z + 1.0 / 2.0
        p = p * z + 1.0
        p = p * z + 1.0
        out[t] = p


@njit(cache=True, nogil=True, error_model="numpy")
def clipped_surrogate(
    logp: Array, logp_old: Array, advantage: Array, mask: Array, clip_coef: float, overflow: float, grad: Array
) -> tuple[Any, ...]:
    """Sums over the real steps; the equations are those of `core.clipped_surrogate`.

    Args:
        logp: (B, T) float32.
        logp_old: the same.
        advantage: (B, T) or (B, 1) float32.
        mask: (B, T) bool.
        clip_coef: epsilon.
        overflow: a log-ratio above this one, where A >= 0, is clipped without its exponential.
        grad: (B, T) float32, all 0; the gradient of the first sum is written into it.

    Returns:
        Sum of the objective, number of real steps, sum of log r, sum of r - 1 - log r, number of clipped ratios, smallest
        and largest ratio.
    """
    low, high = np.float32(1.0 - clip_coef), np.float32(1.0 + clip_coef)
    per_step = advantage.shape[1] > 1
    objective, log_ratios, kl = 0.0, 0.0, 0.0
    steps, clipped, unknown = 0, 0, False
    smallest, largest = np.float32(np.inf), np.float32(0.0)
    near_zero = np.empty(logp.shape[1], np.float64)
    for i in range(logp.shape[0]):
        exponential_near_zero(logp[i], logp_old[i], near_zero)
        for t in range(logp.shape[1]):
            if not mask[i, t]:
                continue
            a = advantage[i, t if per_step else 0]
            log_ratio = logp[i, t] - logp_old[i, t]
            exponential = near_zero[t] if abs(log_ratio) <= 1 else math.exp(np.float64(log_ratio))
            ratio = np.float32(exponential)
            steps += 1
            log_ratios += log_ratio
            kl += max(exponential - 1.0 - log_ratio, 0.0) if exponential < math.inf else exponential - log_ratio
            if abs(ratio - np.float32(1.0)) > np.float32(clip_coef):
                clipped += 1
            smallest, largest = min(smallest, ratio), max(largest, ratio)
            unknown |= math.isnan(ratio)
            bounded = high if ratio > high else low if ratio < low else ratio
            if log_ratio > overflow and a >= 0:
                objective += bounded * a
            elif ratio * a <= bounded * a:
                objective += ratio * a
                grad[i, t] = ratio * a
            elif ratio * a > bounded * a:
                objective += bounded * a
            else:  # a NaN is passed on
                objective += np.nan
                grad[i, t] = np.nan
    if unknown:
        smallest = largest = np.float32(np.nan)
    return objective, steps, log_ratios, kl, clipped, smallest, largest


@njit(cache=True, nogil=True, error_model="numpy")
def lambda_returns(reward: Array, value: Array, mask: Array, gamma: float, gae_lambda: float, out: Array) -> None:
    """The returns G_t of `core.generalized_advantage`, (B, T) float32; written into out, which is 0 elsewhere."""
    discount, share = np.float32(gamma * gae_lambda), np.float32(gamma * (1.0 - gae_lambda))
    for i in range(reward.shape[0]):
        g = next_value = np.float32(0.0)
        for t in range(reward.shape[1] - 1, -1, -1):
            if mask[i, t]:
                g = (reward[i, t] + share * next_value) + discount * g
                next_value = value[i, t]
                out[i, t] = g


@njit(cache=True, nogil=True, error_model="numpy")
def masked_sum(x: Array, mask: Array) -> tuple[float, int]:
    """Sum of x (B, T) float32 over the real steps, and their number."""
    total, steps = 0.0, 0
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            if mask[i, t]:
                total += x[i, t]
                steps += 1
    return total, steps


@njit(cache=True, nogil=True, error_model="numpy")
def bernoulli_loss(value_logit: Array, outcome: Array, grad: Array) -> tuple[float, bool]:
    """Sum of the cross-entropies of `core.bernoulli_value_loss`, (B,) float32; its gradient is written into grad.

    The second number says whether all outcomes are in [0, 1].
    """
    total, inside = 0.0, True
    for i in range(len(value_logit)):
        v, r = np.float64(value_logit[i]), np.float64(outcome[i])
        small = math.exp(-abs(v))
        total += max(v, 0.0) - v * r + math.log1p(small)
        grad[i] = (1.0 if v >= 0 else small) / (1.0 + small) - r
        if not 0.0 <= r <= 1.0:  # a NaN is not inside either
            inside = False
    return total, inside


@njit(cache=True, nogil=True, error_model="numpy")
def squared_loss(value: Array, returns: Array, mask: Array, grad: Array) -> tuple[float, int]:
    """Sum of the squares of `core.squared_value_loss`, (B, T) float32, and the number of real steps.

    The gradient is written into grad, which is 0 elsewhere.
    """
    total, steps = 0.0, 0
    for i in range(value.shape[0]):
        for t in range(value.shape[1]):
            if mask[i, t]:
                error = value[i, t] - returns[i, t]
                total += 0.5 * np.float64(error) * np.float64(error)
                grad[i, t] = error
                steps += 1
    return total, steps


@njit(**OPTIONS)
def rollout_share(
    kind: int, constants: Array, state: Array, memory: Array, noise: Array, scale: Array, turned: Array, sizes: Array,
    std: Array, obs: Array, discrete: Array, continuous: Array, outputs: Array, lengths: Array, over: Array, start: int,
    horizon: int, first: int, last: int,
) -> None:  # fmt: skip
    """Episodes `first` to `last` of a batch, each until its end or for as many steps as the arrays have.

    Args:
        kind: dynamics, see `sppo_envs.dynamics`.
        constants: of the dynamics.
        state: (B, S) float64, changed.
        memory: (B, 1) float64, changed.
        noise: (steps, B, A) float32, or of size 0 for greedy actions.
        scale: of the policy's network; so are `turned` and `sizes`.
        std: (A,), standard deviations of a Gaussian policy; of size 0 for a categorical one.
        obs: (B, steps, D) float32, written on real steps only; so are the next three.
        discrete: (B, steps) int64, of size 0 for a Gaussian policy.
        continuous: (B, steps, A) float32, of size 0 for a categorical policy.
        outputs: (B, steps, A) float32, logits or means.
        lengths: (B,) int64, steps so far, changed.
        over: (B,) bool, changed.
        start: steps that were made before.
        horizon: an episode's longest length.
        first: the first episode.
        last: the episode after the last one.
    """
    steps, width, wide = obs.shape[1], obs.shape[2], 0
    for layer in range(1, len(sizes) - 1):
        wide += sizes[layer]
    num_outputs = sizes[len(sizes) - 1]
    running = np.empty(last - first, np.int64)
    x, out = np.empty((last - first, width), np.float32), np.empty((last - first, num_outputs), np.float32)
    hidden = np.empty((last - first) * wide, np.float32)
    for t in range(steps):
        n = 0
        for i in range(first, last):
            if not over[i]:
                dynamics.observe(kind, state[i], obs[i, t])
                for k in range(width):
                    x[n, k] = obs[i, t, k]
                running[n] = i
                n += 1
        if n == 0:
            break
        network(x[:n], scale, turned, sizes, hidden[: n * wide], out[:n], 0, n)
        for row in range(n):
            i = running[row]
            for k in range(num_outputs):
                outputs[i, t, k] = out[row, k]
            if len(std) == 0:
                best = 0
                for k in range(num_outputs):
                    if noise.size > 0:
                        out[row, k] += noise[t, i, k]
                    if out[row, k] > out[row, best]:
                        best = k
                discrete[i, t] = best
                action = float(best)
            else:
                for k in range(num_outputs):
                    sample = out[row, k]
                    if noise.size > 0:
                        sample += std[k] * noise[t, i, k]
                    continuous[i, t, k] = sample
                action = float(continuous[i, t, 0])
            lengths[i] += 1
            left = horizon - (start + t + 1)
            over[i] = dynamics.advance(kind, constants, state[i], action, memory[i], left) or left <= 0
