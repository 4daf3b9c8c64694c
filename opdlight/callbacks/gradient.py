"""How noisy the gradient of a step is."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opdlight.bounds import PositiveInt
from opdlight.system.distributed import all_gather, rank


class GradientNoise(L.Callback):
    """Logs `optimizer/gradient_variance` and `optimizer/gradient_snr` from the micro-batches of an update.

    With h_i the mean gradient of the w_i·N tokens of micro-batch i, i = 1 … m, and g = Σ w_i h_i the step's gradient:
    variance tr Cov g ≈ Σ w_i ‖h_i − g‖² / (m − 1) and SNR (‖g‖² − variance)/variance. Taken at `places` random weights,
    scaled to all of them; with one micro-batch nothing is logged.

    On several processes the i-th micro-batches of all of them are one. With DDP each process follows the same weights
    and has its own gradient until the last backward pass, which averages the sum: so the average of what each has after
    a pass is the gradient of all micro-batches so far. With FSDP2 every pass adds the average, and each process follows
    weights of its own share.

    Args:
        places: how many weights are watched.
    """

    def __init__(self, places: PositiveInt = 65_536) -> None:
        self.places = places
        self.at: list[tuple[torch.nn.Parameter, Tensor]] = []
        self.scale = 1.0
        self.divided = False  # each process has a share of the weights
        self.sums: list[list[Tensor]] = []  # of each update of this step: the gradient after each backward pass

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the weights to follow, from each parameter in proportion to its size."""
        weights = [p for p in pl_module.parameters() if p.requires_grad]
        self.divided = any(isinstance(p, DTensor) for p in weights)
        total = sum(p.numel() for p in weights)
        share = min(1.0, self.places / total)
        generator = torch.Generator().manual_seed(rank() if self.divided else 0)
        self.at = []
        for p in weights:
            size = _local(p).numel()
            count = max(1, round(share * size))
            if not size:  # the other processes have all of it
                continue
            chosen = torch.arange(size) if share == 1.0 else torch.randint(size, (count,), generator=generator)
            self.at.append((p, chosen.to(p.device)))
        followed = sum(len(places) for _, places in self.at)
        self.scale = total / (sum(all_gather(followed)) if self.divided else followed)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Begin the sums of a new update, or of one that is repeated: its gradients are None then."""
        if all(p.grad is None for p, _ in self.at):
            self.sums.append([])

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep a copy of the gradient summed so far, at the chosen weights."""
        parts = [
            torch.zeros(len(i), device=i.device) if p.grad is None else _local(p.grad).flatten()[i] for p, i in self.at
        ]
        self.sums[-1].append(torch.cat([part.float() for part in parts]))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean over the updates of this step."""
        sums, self.sums, found = self.sums, [], []
        ranks = all_gather([list(shares) for shares in outputs["step"].shares])  # [rank][update][micro-batch]
        for shares in ([sum(w) for w in zip(*update, strict=True)] for update in zip(*ranks, strict=True)):
            if not shares:  # no loss position
                continue
            while len(sums[0]) != len(shares):  # an update that was repeated in more micro-batches
                del sums[0]
            so_far = torch.stack(sums.pop(0))
            if len(ranks) > 1 and not self.divided:
                so_far = trainer.strategy.reduce(so_far, reduce_op="mean")
            grown = so_far.diff(dim=0, prepend=torch.zeros_like(so_far[:1]))
            if sum(w > 0 for w in shares) > 1:
                found.append(self._noise(shares, grown))
        if found:
            variance, snr = (sum(values) / len(values) for values in zip(*found, strict=True))
            pl_module.log("optimizer/gradient_variance", variance)
            pl_module.log("optimizer/gradient_snr", snr)

    def _noise(self, shares: Sequence[float], grown: Tensor) -> tuple[float, float]:
        """Variance and SNR from the w_i [m] and w_i·h_i at the chosen weights [m, places]."""
        mean, parts = grown.sum(0), [(w, g) for w, g in zip(shares, grown, strict=True) if w > 0]
        spread = sum(w * float(((g / w - mean) ** 2).sum()) for w, g in parts)
        size = float((mean**2).sum())
        if self.divided:
            spread, size = (sum(values) for values in zip(*all_gather((spread, size)), strict=True))
        variance = self.scale * spread / (len(parts) - 1)
        return variance, (self.scale * size - variance) / max(variance, 1e-30)


def _local(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor; any other one whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
