"""What `model.compute_dtype: auto` becomes, and what a resumed run keeps."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from opdlight.config import TrainConfig, compose
from opdlight.config.composition import check
from opdlight.config.compute_dtype import settle_compute_dtype
from opdlight.config.resume import with_resumed
from opdlight.config.schemas import EvaluateConfig
from opdlight.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "gpu", "expected"),
    [
        ([], True, "float32"),  # trainer=cpu
        (["model.dtype=bfloat16"], False, "bfloat16"),
        (["trainer=gpu"], False, "bfloat16"),
        (["trainer=fsdp"], True, "bfloat16"),
        (["trainer=fsdp"], False, "float32"),
        (["trainer=gpu", "model.compute_dtype=float32"], True, "float32"),
        (["model.compute_dtype=bfloat16"], False, "bfloat16"),
    ],
)
def test_student_teachers_and_engine_get_one_plain_value(
    overrides: list[str], gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg = compose("train", TrainConfig, overrides)
    found = {cfg.model.compute_dtype, cfg.model.student.compute_dtype, cfg.teacher.dtype, cfg.engine.dtype}
    assert found == {expected}
    assert cfg.model.student.dtype == cfg.model.dtype
    assert (
        compose("train", TrainConfig, [*overrides, "engine=ray", "engine.address=auto"]).engine.engine.dtype == expected
    )


def test_without_a_trainer_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert compose("evaluate", EvaluateConfig).engine.dtype == expected


def test_a_model_without_the_key_gets_it_and_a_wrong_path_is_left_to_the_checks() -> None:
    model = {"dtype": "float32", "student": {"_target_": "opdlight.models.Student"}}
    mine = OmegaConf.create({"model": model, "trainer": {"accelerator": "gpu"}})
    settle_compute_dtype(mine)
    assert mine.model.compute_dtype == mine.model.student.compute_dtype == "bfloat16"
    broken = OmegaConf.create({"model": {"dtype": "float32"}, "trainer": {"accelerator": "${nowhere}"}})
    settle_compute_dtype(broken)
    assert "compute_dtype" not in broken.model
    settle_compute_dtype(OmegaConf.create({"run": "runs/latest"}))  # a report has no model


def test_another_value_is_told_all_choices() -> None:
    with pytest.raises(ConfigError, match=r"dtype` to be one of auto, float32, bfloat16, but got 'bf16'"):
        compose("train", TrainConfig, ["model.compute_dtype=bf16"])


def test_a_model_file_of_before_these_keys_still_composes() -> None:
    old = OmegaConf.to_container(compose("train", TrainConfig), resolve=False)
    assert isinstance(old, dict)
    for node in (old["model"], old["model"]["student"]):
        del node["attn_implementation"], node["compute_dtype"]
    old["run_dir"] = "runs/x"
    mine = OmegaConf.create(old)
    settle_compute_dtype(mine)
    check(mine, TrainConfig)
    assert mine.teacher.attn_implementation is None


@pytest.mark.parametrize("file", sorted(Path("conf/model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_leaves_it_to_the_trainer(file: Path) -> None:
    model = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(model, dict)
    if "defaults" in model:  # the rest is of another of these files
        assert not {"dtype", "compute_dtype"} & {*model, *model["student"]}
        return
    assert (model["dtype"], model["compute_dtype"]) == ("float32", "auto")
    assert model["student"]["compute_dtype"] == "${model.compute_dtype}"


def test_more_digits_than_the_weights_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`model\.compute_dtype` to be bfloat16 beside model\.dtype=bfloat16"):
        compose("train", TrainConfig, ["model.dtype=bfloat16", "model.compute_dtype=float32"])


@pytest.mark.parametrize(
    ("model", "given", "kept"),
    [
        ({"dtype": "float32", "compute_dtype": "bfloat16"}, [], ["++model.compute_dtype=bfloat16"]),
        ({"dtype": "float32"}, [], ["++model.compute_dtype=float32"]),  # from before there was the key
        ({"dtype": "float32", "compute_dtype": "bfloat16"}, ["model.compute_dtype=float32"], []),
    ],
)
def test_a_resumed_run_computes_as_it_did(
    model: dict[str, str], given: list[str], kept: list[str], tmp_path: Path
) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps(["task=sums", "model.compute_dtype=auto"]))
    OmegaConf.save({"model": model}, tmp_path / "config.yaml")
    found = with_resumed([f"resume={tmp_path}", *given])
    assert found == ["task=sums", *kept, f"resume={tmp_path}", *given, f"hydra.run.dir={tmp_path}"]
