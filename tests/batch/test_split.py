"""Micro-batches that do not fit into memory are split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from opdlight.batch.collate import Collate
from opdlight.batch.split import halved
from opdlight.distillation.out_of_memory import is_out_of_memory
from opdlight.errors import TrainingError
from opdlight.losses import SupportMatching
from opdlight.types import SharedVocabulary, Status, SupportScores, TokenBatch, Trajectory, Turn
from tests.distillation.one_update import fit, parts


def made(*rows: list[int]) -> list[Trajectory]:
    """A trajectory for each list: rows of a prompt [1, 2] and so many tokens; no row begins with the one before."""
    turns = [
        [Turn(prompt_ids=[1, 2], completion_ids=[9] * n, sampled_logprobs=[0.0] * n, finish_reason="stop",
              policy_version=0, reward=0.0) for n in lengths]
        for lengths in rows
    ]  # fmt: skip
    return [
        Trajectory(task="a", group=i, seed=i, turns=t, reward=float(i), status=Status.FAILURE)
        for i, t in enumerate(turns)
    ]


COLLATE = Collate(tasks=("a",), shared=SharedVocabulary(99), micro_batch_tokens=10**6)


FLAT = ("target_ids", "col_index", "trajectory_index", "token_position", "group_advantage")


def test_half_the_tokens_and_the_same_positions() -> None:
    (batch,) = COLLATE(made([4], [4], [4], [6], [6]))  # 5 rows of 8
    parts, budget = halved([batch], 10**6, whole_trajectories=True)
    assert budget == 20
    assert [p.input_ids.shape[0] * p.input_ids.shape[1] for p in parts] == [16, 18]  # 2 × 8, 3 × 6
    assert {p.global_tokens for p in parts} == {batch.num_tokens} == {24}
    for name in FLAT:
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))


def test_rows_of_one_trajectory_are_parted_if_the_loss_allows_it() -> None:
    (batch,) = COLLATE(made([6, 4, 4]))  # 3 rows of 8
    with pytest.raises(TrainingError, match=r"one trajectory a micro-batch \(24 tokens, which the loss needs whole\)"):
        halved([batch], 10**6, whole_trajectories=True)
    parts, budget = halved([batch], 10**6, whole_trajectories=False)
    assert budget == 12
    assert [p.attention_mask.sum(1).tolist() for p in parts] == [[8], [6, 6]]
    assert {p.global_tokens for p in parts} == {14}
    for name in FLAT:
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))


def test_packed_rows_are_counted_without_padding() -> None:
    (batch,) = replace(COLLATE, packed=True)(made([8], [2], [2]))  # 10 + 4 + 4
    parts, budget = halved([batch], 10**6, whole_trajectories=False)
    assert budget == 9
    assert [p.model_tokens for p in parts] == [10, 8]  # the longer row is not divided, the others fit
    assert all(p.packed for p in parts)


def test_one_row_cannot_be_divided() -> None:
    batches = [batch for n in (4, 6) for batch in COLLATE(made([n]))]
    with pytest.raises(TrainingError, match=r"with one row a micro-batch \(8 tokens\). Lower trajectory_tokens"):
        halved(batches, 10**6, whole_trajectories=False)


def test_what_a_lack_of_memory_is() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


class Narrow:
    """A loss on a device whose memory ends at one of its calls, in the backward pass."""

    needs = SupportMatching(k=8).needs

    def __init__(self, ends_at: int) -> None:
        self.ends_at, self.calls, self.failed = ends_at, 0, 0

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> torch.Tensor:
        self.calls += 1
        loss = SupportMatching(k=8)(scores, batch)
        if self.calls == self.ends_at:
            self.failed += 1
            loss.register_hook(self.fail)
        return loss

    def fail(self, gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


class Tokens(L.Callback):
    """How many tokens a step had, and how many its probes are of."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((outputs["step"].loss_tokens, sum(r.loss_tokens for r in outputs["step"].probes)))


@pytest.mark.parametrize("ends_at", [1, 2, 3])  # in the first micro-batch, in the second, in the next update
def test_training_goes_on_with_half_the_budget(
    ends_at: int, folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = Tokens()

    def weights(loss: Any) -> tuple[list[torch.Tensor], Any, Any]:
        module, data, _ = parts(folders, loss=loss, micro_batch_tokens=200)  # two micro-batches a step
        trainer = fit(module, data, tmp_path, watch=[tokens])
        return [p.detach().clone() for p in module.student.parameters()], module, trainer

    plain, module, _ = weights(SupportMatching(k=8))
    assert module.out_of_memory.count == 0
    loss = Narrow(ends_at)
    narrow, module, trainer = weights(loss)
    assert loss.failed == module.out_of_memory.count == 1  # the smaller budget holds in the steps that follow
    assert float(trainer.callback_metrics["optimizer/out_of_memory"]) == 1
    assert module.updates == 3
    assert loss.calls > 8
    assert len(tokens.seen) == 6
    assert all(there == read > 0 for there, read in tokens.seen)
    assert f"out of memory: micro_batch_tokens is {module.out_of_memory.budget} from now on" in capsys.readouterr().out
    for one, other in zip(plain, narrow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_smaller_budget_is_that_of_a_run_that_goes_on(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders, loss=Narrow(1))
    trainer = fit(module, data, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for budget, expected in ((10**6, module.out_of_memory.budget), (16, 16)):
        again, _, _ = parts(folders, micro_batch_tokens=budget)
        again.trainer = trainer
        again.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
        assert (again.out_of_memory.budget, again.out_of_memory.count) == (expected, 1)


def test_other_errors_are_errors(folders: tuple[str, str], tmp_path: Path) -> None:
    class Wrong(Narrow):
        def fail(self, gradient: torch.Tensor) -> None:
            raise RuntimeError("shapes differ")

    module, data, _ = parts(folders, loss=Wrong(1))
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(module, data, tmp_path)
