"""Success of a model on held-out episodes, with intervals."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial

from omegaconf import DictConfig
from rich.table import Table

from opdlight.config import instantiate
from opdlight.data.requests import held_out
from opdlight.data.tasks import Task, TaskMixture
from opdlight.errors import CheckpointError
from opdlight.metrics.success import Result
from opdlight.models.loading import load_tokenizer, resolve_model
from opdlight.rollout import ChatRenderer, Collector, Sampling, open_collector
from opdlight.run_folder.folder import open_run
from opdlight.system.closing import Closing
from opdlight.system.console import progress, say, show, table
from opdlight.system.files import write_text
from opdlight.types import Status, Trajectory


def evaluate_tasks(
    collector: Collector,
    tasks: Mapping[str, Task],
    sampling: Sampling,
    *,
    seed: int = 0,
    whose: str = "",
) -> dict[str, list[Trajectory]]:
    """Roll out every held-out episode of every task.

    Args:
        collector: environments × engine, for these tasks.
        tasks: by name; each says how many episodes it has and how often each is tried.
        sampling: the policy.
        seed: makes the sampling seeds.
        whose: begins the titles of the progress bars, as "teacher of ".

    Returns:
        Task → trajectories, in the order of the episodes.
    """
    results = {}
    for name, task in tasks.items():
        requests = held_out(name, task)
        with progress(f"evaluate {whose}{name}", len(requests)) as bar:
            results[name] = collector.collect(requests, sampling, sampling_seed=seed, progress=bar.update)
    return results


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Run the evaluation of a composed config; writes `evaluation.json` and `trajectories.jsonl` to the run folder.

    Returns:
        `success/<task>` in [0, 1].
    """
    folder = open_run(cfg)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    tasks = mixture.tasks
    if cfg.samples is not None:
        tasks = {name: replace(task, samples=cfg.samples) for name, task in tasks.items()}
    with CheckpointError.at("model.student.model"):
        model = resolve_model(cfg.model.student.model)
        tokenizer = load_tokenizer(model, trust_remote_code=cfg.model.trust_remote_code)
    sampling = instantiate(cfg.sampling)
    chat_template = instantiate(cfg.model.student.get("chat_template") or {})
    ChatRenderer(tokenizer, chat_template)  # an error in it comes before the engine starts
    sampling.resolve(tokenizer)
    closing, opened = Closing(), ExitStack()
    try:
        start = partial(instantiate, cfg.engine, model=model)
        collecting = open_collector(start, tokenizer, tasks, cfg.env_threads, chat_template, cfg.env_workers)
        collector = opened.enter_context(collecting)
        found = evaluate_tasks(collector, tasks, sampling, seed=cfg.seed)
    finally:
        with closing.part("stop the environments and the engine"):
            opened.close()
    results = {name: Result.of(trajectories) for name, trajectories in found.items()}
    with closing.part("write evaluation.json"):
        write_text(folder / "evaluation.json", json.dumps({n: asdict(r) for n, r in results.items()}, indent=2))
    with closing.part("write trajectories.jsonl"):
        lines = [json.dumps(asdict(t)) + "\n" for trajectories in found.values() for t in trajectories]
        write_text(folder / "trajectories.jsonl", "".join(lines))
    with closing.part("print the table"):
        show(outcome_table(str(model), found, results))
        for name, r in results.items():
            if r.actions:
                say(f"{name}: {r.actions}")
        say(f"run folder: {folder}")
    closing.end()
    return {f"success/{name}": r.success for name, r in results.items()}


def outcome_table(model: str, found: Mapping[str, list[Trajectory]], results: Mapping[str, Result]) -> Table:
    """Success and endings by task, for the terminal."""
    most = max(r.samples for r in results.values())
    shown = table("task", "success", "episodes", *([] if most == 1 else ["solved in k attempts"]), "statuses")
    shown.title = f"{model}\nheld-out success with 95 % intervals"
    for name, r in results.items():
        counts = {s: sum(t.status is s for t in found[name]) for s in Status}
        statuses = ", ".join(f"{s} {n}" for s, n in counts.items() if n)
        solved = [] if most == 1 else [", ".join(f"pass@{k} {100 * p:.1f} %" for k, p in r.pass_at.items())]
        shown.add_row(name, f"{r.title} {r}", str(r.episodes), *solved, statuses)
    return shown
