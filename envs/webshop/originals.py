"""WebShop's own data files, below $WEBSHOP_DATA, and the folder in which what was built from them is kept."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opdlight.envs.webshop.catalogue import Catalogue
from opdlight.envs.webshop.products import load_products
from opdlight.errors import ConfigError

VERSION = 1  # of the folder's layout; a change of what is built from the same files needs a new one
SMALL = 1000  # products of the original's default files
_CHUNK = 1 << 22
_SPACE = " \t\r\n,"


def built_folder(data: str | None, products: int | None) -> Path:
    """The folder with the catalogue of the first `products` products (None: all), which is built if it is not there.

    It lies below $OPDLIGHT_CACHE or ~/.cache/opdlight, under a name that changes with the files. One process builds;
    others that want the same wait for it.

    Args:
        data: folder of `items_shuffle.json`, `items_ins_v2.json` and `items_human_ins.json`; None: $WEBSHOP_DATA.
            Where `items_shuffle_1000.json` and `items_ins_v2_1000.json` are there, up to 1,000 products come from
            these, as in the original.
        products: how many rows are read.

    Raises:
        ConfigError: if a file is not there or holds something else.
    """
    key, files = find_files(data, products)
    state = [VERSION, products, *((str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files)]
    name = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("OPDLIGHT_CACHE") or "~/.cache/opdlight").expanduser() / "webshop"
    folder = cache / name
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{name}.lock"):
                if not folder.exists():
                    _build(key, files, products, folder)
        except OSError as error:
            expected = f"a folder in which the index can be kept ({error.strerror})"
            raise ConfigError.wrong("OPDLIGHT_CACHE", expected=expected, got=str(cache)) from error
    return folder


def find_files(data: str | None, products: int | None) -> tuple[str, list[Path]]:
    """The argument or variable that names their folder; the files of products, attributes and human instructions.

    Raises:
        ConfigError: if there is no folder, or a file is not in it.
    """
    key, given = ("data", data) if data is not None else ("WEBSHOP_DATA", os.environ.get("WEBSHOP_DATA"))
    if not given:
        raise ConfigError.wrong(
            key, expected="the folder of WebShop's files (set the variable, or the argument `data`)", got=given
        )
    root, small = Path(given).expanduser(), products is not None and products <= SMALL
    ending = f"_{SMALL}" if small and (root / f"items_shuffle_{SMALL}.json").is_file() else ""
    files = [root / f"items_shuffle{ending}.json", root / f"items_ins_v2{ending}.json", root / "items_human_ins.json"]
    for file in files:
        if not file.is_file():
            raise ConfigError.wrong(key, expected=f"a folder with {file.name}", got=str(root))
    return key, files


def _build(key: str, files: list[Path], products: int | None, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        rows = _rows(key, files[0], products)
        loaded = load_products(rows, _read(key, files[1]), _read(key, files[2]), key)
        if (first := next(loaded, None)) is None:
            raise ConfigError.wrong(key, expected=f"at least one product in {files[0].name}", got="none")
        Catalogue.save(itertools.chain([first], loaded), temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(key: str, file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError.wrong(key, expected=f"JSON in {file.name} ({error})", got=str(file)) from error
    if not isinstance(values, dict):
        raise ConfigError.wrong(key, expected=f"an object by asin in {file.name}", got=type(values).__name__)
    return values


def _rows(key: str, file: Path, limit: int | None) -> Iterator[Any]:
    """The first rows of a JSON array, read piece by piece: the whole file of WebShop has some gigabytes."""
    decoder, buffer, count, at = json.JSONDecoder(), "", 0, 0
    with file.open(encoding="utf-8") as text:
        buffer = text.read(_CHUNK).lstrip()
        if not buffer.startswith("["):
            raise ConfigError.wrong(key, expected=f"an array of products in {file.name}", got=buffer[:40])
        at = 1
        while limit is None or count < limit:
            while at < len(buffer) and buffer[at] in _SPACE:
                at += 1
            if buffer[at : at + 1] == "]":
                return
            try:
                row, at = decoder.raw_decode(buffer, at)
            except ValueError as error:
                more = text.read(_CHUNK)
                if not more:
                    raise ConfigError.wrong(key, expected=f"JSON in {file.name} ({error})", got=str(file)) from error
                buffer, at = buffer[at:] + more, 0
                continue
            yield row
            count += 1
