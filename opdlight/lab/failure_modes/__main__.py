"""Study of the sampled token's three failure modes and their fixes: `python -m opdlight.lab.failure_modes`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import hydra_entry
from opdlight.config.schemas import FailureModesConfig
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.lab.failure_modes.study import study
    return study(cfg)


main = hydra_entry("failure_modes", FailureModesConfig, module="opdlight.lab.failure_modes")(run)

if __name__ == "__main__":
    main()
