"""The contract with Lightning: each private thing that opdlight uses does in this release what it is used for."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from opdlight.system import lightning_internals as internals


class Records(Logger):
    """What a logger is given: (step, keys)."""

    name = version = "records"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, set[str]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, set(metrics) - {"epoch"}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Resumable(DataLoader[int]):
    """Lightning warns of one that is not."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Module(L.LightningModule):
    """Logs another key in each step; keeps what was logged and how many steps were done when a step began."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = steps
        self.done: list[tuple[int, int]] = []
        self.logged: list[set[str]] = []

    def train_dataloader(self) -> Any:
        return Resumable(range(self.steps), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=0.1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        internals.forget_logged(self.trainer)
        internals.set_logging_step(self.trainer, batch_idx)
        self.done.append((batch_idx, internals.completed_steps(self.trainer)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.log(f"key{batch_idx}", float(batch_idx))
        assert isinstance(internals.unwrapped(self.optimizers()), torch.optim.SGD)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.logged.append(set(internals.logged_in_step(self.trainer)))


class SaveWhenAStepEnds(L.Callback):
    """A checkpoint where ModelCheckpoint(every_n_train_steps=...) makes one: after step 1, which is not yet counted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert (internals.processed_steps(trainer), internals.completed_steps(trainer)) == (batch_idx + 1, batch_idx)
        if batch_idx == 1:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        internals.set_between_steps(checkpoint, validating=False)


class SaveWhenAStepBegins(L.Callback):
    """A checkpoint in the middle of step 1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        internals.set_between_steps(checkpoint, validating=False)


class Reopen(L.Callback):
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        internals.reopen_training(checkpoint, pl_module.steps)


def fit(folder: Path, steps: int, *callbacks: L.Callback, resume: Path | None = None) -> tuple[Module, Records, Any]:
    module, records = Module(steps), Records()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=records, log_every_n_steps=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, ckpt_path=resume)
    return module, records, trainer


def test_the_release_is_the_one_that_these_functions_know() -> None:
    assert L.__version__.startswith(f"{internals.KNOWN}."), (
        f"Lightning is {L.__version__} now: read opdlight/system/lightning_internals.py beside its source, run the "
        "tests of this file, and set KNOWN"
    )


def test_what_is_logged_and_counted_is_that_of_the_step(tmp_path: Path) -> None:
    module, records, trainer = fit(tmp_path, 3)
    assert module.done == [(0, 0), (1, 1), (2, 2)]
    assert internals.completed_steps(trainer) == 3
    assert module.logged == [{"key0"}, {"key1"}, {"key2"}]
    assert [row for row in records.rows if row[1]] == [(i, {f"key{i}"}) for i in range(3)]


def test_a_checkpoint_of_a_step_that_has_begun_is_the_state_before_it(tmp_path: Path) -> None:
    fit(tmp_path, 3, SaveWhenAStepBegins(tmp_path / "one.ckpt"))
    module, records, _ = fit(tmp_path, 3, resume=tmp_path / "one.ckpt")
    # the loader begins at 0 again (the one of OnPolicyData does not), Lightning's own count goes on
    assert next(done for _, done in module.done) == 1
    assert next(step for step, keys in records.rows if keys) == 1


def test_a_checkpoint_of_a_step_that_ends_is_the_state_after_it(tmp_path: Path) -> None:
    fit(tmp_path, 4, SaveWhenAStepEnds(tmp_path / "two.ckpt"))
    module, _, _ = fit(tmp_path, 4, resume=tmp_path / "two.ckpt")
    assert next(done for _, done in module.done) == 2


@pytest.mark.parametrize(("wanted", "done"), [(3, []), (5, [3, 4])])
def test_a_finished_run_trains_on_if_more_steps_are_wanted(tmp_path: Path, wanted: int, done: list[int]) -> None:
    _, _, trainer = fit(tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module, _, _ = fit(tmp_path, wanted, Reopen(), resume=tmp_path / "end.ckpt")
    assert [count for _, count in module.done][: len(done)] == done


def test_a_model_is_divided_over_all_processes_of_all_machines() -> None:
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    assert hasattr(strategy, "_data_parallel_size")  # what Lightning makes the mesh of
    strategy.num_nodes = 3
    strategy.parallel_devices = [torch.device("cpu")] * 2
    internals.shard_over_all(strategy)
    assert strategy._data_parallel_size == 6
