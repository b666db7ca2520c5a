"""The list of TRL's names that SPPOTrainer needs: complete, without names that are not used, and checked by name; and TRL's
vLLM configuration, with a stand-in for vLLM itself."""

import ast
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl", reason="trl is not installed: extra llm")
import trl.trainer.grpo_trainer
from test_llm_trainer import H, canned, config, critic, small, trainer, weights
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

import sppo_control.llm.trainer
from sppo_control.llm import SPPOTrainer, trl_names

NAMES = trl_names.METHODS | trl_names.ATTRIBUTES


def own_names(cls):
    """Methods and attributes that the class itself defines or sets."""
    tree = ast.parse(inspect.getsource(cls))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            names |= {
                x.attr if isinstance(x, ast.Attribute) else x.id
                for x in (target.elts if isinstance(target, ast.Tuple) else [target])
                if isinstance(x, ast.Attribute | ast.Name)
            }
    return names


def used_names(cls):
    """Names that the class takes from `self` or `super()`, by getattr with a constant too."""
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(cls))):
        if isinstance(node, ast.Attribute):
            of = node.value
            is_super = isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "super"
            if is_super or (isinstance(of, ast.Name) and of.id == "self"):
                used.add(node.attr)
    return used - {"__init__"}


def test_installed_trl_has_every_name():
    assert trl_names.missing(GRPOTrainer) == []


def test_list_is_neither_too_short_nor_too_long():
    own = own_names(SPPOTrainer) - {"__init__", *trl_names.CARD}
    overridden = {name for name in own if callable(getattr(GRPOTrainer, name, None))}
    assert overridden == set(trl_names.METHODS)
    # transformers' documented attributes are not TRL's: those that its Trainer sets itself
    trl, transformers = (Path(inspect.getfile(cls)).read_text() for cls in (GRPOTrainer, Trainer))
    taken = used_names(SPPOTrainer) - overridden
    of_trl = {
        name for name in taken
        if f"self.{name} =" in trl and not (f"self.{name} =" in transformers and name[0] != "_")
    }  # fmt: skip
    assert of_trl - {"critic", "args"} == set(trl_names.ATTRIBUTES)


@pytest.mark.parametrize("name", ["_compute_loss", "_buffered_inputs"])
def test_a_name_that_trl_lacks_is_said_at_import(monkeypatch, name):
    if name in trl_names.METHODS:
        monkeypatch.delattr(GRPOTrainer, name)
    else:
        read = trl_names.Path.read_text
        monkeypatch.setattr(
            trl_names.Path, "read_text", lambda path, **kwargs: read(path, **kwargs).replace(f"self.{name}", "self.x")
        )
    assert trl_names.missing(GRPOTrainer) == [name]
    module = sys.modules.pop("sppo_control.llm.trainer")
    try:
        with pytest.raises(ImportError, match=rf"does not fit TRL .* lacks {name} \({NAMES[name][:20]}"):
            __import__("sppo_control.llm.trainer")
    finally:
        sys.modules["sppo_control.llm.trainer"] = module
        sppo_control.llm.trainer = module


# --------------------------------------------------------------------------------------------- vLLM's configuration
class StandIn:
    """In place of TRL's VLLMGeneration: keeps its arguments, and answers as `canned` does."""

    made: "StandIn"

    def __init__(self, **kwargs):
        StandIn.made, self.arguments, self.synced, self.asked = self, kwargs, 0, []
        self.vllm_client = SimpleNamespace(
            get_server_info=lambda: {"model_config": {"logprobs_mode": "processed_logprobs"}}
        )

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        self.asked.append((prompts, num_generations))
        tokenizer = self.arguments["processing_class"]
        rows = canned([tokenizer.decode(row).replace(" ", "") for row in prompts], self)
        return prompts, rows["completion_ids"], [[[-1.0]] * len(row) for row in rows["completion_ids"]], None

    @property
    def processing_class(self):
        return self.arguments["processing_class"]


COLOCATE = {
    "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4, "vllm_tensor_parallel_size": 1,
    "vllm_max_model_length": 48, "vllm_enable_sleep_mode": True, "vllm_model_impl": "transformers",
}  # fmt: skip
SERVER = {"vllm_mode": "server", "vllm_server_host": "10.0.0.7", "vllm_server_port": 8123, "vllm_server_timeout": 9.0}


@pytest.mark.parametrize("settings", [COLOCATE, SERVER], ids=["colocate", "server"])
def test_vllm_is_configured_as_grpo_configures_it(tmp_path, monkeypatch, settings):
    """The same arguments as from GRPOTrainer with the same settings, and one response for each prompt is asked for."""
    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", StandIn)
    made = trainer(tmp_path, use_vllm=True, critic=critic(), max_steps=2, **settings)
    ours = StandIn.made
    base = config(tmp_path).to_dict()
    names = ("max_completion_length", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "use_cpu")
    args = GRPOConfig(str(tmp_path), use_vllm=True, num_generations=2, **{k: base[k] for k in names}, **settings)
    GRPOTrainer(made.model, small, args, made.train_dataset, processing_class=made.processing_class)
    differing = {k for k, v in StandIn.made.arguments.items() if ours.arguments[k] is not v and ours.arguments[k] != v}
    assert differing <= {"accelerator", "generation_kwargs"}
    short = {name.removeprefix("vllm_"): value for name, value in settings.items()}
    assert short.items() <= ours.arguments.items()
    assert ours.arguments["max_completion_length"] == H

    before = weights(made.model)
    made.train()
    assert ours.synced == 2
    assert [number for _, number in ours.asked] == [1, 1]
    assert [len({tuple(row) for row in rows}) for rows, _ in ours.asked] == [8, 8]
    assert any((weights(made.model)[name] != x).any() for name, x in before.items())


def test_vllms_correction_weighs_the_tokens_loss(tmp_path, monkeypatch):
    """TRL's own: exp(log-probability of the policy - that of vLLM), which is -1 here for each token. Without it the loss is
    the plain one."""
    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", StandIn)
    losses = {}
    for on in (False, True):
        made = trainer(
            tmp_path, use_vllm=True, critic=critic(), max_steps=1, vllm_importance_sampling_correction=on,
            vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=1e9,
        )  # fmt: skip
        seen = []
        compute = made._compute_loss
        made._compute_loss = lambda model, inputs, compute=compute, seen=seen: (
            seen.append(dict(inputs)), compute(model, inputs)
        )[1]  # fmt: skip
        made.train()
        losses[on] = made.state.log_history[0]["loss"]
        assert ("importance_sampling_ratio" in seen[0]) == on
        if on:
            tokens = sum(float(x["completion_mask"].sum()) for x in seen)
            expected = sum(
                -(x["importance_sampling_ratio"] * x["advantages"][:, None] * x["completion_mask"]).sum() for x in seen
            ) / tokens  # fmt: skip
            assert losses[True] == pytest.approx(float(expected), abs=1e-5)
    assert losses[True] != pytest.approx(losses[False], abs=1e-3)


def test_without_vllm_the_setting_is_refused_before_training(tmp_path):
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="vLLM is not available"):
            trainer(tmp_path, use_vllm=True)
    else:
        pytest.skip("vLLM is installed")
