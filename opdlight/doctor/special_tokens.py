"""Tokens that steer a conversation: do both models end, think and mark turns with the same ids?"""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Pair, Patient

THINKING = ("<think>", "</think>")  # written by the student itself wherever a model thinks
TOOLS = ("<tool_call>", "</tool_call>")  # only where a template or a prompt asks for tools
EXAMPLE = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "u"},
]


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """The ids that end a completion: those of the tokenizer and of the generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *named] if isinstance(i, int)))


def markers(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The added tokens that the chat template writes into a conversation; none without a template."""
    added = {i: token for token, i in tokenizer.get_added_vocab().items()}
    for messages in (EXAMPLE, EXAMPLE[1:]):  # some templates refuse a system message
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError):  # ValueError: there is no template
            continue
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return list(dict.fromkeys(added[i] for i in ids if i in added))
    return []


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text as it is."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_special_tokens(patient: Patient, pair: Pair) -> list[Finding]:
    """Ends, chat markers and thinking tokens of both; what differs and is not masked yet becomes a mask to paste."""
    student, teacher = pair.student.tokenizer, pair.teacher.tokenizer
    stops = stop_ids(student, pair.student.model), stop_ids(teacher, pair.teacher.model)
    facts: list[str] = []
    needed: list[str] = []
    optional: list[str] = []  # nobody has asked for them
    facts.append(f"end {_names(student, stops[0])} / {_names(teacher, stops[1])}")
    for i in stops[0]:
        if i not in stops[1] or (i == student.eos_token_id and i != teacher.eos_token_id):
            needed.append(str(student.convert_ids_to_tokens(i)))

    own, other = markers(student), markers(teacher)
    facts.append(f"template writes {' '.join(own) or 'no special token'} / {' '.join(other) or 'no special token'}")
    asked = set(own) | set(other) | {t for t in TOOLS if _asked_for(patient, pair, t)}
    for text in dict.fromkeys([*own, *other, *THINKING, *TOOLS]):
        ours, theirs = encode(student, text), encode(teacher, text)
        if ours == theirs:
            continue
        facts.append(f"{text} is {_names(student, ours)} / {_names(teacher, theirs)}")
        if text not in needed:
            (needed if text in asked or text in THINKING else optional).append(text)

    open_ = [t for t in (*needed, *optional) if not _masked(patient, student, t)]
    masked = [t for t in (*needed, *optional) if t not in open_]
    if masked:
        facts.append(f"left out of the loss by `mask`: {' '.join(masked)}")
    verdict = Verdict.PASS
    if open_:
        verdict = Verdict.FAIL if set(open_) & set(needed) else Verdict.WARN
    facts.append("other special tokens " + " / ".join(_roles(t) for t in (student, teacher)))
    return [
        Finding(
            check="special tokens",
            about=pair.name,
            verdict=verdict,
            evidence="; ".join(facts) + " (student / teacher)",
            repair=override("mask.tokens", [*patient.mask_tokens, *open_]) if open_ else "",
        )
    ]


def _names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return "+".join(f"{t} ({i})" for t, i in zip(tokens, ids, strict=True)) or "none"


def _roles(tokenizer: PreTrainedTokenizerBase) -> str:
    roles = {"bos": tokenizer.bos_token, "pad": tokenizer.pad_token, "unk": tokenizer.unk_token}
    return ", ".join(f"{role} {token}" for role, token in roles.items() if token) or "none"


def _asked_for(patient: Patient, pair: Pair, text: str) -> bool:
    """Does a template or a real prompt hold the text?"""
    prompts = [p for task in pair.tasks for o in patient.openings(task) for p in (o.system_prompt, o.observation)]
    return any(text in (prompt or "") for prompt in prompts)


def _masked(patient: Patient, student: PreTrainedTokenizerBase, text: str) -> bool:
    vocabulary = student.get_vocab()
    ids = [vocabulary[text]] if text in vocabulary else encode(student, text)
    return not any(patient.mask.kept(ids))
