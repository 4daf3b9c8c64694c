"""`model.compute_dtype: auto` becomes a plain value, once and before anything is checked or built."""

from contextlib import suppress

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from opdlight.errors import ConfigError

KEY = "model.compute_dtype"
CHOICES = ("auto", "float32", "bfloat16")
STUDENT = "opdlight.models.Student"


def settle_compute_dtype(cfg: DictConfig) -> None:
    """Write the dtype of forward passes into a composed config, in place of `auto` and where a model has none.

    It is bfloat16 where the trainer uses a GPU, or would on the GPU of the doctor's `plan_gib`, and `model.dtype` on a
    CPU. A command without a trainer counts as one with `accelerator: auto`.

    Raises:
        ConfigError: if it is none of the choices.
    """
    with suppress(OmegaConfBaseException):  # of an interpolation that leads nowhere: the checks say so
        if OmegaConf.select(cfg, "model.dtype") is None:
            return
        chosen = OmegaConf.select(cfg, KEY, default="auto")
        if chosen not in CHOICES:  # the schema sees plain values alone, so its message would leave out `auto`
            raise ConfigError.wrong(KEY, expected=f"one of {', '.join(CHOICES)}", got=chosen)
        if chosen == "auto":
            accelerator = OmegaConf.select(cfg, "trainer.accelerator", default="auto")
            planned = OmegaConf.select(cfg, "plan_gib") is not None
            chosen = "bfloat16" if planned or _uses_gpu(accelerator) else cfg.model.dtype
        student = cfg.model.get("student")
        with read_write(cfg), open_dict(cfg):
            cfg.model.compute_dtype = chosen
            if isinstance(student, DictConfig) and student.get("_target_") == STUDENT:
                student.setdefault("compute_dtype", chosen)  # of a model file from before there was that key


def _uses_gpu(accelerator: object) -> bool:
    if accelerator != "auto":
        return accelerator in ("gpu", "cuda")
    import torch  # slow, and most commands on a CPU say so

    return torch.cuda.is_available()
