"""How evenly the sampled-token signal lies on the tokens (the paper's first failure mode)."""

from opdlight.callbacks.probe_callback import ProbeCallback
from opdlight.metrics.tokens import top_share
from opdlight.models.probe import ProbeResult


class SignalBalance(ProbeCallback):
    """Logs `signal/*` by task: the sign of the rewards r = log q(y) − log π(y) and where Σ|r| is."""

    def figures(self, seen: ProbeResult) -> dict[str, float]:
        """Shares over the probed positions."""
        reward = -seen.gap
        return {
            "signal/negative": float((reward < 0).float().mean()),
            "signal/negative_mass": float(-reward.clamp(max=0).sum() / reward.abs().sum().clamp(min=1e-30)),
            "signal/top_1": float(top_share(reward, 0.01)),
            "signal/top_10": float(top_share(reward, 0.1)),
        }
