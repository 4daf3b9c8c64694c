"""Where metrics go: `metrics.csv` always, and the loggers of the config; secrets go nowhere."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from opdlight.config import instantiate
from opdlight.errors import MissingDependencyError
from opdlight.records import MetricsFile

HIDDEN = "<hidden>"
# the last word of a name
SECRET_NAMES = {"key", "apikey", "token", "password", "passwd", "passphrase", "pwd", "secret"}
SECRET_NAMES |= {"credential", "credentials", "auth", "authorization", "cookie"}
SECRET_VALUE = re.compile(
    r"(?i)\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|eyJ)[\w\-./]{12,}|\bbearer\s+\S{8,}|://[^/\s:@]*:[^/\s@]+@"
)
SHORTEST = 8  # characters of an environment variable's value that is worth hiding
EXTRAS = {
    "lightning.pytorch.loggers.WandbLogger": ("wandb", ("wandb",)),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", ("mlflow", "sqlalchemy", "alembic")),
}


def open_loggers(cfg: DictConfig, folder: Path, step: int | None = None) -> list[Logger]:
    """`metrics.csv` first, then each logger of the config with the hyper-parameters of the run.

    `step`: of a run that goes on; TensorBoard forgets what it has of it and later.

    Raises:
        MissingDependencyError: naming the extra that brings a logger's package.
    """
    loggers: list[Logger] = [MetricsFile(folder)]
    config = OmegaConf.to_container(cfg, resolve=True)
    for node in cfg.logger.values():
        extra, packages = EXTRAS.get(node.get("_target_"), ("", ()))
        if any(importlib.util.find_spec(package) is None for package in packages):
            raise MissingDependencyError.extra(f"`logger={extra}`", extra)
        again = {"purge_step": step} if step and node.get("_target_", "").endswith("TensorBoardLogger") else {}
        logger: Logger = instantiate(node, **again)
        logger.log_hyperparams(without_secrets(config))
        loggers.append(logger)
    return loggers


def close_loggers(loggers: Sequence[Logger]) -> None:
    """End what would go on into the next run of this process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def without_secrets(value: Any, name: str = "") -> Any:
    """The same nested value with `<hidden>` for every string that looks like a key, a token or a password.

    A string looks so by the name of its key, by its form (`hf_…`, `sk-…`, `user:password@host`), or because it holds
    the value of an environment variable whose name says so. Numbers, such as `turn_tokens`, never do.

    >>> without_secrets({"api_key": "abc", "turn_tokens": 64, "url": "https://me:pw@host"})
    {'api_key': '<hidden>', 'turn_tokens': 64, 'url': '<hidden>'}
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    looks_so = _names_a_secret(name) or SECRET_VALUE.search(value)
    return HIDDEN if looks_so or any(secret in value for secret in _secrets_of_environment()) else value


def _names_a_secret(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)  # apiKey, API_KEY and api-key alike
    return bool(words) and words[-1].lower() in SECRET_NAMES


def _secrets_of_environment() -> list[str]:
    return [v for name, v in os.environ.items() if _names_a_secret(name) and len(v) >= SHORTEST]
