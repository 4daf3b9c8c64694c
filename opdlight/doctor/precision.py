"""Check: whether updates are lost in the rounding of bfloat16 weights."""

from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Patient
from opdlight.models.precision import LEAST, bfloat16_share, engine_dtype, lost


def check_precision(patient: Patient) -> list[Finding]:
    """Check the share of bfloat16 weights that an update changes; the evidence names all dtypes."""

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="precision", verdict=verdict, evidence=evidence, repair=repair)]

    share = bfloat16_share(patient.student, patient.learning_rate)
    if share is None:
        engine = engine_dtype(patient.engine)
        evidence = f"what is trained is float32; the student computes in {patient.compute_dtype}"
        return found(Verdict.PASS, evidence + (f", the engine in {engine}" if engine else ""))
    adam = patient.optimizer.startswith("torch.optim.") and "Adam" in patient.optimizer
    verdict = Verdict.FAIL if adam and share < LEAST else Verdict.WARN
    return found(verdict, lost(share, patient.learning_rate), override("model.dtype", "float32"))
