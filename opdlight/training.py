"""A distillation run: every part is built, the student is measured, trained and measured again."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch.optim import Optimizer

from opdlight import checkpointing, records, run_folder
from opdlight.callbacks import Checkpoints, StageProgress, Throughput
from opdlight.closing import Closing
from opdlight.collate import Collate
from opdlight.config import instantiate, resume_command
from opdlight.console import is_first_process, say, stage
from opdlight.data import OnPolicyData, TaskMixture
from opdlight.doctor.examination import examine_quickly
from opdlight.errors import ConfigError
from opdlight.evaluation import evaluate_tasks, make_collector
from opdlight.loggers import close_loggers, open_loggers
from opdlight.losses import ImportanceWeighted, Loss
from opdlight.metrics import Result
from opdlight.models import Student, Teacher, Teachers, resolve_model
from opdlight.models.checkpoints import load_tokenizer
from opdlight.models.precision import BESIDE, LEAST, bfloat16_share, check_engine_dtype, lost, needs_float32_engine
from opdlight.module import OnPolicyDistillation
from opdlight.preemption import Preempted, Preemption
from opdlight.rollout import ChatRenderer, Collector, VLLMServerEngine
from opdlight.system import threads
from opdlight.types import Trajectory

AFTER = "evaluate after"  # the part of the end of a run that measures the trained student


def make_optimizer(cfg: DictConfig, student: Student) -> Callable[[Any], Optimizer]:
    """Parameters → optimizer, tried once: a value that it refuses is reported now and not when training starts."""
    make: Callable[[Any], Optimizer] = instantiate(cfg.optimizer)
    try:
        make(student.trainable_parameters())
    except ValueError as error:
        raise ConfigError(f"Cannot build `optimizer`: {error}") from error
    _check_steps(cfg, student)
    return make


def _check_steps(cfg: DictConfig, student: Student) -> None:
    """Refuse a learning rate that bfloat16 weights would not follow; where many do, the doctor warns, or this does."""
    lr, target = cfg.optimizer.get("lr"), str(cfg.optimizer.get("_target_"))
    share = None if lr is None else bfloat16_share(student, lr)
    if share is None:
        return
    if share < LEAST and target.startswith("torch.optim.") and "Adam" in target:
        raise ConfigError.wrong("model.dtype", expected=f"float32, because {lost(share, lr)}", got="bfloat16")
    if not cfg.get("doctor", False):
        say(f"warning: {lost(share, lr)}. model.dtype=float32 loses nothing.")


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
        collector=collector,
        collate=Collate(
            tasks=tuple(mixture.teachers),
            pad_id=0,  # never attended to and never a loss position
            shared=teachers.shared_vocabulary,
            micro_batch_tokens=cfg.micro_batch_tokens,
            kept=mask.kept,
        ),
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule),
        sampling=instantiate(cfg.sampling),
        evaluation=instantiate(cfg.evaluation),
        max_grad_norm=cfg.max_grad_norm,
        seed=cfg.seed,
        reader=instantiate(cfg.reader),
        mini_batches=cfg.rollout.mini_batches,
        reference=reference,
        max_not_finite=cfg.max_not_finite,
        teacher_placement=cfg.teacher_placement,
        staleness=cfg.staleness,
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


def train(cfg: DictConfig) -> dict[str, float]:
    """Evaluate, distil, evaluate again, measure the teachers; everything goes to the run folder.

    With `resume` the run of that folder goes on from its newest checkpoint, or from the start if it had none yet.
    """
    with Preemption() as preemption:
        try:
            return _train(cfg, preemption)
        except Preempted as stop:
            again = " The rollout is done again." if preemption.rollout_lost else ""
            say(f"{run_folder.kept(Path(cfg.run_dir))}{again}")
            say(f"{stop.why}: stopped. To go on: {resume_command(cfg.run_dir)}")
            raise


def _train(cfg: DictConfig, preemption: Preemption) -> dict[str, float]:
    started = time.perf_counter()
    folder, first = Path(cfg.run_dir).absolute(), is_first_process()
    checkpoint = checkpointing.newest(folder, first=first) if cfg.resume else None
    if checkpoint:
        check_steps(cfg, checkpoint)  # before anything of this command line is written down
    folder = run_folder.open_run(cfg)
    if not cfg.resume and checkpointing.all_of(folder):
        raise ConfigError.wrong("run_dir", expected="a folder without checkpoints, or `resume` it", got=str(folder))
    if cfg.resume and not go_on(cfg, folder, checkpoint, first=first):
        return {f"success/{name}": rate for name, rate in run_folder.read_successes(folder).items()}
    if not cfg.resume:
        say(f"run folder: {folder}")  # at once, so that of several runs each can be watched
    say(threads.describe())
    L.seed_everything(cfg.seed, verbose=False)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    with stage("loading student and teachers"):
        module = build(cfg, mixture)
    module.preemption = preemption
    if checkpoint:
        checkpointing.check_fits(checkpoint, module)
    module.student.check_saving()
    callbacks = list(instantiate(cfg.callbacks).values())
    for keeper in (c for c in callbacks if isinstance(c, Checkpoints)):
        keeper.check_space(module.student)
    closing = Closing(resume_command(cfg.run_dir))
    loggers = open_loggers(cfg, folder, closing, step=checkpointing.steps_of(checkpoint) if checkpoint else None)
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),  # none of Lightning's own instead
        enable_progress_bar=any(isinstance(c, StageProgress) for c in callbacks),
        logger=loggers,
        default_root_dir=str(folder),
        plugins=[*instantiate(cfg.trainer.get("plugins") or []), checkpointing.CheckpointFolder()],
    )
    data = OnPolicyData(
        mixture, updates=batches(cfg), groups=cfg.rollout.groups, group_size=cfg.rollout.group_size, seed=cfg.seed
    )
    if trainer.world_size == 1:
        _ = module.collector  # its engine starts now; with several processes only once they have found each other
    seconds = {"set-up": time.perf_counter() - started}
    try:
        examine_quickly(cfg, mixture, module)
        if checkpoint is None:
            with run_folder.timed(seconds, "evaluate before"):
                trainer.validate(module, datamodule=data, verbose=False)
            module.before, module.evaluated = module.evaluated, {}
        if first:
            run_folder.link_latest(folder)
        with run_folder.timed(seconds, "train"):
            fit(trainer, module, data, checkpoint, closing)  # its last validation loop: the figures after
        if not module.evaluated and AFTER not in closing.failed:  # a limit such as trainer.max_time stopped it earlier
            with closing.part(AFTER):
                trainer.validate(module, datamodule=data, verbose=False)
        with closing.part("save the student"):
            module.student.save(folder / "student")
    finally:
        with closing.part("stop the engine"):
            module.close()
        close_loggers(loggers, closing)
    teachers: dict[str, list[Trajectory]] = {}
    if cfg.evaluate_teachers and first:
        with run_folder.timed(seconds, "evaluate teachers"), closing.part("evaluate the teachers"):
            teachers = evaluate_teachers(cfg, mixture)
    throughput = next((c for c in callbacks if isinstance(c, Throughput)), Throughput())
    seconds |= {f"train: {name}": s for name, s in throughput.seconds.items()}
    outcome = {
        name: run_folder.Outcome(
            before=module.before[name],
            after=module.evaluated[name],
            teacher=Result.of(teachers[name]) if name in teachers else None,
        )
        for name in mixture.names
        if name in module.before and name in module.evaluated  # trainer.limit_val_batches=0 measures none
    }
    if first:
        run_folder.close_run(
            folder, outcome, closing, seconds=seconds, generated=throughput.generated, trained=throughput.trained
        )
    closing.end()
    return {f"success/{name}": o.after.success for name, o in outcome.items()}


def fit(
    trainer: L.Trainer, module: OnPolicyDistillation, data: OnPolicyData, checkpoint: Path | None, closing: Closing
) -> None:
    """Train; what fails after the last update, such as the evaluation after it, does not cost the student.

    Of several processes the others would wait in the middle of theirs, so there it ends the run; `resume` goes on.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except Exception as error:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if trainer.world_size > 1 or done < data.train_set.updates:
            raise
        closing.note(AFTER, error)


def batches(cfg: DictConfig) -> int:
    """How many rollouts make `trainer.max_steps` updates."""
    return math.ceil(cfg.trainer.max_steps / cfg.rollout.mini_batches)


def check_steps(cfg: DictConfig, checkpoint: Path) -> None:
    """Raise ConfigError if the run has done more updates than `trainer.max_steps` allows now."""
    done = checkpointing.steps_of(checkpoint)
    if batches(cfg) < done:
        expected = f"at least {done * cfg.rollout.mini_batches}, the updates that {cfg.resume} has done"
        raise ConfigError.wrong("trainer.max_steps", expected=expected, got=cfg.trainer.max_steps)


def go_on(cfg: DictConfig, folder: Path, checkpoint: Path | None, *, first: bool) -> bool:
    """Wind the records back to the checkpoint and say where the run goes on; False if nothing is left to do."""
    over = (
        checkpoint is not None
        and checkpointing.is_last(checkpoint)
        and checkpointing.steps_of(checkpoint) == batches(cfg)
    )
    if over and run_folder.is_complete(folder, teachers=cfg.evaluate_teachers):
        say(f"nothing to do: {folder} has done its {cfg.trainer.max_steps} updates (trainer.max_steps)")
        return False
    if first:
        records.rewind(folder, checkpointing.read_manifest(checkpoint)["records"] if checkpoint else {})
        (folder / run_folder.SUMMARY).unlink(missing_ok=True)  # of a run that was shorter
    if over:
        say(f"nothing to train: {folder} has done its {cfg.trainer.max_steps} updates; its end is done again")
    else:
        where = (
            f"after step {checkpointing.steps_of(checkpoint)}"
            if checkpoint
            else "at the start: it has no checkpoint yet"
        )
        say(f"{folder} goes on {where}")
    return True


def evaluate_teachers(cfg: DictConfig, mixture: TaskMixture) -> dict[str, list[Trajectory]]:
    """Each teacher on the held-out episodes of its tasks, one engine a checkpoint."""
    found: dict[str, list[Trajectory]] = {}
    by_model: dict[str, list[str]] = {}
    for name, task in mixture.tasks.items():
        if task.teacher is None:
            continue
        by_model.setdefault(str(resolve_model(task.teacher)), []).append(name)
    for model, names in by_model.items():
        with stage("starting the teacher's engine"):
            engine = instantiate(cfg.engine, model=model)
        tokenizer = load_tokenizer(model, trust_remote_code=cfg.model.trust_remote_code)
        sampling = instantiate(cfg.evaluation).resolve(tokenizer, skip_unknown=True)
        try:
            for name in names:  # each has its own arguments of the chat template
                tasks = {name: mixture.tasks[name]}
                arguments = mixture.tasks[name].teacher_chat_template
                collector = make_collector(engine, tokenizer, tasks, cfg.rollout.env_threads, arguments)
                found |= evaluate_tasks(collector, tasks, sampling, whose="teacher of ")
                collector.close()
        finally:
            engine.close()
    return found
