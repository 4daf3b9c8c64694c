"""The doctor as a whole: exit codes, JSON, broken models, and its quick part at the start of a run."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from opdlight.config import CONF, DoctorConfig, TrainConfig, compose, instantiate
from opdlight.config.help import help_text
from opdlight.doctor import examination
from opdlight.doctor.examination import attempt, examine_config, examine_quickly
from opdlight.doctor.findings import Finding, Verdict, merge_findings, table
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError
from opdlight.train.build import build
from opdlight.train.run import train
from tests.doctor.cases import edited, save
from tests.doctor.test_tokens import swap
from tests.forked import command
from tests.tiny_models import tiny_tokenizer

FAKE = "engine._target_=tests.fakes.AnsweringEngine"


class Broken(TextEnv):
    """Cannot be reset."""

    def reset(self, **arguments: Any) -> Any:
        raise RuntimeError("no key under the mat")


if "Broken-v0" not in gymnasium.registry:
    gymnasium.register(id="Broken-v0", entry_point=Broken)


def doctor(tmp_path: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report."""
    out = tmp_path / "deep" / "report.json"
    cfg = compose("doctor", DoctorConfig, ["task=sums", f"out={out}", *overrides])
    try:
        examine_config(cfg)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, json.loads(out.read_text())


def test_the_lab_pair_is_healthy_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = command("opdlight.doctor", "task=sums", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "doctor: 12 pass, 0 warn, 0 fail" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_fail_is_exit_code_1_and_a_wrong_config_2(tmp_path: Path) -> None:
    done = command("opdlight.doctor", "task=sums", "loss.k=5000", "out=report.json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "fail"
    (failed,) = [f for f in report["findings"] if f["verdict"] == "fail" and f["check"] == "support"]
    assert failed["repair"] == "loss.k=770"
    assert "Traceback" not in done.stderr
    wrong = command("opdlight.doctor", "task=sums", "loss.kk=5", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: Unknown key `loss.kk`")


def test_help_shows_the_groups_of_train_and_its_own_options() -> None:
    text = help_text(CONF, "doctor", ["model=smollm2"])
    for line in ("Usage: python -m opdlight.doctor", "  quick=true", "  out=null", "  doctor=true", "  logger "):
        assert line in text
    assert "override" not in text
    assert "* smollm2" in text
    assert "A key that the config does not list: +trainer.max_time=00:01:00:00" in text.splitlines()


def test_help_fits_a_terminal_of_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, module in (("train", None), ("evaluate", None), ("failure_modes", "opdlight.lab.failure_modes")):
        last = help_text(CONF, name, module=module).partition("Every key: ")[2].splitlines()
        assert len(last) >= 3
        assert max(map(len, last)) <= 80


def test_the_table_leaves_a_narrow_screen_to_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding(check="context", about="lab/teacher-sums (sums)", verdict=Verdict.PASS, evidence="e" * 36)]
    for width, wide in ((80, False), (160, True)):
        screen = Console(width=width, file=io.StringIO(), force_terminal=False)
        monkeypatch.setattr("opdlight.system.console.console", screen)
        screen.print(table(found))
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert "e" * 36 in text  # on one line
        assert "lab/teacher-sums (sums)" in text
        assert (" of " in text) is wide


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=agent_math"],
        ["task=alfworld", "loss=sampled_token", "trainer=gpu"],
        ["task=frozen_lake", "task.tasks.frozen_lake.teacher=lab/teacher-sums"],
        ["task=easy_sums", "model=smollm2", "trainer.max_steps=30", "rollout.groups=16", "schedule.warmup=2"],
    ],
)
def test_the_arguments_of_train_are_those_of_the_doctor(overrides: list[str]) -> None:
    cfg = compose("doctor", DoctorConfig, overrides)
    same = compose("train", TrainConfig, [*overrides, "run_dir=."])
    both = (OmegaConf.to_container(c, resolve=True) for c in (cfg, same))
    mine, trains = both
    assert {k: v for k, v in mine.items() if k not in ("quick", "plan_gib", "out")} == trains


def test_whole_episodes_come_from_the_configured_engine(tmp_path: Path) -> None:
    code, report = doctor(tmp_path, FAKE, "quick=false")
    (answers,) = [f for f in report["findings"] if f["check"] == "greedy answers"]
    assert "over 16 tokens of 4 answers" in answers["evidence"]  # the fake's four tokens
    assert code == (1 if report["verdict"] == "fail" else 0)


def test_an_engine_that_refuses_is_one_line(tmp_path: Path) -> None:
    code, report = doctor(tmp_path, FAKE, "quick=false", "model.max_model_len=100")
    failed = {f["check"]: f for f in report["findings"] if f["verdict"] == "fail"}
    assert code == 1
    assert set(failed) == {"context", "greedy answers"}
    assert failed["context"]["repair"] == "model.max_model_len=256"


def test_models_that_cannot_be_loaded_are_lines_and_the_rest_goes_on(tmp_path: Path) -> None:
    code, report = doctor(tmp_path, f"task.tasks.sums.teacher={tmp_path}/nowhere")
    checks = {f["check"]: f for f in report["findings"]}
    assert code == 1
    assert "does not exist" in checks["teacher"]["evidence"]
    assert checks["support"]["verdict"] == checks["context"]["verdict"] == "pass"
    code, report = doctor(tmp_path, "model.student.model=lab/studnet")
    (only,) = report["findings"]
    assert (code, only["check"]) == (1, "student")
    assert "Did you mean 'lab/student'?" in only["evidence"]


def test_a_pair_of_other_vocabularies_is_examined_to_the_end(tmp_path: Path) -> None:
    student = save(tmp_path / "student", tiny_tokenizer())
    teacher = save(tmp_path / "teacher", edited(swap), seed=1)
    models = [f"model.student.model={student}", f"task.tasks.sums.teacher={teacher}", "model.max_model_len=512"]
    code, report = doctor(tmp_path, *models)
    checks = {f["check"]: f for f in report["findings"]}
    assert code == 1
    assert checks["vocabulary"]["verdict"] == "warn"
    assert "left out of every support and of the loss: 2 of 314 ids" in checks["vocabulary"]["evidence"]
    assert "312 shared ids" in checks["support"]["evidence"]
    assert len(checks) == 12


def test_a_check_that_raises_is_a_fail_with_the_reason() -> None:
    def broken() -> list[Any]:
        raise KeyError("layer")

    (finding,) = attempt("memory", "x", broken)
    assert (finding.verdict, finding.evidence) == (Verdict.FAIL, "could not be checked: KeyError: 'layer'")


def test_a_fault_that_several_checks_meet_is_merge_findings() -> None:
    def broken() -> list[Any]:
        raise KeyError("layer")

    met = [f for name in ("context", "memory") for task in ("a", "b") for f in attempt(name, task, broken)]
    fine = Finding(check="support", verdict=Verdict.PASS, evidence="all", about="a")
    once, *others = merge_findings([*met, fine, replace(fine, about="b")])
    assert (once.check, once.about, once.verdict) == ("context, memory", "a, b", Verdict.FAIL)
    assert others == [fine, replace(fine, about="b")]
    other = replace(met[0], evidence="another", repair="loss.k=8")
    assert merge_findings([met[0], other, replace(other, repair="loss.k=9")]) == [
        met[0],
        other,
        replace(other, repair="loss.k=9"),
    ]


def test_an_environment_that_raises_is_merge_findings(tmp_path: Path) -> None:
    env = ["task.tasks.sums.env.id=tests.doctor.test_examination:Broken-v0", "~task.tasks.sums.env.dataset"]
    env += ["~task.tasks.sums.env.params", "~task.tasks.sums.env.instruction"]
    code, report = doctor(tmp_path, *env)
    said = [f for f in report["findings"] if "no key under the mat" in f["evidence"]]
    assert (code, len(said)) == (1, 1)
    assert {"chat template", "context", "growing history"} <= set(said[0]["check"].split(", "))


def built(*overrides: str) -> tuple[DictConfig, Any, Any]:
    cfg = compose("train", TrainConfig, ["task=sums", FAKE, "run_dir=.", *overrides])
    mixture = instantiate(cfg.task)
    return cfg, mixture, build(cfg, mixture)


def test_the_quick_part_is_one_line_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    cfg, mixture, module = built("loss=sampled_token_sequence")
    weights = [p.detach().clone() for p in module.student.parameters()]
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    examine_quickly(cfg, mixture, module)
    assert capsys.readouterr().out == "doctor: 11 checks passed\n"
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(p.grad is None for p in module.student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, module.student.parameters(), strict=True))
    assert module.loss.running.new_count == 0


def test_the_random_streams_go_on_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(_: Any) -> list[Any]:
        torch.rand(1), random.random(), np.random.rand()
        return []

    parts = built()
    monkeypatch.setattr(examination, "examine", draw)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    examine_quickly(*parts)
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_warning_is_shown_and_does_not_stop(capsys: pytest.CaptureFixture[str]) -> None:
    examine_quickly(*built("loss=topk_truncated"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("doctor: warn: student as its teacher: ")
    assert lines[-1] == "doctor: 10 checks passed"


def test_a_fail_stops_the_run_before_its_first_rollout_and_can_be_overruled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["task=sums", FAKE, "loss.k=5000", f"run_dir={tmp_path / 'run'}", "trainer.max_steps=1"]
    with pytest.raises(ConfigError, match=r"spoil the run \(2 fails above.*doctor=false") as error:
        train(compose("train", TrainConfig, overrides))
    assert "loss.k=770" in capsys.readouterr().out  # once, on a line of its own
    assert "loss.k=770" not in str(error.value)
    assert not list((tmp_path / "run").glob("samples*"))
    cfg, mixture, module = built("loss.k=5000", "doctor=false")
    examine_quickly(cfg, mixture, module)
