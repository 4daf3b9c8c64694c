"""Names for the runs of a report: what differs between their command lines."""

import json
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from opdlight.report.read import Run
from opdlight.report.text import visible


def distinct(folders: Sequence[Path]) -> list[Path]:
    """The folders without duplicates, which links such as `runs/latest` may cause."""
    found: dict[Path, Path] = {}
    for folder in folders:
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def names(runs: Sequence[Run]) -> list[str]:
    """Names such as `seed=2 loss=k2`: the overrides that differ; the folder's name where these are the same."""
    typed = [_typed(run.folder / "overrides.json") for run in runs]
    keys = dict.fromkeys(key for overrides in typed for key in overrides)
    # a key that was not typed still has a value in the config; a group, such as loss, has none there
    values = [{key: o.get(key, run.config.get(key)) for key in keys} for o, run in zip(typed, runs, strict=True)]
    differing = [key for key in keys if len({of_run[key] for of_run in values}) > 1]
    found = [" ".join(f"{k}={of_run[k]}" for k in differing if of_run[k] is not None) for of_run in values]
    duplicates = {name for name in found if found.count(name) > 1}
    return [
        run.name if not name else f"{name} ({run.name})" if name in duplicates else name
        for name, run in zip(found, runs, strict=True)
    ]


def _typed(path: Path) -> dict[str, str]:
    """Key → value of a run's command line; empty if the file cannot be read."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
        parsed = OverridesParser.create().parse_overrides([str(text) for text in texts])
    except (OSError, ValueError, TypeError, HydraException):
        return {}
    return {
        visible(o.key_or_group): visible(o.get_value_element_as_str())
        for o in parsed
        if o.key_or_group not in ("resume", "run_dir") and not o.is_delete()
    }
