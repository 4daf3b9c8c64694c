"""Models on CUDA: products in bfloat16, autocast, attention kernels, layers computed again, lent teachers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opdlight.losses import Needs
from opdlight.models import Scorer, ScoreRequest, Student, Teacher, Teachers, support_product
from opdlight.models.backbone import hidden_at
from opdlight.models.lm_head import LMHead, log_normaliser, support_logits, token_logprobs
from opdlight.models.offloading import Offloaded
from opdlight.models.one_pass import one_pass
from opdlight.models.packing import resolve_packing
from opdlight.models.wide_product import wide_product
from opdlight.types import SharedVocabulary
from tests.models.architectures import ARCHITECTURES, build, random_batch, save

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
LENGTHS = [40, 7, 33, 25, 12, 3]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Random bfloat16 numbers in the CPU's memory."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def apart(got: Tensor, exact: Tensor) -> float:
    """The distance of two tensors as a share of the size of the second one."""
    got, exact = got.detach().cpu().double(), exact.detach().cpu().double()
    return float((got - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((300, 896), (896, 1000)), ((0, 16), (16, 8)), ((4, 16), (16, 0)),
                                    ((4, 0), (0, 8)), ((6, 5, 64), (6, 64, 1)), ((0, 5, 64), (0, 64, 1))])  # fmt: skip
def test_bfloat16_products_are_summed_in_float32_whatever_the_shape(shapes: Any) -> None:
    one, other = (random(*shape, seed=seed) for seed, shape in enumerate(shapes))
    exact = one.double() @ other.double()
    transposed = one.mT.contiguous().mT  # [.., n, k] in the memory of [.., k, n], as the transposed weight of a head
    for left in (one, transposed):
        got = wide_product(left.to(CUDA), other.to(CUDA))
        assert got.dtype is torch.float32
        assert got.shape == exact.shape
        if got.numel():
            assert apart(got, exact) < 2e-6  # bfloat16 sums or results would be 1e-3 away


@pytest.fixture(params=[0, 10**9], ids=["gather", "union"])
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_product, "GATHER_RATIO", request.param)


@pytest.mark.parametrize("n", [0, 1, 700])
def test_the_head_in_bfloat16(strategy: None, n: int) -> None:
    """Values as in float64 of the same bfloat16 numbers; gradients but for one rounding of each factor."""
    v, d, k = 1000, 96, 8
    generator = torch.Generator().manual_seed(4)
    ids = torch.stack([torch.randperm(v, generator=generator)[:k] for _ in range(n)] or [torch.zeros(k).long()])[:n]

    def outcome(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        hidden = random(n, d, seed=1).to(device, dtype).requires_grad_()
        weight = random(v, d, seed=2).to(device, dtype).requires_grad_()
        head, at = LMHead(weight=weight), ids.to(device)
        each = [
            support_logits(hidden, head, at).flatten(),
            log_normaliser(hidden, head, chunk=64),
            token_logprobs(hidden, head, at[:, 0], chunk=64, top_p=0.9),
        ]
        signs = [torch.linspace(-1, 1, e.numel(), device=device, dtype=e.dtype) for e in each]
        sum((e * s).sum() for e, s in zip(each, signs, strict=True)).backward()  # type: ignore[union-attr]
        assert hidden.grad is not None and weight.grad is not None
        entropy = one_pass(hidden, head, at[:, 0], shared=SharedVocabulary(v), entropy=True, chunk=64).entropy
        assert entropy is not None
        return [*each, entropy, hidden.grad, weight.grad]

    got, exact = outcome(CUDA, BF16), outcome(CPU, torch.float64)
    assert [g.dtype for g in got] == [torch.float32] * 4 + [BF16] * 2
    for number, (mine, theirs) in enumerate(zip(got, exact, strict=True)):
        if theirs.numel() and theirs.any():
            assert apart(mine, theirs) < (1e-5 if number < 4 else 1e-2), number


def test_the_best_ids_are_the_best(strategy: None) -> None:
    hidden, weight = random(300, 64, seed=1), random(5000, 64, seed=2)
    shared = SharedVocabulary(4990, frozenset({3, 17}))
    tokens = torch.zeros(300, dtype=torch.long, device=CUDA)
    found = one_pass(hidden.to(CUDA), LMHead(weight=weight.to(CUDA)), tokens, shared=shared, k=32).top_ids
    assert found is not None
    best = found.cpu()
    assert bool(shared.holds(best).all())
    exact = shared.only(hidden.double() @ weight.double().T)
    torch.testing.assert_close(exact.gather(1, best), exact.topk(32).values, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_student_on_cuda_in_float32_and_in_bfloat16(architecture: str, tmp_path: Path) -> None:
    """Float32 is float32 (no TF32 in it); bfloat16 is autocast: float32 weights and gradients, bfloat16 states."""
    folder, batch = save(tmp_path, architecture), random_batch(LENGTHS)

    def outcome(device: torch.device, dtype: torch.dtype, compute: str | None = None) -> tuple[Tensor, Tensor]:
        student = Student(folder, compute_dtype=compute).to(device, dtype)
        here = batch.to(device)
        hidden = student.hidden(here)
        support_logits(hidden, student.head(), here.target_ids[:, None]).sum().backward()
        grads = [w.grad for w in student.parameters() if w.grad is not None]
        assert {g.dtype for g in grads} == {dtype}
        return hidden.detach(), torch.cat([g.flatten() for g in grads]).cpu().double()

    exact, slope = outcome(CPU, torch.float64)
    fine, fine_slope = outcome(CUDA, torch.float32)
    assert apart(fine, exact) < 2e-6
    assert apart(fine_slope, slope) < 2e-5
    low, low_slope = outcome(CUDA, torch.float32, "bfloat16")
    assert low.dtype is BF16
    assert 1e-4 < apart(low, exact) < 0.05
    assert float(torch.cosine_similarity(low_slope, slope, dim=0)) > 0.95


def hidden_and_gradient(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    hidden = hidden_at(model, batch)
    (hidden.float() * torch.linspace(-1, 1, hidden.numel(), device=hidden.device).view_as(hidden)).sum().backward()
    return hidden.detach(), torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2}  # heads of 32 numbers
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "qwen2": ("qwen2", SMALL),
    "windows": ("gemma3", SMALL | {"head_dim": 32, "sliding_window": 4,
                                   "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip


@pytest.mark.parametrize("style", list(STYLES))
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_rows_are_padded_rows(style: str, implementation: str) -> None:
    packed_is_padded(style, implementation, tolerance=1e-5)


@pytest.mark.xfail(torch.__version__ < "2.12", reason="torch 2.11 does not compile it for rows of a new length")
@pytest.mark.filterwarnings("default")  # the compiler has some to give
@pytest.mark.parametrize("style", ["qwen2", "windows"])
def test_packed_rows_are_padded_rows_with_flex_attention(style: str) -> None:
    """Its kernel is compiled for the card."""
    packed_is_padded(style, "flex_attention", tolerance=1e-4)


def packed_is_padded(style: str, implementation: str, tolerance: float) -> None:
    name, changes = STYLES[style]
    padded = random_batch(LENGTHS, seed=3)
    exact, slope = hidden_and_gradient(build(name, **changes), padded)
    model = build(name, **changes).to(CUDA)
    model.set_attn_implementation(implementation)
    assert resolve_packing(True, [model])
    assert resolve_packing("auto", [model]) == (implementation == "flex_attention")
    for packed in (False, True):
        got, gradient = hidden_and_gradient(model, replace(padded, packed=packed).to(CUDA))
        assert apart(got, exact) < tolerance, packed
        assert apart(gradient, slope) < 10 * tolerance, packed
    low = model.to(BF16)
    states = [hidden_and_gradient(low, replace(padded, packed=packed).to(CUDA)) for packed in (False, True)]
    assert apart(states[1][0], states[0][0]) < 0.02
    assert apart(states[1][1], states[0][1]) < 0.05


def test_layers_that_are_computed_again_take_less_memory_and_change_nothing(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "max_position_embeddings": 2048}
    folder = save(tmp_path, "llama", initializer_range=0.1, **sizes)
    batch = random_batch([1000, 900, 1000, 700]).to(CUDA)
    found = []
    for again in (False, False, True):  # cuBLAS takes memory of its own at its first product
        student = Student(folder, compute_dtype="bfloat16", gradient_checkpointing=again).to(CUDA)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        hidden = student.hidden(batch)
        hidden.float().square().mean().backward()
        gradient = torch.cat([w.grad.flatten() for w in student.parameters() if w.grad is not None])
        found.append((torch.cuda.max_memory_allocated() - before, hidden.detach(), gradient))
        del student, hidden
    (plain, hidden, gradient), (saved, again_hidden, again_gradient) = found[1:]
    assert saved < 0.5 * plain
    assert torch.equal(hidden, again_hidden)
    assert apart(again_gradient, gradient) < 1e-3  # kernels may sum in another order


def test_a_lent_teacher_leaves_the_gpu_and_nothing_stays(tmp_path: Path) -> None:
    teacher = Teacher(save(tmp_path, "llama-tied", hidden_size=256))
    originals = [(w.data_ptr(), w.device.type) for w in teacher.parameters()]
    batch = random_batch(LENGTHS)
    expected, size = teacher(batch).detach(), sum(w.numel() * w.element_size() for w in teacher.parameters())
    offloaded = Offloaded(teacher)
    offloaded.lend(CUDA)
    teacher(batch.to(CUDA))  # cuBLAS takes memory of its own at its first product
    offloaded.take_back()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        offloaded.lend(CUDA)
        offloaded.lend(CUDA)
        lent = torch.cuda.memory_allocated() - before
        assert size <= lent < 1.1 * size + 2**16
        assert teacher.device.type == "cuda"
        with torch.no_grad():
            assert apart(teacher(batch.to(CUDA)), expected) < 1e-4  # float32, with peaked attention
        offloaded.take_back()
        assert torch.cuda.memory_allocated() == before
        assert [(w.data_ptr(), w.device.type) for w in teacher.parameters()] == originals


def test_two_teachers_and_probed_tokens(tmp_path: Path) -> None:
    """Tensors that are made in the CPU's memory (positions, tasks, ids left out) meet those on the GPU."""
    names = [save(tmp_path / str(seed), seed=seed) for seed in range(3)]
    student = Student(names[0])
    teachers = Teachers({"a": names[1], "b": names[2]}, student)
    batch = random_batch(LENGTHS, tasks=("a", "b"))
    shared = SharedVocabulary(teachers.shared_vocabulary.size, frozenset({5, 6}))
    asked = ScoreRequest(needs=Needs(sampled=True, teacher_entropy=True), shared=shared)
    asked = replace(asked, probe_at=torch.arange(0, batch.num_tokens, 3), probe_k=4)
    expected = Scorer(student=student, teachers=teachers).score(batch, asked)
    student.to(CUDA)
    teachers.to(CUDA)
    got = Scorer(student=student, teachers=teachers).score(batch.to(CUDA), asked)
    assert expected.probe is not None and got.probe is not None
    assert apart(got.scores.teacher_sampled, expected.scores.teacher_sampled) < 1e-5  # type: ignore[arg-type]
    moved = got.probe.cpu()
    assert torch.equal(moved.teacher_ids, expected.probe.teacher_ids)
    for name in ("student", "teacher", "student_entropy", "teacher_at_student", "teacher_top"):
        assert apart(getattr(moved, name), getattr(expected.probe, name)) < 1e-5, name
