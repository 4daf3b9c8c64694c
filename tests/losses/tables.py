"""Scores of models that are mere tables of logits, through the real LM head: hidden states are logits."""

import torch
from torch import Tensor

from opdlight.losses import Needs, complete
from opdlight.models import Student
from opdlight.models.lm_head import LMHead, logprobs_at, token_logprobs, top_k
from opdlight.types import Support, SupportScores, TeacherScores, TokenBatch


def batch_of(targets: Tensor, **fields: Tensor) -> TokenBatch:
    """One row in which every position carries loss; `fields` replace what is counted up."""
    n = len(targets)
    zeros, up = torch.zeros(n, dtype=torch.long), torch.arange(n)
    values = {
        "input_ids": torch.zeros(1, n + 1, dtype=torch.long),
        "attention_mask": torch.ones(1, n + 1, dtype=torch.bool),
        "position_ids": torch.arange(n + 1).unsqueeze(0),
        "row_index": zeros,
        "col_index": up,
        "target_ids": targets,
        "sampled_logprobs": torch.zeros(n),
        "turn_index": zeros,
        "token_position": up,
        "trajectory_index": zeros,
        "task_index": zeros,
        "group_advantage": torch.zeros(n),
        **fields,
    }
    return TokenBatch(**values, tasks=("a",), global_tokens=n)  # type: ignore[arg-type]


class Table:
    """A student whose head is the identity."""

    def __init__(self, vocabulary: int, dtype: torch.dtype) -> None:
        self.identity = LMHead(weight=torch.eye(vocabulary, dtype=dtype))

    def head(self) -> LMHead:
        """V = d."""
        return self.identity


def scores_of(needs: Needs, z: Tensor, q: Tensor, targets: Tensor) -> SupportScores:
    """What the module would hand to a loss for student logits z and teacher logits q [N, V]."""
    size, table, teacher = z.shape[1], Table(z.shape[1], z.dtype), LMHead(weight=torch.eye(z.shape[1], dtype=q.dtype))
    student: Student = table  # type: ignore[assignment]
    chosen = Student.chosen(student, z, needs, temperature=1.0, limit=size)
    support = None
    if needs.support == "full_vocabulary":
        chosen = torch.arange(size).expand(len(z), -1)
    if needs.support is not None:
        if chosen is None:
            chosen, _ = top_k(q, teacher, needs.k, limit=size)
        logprobs = logprobs_at(q, teacher, chosen, temperature=1.0)
        kind = "full_vocabulary" if needs.support == "full_vocabulary" else "top_k"
        support = Support(
            token_ids=chosen, teacher_logprobs=logprobs, valid=torch.ones_like(chosen, dtype=torch.bool), kind=kind
        )
    token = token_logprobs(q, teacher, targets) if needs.teacher_sampled else None
    support = complete(support, needs, targets, token)
    scores = TeacherScores(support=support, sampled=token)
    return Student.score(student, z, batch_of(targets), teacher=scores, needs=needs, temperature=1.0)
