"""One teacher a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from operator import and_
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from opdlight.batch.split import at_positions
from opdlight.errors import CheckpointError, ConfigError
from opdlight.models.base import ScoreRequest, TeacherModel
from opdlight.models.loading import resolve_model
from opdlight.models.offloading import Offloaded
from opdlight.models.student import Student
from opdlight.models.teacher import Teacher
from opdlight.models.vocabulary import check_shared, compare_vocabularies, ids_in_use
from opdlight.types import ProbeScores, SharedVocabulary, Support, TeacherScores, TokenBatch

Scores = TypeVar("Scores", Support, ProbeScores)
Placement = Literal["replicated", "sharded", "offloaded"]


class Teachers(nn.Module):
    """One teacher a task; a checkpoint that serves several tasks is loaded once.

    `.to(device)` reaches the teachers, unless they are offloaded. Otherwise PyTorch does not see them: they have no
    part in state dicts, optimizers and `train()`.

    Args:
        models: task → model.
        student: whose vocabulary the teachers must share.
        make: model → teacher.

    Raises:
        VocabularyError: if a teacher's tokenizer differs from the student's in more than a few ids, or in one that is
            in use; a few others are left out of every support and of the loss, with a warning.
    """

    def __init__(
        self, models: Mapping[str, str], student: Student, make: Callable[[str], TeacherModel] = Teacher
    ) -> None:
        super().__init__()
        if not models:
            raise ConfigError.wrong("task.tasks", expected="a teacher for at least one task", got=dict(models))
        checkpoints, made = dict[str, str](), dict[str, TeacherModel]()
        for task, model in models.items():
            with CheckpointError.at(f"task.tasks.{task}.teacher"):
                checkpoints[task] = resolve_model(model)
                if checkpoints[task] not in made:
                    made[checkpoints[task]] = make(checkpoints[task])
        distinct = list(made)
        self.distinct = list(made.values())  # a plain list, so that they are no submodules
        self.sharded = False
        self.stays = False  # whether `.to(device)` leaves them where they are
        self.offloaded: dict[int, Offloaded] = {}  # by number: whole ones that are on a device only while they score
        self.teacher_of = {task: distinct.index(model) for task, model in checkpoints.items()}
        self.shared_vocabulary = reduce(and_, (self._share(student, t) for t in self.distinct))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for teacher in self.distinct:  # .to(device) must still reach them
            if isinstance(teacher, nn.Module) and not self.stays:
                teacher._apply(fn)
        super()._apply(fn, recurse)
        return self

    @staticmethod
    def _share(student: Student, teacher: TeacherModel) -> SharedVocabulary:
        ours, theirs = student.tokenizer, teacher.tokenizer
        shared = compare_vocabularies(ours, student.head().width, theirs, teacher.width)
        in_use = ids_in_use(ours, student.model) | ids_in_use(theirs, teacher.model) if shared.left_out else set()
        check_shared(shared, ours, theirs, in_use, teacher.name)
        return shared

    def place(self, placement: Placement, mesh: DeviceMesh | None) -> None:
        """Where the teachers are from now on; see `teacher_placement` in conf/train.yaml.

        Args:
            placement: "replicated", "sharded" or "offloaded".
            mesh: the ranks that a strategy divides models over; None: each process has whole ones.

        Raises:
            ConfigError: if a teacher cannot be divided.
        """
        self.stays = placement == "offloaded"
        if mesh is not None and placement != "replicated":
            self.sharded = True
            for teacher in self.distinct:
                teacher.shard(mesh, offload=self.stays)
        elif self.stays and not self.offloaded:
            local = [(n, teacher) for n, teacher in enumerate(self.distinct) if isinstance(teacher, nn.Module)]
            self.offloaded = {number: Offloaded(teacher) for number, teacher in local}

    def take_back(self) -> None:
        """Free what offloaded teachers have on a device, until they score again."""
        for offloaded in self.offloaded.values():
            offloaded.take_back()

    def check(self, request: ScoreRequest) -> None:
        """Raise ConfigError if a teacher cannot give what a run will ask of it."""
        for teacher in self.distinct:
            teacher.check(replace(request, probe_k=min(request.probe_k, len(request.shared))))

    def stats(self) -> dict[str, float]:
        """Counters of all teachers since the start, added up."""
        counters = [t.stats() for t in self.distinct]
        return {name: sum(c.get(name, 0.0) for c in counters) for name in {n: None for c in counters for n in c}}

    def of(self, task: str) -> TeacherModel:
        """The teacher of a task."""
        return self.distinct[self._number(task)]

    def _number(self, task: str) -> int:
        if task not in self.teacher_of:
            raise ConfigError.wrong("task", expected=f"one of {', '.join(self.teacher_of)}", got=task)
        return self.teacher_of[task]

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        """See `BatchScorer.score`; each row is read by the teacher of its task only.

        A teacher that has all rows reads the batch as it is, padding included. So one that equals the student gives the
        student's own numbers, to the bit.
        """
        if not request.asks_teacher:
            for teacher in self.distinct if self.sharded else ():
                teacher.touch(batch)  # another rank's micro-batch may be probed, and it gathers with all
            return TeacherScores()
        by_task = batch.task_index.new_tensor([self._number(task) for task in batch.tasks])
        owner = by_task[batch.task_index]  # [N] number of the teacher
        present = owner.unique().tolist() or by_task[:1].tolist()
        parts, places = list[TeacherScores](), list[Tensor]()
        for number, teacher in enumerate(self.distinct):  # in the same order on every rank
            if number not in present:
                if self.sharded:
                    teacher.touch(batch)
                continue
            if number in self.offloaded:
                self.offloaded[number].lend(batch.input_ids.device)
            if len(present) == 1:
                parts.append(teacher.score(batch, request))
            else:
                places.append((owner == number).nonzero().squeeze(1))
                parts.append(teacher.score(at_positions(batch, places[-1]), request.at(places[-1])))
        return parts[0] if len(parts) == 1 else _joined(parts, places, request)


def _joined(parts: Sequence[TeacherScores], places: Sequence[Tensor], request: ScoreRequest) -> TeacherScores:
    """The scores of several teachers in the order of the batch; `places`: each one's loss positions."""
    order = torch.cat(list(places)).argsort()
    support, support_at, probe = None, None, None
    if request.needs.support is not None and request.support_later:
        support_at = _joined_later(parts, places)
    elif request.needs.support is not None:
        support = _rows([p.support for p in parts if p.support is not None], order)
    if request.probe_at is not None:
        probed = [torch.isin(request.probe_at, at).nonzero().squeeze(1) for at in places]
        probe = _rows([p.probe for p in parts if p.probe is not None], torch.cat(probed).argsort())
    return TeacherScores(
        support=support,
        support_at=support_at,
        sampled=_column([p.sampled for p in parts], order),
        entropy=_column([p.entropy for p in parts], order),
        probe=probe,
    )


def _joined_later(parts: Sequence[TeacherScores], places: Sequence[Tensor]) -> Callable[[Tensor], Support]:
    """The supports of several teachers at some positions of the batch, asked for then."""

    def support_at(positions: Tensor) -> Support:
        supports, found = list[Support](), list[Tensor]()
        for part, place in zip(parts, places, strict=True):
            mine = torch.isin(positions, place).nonzero().squeeze(1)
            support = part.at(torch.searchsorted(place, positions[mine])).support
            assert support is not None
            supports.append(support)
            found.append(mine)
        return _rows(supports, torch.cat(found).argsort())

    return support_at


def _rows(parts: Sequence[Scores], order: Tensor) -> Scores:
    names = [field.name for field in fields(parts[0])]
    columns: dict[str, Any] = {name: _column([getattr(p, name) for p in parts], order) for name in names}
    return replace(parts[0], **columns)


def _column(values: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    """None if one of the teachers does not tell."""
    known = [value for value in values if value is not None]
    return torch.cat(known)[order] if len(known) == len(values) else None
