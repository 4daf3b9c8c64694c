"""Names for the runs of a report: what differs between their command lines."""

import json
from collections.abc import Mapping, Sequence
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
    found = differing([typed(run.folder) for run in runs], [run.config for run in runs])
    duplicates = {name for name in found if found.count(name) > 1}
    return [
        run.name if not name else f"{name} ({run.name})" if name in duplicates else name
        for name, run in zip(found, runs, strict=True)
    ]


def differing(lines: Sequence[Mapping[str, str]], configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Of each command line the overrides that differ, `loss=k2 optimizer.lr=0.1`; empty where there is none.

    A key that was not typed still has a value in the configuration; a group, such as loss, has none there.
    """
    keys = dict.fromkeys(key for line in lines for key in line)
    values = [{k: line.get(k, config.get(k)) for k in keys} for line, config in zip(lines, configs, strict=True)]
    unlike = [key for key in keys if len({of_run[key] for of_run in values}) > 1]
    return [" ".join(f"{k}={of_run[k]}" for k in unlike if of_run[k] is not None) for of_run in values]


def typed(folder: Path) -> dict[str, str]:
    """Key → value of a run's command line; empty if it cannot be read."""
    try:
        texts = json.loads((folder / "overrides.json").read_text(encoding="utf-8"))
        parsed = OverridesParser.create().parse_overrides([str(text) for text in texts])
    except (OSError, ValueError, TypeError, HydraException):
        return {}
    return {
        visible(o.key_or_group): visible(o.get_value_element_as_str())
        for o in parsed
        if o.key_or_group not in ("resume", "run_dir") and not o.is_delete()
    }
