"""Without CUDA nothing here is collected but the one test that says so."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*_on_a_gpu.py"]
