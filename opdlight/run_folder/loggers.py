"""The loggers of a run: `metrics.csv` always, and those of the config, which never receive secrets."""

import functools
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict as flatten_dict
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from opdlight.config import instantiate
from opdlight.errors import ConfigError, MissingDependencyError
from opdlight.run_folder.records import MetricsFile
from opdlight.system.closing import Closing
from opdlight.system.console import is_first_process
from opdlight.system.files import write_text

TRACKING_URI = "MLFLOW_TRACKING_URI"
IDS = "loggers.json"  # in the run folder: name of a logger that keeps runs elsewhere → id of its run there
HIDDEN = "<hidden>"
# the value of a name that ends in one of these words is secret
SECRET_NAMES = {"key", "apikey", "token", "password", "passwd", "passphrase", "pwd", "secret"}
SECRET_NAMES |= {"credential", "credentials", "auth", "authorization", "cookie"}
SECRET_VALUE = re.compile(
    r"(?i)\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|eyJ)[\w\-./]{12,}|\bbearer\s+\S{8,}|://[^/\s:@]*:[^/\s@]+@"
)
SHORTEST = 8  # a shorter value of an environment variable is not searched for: it would hide ordinary text
EXTRAS = {
    "lightning.pytorch.loggers.WandbLogger": ("wandb", ("wandb",)),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", ("mlflow", "sqlalchemy", "alembic")),
}


def open_loggers(cfg: DictConfig, folder: Path, closing: Closing, step: int | None = None) -> list[Logger]:
    """`metrics.csv` first, then each logger of the config with the hyper-parameters of the run.

    Of a resumed run, W&B and MLflow continue the run whose id is in the run folder.

    Args:
        cfg: the composed config.
        folder: the run folder.
        closing: records the errors of a logger that fails later; training continues without it.
        step: the step from which the run is resumed; TensorBoard drops its events from there on.

    Raises:
        MissingDependencyError: naming the extra that installs a logger's package.
        ConfigError: naming a logger that cannot start.
    """
    loggers: list[Logger] = [MetricsFile(folder)]
    first = is_first_process()
    config = without_secrets(OmegaConf.to_container(cfg, resolve=True))
    ids = _read_ids(folder) if cfg.resume else {}
    for name, node in cfg.logger.items():
        target = node.get("_target_", "")
        extra, packages = EXTRAS.get(target, ("", ()))
        if any(importlib.util.find_spec(package) is None for package in packages):
            raise MissingDependencyError.extra(f"`logger={extra}`", extra)
        known = ids.get(str(name))
        try:
            with _tracking_uri_kept():
                logger: Logger = instantiate(node, **_resume_arguments(target, node, known, step))
                if isinstance(logger, MLFlowLogger) and known and first and logger.run_id == known:
                    _log_new_parameters(logger, config)
                else:
                    logger.log_hyperparams(config)
        except Exception as error:  # raised by a library, a server or the file system
            file = folder / IDS
            hint = f" It continues the run that {file} names; without this file it begins a new one." if known else ""
            raise ConfigError(f"Cannot start `logger.{name}`: {' '.join(str(error).split())}.{hint}") from error
        if isinstance(logger, WandbLogger | MLFlowLogger) and first:
            ids[str(name)] = str(logger.version)
        _shield(logger, str(name), closing)
        loggers.append(logger)
    if ids and first:
        write_text(folder / IDS, json.dumps(ids, indent=2))
    return loggers


def _read_ids(folder: Path) -> dict[str, str]:
    try:
        ids: dict[str, str] = json.loads((folder / IDS).read_text(encoding="utf-8"))
    except FileNotFoundError:  # the run had no such logger, or is of an older version
        return {}
    return ids


def _resume_arguments(target: str, node: DictConfig, known: str | None, step: int | None) -> dict[str, Any]:
    """The arguments with which a logger continues its run, whose id there is `known`."""
    if target.endswith("TensorBoardLogger"):
        return {"purge_step": step} if step else {}
    if known and target.endswith("MLFlowLogger"):
        return {} if "run_id" in node else {"run_id": known}
    if known and target.endswith("WandbLogger"):
        return {} if "id" in node or "version" in node else {"id": known}
    return {}


def _log_new_parameters(logger: MLFlowLogger, config: Any) -> None:
    """Log a resumed run's parameters. MLflow never changes one: a changed value becomes a tag `now: <name>`."""
    before = logger.experiment.get_run(logger.run_id).data.params
    flat = {name: str(value)[:250] for name, value in flatten_dict(config).items()}
    logger.log_hyperparams({name: value for name, value in flat.items() if name not in before})
    for name, value in flat.items():
        if before.get(name, value) != value:
            logger.experiment.set_tag(logger.run_id, f"now: {name}", value)
    logger.experiment.update_run(logger.run_id, status="RUNNING")


@contextmanager
def _tracking_uri_kept() -> Iterator[None]:
    """Undo that MLflow writes its address to the environment, where the next run of this process would find it."""
    before = os.environ.get(TRACKING_URI)
    try:
        yield
    finally:
        os.environ.pop(TRACKING_URI, None)
        if before is not None:
            os.environ[TRACKING_URI] = before


def _shield(logger: Logger, name: str, closing: Closing) -> None:
    """Catch the errors of the logger's methods and record them in `closing`: `metrics.csv` has all figures anyway."""

    def shielded(call: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(call)
        def attempt(*args: Any, **kwargs: Any) -> None:
            with closing.part(f"log by logger.{name}; metrics.csv has all figures"):
                call(*args, **kwargs)

        return attempt

    for method in ("log_metrics", "save", "finalize"):
        setattr(logger, method, shielded(getattr(logger, method)))


def close_loggers(loggers: Sequence[Logger], closing: Closing) -> None:
    """Finish the W&B run, which the next run of this process would continue otherwise."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with closing.part("end the run of Weights & Biases"):
                logger.experiment.finish()


def without_secrets(value: Any, name: str = "") -> Any:
    """The same nested value with `<hidden>` in place of every string that looks like a key, a token or a password.

    A string is hidden because of the name of its key, because of its form (`hf_…`, `sk-…`, `user:password@host`), or
    because it contains the value of an environment variable with such a name. Numbers (`turn_tokens`) are not hidden.

    >>> without_secrets({"api_key": "abc", "turn_tokens": 64, "url": "https://me:pw@host"})
    {'api_key': '<hidden>', 'turn_tokens': 64, 'url': '<hidden>'}
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    suspicious = _names_a_secret(name) or SECRET_VALUE.search(value)
    return HIDDEN if suspicious or any(secret in value for secret in _secrets_of_environment()) else value


def _names_a_secret(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)  # apiKey, API_KEY and api-key alike
    return bool(words) and words[-1].lower() in SECRET_NAMES


def _secrets_of_environment() -> list[str]:
    return [v for name, v in os.environ.items() if _names_a_secret(name) and len(v) >= SHORTEST]
