"""Composition and its errors: one message that names the key, what came, and the nearest right one."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
import torch
from config_targets import Colour, Inner, Top

from opdlight.config import CONF, EvaluateConfig, SftConfig, TrainConfig, compose
from opdlight.config.checks import check_config
from opdlight.config.explain import nearest_key
from opdlight.config.help import commented_keys, help_text
from opdlight.config.values import Node, check_value
from opdlight.errors import ConfigError

MAIN = """\
# Test a small thing.
# python -m opdlight.main loss=large
defaults:
  - loss: small
  - _self_

# where randomness starts
seed: 1
# how much
rollout:
  groups: 4
  # copies of each
  group_size: 2
extras: {}
again: ${seed}
run_dir: ${hydra:runtime.output_dir}

hydra:
  run:
    dir: out/run
  sweep:
    dir: out/sweep
"""
SMALL = "# the small one\n_target_: config_targets.Small\n# how many\nk: 3\nscale: 1\nkind: first\nfail: 'no'\n"
LARGE = "# the large one\n_target_: config_targets.Small\nk: 300\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    (folder / "loss").mkdir(parents=True)
    (folder / "main.yaml").write_text(MAIN)
    (folder / "loss" / "small.yaml").write_text(SMALL)
    (folder / "loss" / "large.yaml").write_text(LARGE)
    return folder


GOOD: list[tuple[object, Any]] = [
    (3, int), (3, float), (0.5, float), (True, bool), ("a", str), (None, None), (None, int | None), (3, int | None),
    (3, Optional[int]),  # noqa: UP045 (the older spelling is another object)
    ("every", Literal["first", "every"]), (2, Literal[2]), ([1, "a"], list[int | str]), ([], Sequence[int]),
    ([1, 2], tuple[int, ...]), ([1, "a"], tuple[int, str]), ({"a": 1}, dict[str, float]), ([1], list),
    ({"a": [1]}, Mapping[str, list[int]]), ({"width": 1}, Inner), ({"_target_": "x.Y"}, int),
    ({"_target_": "x.Y"}, Node), ([{"_target_": "x.Y"}], list[int]), ("RED", Colour), (0.1, float | torch.Tensor),
    (5, Any), (5, torch.Tensor), ("a/b", str | Path), ("a/b", Path), (5, object), (5, Any | None),
    ([[1], [2]], list[list[int]]),
]  # fmt: skip
BAD: list[tuple[object, Any, str]] = [
    ("ten", int, "Expected `loss.k` to be int, but got 'ten' (str)."),
    (3.0, int, "Expected `loss.k` to be int, but got 3.0 (float)."),
    (True, int, "Expected `loss.k` to be int, but got True (bool)."),
    (True, float, "Expected `loss.k` to be float, but got True (bool)."),
    (1, bool, "Expected `loss.k` to be bool, but got 1 (int)."),
    (1, str, "Expected `loss.k` to be str, but got 1 (int)."),
    (None, int, "Expected `loss.k` to be int, but got None (NoneType)."),
    ("ten", int | None, "Expected `loss.k` to be int or null, but got 'ten' (str)."),
    ("ten", float | torch.Tensor, "Expected `loss.k` to be float, but got 'ten' (str)."),
    ("last", Literal["first", "every"], "Expected `loss.k` to be one of 'first', 'every', but got 'last' (str)."),
    (True, Literal[1], "Expected `loss.k` to be one of 1, but got True (bool)."),
    ("ab", list[str], "Expected `loss.k` to be a list of str, but got 'ab' (str)."),
    ([1, "b"], list[int], "Expected `loss.k[1]` to be int, but got 'b' (str)."),
    ([1, "b"], list[int] | None, "Expected `loss.k[1]` to be int, but got 'b' (str)."),
    ([1], tuple[int, int], "Expected `loss.k` to be a list of 2, but got [1] (list)."),
    ({"a": "b"}, dict[str, int], "Expected `loss.k.a` to be int, but got 'b' (str)."),
    ([1], dict[str, int], "Expected `loss.k` to be a mapping, but got [1] (list)."),
    ({"width": "b"}, Inner, "Expected `loss.k.width` to be int, but got 'b' (str)."),
    ({"widht": 1}, Inner | None, "Unknown key `loss.k.widht`. Did you mean `loss.k.width`?"),
    ({}, Inner, "Missing `loss.k.width`. Give it as loss.k.width=<value>."),
    ("BLUE", Colour, "Expected `loss.k` to be one of RED, but got 'BLUE' (str)."),
    ({"k": 1}, Node, "Expected `loss.k` to be a mapping with `_target_`, but got {'k': 1} (dict)."),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), GOOD)
def test_a_value_that_meets_its_annotation_passes(value: object, annotation: Any) -> None:
    check_value("loss.k", value, annotation)


@pytest.mark.parametrize(("value", "annotation", "message"), BAD)
def test_a_value_of_the_wrong_type_is_named(value: object, annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_value("loss.k", value, annotation)
    assert str(error.value) == message


def top(**changes: Any) -> dict[str, Any]:
    return {"seed": 1, "run_dir": "x", "loss": small(k=1), "rollout": {"groups": 1}, **changes}


def small(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "config_targets.Small", **arguments}


def wide(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "config_targets.Wide", **arguments}


@pytest.mark.parametrize(
    "node",
    [
        small(k=2, scale=2, kind="every"),
        small(_partial_=True),
        wide(_args_=[1], flag=True),
        wide(a=1, items=[1, "a"], table={"x": 1}, inner={"width": 2}, parts=[small(k=1)], hook="name", _convert_="all"),
        {"_target_": "config_targets.open_ended", "a": 1, "anything": "goes"},
        {"_target_": "config_targets.Unresolvable", "a": 1, "other": 5},
        {"_target_": "config_targets.Constant"},
        {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3, "betas": [0.9, 0.95]},
        {"_target_": "pathlib.Path.cwd"},
    ],
)
def test_nodes_that_fit_their_targets_pass(node: dict[str, Any]) -> None:
    check_config(top(loss=node, extras={"nested": node}), Top)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (top(losss=1), "Unknown key `losss`. Did you mean `loss`?"),
        (top(zzz=1), "Unknown key `zzz`. Known: again, extras, loss, rollout, run_dir, seed."),
        ({"seed": 1}, "Missing `run_dir`. Give it as run_dir=<value>."),
        (top(loss=None), "Expected `loss` to be a mapping with `_target_`, but got None (NoneType)."),
        (top(rollout={"groups": "a"}), "Expected `rollout.groups` to be int, but got 'a' (str)."),
        (top(rollout={"group": 1}), "Unknown key `rollout.group`. Did you mean `rollout.groups`?"),
        (top(loss=small(kk=1)), "Unknown key `loss.kk`: config_targets.Small does not take it. Did you mean `loss.k`?"),
        (top(loss=small()), "Missing `loss.k`: config_targets.Small needs it. Add +loss.k=<value>."),
        (top(loss=small(k="ten")), "Expected `loss.k` to be int, but got 'ten' (str)."),
        (top(loss=small(k="ten", _partial_=True)), "Expected `loss.k` to be int, but got 'ten' (str)."),
        (top(extras={"a": small(k="b")}), "Expected `extras.a.k` to be int, but got 'b' (str)."),
        (top(loss=wide(a=1, parts=[small(k="b")])), "Expected `loss.parts[0].k` to be int, but got 'b' (str)."),
        (top(loss=wide(a=1, inner={"widht": 1})), "Unknown key `loss.inner.widht`. Did you mean `loss.inner.width`?"),
        (top(loss=wide(_args_=[1], a=1)), "Unknown key `loss.a`: config_targets.Wide does not take it. Known:"),
        (
            top(loss={"_target_": "config_targets.Constant", "a": 1}),
            "Unknown key `loss.a`: config_targets.Constant does",
        ),
        (top(loss={"_target_": "config_targets.open_ended", "a": "b"}), "Expected `loss.a` to be int, but got 'b'"),
        (
            top(loss={"_target_": "torch.optim.AdamW", "_partial_": True, "lr": "fast"}),
            "Expected `loss.lr` to be float, but got 'fast' (str).",
        ),
        (
            top(loss={"_target_": "config_targets.Smal"}),
            "Expected `loss._target_` to be importable, but config_targets has no 'Smal' (got 'config_targets.Smal'). "
            "Did you mean 'Small'?",
        ),
        (
            top(loss={"_target_": "nomodule.Small"}),
            "Expected `loss._target_` to be importable, but there is no module 'nomodule' (got 'nomodule.Small').",
        ),
        (top(loss={"_target_": "config_targets.NOT_CALLABLE"}), "Expected `loss._target_` to be the dotted path of a"),
        (
            top(loss={"_target_": 5}),
            "Expected `loss._target_` to be the dotted path of a class or function, but got 5.",
        ),
    ],
)
def test_a_wrong_node_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config(config, Top)
    assert str(error.value).startswith(message)


def test_a_target_whose_module_lacks_a_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        check_config(top(loss={"_target_": "needs_more.Thing"}), Top)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=smal"], "The group `loss` has no option 'smal'. Did you mean `loss=small`? Options: large, small."),
        (["losss=small"], "Unknown key `losss`. Did you mean `loss`?"),
        (["reader.k=3"], "Unknown key `reader.k`. It is called `probe.k` now."),
        (["+losss=small"], "Unknown key `losss`. Did you mean `loss`?"),
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
    with pytest.raises(ConfigError) as error:
        compose("main", Top, overrides, conf=conf)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_misspelt_parent_is_corrected_before_the_whole_config_is_searched() -> None:
    known = {"seed": 1, "trainer": {"seed": 2, "steps": 3}}
    assert nearest_key("trainr.seed", known) == "Did you mean `trainer.seed`?"
    assert nearest_key("step", known) == "Did you mean `trainer.steps`?"


def test_composition_keeps_interpolations_and_leaves_hydra_out(conf: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    (extra / "loss").mkdir(parents=True)
    (extra / "loss" / "mine.yaml").write_text(LARGE.replace("300", "7"))
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


def start(conf: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The entry point of config_targets, in a folder of its own."""
    cwd = conf.parent / "cwd"
    cwd.mkdir(exist_ok=True)
    paths = os.pathsep.join(str(p) for p in (Path(__file__).parent, Path(__file__).parents[2]))
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-m", "config_targets", str(conf), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_entry_point_runs_where_it_was_started(conf: Path) -> None:
    done = start(conf, "loss=large")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ran k=300 in cwd writes to {conf.parent / 'cwd' / 'out' / 'run'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=larg"], "The group `loss` has no option 'larg'."),
        (["loss.k=ten"], "Expected `loss.k` to be int, but got 'ten' (str)."),
        (["loss.k=-1"], "Expected `loss.k` to be at least 0, but got -1."),  # raised by the class when it is built
        (["loss.fail=config"], "the run is told to stop"),
        (["-m", "loss=small,larg"], "The group `loss` has no option 'larg'."),
        (["-m", "loss.k=1,2,ten", "seed=1,2"], "Expected `loss.k` to be int, but got 'ten' (str)."),
        (["-m", "loss.k=[1,2"], "Cannot read the override `loss.k=[1,2`"),
        (["--cfg", "job", "loss.kk=1"], "Unknown key `loss.kk`."),
    ],
)
def test_a_mistake_ends_the_entry_point_with_code_2_and_no_traceback(
    arguments: list[str], message: str, conf: Path
) -> None:
    done = start(conf, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback_and_hydra_full_error_shows_every_one(conf: Path) -> None:
    bug = start(conf, "loss.fail=bug")
    assert (bug.returncode, "RuntimeError: a bug" in bug.stderr) == (1, True)
    full = start(conf, "loss.k=ten", HYDRA_FULL_ERROR="1")
    assert "Traceback" in full.stderr
    assert "Expected `loss.k` to be int" in full.stderr


def test_what_hydra_users_expect_works(conf: Path) -> None:
    sweep = start(conf, "-m", "loss=small,large")
    assert [line[:9] for line in sweep.stdout.splitlines() if line.startswith("ran")] == ["ran k=3 i", "ran k=300"]
    shown = start(conf, "--cfg", "job", "loss.k=ten")  # to look at a config needs no right types
    assert "k: ten" in shown.stdout
    assert "Hydra" in start(conf, "--hydra-help").stdout
    added = start(conf, "--config-dir", str(conf.parent), "--info", "defaults")
    assert "loss/small" in added.stdout


def test_help_shows_groups_options_and_examples(conf: Path) -> None:
    text = start(conf, "loss=large", "--help", COLUMNS="100").stdout
    assert text == help_text(conf, "main", ["loss=large"]) + "\n"
    for line in (
        "Test a small thing.",
        "  loss       * large  the large one",
        "               small  the small one",
        "  seed=1",
        "      where randomness starts",
        "  rollout.groups=4",
        "  rollout.group_size=2",
        "  python -m opdlight.main loss=large",
    ):
        assert line in text.splitlines(), line
    assert "hydra.run" not in text
    assert "  loss.k=3" in help_text(conf, "main").splitlines()


def test_help_lists_the_options_of_a_folder_of_one_s_own(conf: Path, tmp_path: Path) -> None:
    extra = tmp_path / "mine"
    (extra / "loss").mkdir(parents=True)
    (extra / "loss" / "tiny.yaml").write_text("# my own\n_target_: config_targets.Small\n# a few\nk: 1\n")
    (extra / "loss" / "large.yaml").write_text("# never chosen: Hydra searches this folder last\nk: 2\n")
    text = start(conf, "loss=tiny", "--help", "--config-dir", str(extra), COLUMNS="100").stdout
    lines = text.splitlines()
    assert "             * tiny   (yours) my own" in lines
    assert "  loss         large  the large one" in lines
    assert "  loss.k=1" in lines and "      a few" in lines
    assert "tiny" not in help_text(conf, "main")
    assert "Options of your own: --config-dir <folder>, with loss/<name>.yaml in it" in help_text(conf, "main")
    wrong = start(conf, "--help", "--config-dir", "nowhere")
    assert wrong.stderr == "error: Expected `--config-dir` to be a folder that exists, but got 'nowhere'.\n"


def test_only_a_comment_right_above_a_key_describes_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "# about the file\na: 1\n# about b\nb:\n  c: 2\n  # about d,\n  # twice\n  d: 3\n# lost\n\ne: 4\nf: [1]\n"
    )
    assert dict(commented_keys(file)) == {"b": "about b", "b.d": "about d, twice"}


@pytest.mark.parametrize(
    ("name", "known"), [("train", "  task"), ("sft", "  task"), ("evaluate", "  task"), ("report", "  run")]
)
def test_each_entry_point_has_help_for_every_option(name: str, known: str) -> None:
    text = help_text(CONF, name)
    assert "Options worth knowing" in text
    assert known in text


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
