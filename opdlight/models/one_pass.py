"""Whatever is asked about the distribution at a position, without gradient, from one pass over the vocabulary.

The product of a position with the LM head costs most, so it is computed once for all that is asked: a top-K, the
log-normaliser, the log-prob of a token, the entropy, and what callbacks probe at some of the positions.
Letters and precision as in `lm_head.py`; n are probed positions.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdlight.errors import ConfigError
from opdlight.models.lm_head import CHUNK, LMHead, support_logits
from opdlight.types import SharedVocabulary

CACHED = 2**21  # numbers of an intermediate that stays in a processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScores:
    """What a model says at n probed positions without knowing the other one; normalised over its full vocabulary."""

    top_ids: Tensor  # [n, K] its most probable shared ids, best first
    top_logprobs: Tensor  # [n, K]
    sampled: Tensor  # [n] of the student's token
    untempered: Tensor  # [n] the same at temperature 1
    entropy: Tensor  # [n] −Σ_v p log p in nats
    normaliser: Tensor  # [n] log Σ_v exp(z_v / temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one pass found at N positions; None where it was not asked for."""

    top_ids: Tensor | None = None  # [N, K] the most probable shared ids, best first
    normaliser: Tensor | None = None  # [N] as `log_normaliser`
    sampled: Tensor | None = None  # [N] as `token_logprobs`
    entropy: Tensor | None = None  # [N] −Σ_v p log p over the full width, in nats
    probe: OwnScores | None = None  # at n of them


@torch.no_grad()
def one_pass(
    hidden: Tensor,
    head: LMHead,
    token_ids: Tensor,
    *,
    shared: SharedVocabulary,
    temperature: float = 1.0,
    k: int = 0,
    normaliser: bool = False,
    entropy: bool = False,
    probe_at: Tensor | None = None,
    probe_k: int = 0,
    chunk: int = CHUNK,
) -> Found:
    """One pass at all positions; at the probed ones alone, or none, if nothing else is asked for.

    Args:
        hidden: [N, d].
        head: of the same model.
        token_ids: [N] the student's tokens.
        shared: the ids that a top-K is chosen from.
        temperature: divides the logits.
        k: find the top-K of this size; 0: none.
        normaliser: find the log-normaliser and with it the log-probs of `token_ids`.
        entropy: find the entropy.
        probe_at: [n] positions that are probed, ascending; None: none.
        probe_k: size of the top-K there.
        chunk: positions whose V logits exist at the same time.

    Raises:
        ConfigError: naming `loss.k`, if the vocabulary holds fewer ids.
    """
    if not 0 <= k <= len(shared):
        raise ConfigError.wrong("loss.k", expected=f"from 1 to the {len(shared)} ids both models share", got=k)
    if not (k or normaliser or entropy):
        if probe_at is None:
            return Found()
        hidden, token_ids = hidden[probe_at], token_ids[probe_at]
        probe_at = torch.arange(len(probe_at), device=hidden.device)
    probed = None if probe_at is None else _by_chunk(probe_at, len(hidden), chunk)
    found: dict[str, list[Tensor]] = defaultdict(list)
    probe: dict[str, list[Tensor]] = defaultdict(list)
    for number, (some, tokens) in enumerate(zip(hidden.split(chunk), token_ids.split(chunk), strict=True)):
        raw = head.logits(some)
        logits = _tempered(raw, temperature)
        if k:
            found["top_ids"].append(shared.only(raw).topk(k, dim=-1).indices)
        if normaliser:
            found["normaliser"].append(logits.logsumexp(-1))
            found["sampled"].append(_pick(logits, tokens) - found["normaliser"][-1])
        if entropy:
            found["entropy"].append(_entropy(logits.log_softmax(-1)))
        if probed is not None:
            # on a CPU a few rows at a time, whose intermediates stay in its cache: a third of the time for all at once
            size = max(1, CACHED // head.width) if raw.is_cpu else chunk
            for at in probed[number].split(size):
                for name, value in _own(raw[at], tokens[at], probe_k, shared, temperature).items():
                    probe[name].append(value)
    own = None if probe_at is None else OwnScores(**_joined(probe))
    return Found(**_joined(found), probe=own)


def logprobs_at(own: OwnScores, hidden: Tensor, head: LMHead, token_ids: Tensor, temperature: float) -> Tensor:
    """Log-probs [n, K] of other ids [n, K] at the positions of `own`, whose hidden states [n, d] these are."""
    return support_logits(hidden, head, token_ids) / temperature - own.normaliser.unsqueeze(1)


def _own(raw: Tensor, tokens: Tensor, k: int, shared: SharedVocabulary, temperature: float) -> Mapping[str, Tensor]:
    """The fields of `OwnScores` from logits [n, V]."""
    logits = _tempered(raw, temperature)
    logprobs = logits.log_softmax(-1)
    best = shared.only(raw).topk(k, dim=-1).indices
    top, sampled = logprobs.gather(1, best), _pick(logprobs, tokens)
    return {
        "top_ids": best,
        "top_logprobs": top,
        "sampled": sampled,
        "untempered": sampled if temperature == 1.0 else _pick(raw, tokens) - raw.logsumexp(-1),
        "entropy": _entropy(logprobs),
        "normaliser": _pick(logits, best[:, 0]) - top[:, 0],
    }


def _tempered(raw: Tensor, temperature: float) -> Tensor:
    return raw if temperature == 1.0 else raw / temperature


def _pick(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(1, ids.unsqueeze(1)).squeeze(1)


def _entropy(logprobs: Tensor) -> Tensor:
    return -logprobs.exp().mul_(logprobs).sum(-1)  # in place: it is as large as the logits


def _by_chunk(positions: Tensor, total: int, chunk: int) -> Sequence[Tensor]:
    """Ascending positions below `total`, cut by the chunk they are in and counted from its start."""
    chunks = max(1, -(-total // chunk))
    counts = torch.bincount(positions // chunk, minlength=chunks).tolist()
    return (positions % chunk).split(counts)


def _joined(parts: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(list(values)) for name, values in parts.items()}
