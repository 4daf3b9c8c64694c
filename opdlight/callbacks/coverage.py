"""How much of both models the teacher's top-K support holds."""

from opdlight.callbacks.probe_callback import ProbeCallback
from opdlight.models.probe import ProbeResult


class TeacherSupportCoverage(ProbeCallback):
    """Logs `coverage/*` by task: teacher mass, student mass, sampled-token rate in the support, top-K overlap.

    Student mass is the blind spot of a renormalised loss: what lies outside the support gets no gradient.
    """

    def figures(self, seen: ProbeResult) -> dict[str, float]:
        """Means over the probed positions."""
        values = {
            "teacher_mass": seen.teacher_mass,
            "student_mass": seen.student_mass,
            "sampled_in_support": seen.sampled_in_support,
            "overlap": seen.overlap,
        }
        return {f"coverage/{name}": float(v.mean()) for name, v in values.items()}
