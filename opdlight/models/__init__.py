"""Student, teachers and the LM head between hidden states and losses."""

from opdlight.models.base import BatchScorer, ScoreRequest, TeacherModel
from opdlight.models.loading import resolve_model
from opdlight.models.probe import Probe, ProbeResult
from opdlight.models.scorer import Scored, Scorer
from opdlight.models.server_teacher import ServerTeacher
from opdlight.models.student import Student
from opdlight.models.teacher import Teacher
from opdlight.models.teachers import Teachers

__all__ = [
    "BatchScorer",
    "Probe",
    "ProbeResult",
    "ScoreRequest",
    "Scored",
    "Scorer",
    "ServerTeacher",
    "Student",
    "Teacher",
    "TeacherModel",
    "Teachers",
    "resolve_model",
]
