"""How noisy the gradient of a step is."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from opdlight.bounds import PositiveInt


class GradientNoise(L.Callback):
    """Logs `optimizer/gradient_variance` and `optimizer/gradient_snr` from the micro-batches of an update.

    With h_i the mean gradient of the w_i·N tokens of micro-batch i, i = 1 … m, and g = Σ w_i h_i the step's gradient:
    variance tr Cov g ≈ Σ w_i ‖h_i − g‖² / (m − 1) and SNR (‖g‖² − variance)/variance. Taken at `places` random weights,
    scaled to all of them. Needs two micro-batches and one process; otherwise it logs nothing.

    Args:
        places: how many weights are watched.
    """

    def __init__(self, places: PositiveInt = 65_536) -> None:
        self.places = places
        self.at: list[tuple[torch.nn.Parameter, Tensor]] = []
        self.scale = 1.0
        self.sums: list[list[Tensor]] = []  # of each update of this step: the gradient after each backward pass

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the weights to follow, from each parameter in proportion to its size."""
        weights = [p for p in pl_module.parameters() if p.requires_grad]
        total = sum(p.numel() for p in weights)
        share = min(1.0, self.places / total)
        generator = torch.Generator().manual_seed(0)
        self.at = []
        for p in weights:
            count = max(1, round(share * p.numel()))
            self.at.append((p, torch.randint(p.numel(), (count,), generator=generator).to(p.device)))
        self.scale = total / sum(len(places) for _, places in self.at)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Begin the sums of a new update, or of one that is repeated: its gradients are None then."""
        if all(p.grad is None for p, _ in self.at):
            self.sums.append([])

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep a copy of the gradient summed so far, at the chosen weights."""
        if trainer.world_size == 1:
            parts = [
                torch.zeros(len(i), device=i.device) if p.grad is None else p.grad.flatten()[i] for p, i in self.at
            ]
            self.sums[-1].append(torch.cat([part.float() for part in parts]))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean over the updates of this step."""
        sums, self.sums, found = self.sums, [], []
        for shares in outputs["step"].shares if trainer.world_size == 1 else []:  # update by update
            if not shares:  # no loss position
                continue
            while len(sums[0]) != len(shares):  # an update that was repeated in more micro-batches
                del sums[0]
            grown = sums.pop(0)
            grown = [now - before for now, before in zip(grown, [torch.zeros_like(grown[0]), *grown[:-1]], strict=True)]
            if len(shares) > 1:
                found.append(self._noise(shares, grown))
        if found:
            variance, snr = (sum(values) / len(values) for values in zip(*found, strict=True))
            pl_module.log("optimizer/gradient_variance", variance)
            pl_module.log("optimizer/gradient_snr", snr)

    def _noise(self, shares: list[float], grown: list[Tensor]) -> tuple[float, float]:
        """Variance and SNR from w_i and w_i·h_i at the chosen weights."""
        mean = torch.stack(grown).sum(0)
        spread = sum(w * float(((g / w - mean) ** 2).sum()) for w, g in zip(shares, grown, strict=True))
        variance = self.scale * spread / (len(shares) - 1)
        return variance, (self.scale * float((mean**2).sum()) - variance) / max(variance, 1e-30)
