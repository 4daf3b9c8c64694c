"""The failure-mode measures against slow obvious references, and the student with other special tokens."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opdlight.config import compose
from opdlight.config.schemas import FailureModesConfig
from opdlight.errors import ConfigError
from opdlight.lab.bootstrap import bootstrap
from opdlight.lab.failure_modes.figures import draw_depth, draw_imbalance, draw_special
from opdlight.lab.failure_modes.mismatch import Arm, TokenLogprobs, arm_figures, by_token, listed_shares, token_logprobs
from opdlight.lab.failure_modes.other_tokens import other_tokenizer
from opdlight.lab.failure_modes.summary import by_bucket, depth, edges_of, imbalance
from opdlight.lab.failure_modes.tables import verdict
from opdlight.lab.failure_modes.tokens import Tokens, measure
from opdlight.losses import SpecialTokenMask
from opdlight.metrics.intervals import Interval
from opdlight.metrics.tokens import repeated
from opdlight.models import Student, Teachers
from opdlight.models.loading import load_tokenizer
from opdlight.models.vocabulary import compare_vocabularies
from opdlight.types import SharedVocabulary, Status, Trajectory, Turn


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bootstrap_draws_whole_trajectories() -> None:
    trajectory = torch.arange(40).repeat_interleave(25)
    values = random(40)[trajectory]  # the same within a trajectory, so 40 numbers and not 1,000
    (found,) = bootstrap(lambda at: values[at].mean()[None], trajectory, draws=2000)
    assert found.value == pytest.approx(float(values.mean()))
    half = 1.96 * float(random(40).std(correction=0)) / math.sqrt(40)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert bootstrap(lambda at: values[at].mean()[None], trajectory, draws=9, seed=1) == bootstrap(
        lambda at: values[at].mean()[None], trajectory, draws=9, seed=1
    )
    assert Interval(value=math.nan, low=0.0, high=1.0).plain() == {"value": None, "low": 0.0, "high": 1.0}


def test_verdict_needs_the_whole_interval() -> None:
    assert verdict(Interval(value=0.6, low=0.51, high=0.7), sign=1, threshold=0.5) == "yes"
    assert verdict(Interval(value=0.6, low=0.49, high=0.7), sign=1, threshold=0.5) == "not shown"
    assert verdict(Interval(value=0.3, low=0.2, high=0.4), sign=1, threshold=0.5) == "the opposite"
    assert verdict(Interval(value=-0.3, low=-0.4, high=-0.2), sign=-1) == "yes"


def made_up(n: int = 240) -> Tokens:
    at = torch.arange(n)
    return Tokens(
        trajectory=at // 20,
        turn=at % 20 // 10,
        position=at % 20,
        token=at % 7,
        log_pi=-random(n).abs().float(),
        log_q=-random(n, seed=1).abs().float() * (1 + at % 20),
        sampled_gradient=random(n, seed=2).abs().float() ** 4,
        matching_gradient=random(n, seed=3).abs().float(),
        repeats=at % 5 == 0,
        listed=at % 20 >= 18,
    )


def trajectories() -> list[Trajectory]:
    turn = Turn(
        prompt_ids=[0],
        completion_ids=[1, 2, 3, 4, 1, 2, 3, 4],
        sampled_logprobs=[0.0] * 8,
        finish_reason="length",
        policy_version=0,
        reward=0.0,
    )
    return [
        Trajectory(task="t", group=i, seed=i, turns=[turn, turn], reward=0.0, status=Status.FAILURE) for i in range(12)
    ]


def test_figures_are_of_the_right_tokens() -> None:
    tokens = made_up()
    one = imbalance(tokens, draws=10, seed=0)
    gap = tokens.log_pi - tokens.log_q
    assert one["negative"].value == pytest.approx(float((gap > 0).float().mean()))
    assert one["negative_large"].value == pytest.approx(float((gap[gap.abs() > 0.1] > 0).float().mean()))
    assert one["negative_mass"].value == pytest.approx(float(gap[gap > 0].sum() / gap.abs().sum()))
    assert one["matching_less_sampled/top_1"].value == pytest.approx(
        one["matching_gradient/top_1"].value - one["sampled_gradient/top_1"].value
    )
    buckets = by_bucket(gap, tokens.position, [0, 8, 16, 24], tokens, draws=10, seed=0)
    for bucket, number in zip(buckets, range(3), strict=True):
        mask = tokens.position // 8 == number
        assert bucket.tokens == int(mask.sum())
        assert bucket.trajectories == 12
        assert bucket.quantiles[1].value == pytest.approx(float(gap[mask].quantile(0.5)))
    shares = listed_shares(tokens, draws=10, seed=0)
    assert shares["tokens"].value == pytest.approx(0.1)
    assert shares["reward"].value == pytest.approx(float(gap.abs()[tokens.position >= 18].sum() / gap.abs().sum()))
    assert edges_of([tokens], 6) == [0, 4, 8, 12, 16, 20]


def test_the_mask_is_judged_on_the_same_episodes() -> None:
    start = Arm(loss="start", masked=False, success=[0.0] * 4, cut=[0.0] * 4)
    plain = Arm(loss="LSM", masked=False, success=[1.0, 0.0, 1.0, 0.0], cut=[1.0, 1.0, 0.0, 0.0])
    masked = Arm(loss="LSM", masked=True, success=[1.0, 0.0, 1.0, 1.0], cut=[0.0] * 4)
    found = arm_figures([start, plain, masked], draws=50, seed=0)
    assert found["start/success"].value == 0.0
    assert found["LSM + mask/success"].value == 0.75
    assert found["mask's effect: LSM/success"].value == 0.25
    assert found["mask's effect: LSM/cut_by_length"].value == -0.5
    assert found["mask's effect: LSM/success"].low == 0.0  # paired: no resample makes it negative


def test_figures_are_drawn_whole(tmp_path: Path) -> None:
    tokens = made_up()
    cfg = compose("failure_modes", FailureModesConfig, ["draws=10"])
    both = {p: depth(cfg, tokens, trajectories(), edges_of([tokens], 4), 2) for p in ("top-p 1", "top-p 0.9")}
    repetition = both["top-p 1"].repetition
    assert repetition["repetition_rate"].value == pytest.approx(6 / 10)
    assert repetition["cut_by_length"].value == 1.0
    draw_imbalance(tmp_path / "imbalance.png", {"t": tokens}, {"t": imbalance(tokens, draws=10, seed=0)})
    draw_depth(tmp_path / "depth.png", {"t": both})
    text = [TokenLogprobs(text="<", student=-0.1, teacher=-9.0, listed=True)]
    shares = {s: listed_shares(tokens, draws=10, seed=0) for s in ("other", "plain")}
    arm = Interval(value=0.5, low=0.25, high=0.75)
    arms = {"other": {"start/success": arm, "LSM + mask/success": arm, "LSM + mask/cut_by_length": arm}}
    draw_special(tmp_path / "special_tokens.png", text, shares, arms)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["depth.png", "imbalance.png", "special_tokens.png"]


def test_other_tokenizer_keeps_every_id_that_is_left() -> None:
    plain = load_tokenizer("lab/student")
    other = other_tokenizer(plain, ["<think>", "</think>"], "<|pad|>")
    assert compare_vocabularies(other, len(other), plain, len(plain)) == SharedVocabulary(len(other))
    assert len(other) == len(plain) - 2
    text = "<think>1 + 2 = 3</think>\\boxed{3}"
    ids = other(text, add_special_tokens=False)["input_ids"]
    assert other.convert_ids_to_tokens(ids[:3]) == ["<", "think", ">"]
    assert other.decode(ids) == text
    assert other.eos_token_id == 0 != plain.eos_token_id
    mask = compose("failure_modes", FailureModesConfig).special.students["another end and <think>"].mask
    resolved = SpecialTokenMask(tokens=[list(t) if not isinstance(t, str) else t for t in mask.tokens]).resolve(other)
    left = [i for i, kept in zip([*ids, 0], resolved.loss_mask([*ids, 0]), strict=True) if kept]
    assert other.decode(left) == "1 + 2 = 3boxed{3}"
    with pytest.raises(ConfigError, match=r"special\.students.*dropped"):
        other_tokenizer(plain, ["<|end|>"], "<|pad|>")
    with pytest.raises(ConfigError, match=r"special\.end"):
        other_tokenizer(plain, ["<think>", "</think>"], "<|stop|>")


def test_tokens_are_scored_as_the_models_alone_score_them() -> None:
    student = Student("lab/student")
    teachers = Teachers({"t": "lab/teacher-sums"}, student)
    ids = student.tokenizer("1 + 1 = 2; 1 + 1 = 2", add_special_tokens=False)["input_ids"]
    turn = Turn(
        prompt_ids=[3, 10, 11],
        completion_ids=ids,
        sampled_logprobs=[0.0] * len(ids),
        finish_reason="stop",
        policy_version=0,
        reward=0.0,
    )
    made = Trajectory(task="t", group=0, seed=0, turns=[turn], reward=0.0, status=Status.SUCCESS)
    mask = SpecialTokenMask(tokens=[ids[2]])
    found = measure(student, teachers, [made, made], k=4, ngram=4, loss_mask=mask.loss_mask)
    with torch.no_grad():
        logits = student.model(torch.tensor([[3, 10, 11, *ids]])).logits[0, 2:-1]
    expected = logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
    n = len(ids)
    torch.testing.assert_close(found.log_pi[n:], expected, atol=1e-4, rtol=1e-4)
    assert found.trajectory.tolist() == [0] * n + [1] * n
    assert found.token[:n].tolist() == ids
    assert found.position[:n].tolist() == list(range(n))
    assert [i for i, flag in enumerate(found.listed[:n].tolist()) if flag] == [2]
    assert found.repeats[:n].tolist() == [bool(f) for f in repeated([ids], 4)[0]]
    assert found.repeats[:n].any()
    said = token_logprobs(found, 1, student.tokenizer)
    assert "".join(s.text for s in said) == "1 + 1 = 2; 1 + 1 = 2"
    assert said[0].teacher == pytest.approx(float(found.log_q[n]))
    assert by_token(found, student.tokenizer)[said[2].text]["count"] == 2


def test_the_whole_study_runs(tmp_path: Path) -> None:
    from opdlight.lab.failure_modes.study import study

    overrides = [
        "episodes=3",
        "draws=5",
        "task.tasks.sums.episodes=4",
        "special.demonstrations=8",
        "special.sft_updates=1",
        "special.batch_size=4",
        "special.opd_updates=1",
        "special.groups=2",
        "engine._target_=tests.fakes.AnsweringEngine",
        f"run_dir={tmp_path}",
    ]
    study(compose("failure_modes", FailureModesConfig, overrides))
    found = json.loads((tmp_path / "failure_modes.json").read_text())
    assert set(found) == {"imbalance", "depth", "special_tokens", "seconds"}
    shared = {name: other["shared_ids"] for name, other in found["special_tokens"].items()}
    assert shared == {"another end": 770, "another end and <think>": 768}
    for other in found["special_tokens"].values():
        assert len(other["arms"]) == 2 * 7  # the start, two losses with and without the mask, and its effect on both
    assert {"imbalance.png", "depth.png", "special_tokens.png"} <= {p.name for p in tmp_path.iterdir()}
