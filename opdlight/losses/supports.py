"""The tokens at which student and teacher are compared: what the models name, completed without them."""

from dataclasses import replace

import torch
from torch import Tensor

from opdlight.losses.base import Needs
from opdlight.types import Support


def with_token(support: Support, token_ids: Tensor, teacher_logprobs: Tensor) -> Support:
    """S ∪ {y}: one more column [N, K+1] with the given token, valid where S lacks it.

    Args:
        support: S [N, K].
        token_ids: y [N].
        teacher_logprobs: log q(y) [N], at the support's temperature.

    >>> s = Support(token_ids=torch.tensor([[4, 2]]), teacher_logprobs=torch.tensor([[-0.1, -3.0]]),
    ...             valid=torch.ones(1, 2, dtype=torch.bool), kind="teacher_top_k")
    >>> with_token(s, torch.tensor([2]), torch.tensor([-3.0])).valid.tolist()
    [[True, True, False]]
    """
    present = ((support.token_ids == token_ids.unsqueeze(1)) & support.valid).any(1, keepdim=True)
    return replace(
        support,
        token_ids=torch.cat([support.token_ids, token_ids.unsqueeze(1)], 1),
        teacher_logprobs=torch.cat([support.teacher_logprobs, teacher_logprobs.unsqueeze(1)], 1),
        valid=torch.cat([support.valid, ~present], 1),
        kind=f"{support.kind}_and_sampled",
    )


def nucleus(support: Support, mass: float) -> Support:
    """The smallest leading part of a descending top-K support that holds teacher mass ≥ `mass`; all of it if none does.

    >>> s = Support(token_ids=torch.tensor([[4, 2, 1]]), teacher_logprobs=torch.tensor([[0.6, 0.3, 0.1]]).log(),
    ...             valid=torch.ones(1, 3, dtype=torch.bool), kind="teacher_top_k")
    >>> nucleus(s, 0.8).valid.tolist()
    [[True, True, False]]
    """
    probabilities = support.teacher_logprobs.exp()
    before = probabilities.cumsum(-1) - probabilities  # the mass of the more probable tokens
    return replace(support, valid=support.valid & (before < mass), kind="teacher_nucleus")


def complete(
    support: Support | None, needs: Needs, token_ids: Tensor, teacher_sampled: Tensor | None
) -> Support | None:
    """The support that a loss asked for, from the top-K (or the vocabulary) that a model named."""
    if support is None or needs.support is None:
        return None
    if needs.support == "teacher_nucleus":
        return nucleus(support, needs.nucleus)
    if needs.support.endswith("_and_sampled"):
        assert teacher_sampled is not None
        return with_token(support, token_ids, teacher_sampled)
    return support
