"""WebShopEnv: prompts, answers, counters, the split of goals, and its expert."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import opdlight.envs  # noqa: F401
from opdlight.config import TrainConfig, compose, instantiate
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.envs.conformance import check_text_env
from opdlight.envs.webshop import WebShopEnv
from opdlight.envs.webshop.goals import held_out_count
from opdlight.envs.webshop.prompts import LONGEST
from opdlight.envs.webshop.reward import reward as reward_of
from opdlight.errors import ConfigError
from tests.envs.webshop_golden_data import catalogue, golden, title_nouns

SMALL: dict[str, Any] = {"products": 60, "nouns": "words"}


def make(**arguments: Any) -> WebShopEnv:
    env = gymnasium.make("opdlight/WebShop-v0", **{**SMALL, **arguments}).unwrapped
    assert isinstance(env, WebShopEnv)
    return env


def golden_env(seed: int = 42, **arguments: Any) -> WebShopEnv:
    """The shop of the golden data."""
    env = make(**arguments)
    env.catalogue, env.nouns = catalogue("synthetic", seed), title_nouns().__getitem__
    env.held_out_episodes = held_out_count(180)
    env.training_episodes = 180 - env.held_out_episodes
    return env


def seed_of(goal: int, env: WebShopEnv) -> int:
    assert env.held_out_episodes is not None
    return FIRST_HELD_OUT_SEED + goal if goal < env.held_out_episodes else goal - env.held_out_episodes


@pytest.mark.parametrize("prompt", ["conversation", "paper"])
def test_keeps_the_rules_of_a_text_env(prompt: str) -> None:
    check_text_env(lambda: make(prompt=prompt, max_turns=6))


def test_a_conversation() -> None:
    env = golden_env()
    assert env.system_prompt is not None and "search[words]" in env.system_prompt and not env.fresh_prompt
    assert env.max_turns == 15
    first, _ = env.reset(seed=seed_of(0, env))
    task = golden("goals_synthetic_seed42")[0]["instruction_text"]
    assert first == f"{task}\nYou are at the search bar."
    item = "Oat Milk Night Lotion Paraben Free, $12.0\nscent: [unscented] [lavender]\nsize: [4 oz] [8 oz]\n"
    found = "Results 1 to 8 of 8:\n"
    below = "[buy now] [description] [features] [reviews] [< prev] [back to search]"
    for action, page in (
        (
            "search[paraben free oat milk]",
            "Results 1 to 8 of 8:\n[b0gld00751] Oat Milk Night Lotion Paraben Free, $12.0\n",
        ),
        ("click[next >]", "No results here.\n[back to search] [< prev] [next >]"),
        ("click[< prev]", found),
        ("<think>The first one.</think> Click[B0GLD00751].", f"{item}{below}"),
        ("click[lavender]", f"{item}Chosen: lavender\n{below}"),
        ("click[description]", "Oil free lotion for dry skin.\n[< prev] [back to search]"),
        ("click[< prev]", f"{item}Chosen: lavender\n{below}"),
        ("click[reviews]", "Nothing is written here.\n[< prev] [back to search]"),
        ("click[back to search]", "You are at the search bar."),
    ):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation.startswith(page) and (page.endswith("\n") or observation == page)
        assert (reward, terminated, truncated, info["metrics"]["admissible_actions"]) == (0.0, False, False, 1.0)
        assert sum(info["metrics"].values()) == 1.0
    for action in ("search[oat milk]", "click[b0gld00751]", "click[unscented]"):
        env.step(action)
    observation, reward, terminated, _, info = env.step("click[buy now]")
    assert observation == "Thank you for shopping. Your score: 0.83"
    assert (reward, terminated, info["success"]) == (pytest.approx(5 / 6), True, False)
    assert (info["metrics"]["purchases"], info["metrics"]["right_type"], info["metrics"]["right_price"]) == (1, 1, 1)


def test_bad_actions_cost_a_turn_and_are_counted() -> None:
    env = make(max_turns=5)
    first, _ = env.reset(seed=0)
    names = ("unparsable_actions", "inadmissible_actions")
    actions = {"buy the shoes": (1, 0), "<think>": (1, 0), "click[buy now]": (0, 1), "think[hm]": (0, 1)}
    for action, counts in actions.items():
        observation, reward, terminated, truncated, info = env.step(action)
        assert tuple(info["metrics"][name] for name in names) == counts
        assert observation == "That is not possible here.\n" + first.splitlines()[-1]
        assert (reward, terminated, truncated) == (0.0, False, False)
    *_, terminated, truncated, info = env.step("search[shoes]")
    assert (terminated, truncated, info["success"]) == (False, True, False)


def test_an_action_that_leaves_the_page_as_it_was_is_ineffective() -> None:
    env = golden_env()
    env.reset(seed=0)
    for action, ineffective in (
        ("search[slippers]", 0), ("search[slippers]", 1), ("click[b0gld00270]", 0), ("click[small]", 0),
        ("click[small]", 1), ("click[buy later]", 0), ("click[features]", 0), ("click[< prev]", 0),
    ):  # fmt: skip
        metrics = env.step(action)[4]["metrics"]
        assert metrics["ineffective_actions"] == ineffective
        assert metrics["admissible_actions"] == (action != "click[buy later]")


@pytest.mark.parametrize(
    "way", [["search[slippers]"], ["click[< prev]"], ["click[back to search]", "search[slippers]"]]
)
def test_leaving_a_product_forgets_its_options(way: list[str]) -> None:
    env = golden_env()
    env.reset(seed=0)
    for action in ("search[slippers]", "click[b0gld00270]", "click[small]", "click[features]", "click[< prev]"):
        env.step(action)
    assert env.session.options == {"size": "small"}
    for action in (*way, "click[b0gld00270]"):
        env.step(action)
    assert env.session.options == {} and env.session.page == "item"


def test_answers_are_read_without_extra_blanks() -> None:
    env = golden_env()
    env.reset(seed=0)
    env.step("search[slippers]")
    env.step("click[b0gld00270]")
    assert env.session.product is not None
    env.session.product.options["color"].append("two  blanks")
    try:
        env.step("click[two  blanks]")
        assert env.session.options == {"color": "two  blanks"}
    finally:
        env.session.product.options["color"].pop()


def test_paper_prompt() -> None:
    env = make(prompt="paper")
    assert env.fresh_prompt and env.system_prompt is None
    first, _ = env.reset(seed=3)
    task = env.goal.instruction
    assert f"Your task is to: {task}.\n" in first and "steps so far" not in first
    assert "Your current observation is: 'Search'\n" in first
    assert "['search[<your query>]',\n'click[search]']" in first
    second, *_ = env.step("<think>hm</think><action>search[shoes]</action>")
    assert "[Observation 1: ''Search'', Action 1: 'search[shoes]']" in second
    assert "'click[back to search]',\n'click[next >]'" in second and "search[<your query>]" not in second
    env.step("no tag")
    fourth, *_ = env.step("<action>click[back to search]</action>")
    assert "taken 3 steps" in fourth and "step 4" in fourth and "Observation 1" not in fourth
    assert "Action 2: ''" in fourth and "Action 3: 'click[back to search]'" in fourth


SLOTS = "{{ [task, history[-2:] | map('list') | list, observation, admissible_actions, history | length] | tojson }}"


@pytest.mark.parametrize("number", [0, 1])
def test_the_slots_of_prompts_are_those_of_verl_agent(number: int, tmp_path: Path) -> None:
    (tmp_path / "slots.jinja").write_text(SLOTS)
    episode = golden("verl_agent")["episodes"][number]
    env = golden_env(episode["seed"], prompt="paper", prompt_template=str(tmp_path / "slots.jinja"))
    observation, _ = env.reset(seed=seed_of(episode["goal_index"], env))
    for step in episode["steps"]:
        if "response" in step:
            observation, reward, terminated, _, info = env.step(step["response"])
            assert reward == pytest.approx(step["task_score"])
            assert terminated == step["done"] and info.get("success", False) == step["won"]
            if terminated:
                break
        expected = step["prompt"]["slots"]
        task, history, page, actions, count = json.loads(observation)
        assert task == expected["task_description"] and page == expected["current_observation"] == step["anchor"]
        assert "".join(f"'{action}',\n" for action in actions).rstrip("\n") == expected["available_actions"]
        lines = [f"[Observation {n}: '{seen}', Action {n}: '{action}']" for n, seen, action in history]
        if step["prompt"]["template"] == "with_history":  # the other form is chosen for long prompts, too
            assert "\n".join(lines) == expected["action_history"]
            assert count == expected["step_count"] == expected["current_step"] - 1


def test_a_long_prompt_is_given_without_its_history(tmp_path: Path) -> None:
    (tmp_path / "long.jinja").write_text("{{ observation }}{% if history %}" + "x" * LONGEST + "{% endif %}")
    env = make(prompt="paper", prompt_template=str(tmp_path / "long.jinja"))
    env.reset(seed=0)
    assert "x" * 100 not in env.step("<action>search[shoes]</action>")[0]


@pytest.mark.parametrize("goals", ["synthetic", "human"])
def test_the_expert_buys_what_is_asked_for(goals: str) -> None:
    env = make(goals=goals)
    count, solved = 0, 0
    for seed in (*range(0, 200, 5), *range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 10)):
        env.reset(seed=seed)
        while True:
            assert env.expert_action() == env.expert_action()
            _, reward, terminated, truncated, info = env.step(env.expert_action())
            assert not info["metrics"]["inadmissible_actions"] and not info["metrics"]["unparsable_actions"]
            if terminated or truncated:
                break
        count, solved = count + 1, solved + info["success"]
        assert info["success"] == (reward == 1.0)
    assert solved == count == 50


def test_the_expert_goes_on_after_detours() -> None:
    env = make()
    for detour in (
        ["search[table]", "click[next >]"],
        ["search[lamp]", "click[buy now]", "click[back to search]"],
        ["EXPERT", "click[next >]"],
        ["EXPERT", "EXPERT", "click[features]"],
        ["EXPERT", "EXPERT", "click[< prev]"],
    ):
        env.reset(seed=11)
        for action in detour:
            env.step(env.expert_action() if action == "EXPERT" else action)
        info: dict[str, Any] = {}
        while "success" not in info:
            *_, info = env.step(env.expert_action())
        assert info["success"]


def test_every_generated_goal_can_be_reached() -> None:
    """Not so in WebShop's own data: a colour hidden in the value of a named option never matches."""
    for goals in ("synthetic", "human"):
        env = make(products=150, goals=goals)
        for number in range(len(env.catalogue.picks)):
            env.goal = env.catalogue.goal(number)
            env.reset(seed=seed_of(number, env))
            price = float(env.catalogue.prices[env.catalogue.picks[number]["product"]])
            values = env._expert.choose(env.goal.product)
            assert reward_of(env.goal, env.goal.product, values, price, env.nouns).total == 1.0, env.goal.instruction


def test_goals_are_split_for_good() -> None:
    assert [held_out_count(n) for n in (3, 4, 180, 1999, 2000, 6910)] == [0, 1, 45, 499, 500, 500]
    env, other = make(), make()
    assert env.catalogue is other.catalogue
    training, held_out = env.training_episodes, env.held_out_episodes
    assert training is not None and held_out is not None
    sides = []
    for first, count in ((0, training), (FIRST_HELD_OUT_SEED, held_out)):
        numbers = [env._number(seed) for seed in range(first, first + count)]
        assert numbers == [other._number(seed + count) for seed in range(first, first + count)]
        sides.append(set(numbers))
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == len(env.catalogue.picks)
    assert sides[1] == set(range(held_out))


def test_generated_catalogues_follow_the_seed() -> None:
    one, same, other = (make(products=40, catalogue_seed=seed).catalogue for seed in (1, 1, 2))
    assert one is same and list(one.products) != list(other.products)
    assert len({product.asin for product in one.products}) == 40
    assert len({product.query for product in make(products=300).catalogue.products}) == 30


def test_the_shipped_task() -> None:
    cfg = compose(
        "train",
        TrainConfig,
        ["task=webshop", "model.max_model_len=6144", "task.tasks.webshop.teacher=lab/teacher-sums"],
    )
    mixture = instantiate(cfg.task)
    mixture.check_envs()
    env = mixture.tasks["webshop"].make_env()
    assert (env.max_turns, env.fresh_prompt, env.held_out_episodes) == (15, False, 500)
    first, info = env.reset(seed=0)
    assert info["admissible_commands"] == [] and "You are at the search bar." in first
    info = env.step("search[shoes]")[-1]
    assert info["admissible_commands"][:2] == ["click[back to search]", "click[next >]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "orginal"}, "source.*'original'"),
        ({"goals": "humans"}, "goals.*'human'"),
        ({"nouns": "word"}, "nouns.*'words'"),
        ({"prompt": "papers"}, "prompt.*'paper'"),
        ({"max_turns": 0}, "max_turns"),
        ({"products": None}, "products.*a number"),
        ({"products": 1, "goals": "human"}, "products.*4 human goals"),
        ({"data": "shop"}, "data.*null"),
        ({"prompt_template": "x.jinja"}, "prompt.*'paper'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**arguments)
