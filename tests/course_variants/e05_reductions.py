"""Right and wrong ways to write e05_reductions."""

RIGHT = {
    "loops": """
def reduce(x, mask, reduction, denominator=None):
    total, episodes, steps = 0.0, 0, 0
    for row, real in zip(x, mask):
        values = [v for v, m in zip(row, real.tolist()) if m]
        steps += len(values)
        if values:
            episodes += 1
            total = total + (sum(values) / len(values) if reduction == "sequence-mean" else sum(values))
    usual = {"token-mean": steps, "sequence-mean": episodes, "fixed": x.shape[0] * x.shape[1]}[reduction]
    return total / (denominator if denominator is not None else usual)
""",
    "selection": """
def reduce(x, mask, reduction, denominator=None):
    if reduction == "sequence-mean":
        rows = torch.stack([row[m].mean() for row, m in zip(x, mask) if m.any()])
        return rows.sum() / (denominator or len(rows))
    return x[mask].sum() / (denominator or (mask.sum() if reduction == "token-mean" else x.numel()))

def whole_batch(parts):
    n = torch.cat([m for _, m in parts]).sum()
    loss = 0
    for x, m in parts:
        loss = loss + x[m].sum() / n
    return loss
""",
    "einsum": """
def reduce(x, mask, reduction, denominator=None):
    weight = mask.double()
    if reduction == "sequence-mean":
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    usual = {"token-mean": weight.sum(), "sequence-mean": mask.any(1).sum(), "fixed": float(mask.numel())}[reduction]
    return torch.einsum("bt,bt->", x.masked_fill(~mask, 0).double(), weight) / (denominator or usual)
""",
    "numpy for the batch": """
import numpy as np
def whole_batch(parts):
    n = np.sum([m.numpy().sum() for _, m in parts])
    return np.sum([np.where(m.numpy(), x.numpy(), 0).sum() for x, m in parts]) / n
""",
}
_HEAD = "right = reduce\ndef reduce(x, mask, reduction, denominator=None):\n"
WRONG = {
    "mask ignored": (_HEAD + "    return right(x, mask | True, reduction, denominator)", "The mask is ignored"),
    "plain mean": (_HEAD + "    return (x * mask).mean()", "padding included"),
    "reduction ignored": (_HEAD + "    return right(x, mask, 'token-mean', denominator)", "reduction is ignored"),
    "sequence for token": (
        _HEAD + "    return right(x, mask, reduction.replace('token', 'sequence'), denominator)",
        "Each sequence counts the same",
    ),
    "swapped": (
        _HEAD + "    other = {'token-mean': 'fixed', 'fixed': 'token-mean'}\n"
        "    return right(x, mask, other.get(reduction, reduction), denominator)",
        "divided by all steps",
    ),
    "sum": (_HEAD + "    return torch.where(mask, x, 0.0).sum()", "is not divided"),
    "padded length": (
        _HEAD + "    if reduction == 'sequence-mean': return torch.where(mask, x, 0.0).mean(1).mean()\n"
        "    return right(x, mask, reduction, denominator)",
        "over its padded length",
    ),
    "sums of sequences": (
        _HEAD + "    if reduction == 'sequence-mean': return torch.where(mask, x, 0.0).sum(1).mean()\n"
        "    return right(x, mask, reduction, denominator)",
        "sum is taken, not its mean",
    ),
    "empty row counts": (
        _HEAD + "    if reduction == 'sequence-mean': denominator = denominator or len(x)\n"
        "    return right(x, mask, reduction, denominator)",
        "counts as a sequence",
    ),
    "zero by zero": (
        _HEAD + "    if reduction == 'sequence-mean':\n"
        "        return (torch.where(mask, x, 0.0).sum(1) / mask.sum(1)).sum() / (denominator or mask.any(1).sum())\n"
        "    return right(x, mask, reduction, denominator)",
        "0 / 0",
    ),
    "denominator ignored": (_HEAD + "    return right(x, mask, reduction)", "given divisor is ignored"),
    "divided twice": (_HEAD + "    return right(x, mask, reduction) / (denominator or 1)", "too"),
    "product": (
        _HEAD + "    y = x * mask\n    if reduction == 'token-mean': return y.sum() / (denominator or mask.sum())\n"
        "    return right(x, mask, reduction, denominator)",
        "NaN times 0",
    ),
    "no gradient": (_HEAD + "    return right(x, mask, reduction, denominator).item()", "gradient is lost"),
    "means added": (
        "def whole_batch(parts): return sum(reduce(x, m, 'token-mean') for x, m in parts)",
        "means are added",
    ),
    "means averaged": (
        "def whole_batch(parts): return sum(reduce(x, m, 'token-mean') for x, m in parts) / len(parts)",
        "means are averaged",
    ),
    "last part": (
        "def whole_batch(parts):\n    for x, m in parts: loss = reduce(x, m, 'token-mean')\n    return loss",
        "only the last one",
    ),
}
