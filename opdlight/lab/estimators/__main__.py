"""Study of the bias and variance of every estimator: `python -m opdlight.lab.estimators`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import EstimatorsConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.lab.estimators.study import study
    return study(cfg)


main = hydra_entry("estimators", EstimatorsConfig, module="opdlight.lab.estimators")(run)

if __name__ == "__main__":
    main()
