"""Arguments of chat templates reach all places that render: training, evaluation, teachers, demonstrations."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opdlight.config import EvaluateConfig, SftConfig, TrainConfig, compose, instantiate
from opdlight.errors import CheckpointError, ConfigError
from opdlight.evaluate.run import evaluate
from opdlight.models.loading import LAB, load_tokenizer
from opdlight.rollout import ChatRenderer
from opdlight.sft import run as supervised
from opdlight.train.build import build
from opdlight.train.teachers import evaluate_teachers
from tests.fakes import RecordingEngine
from tests.tiny_models import CHATML, tiny_tokenizer

ENGINE = "engine._target_=tests.fakes.RecordingEngine"
OFF = "{enable_thinking: false}"
CLOSED = "<think></think>"


@pytest.fixture(autouse=True)
def prompts() -> Iterator[list[str]]:
    RecordingEngine.prompts.clear()
    yield RecordingEngine.prompts
    RecordingEngine.prompts.clear()


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lab student with a template that can be told not to think."""
    folder = tmp_path_factory.mktemp("models") / "thinker"
    shutil.copytree(LAB / "student", folder)
    tokenizer: Any = load_tokenizer(folder)
    closed = "{% if enable_thinking is defined and not enable_thinking %}" + CLOSED + "{% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>{%", f"<|assistant|>{closed}{{%")
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_arguments_reach_the_template_and_others_are_named() -> None:
    tokenizer = tiny_tokenizer(CHATML.replace("assistant\n'", "assistant\n' + (mood | default('plain'))"))
    plain, gay = (ChatRenderer(tokenizer, arguments) for arguments in (None, {"mood": "gay"}))
    assert tokenizer.decode(plain.start(None, "hi").prompt_ids).endswith("assistant\nplain")
    assert tokenizer.decode(gay.start(None, "hi").prompt_ids).endswith("assistant\ngay")
    with pytest.raises(ConfigError, match=r"`model\.student\.chat_template\.moood`.*Did you mean `.*\.mood`"):
        ChatRenderer(tokenizer, {"moood": "gay"})
    with pytest.raises(ConfigError, match=r"does not use it\. Known: mood\.$"):
        ChatRenderer(tokenizer, {"enable_thinking": False})
    whole = tiny_tokenizer("{% generation %}" + CHATML + "{% endgeneration %}{{ eos_token }}")
    with pytest.raises(ConfigError, match=r"does not use it\. Nothing can be set there\.$"):
        ChatRenderer(whole, {"enable_thinking": False})
    for ours in ("add_generation_prompt", "tokenize", "chat_template", "conversation"):
        with pytest.raises(ConfigError, match=rf"Unknown key `model\.student\.chat_template\.{ours}`"):
            ChatRenderer(tokenizer, {ours: True})


def test_evaluation_renders_with_them(thinker: str, prompts: list[str], tmp_path: Path) -> None:
    for more, expected in ([], ""), ([f"model.student.chat_template={OFF}"], CLOSED):
        prompts.clear()
        cfg = compose("evaluate", EvaluateConfig, [
            "task=sums", "task.tasks.sums.episodes=2", ENGINE, f"model.student.model={thinker}", *more,
            f"run_dir={tmp_path / str(len(more))}",
        ])  # fmt: skip
        evaluate(cfg)
        assert len(prompts) == 2
        assert all(p.endswith(f"<|assistant|>{expected}") for p in prompts)


def test_training_and_its_teachers_render_with_their_own(thinker: str, prompts: list[str]) -> None:
    models = [f"model.student.model={thinker}", f"task.tasks.sums.teacher={thinker}", "task.tasks.sums.episodes=2"]
    common = ["task=sums", ENGINE, *models, "run_dir=."]
    cfg = compose("train", TrainConfig, [*common, f"model.student.chat_template={OFF}"])
    mixture = instantiate(cfg.task)
    module = build(cfg, mixture)
    assert module.source.collector.renderer.arguments == {"enable_thinking": False}
    module.source.close()
    evaluate_teachers(cfg, mixture)
    assert all(p.endswith("<|assistant|>") for p in prompts)
    prompts.clear()
    cfg = compose("train", TrainConfig, [*common, f"+task.tasks.sums.teacher_chat_template={OFF}"])
    evaluate_teachers(cfg, instantiate(cfg.task))
    assert len(prompts) == 2
    assert all(p.endswith(f"<|assistant|>{CLOSED}") for p in prompts)


@pytest.mark.parametrize(("override", "message"), [
    ("model.student.chat_template={enable_thinkin: false}", r"key `model\.student\.chat_template\.enable_thinkin`"),
    ("+task.tasks.sums.teacher_chat_template={x: 1}", r"Unknown key `task\.tasks\.sums\.teacher_chat_template\.x`"),
    ("sampling.stop=[two words]", r"`sampling\.stop` .* one token of the vocabulary, but got 'two words'"),
])  # fmt: skip
def test_what_nobody_knows_is_an_error_before_the_engine_starts(override: str, message: str) -> None:
    cfg = compose("train", TrainConfig, ["task=sums", ENGINE, "run_dir=.", override])
    with pytest.raises(ConfigError, match=message):
        build(cfg, instantiate(cfg.task))


def test_a_teacher_that_is_not_there_is_an_error_with_its_key() -> None:
    overrides = ["task=sums", ENGINE, "run_dir=.", "task.tasks.sums.teacher=lab/teacher-sum"]
    cfg = compose("train", TrainConfig, overrides)
    with pytest.raises(CheckpointError, match=r"^`task\.tasks\.sums\.teacher`: No lab model is called"):
        build(cfg, instantiate(cfg.task))


def test_a_student_that_is_not_there_is_an_error_with_its_key(tmp_path: Path) -> None:
    overrides = ["task=sums", ENGINE, f"run_dir={tmp_path}", "model.student.model=lab/stud"]
    with pytest.raises(CheckpointError, match=r"^`model\.student\.model`: No lab model is called"):
        evaluate(compose("evaluate", EvaluateConfig, overrides))


def test_stops_of_training_are_those_of_the_evaluation() -> None:
    cfg = compose("train", TrainConfig, ["task=sums", "run_dir=.", 'sampling.stop=["<|user|>",1]'])
    assert list(cfg.evaluation.stop) == ["<|user|>", 1]


def test_demonstrations_are_rendered_with_them(thinker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def seen(demonstration: Any, renderer: ChatRenderer) -> Any:
        raise Seen(renderer.arguments)

    file = tmp_path / "demonstrations.jsonl"
    file.write_text('{"task": "sums", "seed": 1, "steps": [{"observation": "1+1", "reply": "2"}]}\n', encoding="utf-8")
    monkeypatch.setattr(supervised, "tokens", seen)
    cfg = compose("sft", SftConfig, [
        "task=sums", f"demonstrations.file={file}", f"model.student.model={thinker}",
        f"model.student.chat_template={OFF}", f"run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    with pytest.raises(Seen, match="'enable_thinking': False"):
        supervised.sft(cfg)
