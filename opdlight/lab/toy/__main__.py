"""Study of the gradient variance against the discount γ on a walk on a line: `python -m opdlight.lab.toy`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import ToyConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.lab.toy.study import toy
    return toy(cfg)


main = hydra_entry("toy", ToyConfig, module="opdlight.lab.toy")(run)

if __name__ == "__main__":
    main()
