"""Measure a model on held-out episodes: `python -m opdlight.evaluate task=sums model.student.model=<folder>`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import EvaluateConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.evaluate.run import evaluate
    return evaluate(cfg)


main = hydra_entry("evaluate", EvaluateConfig)(run)

if __name__ == "__main__":
    main()
