"""What a control script, sppo_llm.py and SPPOTrainer do in an update, run for real on one shared batch, gives one loss and
one gradient: those of the equations (shared_batch.py). The verl plug-in: tests_verl/test_one_loss.py, on the same batch."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("trl", reason="trl is not installed: extra llm")

import datasets
import shared_batch
from transformers import TrainerCallback

import sppo_cartpole
import sppo_llm
from sppo_control import networks
from sppo_control.llm import PromptCritic, SPPOConfig, SPPOTrainer
from sppo_control.llm.responses import Responses, policy_log_probs
from sppo_control.outcomes import Evaluation
from sppo_control.rollout import Episodes

NO_CLIPPING = 1e9  # of the gradient's norm


def make_critic():
    backbone, head = shared_batch.critic_parts()
    critic = PromptCritic(backbone, shared_batch.tokenizer())
    critic.head.load_state_dict(head.state_dict())
    return critic


def make_responses():
    prompt_ids, prompt_mask, tokens, mask, R = shared_batch.padded()
    return Responses(
        prompt_ids, prompt_mask, tokens, mask, shared_batch.old_log_probs(), R, list(shared_batch.RESPONSES),
        {"truncated": np.zeros(len(R), dtype=bool)},
    )  # fmt: skip


class Done(Exception):
    pass


class OneUpdate:
    """In place of runs.Run: it has no folder, and ends after the first update."""

    steps = episodes = update = progress = 0
    writer = SimpleNamespace(add_text=lambda *args: None)

    def __init__(self, *args, **kwargs):
        self.losses = {}

    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda self, *exc: None  # noqa: E731

    def once(self, key, compute):
        return compute().as_dict()

    def start(self, **parts):
        pass

    def new_rng(self, stream):
        return np.random.default_rng(0)

    def check_finite(self, **values):
        self.losses |= {name: float(value.detach()) for name, value in values.items() if "loss" in name}

    def end_update(self, *args):
        raise Done(self.losses)


@pytest.fixture
def no_step(monkeypatch):
    """Adam leaves weights and gradients as they are; zero_grad before the critic's own step would take the policy's."""
    for cls in (torch.optim.Adam, networks.Adam):
        monkeypatch.setattr(cls, "step", lambda self, *args: None)
        monkeypatch.setattr(cls, "zero_grad", lambda self, *args, **kwargs: None)


def one_update(monkeypatch, script, args):
    nothing = Evaluation(np.zeros(1, dtype=bool), {})
    monkeypatch.setattr(script, "evaluate", lambda *args, **kwargs: nothing)
    monkeypatch.setattr(script.runs, "Run", OneUpdate)
    with pytest.raises(Done) as done:
        script.train(args)
    return done.value.args[0]


def test_a_control_script_gives_the_shared_loss_and_gradient(monkeypatch, no_step):
    """scripts/sppo_cartpole.py with the language model as its policy: a row's number is its observation."""
    model, critic, responses = shared_batch.policy(), make_critic(), make_responses()

    class Policy(nn.Module):
        obs_scale = torch.ones(1)

        def __init__(self):
            super().__init__()
            self.model = model

        def log_prob(self, obs, actions):
            rows = obs[:, 0, 0].long()
            assert torch.equal(actions, responses.tokens[rows])
            return policy_log_probs(model, responses.take(rows), 1.0)

    class ContextCritic(nn.Module):
        def __init__(self, *args):
            super().__init__()
            self.critic = critic

        def forward(self, context):
            return critic(*responses.take(context[:, 0].long()).prompts)

    (b, t), R = responses.mask.shape, responses.outcome
    obs = torch.arange(b)[:, None, None].expand(b, t, 1).float()
    episodes = Episodes(obs, responses.tokens, responses.logp, torch.zeros(b, t), responses.mask, R, {})
    space = SimpleNamespace(shape=(1,))
    envs = SimpleNamespace(single_observation_space=space, close=lambda: None)
    monkeypatch.setattr(sppo_cartpole.sppo_envs, "make_task", lambda *args: envs)
    monkeypatch.setattr(sppo_cartpole, "starting_policy", lambda *args: Policy())
    monkeypatch.setattr(sppo_cartpole, "Critic", ContextCritic)
    monkeypatch.setattr(sppo_cartpole, "rollout", lambda *args, **kwargs: episodes)
    args = sppo_cartpole.Args(
        num_envs=b, num_minibatches=1, update_epochs=1, critic_recipe="paper", max_grad_norm=NO_CLIPPING, clip_coef=0.2
    )
    losses = one_update(monkeypatch, sppo_cartpole, args)
    shared_batch.assert_reference(losses["policy_loss"], losses["value_loss"], model, critic)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_sppo_llm_gives_the_shared_loss_and_gradient(monkeypatch, no_step, micro_batch_size):
    model, critic, responses = shared_batch.policy(), make_critic(), make_responses()
    prompts = SimpleNamespace(batch=lambda *args: list(range(shared_batch.B)), texts=shared_batch.PROMPTS,
                              answers=shared_batch.PROMPTS)  # fmt: skip
    monkeypatch.setattr(sppo_llm, "load_policy", lambda args: (model, shared_batch.tokenizer()))
    monkeypatch.setattr(sppo_llm, "make_critic", lambda *args: critic)
    monkeypatch.setattr(sppo_llm, "load_data", lambda *args: (prompts, None, None))
    monkeypatch.setattr(sppo_llm, "generate", lambda *args, **kwargs: responses)
    # The shared batch is from another policy, as in a later step of an update. The first step of one has the ratio 1.
    monkeypatch.setattr(type(responses), "old_log_probs", lambda self, rows, logp, unchanged: self.take(rows).logp)
    parts = []
    whole = sppo_llm.core.clipped_surrogate
    monkeypatch.setattr(
        sppo_llm.core, "clipped_surrogate", lambda *args: parts.append(whole(*args)) or parts[-1]
    )  # with micro-batches the minibatch's loss is the sum of theirs
    args = sppo_llm.Args(
        batch_size=shared_batch.B, num_minibatches=1, critic_steps=1, max_grad_norm=NO_CLIPPING, device="cpu",
        micro_batch_size=micro_batch_size, clip_coef=0.2,
    )  # fmt: skip
    losses = one_update(monkeypatch, sppo_llm, args)
    policy_loss = sum(float(part.loss.detach()) for part in parts)
    shared_batch.assert_reference(policy_loss, losses["value_loss"], model, critic)


def test_sppo_trainer_gives_the_shared_loss_and_gradient(tmp_path, monkeypatch):
    model, critic, old = shared_batch.policy(), make_critic(), shared_batch.old_log_probs()
    index = {prompt: i for i, prompt in enumerate(shared_batch.PROMPTS)}
    prompts, responses = shared_batch.token_ids()
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: None)  # of the critic
    critic_gradient = []
    zero_grad = torch.optim.Adam.zero_grad

    def keep_gradient(self, *args, **kwargs):
        critic_gradient.append([p.grad for group in self.param_groups for p in group["params"]])
        zero_grad(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "zero_grad", keep_gradient)

    def rollout(texts, trainer):
        rows = [index[text] for text in texts]
        ids = [responses[i] for i in rows]
        return {
            "prompt_ids": [prompts[i] for i in rows], "completion_ids": ids, "logprobs": [[0.0] * len(x) for x in ids]
        }  # fmt: skip

    def reward(completions, prompts, **columns):
        return [shared_batch.OUTCOMES[index[prompt]] for prompt in prompts]

    class KeepGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.gradient = {name: p.grad.clone() for name, p in model.named_parameters()}

    class WithOldLogProbs(SPPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            rows = [index[row["prompt"]] for row in inputs]
            output["old_per_token_logps"] = old[rows]
            return output

    args = SPPOConfig(
        str(tmp_path), reduction="token-mean", per_device_train_batch_size=shared_batch.B, max_steps=1, logging_steps=1,
        gradient_accumulation_steps=1, max_completion_length=shared_batch.padded()[2].shape[1], max_grad_norm=NO_CLIPPING,
        critic_steps=1, save_strategy="no", bf16=False, use_cpu=True, report_to="none", disable_tqdm=True,
        gradient_checkpointing=False, epsilon=shared_batch.CLIP, shuffle_dataset=False,
    )  # fmt: skip
    kept = KeepGradient()
    data = datasets.Dataset.from_dict({"prompt": list(shared_batch.PROMPTS)})
    trainer = WithOldLogProbs(
        model, reward, args, data, processing_class=shared_batch.tokenizer(), critic=critic, callbacks=[kept],
        rollout_func=rollout,
    )  # fmt: skip
    with contextlib.redirect_stdout(None):
        trainer.train()
    log = trainer.state.log_history[0]
    for name, p in model.named_parameters():
        p.grad = kept.gradient[name]
    for p, gradient in zip(trainer.critic.parameters(), critic_gradient[-1], strict=True):
        p.grad = gradient
    shared_batch.assert_reference(log["loss"], log["critic/loss"], model, trainer.critic)
