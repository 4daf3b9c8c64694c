"""What rows begin with together runs once: the same hidden states, losses and gradients as padded rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from opdlight.batch.split import at_positions
from opdlight.losses import SupportMatching
from opdlight.models import Student, Teachers
from opdlight.models.backbone import checkpoint_layers, hidden_at
from opdlight.models.distinct_tokens import SDPA, distinct_tokens, use_distinct_tokens
from opdlight.models.packing import resolve_packing
from opdlight.system.distributed import full_tensor
from opdlight.types import TokenBatch
from tests.models.architectures import build, random_batch, save
from tests.models.score_cases import scored
from tests.models.test_packing import STYLES


def alike(lengths: list[int], *common: tuple[int, int, int], tasks: tuple[str, ...] = ("a",)) -> TokenBatch:
    """Random rows; for each (row, other, n) the row begins with n tokens of the other."""
    batch = random_batch(lengths, tasks, seed=3)
    ids = batch.input_ids.clone()
    for row, other, n in common:
        ids[row, :n] = ids[other, :n]
    return replace(batch, input_ids=ids, target_ids=ids[batch.row_index, batch.col_index + 1])


# two groups, one of them with a row that is the beginning of another; a short row; one that has nothing in common
PADDED = alike([12, 7, 3, 9, 20, 14, 14], (1, 0, 6), (4, 0, 9), (5, 6, 14), (2, 6, 2))
PACKED = replace(PADDED, packed=True)


def hidden_and_gradients(model: Any, batch: TokenBatch) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    hidden = hidden_at(model, batch) if isinstance(model, PreTrainedModel) else model.hidden(batch)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return hidden.detach(), [full_tensor(p.grad) for p in model.parameters() if p.grad is not None]


def assert_same(
    got: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], tolerance: float = 1e-5
) -> None:
    """Hidden states and gradients, each as a share of its largest number."""
    assert len(got[1]) == len(expected[1]) > 3
    for mine, theirs in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        scale = theirs.abs().max().clamp(min=1e-30)
        torch.testing.assert_close(mine / scale, theirs / scale, atol=tolerance, rtol=0)


def test_tokens_are_distinct_if_anything_before_them_is() -> None:
    ids = torch.tensor([[1, 2, 3, 0], [5, 2, 3, 4], [1, 2, 4, 3], [1, 2, 0, 0]])
    found = distinct_tokens(ids, torch.arange(4) < torch.tensor([[3], [4], [4], [2]]))
    names = ["1", "12", "5", "52", "523", "5234", "123", "124", "1243"]  # a token with all before it
    rows = [["1", "12", "123"], ["5", "52", "523", "5234"], ["1", "12", "124", "1243"], ["1", "12"]]
    number = {name: int(found.number[b, t]) for b, row in enumerate(rows) for t, name in enumerate(row)}
    assert sorted(number.values()) == list(range(9))
    assert {number["1"], number["12"]} == {0, 1}  # in three rows
    assert [len(places) for places in found.copies] == [9, 2, 2]
    for name in names:
        assert found.ids[0, number[name]] == int(name[-1])
        assert found.position_ids[0, number[name]] == len(name) - 1
    for b, row in enumerate(rows):
        assert found.number[b, : len(row)].tolist() == [number[name] for name in row]
    assert found.shapes == ((4, 4),)


def test_padding_is_not_taken_for_the_token_that_has_its_id() -> None:
    found = distinct_tokens(
        torch.tensor([[1, 0, 0], [1, 0, 5], [0, 0, 0]]), torch.arange(3) < torch.tensor([[1], [3], [2]])
    )
    assert sorted(zip(found.ids[0].tolist(), found.position_ids[0].tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 1), (1, 0), (5, 2),
    ]  # fmt: skip


def test_rows_of_similar_lengths_are_one_block() -> None:
    ids = torch.arange(5 * 9).view(5, 9)
    found = distinct_tokens(ids, torch.arange(9) < torch.tensor([[2], [9], [4], [5], [1]]))
    assert found.shapes == ((2, 9), (2, 4), (1, 1))  # 9 and 5; 4 and 2; 1
    assert found.token_at[:9].tolist() == found.number[1].tolist()


@pytest.mark.parametrize("style", STYLES)
def test_hidden_states_and_gradients_are_those_of_padded_rows(style: str) -> None:
    architecture, changes = STYLES[style]
    model = build(architecture, **changes)
    expected = hidden_and_gradients(model, PADDED)
    use_distinct_tokens(model)
    assert model.config._attn_implementation == SDPA
    ran: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, told: ran.append(told["input_ids"].numel()), with_kwargs=True
    )
    assert_same(hidden_and_gradients(model, PACKED), expected)
    assert ran == [79 - 6 - 9 - 14 - 2]
    checkpoint_layers(model)
    assert_same(hidden_and_gradients(model, PACKED), expected)
    assert_same(hidden_and_gradients(model, PADDED), expected, 1e-6)


def test_in_float64_the_gradients_are_the_same_to_its_roundings() -> None:
    model = build("gpt2").double()  # the norms of others are float32
    expected = hidden_and_gradients(model, PADDED)
    use_distinct_tokens(model)
    assert_same(hidden_and_gradients(model, PACKED), expected, 1e-13)


@pytest.mark.parametrize("lengths", [[9], [7, 7], [10, 9]])
def test_rows_of_which_little_can_be_left_out_run_as_they_are_without_a_mask(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build("llama"), random_batch(lengths)
    expected = hidden_at(model, batch)
    use_distinct_tokens(model)
    shapes: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append((query.shape[0], query.shape[2], kwargs["attn_mask"]))
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, told: shapes.append(tuple(told["input_ids"].shape)), with_kwargs=True
    )
    torch.testing.assert_close(hidden_at(model, replace(batch, packed=True)), expected, atol=1e-5, rtol=0)
    rows = (len(lengths), max(lengths))
    assert shapes == [rows, (*rows, None), (*rows, None)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("how", [{"lora": {"r": 2}}, {"gradient_checkpointing": True}], ids=["LoRA", "checkpointed"])
def test_a_student_of_any_kind_can(how: dict[str, Any], folder: str) -> None:
    student = Student(folder, **how)
    assert_same(hidden_and_gradients(student, PACKED), hidden_and_gradients(student, PADDED))


def test_under_autocast_it_is_as_near_to_float32_as_padded_rows_are(folder: str) -> None:
    exact, _ = hidden_and_gradients(Student(folder), PADDED)
    student = Student(folder, compute_dtype="bfloat16")
    far, near = (float((hidden_and_gradients(student, b)[0] - exact).norm()) for b in (PADDED, PACKED))
    assert 0 < near < 1.5 * far


def test_a_divided_student_can(folder: str, mesh: DeviceMesh) -> None:
    student = Student(folder)
    expected = hidden_and_gradients(student, PADDED)
    student.shard(mesh)
    assert_same(hidden_and_gradients(student, PACKED), expected)


@pytest.mark.parametrize("tasks", [("a",), ("a", "b")])
def test_a_teacher_that_equals_the_student_gives_zero_to_the_bit(tasks: tuple[str, ...], folder: str) -> None:
    student = Student(folder, gradient_checkpointing=True)
    batch = replace(PACKED, tasks=tasks, task_index=PACKED.row_index % len(tasks))
    loss = SupportMatching(k=8)
    each = loss(scored(student, Teachers(dict.fromkeys(tasks, folder), student), loss.needs, batch), batch)
    each.sum().backward()
    assert not each.any()
    assert not any(p.grad.any() for p in student.parameters() if p.grad is not None)


def test_it_depends_on_the_rows_only(folder: str) -> None:
    """Rows in another order, with other loss positions, are the same rows."""
    model = Student(folder).model
    with torch.no_grad():
        hidden, chosen = hidden_at(model, PACKED), torch.arange(0, PACKED.num_tokens, 3)
        torch.testing.assert_close(hidden_at(model, at_positions(PACKED, chosen)), hidden[chosen], atol=1e-5, rtol=1e-5)
        order = torch.tensor([4, 2, 0, 6, 1, 5, 3])
        moved = replace(
            PACKED,
            input_ids=PACKED.input_ids[order],
            attention_mask=PACKED.attention_mask[order],
            row_index=order.argsort()[PACKED.row_index],
        )
        torch.testing.assert_close(hidden_at(model, moved), hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("bloom", {"n_layer": 2, "n_head": 2}),
        ("llama", {"layer_types": ["chunked_attention", "full_attention"]}),
    ],
)
def test_models_that_cannot_stay_as_they_are(architecture: str, changes: dict[str, Any]) -> None:
    model = build(architecture, **changes)
    before = model.config._attn_implementation
    use_distinct_tokens(model)
    assert model.config._attn_implementation == before != SDPA
    assert resolve_packing("auto", [model]) is False


def test_a_model_that_does_not_tell_its_attention_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    decoder = model.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda distinct=None, **told: forward(**told))
    use_distinct_tokens(model)
    assert model.config._attn_implementation == "sdpa"

    def narrow(input_ids: Any, attention_mask: Any = None, position_ids: Any = None, use_cache: bool = False) -> Any:
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )

    monkeypatch.setattr(decoder, "forward", narrow)
    use_distinct_tokens(model)
    assert model.config._attn_implementation == "sdpa"


def test_the_first_token_that_a_window_hides_is_hidden() -> None:
    model, batch = build("mistral", sliding_window=3), alike([4, 4, 4], (1, 0, 2), (2, 0, 2))
    expected = hidden_and_gradients(model, replace(batch, col_index=batch.col_index.clamp(min=3)))
    use_distinct_tokens(model)
    assert_same(
        hidden_and_gradients(model, replace(batch, col_index=batch.col_index.clamp(min=3), packed=True)), expected
    )


MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}


@pytest.mark.parametrize("used", [False, True])
def test_a_window_that_attention_is_not_told_is_found_out_on_rows_shorter_than_it(used: bool) -> None:
    """Qwen2-MoE's is in transformers' mask only."""
    model = build("qwen2_moe", use_sliding_window=used, sliding_window=12, max_window_layers=2, **MOE)
    batch = alike([30, 33], (1, 0, 25))
    expected = hidden_at(model, batch)
    use_distinct_tokens(model)
    assert (model.config._attn_implementation == SDPA) is not used
    torch.testing.assert_close(hidden_at(model, replace(batch, packed=True)), expected, atol=1e-5, rtol=1e-5)


def test_all_models_of_a_run_must_be_able_to(folder: str, tmp_path: Path) -> None:
    able = Student(folder).model
    assert resolve_packing("auto", [able]) is resolve_packing(True, [able]) is True
    assert resolve_packing(False, [able]) is False
    assert resolve_packing("auto", [able, build("bloom", n_layer=2, n_head=2)]) is False
