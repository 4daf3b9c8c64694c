"""The estimators on real trajectories of a student, with its teachers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor

from opdlight.batch.collate import Collate
from opdlight.config import instantiate
from opdlight.data.requests import held_out
from opdlight.data.tasks import TaskMixture
from opdlight.losses import Loss
from opdlight.metrics.intervals import student_t
from opdlight.models import Scorer, ScoreRequest, Student, Teacher, Teachers
from opdlight.rollout import Sampling, open_collector
from opdlight.system.console import progress, track
from opdlight.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """One estimator on the trajectories of one task; `…_half` is half the width of a 95 % interval."""

    task: str
    estimator: str
    snr: float  # ‖E ĝ‖² / tr Cov ĝ of one trajectory, with an unbiased numerator: around 0 for noise
    snr_half: float
    cosine: float  # of the mean gradient and that of the full-vocabulary KL; noise lowers it
    cosine_half: float


def roll_out(cfg: DictConfig, mixture: TaskMixture, student: Student) -> dict[str, list[Trajectory]]:
    """Roll out `episodes` held-out episodes per task at temperature 1 and top-p 1, as the estimators assume."""
    start = partial(instantiate, cfg.engine, model=cfg.model.student.model)
    sampling = Sampling(temperature=1.0, top_p=1.0)
    found = {}
    tokenizer, template = student.tokenizer, student.chat_template
    with open_collector(start, tokenizer, mixture.tasks, cfg.env_threads, template, cfg.env_workers) as collector:
        for name in mixture.teachers:
            requests = held_out(name, replace(mixture.tasks[name], episodes=cfg.episodes, samples=1))
            with progress(f"rolling out {name}", len(requests)) as bar:
                found[name] = collector.collect(requests, sampling, sampling_seed=cfg.seed, progress=bar.update)
    return found


def measure_tasks(cfg: DictConfig, losses: Mapping[str, Loss]) -> list[Real]:
    """Roll out, and measure the gradients of all losses on all trajectories."""
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    student: Student = instantiate(cfg.model.student)
    teachers = Teachers(
        mixture.teachers,
        student,
        partial(Teacher, dtype=cfg.model.compute_dtype, trust_remote_code=cfg.model.trust_remote_code),
    )
    trajectories = roll_out(cfg, mixture, student)
    collate = Collate(
        tasks=tuple(mixture.teachers),
        shared=teachers.shared_vocabulary,
        micro_batch_tokens=cfg.model.max_model_len,
    )
    found = []
    for task, made in trajectories.items():
        each = trajectory_gradients(student, teachers, collate, made, losses, task)
        found += [
            Real(task=task, estimator=name, **figures(gradients, each["full vocabulary"]))
            for name, gradients in each.items()
        ]
    return found


def trajectory_gradients(
    student: Student,
    teachers: Teachers,
    collate: Collate,
    trajectories: list[Trajectory],
    losses: Mapping[str, Loss],
    title: str,
) -> dict[str, Tensor]:
    """Name → sketches [n, S] of the gradients Σ_t ∂ℓ_t/∂θ of n trajectories over all weights.

    A sketch is the same random projection to S = 4,096 numbers for all (count sketch: each weight adds with a random
    sign to a random entry). It keeps inner products within some 2 %.
    """
    scorer = Scorer(student=student, teachers=teachers)
    weights = student.trainable_parameters()
    size = sum(w.numel() for w in weights)
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(4096, (size,), generator=generator)
    sign = torch.randint(2, (size,), generator=generator) * 2.0 - 1.0
    found: dict[str, list[Tensor]] = {name: [] for name in losses}
    for trajectory in track(trajectories, f"gradients: {title}"):
        for batch in collate([trajectory]):
            hidden = student.hidden(batch)
            for name, loss in losses.items():
                request = ScoreRequest(needs=loss.needs, shared=teachers.shared_vocabulary)
                scores = scorer.score(batch, request, hidden=hidden).scores
                slopes = torch.autograd.grad(loss(scores, batch).sum(), weights, retain_graph=True, allow_unused=True)
                flat = torch.cat(
                    [torch.zeros(w.numel()) if g is None else g.flatten() for g, w in zip(slopes, weights, strict=True)]
                )
                found[name].append(torch.zeros(4096).index_add_(0, place, flat * sign))
    return {name: torch.stack(rows) for name, rows in found.items()}


def figures(each: Tensor, exact: Tensor) -> dict[str, float]:
    """SNR and cosine of the gradients `each` and `exact` [n, S], with jackknife intervals over trajectories.

    θ ± t_{0.975, n−1} · √((n−1)/n · Σ_i (θ₋ᵢ − mean θ₋ᵢ)²), θ₋ᵢ without trajectory i. A bootstrap would be biased: the
    noise of a trajectory that is drawn twice looks like signal.

    Source: Efron and Tibshirani 1993, ch. 11.
    """
    count = len(each)
    rest = [torch.arange(count) != i for i in range(count)]
    without = torch.tensor([_snr_and_cosine(each[r], exact[r]) for r in rest], dtype=torch.float64)
    half = student_t(count - 1) * (without.var(0, correction=0) * (count - 1)).sqrt()
    snr, cosine = _snr_and_cosine(each, exact)
    return {"snr": snr, "snr_half": float(half[0]), "cosine": cosine, "cosine_half": float(half[1])}


def _snr_and_cosine(each: Tensor, exact: Tensor) -> tuple[float, float]:
    mean = each.mean(0)
    variance = ((each - mean) ** 2).sum() / (len(each) - 1)
    snr = ((mean**2).sum() - variance / len(each)) / variance
    return float(snr), float(torch.nn.functional.cosine_similarity(mean, exact.mean(0), dim=0))
