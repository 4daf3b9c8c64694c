"""Compares two vocabularies: which ids mean the same token to both models?"""

import logging
from collections.abc import Set
from typing import Protocol

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlight.errors import VocabularyError
from opdlight.types import SharedVocabulary

SHOWN = 5
# At most so many ids, and this share of the compared ones, may differ. A vocabulary with renamed reserved tokens stays
# below; one that was trained anew or shifted by an id does not.
FEW, FEW_SHARE = 64, 0.01
CONVERSATION = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "u"},
]
log = logging.getLogger(__name__)


class HasVocabulary(Protocol):
    """The part of a tokenizer that is compared."""

    def get_vocab(self) -> dict[str, int]:
        """Token string → id, added tokens included."""


def compare_vocabularies(
    student: HasVocabulary, student_width: int, teacher: HasVocabulary, teacher_width: int
) -> SharedVocabulary:
    """The ids that both models share: the same token in both, and a logit in both.

    What lies above the last id that both know (tokens that one model added, padding of a head) is not shared, and an id
    below that stands for different tokens is left out. One that neither knows is harmless.

    Args:
        student: the student's tokenizer.
        student_width: rows of the student's head.
        teacher: the teacher's tokenizer.
        teacher_width: rows of the teacher's head.
    """
    ours, theirs = _tokens(student), _tokens(teacher)
    size = min(max(ours.keys() & theirs.keys(), default=-1) + 1, student_width, teacher_width)
    return SharedVocabulary(size, frozenset(i for i in range(size) if ours.get(i) != theirs.get(i)))


def differences(shared: SharedVocabulary, student: HasVocabulary, teacher: HasVocabulary) -> str:
    """How many ids are left out, and the first of them by name."""
    ours, theirs = _tokens(student), _tokens(teacher)
    first = ", ".join(f"{i}: {ours.get(i)!r} / {theirs.get(i)!r}" for i in sorted(shared.left_out)[:SHOWN])
    return f"{len(shared.left_out)} of {shared.size} ids (id: student / teacher): {first}"


def problem(shared: SharedVocabulary, in_use: Set[int]) -> str:
    """Why two models cannot be compared; empty if they can, without the ids that are left out.

    Args:
        shared: what they share.
        in_use: ids of either model's chat template and ends.
    """
    if not len(shared):
        return "they share no id"
    if len(shared.left_out) > min(FEW, FEW_SHARE * shared.size):
        return f"more than {FEW} or {100 * FEW_SHARE:.0f} % of the ids differ, so it is another vocabulary"
    if shared.left_out & in_use:
        ids = ", ".join(map(str, sorted(shared.left_out & in_use)))
        return f"a chat template or an end of sequence uses {ids}, which every conversation holds"
    return ""


def check_shared(
    shared: SharedVocabulary, student: HasVocabulary, teacher: HasVocabulary, in_use: Set[int], teacher_name: str
) -> None:
    """Warn of the ids that are left out.

    Raises:
        VocabularyError: if there is a `problem`, with the number of ids that differ and the first few of them.
    """
    reason = problem(shared, in_use)
    differ = f"The tokenizers of the student and of the teacher {teacher_name!r} differ at "
    differ += differences(shared, student, teacher)
    if reason:
        raise VocabularyError(
            f"{differ}; {reason}. Distillation compares token ids, so both must use the same vocabulary."
        )
    if shared.left_out:
        log.warning("%s. These ids are left out of every support and of the loss.", differ)


def ids_in_use(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    """The ids that the chat template writes into a conversation, and those that end a completion."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = {i for i in (configured if isinstance(configured, list) else [configured]) if isinstance(i, int)}
    found |= {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
    for messages in (CONVERSATION, CONVERSATION[1:]):  # some templates refuse a system message
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError):  # ValueError: there is no template
            continue
        return found | set(tokenizer(str(text), add_special_tokens=False)["input_ids"])
    return found


def _tokens(tokenizer: HasVocabulary) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}
