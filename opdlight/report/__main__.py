"""Draw the page on one run, on several, or on the arms of a sweep: `python -m opdlight.report run=…`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import ReportConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.report.build import report
    return report(cfg.run, cfg.out, cfg.trajectories, cfg.baseline)


main = hydra_entry("report", ReportConfig)(run)

if __name__ == "__main__":
    main()
