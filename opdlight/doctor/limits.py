"""Checks: lengths against contexts, and K against the vocabulary."""

from collections.abc import Iterator, Mapping
from typing import Any

from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Patient
from opdlight.rollout import ChatRenderer


def check_context(patient: Patient, task: str) -> list[Finding]:
    """Compare the task's limits with real prompts and with the contexts of the engine and both models."""
    limits, student = patient.tasks[task], patient.student
    renderer = ChatRenderer(student.tokenizer, student.chat_template)
    prompts = [len(renderer.start(o.system_prompt, o.observation).prompt_ids) for o in patient.openings(task)]
    engine = patient.one_engine.get("max_model_len")
    made_for = {"student": _positions(student.model)}
    if task in patient.teachers:
        made_for["teacher"] = _positions(patient.teachers[task].model)
    key = f"task.tasks.{task}"
    longest, turn = limits.trajectory_tokens, limits.turn_tokens
    contexts = ", ".join(f"{side} {n or 'unlimited'}" for side, n in {"engine": engine, **made_for}.items())
    evidence = (
        f"prompts of {min(prompts)} to {max(prompts)} tokens, turn_tokens {turn}, trajectory_tokens {longest}; "
        f"contexts: {contexts}"
    )

    def found(verdict: Verdict, problem: str, repair: str) -> list[Finding]:
        shown = f"{problem}; {evidence}" if problem else evidence
        return [Finding(check="context", about=task, verdict=verdict, evidence=shown, repair=repair)]

    room = min([n for n in made_for.values() if n], default=longest)
    if max(prompts) >= min(longest, room):
        needed = max(prompts) + turn
        lines = [override(f"{key}.trajectory_tokens", needed)]
        if engine is not None and engine < needed:
            lines.append(override("model.max_model_len", needed))
        if needed > room:
            return found(Verdict.FAIL, "a prompt fills the context of a model", "model=<one with a longer context>")
        return found(Verdict.FAIL, "a prompt leaves no room for an answer", " ".join(lines))
    for side, n in made_for.items():
        if n and longest > n:
            repair = override(f"{key}.trajectory_tokens", n)
            return found(Verdict.FAIL, f"trajectories may become longer than the context of the {side}", repair)
    if engine is not None and longest > engine:
        repair = override("model.max_model_len", longest)
        return found(Verdict.FAIL, "trajectories may become longer than the engine's context", repair)
    if max(prompts) + turn > longest:
        lines = [override(f"{key}.trajectory_tokens", max(prompts) + turn)]
        if engine is not None and engine < max(prompts) + turn:
            lines.append(override("model.max_model_len", max(prompts) + turn))
        return found(Verdict.WARN, "the first answer can be cut by trajectory_tokens", " ".join(lines))
    return found(Verdict.PASS, "", "")


def check_support(patient: Patient) -> list[Finding]:
    """Compare K with the number of ids that all models share, and with `max_logprobs` of the engine."""
    needs = patient.loss.needs
    evidence = f"support {needs.support or 'none'}, {len(patient.shared)} shared ids"

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="support", verdict=verdict, evidence=evidence, repair=repair)]

    if needs.chosen_by is None:
        return found(Verdict.PASS, evidence)
    evidence = f"K = {needs.k}, {evidence}"
    key = next((k for k in _keys(patient.loss_config) if k.rpartition(".")[2] == "k"), "k")
    if needs.k > len(patient.shared):
        return found(Verdict.FAIL, f"{evidence}: K is larger", override(f"loss.{key}", len(patient.shared)))
    reported = patient.one_engine.get("max_logprobs")
    if reported is not None and needs.k > reported:
        return found(
            Verdict.FAIL, f"{evidence}; the engine reports {reported}", override("engine.max_logprobs", needs.k)
        )
    if 2 * needs.k > len(patient.shared):
        return found(
            Verdict.WARN,
            f"{evidence}: over half of the vocabulary; all of it costs no more",
            "loss=full_rkl",
        )
    return found(Verdict.PASS, evidence)


def _positions(model: Any) -> int | None:
    """The longest context of a model, if its config names it."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
