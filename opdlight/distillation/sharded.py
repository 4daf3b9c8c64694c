"""FSDP2 whose checkpoints are divided as the student is, and load into any other division, or none."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from opdlight.errors import CheckpointError
from opdlight.run_folder.checkpoint_io import load_state
from opdlight.run_folder.shards import OPTIMIZERS, WEIGHTS_KEY, pieces_of, read_into, read_shapes
from opdlight.system.distributed import all_gather, of_first, rank
from opdlight.system.lightning_internals import set_mesh, shard_over_all, unwrapped


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: the student is divided over the processes.

    Each process writes its share of a checkpoint and reads its share of one, so none ever holds the whole, and the run
    may go on with another number of processes, or with one. Where the processes do not see one run folder, the first
    one collects the whole student and its optimizer state in the CPU's memory and writes a checkpoint of one process.

    Args:
        shard_within: `all` processes of all nodes divide one student. `node`: those of each node do, so each node has
            a whole one (HSDP): more memory, and between nodes only gradients travel.
    """

    def __init__(self, shard_within: Literal["all", "node"] = "all") -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.shard_within = shard_within
        self._writers: ProcessGroup | None = None  # of the threads that write checkpoints
        self._shared: bool | None = None  # whether all processes see the run folder; None before the first checkpoint
        self._resumed = Path()  # the checkpoint that was loaded

    def setup_environment(self) -> None:
        """Let the processes find each other and set the module's mesh: (processes), or (nodes, processes of a node)."""
        shard_over_all(self)
        super().setup_environment()
        mesh = self.device_mesh["data_parallel"]
        if self.shard_within == "node" and self.num_nodes > 1:
            shape = self.num_nodes, self.num_processes
            mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))
        set_mesh(self, mesh)
        if self._writers is None:
            self._writers = dist.new_group(backend="gloo")

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer state over, as it does without sharding."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, divided as they are, with the memory that they have."""
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state, divided as it is, by the parameters' numbers as without sharding."""
        return unwrapped(optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Every process begins to write its share; where they see no common folder, the first one the whole."""
        path = Path(of_first(str(filepath)))
        if self._shared is None:
            self._shared = is_shared(path.parent)
            if not self._shared and rank() == 0:
                print(f"Not all processes see {path.parent}: the first one collects and writes the checkpoints whole.")
        self.checkpoint_io.save_checkpoint(checkpoint, path, self._writers if self._shared else None)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """All but the weights, which `load_model_state_dict` reads."""
        self._resumed = Path(checkpoint_path)
        return {**load_state(self._resumed), WEIGHTS_KEY: {}}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank reads its share of the weights that are trained, into its place."""
        assert self.model is not None
        found = read_shapes(self._resumed)
        read_into({n: w for n, w in self.model.state_dict().items() if n in found}, self._resumed)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank reads its share of the optimizer state.

        Raises:
            CheckpointError: if a part of it has another shape than its parameter: nothing says how to divide that.
        """
        for i, (optimizer, state) in enumerate(zip(self.optimizers, checkpoint[OPTIMIZERS], strict=True)):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            divided: dict[int, dict[str, Any]] = {}
            to_read: dict[str, Tensor] = {}
            for number, values in state["state"].items():
                divided[number] = dict(values)
                for key, value in values.items():
                    if not isinstance(value, Tensor) or not value.dim():
                        continue
                    if value.shape != parameters[number].shape:
                        raise CheckpointError(f"The optimizer's {key!r} cannot be divided: resume with trainer=ddp.")
                    mine = divided[number][key] = torch.empty_like(parameters[number], dtype=value.dtype).detach()
                    if value.is_meta:
                        to_read[f"{OPTIMIZERS}.{i}.state.{number}.{key}"] = mine
                    for begin, piece in pieces_of(mine) if not value.is_meta else ():
                        piece.copy_(value[tuple(slice(b, b + n) for b, n in zip(begin, piece.shape, strict=True))])
            if to_read:
                read_into(to_read, self._resumed)
            optimizer.load_state_dict({**state, "state": divided})


def is_shared(folder: Path) -> bool:
    """Whether all processes see the `folder` that the first one makes; every rank must call it."""
    own = None
    if rank() == 0:
        with suppress(OSError):  # a full disk is no answer; the checkpoint itself will fail
            folder.mkdir(parents=True, exist_ok=True)
            own = tempfile.mkdtemp(prefix=".step-seen-", dir=folder)
    name = of_first(own)
    found = all(all_gather(name is None or Path(name).is_dir()))
    if own is not None:
        Path(own).rmdir()
    return found
