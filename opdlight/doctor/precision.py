"""Check: whether updates and merged adapters are lost in the rounding of bfloat16."""

from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Patient
from opdlight.models.precision import BESIDE, LEAST, bfloat16_share, engine_dtype, lost, needs_float32_engine


def check_precision(patient: Patient) -> list[Finding]:
    """Check the share of bfloat16 weights that an update changes, and the dtype of an engine with merged adapters."""

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="precision", verdict=verdict, evidence=evidence, repair=repair)]

    key, dtype = engine_dtype(patient.engine)
    if needs_float32_engine(patient.student) and dtype != "float32":
        evidence = f"{key} is {dtype} {BESIDE}: engine and trainer would have two policies"
        return found(Verdict.FAIL, evidence, override(key, "float32"))
    share = bfloat16_share(patient.student, patient.learning_rate)
    if share is None:
        return found(Verdict.PASS, "what is trained is float32")
    adam = patient.optimizer.startswith("torch.optim.") and "Adam" in patient.optimizer
    verdict = Verdict.FAIL if adam and share < LEAST else Verdict.WARN
    return found(verdict, lost(share, patient.learning_rate), override("model.dtype", "float32"))
