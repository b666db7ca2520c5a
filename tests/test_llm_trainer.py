"""SPPOTrainer: its loss and gradients are core's, on one process, on two with DDP and on two with FSDP2; resuming changes
nothing; what it logs is what happened; bad input is refused before training.

Run as a script by torchrun (the fixture `two`), this file is one of two processes.
"""

import copy
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: extra llm")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import datasets
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from sppo_control import core
from sppo_control.llm import MathReward, PromptCritic, SPPOConfig, SPPOTrainer

ALPHABET = "0123456789+="
H = 3  # max_completion_length
BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # 8 prompts an optimiser step


def tokenizer(alphabet=ALPHABET):
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def policy(seed=0, vocabulary=15):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3, eos_token_id=1, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def prompts(n=24):
    rows = [f"{a}+{b}=" + "=" * (a % 3) for a in range(10) for b in range(10)][:n]  # of several lengths
    return datasets.Dataset.from_dict({"prompt": rows, "answer": [row[0] for row in rows]})


def small(completions, answer, **columns):
    """1 for a digit below 5 in front."""
    return [float(text[:1].isdigit() and text[:1] < "5") for text in completions]


def canned(texts, trainer):
    """Completions that depend on the prompt alone, so that they do not depend on the number of processes."""
    ids = []
    for text in texts:
        draw = random.Random(text)
        ids.append([draw.randrange(3, 15) for _ in range(draw.randrange(1, H + 1))])
    given = trainer.processing_class(text=texts)["input_ids"]
    return {"prompt_ids": given, "completion_ids": ids, "logprobs": [[0.0] * len(row) for row in ids]}


def config(folder, **kwargs):
    settings = {
        "output_dir": str(folder), "max_completion_length": H, "learning_rate": 1e-2, "critic_learning_rate": 1e-2,
        "max_grad_norm": 0.0, "max_steps": 3, "logging_steps": 1, "save_strategy": "no", "bf16": False, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False, **BATCH, **kwargs,
    }  # fmt: skip
    return SPPOConfig(**settings)


def trainer(folder, reward=small, data=None, model=None, critic=None, callbacks=None, rollout=None, **kwargs):
    args = config(folder, **kwargs)
    if (
        args.fsdp
    ):  # accelerate has FSDP for accelerators alone: it is told that these processes, on CPU and gloo, have one
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return SPPOTrainer(
        policy() if model is None else model, reward, args, prompts() if data is None else data,
        processing_class=tokenizer(), critic=critic, callbacks=callbacks, rollout_func=rollout,
    )  # fmt: skip


def critic(seed=1):
    """With a head that is not zero, so that the backbone has a gradient from the first step on."""
    made = PromptCritic.from_backbone(policy(seed), tokenizer())
    torch.nn.init.normal_(made.head.weight)
    return made


def weights(module):
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(
            got[name], x, **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda m, n=name: f"{n}: {m}"
        )


def stack(batches, key, side):
    """One tensor of the micro-batches' tensors, padded to one width."""
    width = max(batch[key].shape[1] for batch in batches)
    pad = {"left": lambda n: (n, 0), "right": lambda n: (0, n)}[side]
    return torch.cat([torch.nn.functional.pad(b[key], pad(width - b[key].shape[1])) for b in batches])


class Watch(TrainerCallback):
    """Before each optimiser step: the policy's weights and gradients, and the micro-batches of the step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        every, micro = args.steps_per_generation, args.gradient_accumulation_steps
        first = (self.trainer._step - micro) % every
        then = policy()  # not a copy: TRL has replaced the model's forward, by one that holds on to the model
        then.load_state_dict(model.state_dict())
        self.steps.append(
            {
                "model": then,
                "gradient": {name: p.grad.clone() for name, p in model.named_parameters()},
                "batches": self.trainer._buffered_inputs[first : first + micro],
                "generation": list(self.trainer._buffered_inputs),
            }
        )


def watched(folder, **kwargs):
    watch = Watch()
    made = trainer(folder, callbacks=[watch], **kwargs)
    watch.trainer = made
    return made, watch


# ------------------------------------------------------------------------------------------------- the loss is core's
@pytest.mark.parametrize("steps_per_generation", [2, 4])
@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
def test_policy_gradient_is_that_of_core(tmp_path, reduction, steps_per_generation):
    """Two micro-batches a step; one step or two on each generation batch, so that ratios are 1, and then are not. The
    learning rate is such that some are clipped."""
    made, watch = watched(
        tmp_path, reduction=reduction, steps_per_generation=steps_per_generation, learning_rate=0.1, max_steps=2,
        critic=critic(), rollout=canned,
    )  # fmt: skip
    v = {}
    with (
        torch.no_grad()
    ):  # the critic that has seen nothing yet; the second step may belong to a second generation batch
        for text in made.train_dataset["prompt"]:
            ids = torch.tensor([tokenizer()(text)["input_ids"]])
            v[text] = made.critic(ids, torch.ones_like(ids))[0]
    made.train()
    clipped = 0.0
    for index, step in enumerate(watch.steps):
        batches = step["batches"]
        ids, prompt_mask = stack(batches, "prompt_ids", "left"), stack(batches, "prompt_mask", "left")
        completion, mask = stack(batches, "completion_ids", "right"), stack(batches, "completion_mask", "right").bool()
        texts = ["".join(tokenizer().decode(row[m.bool()])) for row, m in zip(ids, prompt_mask, strict=True)]
        answers = ["".join(tokenizer().decode(row[m])) for row, m in zip(completion, mask, strict=True)]
        outcome = torch.tensor(small(answers, None))
        assert 0 < outcome.mean() < 1
        advantage = torch.cat([batch["advantages"] for batch in batches])
        if index == 0 or steps_per_generation == 4:
            expected = core.sequence_advantage(outcome, torch.stack([v[text] for text in texts]))
            torch.testing.assert_close(advantage, expected, rtol=0, atol=1e-6)

        def log_probabilities(model, ids=ids, completion=completion, prompt_mask=prompt_mask, mask=mask):
            whole, attention = torch.cat([ids, completion], 1), torch.cat([prompt_mask, mask.long()], 1)
            logits = model(input_ids=whole, attention_mask=attention).logits[:, ids.shape[1] - 1 : -1]
            return logits.log_softmax(-1).gather(-1, completion[..., None])[..., 0]

        old = watch.steps[0]["model"] if steps_per_generation == 4 else step["model"]  # it wrote the generation batch
        tokens = sum(batch["completion_mask"].sum() for batch in step["generation"])
        denominator = {
            "token-mean": tokens * 2 / steps_per_generation, "sequence-mean": len(ids), "fixed": len(ids) * H,
        }[reduction]  # fmt: skip
        step["model"].zero_grad()
        loss = core.clipped_surrogate(
            log_probabilities(step["model"]), log_probabilities(old).detach(), advantage, mask, made.args.epsilon,
            reduction, denominator,
        )  # fmt: skip
        loss.loss.backward()
        clipped += loss.clipfrac
        assert made.state.log_history[index]["loss"] == pytest.approx(loss.loss.item(), abs=1e-6)
        gradient = {name: p.grad for name, p in step["model"].named_parameters()}
        assert_same(step["gradient"], gradient, rtol=1e-5, atol=1e-6)
    assert len(watch.steps) == 2
    assert (clipped > 0) == (steps_per_generation == 4)


def test_critic_gradient_is_that_of_core(tmp_path):
    """Of all 8 prompts, in micro-batches of 4, at each of its steps, clipped; advantages use V from before them."""
    made, watch = watched(
        tmp_path, critic=critic(), critic_steps=3, max_steps=2, rollout=canned, max_grad_norm=0.5
    )  # fmt: skip
    seen = []

    def look(optimizer, args, kwargs):
        gradient = {name: p.grad.clone() for name, p in made.critic.named_parameters()}
        seen.append((copy.deepcopy(made.critic), gradient))

    made.critic_optimizer.register_step_pre_hook(look)
    made.train()
    assert len(seen) == 2 * 3
    for index, (then, gradient) in enumerate(seen):
        batches = watch.steps[index // 3]["batches"]
        ids, mask = stack(batches, "prompt_ids", "left"), stack(batches, "prompt_mask", "left")
        completion, real = stack(batches, "completion_ids", "right"), stack(batches, "completion_mask", "right").bool()
        outcome = torch.tensor(
            small([tokenizer().decode(row[m]) for row, m in zip(completion, real, strict=True)], None)
        )
        then.zero_grad()
        logit = then(ids, mask)
        loss = core.bernoulli_value_loss(logit, outcome)
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(then.parameters(), 0.5) > 0.5
        assert_same(gradient, {name: p.grad for name, p in then.named_parameters()}, rtol=1e-5, atol=1e-6)
        if index % 3 == 0:  # before the first of the three steps
            logged, v0 = made.state.log_history[index // 3], logit.detach().sigmoid()
            advantage = torch.cat([batch["advantages"] for batch in batches])
            torch.testing.assert_close(advantage, outcome - v0, rtol=0, atol=1e-6)
            for name, value in {
                "critic/loss": loss, "critic/v0_mean": v0.mean(), "critic/brier": (v0 - outcome).square().mean(),
                "critic/ece": core.expected_calibration_error(v0, outcome), "reward": outcome.mean(),
                "advantages/mean": (outcome - v0).mean(), "advantages/std": (outcome - v0).std(correction=0),
            }.items():  # fmt: skip
                assert logged[name] == pytest.approx(value.item(), abs=1e-6), name
            assert "frac_reward_zero_std" not in logged
        elif index % 3 == 2:
            assert made.state.log_history[index // 3]["critic/last_loss"] == pytest.approx(loss.item(), abs=1e-6)
    with torch.no_grad():  # the table of completions shows each row's own advantage
        shown = dict(zip(made._logs["prompt"], made._logs["advantages"], strict=True))
        rewards = dict(zip(made._logs["prompt"], made._logs["rewards"]["small"], strict=True))
        then = seen[3][0]
        for text, advantage in shown.items():
            assert advantage == pytest.approx(rewards[text] - then.predict([text]).item(), abs=1e-6)


def critic_rows(made):
    """Prompts of each critic update, filled in while it trains."""
    rows, real = [], made._critic.forward

    def forward(ids, mask):
        if torch.is_grad_enabled():
            rows.append([tokenizer().decode(row[m.bool()]).replace(" ", "") for row, m in zip(ids, mask, strict=True)])
        return real(ids, mask)

    made._critic.forward = forward
    updates = []

    def step(*args):
        updates.append([text for micro in rows for text in micro])
        rows.clear()

    made.critic_optimizer.register_step_pre_hook(step)
    return updates


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_the_papers_recipe_trains_the_critic_on_the_policys_minibatches(tmp_path, num_iterations):
    """Two minibatches of 8 in a generation batch of 16; the same prompts, in the same order, as often as the policy."""
    made, watch = watched(
        tmp_path, critic=critic(), critic_recipe="paper", steps_per_generation=4, num_iterations=num_iterations,
        max_steps=4 * num_iterations, rollout=canned,
    )  # fmt: skip
    updates = critic_rows(made)
    made.train()
    policys = [
        [
            tokenizer().decode(row[m.bool()]).replace(" ", "")
            for batch in step["batches"]
            for row, m in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        for step in watch.steps
    ]
    assert len(policys) == 4 * num_iterations
    assert updates == policys
    assert len(set(updates[0]) | set(updates[1])) == 16
    if num_iterations == 2:
        assert updates[:2] == updates[2:4] != updates[4:6]
    logged = made.state.log_history[0]
    assert {"critic/loss", "critic/last_loss"} <= logged.keys()
    batch = watch.steps[0]["generation"]
    advantage, outcome = (torch.cat([part[key] for part in batch]) for key in ("advantages", "outcome"))
    fresh = critic()
    with torch.no_grad():
        v0 = torch.cat([fresh(part["prompt_ids"], part["prompt_mask"]).sigmoid() for part in batch])
    torch.testing.assert_close(advantage, outcome - v0, rtol=0, atol=1e-6)  # V before all of its updates


def test_the_papers_recipe_with_one_minibatch_is_one_step_on_all_prompts(tmp_path):
    """The window's default, but for the order of the rows in the sum."""
    ends = []
    for recipe in ("window", "paper"):
        made = trainer(
            tmp_path / recipe, critic=critic(), critic_recipe=recipe, critic_warmup_batches=1, rollout=canned
        )
        made.train()
        ends.append(weights(made.critic))
    assert_same(*ends, rtol=1e-4, atol=1e-5)


def test_updates_of_the_window_take_all_prompts_in_order_or_draw_some(tmp_path):
    drawn = []
    for size in (None, 8, 4):
        made = trainer(
            tmp_path, critic=critic(), critic_steps=4, critic_batch_size=size, max_steps=2, rollout=canned,
            shuffle_dataset=False,
        )  # fmt: skip
        updates = critic_rows(made)
        made.train()
        prompts_of_batches = [made.train_dataset["prompt"][start : start + 8] for start in (0, 8)]
        for index, rows in enumerate(updates):
            batch = prompts_of_batches[index // 4]
            assert set(rows) <= set(batch)
            if size != 4:
                assert rows == batch
        assert len(updates) == 2 * 4
        drawn.append(updates)
    assert drawn[0] == drawn[1]
    assert sorted(drawn[2][0] + drawn[2][1]) == sorted(drawn[0][0])
    orders = [[drawn[0][0].index(text) for text in rows] for rows in drawn[2][:4]]
    later = [[drawn[0][4].index(text) for text in rows] for rows in drawn[2][4:]]
    assert orders != later, "each generation batch has its own draws"


def test_it_learns(tmp_path):
    """A digit below 5 in front: 5 of 15 tokens at first."""
    made = trainer(
        tmp_path, per_device_train_batch_size=16, gradient_accumulation_steps=1, max_steps=30, data=prompts(96)
    )
    made.train()
    reward = [row["reward"] for row in made.state.log_history if "reward" in row]
    brier = [row["critic/brier"] for row in made.state.log_history if "reward" in row]
    assert sum(reward[:3]) / 3 < 0.6
    assert sum(reward[-5:]) / 5 > 0.9
    assert sum(brier[-5:]) / 5 < 0.1


def test_warm_up_trains_the_critic_alone(tmp_path):
    reward = Recorder()
    made, watch = watched(
        tmp_path, reward=reward, critic_warmup_batches=4, critic_steps=2, max_steps=1, critic=critic(), rollout=canned
    )
    start, count = weights(made.model), []
    made.critic_optimizer.register_step_pre_hook(lambda *args: count.append(len(made.optimizer.state)))
    made.train()
    assert_same(weights(watch.steps[0]["model"]), start)
    assert count == [0] * (4 * 2 + 2)  # and the policy's optimiser has no state yet
    log = made.state.log_history[0]
    assert log["critic/warmup_loss"] > log["critic/loss"]
    assert len(set(reward.means)) > 1
    assert log["reward"] == reward.means[-1]  # the other figures are the update's alone


def test_evaluation_trains_nothing(tmp_path):
    made = trainer(tmp_path, critic=critic(), per_device_eval_batch_size=4)
    before = weights(made.critic)
    result = made.evaluate(prompts(4))
    assert_same(weights(made.critic), before)
    v0 = made.critic.predict(prompts(4)["prompt"])
    assert len(made._logs["advantages"]) == len(made._logs["prompt"]) == 4
    assert result["eval_critic/v0_mean"] == pytest.approx(v0.mean().item(), abs=1e-6)
    assert result["eval_advantages/mean"] == pytest.approx(result["eval_reward"] - v0.mean().item(), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- resuming
class Recorder:
    """`small`, remembering the prompts."""

    __name__ = "small"

    def __init__(self):
        self.prompts, self.means = [], []

    def __call__(self, prompts, completions, answer, **columns):
        result = small(completions, answer)
        self.prompts.append(prompts)
        self.means.append(sum(result) / len(result))
        return result


RESUMED = {
    "steps_per_generation": 4, "max_steps": 9, "save_strategy": "steps", "save_steps": 1, "critic_steps": 2,
    "critic_warmup_batches": 1, "max_grad_norm": 1.0,
}  # fmt: skip
"""40 prompts, 16 a generation batch with two optimiser steps each: an epoch is four steps and leaves 8 prompts out."""


RECIPES = {
    "whole batches": {}, "drawn batches": {"critic_batch_size": 4},
    "paper": {"critic_recipe": "paper", "critic_steps": 1, "num_iterations": 1},
}  # fmt: skip


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    return RESUMED | RECIPES[request.param]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, recipe):
    folder, reward = tmp_path_factory.mktemp("whole"), Recorder()
    made = trainer(folder, reward, prompts(40), **recipe)
    made.train()
    return folder, made, reward.prompts


def test_no_prompt_comes_twice_in_an_epoch(uninterrupted):
    seen = uninterrupted[2][1:]  # without the warm-up's batch
    assert [len(batch) for batch in seen] == [16] * 5
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    for epoch in epochs:
        assert len(set(epoch)) == 32
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("step", [1, 4, 5])
def test_resuming_equals_no_interruption(tmp_path, uninterrupted, recipe, step):
    """From the middle of a generation batch, from an epoch's end, and from the second epoch's first batch."""
    folder, whole, seen = uninterrupted
    reward = Recorder()
    made = trainer(tmp_path, reward, prompts(40), model=policy(5), critic=critic(6), **recipe)
    made.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert reward.prompts == seen[1 + (step + 1) // 2 :]
    assert_same(weights(made.model), weights(whole.model))
    assert_same(weights(made.critic), weights(whole.critic))
    ours, theirs = made.critic_optimizer.state_dict()["state"], whole.critic_optimizer.state_dict()["state"]
    for index, state in theirs.items():
        assert_same(ours[index], state)
    saved = PromptCritic.from_pretrained(tmp_path / "checkpoint-9" / "critic")
    assert torch.equal(saved.predict(["1+2="]), whole.critic.predict(["1+2="]))


def test_resuming_half_a_generation_batch_needs_as_many_processes(tmp_path, uninterrupted):
    checkpoint = shutil.copytree(uninterrupted[0] / "checkpoint-1", tmp_path / "checkpoint-1")
    state = torch.load(checkpoint / "sppo_state_0.pt", weights_only=True)
    torch.save(state | {"world": 4}, checkpoint / "sppo_state_0.pt")
    with pytest.raises(
        ValueError, match=r"written by 4 processes in the middle of a generation batch.* by 1; use as many"
    ):
        trainer(tmp_path, data=prompts(40), **RESUMED).train(resume_from_checkpoint=str(checkpoint))


def test_resuming_without_the_critics_state_is_refused(tmp_path):
    made = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True)
    made.train()
    with pytest.raises(FileNotFoundError, match=r"critic_optimizer.pt is missing.*save_only_model"):
        trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# -------------------------------------------------------------------------------------------------------- two processes
def scenario(folder, value=None, **kwargs):
    """The run that one process and two must agree on: 8 prompts a step, in 2 micro-batches of all processes."""
    value = critic() if value is None else value
    return trainer(folder, critic=value, critic_steps=2, max_grad_norm=1.0, rollout=canned, **kwargs)


def whole_weights(made, sharded):
    if not sharded:
        return weights(made.model), weights(made.critic)
    from torch.distributed.tensor import DTensor

    gathered = []
    for module in (made.model, made.critic):
        state = module.state_dict()
        assert all(isinstance(x, DTensor) for x in state.values())  # the critic is sharded as the policy is
        gathered.append({name: x.full_tensor().cpu() for name, x in state.items()})
    return tuple(gathered)


def worker(folder):
    """One of two processes under torchrun."""
    rank = int(os.environ["RANK"])
    results = {}
    for name, settings in (("ddp", {}), ("fsdp", {"fsdp": True, "fsdp_config": {"version": 2}})):
        AcceleratorState._reset_state(True)
        common = {"per_device_train_batch_size": 2, "save_strategy": "steps", **settings}
        # Rank 0's critic counts; the other process has another, or (FSDP's cpu_ram_efficient_loading) none.
        value = critic(1 + rank) if name == "ddp" or rank == 0 else critic().to("meta")
        made = scenario(folder / name, value, save_steps=2, **common)
        made.train()
        results[name] = (*whole_weights(made, name == "fsdp"), made.state.log_history)

        # With generations of its own, resumed in the middle of a generation batch
        common |= {"steps_per_generation": 4, "max_steps": 4, "save_steps": 3}
        made = trainer(folder / f"{name}-whole", **common)
        made.train()
        results[f"{name}-whole"] = whole_weights(made, name == "fsdp")
        made = trainer(folder / f"{name}-resumed", model=policy(5), critic=critic(6), **common)
        made.train(resume_from_checkpoint=str(folder / f"{name}-whole" / "checkpoint-3"))
        results[f"{name}-resumed"] = whole_weights(made, name == "fsdp")
    assert PartialState().num_processes == 2
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes(tmp_path):
    """DDP, then FSDP2: both processes end with the same weights, which are those of one process given the same batches;
    resuming equals no interruption; the saved critic is whole."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        tmp_path,
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr[-5000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    one = scenario(tmp_path / "one", save_strategy="steps", save_steps=2)
    one.train()
    for engine in ("ddp", "fsdp"):
        policy_weights, critic_weights, log = ranks[0][engine]
        assert_same(policy_weights, weights(one.model), rtol=1e-4, atol=1e-5)
        assert_same(critic_weights, weights(one.critic), rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(log, one.state.log_history, strict=True):
            for key in theirs.keys() & {"loss", "reward", "grad_norm"} | {k for k in theirs if "critic/" in k}:
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
        for name in (engine, f"{engine}-whole", f"{engine}-resumed"):
            for ours, theirs in zip(ranks[0][name][:2], ranks[1][name][:2], strict=True):
                assert_same(ours, theirs)
        for ours, theirs in zip(ranks[0][f"{engine}-resumed"], ranks[0][f"{engine}-whole"], strict=True):
            assert_same(ours, theirs)
        saved, expected = (
            PromptCritic.from_pretrained(tmp_path / run / "checkpoint-2" / "critic").predict(prompts()["prompt"])
            for run in (engine, "one")
        )
        torch.testing.assert_close(saved, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 8}, "num_generations must be 1 for SPPO, got 8"),
        ({"beta": 0.04}, "beta must be 0.0 for SPPO, got 0.04"),
        ({"scale_rewards": "group"}, "scale_rewards must be 'none' for SPPO, got 'group'"),
        ({"loss_type": "bnpo"}, "loss_type must be 'dapo' for SPPO, got 'bnpo'"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level must be 'token'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation must be"),
        ({"reduction": "mean"}, "reduction must be one of 'token-mean', 'sequence-mean', 'fixed', got 'mean'"),
        ({"long_prompts": "cut"}, "long_prompts must be one of 'drop', 'error', got 'cut'"),
        ({"critic_steps": 0}, "critic_steps must be at least 1, got 0; the paper's recipe is critic_recipe='paper'"),
        ({"critic_steps": -1}, "critic_steps must be at least 1, got -1"),
        ({"critic_batch_size": 0}, "critic_batch_size must be at least 1, got 0"),
        ({"critic_batch_size": 9}, "critic_batch_size must be at most the generation batch's 8 prompts, .* got 9"),
        ({"critic_recipe": "papers"}, "critic_recipe must be one of 'window', 'paper', got 'papers'"),
        ({"critic_recipe": "paper", "critic_steps": 2}, "critic_steps=2 means nothing with critic_recipe='paper'"),
        (
            {"critic_recipe": "paper", "critic_batch_size": 4},
            "critic_batch_size=4 means nothing with critic_recipe='pa",
        ),
        (
            {"critic_recipe": "paper", "steps_per_generation": 1},
            "gradient_accumulation_steps must divide steps_per_generation, got 2 and 1",
        ),
        ({"critic_warmup_batches": -1}, "critic_warmup_batches must be at least 0, got -1"),
        ({"max_prompt_length": 0}, "max_prompt_length must be at least 1, got 0"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate must be above 0, got 0.0"),
    ],
)
def test_arguments_that_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_arguments_that_are_allowed(tmp_path):
    made = config(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=1, reduction="fixed")
    assert (made.num_generations, made.loss_type, made.generation_batch_size) == (1, "dr_grpo", 3)
    assert (made.beta, made.scale_rewards, made.lr_scheduler_type) == (0.0, "none", "constant")
    assert made.disable_dropout
    assert config(tmp_path, reduction="sequence-mean", loss_type="grpo", lr_scheduler_type="linear").loss_type == "grpo"


def half(completions, **columns):
    return [0.5] * len(completions)


def nothing(completions, **columns):
    return [None] * len(completions)


@pytest.mark.parametrize(("reward", "number"), [(half, "0.5"), (nothing, "nan"), ([small, half], "0.5|1.5")])
def test_outcomes_other_than_0_and_1_are_refused(tmp_path, reward, number):
    with pytest.raises(ValueError, match=f"must be 0 .failure. or 1 .success., got ({number}) at index.*Threshold"):
        trainer(tmp_path, reward).train()


def test_reward_functions_of_weight_zero_are_only_logged(tmp_path):
    made = trainer(tmp_path, [small, half], reward_weights=[1.0, 0.0], max_steps=1)
    made.train()
    assert made.state.log_history[0]["rewards/half/mean"] == 0.5


def other_tokenizer():
    return PromptCritic.from_backbone(policy(), tokenizer(ALPHABET[::-1]))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"critic": other_tokenizer}, ValueError, "the critic's tokenizer is not the policy's"),
        ({"critic": lambda: PromptCritic(policy(vocabulary=9).model)}, ValueError, "critic knows 9 tokens.* has 15"),
        ({"critic": lambda: policy()}, TypeError, "critic must be a PromptCritic, a path or a Hub id, got Qwen2ForC"),
        ({"data": lambda: prompts(7)}, ValueError, "7 prompts, fewer than one generation batch of 8"),
        ({"data": lambda: prompts().rename_column("prompt", "question")}, ValueError, "SPPOTrainer needs the column pro"),
        ({"data": lambda: prompts().rename_column("answer", "gold")}, ValueError, "small needs the column answer"),
        (
            {"data": lambda: prompts().rename_column("answer", "gold"), "reward": MathReward},
            ValueError, "math_reward needs the column answer or solution of train_dataset, which has gold, prompt",
        ),
        ({"data": lambda: prompts().to_iterable_dataset()}, TypeError, "must not be streamed"),
        ({"max_prompt_length": 5, "long_prompts": "error"}, ValueError, "4 of 24.*longer than max_prompt_length=5.* 6 "),
        ({"max_prompt_length": 3}, ValueError, "train_dataset has 0 prompts, fewer than one"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_training(tmp_path, kwargs, error, message):
    settings = {name: value() if callable(value) else value for name, value in kwargs.items()}
    with pytest.raises(error, match=message):
        trainer(tmp_path, **settings)


def test_arguments_of_grpo_are_refused(tmp_path):
    from trl import GRPOConfig

    with pytest.raises(TypeError, match="args must be an SPPOConfig, got GRPOConfig"):
        SPPOTrainer(policy(), small, GRPOConfig(str(tmp_path), bf16=False, use_cpu=True), prompts())


def test_long_prompts_are_counted_and_left_out(tmp_path):
    made = trainer(tmp_path, max_prompt_length=5)
    long = [text for text in prompts()["prompt"] if len(text) > 5]
    assert made.num_long_prompts == len(long) > 0
    assert sorted(made.train_dataset["prompt"]) == sorted(set(prompts()["prompt"]) - set(long))


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("saved", ["critic", "language model"])
def test_critic_from_a_folder(tmp_path, saved, with_tokenizer):
    source = critic(3) if saved == "critic" else policy(3)
    if saved == "critic":
        source.tokenizer = tokenizer() if with_tokenizer else None
    elif with_tokenizer:
        tokenizer().save_pretrained(tmp_path / "source")
    source.save_pretrained(tmp_path / "source")
    made = trainer(tmp_path, critic=tmp_path / "source")
    assert_same(weights(made.critic.backbone), weights(source.backbone if saved == "critic" else source.model))
    assert made.critic.head.weight.any() == (saved == "critic")
    assert made.critic.tokenizer is made.processing_class


@pytest.mark.parametrize("given", ["a folder", "a loaded model"])
def test_a_policys_own_tokenizer_is_the_one_that_was_saved(tmp_path, given):
    """Without processing_class; TRL alone would build Qwen2's around its vocabulary, and refuse a critic which has it."""
    for name, source in (("policy", policy()), ("critic", critic(3))):
        source.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    model = str(tmp_path / "policy")
    if given == "a loaded model":
        model = Qwen2ForCausalLM.from_pretrained(model)
    made = SPPOTrainer(model, small, config(tmp_path), prompts(), critic=tmp_path / "critic")
    text = "12+30=a=="
    assert made.processing_class(text)["input_ids"] == tokenizer()(text)["input_ids"]
    assert made.processing_class.padding_side == made.processing_class.truncation_side == "left"
    positional = SPPOTrainer(model, small, config(tmp_path), prompts(), None, other := tokenizer(), critic=critic())
    assert positional.processing_class is other


def test_critic_is_a_float32_copy_of_a_bfloat16_policy(tmp_path):
    made = trainer(tmp_path, model=policy().bfloat16(), bf16=True)
    assert {p.dtype for p in made.critic.parameters()} == {torch.float32}
    assert_same(weights(made.critic.backbone), weights(policy().bfloat16().float().model))


def test_autocast_does_not_keep_old_weights(tmp_path):
    """With the head held still, the loss can fall only where each step sees the backbone that the one before has left."""
    made = trainer(tmp_path, bf16=True, max_steps=1, critic=critic(), critic_steps=4)
    made.critic.head.requires_grad_(False)
    made.train()
    log = made.state.log_history[0]
    assert log["critic/last_loss"] < log["critic/loss"] - 0.01


@pytest.mark.parametrize(
    ("zero_stage", "message"), [(3, "ZeRO-3.*use FSDP"), (2, "copy of the policy, which a quantised.*pass critic=")]
)
def test_policies_that_are_refused(zero_stage, message):
    """Their libraries are not installed: the method is asked alone."""
    made = object.__new__(SPPOTrainer)
    made.model = policy()
    made.model.is_quantized = True
    made.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=zero_stage)))
    with pytest.raises(ValueError, match=message):
        made._make_critic(None)


def test_processors_are_refused():
    made = object.__new__(SPPOTrainer)
    made.processing_class = tokenizer()
    made._check_text()
    made.processing_class = object.__new__(ProcessorMixin)
    with pytest.raises(ValueError, match="reads text alone; give a tokenizer"):
        made._check_text()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))


# ----------------------------------------------------------------------------------------------- strangers' data, names
def test_the_second_name_is_the_same_class():
    from sppo_control import llm

    assert llm.SequenceLevelPPOTrainer is SPPOTrainer
    assert llm.SequenceLevelPPOConfig is SPPOConfig
    assert {"SequenceLevelPPOTrainer", "SequenceLevelPPOConfig"} <= set(llm.__all__)


def small_model(positions):
    made = policy()
    made.config.max_position_embeddings = positions
    return made


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model": lambda: small_model(8)}, r"a prompt of 6 tokens and max_completion_length 3 exceed the 8 positions of "
         r".*; use max_completion_length 2 or less, or leave long prompts out with max_prompt_length 5"),
        ({"critic": lambda: PromptCritic.from_backbone(small_model(5))},
         "a prompt of 6 tokens exceeds the 5 positions of the critic"),
        ({"model": lambda: policy(vocabulary=13)}, "makes a token 14, and Qwen2ForCausalLM has embeddings for 0 to 12"),
        ({"reward": MathReward, "data": lambda: prompts(9).map(lambda row: {"answer": r"\frac"})},
         "train_dataset, column answer: none of the 9 answers can be read"),
    ],
)  # fmt: skip
def test_what_the_models_cannot_read_is_refused_before_training(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **{name: make() for name, make in kwargs.items()})


@pytest.mark.parametrize("overflow", [89.0, 200.0, 1e4])
def test_a_ratio_that_overflows_has_a_finite_gradient(tmp_path, overflow):
    """Where A >= 0 such a token is clipped, so its gradient is 0; the others keep theirs."""
    made = trainer(tmp_path)
    made.current_gradient_accumulation_steps = 1
    grads = []
    for shift in (overflow, 1.0):  # both are clipped
        made.model.zero_grad()
        ids, completion = torch.tensor([[3, 13, 4, 14]] * 2), torch.tensor([[5, 6, 1]] * 2)
        with torch.no_grad():
            old = made._get_per_token_logps_and_entropies(
                made.model, torch.cat([ids, completion], 1), torch.ones(2, 7, dtype=torch.long), 3
            )[0]
        old[0, 1] -= shift
        inputs = {
            "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": completion,
            "completion_mask": torch.ones_like(completion), "advantages": torch.tensor([0.5, -0.5]),
            "old_per_token_logps": old, "num_items_in_batch": torch.tensor(6),
        }  # fmt: skip
        loss = made._compute_loss(made.model, inputs)
        assert loss.isfinite()
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None]))
        assert grads[-1].isfinite().all()
        assert grads[-1].abs().sum() > 0
    torch.testing.assert_close(*grads)


def test_ids_of_prompts_are_those_of_the_critic(tmp_path):
    made = trainer(tmp_path)
    from tokenizers import processors

    made._tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    assert made._tokenize_prompts(["1+2="])[0] == [made.critic._tokens("1+2=")] == [[4, 13, 5, 14]]
