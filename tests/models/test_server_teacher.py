"""A teacher behind a server: the scores of the local one, and an error from a server that is not what it should be."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from opdlight.batch.split import at_positions
from opdlight.errors import ConfigError, ServerError, VocabularyError
from opdlight.losses import Needs, SupportKind
from opdlight.models import Student, Teacher, Teachers
from opdlight.models.served_model import SAMPLE_K, SAMPLE_TOKENS
from opdlight.types import SharedVocabulary
from tests import fake_server
from tests.fake_server import FakeServer
from tests.models.architectures import build, random_batch, save
from tests.models.score_cases import BATCH, NEEDS, SHARED, TOP, ask, assert_equal, request
from tests.models.served_teacher import TOKENIZER, score, served
from tests.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module", params=[True, False], ids=["names ids", "names none"])
def pair(request: pytest.FixtureRequest, folder: str) -> Iterator[tuple[FakeServer, Teachers, Teachers]]:
    """A server that scores ids that it is sent, or not; its teacher, and the local one."""
    student = Student(folder)
    with FakeServer(build("llama"), TOKENIZER, names_ids=request.param) as fake:
        yield (
            fake,
            Teachers({"a": folder}, student, lambda model: served(model, fake)),
            Teachers({"a": folder}, student),
        )


@pytest.mark.parametrize("probe_k", [0, 4], ids=["no probe", "probed"])
@pytest.mark.parametrize("name", NEEDS)
def test_scores_are_those_of_the_local_teacher(
    name: str, probe_k: int, pair: tuple[FakeServer, Teachers, Teachers]
) -> None:
    fake, teachers, local = pair
    needs = NEEDS[name]
    teachers.check(request(needs, probe_k=4))
    before = len(fake.asked)
    got, expected = (t.score(BATCH, request(needs, probe_k=probe_k)) for t in (teachers, local))
    sent = [body for _, body in fake.asked[before:]]
    whole = name in ("full vocabulary", "entropy") or (name.startswith("student") and not fake.names_ids)
    assert_equal(got, expected, tells_all=fake.names_ids or whole)
    if name == "nothing" and not probe_k:
        assert not sent
        return
    assert len(sent) == 1 + len(BATCH.input_ids)  # one a row, and the sample
    asked = [body["sampling_params"]["prompt_logprobs"] for body in sent]
    assert (-1 in asked) == whole  # only then all V log-probs travel
    lengths = sorted(len(body["token_ids"]) for body in sent)
    last = [int(BATCH.col_index[BATCH.row_index == row].max()) + 2 for row in range(len(BATCH.input_ids))]
    assert lengths == sorted([*last, SAMPLE_TOKENS])  # up to the last token that is scored, and the sample


def test_positions_in_another_order_have_the_same_scores(folder: str, fake: FakeServer) -> None:
    order = torch.randperm(BATCH.num_tokens, generator=torch.Generator().manual_seed(5))
    asked, teacher = ask(NEEDS["top-K and token"]), served(folder, fake)
    expected, got = teacher.score(BATCH, asked), teacher.score(at_positions(BATCH, order), asked)
    assert expected.support is not None
    assert got.support is not None
    assert torch.equal(got.support.token_ids, expected.support.token_ids[order])
    assert expected.sampled is not None
    torch.testing.assert_close(got.sampled, expected.sampled[order])


@pytest.mark.parametrize(("limit", "asked"), [(330, 6), (327, 9), (300, 14)])
def test_a_few_more_are_asked_for_than_lie_in_both_vocabularies(
    limit: int, asked: int, folder: str, fake: FakeServer
) -> None:
    teacher = served(folder, fake)
    before = len(fake.asked)
    score(teacher, shared=SharedVocabulary(limit))
    found = {body["sampling_params"]["prompt_logprobs"] for _, body in fake.asked[before:]}
    assert found == {asked, SAMPLE_K}


def test_candidates_that_are_left_out_make_room_for_the_next(folder: str, fake: FakeServer) -> None:
    first = score(served(folder, fake)).support
    assert first is not None
    out = frozenset(first.token_ids[:, 0].tolist()[:3])
    support = score(served(folder, fake), shared=SharedVocabulary(SHARED, out)).support
    assert support is not None
    assert support.k == first.k
    assert not out & set(support.token_ids.flatten().tolist())
    expected = Teacher(folder).score(BATCH, request(TOP, shared=SharedVocabulary(SHARED, out)))
    assert expected.support is not None
    assert torch.equal(support.token_ids, expected.support.token_ids)


def test_too_few_in_both_vocabularies_are_an_error(folder: str, fake: FakeServer) -> None:
    with pytest.raises(ServerError, match=r"Fewer than 20 .* among the 40"):
        score(served(folder, fake), Needs(support=SupportKind.TEACHER_TOP_K, k=20), shared=SharedVocabulary(40))


def test_a_batch_without_loss_positions_has_empty_scores(folder: str, fake: FakeServer) -> None:
    empty = random_batch([2])
    assert empty.num_tokens == 0
    found = served(folder, fake).score(empty, ask(NEEDS["top-K and token"]))
    assert found.support is not None
    assert found.sampled is not None
    assert (found.support.token_ids.shape, found.sampled.shape) == ((0, 5), (0,))


def test_each_task_asks_the_server_of_its_teacher(tmp_path: Path) -> None:
    folders = [save(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    batch = random_batch([9, 8, 7, 6], tasks=("a", "b"))
    student = Student(folders[0])
    models = dict(zip("ab", folders, strict=True))
    with (
        FakeServer(build("llama"), TOKENIZER, "one") as one,
        FakeServer(build("llama", 1), TOKENIZER, "two", names_ids=False) as two,
    ):
        teachers = Teachers(models, student, lambda model: served(model, two, one))
        at = torch.arange(batch.num_tokens)
        asked = request(TOP, probe_at=at, probe_k=4, probe_student_ids=torch.arange(4).expand(len(at), -1))
        got, expected = teachers.score(batch, asked), Teachers(models, student).score(batch, asked)
        one.faults.append(fake_server.status(500))
        teachers.score(batch, asked)
        assert teachers.stats()["retries"] == 1
    assert_equal(got, expected, tells_all=False)
    assert got.probe is not None
    assert not got.probe.at_other[batch.task_index == 0].isnan().any()  # its server tells


def test_it_holds_no_weights_and_survives_moves(folder: str, fake: FakeServer) -> None:
    teachers = Teachers({"a": folder}, Student(folder), lambda model: served(model, fake))
    teachers.to("cpu")  # where weights on no device could not go
    assert not teachers.state_dict()
    teacher = teachers.of("a")
    assert all(p.is_meta for p in teacher.model.parameters())
    assert teacher.width == 330
    assert teacher.model.config.max_position_embeddings == 64  # the server takes more
    fake.context = 49
    assert served(folder, fake).model.config.max_position_embeddings == 48
    with pytest.raises(ServerError, match=r"49 tokens.*--max-model-len 50"):
        served(folder, fake).score(random_batch([50]), ask(TOP))


def test_the_students_vocabulary_is_checked_as_ever(tmp_path: Path, folder: str, fake: FakeServer) -> None:
    other = tmp_path / "other"
    save(other, seed=2)
    tiny_tokenizer(vocabulary_size=300).save_pretrained(other)
    changed = (other / "tokenizer.json").read_text().replace('"<|im_start|>"', '"<|start|>"')
    (other / "tokenizer.json").write_text(changed)
    with pytest.raises(VocabularyError):
        Teachers({"a": folder}, Student(str(other)), lambda model: served(model, fake))


def test_a_server_of_another_model_is_noticed(tmp_path: Path, folder: str, fake: FakeServer) -> None:
    with pytest.raises(ConfigError, match=r"`teacher.url` .*'tiny'"):
        served(save(tmp_path / "large"), fake)
    teacher = served(folder, fake)
    score(teacher)
    fake.model = build("llama", seed=1)  # restarted under the same name
    with pytest.raises(ServerError, match="another model than at the start"):
        score(teacher)
    fake.model = build("llama")
    score(teacher)


def test_a_server_that_restarts_in_time_goes_on(folder: str, fake: FakeServer) -> None:
    teacher = served(folder, fake, retries=8)
    expected = score(teacher)
    fake.faults.extend([fake_server.hang_up] * 3 + [fake_server.status(503), fake_server.cut])
    assert_equal(score(teacher), expected, tells_all=False)
    assert teacher.stats()["retries"] == 5


def test_another_vocabulary_is_noticed(folder: str, fake: FakeServer) -> None:
    fake.tokenizer = tiny_tokenizer(vocabulary_size=270)
    with pytest.raises(ServerError, match="another vocabulary"):
        served(folder, fake)


def test_a_vocabulary_of_another_width_is_noticed(folder: str) -> None:
    wider = FakeServer(build("llama", width=340), TOKENIZER)
    with wider, pytest.raises(ServerError, match="0 to 329, but got"):
        served(folder, wider)


@pytest.mark.parametrize(
    ("needs", "temperature", "names_ids", "message"),
    [
        (TOP, 0.7, True, r"`sampling.temperature` .* got 0.7"),
        (Needs(support=SupportKind.TEACHER_TOP_K, k=30), 1.0, True, "--max-logprobs 38"),
        (NEEDS["full vocabulary"], 1.0, True, "--max-logprobs -1, or use a loss on the teacher's top-K"),
        (NEEDS["entropy"], 1.0, True, "--max-logprobs -1"),
        (NEEDS["student"], 1.0, False, "--max-logprobs -1"),
        (Needs(support=SupportKind.STUDENT_TOP_K, k=18), 1.0, True, "--max-logprobs 22"),
        (Needs(support=SupportKind.TEACHER_TOP_K, k=SHARED + 1), 1.0, True, "`loss.k`"),
    ],
)
def test_what_the_server_does_not_give_is_said_before_training(
    needs: Needs, temperature: float, names_ids: bool, message: str, folder: str
) -> None:
    with FakeServer(build("llama"), TOKENIZER, names_ids=names_ids, max_logprobs=20) as fake:
        teachers = Teachers({"a": folder}, Student(folder), lambda model: served(model, fake))
        teachers.check(request(TOP, probe_k=4))
        with pytest.raises(ConfigError, match=message):
            teachers.check(request(needs, probe_k=4, temperature=temperature))


def test_a_server_that_goes_away_is_no_wrong_setting(folder: str, fake: FakeServer) -> None:
    fake.faults.append(fake_server.status(404, "started without --enable-scale-out"))
    with pytest.raises(ServerError, match="404: started without"):
        served(folder, fake)
    teacher = served(folder, fake, retries=0)
    fake.stop()
    with pytest.raises(ServerError, match="gave no answer"):
        teacher.check(request(TOP, probe_k=4))


def test_scores_are_at_temperature_one_only(folder: str, fake: FakeServer) -> None:
    with pytest.raises(ValueError, match=r"`temperature` to be 1, but got 0\.7"):
        score(served(folder, fake), temperature=0.7)


def test_a_local_teacher_gives_everything(folder: str) -> None:
    Teachers({"a": folder}, Student(folder)).check(request(NEEDS["entropy"], probe_k=4, temperature=0.7))
    assert Teacher(folder).stats() == {}
