"""What no single class can check: values that are right by themselves and wrong where they stand."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from opdlight.config.checks import locate
from opdlight.config.imports import import_env_module
from opdlight.config.trainer import check_trainer
from opdlight.errors import ConfigError


def check_together(config: Mapping[str, Any]) -> None:
    """Refuse what types alone let through, in the resolved config of any entry point.

    Raises:
        ConfigError: naming the key and, where another one does it, that one.
    """
    task = config.get("task")
    for name, each_task in (task.get("tasks") or {}).items() if isinstance(task, Mapping) else ():
        env = each_task.get("env") if isinstance(each_task, Mapping) else None
        if isinstance(env, Mapping) and isinstance(env.get("id"), str):
            import_env_module(f"task.tasks.{name}.env.id", env["id"])
    trainer = config.get("trainer")
    if isinstance(trainer, Mapping) and trainer.get("_target_") == "lightning.Trainer":
        check_trainer(trainer)
        each = config["rollout"]["mini_batches"] if "rollout" in config else 1
        if trainer.get("max_steps", 0) % each:  # the last rollout would make more updates than that
            expected = f"a multiple of `rollout.mini_batches` ({each}), the updates of one rollout"
            raise ConfigError.wrong("trainer.max_steps", expected=expected, got=trainer["max_steps"])
    model = config.get("model")
    if isinstance(model, Mapping) and (model.get("dtype"), model.get("compute_dtype")) == ("bfloat16", "float32"):
        expected = "bfloat16 beside model.dtype=bfloat16 (its updates are rounded anyway)"
        raise ConfigError.wrong("model.compute_dtype", expected=expected, got="float32")
    for key in ("sampling", "evaluation"):
        node = config.get(key)
        if isinstance(node, Mapping):
            _check_sampling(key, node, trains=key == "sampling" and "loss" in config)
    if "staleness" in config:  # a distillation
        nodes = list(_nodes(config["loss"]))
        check_loss(
            group_advantage=any(node.get("reward_weight") for node in nodes),
            engine_logprobs=bool(config["staleness"])
            or any(str(node.get("_target_")).endswith(".ImportanceWeighted") for node in nodes),
            group_size=config["rollout"]["group_size"],
            temperature=config["sampling"].get("temperature", 1.0),
        )
        if _several(config["trainer"]):
            _check_shared_engine(config["engine"])
    if "plan_gib" not in config:  # the doctor says it beside the prompts' lengths, with what to set
        _check_context(task, config.get("engine"))
    if config.get("evaluate_teachers") and "url" in config["engine"]:
        expected = "false beside engine=vllm_server, which holds the student"
        raise ConfigError.wrong("evaluate_teachers", expected=expected, got=True)


def check_loss(*, group_advantage: bool, engine_logprobs: bool, group_size: int, temperature: float) -> None:
    """Refuse rollouts that lack what a loss needs.

    `check_together` knows by their names which losses of opdlight need something; for a loss of the user's own, its
    `needs` say it once it is built.

    Args:
        group_advantage: the loss compares the rewards of a group.
        engine_logprobs: it weights by the engine's log-probs.
        group_size: trajectories of one group, `rollout.group_size`.
        temperature: of the rollout policy, `sampling.temperature`.

    Raises:
        ConfigError: naming the key.
    """
    if group_advantage and group_size < 2:
        raise ConfigError.wrong("rollout.group_size", expected="at least 2 beside `loss.reward_weight`", got=group_size)
    if engine_logprobs and temperature != 1:
        raise ConfigError.wrong(
            "sampling.temperature",
            expected="1 for importance weights (the engine reports log-probs at temperature 1), as `staleness: 1` has",
            got=temperature,
        )


def _check_context(mixture: Any, engine: Any) -> None:
    """Refuse trajectories longer than the engine's context; the collector checks it again when the engine has started.

    Args:
        mixture: node of the tasks.
        engine: node of the engine; one of the user's own may name no `max_model_len`.
    """
    key = "engine"
    if isinstance(engine, Mapping) and isinstance(engine.get("engine"), Mapping):  # of a pool
        key, engine = "engine.engine", engine["engine"]
    context = engine.get("max_model_len") if isinstance(engine, Mapping) else None
    tasks = mixture.get("tasks") if isinstance(mixture, Mapping) else None
    if not isinstance(context, int) or not tasks:
        return
    for name, task in tasks.items():
        longest = _argument(task, "trajectory_tokens") if isinstance(task, Mapping) else None
        if isinstance(longest, int) and longest > context:
            expected = f"at most `{key}.max_model_len` = {context} (`model.max_model_len` sets it)"
            raise ConfigError.wrong(f"task.tasks.{name}.trajectory_tokens", expected=expected, got=longest)


def _several(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer surely has several processes; of `devices: auto` only the machine knows."""
    devices = trainer.get("devices")
    many = devices > 1 if isinstance(devices, int) else isinstance(devices, list) and len(devices) > 1
    return many or trainer.get("num_nodes", 1) > 1


def _check_shared_engine(engine: Mapping[str, Any]) -> None:
    """Refuse engines that several processes of the trainer cannot have; the engines check it again when they start."""
    if "engine" not in engine and engine.get("tensor_parallel_size", 1) > 1:
        expected = "1 beside several trainer processes, each of which has one GPU (engine=ray gives an engine several)"
        raise ConfigError.wrong("engine.tensor_parallel_size", expected=expected, got=engine["tensor_parallel_size"])
    if "address" in engine and engine["address"] is None:
        expected = "auto, or the address of a Ray cluster, which the trainer's processes share (`ray start --head`)"
        raise ConfigError.wrong("engine.address", expected=expected, got=None)


def _argument(node: Mapping[str, Any], name: str) -> Any:
    """The argument that a node gives its `_target_`, or else the default of that; None if it takes none."""
    if name in node or "_target_" not in node:
        return node.get(name)
    taken = inspect.signature(locate("_target_", node["_target_"])).parameters.get(name)
    return taken.default if taken is not None else None


def _nodes(value: object) -> Iterator[Mapping[str, Any]]:
    """A mapping and those within it."""
    if isinstance(value, Mapping):
        yield value
        for child in value.values():
            yield from _nodes(child)


def _check_sampling(key: str, node: Mapping[str, Any], *, trains: bool) -> None:
    temperature, top_p = node.get("temperature", 1.0), node.get("top_p", 1.0)
    if trains and not 0 < temperature < math.inf:
        raise ConfigError.wrong(
            f"{key}.temperature",
            expected="a number > 0 (the logits of both models are divided by it; evaluation.temperature=0 is greedy)",
            got=temperature,
        )
    if not 0 <= temperature < math.inf:
        raise ConfigError.wrong(f"{key}.temperature", expected="a number ≥ 0 (0 is greedy)", got=temperature)
    if not 0 < top_p <= 1:
        raise ConfigError.wrong(f"{key}.top_p", expected="a number in (0, 1]", got=top_p)
