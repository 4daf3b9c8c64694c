"""Values against annotations, and nodes against their targets: each mistake is one message."""

import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
import torch
from config_targets import Colour, Inner, Top

from opdlight.config.checks import check_config, locate
from opdlight.config.cross_checks import check_together
from opdlight.config.environments import check_env
from opdlight.config.former import GONE, TARGETS
from opdlight.config.values import Node, check_value
from opdlight.errors import ConfigError

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


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import not_installed_anywhere", "not_so.py, line 2: No module named 'not_installed_anywhere'"),
        ("from pathlib import Pat", "not_so.py, line 2: cannot import name 'Pat' from 'pathlib'"),
        ("def f(:", "not_so.py, line 2: invalid syntax"),
        ("import json; json.loads('{')", "not_so.py, line 2: JSONDecodeError: Expecting property name"),
    ],
)
def test_a_failure_in_the_user_s_own_file_names_key_file_and_line(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not_so.py").write_text(f"x = 1\n{code}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        check_config(top(loss={"_target_": "not_so.Thing"}), Top)
    assert str(error.value).startswith(f"Cannot import `loss._target_` not_so.Thing: {message}")
    task = {"tasks": {"sums": {"env": {"id": "not_so:Sums-v0"}}}}
    with pytest.raises(ConfigError) as error:
        check_together({"task": task})
    assert str(error.value).startswith(f"Cannot import `task.tasks.sums.env.id` 'not_so:Sums-v0': {message}")
    with pytest.raises(ConfigError, match=r"`task\.tasks\.sums\.env\.id`"):
        check_env("task.tasks.sums.env", {"id": "not_so:Sums-v0"})


def test_an_environment_s_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`a\.id`, 'no_such_module:Sums-v0': No module named 'no_such_module'"):
        check_env("a", {"id": "no_such_module:Sums-v0"})
    for name in ("a:b:Sums-v0", ":Sums-v0"):
        with pytest.raises(ConfigError, match=r"Expected `a\.id` to be a Gymnasium id, or module:id"):
            check_env("a", {"id": name})


@pytest.mark.parametrize(("old", "new"), TARGETS.items())
def test_a_target_of_an_earlier_version_says_where_it_is_now(old: str, new: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        locate("x._target_", old)
    assert (GONE if new is None else f"It is called {new} now.") in str(error.value)
    if new is not None:
        pkgutil.resolve_name(new)
    with pytest.raises((ImportError, AttributeError)):
        pkgutil.resolve_name(old)
