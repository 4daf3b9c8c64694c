"""Every part of a run, made from its config."""

from functools import partial

from omegaconf import DictConfig

from opdlight.batch.collate import Collate
from opdlight.config import instantiate
from opdlight.config.cross_checks import check_loss
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.optim import check_optimizer
from opdlight.errors import ConfigError
from opdlight.losses import ImportanceWeighted, Loss
from opdlight.models import ScoreRequest, Student, Teacher, Teachers
from opdlight.models.packing import resolve_packing
from opdlight.rollout import Collector, count_workers, make_collector
from opdlight.rollout.source import RolloutSource
from opdlight.train.checks import check_chats


def build(cfg: DictConfig, mixture: TaskMixture) -> OnPolicyDistillation:
    """Instantiate every part and check that they fit together."""
    loss: Loss = instantiate(cfg.loss)
    if cfg.staleness and not loss.needs.engine_logprobs:  # the engine's policy is not the student any more
        with ConfigError.instead("`staleness: 1` weights the loss by importance, but: "):
            loss = ImportanceWeighted(loss=loss)
    check_loss(
        group_advantage=loss.needs.group_advantage,
        engine_logprobs=loss.needs.engine_logprobs,
        group_size=cfg.rollout.group_size,
        temperature=cfg.sampling.temperature,
    )
    student: Student = instantiate(cfg.model.student)
    check_chats(cfg, mixture, student)
    with ConfigError.instead():  # losses know nothing of config errors
        mask = instantiate(cfg.mask).resolve(student.tokenizer)
    optimizer = instantiate(cfg.optimizer)
    check_optimizer(optimizer, student, warn=not cfg.doctor)
    teachers = Teachers(mixture.teachers, student, instantiate(cfg.teacher))
    teachers.check(
        ScoreRequest(
            needs=loss.needs,
            shared=teachers.shared_vocabulary,
            temperature=cfg.sampling.temperature,
            probe_k=cfg.probe.k,
        )
    )
    reference = None
    if loss.needs.reference:
        own = partial(
            Teacher,
            dtype=cfg.model.compute_dtype,
            trust_remote_code=cfg.model.trust_remote_code,
            attn_implementation=cfg.model.get("attn_implementation"),
        )
        reference = Teachers(dict.fromkeys(mixture.teachers, cfg.model.student.model), student, own)
    local = [t.model for each in (teachers, reference) if each for t in each.distinct if isinstance(t, Teacher)]

    def collector() -> Collector:
        engine = instantiate(cfg.engine, model=cfg.model.student.model)
        workers = count_workers(cfg.rollout.env_workers, cfg.trainer.get("num_nodes") or 1)
        threads, template = cfg.rollout.env_threads, student.chat_template
        return make_collector(engine, student.tokenizer, mixture.tasks, threads, template, workers)

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
            packed=resolve_packing(cfg.packing, [student.model, *local]),
        ),
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule),
        max_grad_norm=cfg.max_grad_norm,
        probe=instantiate(cfg.probe),
        mini_batches=cfg.rollout.mini_batches,
        reference=reference,
        max_not_finite=cfg.max_not_finite,
        teacher_placement=cfg.teacher_placement,
    )
