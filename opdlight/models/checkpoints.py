"""Where models come from: names, folders, adapters."""

import difflib
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from opdlight.errors import CheckpointError, ConfigError

LAB = Path(__file__).parents[1] / "assets" / "lab"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_model(name: str | Path) -> str:
    """`lab/<name>` → the bundled folder; an existing folder → its full path; anything else is taken for a Hub name.

    Raises:
        CheckpointError: if the lab has no such model, or a folder holds none.
    """
    if str(name).startswith("lab/"):
        folder = LAB / str(name).removeprefix("lab/").rstrip("/")
        if not _is_model(folder):
            known = sorted(f"lab/{f.name}" for f in LAB.glob("*") if _is_model(f))
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known) or 'none'}."
            raise CheckpointError(f"No lab model is called {str(name)!r}. {hint}")
        return str(folder.resolve())
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


def load_model(name: str | Path, dtype: str) -> PreTrainedModel:
    """A causal LM without dropout; a LoRA adapter folder is merged into the base that it names.

    Rollouts and teachers know no dropout, so the trained forward has none either: both must be the same policy.

    Raises:
        ConfigError: naming `model.dtype`. CheckpointError: if the model cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ConfigError.wrong("model.dtype", expected=f"one of {', '.join(DTYPES)}", got=dtype)
    source = resolve_model(name)
    if (Path(source) / "adapter_config.json").is_file():
        from peft import PeftModel  # slow to import, and only adapters need it

        base = load_model(_base_of(source), dtype)
        return PeftModel.from_pretrained(base, source).merge_and_unload()  # type: ignore[no-any-return]
    try:
        config = AutoConfig.from_pretrained(source)
        for key, value in config.to_dict().items():
            if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop")):
                setattr(config, key, 0.0)
        return AutoModelForCausalLM.from_pretrained(source, config=config, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot load the model {str(name)!r}: {error}") from error


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model; an adapter folder without one uses its base's."""
    source = resolve_model(name)
    folder = Path(source)
    if (folder / "adapter_config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_of(source))
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot load the tokenizer of {str(name)!r}: {error}") from error


def _base_of(adapter: str) -> str:
    """The base model an adapter names; a relative folder is looked up from the adapter's own folder first."""
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise CheckpointError(f"The adapter {adapter!r} does not name its base model (base_model_name_or_path).")
    beside = Path(adapter) / base
    return str(beside) if beside.is_dir() else base


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
