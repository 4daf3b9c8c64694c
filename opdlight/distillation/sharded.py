"""FSDP2 whose checkpoints are those of one process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from opdlight.system.lightning_internals import shard_over_all, unwrapped


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of one process: put together on the first rank, divided when they are loaded.

    So a run may go on with another number of processes, or with one. The first rank holds the whole student and its
    optimizer state in the CPU's memory for a moment.

    The student is divided over all processes, of all machines.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Every process of every machine takes a share."""
        shard_over_all(self)
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer state over, as it does without sharding."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, on the first rank, by the parameters' numbers as without sharding."""
        assert self.model is not None
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, unwrapped(optimizer), options=whole)
        return _renamed(state, {name: i for i, name in enumerate(self._trained())}) if state else {}

    def _trained(self) -> list[str]:
        assert self.model is not None
        return [name for name, weight in self.model.named_parameters() if weight.requires_grad]

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Each rank reads the whole checkpoint."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank keeps its share of the weights."""
        assert self.model is not None
        set_model_state_dict(
            self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True, strict=strict)
        )

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank keeps its share of the optimizer state."""
        assert self.model is not None
        whole, names = StateDictOptions(full_state_dict=True), dict(enumerate(self._trained()))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, _renamed(state, names), options=whole)


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state dict with other names for its parameters."""
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[p]: values for p, values in state["state"].items()}, "param_groups": groups}
