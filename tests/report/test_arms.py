"""Arms compared: what is read from runs, how they are grouped, and the statistics against hand-made cases."""

import csv
import fcntl
import json
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_arms import FIRST, make_arm_run

from opdlight.errors import ConfigError
from opdlight.metrics.intervals import Interval, crossed_mean
from opdlight.report.arms.bands import band_of
from opdlight.report.arms.compare import ArmRow, compare
from opdlight.report.arms.figures import furthest
from opdlight.report.arms.group import grouped, runs_below, several_seeds
from opdlight.report.arms.outcomes import HeldOut, Ran, State
from opdlight.report.arms.read import read_arm_run
from opdlight.report.arms.select import runs_to_compare
from opdlight.report.arms.tables import ARMS, EPISODES, RUNS, arms_csv, read_tables, runs_csv, write_tables


def curve(success: Sequence[Sequence[float]], tokens: Sequence[float] | None = None) -> HeldOut:
    return HeldOut(
        steps=list(range(len(success))),
        tokens=list(tokens or [1000.0 * step for step in range(len(success))]),
        episodes=[FIRST + e for e in range(len(success[0]))],
        success=torch.tensor(success).double(),
    )


def ran(arm: str, seed: int, held_out: HeldOut | None, state: State = "finished", **more: Any) -> Ran:
    plain: dict[str, Any] = {"setting": "s", "folder": None, "snr": 2.0, "teachers": {}, "config": {}, "curves": {}}
    plain |= {"alarms": [], "notes": [], "held_out": {} if held_out is None else {"sums": held_out}, **more}
    return Ran(arm=arm, seed=seed, state=state, **plain)


def rows_of(runs: Sequence[Ran], baseline: str | None = None) -> list[ArmRow]:
    (part,) = compare(runs, baseline)
    return part.rows


def test_area_largest_fall_and_tokens_to_a_level() -> None:
    one = curve([[0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])  # means 0, 0.75, 0.25, 1
    assert one.means == [0, 0.75, 0.25, 1] and one.largest_drop == 0.5
    assert one.area.tolist() == [(0.5 + 1 + 1) / 3, (0.5 + 0.5 + 0.5) / 3, 0.5, 0.5 / 3]
    assert one.tokens_to(0.375) == 500 and one.tokens_to(0.875) == pytest.approx(2000 + 1000 * 0.625 / 0.75)
    assert one.tokens_to(0.0) == 0 and math.isnan(curve([[0.0], [0.5]]).tokens_to(0.6))
    uneven = curve([[0.0], [1.0], [1.0]], tokens=[0, 100, 1000])  # the area is over tokens, not over evaluations
    assert uneven.area.tolist() == pytest.approx([0.95])


def test_a_run_is_cut_at_a_number_of_tokens_with_success_linear_between() -> None:
    one = curve([[0, 0], [1, 0], [1, 1]])
    half = one.up_to(1500)
    assert half.tokens == [0, 1000, 1500] and half.success.tolist() == [[0, 0], [1, 0], [1, 0.5]]
    assert one.up_to(1000).success.tolist() == [[0, 0], [1, 0], [1, 0]]  # a point twice changes nothing
    assert one.up_to(1000).area.tolist() == [0.5, 0]
    assert one.up_to(2000) is one and one.up_to(9999) is one


def test_differences_are_at_equal_numbers_of_tokens() -> None:
    base = curve([[0, 0], [1, 1], [1, 1]], tokens=[0, 1000, 2000])
    same_but_longer = curve([[0, 0], [1, 1], [1, 1], [0, 0]], tokens=[0, 1000, 2000, 4000])
    shorter = curve([[0, 0], [1, 0]], tokens=[0, 500])  # the baseline has 0.5 there
    first, longer, short = rows_of([ran("base", 1, base), ran("longer", 1, same_but_longer), ran("short", 1, shorter)])
    assert (longer.after.value, longer.difference.value, longer.area_difference.value) == (0, 0, 0)
    assert longer.drop.mean == 1 and longer.drop_difference.value == 0
    assert short.difference.value == 0 and short.area_difference.value == 0
    assert math.isnan(first.difference.value) and (first.pairs, short.pairs) == (0, 1)


def test_arms_are_compared_on_the_same_seeds_and_episodes() -> None:
    # episode 1 is hard for every seed, and seed 2 is bad for both arms: the paired difference is the same everywhere
    runs = [ran("base", s, curve([[0] * 4, end])) for s, end in ((1, [1, 0, 1, 1]), (2, [1, 0, 0, 1]))]
    runs += [ran("other", 2, curve([[0] * 4, [0, 0, 0, 1]]), "failed"), ran("other", 1, curve([[0] * 4, [1, 0, 0, 1]]))]
    runs += [ran("other", 3, None, "failed"), ran("other", 4, curve([[1] * 4]), "unfinished")]
    base, other = rows_of(runs)
    assert (base.after.value, other.after.value, other.difference.value) == (0.625, 0.375, -0.25)
    assert other.area_difference.value == -0.125
    expected = crossed_mean(torch.tensor([[-1.0, 0, 0, 0], [0, 0, -1, 0]]))
    assert (other.difference.low, other.difference.high) == (expected.low, expected.high)
    assert (other.runs, other.seeds, other.pairs, other.failed, other.unfinished) == (4, 2, 2, 2, 1)


def test_an_arm_without_any_evaluation_is_a_row_all_the_same() -> None:
    _, lost = rows_of([ran("base", 1, curve([[0.0], [1.0]])), ran("lost", 1, None, "failed", snr=math.nan)])
    assert (lost.seeds, lost.failed, lost.reached, lost.half_gap) == (0, 1, None, None)
    assert math.isnan(lost.after.value) and math.isnan(lost.difference.value)


def test_only_episodes_that_both_have_are_compared() -> None:
    longer = HeldOut(
        steps=[0, 1], tokens=[0, 1000], episodes=[FIRST - 1, FIRST, FIRST + 1],
        success=torch.tensor([[0, 0, 0], [0, 1, 1]]).double(),
    )  # fmt: skip
    _, other = rows_of([ran("base", 1, curve([[0, 0], [1, 0]])), ran("other", 1, longer)])
    assert other.difference.value == 0.5 and other.after.value == pytest.approx(2 / 3)


def test_falls_and_figures_of_a_run_have_intervals_over_pairs_of_seeds() -> None:
    def falls(by: float) -> HeldOut:
        return curve([[0.0, 0.0], [1.0, 1.0], [1.0 - by, 1.0 - by]])

    runs = [ran("base", seed, falls(0.1 * seed), snr=1.0) for seed in (1, 2, 3)]
    runs += [ran("other", seed, falls(0.1 * seed + by), snr=1.0 + by) for seed, by in ((1, 0.1), (2, 0.2), (3, 0.3))]
    base, other = rows_of(runs)
    half = 4.303 * 0.1 / math.sqrt(3)
    for found in (other.drop_difference, other.snr_difference):
        assert [found.value, found.high] == pytest.approx([0.2, 0.2 + half], rel=1e-3)
    assert base.spread.value == pytest.approx(0.1) and base.spread.high == pytest.approx(
        0.1 * math.sqrt(2 / 0.0506), rel=2e-3
    )
    assert math.isnan(base.drop_difference.value)


def test_tokens_to_half_of_the_gap_are_no_choice_of_runs() -> None:
    quick, slow, never = (curve([[0.0], [x], [y]]) for x, y in ((1.0, 1.0), (0.25, 0.5), (0.0, 0.1)))
    runs = [ran("base", 1, quick, teachers={"sums": 1.0}), ran("base", 2, quick)]
    both = [*runs, ran("both", 1, slow), ran("both", 2, quick), ran("one", 1, slow), ran("one", 2, never)]
    base, reach, lost = rows_of(both)
    assert base.half_gap and base.half_gap.mean == 500 and base.teacher == 1
    assert reach.half_gap and reach.half_gap.mean == 1250 and reach.half_gap_difference.value == 750
    assert lost.half_gap is None and (lost.reached, lost.seeds) == (1, 2)
    assert math.isnan(lost.half_gap_difference.value)
    unknown = rows_of([ran("base", 1, quick), ran("other", 1, quick)])[1]
    assert unknown.half_gap is None and unknown.reached is None and math.isnan(unknown.teacher)
    (no_gap,) = rows_of([ran("base", 1, quick, teachers={"sums": 0.0})])
    assert no_gap.half_gap is None and no_gap.reached is None


def test_an_arm_with_a_teacher_of_its_own_is_measured_by_it() -> None:
    def with_teacher(name: str) -> dict[str, str]:
        return {"task.tasks.sums.teacher": name}

    one = curve([[0.0], [0.5], [1.0]])
    runs = [ran("base", 1, one, config=with_teacher("a"), teachers={"sums": 1.0})]
    runs += [ran("same", 1, one, config=with_teacher("a")), ran("weak", 2, one, config=with_teacher("b"))]
    runs += [
        ran("weak", 1, one, config=with_teacher("b"), teachers={"sums": 0.5}),
        ran("new", 1, one, config=with_teacher("c")),
    ]
    teachers = [row.teacher for row in rows_of(runs)]
    assert teachers[:3] == [1.0, 1.0, 0.5] and math.isnan(teachers[3])  # never that of another teacher
    weak = rows_of(runs)[2]
    assert weak.half_gap and weak.half_gap.mean == 500


@pytest.mark.parametrize("known", [True, False])
def test_the_teacher_of_an_arm_is_the_same_with_any_baseline(known: bool) -> None:
    one = curve([[0.0], [0.5], [1.0]])

    def made(arm: str, teacher: str, **more: Any) -> Ran:
        return ran(arm, 1, one, config={"task.tasks.sums.teacher": teacher} if known else {}, **more)

    runs = [made("first", "a", teachers={"sums": 1.0}), made("weak", "b", teachers={"sums": 0.5}), made("other", "a")]
    for baseline in ("first", "weak", "other"):
        found = {row.arm: row.teacher for row in rows_of(runs, baseline)}
        assert found == {"first": 1.0, "weak": 0.5, "other": 1.0}


def test_the_baseline_is_named_by_a_part_that_is_its_own() -> None:
    runs = [
        ran(arm, 1, curve([[0.0], [1.0]])) for arm in ("loss=topk_rkl", "loss=sampled_token", "loss=sampled_token k=2")
    ]
    assert rows_of(runs, "topk")[0].arm == "loss=topk_rkl"
    assert rows_of(runs, "loss=sampled_token")[0].arm == "loss=sampled_token"  # the whole name
    for wrong in ("sampled", "nothing"):
        with pytest.raises(ConfigError, match=r"Expected `baseline` to be one of the arms \(loss=topk_rkl, loss=samp"):
            compare(runs, wrong)


def test_of_two_runs_with_one_seed_one_counts() -> None:
    runs = [ran("base", 1, curve([[0.0], [0.0]]), "failed"), ran("base", 1, curve([[0.0], [1.0]]))]
    (base,) = rows_of(runs)
    assert (base.after.value, base.seeds, base.runs) == (1.0, 1, 2)


def test_how_many_intervals_exclude_0() -> None:
    ends = {"base": [1, 1, 0, 0], "worse": [0, 0, 0, 0], "same": [1, 1, 0, 0]}
    runs = [ran(arm, seed, curve([[0] * 4, end])) for arm, end in ends.items() for seed in (1, 2, 3)]
    (part,) = compare(runs, None)
    assert part.by_chance(lambda row: row.snr_difference) == (0, 2)
    runs[3] = ran("worse", 1, curve([[0] * 4, [0] * 4]), snr=1.0)
    runs[4] = ran("worse", 2, curve([[0] * 4, [0] * 4]), snr=1.0)
    runs[5] = ran("worse", 3, curve([[0] * 4, [0] * 4]), snr=1.01)
    (part,) = compare(runs, None)
    assert part.by_chance(lambda row: row.snr_difference) == (1, 2)


def test_a_run_folder_is_read_whether_it_has_finished_or_not(tmp_path: Path) -> None:
    assert read_arm_run(make_empty(tmp_path / "seed-7")).seed == 7
    run = make_arm_run(tmp_path / "run", seed=3, success={"sums": [[0, 1], [1, 1]]}, finished=False, teacher=0.9)
    found = read_arm_run(run)
    assert (found.seed, found.state, found.updates, found.teachers) == (3, "failed", 1, {})
    assert found.held_out["sums"].success.tolist() == [[0, 1], [1, 1]]
    assert found.held_out["sums"].tokens == [0, 100] and found.snr == 2.0
    with (run / "held_out.jsonl").open("a") as file:
        samples = [[FIRST, 1, 1.0], [FIRST, 0, 0.0, 9], [FIRST + 1, 1, 1.0], [FIRST + 2, 1, 1.0]]
        file.write(json.dumps({"step": 1, "task": "sums", "episodes": samples}) + "\n")
        file.write(json.dumps({"step": 9, "task": "sums", "episodes": samples}) + "\n")  # not in metrics.csv yet
        file.write('{"step": 9, "tas')
    found = read_arm_run(run)
    assert found.held_out["sums"].success.tolist() == [[0, 1], [0.5, 1]]  # the later line, the common episodes
    assert any("cut off" in note for note in found.notes)
    metrics = (run / "metrics.csv").read_text().replace("rollout/sampled_tokens", "x")
    (run / "metrics.csv").write_text(metrics)
    old = read_arm_run(run)
    assert math.isnan(old.held_out["sums"].tokens[1]) and any("rollout/sampled_tokens" in note for note in old.notes)
    _, other = rows_of([ran("base", 1, curve([[0, 0], [1, 1]])), ran("old", 1, old.held_out["sums"])])
    assert math.isnan(other.difference.value)  # not comparable, rather than compared at different numbers


def make_empty(folder: Path) -> Path:
    folder.mkdir()
    (folder / "log.txt").write_text("error: no\n")
    return folder


def hold(path: str, ready: Any, end: Any) -> None:
    with Path(path).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.set()
        end.wait()


def test_a_run_that_another_process_still_trains_is_unfinished(tmp_path: Path) -> None:
    run = make_arm_run(tmp_path / "run", seed=1, success={"sums": [[0], [1]]}, finished=False)
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(run / ".lock"), ready, end), daemon=True)
    process.start()
    assert ready.wait(60)
    assert read_arm_run(run).state == "unfinished"
    end.set()
    process.join()
    assert read_arm_run(run).state == "failed"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "log.txt").touch()
    assert read_arm_run(tmp_path / "new").state == "unfinished"  # it is starting


def sweep(folder: Path) -> Path:
    """`loss=topk_rkl,sampled_token seed=1,2`, as Hydra lays it out."""
    jobs = [(loss, seed) for loss in ("topk_rkl", "sampled_token") for seed in (1, 2)]
    for n, (loss, seed) in enumerate(jobs):
        make_arm_run(
            folder / f"{n}_loss-{loss}_seed-{seed}", seed=seed, success={"sums": [[0, 0], [1, seed - 1]]},
            overrides=["task=sums", f"loss={loss}"], config={"loss": {"_target_": loss}}, teacher=1.0,
        )  # fmt: skip
    (folder / "multirun.yaml").write_text("hydra: {}")
    (folder / "latest").symlink_to(f"{n}_loss-{loss}_seed-{seed}")
    return folder


def test_runs_of_a_sweep_are_arms_by_what_differs_but_for_the_seed(tmp_path: Path) -> None:
    found = runs_to_compare([sweep(tmp_path / "sweep")])
    assert [(r.setting, r.arm, r.seed) for r in found] == [
        ("sums", f"loss={loss}", seed) for loss in ("topk_rkl", "sampled_token") for seed in (1, 2)
    ]
    assert len(runs_below(tmp_path)) == 4 and several_seeds(found)


def names(folder: Path, *arms: dict[str, Any]) -> list[tuple[str, str]]:
    for n, arm in enumerate(arms):
        make_arm_run(folder / str(n), **{"seed": n, "success": {"sums": [[0], [1]]}, **arm})
    return [(r.setting, r.arm) for r in grouped([read_arm_run(path) for path in runs_below(folder)])]


K8 = {"loss": {"k": 8}}
OTHER_TASK = {"alfworld": [[0], [1]], "sums": [[0], [1]]}
MEASURED = {"evaluate_teachers": True, "logger": {"x": 1}, "callbacks": {"checkpoints": {"every": 3}}}
NAMES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "one did not type what the config has": (
        [{"overrides": ["task=sums", "doctor=false"]}, {"overrides": ["task=sums", "loss.k=8"], "config": K8}],
        ["loss.k=32", "loss.k=8"],
    ),
    "one did not type a group": ([{}, {"overrides": ["loss=k8"], "config": K8}], ["defaults", "loss=k8"]),
    "nobody typed it": ([{}, {"config": K8}], ["loss.k=32", "loss.k=8"]),
    "one arm alone": ([{"overrides": ["task=sums", "loss=k8"]}] * 2, ["loss=k8"] * 2),
    "what makes no other arm": ([{"config": MEASURED}, {"config": {"evaluate_teachers": False}}], ["one arm"] * 2),
}


@pytest.mark.parametrize("case", NAMES)
def test_an_arm_has_the_shortest_name_that_tells_it_from_the_others(case: str, tmp_path: Path) -> None:
    arms, expected = NAMES[case]
    assert names(tmp_path, *arms) == [("sums", name) for name in expected]


def test_other_tasks_are_another_part_of_the_page(tmp_path: Path) -> None:
    found = names(tmp_path, {"overrides": ["loss=a"]}, {"overrides": ["loss=a"], "success": OTHER_TASK})
    assert found == [("sums", "loss=a"), ("alfworld + sums", "loss=a")]


def test_a_study_has_the_names_of_its_folders_and_the_order_of_its_arms(tmp_path: Path) -> None:
    for arm in ("a", "b"):
        for seed in (1, 2, 10):
            make_arm_run(tmp_path / "sums" / arm / f"seed-{seed}", seed=seed, success={"sums": [[0], [1]]})
    (tmp_path / "sums" / "c").mkdir()
    make_empty(tmp_path / "sums" / "c" / "seed-1")
    (tmp_path / "tables.yaml").write_text("baseline: b\narms: {b: [], a: [], c: []}\n")
    for folder in (tmp_path, tmp_path / "sums"):
        found = runs_to_compare([folder])
        assert [(r.setting, r.arm, r.seed) for r in found] == [
            ("sums", arm, seed) for arm in "ba" for seed in (1, 2, 10)
        ] + [("sums", "c", 1)]  # fmt: skip
    assert found[-1].state == "failed"


def test_several_runs_are_compared_by_arm_only_if_some_differ_in_their_seed_alone(tmp_path: Path) -> None:
    runs = [
        make_arm_run(tmp_path / str(n), seed=n // 2, success={"sums": [[0], [1]]}, config={"loss": {"k": n % 2}})
        for n in range(4)
    ]
    assert len(runs_to_compare(runs)) == 4
    assert runs_to_compare(runs[:2]) == runs_to_compare(runs[:1]) == runs_to_compare([tmp_path / "none"]) == []
    assert runs_to_compare([*runs, tmp_path / "none"]) == []  # then the error that there is no run


def test_arms_csv_can_be_made_again_without_the_runs(tmp_path: Path) -> None:
    found = runs_to_compare([sweep(tmp_path / "sweep")])
    third = {**found[0].held_out, "sums": found[0].held_out["sums"].of([FIRST + 1])}
    uneven = HeldOut(
        steps=[0, 1],
        tokens=[0.0, 100.0],
        episodes=[3, 4, 9],
        success=torch.tensor([[0, 1 / 3, 0.5], [1, 1, 0]], dtype=torch.float64),
    )
    found += [
        ran("sampled", 1, uneven, "failed", setting="sums"),
        ran("lost", 1, None, "failed", setting="sums", snr=math.nan),
    ]
    found += [ran("single", 2, third["sums"], "unfinished", setting="sums", snr=1 / 3)]
    parts = compare(found, None)
    write_tables(tmp_path, found, parts)
    again = read_tables(tmp_path)
    assert [(r.arm, r.seed, r.state) for r in again] == [(r.arm, r.seed, r.state) for r in found]
    made = arms_csv([row for part in compare(again, None) for row in part.rows])
    assert made == (tmp_path / ARMS).read_text()
    assert runs_csv(again) == (tmp_path / RUNS).read_text()
    assert runs_to_compare([tmp_path / "sweep"])[0].arm == "loss=topk_rkl"  # runs go before tables
    evaluations = list(csv.DictReader((tmp_path / EPISODES).read_text().splitlines()))
    assert (evaluations[1]["episodes"], evaluations[1]["success"]) == (f"{FIRST}+2", "10")
    assert (evaluations[8]["episodes"], evaluations[8]["success"]) == ("3+2 9+1", "0 0.3333333333 0.5")
    (tmp_path / EPISODES).write_text((tmp_path / EPISODES).read_text().replace("3+2 9+1", "3+3 9+1"))
    with pytest.raises(ConfigError, match=r"Expected `run` to be a folder with runs.csv and episodes.csv"):
        read_tables(tmp_path)


def test_a_lone_arm_far_out_does_not_flatten_the_others_in_the_figure() -> None:
    def found(value: float) -> Interval:
        return Interval(value=value, low=value - 1, high=value + 1)

    near = [found(value) for value in (-3.0, 0.0, 1.0, 2.0)]
    assert furthest(near) == math.inf and furthest([found(-80.0)]) == math.inf
    sizes = [1, 2, 3, 4, 81]  # the bound is 2.5 times their 80 % quantile, here a fifth of the way from 4 to 81
    assert furthest([*near, found(-80.0)]) == pytest.approx(2.5 * (4 + 0.2 * (sizes[-1] - 4)))
    alone = Interval(value=5.0, low=math.nan, high=math.nan)
    assert furthest([alone, alone]) == math.inf


def test_a_band_is_the_mean_over_seeds_and_knows_where_one_has_ended() -> None:
    def line(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(values), dtype=float), np.array(values)

    band = band_of([line([0, 2, 4, 6]), line([2, 4])])
    assert band.at.tolist() == [0, 1, 2, 3] and band.whole == 2
    assert (band.mean.tolist(), band.low.tolist(), band.high.tolist()) == ([1, 3, 4, 6], [0, 2, 4, 6], [2, 4, 4, 6])
    between = band_of([(np.array([0.0, 10]), np.array([0.0, 1])), (np.array([0.0, 4, 10]), np.array([0.0, 0, 1]))])
    assert between.at.tolist() == [0, 4, 10] and between.mean.tolist() == pytest.approx([0, 0.2, 1])
    assert len(band_of([line(list(range(500)))]).at) == 60


def test_the_noise_of_a_run_is_the_ratio_of_its_sums(tmp_path: Path) -> None:
    # ‖g‖² 3, 2, 4 and variance 1, 2, 0.5: (9 − 3.5) / 3.5, not the median of 2, 0 and 7
    rows = [
        [0, 0.5, 2.0, 1.0],
        [1, 0.5, 0.0, 2.0],
        [2, 0.5, 7.0, 0.5],
        [3, 0.5, "", ""],
    ]  # last: one micro-batch
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["step", "loss/train", "optimizer/gradient_snr", "optimizer/gradient_variance"], *rows]
        )
    assert read_arm_run(tmp_path).snr == pytest.approx(5.5 / 3.5)
