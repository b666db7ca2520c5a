"""The verl plug-in in its own environment: `make test-verl`. Everything runs on the CPU (see cpu_platform.py)."""

import os
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
os.environ.update(  # before the first import of verl, and inherited by Ray's workers
    VERL_PLATFORM="cpu",
    VERL_ENGINE_DEVICE="cuda",
    VERL_USE_EXTERNAL_MODULES="cpu_platform",
    PYTHONPATH=f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
)

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: E402


def write_tiny_model(path, hidden_size, characters="0123456789+=abcdefghijklmnopqrst"):
    """A Hugging Face folder: Qwen2 of 2 layers with random weights, and a tokenizer of single characters."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(path)
    torch.manual_seed(hidden_size)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of a policy, a smaller critic, and a model with another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": write_tiny_model(folder / "policy", 32),
        "critic": write_tiny_model(folder / "critic", 16),
        "stranger": write_tiny_model(folder / "stranger", 16, characters="tsrqponmlkjihgfedcba=+9876543210"),
    }


@pytest.fixture
def batch():
    """A fresh copy of the shared batch: `make_batch` of verl_batch.py says what is in it."""
    from verl_batch import make_batch

    return make_batch()
