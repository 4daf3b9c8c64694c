"""A run on environments that know nothing of opdlight: a level of a package, and one of Gymnasium by its YAML alone."""

import csv
from pathlib import Path

from opdlight.config import TrainConfig, compose
from opdlight.metrics.glossary import describe
from opdlight.train.run import train

LAKE = (
    "+task.tasks.lake={_target_: opdlight.data.Task, teacher: lab/teacher-sums, turn_tokens: 8, trajectory_tokens: 512,"
    " episodes: 1, env: {id: FrozenLake-v1, max_episode_steps: 4, is_slippery: false, adapter: {"
    "actions: [left, down, right, up], observation: tests.envs.foreign_games.cell}}}"
)


def test_babyai_and_an_adapted_environment_train(tmp_path: Path) -> None:
    limits = ("teacher=lab/teacher-sums", "episodes=1", "trajectory_tokens=1024")
    babyai = [f"task.tasks.babyai.{limit}" for limit in limits]
    fake = ["engine._target_=tests.fakes.AnsweringEngine", "evaluate_teachers=false", "trainer.max_steps=2"]
    run = ["task=babyai", *babyai, LAKE, *fake, "rollout.groups=2", f"run_dir={tmp_path / 'run'}"]
    assert train(compose("train", TrainConfig, run)) == {"success/babyai": 0.0, "success/lake": 0.0}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [key for key in rows[0] if key not in ("epoch", "step") and describe(key) is None] == []
    for task in ("babyai", "lake"):  # the fake says "go to 1", which is no action of theirs
        shares = [float(row[key]) for row in rows if row[(key := f"rollout/admissible_actions/{task}")]]
        assert shares == [0.0]
