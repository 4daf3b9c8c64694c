"""What runs that are compared are called: by what differs between them."""

import json
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from opdlight.report.read import Run
from opdlight.report.text import visible


def distinct(folders: Sequence[Path]) -> list[Path]:
    """The folders, each once: `runs/latest` may be one of the others."""
    found: dict[Path, Path] = {}
    for folder in folders:
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def names(runs: Sequence[Run]) -> list[str]:
    """`seed=2 loss=k2`: what was typed otherwise for each run, or its folder's name where that tells none apart."""
    typed = [_typed(run.folder / "overrides.json") for run in runs]
    keys = dict.fromkeys(key for mine in typed for key in mine)
    # what was not typed has a value all the same; a group, such as loss, has none in the config
    values = [{key: mine.get(key, run.config.get(key)) for key in keys} for mine, run in zip(typed, runs, strict=True)]
    differing = [key for key in keys if len({mine[key] for mine in values}) > 1]
    found = [" ".join(f"{key}={mine[key]}" for key in differing if mine[key] is not None) for mine in values]
    again = {name for name in found if found.count(name) > 1}
    return [
        run.name if not name else f"{name} ({run.name})" if name in again else name
        for name, run in zip(found, runs, strict=True)
    ]


def _typed(path: Path) -> dict[str, str]:
    """Key → value of the command line that made a run; nothing of what cannot be read."""
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
