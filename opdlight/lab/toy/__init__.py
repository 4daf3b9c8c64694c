"""Study of the gradient variance on a walk on a line: `python -m opdlight.lab.toy` (arXiv 2603.25562, toy study)."""
