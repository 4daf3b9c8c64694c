"""Batches for models that are mere tables of logits; `opdlight.lab.estimators.chains.table_scores` scores them."""

from dataclasses import replace

from torch import Tensor

from opdlight.lab.estimators.chains import table_batch, table_scores
from opdlight.types import TokenBatch

scores_of = table_scores


def batch_of(targets: Tensor, **fields: Tensor) -> TokenBatch:
    """One sequence in which every position carries loss; `fields` replace what is counted up."""
    return replace(table_batch(targets, max(len(targets), 1)), **{"global_tokens": max(len(targets), 1), **fields})  # type: ignore[arg-type]
