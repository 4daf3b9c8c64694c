"""An environment for worker processes, which must not import torch, and so neither must this file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError

FAULTY = 13  # the seed whose episode has the fault


class OwnError(Exception):
    """Cannot be pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Played(TextEnv):
    """Ends after `seed % 10` turns, solved if the seed is even; the metrics of a step tell of its process."""

    system_prompt = "Go."

    def __init__(self, fault: str = "", folder: str = "") -> None:
        super().__init__()
        self.fault, self.folder = fault, folder
        if fault == "constructor":
            raise KeyError("no such file")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.seed, self.left = seed, seed % 10
        self._fail("reset")
        return f"begin {self._word()}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        if self.left == 1:
            self._fail("step")
        over, solved = self.left == 0, self.seed % 2 == 0
        metrics = {"process": float(os.getpid()), "torch": float("torch" in sys.modules)}
        observation = f"{action} {self._word()}"
        return observation, float(over and solved), over, False, {"success": solved, "metrics": metrics}

    def prepare(self, seed: int) -> None:
        self._note(f"prepare {seed}")

    def close(self) -> None:
        self._note("close")

    def _word(self) -> str:
        return "".join(chr(97 + i) for i in self.np_random.integers(26, size=6))

    def _note(self, line: str) -> None:
        if self.folder:
            with Path(self.folder, "notes").open("a") as file:
                file.write(f"{line}\n")

    def _fail(self, where: str) -> None:
        if self.seed != FAULTY or not self.fault.startswith(where):
            return
        match self.fault.split()[1]:
            case "raises":
                raise EnvError("broken door")
            case "raises-own":
                raise OwnError("broken", "door")
            case "config":
                raise ConfigError("no such game")
            case "hangs":
                self._note("hangs")
                time.sleep(600)
            case "waits":
                child = subprocess.Popen(["sleep", "600"])
                self._note(str(child.pid))
                child.wait()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "signals":  # those that a terminal or a scheduler sends to all processes
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)


class Make:
    """Makes `Played`; can be pickled."""

    def __init__(self, fault: str = "", folder: object = "") -> None:
        self.fault, self.folder = fault, str(folder)

    def __call__(self, task: str) -> TextEnv:
        return Played(self.fault, self.folder)


class CannotArrive(Make):
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return ConfigError.wrong, ("a", "b")  # too few arguments
