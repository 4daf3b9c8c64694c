"""The mean over tokens that is differentiated."""

from torch import Tensor


def token_mean(per_token: Tensor, global_tokens: int) -> Tensor:
    """This micro-batch's share of the token mean over the whole step: Σ_t ℓ_t / global_tokens.

    The shares of all micro-batches and ranks add up to one mean in which every token weighs the same, however unequal
    the micro-batches are (a mean of means would not do that).

    Args:
        per_token: [N]; N = 0 gives 0, with a graph if `per_token` has one.
        global_tokens: loss positions of the whole step, all micro-batches and ranks.

    Raises:
        ValueError: if `global_tokens` is not positive; a step without loss tokens has no mean and must be skipped.
    """
    if global_tokens <= 0:
        raise ValueError(
            f"Expected `global_tokens` to be positive, but got {global_tokens}: skip a step without tokens."
        )
    return per_token.sum() / global_tokens
