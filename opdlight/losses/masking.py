"""Special-token masking: tokens that student and teacher write differently are left out of the loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from opdlight.bounds import NonNegativeInt


class Encodes(Protocol):
    """The part of a Hugging Face tokenizer that resolves strings to ids."""

    unk_token_id: int | None

    def get_vocab(self) -> dict[str, int]:
        """Token string → id."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text → ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokenMask:
    """Which tokens of a response carry no loss (arXiv 2603.25562, third failure mode).

    Each entry of `tokens` is a token id, a string, or a sequence of ids and strings. A string that is one token of the
    vocabulary stands for its id, any other string for the ids it is tokenised to. `occurrence` says whether the first
    match of an entry in a response is left out (the paper) or every match, overlapping ones included.

    >>> SpecialTokenMask(tokens=[7, [1, 2]]).loss_mask([1, 2, 7, 1, 2, 7])
    [False, False, False, True, True, True]
    """

    tokens: Sequence[NonNegativeInt | str | Sequence[NonNegativeInt | str]] = ()
    occurrence: Literal["first", "every"] = "first"

    def __post_init__(self) -> None:
        if self.occurrence not in ("first", "every"):
            raise ValueError(f"Expected `mask.occurrence` to be 'first' or 'every', but got {self.occurrence!r}.")
        for entry in self.tokens:
            for part in _parts(entry):
                legal = (isinstance(part, int) and not isinstance(part, bool) and part >= 0) or isinstance(part, str)
                if not legal or part == "":
                    raise _wrong(entry)
            if not _parts(entry):
                raise _wrong(entry)

    def resolve(self, tokenizer: Encodes) -> "SpecialTokenMask":
        """The same mask with every string replaced by the ids that `tokenizer` gives it.

        Raises:
            ValueError: if a string cannot be written with the tokenizer's vocabulary.
        """
        vocabulary = tokenizer.get_vocab()

        def ids_of(part: int | str) -> list[int]:
            if isinstance(part, int):
                return [part]
            if part in vocabulary:
                return [vocabulary[part]]
            ids = list(tokenizer.encode(part, add_special_tokens=False))
            if not ids or tokenizer.unk_token_id in ids:
                raise ValueError(
                    f"Expected `mask.tokens` to hold text the student's tokenizer can write, but got {part!r}."
                )
            return ids

        return replace(self, tokens=[[i for part in _parts(entry) for i in ids_of(part)] for entry in self.tokens])

    def loss_mask(self, completion_ids: Sequence[int]) -> list[bool]:
        """For each token of one response [C]: is it trained on?

        Raises:
            ValueError: if `tokens` still holds strings: `resolve` comes first.
        """
        kept = [True] * len(completion_ids)
        for entry in self.tokens:
            pattern = list(_parts(entry))
            if any(isinstance(part, str) for part in pattern):
                raise ValueError(
                    f"Expected `mask.tokens` to be resolved to ids, but got {entry!r}: call resolve first."
                )
            for start in range(len(completion_ids) - len(pattern) + 1):
                if list(completion_ids[start : start + len(pattern)]) == pattern:
                    kept[start : start + len(pattern)] = [False] * len(pattern)
                    if self.occurrence == "first":
                        break
        return kept


def _parts(entry: int | str | Sequence[int | str]) -> Sequence[int | str]:
    return entry if isinstance(entry, Sequence) and not isinstance(entry, str) else [entry]


def _wrong(entry: object) -> ValueError:
    return ValueError(
        "Expected `mask.tokens` to hold token ids (not negative), non-empty strings, or non-empty sequences of them, "
        f"but got {entry!r}."
    )
