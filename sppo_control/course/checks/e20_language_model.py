"""Checks of e20_language_model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compare import against, call, numbers, sentence, show
from ..grading import Check, Mistake

EOS = 0
ROWS: list[dict[str, Any]] = [
    {"tokens": torch.tensor([[5, 3, 4, 0, 0]]), "prompt_length": torch.tensor([2])},
    {"tokens": torch.tensor([[5, 3, 4]]), "prompt_length": torch.tensor([1])},
    {"tokens": torch.tensor([[5, 0, 3, 0]]), "prompt_length": torch.tensor([2])},
    {"tokens": torch.tensor([[5, 3, 0, 0, 0], [1, 2, 6, 3, 2]]), "prompt_length": torch.tensor([2, 3])},
]


def _mask(tokens: Tensor, n: Tensor, prompt: bool = False, eos: bool = True, padding: bool = False) -> Tensor:
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for b, row in enumerate(tokens.tolist()):
        first = int(n[b])
        end = next((t + 1 if eos else t for t in range(first, len(row)) if row[t] == EOS), len(row))
        mask[b, 0 if prompt else first : len(row) if padding else end] = True
    return mask


def _shifted(mask: Tensor) -> Tensor:
    return F.pad(mask[:, 1:], (0, 1))


def masks(student: ModuleType) -> None:
    def answer(tokens: Tensor, n: Tensor) -> Any:
        found = student.response_mask(tokens, n)
        if not isinstance(found, Tensor) or found.dtype != torch.bool:
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise Mistake(f"The mask must be a tensor of dtype bool, but it is {kind}.")
        return found.double()

    def double(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tokens, n: f(tokens, n).double()

    against(
        answer,
        ROWS,
        double(_mask),
        "the mask",
        {
            "The EOS that ends the response is left out, so the model never learns to stop.": double(
                lambda t, n: _mask(t, n, eos=False)
            ),
            "The prompt is in the mask, but the model did not choose it.": double(
                lambda t, n: _mask(t, n, prompt=True)
            ),
            "The padding after EOS is in the mask.": double(lambda t, n: _mask(t, n, padding=True)),
            "Each EOS is left out, but the first one belongs to the response.": double(
                lambda t, n: _mask(t, n, padding=True) & (t != EOS)
            ),
            "The mask is one place too far to the left: the last prompt token is in it.": double(
                lambda t, n: _shifted(_mask(t, n))
            ),
            "The mask is one place too far to the right: the first response token is not in it.": double(
                lambda t, n: F.pad(_mask(t, n)[:, :-1], (1, 0))
            ),
            "An EOS token inside the prompt ends the response. Only one in the response does.": double(
                lambda t, n: _mask(t, n) & (torch.cumsum((t == EOS).int(), 1) - (t == EOS).int() == 0)
            ),
        },
    )


def _logp(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.pad(logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0], (1, 0))


def _logits(B: int, L: int, K: int) -> Tensor:
    return torch.randn(B, L, K, dtype=torch.float64, generator=torch.Generator().manual_seed(B * L))


def logps(student: ModuleType) -> None:
    half = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    cases: list[dict[str, Any]] = [
        {"logits": half, "tokens": torch.tensor([[1, 0]])},
        {"logits": half.flip(1), "tokens": torch.tensor([[1, 1]])},
        {"logits": _logits(2, 3, 4), "tokens": torch.tensor([[1, 2, 0], [3, 3, 1]])},
    ]

    def gathered(x: Tensor, tokens: Tensor) -> Tensor:
        return x.gather(-1, tokens[..., None])[..., 0]

    against(
        student.token_logp,
        cases,
        _logp,
        "logp",
        {
            "There is no shift: logits[:, t] predict the NEXT token, tokens[:, t + 1].": lambda x, t: gathered(
                x.log_softmax(-1), t
            ),
            "The result is one place too far to the left: logp[:, t] belongs to tokens[:, t], and column 0 is 0.":
            lambda x, t: F.pad(_logp(x, t)[:, 1:], (0, 1)),
            "The first column is missing: it is 0, so that logp has the shape of tokens.": lambda x, t: _logp(x, t)[:, 1:],
            "These are the logits of the tokens; log_softmax is missing.": lambda x, t: F.pad(
                gathered(x[:, :-1], t[:, 1:]), (1, 0)
            ),
            "These are probabilities, not their logarithms.": lambda x, t: F.pad(_logp(x, t)[:, 1:].exp(), (1, 0)),
            "The sign is that of a cross-entropy; a log-probability is not above 0.": lambda x, t: -_logp(x, t),
            "softmax is over the places, not over the vocabulary. Use dim=-1.": lambda x, t: F.pad(
                gathered(x.log_softmax(1)[:, :-1], t[:, 1:]), (1, 0)
            ),
            "The shift is two places.": lambda x, t: F.pad(gathered(x.log_softmax(-1)[:, :-1], t[:, :-1]), (1, 0)),
        },
    )  # fmt: skip
    x = _logits(1, 3, 4).requires_grad_()
    if not numbers(student.token_logp(x, torch.tensor([[1, 2, 0]])), (1, 3), "logp").requires_grad:
        raise Mistake("The gradient is lost: logp has none, because of detach(), item() or numpy(), for example.")


def values(student: ModuleType) -> None:
    against(
        student.initial_value,
        [
            {"value_logits": torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double(), "prompt_length": torch.tensor([2])},
            {
                "value_logits": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double(),
                "prompt_length": torch.tensor([1, 2]),
            },
        ],
        lambda x, n: x.gather(1, n[:, None] - 1)[:, 0],
        "v",
        {
            "This is the logit at the first response token, which has seen a piece of the answer.": lambda x, n: (
                x.gather(1, n[:, None])[:, 0]
            ),
            "This is the logit at the last place of the row, which has seen the whole response.": lambda x, n: x[:, -1],
            "This is the logit at the first token, which has hardly seen the prompt.": lambda x, n: x[:, 0],
            "All rows are read at the place of the first row's prompt.": lambda x, n: x[:, n[0] - 1],
            "This is the mean over the prompt, where the logit at its last token is asked for.": lambda x, n: (
                torch.stack([row[:k].mean() for row, k in zip(x, n, strict=True)])
            ),
            "This is the critic's probability; v is its logit.": lambda x, n: x.gather(1, n[:, None] - 1)[
                :, 0
            ].sigmoid(),
        },
    )
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    if not numbers(call(student.initial_value, x, torch.tensor([1])), (1,), "v").requires_grad:
        raise Mistake("The gradient is lost: v has none, so the critic would never be trained.")


# ------------------------------------------------------------------------------------------------- the whole update
def _batch(policy: Any) -> dict[str, Tensor]:
    tokens = torch.tensor([[5, 3, 4, 0, 0], [1, 2, 6, 3, 2], [6, 4, 0, 0, 0], [2, 5, 1, 4, 0]])
    move = torch.tensor(
        [[0.0, 0.1, -0.1, 0.3, 0.05], [0.0, 0.0, -0.4, 0.2, 0.1], [0.3] * 5, [0.0, -0.3, 0.3, 0.1, -0.05]]
    )
    with torch.no_grad():
        old = _logp(policy(tokens), tokens) + move.double()
    return {
        "tokens": tokens,
        "prompt_length": torch.tensor([2, 3, 1, 1]),
        "outcome": torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        "logp_old": old,
    }


def _loss(policy: Any, critic: Any, batch: Mapping[str, Tensor], wrong: str) -> Tensor:
    tokens, n, R = batch["tokens"], batch["prompt_length"], batch["outcome"]
    mask = _mask(tokens, n, prompt=wrong == "prompt", padding=wrong == "padding", eos=wrong != "eos")
    if wrong == "everything":
        mask = torch.ones_like(mask)
    place = n if wrong == "late critic" else torch.full_like(n, tokens.shape[1]) if wrong == "last place" else n
    v = critic(tokens)[..., 0].gather(1, place[:, None] - (0 if wrong == "late critic" else 1))[:, 0]
    A = R - (v if wrong == "logit" else torch.sigmoid(v))
    A = A if wrong == "attached" else A.detach()
    if wrong == "no baseline":
        A = R
    if wrong == "sign of A":
        A = -A
    if wrong == "normalised":
        A = (A - A.mean()) / (A.std() + 1e-8)
    r = (_logp(policy(tokens), tokens) - batch["logp_old"]).exp()
    r = 1 / r if wrong == "upside down" else r
    L = torch.minimum(r * A[:, None], r.clamp(0.8, 1.2) * A[:, None])
    if wrong == "unclipped":
        L = r * A[:, None]
    if wrong == "reinforce":
        L = _logp(policy(tokens), tokens) * A[:, None]
    L = torch.where(mask, L, 0.0)
    mean = L.sum() / mask.sum()
    if wrong == "sequence-mean":
        mean = (L.sum(1) / mask.sum(1)).mean()
    if wrong == "fixed":
        mean = L.mean()
    if wrong == "sum":
        mean = L.sum()
    cross = F.binary_cross_entropy_with_logits(v, R)
    if wrong == "squared":
        cross = (torch.sigmoid(v) - R).square().mean()
    if wrong == "no critic":
        cross = 0 * cross
    if wrong == "critic alone":
        mean = 0 * mean
    return (mean if wrong == "ascends" else -mean) + cross


WRONG = {
    "ascends": "The policy's loss is the objective without the minus, so failures are made likelier.",
    "sign of A": "advantage_sign_turned",
    "logit": "advantage_from_the_logit",
    "attached": "update_advantage_not_detached",
    "no baseline": "advantage_without_baseline",
    "normalised": "advantage_normalised",
    "prompt": "The prompt is trained, too. Use the response mask.",
    "padding": "update_trains_padding",
    "everything": "update_trains_padding",
    "eos": "The EOS that ends the response is left out, so the model never learns to stop.",
    "late critic": "The critic is read at the first response token, which has seen a piece of the answer.",
    "last place": "The critic is read at the last place of the row, which has seen the whole response.",
    "upside down": "ratio_upside_down",
    "unclipped": "ratio_not_clipped",
    "reinforce": "log_probability_for_ratio",
    "sequence-mean": "sequence_mean_in_place_of_token_mean",
    "fixed": "mean_over_padding",
    "sum": "sum_for_mean",
    "squared": "update_critic_squared_error",
    "no critic": "The critic is not trained.",
    "critic alone": "The policy is not trained.",
}


def _flat(*models: Any) -> Tensor:
    return torch.cat([w.detach().flatten() for model in models for w in model.parameters()])


def _models(student: ModuleType) -> tuple[Any, Any]:
    torch.default_generator.manual_seed(1)
    return student.TinyTransformer(7), student.TinyTransformer(1)


def _after(student: ModuleType, policy: Any, critic: Any, batch: Any, rate: float) -> tuple[Any, Any]:
    mine = copy.deepcopy(policy), copy.deepcopy(critic)
    student.update(*mine, {name: x.clone() for name, x in batch.items()}, rate)
    return mine


def update(student: ModuleType) -> None:
    policy, critic = _models(student)
    batch, rate, start = _batch(policy), 0.5, _flat(policy, critic)

    def step(wrong: str) -> Tensor:
        weights = [*policy.parameters(), *critic.parameters()]
        gradients = torch.autograd.grad(_loss(policy, critic, batch, wrong), weights, allow_unused=True)
        return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten()
                          for w, g in zip(weights, gradients, strict=True)])  # fmt: skip

    right = step("")
    mine = (start - _flat(*_after(student, policy, critic, batch, rate))) / rate
    if torch.allclose(mine, right, 1e-6, 1e-9):
        return
    numbers_ = f"The step of the weights has the length {show(mine.norm())}, right is {show(right.norm())}."
    if not mine.any():
        raise Mistake("No weight changes. update must change the models in place, w -= learning_rate * gradient under "
                      "torch.no_grad().")  # fmt: skip
    if torch.allclose(mine, -right, 1e-6, 1e-9):
        raise Mistake(f"{sentence('update_ascends')} {numbers_}")
    size = sum(w.numel() for w in policy.parameters())
    for wrong, name in WRONG.items():
        guess = step(wrong)
        if torch.allclose(mine, guess, 1e-6, 1e-9):
            raise Mistake(f"{sentence(name)} {numbers_}")
    for factor, words in ((rate, "The gradient is multiplied by the learning rate twice."),
                          (1 / rate, "The learning rate is not used.")):  # fmt: skip
        if torch.allclose(mine, factor * right, 1e-6, 1e-9):
            raise Mistake(f"{words} {numbers_}")
    parts = {"policy": slice(0, size), "critic": slice(size, None)}
    good = [name for name, part in parts.items() if torch.allclose(mine[part], right[part], 1e-6, 1e-9)]
    where = f"The {good[0]}'s step is right, the other's is not." if good else "Neither step is right."
    cosine = F.cosine_similarity(mine, right, dim=0)
    raise Mistake(
        f"The update differs, and not by a usual mistake. {where} {numbers_} The cosine of the angle between them is "
        f"{show(cosine)}."
    )


def again(student: ModuleType) -> None:
    policy, critic = _models(student)
    batch = _batch(policy)

    def twice(clear: bool) -> tuple[Any, Any]:
        models = copy.deepcopy(policy), copy.deepcopy(critic)
        for _ in range(2):
            student.update(*models, {name: x.clone() for name, x in batch.items()}, 0.1)
            for w in [w for model in models for w in model.parameters() if clear]:
                w.grad = None
        return models

    found = twice(False)
    if not torch.allclose(_flat(*found), _flat(*twice(True)), 1e-9, 1e-12):
        raise Mistake(
            f"{sentence('update_gradient_never_cleared')} A second update differs from one with fresh gradients."
        )
    for w in [w for model in found for w in model.parameters()]:
        if not w.requires_grad or not w.is_leaf:
            raise Mistake(
                "After the update a weight is no leaf with a gradient any more. Change it under torch.no_grad()."
            )


CHECKS = (
    Check("the mask has the response and its EOS", masks),
    Check("each token has the log-probability that predicted it", logps),
    Check("the critic is read at the last prompt token", values),
    Check("one update is one step on both losses", update),
    Check("a second update starts from a cleared gradient", again),
)
HINTS = {
    "the mask has the response and its EOS": (
        "A token is in the response from place prompt_length on, if no EOS of the response came before it. cumsum counts.",
    ),
    "each token has the log-probability that predicted it": (
        "logits[:, :-1] predict tokens[:, 1:]. gather picks one number per token. F.pad(x, (1, 0)) puts a 0 in front.",
    ),
    "the critic is read at the last prompt token": ("value_logits.gather(1, prompt_length[:, None] - 1)[:, 0]",),
    "one update is one step on both losses": (
        "The token-mean is over the response tokens of the whole batch: L[mask].mean().",
    ),
    "a second update starts from a cleared gradient": (
        "torch.autograd.grad(loss, weights) leaves no .grad behind, so nothing needs to be cleared.",
    ),
}
