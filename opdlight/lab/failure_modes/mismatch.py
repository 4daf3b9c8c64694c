"""The third failure mode: special tokens that student and teacher write differently, and the effect of the mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opdlight.batch.collate import Collate, keep_all
from opdlight.data.requests import OnPolicyData, held_out
from opdlight.data.tasks import TaskMixture
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.schedules import learning_rate
from opdlight.lab.bootstrap import bootstrap
from opdlight.lab.failure_modes.other_tokens import quiet_trainer
from opdlight.lab.failure_modes.tokens import Tokens
from opdlight.losses import Loss, SampledToken, SupportMatching
from opdlight.metrics.intervals import Interval
from opdlight.metrics.tokens import top_share
from opdlight.models import Student, Teacher, Teachers
from opdlight.rollout import Collector, Sampling
from opdlight.rollout.source import RolloutSource
from opdlight.types import Status

LossMask = Callable[[list[int]], list[bool]]


def listed_shares(tokens: Tokens, *, draws: int, seed: int) -> dict[str, Interval]:
    """The share of the tokens that the mask removes in each signal, and how concentrated |reward| is without them.

    `tokens`, `reward`, `sampled_gradient`, `matching_gradient`: their share of all tokens and of each signal.
    `mean_listed`, `mean_other`: mean |reward| of these and of the other tokens, in nats.
    `top_1`, `top_1_masked`: share of Σ|reward| of the top 1 % of all tokens, and of those that the mask keeps.
    """
    parts = {
        "tokens": torch.ones_like(tokens.log_pi),
        "reward": tokens.reward.abs(),
        "sampled_gradient": tokens.sampled_gradient,
        "matching_gradient": tokens.matching_gradient,
    }

    def figures(at: Tensor) -> Tensor:
        listed, reward = tokens.listed[at], parts["reward"][at]
        shares = [values[at][listed].sum() / values[at].sum() for values in parts.values()]
        means = [reward[listed].mean(), reward[~listed].mean()]
        return torch.stack([*shares, *means, top_share(reward, 0.01), top_share(reward[~listed], 0.01)])

    names = (*parts, "mean_listed", "mean_other", "top_1", "top_1_masked")
    return dict(zip(names, bootstrap(figures, tokens.trajectory, draws=draws, seed=seed), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """A sampled token with the log-probs of both models (arXiv 2603.25562 Fig. 5)."""

    text: str
    student: float  # log π, nats
    teacher: float  # log q, nats
    listed: bool  # the mask removes it


def token_logprobs(tokens: Tokens, number: int, tokenizer: PreTrainedTokenizerBase) -> list[TokenLogprobs]:
    """The sampled tokens of trajectory `number`."""
    return [
        TokenLogprobs(
            text=str(tokenizer.decode([int(tokens.token[i])])),
            student=float(tokens.log_pi[i]),
            teacher=float(tokens.log_q[i]),
            listed=bool(tokens.listed[i]),
        )
        for i in (tokens.trajectory == number).nonzero().squeeze(1).tolist()
    ]


def by_token(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """For each token that the mask removes: its count, and its mean log π and log q over all trajectories, in nats."""
    found = {}
    for token in tokens.token[tokens.listed].unique().tolist():
        selected = tokens.listed & (tokens.token == token)
        found[str(tokenizer.decode([token]))] = {
            "count": int(selected.sum()),
            "student": float(tokens.log_pi[selected].mean()),
            "teacher": float(tokens.log_q[selected].mean()),
        }
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The held-out episodes of a student after one short distillation."""

    loss: str
    masked: bool
    success: list[float]  # of each episode, 0 or 1
    cut: list[float]  # 1 where a completion hit the length limit


def distil(cfg: DictConfig, mixture: TaskMixture, folder: Path, collector: Collector, loss_mask: LossMask) -> list[Arm]:
    """Evaluate the student of `folder` ("start"), and distil it for a few updates by two losses, with and without mask.

    All arms roll out the same episodes at top-p 1 and temperature 1, and are evaluated on the same held-out ones at
    `cfg.top_p`; there is one training seed.
    """
    special, name = cfg.special, cfg.special.task
    arms = [_evaluate(cfg, mixture, collector, "start", masked=False)]
    losses: dict[str, Callable[[], Loss]] = {
        "sampled token": SampledToken,
        "LSM": lambda: SupportMatching(k=cfg.k),
    }
    for title, make in losses.items():
        for masked in (False, True):
            student = Student(str(folder), cfg.model.dtype, cfg.model.compute_dtype)
            teachers = Teachers(
                mixture.teachers,
                student,
                partial(Teacher, dtype=cfg.model.compute_dtype, trust_remote_code=cfg.model.trust_remote_code),
            )
            collector.engine.wake()  # it sleeps since the arm before
            collector.engine.update_weights(student.named_weights(), 0)
            source = RolloutSource(
                lambda: collector,
                sampling=Sampling(temperature=1.0, top_p=1.0),
                evaluation=Sampling(temperature=1.0, top_p=cfg.top_p),
                seed=cfg.seed,
            )
            module = OnPolicyDistillation(
                student=student,
                teachers=teachers,
                loss=make(),
                source=source,
                collate=Collate(
                    tasks=(name,),
                    shared=teachers.shared_vocabulary,
                    micro_batch_tokens=cfg.model.micro_batch_tokens,
                    loss_mask=loss_mask if masked else keep_all,
                ),
                optimizer=lambda weights: torch.optim.AdamW(
                    weights, lr=cfg.model.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
                ),
                schedule=learning_rate("constant", warmup=3, updates=special.opd_updates),
                max_grad_norm=1.0,
            )
            data = OnPolicyData(
                mixture, updates=special.opd_updates, groups=special.groups, group_size=1, seed=cfg.seed
            )
            trainer = quiet_trainer(cfg, special.opd_updates)
            trainer.fit(module, datamodule=data)
            source.publish(student, special.opd_updates)  # what the last update made
            arms.append(_evaluate(cfg, mixture, collector, title, masked=masked))
    return arms


def _evaluate(cfg: DictConfig, mixture: TaskMixture, collector: Collector, loss: str, *, masked: bool) -> Arm:
    name = cfg.special.task
    requests = held_out(name, mixture.tasks[name])
    found = collector.collect(requests, Sampling(temperature=1.0, top_p=cfg.top_p))
    return Arm(
        loss=loss,
        masked=masked,
        success=[float(t.status is Status.SUCCESS) for t in found],
        cut=[float(any(turn.finish_reason == "length" for turn in t.turns)) for t in found],
    )


def arm_figures(arms: Sequence[Arm], *, draws: int, seed: int) -> dict[str, Interval]:
    """Success and length-limit hits of every arm, and the paired differences with and without the mask."""
    outcomes = {f"{a.loss}{' + mask' if a.masked else ''}": torch.tensor([a.success, a.cut]) for a in arms}
    for name in [n for n in outcomes if f"{n} + mask" in outcomes]:
        outcomes[f"mask's effect: {name}"] = outcomes[f"{name} + mask"] - outcomes[name]
    table = torch.cat(list(outcomes.values()))  # [2 · arms, episodes]
    names = [f"{name}/{figure}" for name in outcomes for figure in ("success", "cut_by_length")]
    found = bootstrap(lambda at: table[:, at].mean(1), torch.arange(table.shape[1]), draws=draws, seed=seed)
    return dict(zip(names, found, strict=True))
