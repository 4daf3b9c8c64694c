"""How far the engine's policy is from the trainer's."""

from opdlight.bounds import PositiveFloat
from opdlight.callbacks.probe_callback import ProbeCallback
from opdlight.models.probe import ProbeResult


class EngineMismatch(ProbeCallback):
    """Logs `mismatch/*` by task.

    The engine's log-probs are of the full distribution at temperature 1, so the trainer's are taken there too. After
    the first of several `rollout.mini_batches` the trainer has moved on, and the mismatch says by how much.

    Args:
        cap: weights π/μ above this count as clipped (`loss=importance_weighted` has its own).
    """

    def __init__(self, cap: PositiveFloat = 2.0) -> None:
        self.cap = cap

    def figures(self, seen: ProbeResult) -> dict[str, float]:
        """Mean of log μ(y) − log π(y), and the share of tokens above the cap."""
        log_ratio = seen.trainer - seen.engine
        clipped = (log_ratio.exp() > self.cap).float()
        return {"mismatch/k1": float(-log_ratio.mean()), "mismatch/clipped": float(clipped.mean())}
