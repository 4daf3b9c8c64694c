"""tools/check_layers.py finds each kind of import that the design forbids, and nothing in this repository."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_layers  # noqa: E402


def tree(root: Path, files: dict[str, str]) -> Path:
    for folder in ("opdlight", "envs", "tools"):
        (root / folder).mkdir()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


BAD = {
    "upwards": (
        "opdlight/models/student.py",
        "x = 1\nfrom opdlight.callbacks import Alarms\n",
        "opdlight/models/student.py:2: models",
    ),
    "upwards, bare": (
        "opdlight/batch/collate.py",
        "from opdlight import train\n",
        "opdlight/batch/collate.py:1: batch (layer 1)",
    ),
    "upwards, lazily": (
        "opdlight/types.py",
        "def f():\n    import opdlight.distillation.module\n",
        "opdlight/types.py:2: types (layer 0)",
    ),
    "upwards, relative": ("opdlight/rollout/x.py", "from ..callbacks import A\n", "opdlight/rollout/x.py:1: rollout"),
    "upwards, relative sibling": (
        "opdlight/metrics/a.py",
        "from ..distillation import A\n",
        "opdlight/metrics/a.py:1: metrics",
    ),
    "loss and a library": ("opdlight/losses/a.py", "import numpy\n", "opdlight/losses/a.py:1: losses imports numpy"),
    "loss and errors": (
        "opdlight/losses/a.py",
        "from opdlight.errors import E\n",
        "opdlight/losses/a.py:1: losses imports",
    ),
    "env and config": (
        "envs/toy.py",
        "from opdlight.config import check\n",
        "envs/toy.py:1: envs imports opdlight.config",
    ),
    "env and a same-layer room": (
        "envs/a/b.py",
        "import opdlight.metrics\n",
        "envs/a/b.py:1: envs imports opdlight.metrics",
    ),
    "vllm elsewhere": ("opdlight/models/t.py", "def f():\n    import vllm\n", "opdlight/models/t.py:2: imports vllm"),
    "vllm in a tool": ("tools/bench.py", "from vllm import LLM\n", "tools/bench.py:1: imports vllm"),
    "ray elsewhere": (
        "opdlight/rollout/engines/vllm_start.py",
        "def f():\n    import ray\n",
        "opdlight/rollout/engines/vllm_start.py:2: imports ray; only opdlight/rollout/engines/ray_start.py",
    ),
    "ray at the top": (
        "opdlight/rollout/engines/ray_start.py",
        "import ray\n",
        "opdlight/rollout/engines/ray_start.py:1: imports ray at the top",
    ),
    "vllm at the top": (
        "opdlight/rollout/engines/vllm_start.py",
        "import vllm.config\n",
        "opdlight/rollout/engines/vllm_start.py:1: imports vllm",
    ),
    "vllm in a class body": (
        "opdlight/rollout/engines/vllm_start.py",
        "class A:\n    from vllm import LLM\n",
        "opdlight/rollout/engines/vllm_start.py:2: imports vllm at the top",
    ),
    "what vLLM loads": (
        "opdlight/rollout/engines/vllm.py",
        "from opdlight.rollout.engines.vllm_top_p import TopP\n",
        "opdlight/rollout/engines/vllm.py:1: imports opdlight.rollout.engines.vllm_top_p.TopP, which only vLLM",
    ),
    "unplaced room": ("opdlight/utils.py", "", "opdlight/utils.py:1: the room `utils` has no layer yet"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_forbidden_import_is_named_with_file_and_line(case: str, tmp_path: Path) -> None:
    name, text, start = BAD[case]
    (message,) = check_layers.violations(tree(tmp_path, {name: text}))
    assert message.startswith(start)


def test_allowed_imports_pass(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "opdlight/__init__.py": "",
            "opdlight/types.py": "import torch\n",
            "opdlight/losses/a.py": "import math\nimport torch.nn\nfrom opdlight.types import T\nfrom . import b\n",
            "opdlight/rollout/engines/vllm_start.py": "def f():\n    from vllm import LLM\n",
            "opdlight/rollout/engines/vllm_top_p.py": "import vllm\n",
            "opdlight/rollout/pool.py": "from opdlight.envs.base import TextEnv\nfrom .engines.base import Engine\n",
            "opdlight/rollout/engines/base.py": "from opdlight.types import T\n",
            "opdlight/train/run.py": "from opdlight import run_folder, __version__\n",
            "envs/toy.py": "from opdlight.errors import E\nfrom opdlight.types import T\nimport numpy\n",
            "tools/any.py": "import opdlight.train\n",
        },
    )
    assert check_layers.violations(root) == []


CIRCLES = {
    "two files": {
        "opdlight/rollout/a.py": "from opdlight.rollout.b import B\n",
        "opdlight/rollout/b.py": "import opdlight.rollout.a\n",
    },
    "for types, inside a function": {
        "opdlight/rollout/a.py": "from opdlight.rollout import b\n",
        "opdlight/rollout/b.py": "def f():\n    from .c import C\n",
        "opdlight/rollout/c.py": "if TYPE_CHECKING:\n    from opdlight.rollout.a import A\n",
    },
    "its own package": {
        "opdlight/rollout/__init__.py": "from opdlight.rollout.a import A\n",
        "opdlight/rollout/a.py": "from opdlight.rollout import A\n",
    },
    "environments": {"envs/a.py": "from opdlight.envs.b import B\n", "envs/b.py": "from opdlight.envs import a\n"},
}


@pytest.mark.parametrize("case", CIRCLES)
def test_a_circle_of_imports_is_named_with_its_files(case: str, tmp_path: Path) -> None:
    (message,) = check_layers.violations(tree(tmp_path, CIRCLES[case]))
    assert "a circle of imports: " in message
    assert all(file in message for file in CIRCLES[case])


def test_this_repository_keeps_its_layers() -> None:
    found = subprocess.run([sys.executable, ROOT / "tools" / "check_layers.py"], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("layers: imports go one way\n", 0)
