"""The student on several architectures: hidden states, gradients, LoRA, weights for the engine, saved folders."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdlight.errors import CheckpointError, ConfigError
from opdlight.losses import Needs, SupportMatching, token_mean
from opdlight.models import ScoreRequest, Student
from opdlight.models.backbone import check_head
from opdlight.models.scorer import student_scores
from opdlight.types import SharedVocabulary, Support, TeacherScores
from tests.models.architectures import ARCHITECTURES, build, full_logits, random_batch, save
from tests.tiny_models import tiny_tokenizer

LORA = {"r": 4, "lora_alpha": 8}
CONV1D = {"fan_in_fan_out": True}  # GPT-2 stores its weights transposed; peft warns if not told
every_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def random_support(n: int, k: int = 6) -> Support:
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(300, generator=generator)[:k] for _ in range(n)])
    logprobs = torch.randn(n, k, generator=generator).log_softmax(-1)
    return Support(
        token_ids=ids,
        teacher_logits=logprobs,
        teacher_normaliser=torch.zeros(len(ids)),
        valid=torch.ones_like(ids).bool(),
    )


def loss_of(student: Student, sparse: bool = True) -> torch.Tensor:
    """The token mean of local support matching on a padded batch, through the sparse head or through all logits."""
    batch = random_batch([12, 7, 9])
    support, loss = random_support(batch.num_tokens), SupportMatching(k=6)
    request = ScoreRequest(needs=loss.needs, shared=SharedVocabulary(300), temperature=0.8)
    teacher = TeacherScores(support=support)
    scores = student_scores(student.hidden(batch), student.head(), batch.target_ids, request, teacher)
    if not sparse:
        logits = full_logits(student.model, batch).gather(1, support.token_ids) / 0.8
        torch.testing.assert_close(scores.student_logits, logits, atol=1e-4, rtol=1e-4)
        object.__setattr__(scores, "student_logits", logits)
    return token_mean(loss(scores, batch), batch.global_tokens)


def scramble_adapters(student: Student) -> None:
    """LoRA starts as the identity; make it do something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in student.trainable_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)


@every_architecture
def test_logits_of_padded_rows_equal_the_models_own(architecture: str, tmp_path: Path) -> None:
    student = Student(save(tmp_path, architecture))
    batch = random_batch([12, 7, 9])
    got = student.head().logits(student.hidden(batch))
    torch.testing.assert_close(got, full_logits(student.model, batch), atol=1e-4, rtol=1e-4)


@every_architecture
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sparse_loss_has_the_gradients_of_full_logits(architecture: str, checkpointing: bool, tmp_path: Path) -> None:
    student = Student(save(tmp_path, architecture), gradient_checkpointing=checkpointing).double()
    sparse, full = loss_of(student), loss_of(student, sparse=False)
    torch.testing.assert_close(sparse, full)
    weights = student.trainable_parameters()
    mine = torch.autograd.grad(sparse, weights, allow_unused=True)
    theirs = torch.autograd.grad(full, weights, allow_unused=True)
    assert len(mine) == len(list(student.model.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    assert any(a is not None and a.any() for a in mine)


def test_bfloat16_scores_are_close_and_in_float32(tmp_path: Path) -> None:
    folder = save(tmp_path)
    fine, coarse = Student(folder), Student(folder, dtype="bfloat16")
    assert {p.dtype for p in coarse.parameters()} == {torch.bfloat16}
    loss = loss_of(coarse)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(loss_of(fine).item(), rel=0.05)


def test_only_what_is_needed_is_scored(tmp_path: Path) -> None:
    student, batch = Student(save(tmp_path)), random_batch([8])
    needs = Needs(sampled=True, normaliser=True)
    request = ScoreRequest(needs=needs, shared=SharedVocabulary(300), temperature=1.3)
    scores = student_scores(student.hidden(batch), student.head(), batch.target_ids, request, TeacherScores())
    full = full_logits(student.model, batch) / 1.3
    assert scores.student_logits is None
    assert scores.student_sampled is not None
    torch.testing.assert_close(scores.student_normaliser, full.logsumexp(-1))
    expected = full.log_softmax(-1).gather(1, batch.target_ids[:, None]).squeeze(1)
    torch.testing.assert_close(scores.student_sampled, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2"])
def test_named_weights_rebuild_the_model_through_its_own_names(architecture: str, tmp_path: Path) -> None:
    student = Student(save(tmp_path, architecture))
    names = [name for name, _ in student.named_weights()]
    assert len(names) == len(set(names)) == len(list(student.model.parameters()))  # tied weights come once
    assert ("lm_head.weight" in names) == (architecture == "llama")
    assert all(not w.requires_grad for _, w in student.named_weights())
    fresh = build(architecture, seed=9)
    fresh.load_state_dict(dict(student.named_weights()), strict=False)
    fresh.tie_weights()
    batch = random_batch([10])
    torch.testing.assert_close(full_logits(fresh, batch), full_logits(student.model, batch))


def test_lora_trains_adapters_only_and_starts_as_the_base(tmp_path: Path) -> None:
    folder = save(tmp_path)
    base, student = Student(folder), Student(folder, lora=LORA)
    torch.testing.assert_close(loss_of(student), loss_of(base))
    loss_of(student).backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    assert sum(p.numel() for p in student.trainable_parameters()) < sum(p.numel() for p in base.parameters()) / 2


def test_lora_adapters_of_a_bfloat16_model_are_float32(tmp_path: Path) -> None:
    student = Student(save(tmp_path), dtype="bfloat16", lora=LORA)
    assert {p.dtype for p in student.trainable_parameters()} == {torch.float32}
    assert loss_of(student).isfinite()
    merged = {name: w.dtype for name, w in student.named_weights()}  # on the grid of bfloat16 adapters would be lost
    assert merged["model.layers.0.self_attn.q_proj.weight"] is torch.float32
    assert merged["model.embed_tokens.weight"] is torch.bfloat16


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [("llama", {}), ("llama-tied", {}), ("gpt2", CONV1D), ("llama", {"use_dora": True})],
    ids=["llama", "tied", "gpt2", "dora"],
)
def test_merged_weights_compute_what_the_adapters_compute(architecture: str, extra: dict, tmp_path: Path) -> None:
    student = Student(save(tmp_path, architecture), lora={**LORA, **extra})
    scramble_adapters(student)
    before = {name: w.clone() for name, w in student.state_dict().items()}
    fresh = build(architecture, seed=9)
    missing, unexpected = fresh.load_state_dict(dict(student.named_weights()), strict=False)
    fresh.tie_weights()
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    batch = random_batch([10, 6])
    expected = student.head().logits(student.hidden(batch))
    assert (expected - full_logits(build(architecture), batch)).abs().max() > 0.01  # the adapters do something
    torch.testing.assert_close(full_logits(fresh, batch), expected, atol=1e-4, rtol=1e-4)
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, before[name]), name  # training is not disturbed


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("llama", None),
        ("llama-tied", None),
        ("gpt2", None),
        ("llama", LORA),
        ("llama-tied", LORA),
        ("gpt2", LORA | CONV1D),
    ],
    ids=["llama", "tied", "gpt2", "llama-lora", "tied-lora", "gpt2-lora"],
)
def test_saved_folder_is_the_model_with_its_tokenizer(architecture: str, lora: dict | None, tmp_path: Path) -> None:
    student = Student(save(tmp_path / "base", architecture), lora=lora)
    if lora:
        scramble_adapters(student)
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("from an earlier save")
    student.save(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]  # nothing temporary stays
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in target.iterdir()}
    assert not (target / "old.txt").exists()
    assert not (target / "adapter_config.json").exists()
    batch = random_batch([10, 6])
    loaded = AutoModelForCausalLM.from_pretrained(target).eval()
    expected = student.head().logits(student.hidden(batch))
    torch.testing.assert_close(full_logits(loaded, batch), expected, atol=1e-4, rtol=1e-4)
    text = "go to north, then take 3"
    assert AutoTokenizer.from_pretrained(target)(text).input_ids == tiny_tokenizer()(text).input_ids
    loss_of(student).backward()  # and training goes on


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(save(tmp_path / "base"))
    student.save(tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(student.model, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        student.save(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    "lora",
    [{"rank": 4}, {"r": 0}, {"r": 4, "target_modules": ["nowhere"]}, {"r": 4, "modules_to_save": ["lm_head"]}],
    ids=["misspelt", "zero", "no-such-module", "modules-to-save"],
)
def test_wrong_lora_arguments_name_the_key(lora: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Expected `model\.student\.lora"):
        Student(save(tmp_path), lora=lora)


def test_logits_that_the_head_does_not_explain_are_refused() -> None:
    model = build("llama")
    check_head(model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(CheckpointError, match="computes logits that its hidden states and LM head do not give"):
        check_head(model)


def test_unknown_dtype_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`model\.dtype` to be one of float32, bfloat16, but got 'fp8'"):
        Student(save(tmp_path), dtype="fp8")
