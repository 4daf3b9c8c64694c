"""Success of a model on held-out episodes, with intervals."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
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


def make_collector(
    engine: Engine,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    env_threads: int,
    chat_template: Mapping[str, Any] | None = None,
) -> Collector:
    """Environments × engine for these tasks; `chat_template` holds what the template is given beside the messages."""
    return Collector(
        engine=engine,
        renderer=ChatRenderer(tokenizer, chat_template),
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
    samples: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[Trajectory]]:
    """Roll out every held-out episode of every task, `samples` times."""
    results = {}
    for name, task in tasks.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        requests = held_out(name, task.episodes, samples)
        results[name] = collector.collect(requests, sampling, sampling_seed=seed, progress=report)
    return results


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Run the evaluation of a composed config; writes `evaluation.json` and `trajectories.jsonl` to the run folder."""
    folder = run_folder.open_run(cfg)
    mixture: TaskMixture = instantiate(cfg.task)
    model = resolve_model(cfg.model.student.model)
    tokenizer, sampling = load_tokenizer(model), instantiate(cfg.sampling)
    chat_template = instantiate(cfg.model.student.get("chat_template") or {})
    ChatRenderer(tokenizer, chat_template)  # what is wrong is an error before the engine starts
    sampling.resolve(tokenizer)
    engine = instantiate(cfg.engine, model=model)
    try:
        collector = make_collector(engine, tokenizer, mixture.tasks, cfg.env_threads, chat_template)
        console = Console()
        with console.status("rolling out") as status:
            found = evaluate_tasks(
                collector,
                mixture.tasks,
                sampling,
                samples=cfg.samples,
                seed=cfg.seed,
                progress=lambda name, done, total: status.update(f"{name}: {done}/{total} episodes"),
            )
        collector.close()
    finally:
        engine.close()
    results = {name: Result.of(trajectories) for name, trajectories in found.items()}
    table = Table(
        "task", f"avg@{cfg.samples}" if cfg.samples > 1 else "pass@1", "episodes", "statuses", title=str(model)
    )
    if cfg.samples > 1:
        table.add_column(f"pass@{cfg.samples}")
    for name, r in results.items():
        counts = {s: sum(t.status is s for t in found[name]) for s in Status}
        statuses = ", ".join(f"{s} {n}" for s, n in counts.items() if n)
        table.add_row(
            name, str(r), str(r.episodes), statuses, *([f"{100 * r.pass_at_n:.1f} %"] if cfg.samples > 1 else [])
        )
    console.print(table)
    lines = [json.dumps(asdict(t)) + "\n" for trajectories in found.values() for t in trajectories]
    run_folder.write(folder / "trajectories.jsonl", "".join(lines))
    run_folder.write(folder / "evaluation.json", json.dumps({n: asdict(r) for n, r in results.items()}, indent=2))
    console.print(f"run folder: {folder}", soft_wrap=True)
    return {f"success/{name}": r.success for name, r in results.items()}
