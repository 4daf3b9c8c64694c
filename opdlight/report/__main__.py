"""Draw the page on one or more runs, with an inspector of single tokens: `python -m opdlight.report run=…`."""

from typing import Any

from omegaconf import DictConfig

from opdlight.config import ReportConfig, hydra_entry
from opdlight.system.console import progress


def run(cfg: DictConfig) -> Any:
    """Hand the checked config over; a mistake in it was reported before the slow imports."""
    with progress("loading libraries", log=False):
        from opdlight.report.build import report
    return report(cfg.run, cfg.out, cfg.trajectories)


main = hydra_entry("report", ReportConfig)(run)

if __name__ == "__main__":
    main()
