"""The frozen models that score the student's tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from opdlight.errors import ConfigError
from opdlight.losses import Needs, complete
from opdlight.models.backbone import check_head, head_of, hidden_at
from opdlight.models.checkpoints import load_model, load_tokenizer, resolve_model
from opdlight.models.lm_head import LMHead, entropy, logprobs_at, token_logprobs, top_k, top_k_and_token
from opdlight.models.student import Student
from opdlight.models.vocabulary import shared_size
from opdlight.types import Support, TeacherScores, TokenBatch


class Teacher(nn.Module):
    """A frozen causal LM (or a LoRA adapter on one): always in eval mode, never in a state dict or an optimizer.

    Args:
        model: model or adapter folder, `lab/<name>` or Hub name.
        dtype: "float32" or "bfloat16".
    """

    def __init__(self, model: str, dtype: str = "float32") -> None:
        super().__init__()
        self.name = model
        self.tokenizer = load_tokenizer(model)
        loaded = load_model(model, dtype).eval().requires_grad_(False)
        check_head(loaded)
        self._hidden_from_torch = (loaded,)  # in a tuple it is no submodule: checkpoints and optimizers do not see it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._hidden_from_torch[0]._apply(fn)  # .to(device) must still reach it
        super()._apply(fn, recurse)
        return self

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model."""
        return self._hidden_from_torch[0]

    def head(self) -> LMHead:
        """The LM head."""
        return head_of(self._hidden_from_torch[0])

    @torch.no_grad()
    def score(
        self, batch: TokenBatch, *, needs: Needs, chosen: Tensor | None, temperature: float, limit: int
    ) -> TeacherScores:
        """The top-K or the vocabulary that `needs` names, log-probs of the sampled tokens, the entropy: what is asked.

        Log-probs are at `temperature` and normalised over the teacher's full width; ids lie below `limit`. `chosen`
        [N, K] are ids that the student has named; None lets the teacher choose.
        """
        if needs.support is None and not needs.teacher_sampled and not needs.teacher_entropy:
            return TeacherScores()
        hidden, head = hidden_at(self._hidden_from_torch[0], batch), self.head()
        wavering = entropy(hidden, head, temperature=temperature) if needs.teacher_entropy else None
        token: Tensor | None = None
        if needs.support is None:
            if needs.teacher_sampled:
                token = token_logprobs(hidden, head, batch.target_ids, temperature)
            return TeacherScores(sampled=token, entropy=wavering)
        if needs.support == "full_vocabulary":
            ids = torch.arange(limit, device=hidden.device).expand(len(hidden), -1)
            logprobs = logprobs_at(hidden, head, ids, temperature=temperature)
        elif chosen is not None:
            ids, logprobs = chosen, logprobs_at(hidden, head, chosen, temperature=temperature)
        elif needs.teacher_sampled:
            ids, logprobs, token = top_k_and_token(
                hidden, head, needs.k, batch.target_ids, temperature=temperature, limit=limit
            )
        else:
            ids, logprobs = top_k(hidden, head, needs.k, temperature=temperature, limit=limit)
        if needs.teacher_sampled and token is None:
            token = token_logprobs(hidden, head, batch.target_ids, temperature)
        kind = "full_vocabulary" if needs.support == "full_vocabulary" else _chooser(chosen)
        valid = torch.ones_like(ids, dtype=torch.bool)
        support = Support(token_ids=ids, teacher_logprobs=logprobs, valid=valid, kind=kind)
        return TeacherScores(support=support, sampled=token, entropy=wavering)


class Teachers(nn.Module):
    """One teacher a task; a checkpoint that serves several tasks is loaded once.

    Args:
        models: task → model.
        student: whose vocabulary the teachers must share.
        dtype: of the teachers.

    Raises:
        VocabularyError: if a teacher's tokenizer disagrees with the student's on an id that both have.
    """

    def __init__(self, models: Mapping[str, str], student: Student, dtype: str = "float32") -> None:
        super().__init__()
        if not models:
            raise ConfigError.wrong("task.tasks", expected="a teacher for at least one task", got=dict(models))
        checkpoints = {task: resolve_model(model) for task, model in models.items()}
        distinct = list(dict.fromkeys(checkpoints.values()))
        self.teachers = nn.ModuleList(Teacher(model, dtype) for model in distinct)
        self.teacher_of = {task: distinct.index(model) for task, model in checkpoints.items()}
        self.shared_vocabulary = min(
            shared_size(student.tokenizer, student.head().width, t.tokenizer, t.head().width, t.name)
            for t in self._all()
        )

    def _all(self) -> list[Teacher]:
        return [t for t in self.teachers if isinstance(t, Teacher)]

    def of(self, task: str) -> Teacher:
        """The teacher of a task."""
        if task not in self.teacher_of:
            raise ConfigError.wrong("task", expected=f"one of {', '.join(self.teacher_of)}", got=task)
        return self._all()[self.teacher_of[task]]

    def score(self, batch: TokenBatch, *, needs: Needs, chosen: Tensor | None, temperature: float) -> TeacherScores:
        """What `needs` asks for; each row is read by the teacher of its task only. `chosen`: ids the student named."""
        found = self._score(batch, needs, chosen, temperature)
        return replace(found, support=complete(found.support, needs, batch.target_ids, found.sampled))

    def _score(self, batch: TokenBatch, needs: Needs, named: Tensor | None, temperature: float) -> TeacherScores:
        ask: dict[str, Any] = {"needs": needs, "temperature": temperature, "limit": self.shared_vocabulary}
        teachers = [self.of(task) for task in batch.tasks]
        present = list(dict.fromkeys(teachers[i] for i in batch.task_index.unique().tolist()))
        if len(present) < 2:
            return (present[0] if present else teachers[0]).score(batch, chosen=named, **ask)

        parts: list[TeacherScores] = []
        places: list[Tensor] = []
        for teacher in present:
            tasks = [i for i, t in enumerate(teachers) if t is teacher]
            at = torch.isin(batch.task_index, batch.task_index.new_tensor(tasks)).nonzero().squeeze(1)
            places.append(at)
            parts.append(teacher.score(_positions(batch, at), chosen=None if named is None else named[at], **ask))
        back = torch.argsort(torch.cat(places))
        support = None
        if parts[0].support is not None:
            supports = [p.support for p in parts if p.support is not None]
            support = replace(
                supports[0],
                token_ids=torch.cat([s.token_ids for s in supports])[back],
                teacher_logprobs=torch.cat([s.teacher_logprobs for s in supports])[back],
                valid=torch.cat([s.valid for s in supports])[back],
            )
        return TeacherScores(
            support=support,
            sampled=_join([p.sampled for p in parts], back),
            entropy=_join([p.entropy for p in parts], back),
        )


def _join(parts: Sequence[Tensor | None], back: Tensor) -> Tensor | None:
    whole = [p for p in parts if p is not None]
    return torch.cat(whole)[back] if whole else None


def _chooser(chosen: Tensor | None) -> str:
    return "teacher_top_k" if chosen is None else "student_top_k"


def _positions(batch: TokenBatch, at: Tensor) -> TokenBatch:
    """The loss positions `at` [n] of a batch, the rows that they lie in, and no more columns than those rows fill."""
    rows, row_index = torch.unique(batch.row_index[at], return_inverse=True)
    columns = int(batch.attention_mask[rows].sum(1).max())
    flat = (
        "col_index",
        "target_ids",
        "sampled_logprobs",
        "turn_index",
        "token_position",
        "trajectory_index",
        "task_index",
        "group_advantage",
    )
    wide = ("input_ids", "attention_mask", "position_ids")
    return replace(
        batch,
        row_index=row_index,
        **{name: getattr(batch, name)[at] for name in flat},
        **{name: getattr(batch, name)[rows, :columns] for name in wide},
    )
