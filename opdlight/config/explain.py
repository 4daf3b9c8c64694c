"""Hydra's and OmegaConf's errors as one sentence that names the key or group, what came, and the nearest right one."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from yaml import MarkedYAMLError, YAMLError

from opdlight.config.checks import locate
from opdlight.config.former import former_key
from opdlight.config.values import HYDRA_KEYS, hint, nearest
from opdlight.errors import ConfigError


def explain_composition(
    error: HydraException, known: Mapping[str, Any], *, command: str = "", groups: Sequence[str] = ()
) -> ConfigError:
    """Translate an error of Hydra's composition.

    Args:
        error: what Hydra raised.
        known: the config as it is without the value overrides.
        command: name of the main config.
        groups: those that it has.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        detail = text.removeprefix(f"Error parsing override '{error.override}'")
        reason = _one_line(detail.partition("See https")[0])
        return ConfigError(
            f"Cannot read the override `{error.override}`: {reason}. Write key=value, and quote commas and brackets."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _missing_option(error, error.missing_cfg_file)
    if match := re.match(r"Could not (?:override|delete) '([^'=]+)[^']*'\. No match in the defaults list", text):
        return ConfigError(f"`{command}` has no group `{match[1]}`. Its groups: {', '.join(groups) or 'none'}.")
    if match := re.match(r"Could not override '([^']+)'", text):
        return unknown_key(match[1], known)
    if match := re.match(r"Could not delete from config\. '([^']+)' does not exist", text):
        return unknown_key(match[1], known)
    return ConfigError(_one_line(text))


def explain_yaml(error: YAMLError | UnicodeDecodeError) -> ConfigError:
    """The error for a file of options that is no YAML: file, line and what the parser says."""
    mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
    if not isinstance(error, MarkedYAMLError) or mark is None:
        return ConfigError(f"Cannot read a file of options as YAML: {_one_line(str(error))}")
    said = _one_line(", ".join(filter(None, [error.context, error.problem])))
    return ConfigError(f"Cannot read {mark.name} as YAML, line {mark.line + 1}, column {mark.column + 1}: {said}.")


def no_option(group: str, value: str, options: Sequence[str]) -> ConfigError:
    """The error for a group that is given something other than the name of an option."""
    return ConfigError.wrong(group, expected=f"one of its options ({', '.join(sorted(options))})", got=value)


def explain_interpolation(text: str, known: Mapping[str, Any]) -> str:
    """The first line of an OmegaConf error, with the nearest key where an interpolation names an unknown one."""
    first = text.partition("\n")[0]
    if match := re.search(r"Interpolation key '([^']+)' not found", first):
        if match[1].startswith("model.teachers."):  # a task that is used without the models of its preset
            return (
                f"the chosen model has no key `{match[1]}`. Choose one with teachers, such as model=qwen2_5_7b, "
                "or give the teacher itself."
            )
        return f"there is no key `{match[1]}`. {nearest_key(match[1], known)}"
    return first


def unknown_key(key: str, known: Mapping[str, Any]) -> ConfigError:
    """The error for a dotted key that the config does not have."""
    if (now := former_key(key)) is not None:
        return ConfigError(f"Unknown key `{key}`. {now}")
    parent, _, name = key.rpartition(".")
    node: Any = known
    for segment in parent.split("."):
        node = node.get(segment) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping) and "_target_" in node:
        found = nearest(name, [*map(str, node), *_arguments(node["_target_"])])
        if found not in (None, name, *node):  # an argument that the config leaves at its default
            return ConfigError(f"Unknown key `{key}`. Did you mean +{parent}.{found}=<value>?")
    add = f" An argument of `{parent}` that the config does not list needs a plus: +{key}=<value>."
    add = add if parent in _paths(known) else ""
    return ConfigError(f"Unknown key `{key}`. {nearest_key(key, known)}{add}")


def nearest_key(key: str, known: Mapping[str, Any]) -> str:
    """A sentence with the dotted key that `key` most probably meant: corrected segment by segment, else by its end."""
    node: Any = known
    right: list[str] = []
    for segment in key.split("."):
        names = [str(n) for n in node] if isinstance(node, Mapping) else []
        found = segment if segment in names else nearest(segment, names)
        if found is None:
            break
        right.append(found)
        node = node[found]
    else:
        return f"Did you mean `{'.'.join(right)}`?"
    by_end = {path.rpartition(".")[2]: path for path in reversed(list(_paths(known)))}
    end = nearest(key.rpartition(".")[2], by_end)
    if end is not None:
        return f"Did you mean `{by_end[end]}`?"
    return hint(segment, [n for n in names if n not in HYDRA_KEYS], prefix=".".join([*right, ""]))


def _missing_option(error: MissingConfigException, path: str) -> ConfigError:
    group, _, option = path.rpartition("/")
    within = re.match(r"In '([^']+)'", str(error))
    where = f" (named in {within[1]}.yaml)" if within and "/" in within[1] else ""
    options = sorted(error.options or [])
    if not group:
        return ConfigError(f"There is no config `{option}`{where}.")
    unknown = f"The group `{group}` has no option {option!r}{where}."
    for folder in ("conf", "."):
        if (file := Path(folder, group, f"{option}.yaml")).is_file():  # the user's, who forgot to add the folder
            return ConfigError(f"{unknown} For {file}: --config-dir {folder}.")
    near = nearest(option, options)
    guess = f" Did you mean `{group}={near}`?" if near else ""
    choice = f" Options: {', '.join(options)}." if options else ""
    return ConfigError(f"{unknown}{guess}{choice}")


def _arguments(target: object) -> list[str]:
    """Names of the arguments of a `_target_`; none if it cannot be imported, which another error will say."""
    try:
        return list(inspect.signature(locate("_target_", target)).parameters)
    except ValueError:  # a ConfigError too
        return []


def _paths(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, child in node.items():
        yield f"{prefix}{name}"
        if isinstance(child, Mapping):
            yield from _paths(child, f"{prefix}{name}.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
