"""Composition and its errors: one message that names the key, what came, and the nearest right one."""

from pathlib import Path

import pytest
from config_targets import Top

from opdlight.config import TrainConfig, compose
from opdlight.config.explain import nearest_key
from opdlight.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=smal"], "The group `loss` has no option 'smal'. Did you mean `loss=small`? Options: large, small."),
        (["losss=small"], "Unknown key `losss`. Did you mean `loss`?"),
        (["reader.k=3"], "Unknown key `reader.k`. It is called `probe.k` now."),
        (["+reader.k=3"], "Unknown key `reader.k`. It is called `probe.k` now."),
        (["++reader.k=3"], "Unknown key `reader.k`. It is called `probe.k` now."),
        (["callbacks.publish.every=3"], "Unknown key `callbacks.publish.every`. It is gone: the weights are published"),
        (["~callbacks.publish"], "Unknown key `callbacks.publish`. It is gone: the weights are published"),
        (["loss=large", "~loss.kind"], "Unknown key `loss.kind`. Known: k."),
        (["loss=large", "loss.scal=3"], "Unknown key `loss.scal`. Did you mean +loss.scale=<value>?"),
        (["+losss=small"], "Unknown key `losss`. Did you mean `loss`?"),
        (["loss=null"], "Expected `loss` to be one of its options (large, small), but got 'null'."),
        (["loss=3"], "Expected `loss` to be one of its options (large, small), but got '3'."),
        (["other=small"], "`main` has no group `other`. Its groups: loss."),
        (["other=small", "loss.kk=3"], "`main` has no group `other`. Its groups: loss."),
        (["~other"], "`main` has no group `other`. Its groups: loss."),
        (["loss.kk=3"], "Unknown key `loss.kk`. Did you mean `loss.k`? An argument of `loss` that the config does not"),
        (["+loss.kk=3"], "Unknown key `loss.kk`: config_targets.Small does not take it. Did you mean `loss.k`?"),
        (["loss=large", "loss.scale=3"], "Unknown key `loss.scale`. Known: k."),  # the keys of the chosen option
        (["group_size=3"], "Unknown key `group_size`. Did you mean `rollout.group_size`?"),
        (["rolout.group_siz=3"], "Unknown key `rolout.group_siz`. Did you mean `rollout.group_size`?"),
        (["q.r.s=3"], "Unknown key `q.r.s`. Known: again, extras, loss, rollout, run_dir, seed."),
        (["loss.k.x=3"], "Unknown key `loss.k.x`."),
        (["~lost"], "Unknown key `lost`. Did you mean `loss`?"),
        (["~loss"], "Missing `loss`."),
        (["loss.k=ten"], "Expected `loss.k` to be int, but got 'ten' (str)."),
        (["++loss.k=ten"], "Expected `loss.k` to be int, but got 'ten' (str)."),
        (["loss.k=[1"], "Cannot read the override `loss.k=[1`: "),
        (["loss"], "Cannot read the override `loss`: missing EQUAL"),
        (["loss=small,large"], "Ambiguous value for argument 'loss=small,large'"),
        (["again=${sed}"], "Cannot resolve `again`: there is no key `sed`. Did you mean `seed`?"),
        (["again=${loss.kk}"], "Cannot resolve `again`: there is no key `loss.kk`. Did you mean `loss.k`?"),
        (["again=${oc.env:NOT_SET_ANYWHERE}"], "Cannot resolve `again`: "),
        (["again=${again}"], "Cannot resolve `again`: "),
        (["loss.k=???"], "Missing `loss.k`. Give it as loss.k=<value>."),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_message(overrides: list[str], message: str, conf: Path) -> None:
    (conf / "other").mkdir()  # a group of another command
    (conf / "other" / "small.yaml").write_text("k: 1\n")
    with pytest.raises(ConfigError) as error:
        compose("main", Top, overrides, conf=conf)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_task_of_the_paper_without_its_models_is_told_which_have_teachers() -> None:
    with pytest.raises(
        ConfigError, match=r"no key `model.teachers.math`. Choose one with teachers, such as model=qwen"
    ):
        compose("train", TrainConfig, ["task=paper_math"])


def test_a_misspelt_parent_is_corrected_before_the_whole_config_is_searched() -> None:
    known = {"seed": 1, "trainer": {"seed": 2, "steps": 3}}
    assert nearest_key("trainr.seed", known) == "Did you mean `trainer.seed`?"
    assert nearest_key("step", known) == "Did you mean `trainer.steps`?"


def test_composition_keeps_interpolations_and_leaves_hydra_out(conf: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    (extra / "loss").mkdir(parents=True)
    (extra / "loss" / "mine.yaml").write_text("_target_: config_targets.Small\nk: 7\n")
    cfg = compose("main", Top, ["loss=mine", "seed=5", "+loss.scale=0.5"], conf=conf, extra=extra)
    assert (cfg.again, cfg.loss.k, cfg.loss.scale, "hydra" in cfg) == (5, 7, 0.5, False)
    cfg.run_dir = "elsewhere"
    assert cfg.run_dir == "elsewhere"


def test_a_wrong_key_is_compared_with_the_options_of_a_searched_folder_too(conf: Path, tmp_path: Path) -> None:
    extra = tmp_path / "my conf"
    (extra / "loss").mkdir(parents=True)
    (extra / "loss" / "mine.yaml").write_text("_target_: config_targets.Large\nk: 7\n")
    expected = (
        r"^Unknown key `loss\.scale`\. Known: k\. An argument of `loss` that the config does not list needs a plus"
    )
    with pytest.raises(ConfigError, match=expected):  # not the nearest key of `loss=small`
        compose("main", Top, ["loss=mine", "loss.scale=3"], conf=conf, extra=extra)
    folder = f"hydra.searchpath=['file://{extra}']"  # as a resumed run has it
    with pytest.raises(ConfigError, match=expected):
        compose("main", Top, ["loss=mine", "loss.scale=3", folder], conf=conf)


def test_a_missing_option_inside_a_file_names_the_file(conf: Path) -> None:
    (conf / "loss" / "both.yaml").write_text("defaults: [smoll]\n")
    with pytest.raises(ConfigError, match=r"no option 'smoll' \(named in loss/both.yaml\)"):
        compose("main", Top, ["loss=both"], conf=conf)


def test_a_missing_folder_or_config_is_named(conf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config folder .*nowhere is missing"):
        compose("main", Top, conf=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="There is no config `mian`"):
        compose("mian", Top, conf=conf)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"k: [16\n", "small.yaml as YAML, line 2, column 1: while parsing a flow sequence, expected ',' or ']', but"),
        (b"a: 1\n\tk: 2\n", "small.yaml as YAML, line 2, column 1: while scanning for the next token, found char"),
        (b"k: 1\nk: 2\n", "small.yaml as YAML, line 2, column 1: while constructing a mapping, found duplicate key"),
        (b"k: \xff\n", "Cannot read a file of options as YAML: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_message(text: bytes, message: str, conf: Path) -> None:
    (conf / "loss" / "small.yaml").write_bytes(text)
    with pytest.raises(ConfigError) as error:
        compose("main", Top, conf=conf)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
