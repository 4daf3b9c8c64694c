"""Check models, task, loss and machine before a run: `python -m opdlight.doctor task=… loss=…`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import DoctorConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.doctor.examination import examine_config
        from opdlight.doctor.plan import plan_config
    return examine_config(cfg) if cfg.plan_gib is None else plan_config(cfg)


main = hydra_entry("doctor", DoctorConfig)(run)

if __name__ == "__main__":
    main()
