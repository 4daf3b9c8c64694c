"""The work that every side of `tools/bench_peers.py` does, and how a side keeps pace with the others."""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Sequence

MARK = "bench_peers: "  # begins what a side says
STEPS = 1000  # more than anybody waits for: the sides are ended when enough steps have been timed
WORKS = {  # overrides of opdlight's config: models, task and sizes, from which TRL's side takes them too
    "sums": ["task=sums", "rollout.groups=48"],
    # all weights, not the adapters of the config; with 1e-5 the answers stay about as long as they are
    "smollm2": [
        "model=smollm2", "task=easy_sums", "model.student.lora=null", "optimizer.lr=1e-5", "rollout.groups=16",
    ],
}  # fmt: skip


def arguments(work: list[str], loss: str) -> list[str]:
    """The overrides of `python -m opdlight.train` for the steps alone: nothing is evaluated or saved."""
    return [
        *work, f"loss={loss}", "schedule.kind=constant", "schedule.warmup=0", f"trainer.max_steps={STEPS}",
        "+trainer.limit_val_batches=0", "doctor=false", "evaluate_teachers=false", "~callbacks.checkpoints",
        "~callbacks.progress",
    ]  # fmt: skip


class Pace:
    """A side's end of the line to `bench_peers.py`: trains a step when told to, and says what it took.

    The line is the process's standard input and output, where libraries may print between what is said here.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def _say(self, **what: object) -> None:
        print(MARK + json.dumps(what), flush=True)
        if not sys.stdin.readline():  # bench_peers.py has ended
            os._exit(0)
        self._began = time.perf_counter()

    def ready(self) -> None:
        """Say that everything is loaded, and wait until the first step may begin."""
        self._say()

    def stepped(self, prompts: Iterable[Sequence[int]], sampled: int, trained: int) -> None:
        """Say what the step took, and wait until the next one may begin.

        Args:
            prompts: their token ids, in any order.
            sampled: number of tokens that were generated.
            trained: number of tokens whose loss was computed.
        """
        seconds = time.perf_counter() - self._began
        ids = sorted(list(prompt) for prompt in prompts)
        self._say(
            seconds=seconds,
            prompt=sum(map(len, ids)),
            prompts=hashlib.blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest(),
            sampled=sampled,
            trained=trained,
            gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # Linux counts in KiB
        )
