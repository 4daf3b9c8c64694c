"""How far the student is from the teacher at the tokens that it sampled."""

import torch

from opdlight.callbacks.probe_callback import ProbeCallback
from opdlight.losses.direct import k1, k2, k3
from opdlight.models.probe import ProbeResult

QUANTILES = (0.1, 0.5, 0.9)


class TeacherGap(ProbeCallback):
    """Logs by task `gap/*`, quantiles of log π(y) − log q(y), and `kl/*`, estimates of KL(student‖teacher) from it."""

    def figures(self, seen: ProbeResult) -> dict[str, float]:
        """Quantiles and means over the probed positions."""
        at = torch.tensor(QUANTILES, device=seen.gap.device)
        quantiles = seen.gap.float().quantile(at).tolist()
        found = {f"gap/q{round(100 * q)}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
        estimates = {"k1": k1, "k2": k2, "k3": k3}
        return found | {f"kl/{n}": float(k(seen.student, seen.teacher).mean()) for n, k in estimates.items()}
