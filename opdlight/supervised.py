"""Supervised fine-tuning on expert demonstrations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from opdlight import run_folder
from opdlight.callbacks import StageProgress
from opdlight.closing import Closing
from opdlight.collate import Collate
from opdlight.config import instantiate
from opdlight.console import is_first_process, say, stage, track
from opdlight.data import TaskMixture
from opdlight.demonstrations import collect_demonstrations, read_demonstrations, tokens, write_demonstrations
from opdlight.losses.reduce import token_mean
from opdlight.models import Student
from opdlight.models.lm_head import token_logprobs
from opdlight.records import MetricsFile
from opdlight.rollout import ChatRenderer
from opdlight.training import make_optimizer
from opdlight.types import SharedVocabulary, TokenBatch, Trajectory


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


def batches(
    trajectories: Sequence[Trajectory], collate: Collate, *, batch_size: int, updates: int, seed: int
) -> DataLoader[list[TokenBatch]]:
    """`updates` batches of `batch_size` demonstrations, epoch after epoch, each epoch in its own order."""
    generator = torch.Generator().manual_seed(seed)
    epochs = updates * batch_size // len(trajectories) + 1
    order = torch.cat([torch.randperm(len(trajectories), generator=generator) for _ in range(epochs)]).tolist()
    chosen = [order[i * batch_size : (i + 1) * batch_size] for i in range(updates)]
    return DataLoader(trajectories, batch_sampler=chosen, collate_fn=collate, num_workers=0)  # type: ignore[arg-type]


def sft(cfg: DictConfig) -> dict[str, float]:
    """Collect demonstrations (or read `demonstrations.file`), fine-tune, save `<run>/student` (and `adapter`)."""
    folder = run_folder.open_run(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    with stage("loading the student"):
        student: Student = instantiate(cfg.model.student)
    student.check_saving()
    optimizer = make_optimizer(cfg, student)
    want = cfg.demonstrations
    if want.file is None:
        found = collect_demonstrations(
            mixture.tasks, episodes=want.episodes, seed=cfg.seed, detours=want.detours, workers=want.workers
        )
        path = folder / "demonstrations.jsonl"
        write_demonstrations(path, track(found, "demonstrations", want.episodes))
    else:
        path = Path(want.file)
    renderer = ChatRenderer(student.tokenizer, student.chat_template)
    trajectories = [tokens(d, renderer) for d in track(read_demonstrations(path), "tokens")]
    collate = Collate(
        tasks=tuple(dict.fromkeys(t.task for t in trajectories)),
        pad_id=0,
        shared=SharedVocabulary(student.head().width),
        micro_batch_tokens=cfg.micro_batch_tokens,
    )
    module = SupervisedFineTuning(
        student=student,
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule),
        max_grad_norm=cfg.max_grad_norm,
    )
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        logger=MetricsFile(folder),
        default_root_dir=str(folder),
        callbacks=[StageProgress()],
        enable_checkpointing=False,  # Lightning's own, from which nothing goes on
    )
    updates = cfg.trainer.max_steps
    if is_first_process():
        run_folder.link_latest(folder)
    trainer.fit(module, batches(trajectories, collate, batch_size=cfg.batch_size, updates=updates, seed=cfg.seed))
    closing = Closing()
    with closing.part("save the student"):
        student.save(folder / "student")
        say(f"saved {folder / 'student'}")
    if student.has_adapter:
        with closing.part("save the adapter"):
            student.save_adapter(folder / "adapter")
    closing.end()
    return {"sft/loss": float(trainer.callback_metrics["sft/loss"])}
