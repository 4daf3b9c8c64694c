"""Each preset plays an update: tiny random models of the same architecture, data in the columns of the public sets."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from omegaconf import DictConfig
from pyarrow import parquet

from opdlight.config import CONF, TrainConfig, compose
from opdlight.train.run import train
from tests.fakes import RecordingEngine
from tests.tiny_models import save_tiny_qwen2

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
BEHIND = '\n\nRemember to put your answer on its own line after "Answer:".'
COLUMNS = {  # set → how the public one names question and answer
    "math": ("problem", "answer"),
    "aime24": ("problem", "answer"),
    "aime25": ("problem", "answer"),
    "amc23": ("question", "answer"),
    "minerva": ("question", "answer"),
    "olympiadbench": ("question", "final_answer"),
}


def rows_of(name: str) -> str:
    question, answer = COLUMNS[name]
    numbers = {"math": 0, "aime24": 1}.get(name, 2)
    one = [str(numbers)] if answer == "final_answer" else str(numbers)
    return json.dumps({question: f"How much is {numbers} + 0 in {name}?", answer: one}) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Student, teacher and data sets."""
    at = tmp_path_factory.mktemp("presets")
    save_tiny_qwen2(at / "student", 0, padding=8)
    save_tiny_qwen2(at / "teacher", 1, padding=24)  # as Qwen2.5-1.5B and -7B differ
    asked = [f"How much is {n} + {n}?" for n in range(6)] + ["How much is 0 + 0 in math?"]  # the last is held out
    rows: list[dict[str, Any]] = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"{BEFORE}{text}{BEHIND}"}],
            "reward_model": {"ground_truth": str(2 * n), "style": "rule-lighteval/MATH_v2"},
        }
        for n, text in enumerate(asked)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), at / "dapo.parquet")
    for name in COLUMNS:
        (at / f"{name}.jsonl").write_text(rows_of(name))
    return at


def local(cfg: DictConfig, folder: Path) -> list[str]:
    """What a test changes of a preset: where models and data are, how many devices, and how much of all."""
    tasks = cfg.task.tasks
    found = [
        f"model.student.model={folder / 'student'}",
        "engine._target_=tests.fakes.RecordingEngine",
        "trainer=cpu",
        "trainer.devices=1",
        "trainer.max_steps=2",
        "rollout.groups=2",
        "rollout.group_size=2",
        *(f"task.tasks.{name}.teacher={folder / 'teacher'}" for name, task in tasks.items() if task.weight),
    ]
    for name in (n for n in COLUMNS if n in tasks):
        key = f"task.tasks.{name}.env.held_out"
        found += [f"{key}.path={folder / name}.jsonl", f"{key}.split=null"]
    if "math" in tasks:
        train = "task.tasks.math.env"
        found += [f"{train}.path={folder / 'dapo.parquet'}", f"{train}.split=null", "task.tasks.math.samples=1"]
    if tasks.keys() & {"alfworld", "webshop"}:
        (name,) = tasks.keys() & {"alfworld", "webshop"}
        sizes = {"alfworld": {"receptacles": "[3,5]", "objects": "[2,4]"}, "webshop": {"products": 50}}
        small: dict[str, Any] = {"source": "generated", "max_turns": 2, **sizes[name]}
        found += [f"++task.tasks.{name}.env.{key}={value}" for key, value in small.items()]
        found += [f"task.tasks.{name}.episodes=1", "rollout.env_workers=0"]
    return found


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.usefixtures("no_curves")
def test_a_preset_plays(name: str, folder: Path, tmp_path: Path) -> None:
    RecordingEngine.prompts.clear()
    chosen = [f"experiment={name}"]
    overrides = [*chosen, *local(compose("train", TrainConfig, chosen), folder), f"run_dir={tmp_path / 'run'}"]
    cfg = compose("train", TrainConfig, overrides)
    found = train(cfg)
    assert set(found) == {f"success/{task}" for task in cfg.task.tasks}
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    outcome = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert outcome["tasks"].keys() == set(cfg.task.tasks)
    if "math" in cfg.task.tasks:
        asked = [p for p in RecordingEngine.prompts if "How much is" in p]
        assert not any("Answer:" in prompt for prompt in asked)  # the data set's own instruction is gone
        assert all(
            "\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>" in p for p in asked
        )
        assert not any("0 + 0 in math" in prompt for prompt in asked[-4:])  # held out, so not trained on
    if "alfworld" in cfg.task.tasks:
        assert any("ALFRED embodied environment" in prompt for prompt in RecordingEngine.prompts)
