"""How sure both models are."""

from opdlight.callbacks.probe_callback import ProbeCallback
from opdlight.models.probe import ProbeResult


class ModelEntropy(ProbeCallback):
    """Logs `entropy/student` and `entropy/teacher` by task, at the rollout temperature over the full vocabulary."""

    def figures(self, seen: ProbeResult) -> dict[str, float]:
        """Means over the probed positions."""
        found = {"entropy/student": float(seen.student_entropy.mean())}
        if seen.teacher_entropy is not None:
            found["entropy/teacher"] = float(seen.teacher_entropy.mean())
        return found
