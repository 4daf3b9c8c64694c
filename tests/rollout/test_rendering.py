"""Chat rendering with hand-written ids; see `character_tokenizer`."""

import random

import pytest

from opdlight.batch.rows import count_splits
from opdlight.errors import ConfigError
from opdlight.rollout.engines.base import Completion
from opdlight.rollout.rendering import ChatRenderer, Conversation
from opdlight.types import Status, Trajectory, Turn
from tests.tiny_models import OPEN, TURNS, character_tokenizer, tiny_tokenizer

END, SYSTEM, USER, ASSISTANT, THINK, UNTHINK, BOS, STOP = range(8)
STRIPS_THINKING = (
    "{% for m in messages %}{{ '<' + m.role[0] + '>' }}"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}</s>{% endfor %}" + OPEN
)


def letters(text: str) -> list[int]:
    return [36 if c == " " else 10 + ord(c) - ord("a") for c in text]


def completion(ids: list[int], finish_reason: str = "stop") -> Completion:
    return Completion(
        request_id="r",
        token_ids=ids,
        logprobs=[0.0] * len(ids),
        finish_reason=finish_reason,  # type: ignore[arg-type]
        policy_version=0,
    )


def start(template: str = TURNS + OPEN, system_prompt: str | None = None, **kwargs: object) -> Conversation:
    tokenizer = character_tokenizer(template, **kwargs)  # type: ignore[arg-type]
    return ChatRenderer(tokenizer).start(system_prompt, "hi")


def test_first_prompt_has_every_special_token_once() -> None:
    # the tokenizer would add <bos> to any text; the template says what there is, so it must not appear twice or unasked
    assert start().prompt_ids == [USER, *letters("hi"), END, ASSISTANT]
    with_bos = start("<bos>" + TURNS + OPEN, "be kind")
    assert with_bos.prompt_ids == [BOS, SYSTEM, *letters("be kind"), END, USER, *letters("hi"), END, ASSISTANT]


def test_bridge_after_a_stop_token_does_not_repeat_it() -> None:
    # <u> h i </s> <a> | g o </s> | <u> o k </s> <a>
    #  .  . .  .    .   | x x  x   |  .  . .  .    .      x = the student's
    conversation = start()
    first = list(conversation.prompt_ids)
    sampled = [*letters("go"), END]
    bridge = [USER, *letters("ok"), END, ASSISTANT]
    assert conversation.advance(completion(sampled), "ok") == first + sampled + bridge
    assert conversation.splits == 0


def test_bridge_after_a_cut_completion_closes_the_turn_for_the_student() -> None:
    # <u> h i </s> <a> | g o | </s> <u> o k </s> <a>
    #  .  . .  .    .  | x x |  .    .  . .  .    .      </s> is the environment's token, not the student's
    conversation = start()
    first = list(conversation.prompt_ids)
    expected = [*first, *letters("go"), END, USER, *letters("ok"), END, ASSISTANT]
    assert conversation.advance(completion(letters("go"), "length"), "ok") == expected
    assert conversation.splits == 0


def test_sampled_ids_are_never_tokenised_again() -> None:
    # the tokenizer writes "go" as one token (40); the student sampled g, o: its own ids stay, also two turns later
    conversation = start(merges=("go",))
    assert conversation.renderer.encode("go") == [40]
    second = conversation.advance(completion([*letters("go"), END]), "go")
    assert second == [USER, *letters("hi"), END, ASSISTANT, *letters("go"), END, USER, 40, END, ASSISTANT]
    third = conversation.advance(completion([40, END]), "ok")
    assert third == [*second, 40, END, USER, *letters("ok"), END, ASSISTANT]
    assert conversation.splits == 0


def test_history_without_thinking_begins_a_new_row() -> None:
    # row 1: <u> hi </s> <a> | <think> a </think> b </s>
    # row 2: <u> hi </s> <a> b </s> <u> ok </s> <a> | c </s>         "b" is a prompt token there, not the student's
    conversation = start(STRIPS_THINKING)
    second = conversation.advance(completion([THINK, *letters("a"), UNTHINK, *letters("b"), END]), "ok")
    assert second == [USER, *letters("hi"), END, ASSISTANT, *letters("b"), END, USER, *letters("ok"), END, ASSISTANT]
    assert conversation.splits == 1
    third = conversation.advance(completion([*letters("c"), END]), "so")  # nothing to strip: the row goes on
    assert third == [*second, *letters("c"), END, USER, *letters("so"), END, ASSISTANT]
    assert conversation.splits == 1


def test_another_stop_token_than_the_template_writes_begins_a_new_row() -> None:
    conversation = start()
    second = conversation.advance(completion([*letters("go"), STOP]), "ok")
    assert second == [USER, *letters("hi"), END, ASSISTANT, *letters("go"), END, USER, *letters("ok"), END, ASSISTANT]
    assert conversation.splits == 1


def test_template_that_trims_answers_splits_only_where_it_trims() -> None:
    conversation = start(TURNS.replace("m.content", "(m.content | trim)") + OPEN)
    conversation.advance(completion([*letters("go"), END]), "ok")
    assert conversation.splits == 0
    third = conversation.advance(completion([*letters(" go"), END]), "ok")
    assert third[-9:] == [ASSISTANT, *letters("go"), END, USER, *letters("ok"), END, ASSISTANT]
    assert conversation.splits == 1


def test_default_system_prompt_of_the_template_stays_in_every_prompt() -> None:
    default = "{% if messages[0].role != 'system' %}<s>be good</s>{% endif %}"
    conversation = start(default + TURNS + OPEN)
    first = [SYSTEM, *letters("be good"), END, USER, *letters("hi"), END, ASSISTANT]
    assert conversation.prompt_ids == first
    assert conversation.advance(completion([*letters("go"), END]), "ok")[: len(first)] == first
    assert conversation.splits == 0
    own = start(default + TURNS + OPEN, "mine")
    assert own.prompt_ids == [SYSTEM, *letters("mine"), END, USER, *letters("hi"), END, ASSISTANT]


def test_template_without_generation_prompt_renders_again() -> None:
    # the student answered right after </s>; in the history the template writes <a> before it
    conversation = start(TURNS)
    assert conversation.prompt_ids == [USER, *letters("hi"), END]
    second = conversation.advance(completion([*letters("go"), END]), "ok")
    assert second == [USER, *letters("hi"), END, ASSISTANT, *letters("go"), END, USER, *letters("ok"), END]
    assert conversation.splits == 1


def test_template_that_writes_nothing_before_answers_extends() -> None:
    plain = "{% for m in messages %}{{ '<u>' + m.content if m.role == 'user' else m.content + '</s>' }}{% endfor %}"
    conversation = start(plain)
    second = conversation.advance(completion([*letters("go"), END]), "ok")
    assert second == [USER, *letters("hi"), *letters("go"), END, USER, *letters("ok")]
    assert conversation.splits == 0


def test_fresh_prompts_start_over_with_the_system_prompt() -> None:
    conversation = ChatRenderer(character_tokenizer()).start("be", "hi", fresh_prompt=True)
    second = conversation.advance(completion([*letters("go"), END]), "ok")
    assert second == [SYSTEM, *letters("be"), END, USER, *letters("ok"), END, ASSISTANT]
    assert conversation.splits == 1


def test_answer_text_keeps_special_tokens_but_not_the_stop_token() -> None:
    renderer = ChatRenderer(character_tokenizer())
    ids = [THINK, *letters("a"), UNTHINK, *letters("b")]
    assert renderer.decode(completion([*ids, END])) == "<think>a</think>b"
    assert renderer.decode(completion([*ids, STOP])) == "<think>a</think>b"
    assert renderer.decode(completion([*ids, END], "length")) == "<think>a</think>b</s>"
    assert renderer.decode(completion([], "length")) == ""


def test_answer_that_ends_inside_a_character_extends() -> None:
    renderer = ChatRenderer(tiny_tokenizer())
    conversation = renderer.start(None, "look")
    first = list(conversation.prompt_ids)
    half = renderer.encode("é")[:-1]  # the first byte of two
    second = conversation.advance(completion(half, "length"), "go")
    assert second[: len(first) + len(half)] == first + half
    assert conversation.splits == 0


def test_splits_are_what_collate_counts() -> None:
    rng = random.Random(0)
    for template in (TURNS + OPEN, STRIPS_THINKING, TURNS):
        for _ in range(20):
            conversation = start(template)
            turns: list[Turn] = []
            for _ in range(4):
                ids = rng.choices([THINK, UNTHINK, STOP, *letters("ab c")], k=rng.randint(0, 4))
                answer = (
                    completion(ids, "length") if rng.random() < 0.3 else completion([*ids, rng.choice([END, STOP])])
                )
                turns.append(
                    Turn(
                        prompt_ids=conversation.prompt_ids,
                        completion_ids=answer.token_ids,
                        sampled_logprobs=answer.logprobs,
                        finish_reason=answer.finish_reason,
                        policy_version=0,
                        reward=0.0,
                    )
                )
                splits = conversation.splits
                conversation.advance(answer, rng.choice(["ok", "", "a b"]))
            trajectory = Trajectory(task="t", group=0, seed=0, turns=turns, reward=0.0, status=Status.FAILURE)
            assert count_splits(trajectory) == splits


def test_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.student.*chat template"):
        ChatRenderer(character_tokenizer(None))


def test_template_that_refuses_a_role_is_one_clear_error() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
    with pytest.raises(ConfigError, match=r"roles \['system', 'user'\].*no system role"):
        start(template, "be kind")
