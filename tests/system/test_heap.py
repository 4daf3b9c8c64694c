"""Memory that was freed stays with the process, unless the user decides."""

import os
import platform
import subprocess
import sys

import pytest

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
    [(True, {}, True), (False, {}, False), (True, {"MALLOC_MMAP_THRESHOLD_": "1048576"}, False)],
)
def test_freed_memory_is_kept(called: bool, environment: dict[str, str], kept: bool) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    code = CODE.replace("CALLED", str(called))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (float(done.stdout) > 60) == kept
