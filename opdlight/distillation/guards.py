"""What an update that is not finite costs: that update, not the run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opdlight.errors import TrainingError
from opdlight.system.distributed import all_gather


class NotFinite:
    """Counts the updates whose loss or gradient is not finite.

    Args:
        most: so many of them end the run.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0

    def found(self, loss: Tensor, gradient_norm: Tensor) -> bool:
        """Whether loss or gradient norm of any rank is not finite; counted. Every rank must ask."""
        finite = all(all_gather(bool(torch.isfinite(loss) & torch.isfinite(gradient_norm))))
        self.count += not finite
        return not finite

    def check(self) -> None:
        """Raise TrainingError when there were too many."""
        if self.count >= self.most:
            raise TrainingError(
                f"{self.count} updates had a loss or a gradient that is not finite (`max_not_finite`). Each was "
                "skipped, so the weights are sound, and its trajectories are in trajectories.jsonl (see them in "
                "`python -m opdlight.report`). Lower optimizer.lr, or train in model.dtype=float32."
            )

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from there."""
        self.count = state["count"]
