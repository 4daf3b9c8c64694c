"""A tiny student and teacher that fit each other, and ways to break one of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from opdlight.data.tasks import Task
from opdlight.doctor.findings import Finding
from opdlight.doctor.patient import Pair, Patient
from opdlight.envs.base import TextEnv
from opdlight.losses import SupportMatching
from opdlight.models import Student, Teacher
from tests.tiny_models import CHATML, tiny_llama, tiny_tokenizer

STRIPS_THINK = CHATML.replace(
    "m.content +", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content) +"
)


class Errand(TextEnv):
    """Three turns, a short prompt."""

    max_turns = 3

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return f"take the red key number {self.np_random.integers(1000)} from the table. go!", {"metrics": {}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        return "look", 0.0, False, self.turn >= self.max_turns, {"metrics": {}, "success": False}


def errand(**limits: Any) -> Task:
    if "DoctorErrand-v0" not in gymnasium.registry:  # not at import: pytest imports this file under two names
        gymnasium.register(id="DoctorErrand-v0", entry_point=Errand)
    return Task(env={"id": "DoctorErrand-v0"}, teacher="x", **{"turn_tokens": 12, "trajectory_tokens": 256} | limits)


def with_tokens(tokens: list[str], template: str | None = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    return tokenizer


def edited(change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with its JSON changed."""
    plain = tiny_tokenizer()
    core = json.loads(plain.backend_tokenizer.to_str())
    change(core)
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = plain.chat_template
    return made


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes: Any) -> str:
    """A tiny Llama as wide as its tokenizer; `changes` go to its config, once it is made."""
    model = tiny_llama(seed, vocabulary_size=len(tokenizer))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    for key, value in changes.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def patient(
    folder: Path,
    student: PreTrainedTokenizerFast | None = None,
    teacher: PreTrainedTokenizerFast | None = None,
    *,
    teacher_seed: int = 0,
    task: Task | None = None,
    teacher_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> Patient:
    """The healthy patient, or one with the given tokenizers, task and config values."""
    own = Student(save(folder / "student", student or tiny_tokenizer()))
    other = Teacher(save(folder / "teacher", teacher or tiny_tokenizer(), teacher_seed, **(teacher_changes or {})))
    healthy = Patient(
        student=own,
        teachers={"errand": other},
        tasks={"errand": task or errand()},
        loss=SupportMatching(k=8),
        loss_config={"k": 8},
        engine={"max_model_len": 512},
        trainer={"accelerator": "cpu", "devices": 1},
    )
    return replace(healthy, **changes)


def examined(check: Callable[[Patient, Pair], list[Finding]], one: Patient) -> Finding:
    """The finding of a check of pairs."""
    (pair,) = one.pairs
    (finding,) = check(one, pair)
    return finding
