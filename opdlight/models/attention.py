"""How a model computes attention: transformers' implementation by its name."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opdlight.errors import ConfigError
from opdlight.models.distinct_tokens import SDPA, use_distinct_tokens

KEY = "model.attn_implementation"
NAMES = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
ON_CPU = ("eager", "sdpa", "paged|eager", SDPA)  # those that run on a CPU, backward pass included


def use_attention(model: PreTrainedModel, name: str | None, dtype: str) -> None:
    """Let `model` compute attention by the implementation `name`; None leaves transformers' choice.

    SDPA gets what rows have in common once, where the model can do so: see `distinct_tokens.py`. On a GPU cuDNN's
    kernels are turned off in the whole process: cuDNN plans each new shape, which nearly every micro-batch has.

    Args:
        model: as it was loaded.
        name: one of `NAMES`, or a kernel's name on the Hub, for which transformers needs the package `kernels`.
        dtype: of the forward pass.

    Raises:
        ConfigError: naming `model.attn_implementation` and what there is, if the model or this machine cannot.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name is not None:
        _set(model, name, dtype)
    use_distinct_tokens(model)


def _set(model: PreTrainedModel, name: str, dtype: str) -> None:
    if problem := _problem(model, name, dtype):
        raise _refusal(model, name, dtype, problem)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
    except Exception as error:  # a kernel from the Hub has many ways to fail
        raise _refusal(model, name, dtype, str(error)) from error
    if name != before and model.config._attn_implementation == before:  # transformers only warns
        raise _refusal(model, name, dtype, "The model's code does not let one choose.")


def _refusal(model: PreTrainedModel, name: str, dtype: str, problem: str) -> ConfigError:
    known = [other for other in NAMES if _problem(model, other, dtype) is None]
    expected = f"null or, for {type(model).__name__} on this machine, one of {', '.join(known)}"
    return ConfigError(f"{ConfigError.wrong(KEY, expected=expected, got=name)} {' '.join(problem.split())}")


def _problem(model: PreTrainedModel, name: str, dtype: str) -> str | None:
    """Why `model` cannot use `name` here; None if it can, or if only trying can tell."""
    if name not in NAMES:  # another that is registered, or a kernel of the Hub
        registered = "/" in name or name in ALL_ATTENTION_FUNCTIONS.valid_keys()
        return None if registered else "There is no such implementation (a kernel of the Hub is owner/name)."
    if name not in ON_CPU and not torch.accelerator.is_available():
        return f"{name} trains on a GPU only, and there is none."
    if name.startswith("flash") and dtype == "float32":
        return "Flash attention computes in bfloat16: model.compute_dtype=bfloat16."
    try:
        model.get_correct_attn_implementation(name)
    except (ValueError, ImportError) as error:
        return str(error)
    return None


@contextmanager
def runnable(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Within, attention also runs on `device`: on a CPU SDPA takes the place of what needs a GPU.

    A model is checked on the CPU before it is moved to the device that it trains on.
    """
    chosen = model.config._attn_implementation
    if chosen in ON_CPU or device.type != "cpu":
        yield
        return
    model.config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = chosen
