"""Results of a probe made by hand: two models over six tokens, as probabilities that one can add up in one's head."""

from typing import Any

import torch
from torch import Tensor

from opdlight.models.probe import ProbeResult

STUDENT = torch.tensor(
    [[0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [0.15, 0.6, 0.1, 0.05, 0.05, 0.05], [0.05, 0.05, 0.1, 0.1, 0.2, 0.5]]
)
TEACHER = torch.tensor(
    [[0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [0.6, 0.15, 0.1, 0.05, 0.05, 0.05], [0.5, 0.2, 0.1, 0.1, 0.05, 0.05]]
)


def made_up(
    tokens: list[int],
    *,
    student: Tensor = STUDENT,
    teacher: Tensor = TEACHER,
    k: int = 2,
    **fields: Any,
) -> ProbeResult:
    """Row i of both models says token i; task 0, turn 0 and position i unless given."""
    n = len(tokens)
    token = torch.tensor(tokens)
    log_p, log_q = student[:n].log(), teacher[:n].log()
    student_top, student_ids = log_p.topk(k)
    teacher_top, teacher_ids = log_q.topk(k)
    pick = token.unsqueeze(1)
    own = log_p.gather(1, pick).squeeze(1)
    values: dict[str, Any] = {
        "tasks": ("a", "b"), "loss_tokens": n, "global_tokens": n,
        "task": torch.zeros(n, dtype=torch.long), "turn": torch.zeros(n, dtype=torch.long), "position": torch.arange(n),
        "token": token, "engine": own, "trainer": own, "student": own, "teacher": log_q.gather(1, pick).squeeze(1),
        "student_entropy": -(log_p.exp() * log_p).sum(1), "teacher_entropy": -(log_q.exp() * log_q).sum(1),
        "teacher_ids": teacher_ids, "teacher_top": teacher_top, "student_at_teacher": log_p.gather(1, teacher_ids),
        "student_ids": student_ids, "student_top": student_top, "teacher_at_student": log_q.gather(1, student_ids),
        **fields,
    }  # fmt: skip
    return ProbeResult(**values)


class Logged:
    """Stands in for a module: keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, key: str, value: float, **_: Any) -> None:
        self.values[key] = float(value)
