"""Names of models → folders, and the errors that say which name was meant."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from opdlight.errors import CheckpointError
from opdlight.models import loading as checkpoints
from opdlight.models.loading import load_model, load_tokenizer, resolve_model
from tests.models.architectures import save


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("student", "teacher-sums"):
        (tmp_path / "lab" / name).mkdir(parents=True)
        (tmp_path / "lab" / name / "config.json").write_text("{}")
    (tmp_path / "lab" / "notes").mkdir()
    monkeypatch.setattr(checkpoints, "LAB", tmp_path / "lab")
    return tmp_path / "lab"


def test_lab_names_are_bundled_folders(lab: Path) -> None:
    assert resolve_model("lab/student") == resolve_model("lab/student/") == str(lab / "student")


def test_misspelt_lab_name_gets_the_nearest(lab: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'lab/teacher-sum'\. Did you mean 'lab/teacher-sums'\?"):
        resolve_model("lab/teacher-sum")
    with pytest.raises(CheckpointError, match=r"There are lab/student, lab/teacher-sums\."):
        resolve_model("lab/zzz")
    with pytest.raises(CheckpointError, match="'lab/notes'"):
        resolve_model("lab/notes")  # a folder, but no model


def test_folders_become_full_paths(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    assert (
        resolve_model("student")
        == resolve_model(lab / "student")
        == resolve_model("./student/")
        == str(lab / "student")
    )


def test_folder_without_a_model_is_refused(lab: Path) -> None:
    with pytest.raises(CheckpointError, match=r"to hold config\.json or adapter_config\.json"):
        resolve_model(lab / "notes")


def test_hub_names_pass_through() -> None:
    assert resolve_model("some-org/Some-Model-7B") == "some-org/Some-Model-7B"
    assert resolve_model("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "runs/latest/student"])
def test_path_that_does_not_exist_is_not_taken_for_a_hub_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no run has left a student
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_model(name)


def test_broken_folder_is_one_clear_error(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Cannot load the model"):
        load_model(folder, "float32")
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Cannot load the model"):
        load_model(folder, "float32")


def test_adapter_uses_the_tokenizer_of_its_base_and_must_name_it(tmp_path: Path) -> None:
    save(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = '{"peft_type": "LORA", "base_model_name_or_path": %s}'
    (adapter / "adapter_config.json").write_text(config % '"../base"')
    assert len(load_tokenizer(adapter)) == len(load_tokenizer(tmp_path / "base"))
    (adapter / "adapter_config.json").write_text(config % "null")
    with pytest.raises(CheckpointError, match="does not name its base model"):
        load_tokenizer(adapter)


def changed(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


DAMAGES = {
    "cut weights": written("model.safetensors", "1234"),
    "no JSON": written("config.json", "{"),
    "no mapping": written("config.json", "[]"),
    "unknown architecture": changed(model_type="frobnicate"),
    "no causal model": changed(model_type="t5"),
    "other shapes": changed(intermediate_size=7),
    "a word for a number": changed(num_attention_heads="four"),
    "no heads": changed(num_attention_heads=0),
    "more layers than weights": changed(num_hidden_layers=9),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_error(damage: str, tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "model"))
    load_model(folder, "float32")
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError, match=re.escape(str(folder))) as error:
        load_model(folder, "float32")
    assert "\n" not in str(error.value)


def test_a_damaged_tokenizer_is_one_error(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Cannot load the tokenizer of"):
        load_tokenizer(folder)
