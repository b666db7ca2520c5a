"""Right and wrong ways to write e02_sequence_advantage."""

RIGHT = {
    "loops": """
def sequence_advantage(outcome, value_logit):
    A = []
    for R, v in zip(outcome.tolist(), value_logit.tolist()):
        A.append(R - 1 / (1 + 2.718281828459045 ** -v))
    return torch.tensor(A)

def per_step(advantage, mask):
    B, T = mask.shape
    out = torch.zeros(B, T)
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                out[b, t] = advantage[b]
    return out
""",
    "numpy": """
import numpy as np

def sequence_advantage(outcome, value_logit):
    return outcome.numpy() - 1 / (1 + np.exp(-value_logit.detach().numpy()))

def per_step(advantage, mask):
    return np.where(mask.numpy(), advantage.numpy()[:, None], 0)
""",
    "einsum": """
def sequence_advantage(outcome, value_logit):
    with torch.no_grad():
        return outcome - value_logit.sigmoid()

def per_step(advantage, mask):
    return torch.einsum("b,bt->bt", torch.nan_to_num(advantage), mask.to(advantage.dtype))
""",
    "in place": """
def sequence_advantage(outcome, value_logit):
    return outcome.clone().sub_(torch.sigmoid(value_logit).detach())

def per_step(advantage, mask):
    return advantage.unsqueeze(-1).expand(mask.shape).masked_fill(~mask, 0)
""",
}
WRONG = {
    "sign": ("def sequence_advantage(R, v): return (torch.sigmoid(v) - R).detach()", "V - R"),
    "logit": ("def sequence_advantage(R, v): return (R - v).detach()", "logit is subtracted"),
    "no baseline": ("def sequence_advantage(R, v): return R", "V(s_0) is not subtracted"),
    "normalised": (
        "def sequence_advantage(R, v):\n    A = (R - torch.sigmoid(v)).detach()\n"
        "    return (A - A.mean()) / (A.std() + 1e-8) if len(A) > 1 else A - A",
        "normalised",
    ),
    "not detached": ("def sequence_advantage(R, v): return R - torch.sigmoid(v)", "also trains the critic"),
    "square": (
        "def sequence_advantage(R, v): return (R - torch.sigmoid(v)).square().detach()",
        "none of the usual mistakes",
    ),
    "one column": ("def sequence_advantage(R, v): return (R - torch.sigmoid(v)).detach()[:, None]", "shape (1, 1)"),
    "nothing": ("def sequence_advantage(R, v): A = (R - torch.sigmoid(v)).detach()", "None"),
    "in place": ("def sequence_advantage(R, v):\n    R -= torch.sigmoid(v).detach()\n    return R", "in place"),
    "padding": ("def per_step(A, mask): return A[:, None].expand(mask.shape)", "Padding has an advantage"),
    "row": (
        "def per_step(A, mask): return A * mask if len(A) == mask.shape[1] else A[:, None] * mask",
        "along the steps",
    ),
    "shared out": (
        "def per_step(A, mask): return torch.where(mask, A[:, None], 0.0) / mask.sum(1, keepdim=True)",
        "shared out",
    ),
    "product": ("def per_step(A, mask): return A[:, None] * mask", "NaN times 0"),
    "turned mask": ("def per_step(A, mask): return torch.where(mask, 0.0, A[:, None])", "turned round"),
}
