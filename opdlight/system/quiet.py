"""Libraries that say what the user of a run need not know."""

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """Keep the terminal for what the run itself has to say."""
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")  # a student trains in it
    warnings.filterwarnings(
        "ignore", message="It is recommended to use `self.log\\('val/"
    )  # gathered by our own metric
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # inside Lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
