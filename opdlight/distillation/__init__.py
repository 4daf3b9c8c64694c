"""The training step and what it depends on."""
