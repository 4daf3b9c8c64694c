"""When do two tokenizers mean the same by the same id."""

import logging

import pytest
import torch

from opdlight.errors import VocabularyError
from opdlight.models.vocabulary import FEW, check_shared, compare_vocabularies
from opdlight.types import SharedVocabulary


class Words:
    """A tokenizer that is nothing but its vocabulary."""

    def __init__(self, *words: str | None) -> None:
        self.vocabulary = {w: i for i, w in enumerate(words) if w is not None}

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def shared(student: Words, teacher: Words, student_width: int = 9999, teacher_width: int = 9999) -> SharedVocabulary:
    return compare_vocabularies(student, student_width, teacher, teacher_width)


def many(count: int, *changed: int) -> Words:
    """`count` words, of which some have another name."""
    return Words(*(f"new {i}" if i in changed else f"word {i}" for i in range(count)))


def test_same_tokenizer() -> None:
    assert shared(Words(*"abcd"), Words(*"abcd")) == SharedVocabulary(4)


def test_tokens_that_only_one_model_added_at_the_end_are_not_shared() -> None:
    assert shared(Words(*"abcd"), Words(*"ab")) == shared(Words(*"ab"), Words(*"abcd")) == SharedVocabulary(2)


def test_heads_that_are_narrower_than_the_tokenizer_limit_what_is_shared() -> None:
    assert shared(Words(*"abcd"), Words(*"abcd"), student_width=3) == SharedVocabulary(3)
    assert shared(Words(*"abcd"), Words(*"abcd"), teacher_width=2) == SharedVocabulary(2)


def test_padding_of_the_heads_is_not_shared() -> None:
    assert shared(Words(*"abcd"), Words(*"abcd"), student_width=64, teacher_width=128) == SharedVocabulary(4)


def test_an_id_that_neither_knows_is_harmless() -> None:
    assert shared(Words("a", None, "c"), Words("a", None, "c")) == SharedVocabulary(3)


def test_an_id_that_differs_or_that_only_one_knows_is_left_out() -> None:
    assert shared(Words(*"abc"), Words(*"axc")) == SharedVocabulary(3, frozenset({1}))
    assert shared(Words(*"abc"), Words("a", None, "c")) == SharedVocabulary(3, frozenset({1}))


def test_a_few_differing_ids_are_a_warning_that_names_them(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = many(770), many(770, 700)
    with caplog.at_level(logging.WARNING):
        check_shared(shared(ours, theirs), ours, theirs, set(), "t")
    assert "teacher 't' differ at 1 of 770 ids (id: student / teacher): 700: 'word 700' / 'new 700'" in caplog.text
    assert "left out of every support and of the loss" in caplog.text
    caplog.clear()
    check_shared(shared(ours, ours), ours, ours, {700}, "t")
    assert not caplog.text


@pytest.mark.parametrize(
    ("count", "changed", "in_use", "reason"),
    [
        (770, 8, set(), "differ at 8 of 770 .*0: 'word 0' / 'new 0'.*another vocabulary"),
        (9_000, FEW + 1, set(), f"differ at {FEW + 1} of 9000 .*another vocabulary"),
        (770, 7, {6, 300}, "a chat template or an end of sequence uses 6, which"),
    ],
)
def test_more_than_a_few_or_one_in_use_are_an_error(count: int, changed: int, in_use: set[int], reason: str) -> None:
    ours, theirs = many(count), many(count, *range(changed))
    found = shared(ours, theirs)
    assert len(found) == count - changed
    with pytest.raises(VocabularyError, match=reason):
        check_shared(found, ours, theirs, in_use, "t")


def test_nothing_shared() -> None:
    with pytest.raises(VocabularyError, match="they share no id"):
        check_shared(shared(Words(), Words(*"ab")), Words(), Words(*"ab"), set(), "t")


def test_what_several_teachers_share_leaves_out_what_any_of_them_does() -> None:
    both = SharedVocabulary(9, frozenset({1, 8})) & SharedVocabulary(6, frozenset({2}))
    assert both == SharedVocabulary(6, frozenset({1, 2}))
    assert both.holds(torch.arange(8)).tolist() == [True, False, False, True, True, True, False, False]
    assert both.only(torch.zeros(1, 9)).tolist() == [[0.0, -torch.inf, -torch.inf, 0.0, 0.0, 0.0]]
