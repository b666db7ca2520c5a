"""Right and wrong ways to write e17_episode_ratio."""

RIGHT = {
    "loops": """
import math

def episode_ratio(logp, logp_old, mask):
    out = []
    for a, b, m in zip(logp.tolist(), logp_old.tolist(), mask.tolist()):
        product, n = 1.0, 0
        for x, y, real in zip(a, b, m):
            if real:
                product, n = product * math.exp(x - y), n + 1
        out.append(product ** (1 / n))
    return torch.tensor(out)

def kl_estimates(logp, logp_old, mask):
    d = [x - y for x, y, m in zip(logp.flatten().tolist(), logp_old.flatten().tolist(), mask.flatten().tolist()) if m]
    return -sum(d) / len(d), sum(math.exp(x) - 1 - x for x in d) / len(d)

def clip_fraction(logp, logp_old, mask, clip_coef):
    r = [math.exp(x - y) for x, y, m in zip(logp.flatten().tolist(), logp_old.flatten().tolist(), mask.flatten().tolist()) if m]
    return sum(x < 1 - clip_coef or x > 1 + clip_coef for x in r) / len(r)
""",
    "numpy": """
import numpy as np

def episode_ratio(logp, logp_old, mask):
    return np.exp(np.mean(logp.numpy() - logp_old.numpy(), axis=1, where=mask.numpy()))

def kl_estimates(logp, logp_old, mask):
    d = (logp - logp_old).numpy()[mask.numpy()]
    return np.mean(-d), np.mean(np.expm1(d) - d)
""",
    "einsum": """
def episode_ratio(logp, logp_old, mask):
    weight = mask.to(logp.dtype) / mask.sum(1, keepdim=True)
    return torch.einsum("bt,bt->b", weight, (logp - logp_old).masked_fill(~mask, 0)).exp()

def clip_fraction(logp, logp_old, mask, clip_coef):
    r = torch.where(mask, (logp - logp_old).exp(), 1.0)
    return (r != r.clamp(1 - clip_coef, 1 + clip_coef)).sum() / mask.sum()
""",
}
_KL = "def kl_estimates(logp, old, m):\n    x = (logp - old)[m]\n    return {}"
_FRACTION = "def clip_fraction(logp, old, m, eps):\n    r = (logp - old)[m].exp()\n    return {}"
WRONG = {
    "product": (
        "def episode_ratio(logp, old, m): return torch.where(m, logp - old, 0.0).sum(1).exp()",
        "is the product",
    ),
    "padded length": (
        "def episode_ratio(logp, old, m): return torch.where(m, logp - old, 0.0).mean(1).exp()",
        "over padding",
    ),
    "mask ignored": ("def episode_ratio(logp, old, m): return (logp - old).mean(1).exp()", "mask is ignored"),
    "arithmetic": (
        "def episode_ratio(logp, old, m): return torch.where(m, (logp - old).exp(), 0.0).sum(1) / m.sum(1)",
        "arithmetic mean",
    ),
    "upside down": (
        "def episode_ratio(logp, old, m): return (torch.where(m, old - logp, 0.0).sum(1) / m.sum(1)).exp()",
        "old over new",
    ),
    "no exp": (
        "def episode_ratio(logp, old, m): return torch.where(m, logp - old, 0.0).sum(1) / m.sum(1)",
        "exp is missing",
    ),
    "per step": ("def episode_ratio(logp, old, m): return torch.where(m, logp - old, 0.0).exp()", "each step"),
    "kl's sign": (_KL.format("x.mean(), (x.exp() - 1 - x).mean()"), "wrong sign"),
    "wrong term": (_KL.format("-x.mean(), (x.exp() - 1 + x).mean()"), "log r is added"),
    "no one": (_KL.format("-x.mean(), (x.exp() - x).mean()"), "1 is not subtracted"),
    "inverse": (_KL.format("-x.mean(), ((-x).exp() - 1 + x).mean()"), "inverse ratio"),
    "k2": (_KL.format("-x.mean(), x.square().mean() / 2"), "k2"),
    "order": (_KL.format("(x.exp() - 1 - x).mean(), -x.mean()"), "other order"),
    "padding in KL": (_KL.format("-x.mean(), (x.exp() - 1 - x).mean()").replace("[m]", ""), "Padding counts"),
    "one estimate": (_KL.format("-x.mean()"), "two numbers"),
    "log ratio": (_FRACTION.format("(r.log().abs() > eps).double().mean()"), "logarithm of the ratio"),
    "above only": (_FRACTION.format("(r > 1 + eps).double().mean()"), "below 1 - eps"),
    "count": (_FRACTION.format("((r - 1).abs() > eps).double().sum()"), "not their share"),
    "padding in fraction": (
        _FRACTION.format("((r - 1).abs() > eps).double().mean()").replace("[m]", ""),
        "Padding counts",
    ),
    "not clipped": (_FRACTION.format("((r - 1).abs() <= eps).double().mean()"), "not clipped"),
    "product with the mask": (
        "def episode_ratio(logp, old, m): return (((logp - old) * m).sum(1) / m.sum(1)).exp()",
        "NaN",
    ),
}
