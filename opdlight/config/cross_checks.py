"""What no single class can check: values that are right by themselves and wrong where they stand."""

import math
from collections.abc import Mapping
from typing import Any

from opdlight.errors import ConfigError

# Lightning's arguments that opdlight's own loop would ignore or be broken by: what each may be, and what to set instead
TRAINER: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "precision": (
        (None, "32-true", 32, "32"),
        "the precision of weights and forward pass is `model.dtype`, and no autocast reaches the engine",
    ),
    "accumulate_grad_batches": ((1,), "an update is one rollout, cut to `micro_batch_tokens`; set `rollout.groups`"),
    "gradient_clip_val": ((None,), "set `max_grad_norm`"),
    "gradient_clip_algorithm": ((None,), "gradients are clipped to the 2-norm `max_grad_norm`"),
    "max_epochs": ((1,), "a run is one epoch of `trainer.max_steps` updates"),
    "min_epochs": ((None,), "set `trainer.max_steps`"),
    "min_steps": ((None,), "set `trainer.max_steps`"),
    "limit_train_batches": ((None, 1.0), "set `trainer.max_steps`, which the schedule of the learning rate knows"),
    "limit_val_batches": (
        (None, 0, 1.0),
        "or 0 for no evaluation; a batch is a task: set `task.tasks.<name>.episodes`",
    ),
    "limit_test_batches": ((None, 1.0), "there is no test loop; `python -m opdlight.evaluate` measures a model"),
    "limit_predict_batches": ((None, 1.0), "there is no prediction loop"),
    "overfit_batches": ((0, 0.0), "a rollout is never seen twice; `task.tasks` says which questions there are"),
    "fast_dev_run": ((False, 0), "set `trainer.max_steps=1`"),
    "barebones": ((False,), "leave callbacks out by `~callbacks.<name>`"),
    "inference_mode": ((False,), "the metrics live through evaluations inside and outside of training"),
    "use_distributed_sampler": ((False,), "each process takes its share of a batch by itself"),
    "reload_dataloaders_every_n_epochs": ((0,), "a run is one epoch"),
    "enable_checkpointing": ((), "`~callbacks.checkpoints` leaves a run without them, the other commands write none"),
    "enable_progress_bar": ((), "`~callbacks.progress` leaves a run without it"),
    "logger": ((), "set `logger`, the group of that name"),
    "callbacks": ((), "set `callbacks`, the group of that name"),
    "default_root_dir": ((), "set `run_dir`"),
}


def check_together(config: Mapping[str, Any]) -> None:
    """Refuse what types alone let through, in the resolved config of any entry point.

    Raises:
        ConfigError: naming the key and, where another one does it, that one.
    """
    trainer = config.get("trainer")
    if isinstance(trainer, Mapping) and trainer.get("_target_") == "lightning.Trainer":
        _check_trainer(trainer)
        each = config["rollout"]["mini_batches"] if "rollout" in config else 1
        if trainer.get("max_steps", 0) % each:  # the last rollout would make more updates than that
            expected = f"a multiple of `rollout.mini_batches` ({each}), the updates of one rollout"
            raise ConfigError.wrong("trainer.max_steps", expected=expected, got=trainer["max_steps"])
    for key in ("sampling", "evaluation"):
        node = config.get(key)
        if isinstance(node, Mapping):
            _check_sampling(key, node, trains=key == "sampling" and "loss" in config)


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for name, (allowed, instead) in TRAINER.items():
        if name in trainer and not any(_same(trainer[name], value) for value in allowed):
            shown = " or ".join("null" if v is None else str(v).lower() for v in allowed[:1]) or "left out"
            raise ConfigError.wrong(f"trainer.{name}", expected=f"{shown} ({instead})", got=trainer[name])
    for plugin in trainer.get("plugins") or []:
        if "precision" in str(plugin.get("_target_") if isinstance(plugin, Mapping) else plugin).lower():
            raise ConfigError.wrong("trainer.plugins", expected="without precision: set `model.dtype`", got=plugin)


def _same(value: object, allowed: object) -> bool:
    """Equal and of one type: limit_val_batches=1 is one batch, 1.0 is all of them."""
    return value == allowed and type(value) is type(allowed)


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
