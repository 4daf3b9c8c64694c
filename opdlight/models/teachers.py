"""One teacher a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from opdlight.batch.split import at_positions
from opdlight.errors import CheckpointError, ConfigError
from opdlight.losses import Needs
from opdlight.models.loading import resolve_model
from opdlight.models.student import Student
from opdlight.models.teacher import Teacher
from opdlight.models.vocabulary import check_shared, compare_vocabularies, ids_in_use
from opdlight.types import Look, SharedVocabulary, TeacherScores, TokenBatch, View


class Teachers(nn.Module):
    """One teacher a task; a checkpoint that serves several tasks is loaded once.

    Args:
        models: task → model.
        student: whose vocabulary the teachers must share.
        make: model → teacher.

    Raises:
        VocabularyError: if a teacher's tokenizer differs from the student's in more than a few ids, or in one that is
            in use; a few others are left out of every support and of the loss, with a warning.
    """

    def __init__(self, models: Mapping[str, str], student: Student, make: Callable[[str], Teacher] = Teacher) -> None:
        super().__init__()
        if not models:
            raise ConfigError.wrong("task.tasks", expected="a teacher for at least one task", got=dict(models))
        checkpoints, made = dict[str, str](), dict[str, Teacher]()
        for task, model in models.items():
            try:
                checkpoints[task] = resolve_model(model)
                if checkpoints[task] not in made:
                    made[checkpoints[task]] = make(checkpoints[task])
            except CheckpointError as error:
                raise CheckpointError(f"`task.tasks.{task}.teacher`: {error}") from error
        distinct = list(made)
        self.teachers = nn.ModuleList(made.values())
        self.divided = False
        self.teacher_of = {task: distinct.index(model) for task, model in checkpoints.items()}
        self.shared_vocabulary = reduce(and_, (self._share(student, t) for t in self._all()))

    @staticmethod
    def _share(student: Student, teacher: Teacher) -> SharedVocabulary:
        ours, theirs = (m.tokenizer for m in (student, teacher))
        shared = compare_vocabularies(ours, student.head().width, theirs, teacher.head().width)
        in_use = ids_in_use(ours, student.model) | ids_in_use(theirs, teacher.model) if shared.left_out else set()
        check_shared(shared, ours, theirs, in_use, teacher.name)
        return shared

    def shard(self, mesh: DeviceMesh, *, offload: bool = False) -> None:
        """Divide each teacher over the ranks of `mesh`; `offload`: their shares wait in the CPU's memory."""
        self.divided = True
        for teacher in self._all():
            teacher.shard(mesh, offload=offload)

    def check(self, needs: Needs, *, temperature: float, look_k: int) -> None:
        """Raise ConfigError if a teacher cannot give what a run will ask of it."""
        shared = self.shared_vocabulary
        for teacher in self._all():
            teacher.check(needs, temperature=temperature, shared=shared, look_k=min(look_k, len(shared)))

    def stats(self) -> dict[str, float]:
        """Counters of all teachers since the start, added up."""
        counters = [t.stats() for t in self._all()]
        return {name: sum(c.get(name, 0.0) for c in counters) for name in {n: None for c in counters for n in c}}

    def _all(self) -> list[Teacher]:
        return [t for t in self.teachers if isinstance(t, Teacher)]

    def of(self, task: str) -> Teacher:
        """The teacher of a task."""
        if task not in self.teacher_of:
            raise ConfigError.wrong("task", expected=f"one of {', '.join(self.teacher_of)}", got=task)
        return self._all()[self.teacher_of[task]]

    def score(
        self,
        batch: TokenBatch,
        *,
        needs: Needs,
        chosen: Tensor | None,
        temperature: float,
        look: Look | None = None,
    ) -> TeacherScores:
        """What `needs` asks for; each row is read by the teacher of its task only. `chosen`: ids the student named.

        A teacher that equals the student gives the student's own numbers, to the bit, where it reads the whole batch.
        """
        ask: dict[str, Any] = {"needs": needs, "temperature": temperature, "shared": self.shared_vocabulary}
        teachers = [self.of(task) for task in batch.tasks]
        present = list(dict.fromkeys(teachers[i] for i in batch.task_index.unique().tolist())) or teachers[:1]
        found = None
        if len(present) < 2:
            for teacher in self._all():  # in the same order on every rank
                if teacher is present[0]:
                    found = teacher.score(batch, chosen=chosen, look=look, **ask)
                elif self.divided:
                    teacher.touch(batch)
        if found is not None:
            return found
        parts: list[TeacherScores] = []
        places: list[Tensor] = []
        looked: list[Tensor] = []
        for teacher in self._all():
            if teacher not in present:
                if self.divided:
                    teacher.touch(batch)
                continue
            tasks = [i for i, t in enumerate(teachers) if t is teacher]
            at = torch.isin(batch.task_index, batch.task_index.new_tensor(tasks)).nonzero().squeeze(1)
            places.append(at)
            mine = None
            if look is not None:
                here = torch.isin(look.at, at).nonzero().squeeze(1)
                looked.append(here)
                mine = Look(at=torch.searchsorted(at, look.at[here]), student_ids=look.student_ids[here])
            named = None if chosen is None else chosen[at]
            parts.append(teacher.score(at_positions(batch, at), chosen=named, look=mine, **ask))
        back = torch.argsort(torch.cat(places))
        support = None
        if parts[0].support is not None:
            supports = [p.support for p in parts if p.support is not None]
            support = replace(
                supports[0],
                token_ids=torch.cat([s.token_ids for s in supports])[back],
                teacher_logits=torch.cat([s.teacher_logits for s in supports])[back],
                teacher_normaliser=_join([s.teacher_normaliser for s in supports], back),
                valid=torch.cat([s.valid for s in supports])[back],
            )
        return TeacherScores(
            support=support,
            sampled=_join([p.sampled for p in parts], back),
            entropy=_join([p.entropy for p in parts], back),
            view=None if look is None else _join_views([p.view for p in parts], torch.argsort(torch.cat(looked))),
        )


def _join_views(parts: Sequence[View | None], back: Tensor) -> View:
    whole = [p for p in parts if p is not None]
    columns: dict[str, Any] = {name: _join([getattr(p, name) for p in whole], back) for name in View.__slots__}
    return View(**columns)


def _join(parts: Sequence[Tensor | None], back: Tensor) -> Tensor | None:
    whole = [p for p in parts if p is not None]
    return torch.cat(whole)[back] if whole else None
