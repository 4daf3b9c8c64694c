"""A distillation run: every part is built, the student is measured, trained and measured again."""

import time
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from opdlight.callbacks import Checkpoints, StageProgress, Throughput
from opdlight.config import instantiate, make_trainer, resume_command
from opdlight.data.requests import OnPolicyData
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.doctor.examination import examine_quickly
from opdlight.errors import ConfigError
from opdlight.metrics.success import Result
from opdlight.run_folder import checkpoints
from opdlight.run_folder.folder import describe_progress, link_latest, open_run
from opdlight.run_folder.loggers import close_loggers, open_loggers
from opdlight.run_folder.summary import Outcome, close_run, read_successes, timed
from opdlight.system import threads
from opdlight.system.closing import Closing
from opdlight.system.console import is_first_process, progress, say
from opdlight.system.lightning_internals import completed_steps
from opdlight.system.preemption import Preempted, Preemption
from opdlight.train.build import build
from opdlight.train.resume import batches, check_steps, go_on
from opdlight.train.teachers import evaluate_teachers
from opdlight.types import Trajectory

AFTER = "evaluate after"  # the part of the end of a run that measures the trained student


def train(cfg: DictConfig) -> dict[str, float]:
    """Evaluate, distil, evaluate again, measure the teachers; everything goes to the run folder.

    With `resume` the run of that folder goes on from its newest checkpoint, or from the start if it had none yet.
    """
    with Preemption() as preemption:
        try:
            return _train(cfg, preemption)
        except Preempted as stop:
            again = " The rollout is done again." if preemption.rollout_lost else ""
            say(f"{describe_progress(Path(cfg.run_dir))}{again}")
            say(f"{stop.why}: stopped. To go on: {resume_command(cfg.run_dir)}")
            raise


def _train(cfg: DictConfig, preemption: Preemption) -> dict[str, float]:
    started = time.perf_counter()
    folder, first = Path(cfg.run_dir).absolute(), is_first_process()
    checkpoint = checkpoints.newest(folder, first=first) if cfg.resume else None
    if checkpoint:
        check_steps(cfg, checkpoint)  # before anything of this command line is written down
    folder = open_run(cfg)
    if not cfg.resume and checkpoints.list_checkpoints(folder):
        raise ConfigError.wrong("run_dir", expected="a folder without checkpoints, or `resume` it", got=str(folder))
    if cfg.resume and not go_on(cfg, folder, checkpoint, first=first):
        return {f"success/{name}": rate for name, rate in read_successes(folder).items()}
    if not cfg.resume:
        say(f"run folder: {folder}")  # at once, so that of several runs each can be watched
    say(threads.describe())
    L.seed_everything(cfg.seed, verbose=False)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    with progress("loading student and teachers"):
        module = build(cfg, mixture)
    module.source.preemption = preemption
    if checkpoint:
        checkpoints.check_fits(checkpoint, module)
    module.student.check_saving()
    callbacks = list(instantiate(cfg.callbacks).values())
    for keeper in (c for c in callbacks if isinstance(c, Checkpoints)):
        keeper.check_space(module.student)
    closing = Closing(resume_command(cfg.run_dir))
    loggers = open_loggers(cfg, folder, closing, step=checkpoints.steps_of(checkpoint) if checkpoint else None)
    trainer = make_trainer(
        cfg.trainer,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),  # none of Lightning's own instead
        enable_progress_bar=any(isinstance(c, StageProgress) for c in callbacks),
        logger=loggers,
        default_root_dir=str(folder),
        plugins=[*instantiate(cfg.trainer.get("plugins") or []), checkpoints.CheckpointFolder()],
    )
    data = OnPolicyData(
        mixture, updates=batches(cfg), groups=cfg.rollout.groups, group_size=cfg.rollout.group_size, seed=cfg.seed
    )
    if trainer.world_size == 1:
        module.source.start()  # with several processes only once they have found each other
    seconds = {"set-up": time.perf_counter() - started}
    try:
        examine_quickly(cfg, mixture, module)
        if checkpoint is None:
            with timed(seconds, "evaluate before"):
                trainer.validate(module, datamodule=data, verbose=False)
            module.before, module.evaluated = module.evaluated, {}
        if first:
            link_latest(folder)
        with timed(seconds, "train"):
            fit(trainer, module, data, checkpoint, closing)  # its last validation loop: the figures after
        if not module.evaluated and AFTER not in closing.failed:  # a limit such as trainer.max_time stopped it earlier
            with closing.part(AFTER):
                trainer.validate(module, datamodule=data, verbose=False)
        with closing.part("save the student"):
            module.student.save(folder / "student")
    finally:
        with closing.part("stop the engine"):
            module.source.close()
        close_loggers(loggers, closing)
    teachers: dict[str, list[Trajectory]] = {}
    if cfg.evaluate_teachers and first:
        with timed(seconds, "evaluate teachers"), closing.part("evaluate the teachers"):
            teachers = evaluate_teachers(cfg, mixture)
    throughput = next((c for c in callbacks if isinstance(c, Throughput)), Throughput())
    seconds |= {f"train: {name}": s for name, s in throughput.seconds.items()}
    outcome = {
        name: Outcome(
            before=module.before[name],
            after=module.evaluated[name],
            teacher=Result.of(teachers[name]) if name in teachers else None,
        )
        for name in mixture.names
        if name in module.before and name in module.evaluated  # trainer.limit_val_batches=0 measures none
    }
    if first:
        close_run(folder, outcome, closing, seconds=seconds, generated=throughput.generated, trained=throughput.trained)
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
        done = completed_steps(trainer)
        if trainer.world_size > 1 or done < data.train_set.updates:
            raise
        closing.note(AFTER, error)
