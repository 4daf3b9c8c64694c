"""A training step that tests build by hand: tiny models, a scripted engine, an environment of two turns."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import lightning as L
import torch

from opdlight.batch.collate import Collate
from opdlight.callbacks import RolloutMetrics, TeacherSupportCoverage, Throughput
from opdlight.data.requests import OnPolicyData
from opdlight.data.tasks import Task, TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.schedules import learning_rate
from opdlight.envs.actions import action_counts
from opdlight.envs.base import TextEnv
from opdlight.losses import SupportMatching
from opdlight.models import Student, Teachers
from opdlight.rollout import ChatRenderer, Collector, Limits, Sampling, ScriptedEngine
from opdlight.rollout.source import RolloutSource


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
        counts = action_counts(parsed=True, admissible=over)
        return "go on", float(over), over, False, {"success": over, "metrics": {"words": 1.0, **counts}}


if "test/Steps-v0" not in gymnasium.registry:  # pytest imports this file again to look for doctests
    gymnasium.register(id="test/Steps-v0", entry_point=Count, disable_env_checker=True, order_enforce=False)


def parts(
    folders: tuple[str, str],
    *,
    loss: Any = None,
    breaks: bool = False,
    answer: Any = None,
    mini_batches: int = 1,
    staleness: Literal[0, 1] = 0,
    max_not_finite: int = 5,
    student: Mapping[str, Any] | None = None,
    groups: int = 2,
    **collate: Any,
) -> tuple[OnPolicyDistillation, OnPolicyData, ScriptedEngine]:
    mixture = TaskMixture(
        {n: Task(env={"id": "test/Steps-v0"}, teacher=folders[1], episodes=3) for n in ("a", "b")}, "mixed"
    )
    trained = Student(folders[0], **(student or {}))
    teachers = Teachers(mixture.teachers, trained)
    lengths = itertools.cycle([1, 5, 2, 9])  # in the order of the requests: one environment thread
    engine = ScriptedEngine(answer or (lambda prompt: [7 + len(prompt) % 90] * next(lengths) + [2]))
    limits = {n: Limits(turn_tokens=16, trajectory_tokens=256) for n in mixture.names}
    settings: dict[str, Any] = {"shared": teachers.shared_vocabulary, "micro_batch_tokens": 10**6, **collate}
    module = OnPolicyDistillation(
        student=trained,
        teachers=teachers,
        loss=loss or SupportMatching(k=8),
        source=RolloutSource(
            lambda: Collector(
                engine, ChatRenderer(trained.tokenizer), lambda task: Count(breaks), limits, env_threads=1
            ),
            sampling=Sampling(),
            seed=0,
            staleness=staleness,
        ),
        collate=Collate(tasks=mixture.names, **settings),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=learning_rate("constant", warmup=0, updates=3),
        max_grad_norm=1e9,
        max_not_finite=max_not_finite,
        mini_batches=mini_batches,
        reference=Teachers(dict.fromkeys(mixture.names, folders[0]), trained),
    )
    return module, OnPolicyData(mixture, updates=3, groups=groups, group_size=2, seed=0), engine


def fit(
    module: OnPolicyDistillation,
    data: OnPolicyData,
    folder: Path,
    watch: Sequence[L.Callback] = (),
    resume: Path | None = None,
    **settings: Any,
) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[TeacherSupportCoverage(), RolloutMetrics(), Throughput(), *watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(folder),
        **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **settings},
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer
