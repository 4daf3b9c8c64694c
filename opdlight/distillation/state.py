"""What a step depends on beside the weights and the optimizer, for a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from opdlight.losses import Remembers
from opdlight.metrics.success import Result
from opdlight.system.distributed import all_gather
from opdlight.types import Status, Trajectory, Turn


def add_state(module: Any, checkpoint: dict[str, Any]) -> None:
    """Complete a checkpoint of Lightning's, so that it is the state between two steps; leave out what is frozen.

    One that is made in a validation loop is the state before that loop.
    """
    checkpoint |= {
        "updates": module.updates,
        "not_finite": module.not_finite,
        "out_of_memory": module.out_of_memory,
        "micro_batch_tokens": module.collate.micro_batch_tokens,
        "before": {task: asdict(result) for task, result in module.before.items()},
        "evaluated": {task: asdict(result) for task, result in module.evaluated.items()},
    }
    if isinstance(module.loss, Remembers):
        checkpoint["loss"] = module.loss.state()
    # who is asked to stop does not wait for a rollout: it is done again, by a student that is newer by one update
    lost = any(all_gather(module.preemption.asked and module.ahead.going_on))
    if all(all_gather(bool(module.ahead))):
        module.preemption.rollout_lost = lost
        if not lost:
            checkpoint["ahead"] = [_plain(t) for rank in all_gather(module.ahead.peek()) for t in rank]
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    checkpoint["state_dict"] = {n: w for n, w in checkpoint["state_dict"].items() if n not in frozen}
    loops = checkpoint["loops"]["fit_loop"]
    for which in ("total", "current"):
        step = loops["epoch_loop.batch_progress"][which]  # one that has begun has changed nothing yet
        step.update(dict.fromkeys(("ready", "started", "processed"), step["completed"]))
        if module.trainer.validating:  # Lightning begins a validation loop again that was left in its first batch
            loops["epoch_loop.val_loop.batch_progress"][which].update(ready=1, started=1, processed=0, completed=0)


def restore_state(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Take it back. A smaller `micro_batch_tokens` of the config holds."""
    module.updates, module.not_finite = checkpoint["updates"], checkpoint["not_finite"]
    module.out_of_memory = checkpoint["out_of_memory"]
    budget = min(checkpoint["micro_batch_tokens"], module.collate.micro_batch_tokens)
    module.collate = replace(module.collate, micro_batch_tokens=budget)
    module.before = {task: Result(**result) for task, result in checkpoint["before"].items()}
    module.evaluated = {task: Result(**result) for task, result in checkpoint["evaluated"].items()}
    if isinstance(module.loss, Remembers) and "loss" in checkpoint:  # `loss` may be another one than before
        module.loss.load_state(checkpoint["loss"])
    if module.staleness and "ahead" in checkpoint:
        module.ahead.put(module.own([_trajectory(t) for t in checkpoint["ahead"]]))
    _reopen(checkpoint["loops"]["fit_loop"], module.trainer.datamodule.train_set.updates)


def _reopen(loops: dict[str, Any], wanted: int) -> None:
    """Let a training loop that was over go on, if more than its steps are wanted now."""
    if loops["epoch_loop.batch_progress"]["current"]["completed"] >= wanted:
        return
    loops["epoch_loop.batch_progress"]["is_last_batch"] = False
    for which in ("total", "current"):
        loops["epoch_progress"][which].update(ready=1, started=1, processed=0, completed=0)


def follow_config(module: Any) -> None:
    """After a checkpoint was loaded: rate, schedule and settings of the optimizer are those of the config again.

    A checkpoint brings those that it was written with. If nothing was changed, they are the same to the last digit.
    """
    optimizer, scheduler = module.trainer.optimizers[0], module.trainer.lr_scheduler_configs[0].scheduler
    settings = module.make_optimizer([torch.nn.Parameter(torch.empty(0))]).param_groups[0]
    factor, before = module.schedule(scheduler.last_epoch), optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        group.update({name: value for name, value in settings.items() if name != "params"})
        group |= {"initial_lr": settings["lr"], "lr": settings["lr"] * factor}
    scheduler.base_lrs = [settings["lr"]] * len(optimizer.param_groups)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
    if (now := optimizer.param_groups[0]["lr"]) != before:
        module.print(f"learning rate: {before:.3g} when the run stopped, {now:.3g} from here, as its config says now")


def _plain(trajectory: Trajectory) -> dict[str, Any]:
    return {**asdict(trajectory), "status": str(trajectory.status)}


def _trajectory(plain: Mapping[str, Any]) -> Trajectory:
    turns = [Turn(**turn) for turn in plain["turns"]]
    return Trajectory(**{**plain, "turns": turns, "status": Status(plain["status"])})
