"""A served teacher and what is asked of it."""

from typing import Any

from opdlight.losses import Needs
from opdlight.models import ServerTeacher
from opdlight.types import TeacherScores
from tests.fake_server import FakeServer
from tests.models.score_cases import BATCH, TOP, request
from tests.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def served(folder: str, *fakes: FakeServer, **changed: Any) -> ServerTeacher:
    return ServerTeacher(folder, url=[f.url for f in fakes], **{"retries": 2, "timeout": 20.0, **changed})


def score(teacher: ServerTeacher, needs: Needs = TOP, **changed: Any) -> TeacherScores:
    return teacher.score(BATCH, request(needs, **changed))
