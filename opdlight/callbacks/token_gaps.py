"""Which tokens carry the gap: special tokens that both models write differently show here by name."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from opdlight.bounds import PositiveInt
from opdlight.callbacks.probe_callback import by_task
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.models.probe import ProbeResult


class TokenGaps(L.Callback):
    """Logs `gap/special_share` by task and writes `token_gaps.jsonl`: the tokens with the largest share of Σ|log q/π|.

    Args:
        folder: the run folder.
        every: a table each `every`-th step.
        rows: tokens a table.
    """

    uses_probe = True

    def __init__(self, folder: str, every: PositiveInt = 5, rows: PositiveInt = 20) -> None:
        self.path, self.every, self.rows = Path(folder) / "token_gaps.jsonl", every, rows

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the share of the special tokens; write the tables."""
        assert isinstance(pl_module, OnPolicyDistillation)
        tokenizer = pl_module.student.tokenizer
        special = set(tokenizer.added_tokens_decoder)  # markers, ends, <think>: what training or templates added
        lines = []
        for task, seen in by_task(outputs["step"].probes).items():
            table = token_table(seen)
            share = sum(row["share"] for row in table if row["id"] in special)
            pl_module.log(f"gap/special_share/{task}", share)
            rows = [
                {"text": tokenizer.decode([row["id"]]), "special": row["id"] in special, **row}
                for row in table[: self.rows]
            ]
            lines.append({"update": batch_idx, "task": task, "tokens": len(seen.token), "rows": rows})
        if lines and batch_idx % self.every == 0 and trainer.is_global_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def token_table(seen: ProbeResult) -> list[dict[str, Any]]:
    """For each token id: how often it was probed, its mean log q − log π in nats, and its share of Σ|log q − log π|."""
    ids, place = torch.unique(seen.token, return_inverse=True)
    reward = -seen.gap.double()
    count = torch.bincount(place, minlength=len(ids))
    total = reward.new_zeros(len(ids)).index_add_(0, place, reward)
    size = reward.new_zeros(len(ids)).index_add_(0, place, reward.abs())
    share = size / size.sum().clamp(min=1e-30)
    order = share.argsort(descending=True).tolist()
    return [
        {"id": int(ids[i]), "count": int(count[i]), "mean": float(total[i] / count[i]), "share": float(share[i])}
        for i in order
    ]
