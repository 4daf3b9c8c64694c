"""Check: an estimate of the memory that a run needs, against the memory that is available.

Letters: P parameters, P_t trained ones, b bytes per number of `model.compute_dtype`, T = micro_batch_tokens, L layers,
d hidden size, f width of the MLP, V rows of the head, K support size.

    weights      P b
    gradients    P_t b'                      b' = 4 under LoRA (adapters stay in float32), else b
    optimizer    s P_t b'                    s = 2 for Adam's moments, 1 for others, such as SGD with momentum
    teachers     Σ P_teacher b               and P b for a reference
    engine       P b_e + its key/value cache of its own dtype; on a GPU: gpu_memory_utilization × the GPU's memory
    activations  T L (10 d + 4 f) b          measured on Llamas: 0.84 to 1.03 times that; with checkpointing
                                             T L d b + T (10 d + 4 f) b for one layer
    logits       4 T K · 4 bytes on a support, 4 T V · 4 on the full vocabulary, and 256 V · 4 · 3 for one chunk

Fragmentation, the libraries (about 1 GiB) and the environments need more on top.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from opdlight.config.checks import locate
from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Patient
from opdlight.losses import SupportKind
from opdlight.models.lm_head import CHUNK

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
TIGHT = 0.8  # a larger share of the available memory is a warning
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def on_gpu(patient: Patient) -> bool:
    """Whether the trainer will use a GPU."""
    return patient.trainer.get("accelerator", "auto") in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def capacity(gpu: bool) -> int:
    """Memory of the GPU, or of this machine within the limit of its container, in bytes."""
    if gpu:
        return int(torch.cuda.get_device_properties(0).total_memory)
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUPS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def estimate(patient: Patient, gpu: bool, available: int) -> dict[str, float]:
    """Part → bytes, by the formulas above; `available` are the bytes of the machine."""
    student, needs = patient.student, patient.loss.needs
    config = student.model.config.get_text_config()
    b, tokens = BYTES[patient.compute_dtype], patient.micro_batch_tokens
    weights = sum(p.numel() * p.element_size() for p in student.parameters())
    trained = sum(p.numel() * p.element_size() for p in student.trainable_parameters())
    moments = 2 if "adam" in patient.optimizer.lower() else 1
    teachers = sum(_bytes(p.teacher.model) for p in patient.pairs)
    layers, d = int(config.num_hidden_layers), int(config.hidden_size)
    layer = tokens * (10 * d + 4 * int(getattr(config, "intermediate_size", None) or 4 * d)) * b
    kept = tokens * layers * d * b + layer if student.model.is_gradient_checkpointing else layers * layer
    width = student.head().width
    compared = {None: 0, SupportKind.FULL_VOCABULARY: width}.get(needs.support, needs.k)
    return {
        "weights": weights,
        "gradients": trained,
        "optimizer": moments * trained,
        "teachers": teachers + (weights if needs.reference else 0),
        "engine": _engine(patient, gpu, available),
        "activations": kept,
        "logits": 4 * tokens * compared * 4 + CHUNK * width * 4 * 3,
    }


def check_memory(patient: Patient) -> list[Finding]:
    """Compare the estimate with this machine; activations and logits, which are uncertain, can only cause a warning."""
    gpu = on_gpu(patient)
    available = capacity(gpu)
    parts = estimate(patient, gpu, available)
    devices = patient.trainer.get("devices", 1)
    copies = devices if not gpu and isinstance(devices, int) and devices > 1 else 1  # processes on this machine
    total = copies * sum(parts.values())
    certain = total - copies * (parts["activations"] + parts["logits"])
    evidence = (
        f"{total / GIB:.2f} of {available / GIB:.1f} GiB on {'the GPU' if gpu else 'this machine'}: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        + (f"; × {copies} processes" if copies > 1 else "")
    )

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="memory", verdict=verdict, evidence=evidence, repair=repair)]

    if patient.trainer.get("strategy", "auto") != "auto":
        return found(Verdict.PASS, f"{evidence}; before `trainer.strategy` divides it")
    lora = "+model.student.lora.r=8" if not patient.student.has_adapter else "model=<a smaller model>"
    if certain > available:
        return found(Verdict.FAIL, f"weights, optimizer and engine alone do not fit; {evidence}", lora)
    if total > TIGHT * available:
        fixed = copies * sum(estimate(replace(patient, micro_batch_tokens=0), gpu, available).values())
        tokens = int(patient.micro_batch_tokens * (TIGHT * available - fixed) / (total - fixed))
        if tokens >= 64:  # fewer do not hold a row
            return found(Verdict.WARN, f"tight; {evidence}", override("micro_batch_tokens", tokens))
        return found(Verdict.WARN, f"tight; {evidence}", lora)
    return found(Verdict.PASS, evidence)


def _bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)  # meta: on a server


def _engine(patient: Patient, gpu: bool, available: int) -> float:
    """Weights and caches of the engines on this machine; missing settings are the defaults of the engine's class."""
    pool, node = patient.engine, patient.one_engine
    if pool.get("num_gpus") or pool.get("address"):  # the pool runs elsewhere
        return 0.0
    defaults: Mapping[str, inspect.Parameter] = {}
    if "_target_" in node:
        defaults = inspect.signature(locate("engine._target_", node["_target_"])).parameters
    setting = {n: p.default for n, p in defaults.items() if isinstance(p.default, int | float)} | dict(node)
    width = BYTES[node.get("dtype", patient.compute_dtype)]
    numbers = sum(
        p.numel() for name, p in patient.student.named_parameters() if "lora_" not in name
    )  # adapters are merged
    each = numbers * width + float(setting.get("kv_cache_gib", 0.0)) * GIB
    if gpu:
        each = float(setting.get("gpu_memory_utilization", 0.0)) * available
    return float(pool.get("actors", 1) * each)
