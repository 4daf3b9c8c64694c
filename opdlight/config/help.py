"""`--help` of an entry point, read from the comments in conf/: they are the one place that describes an option."""

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def help_text(
    conf: Path,
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    module: str | None = None,
    extra: Path | None = None,
) -> str:
    """What a person needs to start: usage, groups with their options, options worth knowing, examples.

    - The first comment of conf/<config_name>.yaml describes the entry point; lines in it that start with `python`
      are the examples.
    - The first comment line of an option's file describes the option.
    - A key with a comment right above it is worth knowing, in the main file and in the options that are chosen.

    Args:
        conf: folder of the main file and of the groups.
        config_name: of the main file.
        overrides: of the command line; they choose options.
        module: what `python -m` runs, if that is not opdlight.<config_name>.
        extra: a folder of the user's (`--config-dir`), whose options are listed beside those of `conf`.
    """
    folders = [conf] if extra is None else [conf, extra]
    main = next((f for folder in folders if (f := folder / f"{config_name}.yaml").is_file()), conf / config_name)
    header = leading_comment(main)
    about = [line for line in header if not line.startswith("python")]
    examples = [line for line in header if line.startswith("python")]
    chosen = chosen_options(folders, main, overrides)
    command = f"python -m {module or f'opdlight.{config_name}'}"
    groups = ["", "Groups (* = chosen):"] if chosen else []
    usage = f"Usage: {command} {'[group=option]... ' if chosen else ''}[key=value]..."
    lines = [*_wrap(" ".join(about), ""), "", usage, *groups]
    options = {g: sorted(_files(folders, g).values(), key=lambda file: file.stem) for g in chosen}
    width = max((len(file.stem) for files in options.values() for file in files), default=0)
    for group, option in chosen.items():
        for i, file in enumerate(options[group]):
            mark = "*" if file.stem == option else " "
            start = f"  {group if i == 0 else '':<10} {mark} {file.stem:<{width}}  "
            mine = "(yours) " if extra is not None and file.is_relative_to(extra) else ""
            lines += _wrap(mine + next(iter(leading_comment(file)), ""), start)
    lines += ["", "Options worth knowing, as they are now:"]
    sources = [("", file) for file in reversed(lineage(conf, main))]
    options_of = [(g, _files(folders, g)[o]) for g, o in chosen.items() if o in _files(folders, g)]
    sources += [("" if _is_global(file) else f"{g}.", file) for g, file in options_of]
    replaced = {k: v for _, file in options_of if _is_global(file) for k, v in _leaves(_load(file))}
    for prefix, path in sources:
        found = {key: comment for key, comment in commented_keys(path) if not key.startswith("hydra")}
        for key, comment in found.items():
            settings = (
                f"{prefix}{name}={plain(replaced.get(f'{prefix}{name}', value))}"
                for name, value in _settings(path, key)
                if name not in found or name == key
            )
            lines += _wrap("  ".join(settings) or f"{prefix}{key}", "  ")
            lines += _wrap(comment, "      ")
    lines += ["", "Examples:", *(f"  {line}" for line in examples)] if examples else []
    lines += [
        "",
        f"Every key: {command} --cfg job",
        f"One run a value: {command} -m key=a,b",
        *(["A key that the config does not list: +trainer.max_time=00:01:00:00"] if "trainer" in chosen else []),
        *(
            [f"Options of your own: --config-dir <folder>, with {next(iter(chosen))}/<name>.yaml in it"]
            if chosen
            else []
        ),
        "Hydra itself: --hydra-help",
    ]
    return "\n".join(line.rstrip() for line in lines)


def leading_comment(path: Path) -> list[str]:
    """The first block of comment lines, without `#`; Hydra's `@package` line is left out."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").strip())
    return lines


def _is_global(path: Path) -> bool:
    """True for an option whose keys stand at the top level, such as an experiment."""
    return path.read_text(encoding="utf-8").startswith("# @package _global_")


def commented_keys(path: Path) -> Iterator[tuple[str, str]]:
    """Dotted keys that have a comment right above them, with that comment; the leading comment belongs to the file."""
    comment: list[str] = []
    parents: list[tuple[int, str]] = []
    started = False
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment += [text.removeprefix("#").strip()] if started else []
            continue
        name, colon, _ = text.partition(":")
        started = True
        if colon and not text.startswith("-"):
            indent = len(line) - len(line.lstrip())
            parents = [*(p for p in parents if p[0] < indent), (indent, name)]
            if comment and not name.startswith("_"):
                yield ".".join(n for _, n in parents), " ".join(comment)
        comment = []


def chosen_options(folders: Sequence[Path], main: Path, overrides: Sequence[str]) -> dict[str, str | None]:
    """Group → option: the defaults lists of the main file and of those it builds on, then the command line.

    A chosen option that overrides other groups (an experiment) comes between the two.
    """
    chosen: dict[str, str | None] = {}
    for file in lineage(folders[0], main):
        entries = [entry for entry in _load(file).get("defaults", []) if isinstance(entry, Mapping)]
        chosen |= {str(g): o for entry in entries for g, o in entry.items() if not str(g).startswith("override ")}
    pairs = [override.partition("=")[::2] for override in overrides]
    given = {group: option for group, option in pairs if group in chosen and option in _files(folders, group)}
    for group, option in (chosen | given).items():
        chosen_file = _files(folders, group).get(option or "")
        entries = [e for e in _load(chosen_file).get("defaults", []) if isinstance(e, Mapping)] if chosen_file else []
        named = {str(g).removeprefix("override /"): o for e in entries for g, o in e.items()}
        chosen |= {g: o for g, o in named.items() if g in chosen}
    return chosen | given


def _files(folders: Sequence[Path], group: str) -> dict[str, Path]:
    """Option → file; where folders have one of the same name, Hydra takes that of the first folder."""
    return {file.stem: file for folder in reversed(folders) for file in (folder / group).glob("*.yaml")}


def lineage(conf: Path, main: Path) -> list[Path]:
    """The configs of the folder `conf` that one of them builds on, and itself at the end."""
    files = [conf / f"{entry}.yaml" for entry in _load(main).get("defaults", []) if isinstance(entry, str)]
    return [*(base for file in files if file.is_file() for base in lineage(conf, file)), main]


def _settings(path: Path, key: str) -> list[tuple[str, object]]:
    """The dotted key with its plain value, or those of each plain value in a mapping."""
    value: Any = _load(path)
    for segment in key.split("."):
        value = value[segment]
    if not isinstance(value, Mapping):
        return [(key, value)]
    plain = [n for n, v in value.items() if not str(n).startswith("_") and not isinstance(v, Mapping)]
    return [(f"{key}.{name}", value[name]) for name in plain]


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key → value of everything in a mapping that is no mapping itself."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def plain(value: object) -> str:
    """A value as Hydra reads it on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _load(path: Path) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(OmegaConf.load(path)).items()}  # type: ignore[union-attr]


def _wrap(text: str, start: str) -> list[str]:
    """Text after `start`, further lines indented as far."""
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
