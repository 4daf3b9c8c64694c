"""Study of bias and variance of the estimators: `python -m opdlight.lab.estimators`."""
