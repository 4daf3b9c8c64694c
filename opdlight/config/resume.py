"""The command line that resumes a run: the one in its folder, and what is added to it."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from opdlight.config.compute_dtype import KEY as COMPUTE_DTYPE
from opdlight.errors import ConfigError

SEARCH_PATH = "hydra.searchpath"
PLAIN = re.compile(r"[A-Za-z0-9_\-./+@]+")  # what Hydra reads as text without quotes
FILE = "overrides.json"  # in the run folder: the command line that made the run, a list of strings


def resume_command(run_dir: str) -> str:
    """The command that resumes a run."""
    return f"python -m opdlight.train {shlex.quote(quoted('resume', run_dir))}"


def search_path(folders: Sequence[str]) -> str:
    """The override that lets Hydra search these folders (`file://…`, `pkg://…`), too."""
    return f"{SEARCH_PATH}=[{','.join(_text(folder) for folder in folders)}]"


def command_line(hydra: HydraConf) -> list[str]:
    """The overrides that a run was started with, its --config-dir as one of them."""
    given = [f"file://{source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"]
    folders = list(dict.fromkeys([*given, *hydra.searchpath]))
    return [*hydra.overrides.task, *([search_path(folders)] if folders else [])]


def with_resumed(overrides: Sequence[str], *, searched: bool = False) -> list[str]:
    """The overrides; with `resume=<folder>` among them, after those of that run and with its folder as run folder.

    Args:
        overrides: of the command line.
        searched: a --config-dir comes with them, which replaces that of the run.

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
        expected = f"the folder of a run of opdlight.train, which holds {FILE}"
        if jobs := sorted(file.parent.name for file in folder.glob(f"*/{FILE}")):
            expected = f"one run; this folder holds those of a sweep: {', '.join(jobs)}"
        raise ConfigError.wrong("resume", expected=expected, got=str(wanted[-1]))
    given = {o.key_or_group for o in now} | ({SEARCH_PATH} if searched else set())
    if "run_dir" in given:
        raise ConfigError(
            "Expected `resume` without `run_dir`: a run is resumed in its own folder, which may be moved."
        )
    before = json.loads((folder / FILE).read_text(encoding="utf-8"))
    dtype = [] if COMPUTE_DTYPE in given else _computed_in(folder / "config.yaml")
    replaced = {*given, "run_dir", *([COMPUTE_DTYPE] if dtype else [])}
    kept = [text for text, o in zip(before, _parsed(before), strict=True) if o.key_or_group not in replaced]
    return [*kept, *dtype, *overrides, quoted("hydra.run.dir", str(folder))]


def _computed_in(config: Path) -> list[str]:
    """The override for the dtype that a run has computed in: what `auto` means now may be another one.

    Runs of before there was that key computed everything in `model.dtype`.
    """
    if not config.is_file():
        return []
    run = OmegaConf.load(config)
    found = OmegaConf.select(run, COMPUTE_DTYPE) or OmegaConf.select(run, "model.dtype")
    return [f"++{COMPUTE_DTYPE}={found}"] if found else []


def _parsed(overrides: Sequence[str]) -> list[Override]:
    found: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return found


def quoted(key: str, value: str) -> str:
    """`key=value` as Hydra reads it."""
    return f"{key}={value if PLAIN.fullmatch(value) else _text(value)}"


def _text(value: str) -> str:
    """In quotes of Hydra's: a backslash counts only before a quote or at the end."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"
