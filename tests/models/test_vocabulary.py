"""When do two tokenizers mean the same by the same id."""

import pytest

from opdlight.errors import VocabularyError
from opdlight.models.vocabulary import shared_size


class Words:
    """A tokenizer that is nothing but its vocabulary."""

    def __init__(self, *words: str | None, **moved: int) -> None:
        self.vocabulary = {w: i for i, w in enumerate(words) if w is not None} | moved

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def size(student: Words, teacher: Words, student_width: int = 99, teacher_width: int = 99) -> int:
    return shared_size(student, student_width, teacher, teacher_width, "t")


def test_same_tokenizer() -> None:
    assert size(Words(*"abcd"), Words(*"abcd")) == 4


def test_tokens_that_only_one_model_added_at_the_end_are_not_shared() -> None:
    assert size(Words(*"abcd"), Words(*"ab")) == size(Words(*"ab"), Words(*"abcd")) == 2


def test_heads_that_are_narrower_than_the_tokenizer_limit_what_is_shared() -> None:
    assert size(Words(*"abcd"), Words(*"abcd"), student_width=3) == 3
    assert size(Words(*"abcd"), Words(*"abcd"), teacher_width=2) == 2


def test_padding_of_the_heads_is_not_shared() -> None:
    assert size(Words(*"abcd"), Words(*"abcd"), student_width=64, teacher_width=128) == 4


def test_an_id_that_neither_knows_is_harmless() -> None:
    assert size(Words("a", None, "c"), Words("a", None, "c")) == 3


def test_ids_that_differ_are_counted_and_the_first_are_shown() -> None:
    letters = "abcdefghij"
    with pytest.raises(VocabularyError, match=r"teacher 't' differ at 10 of 10 ids .*0: 'a' / 'j'.*4: 'e' / 'f'"):
        size(Words(*letters), Words(*reversed(letters)))


def test_an_id_below_the_limit_that_only_one_knows_differs() -> None:
    with pytest.raises(VocabularyError, match=r"differ at 1 of 3 ids .*1: 'b' / None"):
        size(Words(*"abc"), Words("a", None, "c"))


def test_nothing_shared() -> None:
    with pytest.raises(VocabularyError, match="they share none"):
        size(Words(), Words(*"ab"))
