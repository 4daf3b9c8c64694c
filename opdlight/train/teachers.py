"""The teachers on the held-out episodes: the last column of the table."""

from contextlib import closing
from functools import partial

from omegaconf import DictConfig

from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.evaluate.run import evaluate_tasks
from opdlight.models import resolve_model
from opdlight.models.loading import load_tokenizer
from opdlight.rollout import make_collector, open_engine
from opdlight.types import Trajectory


def evaluate_teachers(cfg: DictConfig, mixture: TaskMixture) -> dict[str, list[Trajectory]]:
    """Each teacher on the held-out episodes of its tasks, one engine a checkpoint; trajectories by task."""
    found: dict[str, list[Trajectory]] = {}
    by_model: dict[str, list[str]] = {}
    for name, task in mixture.tasks.items():
        if task.teacher is not None:
            by_model.setdefault(str(resolve_model(task.teacher)), []).append(name)
    for model, names in by_model.items():
        tokenizer = load_tokenizer(model, trust_remote_code=cfg.model.trust_remote_code)
        sampling = instantiate(cfg.evaluation).resolve(tokenizer, skip_unknown=True)
        with open_engine(partial(instantiate, cfg.engine, model=model), "starting the teacher's engine") as engine:
            for name in names:  # each has its own arguments of the chat template
                tasks, template = {name: mixture.tasks[name]}, mixture.tasks[name].teacher_chat_template
                threads, workers = cfg.rollout.env_threads, cfg.rollout.env_workers
                with closing(make_collector(engine, tokenizer, tasks, threads, template, workers)) as collector:
                    found |= evaluate_tasks(collector, tasks, sampling, whose="teacher of ")
    return found
