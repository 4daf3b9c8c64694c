"""The wheel as a user installs it: it holds all it needs and hides no package of the user's own."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests.readme_blocks import READMES, ROOT, commands, write_files

OWN = [readme for readme in READMES if any("--config-dir" in words for words in commands(readme))]
ENGINE = Path("opdlight/rollout/README.md")  # shows one that needs no vLLM
SMALL = {  # beside what a README shows, unless it says otherwise
    "engine": "engine=transformers", "task": "task=sums", "trainer.max_steps": "trainer.max_steps=1",
    "schedule.warmup": "schedule.warmup=0", "rollout.groups": "rollout.groups=2",
    "+trainer.limit_val_batches": "+trainer.limit_val_batches=0", "evaluate_teachers": "evaluate_teachers=false",
}  # fmt: skip
# one process for all of them, as `python -m` would run each: the current folder comes first on the path
RUN_ALL = """
import json, os, runpy, sys
for folder, module, arguments in json.loads(sys.stdin.read()):
    os.chdir(folder)
    sys.argv = [module, *arguments]
    print("$", module, *arguments, flush=True)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{module} {arguments}: exit code {end.code}")
"""


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

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, command, *arguments],
            cwd=tmp_path / "runs", env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    (tmp_path / "runs").mkdir()
    done = run("train", "task=sums", "--cfg", "job")
    assert "_target_: opdlight.data.TaskMixture" in done.stdout, done.stderr
    (tmp_path / "runs" / "own.py").write_text("class Loss: ...")  # where the command is started, not where it lies
    assert "Unknown key `loss.support`: own.Loss does not take it." in run("train", "loss._target_=own.Loss").stderr


def test_what_readmes_show_of_ones_own_parts_works_beside_the_wheel(installed: Path, tmp_path: Path) -> None:
    jobs = []
    for readme in OWN:
        folder = tmp_path / readme.parent.name
        write_files(ENGINE, folder)
        write_files(readme, folder)
        for words in commands(readme):
            if words[2:4] == ["opdlight.tasks", "new"]:  # the files that the next command needs
                jobs.append((str(folder), words[2], words[3:]))
            elif "--config-dir" in words:
                write_files(ENGINE, folder / words[words.index("--config-dir") + 1])
                keys = {word.partition("=")[0] for word in words}
                jobs.append((str(folder), words[2], [*words[3:], *(v for k, v in SMALL.items() if k not in keys)]))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(jobs), cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {Path(folder) for folder, *_ in jobs} == {runs.parent for runs in tmp_path.glob("*/runs")}
    figures = (tmp_path / "callbacks" / "runs" / "latest" / "metrics.csv").read_text().partition("\n")[0].split(",")
    assert {"mine/disagreement/sums", "mine/last_turn_tokens"} < set(figures)
