"""Right and wrong ways to write e10_calibration."""

RIGHT = {
    "loops": """
def brier_score(probability, outcome):
    return sum((v - r) ** 2 for v, r in zip(probability.tolist(), outcome.tolist())) / len(outcome)

def expected_calibration_error(probability, outcome, num_bins):
    sums = {}
    for v, r in zip(probability.tolist(), outcome.tolist()):
        k = min(int(v * num_bins), num_bins - 1)
        sums[k] = sums.get(k, 0.0) + v - r
    return sum(abs(s) for s in sums.values()) / len(outcome)
""",
    "numpy": """
import numpy as np

def expected_calibration_error(probability, outcome, num_bins):
    v, r = probability.numpy(), outcome.numpy()
    edges = np.arange(1, num_bins) / num_bins
    k = np.digitize(v, edges)
    return np.abs(np.bincount(k, weights=v - r, minlength=num_bins)).sum() / v.size

def skill(probability, outcome):
    return 1 - np.mean((probability.numpy() - outcome.numpy()) ** 2) / np.var(outcome.numpy())
""",
    "einsum": """
def brier_score(probability, outcome):
    d = probability - outcome
    return torch.einsum("b,b->", d, d) / d.numel()

def expected_calibration_error(probability, outcome, num_bins):
    k = torch.clamp((probability * num_bins).floor().long(), 0, num_bins - 1)
    member = torch.nn.functional.one_hot(k, num_bins).to(probability.dtype)
    return torch.einsum("bk,b->k", member, probability - outcome).abs().sum() / len(outcome)
""",
}
_ECE = """
def expected_calibration_error(V, R, n):
    k = (V * n).long().clamp(max=n - 1)
    total = 0.0
    for i in range(n):
        m = k == i
        if m.any():
            total = total + m.double().mean() * (V[m].mean() - R[m].mean()).abs()
    return total
"""
WRONG = {
    "absolute": ("def brier_score(V, R): return (V - R).abs().mean()", "mean absolute error"),
    "sum": ("def brier_score(V, R): return (V - R).square().sum()", "not the mean"),
    "root": ("def brier_score(V, R): return (V - R).square().mean().sqrt()", "square root"),
    "mean first": ("def brier_score(V, R): return (V - R).mean().square()", "mean of the squares"),
    "halved": ("def brier_score(V, R): return (V - R).square().mean() / 2", "halved"),
    "per episode": ("def brier_score(V, R): return (V - R).square()", "shape"),
    "never cancel": (
        _ECE.replace("(V[m].mean() - R[m].mean()).abs()", "(V[m] - R[m]).abs().mean()"),
        "single predictions",
    ),
    "rounded": (_ECE.replace("(V * n).long()", "(V * n).round().long()"), "nearest edge"),
    "uniform": (_ECE.replace("m.double().mean()", "1 / len(k.unique())"), "All bins count the same"),
    "no shares": (_ECE.replace("m.double().mean() * ", ""), "without their shares"),
    "one bin": ("def expected_calibration_error(V, R, n): return (V.mean() - R.mean()).abs()", "one bin for all"),
    "a bin too few": (
        "right = expected_calibration_error\ndef expected_calibration_error(V, R, n): return right(V, R, max(n - 1, 1))",
        "one bin too few",
    ),
    "squared": (_ECE.replace(".abs()", ".square()"), "squared"),
    "signed": (_ECE.replace(".abs()", ""), "keep their sign"),
    "empty bins": (_ECE.replace("        if m.any():\n    ", ""), "NaN"),
    "last bin": (_ECE.replace(".clamp(max=n - 1)", ""), "V = 1 is in no bin"),
    "edges": (_ECE.replace("(V * n).long()", "((V * n).ceil().long() - 1).clamp(min=0)"), "bin above"),
    "quotient": ("def skill(V, R): return brier_score(V, R) / R.var(correction=0)", "1 minus it"),
    "half": ("def skill(V, R): return 1 - brier_score(V, R) / 0.25", "1/2"),
    "sample": ("def skill(V, R): return 1 - brier_score(V, R) / R.var()", "B - 1"),
    "explained variance": (
        "def skill(V, R): return 1 - (V - R).var(correction=0) / R.var(correction=0)",
        "explained variance",
    ),
}
