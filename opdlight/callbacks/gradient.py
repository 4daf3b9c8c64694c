"""How noisy the gradient of a step is."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from opdlight.reading import Reading


class GradientNoise(L.Callback):
    """Logs `optimizer/gradient_variance` and `optimizer/gradient_snr` from the micro-batches of an update.

    With h_i the mean gradient of the w_i·N tokens of micro-batch i, i = 1 … m, and g = Σ w_i h_i the step's gradient:
    variance tr Cov g ≈ Σ w_i ‖h_i − g‖² / (m − 1) and SNR (‖g‖² − variance)/variance. Taken at `places` random weights,
    scaled to all of them. Needs two micro-batches; an update with one logs nothing.

    Args:
        places: how many weights are watched.
    """

    def __init__(self, places: int = 65_536) -> None:
        self.places = places
        self.at: list[tuple[torch.nn.Parameter, Tensor]] = []
        self.scale = 1.0
        self.update = -1
        self.before: Tensor | None = None
        self.parts: list[tuple[float, Tensor]] = []  # w_i, w_i·h_i at the places
        self.found: list[tuple[float, float]] = []  # variance and SNR of each update of the step

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the weights, each parameter by its size."""
        weights = [p for p in pl_module.parameters() if p.requires_grad]
        total = sum(p.numel() for p in weights)
        share = min(1.0, self.places / total)
        generator = torch.Generator().manual_seed(0)
        self.at = []
        for p in weights:
            count = max(1, round(share * p.numel()))
            self.at.append((p, torch.randint(p.numel(), (count,), generator=generator).to(p.device)))
        self.scale = total / sum(len(places) for _, places in self.at)

    def on_reading(self, module: L.LightningModule, reading: Reading) -> None:
        """What the gradient has grown by since the micro-batch before."""
        if reading.update != self.update:
            self._end_update()
            self.update = reading.update
        parts = [torch.zeros(len(i), device=i.device) if p.grad is None else p.grad.flatten()[i] for p, i in self.at]
        now = torch.cat([part.float() for part in parts])
        grown = now if self.before is None else now - self.before
        self.before = now
        self.parts.append((reading.loss_tokens / reading.global_tokens, grown))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean over the updates of this step."""
        self._end_update()
        if self.found:
            variance, snr = (sum(values) / len(values) for values in zip(*self.found, strict=True))
            pl_module.log("optimizer/gradient_variance", variance)
            pl_module.log("optimizer/gradient_snr", snr)
        self.found = []

    def _end_update(self) -> None:
        parts, self.parts, self.before = self.parts, [], None
        if len(parts) < 2:
            return
        mean = torch.stack([grown for _, grown in parts]).sum(0)
        spread = sum(w * float(((grown / w - mean) ** 2).sum()) for w, grown in parts)
        variance = self.scale * spread / (len(parts) - 1)
        self.found.append((variance, (self.scale * float((mean**2).sum()) - variance) / max(variance, 1e-30)))
