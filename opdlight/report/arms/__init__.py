"""Runs that differ in more than their seed, compared by arm: seeds paired, with intervals over seeds and episodes."""
