"""Modules that a config names: what is wrong in the user's own file is one sentence with file and line."""

import importlib
import os
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from opdlight.errors import ConfigError, OpdError


def import_module(key: str, target: str, module: str) -> ModuleType:
    """Import `module`, which the value `target` of the config at `key` needs.

    Raises:
        ConfigError: if the module's code fails: its syntax, an import in it, or anything else that it does.
        ModuleNotFoundError: if there is no such module.
    """
    try:
        return importlib.import_module(module)
    except OpdError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise  # the module itself, not one that it imports
        raise ConfigError(f"Cannot import `{key}` {target}: {_describe(error)}") from error


def import_env_module(key: str, name: str) -> None:
    """Import the module of the Gymnasium id `module:id`, if it has one, as `gymnasium.make` does.

    Raises:
        ConfigError: if there is no such module, its code fails, or this is no such id.
    """
    module, colon, rest = name.partition(":")
    if ":" in rest or (colon and not module):
        raise ConfigError.wrong(key, expected="a Gymnasium id, or module:id", got=name)
    if not colon:
        return
    try:
        import_module(key, repr(name), module)
    except (ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"Cannot find the environment of `{key}`, {name!r}: {error}") from error


def _describe(error: Exception) -> str:
    """`file, line N: what`, of the innermost line that is neither Python's nor of an installed package."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_shown(error.filename)}, line {error.lineno}: {error.msg}"
    what = text if isinstance(error, ImportError) else f"{type(error).__name__}: {text}"
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and _is_own(f.filename)]
    return f"{_shown(places[-1].filename)}, line {places[-1].lineno}: {what}" if places else what


def _is_own(file: str) -> bool:
    path = Path(file)
    return (
        not file.startswith("<")
        and "site-packages" not in path.parts
        and not path.is_relative_to(sysconfig.get_path("stdlib"))
    )


def _shown(file: str) -> str:
    """The path from the current folder if the file lies in it."""
    return os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file
