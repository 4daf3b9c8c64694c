"""What a loss asks for."""

import pytest

from opdlight.losses import Needs, SupportKind


@pytest.mark.parametrize(
    ("kind", "chosen_by", "with_sampled"),
    [
        ("teacher_top_k", "teacher", False),
        ("student_top_k", "student", False),
        ("teacher_top_k_and_sampled", "teacher", True),
        ("student_top_k_and_sampled", "student", True),
        ("teacher_nucleus", "teacher", False),
        ("full_vocabulary", None, False),
    ],
)
def test_a_kind_of_support_says_who_chooses(kind: str, chosen_by: str | None, with_sampled: bool) -> None:
    needs = Needs(support=kind, k=2)  # type: ignore[arg-type]  # a string is taken, too
    assert needs.support is SupportKind(kind)
    assert (needs.chosen_by, needs.support.with_sampled) == (chosen_by, with_sampled)
    with pytest.raises(ValueError, match="'top_k' is not a valid SupportKind"):
        Needs(support="top_k")  # type: ignore[arg-type]
