"""`--help`: groups, options and examples, of opdlight and of the user."""

from pathlib import Path

import pytest
from entry_process import start

from opdlight.config import CONF
from opdlight.config.help import commented_keys, help_text


def test_help_shows_groups_options_and_examples(conf: Path) -> None:
    text = start(conf, "loss=large", "--help", COLUMNS="100").stdout
    assert text == help_text(conf, "main", ["loss=large"]) + "\n"
    for line in (
        "Test a small thing.",
        "  loss       * large  the large one",
        "               small  the small one",
        "  seed=1",
        "      where randomness starts",
        "  rollout.groups=4",
        "  rollout.group_size=2",
        "  python -m opdlight.main loss=large",
    ):
        assert line in text.splitlines(), line
    assert "hydra.run" not in text
    assert "  loss.k=3" in help_text(conf, "main").splitlines()


def test_help_lists_the_options_of_a_folder_of_one_s_own(conf: Path, tmp_path: Path) -> None:
    extra = tmp_path / "mine"
    (extra / "loss").mkdir(parents=True)
    (extra / "loss" / "tiny.yaml").write_text("# my own\n_target_: config_targets.Small\n# a few\nk: 1\n")
    (extra / "loss" / "large.yaml").write_text("# never chosen: Hydra searches this folder last\nk: 2\n")
    text = start(conf, "loss=tiny", "--help", "--config-dir", str(extra), COLUMNS="100").stdout
    lines = text.splitlines()
    assert "             * tiny   (yours) my own" in lines
    assert "  loss         large  the large one" in lines
    assert "  loss.k=1" in lines and "      a few" in lines
    assert "tiny" not in help_text(conf, "main")
    assert "Options of your own: --config-dir <folder>, with loss/<name>.yaml in it" in help_text(conf, "main")
    wrong = start(conf, "--help", "--config-dir", "nowhere")
    assert wrong.stderr == "error: Expected `--config-dir` to be a folder that exists, but got 'nowhere'.\n"


def test_only_a_comment_right_above_a_key_describes_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "# about the file\na: 1\n# about b\nb:\n  c: 2\n  # about d,\n  # twice\n  d: 3\n# lost\n\ne: 4\nf: [1]\n"
    )
    assert dict(commented_keys(file)) == {"b": "about b", "b.d": "about d, twice"}


@pytest.mark.parametrize(
    ("name", "known"), [("train", "  task"), ("sft", "  task"), ("evaluate", "  task"), ("report", "  run")]
)
def test_each_entry_point_has_help_for_every_option(name: str, known: str) -> None:
    text = help_text(CONF, name)
    assert "Options worth knowing" in text
    assert known in text


def test_help_shows_what_an_experiment_chooses_and_the_command_line_wins(conf: Path) -> None:
    (conf / "experiment").mkdir()
    (conf / "experiment" / "big.yaml").write_text(
        "# @package _global_\n# all at once\ndefaults:\n  - override /loss: large\nrollout:\n  groups: 99\nseed: 5\n"
    )
    main = conf / "main.yaml"
    main.write_text(main.read_text().replace("  - _self_\n", "  - _self_\n  - experiment: null\n"))
    lines = help_text(conf, "main", ["experiment=big"]).splitlines()
    assert "  experiment * big    all at once" in lines
    assert "  loss       * large  the large one" in lines
    assert "  rollout.groups=99" in lines and "  seed=5" in lines
    lines = help_text(conf, "main", ["loss=small", "experiment=big"]).splitlines()
    assert "             * small  the small one" in lines
    assert "  experiment   big    all at once" in help_text(conf, "main").splitlines()
