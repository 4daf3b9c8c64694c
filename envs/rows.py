"""Rows of a data set that somebody else wrote: JSON lines, Parquet or a `datasets` name; malformed ones are refused."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from opdlight.errors import ConfigError, MissingDependencyError

SHOWN = 80  # characters of a row that an error quotes
_OTHER_FILES = frozenset({".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".xz", ".bz2", ".zip"})


class Row(NamedTuple):
    """One row, and where it stands."""

    where: str  # such as "line 3 of train.jsonl"
    values: dict[str, Any]


def read_rows(path: str, split: str | None, subset: str | None, key: str = "path") -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file or of a `datasets` name, in order.

    Raises:
        ConfigError: names `key` (or `split`, `subset` beside it), the file and the line or row that is malformed.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        if not is_hub_name(path):
            raise ConfigError.wrong(key, expected="a .jsonl or .parquet file or the name of a data set", got=path)
        yield from _read_hub(path, split, subset, key)
        return
    for name, value in (("split", split), ("subset", subset)):
        if value is not None:
            raise ConfigError.wrong(beside(key, name), expected="null, because `path` is a file", got=value)
    if not Path(path).is_file():
        raise ConfigError.wrong(key, expected="an existing file", got=path)
    yield from readers[suffix](Path(path), key)


def missing_rows(path: str) -> str | None:
    """What `read_rows` would need and is not there, in a few words; None if nothing is known to be missing."""
    if is_hub_name(path):
        return None if importlib.util.find_spec("datasets") else "package datasets"
    return None if Path(path).is_file() else f"file {path}"


def is_hub_name(path: str) -> bool:
    """Whether it names a data set rather than a file."""
    return Path(path).suffix.lower() not in {".jsonl", ".parquet", *_OTHER_FILES} and not Path(path).exists()


def beside(key: str, name: str) -> str:
    """The key `name` in the mapping that holds `key`.

    >>> beside("held_out.path", "split"), beside("path", "split")
    ('held_out.split', 'split')
    """
    return ".".join([*key.split(".")[:-1], name])


def read_json_lines(path: Path, key: str) -> Iterator[Row]:
    """The JSON objects of a UTF-8 file, one a line, with the line's number; empty lines are skipped.

    Raises:
        ConfigError: names `key`, the file and the line that is no strict JSON (RFC 8259) or no object.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"line {number} of {path}"
                if line.strip():
                    yield Row(where, _object(line, where, key))
    except OSError as error:
        raise ConfigError.wrong(key, expected=f"a file that can be read ({error.strerror})", got=str(path)) from error


def check_text(text: str, where: str, key: str) -> None:
    r"""Raise ConfigError for text that UTF-8 cannot write: half of a surrogate pair, as in "\ud800"."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = text[max(error.start - SHOWN // 2, 0) : error.start + SHOWN // 2]
        expected = f"text in {where}, without the lone surrogate {text[error.start]!r}"
        raise ConfigError.wrong(key, expected=expected, got=got) from error


def _object(line: bytes, where: str, key: str) -> dict[str, Any]:
    def wrong(expected: str) -> ConfigError:
        return ConfigError.wrong(key, expected=f"{expected} on {where}", got=line[:SHOWN].decode(errors="replace"))

    if line.startswith(b"\xef\xbb\xbf"):
        raise wrong("UTF-8 without a byte order mark")
    try:
        row = json.loads(line.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise wrong(f"UTF-8 (byte {error.start + 1} is not)") from error
    except RecursionError as error:
        raise wrong("JSON that is nested less deeply") from error
    except ValueError as error:  # not JSON; a number that is none; an integer of thousands of digits
        raise wrong(f"JSON ({str(error).partition(';')[0]})") from error
    if not isinstance(row, dict):
        raise wrong("a JSON object")
    return row


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def _read_jsonl(path: Path, key: str) -> Iterator[Row]:
    yield from read_json_lines(path, key)


def _read_parquet(path: Path, key: str) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(f"Reading {path} needs the package pyarrow: pip install pyarrow") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition(".")[0]
        raise ConfigError.wrong(key, expected=f"a Parquet file ({reason})", got=str(path)) from error
    for number in range(table.num_rows):
        where = f"row {number + 1} of {path}"
        try:
            (values,) = table.slice(number, 1).to_pylist()
        except (UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise ConfigError.wrong(key, expected=f"values that Python can hold in {where}", got=str(error)) from error
        yield Row(where, values)


def _read_hub(name: str, split: str | None, subset: str | None, key: str) -> Iterator[Row]:
    if split is None:
        expected = f"a split of the data set {name!r}, such as 'train'"
        raise ConfigError.wrong(beside(key, "split"), expected=expected, got=None)
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"`{key}` {name!r} is no .jsonl or .parquet file, and data sets by name need the package datasets: "
            "pip install datasets"
        ) from error
    load: Callable[..., Any] = datasets.load_dataset
    try:
        rows = load(name, subset, split=split)
    except Exception as error:  # an unknown name, split or subset, no network: the package has many errors for it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        offline = (
            f"or a .jsonl or .parquet file beside `{beside(key, 'split')}: null` and `{beside(key, 'subset')}: null`"
        )
        expected = f"a data set with split={split!r} and subset={subset!r} ({reason}), {offline}"
        raise ConfigError.wrong(key, expected=expected, got=name) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"row {number} of {name}", values)
