"""Success of a model on held-out episodes, with intervals."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from opdlight import run_folder
from opdlight.config import instantiate
from opdlight.data import Task, TaskMixture, held_out
from opdlight.metrics import Result
from opdlight.models.checkpoints import load_tokenizer, resolve_model
from opdlight.rollout import ChatRenderer, Collector, Engine, Limits, Sampling
from opdlight.types import Status, Trajectory


def make_collector(engine: Engine, tokenizer: Any, tasks: Mapping[str, Task], env_threads: int) -> Collector:
    """Environments × engine for these tasks."""
    return Collector(
        engine=engine,
        renderer=ChatRenderer(tokenizer),
        make_env=lambda task: tasks[task].make_env(),
        limits={
            n: Limits(turn_tokens=t.turn_tokens, trajectory_tokens=t.trajectory_tokens, env_seconds=t.env_seconds)
            for n, t in tasks.items()
        },
        env_threads=env_threads,
    )


def evaluate_tasks(
    collector: Collector,
    tasks: Mapping[str, Task],
    sampling: Sampling,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[Trajectory]]:
    """Roll out every held-out episode of every task, as often as it says."""
    results = {}
    for name, task in tasks.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        results[name] = collector.collect(held_out(name, task), sampling, sampling_seed=seed, progress=report)
    return results


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Run the evaluation of a composed config; writes `evaluation.json` and `trajectories.jsonl` to the run folder."""
    folder = run_folder.open_run(cfg)
    mixture: TaskMixture = instantiate(cfg.task)
    mixture.check_envs()
    tasks = mixture.tasks
    if cfg.samples is not None:
        tasks = {name: replace(task, samples=cfg.samples) for name, task in tasks.items()}
    model = resolve_model(cfg.model.student.model)
    engine = instantiate(cfg.engine, model=model)
    try:
        collector = make_collector(engine, load_tokenizer(model), tasks, cfg.env_threads)
        console = Console()
        with console.status("rolling out") as status:
            found = evaluate_tasks(
                collector,
                tasks,
                instantiate(cfg.sampling),
                seed=cfg.seed,
                progress=lambda name, done, total: status.update(f"{name}: {done}/{total} trajectories"),
            )
        collector.close()
    finally:
        engine.close()
    results = {name: Result.of(trajectories) for name, trajectories in found.items()}
    most = max(r.samples for r in results.values())
    table = Table("task", "success", "episodes", *([] if most == 1 else ["solved in k attempts"]), "statuses")
    table.title = f"{model}: held-out success with 95 % intervals"
    for name, r in results.items():
        counts = {s: sum(t.status is s for t in found[name]) for s in Status}
        statuses = ", ".join(f"{s} {n}" for s, n in counts.items() if n)
        solved = [] if most == 1 else [", ".join(f"pass@{k} {100 * p:.1f} %" for k, p in r.pass_at.items())]
        table.add_row(name, f"{r.title} {r}", str(r.episodes), *solved, statuses)
    console.print(table)
    lines = [json.dumps(asdict(t)) + "\n" for trajectories in found.values() for t in trajectories]
    run_folder.write(folder / "trajectories.jsonl", "".join(lines))
    run_folder.write(folder / "evaluation.json", json.dumps({n: asdict(r) for n, r in results.items()}, indent=2))
    console.print(f"run folder: {folder}", soft_wrap=True)
    return {f"success/{name}": r.success for name, r in results.items()}
