"""The memory of a run: formulas against torch on the meta device, the table, and what makes it fit."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen2Config, Qwen2ForCausalLM

from opdlight.config import CONF, DoctorConfig, TrainConfig, compose
from opdlight.doctor import fitting
from opdlight.doctor.findings import Verdict
from opdlight.doctor.fitting import check_memory, fits, judge, plan_of
from opdlight.doctor.memory import GIB, Part, Plan, estimate, totals
from opdlight.doctor.patient import Patient
from opdlight.doctor.plan import plan_config, plan_of_config
from opdlight.doctor.scores import as_batches
from opdlight.doctor.sizes import Layout, ModelSize
from opdlight.errors import CheckpointError
from opdlight.losses import SupportMatching, TurnWeighted
from opdlight.models.backbone import checkpoint_layers, divide
from opdlight.types import SharedVocabulary
from tests.doctor.cases import errand, patient
from tests.doctor.paper_models import SHAPES, TOOL, config, kept_bytes, on_meta

COUNTS = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "7B": 7_615_616_512}  # as their model cards have them


def by_name(plan: Plan) -> dict[str, Part]:
    return {part.name: part for part in estimate(plan)}


def training(one: Patient, *, gpu: bool = False, available: float = 1 << 40) -> dict[str, float]:
    """Part → bytes while the student trains."""
    return {p.name: p.training for p in estimate(plan_of(one, gpu=gpu, available=available))}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_parameters_are_those_of_torch(name: str) -> None:
    size, shape = ModelSize.of(on_meta(name).requires_grad_(True)), SHAPES[name]
    d, f = shape["hidden_size"], shape["intermediate_size"]
    kv = d // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = d * d + d + 2 * (d * kv + kv) + d * d + 3 * d * f + 2 * d  # q, k, v with biases, o, MLP, two norms
    rest = shape["vocab_size"] * d * (1 if shape["tie_word_embeddings"] else 2) + d
    assert (size.layer, size.rest) == (layer, rest)
    assert size.parameters == COUNTS[name] == shape["num_hidden_layers"] * layer + rest
    assert size.stored == size.trained == 4 * size.parameters
    assert ModelSize.of(on_meta(name, torch.bfloat16).requires_grad_(False)).stored == 2 * size.parameters


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_activations_are_what_autograd_keeps(name: str, dtype: torch.dtype, width: int) -> None:
    model, tokens = on_meta(name, dtype), 128
    whole = a_plan(ModelSize.of(model), compute=width, tokens=tokens)
    assert kept_bytes(model, tokens) == pytest.approx(by_name(whole)["activations"].training, rel=0.06)
    checkpoint_layers(model)
    cut = a_plan(ModelSize.of(model), compute=width, tokens=tokens)
    one_layer = by_name(whole)["activations"].training / SHAPES[name]["num_hidden_layers"]
    inputs = by_name(cut)["activations"].training - one_layer  # the layer that is computed again comes on top
    assert kept_bytes(model, tokens) == pytest.approx(inputs, rel=0.13)


@pytest.fixture
def eight_processes() -> Iterator[Any]:
    """A process group of eight in which every collective does nothing."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield dist.device_mesh.init_device_mesh("cpu", (8,))
    dist.destroy_process_group()


def test_shares_of_eight_processes_are_those_of_torch(eight_processes: Any) -> None:
    model = on_meta("7B").requires_grad_(True)
    size = ModelSize.of(model)
    divide(model, model, eight_processes, MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.numel() > 1]
    parts = by_name(a_plan(size, layout=Layout(processes=8, shards=8), compute=2))
    assert sum(local_bytes(w) for w in model.parameters()) == pytest.approx(parts["weights"].training, rel=1e-3)
    assert sum(local_bytes(w.grad) for w in model.parameters()) == pytest.approx(parts["gradients"].training, rel=1e-3)
    assert sum(local_bytes(m) for m in moments) == pytest.approx(parts["optimizer"].training, rel=1e-3)


def local_bytes(weight: Any) -> int:
    local = weight.to_local()
    return int(local.numel() * local.element_size())


def a_plan(student: ModelSize, **changes: Any) -> Plan:
    plan = Plan(student=student, teachers=[], layout=Layout(), compute=4, tokens=1024, longest=0, compared=32)
    return replace(plan, **changes)


def test_memory_adds_up(tmp_path: Path) -> None:
    one = patient(tmp_path, micro_batch_tokens=1000, optimizer="torch.optim.AdamW")
    numbers = sum(p.numel() for p in one.student.parameters())
    parts = training(one)
    assert parts["weights"] == parts["gradients"] == parts["teachers"] == parts["engine"] == 4 * numbers
    assert parts["optimizer"] == 8 * numbers
    assert parts["activations"] == 1000 * 2 * (10 * 64 + 4 * 128) * 4
    assert training(replace(one, micro_batch_tokens=100))["activations"] == 256 * 2 * 1152 * 4  # the longest row
    assert training(replace(one, optimizer="torch.optim.SGD"))["optimizer"] == 4 * numbers
    full = replace(one, loss=SupportMatching(support="full_vocabulary"))
    assert training(full)["logits"] < parts["logits"]  # 256 positions at a time
    by_turn = replace(one, loss=TurnWeighted(loss=SupportMatching(support="full_vocabulary")))
    assert training(by_turn)["logits"] > parts["logits"]
    ddp = replace(one, trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"})
    assert training(ddp)["gradients"] == 8 * numbers
    one.student.model.gradient_checkpointing_enable()
    assert training(one)["activations"] < parts["activations"]


def test_the_engine_has_its_share_and_gives_it_back_while_it_sleeps(tmp_path: Path) -> None:
    one = patient(tmp_path)
    numbers = sum(p.numel() for p in one.student.parameters())
    vllm = {"_target_": "opdlight.rollout.VLLMEngine", "kv_cache_gib": 2, "sleep": False}
    assert training(replace(one, engine=vllm))["engine"] == 4 * numbers + 2 * GIB
    assert training(replace(one, engine=vllm), gpu=True, available=1000)["engine"] == pytest.approx(400)  # the default
    pool = {"actors": 3, "num_gpus": 0, "address": None, "engine": vllm}
    assert training(replace(one, engine=pool))["engine"] == 3 * (4 * numbers + 2 * GIB)
    assert training(replace(one, engine=pool), gpu=True, available=1000)["engine"] == pytest.approx(3 * 400)
    for elsewhere in (pool | {"num_gpus": 1}, pool | {"address": "auto"}, {"url": "http://host:8000"}):
        assert training(replace(one, engine=elsewhere), gpu=True, available=1000)["engine"] == 0
    sleeper = replace(one, engine=vllm | {"sleep": True})
    part = by_name(plan_of(sleeper, gpu=True, available=1000))["engine"]
    assert (part.training, part.rollout) == (0, pytest.approx(400))
    assert training(sleeper)["engine"] > 0  # nothing sleeps on a CPU
    assert training(replace(sleeper, staleness=1), gpu=True, available=1000)["engine"] > 0  # it generates meanwhile


def test_teachers_and_students_are_divided_as_the_config_says(tmp_path: Path) -> None:
    size = ModelSize.of(on_meta("7B", torch.bfloat16))
    student = ModelSize.of(on_meta("7B").requires_grad_(True))
    eight = Layout.of({"devices": 8, "strategy": {"_target_": "opdlight.distillation.sharded.ShardedStrategy"}}, 1)
    plan = a_plan(student, teachers=[size, size], layout=eight, compute=2, gpu=True)
    whole, one = 2 * size.stored, 2 * (size.rest + 2 * size.layer)
    for placement, during, between, cpu in (
        ("replicated", whole, whole, 0),
        ("sharded", whole / 8 + one, whole / 8, 0),
        ("offloaded", one, 0, whole / 8),
    ):
        part = by_name(replace(plan, placement=placement))["teachers"]
        assert (part.training, part.rollout, part.cpu) == (during, between, cpu), placement
    lent = by_name(replace(plan, layout=Layout(), placement="offloaded"))["teachers"]
    assert (lent.training, lent.rollout, lent.cpu) == (whole, 0, whole)  # copies, while the student trains
    alone = replace(plan, layout=Layout(), placement="sharded")
    assert by_name(alone)["teachers"].training == whole  # one process cannot divide them
    strategy = {"_target_": "opdlight.distillation.sharded.ShardedStrategy"}
    nodes = {"devices": -1, "num_nodes": 4, "strategy": strategy}
    assert Layout.of(nodes, 8) == Layout(processes=8, machines=4, shards=32)
    assert Layout.of(nodes | {"strategy": strategy | {"shard_within": "node"}}, 8).shards == 8
    assert Layout.of({"devices": [0, 3], "strategy": "ddp"}, 8) == Layout(processes=2, copies=2)
    assert Layout.of({"devices": "auto"}, 4).processes == 4


def test_the_formula_for_activations_fits_what_autograd_keeps_of_a_llama(tmp_path: Path) -> None:
    one = patient(tmp_path, micro_batch_tokens=124, task=errand(trajectory_tokens=124))
    own = {p.untyped_storage().data_ptr() for p in one.student.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    (batch,) = as_batches([[5] * 200], shared=SharedVocabulary(300), micro_batch_tokens=1000)  # 100 and 24 tokens
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one.student.hidden(batch)
    measured = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    assert measured == pytest.approx(training(one)["activations"], rel=0.1)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_under_autocast_residuals_and_norms_are_float32(again: bool) -> None:
    """Of a Qwen2 on the CPU, beside what a bfloat16 model keeps; a GPU's peak is compared in tests/gpu/."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 300}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=1)).eval()
    one_layer = by_name(a_plan(ModelSize.of(model), compute=2, tokens=333))["activations"].training / 8
    if again:
        checkpoint_layers(model)
    own = {tuple(w.shape) for w in model.parameters()} | {tuple(w.shape[::-1]) for w in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in own:  # weights and their casts
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.zeros(1, 333, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ):
        out = model.get_decoder()(input_ids=ids, use_cache=False)
    assert out.last_hidden_state.requires_grad
    expected = by_name(a_plan(ModelSize.of(model), compute=2, tokens=333))["activations"].training
    final_norm = 2 * 333 * 256 * 4
    expected += final_norm - (one_layer if again else 0)  # the layer that is computed again comes on top
    measured = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert measured == pytest.approx(expected, rel=0.06)
    divided = a_plan(ModelSize.of(model), compute=2, tokens=333, layout=Layout(processes=2, shards=2))
    assert (
        by_name(divided)["activations"].training
        < 0.9 * by_name(a_plan(ModelSize.of(model), compute=2, tokens=333))["activations"].training
    )


def pasted(line: str) -> DictConfig:
    """The proposed overrides, composed."""
    return compose("train", TrainConfig, ["task=sums", *shlex.split(line)])


def test_memory_that_is_there_passes_and_what_is_not_there_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = patient(tmp_path, micro_batch_tokens=10_000)
    assert check_memory(one)[0].verdict is Verdict.PASS
    parts = training(one)
    whole = sum(parts.values())
    monkeypatch.setattr(fitting, "capacity", lambda gpu: int(whole))
    (tight,) = check_memory(one)
    assert tight.verdict is Verdict.WARN
    fewer = pasted(tight.repair).micro_batch_tokens
    assert 256 <= fewer < 10_000  # not fewer than the longest row has
    assert check_memory(replace(one, micro_batch_tokens=fewer))[0].verdict is Verdict.PASS
    monkeypatch.setattr(fitting, "capacity", lambda gpu: int(parts["weights"]))
    (full,) = check_memory(one)
    assert full.verdict is Verdict.FAIL
    assert full.evidence.startswith("weights, optimizer, teachers and engine alone do not fit; ")
    cfg = pasted(full.repair.removesuffix(" model=<a smaller model>"))
    assert (cfg.model.student.lora.r, cfg.model.student.gradient_checkpointing) == (8, True)
    monkeypatch.setattr(fitting, "capacity", lambda gpu: int(whole * 2))
    (twice,) = check_memory(replace(one, trainer={"accelerator": "cpu", "devices": 2}))
    assert (twice.verdict, "× 2 processes" in twice.evidence) == (Verdict.WARN, True)


def test_what_is_proposed_makes_it_fit() -> None:
    student, teacher = ModelSize.of(on_meta("7B").requires_grad_(True)), ModelSize.of(on_meta("7B", torch.bfloat16))
    fine = a_plan(
        replace(student, checkpointed=True), teachers=[teacher], layout=Layout(processes=8, shards=8), compute=2,
        tokens=18432, longest=18432, placement="sharded", engine=32 * GIB, sleeps=True, may_sleep=True, gpu=True,
    )  # fmt: skip
    available = 80 * GIB
    assert judge(fine, available).verdict is Verdict.PASS
    loaded = 8 * (student.stored + teacher.stored)  # each process reads whole models
    assert judge(fine, available, cpu=loaded).verdict is Verdict.PASS
    small = judge(fine, available, cpu=loaded - 1)
    assert (small.verdict, small.repair, "the CPU's memory" in small.evidence) == (Verdict.WARN, "", True)
    for change, expected in (
        ({"tokens": 200_000}, "micro_batch_tokens="),
        ({"sleeps": False, "engine": 48 * GIB}, "++engine.sleep=true"),
        ({"engine": 75 * GIB}, "++engine.gpu_memory_utilization=0."),
        ({"layout": Layout(processes=8)}, "trainer=fsdp"),
        ({"student": student, "tokens": 32768, "longest": 32768}, "++model.student.gradient_checkpointing=true"),
        ({"teachers": [teacher] * 3, "placement": "replicated"}, "teacher_placement=sharded"),
    ):
        finding = judge(replace(fine, **change), available)
        assert finding.verdict is not Verdict.PASS, change
        assert finding.repair.startswith(expected) and " " not in finding.repair, (change, finding.repair)
    one_gpu = judge(replace(fine, layout=Layout()), available)  # float32 weights and moments of 7B need 114 GiB
    assert (one_gpu.verdict, "++model.student.lora.r=8" in one_gpu.repair) == (Verdict.FAIL, True)
    assert "model=" not in one_gpu.repair
    assert judge(replace(fine, longest=10**6, tokens=10**6), available).repair.endswith("model=<a smaller model>")


def test_a_run_on_other_machines_is_planned_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("7B", "1.5B"):
        config(name).save_pretrained(tmp_path / name)
    of = [f"model.student.model={tmp_path / '7B'}", f"model.teachers.math={tmp_path / '7B'}"]
    cfg = compose("doctor", DoctorConfig, ["experiment=paper_math", "plan_gib=80", f"out={tmp_path / 'm.json'}", *of])
    assert cfg.model.compute_dtype == "bfloat16"  # of GPUs that are not here
    needed = plan_config(cfg)
    plan = plan_of_config(cfg)
    assert (plan.layout, plan.tokens, plan.longest) == (Layout(processes=8, shards=8), 36864, 18432)
    assert needed == {"training": totals(estimate(plan)).training, "rollout": totals(estimate(plan)).rollout}
    assert fits(plan, 80 * GIB)
    out = capsys.readouterr().out
    assert "each of 8 processes, GiB" in out and "doctor: pass: memory: " in out
    report = json.loads((tmp_path / "m.json").read_text())
    assert report["bytes"]["all"]["training"] == needed["training"]
    chosen = ["experiment=paper_math", "plan_gib=80"]
    lora = plan_of_config(compose("doctor", DoctorConfig, [*chosen, "++model.student.lora.r=8", *of]))
    assert lora.student.stored == 2 * COUNTS["7B"] + 4 * lora.student.adapters
    assert lora.student.trained == 4 * lora.student.adapters > 0
    with pytest.raises(SystemExit):
        plan_config(compose("doctor", DoctorConfig, ["experiment=paper_math", "plan_gib=4", *of]))
    missing = compose("doctor", DoctorConfig, [*chosen, of[0], "model.teachers.math=/no/where"])
    with pytest.raises(CheckpointError, match=r"`task\.tasks\.math\.teacher`"):
        plan_of_config(missing)


def test_the_table_of_the_presets_is_that_of_the_readme(tmp_path: Path) -> None:
    written = (CONF / "experiment" / "README.md").read_text()
    assert all(f"\n| `{name}` |" in written for name in TOOL["presets"]())
    rows = TOOL["table"](["paper_agent_math", "one_gpu_math"], tmp_path).splitlines()  # the others take as long each
    assert [row in written for row in rows] == [True] * 4, "python tools/preset_memory.py"
