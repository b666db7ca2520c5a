"""Right and wrong ways to write e03_gae."""

RIGHT = {
    "loops": """
def gae(reward, value, mask, gamma, gae_lambda):
    B, T = mask.shape
    A, G = torch.zeros(B, T), torch.zeros(B, T)
    for b in range(B):
        n = int(mask[b].sum())
        r, v = reward[b, :n].tolist(), value[b, :n].tolist() + [0.0]
        a = 0.0
        for t in range(n - 1, -1, -1):
            a = r[t] + gamma * v[t + 1] - v[t] + gamma * gae_lambda * a
            A[b, t], G[b, t] = a, a + v[t]
    return A, G
""",
    "numpy": """
import numpy as np

def gae(reward, value, mask, gamma, gae_lambda):
    m = mask.numpy()
    r, v = np.where(m, reward.numpy(), 0), np.where(m, value.detach().numpy(), 0)
    delta = r + gamma * np.concatenate([v[:, 1:], np.zeros((len(v), 1))], axis=1) - v
    A = np.zeros_like(v)
    for t in range(v.shape[1]):
        A[:, t] = sum((gamma * gae_lambda) ** (k - t) * delta[:, k] for k in range(t, v.shape[1]))
    return np.where(m, A, 0), np.where(m, A + v, 0)
""",
    "einsum": """
def gae(reward, value, mask, gamma, gae_lambda):
    T = mask.shape[1]
    r, v = reward.masked_fill(~mask, 0), value.detach().masked_fill(~mask, 0)
    delta = r + gamma * torch.nn.functional.pad(v[:, 1:], (0, 1)) - v
    k = torch.arange(T)
    away = (k[None, :] - k[:, None])
    weight = torch.where(away >= 0, torch.tensor(gamma * gae_lambda, dtype=v.dtype) ** away.clamp(min=0), 0.0)
    A = torch.einsum("tk,bk->bt", weight.to(v.dtype), delta) * mask
    return A, (A + v) * mask
""",
    "lambda returns": """
def gae(reward, value, mask, gamma, gae_lambda):
    with torch.no_grad():
        r, v = torch.where(mask, reward, 0.0), torch.where(mask, value, 0.0)
        G, out, after = torch.zeros_like(v[:, 0]), [], torch.zeros_like(v[:, 0])
        for t in range(v.shape[1] - 1, -1, -1):
            G = r[:, t] + gamma * ((1 - gae_lambda) * after + gae_lambda * G)
            G = G * mask[:, t]
            after = v[:, t]
            out.insert(0, G)
        G = torch.stack(out, dim=1)
        return (G - v) * mask, G
""",
}
_LOOP = """
def gae(reward, value, mask, gamma, gae_lambda):
    r, v = torch.where(mask, reward, 0.0), torch.where(mask, value, 0.0).detach()
    A_t, v_next, A = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), torch.zeros_like(v)
    for t in reversed(range(v.shape[1])):
        A_t = torch.where(mask[:, t], r[:, t] + gamma * v_next - v[:, t] + gamma * gae_lambda * A_t, 0.0)
        A[:, t], v_next = A_t, v[:, t]
    return A, torch.where(mask, A + v, 0.0)
"""
assert _LOOP.count("gamma * v_next") == 1
WRONG = {
    "return for advantage": (_LOOP.replace("return A, torch", "return A + v, torch"), "The value is not subtracted"),
    "no gamma on the next value": (_LOOP.replace("gamma * v_next", "v_next"), "not multiplied by gamma"),
    "no lambda": (_LOOP.replace("gamma * gae_lambda * A_t", "gamma * A_t"), "With reward"),
    "lambda ignored": (_LOOP.replace("gamma * v_next", "0 * v_next + gamma * v_next").replace(
        "    r, v", "    gae_lambda = 1.0\n    r, v"), "lambda is ignored"),
    "gamma ignored": (_LOOP.replace("    r, v", "    gamma = 1.0\n    r, v"), "gamma is ignored"),
    "bootstrapped end": (_LOOP.replace("v_next, A = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])",
        "v_next, A = torch.zeros_like(v[:, 0]), v[:, -1]"), "terminal state has value 0"),
    "reverse order": (_LOOP.replace("return A, torch", "return A.flip(1), torch"), "not turned round"),
    "whitened": (_LOOP.replace("return A, torch.where(mask, A + v, 0.0)",
        "n = mask.sum()\n    c = A - A.sum() / n\n    return c / ((c ** 2).sum() / max(int(n) - 1, 1) + 1e-8).sqrt(), A + v"),
        "normalised over the batch"),
    "rewards to go": (_LOOP.replace("return A, torch.where(mask, A + v, 0.0)",
        "G = torch.zeros_like(v)\n    g = 0\n    for t in reversed(range(v.shape[1])):\n"
        "        g = r[:, t] + gamma * g\n        G[:, t] = g\n    return A, G * mask"), "not A + V"),
    "mask ignored": (_LOOP.replace("mask", "torch.ones_like(mask)").replace(
        "value, torch.ones_like(mask), gamma", "value, mask, gamma"), "Padding is treated as real steps"),
    "next column": (_LOOP.replace("torch.where(mask, value, 0.0).detach()", "value.detach()"), "next column"),
    "product": (_LOOP.replace("torch.where(mask, reward, 0.0), torch.where(mask, value, 0.0).detach()",
        "reward * mask, (value * mask).detach()"), "NaN"),
    "not detached": (_LOOP.replace(".detach()", "").replace("A[:, t], v_next = A_t, v[:, t]",
        "A, v_next = torch.cat([A[:, :t], A_t[:, None], A[:, t + 1:]], 1), v[:, t]"), "has a gradient"),
    "one result": (_LOOP.replace("return A, torch.where(mask, A + v, 0.0)", "return A"), "two arrays"),
    "sign": (_LOOP.replace("return A, torch", "return -A, torch"), "sign is turned"),
}  # fmt: skip
