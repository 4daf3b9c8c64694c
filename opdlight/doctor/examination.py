"""All checks in turn; a check that cannot be made is a finding itself."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import nn

from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.doctor.answers import check_answers, first_turns, whole_episodes
from opdlight.doctor.findings import Finding, Verdict, as_json, merge_findings, table, worst
from opdlight.doctor.fitting import check_memory, on_gpu
from opdlight.doctor.limits import check_context, check_support
from opdlight.doctor.patient import Pair, Patient
from opdlight.doctor.precision import check_precision
from opdlight.doctor.scores import check_determinism, check_identical
from opdlight.doctor.special_tokens import check_special_tokens
from opdlight.doctor.templates import check_history, check_plain_text, check_template
from opdlight.doctor.vocabularies import check_vocabulary
from opdlight.errors import ConfigError, OpdError
from opdlight.losses import Loss
from opdlight.models import Student, TeacherModel, resolve_model
from opdlight.rollout import open_collector
from opdlight.system.console import progress, say, show, track
from opdlight.system.files import write_text
from opdlight.system.quiet import quiet_libraries

OF_PAIR: Mapping[str, Callable[[Patient, Pair], list[Finding]]] = {
    "vocabulary": check_vocabulary,
    "special tokens": check_special_tokens,
    "chat template": check_template,
    "teacher determinism": check_determinism,
}
OF_TASK: Mapping[str, Callable[[Patient, str], list[Finding]]] = {
    "growing history": check_history,
    "plain text": check_plain_text,
    "context": check_context,
}
OF_RUN: Mapping[str, Callable[[Patient], list[Finding]]] = {
    "support": check_support,
    "student as its teacher": check_identical,
    "precision": check_precision,
    "memory": check_memory,
}


def examine(patient: Patient) -> list[Finding]:
    """Every check that needs no answer of the student."""
    checks: list[tuple[str, str, Callable[[], Iterable[Finding]]]] = [
        *(
            (name, pair.name, partial(of_pair, patient, pair))
            for pair in patient.pairs
            for name, of_pair in OF_PAIR.items()
        ),
        *((name, task, partial(of_task, patient, task)) for task in patient.tasks for name, of_task in OF_TASK.items()),
        *((name, "", partial(of_run, patient)) for name, of_run in OF_RUN.items()),
    ]
    found: list[Finding] = []
    with progress("doctor", len(checks), log=False) as bar:
        for done, (name, about, run) in enumerate(checks):
            bar.update(done, title=f"doctor: {name}")
            found += attempt(name, about, run)
    return found


def attempt(check: str, about: str, run: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check; if it raises, a fail with the reason, so that the others still run."""
    try:
        return list(run())
    except Exception as error:  # noqa: BLE001  whatever a broken pair raises is what the doctor looks for
        reason = str(error) if isinstance(error, OpdError) else f"{type(error).__name__}: {error}"
        return [Finding(check=check, about=about, verdict=Verdict.FAIL, evidence=f"could not be checked: {reason}")]


def patient_of(
    cfg: DictConfig, mixture: TaskMixture, student: Student, loss: Loss, teachers: Mapping[str, TeacherModel]
) -> Patient:
    """The parts of a run and the numbers of its config."""
    with ConfigError.instead():  # losses know nothing of config errors
        mask = instantiate(cfg.mask).resolve(student.tokenizer)
    return Patient(
        student=student,
        teachers=teachers,
        tasks=mixture.tasks,
        loss=loss,
        loss_config=_plain(cfg.loss),
        mask=mask,
        mask_tokens=_plain(cfg.mask).get("tokens", []),
        engine=_plain(cfg.engine),
        trainer=_plain(cfg.trainer),
        optimizer=str(cfg.optimizer.get("_target_", "")),
        learning_rate=cfg.optimizer.get("lr", cfg.model.learning_rate),
        dtype=cfg.model.dtype,
        compute_dtype=cfg.model.compute_dtype,
        micro_batch_tokens=cfg.micro_batch_tokens,
        teacher_placement=cfg.teacher_placement,
        staleness=cfg.staleness,
        temperature=cfg.sampling.temperature,
        top_p=cfg.sampling.top_p,
        stop=instantiate(cfg.sampling).resolve(student.tokenizer).stop,
    )


def examine_config(cfg: DictConfig) -> dict[str, int]:
    """Load the models that a config names, check everything, print the report; exits with 1 if anything fails."""
    quiet_libraries()
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    loss: Loss = instantiate(cfg.loss)
    with progress("loading the student"):
        student, found = _student(cfg)
    if student is not None:
        teachers: dict[str, TeacherModel] = {}
        for name, teacher in track(list(mixture.teachers.items()), "loading the teachers"):
            found += attempt("teacher", f"{teacher} ({name})", partial(_teach, teachers, mixture, name, cfg))
        patient = patient_of(cfg, mixture, student, loss, teachers)
        if on_gpu(patient.trainer):
            for model in (student, *teachers.values()):
                if isinstance(model, nn.Module):  # a server's teacher has no weights here
                    model.to("cuda")
        found += examine(patient)
        with progress("greedy answers"):
            found += _answers(cfg, patient)
    found = merge_findings(found)
    show(table(found))
    counts = {v: sum(f.verdict is v for f in found) for v in Verdict}
    say("doctor: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    if cfg.out is not None:
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(cfg.out), as_json(found) + "\n")
    if worst(found) is Verdict.FAIL:
        raise SystemExit(1)
    return {str(verdict): n for verdict, n in counts.items()}


def examine_quickly(cfg: DictConfig, mixture: TaskMixture, module: OnPolicyDistillation) -> None:
    """The checks that `opdlight.train` makes before its first rollout, on the models it has built; none needs answers.

    Nothing changes: no gradient is left, the loss keeps no state, and the random streams are as before.

    Raises:
        ConfigError: if a check fails, and how to train all the same; the evidence has been printed.
    """
    if not cfg.doctor:
        return
    teachers = {name: module.teachers.of(name) for name in mixture.teachers}
    with isolate_rng(include_cuda=False):
        found = merge_findings(examine(patient_of(cfg, mixture, module.student, module.loss, teachers)))
    bad = [f for f in found if f.verdict is not Verdict.PASS]
    for finding in bad:
        say(f"doctor: {finding}", style="yellow")
    if worst(found) is Verdict.FAIL:
        fails = sum(f.verdict is Verdict.FAIL for f in bad)  # each has a line of its own above
        raise ConfigError(
            f"The doctor found what would spoil the run ({fails} fail{'s' if fails > 1 else ''} above, with what "
            "repairs it). To train all the same: doctor=false"
        )
    say(f"doctor: {len(found) - len(bad)} checks passed")


def _student(cfg: DictConfig) -> tuple[Student | None, list[Finding]]:
    try:
        return instantiate(cfg.model.student), []
    except InstantiationException as error:
        if error.__cause__ is None or isinstance(error.__cause__, ConfigError):
            raise
        evidence = f"could not be loaded: {error.__cause__}"
        about = str(cfg.model.student.get("model", ""))
        return None, [Finding(check="student", about=about, verdict=Verdict.FAIL, evidence=evidence)]


def _teach(teachers: dict[str, TeacherModel], mixture: TaskMixture, name: str, cfg: DictConfig) -> list[Finding]:
    models = mixture.teachers
    known = {resolve_model(models[other]): teacher for other, teacher in teachers.items()}
    teachers[name] = known.get(resolve_model(models[name])) or instantiate(cfg.teacher)(models[name])
    return []


def _answers(cfg: DictConfig, patient: Patient) -> list[Finding]:
    """Greedy first turns by transformers, or with quick=false whole episodes by the configured engine."""
    if cfg.quick:
        pairs = ((pair, partial(check_answers, patient, pair, first_turns)) for pair in patient.pairs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns of flags that greedy decoding ignores
            return [f for pair, run in pairs for f in attempt("greedy answers", pair.name, run)]

    def play() -> list[Finding]:
        student, start = patient.student, partial(instantiate, cfg.engine, model=cfg.model.student.model)
        envs = {"env_threads": cfg.rollout.env_threads, "env_workers": cfg.rollout.env_workers}
        with open_collector(
            start, student.tokenizer, patient.tasks, chat_template=student.chat_template, **envs
        ) as collector:
            episodes = whole_episodes(collector)
            return [
                f
                for pair in patient.pairs
                for f in attempt("greedy answers", pair.name, partial(check_answers, patient, pair, episodes))
            ]

    return attempt("greedy answers", str(cfg.engine.get("_target_", "engine")), play)


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
