"""Special-token masks: which tokens of one response carry no loss."""

import random

import pytest

from opdlight.losses import SpecialTokenMask


class Letters:
    """A tokenizer whose tokens are letters, `<think>` and an unknown token."""

    unk_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {"?": 0, "<think>": 1, "a": 2, "b": 3, "c": 4, "<": 5, "t": 6, ">": 7}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.get_vocab().get(letter, 0) for letter in text]


def dropped(mask: SpecialTokenMask, ids: list[int]) -> list[int]:
    return [i for i, keep in enumerate(mask.loss_mask(ids)) if not keep]


def test_first_occurrence_only() -> None:
    assert dropped(SpecialTokenMask(tokens=[7]), [1, 7, 2, 7]) == [1]


def test_every_occurrence() -> None:
    assert dropped(SpecialTokenMask(tokens=[7], occurrence="every"), [1, 7, 2, 7]) == [1, 3]


def test_a_sequence_is_dropped_whole_and_only_as_a_whole() -> None:
    assert dropped(SpecialTokenMask(tokens=[[1, 2]]), [1, 3, 1, 2, 1, 2]) == [2, 3]


def test_matches_that_overlap_each_other() -> None:
    assert dropped(SpecialTokenMask(tokens=[[1, 1]], occurrence="every"), [1, 1, 1, 2, 1]) == [0, 1, 2]
    assert dropped(SpecialTokenMask(tokens=[[1, 1]]), [1, 1, 1, 2, 1]) == [0, 1]


def test_entries_that_overlap_each_other_count_separately() -> None:
    assert dropped(SpecialTokenMask(tokens=[[1, 2], [2, 3], 2]), [1, 2, 3, 2, 3]) == [0, 1, 2]


@pytest.mark.parametrize("ids", [[], [1]])
def test_nothing_to_drop(ids: list[int]) -> None:
    assert SpecialTokenMask(tokens=[[1, 2, 3], 9]).loss_mask(ids) == [True] * len(ids)
    assert SpecialTokenMask().loss_mask(ids) == [True] * len(ids)


@pytest.mark.parametrize("occurrence", ["first", "every"])
def test_random_responses_against_a_search_in_text(occurrence: str) -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(3) for _ in range(rng.randrange(12))]
        patterns = [[rng.randrange(3) for _ in range(rng.randrange(1, 4))] for _ in range(2)]
        text, expected = "".join(map(str, ids)), set()
        for pattern in patterns:
            word = "".join(map(str, pattern))
            starts = [i for i in range(len(text)) if text.startswith(word, i)]
            for start in starts[:1] if occurrence == "first" else starts:
                expected |= set(range(start, start + len(word)))
        mask = SpecialTokenMask(tokens=patterns, occurrence=occurrence)  # type: ignore[arg-type]
        assert dropped(mask, ids) == sorted(expected)


def test_strings_become_one_token_or_the_ids_of_their_text() -> None:
    mask = SpecialTokenMask(tokens=["<think>", "<t>", 4, ["a", 3, "bc"]]).resolve(Letters())
    assert mask.tokens == [[1], [5, 6, 7], [4], [2, 3, 3, 4]]
    assert dropped(mask, [2, 5, 6, 7, 1, 1]) == [1, 2, 3, 4]


def test_occurrence_survives_resolving() -> None:
    assert SpecialTokenMask(tokens=["a"], occurrence="every").resolve(Letters()).occurrence == "every"


def test_text_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`mask\.tokens`.*'aé'"):
        SpecialTokenMask(tokens=["aé"]).resolve(Letters())


def test_unresolved_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="call resolve first"):
        SpecialTokenMask(tokens=[[1, "a"]]).loss_mask([1, 2])


@pytest.mark.parametrize("entry", [-1, "", [], [1, ""], 2.5, True, [[1]]])
def test_senseless_entries_are_refused(entry: object) -> None:
    with pytest.raises(ValueError, match=r"`mask\.tokens`"):
        SpecialTokenMask(tokens=[entry])  # type: ignore[list-item]


def test_unknown_occurrence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`mask\.occurrence`.*'last'"):
        SpecialTokenMask(tokens=[1], occurrence="last")  # type: ignore[arg-type]
