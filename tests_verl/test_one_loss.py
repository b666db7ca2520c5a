"""The verl plug-in on the batch of tests/shared_batch.py: the losses and gradients that tests/test_one_loss.py finds in a
control script, in sppo_llm.py and in SPPOTrainer."""

import pathlib
import sys
from types import SimpleNamespace

import torch
from test_verl_plugin import actor_config
from verl.utils import tensordict_utils as tu
from verl_batch import jagged

from sppo_control.llm import verl_plugin

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import shared_batch


def test_the_verl_plugin_gives_the_shared_loss_and_gradient():
    """Log-probabilities and values are computed here, in verl's shapes; advantage, policy loss, cropping and value loss by
    the plug-in."""
    model, (backbone, head) = shared_batch.policy(), shared_batch.critic_parts()
    prompts, responses = shared_batch.token_ids()
    prompt_ids, prompt_mask, tokens, mask, outcome = shared_batch.padded()
    (b, t), width = tokens.shape, prompt_ids.shape[1]
    ids = torch.cat([prompt_ids, tokens], 1)
    attention = torch.cat([prompt_mask, mask], 1).long()
    positions = (attention.cumsum(1) - 1).clamp(min=0)

    def outputs(backbone):  # (B, T, D): column t has read the prompt and t response tokens, as verl aligns them
        hidden = backbone(input_ids=ids, attention_mask=attention, position_ids=positions).last_hidden_state
        return hidden[:, width - 1 : -1]

    logits = model.lm_head(outputs(model.model))
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    with torch.no_grad():
        values = head(outputs(backbone))[..., 0]  # (B, T)
    rewards = torch.zeros(b, t)
    rewards[torch.arange(b), mask.sum(1) - 1] = outcome

    advantages, returns = verl_plugin.sppo_advantage(rewards, mask.long(), values=values)
    config = actor_config("token-mean")
    assert config.clip_ratio == shared_batch.CLIP
    policy_loss, _ = verl_plugin.sppo_policy_loss(
        shared_batch.old_log_probs(), logp, advantages, mask, "token-mean", config
    )
    policy_loss.backward()

    rows = [torch.tensor(p + r) for p, r in zip(prompts, responses, strict=True)]
    lengths = mask.sum(1).tolist()
    fields = {
        "input_ids": jagged(rows),
        "position_ids": jagged([torch.arange(len(row)) for row in rows]),
        "prompts": jagged([torch.tensor(p) for p in prompts]),
        "responses": jagged([torch.tensor(r) for r in responses]),
        "response_mask": jagged([torch.ones(n, dtype=torch.long) for n in lengths]),
        "loss_mask": jagged([torch.ones(n, dtype=torch.long) for n in lengths]),
        "returns": jagged([returns[i, :n] for i, n in enumerate(lengths)]),
    }
    data = verl_plugin.crop_to_prompt(tu.get_tensordict(fields, {"use_dynamic_bsz": False}))
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=int(data["loss_mask"].sum()))
    cropped = [head(backbone(input_ids=row[None]).last_hidden_state[0])[:, 0] for row in data["input_ids"].unbind()]
    value_loss, _ = verl_plugin.sppo_value_loss({"values": jagged(cropped)}, data)
    value_loss.backward()

    critic = SimpleNamespace(backbone=backbone, head=head)
    shared_batch.assert_reference(policy_loss.detach(), value_loss.detach(), model, critic)
