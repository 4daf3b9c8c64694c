"""Ends of turns, arguments of chat templates, and text that spells control tokens, as the doctor sees them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from opdlight.doctor.examination import attempt
from opdlight.doctor.findings import Verdict
from opdlight.doctor.special_tokens import check_special_tokens
from opdlight.doctor.templates import check_plain_text, check_template, rows_of
from opdlight.models import Student
from tests.doctor.cases import Errand, errand, examined, patient, save, with_tokens
from tests.doctor.test_tokens import repaired
from tests.rollout.test_control_tokens import unigram
from tests.tiny_models import CHATML, tiny_tokenizer

THINKS = CHATML.replace(
    "assistant\n'", "assistant\n' + ('<think>\n\n</think>\n\n' if enable_thinking is false else '<think>\n')"
)


def ending(end: str, template: str = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(template)
    tokenizer.eos_token = end
    return tokenizer


@pytest.mark.parametrize(
    ("student", "teacher", "stops", "evidence"),
    [
        (
            "<|endoftext|>",
            "<|im_end|>",
            '["<|im_end|>"]',
            "student's template ends a turn, at <|im_end|> (2)",
        ),
        ("<|im_end|>", "<|endoftext|>", '["<|endoftext|>","<|im_end|>"]', "where the teacher ends, at <|endoftext|>"),
        ("<|endoftext|>", "<|endoftext|>", '["<|im_end|>"]', "at <|im_end|> (2)"),
    ],
)
def test_base_beside_instruct_is_repaired_by_a_stop(
    student: str, teacher: str, stops: str, evidence: str, tmp_path: Path
) -> None:
    one = patient(tmp_path, ending(student), ending(teacher))
    finding = examined(check_special_tokens, one)
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, f"sampling.stop='{stops}'")
    assert evidence in finding.evidence
    after = examined(check_special_tokens, repaired(one, finding))
    assert (after.verdict, after.repair) == (Verdict.PASS, "")
    assert "sampling.stop" in after.evidence


def test_a_teacher_without_a_template_teaches_its_own_end(tmp_path: Path) -> None:
    base = ending("<|endoftext|>")
    base.chat_template = None
    finding = examined(check_special_tokens, patient(tmp_path, teacher=base))
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, """sampling.stop='["<|endoftext|>"]'""")


def test_the_same_end_in_other_tokens_is_masked(tmp_path: Path) -> None:
    student = with_tokens(["<stop>"], CHATML.replace("<|im_end|>", "<stop>"))
    student.eos_token = "<stop>"
    one = patient(tmp_path, student)
    finding = examined(check_special_tokens, one)
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, """mask.tokens='["<stop>"]'""")
    after = examined(check_special_tokens, repaired(one, finding))
    assert (after.verdict, after.repair) == (Verdict.PASS, "")
    assert "left out of the loss by `mask`: <stop>" in after.evidence


def test_a_template_argument_makes_the_templates_equal(tmp_path: Path) -> None:
    student, teacher = tiny_tokenizer(THINKS), tiny_tokenizer(THINKS)
    off = {"enable_thinking": False}
    one = patient(tmp_path, student, teacher, task=errand(teacher_chat_template=off))
    assert examined(check_template, one).verdict is Verdict.WARN  # only the teacher's is told
    one.student.chat_template = off
    assert examined(check_template, one).verdict is Verdict.PASS


@pytest.mark.parametrize(("of", "key"), [
    ("student", "model.student.chat_template.enable_thinkin"),
    ("teacher", "task.tasks.errand.teacher_chat_template.enable_thinkin"),
])  # fmt: skip
def test_an_argument_that_the_template_does_not_know_fails(of: str, key: str, tmp_path: Path) -> None:
    wrong = {"enable_thinkin": False}
    one = patient(
        tmp_path, tiny_tokenizer(THINKS), tiny_tokenizer(THINKS),
        task=errand(teacher_chat_template=wrong if of == "teacher" else None),
    )  # fmt: skip
    one.student.chat_template = wrong if of == "student" else {}
    (pair,) = one.pairs
    (finding,) = attempt("chat template", "", lambda: check_template(one, pair))
    assert finding.verdict is Verdict.FAIL
    assert f"Unknown key `{key}`" in finding.evidence
    assert f"Did you mean `{key}g`?" in finding.evidence


def test_thoughts_that_the_prompt_opens_are_continued_in_the_growing_history(tmp_path: Path) -> None:
    student = Student(save(tmp_path, tiny_tokenizer(CHATML.replace("assistant\n'", "assistant\n<think>\n'"))))
    (opening,) = patient(tmp_path / "other").openings("errand")[:1]
    assert rows_of(student, opening, "<think>\nlook\n</think>\n\ngo north") == 1
    assert rows_of(student, opening, "go north") == 1


def test_plain_text_passes_and_says_what_prompts_spell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = patient(tmp_path)
    (finding,) = check_plain_text(one, "errand")
    assert (finding.verdict, finding.repair) == (Verdict.PASS, "")
    assert finding.evidence == "only the template writes the student's 3 control tokens"
    monkeypatch.setattr(Errand, "system_prompt", "End with <|im_end|>.")
    (finding,) = check_plain_text(patient(tmp_path / "again"), "errand")
    assert finding.verdict is Verdict.PASS
    assert "first prompts spell <|im_end|>" in finding.evidence


@pytest.mark.parametrize(("prompt", "verdict"), [("End well.", Verdict.WARN), ("End with </s>.", Verdict.FAIL)])
def test_a_tokenizer_that_cannot_write_plain_text_is_named(
    prompt: str, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one: Any = patient(tmp_path)
    one.student.tokenizer = unigram()
    monkeypatch.setattr(Errand, "system_prompt", prompt)
    (finding,) = check_plain_text(one, "errand")
    assert finding.verdict is verdict
    assert "ends as env_error" in finding.evidence
