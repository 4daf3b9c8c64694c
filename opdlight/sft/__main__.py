"""Fine-tune a student on expert demonstrations, before it is distilled: `python -m opdlight.sft task=… model=…`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import SftConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.sft.run import sft
    return sft(cfg)


main = hydra_entry("sft", SftConfig)(run)

if __name__ == "__main__":
    main()
