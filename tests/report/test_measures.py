"""What the figures show, against slow obvious references."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up import lines, make_run, trajectory

from opdlight.metrics.success import success_interval, wilson_interval
from opdlight.report.inspector import embed, row
from opdlight.report.measures import (
    action_text,
    by_bucket,
    concentration,
    config_differences,
    heat,
    joined_alarms,
    part_of,
    smooth,
    solved_within,
    success_by_turns,
    thirds,
    token_columns,
)
from opdlight.report.read import read_run
from opdlight.report.rows import Depth, Episode
from opdlight.report.turns import turn_lines


def depth(rng: np.random.Generator, update: int, start: int) -> Depth:
    empty = rng.random() < 0.1
    names = ("student_mass", "gap_q10", "gap_q50", "gap_q90")
    values = {n: float("nan") if empty else float(rng.random()) for n in names}
    tokens = float(rng.integers(0, 50))
    return Depth(
        update=update, task="t", axis="position", start=start, end=2 * start or 1, tokens=tokens, values=values
    )


@pytest.fixture
def rows() -> list[Depth]:
    rng = np.random.default_rng(3)
    made = [depth(rng, u, s) for u in range(2, 90, 3) for s in (0, 1, 2, 4, 8) if rng.random() < 0.9]
    return [made[i] for i in rng.permutation(len(made))]


def weighted(rows: list[Depth], key: str) -> float:
    total = weight = 0.0
    for r in rows:
        if r.tokens > 0 and not np.isnan(r.values[key]):
            total += r.tokens * r.values[key]
            weight += r.tokens
    return total / weight if weight else float("nan")


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_concentration_is_the_share_of_the_largest(n: int) -> None:
    sizes = np.random.default_rng(n).exponential(1, n)
    share, carried = concentration(sizes)
    ordered = sorted(sizes, reverse=True)
    for k in range(n + 1):
        assert share[k] == pytest.approx(k / n)
        assert carried[k] == pytest.approx(sum(ordered[:k]) / sum(ordered))


def test_concentration_of_tokens_that_are_all_alike_is_the_diagonal() -> None:
    for sizes in (np.zeros(4), np.full(4, 2.0)):
        share, carried = concentration(sizes)
        assert carried.tolist() == pytest.approx(share.tolist())


@pytest.mark.parametrize("columns", [1, 5, 30, 500])
def test_cells_of_the_heat_map_are_means_by_tokens(columns: int, rows: list[Depth]) -> None:
    edges, buckets, cells = heat(rows, "student_mass", columns)
    assert cells.shape == (len(buckets), len(edges) - 1)
    assert len(edges) - 1 <= columns
    assert (edges[0], edges[-1]) == (2, 90)  # the last update is 89
    for b, (start, _) in enumerate(buckets):
        for c in range(len(edges) - 1):
            inside = [r for r in rows if r.start == start and edges[c] <= r.update < edges[c + 1]]
            assert cells[b, c] == pytest.approx(weighted(inside, "student_mass"), nan_ok=True)


def test_a_column_a_recorded_update_leaves_no_gaps(rows: list[Depth]) -> None:
    edges, _, _ = heat(rows, "student_mass", 500)
    assert edges[:-1].tolist() == sorted({r.update for r in rows})


def test_by_bucket_and_thirds_are_means_by_tokens(rows: list[Depth]) -> None:
    for (start, _), mean in by_bucket(rows, "gap_q50").items():
        assert mean == pytest.approx(weighted([r for r in rows if r.start == start], "gap_q50"))
    for part, band in enumerate(thirds(rows)):
        assert band
        for (start, _), values in band.items():
            mine = [
                r for r in rows if r.start == start and (2 + 29 * part) <= r.update < 2 + 29 * (part + 1) + part // 2
            ]
            for key, value in zip(("gap_q10", "gap_q50", "gap_q90"), values, strict=True):
                assert value == pytest.approx(weighted(mine, key))
    assert thirds([]) == [{}, {}, {}]


def test_the_parts_of_a_run() -> None:
    assert [part_of(u, 5, 5 + 29) for u in (5, 14, 15, 24, 25, 34)] == [0, 0, 1, 1, 2, 2]
    assert part_of(7, 7, 7) == 0


@pytest.mark.parametrize("window", [1, 3, 4, 50])
def test_a_running_mean_keeps_a_constant_and_averages_neighbours(window: int) -> None:
    assert smooth(np.full(9, 2.5), window).tolist() == pytest.approx([2.5] * 9)
    values = np.random.default_rng(0).normal(size=11)
    if window == 3:
        expected = [values[max(0, i - 1) : i + 2].mean() for i in range(11)]
        assert smooth(values, 3).tolist() == pytest.approx(expected)


def test_tokens_that_the_mask_leaves_out_do_not_count() -> None:
    made = trajectory(np.random.default_rng(0), 1, 4, 10, task="sums")
    turn = made["turns"][0]
    turn["teacher"][3] = None
    expected = [
        [s, q] for s, q, k in zip(turn["student"], turn["teacher"], turn["kept"], strict=True) if k and q is not None
    ]
    assert len(expected) == len(turn["ids"]) - 2
    assert token_columns([made], "student", "teacher").tolist() == expected
    assert token_columns([], "student").shape == (0, 1)
    shown = row("A", made)
    assert shown["worst"] == pytest.approx(max(abs(q - s) for s, q in expected), rel=1e-3)
    assert shown["gap"] == pytest.approx(np.mean([abs(q - s) for s, q in expected]), rel=1e-3)
    assert shown["coverage"] == min(m for m, k in zip(turn["mass"], turn["kept"], strict=True) if k)
    assert shown["tokens"] == len(turn["ids"])


# seed, success, turns; the episode of seed 3 was tried twice, that of seed 5 never began
PLAYED = [
    Episode(seed=seed, success=success, turns=turns)
    for seed, success, turns in (
        (1, True, 2), (2, False, 2), (3, True, 5), (3, False, 6), (4, True, 4), (5, False, 0), (6, False, 6),
    )
]  # fmt: skip


def test_success_by_number_of_turns() -> None:
    bars = success_by_turns(PLAYED, 1)
    assert {turns: (bar.share, bar.count) for turns, bar in bars.items()} == {
        2: (1 / 2, 2), 4: (1.0, 1), 5: (1.0, 1), 6: (0.0, 2),
    }  # fmt: skip
    assert (bars[2].low, bars[2].high) == wilson_interval(1, 2)
    together = success_by_turns(PLAYED, 3)  # 1 to 3, 4 to 6
    assert {turns: (bar.share, bar.count) for turns, bar in together.items()} == {1: (1 / 2, 2), 4: (2 / 4, 4)}
    assert (together[4].low, together[4].high) == success_interval([[1.0, 0.0], [1.0], [0.0]])[1]


def test_share_solved_within_so_many_turns() -> None:
    found = solved_within(PLAYED, 7)
    #            t =  0  1    2    3    4      5       6       7    of six episodes; seed 3 was solved in one of two
    assert found[:, 0] == pytest.approx(np.array([0, 0, 1, 1, 2, 2.5, 2.5, 2.5]) / 6)
    # with two attempts at an episode the interval is that of p(1−p)/s² episodes: 5 (s² = 1/36) and 6 (s² = 0.0403)
    for t, solved, of in ((0, 0, 6), (2, 5 / 6, 5), (6, 2.5, 6)):
        assert found[t, 1:].tolist() == pytest.approx(wilson_interval(solved, of))


@pytest.mark.parametrize(
    ("pieces", "action"),
    [
        ("<think>|Up?|</think>|Move | Left.|<|end|>", "move left"),
        ("hm</think>|<action>|click[Buy Now]|</action>|<|end|>", "click[buy now]"),
        ("<action>| </action>", "<action> </action>"),  # there is none: all of it
    ],
)
def test_what_the_environment_has_read(pieces: str, action: str) -> None:
    text = pieces.replace("<|end|>", "<end>").split("|")
    control = [t in ("<think>", "</think>", "<end>") for t in text]
    assert action_text({"text": text, "control": control}) == action


def test_the_terminal_gets_a_line_for_each_figure(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", updates=4, trajectories=2)
    assert list(turn_lines(read_run(run)))[1:] == [
        "alfworld: admissible actions: 70.0 %, then 96.1 %",
        "alfworld: wasted actions: 41.2 %, then 8.0 %",
    ]
    episodes = [[e.seed, int(e.success), 0.0, e.turns] for e in PLAYED]
    once = {"step": 0, "task": "alfworld", "episodes": [[*e[:3], 1] for e in episodes]}
    lines(
        run / "held_out.jsonl", [once, {"step": 4, "task": "alfworld", "episodes": episodes}, once | {"task": "sums"}]
    )
    #  of six episodes 2.5 were solved in the first turn at first; then none, one, two, two and a half
    assert next(turn_lines(read_run(run))) == (
        "alfworld: solved within 2 / 3 / 4 / 6 turns: 42 / 42 / 42 / 42 %, then 17 / 17 / 33 / 42 %"
    )


def test_trajectories_that_are_too_large_for_a_page_are_fewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", updates=2, trajectories=12))
    _, every, _ = embed([run], 1000)
    sizes = [len(line) for line in every.split("\n")]
    monkeypatch.setattr("opdlight.report.inspector.BYTES", sum(sizes) // 2)
    index, lines, count = embed([run], 1000)
    assert 2 <= count == len(json.loads(index)) == len(lines.split("\n")) <= 9
    assert len(lines) <= sum(sizes) // 2 + count
    assert (lines.split("\n")[0], lines.split("\n")[-1]) == (every.split("\n")[0], every.split("\n")[-1])
    monkeypatch.setattr("opdlight.report.inspector.BYTES", 1)
    assert embed([run], 1000)[2] == 1  # one is shown, however large


def test_differences_between_configurations() -> None:
    a = {"seed": "1", "k": "32", "folder": '"/runs/a/x"', "only": "1"}
    b = {"seed": "2", "k": "32", "folder": '"/runs/b/x"'}
    assert config_differences([a, b], ["/runs/a", "/runs/b"]) == {"seed": ["1", "2"], "only": ["1", None]}
    assert config_differences([a, a], ["/runs/a", "/runs/a"]) == {}


def test_an_alarm_that_ended_is_one_entry() -> None:
    start = {"key": "a", "update": 3, "until": None, "value": 1}
    other = {"key": "b", "update": 3, "until": None, "value": 2}
    again = {**start, "update": 9}
    joined = joined_alarms([start, other, {**start, "until": 5}, again])
    assert joined == [{**start, "until": 5}, other, again]
