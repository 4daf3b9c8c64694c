"""Trajectories to micro-batches of tokens: shift, mask, pad, flatten, cut."""
