"""One batch of prompts, responses and outcomes, with a policy, a critic, and SPPO's losses and gradients on it.

The losses are written here a second time, without `sppo_control`. The control scripts, sppo_llm.py, SPPOTrainer and the
verl plug-in must all give the same numbers. This file needs only torch, transformers and tokenizers, so that both
environments (TRL's and verl's) can import it.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

CLIP = 0.2
PAD, EOS = 0, 1
PROMPTS = ("1+2=", "10+21=", "7+3=", "12+345=", "9+9=", "40+5=", "2+2=", "8+11=")
RESPONSES = ("3", "31", "1", "357", "81", "45", "5", "1948")  # the end-of-text token follows each
OUTCOMES = (1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
B = len(PROMPTS)


def tokenizer():
    vocabulary = {"<pad>": PAD, "<eos>": EOS} | {c: i + 2 for i, c in enumerate("0123456789+=")}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=64
    )


def _config():
    return Qwen2Config(
        vocab_size=14, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3, eos_token_id=EOS, pad_token_id=PAD,
        bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip


def policy():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(_config()).train()


def critic_parts():
    """A backbone and a head that is not zero, so that the backbone has a gradient."""
    torch.manual_seed(1)
    backbone, head = Qwen2Model(_config()).eval(), nn.Linear(16, 1)
    return backbone, head


def token_ids():
    """Prompts and responses, each a list of B lists."""
    t = tokenizer()
    return [list(t(p)["input_ids"]) for p in PROMPTS], [[*t(r)["input_ids"], EOS] for r in RESPONSES]


def padded():
    """prompt_ids, prompt_mask (B, P), padded on the left; tokens, mask (B, T), padded on the right; R (B,)."""
    prompts, responses = token_ids()
    P, T = max(map(len, prompts)), max(map(len, responses))
    prompt_ids = torch.tensor([[PAD] * (P - len(p)) + p for p in prompts])
    prompt_mask = torch.tensor([[False] * (P - len(p)) + [True] * len(p) for p in prompts])
    tokens = torch.tensor([r + [PAD] * (T - len(r)) for r in responses])
    mask = torch.tensor([[True] * len(r) + [False] * (T - len(r)) for r in responses])
    return prompt_ids, prompt_mask, tokens, mask, torch.tensor(OUTCOMES)


def row_log_probs(model):
    """log pi of each response's tokens, a list of B tensors: one row at a time, so without padding."""
    rows = []
    for prompt, response in zip(*token_ids(), strict=True):
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        rows.append(logits.log_softmax(-1)[torch.arange(len(response)), response])
    return rows


def row_values(backbone, head):
    """The critic's logit at each prompt's last token, (B,): one row at a time."""
    rows = [backbone(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in token_ids()[0]]
    return head(torch.stack(rows))[:, 0]


def old_log_probs():
    """(B, T), 0 on padding: the policy's own, moved, so that ratios are below, inside and above the clip range."""
    generator = torch.Generator().manual_seed(2)
    mask = padded()[3]
    logp = torch.zeros(mask.shape)
    with torch.no_grad():
        for i, row in enumerate(row_log_probs(policy())):
            logp[i, : len(row)] = row + 0.3 * torch.randn(len(row), generator=generator)
    return logp


def reference():
    """policy_loss, value_loss (floats) and the gradients of both, name -> tensor, by the equations of the paper.

    A = R - sigmoid(v). policy_loss is the mean over all tokens of -min(r A, clip(r, 1 - eps, 1 + eps) A). value_loss is the
    mean over responses of -R log V - (1 - R) log(1 - V).
    """
    model, (backbone, head) = policy(), critic_parts()
    v = row_values(backbone, head)
    terms, old, clipped = [], old_log_probs(), 0
    for i, logp in enumerate(row_log_probs(model)):
        advantage = OUTCOMES[i] - torch.sigmoid(v[i]).item()
        for t in range(len(logp)):
            r = torch.exp(logp[t] - old[i, t])
            terms.append(-min(r * advantage, r.clamp(1 - CLIP, 1 + CLIP) * advantage))
            clipped += bool(terms[-1].grad_fn is not None and (r * advantage > r.clamp(1 - CLIP, 1 + CLIP) * advantage))
    policy_loss = torch.stack(terms).mean()
    policy_loss.backward()
    V, R = torch.sigmoid(v), torch.tensor(OUTCOMES)
    value_loss = -(R * V.log() + (1 - R) * (1 - V).log()).mean()
    value_loss.backward()
    assert 0 < clipped < len(terms) / 2, "the batch must have tokens that are clipped and tokens that are not"
    return {
        "policy_loss": policy_loss.item(),
        "value_loss": value_loss.item(),
        "policy": {name: p.grad for name, p in model.named_parameters()},
        "backbone": {name: p.grad for name, p in backbone.named_parameters()},
        "head": {name: p.grad for name, p in head.named_parameters()},
    }


def assert_reference(policy_loss, value_loss, model, critic):
    """Losses as numbers; gradients are read from `.grad` of model and critic (`backbone` and `head`)."""
    expected = reference()
    torch.testing.assert_close(float(policy_loss), expected["policy_loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(float(value_loss), expected["value_loss"], rtol=1e-5, atol=1e-6)
    for part, module in (("policy", model), ("backbone", critic.backbone), ("head", critic.head)):
        for name, p in module.named_parameters():
            torch.testing.assert_close(
                p.grad, expected[part][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=f"{part} {name}": f"{n}: {m}"
            )
