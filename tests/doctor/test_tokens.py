"""Vocabularies, special tokens and templates: a good pair passes, each broken one is named and repaired."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.doctor.examination import attempt
from opdlight.doctor.findings import Finding, Verdict
from opdlight.doctor.patient import Patient
from opdlight.doctor.special_tokens import check_special_tokens, markers
from opdlight.doctor.templates import check_history, check_template
from opdlight.doctor.vocabularies import check_vocabulary, token_bytes
from tests.doctor.cases import STRIPS_THINK, Errand, edited, errand, examined, patient, with_tokens
from tests.tiny_models import CHATML, tiny_tokenizer


def swap(core: dict[str, Any]) -> None:
    vocabulary = core["model"]["vocab"]
    vocabulary["j"], vocabulary["q"] = vocabulary["q"], vocabulary["j"]  # no template writes them


def no_byte_level(core: dict[str, Any]) -> None:
    core["decoder"] = None


def repaired(one: Patient, finding: Finding) -> Patient:
    """The patient after the proposed line was pasted behind `python -m opdlight.train`."""
    cfg = compose("train", TrainConfig, ["task=sums", *shlex.split(finding.repair)])
    mask, tokenizer = instantiate(cfg.mask), one.student.tokenizer
    stop = instantiate(cfg.sampling).resolve(tokenizer).stop
    return replace(one, mask=mask.resolve(tokenizer), mask_tokens=list(cfg.mask.tokens), stop=stop)


def test_a_token_is_the_bytes_that_it_writes() -> None:
    byte_level = tiny_tokenizer()
    found = token_bytes(byte_level)
    for text in ("go to", " north\n", "é→\x00"):
        ids = byte_level(text, add_special_tokens=False)["input_ids"]
        assert b"".join(found[i] for i in ids) == text.encode()
    assert found[byte_level.eos_token_id] == b"<|im_end|>"


def test_sentencepiece_spells_blanks_and_bytes_in_its_own_way() -> None:
    core = Tokenizer(models.BPE(vocab={"▁go": 0, "<0x0A>": 1, "▁": 2, "Ġ": 3}, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    found = token_bytes(PreTrainedTokenizerFast(tokenizer_object=core))
    assert [found[i] for i in range(4)] == [b" go", b"\n", b" ", "Ġ".encode()]


def test_the_same_vocabulary_passes(tmp_path: Path) -> None:
    finding = examined(check_vocabulary, patient(tmp_path))
    assert (finding.verdict, finding.repair) == (Verdict.PASS, "")
    size = len(tiny_tokenizer())
    assert f"{size} shared ids" in finding.evidence
    assert f"logits {size} / {size} wide" in finding.evidence


def test_many_ids_that_mean_something_else_fail(tmp_path: Path) -> None:
    finding = examined(check_vocabulary, patient(tmp_path, teacher=edited(no_byte_level)))
    assert finding.verdict is Verdict.FAIL
    assert "ids have the same spelling but other bytes" in finding.evidence
    assert "task.tasks.errand.teacher=" in finding.repair


def test_a_few_ids_that_mean_something_else_are_left_out(tmp_path: Path) -> None:
    finding = examined(check_vocabulary, patient(tmp_path, teacher=edited(swap)))
    assert finding.verdict is Verdict.WARN
    assert f"2 of {len(tiny_tokenizer())} ids" in finding.evidence
    assert "'j' / 'q'" in finding.evidence
    assert f"{len(tiny_tokenizer()) - 2} shared ids" in finding.evidence


def test_an_id_of_the_template_that_means_something_else_fails(tmp_path: Path) -> None:
    def rename(core: dict[str, Any]) -> None:
        for token in core["added_tokens"]:
            token["content"] = token["content"].replace("im_start", "other")
        vocabulary = core["model"]["vocab"]
        vocabulary["<|other|>"] = vocabulary.pop("<|im_start|>")

    finding = examined(check_vocabulary, patient(tmp_path, teacher=edited(rename)))
    assert finding.verdict is Verdict.FAIL
    assert "a chat template or an end of sequence uses 1" in finding.evidence


def test_ids_that_the_teacher_cannot_read_are_named(tmp_path: Path) -> None:
    more = examined(check_vocabulary, patient(tmp_path / "a", student=with_tokens(["<extra>"])))
    assert more.verdict is Verdict.WARN
    assert "no embedding for '<extra>'" in more.evidence
    template = CHATML.replace("<|im_start|>", "<extra>")
    always = examined(check_vocabulary, patient(tmp_path / "b", student=with_tokens(["<extra>"], template)))
    assert always.verdict is Verdict.FAIL
    assert "which all prompts contain" in always.evidence
    fine = examined(check_vocabulary, patient(tmp_path / "c", teacher=with_tokens(["<extra>"])))
    assert fine.verdict is Verdict.PASS


def test_the_same_special_tokens_pass(tmp_path: Path) -> None:
    finding = examined(check_special_tokens, patient(tmp_path))
    assert (finding.verdict, finding.repair) == (Verdict.PASS, "")
    assert "end <|im_end|> (2) / <|im_end|> (2)" in finding.evidence
    assert markers(tiny_tokenizer()) == ["<|im_start|>", "<|im_end|>"]


def test_a_student_without_think_tokens_fails_and_the_mask_repairs_it(tmp_path: Path) -> None:
    one = patient(tmp_path, teacher=with_tokens(["<think>", "</think>"]), mask_tokens=[7])
    finding = examined(check_special_tokens, one)
    assert finding.verdict is Verdict.FAIL
    assert finding.repair == """mask.tokens='[7,"<think>","</think>"]'"""
    assert "/ <think> (" in finding.evidence
    assert examined(check_special_tokens, repaired(one, finding)).verdict is Verdict.PASS


def test_tool_tokens_that_nobody_asks_for_only_warn(tmp_path: Path) -> None:
    one = patient(tmp_path, teacher=with_tokens(["<tool_call>"]))
    finding = examined(check_special_tokens, one)
    assert finding.verdict is Verdict.WARN
    assert finding.repair == """mask.tokens='["<tool_call>"]'"""
    assert examined(check_special_tokens, repaired(one, finding)).verdict is Verdict.PASS


def test_equal_templates_pass(tmp_path: Path) -> None:
    finding = examined(check_template, patient(tmp_path))
    assert finding.verdict is Verdict.PASS
    assert "8 conversations" in finding.evidence


@pytest.mark.parametrize(
    ("template", "evidence"),
    [
        (CHATML.replace("'\n' + m.content", "': ' + m.content"), "differs from character 16 on"),
        (STRIPS_THINK, "user+assistant+user differs"),
        (None, "the teacher has no chat template"),
        ("{{ raise_exception('no') }}", "differs from character 1 on"),
    ],
)
def test_another_template_of_the_teacher_warns(template: str | None, evidence: str, tmp_path: Path) -> None:
    finding = examined(check_template, patient(tmp_path, teacher=tiny_tokenizer(template)))
    assert finding.verdict is Verdict.WARN
    assert evidence in finding.evidence
    assert finding.repair


def test_the_same_text_in_other_tokens_warns(tmp_path: Path) -> None:
    def no_merges(core: dict[str, Any]) -> None:
        core["model"]["merges"] = []

    one = patient(tmp_path, teacher=edited(no_merges))
    assert examined(check_vocabulary, one).verdict is Verdict.PASS
    finding = examined(check_template, one)
    assert finding.verdict is Verdict.WARN
    assert "has other tokens" in finding.evidence


def test_a_student_without_a_template_fails(tmp_path: Path) -> None:
    one = patient(tmp_path, student=tiny_tokenizer(None))
    finding = examined(check_template, one)
    assert finding.verdict is Verdict.FAIL
    assert "model.student.model=" in finding.repair
    (other,) = attempt("growing history", "errand", lambda: check_history(one, "errand"))
    assert other.verdict is Verdict.FAIL
    assert "could not be checked: Expected `model.student`" in other.evidence


def test_a_history_that_only_grows_is_one_row(tmp_path: Path) -> None:
    (finding,) = check_history(patient(tmp_path), "errand")
    assert finding.verdict is Verdict.PASS
    assert "1 row (plain), 1 row (with <think>)" in finding.evidence


def test_a_template_that_strips_thoughts_is_said_to_split_rows(tmp_path: Path) -> None:
    one = patient(tmp_path, student=tiny_tokenizer(STRIPS_THINK))
    (finding,) = check_history(one, "errand")
    assert finding.verdict is Verdict.WARN
    assert "4 turns make 1 row (plain), 4 rows (with <think>)" in finding.evidence


def test_fresh_prompts_and_single_turns_need_no_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = patient(tmp_path, student=tiny_tokenizer(STRIPS_THINK))
    monkeypatch.setattr(Errand, "fresh_prompt", True)
    (finding,) = check_history(one, "errand")
    assert (finding.verdict, "up to 3 rows" in finding.evidence) == (Verdict.PASS, True)
    monkeypatch.setattr(Errand, "max_turns", 1)
    (finding,) = check_history(replace(one, tasks={"errand": errand()}), "errand")
    assert finding.evidence == "one turn, so one row a trajectory"
