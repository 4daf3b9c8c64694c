"""What one pass over the vocabulary finds, against full logits; and that it is one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opdlight.errors import ConfigError
from opdlight.models import one_pass as passes
from opdlight.models.lm_head import LMHead, log_normaliser, support_values
from opdlight.models.one_pass import Found, OwnScores, logprobs_at, one_pass
from opdlight.types import SharedVocabulary
from tests.models.test_lm_head import K, N, V, assert_same, dtypes, kinds, make, reference, support

SHARED = SharedVocabulary(25, frozenset({3, 7}))
TOKENS = support(v=25)[:, 0]
PROBED = torch.tensor([0, 1, 4, 9, 12])
ALL = {"k": 5, "normaliser": True, "entropy": True, "probe_at": PROBED, "probe_k": 7}
NAMES = ("top_ids", "normaliser", "sampled", "entropy", "probe")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of each product with the whole head."""
    seen, logits = list[int](), LMHead.logits

    def counted(self: LMHead, hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(LMHead, "logits", counted)
    monkeypatch.setattr(passes, "CACHED", 2 * V)  # what is probed is found two rows at a time
    return seen


def best(full: Tensor, k: int) -> Tensor:
    """The values of the k most probable shared ids, by sorting."""
    shared = [i for i in range(V) if i in SHARED]
    return full[:, shared].sort(-1, descending=True).values[:, :k]


def assert_probed(own: OwnScores | None, hidden: Tensor, head: LMHead, temperature: float, dtype: torch.dtype) -> None:
    assert own is not None
    logits = reference(hidden, head)[PROBED]
    full, tokens = (logits / temperature).log_softmax(-1), TOKENS[PROBED, None]
    assert SHARED.holds(own.top_ids).all()
    assert_same(full.gather(1, own.top_ids), best(full, 7), dtype)
    assert_same(own.top_logprobs, best(full, 7), dtype)
    assert_same(own.sampled, full.gather(1, tokens).squeeze(1), dtype)
    assert_same(own.untempered, logits.log_softmax(-1).gather(1, tokens).squeeze(1), dtype)
    assert_same(own.entropy, -(full.exp() * full).sum(-1), dtype)
    assert_same(own.normaliser, (logits / temperature).logsumexp(-1), dtype)
    others = support()[PROBED]
    assert_same(logprobs_at(own, hidden[PROBED], head, others, temperature), full.gather(1, others), dtype)


@dtypes
@kinds
@pytest.mark.parametrize("chunk", [1, 5, 256])
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_all_of_it_is_what_full_logits_say(
    kind: str, dtype: torch.dtype, chunk: int, temperature: float, rows: list[int]
) -> None:
    hidden, head = make(kind, dtype)
    full = (reference(hidden, head) / temperature).log_softmax(-1)
    found = one_pass(hidden, head, TOKENS, shared=SHARED, temperature=temperature, chunk=chunk, **ALL)
    assert sum(rows) == N and max(rows) == min(chunk, N)
    assert found.top_ids is not None and found.sampled is not None and found.normaliser is not None
    assert found.entropy is not None
    assert SHARED.holds(found.top_ids).all()
    assert_same(full.gather(1, found.top_ids), best(full, 5), dtype)
    assert_same(found.sampled, full.gather(1, TOKENS[:, None]).squeeze(1), dtype)
    assert_same(found.entropy, -(full.exp() * full).sum(-1), dtype)
    assert torch.equal(found.normaliser, log_normaliser(hidden, head, temperature, chunk))
    assert not found.normaliser.requires_grad
    assert_probed(found.probe, hidden, head, temperature, dtype)


@pytest.mark.parametrize(
    ("asked", "named", "count"),
    [
        ({}, set(), 0),
        ({"k": 3}, {"top_ids"}, N),
        ({"entropy": True}, {"entropy"}, N),
        ({"normaliser": True}, {"normaliser", "sampled"}, N),
        ({"probe_at": PROBED, "probe_k": 7}, {"probe"}, len(PROBED)),
        ({"probe_at": PROBED, "probe_k": 7, "k": 5}, {"probe", "top_ids"}, N),
    ],
)
def test_nothing_else_is_computed(asked: dict[str, Any], named: set[str], count: int, rows: list[int]) -> None:
    hidden, head = make("all")
    found = one_pass(hidden, head, TOKENS, shared=SHARED, chunk=4, **asked)
    assert sum(rows) == count
    assert {name for name in NAMES if getattr(found, name) is not None} == named
    if "probe" in named:
        assert_probed(found.probe, hidden, head, 1.0, torch.float64)


@pytest.mark.parametrize("everywhere", [False, True])
def test_no_positions(everywhere: bool) -> None:
    hidden, head = make()
    none = torch.zeros(0, dtype=torch.long)
    asked: dict[str, Any] = ALL if everywhere else {"probe_k": 7}
    found: Found = one_pass(hidden[:0], head, none, shared=SHARED, **asked | {"probe_at": none})
    assert found.probe is not None
    assert found.probe.top_ids.shape == (0, 7)
    assert not everywhere or (found.top_ids is not None and found.top_ids.shape == (0, 5))
    of_none = one_pass(hidden, head, TOKENS, shared=SHARED, k=2, probe_at=none, probe_k=7, chunk=5).probe
    assert of_none is not None
    assert of_none.top_ids.shape == (0, 7)


def test_padding_of_the_head_keeps_its_mass() -> None:
    hidden, head = make()

    def summed(k: int) -> Tensor:
        ids = one_pass(hidden, head, TOKENS, shared=SharedVocabulary(k), k=k).top_ids
        assert ids is not None
        return support_values(hidden, head, ids, 1.0, full_vocabulary=False).logsumexp(-1)

    normaliser = log_normaliser(hidden, head)
    assert (summed(30) < normaliser - 1e-6).all()
    torch.testing.assert_close(summed(V), normaliser)


def test_more_ids_than_there_are_is_refused() -> None:
    hidden, head = make()
    with pytest.raises(ConfigError, match=r"`loss\.k` to be from 1 to the 23 ids"):
        one_pass(hidden, head, TOKENS, shared=SHARED, k=24)
    assert K < 23
