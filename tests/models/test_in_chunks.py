"""Losses on the full vocabulary, a few positions at a time: the same numbers, and nothing as large as [N, V]."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from opdlight.losses import ImportanceWeighted, Loss, SupportMatching, TurnWeighted
from opdlight.models import Scorer, ScoreRequest, Student, Teacher, Teachers, scorer
from opdlight.models.in_chunks import sum_in_chunks
from opdlight.models.lm_head import LMHead
from opdlight.models.wide_product import wide
from opdlight.types import TeacherScores, TokenBatch
from tests.distillation.one_update import fit, parts
from tests.models.architectures import random_batch, save

FULL: dict[str, Loss] = {p.stem: instantiate(OmegaConf.load(p)) for p in sorted(Path("conf/loss").glob("full_*.yaml"))}
WEIGHTED = ImportanceWeighted(loss=FULL["full_fkl"])
BATCH = random_batch([12, 7, 9, 20, 5])
TWO_TASKS = random_batch([12, 7, 9, 20, 5], tasks=("a", "b"))


# the sum and its gradient


def pieces(dtype: torch.dtype, *, trained: bool = True) -> tuple[Tensor, LMHead, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    weight, bias = (t.requires_grad_(trained) for t in (draw(40, 6).to(dtype), wide(draw(40).to(dtype))))
    return (
        draw(13, 6).to(dtype).requires_grad_(),
        LMHead(weight=weight, bias=bias, scale=0.5, softcap=3.0),
        torch.arange(13) % 5,
    )


def surprise(hidden: Tensor, head: LMHead, at: Tensor) -> Tensor:
    return -head.logits(hidden).log_softmax(-1)[torch.arange(len(at)), at % 5] * (1 + at)


@pytest.mark.parametrize("trained", [True, False], ids=["head", "frozen head"])
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_value_and_gradients_are_those_of_all_positions_at_once(dtype: torch.dtype, near: float, trained: bool) -> None:
    found = []
    for in_chunks in (False, True):
        hidden, head, _ = pieces(dtype, trained=trained)
        everywhere = torch.arange(13)
        total = sum_in_chunks(surprise, hidden, head, 4) if in_chunks else surprise(hidden, head, everywhere).sum()
        (total * 0.25).backward()
        found.append((total.detach(), hidden.grad, head.weight.grad, None if head.bias is None else head.bias.grad))
    assert (found[0][2] is None) is not trained
    for got, want in zip(found[1], found[0], strict=True):
        if want is not None and got is not None:
            assert got.dtype is want.dtype
            torch.testing.assert_close(got, want, atol=near * float(want.abs().max()), rtol=0)
        assert (got is None) == (want is None)


def test_without_a_gradient_there_is_just_the_sum() -> None:
    hidden, head, _ = pieces(torch.float64)
    with torch.no_grad():
        total = sum_in_chunks(surprise, hidden, head, 4)
    assert not total.requires_grad
    torch.testing.assert_close(total, surprise(hidden, head, torch.arange(13)).sum().detach())


def test_a_second_backward_pass_is_refused() -> None:
    """The gradients that are kept have been multiplied in place."""
    hidden, head, _ = pieces(torch.float64)
    total = sum_in_chunks(surprise, hidden, head, 4)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


# losses


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / str(seed), seed=seed) for seed in range(3)]


def by_hand(loss: Loss, student: Student, teachers: Any, batch: TokenBatch, *, later: bool) -> list[Tensor]:
    """The sum of the losses and its gradients, with all logits at once or later."""
    asked = ScoreRequest(needs=loss.needs, shared=teachers.shared_vocabulary, temperature=0.7)
    scores_of = Scorer(student=student, teachers=teachers)
    student.zero_grad()
    if later:
        total = scores_of.score_later(batch, asked).scores.token_sum(loss)
    else:
        total = loss(scores_of.score(batch, asked).scores, batch).sum()
    (total / 7).backward()
    return [total.detach(), *(p.grad for p in student.parameters() if p.grad is not None)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "CHUNK", 6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("batch", [BATCH, TWO_TASKS], ids=["a teacher", "two teachers"])
@pytest.mark.parametrize("loss", [*FULL.values(), WEIGHTED], ids=[*FULL, "weighted"])
def test_losses_and_gradients_stay(loss: Loss, batch: TokenBatch, folders: list[str]) -> None:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1], "b": folders[2]}, student)
    expected = by_hand(loss, student, teachers, batch, later=False)
    got = by_hand(loss, student, teachers, batch, later=True)
    assert len(got) == len(expected) > 10
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("loss", FULL.values(), ids=FULL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_models_give_zero_to_the_bit(loss: Loss, dtype: str, folders: list[str]) -> None:
    student = Student(folders[0], dtype=dtype)
    teachers = Teachers({"a": folders[0]}, student, partial(Teacher, dtype=dtype))
    for found in by_hand(loss, student, teachers, BATCH, later=True):
        assert not found.any()


class TellsAll:
    """A teacher of one's own, which knows nothing of later."""

    def __init__(self, teachers: Teachers) -> None:
        self.teachers, self.shared_vocabulary = teachers, teachers.shared_vocabulary

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        return self.teachers.score(batch, replace(request, support_later=False))


@pytest.mark.usefixtures("small_chunks")
def test_a_teacher_may_tell_everything_at_once(folders: list[str]) -> None:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1]}, student)
    expected = by_hand(WEIGHTED, student, teachers, BATCH, later=True)
    for got, want in zip(by_hand(WEIGHTED, student, TellsAll(teachers), BATCH, later=True), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.usefixtures("small_chunks")
def test_the_head_of_a_divided_teacher_outlives_what_was_gathered(folders: list[str], mesh: DeviceMesh) -> None:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1]}, student)
    loss = FULL["full_rkl"]
    expected = by_hand(loss, student, teachers, BATCH, later=True)
    teachers.place("sharded", mesh)
    for got, want in zip(by_hand(loss, student, teachers, BATCH, later=True), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


# memory


class Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor that any operation makes, as they lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return result


def largest(compute: Callable[[], Any]) -> int:
    with Largest() as seen:
        compute()
    return seen.numbers


@pytest.mark.parametrize(
    ("loss", "tasks"),
    [(FULL["full_rkl"], ("a",)), (FULL["full_jsd"], ("a", "b")), (WEIGHTED, ("a", "b"))],
    ids=["a teacher", "two teachers", "weighted"],
)
def test_nothing_is_as_large_as_all_logits(loss: Loss, tasks: tuple[str, ...], folders: list[str]) -> None:
    student, batch = Student(folders[0]), random_batch([40] * 30, tasks=tasks)
    teachers = Teachers(dict(zip(tasks, folders[1:], strict=False)), student)
    everything = batch.num_tokens * len(teachers.shared_vocabulary)
    assert largest(partial(by_hand, loss, student, teachers, batch, later=False)) >= everything
    assert largest(partial(by_hand, loss, student, teachers, batch, later=True)) < everything / 2


# the training step


def test_a_run_compares_in_chunks_and_is_the_same_run(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, sizes = [], []
    for chunk in (256, 6):
        monkeypatch.setattr(scorer, "CHUNK", chunk)
        loss = Watched(FULL["full_jsd"])
        module, data, _ = parts((folders[0], folders[1]), loss=loss)
        fit(module, data, tmp_path)
        weights.append([p.detach() for p in module.student.parameters()])
        sizes.append(loss.positions)
    assert len(sizes[0]) == 3  # updates of one micro-batch
    assert len(sizes[1]) > 6
    assert max(sizes[1]) == 6
    assert sum(sizes[0]) == sum(sizes[1])
    for got, want in zip(weights[1], weights[0], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


class Watched:
    """A loss around another one; notes of how many positions it was called."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.needs, self.positions = loss, loss.needs, list[int]()

    def __call__(self, scores: Any, batch: TokenBatch) -> Tensor:
        self.positions.append(batch.num_tokens)
        assert len(scores.student_logits) == batch.num_tokens
        return self.loss(scores, batch)


def test_a_loss_that_looks_at_whole_trajectories_gets_them(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "CHUNK", 6)
    loss = Watched(TurnWeighted(loss=SupportMatching(support="full_vocabulary")))
    module, data, _ = parts((folders[0], folders[1]), loss=loss)
    fit(module, data, tmp_path)
    assert len(loss.positions) == 3
    assert min(loss.positions) > 6
