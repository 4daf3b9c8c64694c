"""The optimizer of a resumed run."""

import torch

from opdlight.distillation.module import OnPolicyDistillation


def follow_config(module: OnPolicyDistillation) -> None:
    """After a checkpoint was loaded: rate, schedule and settings of the optimizer are those of the config again.

    A checkpoint brings those that it was written with. If nothing was changed, they are the same to the last digit.
    """
    optimizer, scheduler = module.trainer.optimizers[0], module.trainer.lr_scheduler_configs[0].scheduler
    for values in optimizer.state.values():  # on a CPU they are still the checkpoint's file, which will be deleted
        values.update({name: v.clone() for name, v in values.items() if isinstance(v, torch.Tensor) and v.is_cpu})
    settings = module.make_optimizer([torch.nn.Parameter(torch.empty(0))]).param_groups[0]
    factor, before = module.schedule(scheduler.last_epoch), optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        group.update({name: value for name, value in settings.items() if name != "params"})
        group |= {"initial_lr": settings["lr"], "lr": settings["lr"] * factor}
    scheduler.base_lrs = [settings["lr"]] * len(optimizer.param_groups)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
    if (now := optimizer.param_groups[0]["lr"]) != before:
        module.print(f"learning rate: {before:.3g} when the run stopped, {now:.3g} from here, as its config says now")
