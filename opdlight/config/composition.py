"""Composition of a config by Hydra, its errors in one readable sentence, and typed checks before anything is built."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from opdlight.config.checks import check_config
from opdlight.config.compute_dtype import settle_compute_dtype
from opdlight.config.cross_checks import check_together
from opdlight.config.explain import explain_composition, explain_interpolation, explain_yaml, no_option, unknown_key
from opdlight.config.former import KEYS
from opdlight.config.resume import search_path
from opdlight.errors import ConfigError

CONF = Path(__file__).absolute().parents[1] / "conf"  # a link to conf/ in the repository, the folder itself in a wheel


def check(cfg: DictConfig, schema: type) -> None:
    """Resolve every interpolation and compare all values with `schema` and the signatures of the `_target_`s.

    Raises:
        ConfigError: naming the key, what was expected, what came.
    """
    try:
        plain = _plain(cfg, resolve=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"Missing `{error.full_key}`. Give it as {error.full_key}=<value>.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"Cannot resolve `{error.full_key}`: {explain_interpolation(str(error), _plain(cfg))}"
        ) from error
    check_config(plain, schema)
    check_together(plain)


def compose(
    config_name: str | None,
    schema: type | None,
    overrides: Sequence[str] = (),
    *,
    conf: Path = CONF,
    extra: Path | None = None,
) -> DictConfig:
    """Compose conf/<config_name>.yaml with command-line overrides and, given a `schema`, check it; interpolations stay.

    `extra` is one more folder to search for groups and options (Hydra's --config-dir). Without a `config_name` there
    are only the groups that overrides add (`+task=sums`).

    Raises:
        ConfigError: Hydra's own errors in one sentence, and those of `check`.
    """
    return compose_both(config_name, schema, overrides, conf=conf, extra=extra)[0]


def compose_both(
    config_name: str | None, schema: type | None, overrides: Sequence[str], *, conf: Path, extra: Path | None
) -> tuple[DictConfig, DictConfig]:
    """What `compose` returns, and the same with Hydra's own config in it."""
    search = [] if extra is None else [search_path([f"file://{extra.absolute()}"])]
    with _initialised(conf):
        try:
            full = _composed(config_name, [*search, *overrides])
        except (YAMLError, UnicodeDecodeError) as error:
            raise explain_yaml(error) from error
        except (HydraException, ValueError) as error:
            raise _explained(error, config_name, [*search, *overrides]) from error
    if schema is not None:
        settle_compute_dtype(full)
    cfg = full.copy()
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    for added in (o.lstrip("+").partition("=")[0] for o in overrides if o.startswith("+")):
        if schema is not None and added.partition(".")[0] in KEYS:
            raise unknown_key(added, {})
    if schema is not None:
        with read_write(full), open_dict(full):
            full.hydra.runtime.output_dir = "<run folder>"  # known only when the run starts
        with hydra_config(full):
            check(cfg, schema)
    return cfg, full


def _plain(cfg: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _explained(error: HydraException | ValueError, config_name: str | None, overrides: Sequence[str]) -> ConfigError:
    """The error of a composition; the config without the value overrides tells what the right key may be."""
    folders = [o for o in overrides if o.lstrip("+").startswith("hydra.searchpath=")]
    pairs = [o.partition("=")[::2] for o in overrides]
    loader = GlobalHydra.instance().config_loader()
    options = {group: loader.get_group_options(group, config_name=config_name, overrides=folders) for group, _ in pairs}
    if not isinstance(error, HydraException):
        for group, value in pairs:  # a group's name with null, true or a number
            if options[group] and value not in options[group]:
                return no_option(group, value, options[group])
        raise error
    known: Mapping[str, Any] = {}
    groups: list[str] = []
    with suppress(HydraException):  # it fails again where a group or an option is what is wrong
        groups = [g for g in _composed(config_name, folders).hydra.runtime.choices if not g.startswith("hydra/")]
        chosen = [f"{group}={option}" for group, option in pairs if group in groups and option in options[group]]
        known = _plain(hydra.compose(config_name, [*folders, *chosen]))
    return explain_composition(error, known, command=config_name or "", groups=groups)


def _composed(config_name: str | None, overrides: Sequence[str]) -> DictConfig:
    return hydra.compose(config_name, list(overrides), return_hydra_config=True)


@contextmanager
def _initialised(conf: Path) -> Iterator[None]:
    if not conf.is_dir():
        raise ConfigError(f"The config folder {conf} is missing. Install opdlight from its repository.")
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        yield


@contextmanager
def hydra_config(full: DictConfig) -> Iterator[None]:
    """Within, `${hydra:…}` interpolations are resolved in `full`."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(full)
    try:
        yield
    finally:
        holder.cfg = before
