"""What the built parts of a run must agree on, beyond what their config says (`config.cross_checks`)."""

from omegaconf import DictConfig

from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.errors import CheckpointError
from opdlight.models import Student
from opdlight.models.loading import load_tokenizer
from opdlight.rollout import ChatRenderer


def check_chats(cfg: DictConfig, mixture: TaskMixture, student: Student) -> None:
    """Refuse stops, chat templates and their arguments that would fail only when somebody rolls out.

    Raises:
        ConfigError: naming the key of the policy, or of the task's teacher.
        CheckpointError: naming the key of a teacher that cannot be loaded.
    """
    ChatRenderer(student.tokenizer, student.chat_template)
    for name in ("sampling", "evaluation"):
        instantiate(cfg[name]).resolve(student.tokenizer)
    for name, task in mixture.tasks.items():
        if task.teacher is not None and (cfg.evaluate_teachers or task.teacher_chat_template):
            key = f"task.tasks.{name}.teacher"
            with CheckpointError.at(key):
                tokenizer = load_tokenizer(task.teacher, trust_remote_code=cfg.model.trust_remote_code)
            ChatRenderer(tokenizer, task.teacher_chat_template, f"{key}_chat_template")
