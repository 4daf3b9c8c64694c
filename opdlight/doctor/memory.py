"""The memory that a run needs, by formulas on shapes, as a table: part by part, for each process.

Letters: P parameters and P_t trained ones, b bytes of a stored number, c bytes in `model.compute_dtype`, R processes
that divide the student (1 without FSDP), T the tokens of the largest micro-batch (`micro_batch_tokens`, or the longest
row where that is longer), L layers of at most p parameters, e parameters outside of them (embedding and head), d hidden
size, f width of the MLP, V rows of the head, K support size.

    weights      P b / R                     float32 weights are their own master weights
    optimizer    s P_t b / R                 s = 2 for Adam's moments, 1 for others, such as SGD with momentum
    gradients    P_t b / R                   twice under DDP, which sums them in buckets
    gathered     FSDP: (e + 2 p) c, and their gradients before they are divided, (e + p) (c + 4); autocast: a cast copy,
                 of a layer where layers are recomputed, else of all; and the head's gradient summed in float32, 4 V d
    teachers     Σ P_teacher c; sharded: / R, and (e + 2 p) c of one; offloaded: (e + 2 p) c of one, and the shares in
                 the CPU's memory; offloaded without FSDP: whole copies while the student trains
    engine       P c_e + its key/value cache of its own dtype; on a GPU: gpu_memory_utilization × the GPU's memory, and
                 nothing while it sleeps
    activations  T L (10 d + 4 f) c          what autograd keeps of Llama-like layers with flash attention; with
                                             checkpointing T L d c + T (10 d + 4 f) c for one layer. Under autocast
                                             residuals and norms are float32: 16 d for 10 d, and T L d 4
    logits       4 T K · 4 bytes on a support, 4 T V · 4 on the full vocabulary if a loss needs whole trajectories on
                 it, and 256 V · 4 · 3 for one chunk

Fragmentation, the libraries (1 to 2 GiB on a GPU) and the environments need more on top. `tests/doctor/test_memory.py`
compares P, p, e and the activations with torch on the meta device, `tests/gpu/` the sum with a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from opdlight.doctor.sizes import Layout, ModelSize
from opdlight.models.lm_head import CHUNK

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What of a run its memory depends on."""

    student: ModelSize
    teachers: Sequence[ModelSize]  # those with weights here, and the student as its own reference
    layout: Layout
    compute: int  # bytes of a number in forward passes
    tokens: int  # of the largest micro-batch
    longest: int  # of a row, which no micro-batch divides
    compared: int  # logits of a position that the loss compares
    moments: int = 2  # numbers that the optimizer keeps of each trained one
    placement: str = "replicated"  # of the teachers
    engine: float = 0.0  # bytes of the engine while it is awake
    sleeps: bool = False  # it gives them back while the student trains
    may_sleep: bool = False  # it could
    gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The bytes of one part, in one process."""

    name: str
    training: float = 0.0  # on the device, while the student trains
    rollout: float = 0.0  # on the device, while the engine generates
    cpu: float = 0.0  # in the CPU's memory beside a GPU
    certain: bool = True  # activations and logits are not: real rows are shorter than the longest


def estimate(plan: Plan) -> list[Part]:
    """The parts of a process's memory, by the formulas above."""
    student, shards, c = plan.student, plan.layout.shards, plan.compute
    weights, trained = student.stored / shards, student.trained / shards
    moments = plan.moments * trained
    states, c_states = (16, 4) if _autocast(plan) else (10, c)
    layer = plan.tokens * (states * student.hidden + 4 * student.intermediate) * c
    inputs = plan.tokens * student.layers * student.hidden * c_states
    logits = 4 * plan.tokens * plan.compared * 4 + CHUNK * student.width * 4 * 3
    awake = 0.0 if plan.sleeps else plan.engine
    return [
        Part(name="weights", training=weights, rollout=weights),
        Part(name="optimizer", training=moments, rollout=moments),
        Part(name="gradients", training=plan.layout.copies * trained),
        Part(name="gathered", training=_gathered(plan)),
        _teachers(plan),
        Part(name="engine", training=awake, rollout=plan.engine),
        Part(
            name="activations",
            training=inputs + layer if student.checkpointed else student.layers * layer,
            certain=False,
        ),
        Part(name="logits", training=logits, certain=False),
        # each process reads whole models, before they are divided or go to its GPU
        Part(name="loading", cpu=student.stored + sum(t.stored for t in plan.teachers) if plan.gpu else 0.0),
    ]


def _autocast(plan: Plan) -> bool:
    """Whether a forward pass casts the student's weights; under LoRA the base is stored in the compute dtype."""
    student = plan.student
    return not plan.layout.divided and student.head_trained and student.stored > student.parameters * plan.compute


def _gathered(plan: Plan) -> float:
    """Weights that are put together or cast for a moment, and gradients that are not summed or divided yet."""
    student, c = plan.student, plan.compute
    head = 4.0 * student.width * student.hidden if student.head_trained else 0.0
    if plan.layout.divided:
        trained = (student.rest + student.layer) * (c + 4.0) if student.head_trained else 0.0
        return (student.rest + 2 * student.layer) * c + trained + head
    if _autocast(plan):
        cast = student.layer if student.checkpointed else student.parameters - student.rest
        return (cast + student.width * student.hidden) * c + head
    return head


def _teachers(plan: Plan) -> Part:
    whole = float(sum(t.stored for t in plan.teachers))
    if plan.placement == "offloaded" and not plan.layout.divided and plan.gpu:
        return Part(name="teachers", training=whole, cpu=whole)  # copies on the GPU while the student trains
    if plan.placement == "replicated" or not plan.layout.divided:
        return Part(name="teachers", training=whole, rollout=whole)
    one = max(((t.rest + 2 * t.layer) * t.stored / t.parameters for t in plan.teachers), default=0.0)
    share = whole / plan.layout.shards
    if plan.placement == "offloaded":
        on_gpu = Part(name="teachers", training=one, cpu=share)
        return on_gpu if plan.gpu else Part(name="teachers", training=one + share, rollout=share)
    return Part(name="teachers", training=share + one, rollout=share)


def totals(parts: Sequence[Part]) -> Part:
    """The sum of all parts; `loading` is over when the other things in the CPU's memory come."""
    return Part(
        name="all",
        training=sum(p.training for p in parts),
        rollout=sum(p.rollout for p in parts),
        cpu=max(sum(p.cpu for p in parts if p.name != "loading"), sum(p.cpu for p in parts if p.name == "loading")),
    )
