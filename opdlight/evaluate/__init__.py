"""A model on held-out episodes: success with intervals, for the command and for both ends of a training run."""
