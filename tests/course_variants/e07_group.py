"""Right and wrong ways to write e07_group."""

RIGHT = {
    "loops": """
def group_relative_advantage(outcome, group_size):
    out = []
    R = outcome.tolist()
    for i in range(0, len(R), group_size):
        group = R[i : i + group_size]
        mean = sum(group) / group_size
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / group_size)
        out += [0.0] * group_size if max(group) == min(group) else [(r - mean) / std for r in group]
    return torch.tensor(out)
""",
    "numpy": """
import numpy as np

def group_relative_advantage(outcome, group_size):
    g = outcome.numpy().reshape(-1, group_size)
    std = g.std(axis=1, keepdims=True)
    same = np.ptp(g, axis=1, keepdims=True) == 0
    return np.where(same, 0, (g - g.mean(1, keepdims=True)) / np.where(same, 1, std)).ravel()

def curve(p):
    return np.array([1 - p, -p]).tolist()[0] / np.sqrt(p * (1 - p)), -p / np.sqrt(p * (1 - p))

def share_that_teaches(p, group_size):
    from math import comb
    return np.sum([comb(group_size, k) * p**k * (1 - p) ** (group_size - k) for k in range(1, group_size)])
""",
    "einsum and a small epsilon": """
def group_relative_advantage(outcome, group_size):
    g = outcome.view(-1, group_size)
    c = g - torch.einsum("gn->g", g)[:, None] / group_size
    c = torch.where(c.abs() < 1e-6, 0.0, c)
    return (c / (torch.einsum("gn,gn->g", c, c)[:, None] / group_size).sqrt().clamp(min=1e-9)).flatten()
""",
}
_HEAD = """
def group_relative_advantage(outcome, group_size):
    g = outcome.reshape(-1, group_size)
    mean, std = g.mean(1, keepdim=True), g.std(1, correction=0, keepdim=True)
    same = g.amax(1, keepdim=True) == g.amin(1, keepdim=True)
"""
_END = "    return torch.where(same, 0.0, (g - mean) / torch.where(same, 1.0, std)).reshape(-1)\n"
WRONG = {
    "sample": (_HEAD + "    std = g.std(1, keepdim=True)\n" + _END, "N - 1"),
    "mean of the batch": (_HEAD + "    mean = g.mean()\n" + _END, "mean is over the batch"),
    "deviation of the batch": (_HEAD + "    std = g.std(correction=0)\n" + _END, "deviation is over the batch"),
    "interleaved": (_HEAD.replace("outcome.reshape(-1, group_size)", "outcome.reshape(group_size, -1).t()")
                    + _END, "Each N-th row"),
    "never divided": (_HEAD + "    std = torch.ones_like(std)\n" + _END, "never divided"),
    "variance": (_HEAD + "    std = std**2\n" + _END, "divided by the variance"),
    "epsilon": (_HEAD + "    std = std + 1e-4\n" + _END, "1e-4 is added"),
    "epsilon that hides rounding in float64": (_HEAD + "    return ((g - mean) / (std + 1e-8)).reshape(-1)", "are float32"),
    "zero by zero": (_HEAD + "    return ((g - mean) / std).reshape(-1)", "standard deviation of 0"),
    "rounding": (_HEAD + "    std = (g - mean).square().mean(1, keepdim=True).sqrt()\n"
                 "    return torch.where(std == 0, 0.0, (g - mean) / std.clamp(min=1e-30)).reshape(-1)",
                 "rounding error"),
    "groups returned": (_HEAD + _END.replace(".reshape(-1)", ""), "has shape (1, 2)"),
    "sign": (_HEAD + _END.replace("return ", "return -"), "sign is turned"),
    "curve of failures": ("def curve(p): return -math.sqrt(p / (1 - p)), math.sqrt((1 - p) / p)", "other way round"),
    "positive failure": ("def curve(p): return math.sqrt((1 - p) / p), math.sqrt(p / (1 - p))", "negative advantage"),
    "not divided": ("def curve(p): return 1 - p, -p", "not yet divided"),
    "by the variance": ("def curve(p): return 1 / p, -1 / (1 - p)", "not by its square root"),
    "one number": ("def curve(p): return math.sqrt((1 - p) / p)", "two numbers"),
    "share of equal groups": ("def share_that_teaches(p, n): return p**n + (1 - p)**n", "teach nothing"),
    "only successes": ("def share_that_teaches(p, n): return 1 - p**n", "failures alone are forgotten"),
    "pairs": ("def share_that_teaches(p, n): return 2 * p * (1 - p)", "N = 2 only"),
}  # fmt: skip
