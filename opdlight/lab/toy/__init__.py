"""Study of the gradient variance on a walk on a line: `python -m opdlight.lab.toy` (PAPER, toy study)."""
