"""The study of arms and seeds: its statistics, what it reads from run folders, and the whole of it on small runs."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from opdlight.config import CONF, TablesConfig, compose
from opdlight.config.help import help_text, leading_comment
from opdlight.errors import ConfigError
from opdlight.lab.tables.compare import compare
from opdlight.lab.tables.differences import crossed_mean
from opdlight.lab.tables.outcomes import Curve, Ran, read
from opdlight.lab.tables.runs import Planned, slug
from opdlight.lab.tables.study import arms_csv, plan, runs_csv, table_rows
from tests.forked import command


def test_intervals_over_seeds_and_episodes_hold_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)

    def covered(by_seed: float, by_episode: float) -> float:
        draws = 400
        hits = 0
        for _ in range(draws):
            seeds, episodes = (torch.randn(shape, generator=generator) for shape in ((5, 1), (1, 64)))
            rest = torch.randn(5, 64, generator=generator)
            found = crossed_mean(3 + by_seed * seeds + by_episode * episodes + rest)
            hits += found.low <= 3 <= found.high
        return hits / draws

    for effects in ((0.0, 0.0), (1.0, 0.1), (0.1, 1.0), (0.3, 0.3)):
        assert 0.92 < covered(*effects) < 0.99, effects


def test_the_interval_of_a_seed_effect_alone_is_student_t_over_seeds() -> None:
    means = torch.tensor([0.0, 1.0, 5.0])
    found = crossed_mean(means[:, None].expand(3, 40))
    half = 4.303 * float(means.std()) / math.sqrt(3)
    assert found.value == 2 and found.high - 2 == pytest.approx(half, rel=1e-3)
    assert math.isnan(crossed_mean(torch.ones(1, 40)).low)  # one seed says nothing about seeds


def test_the_variance_of_the_mean_is_that_of_seeds_and_of_episodes_together() -> None:
    # additive: MS_s = 4 · 7 = 28, MS_e = 3 · 20/3 = 20, MS_r = 0, degrees of freedom 48² / (28²/2 + 20²/3) = 4.4
    both = crossed_mean(torch.tensor([[0.0], [1.0], [5.0]]) + torch.tensor([0.0, 2.0, 4.0, 6.0]))
    assert both.high - both.value == pytest.approx(2.776 * math.sqrt(48 / 12), rel=1e-3)
    # MS_s = 32, MS_e = 0, MS_r = 8/3: the estimate for episodes is negative, so seeds alone count, with 1 degree
    seeds = crossed_mean(torch.tensor([[1.0, -1.0, 1.0, -1.0], [3.0, 5.0, 3.0, 5.0]]))
    assert seeds.high - seeds.value == pytest.approx(12.706 * math.sqrt(32 / 8), rel=1e-3)


def curve(success: list[list[float]], tokens: list[float] | None = None) -> Curve:
    steps = [10 * i for i in range(len(success))]
    return Curve(steps=steps, tokens=tokens or [100.0 * s for s in steps], success=torch.tensor(success).double())


def test_area_largest_drop_and_tokens_to_a_level() -> None:
    one = curve([[0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])  # means 0, 0.75, 0.25, 1
    assert one.means == [0, 0.75, 0.25, 1] and one.largest_drop == 0.5
    assert one.area.tolist() == [(0.5 + 1 + 1) / 3, (0.5 + 0.5 + 0.5) / 3, 0.5, 0.5 / 3]
    assert one.tokens_to(0.375) == 500 and one.tokens_to(0.875) == pytest.approx(2000 + 1000 * 0.625 / 0.75)
    assert one.tokens_to(0.0) == 0 and math.isnan(curve([[0.0], [0.5]]).tokens_to(0.6))


def ran(arm: str, seed: int, ends: list[float], *, failed: bool = False) -> Ran:
    run = Planned(setting="s", arm=arm, seed=seed, folder=Path(arm), overrides=(), teachers=False)
    return Ran(run=run, failed=failed, curves={"sums": curve([[0.0] * len(ends), ends])}, snr=2.0, teachers={})


def test_arms_are_compared_on_the_same_seeds_and_episodes() -> None:
    # episode 1 is hard for every seed, and seed 2 is bad for both arms: the paired difference is the same everywhere
    base = [ran("lsm", 1, [1, 0, 1, 1]), ran("lsm", 2, [1, 0, 0, 1])]
    other = [ran("other", 2, [0, 0, 0, 1], failed=True), ran("other", 1, [1, 0, 0, 1])]
    lsm, arm = compare([*base, *other], setting="s", task="sums", baseline="lsm", teacher=1.0)
    assert (lsm.arm, lsm.after.value, arm.arm, arm.after.value) == ("lsm", 0.625, "other", 0.375)
    assert math.isnan(lsm.difference.value) and arm.difference.value == -0.25
    assert (arm.failed, arm.seeds, lsm.reached, arm.reached) == (1, 2, 2, 1)
    assert lsm.half_gap is not None and arm.half_gap is None  # one seed never got half of the way
    assert arm.area_difference.value == -0.125
    lines = list(csv.DictReader(arms_csv([lsm, arm]).splitlines()))
    assert lines[1]["difference"] == "-0.25" and lines[0]["difference"] == "" and lines[0]["snr"] == "2"
    assert runs_csv(base).splitlines()[1] == "s,lsm,1,sums,0,10,1000,0,0.75,0.375,0,2"


def test_a_run_folder_is_read_whether_it_has_finished_or_not(tmp_path: Path) -> None:
    run = Planned(setting="s", arm="lsm", seed=1, folder=tmp_path, overrides=(), teachers=False)
    assert read(run).curves == {} and read(run).failed
    rows = [["", "", ""], ["0.5", "30", "1.5"], ["0.4", "20", ""], ["0.3", "10", "2.5"]]  # the first is an evaluation
    text = "\n".join(",".join(r) for r in [["loss/train", "rollout/sampled_tokens", "optimizer/gradient_snr"], *rows])
    (tmp_path / "metrics.csv").write_text(text + "\n")
    lines = [
        {"step": 0, "task": "sums", "episodes": [[8, 0, 0.0], [7, 1, 1.0], [7, 0, 0.0]]},  # two samples of episode 7
        {"step": 2, "task": "sums", "episodes": [[7, 1, 1.0], [7, 1, 1.0, 9], [8, 1, 1.0, 3]]},  # and turns
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(run)
    assert found.curves["sums"].success.tolist() == [[0.5, 0.0], [1.0, 1.0]]
    assert found.curves["sums"].tokens == [0, 50] and found.snr == 2.0 and found.failed


def test_a_plan_has_whole_seeds_first_and_names_what_is_wrong(tmp_path: Path) -> None:
    cfg = compose("tables", TablesConfig, ["seeds=[3,4]", "only=[ppo]", f"run_dir={tmp_path}"])
    planned = plan(cfg, tmp_path)
    assert [(p.setting, p.arm, p.seed, p.teachers) for p in planned[:3]] == [
        ("sums", "lsm", 3, True), ("sums", "ppo", 3, False), ("sums", "lsm", 4, False),
    ]  # fmt: skip
    assert len({p.folder for p in planned}) == len(planned) == 8
    for change, key in (({"only": ["pppo"]}, "`only`"), ({"baseline": "lms"}, "`baseline`")):
        with pytest.raises(ConfigError, match=key):
            plan(OmegaConf.merge(cfg, change), tmp_path)
    planned[0].folder.mkdir(parents=True)
    (planned[0].folder / "overrides.json").write_text('["task=alfworld", "hydra.run.dir=x"]')
    with pytest.raises(ConfigError, match="task=alfworld"):
        planned[0].check()
    assert slug("top-p 0.9/é*") == "top-p-0.9-é"


STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_of_a_study_composes(study: str, tmp_path: Path) -> None:
    cfg = compose("tables", TablesConfig, [f"study={study}", "seeds=[1]", f"run_dir={tmp_path}"])
    for run in plan(cfg, tmp_path):
        compose("train", None, run.overrides)


def test_help_lists_the_studies_and_what_the_chosen_one_holds() -> None:
    assert STUDIES == ["lab", "smollm2"]
    for study in STUDIES:
        text = help_text(CONF, "tables", [f"study={study}"], module="opdlight.lab.tables")
        about = leading_comment(CONF / "study" / f"{study}.yaml")[0]
        assert f"* {study}" in text and about[:40] in text and "  baseline=lsm" in text and "  arms.lsm=" in text


def test_a_study_runs_counts_what_failed_and_goes_on(tmp_path: Path) -> None:
    small = [
        "task=sums", "trainer.max_steps=2", "trainer.val_check_interval=1", "rollout.groups=2",
        "task.tasks.sums.episodes=3", "engine._target_=tests.fakes.AnsweringEngine",
    ]  # fmt: skip
    study = [
        "opdlight.lab.tables", f"run_dir={tmp_path}", "seeds=[1]", "only=[broken]", "jobs=2", "~settings.agent_math",
        f"settings.sums.overrides={json.dumps(small)}",
    ]  # fmt: skip
    broken = command(*study, "+arms.broken=['optimizer.lr=nonsense']")
    assert broken.returncode == 2, broken.stderr
    assert "sums, broken, seed 1 failed" in broken.stdout and "1 of 2 runs failed" in broken.stderr
    assert "sums,broken,1,,1," in (tmp_path / "runs.csv").read_text()  # those that failed are counted
    again = command(*study, "+arms.broken=['optimizer.lr=1e-4']")
    assert again.returncode == 0, again.stderr
    assert "1 of 2 runs are finished already" in again.stdout
    arms = list(csv.DictReader((tmp_path / "arms.csv").read_text().splitlines()))
    assert [(row["arm"], row["seeds"], row["failed"]) for row in arms] == [("lsm", "1", "0"), ("broken", "1", "0")]
    page = (tmp_path / "index.html").read_text()
    assert not list(tmp_path.rglob("*.safetensors"))  # nobody reads the weights, which may be large
    assert "none did" in page and all((tmp_path / f).is_file() for f in ("figures/1-curves.png", "tables.yaml"))


def test_tables_without_any_outcome_are_empty() -> None:
    run = Planned(setting="s", arm="lsm", seed=1, folder=Path("none"), overrides=(), teachers=False)
    assert table_rows([read(run)], baseline="lsm") == []
    assert runs_csv([read(run)]).splitlines()[1] == "s,lsm,1,,1,0,,,,,,"
