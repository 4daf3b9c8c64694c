"""A small config folder for the tests."""

from pathlib import Path

import pytest

MAIN = """\
# Test a small thing.
# python -m opdlight.main loss=large
defaults:
  - loss: small
  - _self_

# where randomness starts
seed: 1
# how much
rollout:
  groups: 4
  # copies of each
  group_size: 2
extras: {}
again: ${seed}
run_dir: ${hydra:runtime.output_dir}

hydra:
  run:
    dir: out/run
  sweep:
    dir: out/sweep
"""
SMALL = "# the small one\n_target_: config_targets.Small\n# how many\nk: 3\nscale: 1\nkind: first\nfail: 'no'\n"
LARGE = "# the large one\n_target_: config_targets.Small\nk: 300\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    (folder / "loss").mkdir(parents=True)
    (folder / "main.yaml").write_text(MAIN)
    (folder / "loss" / "small.yaml").write_text(SMALL)
    (folder / "loss" / "large.yaml").write_text(LARGE)
    return folder
