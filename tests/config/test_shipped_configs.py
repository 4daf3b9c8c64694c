"""The configs that opdlight brings."""

import pytest

from opdlight.config import CONF, EvaluateConfig, SftConfig, TrainConfig, compose
from opdlight.errors import ConfigError


@pytest.mark.parametrize(("name", "schema"), [("train", TrainConfig), ("sft", SftConfig), ("evaluate", EvaluateConfig)])
def test_each_shipped_config_passes_its_checks(name: str, schema: type) -> None:
    assert compose(name, schema, ["task=sums"]).seed == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "engine").glob("*.yaml")))
def test_each_engine_passes_its_checks(name: str) -> None:
    url = ["engine.url=http://host:8000"] if name == "vllm_server" else []
    teachers = ["evaluate_teachers=false"] if name == "vllm_server" else []
    for main, schema, more in [("train", TrainConfig, teachers), ("evaluate", EvaluateConfig, [])]:
        assert compose(main, schema, ["task=sums", f"engine={name}", *url, *more]).engine.model == "lab/student"


@pytest.mark.parametrize("group", ["engine", "teacher"])
def test_a_server_needs_its_url(group: str) -> None:
    with pytest.raises(ConfigError, match=f"Missing `{group}.url`. Give it as {group}.url="):
        compose("train", TrainConfig, ["task=sums", f"{group}=vllm_server"])
    urls = compose("train", TrainConfig, ["task=sums", "teacher=vllm_server", "teacher.url=[http://a:1,http://b:2]"])
    assert list(urls.teacher.url) == ["http://a:1", "http://b:2"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=agent_maths", "The group `task` has no option 'agent_maths'. Did you mean `task=agent_math`?"),
        ("loss.k=ten", "Expected `loss.k` to be int ≥ 1, but got 'ten' (str)."),
        ("trainer.max_stepz=3", "Unknown key `trainer.max_stepz`. Did you mean `trainer.max_steps`?"),
        ("+trainer.precison=3", "Unknown key `trainer.precison`: lightning.Trainer does not take it. Did you mean"),
        ("engine=ray engine.engine.dtype=int", "Expected `engine.engine.dtype` to be one of 'float32', 'bfloat16',"),
        ("engine=ray +engine.engine.thread=1", "Unknown key `engine.engine.thread`: opdlight.rollout.VLLMEngine does"),
        ("engine=ray engine.actors=two", "Expected `engine.actors` to be int ≥ 1, but got 'two' (str)."),
        ("optimizer.lr=fast", "Expected `optimizer.lr` to be float > 0, but got 'fast' (str)."),
        ("model.dtype=float16", "Expected `model.dtype` to be one of 'float32', 'bfloat16', but got 'float16' (str)."),
    ],
)
def test_typical_mistakes_in_the_shipped_config(override: str, message: str) -> None:
    task = [] if override.startswith("task") else ["task=sums"]
    with pytest.raises(ConfigError) as error:
        compose("train", TrainConfig, [*task, *override.split()])
    assert str(error.value).startswith(message)
