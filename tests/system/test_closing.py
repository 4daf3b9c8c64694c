"""The end of a run: if a part fails, the others are done, the failure is reported, and a resume repeats it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from opdlight.config import EvaluateConfig, SftConfig, TrainConfig, compose
from opdlight.errors import CheckpointError, UnfinishedError
from opdlight.evaluate.run import evaluate
from opdlight.models import Student
from opdlight.models.loading import LAB, engine_folder, load_tokenizer
from opdlight.run_folder import summary as summary_file
from opdlight.sft.run import sft
from opdlight.system.closing import Closing
from opdlight.train.run import train
from tests.tiny_models import tiny_adapter

SMALL = ["task=sums", "task.tasks.sums.episodes=1", "rollout.groups=2", "trainer.max_steps=1"]
INVALID = {"temperature": 0.6, "eos_token_id": 1}  # transformers: a temperature without do_sample


def config(folder: Path, *overrides: str) -> Any:
    return compose(
        "train", TrainConfig, ["engine._target_=tests.fakes.AnsweringEngine", *SMALL, f"run_dir={folder}", *overrides]
    )


def broken(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left\non device")


def student_with(generation: dict[str, Any], folder: Path) -> Path:
    shutil.copytree(LAB / "student", folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_every_part_is_tried_and_the_end_names_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    closing, done = Closing("do it again"), []
    closing.end()
    for number in range(3):
        with closing.part(f"part {number}"):
            done.append(number)
            if number < 2:
                raise KeyError("a\nb")
    closing.note("part 0", ValueError("only the first time is said"))
    assert done == [0, 1, 2]
    assert capsys.readouterr().out.splitlines() == [f"failed: part {n} (KeyError: 'a\\nb')" for n in (0, 1)]
    with pytest.raises(UnfinishedError, match=r"not complete: part 0 .*; part 1 .*\. To do it again: do it again"):
        closing.end()
    with pytest.raises(KeyboardInterrupt), closing.part("a person stops it"):
        raise KeyboardInterrupt


def test_what_fails_at_the_end_of_training_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    broke = ["engine._target_=tests.fakes.StudentOnlyEngine", "+logger.other._target_=tests.fakes.FailingLogger"]
    with monkeypatch.context() as patch:
        patch.setattr(Student, "save", broken)
        patch.setattr(summary_file, "curves", broken)
        with pytest.raises(UnfinishedError, match=f"To do it again: python -m opdlight.train resume={folder}") as error:
            train(config(folder, *broke))
    said, parts = capsys.readouterr().out, ("save the student", "stop the engine", "evaluate the teachers")
    for part in (*parts, "draw curves.png", "log by logger.other; metrics.csv has all figures"):
        assert said.count(f"failed: {part} (") == str(error.value).count(f"{part} (") == 1, part
    assert "held-out success" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"].keys() == {*parts, "draw curves.png", "log by logger.other; metrics.csv has all figures"}
    assert summary["tasks"]["sums"]["after"]["episodes"] == 1
    assert (folder / "metrics.csv").stat().st_size > 0

    assert "success/sums" in train(config(folder, f"resume={folder}"))
    assert "nothing to train" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"] == {} and summary["tasks"]["sums"]["teacher"]["episodes"] == 1
    assert (folder / "curves.png").is_file() and (folder / "student").is_dir()
    assert train(config(folder, f"resume={folder}")) == {"success/sums": summary["tasks"]["sums"]["after"]["success"]}
    assert "nothing to do" in capsys.readouterr().out


def test_a_summary_or_an_evaluation_that_fails_does_not_cost_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    quick = ["evaluate_teachers=false", "engine._target_=tests.fakes.TiredEngine"]  # not for the evaluation after
    write = summary_file.write_text
    monkeypatch.setattr(
        summary_file, "write_text", lambda path, text: broken() if path.name == "summary.json" else write(path, text)
    )
    with pytest.raises(UnfinishedError, match=r"evaluate after .RuntimeError: tired.; write summary.json"):
        train(config(folder, *quick))
    assert (folder / "student" / "model.safetensors").is_file()
    assert (folder / "curves.png").is_file()
    assert "held-out success" in capsys.readouterr().out
    assert not (folder / "summary.json").exists()
    monkeypatch.undo()
    assert "success/sums" in train(config(folder, f"resume={folder}", *quick[:1]))


def test_a_run_without_checkpoints_and_progress_has_none_of_lightning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(config(folder, "evaluate_teachers=false", "~callbacks.checkpoints", "~callbacks.progress"))
    assert (folder / "student" / "model.safetensors").is_file()
    assert not (folder / "checkpoints").exists()
    captured = capsys.readouterr()
    assert "Epoch 0" not in captured.out + captured.err


def test_sft_and_evaluate_keep_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = [
        "task=sums",
        "demonstrations.episodes=2",
        "demonstrations.workers=1",
        "batch_size=2",
        "trainer.max_steps=1",
    ]
    tuned += ["+model.student.lora={r: 2}", f"run_dir={tmp_path / 'sft'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Student, "save", broken)
        with pytest.raises(UnfinishedError, match="not complete: save the student"):
            sft(compose("sft", SftConfig, tuned))
    assert (tmp_path / "sft" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "sft" / "checkpoints").exists()

    measured = ["task=sums", "task.tasks.sums.episodes=1", "engine._target_=tests.fakes.StudentOnlyEngine"]
    with pytest.raises(UnfinishedError, match="not complete: stop the environments and the engine"):
        evaluate(compose("evaluate", EvaluateConfig, [*measured, f"run_dir={tmp_path / 'evaluation'}"]))
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["sums"]["episodes"] == 1
    assert (tmp_path / "evaluation" / "trajectories.jsonl").is_file()


def test_a_generation_config_that_transformers_would_not_write_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, folder = student_with(INVALID, tmp_path / "start"), tmp_path / "run"
    train(config(folder, f"model.student.model={start}", "evaluate_teachers=false"))
    said = capsys.readouterr().out
    assert said.count(f"The generation config of {start} is kept as it is, though transformers says:") == 1
    saved = json.loads((folder / "student" / "generation_config.json").read_text())
    assert {name: saved[name] for name in INVALID} == INVALID and "do_sample" not in saved
    loaded = AutoModelForCausalLM.from_pretrained(folder / "student")
    assert loaded.generation_config.temperature == 0.6
    tiny_adapter(start, tmp_path / "adapter")
    with engine_folder(tmp_path / "adapter", "float32") as merged:  # a teacher's engine
        assert json.loads((Path(merged) / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_student_that_cannot_be_saved_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(load_tokenizer("lab/student")), "save_pretrained", broken)
    with pytest.raises(CheckpointError, match=r"A student made of 'lab/student' could not be saved: .*No space left"):
        train(config(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.csv").exists()
