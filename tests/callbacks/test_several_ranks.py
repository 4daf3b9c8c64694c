"""What callbacks log on several ranks: the figures of all, not those of one."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opdlight.callbacks import GradientNoise, ServerFaults, Throughput, TrajectoryRecorder
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.step import Step
from opdlight.models.flops import LayerFlops
from opdlight.types import Status, Trajectory, Turn


class Watched(OnPolicyDistillation):
    """Passes for the module of a run; tests set the parts that a callback uses."""

    trainer: Any = SimpleNamespace(is_global_zero=True)  # type: ignore[assignment]
    device: Any = torch.device("cpu")  # type: ignore[assignment]

    def __init__(self, **parts: Any) -> None:
        torch.nn.Module.__init__(self)
        self.values: dict[str, float] = {}
        self.__dict__.update(parts)

    def log(self, key: str, value: Any, **_: Any) -> None:  # type: ignore[override]
        self.values[key] = float(value)


def gathered(monkeypatch: pytest.MonkeyPatch, callback: str, other: Callable[[Any], Any]) -> None:
    """A second rank, which has `other` of what this one has."""
    monkeypatch.setattr(f"opdlight.callbacks.{callback}.all_gather", lambda value: [value, other(value)])


def trajectory(task: str, group: int, tokens: int = 3) -> Trajectory:
    turn = Turn(prompt_ids=[1, 2], completion_ids=[3] * tokens, sampled_logprobs=[-0.5] * tokens,
                finish_reason="stop", policy_version=0, reward=0.0)  # fmt: skip
    return Trajectory(task=task, group=group, seed=group, turns=[turn], reward=0.0, status=Status.FAILURE)


@pytest.mark.parametrize("shares", [[[0.2, 0.3, 0.1], [0.1, 0.2, 0.1]], [[0.2, 0.3, 0.3], [0.1, 0.1, 0.0]]])
def test_gradient_noise_takes_the_micro_batches_of_all_ranks_together(
    shares: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DDP has gradients: each rank's own until the last backward pass, twice as large; the last one averages."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 3, 50, generator=generator, dtype=torch.float64)
    own = 2 * (torch.tensor(shares)[..., None] * gradients).cumsum(1)  # [rank, pass, weight]
    own[:, -1] = own[:, -1].mean(0)
    watch, watched = GradientNoise(places=50), Watched()
    watched.weight = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda mine, reduce_op: (mine + own[1]) / 2))
    watch.on_fit_start(trainer, watched)
    for after in own[0]:
        watch.on_before_backward(trainer, watched, torch.zeros(()))
        watched.weight.grad = after
        watch.on_after_backward(trainer, watched)
    gathered(monkeypatch, "gradient", lambda mine: [shares[1]])
    watch.on_train_batch_end(trainer, watched, {"step": Step(shares=[shares[0]])}, None, 0)

    joint = torch.tensor(shares, dtype=torch.float64).sum(0)
    means = (torch.tensor(shares)[..., None] * gradients).sum(0) / joint[:, None]
    mean = (joint[:, None] * means).sum(0)
    variance = sum(float(w * ((h - mean) ** 2).sum()) for w, h in zip(joint, means, strict=True)) / 2
    assert watched.values["optimizer/gradient_variance"] == pytest.approx(variance, rel=1e-5)
    assert watched.values["optimizer/gradient_snr"] == pytest.approx(float((mean**2).sum()) / variance - 1, rel=1e-5)


def test_throughput_is_of_all_ranks_and_waits_for_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Throughput()
    watch.flops, watch.peak = {"a": LayerFlops(per_token=10.0, per_square=2.0)}, 50
    watched = Watched(timer=SimpleNamespace(seconds={"rollout": 1.0, "score": 3.0}))

    def other(mine: Any) -> Any:
        return {"rollout": 4.0, "score": 1.0, "publish": 2.0}, (30, 1000.0, 50), {"host": 5 * 2**30}

    gathered(monkeypatch, "throughput", other)
    step = Step(trajectories=[trajectory("a", 0, tokens=10), trajectory("b", 0)], loss_tokens=24, rank_tokens=[10, 30])
    watch.on_train_batch_end(None, watched, {"step": step}, None, 0)  # type: ignore[arg-type]
    found = watched.values
    assert (found["time/rollout"], found["time/score"], found["time/publish"]) == (2.5, 2.0, 1.0)
    assert found["throughput/rollout"] == (13 + 30) / 4.0
    assert found["throughput/train"] == 24 / 3.0
    assert found["throughput/rank_imbalance"] == 1.5
    assert found["throughput/mfu"] == pytest.approx((10 * 12 + 2 * 12**2 + 1000) / (100 * 3.0))  # of 12 tokens
    assert found["memory/host"] >= 5.0
    assert (watch.generated, watch.trained) == (43, 24)


def test_without_a_known_peak_there_is_no_mfu() -> None:
    watch = Throughput()
    watch.flops = {"a": LayerFlops(per_token=10.0, per_square=2.0)}
    watched = Watched(timer=SimpleNamespace(seconds={"score": 3.0}))
    watch.on_train_batch_end(None, watched, {"step": Step(trajectories=[trajectory("a", 0)])}, None, 0)  # type: ignore[arg-type]
    assert {k for k in watched.values if not k.startswith("time/")} == {"throughput/train", "memory/host"}


def test_faults_of_all_clients_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"retries": 2.0, "waited": 1.5, "other": 9.0}
    engine = SimpleNamespace(stats=lambda: {"requests": 5.0})
    watched = Watched(
        teachers=SimpleNamespace(stats=lambda: counts), source=SimpleNamespace(collector=SimpleNamespace(engine=engine))
    )
    gathered(monkeypatch, "servers", lambda mine: dict.fromkeys(mine, 10.0))
    ServerFaults().on_train_batch_end(None, watched, {}, None, 0)  # type: ignore[arg-type]
    assert watched.values == {"server/retries/teacher": 12.0, "server/waited/teacher": 11.5}


def test_recorded_are_the_first_trajectories_of_all_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(str(tmp_path), train=2)
    monkeypatch.setattr(recorder, "record", lambda module, t: {"task": t.task, "group": t.group})
    theirs = [trajectory("a", 1), trajectory("b", 3)]
    gathered(monkeypatch, "trajectories", lambda mine: theirs)
    watched = Watched()
    recorder.on_trajectories(watched, [trajectory("a", 0), trajectory("a", 2), trajectory("a", 4)], "train")
    lines = list(map(json.loads, (tmp_path / "trajectories.jsonl").read_text().splitlines()))
    assert [(line["task"], line["group"]) for line in lines] == [("a", 0), ("a", 1), ("b", 3)]
