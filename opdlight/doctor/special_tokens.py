"""Check: whether both models write ends, thoughts and the marks of turns with the same ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Pair, Patient
from opdlight.rollout import ChatRenderer

THINKING = ("<think>", "</think>")  # always checked: the student writes them itself
TOOLS = ("<tool_call>", "</tool_call>")  # checked if a template or a prompt contains them
EXAMPLE = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "u"},
]


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """The ids that end a completion: the end-of-sequence ids of the tokenizer and of the generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *named] if isinstance(i, int)))


def markers(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """The added tokens that the chat template with these `arguments` writes into a conversation."""
    added = {i: token for token, i in tokenizer.get_added_vocab().items()}
    for messages in (EXAMPLE, EXAMPLE[1:]):  # some templates refuse a system message
        try:
            how: dict[str, Any] = {**(arguments or {}), "tokenize": False, "add_generation_prompt": True}
            text = tokenizer.apply_chat_template(messages, **how)
        except (TemplateError, ValueError):  # ValueError: no template
            continue
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return list(dict.fromkeys(added[i] for i in ids if i in added))
    return []


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text`, without added special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def turn_end(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None, key: str) -> int | None:
    """The control token with which the chat template ends the assistant's turn; None without one."""
    return ChatRenderer(tokenizer, arguments, key).turn_end if tokenizer.chat_template else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The tokens that end a completion, and what is wrong with them."""

    facts: list[str]
    stops: list[int]  # to add to `sampling.stop`
    endless: bool  # without `stops` completions continue after their end
    differently: list[str]  # ends of the student that the teacher writes with other ids


def ends_of(patient: Patient, pair: Pair) -> Ends:
    """Compare the ends of the student, of its template and of the teacher: a completion must stop at each of them.

    An end that the teacher writes with other ids must be left out of the loss, because the teacher cannot teach it.
    Where both models can write both ends, the student will learn the teacher's.
    """
    student, teacher = pair.student.tokenizer, pair.teacher.tokenizer
    ours, theirs = stop_ids(student, pair.student.model), stop_ids(teacher, pair.teacher.model)
    last = turn_end(student, pair.student.chat_template, "model.student.chat_template")
    taught = turn_end(teacher, patient.teacher_template(pair), pair.template_key)
    facts = [f"end {_names(student, ours)} / {_names(teacher, theirs)}"]
    if patient.stop:
        facts.append(f"sampling.stop {_names(student, patient.stop)}")

    def alike(i: int) -> bool:
        text = str(student.convert_ids_to_tokens(i))
        return i in pair.shared and encode(student, text) == encode(teacher, text) == [i]

    differently = [str(student.convert_ids_to_tokens(i)) for i in ours if not alike(i)]
    masked = all(_masked(patient, student, str(student.convert_ids_to_tokens(i))) for i in ours)
    stops: list[int] = []
    if last is not None and last not in (*ours, *patient.stop):
        stops.append(last)
        facts.append(f"no completion stops where the student's template ends a turn, at {_names(student, stops)}")
    known = [i for i in theirs if alike(i)]
    if known and not differently and not {*ours, *patient.stop, *stops} & set(known):
        stops += known
        facts.append(f"no completion stops where the teacher ends, at {_names(teacher, known)}")
    endless = bool(stops) and not masked
    if taught is not None and taught not in (*theirs, *patient.stop, *stops) and alike(taught):
        stops.append(taught)
        facts.append(
            f"evaluated itself, the teacher does not stop where its template does, at {_names(teacher, [taught])}"
        )
    return Ends(facts=facts, stops=stops, endless=endless, differently=differently)


def check_special_tokens(patient: Patient, pair: Pair) -> list[Finding]:
    """Check ends, chat markers and thinking tokens for missing stops and for ids that differ, which need a mask."""
    student, teacher = pair.student.tokenizer, pair.teacher.tokenizer
    ends = ends_of(patient, pair)
    facts, needed = list(ends.facts), list(ends.differently)
    optional: list[str] = []  # not in any template or prompt
    ours = markers(student, pair.student.chat_template)
    theirs = markers(teacher, patient.teacher_template(pair))
    facts.append(f"template writes {' '.join(ours) or 'no special token'} / {' '.join(theirs) or 'no special token'}")
    asked = set(ours) | set(theirs) | {t for t in TOOLS if _asked_for(patient, pair, t)}
    for text in dict.fromkeys([*ours, *theirs, *THINKING, *TOOLS]):
        ids = encode(student, text), encode(teacher, text)
        if ids[0] == ids[1]:
            continue
        facts.append(f"{text} is {_names(student, ids[0])} / {_names(teacher, ids[1])}")
        if text not in needed:
            (needed if text in asked or text in THINKING else optional).append(text)

    open_ = [t for t in (*needed, *optional) if not _masked(patient, student, t)]
    masked = [t for t in (*needed, *optional) if t not in open_]
    if masked:
        facts.append(f"left out of the loss by `mask`: {' '.join(masked)}")
    verdict, repairs = Verdict.PASS, []
    if ends.stops:
        texts = [str(student.convert_ids_to_tokens(i)) for i in (*patient.stop, *ends.stops)]
        repairs.append(override("sampling.stop", texts))
        verdict = Verdict.FAIL if ends.endless else Verdict.WARN
    if open_:
        repairs.append(override("mask.tokens", [*patient.mask_tokens, *open_]))
        verdict = Verdict.FAIL if ends.endless or set(open_) & set(needed) else Verdict.WARN
    facts.append("other special tokens " + " / ".join(_roles(t) for t in (student, teacher)))
    return [
        Finding(
            check="special tokens",
            about=pair.name,
            verdict=verdict,
            evidence="; ".join(facts) + " (student / teacher)",
            repair=" ".join(repairs),
        )
    ]


def _names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return "+".join(f"{t} ({i})" for t, i in zip(tokens, ids, strict=True)) or "none"


def _roles(tokenizer: PreTrainedTokenizerBase) -> str:
    roles = {"bos": tokenizer.bos_token, "pad": tokenizer.pad_token, "unk": tokenizer.unk_token}
    return ", ".join(f"{role} {token}" for role, token in roles.items() if token) or "none"


def _asked_for(patient: Patient, pair: Pair, text: str) -> bool:
    """Whether a real prompt contains the text."""
    prompts = [p for task in pair.tasks for o in patient.openings(task) for p in (o.system_prompt, o.observation)]
    return any(text in (prompt or "") for prompt in prompts)


def _masked(patient: Patient, student: PreTrainedTokenizerBase, text: str) -> bool:
    vocabulary = student.get_vocab()
    ids = [vocabulary[text]] if text in vocabulary else encode(student, text)
    return not any(patient.mask.loss_mask(ids))
