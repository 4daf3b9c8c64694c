"""The memory of a run for GPUs that are not here, from the shapes of its models: no weight is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.doctor.findings import Verdict
from opdlight.doctor.fitting import judge, make_plan
from opdlight.doctor.memory import GIB, Part, Plan, estimate, totals
from opdlight.doctor.sizes import ModelSize
from opdlight.errors import CheckpointError
from opdlight.losses import Loss
from opdlight.models import resolve_model
from opdlight.models.loading import DTYPES, load_skeleton
from opdlight.models.lora import add_lora
from opdlight.system import console
from opdlight.system.console import say, show
from opdlight.system.files import write_text
from opdlight.system.quiet import quiet_libraries


def plan_config(cfg: DictConfig) -> dict[str, float]:
    """Print what each process of a run needs on GPUs of `plan_gib` GiB, and whether it fits; exits with 1 if it cannot.

    Only the `config.json` of each model is read.
    """
    quiet_libraries()
    plan, available = plan_of_config(cfg), cfg.plan_gib * GIB
    parts, finding = estimate(plan), judge(plan, available)
    show(memory_table(parts, f"each of {plan.layout.processes * plan.layout.machines} processes, GiB"))
    say(f"doctor: {finding}")
    if cfg.out is not None:
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        named = {p.name: {"training": p.training, "rollout": p.rollout, "cpu": p.cpu} for p in [*parts, totals(parts)]}
        report = {"verdict": finding.verdict, "evidence": finding.evidence, "repair": finding.repair, "bytes": named}
        write_text(Path(cfg.out), json.dumps(report, indent=2) + "\n")
    if finding.verdict is Verdict.FAIL:
        raise SystemExit(1)
    return {"training": totals(parts).training, "rollout": totals(parts).rollout}


def plan_of_config(cfg: DictConfig) -> Plan:
    """The plan of a composed config on GPUs of `cfg.plan_gib` GiB.

    Raises:
        CheckpointError: naming the key of a model whose config cannot be read.
    """
    mixture: TaskMixture = instantiate(cfg.task)
    loss: Loss = instantiate(cfg.loss)
    checkpoints = {}
    for name, model in mixture.teachers.items() if "url" not in cfg.teacher else ():
        with CheckpointError.at(f"task.tasks.{name}.teacher"):
            checkpoints[resolve_model(model)] = _teacher(cfg, model)
    return make_plan(
        _student(cfg),
        list(checkpoints.values()),
        needs=loss.needs,
        tasks=mixture.tasks.values(),
        engine=_plain(cfg.engine),
        trainer=_plain(cfg.trainer),
        optimizer=str(cfg.optimizer.get("_target_", "")),
        compute_dtype=cfg.model.compute_dtype,
        micro_batch_tokens=cfg.micro_batch_tokens,
        placement=cfg.teacher_placement,
        staleness=cfg.staleness,
        gpu=True,
        available=cfg.plan_gib * GIB,
    )


def memory_table(parts: list[Part], title: str) -> Table:
    """The parts as a table in GiB."""
    made = console.table("part", "training", "rollout", "CPU's memory", title=title)
    for part in [*parts, totals(parts)]:
        made.add_row(part.name, *(f"{size / GIB:.2f}" for size in (part.training, part.rollout, part.cpu)))
    return made


def _student(cfg: DictConfig) -> ModelSize:
    node = _plain(cfg.model.student)
    with CheckpointError.at("model.student.model"):
        model: Any = load_skeleton(node["model"], trust_remote_code=bool(node.get("trust_remote_code")))
    lora = node.get("lora")
    model.to(DTYPES[cfg.model.compute_dtype if lora else cfg.model.dtype]).requires_grad_(True)
    if lora:
        with torch.device("meta"):
            add_lora(model, lora)
    if node.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return ModelSize.of(model)


def _teacher(cfg: DictConfig, name: str) -> ModelSize:
    dtype = cfg.teacher.get("dtype", cfg.model.compute_dtype)
    skeleton: Any = load_skeleton(name, trust_remote_code=bool(cfg.model.trust_remote_code))
    return ModelSize.of(skeleton.to(DTYPES[dtype]))


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items()}
