"""Every part of a run, made from its config and checked together."""

from functools import partial

from omegaconf import DictConfig

from opdlight.batch.collate import Collate
from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.optim import make_optimizer
from opdlight.errors import ConfigError
from opdlight.evaluate.run import make_collector
from opdlight.losses import ImportanceWeighted, Loss
from opdlight.models import Student, Teacher, Teachers
from opdlight.models.loading import load_tokenizer
from opdlight.models.precision import BESIDE, check_engine_dtype, needs_float32_engine
from opdlight.rollout import ChatRenderer, Collector, VLLMServerEngine
from opdlight.rollout.source import RolloutSource


def check_server_dtype(student: Student, engine: VLLMServerEngine) -> None:
    """Raise ConfigError, and leave the server alone, if it would round a bfloat16 student's adapters away."""
    if needs_float32_engine(student) and engine.dtype != "float32":
        held = engine.dtype
        engine.close()
        raise ConfigError.wrong("engine.url", expected=f"`vllm serve --dtype float32` {BESIDE}", got=held)


def build(cfg: DictConfig, mixture: TaskMixture) -> OnPolicyDistillation:
    """Instantiate every part and check that they fit together."""
    student: Student = instantiate(cfg.model.student)
    teachers = Teachers(mixture.teachers, student, instantiate(cfg.teacher))
    try:
        mask = instantiate(cfg.mask).resolve(student.tokenizer)
    except ValueError as error:  # losses know nothing of config errors
        raise ConfigError(str(error)) from error
    optimizer = make_optimizer(cfg, student)
    check_engine_dtype(student, cfg.engine)
    loss: Loss = instantiate(cfg.loss)
    teachers.check(loss.needs, temperature=cfg.sampling.temperature, look_k=cfg.reader.k)
    reference = None
    if loss.needs.reference:
        own = partial(Teacher, dtype=cfg.model.dtype, trust_remote_code=cfg.model.trust_remote_code)
        reference = Teachers(dict.fromkeys(mixture.teachers, cfg.model.student.model), student, own)
    _check_chats(cfg, mixture, student)
    if cfg.staleness and not loss.needs.engine_logprobs:  # the engine's policy is not the student any more
        try:
            loss = ImportanceWeighted(loss=loss)
        except ValueError as error:
            raise ConfigError(f"`staleness: 1` weights the loss by importance, but: {error}") from error
    if loss.needs.group_advantage and cfg.rollout.group_size < 2:
        raise ConfigError.wrong(
            "rollout.group_size", expected="at least 2 beside `loss.reward_weight`", got=cfg.rollout.group_size
        )
    if cfg.evaluate_teachers and "url" in cfg.engine:
        expected = "false beside engine=vllm_server, which holds the student"
        raise ConfigError.wrong("evaluate_teachers", expected=expected, got=True)
    if loss.needs.engine_logprobs and cfg.sampling.temperature != 1:
        raise ConfigError.wrong(
            "sampling.temperature",
            expected="1 for importance weights (the engine reports log-probs at temperature 1), as `staleness: 1` has",
            got=cfg.sampling.temperature,
        )

    def collector() -> Collector:
        engine = instantiate(cfg.engine, model=cfg.model.student.model)
        if isinstance(engine, VLLMServerEngine):
            check_server_dtype(student, engine)
        return make_collector(engine, student.tokenizer, mixture.tasks, cfg.rollout.env_threads, student.chat_template)

    return OnPolicyDistillation(
        student=student,
        teachers=teachers,
        loss=loss,
        source=RolloutSource(
            collector,
            sampling=instantiate(cfg.sampling),
            evaluation=instantiate(cfg.evaluation),
            seed=cfg.seed,
            staleness=cfg.staleness,
        ),
        collate=Collate(
            tasks=tuple(mixture.teachers),
            shared=teachers.shared_vocabulary,
            micro_batch_tokens=cfg.micro_batch_tokens,
            loss_mask=mask.loss_mask,
        ),
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule),
        max_grad_norm=cfg.max_grad_norm,
        reader=instantiate(cfg.reader),
        mini_batches=cfg.rollout.mini_batches,
        reference=reference,
        max_not_finite=cfg.max_not_finite,
        teacher_placement=cfg.teacher_placement,
    )


def _check_chats(cfg: DictConfig, mixture: TaskMixture, student: Student) -> None:
    """Raise ConfigError for stops, templates and their arguments that would fail only when somebody rolls out."""
    ChatRenderer(student.tokenizer, student.chat_template)
    for name in ("sampling", "evaluation"):
        instantiate(cfg[name]).resolve(student.tokenizer)
    for name, task in mixture.tasks.items():
        if task.teacher is not None and (cfg.evaluate_teachers or task.teacher_chat_template):
            key = f"task.tasks.{name}.teacher_chat_template"
            tokenizer = load_tokenizer(task.teacher, trust_remote_code=cfg.model.trust_remote_code)
            ChatRenderer(tokenizer, task.teacher_chat_template, key)
