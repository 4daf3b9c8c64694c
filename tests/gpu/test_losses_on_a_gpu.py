"""Every loss on CUDA beside float64 on the CPU: the value of each position, and the gradient of each weight."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opdlight.config import CONF, TrainConfig, compose, instantiate
from opdlight.losses import Loss, Remembers, SupportMatching
from opdlight.models import Scorer, ScoreRequest, Student, Teacher, Teachers
from opdlight.types import TokenBatch
from tests.losses.logit_tables import batch_of, example, scores_of
from tests.losses.test_matching import FAMILY, name
from tests.models.architectures import random_batch, save

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
LENGTHS = [40, 7, 33, 25, 12, 3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / str(seed), "qwen2", seed=seed, initializer_range=0.2) for seed in range(3)]


def batch(seed: int) -> TokenBatch:
    """Rows of two tasks, with what some losses want to know besides."""
    made = random_batch(LENGTHS, tasks=("a", "b"), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    made.sampled_logprobs.uniform_(-3, 0, generator=generator)
    made.group_advantage.normal_(generator=generator)
    made.turn_index.copy_(made.token_position // 8)
    return made


def learnt(loss: Loss, folders: list[str], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values [N] and gradients [P] of the second of two updates, the first of which the loss may remember; values of
    the loss where the student is scored a few positions at a time []."""
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1], "b": folders[2]}, student)
    reference = Teachers(dict.fromkeys("ab", folders[0]), student)
    for part in (student, teachers, reference):
        part.to(device, dtype)
    with torch.no_grad():  # the reference is the student of an earlier time
        for weight in student.parameters():
            weight.mul_(1.05)
    scorer = Scorer(student=student, teachers=teachers, reference=reference)
    request = ScoreRequest(needs=loss.needs, shared=teachers.shared_vocabulary, temperature=0.8, top_p=0.9)
    for seed in range(2):
        student.zero_grad()
        here = batch(seed).to(device)
        each = loss(scorer.score(here, request).scores, here)
        each.sum().backward()
        if isinstance(loss, Remembers):
            loss.end_update(lambda mine: [mine])
    gradient = torch.cat([w.grad.flatten() for w in student.parameters() if w.grad is not None])
    summed = each.sum()
    if request.full_vocabulary and not loss.needs.whole_trajectories:
        summed = scorer.score_later(here, request).scores.token_sum(loss)
    return each.detach().cpu(), gradient.cpu(), summed.detach().cpu()


@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_float64_on_the_cpu(loss: str, folders: list[str]) -> None:
    def made() -> Loss:
        found: Any = instantiate(compose("train", TrainConfig, [f"loss={loss}", "rollout.group_size=2"]).loss)
        return found  # type: ignore[no-any-return]

    exact, slope, total = learnt(made(), folders, CPU, torch.float64)
    value, gradient, summed = learnt(made(), folders, CUDA, torch.float32)
    assert value.dtype is torch.float32
    assert float(slope.norm()) > 1e-6
    torch.testing.assert_close(value.double(), exact, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(summed.double(), total, atol=2e-4, rtol=2e-5)
    assert float((gradient.double() - slope).norm() / slope.norm()) < 2e-5


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 4e-2)], ids=str
)
def test_the_whole_family_of_support_matching(dtype: torch.dtype, tolerance: float) -> None:
    z, q, y = example(dtype)

    def value_and_gradient(loss: SupportMatching, device: torch.device, to: torch.dtype) -> tuple[Tensor, Tensor]:
        at = z.to(device, to, copy=True).requires_grad_()
        each = loss(scores_of(loss.needs, at, q.to(device, to), y.to(device)), batch_of(y).to(device))
        each.sum().backward()
        assert at.grad is not None
        return each.detach().cpu().double(), at.grad.cpu().double()

    for loss in FAMILY:
        got = value_and_gradient(loss, CUDA, dtype)
        exact = value_and_gradient(loss, CPU, torch.float64)
        for mine, theirs in zip(got, exact, strict=True):
            torch.testing.assert_close(
                mine, theirs, atol=tolerance, rtol=tolerance, msg=partial("{}: {}".format, name(loss))
            )


def test_a_teacher_that_equals_the_student_teaches_nothing_to_the_bit(folders: list[str], tmp_path: Path) -> None:
    """Both go the same way through the same kernels, in float32 as in bfloat16."""
    for dtype, full in itertools.product(("float32", "bfloat16"), (False, True)):
        student = Student(folders[0], dtype=dtype)
        teachers = Teachers({"a": folders[0]}, student, partial(Teacher, dtype=dtype))
        student.to(CUDA)
        teachers.to(CUDA)
        loss = SupportMatching(support="full_vocabulary") if full else SupportMatching(k=8)
        here = random_batch(LENGTHS).to(CUDA)
        asked = ScoreRequest(needs=loss.needs, shared=teachers.shared_vocabulary)
        each = loss(Scorer(student=student, teachers=teachers).score(here, asked).scores, here)
        each.sum().backward()
        assert not each.any(), (dtype, full)
        assert not any(w.grad.any() for w in student.parameters() if w.grad is not None), (dtype, full)
