"""One whole update of the recipe's configuration, by verl's own actor and critic workers on tiny models, against the same
update written with `sppo_control.core`, transformers and torch's AdamW: every number between, and every weight afterwards.

The workers are `ActorRolloutRefWorker` in the role `actor` and the critic's `TrainingWorker` with the plug-in, in this
process, with verl's FSDP2 engine on gloo. The role `rollout` starts vLLM, which needs an accelerator. So the responses are
given.
"""

import pytest
import torch
from test_verl_trainer import tiny_config
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_from_nested, response_to_nested
from verl_batch import OUTCOMES, PROMPT_LENGTHS, RESPONSE_LENGTHS, B, critic_data, jagged, make_batch

from sppo_control import core
from sppo_control.llm import verl_plugin

MINI = 3  # two minibatches, so that the second one's ratio is not 1
FAR = 4, 0  # a token of a failure, in the second minibatch, whose stored log-probability is made 2 lower: ratio above 3
SETTINGS = (  # with these rates some ratios of the second minibatch are clipped
    "data.train_batch_size=6",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={MINI}",
    "actor_rollout_ref.actor.optim.lr=0.02",
    "critic.optim.lr=0.02",
)


@pytest.fixture(scope="module")
def config(tiny_models):
    return tiny_config(tiny_models, *SETTINGS)


@pytest.fixture(scope="module")
def workers(config, tmp_path_factory):
    """The policy's and the critic's worker, set up as verl's trainer does it (trainer_base.py, `_setup`)."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
            patch.setenv(name, value)
        actor = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
        actor.init_model()
        critic = omega_conf_to_dataclass(config.critic)
        critic.engine.infer_max_token_len_per_gpu = critic.ppo_infer_max_token_len_per_gpu
        critic.engine.max_token_len_per_gpu = critic.ppo_infer_max_token_len_per_gpu
        critic = verl_plugin.PromptCriticWorker(
            TrainingWorkerConfig(
                model_type="value_model",
                model_config=critic.model,
                engine_config=critic.engine,
                optimizer_config=critic.optim,
                checkpoint_config=critic.checkpoint,
            )
        )
    critic.reset()
    critic.set_loss_fn(verl_plugin.sppo_value_loss)
    yield actor, critic
    torch.distributed.destroy_process_group()


def weights(engine):
    return {name: p.full_tensor().clone() for name, p in engine.module.state_dict().items()}


@pytest.fixture(scope="module")
def update(config, workers):
    """What the trainer's step does with one batch: old log-probabilities, values, advantages, critic, policy."""
    actor, critic = workers
    batch = make_batch()
    data = critic_data(batch)
    del data["returns"]
    before = weights(actor.actor.engine), weights(critic.engine)
    temperature = config.actor_rollout_ref.rollout.temperature
    common = {"temperature": temperature, "compute_loss": False}

    def given(**settings):  # a fresh copy, because the workers write into what they get
        return tu.assign_non_tensor(data.copy(), **settings)

    del data["use_dynamic_bsz"]
    log_probs = actor.compute_log_prob(given(calculate_entropy=True, **common))["log_probs"]
    values = critic.infer_batch(given(**common))["values"]
    mask = data["response_mask"]
    old = list(response_from_nested(log_probs, mask).unbind())
    old[FAR[0]][FAR[1]] -= 2
    data["old_log_probs"] = jagged(old)
    data["values"] = response_from_nested(values, mask)
    padded = data.select("values", "old_log_probs", "response_mask").to_padded_tensor()
    advantages, returns = verl_plugin.sppo_advantage(
        batch["rewards"].float(), padded["response_mask"], values=padded["values"]
    )
    data["advantages"], data["returns"] = response_to_nested(advantages, mask), response_to_nested(returns, mask)
    logged = []
    for worker, part in (
        (critic.train_mini_batch, config.critic),
        (actor.update_actor, config.actor_rollout_ref.actor),
    ):
        size = part.ppo_mini_batch_size
        settings = {"global_batch_size": size, "mini_batch_size": size, "epochs": part.ppo_epochs}
        settings |= {"seed": part.data_loader_seed, "dataloader_kwargs": {"shuffle": part.shuffle}}
        output = worker(given(**settings, calculate_entropy=False, temperature=temperature))
        logged.append(tu.get(output, "metrics"))
    after = weights(actor.actor.engine), weights(critic.engine)
    return batch, padded, advantages, logged, before, after


def optimiser(model, optim):
    """What the configuration says, in torch's words."""
    return torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, betas=tuple(optim.betas))


def policy_log_probs(model, batch, temperature):
    """(B, T), left-padded prompts, in plain transformers."""
    ids, attention = batch["input_ids"], batch["attention_mask"]
    logits = model(input_ids=ids, attention_mask=attention, position_ids=batch["position_ids"]).logits / temperature
    width = ids.shape[1] - batch["mask"].shape[1]
    return logits[:, width - 1 : -1].log_softmax(-1).gather(-1, ids[:, width:, None])[..., 0]


def prompt_logits(model, batch):
    """(B,), each prompt alone, without its response."""
    rows = [
        ids[m.bool()][:n] for ids, m, n in zip(batch["input_ids"], batch["attention_mask"], PROMPT_LENGTHS, strict=True)
    ]
    return torch.stack([model(input_ids=row[None]).logits[0, -1, 0] for row in rows])


@pytest.fixture(scope="module")
def models(tiny_models, update):
    """The two models before the update, in plain transformers."""
    policy_weights, critic_weights = update[4]
    policy = AutoModelForCausalLM.from_pretrained(tiny_models["policy"], attn_implementation="eager")
    critic = AutoModelForTokenClassification.from_pretrained(tiny_models["critic"], num_labels=1)
    policy.load_state_dict(policy_weights)
    critic.load_state_dict(critic_weights)
    return policy.eval(), critic.eval()


def assert_same_weights(found, model, start, lr):
    """The changes agree to a thousandth of the rate in the mean, and to a fiftieth in each weight: Adam divides by the
    gradient's size, so where that is nearly 0, its rounding counts. And there are changes."""
    for name, p in model.state_dict().items():
        difference = (found[name] - p).abs()
        assert difference.max() < 0.02 * lr, name
        assert difference.mean() < 1e-3 * lr, name
        assert (found[name] - start[name]).abs().max() > 0.5 * lr, name


def test_the_recipe_is_the_one_that_is_run(config):
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "sppo_dual_clip"
    assert config.actor_rollout_ref.actor.loss_agg_mode == "seq-mean-token-mean"
    assert config.actor_rollout_ref.actor.optim.weight_decay == 0.1
    assert config.critic.optim.weight_decay == 0.01
    assert config.critic.ppo_mini_batch_size == MINI


def test_values_and_advantages_are_cores(update, models):
    batch, padded, advantages, *_ = update
    with torch.no_grad():
        logit = prompt_logits(models[1], batch)
    assert logit.std() > 0.01
    torch.testing.assert_close(padded["values"][:, 0], logit, rtol=0, atol=1e-5)
    expected = core.sequence_advantage(batch["outcome"].float(), logit)[:, None] * batch["mask"]
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-5)


def test_critics_update_is_cores(config, update, models):
    batch, _, _, (logged, _), (_, start), (_, after) = update
    model = models[1]
    adam, outcome = optimiser(model, config.critic.optim), batch["outcome"].float()
    for step, rows in enumerate(torch.arange(B).split(MINI)):
        adam.zero_grad()
        loss = core.bernoulli_value_loss(prompt_logits(model, batch)[rows], outcome[rows])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.critic.optim.clip_grad)
        adam.step()
        assert logged["critic/vf_loss"][step] == pytest.approx(loss.item(), rel=1e-4)
        assert logged["grad_norm"][step] == pytest.approx(norm.item(), rel=1e-3)
    assert step == 1
    assert_same_weights(after, model, start, config.critic.optim.lr)


def test_policys_update_is_cores(config, update, models):
    """Old log-probabilities at temperature 0.6; in the second minibatch ratios are clipped, and a failure's is above 3."""
    batch, padded, _, (_, logged), (start, _), (after, _) = update
    actor, model, mask = config.actor_rollout_ref.actor, models[0], batch["mask"]
    temperature = config.actor_rollout_ref.rollout.temperature
    assert temperature == 0.6
    with torch.no_grad():
        old = policy_log_probs(model, batch, temperature)
        advantage = core.sequence_advantage(batch["outcome"].float(), padded["values"][:, 0])
    old[FAR] -= 2
    torch.testing.assert_close(padded["old_log_probs"][mask], old[mask], rtol=0, atol=1e-4)
    adam, clipped, beyond = optimiser(model, actor.optim), 0.0, 0
    for step, rows in enumerate(torch.arange(B).split(MINI)):
        adam.zero_grad()
        logp = policy_log_probs(model, batch, temperature)[rows]
        limit = old[rows] + torch.tensor(actor.clip_ratio_c).log()
        beyond += int(((logp > limit) & mask[rows] & (advantage[rows, None] < 0)).sum())
        clipped += core.clipped_surrogate(logp, old[rows], advantage[rows], mask[rows]).clipfrac
        loss = core.clipped_surrogate(
            torch.minimum(logp, limit), old[rows], advantage[rows], mask[rows], actor.clip_ratio, "sequence-mean"
        ).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), actor.optim.clip_grad)
        adam.step()
        assert logged["actor/pg_loss"][step] == pytest.approx(loss.item(), rel=1e-3, abs=1e-5)
        assert logged["grad_norm"][step] == pytest.approx(norm.item(), rel=1e-3)
    assert step == 1
    assert clipped > 0
    assert beyond == 1
    assert_same_weights(after, model, start, actor.optim.lr)
    assert len(OUTCOMES) == len(RESPONSE_LENGTHS) == B
