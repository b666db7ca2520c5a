"""Right and wrong ways to write e08_leave_one_out."""

RIGHT = {
    "loops": """
def leave_one_out_advantage(outcome, group_size):
    R, out = outcome.tolist(), []
    for i, r in enumerate(R):
        first = i // group_size * group_size
        others = [R[j] for j in range(first, first + group_size) if j != i]
        out.append(r - sum(others) / len(others))
    return torch.tensor(out, dtype=torch.float64)

def expected_estimate(p, group_size, advantage):
    total = 0.0
    for bits in range(2**group_size):
        R = [float(bits >> i & 1) for i in range(group_size)]
        probability = 1.0
        for r in R:
            probability *= p if r else 1 - p
        A = advantage(torch.tensor(R, dtype=torch.float64)).tolist()
        total += probability * sum(a * (r - p) for a, r in zip(A, R)) / group_size
    return total
""",
    "einsum": """
def leave_one_out_advantage(outcome, group_size):
    n = group_size
    weight = torch.eye(n) - (1 - torch.eye(n)) / (n - 1)
    return torch.einsum("ij,gj->gi", weight.to(outcome.dtype), outcome.view(-1, n)).flatten()

def expected_estimate(p, group_size, advantage):
    groups = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * group_size)
    A = torch.stack([advantage(R) for R in groups])
    return torch.einsum("g,gn,gn->", (p**groups * (1 - p) ** (1 - groups)).prod(1), A, groups - p) / group_size
""",
    "numpy": """
import numpy as np

def leave_one_out_advantage(outcome, group_size):
    g = np.asarray(outcome).reshape(-1, group_size)
    return torch.from_numpy((group_size / (group_size - 1) * (g - g.mean(1, keepdims=True))).ravel())

def group_mean_factor(group_size):
    return expected_estimate(0.5, group_size, lambda R: R - R.mean()) / 0.25
""",
}
_ENUMERATE = """
def expected_estimate(p, n, advantage):
    total = 0.0
    for group in itertools.product((0.0, 1.0), repeat=n):
        R = torch.tensor(group, dtype=torch.float64)
        w = torch.where(R == 1, p, 1 - p).prod()
        total += float(w * (advantage(R) * (R - p)).mean())
    return total
"""
_GROUPS = "def leave_one_out_advantage(outcome, n):\n    g = outcome.reshape(-1, n)\n"
WRONG = {
    "itself included": (_GROUPS + "    return (g - g.mean(1, keepdim=True)).reshape(-1)", "itself included"),
    "divided by n": (_GROUPS + "    return (g - (g.sum(1, keepdim=True) - g) / n).reshape(-1)", "divided by N"),
    "whole batch": (_GROUPS + "    return (g - (g.sum() - g) / (g.numel() - 1)).reshape(-1)", "all other outcomes of the batch"),
    "interleaved": ("right = leave_one_out_advantage\ndef leave_one_out_advantage(outcome, n):\n"
        "    return right(outcome.reshape(n, -1).t().reshape(-1), n).reshape(-1, n).t().reshape(-1)", "Each N-th row"),
    "baseline": (_GROUPS + "    return ((g.sum(1, keepdim=True) - g) / (n - 1)).reshape(-1)", "the baseline itself"),
    "divided by the deviation": (_GROUPS + "    return ((g - g.mean(1, keepdim=True)) / (g.std(1, correction=0, "
        "keepdim=True) + 1e-12)).reshape(-1)", "GRPO's advantage"),
    "uniform": (_ENUMERATE.replace("torch.where(R == 1, p, 1 - p).prod()", "0.5**n"), "All groups count the same"),
    "no probabilities": (_ENUMERATE.replace("torch.where(R == 1, p, 1 - p).prod()", "1"), "without the groups' prob"),
    "sum": (_ENUMERATE.replace(".mean()", ".sum()"), "not its mean"),
    "no score": (_ENUMERATE.replace(" * (R - p)", ""), "score R - p is left out"),
    "score R": (_ENUMERATE.replace("(R - p)", "R"), "The score is R"),
    "score's sign": (_ENUMERATE.replace("(R - p)", "(p - R)"), "wrong sign"),
    "mixed up": (_ENUMERATE.replace("p, 1 - p", "1 - p, p"), "mixed up"),
    "no coefficients": (_ENUMERATE.replace("itertools.product((0.0, 1.0), repeat=n)",
        "[[1.0] * k + [0.0] * (n - k) for k in range(n + 1)]"), "binomial coefficients"),
    "factor turned round": ("def group_mean_factor(n): return n / (n - 1)", "mends the estimate"),
    "no bias": ("def group_mean_factor(n): return 1.0", "its own baseline"),
    "what is lost": ("def group_mean_factor(n): return 1 / n", "what is lost"),
}  # fmt: skip
