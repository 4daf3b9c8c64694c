"""A frozen module that lies in the CPU's memory and lends copies of its weights to a device."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Offloaded:
    """Swaps the weights and buffers of a frozen module for copies on a device, and back.

    Nothing is copied back: the weights are frozen, so the originals are still right. They stay where they are.

    Args:
        module: whose weights never change.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.originals = list(_slots(module))
        self.device: torch.device | None = None  # of the copies; None: there are none

    def lend(self, device: torch.device) -> None:
        """Have the module on `device`; weights that are there already are not copied."""
        if self.device == device:
            return
        copies = dict[int, Tensor]()  # a tied weight is copied once
        for slots, name, tensor in self.originals:
            if id(tensor) not in copies:
                there = tensor.detach().to(device)
                copies[id(tensor)] = nn.Parameter(there, False) if isinstance(tensor, nn.Parameter) else there
            slots[name] = copies[id(tensor)]
        self.device = device

    def take_back(self) -> None:
        """Free the copies."""
        for slots, name, tensor in self.originals:
            slots[name] = tensor
        self.device = None


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str, Tensor]]:
    """Where each weight and buffer is registered, its name there, and itself."""
    for part in module.modules():
        of_part: list[Any] = [part._parameters, part._buffers]
        for slots in of_part:
            yield from ((slots, name, tensor) for name, tensor in slots.items() if tensor is not None)
