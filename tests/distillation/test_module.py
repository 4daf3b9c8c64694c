"""The training step with a scripted engine: on-policy order, exact token mean, faults."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from opdlight.batch.split import in_parts
from opdlight.callbacks import TrajectoryRecorder
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.schedules import learning_rate
from opdlight.errors import TrainingError
from opdlight.losses import ImportanceWeighted, SampledToken, SupportMatching
from opdlight.metrics.glossary import describe
from opdlight.models import Student
from opdlight.models.lm_head import token_logprobs
from opdlight.report.rows import trajectory_row
from opdlight.types import Status, SupportScores, TokenBatch, Trajectory
from tests.distillation.one_update import fit, parts

EMPTY = Trajectory(task="a", group=0, seed=0, turns=[], reward=0.0, status=Status.FAILURE)


def test_every_rollout_is_made_by_the_newest_weights(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = parts(folders)
    versions: list[tuple[int, set[int]]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            versions.append((batch_idx, {t.policy_version for tr in outputs["step"].trajectories for t in tr.turns}))

    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Watch()], logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert versions == [(0, {0}), (1, {1}), (2, {2})]
    updates = [e for e in engine.events if e[0] == "update"]
    assert updates == [("update", 1), ("update", 2)]  # before the rollouts that need them
    module.source.publish(module.student, module.updates)
    newest = dict(module.student.named_weights())
    assert newest.keys() == engine.weights.keys()
    assert all(torch.equal(engine.weights[name], newest[name]) for name in newest)


def test_gradients_do_not_depend_on_how_the_batch_is_cut(folders: tuple[str, str], tmp_path: Path) -> None:
    def weights(budget: int) -> tuple[dict[str, torch.Tensor], float]:
        module, data, _ = parts(folders, micro_batch_tokens=budget)
        trainer = fit(module, data, tmp_path, limit_train_batches=1)
        return {n: p.detach().clone() for n, p in module.student.named_parameters()}, float(
            trainer.callback_metrics["loss/train"]
        )

    (whole, loss), (cut, loss_cut) = weights(10**6), weights(1)
    assert loss == pytest.approx(loss_cut, rel=1e-5)
    assert loss > 0.01
    for name, value in whole.items():
        torch.testing.assert_close(value, cut[name], rtol=1e-4, atol=1e-6)


def test_update_is_the_token_mean_over_the_whole_batch(folders: tuple[str, str], tmp_path: Path) -> None:
    """The step equals SGD on a float64 loop over every token of every trajectory: no mean of means."""
    module, data, _ = parts(folders, micro_batch_tokens=60)
    start = {n: p.detach().clone() for n, p in module.student.named_parameters()}
    seen: list[Any] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.extend(outputs["step"].trajectories)

    L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Watch()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, limit_train_batches=1,
    ).fit(module, datamodule=data)  # fmt: skip
    student, teacher = Student(folders[0]).model.double(), Student(folders[1]).model.double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for trajectory in seen:
        for turn in trajectory.turns:
            ids = torch.tensor([turn.prompt_ids + turn.completion_ids])
            z, q = student(ids).logits[0], teacher(ids).logits[0].detach()
            for i in range(len(turn.completion_ids)):
                at = len(turn.prompt_ids) + i - 1
                top = q[at].topk(8).indices
                p, t = z[at, top].log_softmax(-1), q[at, top].log_softmax(-1)
                total, count = total + (p.exp() * (p - t)).sum(), count + 1
    (total / count).backward()
    for (name, after), (_, p) in zip(module.student.named_parameters(), student.named_parameters(), strict=True):
        torch.testing.assert_close(after.double(), start[name].double() - 0.1 * p.grad, rtol=1e-3, atol=1e-5)


def test_a_teacher_equal_to_the_student_moves_nothing(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts((folders[0], folders[0]))
    start = {n: p.detach().clone() for n, p in module.student.named_parameters()}
    trainer = fit(module, data, tmp_path)
    assert abs(float(trainer.callback_metrics["loss/train"])) < 1e-6
    for name, p in module.student.named_parameters():
        torch.testing.assert_close(p, start[name], rtol=0, atol=1e-5)
    assert trainer.callback_metrics["coverage/overlap/a"] == pytest.approx(1.0)


@pytest.mark.parametrize("loss", [SupportMatching(k=4), SampledToken(), SampledToken(gamma=1.0)])
@pytest.mark.parametrize(
    "fault",
    [
        {"breaks": True},
        {"loss_mask": lambda ids: [False] * len(ids)},
        {"answer": lambda prompt: []},
        {"answer": lambda prompt: [9] * 400},
    ],
    ids=["env error", "all masked", "empty completions", "token limit"],
)
def test_faults_are_trained_through(folders: tuple[str, str], tmp_path: Path, loss: Any, fault: Any) -> None:
    module, data, engine = parts(folders, loss=loss, **fault)
    trainer = fit(module, data, tmp_path)
    assert all(torch.isfinite(p).all() for p in module.student.parameters())
    assert all(torch.isfinite(torch.as_tensor(v)) for v in trainer.callback_metrics.values())
    nothing = "loss_mask" in fault or (("answer" in fault) and fault["answer"]([]) == [])
    assert module.updates == (0 if nothing else 3)
    assert float(trainer.callback_metrics["optimizer/skipped"]) == float(nothing)
    assert engine.policy_version == module.updates
    if "breaks" in fault:
        assert trainer.callback_metrics["rollout/env_error"] > 0


def test_several_updates_a_rollout_share_its_groups_and_remember_its_policy(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    module, data, engine = parts(folders, loss=SampledToken(clip=0.2), mini_batches=2)
    start = Student(folders[0])
    seen: list[tuple[int, set[int], TokenBatch]] = []
    learn = module.learn

    def watch(batches: list[TokenBatch]) -> torch.Tensor:
        seen.extend((module.updates, set(b.trajectory_index.tolist()), b) for b in batches)
        return learn(batches)

    module.learn = watch  # type: ignore[method-assign]
    fit(module, data, tmp_path, limit_train_batches=1)
    assert module.updates == engine.policy_version == 2
    assert [updates for updates, _, _ in seen] == [0, 1]
    first, second = (batch for _, _, batch in seen)
    assert first.rollout_logprobs is None
    assert second.rollout_logprobs is not None  # of the student before the first of the two updates
    before = token_logprobs(start.hidden(second), start.head(), second.target_ids)
    torch.testing.assert_close(second.rollout_logprobs, before.detach())
    after = token_logprobs(module.student.hidden(second), module.student.head(), second.target_ids)
    assert not torch.allclose(after, before, atol=1e-3)


class Broken:
    """A loss that is not a number in some of its calls."""

    needs = SupportMatching(k=8).needs

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.calls = bad, 0

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> torch.Tensor:
        self.calls += 1
        loss = SupportMatching(k=8)(scores, batch)
        return loss * float("nan") if self.calls - 1 in self.bad else loss


def test_an_update_that_is_not_finite_is_skipped_and_counted(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = parts(folders, loss=Broken({1}))
    losses: list[float] = []
    log = module.log

    def keep(key: str, value: Any, **settings: Any) -> None:
        losses.extend([float(value)] if key == "loss/train" else [])
        log(key, value, **settings)

    module.log = keep  # type: ignore[method-assign, assignment]
    trainer = fit(module, data, tmp_path)
    assert len(losses) == 2  # neither a NaN nor a 0 stands for the update that was skipped
    assert min(losses) > 0
    assert module.updates == 2
    assert float(trainer.callback_metrics["optimizer/not_finite"]) == 1
    assert [e for e in engine.events if e[0] == "update"] == [("update", 1), ("update", 2)]
    assert all(p.isfinite().all() for p in module.student.parameters())


def test_too_many_updates_that_are_not_finite_end_the_run(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders, loss=Broken({1, 2}), max_not_finite=2)
    with pytest.raises(TrainingError, match="2 updates had a loss or a gradient that is not finite"):
        fit(module, data, tmp_path)
    assert module.updates == 1
    assert all(p.isfinite().all() for p in module.student.parameters())


def test_a_batch_that_was_not_finite_is_kept_for_the_inspector(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders, loss=Broken({1, 2}), max_not_finite=2)
    seen: list[list[Trajectory]] = []

    class Watch(TrajectoryRecorder):
        def on_trajectories(self, module: Any, trajectories: Any, stage: Any) -> None:
            seen.append(trajectories)

    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Watch(str(tmp_path))], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"its trajectories are in trajectories.jsonl"):
        trainer.fit(module, datamodule=data)
    lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["update"]) for line in lines] == [("not finite", 1)] * 4 + [("not finite", 2)] * 4
    assert [line["seed"] for line in lines] == [t.seed for batch in seen[1:] for t in batch]
    ids = [[turn["ids"] for turn in line["turns"]] for line in lines]
    assert ids == [[turn.completion_ids for turn in t.turns] for batch in seen[1:] for t in batch]
    assert all(trajectory_row(line)["turns"] for line in lines)  # the report reads them


def test_shares_hold_whole_groups() -> None:
    made = [replace(EMPTY, task=task, group=group) for task in "ab" for group in range(3) for _ in range(2)]
    shares = in_parts(made, 4)
    assert sorted(len(share) for share in shares) == [2, 2, 4, 4]
    assert sorted((t.task, t.group) for share in shares for t in share) == [(t.task, t.group) for t in made]
    groups = [{(t.task, t.group) for t in share} for share in shares]
    assert sum(len(g) for g in groups) == len(set.union(*groups)) == 6
    assert in_parts(made[:2], 2) == [made[:2], []]


def test_reference_is_the_student_at_the_start(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders, loss=SampledToken(extrapolation=1.5))
    gaps: list[float] = []

    class Compare:
        needs = module.loss.needs

        def __call__(self, scores: SupportScores, batch: TokenBatch) -> torch.Tensor:
            assert scores.reference_sampled is not None
            assert scores.student_sampled is not None
            gaps.append(float((scores.reference_sampled - scores.student_sampled.detach()).abs().max()))
            return scores.student_sampled

    module.loss = Compare()
    fit(module, data, tmp_path)
    assert gaps[0] < 1e-5
    assert min(gaps[1:]) > 1e-3


def test_what_a_loss_remembers_is_in_the_checkpoint(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders, loss=SampledToken(baseline="running_mean"))
    trainer = fit(module, data, tmp_path)
    assert isinstance(module.loss, SampledToken)
    assert module.loss.running.count > 0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again, data, _ = parts(folders, loss=SampledToken(baseline="running_mean"))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again.trainer = trainer
    again.on_load_checkpoint(checkpoint)
    assert isinstance(again.loss, SampledToken)
    assert again.loss.state_dict() == module.loss.state_dict()
    assert again.updates == 3


class Fails:
    """A loss with a memory, one of whose calls gives no number or runs out of memory."""

    def __init__(self, fault: str, at: int = 1) -> None:
        self.inner, self.fault, self.at, self.calls = SampledToken(baseline="running_mean"), fault, at, 0
        self.needs = self.inner.needs
        self.end_update, self.state_dict = self.inner.end_update, self.inner.state_dict
        self.load_state_dict = self.inner.load_state_dict

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at and self.fault == "nan":
            assert scores.teacher_sampled is not None
            scores = replace(scores, teacher_sampled=scores.teacher_sampled * float("nan"))
        loss = self.inner(scores, batch)
        if self.calls == self.at and self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss


@pytest.mark.parametrize("fault", ["none", "nan", "memory"])
def test_what_failed_leaves_nothing_in_the_memory_of_a_loss(
    fault: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    module, data, _ = parts(folders, loss=Fails(fault), micro_batch_tokens=200)
    tokens: list[int] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            tokens.append(outputs["step"].loss_tokens * (not outputs["step"].not_finite))

    fit(module, data, tmp_path, [Watch()])
    assert module.updates == (2 if fault == "nan" else 3)
    state = module.loss.state_dict()  # type: ignore[attr-defined]
    assert state["count"] == sum(tokens)
    assert math.isfinite(state["total"])


def test_a_checkpoint_of_another_loss_leaves_this_one_as_it_is(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders, loss=ImportanceWeighted(loss=SupportMatching(k=8)))
    fit(module, data, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    for loss in (SampledToken(baseline="running_mean"), ImportanceWeighted(loss=SampledToken(baseline="running_mean"))):
        again, data, _ = parts(folders, loss=loss)
        again.trainer = L.Trainer(accelerator="cpu", logger=False)
        again.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
        assert again.updates == 3


def test_validation_makes_no_inference_tensors(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders)
    seen: list[tuple[bool, bool]] = []

    class Watch(L.Callback):
        def on_trajectories(self, module: Any, trajectories: Any, stage: str) -> None:
            if stage == "val":
                seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    trainer = L.Trainer(accelerator="cpu", callbacks=[Watch()], logger=False, enable_progress_bar=False)
    assert trainer.validate_loop.inference_mode  # what Lightning does by default
    trainer.validate(module, datamodule=data, verbose=False)
    assert set(seen) == {(False, False)}


def test_any_loader_of_requests_will_do(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = parts(folders)
    steps, held_out = ([data.train_set[i] for i in range(2)], data.validation_set)
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=0,
    ).fit(module, *(DataLoader(batches, batch_size=None) for batches in (steps, held_out)))  # type: ignore[arg-type]  # fmt: skip
    assert module.updates == 2
    assert [e for e in engine.events if e[0] == "update"] == [("update", 1), ("update", 2)]


def test_every_logged_key_is_in_the_glossary(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders)
    trainer = fit(module, data, tmp_path)
    unknown = [k for k in trainer.callback_metrics if describe(k) is None]
    assert unknown == []
    assert trainer.callback_metrics["val/success/a"] == 1.0
    assert trainer.callback_metrics["env/words/a"] == 2.0
    for stage in ("rollout", "val"):  # the first of two actions is inadmissible
        shares = [trainer.callback_metrics[f"{stage}/{kind}_actions/a"] for kind in ("admissible", "wasted")]
        assert shares == [0.5, 0.5]


def test_a_step_logs_only_the_tasks_it_had(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders)
    data.train_set.mixture = TaskMixture(data.mixture.tasks, "alternate")
    fit(module, data, tmp_path, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        steps = [row for row in csv.DictReader(file) if row["loss/train"]]
    by_step = [
        {key.rpartition("/")[2] for key, value in row.items() if value and key.endswith(("/a", "/b"))} for row in steps
    ]
    assert by_step == [{"a"}, {"b"}, {"a"}]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", [1 / 3, 2 / 3, 1, 1, 1]), ("cosine", [1 / 3, 2 / 3, 1, 0.75, 0.25])],
)
def test_schedules(kind: str, expected: list[float]) -> None:
    factor = learning_rate(kind, warmup=2, updates=5)
    assert [factor(i) for i in range(5)] == pytest.approx(expected, abs=1e-6)
