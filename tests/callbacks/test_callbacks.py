"""The watching callbacks, with hand-made steps."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from opdlight.callbacks import SampledTokenGaps, SampleTable, StageProgress, TeacherSupportCoverage, Throughput
from opdlight.collate import Collate
from opdlight.losses import SampledToken, SupportMatching
from opdlight.metrics import describe
from opdlight.models import Student, Teachers
from opdlight.module import OnPolicyDistillation
from opdlight.rollout import Sampling
from opdlight.types import Status, Trajectory, Turn
from tests.tiny import save_tiny


def trajectory(task: str, prompt: list[int], completion: list[int]) -> Trajectory:
    turn = Turn(
        prompt_ids=prompt,
        completion_ids=completion,
        sampled_logprobs=[0.0] * len(completion),
        finish_reason="stop",
        policy_version=3,
        reward=1.0,
    )
    return Trajectory(task=task, group=0, seed=5, turns=[turn], reward=1.0, status=Status.SUCCESS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny(folder / "student", 1)), str(save_tiny(folder / "teacher", 2))


def module_of(folders: tuple[str, str]) -> OnPolicyDistillation:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1], "b": folders[1]}, student)
    module = OnPolicyDistillation(
        student=student, teachers=teachers, loss=SampledToken(), collector=None, optimizer=None, schedule=None,  # type: ignore[arg-type]
        collate=Collate(tasks=("a", "b"), pad_id=0, vocabulary_size=teachers.shared_vocabulary, micro_batch_tokens=999),
        sampling=Sampling(), evaluation=Sampling(), max_grad_norm=1.0, seed=0,
    )  # fmt: skip
    module.logged = {}  # type: ignore[assignment]
    module.log = lambda key, value, **_: module.logged.__setitem__(key, float(value))  # type: ignore[method-assign, assignment, operator]
    return module


@torch.no_grad()
def test_coverage_by_task_equals_full_vocabulary_softmaxes(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), TeacherSupportCoverage(k=5)
    made = [trajectory("a", [10, 11, 12], [20, 21, 2]), trajectory("b", [30, 31], [40, 41, 42, 2])]
    for rows in (made, made[:1]):  # two micro-batches; the first holds both tasks, the second repeats one of them
        (batch,) = module.collate(rows)
        hidden, scores = module.score(batch)
        assert scores.support is None  # the sampled-token loss asks for none: the callback asks the teacher itself
        watch.on_scores(module, batch, hidden.detach(), scores)
    watch.on_train_batch_end(None, module, {}, None, 0)  # type: ignore[arg-type]
    teacher = Student(folders[1]).model
    for one in made:
        ids = torch.tensor([one.turns[0].prompt_ids + one.turns[0].completion_ids])
        start = len(one.turns[0].prompt_ids) - 1
        p = module.student.model(ids).logits[0, start:-1].softmax(-1)
        q = teacher(ids).logits[0, start:-1].softmax(-1)
        top = q.topk(5).indices
        own = p.topk(5).indices
        target = ids[0, start + 1 :, None]
        expected = {
            "teacher_mass": q.gather(1, top).sum(-1).mean(),
            "student_mass": p.gather(1, top).sum(-1).mean(),
            "sampled_in_support": (top == target).any(-1).float().mean(),
            "overlap": torch.tensor(
                [len({*a} & {*b}) / 5 for a, b in zip(top.tolist(), own.tolist(), strict=True)]
            ).mean(),
        }
        for name, value in expected.items():
            assert module.logged[f"coverage/{name}/{one.task}"] == pytest.approx(float(value), abs=1e-5)  # type: ignore[index]


def test_coverage_forgets_the_last_update(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), TeacherSupportCoverage(k=5)
    (batch,) = module.collate([trajectory("a", [10, 11], [20, 2])])
    hidden, scores = module.score(batch)
    watch.on_scores(module, batch, hidden.detach(), scores)
    watch.on_train_batch_end(None, module, {}, None, 0)  # type: ignore[arg-type]
    assert module.logged.keys() == {
        f"coverage/{n}/a" for n in ("teacher_mass", "student_mass", "sampled_in_support", "overlap")
    }  # type: ignore[union-attr, operator]
    module.logged.clear()  # type: ignore[operator]
    watch.on_train_batch_end(None, module, {}, None, 1)  # type: ignore[arg-type]
    assert module.logged == {}


def test_coverage_keeps_to_its_interval(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), TeacherSupportCoverage(every=2, k=5)
    (batch,) = module.collate([trajectory("a", [10, 11], [20, 2])])
    hidden, scores = module.score(batch)
    module.updates = 1
    watch.on_scores(module, batch, hidden.detach(), scores)
    watch.on_train_batch_end(None, module, {}, None, 0)  # type: ignore[arg-type]
    assert module.logged == {}


def test_samples_are_written_as_text_at_the_interval(folders: tuple[str, str], tmp_path: Path) -> None:
    module, table = module_of(folders), SampleTable(str(tmp_path), every=2, count=1)
    trainer: Any = SimpleNamespace(is_global_zero=True)
    word = module.student.tokenizer("look", add_special_tokens=False)["input_ids"]
    outputs = {"trajectories": [trajectory("a", word, [*word, 2]), trajectory("b", word, word)]}
    for batch_idx in range(4):
        table.on_train_batch_end(trainer, module, outputs, None, batch_idx)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [r["update"] for r in rows] == [0, 2]
    assert rows[0]["turns"] == [
        {"prompt": "look", "completion": "look<|im_end|>", "finish_reason": "stop", "policy_version": 3}
    ]
    assert rows[0]["status"] == "success"


def test_throughput_divides_tokens_by_the_seconds_of_their_stage(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), Throughput()
    module.stage_seconds = {"rollout": 2.0, "score": 0.5, "backward": 1.5}
    outputs = {"trajectories": [trajectory("a", [1], [1] * 10)], "loss_tokens": 8}
    for _ in range(2):
        watch.on_train_batch_end(None, module, outputs, None, 0)  # type: ignore[arg-type]
    assert module.logged["throughput/rollout"] == 5.0  # type: ignore[index]
    assert module.logged["throughput/train"] == 4.0  # type: ignore[index]
    assert module.logged["time/score"] == 0.5  # type: ignore[index]
    assert watch.seconds == {"rollout": 4.0, "score": 1.0, "backward": 3.0}
    assert (watch.generated, watch.trained) == (20, 16)


def test_progress_without_a_terminal_prints_plain_lines(folders: tuple[str, str]) -> None:
    bar, text = StageProgress(every=2), io.StringIO()
    bar.console = Console(file=text, force_terminal=False)
    trainer: Any = SimpleNamespace(
        num_training_batches=3, progress_bar_metrics={"loss/train": 0.25}, is_global_zero=True
    )
    for batch_idx in range(3):
        bar.on_train_batch_end(trainer, module_of(folders), {}, None, batch_idx)
    assert text.getvalue().splitlines() == ["update 1/3  loss/train 0.250", "update 3/3  loss/train 0.250"]


def test_progress_on_a_terminal_shows_stage_and_trajectories(folders: tuple[str, str]) -> None:
    bar, text = StageProgress(), io.StringIO()
    bar.console = Console(file=text, force_terminal=True, width=120)
    module = module_of(folders)
    trainer: Any = SimpleNamespace(
        num_training_batches=3, progress_bar_metrics={"loss/train": 0.25}, is_global_zero=True
    )
    bar.setup(trainer, module, "fit")
    module.stage_name = "rollout"
    assert module.on_progress is not None
    module.on_progress(3, 8)
    bar.on_train_batch_end(trainer, module, {}, None, 0)
    bar.teardown(trainer, module, "fit")
    assert "rollout" in text.getvalue()
    assert "3/8" in text.getvalue()
    assert "loss/train 0.250" in text.getvalue()


@torch.no_grad()
def test_gaps_of_the_sampled_token_equal_full_softmaxes(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), SampledTokenGaps(cap=1.5)
    made = [trajectory("a", [10, 11, 12], [20, 21, 2]), trajectory("b", [30, 31], [40, 41, 42, 2])]
    (batch,) = module.collate(made)
    hidden, scores = module.score(batch)
    teacher = Student(folders[1]).model
    logprobs = []
    for one in made:
        ids = torch.tensor([one.turns[0].prompt_ids + one.turns[0].completion_ids])
        start = len(one.turns[0].prompt_ids) - 1
        own, other = (m(ids).logits[0, start:-1].log_softmax(-1) for m in (module.student.model, teacher))
        logprobs.append([t.gather(1, ids[0, start + 1 :, None]).squeeze(1) for t in (own, other)])
    engine = torch.cat([own for own, _ in logprobs])  # rows of one length keep their order
    engine = engine - torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0])  # it disagrees about one token by e^½ = 1.65
    watch.on_scores(module, replace(batch, sampled_logprobs=engine), hidden.detach(), scores)
    watch.on_train_batch_end(None, module, {}, None, 0)  # type: ignore[arg-type]
    logged: dict[str, float] = module.logged  # type: ignore[assignment]
    assert logged["mismatch/k1/b"] == pytest.approx(-0.5 / 4, abs=1e-5)
    assert logged["mismatch/clipped/b"] == pytest.approx(1 / 4)
    assert logged["mismatch/k1/a"] == pytest.approx(0.0, abs=1e-5)
    assert logged["mismatch/clipped/a"] == 0
    for task, (own, other) in zip("ab", logprobs, strict=True):
        ratio = own - other
        assert logged[f"kl/k1/{task}"] == pytest.approx(ratio.mean().item(), abs=1e-5)
        assert logged[f"kl/k2/{task}"] == pytest.approx((ratio**2 / 2).mean().item(), abs=1e-5)
        assert logged[f"kl/k3/{task}"] == pytest.approx((ratio + (-ratio).exp() - 1).mean().item(), rel=1e-4)
    assert all(describe(key) for key in logged)


def test_gaps_stay_silent_about_the_teacher_where_the_loss_does_not_score_the_token(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), SampledTokenGaps()
    module.loss = SupportMatching(k=4)
    (batch,) = module.collate([trajectory("a", [10, 11], [20, 2])])
    hidden, scores = module.score(batch)
    watch.on_scores(module, batch, hidden.detach(), scores)
    assert {key.split("/")[0] for key in watch.sums} == {"mismatch"}
