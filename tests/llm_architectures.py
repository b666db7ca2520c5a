"""Public architectures as tiny random models, one update of SPPO on each by the functions of scripts/sppo_llm.py, and the
table of what happened (docs/llm_architectures.md).

    PYTHONPATH=. python tests/llm_architectures.py       # writes the table
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sppo_control import core
from sppo_control.llm import addition
from sppo_control.llm.context import positions
from sppo_control.llm.critic import critic_batches, train_critic
from sppo_control.llm.prompts import Prompts
from sppo_control.llm.responses import generate, policy_log_probs
from sppo_control.llm.setup import load_policy, make_critic
from sppo_control.markdown import markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "llm_architectures.md"
SIZES = {
    "vocab_size": 14, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HEADS = {"head_dim": 8}
STATE = {"state_size": 8, "expand": 2, "conv_kernel": 4, "time_step_rank": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": {}, "Qwen3": HEADS, "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**EXPERTS, **HEADS},
    "Llama": {}, "Mistral": HEADS, "Mixtral": EXPERTS, "Ministral": HEADS, "Gemma": HEADS, "Gemma2": HEADS,
    "Gemma3Text": HEADS, "Phi": {}, "Phi3": {}, "PhiMoE": {"class": "Phimoe", **EXPERTS}, "GPT2": {},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]]}, "GPTNeoX": {}, "GPTJ": {"rotary_dim": 4}, "GPTBigCode": {},
    "CodeGen": {"rotary_dim": 4}, "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 16}, "Bloom": {}, "Falcon": {},
    "Granite": {"logits_scaling": 8.0}, "GraniteMoe": {**EXPERTS, "logits_scaling": 6.0}, "Cohere": {}, "Cohere2": {},
    "SmolLM3": {}, "Olmo": {}, "Olmo2": {}, "Olmo3": {}, "Olmoe": EXPERTS, "StableLm": {},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2}, "Starcoder2": {}, "Nemotron": {}, "Glm": HEADS, "Glm4": HEADS,
    "Persimmon": {}, "XGLM": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48}, "BioGpt": {},
    "Exaone4": {}, "Helium": HEADS, "Arcee": {}, "SeedOss": HEADS, "GptOss": {**EXPERTS, **HEADS}, "Ernie4_5": HEADS,
    "Apertus": {}, "Mamba": STATE,
    "Mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "FalconMamba": STATE, "RecurrentGemma": {"lru_width": 32, **HEADS}, "Rwkv": {"attention_hidden_size": 32},
}  # fmt: skip
QUICK = ("Qwen3", "OPT", "Gemma2")
"""For every run of the tests: one that is usual, one with a projected width, and one that is refused."""


def make(name: str) -> Any:
    """A tiny random model."""
    import transformers

    settings = dict(ARCHITECTURES[name])
    prefix = settings.pop("class", name)
    kind = getattr(transformers, f"{prefix}Config")
    sizes = {name: size for name, size in SIZES.items() if name != "max_position_embeddings" or hasattr(kind(), name)}
    config = kind(**{**sizes, **settings})
    base = prefix.removesuffix("Text")
    names = (f"{base}ForCausalLM", f"{base}LMHeadModel")
    torch.manual_seed(0)
    return next(getattr(transformers, name) for name in names if hasattr(transformers, name))(config).eval()


def one_update(name: str, folder: Path) -> str:
    """The word trained, after one update of SPPO on 8 responses, or the line with which the model is refused."""
    make(name).save_pretrained(folder)
    addition.tokenizer().save_pretrained(folder)
    args = SimpleNamespace(
        model=str(folder), dataset="data.jsonl", reward="exact", device="cpu", gradient_checkpointing=False, critic=None
    )
    try:
        policy, tokenizer = load_policy(args)
        critic = make_critic(args, policy, tokenizer)
    except ValueError as error:
        return str(error)
    texts = ["1+1=", "12+34=", "5+6=", "9+123="] * 2
    prompts = Prompts(texts, [tokenizer(text)["input_ids"] for text in texts], ["2"] * 8)
    rows = list(range(8))
    judge = lambda answers, columns: [float(i % 2) for i in range(len(answers))]  # noqa: E731
    responses = generate(policy, tokenizer, prompts, rows, judge, 1, 6, log_probs=False)
    assert_log_probs(policy, responses)
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    value_logit = torch.empty_like(responses.outcome)
    losses = train_critic(
        critic, critic_optimizer, *responses.prompts, responses.outcome,
        critic_batches(8, 2, None, np.random.default_rng(0)), None, 1.0, value_logit,
    )  # fmt: skip
    assert losses.isfinite().all(), name
    assert losses[1] < losses[0], "the critic learns"
    logp, _ = policy_log_probs(policy, responses, 1.0)
    old = responses.old_log_probs(torch.arange(8), logp, unchanged=True)
    A = core.sequence_advantage(responses.outcome, value_logit)
    surrogate = core.clipped_surrogate(logp, old, A, responses.mask)
    assert surrogate.ratio_min == surrogate.ratio_max == 1
    surrogate.loss.backward()
    optimizer.step()
    after = policy.state_dict()
    assert all(x.isfinite().all() for x in after.values()), name
    assert any(not torch.equal(x, before[key]) for key, x in after.items()), name
    return "trained"


@torch.no_grad()
def assert_log_probs(policy: Any, responses: Any) -> None:
    """Each response's log-probabilities are those of the model's own logits for it alone, without padding."""
    logp = policy_log_probs(policy, responses, 1.0).logp
    for i in range(len(logp)):
        prompt, tokens = responses.prompt_ids[i][responses.prompt_mask[i]], responses.tokens[i][responses.mask[i]]
        logits = policy(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logp[i][: len(tokens)], expected, rtol=1e-3, atol=1e-4)


def table(results: dict[str, str]) -> str:
    """The page."""
    rows = []
    for name, result in results.items():
        limit = positions(make(name).config)
        rows.append([name, "no limit" if limit is None else "refused beyond its positions", result.replace("|", "/")])
    trained = sum(result == "trained" for result in results.values())
    refused = len(results) - trained
    head = f"""# Architectures

{len(results)} public architectures of transformers, each as a tiny random model. {trained} are trained by the functions of
`scripts/sppo_llm.py`. {refused} are refused with the line below, before anything is generated. The test makes one update
of policy and critic. It compares each token's log-probability with the model's own logits for the sequence without padding.

    PYTHONPATH=. python tests/llm_architectures.py                   # writes this page
    python -m pytest tests/test_llm_architectures.py -m slow         # checks it; without -m slow, three architectures

"""
    return head + markdown_table(("architecture", "context", "one update of SPPO"), rows) + "\n"


if __name__ == "__main__":
    import tempfile

    found = {}
    for name in sys.argv[1:] or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = one_update(name, Path(folder))
            except Exception as error:  # to be mended, or refused
                found[name] = f"FAULT {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(name, found[name], flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(table(found))
