"""The training step with a scripted engine: on-policy order, exact token mean, faults."""

import csv
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from envs.base import TextEnv
from opdlight.callbacks import TeacherSupportCoverage, Throughput
from opdlight.collate import Collate
from opdlight.data import OnPolicyData, Task, TaskMixture
from opdlight.losses import SampledToken, SupportMatching
from opdlight.metrics import describe
from opdlight.models import Student, Teachers
from opdlight.module import OnPolicyDistillation, learning_rate
from opdlight.publish import PublishWeights
from opdlight.rollout import ChatRenderer, Collector, Limits, Sampling, ScriptedEngine
from tests.tiny import save_tiny


class Count(TextEnv):
    """Two turns; the seed decides the observation. `breaks`: the second step raises."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.breaks, self.turn = breaks, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn, self.seed = 0, seed or 0
        return f"look {self.seed % 7}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.breaks and self.turn == 1:
            raise RuntimeError("the environment broke")
        self.turn += 1
        over = self.turn == 2
        return "go on", float(over), over, False, {"success": over, "metrics": {"words": 1.0}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny(folder / "student", 1)), str(save_tiny(folder / "teacher", 2))


def parts(
    folders: tuple[str, str], *, loss: Any = None, breaks: bool = False, answer: Any = None, **collate: Any
) -> tuple[OnPolicyDistillation, OnPolicyData, ScriptedEngine]:
    mixture = TaskMixture({n: Task(env={"id": ""}, teacher=folders[1], episodes=3) for n in ("a", "b")}, "mixed")
    student = Student(folders[0])
    teachers = Teachers({n: t.teacher for n, t in mixture.tasks.items()}, student)
    lengths = itertools.cycle([1, 5, 2, 9])
    engine = ScriptedEngine(answer or (lambda prompt: [7 + len(prompt) % 90] * next(lengths) + [2]))
    limits = {n: Limits(turn_tokens=16, trajectory_tokens=256) for n in mixture.names}
    settings: dict[str, Any] = {"vocabulary_size": teachers.shared_vocabulary, "micro_batch_tokens": 10**6, **collate}
    module = OnPolicyDistillation(
        student=student,
        teachers=teachers,
        loss=loss or SupportMatching(k=8),
        collector=Collector(engine, ChatRenderer(student.tokenizer), lambda task: Count(breaks), limits, env_threads=2),
        collate=Collate(tasks=mixture.names, pad_id=0, **settings),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=learning_rate("constant", warmup=0, updates=3),
        sampling=Sampling(),
        evaluation=Sampling(),
        max_grad_norm=1e9,
        seed=0,
    )
    return module, OnPolicyData(mixture, updates=3, groups=2, group_size=2, seed=0), engine


def fit(module: OnPolicyDistillation, data: OnPolicyData, folder: Path, **settings: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[PublishWeights(), TeacherSupportCoverage(positions=16), Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(folder),
        **{"logger": False, **settings},
    )
    trainer.fit(module, datamodule=data)
    return trainer


def test_every_rollout_is_made_by_the_newest_weights(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = parts(folders)
    versions: list[tuple[int, set[int]]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            versions.append((batch_idx, {t.policy_version for tr in outputs["trajectories"] for t in tr.turns}))

    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[PublishWeights(), Watch()], logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert versions == [(0, {0}), (1, {1}), (2, {2})]
    updates = [e for e in engine.events if e[0] == "update"]
    assert updates == [("update", 1), ("update", 2), ("update", 3)]
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
            seen.extend(outputs["trajectories"])

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
        {"kept": lambda ids: [False] * len(ids)},
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
    nothing = "kept" in fault or (("answer" in fault) and fault["answer"]([]) == [])
    assert module.updates == (0 if nothing else 3)
    assert float(trainer.callback_metrics["optimizer/skipped"]) == float(nothing)
    assert engine.policy_version == module.updates
    if "breaks" in fault:
        assert trainer.callback_metrics["rollout/env_error"] > 0


def test_every_logged_key_is_in_the_glossary(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders)
    trainer = fit(module, data, tmp_path)
    unknown = [k for k in trainer.callback_metrics if describe(k) is None]
    assert unknown == []
    assert trainer.callback_metrics["val/success/a"] == 1.0
    assert trainer.callback_metrics["env/words/a"] == 2.0


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
