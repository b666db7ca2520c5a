"""Right and wrong ways to write e04_clip."""

RIGHT = {
    "loops": """
import math

def clipped_objective(logp, logp_old, advantage, clip_coef):
    rows = []
    for b in range(len(logp)):
        row = []
        for t in range(logp.shape[1]):
            A = float(advantage[b])
            r = torch.exp(logp[b, t] - float(logp_old[b, t]))
            clipped = min(max(r.item(), 1 - clip_coef), 1 + clip_coef)
            row.append(r * A if r.item() * A <= clipped * A else torch.as_tensor(clipped * A, dtype=logp.dtype))
        rows.append(torch.stack(row))
    return torch.stack(rows)

def has_no_gradient(ratio, advantage, clip_coef):
    if advantage > 0:
        return ratio > 1 + clip_coef
    return ratio < 1 - clip_coef
""",
    "where": """
def clipped_objective(logp, logp_old, advantage, clip_coef):
    A = advantage.detach().unsqueeze(1)
    r = torch.exp(logp - logp_old.detach())
    bound = torch.where(A >= 0, 1 + clip_coef, 1 - clip_coef)
    return torch.where(A >= 0, torch.minimum(r, bound), torch.maximum(r, bound)) * A

def has_no_gradient(ratio, advantage, clip_coef):
    x = torch.tensor([[0.0]], requires_grad=True)
    old = -torch.log(torch.tensor([[ratio]]))
    (g,) = torch.autograd.grad(clipped_objective(x, old, torch.tensor([advantage]), clip_coef).sum(), x)
    return g.item() == 0
""",
    "einsum": """
def clipped_objective(logp, logp_old, advantage, clip_coef):
    with torch.no_grad():
        old, A = logp_old.clone(), advantage.clone()
    r = (logp - old).exp()
    both = torch.stack([r, r.clip(1 - clip_coef, 1 + clip_coef)])
    return torch.einsum("kbt,b->kbt", both, A).amin(dim=0)

import numpy as np
def has_no_gradient(ratio, advantage, clip_coef):
    return np.bool_(np.sign(advantage) * (ratio - 1) > clip_coef)
""",
}
_HEAD = (
    "def clipped_objective(logp, logp_old, A, eps):\n    r, A = (logp - logp_old.detach()).exp(), A.detach()[:, None]\n"
)
WRONG = {
    "loss": (_HEAD + "    return -torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "minus the objective"),
    "not clipped": (_HEAD + "    return r * A", "not clipped at all"),
    "no minimum": (_HEAD + "    return r.clamp(1 - eps, 1 + eps) * A", "no minimum"),
    "maximum": (_HEAD + "    return torch.maximum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "The larger of"),
    "from above only": (_HEAD + "    return torch.minimum(r * A, r.clamp(max=1 + eps) * A)", "not clipped at 1 - eps"),
    "upside down": (_HEAD + "    r = 1 / r\n    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "old over new"),
    "no exp": (_HEAD + "    r = r.log()\n    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "exp is missing"),
    "minimum before the product": (_HEAD + "    return torch.minimum(r, r.clamp(1 - eps, 1 + eps)) * A", "multiplied by A afterwards"),
    "eps of 0.2": (_HEAD + "    return torch.minimum(r * A, r.clamp(0.8, 1.2) * A)", "0.2 is used"),
    "dual clip": (_HEAD + "    L = torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)\n"
                  "    return torch.where(A < 0, torch.maximum(L, 3 * A), L)", "dual clip"),
    "product of the ratios": (_HEAD + "    r = r.prod(1, keepdim=True).expand(r.shape)\n"
                              "    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "With"),
    "along the steps": ("def clipped_objective(logp, old, A, eps):\n    r = (logp - old).exp()\n"
                        "    if len(A) != r.shape[1]: A = A[:, None]\n"
                        "    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "along the steps"),
    "reduced": (_HEAD + "    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A).mean()", "has shape ()"),
    "old not detached": ("def clipped_objective(logp, old, A, eps):\n    r, A = (logp - old).exp(), A.detach()[:, None]\n"
                         "    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "old log-probability gets"),
    "advantage not detached": ("def clipped_objective(logp, old, A, eps):\n    r, A = (logp - old.detach()).exp(), A[:, None]\n"
                               "    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A)", "trains the critic"),
    "no gradient": (_HEAD + "    return torch.minimum(r * A, r.clamp(1 - eps, 1 + eps) * A).detach()", "gradient is lost"),
    "sign not looked at": ("def has_no_gradient(r, A, eps): return abs(r - 1) > eps", "sign of the advantage is not looked at"),
    "sign turned": ("def has_no_gradient(r, A, eps): return (A < 0 and r > 1 + eps) or (A > 0 and r < 1 - eps)", "turned round"),
    "upper limit": ("def has_no_gradient(r, A, eps): return A > 0 and r > 1 + eps", "Only successes"),
}  # fmt: skip
