"""The failure-mode study: roll out, measure, draw, and print which of the paper's claims show."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from opdlight.config import instantiate
from opdlight.data.tasks import Task, TaskMixture
from opdlight.errors import ConfigError
from opdlight.lab.failure_modes.figures import draw_depth, draw_imbalance, draw_special
from opdlight.lab.failure_modes.mismatch import (
    TokenLogprobs,
    arm_figures,
    by_token,
    distil,
    listed_shares,
    token_logprobs,
)
from opdlight.lab.failure_modes.other_tokens import taught_student
from opdlight.lab.failure_modes.summary import Depth, depth, edges_of, imbalance
from opdlight.lab.failure_modes.tables import print_depth, print_imbalance, print_special
from opdlight.lab.failure_modes.tokens import Tokens, measure, roll_out
from opdlight.losses import SpecialTokenMask
from opdlight.metrics.intervals import Interval
from opdlight.models import Student, Teacher, Teachers
from opdlight.rollout import Collector, open_collector
from opdlight.run_folder.folder import open_run
from opdlight.system.console import progress, say
from opdlight.system.files import write_text
from opdlight.types import Status, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherStudent:
    """The third part of the study for one student that writes some tokens with other ids than the teacher."""

    shared_ids: int  # at which the vocabularies can be compared
    student_ids: int
    teacher_ids: int
    text: list[TokenLogprobs]
    by_token: dict[str, dict[str, float]]
    shares: dict[str, Interval]  # of `listed_shares`
    arms: dict[str, Interval]


def _collecting(
    cfg: DictConfig, model: str, student: Student, tasks: Mapping[str, Task]
) -> AbstractContextManager[Collector]:
    start = partial(instantiate, cfg.engine, model=model)
    template = student.chat_template
    return open_collector(start, student.tokenizer, tasks, cfg.env_threads, template, cfg.env_workers)


def study(cfg: DictConfig) -> dict[str, float]:
    """Run all parts; print tables, and write figures and `failure_modes.json` to the run folder."""
    started = time.perf_counter()
    folder = open_run(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    tasks = {name: mixture.tasks[name] for name in mixture.teachers}
    if cfg.special and cfg.special.task not in tasks:
        raise ConfigError.wrong("special.task", expected=f"one of {', '.join(tasks)}", got=cfg.special.task)
    student: Student = instantiate(cfg.model.student)
    teachers = Teachers(
        mixture.teachers,
        student,
        partial(Teacher, dtype=cfg.model.compute_dtype, trust_remote_code=cfg.model.trust_remote_code),
    )
    policies = {"top-p 1": 1.0, f"top-p {cfg.top_p:g}": cfg.top_p}
    with progress("rolling out"), _collecting(cfg, cfg.model.student.model, student, mixture.tasks) as collector:
        rolled = {p: roll_out(collector, tasks, cfg.episodes, v, cfg.seed) for p, v in policies.items()}
    ordinary = _plain_mask(cfg, student)
    with progress("scoring"):
        ask: dict[str, Any] = {"k": cfg.k, "ngram": cfg.ngram, "loss_mask": ordinary.loss_mask}
        scored = {
            p: {task: measure(student, teachers, made, **ask) for task, made in found.items()}
            for p, found in rolled.items()
        }
    with progress("intervals"):
        first = scored["top-p 1"]
        one = {task: imbalance(tokens, draws=cfg.draws, seed=cfg.seed) for task, tokens in first.items()}
        two = {task: _depth_of(cfg, task, scored, rolled) for task in tasks}
    draw_imbalance(folder / "imbalance.png", first, one)
    draw_depth(folder / "depth.png", two)
    print_imbalance(one, first)
    print_depth(two)
    found: dict[str, Any] = {"imbalance": one, "depth": two}
    if cfg.special:
        three = {name: _special(cfg, mixture, number, name, folder) for number, name in enumerate(cfg.special.students)}
        plain = listed_shares(first[cfg.special.task], draws=cfg.draws, seed=cfg.seed)
        shares = {name: other.shares for name, other in three.items()} | {"the plain student": plain}
        arms = {name: other.arms for name, other in three.items()}
        draw_special(folder / "special_tokens.png", list(three.values())[-1].text, shares, arms)
        print_special(shares, {name: other.by_token for name, other in three.items()}, arms)
        for name, other in three.items():
            say(
                f"{name}: ids 0 to {other.shared_ids - 1} are shared; the student has {other.student_ids}, the teacher "
                f"{other.teacher_ids}: what only the teacher has is left out of every support."
            )
        found["special_tokens"] = three
    seconds = time.perf_counter() - started
    write_text(
        folder / "failure_modes.json",
        json.dumps(_plain(found | {"seconds": seconds}), indent=2, ensure_ascii=False, allow_nan=False),
    )
    say(f"{seconds:.0f} s, run folder: {folder}")
    return {"seconds": seconds}


def _plain_mask(cfg: DictConfig, student: Student) -> SpecialTokenMask:
    """The mask of the same special tokens as the unchanged student writes them, for comparison in the third part."""
    if not cfg.special:
        return SpecialTokenMask()
    dropped = {token for other in cfg.special.students.values() for token in other.dropped}
    return SpecialTokenMask(tokens=[*sorted(dropped), student.tokenizer.eos_token]).resolve(student.tokenizer)


def _depth_of(
    cfg: DictConfig,
    task: str,
    scored: Mapping[str, Mapping[str, Tokens]],
    rolled: Mapping[str, Mapping[str, Sequence[Trajectory]]],
) -> dict[str, Depth]:
    by_policy = {policy: tokens[task] for policy, tokens in scored.items()}
    edges = edges_of(list(by_policy.values()), cfg.buckets)
    turns = int(max(t.turn.max() for t in by_policy.values())) + 1
    return {policy: depth(cfg, tokens, rolled[policy][task], edges, turns) for policy, tokens in by_policy.items()}


def _special(cfg: DictConfig, mixture: TaskMixture, number: int, title: str, folder: Path) -> OtherStudent:
    name, other = cfg.special.task, cfg.special.students[title]
    alone = TaskMixture({name: mixture.tasks[name]})
    ask = {"draws": cfg.draws, "seed": cfg.seed}
    model = folder / f"other-student-{number + 1}"
    with progress(f"{title}: teaching the student"):
        student = taught_student(cfg, other.dropped, name, alone.tasks[name], model)
    own = partial(Teacher, dtype=cfg.model.compute_dtype, trust_remote_code=cfg.model.trust_remote_code)
    teachers = Teachers(alone.teachers, student, own)
    mask: SpecialTokenMask = instantiate(other.mask).resolve(student.tokenizer)
    status = f"{title}: rolling out and distilling"
    with progress(status), _collecting(cfg, str(model), student, alone.tasks) as collector:
        made = roll_out(collector, alone.tasks, cfg.episodes, 1.0, cfg.seed)[name]
        tokens = measure(student, teachers, made, k=cfg.k, ngram=cfg.ngram, loss_mask=mask.loss_mask)
        arms = distil(cfg, alone, model, collector, mask.loss_mask) if cfg.special.opd_updates else []
    shown = min(range(len(made)), key=lambda i: (made[i].status is not Status.SUCCESS, i))  # a solved one, if any
    return OtherStudent(
        shared_ids=len(teachers.shared_vocabulary),
        student_ids=len(student.tokenizer),
        teacher_ids=len(teachers.of(name).tokenizer),
        text=token_logprobs(tokens, shown, student.tokenizer),
        by_token=by_token(tokens, student.tokenizer),
        shares=listed_shares(tokens, **ask),
        arms=arm_figures(arms, **ask) if arms else {},
    )


def _plain(value: Any) -> Any:
    """Convert intervals and dataclasses for JSON."""
    if isinstance(value, Interval):
        return value.plain()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in asdict(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
