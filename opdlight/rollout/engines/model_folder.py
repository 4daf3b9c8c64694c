"""Stop tokens, and names and shapes of the weights of a model, read from its folder."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from opdlight.errors import EngineError
from opdlight.models.loading import load_skeleton, load_tokenizer

Shapes = Mapping[str, tuple[torch.Size, int]]  # weight name → (shape, identity); tied weights have the same identity


def stop_token_ids(model: str, *, trust_remote_code: bool = False) -> list[int]:
    """The end-of-sequence ids of the tokenizer and of the generation config of `model`.

    Raises:
        EngineError: if there are none.
    """
    eos = [load_tokenizer(model, trust_remote_code=trust_remote_code).eos_token_id]
    try:
        configured = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # no generation config
        configured = None
    eos += configured if isinstance(configured, list) else [configured]
    found = sorted({token for token in eos if token is not None})
    if not found:
        raise EngineError(f"Model {model!r} names no end-of-sequence token, so no completion would ever stop.")
    return found


def checkpoint_shapes(model: str, *, trust_remote_code: bool = False) -> Shapes:
    """Name → shape and identity of every weight of `model`, from its config, without loading weights."""
    reference = load_skeleton(model, trust_remote_code=trust_remote_code)
    weights = revert_weight_conversion(reference, reference.state_dict(keep_vars=True))
    return {name: (weight.shape, id(weight)) for name, weight in weights.items()}


def named_weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Every weight of `model` under its name in a checkpoint."""
    return list(revert_weight_conversion(model, model.state_dict()).items())


def complete_weights(weights: Iterable[tuple[str, Tensor]], shapes: Shapes) -> dict[str, Tensor]:
    """Name → weight for all `shapes`; a tied weight that comes under one of its names is returned under all.

    Raises:
        EngineError: if a name is unknown, a shape differs, or a weight is missing.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights:
        if name not in shapes:
            raise EngineError(f"The engine's model has no weight {name!r}; it expects names like {min(shapes)!r}.")
        if weight.shape != shapes[name][0]:
            expected, got = tuple(shapes[name][0]), tuple(weight.shape)
            raise EngineError(f"Expected weight {name!r} to have shape {expected}, but got {got}.")
        found[name] = weight.detach()
    by_identity = {shapes[name][1]: weight for name, weight in found.items()}
    if missing := sorted(name for name, (_, identity) in shapes.items() if identity not in by_identity):
        raise EngineError(f"A weight update must hold the whole model, but {len(missing)} are missing: {missing[:5]}.")
    return {name: found.get(name, by_identity[identity]) for name, (_, identity) in shapes.items()}
