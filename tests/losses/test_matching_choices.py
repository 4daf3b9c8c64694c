"""Which choices of support matching are refused, and what it needs."""

from typing import Any

import pytest

from opdlight.losses import SupportMatching
from opdlight.losses.divergences import BY_NAME


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
