"""Student, teachers and the LM head between hidden states and losses."""

from opdlight.models.loading import resolve_model
from opdlight.models.server_teacher import ServerTeacher
from opdlight.models.student import Student
from opdlight.models.teacher import Teacher
from opdlight.models.teachers import Teachers

__all__ = ["ServerTeacher", "Student", "Teacher", "Teachers", "resolve_model"]
