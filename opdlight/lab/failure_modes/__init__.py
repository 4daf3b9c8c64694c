"""Study of the failure modes of the sampled token: `python -m opdlight.lab.failure_modes`."""
