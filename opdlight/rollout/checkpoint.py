"""What a model folder says about itself: its stop tokens and the weights it consists of."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from opdlight.errors import EngineError

Shapes = Mapping[str, tuple[torch.Size, int]]  # weight name → (shape, identity); tied weights share an identity


def stop_token_ids(model: str) -> list[int]:
    """The end-of-sequence ids that the tokenizer and the generation config of `model` name."""
    eos = [AutoTokenizer.from_pretrained(model).eos_token_id]
    try:
        configured = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # the model has no generation config: the tokenizer decides
        configured = None
    eos += configured if isinstance(configured, list) else [configured]
    found = sorted({token for token in eos if token is not None})
    if not found:
        raise EngineError(f"Model {model!r} names no end-of-sequence token, so no completion would ever stop.")
    return found


def checkpoint_shapes(model: str) -> Shapes:
    """Name, shape and identity of every weight of `model`, from its config alone."""
    with torch.device("meta"):
        reference = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return {name: (weight.shape, id(weight)) for name, weight in reference.state_dict(keep_vars=True).items()}


def check_weights(named: Sequence[tuple[str, Tensor]], shapes: Shapes) -> None:
    """Raise EngineError unless `named` is the whole model; a tied weight may come under one of its names or all."""
    for name, weight in named:
        if name not in shapes:
            raise EngineError(f"The engine's model has no weight {name!r}; it expects names like {min(shapes)!r}.")
        if weight.shape != shapes[name][0]:
            expected, got = tuple(shapes[name][0]), tuple(weight.shape)
            raise EngineError(f"Expected weight {name!r} to have shape {expected}, but got {got}.")
    given = {shapes[name][1] for name, _ in named}
    missing = sorted(name for name, (_, identity) in shapes.items() if identity not in given)
    if missing:
        raise EngineError(f"A weight update must hold the whole model, but {len(missing)} are missing: {missing[:5]}.")
