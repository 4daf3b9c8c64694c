"""The tokens at which student and teacher are compared: from a top-K to the support that a loss asked for."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from opdlight.losses.base import Needs, SupportKind
from opdlight.types import SharedVocabulary, Support


def with_token(token_ids: Tensor, valid: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """S ∪ {y}: one more column with the given token, valid where S lacks it.

    Args:
        token_ids: S [N, K].
        valid: [N, K] bool.
        sampled: y [N].

    Returns:
        Both [N, K+1].

    >>> with_token(torch.tensor([[4, 2]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([2]))[1].tolist()
    [[True, True, False]]
    """
    present = ((token_ids == sampled.unsqueeze(1)) & valid).any(1, keepdim=True)
    return torch.cat([token_ids, sampled.unsqueeze(1)], 1), torch.cat([valid, ~present], 1)


def nucleus(support: Support, mass: float) -> Support:
    """The smallest leading part of a descending top-K support that holds teacher mass ≥ `mass`; all of it if none does.

    >>> s = Support(token_ids=torch.tensor([[4, 2, 1]]), teacher_logits=torch.tensor([[0.6, 0.3, 0.1]]).log(),
    ...             teacher_normaliser=torch.zeros(1), valid=torch.ones(1, 3, dtype=torch.bool))
    >>> nucleus(s, 0.8).valid.tolist()
    [[True, True, False]]
    """
    probabilities = support.teacher_logprobs.exp()
    before = probabilities.cumsum(-1) - probabilities  # the mass of the more probable tokens
    return replace(support, valid=support.valid & (before < mass))


def make_support(
    needs: Needs,
    top_ids: Tensor | None,
    sampled: Tensor,
    shared: SharedVocabulary,
    score: Callable[[Tensor], tuple[Tensor, Tensor | None]],
) -> Support:
    """The support that a loss asked for.

    Args:
        needs: names the support.
        top_ids: [N, K] the top-K of a model; None where the support is the whole vocabulary.
        sampled: y [N].
        shared: the ids of the whole vocabulary.
        score: ids [N, K] → the teacher's logits of them [N, K], divided by the temperature, and its log-normaliser [N]
            if the loss or the nucleus needs it.
    """
    assert needs.support is not None
    ids = torch.arange(shared.size, device=sampled.device).expand(len(sampled), -1) if top_ids is None else top_ids
    valid = torch.ones_like(ids, dtype=torch.bool)
    if top_ids is None and shared.left_out:
        valid = shared.holds(torch.arange(shared.size, device=ids.device)).expand_as(ids)
    if needs.support.with_sampled:
        ids, valid = with_token(ids, valid, sampled)
    logits, normaliser = score(ids)
    support = Support(token_ids=ids, teacher_logits=logits, teacher_normaliser=normaliser, valid=valid)
    return nucleus(support, needs.nucleus) if needs.support is SupportKind.TEACHER_NUCLEUS else support
