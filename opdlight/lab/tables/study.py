"""The study: plan the runs, do those that are missing, compare, draw, write."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from opdlight.config.folders import make_folder
from opdlight.errors import ConfigError, UnfinishedError
from opdlight.lab.tables.runs import Planned, slug, train_all
from opdlight.report.arms.outcomes import Ran
from opdlight.report.arms.page import arms_page
from opdlight.report.arms.read import read_arm_run
from opdlight.report.arms.terminal import arms_table
from opdlight.system.console import say, show, track
from opdlight.system.files import write_text
from opdlight.system.quiet import quiet_libraries

PLAIN = ("doctor=false", "callbacks.checkpoints.keep=1")  # of every run of the study


def tables(cfg: DictConfig) -> dict[str, float]:
    """Do the study of a composed config, or what is missing of it; returns success by setting, task and arm."""
    quiet_libraries()
    folder = make_folder(cfg.run_dir)
    planned = plan(cfg, folder)
    for run in planned:
        run.check()
    write_text(folder / "tables.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    failed = train_all(planned, jobs=cfg.jobs)
    runs = [read(run) for run in track(planned, "reading runs", log=False)]
    parts = arms_page(runs, folder / "index.html", baseline=cfg.baseline, title=folder.name)
    for part in parts:
        show(arms_table(part))
    say(f"page: {folder / 'index.html'}")
    if failed:
        raise UnfinishedError(f"{len(failed)} of {len(planned)} runs failed; the same command tries them again.")
    return {f"{part.setting}/{part.task}/{row.arm}": row.after.value for part in parts for row in part.rows}


def read(run: Planned) -> Ran:
    """What a run of the study came to; what has not finished has failed."""
    found = read_arm_run(run.folder, setting=run.setting, arm=run.arm)
    return replace(found, seed=run.seed, state="finished" if run.finished else "failed")


def plan(cfg: DictConfig, folder: Path) -> list[Planned]:
    """Every run of the study: seed by seed, so that a study that is stopped early has whole seeds.

    Raises:
        ConfigError: for an arm that is not defined, or without the baseline.
    """
    found = []
    for setting, node in cfg.settings.items():
        arms = list(node.arms if node.arms is not None else cfg.arms)
        if unknown := [arm for arm in arms if arm not in cfg.arms]:
            expected = f"names out of `arms` ({', '.join(map(str, cfg.arms))})"
            raise ConfigError.wrong(f"settings.{setting}.arms", expected=expected, got=unknown[0])
        if cfg.only is not None:
            if unknown := [arm for arm in cfg.only if arm not in cfg.arms]:
                expected = f"names out of `arms` ({', '.join(map(str, cfg.arms))})"
                raise ConfigError.wrong("only", expected=expected, got=unknown[0])
            arms = [arm for arm in arms if arm in (*cfg.only, cfg.baseline)]
        if cfg.baseline not in arms:
            raise ConfigError.wrong("baseline", expected=f"one of the arms of every setting ({arms})", got=cfg.baseline)
        for seed in cfg.seeds:
            for arm in arms:
                own = arm == cfg.baseline or any(o.startswith("model.teachers.") for o in cfg.arms[arm])
                teachers = own and seed == cfg.seeds[0]  # one run of a setting measures them
                last = (f"seed={seed}", f"evaluate_teachers={str(teachers).lower()}")
                found.append(
                    Planned(
                        setting=str(setting),
                        arm=str(arm),
                        seed=seed,
                        folder=folder / slug(str(setting)) / slug(str(arm)) / f"seed-{seed}",
                        overrides=(*node.overrides, *PLAIN, *cfg.arms[arm], *last),
                        teachers=teachers,
                    )
                )
    return found
