"""The micro-batches of all ranks: rows go where they make the ranks finish together."""

import heapq
from collections.abc import Sequence

from opdlight.batch.collate import Collate, Piece
from opdlight.batch.split import in_parts, with_global_tokens
from opdlight.system.distributed import all_gather_shares, rank, world_size
from opdlight.types import TokenBatch, Trajectory


def over_ranks(trajectories: Sequence[Trajectory], collate: Collate, updates: int) -> list[list[TokenBatch]]:
    """This rank's micro-batches of each update; together with those of the other ranks they are what one process has.

    The ranks send each other all rows (not their trajectories, whose turns repeat what came before), because groups are
    compared and divided into updates as a whole, wherever they were rolled out. Then each row, or trajectory if
    `collate.whole_trajectories`, goes to one rank. All ranks get equally many micro-batches; what is missing is filled
    up with micro-batches that carry no loss. Collective: every rank must call it.

    Args:
        trajectories: what this rank has rolled out: its `share` of the step.
        collate: makes the micro-batches.
        updates: how many; each takes its share of the groups.
    """
    found = all_gather_shares([collate.rows(trajectory) for trajectory in trajectories])
    return [_mine(collate.pieces(part), collate) for part in in_parts(found, updates)]


def _mine(pieces: Sequence[Piece], collate: Collate) -> list[TokenBatch]:
    shares = deal([piece.tokens for piece in pieces], world_size())
    batches = [collate.micro_batches([pieces[i] for i in share]) for share in shares]
    mine = [collate.batch(found) for found in batches[rank()]]
    mine += [collate.without_tokens() for _ in range(max(map(len, batches)) - len(mine))]
    return with_global_tokens(mine, sum(piece.loss_tokens for piece in pieces))


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Places in `sizes` for each of the ranks, so that their sums are nearly equal.

    The largest first, each to the rank that has the least so far (longest processing time first, Graham 1969): no sum
    exceeds the mean by more than the largest size.

    >>> deal([5, 3, 3, 2, 2, 1], 2)
    [[0, 3, 5], [1, 2, 4]]
    """
    loads = [(0, number) for number in range(ranks)]
    shares: list[list[int]] = [[] for _ in loads]
    for place in sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True):
        load, number = loads[0]
        shares[number].append(place)
        heapq.heapreplace(loads, (load + sizes[place], number))
    return [sorted(share) for share in shares]
