"""Environments of Gymnasium that know nothing of opdlight, played in words."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics

from opdlight.data.tasks import Task, TaskMixture
from opdlight.envs.actions import action_counts
from opdlight.envs.adapted_actions import actions_of
from opdlight.envs.adapter import AdaptedTextEnv, Adapter
from opdlight.envs.base import FIRST_HELD_OUT_SEED, TextEnv
from opdlight.envs.conformance import check_text_env
from opdlight.envs.wrapped import make_text_env, text_env
from opdlight.errors import ConfigError, EnvError
from opdlight.sft.demonstrations import demonstrate
from tests.envs.foreign_games import HERE, Dials, Echo, Nameless, Numbers, Script, Several, nothing

ADMISSIBLE = action_counts(parsed=True, admissible=True)
INADMISSIBLE = action_counts(parsed=True, admissible=False)
UNPARSABLE = action_counts(parsed=False, admissible=False)
LAKE: dict[str, Any] = {"actions": ["left", "down", "right", "up"], "observation": f"{HERE}.cell"}
DIALS: dict[str, Any] = {"actions": [["low", "mid", "high"], ["off", "on"]], "observation": f"{HERE}.aim"}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    made = {"Echo": Echo, "Dials": Dials, "Script": Script, "Numbers": Numbers, "Several": Several, "No": Nameless}
    for name, kind in made.items():
        gymnasium.register(f"adapted/{name}-v0", entry_point=kind)
    yield
    for name in made:
        del gymnasium.registry[f"adapted/{name}-v0"]


def scripted(*ends: Any, **how: Any) -> AdaptedTextEnv:
    env = text_env(Script(*ends), Adapter(observation_key="words", **how))
    assert isinstance(env, AdaptedTextEnv)
    env.reset(seed=0)
    return env


def test_the_contract_holds() -> None:
    check_text_env(lambda: make_text_env("adapted/Echo-v0", max_episode_steps=4))
    check_text_env(lambda: RecordEpisodeStatistics(gymnasium.make("adapted/Echo-v0")))
    check_text_env(lambda: make_text_env("adapted/Dials-v0", adapter={**DIALS, "max_turns": 5}))
    check_text_env(lambda: make_text_env("FrozenLake-v1", adapter={**LAKE, "max_turns": 12}), seeds_differ=False)
    Echo.hidden_state = True  # type: ignore[attr-defined]
    try:
        assert make_text_env("adapted/Echo-v0").hidden_state
    finally:
        del Echo.hidden_state  # type: ignore[attr-defined]


def test_a_text_environment_needs_its_id_only() -> None:
    env = Task(env={"id": "adapted/Echo-v0"}, teacher="t").make_env()
    assert (env.system_prompt, env.max_turns) == (None, 100)
    first, _ = env.reset(seed=0)
    word = first.removeprefix("say ")
    assert env.step("Ünd?")[0].startswith("That is no action: answer with 1 to 10 of these characters:  abc")
    assert env.step("x" * 11)[4]["metrics"] == INADMISSIBLE
    assert env.step("<think>never closed")[4]["metrics"] == UNPARSABLE
    text, reward, terminated, truncated, info = env.step(f"<think>hm</think>\n {word} ")
    assert (text, reward, terminated, truncated, info["success"]) == ("well", 1.0, True, False, True)
    assert env.env.unwrapped.heard == [word]  # type: ignore[attr-defined]


def test_frozen_lake_is_played_by_name() -> None:
    env = make_text_env("FrozenLake-v1", is_slippery=False, max_episode_steps=7, adapter=LAKE)
    assert env.system_prompt == "Every turn, answer with exactly one of these actions: left, down, right, up."
    assert env.reset(seed=0)[0] == "You are at 0 of Discrete(16)."
    way = ["<think>?</think>Down.", "dance", "down", " RIGHT ", "'right'", "<action>down</action>", "right"]
    *before, last = [env.step(answer) for answer in way]
    assert [text.split("are at ")[1].split()[0] for text, *_ in before] == ["4", "4", "8", "9", "10", "14"]
    assert before[1][0] == f"That is no action: {(env.system_prompt or '')[12:]}\nYou are at 4 of Discrete(16)."
    assert [info["metrics"]["inadmissible_actions"] for *_, info in before] == [0, 1, 0, 0, 0, 0]
    assert last[1:4] == (1.0, True, False)
    assert last[4]["success"] is True


def test_a_hole_is_no_success_and_the_last_turn_truncates() -> None:
    env = make_text_env("FrozenLake-v1", is_slippery=False, adapter={**LAKE, "max_turns": 3})
    env.reset(seed=0)
    env.step("right")
    _, _, terminated, truncated, info = env.step("down")
    assert (terminated, truncated, info["success"]) == (True, False, False)
    env.reset(seed=0)
    ends = [env.step("dance") for _ in range(3)]
    assert [end[2:4] for end in ends] == [(False, False), (False, False), (False, True)]
    assert ends[-1][4]["success"] is False


def test_the_smallest_limit_holds() -> None:
    assert make_text_env("FrozenLake-v1", adapter=LAKE).max_turns == 100  # of its registration
    assert make_text_env("FrozenLake-v1", adapter={**LAKE, "max_turns": 9}, max_episode_steps=12).max_turns == 9
    assert make_text_env("FrozenLake-v1", adapter={**LAKE, "max_turns": 12}, max_episode_steps=9).max_turns == 9


def test_several_actions_at_once_are_separated_by_commas() -> None:
    env = make_text_env("adapted/Dials-v0", adapter=DIALS)
    rule = "answer with one of each of these, separated by commas, such as `low, off`: low, mid, high; off, on."
    assert env.system_prompt == f"Every turn, {rule}"
    actions = actions_of(env.env, DIALS["actions"])  # type: ignore[attr-defined]
    for said, numbers in {"Low, on": [1, 1], "high,off.": [3, 0], "<think>a, b</think>mid , on": [2, 1]}.items():
        assert actions.read(said).tolist() == numbers
        assert actions.read(actions.name(np.array(numbers))).tolist() == numbers
    assert [actions.read(said) for said in ("low", "low, off, on", "on, low", "", "low off")] == [None] * 5
    goal = env.reset(seed=1)[0].removeprefix("goal ").strip("[]").split()
    said = f"{DIALS['actions'][0][int(goal[0]) - 1]}, {DIALS['actions'][1][int(goal[1])]}"
    assert env.step(said)[1:3] == (1.0, True)


def test_an_enum_names_the_actions_and_null_leaves_one_out() -> None:
    env = scripted((0.0, False, False, {}), (0.0, False, False, {}))
    assert env.actions.names == ("push it", "pull")
    assert env.reset(seed=0)[1]["admissible_commands"] == ["push it", "pull"]
    env.step("Push  it")
    assert env.env.played == [0]  # type: ignore[attr-defined]
    env = scripted((0.0, False, False, {}), actions=[None, "go"])
    assert [env.actions.read(said) for said in ("push it", "go")] == [None, 1]
    assert env.actions.name(np.int64(1)) == "go"


def test_actions_may_be_numbered_from_another_number_than_0() -> None:
    class Late(Script):
        action_space = spaces.Discrete(2, start=5)

    mask = {"action_mask": np.array([0, 1], np.int8)}
    env = text_env(Late((0.0, False, False, mask)), Adapter(observation_key="words", actions=["push", "pull"]))
    env.reset(seed=0)
    *_, info = env.step("pull")
    assert (env.env.played, info["admissible_commands"]) == ([6], ["pull"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("how", "end", "flags"),
    [
        ({}, (1.0, True, False, {}), (True, False, True)),
        ({}, (0.0, True, False, {}), (True, False, False)),
        ({}, (-1.0, True, True, {}), (True, False, False)),
        ({}, (1.0, False, True, {}), (False, True, False)),
        ({}, (1.0, True, False, {"success": False}), (True, False, False)),
        ({}, (0.0, True, False, {"is_success": np.True_}), (True, False, True)),
        ({}, (0.0, False, True, {"is_success": 1.0}), (True, False, True)),  # solved, so no limit cut it
        ({"success_key": "won"}, (0.0, True, False, {"won": True, "success": False}), (True, False, True)),
        ({"success_above": -5.0}, (-1.0, True, False, {}), (True, False, True)),
        ({"success_above": 1.0}, (1.0, True, False, {}), (True, False, False)),
        ({}, (np.float32(0.5), np.True_, np.False_, {}), (True, False, True)),
        ({}, (1.0, True, False, {"success": None, "is_success": False}), (True, False, False)),
        ({}, (1.0, True, False, {"success": np.array([0])}), (True, False, False)),
        ({"success_key": "won"}, (1.0, True, False, {"won": None}), (True, False, False)),
        ({"max_turns": 1}, (1.0, False, False, {"success": True}), (True, False, True)),
        ({"max_turns": 1, "success_key": "won"}, (1.0, False, False, {}), (False, True, False)),
    ],
)  # fmt: skip
def test_success(how: dict[str, Any], end: Any, flags: tuple[bool, bool, bool]) -> None:
    _, reward, terminated, truncated, info = scripted(end, **how).step("pull")
    assert (terminated, truncated, info["success"]) == flags
    assert all(type(flag) is bool for flag in (terminated, truncated, info["success"]))
    assert (type(reward), reward) == (float, float(end[0]))


def test_figures_of_the_environment_are_kept() -> None:
    info = scripted((1.0, False, False, {"metrics": {"steps": 2.0}, "more": 3})).step("pull")[4]
    assert (info["metrics"], info["more"]) == ({"steps": 2.0, **ADMISSIBLE}, 3)


def test_of_what_an_environment_calls_metrics_only_numbers_are_kept() -> None:
    odd = {"mean": np.float32(0.5), "won": True, "name": "x", "all": [1.0], "none": None, "nan": np.nan, 3: 1.0}
    info = scripted((1.0, False, False, {"metrics": odd})).step("pull")[4]
    assert info["metrics"] == {"mean": 0.5, "won": 1.0, **ADMISSIBLE}
    assert {type(number) for number in info["metrics"].values()} == {float}
    for other in (None, [1.0], "steps"):
        assert scripted((1.0, False, False, {"metrics": other})).step("pull")[4]["metrics"] == ADMISSIBLE


@pytest.mark.parametrize("mask", [[1], np.ones((2, 2)), {"pull": 1}, None, 1])
def test_an_action_mask_of_another_form_says_nothing(mask: Any) -> None:
    env = scripted((0.0, False, False, {"action_mask": mask}), (0.0, False, False, {"action_mask": [True, False]}))
    for listed in (["push it", "pull"], ["push it"]):
        info = env.step("pull")[4]
        assert (info["admissible_commands"], info["metrics"]) == (listed, ADMISSIBLE)


def test_an_action_mask_says_what_is_admissible() -> None:
    words = ["south", "north", "east", "west", "pick up", None]
    adapter = {"actions": words, "observation": f"{HERE}.cell", "max_turns": 50}
    env = make_text_env("Taxi-v4", adapter=adapter)
    for seed in range(8):
        _, info = env.reset(seed=seed)
        for name in words[:5]:
            allowed = info["admissible_commands"]
            before = env.env.unwrapped.s  # type: ignore[attr-defined]
            *_, info = env.step(str(name))
            assert info["metrics"]["inadmissible_actions"] == (name not in allowed)
            assert (env.env.unwrapped.s == before) == (name not in allowed)  # type: ignore[attr-defined]
        assert env.step("fly")[4]["metrics"] == INADMISSIBLE
    with pytest.raises(EnvError, match="no expert"):
        demonstrate("taxi", Task(env={"id": "Taxi-v4", "adapter": adapter}, teacher="t"), 0, 0.0)


def test_what_the_environment_raises_is_its_own() -> None:
    env = scripted((0.0, False, False, {}))
    env.step("pull")
    with pytest.raises(IndexError):
        env.step("pull")


def test_training_and_held_out_starts_are_apart_if_asked_for() -> None:
    def starts(first: int, apart: bool) -> set[str]:
        env = make_text_env("adapted/Dials-v0", adapter={**DIALS, "separate_starts": apart})
        return {env.reset(seed=first + n)[0] for n in range(60)}

    assert len(starts(0, False) & starts(FIRST_HELD_OUT_SEED, False)) == 6
    training, held_out = starts(0, True), starts(FIRST_HELD_OUT_SEED, True)
    assert (len(training | held_out), training & held_out) == (6, set())
    lake = make_text_env("FrozenLake-v1", adapter={**LAKE, "separate_starts": True})
    with pytest.raises(ConfigError, match=r"`separate_starts` to be false: after 200 draws"):
        [lake.reset(seed=seed) for seed in (0, FIRST_HELD_OUT_SEED)]


KEY, ACTIONS = r"`task\.tasks\.a\.env\.adapter", r"`task\.tasks\.a\.env`: .*`adapter\.actions` to be "


@pytest.mark.parametrize(
    ("name", "adapter", "message"),
    [
        ("CartPole-v1", {"max_turns": 0}, KEY + r"\.max_turns` to be int ≥ 1"),
        ("CartPole-v1", {"observatoin": "a.b"}, KEY + r"\.observatoin`\. Did you mean `.*tion`"),
        ("CartPole-v1", {}, r"CartPoleEnv observes .*Add `adapter\.observation`, the dotted"),
        ("CartPole-v1", {"observation": f"{HERE}.cel"}, KEY + r"\.observation` .*mean 'cell'"),
        ("CartPole-v1", {"observation": f"{HERE}.cell"}, ACTIONS + r"the names of the 2 actions of CartPole"),
        ("CartPole-v1", {**LAKE}, ACTIONS + r"the names of the 2 actions"),
        ("CartPole-v1", {**LAKE, "actions": ["left", "Left"]}, ACTIONS + r".*no name twice"),
        ("CartPole-v1", {**LAKE, "actions": ["left", "'"]}, ACTIONS + r"names that an answer can spell"),
        ("CartPole-v1", {**LAKE, "actions": [None, None]}, ACTIONS + r"one name or more"),
        ("CartPole-v1", {**LAKE, "actions": [["left"], ["right"]]}, ACTIONS + r"the names of the 2 actions"),
        ("CartPole-v1", {**LAKE, "actions": ["left", 1]}, KEY + r"\.actions` to be a list of str"),
        ("Pendulum-v1", {"observation": f"{HERE}.cell"}, r"actions of PendulumEnv are a Box of shape \(1,\)"),
        ("adapted/Echo-v0", {"actions": ["a"]}, ACTIONS + r"null, because the actions of Echo are text"),
        ("adapted/Dials-v0", {**DIALS, "actions": ["low", "off"]}, ACTIONS + r"2 lists with the names of 3, 2"),
        ("adapted/Dials-v0", {**DIALS, "actions": [[*"aba"], [*"cd"]]}, ACTIONS + r"no name twice"),
        ("adapted/Dials-v0", {**DIALS, "actions": [["a", "b,", "e"], [*"cd"]]}, ACTIONS + r".*with a comma"),
        ("adapted/Script-v0", {}, r"Script observes a Dict of .*`adapter\.observation_key` \(words\)"),
        ("adapted/Script-v0", {"observation_key": "number"}, r"_key` to be an entry .*are: words\)"),
        ("adapted/Script-v0", {"observation_key": "words", "observation": f"{HERE}.cell"}, r"_key` to be null beside"),
        ("adapted/Numbers-v0", {}, r"Numbers observes a Dict of number, which is no text\..*into words\.$"),
        ("adapted/Several-v0", {"observation_key": "words"}, r"Several gives several rewards at a time"),
        ("adapted/No-v0", {"observation_key": "words"}, ACTIONS + r"the names of the 2 actions of Nameless"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused(name: str, adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskMixture({"a": Task(env={"id": name, "adapter": adapter}, teacher="t")}).check_envs()


@pytest.mark.parametrize(
    ("how", "end", "kind", "message"),
    [
        ({}, ([1.0, 2.0], False, False, {}), ConfigError, "Script gives several rewards at a time"),
        ({}, ({"a": 1.0}, False, False, {}), ConfigError, "Script gives several rewards at a time"),
        ({}, (float("nan"), False, False, {}), EnvError, "reward of Script to be a finite number, but got nan"),
        ({"success_key": "won"}, (0.0, True, False, {"lost": 1}), ConfigError, r"_key` to be in .*ends \(.*lost"),
        ({}, (0.0, True, False, {"success": "False"}), ConfigError, r"true or false, which 'success' is not"),
        ({"success_key": "won"}, (0.0, True, False, {"won": 0.3}), ConfigError, r"_key` .*'won' is not.* got 0\.3"),
        ({}, (0.0, True, False, {"is_success": np.ones(2)}), ConfigError, r"which 'is_success' is not"),
    ],
)  # fmt: skip
def test_what_the_first_step_shows(how: dict[str, Any], end: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        scripted(end, **how).step("pull")


def test_a_misspelt_key_of_the_adapter_is_named_without_a_config() -> None:
    with pytest.raises(ConfigError, match=r"`adapter` to be .*mean 'observation'\?\), but got 'obsrvation'"):
        make_text_env("Taxi-v4", adapter={"obsrvation": f"{HERE}.cell"})


def test_observations_are_texts() -> None:
    env = text_env(Script(), Adapter(observation=nothing))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"`adapter\.observation` to be a function that returns a text, but got None"):
        env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"`adapter\.observation` to be importable, but got 'no_module\.f'"):
        text_env(Script(), Adapter(observation="no_module.f"))
    with pytest.raises(ConfigError, match=r"`adapter\.observation` to be the dotted path of a function"):
        text_env(Script(), Adapter(observation=f"{HERE}.HERE"))

    class Mute(Echo):
        def reset(self, **how: Any) -> Any:
            return b"bytes", {}

    with pytest.raises(EnvError, match="observations of Mute to be texts, but got b'bytes'"):
        text_env(Mute()).reset(seed=0)


def test_one_entry_that_is_text_is_the_observation() -> None:
    class OneText(Script):
        observation_space = spaces.Dict({"words": spaces.Text(9)})  # type: ignore[assignment]

    assert text_env(OneText()).reset(seed=0)[0] == "begin"
    assert isinstance(text_env(OneText()), TextEnv)

    class TextAndMore(Script):
        observation_space = spaces.Dict({"a": spaces.Text(9), "number": spaces.Discrete(3)})  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"a Dict of a, number, which is no text"):
        text_env(TextAndMore())
