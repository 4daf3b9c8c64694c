"""Supervised fine-tuning on expert demonstrations."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from opdlight.batch.collate import Collate
from opdlight.callbacks import StageProgress
from opdlight.config import instantiate, make_trainer
from opdlight.config.resume import SEARCH_PATH, command_line, quoted
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.optim import check_optimizer
from opdlight.models import Student
from opdlight.models.packing import resolve_packing
from opdlight.rollout import ChatRenderer
from opdlight.run_folder.folder import link_latest, open_run
from opdlight.run_folder.records import MetricsFile
from opdlight.sft.demonstrations import collect_demonstrations, read_demonstrations, tokens, write_demonstrations
from opdlight.sft.module import SupervisedFineTuning
from opdlight.system.closing import Closing
from opdlight.system.console import is_first_process, progress, say, track
from opdlight.types import SharedVocabulary, TokenBatch, Trajectory


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
    folder = open_run(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    with progress("loading the student"):
        student: Student = instantiate(cfg.model.student)
    student.check_saving()
    optimizer = instantiate(cfg.optimizer)
    check_optimizer(optimizer, student, warn=True)
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
        shared=SharedVocabulary(student.head().width),
        micro_batch_tokens=cfg.micro_batch_tokens,
        packed=resolve_packing(cfg.packing, [student.model]),
    )
    module = SupervisedFineTuning(
        student=student,
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule),
        max_grad_norm=cfg.max_grad_norm,
    )
    trainer = make_trainer(
        cfg.trainer,
        logger=MetricsFile(folder),
        default_root_dir=str(folder),
        callbacks=[StageProgress()],
        enable_checkpointing=False,  # there is no resume of sft
    )
    updates = cfg.trainer.max_steps
    if is_first_process():
        link_latest(folder)
    trainer.fit(module, batches(trajectories, collate, batch_size=cfg.batch_size, updates=updates, seed=cfg.seed))
    closing = Closing()
    with closing.part("save the student"):
        student.save(folder / "student")
    if student.has_adapter:
        with closing.part("save the adapter"):
            student.save_adapter(folder / "adapter")
    closing.end()
    loss = float(trainer.callback_metrics["sft/loss"])
    say(f"{updates} updates on {len(trajectories)} demonstrations; loss of the last: {loss:.3f} nats a token")
    say(f"student: {folder / 'student'}" + (f"; adapter: {folder / 'adapter'}" if student.has_adapter else ""))
    say(f"distil it: {train_command(folder / 'student')}")
    return {"sft/loss": loss}


def train_command(student: Path) -> str:
    """What to type so that this student is distilled, on the tasks and beside the models of this command line."""
    chosen: list[str] = []
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        chosen = [quoted(group, hydra.runtime.choices[group]) for group in ("task", "model")]
        chosen += [override for override in command_line(hydra) if override.startswith(SEARCH_PATH)]
    typed = [shlex.quote(override) for override in (*chosen, quoted("model.student.model", str(student)))]
    return f"python -m opdlight.train {' '.join(typed)}"
