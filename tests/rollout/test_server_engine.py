"""The student behind a (fake) server: never a completion of other weights, and none twice, whatever becomes of it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from opdlight import server as module
from opdlight.errors import ConfigError, EngineError, OpdError, ServerError
from opdlight.models import Student
from opdlight.rollout import Completion, Request, Sampling, VLLMServerEngine
from tests import fake_server
from tests.fake_server import FakeServer
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STOP = 2  # <|im_end|>
PROMPTS = [[5, 6, 7 + i] for i in range(8)]
PUSH = ["/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/weight_info", "/update_weight_version"]


def student(seed: int) -> PreTrainedModel:
    return tiny_llama(seed, vocabulary_size=len(TOKENIZER), spread=0.1)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), spread=0.1)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer(student(9), TOKENIZER) as fake:  # it was started with other weights than the student's
        yield fake


@pytest.fixture
def start(folder: Path, fake: FakeServer, tmp_path: Path) -> Iterator[Callable[..., VLLMServerEngine]]:
    engines = []

    def start(**changed: Any) -> VLLMServerEngine:
        how: Any = {"model": str(folder), "max_model_len": 64, "concurrency": 4, "timeout": 20.0, "retries": 6}
        engines.append(VLLMServerEngine(**{**how, "url": fake.url, "weights_folder": str(tmp_path / "w"), **changed}))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def add(engine: VLLMServerEngine, number: int, **changed: Any) -> None:
    how: Any = {"prompt_ids": PROMPTS[number], "max_tokens": 12, "sampling": Sampling(), "seed": 100 + number}
    engine.add_request(Request(request_id=str(number), **{**how, **changed}))


def generate(engine: VLLMServerEngine, **changed: Any) -> list[Completion]:
    for number in range(len(PROMPTS)):
        add(engine, number, **changed)
    return finish(engine)


def finish(engine: VLLMServerEngine) -> list[Completion]:
    found: list[Completion] = []
    while engine.has_unfinished():
        found += engine.step()
    assert sorted(c.request_id for c in found) == [str(i) for i in range(len(found))]  # each once
    return sorted(found, key=lambda c: c.request_id)


def gap(model: PreTrainedModel, completions: list[Completion]) -> float:
    """Largest |reported log-prob − forward log-prob|."""
    worst = 0.0
    for prompt, c in zip(PROMPTS, completions, strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([[*prompt, *c.token_ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = rows.gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(c.logprobs)).abs().max()))
    return worst


def requests(fake: FakeServer) -> list[Any]:
    return [body for path, body in fake.asked if path == "/inference/v1/generate"]


def test_completions_are_those_of_the_weights_that_it_was_given(
    fake: FakeServer, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    engine = start()
    first = generate(engine)
    assert gap(student(0), first) < 1e-4  # the student's own, not the server's
    assert gap(student(9), first) > 0.1
    assert {c.policy_version for c in first} == {0}
    for version, seed in ((1, 3), (5, 4)):
        engine.update_weights(student(seed).state_dict().items(), version)
        assert engine.policy_version == version
        found = generate(engine)
        assert gap(student(seed), found) < 1e-4
        assert {c.policy_version for c in found} == {version}
        assert len(list((tmp_path / "w").iterdir())) == 1  # the newest weights only
    again = generate(engine)
    assert again == found
    assert [c.token_ids for c in found] != [c.token_ids for c in first]
    assert fake.most_at_once <= 4
    stats = engine.stats()
    assert (stats["requests"], stats["restarts"], stats["resent"]) == (4 * len(PROMPTS), 0, 0)
    assert stats["prompt_tokens"] == 4 * 3 * len(PROMPTS)
    engine.close()
    assert not (tmp_path / "w").exists()


def test_stop_tokens_and_sampling_are_those_of_the_request(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    fake.asked.clear()
    found = generate(engine, max_tokens=60, sampling=Sampling(temperature=0.7, top_p=0.9))
    for body in requests(fake):
        how = body["sampling_params"]
        assert (how["temperature"], how["top_p"], how["max_tokens"], how["logprobs"]) == (0.7, 0.9, 60, 0)
        assert (how["stop_token_ids"], how["seed"]) == ([STOP], 100 + PROMPTS.index(body["token_ids"]))
    assert {c.finish_reason for c in found} == {"stop", "length"}
    assert all(c.token_ids.count(STOP) == (c.finish_reason == "stop") for c in found)
    assert all(len(c.token_ids) == len(c.logprobs) for c in found)
    assert gap(student(0), found) < 1e-4  # raw, whatever the temperature


def test_weights_are_pushed_while_nothing_is_labelled_with_their_version(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    fake.asked.clear()
    engine.update_weights(student(3).state_dict().items(), 7)
    assert [path for path, _ in fake.asked] == PUSH
    first, last = fake.asked[0][1]["new_version"], fake.asked[-1][1]["new_version"]
    assert (first, last) == (f"{last}-loading", fake.version)
    assert last.endswith("-7")
    assert start()._weights.label.rpartition("-")[0] != last.rpartition("-")[0]  # another run's labels are others


def forget(fake: FakeServer, handler: BaseHTTPRequestHandler) -> bool:
    """The server is restarted before it answers."""
    fake.restart()
    return False


def restart_and_hang_up(fake: FakeServer, handler: BaseHTTPRequestHandler) -> bool:
    fake.restart()
    return fake_server.hang_up(handler)


@pytest.mark.parametrize("fault", [forget, restart_and_hang_up])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_restart_in_mid_batch_changes_no_completion(
    fault: Callable[..., bool], place: int, fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    engine.update_weights(student(3).state_dict().items(), 1)
    expected = generate(engine)
    loads, before = fake.loads, engine.stats()
    fake.asked.clear()
    fake.faults.extend([fake_server.slow(0)] * place + [partial(fault, fake)])
    assert generate(engine) == expected
    stats = engine.stats()
    assert stats["restarts"] == 1
    assert fake.loads == loads + 1
    assert 1 <= stats["resent"] <= len(PROMPTS)
    assert stats["requests"] - before["requests"] == len(PROMPTS)
    asked = [(tuple(body["token_ids"]), body["sampling_params"]["seed"]) for body in requests(fake)]
    assert set(asked) == {(tuple(p), 100 + i) for i, p in enumerate(PROMPTS)}  # sent again with the same seeds
    assert len(asked) == len(PROMPTS) + stats["resent"] + stats["retries"]
    paths = [path for path, _ in fake.asked]
    loaded = paths.index("/update_weight_version")
    assert paths[loaded : loaded + len(PUSH)] == PUSH  # nothing is asked for while it loads


def test_nothing_more_is_sent_to_a_server_that_has_lost_its_weights(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(concurrency=1)
    fake.asked.clear()
    held = threading.Event()
    fake.faults.extend([partial(forget, fake), lambda handler: not held.wait()])
    for number in range(len(PROMPTS)):
        add(engine, number)
    while not engine._waiting:
        assert engine.step() == []
    held.set()
    finish(engine)
    paths = [path for path, _ in fake.asked]
    assert paths.index("/update_weight_version") == engine.stats()["resent"] == 2
    assert len(requests(fake)) == len(PROMPTS) + 2


def test_a_server_that_is_away_for_a_while_gets_the_weights_again(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(retries=14)
    engine.update_weights(student(3).state_dict().items(), 1)
    expected = generate(engine)
    fake.stop()
    fake.restart()
    timer = threading.Timer(0.3, fake.start)
    timer.start()
    assert generate(engine) == expected
    timer.join()
    assert engine.stats()["restarts"] == 1
    assert engine.stats()["retries"] > 0


def test_a_restart_while_it_loads_weights_begins_the_load_anew(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    left = [fake.restart, fake.restart]
    fake.after_load = lambda: left.pop()() if left else None
    engine.update_weights(student(3).state_dict().items(), 1)
    assert gap(student(3), generate(engine)) < 1e-4
    assert engine.stats()["retries"] == 2


def test_a_server_that_never_keeps_its_weights_is_an_error(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(retries=2)
    fake.faults.extend([partial(forget, fake)] * 100)
    add(engine, 0)
    with pytest.raises(EngineError, match="lost its weights 4 times without one completion"):
        finish(engine)


def test_aborted_requests_are_sent_again(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    expected = generate(engine)
    aborts = iter(["abort"])

    def abort(reply: dict[str, Any]) -> None:
        reply["choices"][0]["finish_reason"] = next(aborts, reply["choices"][0]["finish_reason"])

    fake.spoil = abort
    assert generate(engine) == expected
    assert engine.stats()["resent"] == 1


def test_another_run_at_the_same_server_is_noticed(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    add(engine, 0)
    finish(engine)
    start()  # pushes its own weights
    add(engine, 0)
    with pytest.raises(EngineError, match="another run publishes to the same server"):
        finish(engine)


def choice(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda reply: reply["choices"][0].update(changed)


def each_logprob(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda reply: [c.update(logprob=value) for c in reply["choices"][0]["logprobs"]["content"]]


def another_end(reply: dict[str, Any]) -> None:
    now = reply["choices"][0]["finish_reason"]
    reply["choices"][0]["finish_reason"] = {"stop": "length", "length": "stop"}[now]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (choice(token_ids=[]), "tokens with a log-prob each"),
        (lambda reply: reply["choices"][0]["token_ids"].pop(), "tokens with a log-prob each"),
        (lambda reply: reply["choices"][0]["logprobs"]["content"].pop(), "tokens with a log-prob each"),
        (choice(logprobs=None), "tokens with a log-prob each"),
        (lambda reply: reply["choices"][0]["logprobs"]["content"][0].pop("token_id"), "a log-prob per token"),
        (each_logprob("x"), "a log-prob per token"),
        (each_logprob(0.5), "finite log-probs"),
        (each_logprob(float("nan")), "finite log-probs"),
        (each_logprob(-9999.0), "finite log-probs"),
        (another_end, r"an end by one of the stop tokens \[2\] or by the length 12"),
        (choice(finish_reason="error"), "an end by"),
        (choice(weight_versions=None), "the weight versions of a completion"),
        (lambda reply: reply.update(choices=[]), "one choice"),
    ],
)
def test_a_spoilt_reply_is_no_completion(
    spoil: Callable[[dict[str, Any]], Any], message: str, fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    fake.spoil = spoil
    add(engine, 0)
    with pytest.raises(ServerError, match=message):
        finish(engine)


def test_a_step_without_completions_ends_soon(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    held = threading.Event()
    fake.faults.append(lambda handler: not held.wait())
    add(engine, 0)
    assert engine.step() == []  # it would wait for ever
    assert engine.has_unfinished()
    held.set()
    assert len(finish(engine)) == 1


def test_closing_gives_up_what_a_server_does_not_answer(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(timeout=600.0)
    held = threading.Event()
    fake.faults.extend([lambda handler: not held.wait()] * 4)
    for number in range(len(PROMPTS)):
        add(engine, number)
    while fake.most_at_once < 4:
        engine.step()
    engine.close()
    sent = [future for future in engine._flying if not future.cancelled()]
    assert not wait(sent, timeout=60).not_done  # else the process would wait for them at its end
    assert len(requests(fake)) == 1 + 4  # the check at the start
    held.set()


def test_what_does_not_fit_changes_nothing(
    fake: FakeServer, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    engine = start()
    expected = generate(engine)
    weights = dict(student(4).state_dict())
    for bad, message in [
        ({n: w for n, w in weights.items() if "layers.1" not in n}, "are missing"),
        (weights | {"model.norm.weight": torch.ones(7)}, "shape"),
        (weights | {"x": torch.ones(1)}, "no weight 'x'"),
    ]:
        with pytest.raises(EngineError, match=message):
            engine.update_weights(bad.items(), 1)
    with pytest.raises(EngineError, match=r"fit `engine\.max_model_len` = 64"):
        add(engine, 0, max_tokens=62)
    add(engine, 0)
    with pytest.raises(EngineError, match="already running"):
        add(engine, 0)
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        engine.update_weights(weights.items(), 1)
    finish(engine)
    assert engine.policy_version == 0
    assert len(list((tmp_path / "w").iterdir())) == 1
    assert generate(engine) == expected


def no_development(fake: FakeServer) -> None:
    fake.dev = False


def processed(fake: FakeServer) -> None:
    fake.processed = True


def small_context(fake: FakeServer) -> None:
    fake.context = 63


def other_architecture(fake: FakeServer) -> None:
    fake.model = tiny_llama(0, vocabulary_size=len(TOKENIZER), hidden=32)


def deaf(fake: FakeServer) -> None:
    """It says that it has loaded weights, and has not."""
    fake.after_load = lambda: fake.model.load_state_dict(fake.first)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (no_development, EngineError, "VLLM_SERVER_DEV_MODE=1"),
        (processed, EngineError, "--logprobs-mode raw_logprobs"),
        (
            small_context,
            ConfigError,
            r"`engine.max_model_len` .* at most 63 \(vllm serve --max-model-len\), but got 64",
        ),
        (other_architecture, EngineError, "does it see this folder under the same path"),
        (deaf, EngineError, "nats from the model's in the mean"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_at_the_start(
    change: Callable[[FakeServer], None],
    error: type[OpdError],
    message: str,
    fake: FakeServer,
    start: Callable[..., VLLMServerEngine],
) -> None:
    change(fake)
    with pytest.raises(error, match=message):
        start()


def test_several_processes_are_refused(start: Callable[..., VLLMServerEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"`trainer.devices` to be 1 beside engine=vllm_server, but got 2"):
        start()


def test_an_adapter_is_merged_into_its_base(
    folder: Path, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    adapted = Student(str(folder), lora={"r": 2, "lora_alpha": 4})
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    adapted.save_adapter(tmp_path / "adapter")
    engine = start(model=str(tmp_path / "adapter"))
    found = generate(engine)
    assert gap(adapted.model, found) < 1e-4
    assert gap(student(0), found) > 0.01
