"""Right and wrong ways to write e09_rloo_or_grpo."""

RIGHT = {
    "enumeration": """
import itertools

def _expected(p, n, advantage):
    total = 0.0
    for group in itertools.product((0, 1), repeat=n):
        k = sum(group)
        probability = p**k * (1 - p) ** (n - k)
        total += probability * sum(advantage(r, k) * (r - p) for r in group) / n
    return total

def rloo_signal(p, group_size):
    return _expected(p, group_size, lambda r, k: r - (k - r) / (group_size - 1))

def grpo_signal(p, group_size):
    n = group_size
    return _expected(p, n, lambda r, k: 0 if k in (0, n) else (r - k / n) / math.sqrt(k / n * (1 - k / n)))
""",
    "closed form": "def rloo_signal(p, group_size): return p * (1 - p)",
    "numpy": """
import numpy as np

def binomial(k, p, group_size):
    coefficients = np.array([1.0])
    for _ in range(group_size):
        coefficients = np.convolve(coefficients, [1 - p, p])
    return coefficients[k]

def grpo_signal(p, group_size):
    q = np.arange(group_size + 1) / group_size
    return np.dot([binomial(k, p, group_size) for k in range(group_size + 1)], np.sqrt(q * (1 - q)))
""",
    "torch": """
import torch

def rloo_signal(p, group_size):
    n = group_size
    k = torch.arange(n + 1, dtype=torch.float64)
    probability = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(k).exp()
    return torch.einsum("k,k->", probability, k * (n - k) / (n * (n - 1)))
""",
}
_RLOO = "def rloo_signal(p, n): return sum(binomial(k, p, n) * k / n * n / (n - 1) * (1 - k / n) for k in range(n + 1))"
_GRPO = "def grpo_signal(p, n): return sum(binomial(k, p, n) * math.sqrt(k / n * (1 - k / n)) for k in range(n + 1))"
WRONG = {
    "one order": ("def binomial(k, p, n): return p**k * (1 - p) ** (n - k)", "one order"),
    "mixed up": ("def binomial(k, p, n): return math.comb(n, k) * p ** (n - k) * (1 - p) ** k", "mixed up"),
    "no failures": ("def binomial(k, p, n): return math.comb(n, k) * p**k", "failures are forgotten"),
    "at most": (
        "def binomial(k, p, n): return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))",
        "at most k",
    ),
    "itself included": (_RLOO.replace(" * n / (n - 1)", ""), "N / (N - 1) is missing"),
    "uniform": (_RLOO.replace("binomial(k, p, n)", "1 / (n + 1)"), "weigh them by their prob"),
    "no probabilities": (_RLOO.replace("binomial(k, p, n) * ", ""), "without the probabilities"),
    "advantage alone": (_RLOO.replace("* k / n * n", "* (k > 0) * n"), "counts for k/N"),
    "sum": (_RLOO.replace("return sum", "return n * sum"), "sum over the N episodes"),
    "wrong way round": (_RLOO.replace("n / (n - 1)", "(n - 1) / n"), "wrong way round"),
    "limit": ("def grpo_signal(p, n): return math.sqrt(p * (1 - p))", "limit for large groups"),
    "rloo": ("def grpo_signal(p, n): return rloo_signal(p, n)", "This is RLOO's"),
    "no root": (_GRPO.replace("math.sqrt", ""), "square root is missing"),
    "sample": (_GRPO.replace("(1 - k / n))", "(1 - k / n) * (n - 1) / n)"), "divided by N - 1"),
    "zero by zero": (
        _GRPO.replace("math.sqrt(k / n * (1 - k / n))", "k / n * (1 - k / n) / math.sqrt(k / n * (1 - k / n))"),
        "deviation of 0",
    ),
    "upside down": ("def relative_weight(p, n): return rloo_signal(p, n) / grpo_signal(p, n)", "upside down"),
    "difference": ("def relative_weight(p, n): return grpo_signal(p, n) - rloo_signal(p, n)", "difference"),
}
