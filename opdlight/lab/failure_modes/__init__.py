"""The failure modes: `python -m opdlight.lab.failure_modes`."""
