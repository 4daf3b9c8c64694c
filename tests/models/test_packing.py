"""Rows that run as one row: the same hidden states, losses and gradients as with padding; and who must not pack."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.errors import ConfigError
from opdlight.losses import SampledToken, SupportMatching, token_mean
from opdlight.models import Scorer, ScoreRequest, Student, Teachers
from opdlight.models.backbone import checkpoint_layers, hidden_at
from opdlight.models.packing import resolve_packing, why_not
from opdlight.train.build import build as build_run
from opdlight.types import TokenBatch
from tests.distillation.one_update import fit, parts
from tests.models.architectures import build, full_logits, random_batch, save

PADDED = random_batch([12, 7, 1, 9, 20, 5], seed=3)
PACKED = replace(PADDED, packed=True)
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 with a window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "gemma2": ("gemma2", {"sliding_window": 4}),
    "gemma3": ("gemma3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "gpt2": ("gpt2", {}),
}
close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=list(STYLES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    architecture, changes = STYLES[request.param]
    return build(architecture, **changes)


def hidden_and_gradients(model: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    hidden = hidden_at(model, batch)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return hidden.detach(), found


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hidden_states_and_gradients_are_those_of_padded_rows(model: PreTrainedModel, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    expected, gradients = hidden_and_gradients(model, PADDED)
    packed, packed_gradients = hidden_and_gradients(model, PACKED)
    close(packed, expected)
    assert len(packed_gradients) == len(gradients) > 10
    for got, want in zip(packed_gradients, gradients, strict=True):
        close(got / want.abs().max(), want / want.abs().max())


def test_each_row_is_what_it_is_alone(model: PreTrainedModel) -> None:
    logits = full_logits(model, PADDED)
    with torch.no_grad():
        hidden = hidden_at(model, PACKED)
    at = torch.tensor([3, 17])
    again = hidden_at(model, replace(PACKED, row_index=PACKED.row_index[at], col_index=PACKED.col_index[at]))
    torch.testing.assert_close(again, hidden[at], atol=0, rtol=0)
    if getattr(model.config, "final_logit_softcapping", None) is None:
        close(model.get_output_embeddings()(hidden), logits)


def test_layers_that_are_computed_again_know_the_rows(model: PreTrainedModel) -> None:
    _, expected = hidden_and_gradients(model, PACKED)
    checkpoint_layers(model)
    _, got = hidden_and_gradients(model, PACKED)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "student", "qwen2", seed=1), save(folder / "teacher", "qwen2", seed=2)


@pytest.mark.parametrize("loss", [SupportMatching(k=8), SampledToken()], ids=["top-K", "token"])
def test_the_loss_and_its_gradient_stay(loss: Any, folders: tuple[str, str]) -> None:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1]}, student)
    asked = ScoreRequest(needs=loss.needs, shared=teachers.shared_vocabulary)
    each, gradients = [], []
    for batch in (PADDED, PACKED):
        student.zero_grad()
        per_token = loss(Scorer(student=student, teachers=teachers).score(batch, asked).scores, batch)
        token_mean(per_token, batch.num_tokens).backward()
        each.append(per_token.detach())
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    close(each[1], each[0])
    for got, want in zip(gradients[1], gradients[0], strict=True):
        close(got, want)


def test_a_teacher_that_equals_the_student_gives_zero_to_the_bit(folders: tuple[str, str]) -> None:
    student = Student(folders[0], gradient_checkpointing=True)
    teachers = Teachers({"a": folders[0]}, student)
    loss = SupportMatching(k=8)
    asked = ScoreRequest(needs=loss.needs, shared=teachers.shared_vocabulary)
    each = loss(Scorer(student=student, teachers=teachers).score(PACKED, asked).scores, PACKED)
    each.sum().backward()
    assert not each.any()
    assert not any(p.grad.any() for p in student.parameters() if p.grad is not None)


def test_a_run_is_the_same_run(folders: tuple[str, str], tmp_path: Path) -> None:
    """Three updates of rollouts of different lengths: the weights after them, and that their rows were packed."""
    weights, rows = [], []
    for packed in (False, True):
        module, data, _ = parts(folders, packed=packed)
        module.student.model.get_decoder().register_forward_pre_hook(
            lambda _, __, told: rows.append(len(told["input_ids"])), with_kwargs=True
        )
        fit(module, data, tmp_path)
        weights.append([p.detach() for p in module.student.parameters()])
    assert rows == [4, 4, 4, 1, 1, 1]
    for got, want in zip(weights[1], weights[0], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_key_reaches_the_micro_batches() -> None:
    def built(*overrides: str) -> OnPolicyDistillation:
        cfg = compose("train", TrainConfig, ["task=sums", *overrides])
        return build_run(cfg, instantiate(cfg.task))

    assert built().collate.packed  # SDPA runs distinct tokens
    assert not built("packing=false").collate.packed
    module = built("packing=true", "model.attn_implementation=eager", "loss=sampled_token_extrapolated")
    assert module.collate.packed
    assert module.reference is not None
    for teacher in (*module.teachers.distinct, *module.reference.distinct):
        assert teacher.model.config._attn_implementation == "eager"
    assert module.student.model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="`packing` to be bool or one of 'auto', but got 'never'"):
        built("packing=never")


# what attention is called with


@pytest.fixture
def registered() -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call of "rows_apart", which computes row by row from the ends that it is told.

    As flash attention does, it gets no mask; "by_blocks" records the function of which flex attention makes its mask.
    """
    calls: list[dict[str, Any]] = []

    def rows_apart(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **told: Any) -> Any:
        calls.append({"mask": mask, **told})
        ends = told["cu_seq_lens_q"].tolist()
        assert told["cu_seq_lens_k"].tolist() == ends
        assert told["max_length_q"] == told["max_length_k"] == max(b - a for a, b in pairwise(ends))
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        each = [
            scaled_dot_product_attention(*(t[:, :, a:b] for t in (query, key, value)), is_causal=True)
            for a, b in pairwise(ends)
        ]
        return torch.cat(each, 2).transpose(1, 2).contiguous(), None

    def by_blocks(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **told: Any) -> Any:
        calls.append({"mask": mask})
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("rows_apart", rows_apart)
    AttentionInterface.register("by_blocks", by_blocks)
    AttentionMaskInterface.register("by_blocks", lambda mask_function, **_: mask_function)
    yield calls
    for interface in (AttentionInterface, AttentionMaskInterface):
        for name in ("rows_apart", "by_blocks"):
            interface._global_mapping.pop(name, None)


def use(model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdlight.models.attention.ON_CPU", ("eager", "sdpa", name))
    model.config._attn_implementation_internal = name


@pytest.mark.parametrize("style", ["llama", "qwen2", "gemma2"])
def test_kernels_for_rows_of_different_lengths_are_told_where_rows_end(
    style: str, registered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(style, **({"attn_logit_softcapping": None, "query_pre_attn_scalar": 8} if style == "gemma2" else {}))
    expected = hidden_at(model, PADDED)
    use(model, "rows_apart", monkeypatch)
    close(hidden_at(model, PACKED), expected)
    assert [call["mask"] for call in registered] == [None, None]
    assert registered[0]["cu_seq_lens_q"].tolist() == [0, 12, 19, 20, 29, 49, 54]
    assert registered[0]["cu_seq_lens_q"].dtype == torch.int32


def test_flex_attention_is_told_what_to_skip(registered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    use(model, "by_blocks", monkeypatch)
    hidden_at(model, PACKED)
    row = torch.repeat_interleave(torch.arange(6), torch.tensor([12, 7, 1, 9, 20, 5]))
    at = torch.arange(54)
    expected = (row[:, None] == row) & (at[:, None] >= at)
    seen = registered[0]["mask"](torch.tensor(0), torch.tensor(0), at[:, None], at)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("lengths", [[9], [7, 7]])
def test_rows_without_padding_run_as_they_are_and_without_a_mask(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build("llama"), random_batch(lengths)
    masks: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(kwargs["attn_mask"])
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    torch.testing.assert_close(hidden_at(model, replace(batch, packed=True)), hidden_at(model, batch), atol=0, rtol=0)
    assert masks == [None] * 4


# who may pack


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, r"layers \(conv\) would see the rows before"),
        ("mamba2", {"state_size": 4, "head_dim": 8, "num_heads": 4, "n_groups": 1}, r"layers \(linear_attention\)"),
        ("llama", {"layer_types": ["chunked_attention", "full_attention"]}, r"layers \(chunked_attention\)"),
        ("bloom", {"n_layer": 2, "n_head": 2}, "differ from those of the row alone"),
    ],
)
def test_a_model_whose_rows_would_see_each_other_is_refused(
    architecture: str, changes: dict[str, Any], reason: str
) -> None:
    model = build(architecture, **changes)
    name = type(model).__name__
    with pytest.raises(ConfigError, match=rf"^Expected `packing` to be false for {name}, whose .*{reason}.*got True"):
        resolve_packing(True, [build("llama"), model])


def test_a_leak_is_found_though_nothing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    assert why_not(model) is None
    decoder = model.get_decoder()
    forward = decoder.forward

    def deaf(position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(**kwargs)

    monkeypatch.setattr(decoder, "forward", deaf)
    assert "differ from those of the row alone" in str(why_not(model))

    def narrow(input_ids: Any, position_ids: Any = None, use_cache: bool = False) -> Any:
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(decoder, "forward", narrow)
    assert "does not take the ends of the rows" in str(why_not(model))


def test_auto_packs_where_attention_skips_what_is_masked() -> None:
    model, stateful = build("qwen2"), build("lfm2", layer_types=["conv", "full_attention"])
    assert resolve_packing("auto", [model]) is False
    assert resolve_packing(False, [model]) is False
    assert resolve_packing(True, [model]) is True
    for name in ("flex_attention", "flash_attention_2", "kernels-community/flash-attn2"):
        model.config._attn_implementation_internal = stateful.config._attn_implementation_internal = name
        assert resolve_packing("auto", [model]) is True
        assert resolve_packing("auto", [model, build("llama")]) is False  # a teacher with another attention
        assert resolve_packing("auto", [model, stateful]) is False
