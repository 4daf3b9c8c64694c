"""A Hugging Face causal LM as opdlight uses it: hidden states at the loss positions, and the LM head."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from opdlight.errors import CheckpointError, ConfigError
from opdlight.models.attention import runnable
from opdlight.models.distinct_tokens import SDPA, last_hidden
from opdlight.models.lm_head import LMHead
from opdlight.models.packing import packed_inputs
from opdlight.models.wide_product import wide
from opdlight.types import TokenBatch

SAMPLE_TOKENS = 8
AS_STORED = MixedPrecisionPolicy()
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest logit of the sample


def divide(
    root: nn.Module,
    model: PreTrainedModel,
    mesh: DeviceMesh,
    precision: MixedPrecisionPolicy = AS_STORED,
    *,
    offload: bool = False,
) -> None:
    """Divide the weights of `model` inside `root` over the ranks of `mesh` (FSDP2): layer by layer, then the rest.

    The rest holds embedding and head. They stay gathered after `root.forward`, until the backward pass has ended or
    `root.reshard()` is called, because the head is used outside of any forward pass.

    Args:
        root: the module whose `forward` runs the model.
        model: inside `root`.
        mesh: of one dimension; or of two, along the first of which the shares are repeated (HSDP).
        precision: dtypes of gathered weights and of the sum of gradients over the ranks.
        offload: each rank's share is in the CPU's memory while it is not used.
    """
    policy = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy()
    layers = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=policy)
    fully_shard(root, mesh=mesh, reshard_after_forward=False, mp_policy=precision, offload_policy=policy)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Turn on gradient checkpointing for a model in eval mode: its layers are recomputed in the backward pass.

    transformers checkpoints a layer only in training mode, so each layer's own flag is set to it; the modules inside
    the layers and the model stay in eval mode. Without a gradient nothing is kept or computed twice.

    Raises:
        ConfigError: if transformers cannot do it for this architecture.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        expected = f"false for {type(model).__name__}, whose layers transformers cannot compute again"
        raise ConfigError.wrong("model.student.gradient_checkpointing", expected=expected, got=True)
    # nothing in the layers draws random numbers, so no state of a generator has to be kept
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in layers:
        layer.training = True


def hidden_at(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The decoder's last hidden states, after the final norm, at the loss positions: [N, d].

    Packed rows run what they begin with together once, if the model can (`distinct_tokens.py`). Others that need no
    padding run as they are: that leaves attention without a mask, which is faster. All ways give the same up to
    roundings.
    """
    if batch.packed and model.config._attn_implementation == SDPA:
        return last_hidden(model, batch)
    decoder = model.get_decoder()
    with runnable(model, batch.input_ids.device):
        if batch.packed and not bool(batch.attention_mask.all()):
            inputs, at = packed_inputs(batch)
            packed: Tensor = decoder(**inputs, use_cache=False).last_hidden_state
            return packed[0, at]
        output = decoder(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state
    return hidden[batch.row_index, batch.col_index]


def head_of(model: PreTrainedModel, dtype: torch.dtype | None = None) -> LMHead:
    """The model's head, with the scale and soft-cap that its config names; see `check_head`.

    Args:
        model: whose output embedding it is.
        dtype: of the weight in products, copied once; None: as it is stored.

    Raises:
        CheckpointError: if it is no `torch.nn.Linear`.
    """
    output = model.get_output_embeddings()
    if not isinstance(output, torch.nn.Linear):
        raise CheckpointError(
            f"Expected the output embedding of {type(model).__name__} to be torch.nn.Linear, "
            f"but got {type(output).__name__}. Adapters on the head are not supported."
        )
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = 1.0 / config.logits_scaling
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere and Falcon-H1 multiply
        if getattr(config, name, None):
            scale = float(getattr(config, name))
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = None if output.bias is None else wide(output.bias)  # its gradients, too, are summed in float32
    if dtype is None:
        return LMHead(weight=output.weight, bias=bias, scale=scale, softcap=softcap)
    copied = output.weight.detach().to(dtype)
    return LMHead(weight=copied, bias=bias, scale=scale, softcap=softcap, gradient_to=output.weight)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare the logits of `head_of` with those of the model itself, in eval mode, on a few tokens.

    Raises:
        CheckpointError: if they differ: the architecture does something to its logits that opdlight does not know.
    """
    head = head_of(model)
    ids = (torch.arange(SAMPLE_TOKENS, device=head.weight.device) * 7 % head.width)[None]
    with runnable(model, ids.device):
        theirs = model(input_ids=ids, use_cache=False).logits[0]
        ours = head.logits(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0])
    if theirs.shape != ours.shape:
        raise CheckpointError(
            f"{type(model).__name__} has {theirs.shape[-1]} logits, but its head {ours.shape[-1]} rows."
        )
    error = float((theirs.to(ours.dtype) - ours).abs().max() / theirs.abs().max().clamp(min=1e-30))
    if not error < TOLERANCE[head.weight.dtype]:
        raise CheckpointError(
            f"{type(model).__name__} computes logits that its hidden states and LM head do not give (relative error "
            f"{error:.1e}): opdlight knows a bias, a scale and a soft-cap, and this model does something else."
        )
