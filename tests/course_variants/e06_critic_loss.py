"""Right and wrong ways to write e06_critic_loss."""

RIGHT = {
    "one line": "def critic_loss(v, R): return (F.softplus(v) - R * v).mean()",
    "torch's own": "def critic_loss(v, R): return F.binary_cross_entropy_with_logits(v, R)",
    "loops": """
def critic_loss(value_logit, outcome):
    total = 0.0
    for v, R in zip(value_logit, outcome):
        total = total + R * torch.logaddexp(-v, torch.zeros_like(v)) + (1 - R) * torch.logaddexp(v, torch.zeros_like(v))
    return total / len(outcome)

def cross_entropy_gradient(value_logit, outcome):
    return torch.tensor([(1 / (1 + 2.718281828459045 ** -v) - R) / len(outcome)
                         for v, R in zip(value_logit.tolist(), outcome.tolist())])
""",
    "numpy": """
import numpy as np

def critic_loss(v, R):
    return -(R * F.logsigmoid(v) + (1 - R) * F.logsigmoid(-v)).mean()

def cross_entropy_gradient(v, R):
    return (1 / (1 + np.exp(-v.numpy())) - R.numpy()) / len(R)

def squared_error_gradient(v, R):
    V = 1 / (1 + np.exp(-v.numpy()))
    return np.einsum("b,b,b->b", V - R.numpy(), V, 1 - V) / V.size
""",
    "autograd": """
def squared_error_gradient(v, R):
    x = v.detach().requires_grad_()
    return torch.autograd.grad((torch.sigmoid(x) - R).square().mean() / 2, x)[0]
""",
}
WRONG = {
    "squared error": ("def critic_loss(v, R): return (v.sigmoid() - R).square().mean()", "(V - R)^2, not"),
    "half": ("def critic_loss(v, R): return (v.sigmoid() - R).square().mean() / 2", "(V - R)^2 / 2, not"),
    "sigmoid twice": ("def critic_loss(v, R): return F.binary_cross_entropy_with_logits(v.sigmoid(), R)", "twice"),
    "sum": ("def critic_loss(v, R): return (F.softplus(v) - R * v).sum()", "is not divided"),
    "per episode": ("def critic_loss(v, R): return F.softplus(v) - R * v", "shape"),
    "sign": ("def critic_loss(v, R): return -(F.softplus(v) - R * v).mean()", "minimised"),
    "mixed up": ("def critic_loss(v, R): return (R * F.softplus(v) + (1 - R) * F.softplus(-v)).mean()", "mixed up"),
    "only successes": ("def critic_loss(v, R): return (R * F.softplus(-v)).mean()", "Only successes"),
    "detached": ("def critic_loss(v, R): return (F.softplus(v.detach()) - R * v.detach()).mean()", "gradient is lost"),
    "rounded": (
        "def critic_loss(v, R): return torch.where(R > 0.5, F.softplus(-v), F.softplus(v)).mean()",
        "success rate",
    ),
    "rounded probability": (
        "def critic_loss(v, R):\n    V = v.sigmoid()\n    return -(R * V.log() + (1 - R) * (1 - V).log()).mean()",
        "infinite at large logits",
    ),
    "cut off": ("def critic_loss(v, R): return F.binary_cross_entropy(v.sigmoid(), R)", "cut off at 100"),
    "gradient's sign": ("def cross_entropy_gradient(v, R): return (R - v.sigmoid()) / len(R)", "R - V"),
    "gradient of the sum": ("def cross_entropy_gradient(v, R): return v.sigmoid() - R", "not divided by B"),
    "gradient of the logit": (
        "def cross_entropy_gradient(v, R): return (v - R) / len(R)",
        "as if it were a probability",
    ),
    "no slope": (
        "def squared_error_gradient(v, R): return (v.sigmoid() - R) / len(R)",
        "gradient of the cross-entropy",
    ),
    "twice": (
        "def squared_error_gradient(v, R):\n    V = v.sigmoid()\n    return 2 * (V - R) * V * (1 - V) / len(R)",
        "not halved",
    ),
}
