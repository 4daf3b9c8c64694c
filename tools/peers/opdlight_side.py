"""The callback with which `python -m opdlight.train` keeps pace with the other sides of `tools/bench_peers.py`."""

from typing import Any

import lightning as L

from tools.peers.work import Pace


class KeepPace(L.Callback):
    """The last callback of the config, so that a step ends when the others have seen it."""

    def __init__(self) -> None:
        self.pace = Pace()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Models and engine are there."""
        self.pace.ready()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The new weights are published."""
        step = outputs["step"]
        turns = [turn for trajectory in step.trajectories for turn in trajectory.turns]
        sampled = sum(len(turn.completion_ids) for turn in turns)
        self.pace.stepped([turn.prompt_ids for turn in turns], sampled, step.loss_tokens)
