"""What the memory of a run depends on, as plain numbers: a model's shapes and how the processes share it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Numbers of a model, read off its shapes: one on the meta device will do."""

    parameters: int  # tied ones once
    stored: int  # bytes of them, as they are stored
    trained: int  # bytes of the trained ones
    layer: int  # parameters of the largest layer; FSDP gathers a layer at a time
    rest: int  # parameters outside of the layers: embedding, head, last norm
    layers: int
    hidden: int
    intermediate: int
    width: int  # rows of the head
    head_trained: bool
    adapters: int = 0  # parameters of them, which are merged for the engine
    checkpointed: bool = False  # layers are recomputed in the backward pass

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """The numbers of a causal LM, with or without adapters."""
        config, names = model.config.get_text_config(), set(model._no_split_modules or ())
        layers = [_count(module) for module in model.modules() if type(module).__name__ in names]
        head = model.get_output_embeddings().weight
        every = list(model.parameters())
        total, hidden = _count(model), int(config.hidden_size)
        return cls(
            parameters=total,
            stored=sum(p.numel() * p.element_size() for p in every),
            trained=sum(p.numel() * p.element_size() for p in every if p.requires_grad),
            layer=max(layers, default=total),
            rest=total - sum(layers) if layers else 0,
            layers=int(config.num_hidden_layers),
            hidden=hidden,
            intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
            width=int(head.shape[0]),
            head_trained=bool(head.requires_grad),
            adapters=sum(p.numel() for name, p in model.named_parameters() if "lora_" in name),
            checkpointed=bool(model.is_gradient_checkpointing),
        )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the processes of a run share the student."""

    processes: int = 1  # on each machine
    machines: int = 1
    shards: int = 1  # processes that divide one student; 1: each has the whole
    copies: int = 1  # of the gradients: DDP sums them in buckets of its own

    @property
    def divided(self) -> bool:
        """True under FSDP."""
        return self.shards > 1

    @classmethod
    def of(cls, trainer: Mapping[str, Any], devices_here: int) -> Self:
        """The layout of a config's `trainer`; `devices_here` are the devices of this machine, for `devices: -1`."""
        devices = trainer.get("devices", 1)
        processes = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else devices_here
        processes, machines = max(processes if processes != -1 else devices_here, 1), int(trainer.get("num_nodes", 1))
        strategy = trainer.get("strategy", "auto")
        if isinstance(strategy, Mapping) and str(strategy.get("_target_", "")).endswith(".ShardedStrategy"):
            shards = processes if strategy.get("shard_within") == "node" else processes * machines
            return cls(processes=processes, machines=machines, shards=shards)
        return cls(processes=processes, machines=machines, copies=2 if processes * machines > 1 else 1)
