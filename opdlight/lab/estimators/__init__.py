"""The estimators: `python -m opdlight.lab.estimators`."""
