"""Check: does what `memory.estimate` counts fit, and if not, which lines of the config would make it fit."""

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from opdlight.config.checks import locate
from opdlight.data.tasks import Task
from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.memory import BYTES, GIB, Plan, estimate, totals
from opdlight.doctor.patient import Patient
from opdlight.doctor.sizes import Layout, ModelSize
from opdlight.losses import Needs, SupportKind

TIGHT = 0.8  # a larger share of the available memory while the student trains is a warning
FULL = 0.95  # and while the engine generates, which fills a fixed share
FEWEST = 64  # tokens of a micro-batch; fewer hold no row
PLACEMENTS = ("replicated", "sharded", "offloaded")  # of teachers, the one that needs least last
LORA = "++model.student.lora.r=8"
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def on_gpu(trainer: Mapping[str, Any]) -> bool:
    """Whether the trainer will use a GPU."""
    return trainer.get("accelerator", "auto") in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def capacity(gpu: bool) -> int:
    """Memory of the GPU, or of this machine within the limit of its container, in bytes."""
    if gpu:
        return int(torch.cuda.get_device_properties(0).total_memory)
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUPS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def make_plan(
    student: ModelSize,
    teachers: Sequence[ModelSize],
    *,
    needs: Needs,
    tasks: Iterable[Task],
    engine: Mapping[str, Any],
    trainer: Mapping[str, Any],
    optimizer: str,
    compute_dtype: str,
    micro_batch_tokens: int,
    placement: str,
    staleness: int,
    gpu: bool,
    available: float,
) -> Plan:
    """The plan of a run, from the sizes of its models and the nodes of its config; `available` bytes a device."""
    c = BYTES[compute_dtype]
    reference = [replace(student, stored=student.parameters * c)] if needs.reference else []
    settings = _engine_settings(engine)
    may_sleep = gpu and not staleness and "sleep" in settings
    longest = max((task.trajectory_tokens for task in tasks if task.weight > 0), default=0)
    return Plan(
        student=student,
        teachers=[*teachers, *reference],
        layout=Layout.of(trainer, torch.cuda.device_count() if gpu else 1),
        compute=c,
        tokens=max(micro_batch_tokens, longest),
        longest=longest,
        compared=_compared(needs, student.width),
        moments=2 if "adam" in optimizer.lower() else 1,
        placement=placement,
        engine=_engine(student, engine, settings, compute_dtype, available if gpu else None),
        sleeps=may_sleep and bool(settings["sleep"]),
        may_sleep=may_sleep,
        gpu=gpu,
    )


def _compared(needs: Needs, width: int) -> int:
    """Logits of a position that exist for all positions at once: none of a full vocabulary that is taken in chunks."""
    if needs.support is None:
        return 0
    if needs.support is SupportKind.FULL_VOCABULARY:
        return width if needs.whole_trajectories else 0
    return needs.k


def plan_of(patient: Patient, *, gpu: bool, available: float) -> Plan:
    """The plan of a patient, whose models are loaded."""
    teachers = [ModelSize.of(p.teacher.model) for p in patient.pairs if not _served(p.teacher.model)]
    return make_plan(
        ModelSize.of(patient.student.model),
        teachers,
        needs=patient.loss.needs,
        tasks=patient.tasks.values(),
        engine=patient.engine,
        trainer=patient.trainer,
        optimizer=patient.optimizer,
        compute_dtype=patient.compute_dtype,
        micro_batch_tokens=patient.micro_batch_tokens,
        placement=patient.teacher_placement,
        staleness=patient.staleness,
        gpu=gpu,
        available=available,
    )


def check_memory(patient: Patient) -> list[Finding]:
    """Compare the estimate with this machine; activations and logits, which are uncertain, can only cause a warning."""
    gpu = on_gpu(patient.trainer)
    available = capacity(gpu)
    plan = plan_of(patient, gpu=gpu, available=available)
    return [judge(plan, available, cpu=capacity(False) if gpu else None)]


def judge(plan: Plan, available: float, *, cpu: float | None = None) -> Finding:
    """The finding about a plan.

    Args:
        plan: of the run.
        available: bytes of a GPU or, without one, of all processes of a machine.
        cpu: bytes of the machine's memory beside its GPUs; None: unknown.
    """
    parts, copies = estimate(plan), _copies(plan)
    total = totals(parts)
    shown = ", ".join(f"{p.name} {max(p.training, p.rollout) / GIB:.2f}" for p in parts if p.training or p.rollout)
    most = copies * max(total.training, total.rollout)
    evidence = f"{most / GIB:.2f} of {available / GIB:.1f} GiB on {'each GPU' if plan.gpu else 'this machine'}: {shown}"
    if plan.layout.divided:
        evidence += f"; each of {plan.layout.shards} processes has its share of the student"
    evidence += f"; × {copies} processes" if copies > 1 else ""
    if total.rollout < total.training and plan.sleeps:
        evidence += f"; {total.rollout / GIB:.2f} while the engine generates, which sleeps otherwise"
    if plan.gpu and total.cpu:
        processes = plan.layout.processes
        evidence += f"; {processes * total.cpu / GIB:.0f} GiB in the CPU's memory of each machine"

    def found(verdict: Verdict, problem: str) -> Finding:
        line = "" if verdict is Verdict.PASS else advice(plan, available)
        shown = f"{problem}; {evidence}" if problem else evidence
        return Finding(check="memory", verdict=verdict, evidence=shown, repair=line)

    certain = [p for p in parts if p.certain]
    if copies * max(totals(certain).training, total.rollout) > available:
        return found(Verdict.FAIL, "weights, optimizer, teachers and engine alone do not fit")
    if not fits(plan, available):
        return found(Verdict.WARN, "tight")
    if cpu is not None and plan.layout.processes * total.cpu > cpu:
        problem = f"the CPU's memory of this machine, {cpu / GIB:.0f} GiB, may not hold what its processes load"
        return Finding(check="memory", verdict=Verdict.WARN, evidence=f"{problem}; {evidence}")
    return found(Verdict.PASS, "")


def fits(plan: Plan, available: float) -> bool:
    """Whether there is room to spare, in training and while the engine generates."""
    total, copies = totals(estimate(plan)), _copies(plan)
    asleep = copies * total.rollout <= FULL * available if plan.sleeps else True
    return copies * total.training <= TIGHT * available and asleep


def advice(plan: Plan, available: float) -> str:
    """The overrides after which the plan fits: one if one is enough, else several; "" if nothing known helps."""
    for line, changed in _changes(plan, available):
        if fits(changed, available):
            return line
    lines, now = list[str](), plan
    while (step := next(_changes(now, available), None)) is not None:
        line, now = step
        lines.append(line)
        if fits(now, available):
            return " ".join(lines)
    return " ".join([*lines, "model=<a smaller model>"])


def _changes(plan: Plan, available: float) -> Iterator[tuple[str, Plan]]:
    """What could be changed of a plan, what costs least first."""
    layout, total = plan.layout, totals(estimate(plan))
    processes = layout.processes * layout.machines
    if plan.may_sleep and not plan.sleeps:
        yield override("++engine.sleep", "true"), replace(plan, sleeps=True)
    room = available * FULL - (total.rollout - plan.engine)
    if plan.sleeps and plan.engine > room > available / 10:
        share = int(100 * room / available) / 100
        yield override("++engine.gpu_memory_utilization", share), replace(plan, engine=share * available)
    loose = total.training - totals(estimate(replace(plan, tokens=0))).training  # what the tokens cost
    fewer = int(plan.tokens * (TIGHT * available / _copies(plan) - total.training + loose) / loose) if loose else 0
    if max(FEWEST, plan.longest) <= fewer < plan.tokens:
        yield override("micro_batch_tokens", fewer), replace(plan, tokens=fewer)
    if not plan.student.checkpointed:
        student = replace(plan.student, checkpointed=True)
        yield override("++model.student.gradient_checkpointing", "true"), replace(plan, student=student)
    if processes > 1 and not layout.divided:
        yield "trainer=fsdp", replace(plan, layout=replace(layout, shards=processes, copies=1))
    if layout.divided and plan.teachers:
        for placement in PLACEMENTS[PLACEMENTS.index(plan.placement) + 1 :]:
            yield override("teacher_placement", placement), replace(plan, placement=placement)
    if not plan.student.adapters:
        student = plan.student
        base = replace(student, stored=student.parameters * plan.compute, trained=0, head_trained=False, adapters=1)
        yield LORA, replace(plan, student=base)


def _copies(plan: Plan) -> int:
    """The processes that share one memory: on a CPU those of the machine."""
    return 1 if plan.gpu else plan.layout.processes


def _served(model: torch.nn.Module) -> bool:
    """True for the skeleton of a teacher whose weights are on a server."""
    return any(p.is_meta for p in model.parameters())


def _engine_settings(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an engine, or of each of a pool; missing ones are the defaults of its class."""
    node: Mapping[str, Any] = engine.get("engine", engine)
    defaults: Mapping[str, inspect.Parameter] = {}
    if "_target_" in node:
        defaults = inspect.signature(locate("engine._target_", node["_target_"])).parameters
    return {n: p.default for n, p in defaults.items() if isinstance(p.default, int | float)} | dict(node)


def _engine(
    student: ModelSize, pool: Mapping[str, Any], settings: Mapping[str, Any], dtype: str, gpu_bytes: float | None
) -> float:
    """Bytes of the weights and caches of the engines on a device; `gpu_bytes` are those of the GPU, if there is one."""
    if pool.get("num_gpus") or pool.get("address") or "url" in pool:  # it runs elsewhere
        return 0.0
    if gpu_bytes is not None:
        return float(pool.get("actors", 1) * float(settings.get("gpu_memory_utilization", 0.0)) * gpu_bytes)
    weights = (student.parameters - student.adapters) * BYTES[settings.get("dtype", dtype)]
    return float(pool.get("actors", 1) * (weights + float(settings.get("kv_cache_gib", 0.0)) * GIB))
