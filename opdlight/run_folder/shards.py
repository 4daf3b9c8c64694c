"""The pieces of a checkpoint whose tensors are divided over processes: each writes its own and reads what it needs.

A piece lies in `shard-00003.safetensors` of its process, under the name of the whole tensor (`student.model.lm_head.
weight`, `optimizer_states.0.state.3.exp_avg`). The header says where it begins, as torch.distributed.checkpoint writes
it, so torch's own reader puts pieces together for any other division; it runs no code, unlike that of torch's default
format, whose metadata is a pickle.
"""

import copy
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor

WEIGHTS_KEY = "state_dict"  # of a checkpoint: its entries keep their own names
OPTIMIZERS = "optimizer_states"
OFFSETS = "DCP_SHARDING_INFO"  # key of the header that torch.distributed.checkpoint reads

Pieces = dict[str, tuple[Tensor, tuple[int, ...]]]  # name → this rank's piece, and where in the whole it begins


def snapshot(checkpoint: Mapping[str, Any], *, divided: bool = True) -> tuple[dict[str, Any], Pieces]:
    """A copy in the CPU's memory that no later update changes, and this rank's pieces of what is divided.

    Args:
        checkpoint: of Lightning; dictionaries, lists and tensors.
        divided: whether DTensors become pieces. Otherwise they are gathered (every rank must call this), and all but
            the first rank get a tensor on the meta device.

    Returns:
        The copy, in which a tensor on the meta device stands for a divided one; and the pieces, by name. Of several
        ranks that hold the same piece, the first one gets it.
    """
    pieces: Pieces = {}

    def copied(value: Any, name: str) -> Any:
        if isinstance(value, DTensor):
            if not divided:
                whole = value.full_tensor()
                return _own(whole) if torch.distributed.get_rank() == 0 else whole.to("meta")
            for offsets, local in pieces_of(value):
                if _is_first_replica(value):
                    pieces[name] = _own(local), offsets
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        if isinstance(value, Tensor):
            return _own(value)
        if type(value) in (dict, OrderedDict):
            return type(value)((key, copied(item, _within(name, key))) for key, item in value.items())
        if type(value) in (list, tuple):
            return type(value)(copied(item, _within(name, i)) for i, item in enumerate(value))
        return copy.deepcopy(value)

    found = {key: copied(value, key) for key, value in checkpoint.items() if key != WEIGHTS_KEY}
    weights = {name: copied(weight, name) for name, weight in checkpoint.get(WEIGHTS_KEY, {}).items()}
    return {**found, WEIGHTS_KEY: {name: weight for name, weight in weights.items() if not weight.is_meta}}, pieces


def pieces_of(tensor: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Of a DTensor this rank's piece, which is none if there are fewer rows than ranks; of another tensor all of it.

    Yields:
        Where in the whole tensor the piece begins, and the piece, which shares its memory.
    """
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    for item in create_default_local_save_plan({"": tensor}, is_coordinator=False).items:
        assert item.tensor_data is not None and item.tensor_data.chunk.sizes == local.shape
        if local.numel():
            yield tuple(item.tensor_data.chunk.offsets), local.detach()


def write_shard(pieces: Pieces, path: Path) -> None:
    """Write one process's pieces to the file `path`."""
    offsets = {name: {"saved_offsets": list(at)} for name, (_, at) in pieces.items()}
    save_file({name: piece for name, (piece, _) in pieces.items()}, path, {OFFSETS: json.dumps(offsets)})


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill each tensor, of a DTensor this rank's piece, from the safetensors files of `folder`, in place.

    Only the bytes that are wanted are read. No collective operation: any rank may call it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on purpose
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def read_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name → shape and dtype of each whole tensor in the safetensors files of `folder`."""
    found: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (about.size, about.properties.dtype) for name, about in found.items()}


def with_tensors(value: Any, tensors: Mapping[str, Tensor], name: str = "") -> Any:
    """`value` with those of its tensors replaced whose names, as `snapshot` gives them, are in `tensors`."""
    if isinstance(value, Tensor):
        return tensors.get(name, value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, with_tensors(item, tensors, _within(name, key))) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(with_tensors(item, tensors, _within(name, i)) for i, item in enumerate(value))
    return value


def _within(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _is_first_replica(tensor: DTensor) -> bool:
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return all(at == 0 for at, placed in zip(coordinate, tensor.placements, strict=True) if placed.is_replicate())
