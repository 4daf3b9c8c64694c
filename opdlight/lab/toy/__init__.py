"""The toy study: `python -m opdlight.lab.toy`."""
