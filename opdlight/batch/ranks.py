"""Micro-batches of several ranks that are one batch."""

from opdlight.batch.collate import without_tokens
from opdlight.batch.split import with_global_tokens
from opdlight.system.distributed import all_gather
from opdlight.types import TokenBatch


def over_ranks(batches: list[TokenBatch], tasks: tuple[str, ...]) -> list[TokenBatch]:
    """This rank's micro-batches with the loss positions of all ranks as `global_tokens`, and as many as any rank has.

    What is missing is filled up with micro-batches that carry no loss. Every rank must call it.
    """
    counts = all_gather((sum(b.num_tokens for b in batches), len(batches)))
    most = max(number for _, number in counts)
    filled = [*batches, *[without_tokens(tasks)] * (most - len(batches))]
    return with_global_tokens(filled, sum(tokens for tokens, _ in counts))
