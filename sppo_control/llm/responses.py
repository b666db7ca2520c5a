"""Responses of a language model: sampling them, scoring them, and their log-probabilities under the policy.

| symbol                     | shape  | meaning                                                               |
| -------------------------- | ------ | --------------------------------------------------------------------- |
| prompt_ids, prompt_mask    | (B, P) | prompts, padded on the left, because generation needs that            |
| tokens, mask               | (B, T) | responses, padded on the right; the end-of-text token counts          |
| logp, entropy              | (B, T) | of each token under the policy at the sampler's temperature; 0 on padding |
| outcome, R                 | (B,)   | 1 for success, 0 for failure                                          |
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from sppo_control.llm.critic import PromptCritic, short_attention
from sppo_control.llm.logprobs import token_log_probs
from sppo_control.llm.prompts import Prompts, Reward
from sppo_control.outcomes import Evaluation, Padded


@dataclass(frozen=True)
class Responses(Padded):
    """B responses. The table above explains the tensors, which are on the model's device.

    `logp` is that of the policy that wrote them. After an update of the policy it is the old one. It is NaN until it is
    known: `generate` computes it, or `old_log_probs` takes it from the first forward pass of the training.
    info: name -> (B,) array; `truncated` is True where the response reached the longest length without an end. With the
    reward "math" also the keys of `MathReward.counts` that say why there was no verdict.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    tokens: Tensor
    mask: Tensor
    logp: Tensor
    outcome: Tensor
    texts: list[str]
    info: dict[str, npt.NDArray[Any]]

    @property
    def episode_return(self) -> Tensor:
        """R, (B,) float32."""
        return self.outcome

    @property
    def prompts(self) -> tuple[Tensor, Tensor]:
        """prompt_ids and prompt_mask: all that SPPO's critic sees."""
        return self.prompt_ids, self.prompt_mask

    def old_log_probs(self, rows: Tensor, logp: Tensor, unchanged: bool) -> Tensor:
        """The log-probabilities of these rows under the policy that wrote them, (n, t), without gradient.

        While the policy is unchanged they are `logp` itself, and are kept in `self.logp` for later epochs. So the ratio is
        exactly 1 there, also with bfloat16, in which another pass of another width is rounded otherwise. An update with one
        minibatch needs no pass of its own for them. Later they are those that `generate` computed, or that were kept.

        Args:
            rows: (n,) int64.
            logp: (n, t), of `policy_log_probs` on `take(rows)`.
            unchanged: whether the policy is still the one that wrote the responses.

        Raises:
            ValueError: they are not known, and the policy has changed.
        """
        if not unchanged:
            some = self.take(rows)
            if not some.logp[some.mask].isnan().any():
                return some.logp
            raise ValueError(
                "the old log-probabilities were not computed before the policy's first update; call generate with "
                "log_probs=True"
            )
        old = logp.detach()
        self.logp[rows.to(self.logp.device)] = pad_columns(old, self.logp.shape[1]).to(self.logp.dtype)
        return old

    def take(self, rows: Tensor) -> Responses:
        """The responses in `rows`, (n,) int64, cut to the longest prompt and response among them. So no time is spent on
        columns in which all of them have padding."""
        index = rows.tolist()
        device_rows = rows.to(self.tokens.device)
        prompt_mask, mask = self.prompt_mask[device_rows], self.mask[device_rows]
        left, right = prompt_mask.shape[1] - int(prompt_mask.sum(1).max()), int(mask.sum(1).max())
        return replace(
            self,
            prompt_ids=self.prompt_ids[device_rows, left:],
            prompt_mask=prompt_mask[:, left:],
            tokens=self.tokens[device_rows, :right],
            mask=mask[:, :right],
            logp=self.logp[device_rows, :right],
            outcome=self.outcome[device_rows],
            texts=[self.texts[i] for i in index],
            info={name: value[index] for name, value in self.info.items()},
        )


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    rows: Sequence[int],
    reward: Reward,
    seed: int,
    max_response_length: int,
    temperature: float = 1.0,
    batch_size: int | None = None,
    bf16: bool = False,
    stop: Sequence[str] = (),
    log_probs: bool = True,
) -> Responses:
    """Sample one response to each prompt, from the full distribution (no top-k, no top-p), and score it.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer, with an end-of-text token.
        prompts: a dataset's prompts.
        rows: B indices of prompts. A prompt that is named several times gets as many responses.
        reward: see `prompts.Reward`.
        seed: of the samples. The global random numbers stay as they are.
        max_response_length: tokens, end token included.
        temperature: above 0; 0 takes the most probable token.
        batch_size: responses in memory at once; None is all.
        bf16: autocast.
        stop: texts that end a response, as an end-of-text token does: with the token that completes the first of them.
            That token counts, and is trained on. A text may be of parts of several tokens, or the name of a special one.
        log_probs: whether to compute `logp`. It costs one more forward pass. Without it `logp` is NaN, until
            `Responses.old_log_probs` keeps those of the training's first pass.

    Raises:
        ValueError: neither tokenizer nor model has an end-of-text token; what the reward raises.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    device = next(model.parameters()).device
    pad, ends = _special_tokens(model, tokenizer)
    # A fresh configuration. With a model's own settings (top-p, repetition penalties) the samples would come from another
    # distribution than the log-probabilities. transformers fills gaps in `sampling` with them, so they are set aside below.
    sampling = GenerationConfig(
        max_new_tokens=max_response_length, pad_token_id=pad, eos_token_id=sorted(ends), use_cache=True
    )
    draw = LogitsProcessorList([])
    if temperature > 0 and device.type == "cpu":
        draw.append(_draw_one(temperature))
    elif temperature > 0:
        sampling.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    width = max(len(prompts.ids[row]) for row in rows)
    prompt_ids = torch.full((len(rows), width), pad)
    prompt_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        prompt_ids[i, width - len(prompts.ids[row]) :] = torch.tensor(prompts.ids[row])
        prompt_mask[i, width - len(prompts.ids[row]) :] = True
    prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)

    stopping = StoppingCriteriaList([_stopped(tokenizer, stop, width)] if stop else [])
    size = batch_size or len(rows)
    was_training, own_config = model.training, model.generation_config
    model.eval()  # gradient checkpointing is for training only, and would turn off the cache of keys and values
    model.generation_config = GenerationConfig()
    written = []
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            torch.manual_seed(seed)
            for ids, mask in zip(prompt_ids.split(size), prompt_mask.split(size), strict=True):
                out = model.generate(
                    ids, attention_mask=mask.long(), generation_config=sampling, stopping_criteria=stopping,
                    logits_processor=draw,
                )  # fmt: skip
                written.append(out[:, width:])
    finally:
        model.generation_config = own_config
        model.train(was_training)

    T = max(x.shape[1] for x in written)
    tokens = torch.cat([torch.nn.functional.pad(x, (0, T - x.shape[1]), value=pad) for x in written])
    # The end-of-text token may also be the padding token, so a response ends at the first one.
    is_end = torch.isin(tokens, torch.tensor(sorted(ends), device=device))
    mask = is_end.cumsum(1) - is_end.long() == 0
    ended = (is_end & mask).any(1)
    if stop:
        for i, n in enumerate(mask.sum(1).tolist()):
            if (length := stop_length(tokenizer, tokens[i, :n].tolist(), stop)) is not None:
                tokens[i, length:], mask[i, length:], ended[i] = pad, False, True
    texts = tokenizer.batch_decode(
        [row[:n] for row, n in zip(tokens.tolist(), mask.sum(1).tolist(), strict=True)],
        skip_special_tokens=True, clean_up_tokenization_spaces=False,  # else "1 , 2" would be judged as "1, 2"
    )  # fmt: skip
    outcome = torch.tensor(reward(texts, prompts.reward_columns(rows)), dtype=torch.float32, device=device)
    info = {"truncated": ~ended.cpu().numpy()}
    if (verifier := getattr(reward, "verifier", None)) is not None:  # of --reward math: why there was no verdict
        for key in ("unparsed", "answer_unparsed", "timed_out", "crashed"):
            info[key] = np.array([verdict == key for verdict in verifier.verdicts])
    responses = Responses(
        prompt_ids, prompt_mask, tokens, mask, torch.full(mask.shape, torch.nan, device=device), outcome, texts, info
    )
    if not log_probs:
        return responses
    logp = [
        pad_columns(policy_log_probs(model, responses.take(part), temperature or 1.0, bf16).logp, T)
        for part in torch.arange(len(rows)).split(size)
    ]
    return replace(responses, logp=torch.cat(logp))


def _draw_one(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """For transformers' `generate` without its own sampling: draw a token, and make it the only possible one.

    It inverts the distribution function with one random number per row. `torch.multinomial` draws one per word, which on
    the CPU is a quarter of the time (SmolLM2-135M, 64 rows: 60 ms of 260 per token). Sums are in float64, so that rare
    words keep their probability.
    """

    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = torch.softmax(scores.float() / temperature, dim=1).cumsum(1, dtype=torch.float64)  # (B, V)
        u = torch.rand(len(scores), 1, dtype=torch.float64) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    return processor


def stop_length(tokenizer: Any, tokens: list[int], stop: Sequence[str]) -> int | None:
    """Tokens of a response up to the one that completes the first stop text; None where no stop text is in it."""

    def contains(n: int) -> bool:
        text = tokenizer.decode(tokens[:n], clean_up_tokenization_spaces=False)
        return any(x in text for x in stop)

    if not contains(len(tokens)):
        return None
    return bisect.bisect_left(range(len(tokens)), True, key=contains)


def _stopped(tokenizer: Any, stop: Sequence[str], width: int) -> Callable[..., Tensor]:
    """For transformers' `generate`: which rows have a stop text after their prompt, whose length is `width`.

    Only the last tokens are read, because a token is at least one byte of the text. So a long response costs no more than a
    short one. The first of these tokens may be a part of a character, so there are some more.
    """
    window = max(len(x.encode()) for x in stop) + 8

    def criterion(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = tokenizer.batch_decode(
            ids[:, max(width, ids.shape[1] - window) :].tolist(), clean_up_tokenization_spaces=False
        )
        return torch.tensor([any(x in text for x in stop) for text in texts], device=ids.device)

    return criterion


class PolicyLogProbs(NamedTuple):
    """What `policy_log_probs` returns: (B, T) each, with gradient, 0 on padding."""

    logp: Tensor
    entropy: Tensor


def policy_log_probs(model: Any, responses: Responses, temperature: float, bf16: bool = False) -> PolicyLogProbs:
    """log pi(token | prompt, tokens before), and the entropy of that distribution.

    Args:
        model: a Hugging Face causal language model whose logits are its head's product (`check_head`).
        responses: B of them.
        temperature: the sampler's.
        bf16: autocast.
    """
    hidden = hidden_states(model.base_model, responses, bf16)
    head = model.get_output_embeddings()
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16):
        logp, entropy = token_log_probs(
            hidden, head.weight, responses.tokens, head.bias, temperature, entropy=True, mask=responses.mask
        )
    assert entropy is not None  # it was asked for
    return PolicyLogProbs(logp, entropy)


def pad_columns(x: Tensor, width: int) -> Tensor:
    """(n, t) -> (n, width), with zeros on the right: undoes the cut of `Responses.take`."""
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))


def token_values(critic: PromptCritic, responses: Responses, bf16: bool = False) -> Tensor:
    """Token-level PPO's critic: the head's output before each response token, (B, T), float32, with gradient.

    Values on padding have no meaning. Column 0 has read only the prompt, like `PromptCritic.forward`.
    """
    return critic.head(hidden_states(critic.backbone, responses, bf16).to(critic.head.weight.dtype)).squeeze(-1)


def hidden_states(backbone: Any, responses: Responses, bf16: bool = False) -> Tensor:
    """The backbone's last hidden state before each response token, (B, T, D). Column t has read the prompt and t tokens."""
    ids = torch.cat([responses.prompt_ids, responses.tokens[:, :-1]], dim=1)  # (B, P + T - 1)
    attention = torch.cat([responses.prompt_mask, responses.mask[:, :-1]], dim=1).long()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16), short_attention(backbone, ids.shape[1]):
        hidden = backbone(
            input_ids=ids,
            attention_mask=attention,
            position_ids=(attention.cumsum(1) - 1).clamp(min=0),  # the prompts' padding is on the left
            use_cache=False,
        ).last_hidden_state
    return hidden[:, responses.prompt_ids.shape[1] - 1 :]


@torch.no_grad()
def check_head(model: Any, ids: Sequence[int]) -> None:
    """Refuse a model whose logits are not simply hidden states times its output head (soft caps, scales), or that reads
    padding.

    `policy_log_probs` would compute the log-probabilities of another policy.

    Args:
        model: a Hugging Face causal language model.
        ids: some tokens to try it on.

    Raises:
        ValueError: the model is such a model.
    """
    device = next(model.parameters()).device
    x = torch.tensor([list(ids)], device=device)
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=x, use_cache=False).last_hidden_state
    logits = 1e3 * torch.nn.functional.linear(hidden, head.weight, head.bias).float()
    # A soft cap shows only on large logits, and those of an untrained model are small. So all are made 1000 times larger.
    hook = head.register_forward_hook(lambda module, args, output: 1e3 * output)
    try:
        expected = model(input_ids=x, use_cache=False).logits.float()
    finally:
        hook.remove()
    # The scripts pad prompts on the left. Some architectures read what stands there (RWKV), whatever the mask says.
    mask = torch.ones(1, len(ids) + 2, dtype=torch.long, device=device)
    mask[:, :2] = 0
    again = model.base_model(
        input_ids=torch.cat([x[:, -2:], x], dim=1), attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False,
    ).last_hidden_state[:, 2:]  # fmt: skip
    if (again - hidden).abs().max() > 1e-2 * hidden.abs().max():
        raise ValueError(
            f"{type(model).__name__} reads the padding on the left of a prompt, so short prompts in a batch would be other "
            "prompts; use a model of another family, such as Qwen2, Qwen3 or Llama"
        )
    if (logits - expected).abs().max() > 1e-2 * expected.abs().max().clamp(min=1.0):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the output head (a soft cap or scale), which these "
            "scripts do not; use a model of another family, such as Qwen2, Qwen3 or Llama"
        )


def evaluate(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    reward: Reward,
    seed: int,
    max_response_length: int,
    temperature: float = 1.0,
    batch_size: int | None = None,
    bf16: bool = False,
    stop: Sequence[str] = (),
) -> Evaluation:
    """How often one sampled response per prompt is right."""
    size = batch_size or len(prompts)
    starts = range(0, len(prompts), size)
    parts = [
        generate(
            model, tokenizer, prompts, range(len(prompts))[start : start + size], reward, seed + start,
            max_response_length, temperature, None, bf16, stop, log_probs=False,
        )
        for start in tqdm(starts, desc="evaluating", unit="batch", leave=False, disable=len(starts) < 3)
    ]  # fmt: skip
    outcome = torch.cat([part.outcome for part in parts]).cpu().numpy() > 0.5
    return Evaluation(outcome, {"truncated": np.concatenate([part.info["truncated"] for part in parts])})


def sample_table(prompts: Prompts, rows: Sequence[int], responses: Responses, v0: Tensor, n: int = 6) -> str:
    """The first n responses of a batch as a Markdown table, for TensorBoard's text page.

    Args:
        prompts, rows, responses: what `generate` was given and returned.
        v0: V(s_p), or the baseline in its place, (B,).
    """

    def cell(text: str) -> str:
        return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"

    lines = ["| prompt | response | answer | R | V |", "| --- | --- | --- | --- | --- |"]
    for i, row in enumerate(rows[:n]):
        text = cell(responses.texts[i]) + (" (truncated)" if responses.info["truncated"][i] else "")
        lines.append(
            f"| {cell(prompts.texts[row])} | {text} | {cell(prompts.answers[row])} | {int(responses.outcome[i])} | "
            f"{float(v0[i]):.2f} |"
        )
    return "\n".join(lines)


def _special_tokens(model: Any, tokenizer: Any) -> tuple[int, set[int]]:
    """The padding token, and the tokens that end a response.

    These are the tokenizer's and those of the model's generation settings, where chat models have the end of a turn.

    Raises:
        ValueError: no token ends a response.
    """
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    more = getattr(model.generation_config, "eos_token_id", None)
    ends |= {more} if isinstance(more, int) else set(more or ())
    if not ends:
        raise ValueError("the tokenizer has no end-of-text token; set tokenizer.eos_token")
    # A padding token without an embedding (one that was added to the tokenizer alone) would stop the model. What stands in
    # padding changes nothing.
    rows, pad = len(model.get_input_embeddings().weight), tokenizer.pad_token_id
    if (known := {end for end in ends if end < rows}) == set():
        raise ValueError(
            f"the end-of-text token {min(ends)} has no embedding, the model has 0 to {rows - 1}; save the model after "
            "model.resize_token_embeddings(len(tokenizer))"
        )
    return (min(known) if pad is None or not 0 <= pad < rows else pad), ends
