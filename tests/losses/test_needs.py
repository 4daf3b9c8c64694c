"""What a loss asks for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from opdlight.losses import ImportanceWeighted, Loss, Needs, SampledToken, SupportKind, SupportMatching, TurnWeighted
from tests.losses.logit_tables import batch_of, example, scores_of


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


@pytest.mark.parametrize("file", sorted(Path("conf/loss").glob("*.yaml")), ids=lambda file: file.stem)
def test_rows_may_be_parted_exactly_where_no_token_needs_another_row(file: Path) -> None:
    config = OmegaConf.load(file)
    if "k" in config:
        config["k"] = 4  # of the V tokens of the example
    loss: Loss = instantiate(config)
    z, q, y = example(n=12)
    turn, at = torch.arange(12) // 4, torch.arange(12)

    def found(*parts: Tensor) -> tuple[Tensor, Tensor]:
        x = z.clone().requires_grad_()
        values = []
        for part in parts:
            batch = batch_of(y[part], turn_index=turn[part], token_position=at[part])
            values.append(loss(scores_of(loss.needs, x[part], q[part], y[part]), batch))
        value = torch.cat(values)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    whole, parted = found(at), found(*at.split(4))
    same = all(torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in zip(whole, parted, strict=True))
    assert same is not loss.needs.whole_trajectories


def test_a_loss_of_ones_own_gets_whole_trajectories_unless_it_says_otherwise() -> None:
    assert Needs(sampled=True).whole_trajectories
    inner = SimpleNamespace(needs=Needs(sampled=True))
    assert ImportanceWeighted(loss=inner).needs.whole_trajectories  # type: ignore[arg-type]
    assert not ImportanceWeighted(loss=SupportMatching()).needs.whole_trajectories
    assert TurnWeighted(loss=SupportMatching()).needs.whole_trajectories
    assert [SampledToken(gamma=g).needs.whole_trajectories for g in (0.0, 0.5)] == [False, True]
