"""Records of some trajectories, token by token, with both models' most probable tokens, for the inspector."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from opdlight.batch.collate import keep_all
from opdlight.bounds import NonNegativeInt, PositiveInt
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.losses import Needs
from opdlight.models.probe import ProbeResult
from opdlight.rollout.control_tokens import ControlTokens
from opdlight.system.distributed import all_gather
from opdlight.types import Trajectory, Turn


class TrajectoryRecorder(L.Callback):
    """Writes `trajectories.jsonl` in the run folder, one trajectory a line, scored by the student that rolled it out.

    Args:
        folder: the run folder.
        every: training trajectories are recorded in each `every`-th step.
        train: trajectories a task of such a step; of an update that was not finite all are recorded.
        val: held-out trajectories a task of each validation.
        candidates: most probable tokens of either model that are recorded beside each token.
    """

    def __init__(
        self,
        folder: str,
        every: PositiveInt = 10,
        train: NonNegativeInt = 2,
        val: NonNegativeInt = 8,
        candidates: NonNegativeInt = 5,
    ) -> None:
        self.path = Path(folder) / "trajectories.jsonl"
        self.every, self.counts, self.candidates = every, {"train": train, "val": val}, candidates
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps."""
        self.steps = state_dict["steps"]

    def on_trajectories(
        self, module: OnPolicyDistillation, trajectories: Sequence[Trajectory], stage: Literal["train", "val"]
    ) -> None:
        """Record the first trajectories of each task."""
        step = self.steps
        self.steps += stage == "train"
        if stage == "train" and step % self.every:
            return
        mine = self._first(trajectories, stage)  # of each rank, since one may have none of a task
        found = [t for rank in all_gather(mine) for t in rank]
        self._write(module, step, stage, self._first(sorted(found, key=lambda t: t.group), stage))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the whole batch of an update that was skipped because its loss or gradient was not finite."""
        assert isinstance(pl_module, OnPolicyDistillation)
        if outputs["step"].not_finite:
            found = [t for rank in all_gather(outputs["step"].trajectories) for t in rank]
            self._write(pl_module, batch_idx, "not finite", found)

    def _first(self, trajectories: Sequence[Trajectory], stage: str) -> list[Trajectory]:
        tasks = dict.fromkeys(t.task for t in trajectories)
        return [t for task in tasks for t in [t for t in trajectories if t.task == task][: self.counts[stage]]]

    def _write(self, module: OnPolicyDistillation, step: int, stage: str, chosen: Sequence[Trajectory]) -> None:
        # every rank takes part in scoring with a sharded model
        lines = [{"update": step, "stage": stage, **self.record(module, t)} for t in chosen]
        if not module.trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def record(self, module: OnPolicyDistillation, trajectory: Trajectory) -> dict[str, Any]:
        """The line of one trajectory, without step and stage."""
        probe = probe_all(module, trajectory)
        control = ControlTokens(module.student.tokenizer).contents
        before: list[int] = []
        turns, start = [], 0
        for turn in trajectory.turns:
            split = turn.prompt_ids[: len(before)] != before
            added = turn.prompt_ids if split else turn.prompt_ids[len(before) :]
            prompt, spans = "", []
            for is_control, run in groupby(added, key=lambda i: i in control):
                text = str(module.student.tokenizer.decode(list(run)))
                spans += [[len(prompt), len(prompt) + len(text)]] if is_control else []
                prompt += text
            turns.append(
                {
                    "prompt": prompt,
                    "prompt_control": spans,  # where it holds control tokens, and not only text that spells them
                    "control": [i in control for i in turn.completion_ids],
                    "split": split,
                    "completion": module.student.tokenizer.decode(turn.completion_ids),
                    "finish_reason": turn.finish_reason,
                    "policy_version": turn.policy_version,
                    "reward": turn.reward,
                    "metrics": dict(turn.metrics),
                    **self._tokens(module, turn, probe, start),
                }
            )
            before, start = [*turn.prompt_ids, *turn.completion_ids], start + len(turn.completion_ids)
        return {
            "task": trajectory.task,
            "seed": trajectory.seed,
            "group": trajectory.group,
            "status": str(trajectory.status),
            "reward": trajectory.reward,
            "metrics": dict(trajectory.metrics),
            "turns": turns,
        }

    def _tokens(
        self, module: OnPolicyDistillation, turn: Turn, probe: ProbeResult | None, start: int
    ) -> dict[str, list[Any]]:
        """Lists over the tokens of one turn; null where a token was not scored (the teacher does not have it)."""
        text = module.student.tokenizer.decode
        ids, count = turn.completion_ids, len(turn.completion_ids)
        found: dict[str, list[Any]] = {
            "ids": ids,
            "text": [text([i]) for i in ids],
            "kept": module.collate.loss_mask(ids),
            "engine": [_short(x) for x in turn.sampled_logprobs],
        }
        columns = ("student", "teacher", "mass", "divergence", "student_top", "teacher_top")
        found |= {name: [None] * count for name in columns}
        if probe is None:
            return found
        width = self.candidates
        values = {"student": probe.student, "teacher": probe.teacher, "mass": probe.student_mass,
                  "divergence": probe.divergence}  # fmt: skip
        for place, i in enumerate((probe.position - start).tolist()):
            if not 0 <= i < count:
                continue
            for name, column in values.items():
                found[name][i] = _short(float(column[place]))
            tops = {
                "student_top": (probe.student_ids, probe.student_top, probe.teacher_at_student),
                "teacher_top": (probe.teacher_ids, probe.teacher_top, probe.student_at_teacher),
            }
            for name, (top, own, other) in tops.items():
                three = (top[place, :width].tolist(), own[place, :width].tolist(), other[place, :width].tolist())
                found[name][i] = [[text([t]), _short(a), _short(b)] for t, a, b in zip(*three, strict=True)]
        return found


@torch.no_grad()
def probe_all(module: OnPolicyDistillation, trajectory: Trajectory) -> ProbeResult | None:
    """What both models say at every token of a trajectory, those that the mask leaves out included.

    None if it has no token, or its task no teacher because it is only evaluated.
    """
    if trajectory.task not in module.teachers.teacher_of:
        return None
    request = replace(module.score_request(), needs=Needs(), probe_k=module.probe.k)
    found = []
    for batch in replace(module.collate, loss_mask=keep_all, whole_trajectories=False)([trajectory]):
        every = replace(request, probe_at=torch.arange(batch.num_tokens))
        probe = module.scorer.score(batch.to(module.device), every).probe
        assert probe is not None
        found.append(probe)
    return ProbeResult.join(found) if found else None


def _short(value: float) -> float | None:
    """Rounded to four digits; None for NaN, which stands for what the teacher does not tell."""
    return None if math.isnan(value) else float(f"{value:.4g}")
