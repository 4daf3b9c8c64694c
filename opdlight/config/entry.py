"""Entry points: `hydra_entry("train", TrainConfig)` makes one of a function of the composed config."""

import functools
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from yaml import YAMLError

from opdlight.config.composition import CONF, check, compose_both, hydra_config
from opdlight.config.compute_dtype import settle_compute_dtype
from opdlight.config.explain import explain_composition, explain_yaml
from opdlight.config.folders import folder_overrides, remove_refused
from opdlight.config.help import help_text
from opdlight.config.resume import with_resumed
from opdlight.errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    ServerError,
    TrainingError,
    UnfinishedError,
    VocabularyError,
)
from opdlight.system.beginning import begin
from opdlight.system.console import progress, say
from opdlight.system.interrupt import Interrupted, stop_on_ctrl_c
from opdlight.system.parents import follow_launcher
from opdlight.system.pipes import may_be_cut

NO_LOG = (
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
)  # neither a log file beside the records nor the log of libraries on the screen
REFUSED = 2  # the exit code of an error of `USER_ERRORS`
# a traceback would not help
USER_ERRORS = (
    ConfigError,
    MissingDependencyError,
    VocabularyError,
    CheckpointError,
    TrainingError,
    ServerError,
    UnfinishedError,
)


def hydra_entry(
    config_name: str, schema: type, *, conf: Path = CONF, module: str | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make `run(cfg)` an entry point: `python -m opdlight.<config_name> group=option key=value`.

    `module` is what `python -m` runs where that is another name.
    The config is composed and checked first; a mistake is one message on stderr and exit code 2. Then Hydra takes over
    (--multirun, --cfg job and the rest). HYDRA_FULL_ERROR=1 shows the traceback of every error.

    The `__main__.py` of the commands repeat a few lines around this. A dotted name of what each runs would be shorter,
    but its late import would be hidden from mypy and tools/check_layers.py.
    """

    def decorate(run: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(run)
        def job(cfg: DictConfig) -> Any:
            _show_warnings()
            try:
                settle_compute_dtype(cfg)
                check(cfg, schema)
                if (hydra_cfg := HydraConfig.get()).mode == RunMode.MULTIRUN:
                    print(f"job {hydra_cfg.job.num}: {' '.join(hydra_cfg.overrides.task)}", flush=True)
                return run(cfg)
            except USER_ERRORS as error:
                _stop(error)
            except Interrupted:
                say("Ctrl-C: stopped" + (f"; unfinished: {cfg.run_dir}" if cfg.get("run_dir", ".") != "." else ""))
                raise
            except InstantiationException as error:
                where = str(error).rpartition("full_key: ")[2]
                if isinstance(error.__cause__, CheckpointError):  # models do not know which key names them
                    _stop(CheckpointError(f"`{where}.model`: {error.__cause__}"))
                if isinstance(error.__cause__, USER_ERRORS):
                    _stop(error.__cause__)
                # a constructor that refuses its arguments; Lightning's trainer does it with errors of many types
                if isinstance(error.__cause__, ValueError) or (where == "trainer" and error.__cause__):
                    _stop(ConfigError(f"Cannot build `{where}`: {error.__cause__}"))
                raise

        def main() -> None:
            follow_launcher()
            with stop_on_ctrl_c():
                start()

        def start() -> None:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is first imported
            begin()
            parser = get_args_parser()
            parser.prog = f"python -m {module or f'opdlight.{config_name}'}"
            args = parser.parse_args()
            name, extra = args.config_name or config_name, Path(args.config_dir) if args.config_dir else None
            made: Path | None = None
            composed = not (args.hydra_help or args.shell_completion or args.experimental_rerun or args.config_path)
            try:
                if extra is not None and not extra.is_dir():
                    raise ConfigError.wrong("--config-dir", expected="a folder that exists", got=str(extra))
                if args.help:
                    with may_be_cut():
                        print(help_text(conf, name, args.overrides, module=module, extra=extra))
                    return
                if any(field.name == "resume" for field in fields(schema)):
                    searched = extra is not None
                    _retype(args, _resumed(args.overrides, multirun=args.multirun, searched=searched))
                shown = bool(args.cfg or args.info)  # not run: no types to check, no slow imports, no run folder
                jobs = _jobs(args.overrides, multirun=args.multirun) if composed else []
                with nullcontext() if shown or not composed else progress("checking the configuration", log=False):
                    full = [
                        compose_both(name, None if shown else schema, job, conf=conf, extra=extra)[1] for job in jobs
                    ]
                if full and not shown:
                    with hydra_config(full[0]):
                        typed, made = folder_overrides(full[0], args.overrides, multirun=args.multirun)
                    quiet = [o for o in NO_LOG if o.partition("=")[0] not in {t.partition("=")[0] for t in typed}]
                    _retype(args, [*typed, *quiet])
            except USER_ERRORS as error:
                _stop(error)
            except (YAMLError, UnicodeDecodeError) as error:  # of a file that the help reads
                _stop(explain_yaml(error))
            try:
                with may_be_cut() if shown or args.hydra_help else nullcontext():
                    hydra.main(config_path=str(conf), config_name=config_name, version_base="1.3")(job)()
            except (SystemExit, *USER_ERRORS) as end:
                if made is not None and made.is_dir() and getattr(end, "code", REFUSED) == REFUSED:
                    remove_refused(made)
                raise

        return main

    return decorate


def _show_warnings() -> None:
    """Show opdlight's own warnings on stderr: with its logs disabled, Hydra silences them with those of libraries."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("opdlight."):
            logging.getLogger(name).disabled = False
    logging.getLogger("opdlight").setLevel(logging.WARNING)


def _stop(error: BaseException) -> NoReturn:
    if os.environ.get("HYDRA_FULL_ERROR", "0") == "1":
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(REFUSED)


def _resumed(overrides: list[str], *, multirun: bool, searched: bool) -> list[str]:
    """The overrides, after those of the run that `resume=` names; `searched`: a --config-dir is given.

    Raises:
        ConfigError: if `resume` is swept over, or names no run.
    """
    found = with_resumed(overrides, searched=searched)
    if found != overrides and multirun:
        raise ConfigError.wrong("resume", expected="of one run", got="--multirun")
    return found


def _retype(args: Namespace, overrides: list[str]) -> None:
    """Replace the overrides of the command line, for Hydra and for the processes that Lightning starts."""
    sys.argv = [*(a for a in sys.argv if a not in args.overrides), *overrides]
    args.overrides = overrides


def _jobs(overrides: list[str], *, multirun: bool) -> list[list[str]]:
    """The overrides to check: those given, and in a multirun each swept value once (others at their first value)."""
    if not multirun:
        return [overrides]
    swept: list[list[str]] = []
    try:
        for o in OverridesParser.create().parse_overrides(overrides):
            values = [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else []
            swept.append(values or [str(o.input_line)])
    except HydraException as error:
        raise explain_composition(error, {}) from error
    first = [values[0] for values in swept]
    return [first] + [[*first[:i], v, *first[i + 1 :]] for i, values in enumerate(swept) for v in values[1:]]
