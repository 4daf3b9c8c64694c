"""Check: whether the same id stands for the same bytes in both vocabularies."""

import json
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from opdlight.doctor.findings import Finding, Verdict
from opdlight.doctor.patient import Pair, Patient
from opdlight.models.vocabulary import differences, ids_in_use, problem

SHOWN = 5
SMALL_SHARE = 0.9  # a smaller share of shared ids among the student's is a warning


@cache
def _byte_of_letter() -> dict[str, int]:
    """Letter → byte in GPT-2's table, by which byte-level BPE writes each byte as a printable letter."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Id → the bytes that it stands for, added tokens included.

    The decoder determines how the vocabulary spells bytes: in letters of GPT-2's table (byte-level BPE), or as text
    with `▁` for a blank and `<0x0A>` for a byte (SentencePiece). Without a decoder a token stands for its own text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder: Any = backend.decoder if backend is not None else None
    how = json.dumps(json.loads(decoder.__getstate__()), ensure_ascii=False) if decoder is not None else ""
    added = tokenizer.get_added_vocab()
    found = {}
    for token, i in tokenizer.get_vocab().items():
        if token in added:
            found[i] = token.encode()
        elif '"ByteLevel"' in how and all(c in _byte_of_letter() for c in token):
            found[i] = bytes(_byte_of_letter()[c] for c in token)
        elif '"ByteFallback"' in how and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[i] = bytes([int(token[3:5], 16)])
        else:
            found[i] = (token.replace("▁", " ") if "▁" in how else token).encode()
    return found


def check_vocabulary(patient: Patient, pair: Pair) -> list[Finding]:
    """Check for ids with different bytes or spellings and for ids without an embedding, and count the shared ids."""
    student, teacher = pair.student, pair.teacher
    ours, theirs = token_bytes(student.tokenizer), token_bytes(teacher.tokenizer)
    widths = student.head().width, teacher.width
    spelt = {i: t for t, i in student.tokenizer.get_vocab().items()}
    left_out = pair.shared.left_out
    sizes = (
        f"{len(pair.shared)} shared ids; tokenizers {len(student.tokenizer)} / {len(teacher.tokenizer)} tokens, "
        f"logits {widths[0]} / {widths[1]} wide (student / teacher)"
    )
    other = f"{pair.key}=<a model with the student's tokenizer>"

    def found(verdict: Verdict, evidence: str, repair: str = other) -> list[Finding]:
        return [
            Finding(check="vocabulary", about=pair.name, verdict=verdict, evidence=evidence, repair=repair),
        ]

    in_use = ids_in_use(student.tokenizer, student.model) | ids_in_use(teacher.tokenizer, teacher.model)
    reason = problem(pair.shared, in_use)
    what = f"{differences(pair.shared, student.tokenizer, teacher.tokenizer)}; " if left_out else ""
    if reason:
        return found(Verdict.FAIL, f"{reason}; {what}{sizes}")
    alike = [i for i in range(pair.shared.size) if ours.get(i) != theirs.get(i) and i not in left_out]
    if alike:
        shown = ", ".join(f"{i}: {ours.get(i)!r} / {theirs.get(i)!r}" for i in alike[:SHOWN])
        return found(Verdict.FAIL, f"{len(alike)} ids have the same spelling but other bytes: {shown}; {what}{sizes}")
    if len(student.tokenizer) > widths[0]:
        return found(
            Verdict.FAIL,
            f"the student's tokenizer has ids without a row in its model; {sizes}",
            "model.student.model=<a folder whose embedding fits its tokenizer>",
        )
    unreadable = sorted(i for i in ours if i >= widths[1])
    if unreadable:
        needed = ids_in_use(student.tokenizer, student.model)
        names = ", ".join(repr(spelt[i]) for i in unreadable[:SHOWN])
        if needed & set(unreadable):
            return found(Verdict.FAIL, f"the teacher has no embedding for {names}, which all prompts contain; {sizes}")
        return found(Verdict.WARN, f"the teacher has no embedding for {names}: it fails on a row with one; {sizes}")
    if len(pair.shared) < SMALL_SHARE * len(ours):
        return found(
            Verdict.WARN, f"only {100 * len(pair.shared) / len(ours):.0f} % of the student's ids are shared; {sizes}"
        )
    if what:
        return found(Verdict.WARN, f"left out of every support and of the loss: {what}{sizes}", "")
    return found(Verdict.PASS, sizes, "")
