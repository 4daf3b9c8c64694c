"""What `python -m opdlight.tasks` lists of an environment without making one."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import load_env_creator

import opdlight.envs  # noqa: F401
from opdlight.envs.alfworld.env import ALFWorldEnv
from opdlight.envs.base import FIRST_HELD_OUT_SEED, TextEnv
from opdlight.envs.math_dataset import MathDatasetEnv
from opdlight.envs.toy_text import ToyTextEnv
from opdlight.envs.webshop.env import WebShopEnv

REGISTERED = sorted(name for name in gymnasium.registry if name.startswith("opdlight/"))


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_environment_says_its_source_and_its_licence(name: str) -> None:
    about: Any = load_env_creator(str(gymnasium.registry[name].entry_point)).about()
    how = "set `source` and `licence` in the class, or override `TextEnv.about` where they depend on its arguments"
    assert about.source and about.licence, f"{name}: {how}"


class Highest:
    """Draws the highest number."""

    def integers(self, high: int) -> int:
        return high - 1


@pytest.mark.parametrize("name", ["ALFWorld", "MiniGrid", "TextWorld", "ToyText", "WebShop"])
def test_an_episode_without_a_seed_is_one_to_train_on(name: str) -> None:
    env: Any = gymnasium.make(f"opdlight/{name}-v0").unwrapped
    env.reset(seed=0)
    env._np_random = Highest()
    drawn = env.reset()[0]
    assert drawn == env.reset(seed=FIRST_HELD_OUT_SEED - 1)[0]


@pytest.mark.parametrize("name", ["ALFWorld", "MiniGrid", "TextWorld", "ToyText", "WebShop"])
def test_a_seed_may_be_any_size(name: str) -> None:
    env: Any = gymnasium.make(f"opdlight/{name}-v0").unwrapped
    assert env.reset(seed=2**64 + 1)[0] == env.reset(seed=2**64 + 1)[0]


class Own(TextEnv):
    packages = {"json": "here", "no_such_module": "first", "no_such_other": "first", "no_third": "second"}  # noqa: RUF012


class Drawn(Own):
    source, licence, packages = "generated", "MIT", {}

    def expert_action(self) -> str:
        return "yes"


def test_the_class_says_what_there_is() -> None:
    about = Own.about(size=3)
    assert (about.source, about.licence, about.expert, about.finite) == ("", "", False, None)
    assert about.missing == ("extra first", "extra second")
    about = Drawn.about()
    assert (about.source, about.licence, about.expert, about.finite, about.missing) == (
        "generated", "MIT", True, False, (),
    )  # fmt: skip


def test_arguments_decide_where_episodes_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ToyTextEnv.about(game="FrozenLake-v1", is_slippery=True).expert and ToyTextEnv.about().expert
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert ALFWorldEnv.about(max_turns=3).finite is False
    about = ALFWorldEnv.about(source="original")
    assert (about.source, about.finite) == ("original files", True)
    assert about.missing[-1] == "$ALFWORLD_DATA"
    for split in ("train", "valid_seen"):
        (tmp_path / "json_2.1.1" / split).mkdir(parents=True)
    assert "$ALFWORLD_DATA" not in ALFWorldEnv.about(source="original").missing
    assert "$ALFWORLD_DATA" in ALFWorldEnv.about(source="original", split="valid_unseen").missing
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    assert (WebShopEnv.about().source, WebShopEnv.about().missing) == ("generated catalogue", ())
    assert WebShopEnv.about(source="original").missing == ("$WEBSHOP_DATA",)
    assert WebShopEnv.about(source="original", data="x").missing == ("files in x",)
    for name in ("items_shuffle", "items_ins_v2", "items_human_ins"):
        (tmp_path / f"{name}.json").write_text("not read")
    assert WebShopEnv.about(source="original", data=str(tmp_path)).missing == ()


def test_rows_are_looked_for_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.jsonl"
    about = MathDatasetEnv.about(path=str(file), held_out={"split": "test"}, question="question")
    assert (about.source, about.missing, about.finite) == ("own.jsonl", (f"file {file}",), True)
    file.write_text("no JSON")
    assert MathDatasetEnv.about(path=str(file)).missing == ()
    assert MathDatasetEnv.about().source == "questions of your own"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    about = MathDatasetEnv.about(path="a/b", held_out={"path": "c/d"})
    assert (about.source, about.missing) == ("b + d", ("package datasets",))
