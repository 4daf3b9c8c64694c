"""Typed checks of a composed config: a node's `_target_` is its schema.

Every mapping with `_target_` is compared with the signature of that class or function: unknown keys, missing arguments
and wrong types are errors before anything is built. The top level is compared with a dataclass of the entry point.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from opdlight.config.former import former_target
from opdlight.config.imports import import_module
from opdlight.config.values import HYDRA_KEYS, check_fields, check_value, hint, join, nearest
from opdlight.errors import ConfigError


def check_config(config: Mapping[str, Any], schema: type) -> None:
    """Compare a resolved config with the dataclass `schema` and each of its nodes with its `_target_`.

    Raises:
        ConfigError: naming the full dotted key, what was expected and what came.
    """
    check_fields("", config, schema)
    for key, node in _nodes("", config):
        _check_node(key, node)


def locate(key: str, target: object) -> Any:
    """Import the class or function that the config names at `key`.

    Raises:
        ConfigError: if there is no such module or name, with the nearest one; if the module's code fails.
    """
    if not isinstance(target, str) or "." not in target:
        raise ConfigError.wrong(key, expected="the dotted path of a class or function", got=target)
    if (now := former_target(target)) is not None:
        raise ConfigError(f"Expected `{key}` to be importable, but got {target!r}. {now}")
    parts = target.split(".")
    module, rest = None, parts
    for length in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:length])
        with suppress(ModuleNotFoundError):
            module, rest = import_module(key, target, path), parts[length:]
            break
    if module is None:
        raise ConfigError(f"Expected `{key}` to be importable, but there is no module {parts[0]!r} (got {target!r}).")
    found: Any = module
    for part in rest:
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith("_")]
            near = nearest(part, public)
            where = getattr(found, "__name__", module.__name__)
            raise ConfigError(
                f"Expected `{key}` to be importable, but {where} has no {part!r} (got {target!r})."
                + (f" Did you mean {near!r}?" if near else "")
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError.wrong(key, expected="the dotted path of a class or function", got=target)
    return found


def _nodes(prefix: str, value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with `_target_` at or below `value`, with its dotted key; outer ones first."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield prefix, value
        for name, child in value.items():
            yield from _nodes(join(prefix, name), child)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _nodes(f"{prefix}[{i}]", child)


def _check_node(key: str, node: Mapping[str, Any]) -> None:
    target = locate(join(key, "_target_"), node["_target_"])
    given = {str(name): value for name, value in node.items() if name not in HYDRA_KEYS}
    positional, partial = len(node.get("_args_", [])), bool(node.get("_partial_", False))
    check_arguments(key, target, given, name=node["_target_"], positional=positional, partial=partial)


def check_arguments(
    key: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    name: str,
    positional: int = 0,
    partial: bool = False,
) -> None:
    """Compare arguments that the config gives at `key` with the signature of `target`, called `name` in errors.

    Args:
        key: dotted key of the arguments.
        target: what is called with them.
        given: argument → value.
        name: of the target.
        positional: so many arguments come before these.
        partial: True if others may follow, so that nothing is missing yet.

    Raises:
        ConfigError: naming the key of an unknown, missing or wrong argument.
    """
    try:
        parameters = dict(inspect.signature(target).parameters)
    except ValueError:  # written in C without a signature: its own call is the check
        return
    for taken in list(parameters)[:positional]:
        del parameters[taken]
    hints = _hints(target, parameters)
    named = {
        n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }  # what a config can set by name
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument, value in given.items():
        if argument in named:
            check_value(join(key, argument), value, hints.get(argument, Any))
        elif not open_ended:
            raise ConfigError(
                f"Unknown key `{join(key, argument)}`: {name} does not take it. "
                + hint(argument, named, prefix=f"{key}." if key else "")
            )
    if partial:
        return
    for argument, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and argument not in given:
            raise ConfigError(f"Missing `{join(key, argument)}`: {name} needs it. Add +{join(key, argument)}=<value>.")


def _hints(target: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Annotations by parameter. One that cannot be evaluated (a name for type checkers only) counts as Any."""
    is_plain_class = isinstance(target, type) and not is_dataclass(target)
    try:
        init = getattr(target, "__init__") if is_plain_class else target  # noqa: B009 (mypy: unsound)
        return get_type_hints(init, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {n: p.annotation for n, p in parameters.items() if not isinstance(p.annotation, str)}
