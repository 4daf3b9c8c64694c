"""Supervised fine-tuning on demonstrations, the cold start of a student."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from opdlight.losses.reduce import token_mean
from opdlight.models import Student
from opdlight.models.lm_head import token_logprobs
from opdlight.types import TokenBatch


class SupervisedFineTuning(L.LightningModule):
    """Minimises the token mean of −log π(y) over the replies of demonstrations.

    Args:
        student: the trained model.
        optimizer: parameters → optimizer.
        schedule: update number → factor on the learning rate.
        max_grad_norm: gradients are clipped to this 2-norm.
    """

    def __init__(
        self,
        *,
        student: Student,
        optimizer: Callable[[Any], Optimizer],
        schedule: Callable[[int], float],
        max_grad_norm: float,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student, self.make_optimizer, self.schedule, self.max_grad_norm = (
            student,
            optimizer,
            schedule,
            max_grad_norm,
        )

    def training_step(self, batches: list[TokenBatch], batch_idx: int) -> None:
        """One update over the micro-batches of one batch of demonstrations."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            hidden = self.student.hidden(batch)
            surprise = -token_logprobs(hidden, self.student.head(), batch.target_ids, temperature=1.0)
            contribution = token_mean(surprise, batch.global_tokens)
            self.manual_backward(contribution)
            loss += contribution.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.student.trainable_parameters(), self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler)
        scheduler.step()
        self.log("sft/loss", loss, prog_bar=True)
        self.log("optimizer/grad_norm", norm)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trained parameters and its schedule by update."""
        optimizer = self.make_optimizer(self.student.trainable_parameters())
        return [optimizer], [LambdaLR(optimizer, self.schedule)]

    def transfer_batch_to_device(self, batch: list[TokenBatch], device: torch.device, dataloader_idx: int) -> Any:
        """Micro-batches move as wholes."""
        return [b.to(device) for b in batch]
