"""The wheel as a user installs it: it holds all it needs and hides no package of the user's own."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, with what the wheel holds and nothing else of this repository."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("opdlight", "envs", "conf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_its_only_top_level_name_is_opdlight(installed: Path) -> None:
    assert sorted(p.name.partition("-")[0] for p in installed.iterdir()) == ["opdlight", "opdlight"]  # and its metadata
    files = {p.relative_to(ROOT) for folder in ("envs", "conf") for p in (ROOT / folder).rglob("*.*")}
    assert {f for f in files if f.suffix in (".py", ".yaml") and not (installed / "opdlight" / f).is_file()} == set()


def test_it_works_beside_a_users_own_envs_and_conf(installed: Path, tmp_path: Path) -> None:
    for name in ("envs", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = (
        "import gymnasium, opdlight.envs, envs; print(opdlight.envs.__file__);"
        "gymnasium.make('opdlight/ToyText-v0', game='Taxi-v4')"
    )
    assert python("-c", code).startswith(str(installed))
    assert "alfworld" in python("-m", "opdlight.train", "--help")
    assert "_target_: opdlight.data.TaskMixture" in python("-m", "opdlight.train", "task=sums", "--cfg", "job")


def test_it_brings_the_command(installed: Path, tmp_path: Path) -> None:
    (metadata,) = installed.glob("*.dist-info")
    (script,) = [e for e in PathDistribution(metadata).entry_points if e.group == "console_scripts"]
    assert (script.name, script.value) == ("opdlight", "opdlight.__main__:main")
    command = tmp_path / "opdlight"  # as pip writes it
    command.write_text(f"import sys\nfrom {script.module} import {script.attr}\nsys.exit({script.attr}())\n")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, command, "train", "task=sums", "--cfg", "job"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "_target_: opdlight.data.TaskMixture" in done.stdout, done.stderr
