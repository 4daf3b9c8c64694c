"""What is examined: the student, each teacher beside it, the tasks and the numbers of the config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import and_
from typing import Any

from opdlight.data.requests import episode_seed
from opdlight.data.tasks import Task
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.losses import Loss, SpecialTokenMask
from opdlight.models import Student, TeacherModel
from opdlight.models.vocabulary import compare_vocabularies
from opdlight.types import SharedVocabulary

PROMPTS = 4  # episodes of each task that are reset for their prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How an episode of a task begins."""

    system_prompt: str | None
    observation: str
    max_turns: int
    fresh_prompt: bool


def openings(name: str, task: Task, count: int = PROMPTS) -> list[Opening]:
    """The first prompts of `count` training episodes; of held-out ones where there are no others."""
    env = task.make_env()
    first = 0 if task.weight > 0 else FIRST_HELD_OUT_SEED
    try:
        found = []
        for i in range(count):
            observation, _ = env.reset(seed=first + episode_seed("doctor", name, i))
            found.append(
                Opening(
                    system_prompt=env.system_prompt,
                    observation=observation,
                    max_turns=env.max_turns,
                    fresh_prompt=env.fresh_prompt,
                )
            )
        return found
    finally:
        env.close()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The student beside one teacher, which may serve several tasks."""

    student: Student
    teacher: TeacherModel
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The teacher and its tasks."""
        return f"{self.teacher.name} ({', '.join(self.tasks)})"

    @property
    def key(self) -> str:
        """The config key of the teacher, of its first task."""
        return f"task.tasks.{self.tasks[0]}.teacher"

    @property
    def template_key(self) -> str:
        """The config key of what the teacher's chat template is given, of its first task."""
        return f"{self.key}_chat_template"

    @cached_property
    def shared(self) -> SharedVocabulary:
        """The ids that both can compare, however many they leave out."""
        ours, theirs = self.student, self.teacher
        return compare_vocabularies(ours.tokenizer, ours.head().width, theirs.tokenizer, theirs.width)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Everything that the checks look at, as plain values.

    Args:
        student: as it would be trained.
        teachers: by task; one that could not be loaded is missing.
        tasks: by name.
        loss: the objective.
        loss_config: its config node, to name the key of K.
        mask: with its strings resolved by the student's tokenizer.
        mask_tokens: as the config has them.
        engine: the engine's config node, resolved.
        trainer: the trainer's config node.
        optimizer: dotted name of the optimizer.
        learning_rate: its largest.
        dtype: storage of what is trained.
        compute_dtype: of forward passes.
        micro_batch_tokens: padded tokens of one forward and backward.
        teacher_placement: where the weights of the teachers are.
        staleness: 1 if the engine generates while the student trains.
        temperature: of the rollout policy.
        top_p: of the rollout policy.
        stop: ids that end a completion, beside those that the student's folder names.
    """

    student: Student
    teachers: Mapping[str, TeacherModel]
    tasks: Mapping[str, Task]
    loss: Loss
    loss_config: Mapping[str, Any] = field(default_factory=dict)
    mask: SpecialTokenMask = field(default_factory=SpecialTokenMask)
    mask_tokens: Sequence[Any] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "torch.optim.AdamW"
    learning_rate: float = 1e-3
    dtype: str = "float32"
    compute_dtype: str = "float32"
    micro_batch_tokens: int = 1024
    teacher_placement: str = "replicated"
    staleness: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    stop: Sequence[int] = ()

    @cached_property
    def pairs(self) -> list[Pair]:
        """One a distinct teacher."""
        distinct = list(dict.fromkeys(self.teachers.values()))
        return [
            Pair(student=self.student, teacher=t, tasks=tuple(n for n, other in self.teachers.items() if other is t))
            for t in distinct
        ]

    @cached_property
    def shared(self) -> SharedVocabulary:
        """The ids that a support may hold."""
        return reduce(and_, (p.shared for p in self.pairs), SharedVocabulary(self.student.head().width))

    def teacher_template(self, pair: Pair) -> Mapping[str, Any]:
        """What the chat template of a pair's teacher is given, in its first task."""
        return self.tasks[pair.tasks[0]].teacher_chat_template or {}

    @property
    def one_engine(self) -> Mapping[str, Any]:
        """The node of an engine itself, which a pool of engines holds as its `engine`."""
        node: Mapping[str, Any] = self.engine.get("engine", self.engine)
        return node

    def openings(self, task: str) -> list[Opening]:
        """The first prompts of a few episodes; they are made once."""
        if task not in self._openings:
            self._openings[task] = openings(task, self.tasks[task])
        return self._openings[task]

    @cached_property
    def _openings(self) -> dict[str, list[Opening]]:
        return {}
