"""Top-p as a logits processor of vLLM, which loads this file by the name `vllm_start.TOP_P`, also in worker processes.

Nothing else imports it, so it may import vllm. It is of vLLM's first model runner, the one of a CPU.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from opdlight.rollout.engines.nucleus import keep_nucleus


class TopP(LogitsProcessor):
    """Keeps the nucleus of requests whose `extra_args` hold a `top_p`; vLLM's own `top_p` must be 1 for them.

    It runs after the temperature and before vLLM's draw, whose noise does not depend on what is masked: the same seeds
    give the same tokens as vLLM's own top-p. Reported log-probs are computed before.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.top_p: dict[int, float] = {}  # row of the batch → its mass

    def is_argmax_invariant(self) -> bool:
        """True: the most probable token stays, so vLLM skips this for a greedy batch."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that came, went or moved to another row."""
        process_dict_updates(self.top_p, batch_update, lambda params, *_: (params.extra_args or {}).get("top_p"))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask logits [B, V], float32, in place."""
        return keep_nucleus(logits, self.top_p)
