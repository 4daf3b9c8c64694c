"""The nucleus of top-p sampling on a CPU, found without sorting the vocabulary.

vLLM sorts every row of logits where it has no Triton kernel, which is on a CPU: 49,152 logits a sequence for SmolLM2.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

_ROUNDING = 0.999  # of float32 probabilities, which must not exclude a token; leaves a few more candidates


def keep_nucleus(logits: Tensor, top_p: Mapping[int, float]) -> Tensor:
    """Set the logits outside the nucleus to −inf, in place.

    The nucleus is the smallest set of most probable tokens that holds a mass of at least top-p. Of tokens that are
    equally probable and do not all fit, those with the lowest ids belong to it. Probabilities are float32, their sums
    float64. A row with a NaN has no nucleus and stays as it is.

    Args:
        logits: [B, V] float32 on the CPU, divided by the temperature; −inf for tokens that cannot be drawn.
        top_p: row → mass in (0, 1); other rows stay as they are.

    Returns:
        `logits`.
    """
    if not top_p:
        return logits
    probabilities, rows = logits.softmax(-1).numpy(), logits.numpy()
    for index, mass in top_p.items():
        ids = nucleus(probabilities[index], mass)
        kept = rows[index, ids]
        if ids.size:
            rows[index].fill(-np.inf)
            rows[index, ids] = kept
    return logits


def nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Ids of the nucleus, ascending; none if there is a NaN among the probabilities [V]."""
    # A token is in the nucleus if the more probable ones hold less than top-p, so that it and the less probable ones,
    # at most V and each at most as probable as it, hold more than 1 − top-p: its probability exceeds (1 − top-p) / V.
    bound = _ROUNDING * (1 - top_p) / len(probabilities)
    candidates = np.flatnonzero(probabilities > bound)
    descending = np.sort(probabilities[candidates])[::-1]
    size = int(descending.cumsum(dtype=np.float64).searchsorted(top_p)) + 1
    if size >= len(candidates):  # rounding: the candidates hold just less than top-p
        return candidates
    least = descending[size - 1]
    ids = candidates[probabilities[candidates] >= least]
    if len(ids) > size:  # of those as probable as the last one that belongs to it, the highest ids are too many
        ids = np.delete(ids, np.flatnonzero(probabilities[ids] == least)[size - len(ids) :])
    return ids
