"""Hydra composition with typed checks: the config of a run is right, or one message says what is wrong."""

import functools

import hydra.utils

from opdlight.config.composition import CONF, check, compose
from opdlight.config.entry import hydra_entry
from opdlight.config.resume import resume_command
from opdlight.config.schemas import (
    DoctorConfig,
    EstimatorsConfig,
    EvaluateConfig,
    ReportConfig,
    SftConfig,
    TablesConfig,
    ToyConfig,
    TrainConfig,
)
from opdlight.config.trainer import make_trainer

# plain lists, dicts and objects reach the constructors: by default Hydra would wrap dataclasses in configs of its own
instantiate = functools.partial(hydra.utils.instantiate, _convert_="all")

__all__ = [
    "CONF",
    "DoctorConfig",
    "EstimatorsConfig",
    "EvaluateConfig",
    "ReportConfig",
    "SftConfig",
    "TablesConfig",
    "ToyConfig",
    "TrainConfig",
    "check",
    "compose",
    "hydra_entry",
    "instantiate",
    "make_trainer",
    "resume_command",
]
