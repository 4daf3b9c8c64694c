"""The command `python -m opdlight.train`."""
