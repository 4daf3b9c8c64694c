r"""Extraction of the answer: `\boxed{}` after the thinking, nothing else unless asked for."""

import pytest

from opdlight.envs.question import extract_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5}", "5"), (r"<think>\boxed{4}</think>\boxed{5}", "5"), (r"\boxed{4} no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed {5}", "5"), (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{4} \boxed{5", "4"), (r"\boxed{a\}b}", r"a\}b"), (r"\boxed{}", None), (r"\boxed{ }", None),
        ("5", None),
        (r"<think>\boxed{5}", None), (r"\\boxed{5}", "5"), (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{a{b} \boxed{5}", "5"), (r"{}}\boxed{5}", "5"),
        (r"<think>\boxed{5}</think>", None), ("boxed{5}", None), ("", None),
    ],
)  # fmt: skip
def test_boxed_answers(text: str, expected: str | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sum is 12 + 7 = 19.", "19"), (r"\boxed{5} and 6", "5"), ("-3", "-3"), ("about 1,234.5, yes", "1,234.5"),
        ("<think>7</think>none", None), ("<think>7", None), ("x2", None), ("12-5", "5"), ("8 - -5", "-5"),
    ],
)  # fmt: skip
def test_last_number_answers(text: str, expected: str | None) -> None:
    assert extract_answer(text, "boxed_or_last_number") == expected


def test_reading_takes_time_in_proportion_to_the_length() -> None:
    assert last_boxed("\\boxed{" * 100_000) is None  # a quadratic scan would take minutes
    assert last_boxed("\\boxed{" * 100_000 + "7}") == "7"
