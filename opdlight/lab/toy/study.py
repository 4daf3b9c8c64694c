"""The toy study: the main setting with every γ and seed, then shorter passes that vary what the paper leaves open."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, get_type_hints

from omegaconf import DictConfig

from opdlight.config import instantiate
from opdlight.config.values import check_value, hint
from opdlight.errors import ConfigError
from opdlight.lab.toy.figures import draw_learning, draw_variance, draw_visits
from opdlight.lab.toy.report import OFF_TARGET, Rising, csv_text, main_table, sensitivity_table, table_rows
from opdlight.lab.toy.training import TEST_WALKS, Ends, Outcome, Setting, study
from opdlight.run_folder.folder import open_run
from opdlight.run_folder.summary import timed
from opdlight.system.console import progress, say, show
from opdlight.system.files import write_text

SHOWN = (0.0, 0.5, 1.0)  # the γs of the heat maps, as in the paper


def toy(cfg: DictConfig) -> dict[str, float]:
    """Run the study and return log₁₀ of the gradient variance by γ."""
    setting: Setting = instantiate(cfg.setting)
    check_study(cfg)
    variants = {name: vary(setting, name, changes) for name, changes in _settings(cfg).items()}
    folder = open_run(cfg)
    seconds: dict[str, float] = {}
    steps = {"main": 2 * setting.teacher_iterations + cfg.iterations}
    steps |= {n: 2 * v.teacher_iterations + cfg.sensitivity.iterations for n, v in variants.items()}
    outcomes: dict[str, Outcome] = {}
    with _progress(steps) as on_step:
        for name, variant in {"main": setting, **variants}.items():
            how = cfg if name == "main" else cfg.sensitivity
            with timed(seconds, name):
                outcomes[name] = study(
                    variant,
                    seeds=list(cfg.seeds),
                    gammas=list(how.gammas),
                    iterations=how.iterations,
                    on_step=partial(on_step, name),
                )
    main = outcomes["main"]
    shown = [g for g in SHOWN if g in cfg.gammas] or list(cfg.gammas)
    write_text(folder / "toy.csv", csv_text(outcomes, cfg.window))
    draw_variance(main, cfg.window, folder / "variance.png")
    draw_learning(main, cfg.window, folder / "learning.png")
    draw_visits(main, shown, folder / "visits.png")
    write_text(folder / "summary.json", json.dumps(finite(summary(cfg, outcomes, seconds)), indent=2))
    _show(cfg, outcomes)
    differing = [main, *(outcomes[n] for n, v in variants.items() if v != setting)]
    say(verdict(differing))
    spent = f"{sum(seconds.values()):.0f} s in all, {seconds['main']:.0f} s of them for the main setting"
    say(f"Off target: ends over {OFF_TARGET} further away than the teacher. {spent}.")
    say(f"run folder: {folder}")
    return {f"variance/gamma={r.gamma:g}": r.variance.mean for r in table_rows(main)}


def check_study(cfg: DictConfig) -> None:
    """Check what the types of the config do not: that lists have distinct entries, and enough of them.

    Raises:
        ConfigError: naming the key.
    """
    parts = [("", cfg)] + ([("sensitivity.", cfg.sensitivity)] if cfg.sensitivity else [])
    for prefix, part in parts:
        if not part.gammas or len(set(part.gammas)) < len(part.gammas):
            raise ConfigError.wrong(f"{prefix}gammas", expected="distinct numbers", got=list(part.gammas))
    if cfg.sensitivity and len(cfg.sensitivity.gammas) < 2:
        raise ConfigError.wrong("sensitivity.gammas", expected="at least two numbers", got=list(cfg.sensitivity.gammas))
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise ConfigError.wrong("seeds", expected="distinct integers", got=list(cfg.seeds))


def vary(setting: Setting, name: str, changes: Mapping[str, Any]) -> Setting:
    """The setting with the `changes` of the sensitivity pass `name`.

    Raises:
        ConfigError: naming the key that is unknown or has a wrong value.
    """
    known, hints = {f.name for f in fields(Setting)}, get_type_hints(Setting, include_extras=True)
    prefix = f"sensitivity.settings.{name}."
    for key, value in changes.items():
        if key not in known:
            raise ConfigError(f"Unknown key `{prefix}{key}`. " + hint(key, known, prefix=prefix))
        check_value(f"{prefix}{key}", value, hints[key])
    try:
        return replace(setting, **changes)
    except ValueError as error:
        raise ConfigError(f"Cannot build `sensitivity.settings.{name}`: {error}") from error


def summary(cfg: DictConfig, outcomes: Mapping[str, Outcome], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The figures of the tables, for `summary.json`."""

    def teacher(ends: Ends) -> dict[str, Any]:
        return {"distance_by_seed": ends.distance.tolist(), "test_walks": TEST_WALKS}

    return {
        "settings": {
            name: {
                "gammas": [asdict(r) for r in table_rows(outcome)],
                "variance_rises": asdict(Rising.of(outcome)),
                "teachers": {task: teacher(ends) for task, ends in outcome.teachers.items()},
            }
            for name, outcome in outcomes.items()
        },
        "off_target": OFF_TARGET,
        "seeds": list(cfg.seeds),
        "seconds": dict(seconds),
    }


def finite(value: Any) -> Any:
    """`value` with None for numbers that are not finite, as of a run that diverged, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether the variance grows with γ, counted over seeds and settings."""
    rises = [Rising.of(o) for o in outcomes]
    seeds, ends, steps = (sum(getattr(r, name) for r in rises) for name in ("seeds", "ends", "every_step"))
    return (
        f"Gradient variance, {len(rises)} differing settings × seeds: larger at the highest γ than at the lowest in "
        f"{ends} of {seeds}, larger with every step of γ in {steps} of {seeds}."
    )


def _show(cfg: DictConfig, outcomes: Mapping[str, Outcome]) -> None:
    main = outcomes["main"]
    show(main_table(table_rows(main), main))
    variants = {n: o for n, o in outcomes.items() if n != "main"}
    if variants:
        show(sensitivity_table(variants, cfg.sensitivity.iterations))
    for name, outcome in outcomes.items():
        for task, ends in outcome.teachers.items():
            if bad := int((ends.distance > OFF_TARGET).sum()):
                say(f"{name}: {bad} of {len(ends.distance)} teachers of the {task} task miss its target.")


def _settings(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Name of a pass of the sensitivity study → its changes of the setting."""
    if not cfg.sensitivity:
        return {}
    if "main" in cfg.sensitivity.settings:
        raise ConfigError("Expected `sensitivity.settings` to have no entry `main`: the main setting has that name.")
    return {str(name): dict(changes) for name, changes in cfg.sensitivity.settings.items()}


@contextmanager
def _progress(steps: Mapping[str, int]) -> Iterator[Callable[[str], None]]:
    """One progress line over all passes; without a terminal, a line is printed when a pass starts."""
    started: list[str] = []
    with progress("settings", sum(steps.values())) as bar:

        def on_step(name: str) -> None:
            if name not in started:
                started.append(name)
                bar.title = f"setting {len(started)} of {len(steps)}: {name}"
                if not bar.shown:
                    say(f"{bar.title}, {steps[name]} iterations")
            bar.advance()

        yield on_step
