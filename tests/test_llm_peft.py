"""LoRA (PEFT) policy and critic in SPPOTrainer: only adapters and the head are trained, the gradient is core's, saving and
resuming lose nothing, and what cannot be done is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: extra llm")
pytest.importorskip("peft", reason="peft is not installed: extra peft")
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from test_llm_trainer import (
    assert_same,
    canned,
    config,
    critic,
    policy,
    prompts,
    small,
    stack,
    tokenizer,
    trainer,
    weights,
)
from transformers import TrainerCallback

from sppo_control import core, extras
from sppo_control.llm import PromptCritic, SPPOTrainer, adapters

TEXTS = prompts()["prompt"]
# With the paper's recipe and three optimiser steps on a generation batch, a checkpoint has something of everything.
RUN = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 4, "max_steps": 4, "rollout": canned}


def lora(**kwargs):
    """Not zero at the start, so that it counts from the first step on."""
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **kwargs})


def adapted_policy(seed=0, **kwargs):
    made = policy(seed)
    torch.manual_seed(seed + 10)
    return get_peft_model(made, lora(task_type="CAUSAL_LM", **kwargs))


def adapted_critic(seed=1, **kwargs):
    made = critic(seed)
    torch.manual_seed(seed + 20)
    adapters.add_adapter(made, lora(**kwargs))
    return made


def split(module):
    """Weights of the adapter (and a critic's head), and the frozen others."""
    state = weights(module)
    trained = {name for name in state if ".lora_" in name or name.startswith("head.")}
    return {name: state.pop(name) for name in trained}, state


def logps(model, ids, prompt_mask, completion, mask):
    whole, attention = torch.cat([ids, completion], 1), torch.cat([prompt_mask, mask.long()], 1)
    hidden = model.get_base_model().model(input_ids=whole, attention_mask=attention).last_hidden_state
    logits = model.get_base_model().lm_head(hidden)[:, ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion[..., None])[..., 0]


# --------------------------------------------------------------------------------------------------------- the policy
class Steps(TrainerCallback):
    """The weights of the adapter before each optimiser step, with its gradients and micro-batches."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        first = (self.trainer._step - args.gradient_accumulation_steps) % args.steps_per_generation
        batches = self.trainer._buffered_inputs
        self.steps.append(
            (
                weights(model),
                {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
                batches[first : first + args.gradient_accumulation_steps],
                list(batches),
            )
        )


@pytest.mark.parametrize("given", ["peft_config", "a PeftModel"])
def test_lora_policy_has_cores_gradient_and_only_its_adapter_changes(tmp_path, given):
    """Two optimiser steps on a generation batch: in the second the ratio is not 1, so a wrong old log-probability shows."""
    watch = Steps()
    settings = {"steps_per_generation": 4, "max_steps": 2, "learning_rate": 0.1}
    if given == "peft_config":
        made = SPPOTrainer(
            policy(), small, config(tmp_path, **settings), prompts(), processing_class=tokenizer(), critic=critic(),
            callbacks=[watch], rollout_func=canned, peft_config=lora(lora_dropout=0.5),
        )  # fmt: skip
    else:
        model = adapted_policy(lora_dropout=0.5)
        made = trainer(tmp_path, model=model, critic=critic(), callbacks=[watch], rollout=canned, **settings)
    watch.trainer = made
    before, frozen = split(made.model)
    assert made.ref_model is None
    made.train()
    after, still = split(made.model)
    assert_same(still, frozen)  # bit for bit
    plain = policy().state_dict()
    assert_same(
        {
            name.removeprefix("base_model.model.").replace(".base_layer.", "."): x
            for name, x in still.items()
        },
        plain,
    )  # fmt: skip
    assert all((after[name] != x).any() for name, x in before.items())

    clipped = 0.0
    old = None
    for index, (state, gradient, batches, generation) in enumerate(watch.steps):
        then = adapted_policy()
        then.load_state_dict(state)
        ids, prompt_mask = stack(batches, "prompt_ids", "left"), stack(batches, "prompt_mask", "left")
        completion, mask = stack(batches, "completion_ids", "right"), stack(batches, "completion_mask", "right").bool()
        rows = (ids, prompt_mask, completion, mask)
        if old is None:
            old = adapted_policy()
            old.load_state_dict(state)  # it wrote the generation batch
        with torch.no_grad():
            reference = logps(old, *rows)
        loss = core.clipped_surrogate(
            logps(then, *rows), reference, torch.cat([b["advantages"] for b in batches]), mask, made.args.epsilon,
            "token-mean", sum(b["completion_mask"].sum() for b in generation) / 2,
        )  # fmt: skip
        loss.loss.backward()
        clipped += loss.clipfrac
        expected = {name: p.grad for name, p in then.named_parameters() if p.requires_grad}
        assert_same(gradient, expected, rtol=1e-4, atol=1e-6)
        kept = stack(batches, "old_per_token_logps", "right")
        torch.testing.assert_close(kept[mask], reference[mask], rtol=1e-5, atol=1e-6)
        assert made.state.log_history[index]["loss"] == pytest.approx(loss.loss.item(), abs=1e-6)
    assert len(watch.steps) == 2
    assert clipped > 0


def test_critic_of_a_lora_policy_is_a_copy_with_the_adapter_added(tmp_path):
    """V would be another one if only the base were copied."""
    model = adapted_policy()
    made = trainer(tmp_path, model=model)
    assert {p.dtype for p in made.critic.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in made.critic.parameters())
    ids = torch.tensor([[4, 13, 5, 14]])
    with torch.no_grad():
        expected = model.get_base_model().model(input_ids=ids).last_hidden_state
        found = made.critic.backbone(input_ids=ids).last_hidden_state
        base = policy().model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (base - expected).abs().max() > 0.01
    assert type(made.critic.backbone) is type(policy().model)
    assert not any("lora" in name for name in made.critic.state_dict())


# --------------------------------------------------------------------------------------------------------- the critic
def test_lora_critic_has_cores_gradient_and_only_its_adapter_and_head_change(tmp_path):
    made = trainer(tmp_path, critic=adapted_critic(), critic_steps=3, max_steps=1, rollout=canned)
    seen = []

    def look(*args):
        seen.append(
            (weights(made.critic), {n: p.grad.clone() for n, p in made.critic.named_parameters() if p.grad is not None})
        )

    made.critic_optimizer.register_step_pre_hook(look)
    before, frozen = split(made.critic)
    made.train()
    after, still = split(made.critic)
    assert_same(still, frozen)
    assert all((after[name] != x).any() for name, x in before.items())
    assert len(seen) == 3
    batches = made._buffered_inputs
    ids, mask = stack(batches, "prompt_ids", "left"), stack(batches, "prompt_mask", "left")
    completion, real = stack(batches, "completion_ids", "right"), stack(batches, "completion_mask", "right").bool()
    outcome = torch.tensor(
        small([tokenizer().decode(row[m]) for row, m in zip(completion, real, strict=True)], None)
    )  # fmt: skip
    for state, gradient in seen:
        then = critic()
        adapters.add_adapter(then, lora())
        then.load_state_dict(state)
        core.bernoulli_value_loss(then(ids, mask), outcome).backward()
        assert_same(gradient, {n: p.grad for n, p in then.named_parameters() if p.requires_grad}, rtol=1e-4, atol=1e-6)


def test_the_adapter_of_a_critic_has_no_dropout():
    made = adapted_critic(lora_dropout=0.5)
    assert not any(module.training for module in made.modules())


def test_critic_peft_config_wraps_a_copy_of_the_policy(tmp_path):
    """A bfloat16 policy: the frozen copy stays bfloat16, adapter and head are float32, and V starts at 1/2."""
    adapter = LoraConfig(r=2, target_modules="all-linear", use_rslora=True)
    made = SPPOTrainer(
        policy().bfloat16(), small, config(tmp_path, bf16=True), prompts(), processing_class=tokenizer(),
        critic_peft_config=adapter,
    )  # fmt: skip
    trained, frozen = split(made.critic)
    assert {x.dtype for x in trained.values()} == {torch.float32}
    assert {x.dtype for x in frozen.values()} == {torch.bfloat16}
    assert {name for name, p in made.critic.named_parameters() if p.requires_grad} == set(trained)
    assert sum(map(len, (g["params"] for g in made.critic_optimizer.param_groups))) == len(trained)
    assert len(trained) == 2 * 2 * 7 + 2  # layers x (A, B) x linear modules, and the head
    assert made.critic.predict(TEXTS[:3]).tolist() == [0.5] * 3
    assert adapter.task_type is None
    made.train()
    assert_same(split(made.critic)[1], frozen)


@pytest.mark.parametrize(
    "extra", [{}, {"use_dora": True}, {"exclude_modules": ["layers.0.mlp.down_proj"], "rank_pattern": {"q_proj": 3}}]
)
def test_lora_critic_is_saved_and_loaded_whole(tmp_path, extra):
    made = adapted_critic(**extra)
    made.tokenizer = tokenizer()
    made.save_pretrained(tmp_path)
    loaded = PromptCritic.from_pretrained(tmp_path)
    assert_same(weights(loaded), weights(made))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in made.named_parameters() if p.requires_grad
    }
    assert torch.equal(loaded.predict(TEXTS), made.predict(TEXTS))
    assert not any(module.training for module in loaded.modules())
    # The files of the backbone are those of the base model, and AutoModel reads them without the adapter.
    base = critic()
    os.remove(tmp_path / "prompt_critic.json")
    assert_same(weights(PromptCritic.from_backbone(str(tmp_path)).backbone), weights(base.backbone))
    assert (base.predict(TEXTS) - made.predict(TEXTS)).abs().max() > 0.01
    assert not (tmp_path / "adapter_config.json").exists()


def test_damaged_adapters_are_refused(tmp_path):
    made = adapted_critic()
    made.save_pretrained(tmp_path)
    marker = tmp_path / "prompt_critic.json"
    about = json.loads(marker.read_text())
    for change, message in (
        ({"adapter": about["adapter"] | {"r": 4}}, "size mismatch"),
        (
            {"adapter": about["adapter"] | {"target_modules": ["q_proj"]}},
            "does not fit the adapter's configuration: .*down",
        ),
        ({"adapter": about["adapter"] | {"auto_mapping": "x"}}, "unknown arguments of the adapter: auto_mapping"),
        ({"format": 3}, "has format 3, and this version reads 1 and 2"),
    ):
        marker.write_text(json.dumps(about | change))
        with pytest.raises((ValueError, RuntimeError), match=message):
            PromptCritic.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------- checkpoints, resuming
def both(folder, **kwargs):
    return trainer(folder, model=adapted_policy(), critic=adapted_critic(), **{**RUN, **kwargs})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made = both(folder)
    made.train()
    return folder, made


@pytest.mark.parametrize("step", [1, 2])
def test_resuming_equals_no_interruption(tmp_path, whole, step):
    """From the middle of a generation batch and from its end; both adapters start from other weights."""
    folder, done = whole
    made = trainer(tmp_path, model=adapted_policy(), critic=adapted_critic(), **RUN)
    with torch.no_grad():
        for module in (made.model, made.critic):
            for name, x in module.named_parameters():
                if x.requires_grad:
                    x.add_(1.0 + len(name))
    made.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_same(weights(made.model), weights(done.model))
    assert_same(weights(made.critic), weights(done.critic))
    mine, theirs = made.critic_optimizer.state_dict()["state"], done.critic_optimizer.state_dict()["state"]
    assert theirs
    for index, state in theirs.items():
        assert_same(mine[index], state)


def test_checkpoint_has_the_policys_adapter_alone_and_the_whole_critic(whole):
    folder, done = whole
    files = {path.name for path in (folder / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    again = PeftModel.from_pretrained(policy(), folder / "checkpoint-4")
    assert_same(weights(again), weights(done.model))
    loaded = PromptCritic.from_pretrained(folder / "checkpoint-4" / "critic")
    assert torch.equal(loaded.predict(TEXTS), done.critic.predict(TEXTS))


def test_resuming_with_another_kind_of_critic_is_refused(tmp_path, whole):
    made = trainer(tmp_path, model=adapted_policy(), critic=critic(), **RUN)
    with pytest.raises(ValueError, match=r"the critic of .*checkpoint-1 has other weights.* same critic_peft_config"):
        made.train(resume_from_checkpoint=str(whole[0] / "checkpoint-1"))


# ------------------------------------------------------------------------------------------------------ what is refused
def frozen_critic():
    made = adapted_critic()
    made.backbone.requires_grad_(False)
    return made


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"critic_peft_config": lambda: {"r": 8}}, TypeError, "must be a peft.LoraConfig, got dict"),
        ({"critic_peft_config": lambda: PrefixTuningConfig(num_virtual_tokens=2)}, TypeError, "PrefixTuningConfig.* virt"),
        ({"critic_peft_config": lambda: IA3Config(target_modules=["q_proj"])}, TypeError, "IA3Config"),
        ({"critic_peft_config": lambda: lora(modules_to_save=["embed_tokens"])}, ValueError, "modules_to_save=.* not s"),
        ({"critic_peft_config": lambda: lora(bias="all")}, ValueError, "bias='all' is not supported"),
        ({"critic_peft_config": lambda: lora(init_lora_weights="pissa")}, ValueError, "'pissa' would change"),
        ({"critic_peft_config": lora, "critic": adapted_critic}, ValueError, "has an adapter already"),
        ({"critic_peft_config": lambda: lora(target_modules=["nothing"])}, ValueError, "nothing"),
        ({"critic": frozen_critic}, ValueError, "no weight of the critic's adapter is trainable: .*is_trainable=True"),
        ({"critic": adapted_policy}, TypeError, "critic must be a PromptCritic, .* got PeftModelForCausalLM"),
        (
            {"model": lambda: get_peft_model(policy(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))},
            ValueError, "copy of the policy, which this adapter does not allow .virtual tokens.; pass critic=",
        ),
        (
            {"model": lambda: adapted_policy(modules_to_save=["embed_tokens"])},
            ValueError, "does not allow .ModulesToSaveWrapper.; pass critic=",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, kwargs, error, message):
    given = {name: make() for name, make in kwargs.items()}
    model = given.pop("model", None) or policy()
    with pytest.raises(error, match=message):
        SPPOTrainer(model, small, config(tmp_path), prompts(), processing_class=tokenizer(), **given)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PromptCritic(adapted_policy()), ValueError, "must have no language-model head: wrap AutoModel"),
        (lambda: PromptCritic.from_backbone(adapted_policy()), TypeError, "merge it first .model.merge_and_unload"),
        (lambda: two_adapters(), ValueError, "must have one adapter, 'default', got default, other"),
    ],
)
def test_backbones_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def two_adapters():
    wrapped = adapted_critic().backbone
    wrapped.add_adapter("other", lora(task_type="FEATURE_EXTRACTION"))
    return PromptCritic(wrapped)


def test_without_peft_the_command_is_named(tmp_path, monkeypatch):
    made = adapted_critic()
    made.save_pretrained(tmp_path)
    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(extras.MissingExtra, match=r"peft, which this critic's adapter needs,.*sppo-control\[peft\]"):
        PromptCritic.from_pretrained(tmp_path)


# -------------------------------------------------------------------------------------------------------- two processes
ONE_STEP = {"max_grad_norm": 1.0, "steps_per_generation": 2}  # else the minibatches would depend on the processes


def worker(folder):
    """One of two processes under torchrun: DDP."""
    rank = int(os.environ["RANK"])
    made = both(folder / "two", per_device_train_batch_size=2, **ONE_STEP)
    made.train()
    torch.save((weights(made.model), weights(made.critic)), folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_with_ddp_end_with_the_weights_of_one(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, tmp_path],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    one = both(tmp_path / "one", **ONE_STEP)
    one.train()
    for ours, theirs, single in zip(*ranks, (one.model, one.critic), strict=True):
        assert_same(ours, theirs)
        assert_same(ours, weights(single), rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
