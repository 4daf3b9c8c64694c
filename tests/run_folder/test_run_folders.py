"""Run folders: two runs never share one, and their names contain what was overridden."""

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from opdlight.config import CONF, hydra_entry
from opdlight.config.folders import job_name, make_new_folder, remove_refused
from opdlight.errors import ConfigError
from opdlight.run_folder.folder import link_latest, open_run

CONFIG = """
seed: 1
rates: [1.0]
run_dir: ${hydra:runtime.output_dir}
hydra:
  output_subdir: null
  run: {dir: "runs/${now:%Y-%m-%d_%H-%M-%S}-toy"}
  sweep: {dir: "runs/${now:%Y-%m-%d_%H-%M-%S}-toy-sweep"}
"""


@dataclass
class Small:
    """Of CONFIG."""

    seed: int
    rates: list[float]
    run_dir: str


def trained(cfg: DictConfig) -> None:
    link_latest(open_run(cfg))


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "toy.yaml").write_text(CONFIG)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def toy(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A command that only opens its run and makes it the latest."""
    monkeypatch.setattr("sys.argv", ["toy", *arguments])
    hydra_entry("toy", Small, conf=Path("../conf").absolute())(trained)()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "2026-01-01_00-00-00-sums"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make_new_folder, [wanted] * 8))
    assert {path.name for path in found} == {wanted.name, *(f"{wanted.name}-{i}" for i in range(2, 9))}


@pytest.mark.parametrize("name", ["train", "sft", "evaluate", "estimators", "failure_modes", "tables", "toy"])
def test_every_command_has_one_config_and_folders_below_runs(name: str) -> None:
    found = OmegaConf.load(CONF / f"{name}.yaml")
    assert OmegaConf.to_container(found)["hydra"]["output_subdir"] is None  # type: ignore[call-overload, index]
    folders = [str(OmegaConf.to_container(found)["hydra"][kind]["dir"]) for kind in ("run", "sweep")]  # type: ignore[call-overload, index]
    assert all(folder.startswith("runs/${now:") for folder in folders)
    assert folders[1].endswith("-sweep")


def test_runs_have_nothing_but_their_own_files_and_the_last_one_is_the_latest(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        toy(monkeypatch)
    latest = (at / "runs" / "latest").resolve()
    assert len(names(at / "runs")) == 3
    assert latest.name == max(names(at / "runs") - {"latest"})
    assert names(latest) == {".lock", "config.yaml", "versions.json"}


def test_what_is_no_link_is_left_alone(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (at / "runs" / "latest" / "mine").mkdir(parents=True)
    toy(monkeypatch)
    assert names(at / "runs" / "latest") == {"mine"}
    assert len(names(at / "runs")) == 2


def test_run_dir_moves_everything_of_a_run_and_of_a_sweep(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, "run_dir='a é'")
    toy(monkeypatch, "-m", "seed=2,3", "run_dir=sweep")
    assert names(at) == {"a é", "sweep", "latest"}
    assert names(at / "sweep") == {"0_seed-2", "1_seed-3", "multirun.yaml"}
    for folder in ("a é", "sweep/0_seed-2", "sweep/1_seed-3"):
        assert OmegaConf.load(at / folder / "config.yaml").run_dir == str(at / folder)
    assert (at / "latest").resolve() == at / "sweep" / "1_seed-3"


def test_a_sweep_names_itself_and_its_jobs_by_what_is_swept(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy(monkeypatch, "--multirun", "seed=3,4", "rates=[0.5,1.0],[2.0]")
    (sweep,) = (path for path in (at / "runs").iterdir() if not path.is_symlink())
    assert sweep.name.endswith("-toy-sweep-seed-rates")
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["0_seed-3_rates-0.5-1.0", "1_seed-3_rates-2.0", "2_seed-4_rates-0.5-1.0", "3_seed-4_rates-2.0"]
    assert "job 3: " in capsys.readouterr().out


def test_names_of_jobs_are_short_and_harmless() -> None:
    swept = {"a.b", "loss", "mask.tokens"}
    assert job_name(["x=1", "a.b='it $HOME/..;rm'", "+loss=k2"], swept) == "_b-it-HOME-..-rm_loss-k2"
    assert len(job_name([f"a.b={'x' * 500}"], swept)) == 80


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, "Expected `run_dir` to be one folder for all"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "Expected `run_dir` to be one folder for all"),
    ],
)
def test_processes_that_others_start_are_told_their_folder(
    variables: dict[str, str], message: str, at: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        toy(monkeypatch)
    assert message in capsys.readouterr().err
    assert names(at) == set()


@pytest.mark.parametrize("override", ["run_dir=file", "hydra.run.dir=file/x", "run_dir=/proc/x"])
def test_a_folder_that_cannot_be_made_is_one_error(
    override: str, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (at / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        toy(monkeypatch, override)
    assert capsys.readouterr().err.startswith("error: Expected `run_dir` to be a folder that can be written")


def refused(cfg: DictConfig) -> None:
    """A run that refuses seed 2 when it has opened its folder, and seed 3 when it has begun."""
    folder = open_run(cfg)
    if cfg.seed != 2:
        (folder / "metrics.csv").write_text("")
    if cfg.seed > 1:
        raise ConfigError.wrong("seed", expected="another one", got=cfg.seed)


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["seed=1", "run_dir=run"], {"run"}),
        (["seed=2", "run_dir=run"], set()),
        (["seed=2", "run_dir=there"], {"there"}),  # it was there before
        (["seed=3", "run_dir=run"], {"run"}),
        (["-m", "seed=2,1", "run_dir=sweep"], set()),
        (["-m", "seed=1,2", "run_dir=sweep"], {"sweep", "sweep/0_seed-1", "sweep/multirun.yaml"}),
    ],
)
def test_a_run_that_was_refused_leaves_no_folder(
    arguments: list[str], left: set[str], at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "there" in left:
        (at / "there").mkdir()
    monkeypatch.setattr("sys.argv", ["toy", *arguments])
    with pytest.raises(SystemExit) if arguments[0] != "seed=1" else nullcontext():
        hydra_entry("toy", Small, conf=Path("../conf").absolute())(refused)()
    assert {str(p.relative_to(at)) for p in [*at.glob("*"), *at.glob("sweep/*")]} == left


@pytest.mark.parametrize("sweep", [False, True])
def test_a_run_that_stops_later_keeps_all_that_it_wrote(tmp_path: Path, sweep: bool) -> None:
    run = tmp_path / "0_seed-1" if sweep else tmp_path
    if sweep:
        (tmp_path / "multirun.yaml").write_text("")
    for name in ("config.yaml", "metrics.csv", "events/events.out.tfevents.1"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    (run / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    remove_refused(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refused_folder_that_cannot_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(folder: Path) -> None:
        raise OSError(errno.EBUSY, "busy", str(folder))

    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr("shutil.rmtree", busy)
    remove_refused(tmp_path)  # it hides no other error
    assert (tmp_path / "config.yaml").exists()


HOLDS = """
import sys
from pathlib import Path
from opdlight.run_folder.folder import _lock
_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_a_run_is_going_on_is_refused_until_that_one_is_gone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("of the other run")
    cfg = OmegaConf.create({"run_dir": str(tmp_path)})
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=r"`run_dir` to be a folder that no other run is using"):
            open_run(cfg)
        assert (tmp_path / "config.yaml").read_text() == "of the other run"
        remove_refused(tmp_path)
        assert (tmp_path / "config.yaml").exists()
        other.kill()
    open_run(cfg)
    open_run(cfg)  # the same process may go on with its own
    assert "run_dir" in (tmp_path / "config.yaml").read_text()
