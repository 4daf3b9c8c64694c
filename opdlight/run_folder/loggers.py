"""Where metrics go: `metrics.csv` always, and the loggers of the config; secrets go nowhere."""

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
IDS = "loggers.json"  # in the run folder: logger → id of its run, of those that keep runs elsewhere
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


def open_loggers(cfg: DictConfig, folder: Path, closing: Closing, step: int | None = None) -> list[Logger]:
    """`metrics.csv` first, then each logger of the config with the hyper-parameters of the run.

    W&B and MLflow go on with the run whose id is in the run folder. A logger that fails later is noted in `closing`,
    and the run goes on.

    `step`: of a run that goes on; TensorBoard forgets what it has of it and later.

    Raises:
        MissingDependencyError: naming the extra that brings a logger's package.
        ConfigError: naming a logger that does not start.
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
                logger: Logger = instantiate(node, **_going_on(target, node, known, step))
                if isinstance(logger, MLFlowLogger) and known and first and logger.run_id == known:
                    _log_what_is_new(logger, config)
                else:
                    logger.log_hyperparams(config)
        except Exception as error:  # of a library, a server, a disk
            hint = (
                f" Its run is the one that {folder / IDS} names; without this file a new one begins." if known else ""
            )
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
    except FileNotFoundError:  # no such logger, or a run of an older version
        return {}
    return ids


def _going_on(target: str, node: DictConfig, known: str | None, step: int | None) -> dict[str, Any]:
    """Arguments with which a logger goes on with the run that it knows by an id."""
    if target.endswith("TensorBoardLogger"):
        return {"purge_step": step} if step else {}
    if known and target.endswith("MLFlowLogger"):
        return {} if "run_id" in node else {"run_id": known}
    if known and target.endswith("WandbLogger"):
        return {} if "id" in node or "version" in node else {"id": known}
    return {}


def _log_what_is_new(logger: MLFlowLogger, config: Any) -> None:
    """MLflow's parameters never change: those that have become others are tags, `now: <name>`."""
    before = logger.experiment.get_run(logger.run_id).data.params
    flat = {name: str(value)[:250] for name, value in flatten_dict(config).items()}
    logger.log_hyperparams({name: value for name, value in flat.items() if name not in before})
    for name, value in flat.items():
        if before.get(name, value) != value:
            logger.experiment.set_tag(logger.run_id, f"now: {name}", value)
    logger.experiment.update_run(logger.run_id, status="RUNNING")


@contextmanager
def _tracking_uri_kept() -> Iterator[None]:
    """MLflow writes its address to the environment, where the next run of this process would take it for its own."""
    before = os.environ.get(TRACKING_URI)
    try:
        yield
    finally:
        os.environ.pop(TRACKING_URI, None)
        if before is not None:
            os.environ[TRACKING_URI] = before


def _shield(logger: Logger, name: str, closing: Closing) -> None:
    """Let the run go on when the logger fails: `metrics.csv` has all figures."""

    def shielded(call: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(call)
        def attempt(*args: Any, **kwargs: Any) -> None:
            with closing.part(f"log by logger.{name}; metrics.csv has all figures"):
                call(*args, **kwargs)

        return attempt

    for method in ("log_metrics", "save", "finalize"):
        setattr(logger, method, shielded(getattr(logger, method)))


def close_loggers(loggers: Sequence[Logger], closing: Closing) -> None:
    """End what would go on into the next run of this process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with closing.part("end the run of Weights & Biases"):
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
