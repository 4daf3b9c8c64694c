"""On-policy distillation of language models with PyTorch Lightning."""

import signal
import sys

if sys.argv[:1] == ["-m"] and any(a.removeprefix("-m").startswith("opdlight.") for a in sys.orig_argv):
    # a command begins; until it has imported what handles Ctrl-C, that ends it without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
