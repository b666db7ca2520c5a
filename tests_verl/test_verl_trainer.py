"""verl's critic worker, engine and trainer with the plug-in, on tiny models: everything but the generation of responses."""

import pandas as pd
import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from transformers import AutoModelForTokenClassification
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry
from verl_batch import PROMPT_LENGTHS, B, compose, critic_data, jagged

from sppo_control import core
from sppo_control.llm import verl_plugin


def tiny_config(tiny_models, *overrides):
    """The recipe with the small critic, cut down to tiny models in float32 without flash attention."""
    float32 = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
    for role, engine in (("actor_rollout_ref", "actor_rollout_ref.actor.fsdp_config"), ("critic", "critic.fsdp")):
        overrides = (
            *overrides,
            f"{role}.model.path={tiny_models['policy' if role == 'actor_rollout_ref' else 'critic']}",
            f"{role}.model.use_remove_padding=false",
            f"{role}.model.enable_gradient_checkpointing=false",
            f"+{role}.model.override_config.attn_implementation=sdpa",
            f"{engine}.param_offload=false",
            f"{engine}.optimizer_offload=false",
            f"{engine}.use_torch_compile=false",
            f"++{engine}.mixed_precision={float32}",
        )
    strategies = ("actor_rollout_ref.actor.strategy=fsdp2", "critic.strategy=fsdp2")
    return compose("sppo_7b_critic_1_5b", [*strategies, *overrides])


# -------------------------------------------------------------------------------------------- worker and engine
@pytest.fixture(scope="module")
def worker(tiny_models, tmp_path_factory):
    """A PromptCriticWorker in this process, as the trainer sets one up."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    config = omega_conf_to_dataclass(tiny_config(tiny_models, "critic.optim.lr=0.01").critic)
    config.engine.use_dynamic_bsz = False
    config.engine.micro_batch_size_per_gpu = config.engine.infer_micro_batch_size_per_gpu = 2
    worker_config = TrainingWorkerConfig(
        model_type="value_model",
        model_config=config.model,
        engine_config=config.engine,
        optimizer_config=config.optim,
        checkpoint_config=config.checkpoint,
    )
    with pytest.MonkeyPatch.context() as patch:
        # what verl's Worker reads; the process group stands already
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
            patch.setenv(name, value)
        worker = verl_plugin.PromptCriticWorker(worker_config)
    worker.reset()
    worker.set_loss_fn(verl_plugin.sppo_value_loss)
    yield worker
    torch.distributed.destroy_process_group()


def worker_data(batch, **settings):
    data = critic_data(batch, fill_up=2)
    data["returns"] = jagged([row.float() for row in data["returns"].unbind()])
    return tu.assign_non_tensor(data, temperature=1.0, use_remove_padding=False, **settings)


def test_critic_that_reads_the_prompt_only_gives_the_value_of_the_whole_sequence(worker, batch):
    data = worker_data(batch, compute_loss=False, micro_batch_size_per_gpu=2)
    seen = []
    hook = worker.engine.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    cropped = worker.infer_batch(data.copy())["values"]
    assert max(seen) == max(data["prompts"].offsets().diff()) + 1
    whole = TrainingWorker.infer_batch(worker, data.copy())["values"]
    assert max(seen) == max(data["input_ids"].offsets().diff())
    hook.remove()
    for i, (mine, stock, prompt) in enumerate(
        zip(cropped.unbind(), whole.unbind(), data["prompts"].unbind(), strict=True)
    ):
        assert len(mine) == len(stock)
        torch.testing.assert_close(mine, stock[len(prompt) - 1].expand_as(mine), rtol=0, atol=1e-6)
        assert i >= B or stock.std() > 0.01  # another position would have another value


def test_gradient_of_verls_engine_is_cores_on_the_whole_sequences(worker, batch, tiny_models):
    """Micro-batches of two and two filled-up rows in the engine; one batch of whole sequences in plain transformers."""
    engine = worker.engine
    data = worker_data(batch, micro_batch_size_per_gpu=2, use_dynamic_bsz=False, global_batch_size=B + 2)
    with engine.train_mode():
        engine.optimizer_zero_grad()
        engine.forward_backward_batch(verl_plugin.crop_to_prompt(data), verl_plugin.sppo_value_loss)
        found = {name: p.grad.full_tensor() for name, p in engine.module.named_parameters()}
    weights = {name: p.full_tensor() for name, p in engine.module.state_dict().items()}

    model = AutoModelForTokenClassification.from_pretrained(tiny_models["critic"], num_labels=1)
    model.load_state_dict(weights)
    logits = [model.eval()(ids[None]).logits[0, :, 0] for ids in data["input_ids"].unbind()[:B]]
    logit = torch.stack([row[n - 1] for row, n in zip(logits, PROMPT_LENGTHS, strict=True)])
    core.bernoulli_value_loss(logit, batch["outcome"].float()).backward()
    assert all(p.grad.abs().max() > 1e-5 for p in model.parameters() if p.ndim == 2)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_worker_trains_on_cropped_rows_and_reports_the_mean_over_real_sequences(worker, batch):
    data = worker_data(batch, compute_loss=False, micro_batch_size_per_gpu=2)
    logit = torch.stack([row[0] for row in worker.infer_batch(data.copy())["values"].unbind()[:B]])
    step = {"mini_batch_size": B + 2, "epochs": 1, "dataloader_kwargs": {"shuffle": False}, "global_batch_size": B + 2}
    metrics = tu.get(worker.train_mini_batch(worker_data(batch, micro_batch_size_per_gpu=2, **step)), "metrics")
    outcome = batch["outcome"].float()
    assert metrics["critic/vf_loss"][0] == pytest.approx(core.bernoulli_value_loss(logit, outcome).item(), rel=1e-5)
    assert metrics["critic/v0_mean"][0] == pytest.approx(logit.sigmoid().mean().item(), rel=1e-5)
    after = torch.stack([row[0] for row in worker.infer_batch(data.copy())["values"].unbind()[:B]])
    assert core.bernoulli_value_loss(after, outcome) < core.bernoulli_value_loss(logit, outcome) - 0.001


# ------------------------------------------------------------------------------------------------------ trainer
class MadeUpResponses:
    """In place of verl's agent loop with vLLM: random responses, every other one a success; the last one never comes."""

    def generate_sequences(self, batch):
        g = torch.Generator().manual_seed(0)
        keys, rows, tags = [], [], []
        uids = [getattr(uid, "data", uid) for uid in batch["uid"]]
        for i, uid in enumerate(uids[:-1]):
            prompt = torch.randint(2, 34, (3 + i % 4,), generator=g)
            response = torch.randint(2, 34, (1 + i % 5,), generator=g)
            input_ids, mask = torch.cat([prompt, response]), torch.ones_like(response)
            score = torch.zeros(len(response))
            score[-1] = i % 2
            row = {"uid": uid, "prompts": prompt, "responses": response, "input_ids": input_ids, "num_turns": 2}
            row |= {"position_ids": torch.arange(len(input_ids)), "response_mask": mask, "loss_mask": mask}
            row |= {"rm_scores": score, "rollout_log_probs": torch.full_like(score, -3.0), "multi_modal_inputs": {}}
            keys.append(f"{uid}_0_0")
            rows.append(row)
            tag = {"status": "success", "prompt_len": len(prompt), "response_len": len(response)}
            tag |= {"seq_len": len(input_ids), "global_steps": 1, "min_global_steps": 0, "max_global_steps": 0}
            tags.append(tag)
        tq.kv_batch_put(keys=keys, partition_id="train", fields=tu.list_of_dict_to_tensordict(rows), tags=tags)
        tq.kv_batch_put(keys=uids, partition_id="train", tags=[{"status": "finished"}] * len(uids))


class RecordingTrainer(verl_plugin.SPPOTrainerSync):
    """SPPOTrainerSync without vLLM's replicas, which keeps what each step saw and logged."""

    _enable_hybrid_replicas = False
    on_init_end = on_step_end = on_sample_end = lambda self: None
    steps = ()

    def _update_actor(self, batch, metrics):
        fields = ["values", "advantages", "returns", "response_mask", "rm_scores", "old_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        self.data = data.to_padded_tensor()
        return super()._update_actor(batch, metrics)

    def _compute_metrics(self, batch, metrics, *args, **kwargs):
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        self.steps = (*self.steps, (self.data, dict(metrics)))


@pytest.fixture(scope="module")
def steps(tiny_models, tmp_path_factory):
    """Two steps of verl's `fit` on a local Ray cluster: two ranks of policy and critic, TransferQueue, reward workers."""
    ray = verl_plugin.ray
    folder = tmp_path_factory.mktemp("run")
    row = {"data_source": "add", "reward_model": {"style": "rule", "ground_truth": "2"}}
    rows = [row | {"prompt": [{"role": "user", "content": f"{i}+1="}], "extra_info": {"index": i}} for i in range(16)]
    pd.DataFrame(rows).to_parquet(folder / "data.parquet")
    config = tiny_config(
        tiny_models,
        f"data.train_files={folder}/data.parquet",
        f"data.val_files={folder}/data.parquet",
        f"trainer.default_local_dir={folder}",
        "data.train_batch_size=8",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "data.max_prompt_length=16",
        "data.max_response_length=8",
        "data.dataloader_num_workers=0",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=130",  # several micro-batches beside verl's row of 128 tokens
        "critic.ppo_max_token_len_per_gpu=130",
        "critic.ppo_infer_max_token_len_per_gpu=130",
        "critic.optim.lr=0.01",
        "actor_rollout_ref.rollout.nnodes=1",  # of the replicas that are never started
        "reward.num_workers=1",
        "transfer_queue.enable=true",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=2",
        "trainer.total_training_steps=2",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.logger=[console]",
    )
    OmegaConf.resolve(config)
    RolloutReplicaRegistry.register("vllm", lambda: RolloutReplica)
    ray.init(num_cpus=16, num_gpus=2, include_dashboard=False, runtime_env={"env_vars": {"TRANSFER_QUEUE_ENABLE": "1"}})
    try:
        tq.init(config.transfer_queue)
        trainer = RecordingTrainer(config)
        trainer.init()
        trainer.fit(MadeUpResponses())
        tq.close()
        yield trainer.steps
    finally:
        ray.shutdown()


def test_fit_gives_the_policy_cores_advantage(steps):
    assert len(steps) == 2
    for data, metrics in steps:
        mask = data["response_mask"].bool()
        real = mask.any(dim=1)
        assert real.tolist().count(True) == 7  # of 8: one response never came, verl filled up
        outcome, logit = data["rm_scores"].sum(1), data["values"][:, 0]
        expected = torch.where(mask, core.sequence_advantage(outcome, logit)[:, None], 0.0)
        assert torch.equal(data["advantages"], expected)
        assert logit.std() > 0.01
        policy = core.clipped_surrogate(
            data["old_log_probs"], data["old_log_probs"], expected, mask, reduction="sequence-mean", denominator=8
        )
        assert metrics["actor/pg_loss"] == pytest.approx(policy.loss.item(), rel=1e-4, abs=1e-6)
        assert metrics["actor/grad_norm"] > 0


def test_fit_trains_the_critic_by_cores_loss_and_logs_probabilities(steps):
    for data, metrics in steps:
        mask = data["response_mask"].bool()
        real = mask.any(dim=1)
        outcome, logit = data["rm_scores"].sum(1)[real], data["values"][real, 0]
        assert metrics["critic/vf_loss"] == pytest.approx(core.bernoulli_value_loss(logit, outcome).item(), rel=1e-4)
        assert metrics["critic/brier"] == pytest.approx(core.brier_score(logit.sigmoid(), outcome).item(), rel=1e-4)
        assert metrics["critic/values/mean"] == pytest.approx(data["values"].sigmoid()[mask].mean().item(), rel=1e-4)
    assert steps[1][1]["critic/vf_loss"] < steps[0][1]["critic/vf_loss"] - 0.001  # the same prompts again
