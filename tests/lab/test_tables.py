"""The study of arms and seeds: its plan, and the whole of it on small runs."""

import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from opdlight.config import CONF, TablesConfig, compose
from opdlight.config.help import help_text, leading_comment
from opdlight.errors import ConfigError
from opdlight.lab.tables.runs import slug
from opdlight.lab.tables.study import plan
from tests.forked import command


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
    assert "2 finished" in page and "<h3>Held-out success · sums</h3>" in page
    assert all((tmp_path / f).is_file() for f in ("figures/sums-sums-success.png", "episodes.csv", "tables.yaml"))
