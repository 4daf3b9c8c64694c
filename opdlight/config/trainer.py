"""Lightning's trainer: what every command gives it, and which of its arguments opdlight's own loop would not follow."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import hydra.utils
from omegaconf import DictConfig

from opdlight.errors import ConfigError

if TYPE_CHECKING:  # it takes seconds to import
    from lightning import Trainer

# what no configuration needs to say; one that does wins
GIVEN: Mapping[str, Any] = {
    "max_epochs": 1,
    "num_sanity_val_steps": 0,  # the student is evaluated before training anyway
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the module itself takes its share of each batch
}
# arguments that the loop would ignore or be broken by: what each may be, and what to set instead
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "precision": (
        (None, "32-true", 32, "32"),
        "set `model.compute_dtype` for the student's forward pass, the teachers and the engine; `model.dtype` is that "
        "of the trained weights, and no autocast reaches loss or optimizer",
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
    "use_distributed_sampler": ((False,), "each process takes its share of a batch by itself"),
    "reload_dataloaders_every_n_epochs": ((0,), "a run is one epoch"),
    "enable_checkpointing": ((), "`~callbacks.checkpoints` leaves a run without them, the other commands write none"),
    "enable_progress_bar": ((), "`~callbacks.progress` leaves a run without it"),
    "logger": ((), "set `logger`, the group of that name"),
    "callbacks": ((), "set `callbacks`, the group of that name"),
    "default_root_dir": ((), "set `run_dir`"),
}

# one of them is set in every process that torchrun, SLURM, LSF or MPI has started
LAUNCHERS = ("RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK")
BY_HAND = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")  # of Lightning, where each node gets the command once


def make_trainer(node: DictConfig, **parts: Any) -> "Trainer":
    """The trainer of a config's `trainer` with what every command gives it, and with these `parts`."""
    given = {name: value for name, value in GIVEN.items() if name not in node}
    trainer: Trainer = hydra.utils.instantiate(node, _convert_="all", **given, **parts)
    return trainer


def check_nodes(num_nodes: int) -> None:
    """Refuse to start on several nodes without what tells this process which node it is on and where the first one is.

    It would wait for half an hour for the others.

    Raises:
        ConfigError: naming `trainer.num_nodes` and the variables.
    """
    if num_nodes == 1 or any(name in os.environ for name in LAUNCHERS):
        return
    lacking = [name for name in BY_HAND if name not in os.environ]
    if lacking:
        expected = f"1, or {', '.join(BY_HAND)} in the environment on each node (torchrun and SLURM set their own)"
        raise ConfigError.wrong("trainer.num_nodes", expected=expected, got=f"{num_nodes} without {', '.join(lacking)}")


def check_torchrun(devices: object, num_nodes: int) -> None:
    """Refuse numbers of processes and nodes other than those that torchrun has started.

    One process would fail for want of a device, and the others would wait for it.

    Args:
        devices: `trainer.devices`; of what leaves the number to the machine (`auto`, -1, a text) nothing is said.
        num_nodes: `trainer.num_nodes`.

    Raises:
        ConfigError: naming `trainer.devices` or `trainer.num_nodes`.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    count = len(devices) if isinstance(devices, (list, tuple)) else devices
    started, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    if isinstance(count, int) and count > 0 and count != started:
        expected = f"{started}, as many as torchrun has started here (--nproc-per-node)"
        raise ConfigError.wrong("trainer.devices", expected=expected, got=devices)
    if num_nodes != nodes:
        expected = f"{nodes}, as many as torchrun has started (--nnodes)"
        raise ConfigError.wrong("trainer.num_nodes", expected=expected, got=num_nodes)


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse what the loop would not follow, in the resolved `trainer` of a config.

    Raises:
        ConfigError: naming the key and what to set instead.
    """
    for name, (allowed, instead) in REFUSED.items():
        if name in trainer and not any(_same(trainer[name], value) for value in allowed):
            shown = " or ".join("null" if v is None else str(v).lower() for v in allowed[:1]) or "left out"
            raise ConfigError.wrong(f"trainer.{name}", expected=f"{shown} ({instead})", got=trainer[name])
    for plugin in trainer.get("plugins") or []:
        if "precision" in str(plugin.get("_target_") if isinstance(plugin, Mapping) else plugin).lower():
            expected = "without precision: set `model.compute_dtype`"
            raise ConfigError.wrong("trainer.plugins", expected=expected, got=plugin)


def _same(value: object, allowed: object) -> bool:
    """Equal and of one type: limit_val_batches=1 is one batch, 1.0 is all of them."""
    return value == allowed and type(value) is type(allowed)
