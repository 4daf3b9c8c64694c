"""On-policy distillation of language models with PyTorch Lightning.

`from opdlight import OnPolicyDistillation, Student, …`: `opdlight.api` has the names. It is imported when the first of
them is asked for, so that a command can say something before torch and Lightning are there.
"""

import difflib
import importlib
import importlib.util
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdlight.api import *  # noqa: F403

_module = [a.removeprefix("-m") for a in sys.orig_argv] if sys.argv[:1] == ["-m"] else []
_script = [os.path.basename(a) for a in sys.argv[:1]]
_main_thread = threading.current_thread() is threading.main_thread()
if _main_thread and ("opdlight" in _script or any(a == "opdlight" or a.startswith("opdlight.") for a in _module)):
    # a command begins; until it has imported what handles Ctrl-C, that ends it without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    wanted = name == "__all__" or (name.isidentifier() and not name.startswith("_"))
    if wanted and importlib.util.find_spec(f"opdlight.{name}") is None:  # a module is no such name
        api = importlib.import_module("opdlight.api")
        if hasattr(api, name):
            return getattr(api, name)
        near = difflib.get_close_matches(name, api.__all__, n=1)
        guess = f". Did you mean: {near[0]!r}?" if near else ""
        # without `obj`, so that Python adds no guess of its own
        raise AttributeError(f"module 'opdlight' has no attribute {name!r}{guess}", name=name, obj=None)
    raise AttributeError(f"module 'opdlight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("opdlight.api").__all__})
