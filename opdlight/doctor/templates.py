"""Checks of chat templates: both models read the same text, and earlier turns are not rewritten."""

from itertools import zip_longest

from opdlight.doctor.findings import Finding, Verdict
from opdlight.doctor.patient import Opening, Pair, Patient
from opdlight.doctor.special_tokens import EXAMPLE, encode
from opdlight.errors import ConfigError, PlainTextError
from opdlight.models import Student
from opdlight.rollout import ChatRenderer, Completion

TURNS = 4
ANSWERS = {
    "plain": "go north",
    "with <think>": "<think>\nlook\n</think>\n\ngo north",
    "blanks at the edges": " go north \n",
}
SHOWN = 24


def conversations(patient: Patient, pair: Pair) -> list[list[dict[str, str]]]:
    """Example conversations, with and without a system message and thoughts, and the first prompts of the tasks."""
    thinking = [EXAMPLE[1], {"role": "assistant", "content": ANSWERS["with <think>"]}, EXAMPLE[3]]
    found = [EXAMPLE[1:2], EXAMPLE[:2], EXAMPLE[1:], thinking]
    for task in pair.tasks:
        for opening in patient.openings(task):
            system = [] if opening.system_prompt is None else [{"role": "system", "content": opening.system_prompt}]
            found.append([*system, {"role": "user", "content": opening.observation}])
    return found


def check_template(patient: Patient, pair: Pair) -> list[Finding]:
    """Compare the text and the ids of the same conversations, rendered by both templates."""
    student, teacher = pair.student.tokenizer, pair.teacher.tokenizer
    same = f"{pair.key}=<a model that was trained with the student's chat template>"

    def found(verdict: Verdict, evidence: str, repair: str = same) -> list[Finding]:
        return [Finding(check="chat template", about=pair.name, verdict=verdict, evidence=evidence, repair=repair)]

    if not student.chat_template:
        model = "model.student.model=<a folder with chat_template.jinja>"
        return found(Verdict.FAIL, "the student's tokenizer has no chat template: nothing can be rendered", model)
    if not teacher.chat_template:
        return found(Verdict.WARN, "the teacher has no chat template: whether it knows the student's is unknown")
    renderers = (
        ChatRenderer(student, pair.student.chat_template),
        ChatRenderer(teacher, patient.teacher_template(pair), pair.template_key),
    )
    examples = conversations(patient, pair)
    for messages in examples:
        ours, theirs = (_render(renderer, messages) for renderer in renderers)
        roles = "+".join(m["role"] for m in messages)
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
            parts = (repr(text[max(at - 4, 0) : at + SHOWN]) for text in (ours, theirs))
            evidence = f"{roles} differs from character {at} on: {' / '.join(parts)} (student / teacher)"
            return found(Verdict.WARN, f"{evidence}; the teacher reads the student's")
        ids = encode(student, ours), encode(teacher, ours)
        if ids[0] != ids[1]:
            at = next(i for i, (a, b) in enumerate(zip_longest(*ids)) if a != b)
            parts = (
                repr(t.convert_ids_to_tokens(i[at : at + 3])) for t, i in zip((student, teacher), ids, strict=True)
            )
            evidence = f"{roles}: the same text has other tokens from number {at} on: {' / '.join(parts)}"
            other = f"{pair.key}=<a model with the student's tokenizer>"
            return found(Verdict.WARN, f"{evidence} (student / teacher); the teacher reads the student's", other)
    return found(Verdict.PASS, f"{len(examples)} conversations have the same text and the same ids", "")


def check_history(patient: Patient, task: str) -> list[Finding]:
    """Count the training rows into which a trajectory is split where the template rewrites earlier turns."""
    opening = patient.openings(task)[0]

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="growing history", about=task, verdict=verdict, evidence=evidence, repair=repair)]

    if opening.max_turns < 2:
        return found(Verdict.PASS, "one turn, so one row a trajectory")
    if opening.fresh_prompt:
        return found(Verdict.PASS, f"each turn is a complete prompt, so up to {opening.max_turns} rows a trajectory")
    rows = {kind: rows_of(patient.student, opening, text) for kind, text in ANSWERS.items()}
    rows["cut by length"] = rows_of(patient.student, opening, ANSWERS["plain"], stopped=False)
    evidence = f"{TURNS} turns make " + ", ".join(f"{n} row{'s' * (n > 1)} ({kind})" for kind, n in rows.items())
    if rows["plain"] == rows["with <think>"] == 1:
        return found(Verdict.PASS, evidence)
    return found(
        Verdict.WARN,
        f"{evidence}: the template rewrites earlier turns, so that each begins a new row",
        "nothing is lost, but rows cost time; model.student.model=<a folder whose chat_template.jinja keeps history>",
    )


def check_plain_text(patient: Patient, task: str) -> list[Finding]:
    """Check whether a text that spells control tokens can be encoded as ordinary text, and whether prompts do that."""
    student = patient.student
    renderer = ChatRenderer(student.tokenizer, student.chat_template)
    control = renderer.control.contents.values()
    openings = patient.openings(task)
    texts = [text for o in openings for text in (o.system_prompt, o.observation) if text]
    named = [token for token in control if any(token in text for text in texts)]
    evidence = f"only the template writes the student's {len(control)} control tokens"
    verdict = Verdict.PASS
    try:
        renderer.start(None, " ".join(control))
    except PlainTextError as error:
        verdict, evidence = (
            (Verdict.FAIL if named else Verdict.WARN),
            f"{error} A trajectory with such a text ends as env_error",
        )
    if named:
        evidence += f"; first prompts spell {' '.join(named)}, which the student reads as ordinary text"
    repair = "" if verdict is Verdict.PASS else "model.student.model=<a folder with tokenizer.json>"
    return [Finding(check="plain text", about=task, verdict=verdict, evidence=evidence, repair=repair)]


def rows_of(student: Student, opening: Opening, answer: str, *, stopped: bool = True) -> int:
    """The number of training rows of a conversation of `TURNS` turns in which the student always answers `answer`."""
    renderer = ChatRenderer(student.tokenizer, student.chat_template)
    conversation = renderer.start(opening.system_prompt, opening.observation)
    for _ in range(TURNS - 1):
        ids = renderer.encode_reply(answer, conversation)[: None if stopped else -1]
        completion = Completion(
            request_id="doctor",
            token_ids=ids,
            logprobs=[0.0] * len(ids),
            finish_reason="stop" if stopped else "length",
            policy_version=0,
        )
        conversation.advance(completion, opening.observation)
    return conversation.splits + 1


def _render(renderer: ChatRenderer, messages: list[dict[str, str]]) -> str:
    try:
        return renderer.render(messages)
    except ConfigError as error:
        return f"<refused: {error.__cause__}>"
