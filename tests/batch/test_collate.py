"""Collation of hand-made token ids; the expected loss mask is drawn above each case."""

from dataclasses import replace

import pytest
import torch

from opdlight.batch.collate import Collate, count_unshared, group_advantages
from opdlight.batch.rows import count_splits
from opdlight.types import SharedVocabulary, Status, Trajectory, Turn


def turn(prompt: list[int], completion: list[int], logprobs: list[float] | None = None) -> Turn:
    return Turn(
        prompt_ids=prompt,
        completion_ids=completion,
        sampled_logprobs=logprobs or [-float(t) for t in completion],
        finish_reason="stop",
        policy_version=0,
        reward=0.0,
    )


def trajectory(*turns: Turn, task: str = "a") -> Trajectory:
    return Trajectory(task=task, group=0, seed=0, turns=list(turns), reward=0.0, status=Status.SUCCESS)


def collate(**changes: object) -> Collate:
    settings: dict = {"tasks": ("a", "b"), "shared": SharedVocabulary(100), "micro_batch_tokens": 1000}
    return Collate(**{**settings, **changes})


def test_growing_conversation_is_one_row_with_the_students_tokens_marked() -> None:
    #  column      0   1   2   3   4   5   6   7   8
    #  token      10  11  20  21   5  12  22  23   5      (5 = end of turn)
    #  student                 *   *           *   *   *  → the position before each of them predicts it
    first = turn([10, 11], [20, 21, 5])
    second = turn([10, 11, 20, 21, 5, 12], [22, 23, 5])
    (batch,) = collate()([trajectory(first, second)])
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 5, 12, 22, 23, 5]]
    assert batch.col_index.tolist() == [1, 2, 3, 5, 6, 7]
    assert batch.target_ids.tolist() == [20, 21, 5, 22, 23, 5]
    assert batch.input_ids[0, batch.col_index + 1].tolist() == batch.target_ids.tolist()
    assert batch.turn_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.token_position.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.sampled_logprobs.tolist() == [-20, -21, -5, -22, -23, -5]
    assert batch.global_tokens == batch.num_tokens == 6
    assert count_splits(trajectory(first, second)) == 0


def test_rewritten_history_splits_into_rows_and_loses_nothing() -> None:
    #  row 0      10  11  20  21   5         the template then strips 20 from the history:
    #  row 1      10  11  21   5  12  22   5
    rewritten = trajectory(turn([10, 11], [20, 21, 5]), turn([10, 11, 21, 5, 12], [22, 5]))
    (batch,) = collate()([rewritten])
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 5, 0, 0], [10, 11, 21, 5, 12, 22, 5]]
    assert batch.attention_mask.sum(1).tolist() == [5, 7]
    assert list(zip(batch.row_index.tolist(), batch.target_ids.tolist(), strict=True)) == [
        (0, 20),
        (0, 21),
        (0, 5),
        (1, 22),
        (1, 5),
    ]
    assert batch.trajectory_index.tolist() == [0] * 5
    assert batch.token_position.tolist() == [0, 1, 2, 3, 4]
    assert count_splits(rewritten) == 1


def test_same_length_prefix_that_differs_is_not_a_prefix() -> None:
    assert count_splits(trajectory(turn([10], [20, 5]), turn([10, 21, 5, 11], [22]))) == 1


def test_masked_tokens_stay_visible_but_carry_no_loss() -> None:
    #  token      10  20  21  20
    #  kept            x   *   *      (the first 20 is masked)
    def kept(ids: list[int]) -> list[bool]:
        return [not (t == 20 and i == ids.index(20)) for i, t in enumerate(ids)]

    (batch,) = collate(loss_mask=kept)([trajectory(turn([10], [20, 21, 20]))])
    assert batch.input_ids.tolist() == [[10, 20, 21, 20]]
    assert batch.attention_mask.all()
    assert batch.target_ids.tolist() == [21, 20]
    assert batch.token_position.tolist() == [1, 2]


def test_tokens_unknown_to_the_teacher_carry_no_loss() -> None:
    made = [trajectory(turn([10], [20, 21, 8, 9]))]
    (batch,) = collate(shared=SharedVocabulary(21, frozenset({8})))(made)
    assert batch.target_ids.tolist() == [20, 9]
    assert batch.input_ids.tolist() == [[10, 20, 21, 8, 9]]
    assert count_unshared(made, SharedVocabulary(21, frozenset({8}))) == 2


def test_nothing_to_train_on_gives_no_batch() -> None:
    everything_masked = collate(loss_mask=lambda ids: [False] * len(ids))
    assert everything_masked([trajectory(turn([10], [20]))]) == []
    assert collate()([trajectory(turn([10], [])), trajectory()]) == []


def test_micro_batches_keep_the_budget_share_the_count_and_never_cut_a_trajectory() -> None:
    made = [trajectory(turn([1] * n, [7] * (n % 5 + 1)), task="ab"[n % 2]) for n in range(1, 30)]
    batches = collate(micro_batch_tokens=64)(made)
    assert len(batches) > 1
    assert all(b.input_ids.numel() <= 64 for b in batches)
    total = sum(len(t.turns[0].completion_ids) for t in made)
    assert sum(b.num_tokens for b in batches) == total
    assert {b.global_tokens for b in batches} == {total}
    widths = [b.input_ids.shape[1] for b in batches]
    assert widths == sorted(widths, reverse=True)
    one = collate(micro_batch_tokens=10**6)(made)
    assert len(one) == 1
    assert sorted(one[0].task_index.tolist()) == sorted(int(i) for b in batches for i in b.task_index)


def test_a_row_over_the_budget_is_a_micro_batch_by_itself() -> None:
    made = [trajectory(turn([1] * 20, [7])), trajectory(turn([1], [7]))]
    for whole in (True, False):
        batches = collate(micro_batch_tokens=8, whole_trajectories=whole)(made)
        assert [b.input_ids.shape for b in batches] == [torch.Size([1, 21]), torch.Size([1, 2])]


def test_rows_of_a_trajectory_stay_together_only_if_the_loss_needs_it() -> None:
    #  rows       1 1 7      2 2 2 2 7      1 7
    made = [trajectory(turn([1, 1], [7]), turn([2, 2, 2, 2], [7])), trajectory(turn([1], [7]))]
    whole = collate(micro_batch_tokens=5)(made)
    assert [b.input_ids.tolist() for b in whole] == [[[1, 1, 7, 0, 0], [2, 2, 2, 2, 7]], [[1, 7]]]
    parted = collate(micro_batch_tokens=6, whole_trajectories=False)(made)
    assert [b.input_ids.tolist() for b in parted] == [[[2, 2, 2, 2, 7]], [[1, 1, 7], [1, 7, 0]]]
    first, second = parted
    assert (first.turn_index.tolist(), first.token_position.tolist()) == ([1], [1])
    assert (second.turn_index.tolist(), second.token_position.tolist()) == ([0, 0], [0, 0])
    assert second.trajectory_index.tolist() == [0, 1]  # of this micro-batch
    assert {b.global_tokens for b in parted} == {3}


def test_a_packed_micro_batch_is_as_large_as_its_tokens() -> None:
    lengths = [5, 5, 3, 3, 2]
    made = [trajectory(turn([1] * (n - 1), [7])) for n in lengths]
    packed = collate(micro_batch_tokens=9, packed=True)(made)
    assert [b.attention_mask.sum(1).tolist() for b in packed] == [[5, 3], [5, 3], [2]]
    assert [b.model_tokens for b in packed] == [8, 8, 2]
    assert all(b.packed for b in packed)
    padded = collate(micro_batch_tokens=9)(made)
    assert [b.attention_mask.sum(1).tolist() for b in padded] == [[5], [5], [3, 3, 2]]
    assert [b.model_tokens for b in padded] == [5, 5, 9]
    assert not any(b.packed for b in padded)


def test_rows_of_a_group_follow_each_other_where_models_run_their_prompt_once() -> None:
    #  group        a0   a1   b0   a0   a1   a0
    made = [(("a", 0), 3), (("a", 1), 6), (("b", 0), 4), (("a", 0), 5), (("a", 1), 2), (("a", 0), 4)]
    rows = [replace(trajectory(turn([1] * (n - 1), [7]), task=task), group=group) for (task, group), n in made]
    for packed, expected in ((True, [6, 2, 5, 4, 3, 4]), (False, [6, 5, 4, 4, 3, 2])):
        (batch,) = collate(micro_batch_tokens=10**6, packed=packed)(rows)
        assert batch.attention_mask.sum(1).tolist() == expected
    parted = collate(micro_batch_tokens=12, packed=True)(rows)
    assert [b.attention_mask.sum(1).tolist() for b in parted] == [[6, 2, 4], [5, 4, 3]]


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="prompt_ids"):
        collate()([trajectory(turn([], [7]))])


def test_reward_counts_against_the_group() -> None:
    #  group      a0   a0   a0   a1   a1   b0        (a1: all alike; b0: alone)
    #  reward      1    0    0    1    1    1        mean 1/3, std √2/3
    rewards = [("a", 0, 1.0), ("a", 0, 0.0), ("a", 0, 0.0), ("a", 1, 1.0), ("a", 1, 1.0), ("b", 0, 1.0)]
    made = [
        replace(trajectory(turn([10], [20 + i]), task=task), group=group, reward=reward)
        for i, (task, group, reward) in enumerate(rewards)
    ]
    assert group_advantages(made) == pytest.approx([2**0.5, -(0.5**0.5), -(0.5**0.5), 0, 0, 0])
    (batch,) = collate()(made)
    by_token = dict(zip(batch.target_ids.tolist(), batch.group_advantage.tolist(), strict=True))
    assert [by_token[20 + i] for i in range(6)] == pytest.approx(group_advantages(made))
    assert batch.group_advantage.dtype is torch.float32
