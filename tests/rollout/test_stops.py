"""`sampling.stop`: further stop tokens, from the config to the next prompt."""

from typing import Any

import pytest

from opdlight.errors import ConfigError, EngineError
from opdlight.rollout import ChatRenderer, Collector, Limits, Request, Sampling, ScriptedEngine
from tests.rollout.test_rendering import ASSISTANT, END, STOP, USER, letters
from tests.rollout.walking import Envs, Walk, requests
from tests.tiny_models import OPEN, TURNS, character_tokenizer


@pytest.mark.parametrize("stop", [[""], [-1], [True], [1.5], [None], [["a"]]])
def test_what_can_be_no_token_is_refused(stop: Any) -> None:
    with pytest.raises(ConfigError, match=r"Expected `sampling\.stop` to be .* one token of the vocabulary"):
        Sampling(stop=stop)


def test_texts_become_the_ids_of_a_tokenizer() -> None:
    tokenizer = character_tokenizer(merges=("go",))
    assert Sampling(stop=["</s>", 7, "go", "a"]).resolve(tokenizer).stop == (END, STOP, 40, 10)
    assert Sampling(temperature=0.5, stop=["a"]).resolve(tokenizer) == Sampling(temperature=0.5, stop=[10])
    for unknown in ("ab", "<|im_end|>", "?", 999):
        with pytest.raises(ConfigError, match=r"`sampling\.stop`"):
            Sampling(stop=["a", unknown]).resolve(tokenizer)
        assert Sampling(stop=["a", unknown]).resolve(tokenizer, skip_unknown=True).stop == (10,)


def test_an_engine_takes_ids_only() -> None:
    request = Request(request_id="a", prompt_ids=[1], max_tokens=2, sampling=Sampling(stop=["a"]))
    with pytest.raises(EngineError, match="hold ids"):
        request.check(100)
    assert Sampling(stop=[5, 2]).stop_ids([2, 1]) == [1, 2, 5]


def test_a_base_model_stops_where_its_template_ends_a_turn() -> None:
    """Its end of sequence is <stop>; without `stop` it goes on and plays the other side, too."""
    tokenizer = character_tokenizer(TURNS + OPEN)
    tokenizer.eos_token = "<stop>"
    sampled = [*letters("go"), END, USER, *letters("won"), END, ASSISTANT, *letters("ha"), STOP]
    prompts: list[list[int]] = []
    envs = Envs(Walk)
    limits = {"walk": Limits(turn_tokens=64, trajectory_tokens=512)}
    engine = ScriptedEngine(lambda prompt: prompts.append(prompt) or sampled)  # type: ignore[func-returns-value]
    collector = Collector(engine, ChatRenderer(tokenizer), envs, limits, env_threads=1)
    (without,) = collector.collect(requests(2), Sampling())
    (stopped,) = collector.collect(requests(2), Sampling(stop=["</s>"]))
    collector.close()
    assert [t.completion_ids for t in without.turns] == [sampled] * 2
    assert [t.completion_ids for t in stopped.turns] == [[*letters("go"), END]] * 2
    assert {t.finish_reason for t in stopped.turns} == {"stop"}
    assert all(len(t.sampled_logprobs) == 3 for t in stopped.turns)
    assert envs.made[0].heard[-2:] == ["go", "go"]
    first, second = prompts[-2:]
    assert second == [*first, *letters("go"), END, USER, *letters("heard go"), END, ASSISTANT]  # it only grows
    assert collector.last is not None
    assert collector.last.row_splits == 0


def test_a_stop_that_the_template_does_not_write_begins_a_new_row() -> None:
    tokenizer = character_tokenizer(TURNS + OPEN)
    limits = {"walk": Limits(turn_tokens=64, trajectory_tokens=512)}
    engine = ScriptedEngine(lambda prompt: [*letters("go"), STOP, *letters("on"), END])
    collector = Collector(engine, ChatRenderer(tokenizer), Envs(Walk), limits, env_threads=1)
    (trajectory,) = collector.collect(requests(2), Sampling(stop=[STOP]))
    collector.close()
    assert trajectory.turns[1].prompt_ids[-14:] == [
        *letters("go"), END, USER, *letters("heard go"), END, ASSISTANT,
    ]  # fmt: skip
    assert collector.last is not None
    assert collector.last.row_splits == 1
