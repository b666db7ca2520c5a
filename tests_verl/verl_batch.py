"""One shared batch, padded and in verl's jagged form, and the recipes' configurations."""

import pathlib

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from verl.utils import tensordict_utils as tu

ROOT = pathlib.Path(__file__).resolve().parents[1]
F64 = torch.float64


def compose(recipe, overrides=()):
    """A recipe over verl's own defaults, in this process."""
    with initialize_config_dir(str(ROOT / "recipes/verl"), version_base=None):
        return hydra_compose(recipe, overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])


def jagged(rows):
    """Rows of uneven length, n of (L_i,), as verl carries them: one nested tensor (n, j) in torch's jagged layout."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


PROMPT, RESPONSE = 6, 7  # padded lengths
PROMPT_LENGTHS, RESPONSE_LENGTHS = (3, 6, 1, 4, 5, 2), (4, 7, 2, 1, 6, 3)
OUTCOMES = (1.0, 0.0, 0.0, 1.0, 0.0, 1.0)
B = len(OUTCOMES)


def make_batch():
    """Left-padded prompts, right-padded responses of uneven lengths, as dictionaries of (B, ...) tensors."""
    g = torch.Generator().manual_seed(0)
    prompt_mask = torch.arange(PROMPT) >= PROMPT - torch.tensor(PROMPT_LENGTHS)[:, None]
    mask = torch.arange(RESPONSE) < torch.tensor(RESPONSE_LENGTHS)[:, None]
    attention_mask = torch.cat([prompt_mask, mask], dim=1).long()
    input_ids = torch.randint(2, 34, (B, PROMPT + RESPONSE), generator=g) * attention_mask
    logp_old = -0.1 - torch.rand(B, RESPONSE, generator=g, dtype=F64)
    logp = logp_old + 0.3 * torch.randn(B, RESPONSE, generator=g, dtype=F64)  # some ratios are clipped
    outcome = torch.tensor(OUTCOMES, dtype=F64)
    logit = torch.randn(B, generator=g, dtype=F64)
    rewards = torch.zeros(B, RESPONSE, dtype=F64)
    rewards[torch.arange(B), torch.tensor(RESPONSE_LENGTHS) - 1] = outcome  # at the last token, as verl puts it
    # position 0 of the values has read the prompt; what stands after it must not matter
    values = torch.cat([logit[:, None], torch.full((B, RESPONSE - 1), torch.nan, dtype=F64)], dim=1)
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return locals()


def critic_data(batch, fill_up=0):
    """What TransferQueue gives a critic worker: jagged rows; `fill_up` rows as verl appends them (an empty mask)."""
    ids, prompts, responses, outcomes, real = [], [], [], [], []
    for i in range(B + fill_up):
        row = batch["input_ids"][i][batch["attention_mask"][i].bool()] if i < B else torch.ones(5, dtype=torch.long)
        cut = PROMPT_LENGTHS[i] if i < B else 4
        ids.append(row)
        prompts.append(row[:cut])
        responses.append(row[cut:])
        outcomes.append(torch.full((len(row) - cut,), OUTCOMES[i] if i < B else 0.0, dtype=F64))
        real.append(torch.full((len(row) - cut,), int(i < B)))
    fields = {
        "input_ids": jagged(ids),
        "position_ids": jagged([torch.arange(len(row)) for row in ids]),
        "prompts": jagged(prompts),
        "responses": jagged(responses),
        "response_mask": jagged(real),
        "loss_mask": jagged(real),
        "returns": jagged(outcomes),
        "row": torch.arange(B + fill_up),
    }
    return tu.get_tensordict(fields, {"use_dynamic_bsz": False})
