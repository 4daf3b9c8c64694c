"""The command line of a run that goes on: that of its folder, and what is added to it."""

import json
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from opdlight.errors import ConfigError

FILE = "overrides.json"  # in the run folder: the command line that made the run, a list of strings


def resume_command(run_dir: str) -> str:
    """What to type so that a run goes on."""
    return f"python -m opdlight.train {quoted('resume', run_dir)}"


def with_resumed(overrides: Sequence[str]) -> list[str]:
    """The overrides themselves; with `resume=<folder>` those of that run before them, and its folder as the run's own.

    Raises:
        ConfigError: if the folder holds no run.
    """
    try:
        now = _parsed(overrides)
    except HydraException:  # composition has a better message
        return list(overrides)
    wanted = [o.value() for o in now if o.key_or_group == "resume"]
    if not wanted or wanted[-1] is None:
        return list(overrides)
    folder = Path(str(wanted[-1])).resolve()
    if not (folder / FILE).is_file():
        raise ConfigError.wrong(
            "resume", expected=f"the folder of a run of opdlight.train, which has a {FILE}", got=str(wanted[-1])
        )
    given = {o.key_or_group for o in now}
    if "run_dir" in given:
        raise ConfigError("Expected `resume` without `run_dir`: a run goes on in its own folder, which may be moved.")
    before = json.loads((folder / FILE).read_text(encoding="utf-8"))
    kept = [text for text, o in zip(before, _parsed(before), strict=True) if o.key_or_group not in {*given, "run_dir"}]
    return [*kept, *overrides, quoted("hydra.run.dir", str(folder))]


def _parsed(overrides: Sequence[str]) -> list[Override]:
    found: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return found


def quoted(key: str, value: str) -> str:
    """`key=value` as Hydra reads it."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'" if set(value) & set(" ='\"\\{}[](),$:") else f"{key}={value}"
