"""Atomic writes: a file or a folder is there complete, or as it was before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file to a temporary path beside `path`; when the block succeeds, it replaces `path`.

    If the block fails, the temporary file is deleted and `path` stays as it was. The temporary name ends in `.tmp`, so
    a library that infers the file format from the suffix has to be given the format.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder to a temporary one beside `path`; when the block succeeds, it replaces `path`.

    Its files are flushed to the disk before it is renamed, so not even a power failure leaves a folder of this name
    with half of its files. If the block fails, the temporary folder is deleted and `path` stays as it was. A killed
    process leaves `.<name>` behind, which the next write to the same path deletes.
    """
    temporary = path.with_name(f".{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            flush(written)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, with its line ends unchanged, by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def flush(path: Path) -> None:
    """Make the operating system write a file's contents, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
