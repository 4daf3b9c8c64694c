"""The entry point of config_targets in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def start(conf: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The entry point of config_targets, in a folder of its own."""
    cwd = conf.parent / "cwd"
    cwd.mkdir(exist_ok=True)
    paths = os.pathsep.join(str(p) for p in (Path(__file__).parent, Path(__file__).parents[2]))
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-m", "config_targets", str(conf), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
