"""How sure both models are."""

from opdlight.callbacks.watch import TokenWatch
from opdlight.models.probe import Reading


class ModelEntropy(TokenWatch):
    """Logs `entropy/student` and `entropy/teacher` by task, at the rollout temperature over the full vocabulary."""

    def figures(self, seen: Reading) -> dict[str, float]:
        """Means over the positions that were read."""
        found = {"entropy/student": float(seen.student_entropy.mean())}
        if seen.teacher_entropy is not None:
            found["entropy/teacher"] = float(seen.teacher_entropy.mean())
        return found
