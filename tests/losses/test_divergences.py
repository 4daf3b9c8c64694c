"""Divergences against those of other libraries, and against one another."""

import pytest
import torch

from opdlight.losses import SupportMatching
from opdlight.losses.base import SupportName
from tests.losses.logit_tables import example, value_and_gradient


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
