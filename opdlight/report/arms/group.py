"""Finds the runs below a folder, and groups them by arm: by what differs between configurations, but for the seed."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from opdlight.report.arms.outcomes import Ran
from opdlight.report.naming import differing, typed
from opdlight.report.read import WITHOUT
from opdlight.report.text import visible

STUDY = "tables.yaml"  # opdlight.lab.tables writes it beside setting/arm/seed-n
SEED = re.compile(r"seed-\d+")  # the folder of a run of it
MARKS = (*WITHOUT, "overrides.json")  # a folder with one of them is a run's
UNLIKE = ("seed", "run_dir", "resume", "evaluate_teachers", "doctor", "logger", "callbacks.checkpoints",
          "callbacks.progress")  # keys that do not make another arm, and all below them  # fmt: skip
MOST_KEYS = 3  # in the name of an arm, of keys that were not typed


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, be it of one that failed before it began."""
    return any((folder / name).is_file() for name in MARKS) or bool(
        SEED.fullmatch(folder.name) and (folder / "log.txt").is_file()
    )


def runs_below(folder: Path) -> list[Path]:
    """The folders of runs below this one, numbers in their order; links are not followed, for `latest` is one."""
    found = []
    for name, below, _ in os.walk(folder):
        below[:] = [b for b in below if not b.startswith(".")]
        runs = [b for b in below if is_run(Path(name, b)) and not Path(name, b).is_symlink()]
        found += [Path(name, run) for run in runs]
        below[:] = [b for b in below if b not in runs]
    return sorted(found, key=lambda path: [_numbers(part) for part in path.parts])


def _numbers(text: str) -> list[tuple[int, int, str]]:
    """Sorts `seed-10` after `seed-2`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text)]


def grouped(runs: Sequence[Ran]) -> list[Ran]:
    """The runs with setting and arm filled in, those of a setting together.

    Runs of opdlight.lab.tables have the names of their folders. Of others, the setting is the tasks, and the arm is
    named by what was typed differently, else by what differs between the configurations.
    """
    named = {id(ran): names for ran in runs if (names := _study_names(ran.folder))}
    others: dict[str, list[Ran]] = {}
    for ran in runs:
        if id(ran) not in named:
            others.setdefault(_setting(ran), []).append(ran)
    for setting, mine in others.items():
        arms: dict[frozenset[tuple[str, str]], list[Ran]] = {}
        for ran in mine:
            arms.setdefault(_unlike(ran), []).append(ran)
        for arm, of_arm in zip(_names([rans[0] for rans in arms.values()]), arms.values(), strict=True):
            named |= {id(ran): (setting, arm) for ran in of_arm}
    found = [replace(ran, setting=named[id(ran)][0], arm=named[id(ran)][1]) for ran in runs]
    settings = list(dict.fromkeys(ran.setting for ran in found))
    order = _study_order(runs)
    return sorted(found, key=lambda ran: (settings.index(ran.setting), order.get(ran.arm, len(order))))


def several_seeds(runs: Sequence[Ran]) -> bool:
    """Whether some grouped runs differ in nothing but their seed."""
    distinct = {(ran.setting, ran.arm, ran.seed) for ran in runs}
    return max(Counter((setting, arm) for setting, arm, _ in distinct).values(), default=0) > 1


def study_baseline(runs: Sequence[Ran]) -> str | None:
    """The baseline of the study of opdlight.lab.tables that the runs are of, if they are."""
    found = [value for folder in _studies(runs) if isinstance(value := _study(folder).get("baseline"), str)]
    return found[0] if found else None


def _study_names(folder: Path | None) -> tuple[str, str] | None:
    if folder is None or not SEED.fullmatch(folder.name) or len(folder.parents) < 3:
        return None
    if not (folder.parents[2] / STUDY).is_file():
        return None
    return visible(folder.parents[1].name), visible(folder.parents[0].name)


def _studies(runs: Sequence[Ran]) -> list[Path]:
    return list(dict.fromkeys(ran.folder.parents[2] for ran in runs if ran.folder and _study_names(ran.folder)))


def _study(folder: Path) -> Mapping[str, object]:
    try:
        found = OmegaConf.to_container(OmegaConf.load(folder / STUDY))
    except (OmegaConfBaseException, YAMLError, OSError, ValueError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _study_order(runs: Sequence[Ran]) -> dict[str, int]:
    arms = [arm for folder in _studies(runs) if isinstance(found := _study(folder).get("arms"), dict) for arm in found]
    return {str(arm): place for place, arm in enumerate(dict.fromkeys(arms))}


def _setting(ran: Ran) -> str:
    """The tasks of a run: of its configuration, else those that it has evaluated."""
    prefix = "task.tasks."
    tasks = {key.removeprefix(prefix).split(".")[0] for key in ran.config if key.startswith(prefix)}
    return " + ".join(sorted(tasks or ran.held_out))


def arm_config(ran: Ran) -> dict[str, str]:
    """What of the configuration makes the arm: without `UNLIKE`, without the run's folder, and without its seed."""
    folder = ran.config.get("run_dir", "").strip('"') or "<run>"
    return {
        key: value.replace(folder, "<run>")
        for key, value in ran.config.items()
        if not any(key == name or key.startswith(f"{name}.") for name in UNLIKE)
        and not (key.rpartition(".")[2] == "seed" and value == str(ran.seed))
    }


def _unlike(ran: Ran) -> frozenset[tuple[str, str]]:
    return frozenset(arm_config(ran).items())


def _names(arms: Sequence[Ran]) -> list[str]:
    """A name for each of the arms of a setting, of which each has one of its runs here."""
    lines = [{k: v for k, v in typed(ran.folder).items() if k not in UNLIKE} if ran.folder else {} for ran in arms]
    if len(arms) == 1:
        return [_line({k: v for k, v in lines[0].items() if k != "task"}) or "one arm"]
    found = differing(lines, [ran.config for ran in arms])
    for name in [name for name, count in Counter(found).items() if count > 1]:
        alike = [i for i, other in enumerate(found) if other == name]
        configs = [arm_config(arms[i]) for i in alike]
        keys = [k for k in dict.fromkeys(k for c in configs for k in c) if len({c.get(k) for c in configs}) > 1]
        for i, config in zip(alike, configs, strict=True):
            more = _line({k: config[k].strip('"') for k in keys[:MOST_KEYS] if k in config})
            found[i] = f"{name} {more}".strip()
    twice = Counter(found)
    folders = [visible(ran.folder.name) if ran.folder else "" for ran in arms]
    return [
        f"{name} ({folder})".strip() if twice[name] > 1 else name or "defaults"
        for name, folder in zip(found, folders, strict=True)
    ]


def _line(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
