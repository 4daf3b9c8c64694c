"""An id that means another token to the teacher takes part in nothing: no support, no loss position, no figure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opdlight.batch.collate import Collate
from opdlight.errors import VocabularyError
from opdlight.losses import Loss, Needs, SupportKind, SupportMatching
from opdlight.models import Scorer, Student, Teachers
from opdlight.types import Status, Trajectory, Turn
from tests.models.architectures import full_logits, random_batch, save
from tests.models.score_cases import ask, scored
from tests.tiny_models import tiny_tokenizer

SIZE = len(tiny_tokenizer())
OUT = tiny_tokenizer().get_vocab()["ÿ"]  # a byte that no text here holds
BATCH = random_batch([12, 7, 9], ids=SIZE)


def renamed(folder: Path, old: str, new: str, seed: int = 1) -> str:
    """A teacher whose tokenizer calls one token by another name."""
    made = save(folder, seed=seed)
    core = json.loads((folder / "tokenizer.json").read_text())
    core["model"]["vocab"][new] = core["model"]["vocab"].pop(old)
    for token in core["added_tokens"]:
        token["content"] = token["content"].replace(old, new)
    (folder / "tokenizer.json").write_text(json.dumps(core))
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Teachers]:
    folder = tmp_path_factory.mktemp("models")
    student = Student(save(folder / "student"))
    return student, Teachers({"a": renamed(folder / "teacher", "ÿ", "another")}, student)


def test_one_renamed_token_leaves_its_id_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = Student(save(tmp_path / "student"))
    teachers = Teachers({"a": renamed(tmp_path / "teacher", "ÿ", "another")}, student)
    assert teachers.shared_vocabulary.left_out == {OUT}
    assert f"differ at 1 of {SIZE} ids (id: student / teacher): {OUT}: 'ÿ' / 'another'" in caplog.text


def test_one_that_the_template_writes_is_refused(tmp_path: Path) -> None:
    student = Student(save(tmp_path / "student"))
    with pytest.raises(VocabularyError, match=r"<\|im_start\|>.*a chat template or an end of sequence uses 1"):
        Teachers({"a": renamed(tmp_path / "teacher", "<|im_start|>", "<|other|>")}, student)


@pytest.mark.parametrize(
    "loss",
    [
        SupportMatching(k=SIZE - 1),
        SupportMatching(k=SIZE - 1, support="student_top_k", outside="tail_bucket"),
        SupportMatching(k=SIZE - 1, support="teacher_nucleus", nucleus=1.0),
        SupportMatching(support="full_vocabulary", divergence="jsd", mix=0.5),
    ],
    ids=lambda loss: loss.support,
)
def test_no_support_holds_it_and_both_models_are_renormalised_without(
    loss: Loss, pair: tuple[Student, Teachers]
) -> None:
    student, teachers = pair
    needs = loss.needs
    scores = scored(student, teachers, needs, BATCH)
    assert scores.support is not None
    assert scores.student_logits is not None
    held = scores.support.token_ids[scores.support.valid]
    assert OUT not in held
    assert len(held) == BATCH.num_tokens * (SIZE - 1)
    logits = scores.student_logits
    logits.retain_grad()
    per_token = loss(scores, BATCH)
    per_token.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[~scores.support.valid].any()
    if needs.support in (SupportKind.FULL_VOCABULARY, SupportKind.TEACHER_TOP_K):
        inside = torch.tensor([i for i in range(SIZE) if i != OUT])
        own, other = (full_logits(m, BATCH)[:, inside].log_softmax(-1) for m in (student.model, teachers.of("a").model))
        if needs.support is SupportKind.TEACHER_TOP_K:
            expected = (own.exp() * (own - other)).sum(-1)
        else:
            mid = torch.logaddexp(own, other) - torch.log(torch.tensor(2.0))
            expected = ((own.exp() * (own - mid)).sum(-1) + (other.exp() * (other - mid)).sum(-1)) / 2
        torch.testing.assert_close(per_token, expected, atol=1e-4, rtol=1e-4)


def test_a_sampled_one_is_no_loss_position(pair: tuple[Student, Teachers]) -> None:
    shared = pair[1].shared_vocabulary
    turn = Turn(
        prompt_ids=[5], completion_ids=[6, OUT, 7], sampled_logprobs=[0.0] * 3, finish_reason="stop", policy_version=0,
        reward=0.0,
    )  # fmt: skip
    made = Trajectory(task="a", group=0, seed=0, turns=[turn], reward=0.0, status=Status.SUCCESS)
    (batch,) = Collate(tasks=("a",), shared=shared, micro_batch_tokens=99)([made])
    assert batch.target_ids.tolist() == [6, 7]
    assert batch.input_ids.tolist() == [[5, 6, OUT, 7]]


def test_callbacks_see_no_candidate_of_it(pair: tuple[Student, Teachers]) -> None:
    student, teachers = pair
    request = replace(ask(Needs(), teachers), probe_at=torch.arange(4), probe_k=SIZE)
    found = Scorer(student=student, teachers=teachers).score(BATCH, request).probe
    assert found is not None
    for ids in (found.student_ids, found.teacher_ids):
        assert ids.shape == (4, SIZE - 1)
        assert OUT not in ids
    assert (found.teacher_mass < 1).all()
