"""Expert demonstrations of any text environment, as JSON lines, and their tokens."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from opdlight.config.values import check_fields
from opdlight.data.requests import episode_seed, shuffled_seed, training_episodes
from opdlight.data.tasks import Task
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.envs.rows import check_text, read_json_lines
from opdlight.errors import ConfigError
from opdlight.rollout.engines.base import Completion
from opdlight.rollout.rendering import ChatRenderer
from opdlight.system.files import replacing
from opdlight.system.interrupt import leave_to_parent
from opdlight.system.parents import end_with_parent
from opdlight.types import Status, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One exchange: what the environment showed, what was answered, and whether the answer is worth learning."""

    observation: str
    reply: str
    learn: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One episode of an expert."""

    task: str
    seed: int
    steps: list[Step]
    system_prompt: str | None = None
    fresh_prompt: bool = False
    success: bool = True


def demonstrate(name: str, task: Task, seed: int, detours: float) -> Demonstration:
    """Play one episode with the environment's expert.

    Args:
        name: of the task.
        task: makes the environment.
        seed: of the episode.
        detours: the probability with which a step takes a random action instead, so that the expert is seen recovering
            from states that a student will reach. A random action is one that `info["admissible_commands"]` has listed
            in this episode, still admissible or not; environments that list none take no detours. Detours are not
            learnt.

    Raises:
        NoExpertError: if the environment has no expert.
    """
    env = task.make_env()
    rng = np.random.default_rng([seed, 7])
    observation, info = env.reset(seed=seed)
    steps: list[Step] = []
    choices: dict[str, None] = {}  # a set that keeps its order
    while True:
        choices |= dict.fromkeys(info.get("admissible_commands", []))
        if choices and rng.random() < detours:
            step = Step(observation=observation, reply=env.reply(str(rng.choice(list(choices)))), learn=False)
        else:
            step = Step(observation=observation, reply=env.expert_action())
        steps.append(step)
        observation, _, terminated, truncated, info = env.step(step.reply)
        if terminated or truncated:
            return Demonstration(
                task=name,
                seed=seed,
                steps=steps,
                system_prompt=env.system_prompt,
                fresh_prompt=env.fresh_prompt,
                success=bool(info["success"]),
            )


def _job(arguments: tuple[str, Task, int, float]) -> Demonstration:
    return demonstrate(*arguments)


def _begin() -> None:
    """In a worker: Ctrl-C is handled by the parent, and the worker ends with it."""
    leave_to_parent()
    end_with_parent()


def collect_demonstrations(
    tasks: dict[str, Task], *, episodes: int, seed: int, detours: float, workers: int = 1
) -> Iterator[Demonstration]:
    """Successful demonstrations, shared among the tasks by weight; failed episodes are replaced.

    Only training episodes are played; those of a finite environment one after another, in a shuffled order.

    Args:
        tasks: by name; those of weight 0 are left out.
        episodes: how many demonstrations.
        seed: makes the seeds of the episodes.
        detours: share of steps that take a random action (`demonstrate`).
        workers: processes that play.

    Raises:
        ConfigError: if no task has a positive weight, or an expert fails nearly always.
    """
    tasks = {name: task for name, task in tasks.items() if task.weight > 0}
    if not tasks:
        raise ConfigError.wrong("task.tasks", expected="at least one task with a positive weight", got="none")
    total = sum(t.weight for t in tasks.values())
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the slow imports happen once
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        for name, task in tasks.items():
            wanted, tried = round(episodes * task.weight / total), 0
            rows = training_episodes(name, task)
            while wanted > 0:
                if tried > 20 * episodes + 100:
                    raise ConfigError.wrong(
                        f"task.tasks.{name}", expected="a task its expert can solve", got="failures"
                    )
                seeds = [_seed(seed, name, rows, tried + i) for i in range(wanted)]
                tried += wanted
                jobs = [(name, task, s, detours) for s in seeds]
                for found in pool.map(_job, jobs, chunksize=8):
                    if found.success and wanted > 0:
                        wanted -= 1
                        yield found


def _seed(seed: int, name: str, rows: int | None, number: int) -> int:
    if rows is None:
        return episode_seed(seed, name, "demonstration", number)
    return shuffled_seed(rows, number, seed, name, "demonstration")


def write_demonstrations(path: Path, demonstrations: Iterable[Demonstration]) -> None:
    """One JSON object a line; written whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in demonstrations)


def read_demonstrations(path: Path) -> list[Demonstration]:
    """The inverse of `write_demonstrations`.

    Raises:
        ConfigError: names the file, the line and the field that is not as in `Demonstration`; also for an empty file,
            and for an episode that is held out.
    """
    key = "demonstrations.file"
    if not path.is_file():
        raise ConfigError.wrong(key, expected="a file of JSON lines", got=str(path))
    found = [_demonstration(row.values, row.where, key) for row in read_json_lines(path, key)]
    if not found:
        raise ConfigError.wrong(key, expected="a file with at least one demonstration", got=str(path))
    return found


def _demonstration(row: dict[str, Any], where: str, key: str) -> Demonstration:
    try:
        check_fields("", row, Demonstration)
    except ConfigError as error:
        raise ConfigError(
            f"{key}: {where} is not a demonstration: {str(error).partition(' Give it as ')[0]}"
        ) from error
    shown = Demonstration(**{**row, "steps": [Step(**step) for step in row["steps"]]})
    if not shown.steps:
        raise ConfigError.wrong(key, expected=f"a demonstration of at least one step on {where}", got=shown.steps)
    if not 0 <= shown.seed < FIRST_HELD_OUT_SEED:
        expected = f"a training episode on {where}, with a seed below {FIRST_HELD_OUT_SEED} (others are held out)"
        raise ConfigError.wrong(key, expected=expected, got=shown.seed)
    for text in (shown.task, shown.system_prompt or "", *(t for s in shown.steps for t in (s.observation, s.reply))):
        check_text(text, where, key)
    return shown


def tokens(demonstration: Demonstration, renderer: ChatRenderer, end: int | None = None) -> Trajectory:
    """The demonstration as the trajectory that a model would have produced; detours become part of a prompt.

    Args:
        demonstration: one episode.
        renderer: turns the conversation into token ids.
        end: the token that ends each reply; None: what the chat template ends a turn with.
    """
    steps, turns = demonstration.steps, []
    conversation = renderer.start(
        demonstration.system_prompt, steps[0].observation, fresh_prompt=demonstration.fresh_prompt
    )
    for number, step in enumerate(steps):
        ids = renderer.encode_reply(step.reply, conversation, end)
        completion = Completion(
            request_id="", token_ids=ids, logprobs=[0.0] * len(ids), finish_reason="stop", policy_version=0
        )
        if step.learn:
            turns.append(
                Turn(
                    prompt_ids=conversation.prompt_ids,
                    completion_ids=ids,
                    sampled_logprobs=completion.logprobs,
                    finish_reason="stop",
                    policy_version=0,
                    reward=0.0,
                )
            )
        if number + 1 < len(steps):
            conversation.advance(completion, steps[number + 1].observation)
    return Trajectory(
        task=demonstration.task,
        group=0,
        seed=demonstration.seed,
        turns=turns,
        reward=float(demonstration.success),
        status=Status.SUCCESS if demonstration.success else Status.FAILURE,
    )
