"""Every number that a config can set has bounds, and each message names the key."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import gymnasium
import pytest
from gymnasium.envs.registration import load_env_creator

import opdlight.envs  # noqa: F401
from opdlight.bounds import Bounds, FiniteFloat, PositiveInt, UnitFloat
from opdlight.config import CONF, DoctorConfig, EvaluateConfig, SftConfig, TrainConfig, compose, schemas
from opdlight.config.checks import locate
from opdlight.config.values import check_value
from opdlight.errors import ConfigError


def targets() -> list[str]:
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    return sorted({t for text in texts for t in re.findall(r"_target_: (opdlight\.[\w.]+)", text)})


def unbounded(annotation: Any) -> Iterator[Any]:
    """The bare numbers in an annotation."""
    if get_origin(annotation) is Annotated:
        if not any(isinstance(b, Bounds) for b in get_args(annotation)[1:]):
            yield from unbounded(get_args(annotation)[0])
    elif annotation in (int, float):
        yield annotation
    elif get_origin(annotation) is not Literal and not (isinstance(annotation, type) and issubclass(annotation, Enum)):
        for argument in get_args(annotation):
            yield from unbounded(argument)


def bare_numbers(thing: Any) -> list[str]:
    made = thing.__init__ if isinstance(thing, type) and not is_dataclass(thing) else thing
    hints = get_type_hints(made, include_extras=True)
    names = [n for n in inspect.signature(thing).parameters if n in hints]
    return [name for name in names if list(unbounded(hints[name]))]


SCHEMAS = [
    c for c in vars(schemas).values() if is_dataclass(c) and c.__module__ == schemas.__name__ and c is not Bounds
]
ENVS = [name for name in gymnasium.registry if name.startswith("opdlight/")]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_number_of_a_schema_has_bounds(schema: type) -> None:
    assert bare_numbers(schema) == []


@pytest.mark.parametrize("target", targets())
def test_every_number_of_a_target_has_bounds(target: str) -> None:
    assert bare_numbers(locate("target", target)) == []


@pytest.mark.parametrize("name", ENVS)
def test_every_number_of_an_environment_has_bounds(name: str) -> None:
    assert bare_numbers(load_env_creator(str(gymnasium.registry[name].entry_point))) == []


def test_a_bare_number_is_found_wherever_it_hides() -> None:
    class Bare:
        def __init__(self, a: int, b: dict[str, list[float | None]], c: PositiveInt, d: Literal[1], e: str) -> None: ...

    assert bare_numbers(Bare) == ["a", "b"]
    assert len(SCHEMAS) > 10
    assert len(targets()) > 30
    assert len(ENVS) > 4


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, PositiveInt),
        (2**40, PositiveInt),
        (0, UnitFloat),
        (1.0, UnitFloat),
        (None, PositiveInt | None),
        (-3, FiniteFloat),
    ],
)
def test_what_lies_within_passes(value: object, annotation: Any) -> None:
    check_value("a.b", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (0, PositiveInt, "Expected `a.b` to be int ≥ 1, but got 0 (int)."),
        ("ten", PositiveInt, "Expected `a.b` to be int ≥ 1, but got 'ten' (str)."),
        (1.0, PositiveInt, "Expected `a.b` to be int ≥ 1, but got 1.0 (float)."),
        (True, PositiveInt, "Expected `a.b` to be int ≥ 1, but got True (bool)."),
        (1.5, UnitFloat, "Expected `a.b` to be float in [0, 1], but got 1.5 (float)."),
        (0, PositiveInt | None, "Expected `a.b` to be int ≥ 1 or null, but got 0 (int)."),
        ([1, 0], list[PositiveInt], "Expected `a.b[1]` to be int ≥ 1, but got 0 (int)."),
        (float("nan"), UnitFloat, "Expected `a.b` to be a finite number, float in [0, 1], but got nan (float)."),
        (float("inf"), float, "Expected `a.b` to be a finite number, float, but got inf (float)."),
        (-float("inf"), FiniteFloat, "Expected `a.b` to be a finite number, float, but got -inf (float)."),
        (10**30, PositiveInt, f"Expected `a.b` to be a number of 64 bits, int ≥ 1, but got {10**30} (int)."),
        (1, Annotated[float, Bounds(above=1)], "Expected `a.b` to be float > 1, but got 1 (int)."),
        (1, Annotated[float, Bounds(below=1)], "Expected `a.b` to be float < 1, but got 1 (int)."),
        (2, Annotated[float, Bounds(at_most=1)], "Expected `a.b` to be float ≤ 1, but got 2 (int)."),
    ],
)
def test_what_does_not_is_one_message(value: object, annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_value("a.b", value, annotation)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "override",
    [
        "rollout.groups=-1", "rollout.group_size=0", "rollout.mini_batches=0", "rollout.env_threads=0", "seed=-1",
        "seed=4294967296", "micro_batch_tokens=-1", "trainer.max_steps=-5", "trainer.max_steps=0", "trainer.devices=0",
        "+trainer.max_epochs=0", "+trainer.num_nodes=0", "+trainer.limit_val_batches=-1", "optimizer.lr=0",
        "optimizer.lr=nan", "optimizer.weight_decay=-1", "max_grad_norm=inf", "max_grad_norm=0", "max_not_finite=0",
        "sampling.top_p=0", "sampling.top_p=1.5", "sampling.temperature=-1", "probe.every=0", "schedule.warmup=-1",
        "callbacks.checkpoints.keep=0", "callbacks.alarms.patience=0", "callbacks.alarms.rules.entropy.below=nan",
        "callbacks.rollouts.ngram=0", "engine.max_num_seqs=0", "+engine.threads=0", "+engine.kv_cache_gib=-1",
        "model.max_model_len=0", "task.tasks.sums.turn_tokens=0", "task.tasks.sums.weight=-1", "loss.k=0",
        "task.tasks.sums.episodes=-2", "+task.tasks.sums.samples=0", "+task.tasks.sums.env_seconds=0",
    ],
)  # fmt: skip
def test_a_number_that_trains_nothing_or_ends_in_a_traceback_is_named(override: str) -> None:
    key = override.lstrip("+").partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(f"`{key}`") + " to be .*(int|float)"):
        compose("train", TrainConfig, ["task=sums", override])


@pytest.mark.parametrize(
    ("main", "schema", "override"),
    [
        ("sft", SftConfig, "batch_size=0"), ("sft", SftConfig, "demonstrations.detours=1"),
        ("sft", SftConfig, "trainer.max_steps=0"), ("evaluate", EvaluateConfig, "samples=-1"),
        ("doctor", DoctorConfig, "rollout.groups=-1"),
    ],
)  # fmt: skip
def test_every_entry_point_checks(main: str, schema: type, override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"`{override.partition('=')[0]}`")):
        compose(main, schema, ["task=sums", override])
