"""Memory that was freed stays with the process, unless the user decides."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from opdlight.system.heap import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

CODE = """
from opdlight.system.heap import keep_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
if CALLED:
    keep_freed_memory()
before = resident()
block = b"x" * 2**26
del block
print((resident() - before) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("called", "environment", "kept"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"MALLOC_MMAP_THRESHOLD_": "1048576"}, False),
        (True, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}, False),
    ],
)
def test_freed_memory_is_kept(called: bool, environment: dict[str, str], kept: bool) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    env |= environment
    code = CODE.replace("CALLED", str(called))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (float(done.stdout) > 60) == kept


@pytest.mark.parametrize(
    ("most", "settings"),
    [
        (2**31, [(M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, -1)]),
        (2**25, [(M_MMAP_THRESHOLD, 2**30), (M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, -1)]),  # glibc before 2.35
        (0, [(M_MMAP_THRESHOLD, 2**30), (M_MMAP_THRESHOLD, 2**25)]),
    ],
)
def test_the_heap_is_not_told_to_keep_what_an_older_glibc_maps(
    most: int, settings: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        told.append((name, value))
        return int(value <= most)

    for name in [*os.environ]:
        if name.startswith(("MALLOC_", "GLIBC_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert told == settings


@pytest.mark.parametrize("system", ["darwin", "win32", "linux"])
def test_another_c_library_is_left_alone(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # as of musl
    keep_freed_memory()
