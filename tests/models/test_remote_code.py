"""Code that a model folder brings with it is never run, and nobody is asked, without the key that says so."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.config import DoctorConfig, EvaluateConfig, SftConfig, TrainConfig, compose, instantiate
from opdlight.errors import CheckpointError
from opdlight.models import Student, Teacher
from opdlight.models.loading import engine_folder, load_model, load_skeleton, load_tokenizer
from opdlight.rollout.engines.model_folder import checkpoint_shapes, stop_token_ids
from tests.tiny_models import save_tiny

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).write_text("the code of the model was run")


class TracedConfig(LlamaConfig):
    model_type = "traced"


class TracedModel(LlamaForCausalLM):
    config_class = TracedConfig
"""
ASKED = "brings code of its own .auto_map., which is not run unless you .* model.trust_remote_code=true"


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model folder with code of its own, and the file that this code writes when it is run."""
    folder, mark = save_tiny(tmp_path / "traced", 1), tmp_path / "mark"
    (folder / "traced.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "traced", "architectures": ["TracedModel"]}
    config["auto_map"] = {"AutoConfig": "traced.TracedConfig", "AutoModelForCausalLM": "traced.TracedModel"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("a question at the terminal"))
    return folder, mark


@pytest.mark.parametrize(
    "load",
    [
        Student,
        Teacher,
        load_skeleton,
        checkpoint_shapes,
        lambda folder, **trust: load_model(folder, "float32", **trust),
    ],
)
def test_it_is_run_with_the_key_alone(load: Any, traced: tuple[Path, Path]) -> None:
    folder, mark = traced
    with pytest.raises(CheckpointError, match=ASKED):
        load(str(folder))
    assert not mark.exists()
    load(str(folder), trust_remote_code=True)
    assert mark.read_text() == "the code of the model was run"


def test_of_a_tokenizer_and_of_an_adapter_s_base_too(traced: tuple[Path, Path], tmp_path: Path) -> None:
    folder, mark = traced
    Student(str(folder), lora={"r": 2}, trust_remote_code=True).save_adapter(tmp_path / "adapter")
    mark.unlink()
    with pytest.raises(CheckpointError, match=ASKED), engine_folder(tmp_path / "adapter", "float32"):
        pass
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "TracedTokenizer", "auto_map": {"AutoTokenizer": [None, "traced.TracedTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for load in (load_tokenizer, stop_token_ids):
        with pytest.raises(CheckpointError, match=ASKED):
            load(str(folder))
    assert not mark.exists()


def test_a_student_with_code_of_its_own_is_saved_with_it(traced: tuple[Path, Path], tmp_path: Path) -> None:
    student = Student(str(traced[0]), trust_remote_code=True)
    student.check_saving()
    student.save(tmp_path / "saved")
    again = Student(str(tmp_path / "saved"), trust_remote_code=True)
    weights = dict(student.named_weights())
    assert all(torch.equal(weight, weights[name]) for name, weight in again.named_weights())


def test_one_key_reaches_student_teachers_and_engines() -> None:
    for name, schema in (("train", TrainConfig), ("doctor", DoctorConfig)):
        for engine in ("vllm", "ray", "vllm_server engine.url=http://x"):
            overrides = ["task=sums", "run_dir=x", *f"engine={engine}".split(), "model.trust_remote_code=true"]
            overrides.append("evaluate_teachers=false")  # engine=vllm_server holds the student alone
            for teacher in ("local", "vllm_server teacher.url=http://x"):
                cfg = compose(name, schema, [*overrides, *f"teacher={teacher}".split()])
                own = cfg.engine.engine if engine == "ray" else cfg.engine
                assert [own.trust_remote_code, cfg.teacher.trust_remote_code, cfg.model.student.trust_remote_code] == [
                    True
                ] * 3
    trust = "model.trust_remote_code=true"
    assert compose("evaluate", EvaluateConfig, ["task=sums", "run_dir=x", trust]).engine.trust_remote_code is True
    assert compose("sft", SftConfig, ["task=sums", "run_dir=x", trust]).model.student.trust_remote_code is True
    assert compose("train", TrainConfig, ["task=sums", "run_dir=x"]).model.trust_remote_code is False


def test_the_vllm_engine_refuses_before_it_starts(traced: tuple[Path, Path]) -> None:
    cfg = compose("evaluate", EvaluateConfig, ["task=sums", "run_dir=x", f"model.student.model={traced[0]}"])
    with pytest.raises(Exception, match="auto_map") as error:
        instantiate(cfg.engine)
    assert isinstance(error.value.__cause__, CheckpointError) and not traced[1].exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_nobody_is_asked_at_a_terminal_or_without_one(terminal: bool, traced: tuple[Path, Path]) -> None:
    code = f"from opdlight.models import Student; Student({str(traced[0])!r})"
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs if terminal else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=300,
            check=False,
        )
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 10_000).decode()
        except BlockingIOError:
            shown = ""
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert b"model.trust_remote_code=true" in done.stderr
    assert "[y/N]" not in shown + done.stderr.decode()
    assert not traced[1].exists()
