"""Do two models mean the same token by the same id?"""

from typing import Protocol

from opdlight.errors import VocabularyError

SHOWN = 5


class HasVocabulary(Protocol):
    """The part of a tokenizer that is compared."""

    def get_vocab(self) -> dict[str, int]:
        """Token string → id, added tokens included."""


def shared_size(
    student: HasVocabulary, student_width: int, teacher: HasVocabulary, teacher_width: int, teacher_name: str
) -> int:
    """How many ids, counted from 0, both models share: the same token in both, and a logit in both.

    Ids from the result on (tokens that one model added, padding of a head) are left out of every support. Below it the
    tokenizers must agree on every id; an id that neither knows is harmless.

    Args:
        student: the student's tokenizer.
        student_width: rows of the student's head.
        teacher: the teacher's tokenizer.
        teacher_width: rows of the teacher's head.
        teacher_name: for the error.

    Raises:
        VocabularyError: with the number of ids that differ and the first few of them.
    """
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (student, teacher))
    common = ours.keys() & theirs.keys()
    size = min(max(common, default=-1) + 1, student_width, teacher_width)
    differ = [i for i in range(size) if ours.get(i) != theirs.get(i)]
    if differ or not size:
        examples = ", ".join(f"{i}: {ours.get(i)!r} / {theirs.get(i)!r}" for i in differ[:SHOWN])
        raise VocabularyError(
            f"The tokenizers of the student and of the teacher {teacher_name!r} differ at {len(differ)} of {size} ids "
            f"(id: student / teacher): {examples or 'they share none'}. Distillation compares token ids, so both must "
            "use the same vocabulary."
        )
    return size
