"""Every objective of the family against the reference, and what must and must not change it."""

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from opdlight.losses import SupportMatching
from opdlight.losses.base import SupportName
from opdlight.losses.divergences import BY_NAME, DivergenceName
from opdlight.losses.outside import OutsideName
from tests.losses.reference import FORMULAS, reference, softmax
from tests.losses.tables import batch_of, scores_of

V = 9


def choices(**fixed: Any) -> Iterator[dict[str, Any]]:
    """Every combination of the three choices, sensible or not."""
    names = itertools.product(get_args(SupportName), FORMULAS.items(), get_args(OutsideName))
    for support, (divergence, formula), outside in names:
        found = {"support": support, "divergence": divergence, "outside": outside, "k": 4}
        found |= {"mix": 0.3} if len(inspect.signature(formula).parameters) == 3 else {}
        found |= {"nucleus": 0.8} if support == "teacher_nucleus" else {}
        yield found | fixed


def family() -> list[SupportMatching]:
    """Those that are not refused."""
    found = []
    for choice in choices():
        try:
            found.append(SupportMatching(**choice))
        except ValueError:
            continue
    return found


def name(loss: SupportMatching) -> str:
    return f"{loss.support}-{getattr(loss.divergence, '__name__', loss.divergence)}-{loss.outside}"


FAMILY = family()
every_loss = pytest.mark.parametrize("loss", FAMILY, ids=name)


def example(dtype: torch.dtype = torch.float64, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits [N, V], sampled tokens [N]; tokens lie inside and outside every support."""
    generator = torch.Generator().manual_seed(5)
    z, q = (torch.randn(n, V, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    return z.to(dtype), q.to(dtype), torch.randint(V, (n,), generator=generator)


def value_and_gradient(loss: SupportMatching, z: Tensor, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    per_token = loss(scores_of(loss.needs, z, q, y), batch_of(y))
    per_token.sum().backward()
    assert z.grad is not None
    return per_token.detach(), z.grad


def test_every_name_has_its_formula() -> None:
    assert list(BY_NAME) == list(get_args(DivergenceName))
    assert set(BY_NAME) <= set(FORMULAS)


def test_the_family_has_the_members_that_make_sense() -> None:
    # 6 supports × the divergences of distributions, renormalised; 5 supports × as many with a tail bucket; 3 × 2 with a
    # sampled tail (the sampled token outside, so no ∪ {y}); 5 × 3 truncated
    of_distributions = len(FORMULAS) - len({"stop_gradient", "generalised_kl"})
    assert len(FAMILY) == 6 * of_distributions + 5 * of_distributions + 6 + 15


@every_loss
def test_value_and_gradient_equal_the_reference(loss: SupportMatching) -> None:
    z, q, y = example()
    value, gradient = value_and_gradient(loss, z, q, y)
    for i in range(len(z)):
        expected, slopes = reference(loss, z[i], q[i], int(y[i]))
        torch.testing.assert_close(value[i], expected, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradient[i], slopes, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [x for x in FAMILY if x.outside != "sampled_tail" and x.divergence != "stop_gradient"],  # those stop gradients
    ids=name,
)
def test_gradient_equals_finite_differences(loss: SupportMatching) -> None:
    z, q, y = example(n=3)
    if loss.support.startswith("student"):
        z[:, :4] += 3  # a small step must not change the student's choice
    assert torch.autograd.gradcheck(lambda x: loss(scores_of(loss.needs, x, q, y), batch_of(y)), z.requires_grad_())


@every_loss
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 4e-2)], ids=["float32", "bfloat16"]
)
def test_lower_precision_stays_close(loss: SupportMatching, dtype: torch.dtype, tolerance: float) -> None:
    z, q, y = example(dtype)
    value, gradient = value_and_gradient(loss, z, q, y)
    exact, slope = value_and_gradient(loss, z.double(), q.double(), y)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value.double(), exact, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradient.double(), slope, atol=tolerance, rtol=tolerance)


@every_loss
def test_equal_models_have_nothing_to_learn_unless_the_theory_says_so(loss: SupportMatching) -> None:
    z, _, y = example()
    value, gradient = value_and_gradient(loss, z, z, y)
    assert not value.any()
    if loss.divergence == "reverse_kl" and loss.outside in ("ignore", "sampled_tail"):
        # the gradient of Σ_S π: it pushes mass out of the support (or into it, going down) even where π = q
        x = z.clone().requires_grad_()
        ids = scores_of(loss.needs, z, z, y).support
        assert ids is not None
        mass = (x.softmax(-1).gather(1, ids.token_ids) * ids.valid).sum()
        torch.testing.assert_close(gradient, torch.autograd.grad(mass, x)[0])
        assert gradient.abs().max() > 1e-2
    else:  # to the bit, in any precision
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            value, gradient = value_and_gradient(loss, *(2 * [z.to(dtype)]), y)
            assert not value.any()
            assert not gradient.any()


@every_loss
def test_invalid_entries_are_as_if_left_out_whatever_they_hold(loss: SupportMatching) -> None:
    z, q, y = example()
    scores = scores_of(loss.needs, z, q, y)
    assert scores.support is not None
    assert scores.student_logits is not None
    at = [0, 2]
    out = torch.tensor([v not in at for v in range(scores.support.k)])
    valid = scores.support.valid & ~out
    masked = replace(
        scores,
        support=replace(
            scores.support, valid=valid, teacher_logits=scores.support.teacher_logits.masked_fill(out, math.nan)
        ),
        student_logits=scores.student_logits.masked_fill(out, math.inf),
    )
    short = replace(
        scores,
        support=replace(
            scores.support,
            **{f: getattr(scores.support, f)[:, at] for f in ("token_ids", "teacher_logits", "valid")},
        ),
        student_logits=scores.student_logits[:, at],
    )
    torch.testing.assert_close(loss(masked, batch_of(y)), loss(short, batch_of(y)))


@every_loss
def test_order_of_the_support_does_not_matter(loss: SupportMatching) -> None:
    z, q, y = example()
    scores = scores_of(loss.needs, z, q, y)
    assert scores.support is not None
    assert scores.student_logits is not None
    order = torch.randperm(scores.support.k, generator=torch.Generator().manual_seed(1))
    permuted = replace(
        scores,
        support=replace(
            scores.support,
            **{f: getattr(scores.support, f)[:, order] for f in ("token_ids", "teacher_logits", "valid")},
        ),
        student_logits=scores.student_logits[:, order],
    )
    torch.testing.assert_close(loss(permuted, batch_of(y)), loss(scores, batch_of(y)))


@pytest.mark.parametrize("loss", [x for x in FAMILY if x.support != "full_vocabulary"], ids=name)
def test_a_support_as_wide_as_the_vocabulary_is_the_exact_divergence(loss: SupportMatching) -> None:
    z, q, y = example()
    wide = replace(loss, k=V, nucleus=1.0 if loss.nucleus else None)
    value, gradient = value_and_gradient(wide, z, q, y)
    exact = "reverse_kl" if loss.divergence in ("stop_gradient", "generalised_kl") else loss.divergence
    full = SupportMatching(support="full_vocabulary", divergence=exact, mix=loss.mix)
    expected, slope = value_and_gradient(full, z, q, y)
    rounding = 1e-4 if loss.outside == "tail_bucket" else 1e-9  # the tail is 0, and counts as SMALLEST_TAIL
    torch.testing.assert_close(value, expected, atol=rounding, rtol=rounding)
    torch.testing.assert_close(gradient, slope, atol=rounding, rtol=rounding)


def test_reverse_kl_of_the_full_vocabulary_is_torchs() -> None:
    z, q, y = example()
    value, _ = value_and_gradient(SupportMatching(support="full_vocabulary"), z, q, y)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), z.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(value, expected.sum(-1))


def test_jsd_is_trls() -> None:
    trl = pytest.importorskip("trl.experimental.gkd", reason="TRL is a development dependency")
    z, q, y = example()
    loss = SupportMatching(support="full_vocabulary", divergence="jsd", mix=0.3)
    value, _ = value_and_gradient(loss, z, q, y)
    theirs = trl.GKDTrainer.generalized_jsd_loss(z.unsqueeze(0), q.unsqueeze(0), beta=0.3, reduction="sum")
    assert value.sum().item() == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("end", ["forward_kl", "reverse_kl"])
def test_jsd_tends_to_the_two_kls(end: str) -> None:
    z, q, y = example()
    mix = 1e-6 if end == "forward_kl" else 1 - 1e-6
    value, _ = value_and_gradient(SupportMatching(divergence="jsd", mix=mix, k=4), z, q, y)
    expected, _ = value_and_gradient(SupportMatching(divergence=end, k=4), z, q, y)  # type: ignore[arg-type]
    torch.testing.assert_close(value / min(mix, 1 - mix), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("support", ["teacher_top_k", "student_top_k", "teacher_nucleus", "teacher_top_k_and_sampled"])
def test_generalised_kl_and_stop_gradient_have_the_same_gradient(support: SupportName) -> None:
    z, q, y = example()
    kind = {"support": support, "k": 4, "outside": "ignore", "nucleus": 0.8 if support == "teacher_nucleus" else None}
    one = value_and_gradient(SupportMatching(divergence="generalised_kl", **kind), z, q, y)  # type: ignore[arg-type]
    other = value_and_gradient(SupportMatching(divergence="stop_gradient", **kind), z, q, y)  # type: ignore[arg-type]
    torch.testing.assert_close(one[1], other[1])
    assert (one[0] >= 0).all()
    assert not torch.allclose(one[0], other[0])


def expectation(loss: SupportMatching, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """E over y ~ π of ℓ and of its gradient, by enumeration: z, q [1, V]."""
    y = torch.arange(V)
    pi = z.softmax(-1).squeeze(0)
    x = z.expand(V, -1).clone().requires_grad_()
    per_token = loss(scores_of(loss.needs, x, q.expand(V, -1), y), batch_of(y))
    (gradient,) = torch.autograd.grad((pi * per_token).sum(), x)
    return (pi * per_token).sum().detach(), gradient.sum(0)


@pytest.mark.parametrize("support", ["teacher_top_k", "student_top_k"])
def test_sampled_tail_is_unbiased_with_stop_gradient_and_in_value_alone_with_reverse_kl(support: SupportName) -> None:
    z, q, y = (x[:1] for x in example())
    exact, slope = value_and_gradient(SupportMatching(support="full_vocabulary"), z, q, y)
    stopped = SupportMatching(support=support, k=4, outside="sampled_tail", divergence="stop_gradient")
    value, gradient = expectation(stopped, z, q)
    torch.testing.assert_close(value, exact[0])
    torch.testing.assert_close(gradient, slope[0])

    plain = replace(stopped, divergence="reverse_kl")
    value, gradient = expectation(plain, z, q)
    torch.testing.assert_close(value, exact[0])
    x = z.clone().requires_grad_()
    ids = scores_of(plain.needs, z, q, y).support
    assert ids is not None
    (of_mass,) = torch.autograd.grad(x.softmax(-1).gather(1, ids.token_ids).sum(), x)
    torch.testing.assert_close(gradient - slope[0], of_mass[0])


def test_row_without_a_valid_entry_has_no_loss_and_no_gradient() -> None:
    z, q, y = example()
    for loss in (x for x in FAMILY if x.outside in ("renormalise", "ignore")):
        z = z.detach().requires_grad_()
        scores = scores_of(loss.needs, z, q, y)
        assert scores.support is not None
        nothing = replace(scores, support=replace(scores.support, valid=torch.zeros_like(scores.support.valid)))
        value = loss(nothing, batch_of(y))
        assert value.abs().max() < 1e-12
        (gradient,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
        assert gradient is None or not gradient.any()


@every_loss
def test_far_apart_models_stay_finite(loss: SupportMatching) -> None:
    z = torch.tensor([[500.0, -500.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    value, gradient = value_and_gradient(loss, z, -z, torch.tensor([1]))
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_a_tail_too_small_for_float32_still_pulls() -> None:
    z = torch.tensor([[20.0, 0.0, -1.0]], requires_grad=True)  # π(2) = e⁻²¹: the tail of {0, 1}
    q = torch.tensor([[1.0, 0.0, 3.0]])
    loss = SupportMatching(k=2, support="student_top_k", outside="tail_bucket", divergence="forward_kl")
    (gradient,) = torch.autograd.grad(
        loss(scores_of(loss.needs, z, q, torch.tensor([0])), batch_of(torch.tensor([0]))), z
    )
    # ∂/∂z_2 of −q(tail)·log max(tail, 1e−6) = −q(2)·π(2)(1 − π(2))/1e−6 and nothing else is of that size
    assert gradient[0, 2] == pytest.approx(-float(softmax(q[0])[2]) * math.exp(-21) / 1e-6, rel=0.02)


def test_nucleus_may_hold_one_token_or_fewer_than_its_mass() -> None:
    q = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    loss = SupportMatching(support="teacher_nucleus", nucleus=0.9, k=3)
    support = scores_of(loss.needs, q, q, torch.zeros(2, dtype=torch.long)).support
    assert support is not None
    assert support.valid.tolist() == [[True, False, False], [True, True, True]]  # ¾ of the mass: k is the limit


def test_sampled_token_joins_the_support_once() -> None:
    z, q, y = example()
    loss = SupportMatching(support="teacher_top_k_and_sampled", k=4)
    support = scores_of(loss.needs, z, q, y).support
    assert support is not None
    for ids, valid, token in zip(support.token_ids.tolist(), support.valid.tolist(), y.tolist(), strict=True):
        kept = [i for i, v in zip(ids, valid, strict=True) if v]
        assert sorted(set(kept)) == sorted(kept)
        assert token in kept
    assert 0 < support.valid[:, -1].sum() < len(y)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"divergence": "hellinger"}, "to be one of reverse_kl, .* or a function, but got 'hellinger'"),
        ({"divergence": BY_NAME["forward_kl"], "outside": "ignore"}, "it is no divergence"),
        ({"divergence": BY_NAME["forward_kl"], "mix": 0.5}, r"`loss\.mix` to be null"),
        ({"k": 1}, r"`loss\.k` to be at least 2"),
        ({"k": 0, "outside": "tail_bucket"}, r"`loss\.k` to be at least 1"),
        ({"divergence": "stop_gradient"}, "has the gradient of reverse_kl"),
        ({"divergence": "generalised_kl", "outside": "tail_bucket"}, "already add up to 1"),
        ({"divergence": "forward_kl", "outside": "sampled_tail"}, "that of the reverse KL"),
        ({"support": "teacher_top_k_and_sampled", "outside": "sampled_tail"}, "always lies inside"),
        ({"support": "full_vocabulary", "outside": "tail_bucket"}, "nothing lies outside"),
        ({"divergence": "forward_kl", "outside": "ignore"}, "it is no divergence"),
        ({"divergence": "jsd"}, r"`loss\.mix` to be in \(0, 1\).*got None"),
        ({"mix": 0.5}, r"`loss\.mix` to be null"),
        ({"divergence": "jsd", "mix": 1.0}, r"`loss\.mix` to be in \(0, 1\), but got 1\.0"),
        ({"support": "teacher_nucleus"}, r"`loss\.nucleus` to be in \(0, 1\].*got None"),
        ({"nucleus": 0.5}, r"`loss\.nucleus` to be null"),
        ({"support": "teacher_nucleus", "nucleus": 1.5}, r"`loss\.nucleus` to be in \(0, 1\], but got 1\.5"),
    ],
)
def test_choices_that_make_no_sense_are_refused_with_the_reason(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SupportMatching(**wrong)


def test_lsm_needs_the_support_alone() -> None:
    needs = SupportMatching(k=7).needs
    assert (needs.support, needs.k, needs.normaliser, needs.sampled) == ("teacher_top_k", 7, False, False)


def test_reference_softmax_is_one() -> None:
    assert float(softmax(torch.tensor([1.0, 2.0, -3.0])).sum()) == pytest.approx(1.0)
