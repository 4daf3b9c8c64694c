"""Plain values from YAML against annotations: int, float, bool, str, Literal, unions, containers, dataclasses."""

import difflib
import math
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from opdlight.bounds import Bounds
from opdlight.config.former import former_key
from opdlight.errors import ConfigError

LARGEST = 2**63 - 1  # of a number: what counts, sizes and shapes are made of
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})


class Node:
    """Annotation of a field that holds a mapping with `_target_`: its target's signature is the schema.

    A class of another project does not say what its numbers must be: `Annotated[Node, Numbers]` adds the annotations
    of a dataclass to those of the signature, for arguments that both have.
    """


def nearest(got: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `got` most probably meant."""
    return next(iter(difflib.get_close_matches(got, list(names), n=1)), None)


def hint(got: str, names: Collection[str], prefix: str = "") -> str:
    """A sentence with the nearest of `names`, or all of them."""
    near = nearest(got, names)
    if near is not None:
        return f"Did you mean `{prefix}{near}`?"
    return f"Known: {', '.join(sorted(names))}." if names else "Nothing can be set there."


def join(prefix: str, key: object) -> str:
    """The dotted key of `key` within `prefix`."""
    return f"{prefix}.{key}" if prefix else str(key)


def check_fields(prefix: str, config: Mapping[str, Any], schema: type) -> None:
    """Compare a mapping with a dataclass: unknown, missing, types."""
    assert is_dataclass(schema)
    known = {f.name: f for f in fields(schema) if f.init}
    hints = get_type_hints(schema, include_extras=True)
    for name in config:
        if name not in known:
            where = f"{prefix}." if prefix else ""
            now = former_key(f"{where}{name}")
            raise ConfigError(f"Unknown key `{where}{name}`. {now or hint(str(name), known, prefix=where)}")
    for name, field in known.items():
        key = join(prefix, name)
        if name in config:
            check_value(key, config[name], hints[name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"Missing `{key}`. Give it as {key}=<value>.")


def check_value(key: str, value: object, annotation: Any) -> None:
    """Compare one value with an annotation. Annotations that YAML cannot express (a Tensor) are met by everything.

    Raises:
        ConfigError: "Expected `loss.k` to be int, but got 'ten' (str)."
    """
    if isinstance(value, Mapping) and "_target_" in value:
        _check_numbers(key, value, annotation)  # becomes an object; the node itself is checked against its target
        return
    if isinstance(annotation, type) and is_dataclass(annotation) and isinstance(value, Mapping):
        check_fields(key, value, annotation)
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [b for b in arguments[1:] if isinstance(b, Bounds)]
        if not _fits(value, arguments[0]) or any(value not in b for b in bounds):  # type: ignore[operator]
            raise _wrong(key, annotation, value)
    elif origin in _SEQUENCES and isinstance(value, list):
        items = _item_types(origin, arguments, len(value))
        if len(items) != len(value):
            raise _wrong(key, annotation, value)
        for i, (item, item_type) in enumerate(zip(value, items, strict=True)):
            check_value(f"{key}[{i}]", item, item_type)
    elif origin in _MAPPINGS and isinstance(value, Mapping):
        for name, item in value.items():
            check_value(join(key, name), item, arguments[1] if len(arguments) == 2 else Any)
    elif origin in _UNIONS:
        _check_union(key, value, annotation)
    elif not _fits(value, annotation):
        raise _wrong(key, annotation, value)


def _check_numbers(key: str, node: Mapping[str, Any], annotation: Any) -> None:
    if get_origin(annotation) is not Annotated:
        return
    for schema in filter(is_dataclass, get_args(annotation)[1:]):
        for name, hint in get_type_hints(schema, include_extras=True).items():
            if name in node:
                check_value(join(key, name), node[name], hint)


def _check_union(key: str, value: object, annotation: Any) -> None:
    errors = []
    members = [a for a in get_args(annotation) if _describe(a) is not None]
    if not members or any(a in (Any, object) for a in get_args(annotation)):
        return
    for member in members:  # members that YAML cannot write (a Tensor) accept nothing here
        try:
            check_value(key, value, member)
            return
        except ConfigError as error:
            errors.append((member, error))
    shaped = [e for m, e in errors if _same_shape(value, m)]
    raise shaped[0] if len(shaped) == 1 else _wrong(key, annotation, value)  # the one inside says more


_UNIONS = (Union, types.UnionType)
_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable, Collection)
_MAPPINGS = (dict, Mapping)


def _item_types(origin: Any, arguments: tuple[Any, ...], length: int) -> Sequence[Any]:
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return arguments
    return [arguments[0] if arguments else Any] * length


def _same_shape(value: object, annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    if isinstance(value, list):
        return origin in _SEQUENCES
    return isinstance(value, Mapping) and (origin in _MAPPINGS or is_dataclass(origin))


def _fits(value: object, annotation: Any) -> bool:
    """True where a plain value meets an annotation; annotations that YAML cannot express are met by everything."""
    if get_origin(annotation) is Literal:
        return any(type(value) is type(a) and value == a for a in get_args(annotation))
    kind = get_origin(annotation) or annotation
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            return False
        return -LARGEST <= value <= LARGEST  # NaN and the infinities do not
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind in (None, types.NoneType):
        return value is None
    if kind in _SEQUENCES:
        return isinstance(value, list)
    if kind in _MAPPINGS or (isinstance(kind, type) and is_dataclass(kind)):
        return isinstance(value, Mapping)
    if kind is Node:
        return False  # a mapping with `_target_` was accepted before
    return not (isinstance(kind, type) and issubclass(kind, Enum)) or value in [m.name for m in kind] + [*kind]


def _describe(annotation: Any) -> str | None:
    """An annotation in words; None for one that YAML cannot express."""
    if annotation in (None, types.NoneType):
        return "null"
    if annotation is Node:
        return "a mapping with `_target_`"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join(
            filter(None, [_describe(arguments[0]), *(str(b) for b in arguments[1:] if isinstance(b, Bounds))])
        )
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in _UNIONS:
        return " or ".join(d for a in arguments if (d := _describe(a)) is not None) or None
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(m.name for m in kind)
    if kind in _SEQUENCES:
        inner = _describe(arguments[0]) if arguments else None
        size = f" of {len(arguments)}" if kind is tuple and arguments and arguments[-1] is not Ellipsis else ""
        return f"a list{size}" + (f" of {inner}" if inner and not size else "")
    if kind in _MAPPINGS or (isinstance(kind, type) and is_dataclass(kind)):
        return "a mapping"
    return kind.__name__ if kind in (int, float, bool, str) else None


def _wrong(key: str, annotation: Any, value: object) -> ConfigError:
    expected = _describe(annotation)
    if isinstance(value, float) and not math.isfinite(value):
        expected = f"a finite number, {expected}"
    elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        expected = f"a number of 64 bits, {expected}"
    return ConfigError(f"Expected `{key}` to be {expected}, but got {value!r} ({type(value).__name__}).")
