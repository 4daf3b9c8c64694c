"""A lack of memory costs a repetition with smaller micro-batches, not the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from opdlight.batch.split import halved
from opdlight.system.distributed import world_size
from opdlight.types import TokenBatch

Result = TypeVar("Result")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Is it a lack of memory, on a GPU or on the CPU?"""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class OutOfMemory:
    """Repeats what ran out of memory, with micro-batches of half the size; they stay that small.

    Args:
        budget: tokens of one micro-batch.
        say: tells the user.
        whole_trajectories: the loss needs the rows of a trajectory together.
    """

    def __init__(self, budget: int, say: Callable[[str], None], *, whole_trajectories: bool) -> None:
        self.budget, self.say, self.whole_trajectories = budget, say, whole_trajectories
        self.count = 0  # how often the budget was halved

    def run(
        self,
        compute: Callable[[Sequence[TokenBatch]], Result],
        batches: Sequence[TokenBatch],
        *,
        forget: Callable[[], None],
    ) -> tuple[Result, Sequence[TokenBatch]]:
        """`compute(batches)` and the micro-batches that fitted into memory.

        Args:
            compute: what may run out of memory.
            batches: micro-batches.
            forget: undoes what `compute` did before it failed.

        Raises:
            RuntimeError: with several processes, where the others are in the middle of theirs.
            TrainingError: if no micro-batch can be split.
        """
        while True:
            try:
                return compute(batches), batches
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if world_size() > 1:
                    error.add_note("Lower `micro_batch_tokens`: of several processes none can do it by itself.")
                    raise
            forget()  # only here, after the handler, the tensors are free that the error held
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            batches, self.budget = halved(batches, self.budget, whole_trajectories=self.whole_trajectories)
            self.count += 1
            self.say(f"out of memory: micro_batch_tokens is {self.budget} from now on")

    def state_dict(self) -> dict[str, Any]:
        """The count and the budget."""
        return {"count": self.count, "budget": self.budget}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take both; a budget that was never halved, or a smaller one of the config, is the config's."""
        self.count = state["count"]
        if self.count:
            self.budget = min(self.budget, state["budget"])
