"""Prompts that end with `<think>`: the text that environments get, later prompts, and demonstrations."""

from typing import Any

import pytest

from opdlight.envs.base import read_action
from opdlight.envs.question import extract_answer
from opdlight.models.loading import load_tokenizer
from opdlight.rollout import ChatRenderer, Sampling, ScriptedEngine, make_collector
from opdlight.rollout.collector import Collector, Limits
from opdlight.sft.demonstrations import Demonstration, Step, tokens
from opdlight.types import RolloutRequest, Status
from tests.doctor.cases import errand
from tests.rollout.test_rendering import ASSISTANT, END, THINK, UNTHINK, USER, completion, letters
from tests.rollout.walking import Envs, Walk, requests
from tests.tiny_models import TURNS, character_tokenizer

OPENS = "{% if add_generation_prompt %}<a><think>{% endif %}"
THOUGHT_SHOWN = TURNS + OPENS  # past turns as they were
STRIPPED = TURNS.replace("m.content", "m.content.split('</think>')[-1]") + OPENS
WRITES_ITS_OWN = TURNS.replace("m.content", "('<think>' if m.role == 'assistant' else '') + m.content") + OPENS
ENDS_OTHERWISE = THOUGHT_SHOWN.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")  # a whole one has an end
ALWAYS = TURNS + "<a><think>"  # whatever add_generation_prompt says
CLOSED = TURNS + "{% if add_generation_prompt %}<a><think></think>{% endif %}"  # enable_thinking: false
PLAIN = TURNS + "{% if add_generation_prompt %}<a>{% endif %}"


def heard(template: str, answer: list[int]) -> list[str]:
    """What the environment is told when the student samples `answer`."""
    envs = Envs(Walk)
    limits = {"walk": Limits(turn_tokens=64, trajectory_tokens=512)}
    renderer = ChatRenderer(character_tokenizer(template))
    collector = Collector(ScriptedEngine(lambda prompt: answer), renderer, envs, limits, env_threads=1)
    (trajectory,) = collector.collect(requests(2), Sampling())
    collector.close()
    assert [turn.completion_ids for turn in trajectory.turns] == [answer] * 2  # the student's tokens are its own
    found: list[str] = envs.made[0].heard
    return found


@pytest.mark.parametrize("template", [THOUGHT_SHOWN, STRIPPED, WRITES_ITS_OWN, ENDS_OTHERWISE, ALWAYS])
def test_the_environment_hears_the_thought_that_the_prompt_opened(template: str) -> None:
    assert heard(template, [*letters("wait"), END]) == ["<think>wait"] * 2
    assert heard(template, [*letters("a"), UNTHINK, *letters("b"), END]) == ["<think>a</think>b"] * 2


@pytest.mark.parametrize("template", [CLOSED, PLAIN, TURNS])
def test_where_the_prompt_opens_none_it_hears_the_completion(template: str) -> None:
    assert heard(template, [*letters("wait"), END]) == ["wait"] * 2


def test_an_observation_opens_no_thought() -> None:
    renderer = ChatRenderer(character_tokenizer(TURNS))  # nothing follows the observation but its end
    assert renderer.start(None, "a<think>").opened_thought == ""
    assert ChatRenderer(character_tokenizer(THOUGHT_SHOWN)).start(None, "a</think>").opened_thought == "<think>"


def test_a_thought_that_never_ends_holds_no_answer_and_no_action() -> None:
    assert extract_answer("<think>\n\\boxed{16} wait") is None
    for tags in (False, True):
        assert read_action("<think>\n<action>go north</action> or", tags=tags) is None


@pytest.mark.parametrize(("said", "status", "found"), [
    (r"\boxed{3} wait", Status.FAILURE, 0.0), (r"2</think>\boxed{3}", Status.SUCCESS, 1.0),
])  # fmt: skip
def test_a_question_is_graded_by_what_follows_the_thought(
    said: str, status: Status, found: float, tmp_path: Any
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+2?", "answer": "3"}\n' * 4, encoding="utf-8")
    tokenizer: Any = load_tokenizer("lab/student")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    answer = [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    task = errand()
    task = type(task)(
        env={"id": "opdlight/MathDataset-v0", "held_out": {"path": str(rows)}}, teacher="x", trajectory_tokens=512
    )
    collector = make_collector(ScriptedEngine(lambda prompt: answer), tokenizer, {"maths": task}, 1)
    (trajectory,) = collector.collect([RolloutRequest(task="maths", seed=1, group=0)], Sampling())
    collector.close()
    assert (trajectory.status, trajectory.metrics["answer_found"]) == (status, found)


@pytest.mark.parametrize(("template", "splits"), [(THOUGHT_SHOWN, 0), (WRITES_ITS_OWN, 0), (STRIPPED, 1), (CLOSED, 1)])
def test_histories_hold_the_opened_thought_once(template: str, splits: int) -> None:
    conversation = ChatRenderer(character_tokenizer(template)).start(None, "hi")
    sampled = [*letters("a"), UNTHINK, *letters("b"), END]
    second = conversation.advance(completion(sampled), "ok")
    start, rest = [USER, *letters("hi"), END, ASSISTANT], [USER, *letters("ok"), END, ASSISTANT, THINK]
    past = {STRIPPED: [*letters("b"), END], CLOSED: sampled}.get(template, [THINK, *sampled])
    assert second == [*start, *past, *rest, *([UNTHINK] if template == CLOSED else [])]
    assert conversation.splits == splits


@pytest.mark.parametrize(("reply", "ids"), [
    ("<think>a</think>b", [*letters("a"), UNTHINK, *letters("b"), END]),
    ("b", [UNTHINK, *letters("b"), END]),
])  # fmt: skip
def test_a_demonstration_continues_the_opened_thought_or_ends_it(reply: str, ids: list[int]) -> None:
    renderer = ChatRenderer(character_tokenizer(THOUGHT_SHOWN))
    steps = [Step(observation="hi", reply=reply), Step(observation="ok", reply=reply)]
    trajectory = tokens(Demonstration(task="t", seed=0, steps=steps), renderer)
    assert [[i for i in turn.completion_ids if i != renderer.tokenizer.unk_token_id] for turn in trajectory.turns] == [
        ids
    ] * 2
    first = trajectory.turns[0]
    assert trajectory.turns[1].prompt_ids[: len(first.prompt_ids) + len(first.completion_ids)] == [
        *first.prompt_ids, *first.completion_ids,
    ]  # fmt: skip


def test_demonstrations_end_as_the_template_ends_a_turn() -> None:
    """Of a base model, whose end of sequence is another token, and whose expert spells a marker."""
    tokenizer = character_tokenizer(PLAIN)
    tokenizer.eos_token = "<stop>"
    renderer = ChatRenderer(tokenizer)
    (turn,) = tokens(Demonstration(task="t", seed=0, steps=[Step(observation="hi", reply="go")]), renderer).turns
    assert turn.completion_ids == [*letters("go"), END]
