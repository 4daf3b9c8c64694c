"""`staleness: 1`: the next batch is rolled out while this one trains, by a student one update older."""

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.data.requests import OnPolicyData
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.errors import ConfigError
from opdlight.losses import ImportanceWeighted, SupportMatching
from opdlight.rollout import ScriptedEngine
from opdlight.train.build import build
from opdlight.types import SupportScores, TokenBatch, Trajectory
from tests.distillation.one_update import fit, parts


def ahead(
    folders: tuple[str, str], loss: Any = None, answer: Any = None
) -> tuple[OnPolicyDistillation, OnPolicyData, ScriptedEngine]:
    loss = loss or ImportanceWeighted(loss=SupportMatching(k=8))
    return parts(folders, loss=loss, answer=answer, staleness=1)


class Steps(L.Callback):
    """What each step learnt from: its trajectories, and the versions of the student that made them."""

    def __init__(self) -> None:
        self.trajectories: list[list[Trajectory]] = []
        self.versions: list[tuple[int, set[int]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = outputs["step"].trajectories
        self.trajectories.append(found)
        self.versions.append((outputs["step"].version, {t.policy_version for tr in found for t in tr.turns}))


def fit_watched(module: OnPolicyDistillation, data: OnPolicyData, folder: Path, **settings: Any) -> Steps:
    steps = Steps()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[steps], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder), num_sanity_val_steps=0,
        **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return steps


def test_each_batch_but_the_first_is_one_update_old(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = ahead(folders)
    steps = fit_watched(module, data, tmp_path, limit_val_batches=0)
    #                          trained at version, rolled out by version
    assert steps.versions == [(0, {0}), (1, {0}), (2, {1})]
    assert [e[1] for e in engine.events if e[0] == "update"] == [1]  # a last one has no rollout to follow
    on_policy, data, _ = parts(folders)
    others = fit_watched(on_policy, data, tmp_path, limit_val_batches=0)
    seeds = [[(t.task, t.seed) for t in batch] for batch in steps.trajectories]
    assert seeds == [[(t.task, t.seed) for t in batch] for batch in others.trajectories]
    assert others.versions == [(0, {0}), (1, {1}), (2, {2})]


def test_the_rollout_goes_on_while_the_student_learns(folders: tuple[str, str], tmp_path: Path) -> None:
    """Each waits for the other, so one after the other they would never end."""
    learning, rolling = threading.Semaphore(0), threading.Semaphore(0)
    main, batches = threading.current_thread(), 0

    def answer(prompt: list[int]) -> list[int]:
        if threading.current_thread() is not main:
            rolling.release()
            assert learning.acquire(timeout=300), "the student does not learn while the next batch is rolled out"
            learning.release()
        return [7, 8, 2]

    class Loss(SupportMatching):
        def __call__(self, scores: SupportScores, batch: TokenBatch) -> torch.Tensor:
            nonlocal batches
            batches += 1
            learning.release()
            if batches < 3:  # after the last batch there is none to wait for
                assert rolling.acquire(timeout=300), "no rollout goes on while the student learns"
            return super().__call__(scores, batch)

    module, data, _ = ahead(folders, loss=ImportanceWeighted(loss=Loss(k=8)), answer=answer)
    fit_watched(module, data, tmp_path, limit_val_batches=0)
    assert batches == 3


def test_a_validation_loop_between_sees_the_newest_weights(folders: tuple[str, str], tmp_path: Path) -> None:
    def slow(prompt: list[int]) -> list[int]:  # still at it when validation begins
        time.sleep(0.05 if threading.current_thread().name.startswith("rollout") else 0.0)
        return [7, 8, 2]

    module, data, engine = ahead(folders, answer=slow)
    steps = fit_watched(module, data, tmp_path, val_check_interval=1)
    assert steps.versions == [(0, {0}), (1, {0}), (2, {1})]
    assert [e[1] for e in engine.events if e[0] == "update"] == [1, 2, 3]


def test_an_error_of_the_rollout_is_an_error_of_the_step(folders: tuple[str, str], tmp_path: Path) -> None:
    calls = 0

    def answer(prompt: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise RuntimeError("the engine has failed")
        return [7, 2]

    module, data, _ = ahead(folders, answer=answer)
    with pytest.raises(RuntimeError, match="the engine has failed"):
        fit_watched(module, data, tmp_path, limit_val_batches=0)


def test_a_run_that_ends_does_not_wait_for_the_next_batch(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = ahead(folders)
    engine.steps = lambda request: 10**9 if threading.current_thread().name.startswith("rollout") else 1

    class Stop(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("stop")

    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[Stop()], logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    with pytest.raises(KeyError):
        trainer.fit(module, datamodule=data)
    assert module.source.prefetch.running
    module.source.close()
    assert not module.source.prefetch.running
    with pytest.raises(CancelledError):
        module.source.prefetch.take()


def test_importance_weights_are_on(tmp_path: Path) -> None:
    def loss(*overrides: str) -> Any:
        cfg = compose("train", TrainConfig, ["task=sums", *overrides])
        return build(cfg, instantiate(cfg.task)).loss

    assert not isinstance(loss(), ImportanceWeighted)
    weighted = loss("staleness=1")
    assert isinstance(weighted, ImportanceWeighted)
    assert isinstance(weighted.loss, SupportMatching)
    own = loss("staleness=1", "loss=importance_weighted", "loss.cap=3.0")
    assert own.cap == 3.0
    assert not isinstance(own.loss, ImportanceWeighted)
    with pytest.raises(ConfigError, match=r"Expected .sampling\.temperature. to be 1 for importance weights"):
        loss("staleness=1", "sampling.temperature=0.7")
    with pytest.raises(ConfigError, match="`staleness`"):
        loss("staleness=2")


def test_on_policy_is_the_default(folders: tuple[str, str], tmp_path: Path) -> None:
    assert compose("train", TrainConfig, ["task=sums"]).staleness == 0
    module, data, _ = parts(folders)
    trainer = fit(module, data, tmp_path)
    assert trainer.callback_metrics["rollout/staleness"] == 0
