"""Models, tokenizers and adapters from folders, the Hub and the package."""

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opdlight.errors import CheckpointError, ConfigError, OpdError
from opdlight.models import smollm2

LAB = Path(__file__).parents[1] / "assets" / "lab"
SMOLLM2 = LAB.parent / "smollm2"  # adapters on SmolLM2
PREPARED = {"smollm2": smollm2.prepared, "smollm2/other-end": smollm2.other_end}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_model(name: str | Path) -> str:
    """The folder of a model, or its Hub name.

    `lab/<name>` and `smollm2/<name>` are bundled folders; `smollm2` is SmolLM2-135M-Instruct and `smollm2/other-end`
    the same with another end of sequence (both prepared on first use); an existing folder becomes its full path, and
    anything else is taken for a Hub name.

    Raises:
        CheckpointError: if no such model is bundled, a folder holds none, or `smollm2` cannot be prepared.
    """
    if prepare := PREPARED.get(str(name)):
        return str(prepare())
    for prefix, bundle in (("lab", LAB), ("smollm2", SMOLLM2)):
        if str(name).startswith(f"{prefix}/"):
            return _bundled(str(name), prefix, bundle)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not _is_model(folder):
            raise CheckpointError(
                f"Expected {str(folder)!r} to hold config.json or adapter_config.json, but it does not."
            )
        return str(folder.resolve())
    if folder.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise CheckpointError(f"Expected a model folder, lab/<name> or a Hub name, but {str(name)!r} does not exist.")
    return str(name)


def _bundled(name: str, prefix: str, bundle: Path) -> str:
    folder = bundle / name.removeprefix(f"{prefix}/").rstrip("/")
    if not _is_model(folder):
        known = sorted(f"{prefix}/{f.name}" for f in bundle.glob("*") if _is_model(f))
        known += [other for other in PREPARED if other.startswith(f"{prefix}/")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known) or 'none'}."
        raise CheckpointError(f"No {prefix} model is called {name!r}. {hint}")
    return str(folder.resolve())


def load_model(name: str | Path, dtype: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal LM in eval mode; a LoRA adapter folder is merged into the base that it names.

    Code that a model brings with it (`auto_map`) is run only with `trust_remote_code`; nobody is asked at the terminal.

    Raises:
        ConfigError: naming `model.dtype`. CheckpointError: if the model cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ConfigError.wrong("model.dtype", expected=f"one of {', '.join(DTYPES)}", got=dtype)
    source = resolve_model(name)
    if is_adapter(source):
        from peft import PeftModel  # slow to import, and only adapters need it

        base = load_model(_base_of(source), dtype, trust_remote_code=trust_remote_code)
        with _loading("the adapter", name):
            return PeftModel.from_pretrained(base, source).merge_and_unload()
    with _loading("the model", name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, trust_remote_code=trust_remote_code
        )
        model: PreTrainedModel = loaded[0]
        if missing := sorted(loaded[1]["missing_keys"]):  # transformers initialises them at random
            raise CheckpointError(f"{str(name)!r} lacks {len(missing)} weights of its config, such as {missing[0]!r}.")
        return model


def check_compute_dtype(stored: str, compute_dtype: str | None) -> None:
    """Refuse a forward pass in another dtype than bfloat16, or than the weights have.

    Raises:
        ConfigError: naming `model.compute_dtype`.
    """
    if compute_dtype not in (None, stored, "bfloat16"):
        raise ConfigError.wrong("model.compute_dtype", expected=f"bfloat16 or {stored}, as stored", got=compute_dtype)


@contextmanager
def _loading(what: str, name: str | Path) -> Iterator[None]:
    """Turn the errors of the libraries, many kinds for a damaged or unknown folder, into CheckpointError."""
    try:
        yield
    except OpdError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{str(name)!r} brings code of its own (auto_map), which is not run unless you have read it and say "
                "model.trust_remote_code=true."
            ) from error
        reason = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"Cannot load {what} {str(name)!r}: {' '.join(reason.split())}") from error


def load_skeleton(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model on the meta device: its config, names and shapes, and none of its weights; of an adapter, its base.

    Raises:
        CheckpointError: if there is no such model.
    """
    source = resolve_model(name)
    if is_adapter(source):
        return load_skeleton(_base_of(source), trust_remote_code=trust_remote_code)
    with _loading("the config of", name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    with suppress(OSError):  # not every model has one
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model; an adapter folder without one uses its base's."""
    source = resolve_model(name)
    if is_adapter(source) and not (Path(source) / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_of(source), trust_remote_code=trust_remote_code)
    with _loading("the tokenizer of", name):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder; `weights` take the place of the model's own.

    A generation config is written as it was read. transformers reads one that contradicts itself, such as a temperature
    without do_sample, but refuses to write it.
    """
    generation = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.generation_config = generation
    if generation is not None:
        generation.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)


def contradiction(model: PreTrainedModel) -> str | None:
    """Why transformers refuses to write the model's generation config; None if it does not."""
    try:
        if model.generation_config is not None:
            model.generation_config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None


@contextmanager
def engine_folder(name: str | Path, dtype: str, *, trust_remote_code: bool = False) -> Iterator[str]:
    """What an engine can load: the model's folder or Hub name; for an adapter, a temporary folder, merged."""
    source = resolve_model(name)
    if not is_adapter(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="opdlight-merged-") as folder:
        model = load_model(source, dtype, trust_remote_code=trust_remote_code)
        save_model(model, load_tokenizer(source, trust_remote_code=trust_remote_code), Path(folder))
        yield folder


def is_adapter(source: str | Path) -> bool:
    """True for a folder that holds a LoRA adapter and no model of its own."""
    return (Path(source) / "adapter_config.json").is_file()


def _base_of(adapter: str) -> str:
    """The base model an adapter names; a relative folder is looked up from the adapter's own folder first."""
    from peft import PeftConfig

    with _loading("the adapter", adapter):
        base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise CheckpointError(f"The adapter {adapter!r} does not name its base model (base_model_name_or_path).")
    beside = Path(adapter) / base
    return str(beside) if beside.is_dir() else base


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
