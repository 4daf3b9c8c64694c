"""Finds what draws random numbers in training mode: dropout, skipped layers, router jitter."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from opdlight.errors import ConfigError

RANDOM = re.compile("drop|jitter")
OF_OTHER_HEADS = ("classifier", "summary", "cls")  # GPT-2's summary_first_dropout is no part of a causal LM


def check_no_dropout(model: PreTrainedModel, name: str) -> None:
    """Refuse a student with dropout: engines sample without it, and the trained policy must be the one that sampled.

    Raises:
        ConfigError: naming `model.student.model` and the fields of its config.json, or the modules, that say otherwise.
    """
    found = dict(_fields(model.config.to_dict())) or dict(_modules(model))
    if found:
        raise ConfigError.wrong(
            "model.student.model",
            expected="a model without dropout, layer drop or router jitter, because the student that trains must be "
            f"the policy that has rolled out: set {', '.join(found)} to 0 in the config.json of a copy of it",
            got=f"{name} with {', '.join(f'{field} = {rate:g}' for field, rate in found.items())}",
        )


def _fields(config: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, float]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{at}{key}.")
        elif RANDOM.search(str(key)) and not str(key).startswith(OF_OTHER_HEADS) and _is_rate(value):
            yield f"{at}{key}", value


def _modules(model: nn.Module) -> Iterator[tuple[str, float]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            yield f"{name}.p", module.p
        for key, value in vars(module).items():
            if RANDOM.search(key) and _is_rate(value):
                yield f"{name}.{key}", value


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
