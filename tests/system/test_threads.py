"""Every command chooses the wait policy before torch is imported, unless the user has chosen one."""

import os
import subprocess
import sys

import pytest

from opdlight.system.threads import SPINS

COMMANDS = ("train", "sft", "evaluate", "doctor", "report", "lab.toy", "lab.estimators", "lab.failure_modes")


def python(code: str, **environment: str) -> str:
    names = (SPINS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    env = {name: value for name, value in os.environ.items() if name not in names} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_every_command_chooses_before_torch_is_imported() -> None:
    code = f"""
import importlib, os, sys
for command in {COMMANDS}:
    assert callable(importlib.import_module(f"opdlight.{{command}}.__main__").main)
    assert "torch" not in sys.modules, command
sys.argv[1:] = ["--cfg", "job"]
importlib.import_module("opdlight.train.__main__").main()
print(os.environ.get("{SPINS}"))
"""
    assert python(code) == "3000"


@pytest.mark.parametrize("name", [SPINS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(name: str) -> None:
    code = f"""
import os
from opdlight.system.threads import choose_wait_policy, describe
choose_wait_policy()
print(os.environ.get("{SPINS}"), describe())
"""
    said = python(code, OMP_NUM_THREADS="1", **{name: "7"})
    assert said == f"{'7' if name == SPINS else 'None'} 1 CPU thread ({name}=7)"
