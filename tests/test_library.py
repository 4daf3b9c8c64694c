"""`from opdlight import …`, and the command `opdlight`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import opdlight
from opdlight import api
from opdlight.__main__ import commands

ROOT = Path(__file__).parents[1]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(opdlight, name) is getattr(api, name) for name in api.__all__)
    assert set(api.__all__) < set(dir(opdlight))
    public = {name for name, value in vars(api).items() if not name.startswith("_")}
    assert public == set(api.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'Studnet'\. Did you mean: 'Student'\?$"):
        _ = opdlight.Studnet
    with pytest.raises(AttributeError, match=r"no attribute 'quite_another'$"):
        _ = opdlight.quite_another
    with pytest.raises(ImportError, match="Studnet"):
        from opdlight import Studnet  # noqa: F401


@pytest.mark.parametrize(
    "start", ["import opdlight", "import opdlight.train.__main__ as c; sys.argv[1:] = ['--help']; c.main()"]
)
def test_nothing_slow_is_imported_before_it_is_needed(start: str) -> None:
    done = python(
        "-c", f"import sys; {start}; print(sorted({{'torch', 'lightning', 'transformers'}} & sys.modules.keys()))"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_module_is_found_without_importing_all_the_others() -> None:
    done = python("-c", "import sys; from opdlight import errors; print('torch' in sys.modules, errors.__name__)")
    assert done.stdout == "False opdlight.errors\n"


def test_the_command_lists_the_others_and_says_what_was_meant() -> None:
    listed = python("-m", "opdlight").stdout
    assert all(f"  {name} " in listed for name in ("train", "sft", "lab.toy", "metrics"))
    assert python("-m", "opdlight", "--version").stdout == f"opdlight {opdlight.__version__}\n"
    wrong = python("-m", "opdlight", "trian")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: There is no command 'trian'. Did you mean `opdlight train`?\n",
    )


def test_a_command_is_run_as_python_m_runs_it() -> None:
    done = python("-m", "opdlight", "metrics", "student_mass")
    assert done.stdout == python("-m", "opdlight.metrics", "student_mass").stdout != ""
    wrong = python("-m", "opdlight", "train", "--cfg", "job", "task=sum")
    assert wrong.stderr.startswith("error: The group `task` has no option 'sum'. Did you mean `task=sums`?")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("opdlight tr", list(commands())), ("opdlight train loss=k", ["loss=k2", "loss=k3"]), ("opdlight metrics co", [])],
)
def test_a_shell_completes_commands_groups_and_options(line: str, expected: list[str]) -> None:
    assert python("-m", "opdlight", "-sc", "query=bash", COMP_LINE=line).stdout.split() == expected
