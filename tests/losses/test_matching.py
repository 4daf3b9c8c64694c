"""Every objective of the family against the reference, and what must and must not change it."""

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from opdlight.losses import SupportMatching
from opdlight.losses.base import SupportName
from opdlight.losses.divergences import BY_NAME, DivergenceName
from opdlight.losses.outside import OutsideName
from tests.losses.logit_tables import V, batch_of, example, scores_of, value_and_gradient
from tests.losses.reference import FORMULAS, reference, softmax


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


def test_reference_softmax_is_one() -> None:
    assert float(softmax(torch.tensor([1.0, 2.0, -3.0])).sum()) == pytest.approx(1.0)
