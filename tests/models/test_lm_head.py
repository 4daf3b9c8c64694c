"""The sparse and chunked head against full logits: values, every gradient, and what is never made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opdlight.losses.divergences import reverse_kl
from opdlight.losses.outside import renormalised
from opdlight.models import support_product
from opdlight.models.lm_head import (
    LMHead,
    log_normaliser,
    support_logits,
    token_logprobs,
)

N, K, D, V = 13, 4, 6, 40
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 6e-2}
KINDS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": 0.5, "softcap": 3.0},
}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
kinds = pytest.mark.parametrize("kind", list(KINDS))


def make(kind: str = "plain", dtype: torch.dtype = torch.float64, v: int = V) -> tuple[Tensor, LMHead]:
    """Hidden states and a head, both leaves with gradient."""
    generator = torch.Generator().manual_seed(5)
    settings = dict(KINDS[kind])
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(v, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, LMHead(weight=weight, bias=bias if settings.pop("bias", False) else None, **settings)  # type: ignore[arg-type]


def support(k: int = K, v: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.stack([torch.randperm(v, generator=generator)[:k] for _ in range(N)])


def reference(hidden: Tensor, head: LMHead) -> Tensor:
    """All logits, written out."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden @ head.weight.T).to(wide)
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def gradients(value: Tensor, hidden: Tensor, head: LMHead) -> list[Tensor]:
    """Of a fixed random combination of the outputs."""
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
    leaves = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    return list(torch.autograd.grad((value * direction).sum(), leaves, retain_graph=True))


def assert_same(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.double(), expected.double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def matched(logits: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
    """ℓ of local support matching."""
    return reverse_kl(renormalised(logits, valid), renormalised(log_q.to(logits.dtype), valid))


@pytest.fixture(params=["union", "gather"])
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(support_product, "GATHER_RATIO", 10**9 if request.param == "union" else 0)
    return str(request.param)


@dtypes
@kinds
@pytest.mark.parametrize("part", [1, 100, 2**23])
def test_support_logits_equal_full_logits(
    strategy: str, kind: str, dtype: torch.dtype, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_product, "PART_ELEMENTS", part)
    hidden, head = make(kind, dtype)
    ids = support()
    ids[2] = ids[2, 0]  # the same id K times
    got, expected = support_logits(hidden, head, ids), reference(hidden, head).gather(-1, ids)
    assert got.dtype is torch.promote_types(dtype, torch.float32)
    assert_same(got, expected, dtype)
    for mine, theirs in zip(gradients(got, hidden, head), gradients(expected, hidden, head), strict=True):
        assert mine.dtype is dtype
        assert_same(mine, theirs, dtype)


@dtypes
@kinds
def test_loss_and_gradients_through_the_sparse_head(strategy: str, kind: str, dtype: torch.dtype) -> None:
    hidden, head = make(kind, dtype)
    ids, valid = support(), torch.ones(N, K, dtype=torch.bool)
    valid[3, 1:] = False
    log_q = torch.randn(N, K, generator=torch.Generator().manual_seed(8)).log_softmax(-1)
    got = matched(support_logits(hidden, head, ids) / 1.7, log_q, valid)
    expected = matched(reference(hidden, head).gather(-1, ids) / 1.7, log_q, valid)
    assert_same(got, expected, dtype)
    for mine, theirs in zip(gradients(got, hidden, head), gradients(expected, hidden, head), strict=True):
        assert_same(mine, theirs, dtype)


def test_gradients_equal_finite_differences(strategy: str) -> None:
    hidden, head = make("all")
    assert head.bias is not None
    ids = support()

    def logits(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return support_logits(h, LMHead(weight=w, bias=b, scale=0.5, softcap=3.0), ids)

    assert torch.autograd.gradcheck(logits, (hidden, head.weight, head.bias))


def test_order_of_the_support_only_orders_the_logits(strategy: str) -> None:
    hidden, head = make()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        support_logits(hidden, head, support()[:, order]), support_logits(hidden, head, support())[:, order]
    )


def test_support_of_the_whole_vocabulary_is_the_exact_divergence(strategy: str) -> None:
    hidden, head = make("bias")
    log_q = torch.randn(N, V, generator=torch.Generator().manual_seed(9), dtype=torch.float64).log_softmax(-1)
    ids = support(V)
    got = matched(support_logits(hidden, head, ids), log_q.gather(-1, ids), torch.ones_like(ids).bool())
    log_pi = reference(hidden, head).log_softmax(-1)
    torch.testing.assert_close(got, (log_pi.exp() * (log_pi - log_q)).sum(-1))


def test_frozen_head_gets_no_gradient(strategy: str) -> None:
    hidden, head = make()
    frozen = LMHead(weight=head.weight.detach())
    (gradient,) = torch.autograd.grad(support_logits(hidden, frozen, support()).sum(), [hidden])
    (expected,) = torch.autograd.grad(reference(hidden, frozen).gather(-1, support()).sum(), [hidden])
    torch.testing.assert_close(gradient, expected)


def test_frozen_hidden_states_leave_the_gradient_of_the_head(strategy: str) -> None:
    hidden, head = make()
    (gradient,) = torch.autograd.grad(support_logits(hidden.detach(), head, support()).sum(), [head.weight])
    (expected,) = torch.autograd.grad(reference(hidden, head).gather(-1, support()).sum(), [head.weight])
    torch.testing.assert_close(gradient, expected)


def test_no_positions(strategy: str) -> None:
    hidden, head = make()
    none = hidden[:0]
    ids = torch.zeros(0, K, dtype=torch.long)
    total = support_logits(none, head, ids).sum() + log_normaliser(none, head).sum()
    total = total + token_logprobs(none, head, ids[:, 0]).sum()
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@dtypes
@kinds
@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_normaliser_and_token_logprobs_equal_full_logits(kind: str, dtype: torch.dtype, chunk: int) -> None:
    hidden, head = make(kind, dtype)
    tokens, temperature = support()[:, 0], 0.7
    full = reference(hidden, head) / temperature
    for got, expected in (
        (log_normaliser(hidden, head, temperature, chunk), full.logsumexp(-1)),
        (
            token_logprobs(hidden, head, tokens, temperature, chunk),
            full.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1),
        ),
    ):
        assert_same(got, expected, dtype)
        for mine, theirs in zip(gradients(got, hidden, head), gradients(expected, hidden, head), strict=True):
            assert_same(mine, theirs, dtype)


def test_token_logprobs_are_never_positive_in_bfloat16() -> None:
    hidden, head = make(dtype=torch.bfloat16)
    sharp = LMHead(weight=head.weight * 20)
    best = reference(hidden, sharp).argmax(-1)
    assert (token_logprobs(hidden, sharp, best) <= 0).all()


def large(frozen: bool = False) -> tuple[Tensor, LMHead]:
    """Hidden states and a head in bfloat16 with logits of about ±30, where bfloat16 has steps of 1/8."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 64, generator=generator) * 2 for n in (512, 90))
    weight = weight.bfloat16().requires_grad_(not frozen)
    return hidden.bfloat16().requires_grad_(), LMHead(weight=weight)


def test_bfloat16_logits_are_not_rounded_to_bfloat16(strategy: str) -> None:
    hidden, head = large()
    exact = hidden.double() @ head.weight.double().T
    assert float(exact.detach().abs().max()) > 16
    ids = torch.arange(90).expand(512, 90)
    for got in (head.logits(hidden), support_logits(hidden, head, ids)):
        assert got.dtype is torch.float32
        torch.testing.assert_close(got.double(), exact, atol=1e-4, rtol=1e-6)


def test_gradients_of_a_bfloat16_head_are_summed_in_float32(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over chunks, parts and functions; what is left is one rounding at the end (and those of each factor)."""
    monkeypatch.setattr(support_product, "PART_ELEMENTS", 2000)
    hidden, head = large()
    ids = torch.arange(90).expand(512, 90)
    signs = torch.where(torch.arange(512) % 2 == 0, 1.0, 0.5)  # exact in bfloat16

    def total(h: Tensor, of: LMHead) -> Tensor:
        rows = of.logits(h).double().sum(-1) if h.dtype is torch.float64 else None
        parts = [of.logits(part).sum(-1) for part in h.split(8)] if rows is None else [2 * rows]
        if rows is None:
            parts = [torch.cat(parts) + support_logits(h, of, ids).sum(-1)]
        return (parts[0] * signs).sum()

    (got,) = torch.autograd.grad(total(hidden, head), [head.weight])
    fine = head.weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(total(hidden.detach().double(), LMHead(weight=fine)), [fine])
    assert got.dtype is torch.bfloat16
    assert torch.equal(got, expected.float().bfloat16())


def test_a_copied_weight_hands_its_gradient_to_the_float32_one() -> None:
    """As under autocast: products of the bfloat16 copy, the gradient of the float32 weight unrounded."""
    hidden, low = large()
    weight = (low.weight.detach().float() + 1e-4).requires_grad_()
    head = LMHead(weight=weight.detach().bfloat16(), gradient_to=weight)
    value = log_normaliser(hidden, head, chunk=7).sum() + support_logits(hidden, head, torch.zeros(512, 1).long()).sum()
    (got,) = torch.autograd.grad(value, [weight])
    fine = head.weight.double().requires_grad_()
    exact = hidden.detach().double() @ fine.T
    (expected,) = torch.autograd.grad(exact.logsumexp(-1).sum() + exact[:, 0].sum(), [fine])
    assert got.dtype is torch.float32
    assert float((got - expected).norm() / expected.norm()) < 2e-3  # of probabilities rounded to bfloat16


class Sizes(TorchDispatchMode):
    """Records the shape of every tensor that any operation makes, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.shapes.add(tuple(value.shape))
        return result


def test_renormalised_step_makes_nothing_of_width_v_but_the_gradient_of_the_head(strategy: str) -> None:
    v = 5000
    hidden, head = make(v=v)
    with Sizes() as sizes:
        logits = support_logits(hidden, head, support())
        matched(logits, torch.zeros(N, K), torch.ones(N, K, dtype=torch.bool)).sum().backward()
    wide = {shape for shape in sizes.shapes if v in shape}
    assert wide == {(v, D)}


def test_frozen_head_makes_nothing_of_width_v_at_all(strategy: str) -> None:
    v = 5000
    hidden, head = make(v=v)
    frozen = LMHead(weight=head.weight.detach())
    with Sizes() as sizes:
        support_logits(hidden, frozen, support()).sum().backward()
    assert not {shape for shape in sizes.shapes if v in shape}


def test_full_width_functions_hold_one_chunk_at_a_time() -> None:
    v = 5000
    hidden, head = make(v=v)
    with Sizes() as sizes:
        (log_normaliser(hidden, head, 1.0, 3) + token_logprobs(hidden, head, support()[:, 0], 1.0, 3)).sum().backward()
    transposed = (D, v)  # a view of the weight
    assert max(s[0] for s in sizes.shapes - {transposed} if len(s) == 2 and s[1] == v) == 3


@pytest.mark.parametrize("function", [log_normaliser, lambda h, head: token_logprobs(h, head, support()[:, 0])])
def test_full_width_functions_keep_no_logits_for_the_backward_pass(function: Callable[..., Tensor]) -> None:
    v = 5000
    hidden, head = make("all", v=v)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(hidden, head)
    assert (N, v) not in kept
