"""`--help` of an entry point, read from the comments in conf/: they are the one place that describes an option."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def help_text(conf: Path, config_name: str, overrides: Sequence[str] = ()) -> str:
    """What a person needs to start: usage, groups with their options, options worth knowing, examples.

    - The first comment of conf/<config_name>.yaml describes the entry point; lines in it that start with `python`
      are the examples.
    - The first comment line of an option's file describes the option.
    - A key with a comment right above it is worth knowing, in the main file and in the options that are chosen.
    """
    main = conf / f"{config_name}.yaml"
    header = leading_comment(main)
    about = [line for line in header if not line.startswith("python")]
    examples = [line for line in header if line.startswith("python")]
    chosen = chosen_options(conf, main, overrides)
    module = f"python -m opdlight.{config_name}"
    lines = [*_wrap(" ".join(about), ""), "", f"Usage: {module} [group=option]... [key=value]...", ""]
    lines.append("Groups (* = chosen):")
    for group, option in chosen.items():
        files = sorted((conf / group).glob("*.yaml"))
        width = max((len(file.stem) for file in files), default=0)
        for i, file in enumerate(files):
            mark = "*" if file.stem == option else " "
            start = f"  {group if i == 0 else '':<10} {mark} {file.stem:<{width}}  "
            lines += _wrap(next(iter(leading_comment(file)), ""), start)
    lines += ["", "Options worth knowing, as they are now:"]
    sources = [("", main)] + [(f"{g}.", conf / g / f"{o}.yaml") for g, o in chosen.items() if o]
    for prefix, path in sources:
        for key, comment in commented_keys(path):
            if not key.startswith("hydra"):
                lines.append("  " + "  ".join(_settings(path, key, prefix)))
                lines += _wrap(comment, "      ")
    lines += ["", "Examples:", *(f"  {line}" for line in examples)] if examples else []
    lines += [
        "",
        f"Every key: {module} --cfg job     One run a value: {module} -m key=a,b     Hydra itself: --hydra-help",
        "A key that the config does not list is added with a plus: +trainer.min_steps=10",
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


def chosen_options(conf: Path, main: Path, overrides: Sequence[str]) -> dict[str, str | None]:
    """Group → option: the defaults list of the main file, then what the command line chose."""
    defaults = _load(main).get("defaults", [])
    chosen = {str(g): o for entry in defaults if isinstance(entry, Mapping) for g, o in entry.items()}
    for override in overrides:
        group, _, option = override.partition("=")
        if group in chosen and (conf / group / f"{option}.yaml").is_file():
            chosen[group] = option
    return chosen


def _settings(path: Path, key: str, prefix: str) -> list[str]:
    """`key=value` of a plain value, or of each plain value in a mapping."""
    value: Any = _load(path)
    for segment in key.split("."):
        value = value[segment]
    if not isinstance(value, Mapping):
        return [f"{prefix}{key}={_plain(value)}"]
    return [
        f"{prefix}{key}.{name}={_plain(v)}"
        for name, v in value.items()
        if not str(name).startswith("_") and not isinstance(v, Mapping)
    ] or [f"{prefix}{key}"]


def _plain(value: object) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _wrap(text: str, start: str) -> list[str]:
    """Text after `start`, further lines indented as far."""
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
