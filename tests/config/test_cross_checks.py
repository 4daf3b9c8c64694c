"""Values that are right by themselves and wrong where they stand: one message with the key, before anything is made."""

import inspect
import re
from typing import Any

import lightning as L
import pytest
import yaml

from opdlight.config import EvaluateConfig, SftConfig, TrainConfig, compose, instantiate
from opdlight.config.cross_checks import check_together
from opdlight.config.schemas import DoctorConfig, FailureModesConfig
from opdlight.config.trainer import REFUSED, make_trainer
from opdlight.errors import ConfigError
from opdlight.rollout import Sampling

WRONG = [
    ("trainer.precision=bf16-true", "null (set `model.compute_dtype`"),
    ("trainer.precision=bf16-mixed", "null (set `model.compute_dtype`"),
    ("trainer.precision=16-mixed", "null (set `model.compute_dtype`"),
    ("trainer.precision=64", "null (set `model.compute_dtype`"),
    ("trainer.accumulate_grad_batches=2", "1 (an update is one rollout, cut to `micro_batch_tokens`"),
    ("trainer.gradient_clip_val=0.5", "null (set `max_grad_norm`)"),
    ("trainer.gradient_clip_algorithm=value", "null (gradients are clipped to the 2-norm `max_grad_norm`)"),
    ("trainer.max_epochs=2", "1 (a run is one epoch of `trainer.max_steps` updates)"),
    ("trainer.min_epochs=2", "null (set `trainer.max_steps`)"),
    ("trainer.min_steps=2", "null (set `trainer.max_steps`)"),
    ("trainer.limit_train_batches=0.5", "null (set `trainer.max_steps`"),
    ("trainer.limit_train_batches=1", "null (set `trainer.max_steps`"),
    ("trainer.limit_val_batches=1", "null (or 0 for no evaluation; a batch is a task"),
    ("trainer.limit_test_batches=1", "null (there is no test loop"),
    ("trainer.limit_predict_batches=1", "null (there is no prediction loop"),
    ("trainer.overfit_batches=1", "0 (a rollout is never seen twice"),
    ("trainer.fast_dev_run=true", "false (set `trainer.max_steps=1`)"),
    ("trainer.barebones=true", "false (leave callbacks out"),
    ("trainer.use_distributed_sampler=true", "false (each process takes its share"),
    ("trainer.reload_dataloaders_every_n_epochs=1", "0 (a run is one epoch"),
    ("trainer.enable_checkpointing=false", "left out (`~callbacks.checkpoints` leaves a run without them"),
    ("trainer.enable_progress_bar=false", "left out (`~callbacks.progress` leaves a run without it)"),
    ("trainer.logger=false", "left out (set `logger`"),
    ("trainer.callbacks=[]", "left out (set `callbacks`"),
    ("trainer.default_root_dir=/tmp", "left out (set `run_dir`)"),
]


@pytest.mark.parametrize(("override", "expected"), WRONG, ids=[o for o, _ in WRONG])
def test_what_the_loop_would_ignore_is_refused_with_the_key_to_use(override: str, expected: str) -> None:
    key, _, value = override.partition("=")
    trainer = {"_target_": "lightning.Trainer", key.removeprefix("trainer."): yaml.safe_load(value)}
    with pytest.raises(ConfigError, match=re.escape(f"Expected `{key}` to be {expected}")):
        check_together({"trainer": trainer})


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainer=fsdp", "engine.tensor_parallel_size=2"], "engine.tensor_parallel_size"),
        (["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", "engine=ray"], "engine.address"),
        (["trainer=ddp", "trainer.devices=[0,1]", "engine=ray"], "engine.address"),
    ],
)
def test_engines_that_several_processes_cannot_have_are_refused_at_once(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=f"Expected `{key}`"):
        compose("train", TrainConfig, overrides)
    compose("train", TrainConfig, [overrides[-1]])  # one process may


@pytest.mark.parametrize(
    ("overrides", "engine", "got"),
    [
        (["task.tasks.sums.trajectory_tokens=2000"], "engine", 2000),
        (["~task.tasks.sums.trajectory_tokens"], "engine", 2048),  # the default of opdlight.data.Task
        (["model.max_model_len=255", "engine=ray"], "engine.engine", 256),
        (["+task.tasks.more={_target_: opdlight.data.Task, weight: 0, env: {id: a}}"], "engine", 2048),
    ],
)
def test_a_trajectory_fits_the_engine(overrides: list[str], engine: str, got: int) -> None:
    context = 255 if "ray" in overrides[-1] else 1024
    told = (
        rf"`task\.tasks\.\w+\.trajectory_tokens` to be at most `{engine}\.max_model_len` = {context} .*but got {got}\."
    )
    for name, schema in (("train", TrainConfig), ("evaluate", EvaluateConfig)):
        with pytest.raises(ConfigError, match=told):
            compose(name, schema, ["task=sums", *overrides])
    compose("doctor", DoctorConfig, ["task=sums", *overrides])  # it measures the prompts, and says what to set
    compose("train", TrainConfig, ["task=sums", *overrides, "model.max_model_len=2048"])


def test_an_engine_of_ones_own_may_have_any_context() -> None:
    check_together({"task": {"tasks": {"a": {"trajectory_tokens": 9999}}}, "engine": {"_target_": "own.Engine"}})


def test_the_last_rollout_makes_no_more_updates_than_are_wanted() -> None:
    with pytest.raises(ConfigError, match=r"`trainer.max_steps` to be a multiple of `rollout.mini_batches` \(2\)"):
        compose("train", TrainConfig, ["rollout.mini_batches=2", "trainer.max_steps=3"])
    compose("train", TrainConfig, ["rollout.mini_batches=2", "trainer.max_steps=4"])


@pytest.mark.parametrize("name", ["train", "doctor", "sft", "failure_modes"])
def test_every_entry_point_that_trains_refuses_it(name: str) -> None:
    schemas = {"train": TrainConfig, "doctor": DoctorConfig, "sft": SftConfig, "failure_modes": FailureModesConfig}
    with pytest.raises(ConfigError, match=r"Expected `trainer\.precision` to be null \(.*`model\.dtype`.*'bf16-mixed'"):
        compose(name, schemas[name], ["+trainer.precision=bf16-mixed"])


def test_a_plugin_cannot_bring_precision_either() -> None:
    plugin = {"_target_": "lightning.pytorch.plugins.precision.MixedPrecision", "precision": "bf16-mixed"}
    with pytest.raises(ConfigError, match=r"`trainer\.plugins` to be without precision"):
        check_together({"trainer": {"_target_": "lightning.Trainer", "plugins": [plugin]}})


def test_a_trainer_is_given_what_no_config_needs_to_say_and_a_config_that_says_it_wins() -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = make_trainer(compose("train", TrainConfig, ["trainer.max_steps=5"]).trainer, **quiet)
    assert (trainer.max_steps, trainer.max_epochs, trainer.num_sanity_val_steps) == (5, 1, 0)
    assert trainer.log_every_n_steps == 1  # type: ignore[attr-defined]
    trainer = make_trainer(compose("train", TrainConfig, ["+trainer.log_every_n_steps=3"]).trainer, **quiet)
    assert trainer.log_every_n_steps == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["loss=sampled_token_reward"], "`rollout.group_size` to be at least 2 beside `loss.reward_weight`"),
        (["loss=importance_weighted", "+loss.loss.reward_weight=0.5"], "`rollout.group_size` to be at least 2"),
        (["loss=importance_weighted", "sampling.temperature=0.7"], "`sampling.temperature` to be 1 for importance"),
        (["staleness=1", "sampling.temperature=0.7"], "`sampling.temperature` to be 1 for importance weights"),
        (["engine=vllm_server", "engine.url=http://a:1"], "`evaluate_teachers` to be false beside engine=vllm_server"),
    ],
)
def test_what_a_loss_and_an_engine_need_of_the_rest(overrides: list[str], expected: str) -> None:
    for name, schema in (("train", TrainConfig), ("doctor", DoctorConfig)):
        with pytest.raises(ConfigError, match=re.escape(f"Expected {expected}")):
            compose(name, schema, overrides)


def test_what_is_there_for_a_loss_is_not_refused() -> None:
    compose("train", TrainConfig, ["loss=sampled_token_reward", "rollout.group_size=2"])
    compose("train", TrainConfig, ["loss=sampled_token_reward", "loss.reward_weight=0.0"])
    compose("train", TrainConfig, ["loss=k2", "sampling.temperature=0.7"])


def test_every_refusal_is_of_an_argument_that_lightning_has() -> None:
    assert set(REFUSED) <= set(inspect.signature(L.Trainer.__init__).parameters)
    assert {override.partition("=")[0] for override, _ in WRONG} == {f"trainer.{name}" for name in REFUSED}


@pytest.mark.parametrize("trainer", ["cpu", "ddp", "fsdp", "gpu"])
def test_what_is_there_anyway_may_be_said(trainer: str) -> None:
    said = ["++trainer.precision=32-true", "++trainer.accumulate_grad_batches=1", "++trainer.limit_val_batches=0"]
    compose("train", TrainConfig, [f"trainer={trainer}", *said])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sampling.temperature=0", "`sampling.temperature` to be a number > 0"),
        ("sampling.temperature=0.0", "`sampling.temperature` to be a number > 0"),
        ("sampling.temperature=-1", "`sampling.temperature` to be a number > 0"),
        ("sampling.temperature=nan", "`sampling.temperature` to be a number > 0"),
        ("sampling.temperature=inf", "`sampling.temperature` to be a number > 0"),
        ("sampling.top_p=0", "`sampling.top_p` to be a number in (0, 1]"),
        ("sampling.top_p=1.5", "`sampling.top_p` to be a number in (0, 1]"),
        ("sampling.top_p=nan", "`sampling.top_p` to be a number in (0, 1]"),
        ("evaluation.temperature=-1", "`evaluation.temperature` to be a number ≥ 0"),
        ("evaluation.temperature=nan", "`evaluation.temperature` to be a number ≥ 0"),
        ("evaluation.top_p=0", "`evaluation.top_p` to be a number in (0, 1]"),
    ],
)
def test_a_policy_that_cannot_be_is_one_error_with_its_own_key(override: str, expected: str) -> None:
    key, _, value = override.partition("=")
    node, _, name = key.partition(".")
    with pytest.raises(ConfigError, match=re.escape(f"Expected {expected}")):
        check_together({"loss": {}, node: {name: float(value)}})


@pytest.mark.parametrize(("name", "schema"), [("train", TrainConfig), ("doctor", DoctorConfig)])
def test_training_cannot_be_greedy(name: str, schema: type) -> None:
    with pytest.raises(ConfigError, match=r"Expected `sampling\.temperature` to be a number > 0 .*, but got 0"):
        compose(name, schema, ["sampling.temperature=0"])


def test_greedy_evaluation_is_right() -> None:
    cfg = compose("train", TrainConfig, ["evaluation.temperature=0"])
    assert instantiate(cfg.evaluation) == Sampling(temperature=0, top_p=0.9)
    cfg = compose("evaluate", EvaluateConfig, ["sampling.temperature=0"])
    assert instantiate(cfg.sampling).temperature == 0


@pytest.mark.parametrize("wrong", [{"temperature": float("inf")}, {"temperature": float("nan")}, {"top_p": 0.0}])
def test_the_policy_itself_refuses_them_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`sampling\.(temperature|top_p)`"):
        Sampling(**wrong)
