"""Names that earlier versions had: an error says what a key or a `_target_` is called now."""

KEYS = {"reader": "probe"}  # first segments
GONE = "It is gone: the weights are published before every rollout."
_PUBLISH = "callbacks.publish"
TARGETS = {  # modules, classes and functions → their new place; None: gone
    "opdlight.callbacks.TokenWatch": "opdlight.callbacks.ProbeCallback",
    "opdlight.checkpointing.ShardedStrategy": "opdlight.distillation.sharded.ShardedStrategy",
    "opdlight.collate": "opdlight.batch.collate",
    "opdlight.demonstrations": "opdlight.sft.demonstrations",
    "opdlight.evaluation.make_collector": "opdlight.rollout.make_collector",
    "opdlight.lab.toy_training": "opdlight.lab.toy.training",
    "opdlight.loggers": "opdlight.run_folder.loggers",
    "opdlight.models.checkpoints": "opdlight.models.loading",
    "opdlight.module": "opdlight.distillation.module",
    "opdlight.publish.PublishWeights": None,
    "opdlight.reading.Reader": "opdlight.models.Probe",
    "opdlight.records": "opdlight.run_folder.records",
    "opdlight.rollout.ahead": "opdlight.rollout.prefetch",
    "opdlight.rollout.engine": "opdlight.rollout.engines.base",
    "opdlight.rollout.ray_engine": "opdlight.rollout.engines.ray_pool",
    "opdlight.rollout.server_engine": "opdlight.rollout.engines.served",
    "opdlight.rollout.vllm_engine": "opdlight.rollout.engines.vllm",
    "opdlight.schedules.learning_rate": "opdlight.distillation.schedules.learning_rate",
    "opdlight.training.train": "opdlight.train.run.train",
}


def former_key(key: str) -> str | None:
    """A sentence for a dotted key of an earlier version; None for any other.

    >>> former_key("reader.k"), former_key("readers.k")
    ('It is called `probe.k` now.', None)
    """
    first, dot, rest = key.partition(".")
    if first in KEYS:
        return f"It is called `{KEYS[first]}{dot}{rest}` now."
    return GONE if f"{key}.".startswith(f"{_PUBLISH}.") else None


def former_target(target: str) -> str | None:
    """A sentence for a `_target_` of an earlier version; None for any other.

    >>> former_target("opdlight.collate.Collate"), former_target("opdlight.data.Task")
    ('It is called opdlight.batch.collate.Collate now.', None)
    """
    for old, new in TARGETS.items():
        if f"{target}.".startswith(f"{old}."):
            return GONE if new is None else f"It is called {new}{target.removeprefix(old)} now."
    return None
