"""The toy study in numbers: rows of `toy.csv`, the tables on the terminal, `summary.json`."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from opdlight.lab.toy.training import Outcome
from opdlight.lab.toy.walk import WALKS
from opdlight.metrics.intervals import Mean
from opdlight.system import console

OFF_TARGET = 0.5  # a tenth of the way; a student is off target if it ends so much farther away than its teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The results of one γ over the seeds."""

    gamma: float
    variance: Mean  # log₁₀ of the gradient variance, mean over all iterations of both tasks
    ratio: Mean  # difference of `variance` to the lowest γ, with the same seed
    reverse_kl: Mean  # after training, mean of both tasks, nats per step
    distance: dict[str, Mean]  # after training, by task
    iterations_off: Mean  # share of the iterations of both tasks whose walks ended off target
    off_target: int  # after training, of `walkers`
    walkers: int  # seeds × tasks


def table_rows(outcome: Outcome) -> list[Row]:
    """One row per γ, in the order of the study."""
    gammas = list(dict.fromkeys(g for _, g in outcome.runs))
    log_variance = _by_gamma(outcome.variance.log10().mean(0), len(gammas))  # [γ, seed]
    lowest = log_variance[gammas.index(min(gammas))]
    kl = torch.stack([_by_gamma(e.reverse_kl, len(gammas)) for e in outcome.students.values()]).mean(0)
    distance = {name: _by_gamma(e.distance, len(gammas)) for name, e in outcome.students.items()}
    limits = {name: e.distance + OFF_TARGET for name, e in outcome.teachers.items()}  # [seed]
    off = {name: ~(d <= limits[name]) for name, d in distance.items()}  # NaN is off
    walked = [~(outcome.distance[i::2] <= _by_run(limits[w.name], len(gammas))) for i, w in enumerate(WALKS)]
    iterations_off = _by_gamma(torch.cat(walked).double().mean(0), len(gammas))
    return [
        Row(
            gamma=gamma,
            variance=Mean.of(log_variance[i].tolist()),
            ratio=Mean.of((log_variance[i] - lowest).tolist()),
            reverse_kl=Mean.of(kl[i].tolist()),
            distance={name: Mean.of(d[i].tolist()) for name, d in distance.items()},
            iterations_off=Mean.of(iterations_off[i].tolist()),
            off_target=sum(int(o[i].sum()) for o in off.values()),
            walkers=sum(len(o[i]) for o in off.values()),
        )
        for i, gamma in enumerate(gammas)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rising:
    """In how many seeds the mean log variance rises with γ; a variance that is not finite counts as the largest."""

    every_step: int  # from each γ to the next larger one
    ends: int  # from the lowest γ to the highest
    seeds: int

    @classmethod
    def of(cls, outcome: Outcome) -> "Rising":
        """Count the seeds of one setting."""
        gammas = list(dict.fromkeys(g for _, g in outcome.runs))
        log_variance = _by_gamma(outcome.variance.log10().mean(0), len(gammas)).nan_to_num(nan=torch.inf)
        ascending = log_variance[sorted(range(len(gammas)), key=gammas.__getitem__)]
        every = (ascending[1:] > ascending[:-1]).all(0)
        return cls(
            every_step=int(every.sum()), ends=int((ascending[-1] > ascending[0]).sum()), seeds=log_variance.shape[1]
        )


def main_table(rows: Sequence[Row], outcome: Outcome) -> Table:
    """A row per γ: means and 95 % intervals over seeds."""
    seeds = len({s for s, _ in outcome.runs})
    low = min(r.gamma for r in rows)
    table = console.table(
        "γ", "gradient variance (log₁₀)", f"over γ = {low:g} (log₁₀)", "reverse KL at the end (nats/step)"
    )
    table.title = f"discounted on-policy distillation, mean ± 95 % interval over {seeds} seeds (Student t)"
    for walk in WALKS:
        table.add_column(f"end to target, {walk.name}")
    table.add_column("iterations off target (share)")
    table.add_column("off target at the end")
    for r in rows:
        ratio = "–" if r.gamma == low else str(r.ratio)
        distances = [str(r.distance[w.name]) for w in WALKS]
        numbers = [str(r.variance), ratio, str(r.reverse_kl), *distances, str(r.iterations_off)]
        table.add_row(f"{r.gamma:g}", *numbers, f"{r.off_target} of {r.walkers}")
    teachers = [str(Mean.of(outcome.teachers[w.name].distance.tolist())) for w in WALKS]
    table.add_section()
    table.add_row("teacher", "", "", "", *teachers, "", "")
    return table


def sensitivity_table(outcomes: Mapping[str, Outcome], iterations: int) -> Table:
    """A row per setting of the sensitivity study."""
    first = next(iter(outcomes.values()))
    gammas = list(dict.fromkeys(g for _, g in first.runs))
    low, *others = sorted(gammas)
    table = console.table(
        title=f"sensitivity, {iterations} iterations: variance of a γ over γ = {low:g}, and who is off target"
    )
    table.add_column("setting", no_wrap=True)
    for g in others:
        table.add_column(f"variance, γ={g:g} (log₁₀)")
    table.add_column("seeds where it rises with γ")
    for g in sorted(gammas):
        table.add_column(f"off at the end, γ={g:g}")
    table.add_column("end to target, teacher")
    for name, outcome in outcomes.items():
        by_gamma = {r.gamma: r for r in table_rows(outcome)}
        rises = Rising.of(outcome)
        teacher = Mean.of(torch.stack([e.distance for e in outcome.teachers.values()]).mean(0).tolist())
        table.add_row(
            name,
            *(str(by_gamma[g].ratio) for g in others),
            f"{rises.every_step} of {rises.seeds}",
            *(f"{by_gamma[g].off_target} of {by_gamma[g].walkers}" for g in sorted(gammas)),
            str(teacher),
        )
    return table


def csv_text(outcomes: Mapping[str, Outcome], window: int) -> str:
    """One row per setting, seed, γ, task and window of iterations; `nan` and `inf` are written as such.

    variance: geometric mean in the window; variance_max: its largest; reverse_kl: nats per step, mean;
    distance: |s_T − target|, mean.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    names = ["setting", "seed", "gamma", "task", "first_iteration", "last_iteration"]
    out.writerow([*names, "variance", "variance_max", "reverse_kl", "distance"])
    for setting, outcome in outcomes.items():
        iterations = len(outcome.variance)
        for r, (seed, gamma) in enumerate(outcome.runs):
            for w, walk in enumerate(WALKS):
                for start in range(0, iterations, window):
                    here = slice(start + (w - start) % 2, min(start + window, iterations), 2)
                    variance = outcome.variance[here, r]
                    if len(variance) == 0:
                        continue  # a window of one iteration has only one task
                    kl, distance = outcome.reverse_kl[here, r].mean(), outcome.distance[here, r].mean()
                    numbers = torch.stack([variance.log().mean().exp(), variance.max(), kl, distance]).tolist()
                    key = [setting, seed, gamma, walk.name, start + 1, min(start + window, iterations)]
                    out.writerow([*key, *(f"{v:.6g}" for v in numbers)])
    return text.getvalue()


def _by_run(values: Tensor, gammas: int) -> Tensor:
    """Repeat values [seed] for the runs in the order seed × γ, [R]."""
    return values.repeat_interleave(gammas)


def _by_gamma(values: Tensor, gammas: int) -> Tensor:
    """Reshape values of runs in the order seed × γ, [R], to [γ, seed]."""
    return values.reshape(-1, gammas).T.double()
