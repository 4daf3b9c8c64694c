"""Distil a student on its own rollouts: `python -m opdlight.train task=agent_math loss=topk_rkl`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import TrainConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.train.run import train
    return train(cfg)


main = hydra_entry("train", TrainConfig)(run)

if __name__ == "__main__":
    main()
