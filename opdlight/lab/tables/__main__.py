"""The paper's tables at lab scale: `python -m opdlight.lab.tables`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import hydra_entry
from opdlight.config.schemas import TablesConfig
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.lab.tables.study import tables
    return tables(cfg)


main = hydra_entry("tables", TablesConfig, module="opdlight.lab.tables")(run)

if __name__ == "__main__":
    main()
