"""Real vLLM on a tiny random Llama: its log-probs are the student's, before and after weight updates."""

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from opdlight.batch.rows import count_splits
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EngineError
from opdlight.models import Student
from opdlight.models.loading import load_model
from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engines.base import Completion, Request, Sampling
from opdlight.rollout.engines.vllm import VLLMEngine
from opdlight.rollout.rendering import ChatRenderer
from opdlight.types import RolloutRequest, Trajectory
from tests.tiny_models import save_tiny, tiny_adapter, tiny_llama, tiny_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]
STOP = 2  # <|im_end|>
VOCABULARY = len(tiny_tokenizer())


class Echo(TextEnv):
    """Repeats a part of what it heard, four turns long."""

    system_prompt = "repeat"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn, self.first = 0, f"take key {seed}"
        return self.first, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        over = self.turn == 4
        return f"{self.first}: {action[:9]}", float(over), over, False, {"success": over}


def start(folder: Path, **changed: Any) -> VLLMEngine:
    settings = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.05, **changed}
    return VLLMEngine(str(folder), **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    engine = start(folder)
    yield engine
    engine.close()


def student(seed: int, *, tied: bool = False) -> LlamaForCausalLM:
    return tiny_llama(seed, vocabulary_size=VOCABULARY, tied=tied)


def generate(
    engine: VLLMEngine, prompts: list[list[int]], *, max_tokens: int = 24, **sampling: Any
) -> list[Completion]:
    for i, prompt in enumerate(prompts):
        engine.add_request(
            Request(
                request_id=f"{i}.0",
                prompt_ids=prompt,
                max_tokens=max_tokens,
                sampling=Sampling(**sampling),
                seed=100 + i,
            )
        )
    found: dict[str, Completion] = {}
    while engine.has_unfinished():
        found |= {c.request_id: c for c in engine.step()}
    return [found[f"{i}.0"] for i in range(len(prompts))]


def forward_logprobs(model: LlamaForCausalLM, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """log π of the completion's tokens [C] by a plain transformers forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0]


def worst_gap(model: LlamaForCausalLM, trajectories: list[Trajectory]) -> float:
    """Largest |engine log-prob − forward log-prob| over all turns."""
    gaps = [
        (forward_logprobs(model, t.prompt_ids, t.completion_ids) - torch.tensor(t.sampled_logprobs)).abs().max()
        for trajectory in trajectories
        for t in trajectory.turns
    ]
    return float(torch.stack(gaps).max())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.8), Sampling(temperature=0.7, top_p=0.8)])
def test_logprobs_equal_the_forward_over_turns_and_updates(engine: VLLMEngine, sampling: Sampling) -> None:
    """Stored are raw log-probs: of the full distribution at temperature 1, whatever the sampling."""
    limits = {"echo": Limits(turn_tokens=12, trajectory_tokens=250)}
    collector = Collector(engine, ChatRenderer(tiny_tokenizer()), lambda task: Echo(), limits, env_threads=2)
    requests = [RolloutRequest(task="echo", seed=s % 5, group=s % 5, sample=s // 5) for s in range(20)]
    rolled, reasons = [], set()
    for version, seed in enumerate((3, 4, 5), start=engine.policy_version + 1):
        model = student(seed)
        engine.update_weights(model.state_dict().items(), version)
        trajectories = collector.collect(requests, sampling, sampling_seed=1)
        assert worst_gap(model, trajectories) < 1e-3
        assert worst_gap(student(seed + 10), trajectories) > 0.1  # other weights: the check above can fail
        assert {t.policy_version for tr in trajectories for t in tr.turns} == {version}
        assert all(len(tr.turns) == 4 and count_splits(tr) == 0 for tr in trajectories)
        reasons |= {t.finish_reason for tr in trajectories for t in tr.turns}
        rolled.append([t.completion_ids for tr in trajectories for t in tr.turns])
    assert reasons == {"length", "stop"}
    assert rolled[0] != rolled[1] != rolled[2]
    again = collector.collect(requests[::-1], sampling, sampling_seed=1)[::-1]
    assert [t.completion_ids for tr in again for t in tr.turns] == rolled[2]  # seeds decide, not the batching order
    assert collector.last is not None
    assert collector.last.generated_tokens == sum(map(len, rolled[2]))
    collector.close()


def test_nothing_is_compiled_while_it_generates(engine: VLLMEngine) -> None:
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["frames"]
    compiled.clear()
    generate(engine, [[5, 6, 7]], max_tokens=2)
    assert not compiled


def test_first_weights_are_those_of_the_folder(folder: Path) -> None:
    engine = start(folder)
    assert engine.policy_version == 0
    (completion,) = generate(engine, [[5, 6, 7]])
    expected = forward_logprobs(student(0), [5, 6, 7], completion.token_ids)
    assert torch.allclose(expected, torch.tensor(completion.logprobs), atol=1e-3)
    engine.close()
    engine.close()  # closing twice is harmless


def test_an_adapter_is_merged_into_its_base(folder: Path, tmp_path: Path) -> None:
    adapted = tiny_adapter(folder, tmp_path)
    engine = start(tmp_path, max_num_seqs=4)
    (completion,) = generate(engine, [[5, 6, 7]])
    engine.close()
    expected = forward_logprobs(adapted.model, [5, 6, 7], completion.token_ids)
    assert torch.allclose(expected, torch.tensor(completion.logprobs), atol=1e-3)
    base = forward_logprobs(student(0), [5, 6, 7], completion.token_ids)
    assert (base - expected).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_adapters_reach_the_engine_whatever_the_base_is(engine: VLLMEngine, folder: Path, dtype: str) -> None:
    """The engine's policy is base + adapter, computed in float32; what the trainer has else is the cost of bfloat16."""
    trained = Student(str(folder), dtype=dtype, lora={"r": 4, "lora_alpha": 8})
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-3)
    engine.update_weights(trained.named_weights(), 95 + (dtype == "bfloat16"))
    base = load_model(str(folder), dtype).float()
    exact = copy.deepcopy(trained).float().model
    prompts = [[5, 6, i] for i in range(3, 19)]
    found = generate(engine, prompts)
    told = torch.cat([torch.tensor(c.logprobs) for c in found])
    want, without, noisy = (
        torch.cat([forward_logprobs(m, p, c.token_ids).float() for p, c in zip(prompts, found, strict=True)])
        for m in (exact, base, trained.model)
    )
    assert (told - want).abs().max() < 1e-3 < (want - without).abs().max() / 5  # the adapter does something …
    assert torch.nn.functional.cosine_similarity(told - without, want - without, dim=0) > 0.99  # … and this arrived
    if dtype == "bfloat16":
        rounding = load_model(str(folder), dtype)
        cost = torch.cat([forward_logprobs(rounding, p, c.token_ids) for p, c in zip(prompts, found, strict=True)])
        assert (told - noisy).abs().mean() < 2 * (cost.float() - without).abs().mean()


def test_cached_prefixes_do_not_survive_an_update(engine: VLLMEngine) -> None:
    prompt = [random.Random(0).randrange(3, 256) for _ in range(200)]
    generate(engine, [prompt])
    before = engine.stats()["cached_tokens"]
    generate(engine, [prompt])
    assert engine.stats()["cached_tokens"] > before  # the prefix cache works …
    before = engine.stats()["cached_tokens"]
    model = student(8)
    engine.update_weights(model.state_dict().items(), 50)
    (completion,) = generate(engine, [prompt])
    assert engine.stats()["cached_tokens"] == before  # … and forgets with the weights
    expected = forward_logprobs(model, prompt, completion.token_ids)
    assert torch.allclose(expected, torch.tensor(completion.logprobs), atol=1e-3)


def test_stop_and_length(engine: VLLMEngine) -> None:
    model = student(1)
    with torch.no_grad():  # <|im_end|> is about as likely as all other tokens together
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    engine.update_weights(model.state_dict().items(), 60)
    found = generate(engine, [[5, 6, i] for i in range(3, 67)], max_tokens=200)
    assert all(c.token_ids.count(STOP) == (c.finish_reason == "stop") for c in found)
    assert all(c.token_ids[-1] == STOP for c in found if c.finish_reason == "stop")
    assert {c.finish_reason for c in found} == {
        "stop",
        "length",
    }  # uniform over 320 tokens: (319/320)^200 = 53 % survive
    assert all(len(c.token_ids) == 200 for c in found if c.finish_reason == "length")
    (one,) = generate(engine, [[5]], max_tokens=1)
    assert len(one.token_ids) == 1
    also = next(i for c in found for i in c.token_ids[5:20] if i != STOP)  # `sampling.stop` ends what goes on here
    again = generate(engine, [[5, 6, i] for i in range(3, 67)], max_tokens=200, stop=[also])
    for whole, cut in zip(found, again, strict=True):
        end = whole.token_ids.index(also) + 1 if also in whole.token_ids else len(whole.token_ids)
        assert cut.token_ids == whole.token_ids[:end]
        assert cut.finish_reason == ("stop" if also in whole.token_ids else whole.finish_reason)


def test_temperature_zero_is_greedy_and_top_p_cuts_the_tail(engine: VLLMEngine) -> None:
    model = student(2)
    engine.update_weights(model.state_dict().items(), 70)
    prompts = [[5, 6, i] for i in range(3, 19)]
    for prompt, completion in zip(prompts, generate(engine, prompts, temperature=0.0), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion.token_ids
    for prompt, completion in zip(prompts, generate(engine, prompts, top_p=0.5), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        probabilities = logits.softmax(-1)
        sampled = probabilities.gather(1, torch.tensor(completion.token_ids)[:, None])
        more_probable = (probabilities * (probabilities > sampled)).sum(-1)
        assert (more_probable < 0.5 + 1e-4).all()


def test_top_p_draws_what_vllm_itself_draws(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens as with vLLM's sort, of requests that come and go beside others with another policy or none."""
    engine.update_weights(student(2).state_dict().items(), 75)
    assert engine._own_top_p

    def play() -> dict[str, Completion]:
        found: dict[str, Completion] = {}
        for i in range(60):
            temperature, top_p = (1.0, 0.0, 0.7, 1.3)[i % 4], (0.9, 0.5, 1.0, 0.8, 0.2)[i % 5]
            sampling = Sampling(temperature=temperature, top_p=top_p)
            engine.add_request(
                Request(
                    request_id=f"{i}.0", prompt_ids=[5, 6, i + 3], max_tokens=3 + i * 7 % 23, sampling=sampling, seed=i
                )
            )
            if i > 20 and i % 3 == 0:  # more than the 16 that run at once are waiting from here on
                found |= {c.request_id: c for c in engine.step()}
        while engine.has_unfinished():
            found |= {c.request_id: c for c in engine.step()}
        return found

    ours = play()
    monkeypatch.setattr(engine, "_own_top_p", False)
    assert play() == ours
    monkeypatch.undo()
    assert engine._own_top_p
    monkeypatch.setattr("opdlight.rollout.engines.vllm_top_p.keep_nucleus", lambda logits, top_p: logits)
    assert play() != ours  # it is this code that draws


def test_updates_that_do_not_fit_change_nothing(engine: VLLMEngine) -> None:
    model = student(3)
    engine.update_weights(model.state_dict().items(), 80)
    (before,) = generate(engine, [[9, 8]])
    weights = dict(student(4).state_dict())
    missing = {n: w for n, w in weights.items() if "layers.1" not in n}
    wrong_shape = weights | {"model.norm.weight": torch.ones(7)}
    for bad, message in [
        (missing, "are missing"),
        (wrong_shape, "shape"),
        (weights | {"x": torch.ones(1)}, "no weight 'x'"),
    ]:
        with pytest.raises(EngineError, match=message):
            engine.update_weights(bad.items(), 81)
    engine.add_request(Request(request_id="a", prompt_ids=[9, 8], max_tokens=4, sampling=Sampling(), seed=0))
    with pytest.raises(EngineError, match="already running"):
        engine.add_request(Request(request_id="a", prompt_ids=[9, 8], max_tokens=4, sampling=Sampling(), seed=0))
    with pytest.raises(EngineError, match="unfinished"):
        engine.update_weights(weights.items(), 81)
    while engine.has_unfinished():
        engine.step()
    (after,) = generate(engine, [[9, 8]])
    assert engine.policy_version == 80
    assert after == before


def test_ids_outside_the_vocabulary_are_refused(engine: VLLMEngine) -> None:
    for ids in ([3, VOCABULARY], [-1, 3]):
        with pytest.raises(EngineError, match=r"in \[0, "):
            engine.add_request(Request(request_id="x", prompt_ids=ids, max_tokens=4, sampling=Sampling(), seed=0))
    assert not engine.has_unfinished()


def test_engines_live_side_by_side_and_one_after_the_other(engine: VLLMEngine, tmp_path: Path) -> None:
    """A tied teacher beside the student; closing it leaves the student working, and another can follow."""
    own = student(5)
    engine.update_weights(own.state_dict().items(), 90)
    (before,) = generate(engine, [[5, 6]])
    for number, seed in enumerate((21, 22)):
        teacher = start(save_tiny(tmp_path / str(number), seed, tied=True), max_num_seqs=4)
        (completion,) = generate(teacher, [[5, 6]])
        expected = forward_logprobs(student(seed, tied=True), [5, 6], completion.token_ids)
        assert torch.allclose(expected, torch.tensor(completion.logprobs), atol=1e-3)
        model = student(seed + 10, tied=True)
        headless = [(n, w) for n, w in model.state_dict().items() if n != "lm_head.weight"]
        teacher.update_weights(headless, 1)
        (completion,) = generate(teacher, [[5, 6]])
        expected = forward_logprobs(model, [5, 6], completion.token_ids)
        assert torch.allclose(expected, torch.tensor(completion.logprobs), atol=1e-3)
        teacher.close()
        assert generate(engine, [[5, 6]]) == [before]


def test_start_leaves_the_process_as_it_was(folder: Path, engine: VLLMEngine) -> None:
    """Thread setting, random streams and process-group variables are the trainer's."""
    group = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "9"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in group.items():
            patch.setenv(name, value)
        set_num_threads = torch.set_num_threads
        torch.manual_seed(1)
        random.seed(1)
        expected = torch.rand(3, generator=torch.Generator().manual_seed(1)), random.Random(1).random()
        torch.set_num_threads(2)
        second = start(folder, threads=1)
        assert torch.set_num_threads is set_num_threads
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.rand(3), expected[0])
        assert random.random() == expected[1]
        assert {name: os.environ.get(name) for name in group} == group
        assert "LOCAL_WORLD_SIZE" not in os.environ
        generate(second, [[5, 6]])
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        second.close()


def test_what_vllm_refuses_is_one_message_with_the_key(folder: Path, engine: VLLMEngine) -> None:
    with pytest.raises(
        ConfigError, match=r"see `engine\.max_model_len`\. vLLM says: .*max_position_embeddings"
    ) as error:
        start(folder, max_model_len=10**6)
    assert "\n" not in str(error.value)
    assert len(generate(engine, [[5]], max_tokens=1)) == 1  # the other engine goes on


def test_bfloat16_engine_takes_float32_weights(folder: Path) -> None:
    engine = start(folder, dtype="bfloat16")
    model = student(6)
    engine.update_weights(model.state_dict().items(), 1)
    prompts = [[5, 6, i] for i in range(3, 11)]
    found = generate(engine, prompts)
    gaps = torch.cat([
        (forward_logprobs(model, p, c.token_ids) - torch.tensor(c.logprobs)).abs()
        for p, c in zip(prompts, found, strict=True)
    ])  # fmt: skip
    assert gaps.median() < 0.05  # 8 bits of mantissa on logits of about 10
    engine.close()


def test_prompts_that_exceed_one_step_together_are_all_answered(engine: VLLMEngine) -> None:
    prompts = [[(7 * i + j) % (VOCABULARY - 3) + 3 for j in range(200)] for i in range(12)]  # a step takes 2,048 tokens
    found = generate(engine, prompts, max_tokens=4)
    assert all(len(c.token_ids) == 4 or c.token_ids[-1] == STOP for c in found)
