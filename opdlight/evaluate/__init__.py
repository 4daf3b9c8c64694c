"""The command `python -m opdlight.evaluate`."""
