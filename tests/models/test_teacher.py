"""Frozen teachers: scores, routing by task, one copy a checkpoint, and equal models."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from opdlight.errors import ConfigError, VocabularyError
from opdlight.losses import Loss, Needs, SampledToken, SupportKind, SupportMatching
from opdlight.models import Student, Teacher, Teachers
from opdlight.types import SharedVocabulary, TeacherScores
from tests.models.architectures import build, full_logits, random_batch, save
from tests.models.score_cases import ask, scored
from tests.tiny_models import tiny_tokenizer

SHARED = len(tiny_tokenizer())


def expected_top_k(logits: Tensor, k: int, temperature: float, limit: int) -> tuple[Tensor, Tensor]:
    logprobs = (logits.double() / temperature).log_softmax(-1)
    best = logprobs[:, :limit].sort(-1, descending=True)
    return best.indices[:, :k], best.values[:, :k].float()


def asks(k: int | None, sampled: bool) -> Needs:
    """The teacher's top-K of this size, if any."""
    return Needs(
        support=None if k is None else SupportKind.TEACHER_TOP_K, k=k or 0, sampled=sampled, normaliser=k is not None
    )


def test_score_is_the_top_of_the_full_distribution(tmp_path: Path) -> None:
    teacher, batch = Teacher(save(tmp_path)), random_batch([12, 7, 9])
    got = teacher.score(batch, ask(asks(5, True), shared=200, temperature=1.4))
    support, token = got.support, got.sampled
    logits = full_logits(build("llama"), batch)
    ids, logprobs = expected_top_k(logits, 5, 1.4, 200)
    assert support is not None
    assert torch.equal(support.token_ids, ids)
    assert support.valid.all()
    torch.testing.assert_close(support.teacher_logprobs, logprobs, atol=1e-4, rtol=1e-4)
    own = (logits / 1.4).log_softmax(-1).gather(1, batch.target_ids[:, None]).squeeze(1)
    torch.testing.assert_close(token, own, atol=1e-4, rtol=1e-4)


def test_only_what_is_asked_is_scored(tmp_path: Path) -> None:
    teacher, batch = Teacher(save(tmp_path)), random_batch([9])
    token = teacher.score(batch, ask(asks(4, True), shared=300)).sampled
    assert teacher.score(batch, ask(asks(None, False), shared=300)) == TeacherScores()
    assert teacher.score(batch, ask(asks(4, False), shared=300)).sampled is None
    alone = teacher.score(batch, ask(asks(None, True), shared=300))
    assert alone.support is None
    torch.testing.assert_close(alone.sampled, token)


def test_teacher_is_frozen_and_stays_out_of_checkpoints_and_optimizers(tmp_path: Path) -> None:
    student = Student(save(tmp_path / "student", "gpt2"))
    teachers = Teachers({"a": save(tmp_path / "teacher", "gpt2", attn_pdrop=0.5, resid_pdrop=0.5)}, student).train()
    assert not list(teachers.parameters())
    assert not teachers.state_dict()
    support = teachers.score(random_batch([9]), ask(asks(4, False), teachers)).support
    again = teachers.score(random_batch([9]), ask(asks(4, False), teachers)).support
    assert support is not None
    assert again is not None
    assert not support.teacher_logprobs.requires_grad
    assert torch.equal(support.teacher_logprobs, again.teacher_logprobs)  # no dropout in train mode
    assert not any(p.requires_grad for p in teachers.of("a").model.parameters())


def test_moving_the_module_moves_the_hidden_model(tmp_path: Path) -> None:
    folder = save(tmp_path)
    teachers = Teachers({"a": folder}, Student(folder)).double()
    assert next(teachers.of("a").model.parameters()).dtype is torch.float64


def test_one_checkpoint_is_loaded_once_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = save(tmp_path / "one"), save(tmp_path / "other", seed=1)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    spelt = {"a": one, "b": one + "/", "c": "./one", "d": str(tmp_path / "link"), "e": other}
    teachers = Teachers(spelt, Student(one))
    assert len(teachers.distinct) == 2
    assert all(teachers.of(task) is teachers.of("a") for task in "bcd")
    assert teachers.of("e") is not teachers.of("a")


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("k", [4, None])
def test_each_row_is_scored_by_the_teacher_of_its_task_only(k: int | None, sampled: bool, tmp_path: Path) -> None:
    first, second = save(tmp_path / "0", seed=0), save(tmp_path / "1", seed=1)
    teachers = Teachers({"a": first, "b": second, "c": first}, Student(first))
    batch = random_batch([12, 7, 9, 5, 14, 6], tasks=("a", "b", "c"))
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for task, rows in seen.items():
        model = teachers.of(task).model
        model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs, rows=rows: rows.append(kwargs["input_ids"].shape), with_kwargs=True
        )
    got = teachers.score(batch, ask(asks(k, sampled), teachers))
    support, token = got.support, got.sampled
    # rows 0, 2, 3, 5 are of a and c; rows 1, 4 of b: one pass each, no wider than its longest row
    if k is not None or sampled:
        assert seen == {"a": [(4, 12)], "b": [(2, 14)]}
    own = [full_logits(build("llama", seed), batch) for seed in (0, 1)]
    logits = torch.where((batch.task_index == 1)[:, None], own[1], own[0])
    if k is not None:
        assert support is not None
        ids, logprobs = expected_top_k(logits, k, 1.0, SHARED)
        assert torch.equal(support.token_ids, ids)
        torch.testing.assert_close(support.teacher_logprobs, logprobs, atol=1e-4, rtol=1e-4)
    if sampled:
        expected = logits.log_softmax(-1).gather(1, batch.target_ids[:, None]).squeeze(1)
        torch.testing.assert_close(token, expected, atol=1e-4, rtol=1e-4)
    assert (support is None) == (k is None)
    assert (token is None) == (not sampled)


def test_batch_without_a_loss_position(tmp_path: Path) -> None:
    first = save(tmp_path / "0")
    teachers = Teachers({"a": first, "b": save(tmp_path / "1", seed=1)}, Student(first))
    batch = random_batch([2, 2], tasks=("a", "b"))
    got = teachers.score(batch, ask(asks(4, True), teachers))
    support, token = got.support, got.sampled
    assert support is not None
    assert token is not None
    assert support.token_ids.shape == (0, 4)
    assert token.shape == (0,)


def test_support_never_names_an_id_that_the_student_lacks(tmp_path: Path) -> None:
    wide, narrow = save(tmp_path / "wide", width=400), save(tmp_path / "narrow", seed=1, width=SHARED - 20)
    for teacher, student in ((wide, narrow), (narrow, wide)):
        teachers = Teachers({"a": teacher}, Student(student))
        assert teachers.shared_vocabulary == SharedVocabulary(SHARED - 20)
        support = teachers.score(random_batch([30], ids=200), ask(asks(20, False), teachers)).support
        assert support is not None
        assert support.token_ids.max() < SHARED - 20


def test_padding_of_both_heads_is_never_in_a_support(tmp_path: Path) -> None:
    folder = save(tmp_path, width=SHARED + 70)
    teachers = Teachers({"a": folder}, Student(folder))
    support = teachers.score(random_batch([40]), ask(asks(60, False), teachers)).support
    assert support is not None
    assert teachers.shared_vocabulary == SharedVocabulary(SHARED)
    assert support.token_ids.max() < SHARED


def test_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    student, folder = save(tmp_path / "student"), Path(save(tmp_path / "teacher"))
    tokenizer = tiny_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace("<|im_start|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text((Path(student) / "tokenizer_config.json").read_text())
    with pytest.raises(VocabularyError, match=r"differ at 1 of .*<\|im_start\|>"):
        Teachers({"a": str(folder)}, Student(student))


def test_adapter_folder_is_merged_into_its_base(tmp_path: Path) -> None:
    base = save(tmp_path / "base")
    tuned = get_peft_model(build("llama"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"  # beside the adapter, wherever both lie
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    batch = random_batch([11, 8])
    teacher = Teacher(str(tmp_path / "adapter"))
    support = teacher.score(batch, ask(asks(5, False), shared=300)).support
    ids, logprobs = expected_top_k(full_logits(tuned.eval(), batch), 5, 1.0, 300)
    assert support is not None
    assert torch.equal(support.token_ids, ids)
    torch.testing.assert_close(support.teacher_logprobs, logprobs, atol=1e-4, rtol=1e-4)
    plain = Teacher(base).score(batch, ask(asks(5, False), shared=300)).support
    assert plain is not None
    assert not torch.allclose(plain.teacher_logprobs, logprobs, atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    "loss",
    [
        SupportMatching(k=8),
        SupportMatching(support="student_top_k_and_sampled", k=8),
        SupportMatching(support="teacher_nucleus", nucleus=0.8, k=8),
        SupportMatching(support="full_vocabulary", divergence="jsd", mix=0.5),
        SupportMatching(k=8, outside="sampled_tail", divergence="stop_gradient"),
        SampledToken(),
        SampledToken(gamma=1.0, baseline="expected", k=8),
    ],
    ids=str,
)
def test_student_that_is_its_teacher_has_nothing_to_learn(architecture: str, loss: Loss, tmp_path: Path) -> None:
    folder = save(tmp_path, architecture)
    student, batch = Student(folder).double(), random_batch([12, 9])
    per_token = loss(scored(student, Teachers({"a": folder}, student).double(), loss.needs, batch), batch)
    assert per_token.abs().max() < 1e-12
    per_token.sum().backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-9


def test_student_that_is_not_its_teacher_has(tmp_path: Path) -> None:
    student = Student(save(tmp_path / "s"))
    batch, teachers = random_batch([12, 9]), Teachers({"a": save(tmp_path / "t", seed=1)}, student)
    for loss in (SupportMatching(k=8), SampledToken()):
        student.zero_grad()
        loss(scored(student, teachers, loss.needs, batch), batch).sum().backward()
        assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) > 1e-3


def test_unknown_task_and_no_teacher_are_refused(tmp_path: Path) -> None:
    student = Student(save(tmp_path))
    with pytest.raises(ConfigError, match="teacher for at least one task"):
        Teachers({}, student)
    with pytest.raises(ConfigError, match="one of a, but got 'z'"):
        Teachers({"a": str(tmp_path)}, student).score(random_batch([6], ("z",)), ask(asks(4, False)))


def test_what_the_student_names_is_scored_by_the_teacher_of_the_task(tmp_path: Path) -> None:
    first, second = save(tmp_path / "0"), save(tmp_path / "1", seed=1)
    student = Student(save(tmp_path / "2", seed=2))
    teachers = Teachers({"a": first, "b": second}, student)
    batch = random_batch([12, 7, 9, 5], tasks=("a", "b"))
    loss = SupportMatching(support="student_top_k_and_sampled", k=6, outside="tail_bucket")
    scores = scored(student, teachers, loss.needs, batch)
    assert scores.support is not None
    own = full_logits(build("llama", 2), batch)[:, :SHARED].topk(6).indices
    assert torch.equal(scores.support.token_ids[:, :6], own)
    assert torch.equal(scores.support.token_ids[:, 6], batch.target_ids)
    logits = [full_logits(build("llama", seed), batch) for seed in (0, 1)]
    expected = torch.where((batch.task_index == 1)[:, None], logits[1], logits[0]).log_softmax(-1)
    torch.testing.assert_close(
        scores.support.teacher_logprobs, expected.gather(1, scores.support.token_ids), atol=1e-4, rtol=1e-4
    )


def test_full_vocabulary_and_entropy_of_the_teacher(tmp_path: Path) -> None:
    student = Student(save(tmp_path / "s"))
    teachers, batch = Teachers({"a": save(tmp_path / "t", seed=1)}, student), random_batch([12, 9])
    logprobs = (full_logits(build("llama", 1), batch) / 1.3).log_softmax(-1)
    needs = Needs(support=SupportKind.FULL_VOCABULARY, normaliser=True, teacher_entropy=True)
    found = teachers.score(batch, ask(needs, teachers, temperature=1.3))
    assert found.support is not None
    torch.testing.assert_close(found.support.teacher_logprobs, logprobs[:, :SHARED], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropy, -(logprobs.exp() * logprobs).sum(-1), atol=1e-4, rtol=1e-4)
    alone = teachers.score(batch, ask(Needs(teacher_entropy=True), teachers, temperature=1.3))
    torch.testing.assert_close(alone.entropy, found.entropy)
    loss = SupportMatching(support="full_vocabulary")
    scores = scored(student, teachers, loss.needs, batch)
    assert scores.student_logits is not None
    own = full_logits(student.model, batch)[:, :SHARED]
    torch.testing.assert_close(scores.student_logits, own, atol=1e-4, rtol=1e-4)
