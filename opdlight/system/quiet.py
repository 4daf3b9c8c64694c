"""Warnings and progress bars of libraries that are of no use to the user of a run."""

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """Silence them in this process."""
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")  # a student trains so
    warnings.filterwarnings(
        "ignore", message="It is recommended to use `self.log\\('val/"
    )  # HeldOutOutcomes gathers over the ranks itself
    # Lightning says so from three cores on; our loaders hold requests, which cost nothing to load
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # inside Lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
