"""Two real vLLM engines as Ray actors, one of them killed in mid-batch: as if one engine had done it all."""

import os
import re
import signal
from dataclasses import replace

import pytest
import torch

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.data.requests import held_out
from opdlight.data.tasks import TaskMixture
from opdlight.errors import EngineError
from opdlight.models.loading import load_model, load_tokenizer
from opdlight.rollout import Engine, Request, Sampling, make_collector
from opdlight.types import Trajectory

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]
EPISODES = 48


def roll_out(engine: Engine, mixture: TaskMixture, kill: int | None = None) -> list[Trajectory]:
    """Held-out sums with the weights of the teacher; the process `kill` ends in the midst of it."""
    engine.update_weights(load_model("lab/teacher-sums", "float32").state_dict().items(), 3)
    collector = make_collector(engine, load_tokenizer("lab/student"), mixture.tasks, env_threads=2)
    requests = held_out("sums", replace(mixture.tasks["sums"], episodes=EPISODES))

    def progress(finished: int, wanted: int) -> None:
        nonlocal kill
        if kill is not None and finished >= EPISODES // 4:
            os.kill(kill, signal.SIGKILL)
            kill = None

    found = collector.collect(requests, Sampling(top_p=0.9), sampling_seed=1, progress=progress)
    collector.close()
    assert kill is None
    return found


def finish(engine: Engine) -> None:
    while engine.has_unfinished():
        engine.step()


def test_a_pool_that_loses_an_actor_rolls_out_what_one_engine_does(caplog: pytest.LogCaptureFixture) -> None:
    settings = ["task=sums", "engine=ray", "engine.num_cpus=0.5", "+engine.engine.kv_cache_gib=0.05"]
    cfg = compose("train", TrainConfig, [*settings, "+engine.engine.threads=1"])
    mixture = instantiate(cfg.task)
    pool = instantiate(cfg.engine)
    try:
        assert pool.max_model_len == cfg.model.max_model_len
        report = pool._members[0].report
        assert report is not None
        found = roll_out(pool, mixture, kill=int(report.place.rpartition(" ")[2]))
        stats = pool.stats()
        assert stats["restarts"] == 1
        assert 0 < stats["resent"] < EPISODES
        assert stats["requests"] == EPISODES
        (message,) = [r.message for r in caplog.records if r.name.startswith("opdlight.rollout")]
        assert re.search(rf"died on .*process \d+; it is replaced, and {stats['resent']:.0f} req", message)
        pool.add_request(Request(request_id="x", prompt_ids=[10**6], max_tokens=4, sampling=Sampling(), seed=0))
        with pytest.raises(EngineError, match=r"^Expected the prompt ids of request x to be in \[0, "):
            finish(pool)
    finally:
        pool.close()
    engine = instantiate(cfg.engine.engine)(model=cfg.engine.model)
    try:
        expected = roll_out(engine, mixture)
    finally:
        engine.close()
    assert [t.seed for t in found] == [t.seed for t in expected]
    assert len({t.status for t in expected}) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.status is theirs.status
        for a, b in zip(ours.turns, theirs.turns, strict=True):
            assert (a.prompt_ids, a.completion_ids, a.policy_version) == (b.prompt_ids, b.completion_ids, 3)
            torch.testing.assert_close(
                torch.tensor(a.sampled_logprobs), torch.tensor(b.sampled_logprobs), atol=1e-4, rtol=0
            )
