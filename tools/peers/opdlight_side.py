"""opdlight's side of `tools/bench_peers.py`: the training command with a callback that keeps pace."""

import sys
from typing import Any

import lightning as L

from tools.peers.work import Pace, arguments


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


def main() -> None:
    """`python -m tools.peers.opdlight_side LOSS FOLDER OVERRIDE…`."""
    loss, folder, *work = sys.argv[1:]
    pace = "+callbacks.pace._target_=tools.peers.opdlight_side.KeepPace"
    sys.argv[1:] = [*arguments(work, loss), f"run_dir={folder}/run", f"hydra.run.dir={folder}/run", pace]
    from opdlight.train.__main__ import main as train

    train()


if __name__ == "__main__":
    main()
