"""OpenEnvEnv against servers of the real package, and against a fake with faults."""

import gc
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import opdlight.envs  # noqa: F401
from opdlight.config import TrainConfig, compose
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.envs.conformance import check_text_env
from opdlight.envs.openenv.env import OpenEnvEnv
from opdlight.errors import ConfigError, EnvError
from opdlight.rollout.env_threads import ThreadPool
from opdlight.train.run import train
from tests.envs.fake_openenv import FakeOpenEnv
from tests.envs.openenv_play import FIVE, make, play, real_server

DIGIT = [str(n) for n in range(1, 10)]
pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with real_server() as url:
        yield url


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("guess", {}),
        ("calculator", {}),
        ("grid", {"training_split": "train", "held_out_split": "test"}),
        ("echo", {"ends_at_success": True}),
    ],
)
def test_keeps_the_rules_of_a_text_env(real: str, path: str, arguments: dict[str, Any]) -> None:
    check_text_env(lambda: make(f"{real}/{path}", max_turns=6, retries=0, **arguments))


def test_the_fake_answers_as_the_real_server(real: str, fake: FakeOpenEnv) -> None:
    for seed in (FIVE, FIVE + 1, FIRST_HELD_OUT_SEED):
        for reset in ({}, {"highest": 3}):
            actions = ("1", "x", "", "9", '{"guess": 1}', *DIGIT)
            ends = [play(make(url, reset=reset), *actions[:5], seed=seed) for url in (f"{real}/guess", fake.url)]
            assert ends[0] == ends[1]
    for url in (f"{real}/guess", fake.url):
        wrong = make(url)
        wrong._reader.read = lambda text: {"gess": text}  # type: ignore[method-assign]
        text, *_ = play(wrong, "1")[1]
        assert text.startswith("That is not possible here: guess: Field required")
        assert make(url).system_prompt == (
            "Find a hidden number.\n\nEvery turn, answer with your action alone, the text for `guess`."
        )


def test_an_episode(real: str) -> None:
    env = make(f"{real}/guess", max_turns=4)
    assert play(env, "4", "<think>Higher?</think> <action>6</action>", "```text\n5\n```") == [
        "Guess a number from 1 to 9.",
        ("Higher.", 0.0, False, False, 0.0, 0.0),
        ("Lower.", 0.0, False, False, 0.0, 0.0),
        ("Right!", 1.0, True, False, 0.0, 0.0),
    ]
    assert play(env, "six", "", "<think>5", "4")[1:] == [
        ("That is not possible here: invalid literal for int() with base 10: 'six'", 0.0, False, False, 1.0, 0.0),
        (
            "The answer is empty. Every turn, answer with your action alone, the text for `guess`.",
            0.0,
            False,
            False,
            0.0,
            1.0,
        ),
        (
            "The thinking does not end. Every turn, answer with your action alone, the text for `guess`.",
            0.0,
            False,
            False,
            0.0,
            1.0,
        ),
        ("Higher.", 0.0, False, True, 0.0, 0.0),
    ]


def test_tools(real: str) -> None:
    env = make(f"{real}/calculator")
    assert env.system_prompt is not None
    assert '{"name": "add", "description": "Add two numbers.", "parameters": {' in env.system_prompt
    call = '{"name": "%s", "arguments": %s}'
    found = play(
        env,
        "<tool_call>%s</tool_call>" % (call % ("look", "{}")),
        "I add.<tool_call>\n```json\n%s\n```\n</tool_call>" % (call % ("add", '{"a": 1, "b": 2}')),
        call % ("add", '"{\\"a\\": 1, \\"b\\": 2}"'),
        call % ("add", '{"a": 1}'),
        call % ("multiply", "{}"),
        call % ("fail", "{}"),
        call % ("add", "[1, 2]"),
        "<tool_call>{}</tool_call><tool_call>{}</tool_call>",
    )
    numbers = random.Random(FIVE).sample(range(100), 2)
    texts = [text for text, *_ in found[1:]]
    assert found[0] == "Add the numbers."
    assert texts[0] == f'{{"numbers":[{numbers[0]},{numbers[1]}]}}' and texts[1:3] == ["3", "3"]
    assert "Missing required argument" in texts[3] and texts[4] == "There is no tool 'multiply'."
    assert texts[5].endswith("it is broken") and texts[7].startswith("Call one tool a turn.")
    assert [counts for *_, a, b in found[1:] for counts in [(a, b)]] == [
        *[(0.0, 0.0)] * 3, *[(1.0, 0.0)] * 2, (0.0, 0.0), *[(0.0, 1.0)] * 2
    ]  # fmt: skip
    for value, success in ((sum(numbers), True), (0, False)):
        env.reset(seed=FIVE)
        text, reward, terminated, _, info = env.step(call % ("answer", f'{{"value": {value}}}'))
        assert (text, reward, terminated) == ("right" if success else "wrong", float(success), True)
        assert info["success"] is success


def test_an_action_of_several_fields(real: str) -> None:
    env = make(f"{real}/grid", reset={"split": "train", "index": 1})
    found = play(env, "2 3", "[2, 3]", '{"row": 2}', '{"row": 2, "column": 2}', '```json\n{"row": 2, "column": 3}\n```')
    assert found == [
        "train 1",
        (f"The answer is not a JSON object. {env._how_to_act()}", 0.0, False, False, 0.0, 1.0),
        (f"The answer is not a JSON object. {env._how_to_act()}", 0.0, False, False, 0.0, 1.0),
        ("That is not possible here: column: Field required", 0.0, False, False, 1.0, 0.0),
        ("text: No.\nhint: Try again.", 0.0, False, False, 0.0, 0.0),
        ("Yes.", 1.0, True, False, 0.0, 0.0),
    ]
    with pytest.raises(EnvError, match=r"cannot begin the episode of seed 5 \(EXECUTION_ERROR\): which split\?"):
        make(f"{real}/grid").reset(seed=5)


def test_a_number_and_another_field(real: str) -> None:
    assert play(make(f"{real}/dice"), "3", "three")[1:] == [
        ("3 by hand", 0.0, False, False, 0.0, 0.0),
        (
            "The answer is not a value of type integer. "
            "Every turn, answer with your action alone, a value of type integer for `throws`.",
            0.0, False, False, 0.0, 1.0,
        ),
    ]  # fmt: skip
    (_, (text, *_)) = play(make(f"{real}/dice", action_field="how"), "gently")
    assert text == "That is not possible here: throws: Field required"
    with pytest.raises(ConfigError, match=r"`action_field` to be a known name \(did you mean 'throws'"):
        make(f"{real}/dice", action_field="throw")
    with pytest.raises(ConfigError, match="`action_field` to be null, because the actions are calls of tools"):
        make(f"{real}/calculator", action_field="name")


def test_success_is_what_the_config_says(real: str) -> None:
    def ends(path: str, *actions: str, **arguments: Any) -> tuple[bool, bool, bool | None, float]:
        env = make(f"{real}/{path}", max_turns=3, **arguments)
        env.reset(seed=FIVE)
        total = 0.0
        for action in actions:
            _, reward, terminated, truncated, info = env.step(action)
            total += reward
        env.close()
        return terminated, truncated, info.get("success"), total

    assert ends("guess", "5") == (True, False, True, 1.0)
    assert ends("guess", "5", success_reward=1.5) == (True, False, False, 1.0)
    three = ("aaaa",) * 3
    assert ends("echo", *three) == (False, True, False, pytest.approx(1.2))  # the server never ends it
    assert ends("echo", *three, ends_at_success=True) == (False, True, False, pytest.approx(1.2))
    assert ends("echo", *three, ends_at_success=True, success_by="return") == (True, False, True, pytest.approx(1.2))
    assert ends("echo", "a" * 10, "a", "a")[:3] == (False, True, False), "only `ends_at_success` ends it"
    assert ends("echo", "a" * 10, ends_at_success=True) == (True, False, True, 1.0)


def test_observations_and_prompt_by_templates(real: str) -> None:
    env = make(
        f"{real}/guess",
        observation_template="{{ turn }}/{{ reward }}: {{ observation.text | upper }}",
        system_prompt="Play!\n{{ instructions }}",
    )
    assert env.system_prompt == "Play!\nEvery turn, answer with your action alone, the text for `guess`."
    first, (second, *_), (third, *_) = play(env, "4", "5")
    assert (first, second, third) == ("0/0.0: GUESS A NUMBER FROM 1 TO 9.", "1/0.0: HIGHER.", "2/1.0: RIGHT!")
    last = make(f"{real}/guess", observation_template="{{ observation.messages[-1].content }}")  # as other servers have
    with pytest.raises(EnvError, match="`observation_template` cannot be filled"):
        last.reset(seed=1)
    for key in ("observation_template", "system_prompt"):
        with pytest.raises(ConfigError, match=f"`{key}`.*(did you mean|there are)"):
            make(f"{real}/guess", **{key: "{{ observatio }}"})


def test_each_side_of_the_task_api_has_its_tasks(real: str) -> None:
    env = make(f"{real}/grid", training_split="train", held_out_split="test")
    assert (env.training_episodes, env.held_out_episodes) == (3, 2)
    assert [play(env, seed=seed)[0] for seed in range(4)] == ["train 0", "train 1", "train 2", "train 0"]
    held_out = [play(env, seed=FIRST_HELD_OUT_SEED + n)[0] for n in range(3)]
    assert held_out == ["test 0", "test 1", "test 0"]
    only = make(f"{real}/grid", held_out_split="test")
    assert (only.training_episodes, only.held_out_episodes) == (0, 2)
    for splits in ({"training_split": "train"}, {"training_split": "test", "held_out_split": "test"}):
        with pytest.raises(ConfigError, match="`held_out_split` to be a split of its own"):
            make(f"{real}/grid", **splits)
    with pytest.raises(ConfigError, match=r"`held_out_split` to be a split of which .* by OpenEnv's task API"):
        make(f"{real}/guess", held_out_split="test", retries=0)


def test_a_server_that_ignores_seeds_is_told_of_once(real: str, caplog: pytest.LogCaptureFixture) -> None:
    OpenEnvEnv._unseeded.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            play(make(f"{real}/guess"), seed=7)
        assert not caplog.records
        for seed in (7, 7, 7, 8, 8):
            play(make(f"{real}/dice"), seed=seed)
    (record,) = caplog.records
    assert (
        "/dice began the episode of seed 7 in two ways: its environment does not obey the seed" in record.getMessage()
    )


def test_a_full_server_is_an_error_that_says_what_to_do(real: str) -> None:
    first, second = make(f"{real}/dice"), make(f"{real}/dice", retries=1)
    first.reset(seed=1)
    with pytest.raises(ConfigError, match=r"`url` to be .* only 1 sessions, .* larger max_concurrent_envs.*2 attempts"):
        second.reset(seed=1)
    del first  # as an abandoned episode
    gc.collect()
    make(f"{real}/dice").reset(seed=1)


def test_many_episodes_at_the_same_time(real: str) -> None:
    def outcome(seed: int) -> list[Any]:
        return [
            entry if isinstance(entry, str) else entry[0] for entry in play(make(f"{real}/guess"), *"357", seed=seed)
        ]

    expected = [outcome(seed) for seed in range(24) if random.Random(seed).randint(1, 9) not in (3, 5, 7)]
    seeds = [seed for seed in range(24) if random.Random(seed).randint(1, 9) not in (3, 5, 7)]
    pool = ThreadPool(lambda task: make(f"{real}/guess"), threads=4)
    try:
        for number, seed in enumerate(seeds):
            pool.reset(number, "guess", seed)
        found: list[list[Any]] = [[] for _ in seeds]
        while pool.in_flight:
            for number, answer in pool.answers(wait=True):
                assert answer.error is None
                found[number].append(answer.observation)
                if len(found[number]) < 4:
                    pool.step(number, "357"[len(found[number]) - 1])
    finally:
        pool.close()
    assert found == expected


def test_sessions_end_with_their_episodes(fake: FakeOpenEnv) -> None:
    env, other = make(fake.url), make(fake.url)
    env.reset(seed=FIVE)
    other.reset(seed=FIVE)
    assert fake.waits_for(2)
    env.step("5")  # the end
    assert fake.waits_for(1)
    other.reset(seed=1)  # of an episode that was cut
    assert fake.waits_for(1)
    other.close()
    assert fake.waits_for(0)


def test_a_run_with_the_lab_models(real: str, tmp_path: Path) -> None:
    key = "task.tasks.openenv"
    overrides = [
        "task=openenv", f"{key}.env.url={real}/guess", f"{key}.teacher=lab/teacher-alfworld", f"{key}.episodes=2",
        f"{key}.trajectory_tokens=600", f"{key}.env.max_turns=3", "engine._target_=tests.fakes.AnsweringEngine",
        "rollout.groups=2", "rollout.group_size=2", "trainer.max_steps=2",
        "evaluate_teachers=false", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    train(compose("train", TrainConfig, overrides))
    for line in (tmp_path / "run" / "trajectories.jsonl").read_text().splitlines():
        trajectory = json.loads(line)
        assert (trajectory["status"], len(trajectory["turns"])) == ("truncated_turns", 3)
        assert trajectory["metrics"]["inadmissible_actions"] == 3.0  # the fake answers no numbers
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["openenv"]["after"]["episodes"] == 2
