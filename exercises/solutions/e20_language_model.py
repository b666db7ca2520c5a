"""One update of a language model.

Difficulty: 5/5
Minutes: 45
Teaches: token log-probabilities, response masks, the critic's place, a whole SPPO update

A prompt is the initial state s_0, each token of the response is an action, and a verifier says R.
Everything from e02 to e06 comes together, exactly: the model is tiny and computes in float64.

A row of tokens (B, L) is a prompt of prompt_length tokens, then the response, then padding. The
response goes on to its first EOS, which belongs to it (the model chose to stop). What comes after
is padding. A row without EOS was cut off, and has no padding.

    logits[:, t]     what the model says after reading tokens 0..t: they predict tokens[:, t + 1]
    logp[:, t]       log pi(tokens[:, t] | tokens before t), so it comes from logits[:, t - 1];
                     at t = 0 it is 0
    V(s_0)           the critic reads the row too. Its logit at the LAST PROMPT TOKEN has seen the
                     prompt, and nothing of the response

One update of SPPO (arXiv 2604.08865, eq. 1 to 3) on a batch is one step of plain gradient descent
on the sum of

    the policy's loss    minus the mean of min(r_t A, clip(r_t, 0.8, 1.2) A) over all response
                         tokens of the batch, with A = R - V(s_0)
    the critic's loss    the mean cross-entropy between V(s_0) and R over the rows

Both models are changed in place: w <- w - learning_rate * gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EOS = 0


class TinyTransformer(nn.Module):
    """One layer of causal attention: tokens (B, L) -> (B, L, outputs). Given."""

    def __init__(self, outputs: int, vocabulary: int = 7, width: int = 8, longest: int = 16) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, dtype=torch.float64)
        self.place = nn.Embedding(longest, width, dtype=torch.float64)
        self.qkv = nn.Linear(width, 3 * width, dtype=torch.float64)
        self.head = nn.Linear(width, outputs, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.head(torch.tanh(x + F.scaled_dot_product_attention(q, k, v, is_causal=True)))


def response_mask(tokens: Tensor, prompt_length: Tensor) -> Tensor:
    """tokens (B, L) and prompt_length (B,) -> (B, L) bool: True on the response and its first EOS."""
    place = torch.arange(tokens.shape[1])
    after_prompt = place >= prompt_length[:, None]
    ended = ((tokens == EOS) & after_prompt).int().cumsum(dim=1)
    before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
    return after_prompt & (before == 0)


def token_logp(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits (B, L, K) and tokens (B, L) -> logp (B, L), with gradient; the first column is 0."""
    logp = logits[:, :-1].log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return F.pad(logp, (1, 0))


def initial_value(value_logits: Tensor, prompt_length: Tensor) -> Tensor:
    """The critic's outputs (B, L) and prompt_length (B,) -> its logit v for s_0, (B,)."""
    return value_logits.gather(1, prompt_length[:, None] - 1)[:, 0]


def update(policy: TinyTransformer, critic: TinyTransformer, batch: dict[str, Tensor], learning_rate: float) -> None:
    """One step of both models. batch: tokens (B, L), prompt_length (B,), outcome (B,), logp_old (B, L).

    policy(tokens) is (B, L, K), critic(tokens) is (B, L, 1).
    """
    tokens, prompt_length, R = batch["tokens"], batch["prompt_length"], batch["outcome"]
    mask = response_mask(tokens, prompt_length)
    v = initial_value(critic(tokens)[..., 0], prompt_length)
    A = (R - torch.sigmoid(v)).detach()[:, None]
    r = (token_logp(policy(tokens), tokens) - batch["logp_old"]).exp()
    L = torch.minimum(r * A, r.clamp(0.8, 1.2) * A)
    loss = -L[mask].mean() + F.binary_cross_entropy_with_logits(v, R)
    weights = [*policy.parameters(), *critic.parameters()]
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            w -= learning_rate * g


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
