"""What is written of whole trajectories, and the metrics of rollouts."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opdlight.batch.collate import Collate
from opdlight.callbacks import RolloutMetrics, TrajectoryRecorder
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.step import Step
from opdlight.envs.actions import action_counts
from opdlight.losses import SpecialTokenMask, SupportMatching
from opdlight.metrics.glossary import describe
from opdlight.models import Student, Teachers
from opdlight.rollout import ChatRenderer, Sampling
from opdlight.rollout.source import RolloutSource
from opdlight.types import SharedVocabulary, Status, Trajectory, Turn
from tests.tiny_models import save_tiny


def turn(prompt: list[int], completion: list[int], **fields: Any) -> Turn:
    values: dict[str, Any] = {
        "sampled_logprobs": [-0.25] * len(completion), "finish_reason": "stop", "policy_version": 3, "reward": 0.5,
        **fields,
    }  # fmt: skip
    return Turn(prompt_ids=prompt, completion_ids=completion, **values)


#   turn 0: 10 11 | 20 21 2     turn 1: … 30 31 | 40 2      turn 2, history rewritten: 50 51 | 60 61
TURNS = [
    turn([10, 11], [20, 21, 2]),
    turn([10, 11, 20, 21, 2, 30, 31], [40, 2], policy_version=4),
    turn([50, 51], [60, 61], finish_reason="length"),
]
MADE = Trajectory(
    task="a", group=1, seed=5, turns=TURNS, reward=1.5, status=Status.SUCCESS, metrics={"detours": 2.0}
)  # fmt: skip


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> OnPolicyDistillation:
    folder = tmp_path_factory.mktemp("models")
    student = Student(str(save_tiny(folder / "student", 1)))
    teachers = Teachers(dict.fromkeys("ab", str(save_tiny(folder / "teacher", 2))), student)
    mask = SpecialTokenMask(tokens=[21])
    made = OnPolicyDistillation(
        student=student, teachers=teachers, loss=SupportMatching(k=4),
        source=RolloutSource(None, sampling=Sampling()), optimizer=None, schedule=None,  # type: ignore[arg-type]
        collate=Collate(tasks=("a", "b"), shared=teachers.shared_vocabulary, micro_batch_tokens=999,
                        loss_mask=mask.loss_mask),
    )  # fmt: skip
    made.trainer = SimpleNamespace(is_global_zero=True)  # type: ignore[assignment]
    return made


def test_control_tokens_are_told_from_text_that_spells_them(module: OnPolicyDistillation, tmp_path: Path) -> None:
    renderer = ChatRenderer(module.student.tokenizer)
    prompt = renderer.start(None, "x<|im_end|>y").prompt_ids
    turn = replace(TURNS[0], prompt_ids=prompt, completion_ids=[5, 2, 6])
    recorder = TrajectoryRecorder(str(tmp_path))
    (found,) = recorder.record(module, replace(MADE, turns=[turn]))["turns"]
    assert found["prompt"] == "<|im_start|>user\nx<|im_end|>y<|im_end|>\n<|im_start|>assistant\n"
    spans = [found["prompt"][a:b] for a, b in found["prompt_control"]]
    assert spans == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert found["prompt_control"][1][0] == found["prompt"].rindex("<|im_end|>")  # the first one is text
    assert found["control"] == [False, True, False]


@torch.no_grad()
def test_a_trajectory_is_recorded_token_by_token(module: OnPolicyDistillation, tmp_path: Path) -> None:
    line = TrajectoryRecorder(str(tmp_path), candidates=2).record(module, MADE)
    json.dumps(line, allow_nan=False)
    decode = module.student.tokenizer.decode
    assert {k: v for k, v in line.items() if k != "turns"} == {
        "task": "a", "seed": 5, "group": 1, "status": "success", "reward": 1.5, "metrics": {"detours": 2.0},
    }  # fmt: skip
    turns = line["turns"]
    assert [t["split"] for t in turns] == [False, False, True]
    assert [t["prompt"] for t in turns] == [decode([10, 11]), decode([30, 31]), decode([50, 51])]
    assert [t["kept"] for t in turns] == [[True, False, True], [True, True], [True, True]]
    assert [t["policy_version"] for t in turns] == [3, 4, 3]
    models = [module.student.model, Student(module.teachers.of("a").name).model]
    for found, made in zip(turns, TURNS, strict=True):
        ids = torch.tensor([made.prompt_ids + made.completion_ids])
        p, q = (m(ids).logits[0, len(made.prompt_ids) - 1 : -1].log_softmax(-1) for m in models)
        assert found["ids"] == made.completion_ids
        assert found["text"] == [decode([i]) for i in made.completion_ids]
        assert found["engine"] == made.sampled_logprobs
        for i, token in enumerate(made.completion_ids):
            assert found["student"][i] == pytest.approx(float(p[i, token]), rel=1e-3, abs=1e-4)
            assert found["teacher"][i] == pytest.approx(float(q[i, token]), rel=1e-3, abs=1e-4)
            best = q[i].topk(2)
            expected = [
                [decode([t]), pytest.approx(float(q[i, t]), rel=1e-3), pytest.approx(float(p[i, t]), rel=1e-3)]
                for t in best.indices.tolist()
            ]
            assert found["teacher_top"][i] == expected
            assert found["student_top"][i][0][1] == pytest.approx(float(p[i].max()), rel=1e-3)
            assert 0 <= found["mass"][i] <= 1.0001


def test_records_are_written_at_their_steps(module: OnPolicyDistillation, tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(str(tmp_path), every=2, train=1, val=2)
    empty = replace(MADE, turns=[], status=Status.ENV_ERROR)
    other = replace(MADE, task="b", turns=TURNS[:1])
    recorder.on_trajectories(module, [MADE, empty, MADE], "val")
    for _ in range(3):
        recorder.on_trajectories(module, [empty, MADE, other], "train")
    recorder.on_trajectories(module, [MADE], "val")
    lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["update"], r["task"], r["status"]) for r in lines] == [
        ("val", 0, "a", "success"),
        ("val", 0, "a", "env_error"),
        ("train", 0, "a", "env_error"),
        ("train", 0, "b", "success"),
        ("train", 2, "a", "env_error"),
        ("train", 2, "b", "success"),
        ("val", 3, "a", "success"),
    ]


def test_tokens_that_the_teacher_lacks_are_not_scored(module: OnPolicyDistillation, tmp_path: Path) -> None:
    limited = replace(module.collate, shared=SharedVocabulary(61))
    module.collate, whole = limited, module.collate
    try:
        line = TrajectoryRecorder(str(tmp_path)).record(module, MADE)
    finally:
        module.collate = whole
    assert line["turns"][2]["ids"] == [60, 61]
    assert [x is None for x in line["turns"][2]["student"]] == [False, True]


def test_a_counter_that_only_one_rank_has_seen_is_a_mean_over_all(
    module: OnPolicyDistillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, float] = {}
    module.log = lambda key, value, **_: logged.__setitem__(key, float(value))  # type: ignore[method-assign, assignment]
    here = [replace(MADE, metrics={}), replace(MADE, metrics={})]
    there = [replace(MADE, metrics={"found": 4.0}), replace(MADE, metrics={})]
    counters = [("found", MADE.task)]
    others = iter([counters, RolloutMetrics().values(there, 5, counters)])
    monkeypatch.setattr("opdlight.callbacks.rollouts.all_gather", lambda mine: [mine, next(others, mine)])
    outputs = {"step": Step(trajectories=here, version=5)}
    RolloutMetrics().on_train_batch_end(None, module, outputs, None, 0)  # type: ignore[arg-type]
    assert logged[f"env/found/{MADE.task}"] == 1.0


def test_rollout_metrics_by_hand(module: OnPolicyDistillation) -> None:
    logged: dict[str, float] = {}
    module.log = lambda key, value, **_: logged.__setitem__(key, float(value))  # type: ignore[method-assign, assignment]
    again = replace(MADE, turns=[turn([1], [7, 7, 7, 7, 7, 7])], status=Status.FAILURE, reward=0.0, metrics={})
    counts = {"admissible_actions": 5.0, "inadmissible_actions": 1.0, "unparsable_actions": 2.0}
    few = action_counts(parsed=True, admissible=True) | {"admissible_actions": 2.0, "ineffective_actions": 1.0}
    played = [replace(MADE, task="b", metrics=m) for m in (counts, few, {})]  # the last one broke off in its first turn
    outputs = {"step": Step(trajectories=[MADE, again, *played], version=5)}
    RolloutMetrics().on_train_batch_end(None, module, outputs, None, 0)  # type: ignore[arg-type]
    assert all(describe(key) for key in logged)
    assert logged["rollout/reward/a"] == 0.75
    assert logged["rollout/success/a"] == 0.5
    assert logged["rollout/turns/a"] == 2
    assert logged["rollout/cut_by_length/a"] == 0.5
    # MADE has no 4-gram; the other has 7777 three times, twice repeated
    assert logged["rollout/repetition/a"] == pytest.approx(2 / 3)
    assert logged["rollout/completion_tokens"] == pytest.approx((4 * (3 + 2 + 2) + 6) / 13)
    assert logged["rollout/row_splits"] == 4
    assert logged["rollout/staleness"] == pytest.approx((4 * (2 + 1 + 2) + 2) / 13)
    assert logged["env/detours/a"] == 1.0
    assert logged["rollout/failure"] == 0.2
    # of ten actions seven were admissible; one of these did nothing, one was not possible, two could not be read
    assert logged["rollout/admissible_actions/b"] == 0.7
    assert logged["rollout/wasted_actions/b"] == 0.4
    assert logged["env/unparsable_actions/b"] == pytest.approx(2 / 3)
    assert "rollout/wasted_actions/a" not in logged  # its environment does not judge actions
