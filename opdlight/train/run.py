"""A distillation run: every part is built, the student is measured, trained and measured again."""

import time
from collections.abc import Mapping
from pathlib import Path

import lightning as L
from omegaconf import DictConfig, ListConfig

from opdlight.callbacks import Checkpoints, StageProgress, Throughput
from opdlight.config import instantiate, make_trainer, resume_command
from opdlight.config.trainer import check_nodes, check_torchrun
from opdlight.data.requests import OnPolicyData
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.doctor.examination import examine_quickly
from opdlight.metrics.success import Result
from opdlight.run_folder import checkpoints
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.folder import describe_progress, link_latest, open_run
from opdlight.run_folder.loggers import close_loggers, open_loggers
from opdlight.run_folder.summary import Outcome, close_run, read_successes, timed
from opdlight.system import threads
from opdlight.system.closing import Closing
from opdlight.system.console import is_first_process, progress, say
from opdlight.system.lightning_internals import completed_steps
from opdlight.system.preemption import Preempted, Preemption
from opdlight.train.build import build
from opdlight.train.resume import SameStart, batches, newest_checkpoint, prepare_folder
from opdlight.train.teachers import evaluate_teachers
from opdlight.types import Trajectory

AFTER = "evaluate after"  # the part of the end of a run that measures the trained student


def train(cfg: DictConfig) -> dict[str, float]:
    """Evaluate, distil, evaluate again, measure the teachers; everything goes to the run folder.

    With `resume`, the run of that folder continues from its newest checkpoint, or from the start if it has none yet.

    Returns:
        `success/<task>` of the trained student on held-out episodes, in [0, 1].
    """
    with Preemption() as preemption:
        try:
            return _train(cfg, preemption)
        except Preempted as stop:
            again = " The rollout is done again." if preemption.rollout_lost else ""
            say(f"{describe_progress(Path(cfg.run_dir))}{again}")
            say(f"{stop.why}: stopped. To resume: {resume_command(cfg.run_dir)}")
            raise


def _train(cfg: DictConfig, preemption: Preemption) -> dict[str, float]:
    started = time.perf_counter()
    check_nodes(cfg.trainer.get("num_nodes", 1))
    devices = cfg.trainer.get("devices", "auto")
    check_torchrun(list(devices) if isinstance(devices, ListConfig) else devices, cfg.trainer.get("num_nodes", 1))
    checkpoint = newest_checkpoint(cfg)  # an error of it comes before this command line is written to the folder
    folder = open_run(cfg)
    if not prepare_folder(cfg, folder, checkpoint):
        return {f"success/{name}": rate for name, rate in read_successes(folder).items()}
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
        callbacks=[SameStart(folder, checkpoint), *callbacks],
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),  # none of Lightning's own instead
        enable_progress_bar=any(isinstance(c, StageProgress) for c in callbacks),
        logger=loggers,
        default_root_dir=str(folder),
        plugins=[*instantiate(cfg.trainer.get("plugins") or []), CheckpointFolder()],
    )
    data = OnPolicyData(
        mixture, updates=batches(cfg), groups=cfg.rollout.groups, group_size=cfg.rollout.group_size, seed=cfg.seed
    )
    if trainer.world_size == 1:
        module.source.start()  # with several processes only once they have found each other
    seconds = {"set-up": time.perf_counter() - started}
    try:
        examine_quickly(cfg, mixture, module)
        _measure_and_fit(trainer, module, data, checkpoint, closing, seconds)
        with closing.part("save the student"):
            module.student.save(folder / "student")
    finally:
        with closing.part("stop the engine"):
            module.source.close()
        close_loggers(loggers, closing)
    teachers: dict[str, list[Trajectory]] = {}
    if cfg.evaluate_teachers and is_first_process():
        with timed(seconds, "evaluate teachers"), closing.part("evaluate the teachers"):
            teachers = evaluate_teachers(cfg, mixture)
    outcome = _outcome(mixture, module, teachers)
    throughput = next((c for c in callbacks if isinstance(c, Throughput)), Throughput())
    seconds |= {f"train: {name}": s for name, s in throughput.seconds.items()}
    if is_first_process():
        close_run(folder, outcome, closing, seconds=seconds, generated=throughput.generated, trained=throughput.trained)
    closing.end()
    return {f"success/{name}": o.after.success for name, o in outcome.items()}


def _measure_and_fit(
    trainer: L.Trainer,
    module: OnPolicyDistillation,
    data: OnPolicyData,
    checkpoint: Path | None,
    closing: Closing,
    seconds: dict[str, float],
) -> None:
    """The student before, during and after training; `seconds` gets how long each took.

    An error after the last update, such as one in the evaluation after it, is noted and does not cost the student. With
    several processes it ends the run, because the others would wait in the middle of theirs; `resume` does the end
    again.
    """
    if checkpoint is None:
        with timed(seconds, "evaluate before"):
            trainer.validate(module, datamodule=data, verbose=False)
        module.evaluations.keep_as_before()
    if is_first_process():
        link_latest(Path(trainer.default_root_dir))
    with timed(seconds, "train"):
        try:
            trainer.fit(
                module, datamodule=data, ckpt_path=checkpoint
            )  # its last validation loop is that after training
        except Exception as error:
            if trainer.world_size > 1 or completed_steps(trainer) < data.train_set.updates:
                raise
            closing.note(AFTER, error)
    if not module.evaluations.last and AFTER not in closing.failed:  # trainer.max_time or so ended it earlier
        with closing.part(AFTER):
            trainer.validate(module, datamodule=data, verbose=False)


def _outcome(
    mixture: TaskMixture, module: OnPolicyDistillation, teachers: Mapping[str, list[Trajectory]]
) -> dict[str, Outcome]:
    """By task; none for what was not evaluated, as with trainer.limit_val_batches=0."""
    results = module.evaluations
    return {
        name: Outcome(
            before=results.before[name],
            after=results.last[name],
            teacher=Result.of(teachers[name]) if name in teachers else None,
        )
        for name in mixture.names
        if name in results.before and name in results.last
    }
