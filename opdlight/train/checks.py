"""What the built parts of a run must agree on, beyond what their config says (`config.cross_checks`)."""

from omegaconf import DictConfig

from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.errors import CheckpointError, ConfigError
from opdlight.models import Student
from opdlight.models.loading import load_tokenizer
from opdlight.models.precision import BESIDE, needs_float32_engine
from opdlight.rollout import ChatRenderer, Engine, VLLMServerEngine


def check_server_dtype(student: Student, engine: Engine) -> None:
    """Refuse a server that would round a bfloat16 student's adapters away, and leave it alone.

    Raises:
        ConfigError: naming `engine.url` and the dtype that the server holds.
    """
    if isinstance(engine, VLLMServerEngine) and needs_float32_engine(student) and engine.dtype != "float32":
        held = engine.dtype
        engine.close()
        raise ConfigError.wrong("engine.url", expected=f"`vllm serve --dtype float32` {BESIDE}", got=held)


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
