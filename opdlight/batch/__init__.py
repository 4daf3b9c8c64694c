"""From trajectories to micro-batches of tokens: shift, mask, pad, flatten and split."""
