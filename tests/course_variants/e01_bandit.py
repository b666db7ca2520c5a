"""Right and wrong ways to write e01_bandit."""

RIGHT = {
    "closed forms": """
def score(theta, arm):
    p = 1 / (1 + math.exp(-theta))
    return 1 - p if arm == 1 else -p

def estimate_mean(theta, rewards, baseline):
    p = 1 / (1 + math.exp(-theta))
    return p * (1 - p) * (rewards[1] - rewards[0])

def best_baseline(theta, rewards):
    p = 1 / (1 + math.exp(-theta))
    return (1 - p) * rewards[1] + p * rewards[0]
""",
    "torch's gradient": """
import torch
def score(theta, arm):
    t = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    torch.stack([1 - t.sigmoid(), t.sigmoid()]).log()[arm].backward()
    return t.grad

def estimate_variance(theta, rewards, baseline):
    p = torch.tensor([1 - torch.sigmoid(torch.tensor(theta, dtype=torch.float64)),
                      torch.sigmoid(torch.tensor(theta, dtype=torch.float64))], dtype=torch.float64)
    s = torch.stack([score(theta, 0), score(theta, 1)])
    g = (torch.tensor(rewards, dtype=torch.float64) - baseline) * s
    return torch.einsum("a,a->", p, (g - p @ g) ** 2)
""",
    "numpy": """
import numpy as np
def estimate_mean(theta, rewards, baseline):
    p = np.array([1 - 1 / (1 + np.exp(-theta)), 1 / (1 + np.exp(-theta))])
    s = np.array([0, 1]) - p[1]
    return np.sum(p * (np.array(rewards) - baseline) * s)

def best_baseline(theta, rewards):
    b = np.linspace(-5, 5, 11)  # the variance is a parabola: fit it, and read its minimum
    a2, a1, _ = np.polyfit(b, [estimate_variance(theta, rewards, x) for x in b], 2)
    return -a1 / (2 * a2)
""",
}
WRONG = {
    "derivative of pi": (
        "def score(theta, arm):\n    p = 1 / (1 + math.exp(-theta))\n    return p * (1 - p) * (1 if arm else -1)",
        "derivative of pi, not of log pi",
    ),
    "sign": ("def score(theta, arm): return 1 / (1 + math.exp(-theta)) - arm", "wrong sign"),
    "both arms": ("def score(theta, arm): return 1 - 1 / (1 + math.exp(-theta))", "score of arm 1"),
    "positive": (
        "def score(theta, arm):\n    p = 1 / (1 + math.exp(-theta))\n    return 1 - p if arm else p",
        "log(1 - p) falls",
    ),
    "theta": ("def score(theta, arm): return arm - theta", "Use sigmoid(theta)"),
    "no probabilities": (
        "def estimate_mean(theta, rewards, baseline):\n"
        "    return sum((rewards[a] - baseline) * score(theta, a) for a in (0, 1))",
        "without their probabilities",
    ),
    "uniform": (
        "def estimate_mean(theta, rewards, baseline):\n"
        "    return sum((rewards[a] - baseline) * score(theta, a) for a in (0, 1)) / 2",
        "count the same",
    ),
    "second moment": (
        "def estimate_variance(theta, rewards, b):\n    p = 1 / (1 + math.exp(-theta))\n"
        "    return sum(q * ((r - b) * score(theta, a)) ** 2 for a, q, r in ((0, 1 - p, rewards[0]), (1, p, rewards[1])))",
        "E[g^2]",
    ),
    "deviation": (
        "right = estimate_variance\ndef estimate_variance(*x): return math.sqrt(max(right(*x), 0))",
        "standard deviation",
    ),
    "without the baseline": (
        "right = estimate_variance\ndef estimate_variance(theta, rewards, b): return right(theta, rewards, 0.0)",
        "left out of the variance",
    ),
    "expected reward": (
        "def best_baseline(theta, rewards):\n    p = 1 / (1 + math.exp(-theta))\n"
        "    return (1 - p) * rewards[0] + p * rewards[1]",
        "This is the expected reward",
    ),
    "mean reward": ("def best_baseline(theta, rewards): return sum(rewards) / 2", "plain mean"),
}
