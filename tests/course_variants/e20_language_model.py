"""Right and wrong ways to write e20_language_model."""

RIGHT = {
    "loops": """
def response_mask(tokens, prompt_length):
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for b in range(len(tokens)):
        for t in range(int(prompt_length[b]), tokens.shape[1]):
            mask[b, t] = True
            if tokens[b, t] == EOS:
                break
    return mask

def token_logp(logits, tokens):
    rows = []
    for b in range(len(tokens)):
        row = [logits.new_zeros(())]
        for t in range(1, tokens.shape[1]):
            row.append(torch.log_softmax(logits[b, t - 1], dim=0)[tokens[b, t]])
        rows.append(torch.stack(row))
    return torch.stack(rows)

def initial_value(value_logits, prompt_length):
    return torch.stack([row[n - 1] for row, n in zip(value_logits, prompt_length.tolist())])
""",
    "torch.optim": """
def update(policy, critic, batch, learning_rate):
    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=learning_rate)
    mask = response_mask(batch["tokens"], batch["prompt_length"])
    v = initial_value(critic(batch["tokens"]).squeeze(-1), batch["prompt_length"])
    with torch.no_grad():
        A = (batch["outcome"] - v.sigmoid()).unsqueeze(1)
    r = torch.exp(token_logp(policy(batch["tokens"]), batch["tokens"]) - batch["logp_old"])
    L = torch.min(r * A, r.clip(0.8, 1.2) * A) * mask
    optimizer.zero_grad()
    (-L.sum() / mask.sum()).backward()
    F.binary_cross_entropy_with_logits(v, batch["outcome"]).backward()
    optimizer.step()
""",
    "einsum": """
def token_logp(logits, tokens):
    chosen = F.one_hot(tokens[:, 1:], logits.shape[-1]).to(logits.dtype)
    logp = torch.einsum("btk,btk->bt", chosen, logits[:, :-1] - logits[:, :-1].logsumexp(-1, keepdim=True))
    return torch.cat([torch.zeros_like(logp[:, :1]), logp], dim=1)

def initial_value(value_logits, prompt_length):
    at = F.one_hot(prompt_length - 1, value_logits.shape[1]).to(value_logits.dtype)
    return torch.einsum("bt,bt->b", at, value_logits)
""",
    "numpy for the mask": """
import numpy as np

def response_mask(tokens, prompt_length):
    t, n = tokens.numpy(), prompt_length.numpy()
    out = np.zeros(t.shape, dtype=bool)
    for b in range(len(t)):
        ends = np.flatnonzero(t[b, n[b]:] == EOS)
        out[b, n[b] : n[b] + ends[0] + 1 if ends.size else None] = True
    return torch.from_numpy(out)
""",
}
_UPDATE = """
def update(policy, critic, batch, learning_rate):
    tokens, n, R = batch["tokens"], batch["prompt_length"], batch["outcome"]
    mask = response_mask(tokens, n)
    v = initial_value(critic(tokens)[..., 0], n)
    A = (R - torch.sigmoid(v)).detach()
    logp = token_logp(policy(tokens), tokens)
    r = (logp - batch["logp_old"]).exp()
    L = torch.minimum(r * A[:, None], r.clamp(0.8, 1.2) * A[:, None])
    policy_loss = -L[mask].mean()
    critic_loss = F.binary_cross_entropy_with_logits(v, R)
    weights = [*policy.parameters(), *critic.parameters()]
    grads = torch.autograd.grad(policy_loss + critic_loss, weights, allow_unused=True)
    with torch.no_grad():
        for w, g in zip(weights, grads):
            if g is not None:
                w -= learning_rate * g
"""


def _with(old, new):
    assert _UPDATE.count(old) == 1, old
    return _UPDATE.replace(old, new)


_MASK = "right = response_mask\ndef response_mask(tokens, n):\n    place = torch.arange(tokens.shape[1])\n    return {}"
WRONG = {
    "no EOS": (_MASK.format("right(tokens, n) & (tokens != EOS)"), "never learns to stop"),
    "prompt": (_MASK.format("right(tokens, n) | (place < n[:, None])"), "The prompt is in the mask"),
    "padding": (_MASK.format("place >= n[:, None]"), "padding after EOS"),
    "EOS by the token": (_MASK.format("(place >= n[:, None]) & (tokens != EOS)"), "EOS"),
    "to the left": (_MASK.format("F.pad(right(tokens, n)[:, 1:], (0, 1))"), "to the left"),
    "to the right": (_MASK.format("F.pad(right(tokens, n)[:, :-1], (1, 0))"), "to the right"),
    "EOS in the prompt": (
        _MASK.format("(place >= n[:, None]) & ((tokens == EOS).int().cumsum(1) - (tokens == EOS).int() == 0)"),
        "inside the prompt",
    ),
    "whole numbers": (_MASK.format("right(tokens, n).int()"), "dtype bool"),
    "no shift": (
        "def token_logp(logits, tokens): return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]",
        "no shift",
    ),
    "no first column": (
        "right = token_logp\ndef token_logp(logits, tokens): return right(logits, tokens)[:, 1:]",
        "first column is missing",
    ),
    "padded at the end": (
        "right = token_logp\ndef token_logp(logits, tokens): return F.pad(right(logits, tokens)[:, 1:], (0, 1))",
        "too far to the left",
    ),
    "logits": (
        "def token_logp(logits, tokens): return F.pad(logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0], (1, 0))",
        "log_softmax is missing",
    ),
    "cross-entropy": ("right = token_logp\ndef token_logp(logits, tokens): return -right(logits, tokens)", "not above 0"),
    "wrong axis": (
        "def token_logp(logits, tokens):\n"
        "    return F.pad(logits.log_softmax(1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0], (1, 0))",
        "over the places",
    ),
    "late critic": ("def initial_value(x, n): return x.gather(1, n[:, None])[:, 0]", "first response token"),
    "last place": ("def initial_value(x, n): return x[:, -1]", "last place of the row"),
    "first row's place": ("def initial_value(x, n): return x[:, n[0] - 1]", "first row's prompt"),
    "ascends": (_with("-L[mask]", "L[mask]"), "without the minus"),
    "weights go up": (_with("w -= learning_rate", "w += learning_rate"), "up the loss"),
    "sign of A": (_with("(R - torch.sigmoid(v)).detach()", "(torch.sigmoid(v) - R).detach()"), "V - R"),
    "logit": (_with("torch.sigmoid(v)).detach()", "v).detach()"), "as if it were a probability"),
    "attached": (_with(".detach()", ""), "also trains the critic"),
    "no baseline": (_with("(R - torch.sigmoid(v)).detach()", "R"), "is not subtracted"),
    "normalised": (
        _with("    logp =", "    A = (A - A.mean()) / (A.std() + 1e-8)\n    logp ="),
        "normalised",
    ),
    "no mask": (_with("L[mask].mean()", "L.mean()"), "padding is trained"),
    "sequence-mean": (
        _with("-L[mask].mean()", "-(torch.where(mask, L, 0.0).sum(1) / mask.sum(1)).mean()"),
        "Each sequence counts the same",
    ),
    "over padding": (_with("-L[mask].mean()", "-torch.where(mask, L, 0.0).mean()"), "padding included"),
    "not clipped": (_with("r.clamp(0.8, 1.2)", "r"), "not clipped at all"),
    "reinforce": (_with("torch.minimum(r * A[:, None], r.clamp(0.8, 1.2) * A[:, None])", "logp * A[:, None]"), "REINFORCE"),
    "squared": (_with("F.binary_cross_entropy_with_logits(v, R)", "(v.sigmoid() - R).square().mean()"), "squared"),
    "policy alone": (_with("policy_loss + critic_loss", "policy_loss"), "critic is not trained"),
    "copies": (_with("w -= learning_rate * g", "w = w - learning_rate * g"), "No weight changes"),
    "no learning rate": (_with("w -= learning_rate * g", "w -= g"), "learning rate is not used"),
    "not cleared": (
        _with("    grads = torch.autograd.grad(policy_loss + critic_loss, weights, allow_unused=True)",
              "    (policy_loss + critic_loss).backward()\n    grads = [w.grad for w in weights]"),
        "not cleared",
    ),
}  # fmt: skip
