"""The command `python -m opdlight.sft`."""
