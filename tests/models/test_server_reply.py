"""Nothing is trained on a reply that is not what was asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from opdlight.errors import ServerError
from opdlight.models.server_reply import Answer, Question, read_answer
from opdlight.types import SharedVocabulary
from tests import fake_server
from tests.fake_server import FakeServer
from tests.models.score_cases import NEEDS
from tests.models.served_teacher import score, served


def drop_position(reply: dict[str, Any]) -> None:
    reply["prompt_logprobs"].pop()


def drop_entry(reply: dict[str, Any]) -> None:
    reply["prompt_logprobs"][2].pop(next(reversed(reply["prompt_logprobs"][2])))


def another_token(reply: dict[str, Any]) -> None:
    first = next(iter(reply["prompt_logprobs"][2]))
    reply["prompt_logprobs"][2]["329" if first != "329" else "328"] = reply["prompt_logprobs"][2].pop(first)


def rename_last(name: str) -> Callable[[dict[str, Any]], None]:
    def spoil(reply: dict[str, Any]) -> None:
        last = next(reversed(reply["prompt_logprobs"][2]))
        reply["prompt_logprobs"][2][name] = reply["prompt_logprobs"][2].pop(last)

    return spoil


def put(value: object, where: slice = slice(None)) -> Callable[[dict[str, Any]], None]:
    """`value` for the log-probs `where`; the first is the token's."""

    def spoil(reply: dict[str, Any]) -> None:
        for entry in list(reply["prompt_logprobs"][2].values())[where]:
            entry["logprob"] = value

    return spoil


def cut_scores(reply: dict[str, Any]) -> None:
    if reply["prompt_token_id_logprobs"] is not None:
        reply["prompt_token_id_logprobs"] = reply["prompt_token_id_logprobs"][:-8]


def named(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    """`change` the log-probs of the ids that were sent."""

    def spoil(reply: dict[str, Any]) -> None:
        if reply["prompt_token_id_logprobs"] is not None:
            found = fake_server.from_npy(reply["prompt_token_id_logprobs"])
            reply["prompt_token_id_logprobs"] = fake_server.to_npy(change(found))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_position, "prompt log-probs of"),
        (lambda reply: reply.update(prompt_logprobs=None), "prompt log-probs of"),
        (drop_entry, "log-probs at 2"),
        (another_token, "the log-prob of the token"),
        (lambda reply: reply["prompt_logprobs"].__setitem__(2, None), "log-probs by id at 2"),
        (rename_last("330"), "ids of the teacher's vocabulary, 0 to 329"),
        (rename_last("-1"), "ids of the teacher's vocabulary, 0 to 329"),
        (put(0.0), "log-probs of one distribution"),
        (put(0.5), "finite log-probs ≤ 0"),
        (put(float("nan")), "finite log-probs ≤ 0"),
        (put(float("-inf")), "finite log-probs ≤ 0"),
        (put(float("-inf"), slice(1, None)), "finite log-probs ≤ 0"),
        (put(None), "log-probs by id at 2"),
        (lambda reply: reply.update(model="other"), "scores of the model 'tiny'"),
        (cut_scores, "of the ids it was sent"),
        (named(lambda found: found[:-1]), "of the ids it was sent"),
        (named(lambda found: found.long()), "of the ids it was sent"),
        (named(lambda found: found * torch.nan), "finite log-probs ≤ 0"),
        (named(lambda found: found.abs()), "finite log-probs ≤ 0"),
        (lambda reply: reply.update(prompt_token_id_logprobs=None), "of the ids it was sent"),
        (lambda reply: reply.update(prompt_token_id_logprobs=5), "of the ids it was sent"),
        (lambda reply: reply.update(prompt_token_id_logprobs=""), "of the ids it was sent"),
    ],
)
def test_nothing_is_scored_by_a_spoilt_reply(
    spoil: Callable[[dict[str, Any]], Any], message: str, folder: str, fake: FakeServer
) -> None:
    teacher = served(folder, fake)
    score(teacher, NEEDS["student"])
    fake.spoil = spoil
    with pytest.raises(ServerError, match=message):
        score(teacher, NEEDS["student"], probe_k=4)
    assert teacher.stats()["retries"] == 0


@pytest.mark.parametrize("logprob", [float("-inf"), float("nan"), 0.5])
def test_the_token_itself_is_checked_as_the_top_k_is(logprob: float) -> None:
    reply = {"prompt_logprobs": [None, {"5": {"logprob": logprob}}]}
    question = Question(ids=[4, 5], columns=torch.tensor([0]))
    with pytest.raises(ServerError, match="finite log-probs ≤ 0"):
        read_answer(reply, question, 330, lambda expected, got: ServerError(f"{expected}, {got}"))


def test_an_id_that_the_teacher_rules_out_has_no_mass(folder: str, fake: FakeServer) -> None:
    def rule_out(found: torch.Tensor) -> torch.Tensor:
        found[:, 0] = -torch.inf
        return found

    fake.spoil = named(rule_out)
    support = score(served(folder, fake), NEEDS["student"]).support
    assert support is not None
    assert torch.isneginf(support.teacher_logprobs[:, 0]).all()
    assert torch.isfinite(support.teacher_logprobs[:, 1:]).all()


def test_an_answer_knows_what_it_was_told() -> None:
    told = Answer(
        sampled=torch.tensor([-1.0]),
        top_ids=torch.tensor([[7, 3]]),
        top_logprobs=torch.tensor([[-0.5, -1.5]]),
        named_ids=torch.tensor([[9, -1]]),
        named_logprobs=torch.tensor([[-4.0, -torch.inf]]),
    )
    found = told.at(torch.tensor([[3, 8, 9, 7, 10]]))[0].tolist()
    assert found[0] == -1.5
    assert found[2:4] == [-4.0, -0.5]
    assert torch.tensor([found[1], found[4]]).isnan().all()
    ids, logprobs = told.top(1, shared=SharedVocabulary(5))
    assert (ids.tolist(), logprobs.tolist()) == ([[3]], [[-1.5]])


def test_the_difference_of_two_answers_is_the_mean_over_the_token_and_the_better_half() -> None:
    def answer(sampled: float, top: dict[int, float]) -> Answer:
        return Answer(
            sampled=torch.tensor([sampled]),
            top_ids=torch.tensor([list(top)]),
            top_logprobs=torch.tensor([list(top.values())]),
        )

    first = answer(-1.0, {4: -1.0, 5: -3.0, 6: -0.5, 7: -4.0})  # 6 and 4 are its better half
    assert first.difference(first) == 0
    later = answer(-1.25, {4: -0.5, 6: -0.75, 8: -2.0, 9: -2.0})
    assert first.difference(later) == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    without = answer(-1.0, {6: -0.5, 8: -2.0, 9: -2.0, 10: -2.0})  # 4 is told no more
    assert first.difference(without) == pytest.approx(1 / 3)
