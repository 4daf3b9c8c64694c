"""The training step of on-policy distillation: roll out, flatten, score, compare, update."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from opdlight.batch.collate import Collate, count_unshared
from opdlight.batch.ranks import over_ranks
from opdlight.data.requests import Batches, OnPolicyData
from opdlight.distillation.evaluations import Evaluations
from opdlight.distillation.guards import NotFinite
from opdlight.distillation.hooks import show_trajectories, uses_probe
from opdlight.distillation.out_of_memory import OutOfMemory
from opdlight.distillation.schedules import constant
from opdlight.distillation.step import Step, Update
from opdlight.losses import Loss, Remembers
from opdlight.losses.reduce import token_mean
from opdlight.metrics.success import HeldOutOutcomes
from opdlight.models.base import ScoreRequest
from opdlight.models.probe import Probe, ProbeResult
from opdlight.models.scorer import ChunkedScores, Scored, ScoredLater, Scorer, in_chunks
from opdlight.models.student import Student
from opdlight.models.teachers import Placement, Teachers
from opdlight.rollout.source import RolloutSource
from opdlight.system import lightning_internals as internals
from opdlight.system.distributed import all_gather, full_tensor
from opdlight.types import RolloutRequest, TokenBatch, Trajectory


class OnPolicyDistillation(L.LightningModule):
    """Owns the student, the frozen teachers and the loss; everything that only watches is a Callback.

    Args:
        student: the trained model.
        teachers: the frozen models, routed by task.
        loss: per-token objective; declares what it needs of the two models.
        source: rolls out; its sampling temperature also divides the logits of both models (arXiv 2603.25562 Eq. 8).
        optimizer: parameters → optimizer.
        schedule: update number → factor on the learning rate.
        collate: trajectories → micro-batches; by default of 8,192 padded tokens, without a loss mask.
        probe: at which tokens both models are compared for the callbacks.
        max_grad_norm: gradients are clipped to this 2-norm.
        max_not_finite: so many updates whose loss or gradient is not finite end the run; each is skipped.
        mini_batches: updates a rollout; each takes its share of the groups.
        reference: the student as it was at the start, for losses that look at it.
        teacher_placement: each process has the teachers whole (`replicated`), or where a strategy divides the student a
            share of them (`sharded`), or whole or shared in the CPU's memory while they do not score (`offloaded`).
    """

    def __init__(
        self,
        *,
        student: Student,
        teachers: Teachers,
        loss: Loss,
        source: RolloutSource,
        optimizer: Callable[[Any], Optimizer],
        schedule: Callable[[int], float] = constant,
        collate: Collate | None = None,
        probe: Probe | None = None,
        max_grad_norm: float = 1.0,
        max_not_finite: int = 5,
        mini_batches: int = 1,
        reference: Teachers | None = None,
        teacher_placement: Placement = "replicated",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = not student.has_adapter  # a checkpoint holds what is trained
        self.student, self.teachers, self.reference, self.loss = student, teachers, reference, loss
        self.source, self.timer = source, source.timer
        self.scorer = Scorer(student=student, teachers=teachers, reference=reference, timer=self.timer)
        self.collate = collate or Collate(tasks=tuple(teachers.teacher_of), shared=teachers.shared_vocabulary)
        self.make_optimizer, self.schedule, self.max_grad_norm = optimizer, schedule, max_grad_norm
        self.probe, self.mini_batches, self.teacher_placement = probe or Probe(), mini_batches, teacher_placement
        self.updates = 0  # the student's version: how often its weights have changed
        self.not_finite = NotFinite(max_not_finite)
        whole = loss.needs.whole_trajectories
        self.out_of_memory = OutOfMemory(self.collate.micro_batch_tokens, self.print, whole_trajectories=whole)
        self.evaluations, self.held_out = Evaluations(), HeldOutOutcomes()

    def configure_model(self) -> None:
        """Divide the models over the processes, if the strategy has a mesh for it; place the teachers."""
        if self.device_mesh is not None:
            self.student.shard(self.device_mesh)
        for teachers in filter(None, (self.teachers, self.reference)):
            teachers.place(self.teacher_placement, self.device_mesh)

    def setup(self, stage: str) -> None:
        """Start the engine: now the trainer's process group is there, and the engine leaves it alone."""
        self.source.start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin a step with nothing measured."""
        internals.forget_logged(self.trainer)
        internals.set_logging_step(self.trainer, batch_idx)
        self.timer.seconds = {}
        self.evaluations.begin()

    def training_step(self, requests: list[RolloutRequest], batch_idx: int) -> dict[str, Any]:
        """One rollout and its updates; returns the loss and the `Step` for the callbacks."""
        version, not_finite = self.updates, self.not_finite.count
        trajectories = self.roll_out(requests, batch_idx)
        updates = self.flatten(trajectories)
        learnt = [self.learn(batches) for batches in updates]
        with self.timer("watch"):
            probes = [p for rank in all_gather([p for update in learnt for p in update.probes]) for p in rank]
        step = Step(
            probes=probes,
            trajectories=trajectories,
            loss_tokens=sum(batches[0].global_tokens for batches in updates if batches),
            rank_tokens=all_gather(sum(batch.model_tokens for update in learnt for batch in update.batches)),
            shares=[[b.num_tokens / b.global_tokens for b in update.batches] for update in learnt],
            version=version,
            not_finite=self.not_finite.count - not_finite,
        )
        self.log("rollout/loss_tokens", float(step.loss_tokens))
        self.log("rollout/unshared_tokens", float(sum(all_gather(count_unshared(trajectories, self.collate.shared)))))
        return {"loss": self.mean_loss([update.loss for update in learnt]), "step": step}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run when too many updates were not finite; the callbacks have recorded the last one."""
        self.not_finite.check()

    def roll_out(self, requests: Sequence[RolloutRequest], step: int) -> list[Trajectory]:
        """① The student acts. Every turn carries the policy version that produced it."""
        batches = self.trainer.train_dataloader  # of another loader nobody knows what follows
        following = batches.dataset[step + 1] if isinstance(batches, Batches) and step + 1 < len(batches) else None
        self._take_back()
        found = self.source.train(requests, following, step=step, policy=self.student, version=self.updates)
        with self.timer("watch"):
            show_trajectories(self.trainer, self, found, "train")
        return found

    def flatten(self, trajectories: Sequence[Trajectory]) -> list[list[TokenBatch]]:
        """② The micro-batches of each update, as many on every rank; `global_tokens` are the loss positions of all."""
        budget, whole = self.out_of_memory.budget, self.loss.needs.whole_trajectories
        collate = replace(self.collate, micro_batch_tokens=budget, whole_trajectories=whole)
        with self.timer("flatten"):  # contains the wait for the slowest rollout
            found = over_ranks(trajectories, collate, self.mini_batches)
            updates = [[batch.to(self.device) for batch in batches] for batches in found]
        if self.loss.needs.sampled:  # later updates compare the student with what it was when it rolled out
            updates[1:] = [[self.with_rollout_logprobs(b) for b in batches] for batches in updates[1:]]
        return updates

    def learn(self, batches: Sequence[TokenBatch]) -> Update:
        """③ ④ ⑤ One update on these micro-batches."""
        (loss, probes), batches = self.out_of_memory.run(self.accumulate, batches, forget=self._forget)
        with self.timer("update"):
            self.update(loss, has_gradient=bool(batches))
        return Update(loss, batches, probes)

    def accumulate(self, batches: Sequence[TokenBatch]) -> tuple[Tensor, list[ProbeResult]]:
        """③ ④ Score, compare and differentiate each micro-batch; the loss of all, detached, and their probes."""
        loss, probes = torch.zeros((), device=self.device), []
        for number, batch in enumerate(batches):
            with self.timer("score"):
                scores, probe = self.score(batch)
            with self.timer("compare"):
                each = scores.token_sum(self.loss) if isinstance(scores, ChunkedScores) else self.loss(scores, batch)
                contribution = token_mean(each, batch.global_tokens)
            with self.timer("backward"), self._gradients(shared=number + 1 == len(batches)):
                self.manual_backward(contribution * self.trainer.world_size)  # DDP averages; the token mean is a sum
            loss += contribution.detach()
            if probe is not None:
                with self.timer("watch"):
                    probes.append(probe.cpu())
        return loss, probes

    def score(self, batch: TokenBatch) -> Scored | ScoredLater:
        """③ The teachers score the support, their own or the student's choice; the student is scored on it.

        On the full vocabulary that is done later, a few positions at a time, if the loss allows it.
        """
        request = self.score_request()
        if uses_probe(self.trainer):
            request = replace(request, probe_at=self.probe.choose(batch.num_tokens, self.updates), probe_k=self.probe.k)
        later = in_chunks(request, batch.num_tokens)
        return self.scorer.score_later(batch, request) if later else self.scorer.score(batch, request)

    def score_request(self) -> ScoreRequest:
        """What the loss needs, as the rollouts were sampled."""
        return ScoreRequest(
            needs=self.loss.needs,
            shared=self.teachers.shared_vocabulary,
            temperature=self.source.sampling.temperature,
            top_p=self.source.sampling.top_p,
        )

    def with_rollout_logprobs(self, batch: TokenBatch) -> TokenBatch:
        """The batch with the log-probs of its tokens under the student as it is now."""
        with self.timer("score"):
            return replace(batch, rollout_logprobs=self.scorer.student_logprobs(batch, self.score_request()))

    def update(self, loss: Tensor, *, has_gradient: bool) -> None:
        """⑤ One optimizer step.

        A batch without a single loss position, or with a loss or a gradient that is not finite, changes nothing and is
        counted.
        """
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list) and isinstance(scheduler, LRScheduler)
        if has_gradient:
            norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.student.trainable_parameters(), self.max_grad_norm))
            if not self.not_finite.found(loss, norm):
                self.log("optimizer/grad_norm", norm)
                self.log("optimizer/learning_rate", optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
                self.updates += 1
                if isinstance(self.loss, Remembers):
                    self.loss.end_update(all_gather)
            self._forget()
        self.log("optimizer/skipped", 0.0 if has_gradient else 1.0)
        self.log("optimizer/not_finite", float(self.not_finite.count))
        self.log("optimizer/out_of_memory", float(self.out_of_memory.count))

    def _forget(self) -> None:
        """Drop the gradients, and what the loss has seen since the last update."""
        self.student.zero_grad(set_to_none=True)
        if isinstance(self.loss, Remembers):
            self.loss.load_state_dict(self.loss.state_dict())

    def _take_back(self) -> None:
        """Free what models have gathered or borrowed, whoever made them score: the engine needs the memory now."""
        self.student.free_gathered()
        for teachers in filter(None, (self.teachers, self.reference)):
            teachers.take_back()

    def mean_loss(self, losses: Sequence[Tensor]) -> Tensor:
        """The mean over a step's updates of their losses over all ranks; one that is not finite is left out."""
        totals = self.trainer.strategy.reduce(torch.stack(list(losses)), reduce_op="sum")
        finite = totals[torch.isfinite(totals)]
        if not len(finite):
            return totals.new_zeros(())
        self.log("loss/train", finite.mean(), prog_bar=True)
        return finite.mean()

    def _gradients(self, *, shared: bool) -> AbstractContextManager[None]:
        """Within, a backward pass adds up the gradients of all ranks if `shared`, else this rank's alone."""
        strategy = self.trainer.strategy
        # not called `no_sync`: Lightning takes a model with a method of that name for one wrapped by DDP
        return nullcontext() if shared or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    def validation_step(self, requests: list[RolloutRequest], batch_idx: int) -> None:
        """Roll out the held-out episodes of one task."""
        # not in inference mode, in which Lightning validates: FSDP2 keeps the weights that it gathers here for training
        with torch.inference_mode(False), torch.no_grad():
            self._take_back()
            found = self.source.evaluate(requests, policy=self.student, version=self.updates)
            with self.timer("watch"):
                show_trajectories(self.trainer, self, found, "val")
            self.evaluations.add(requests[0].task, found, self.held_out)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of every task that was evaluated; `HeldOutOutcomes` has gathered those of all ranks."""
        for task, result in self.evaluations.last.items():
            self.log(f"val/success/{task}", result.success)
            self.log(f"val/reward/{task}", result.reward)
            if result.admissible_actions is not None and result.wasted_actions is not None:
                self.log(f"val/admissible_actions/{task}", result.admissible_actions)
                self.log(f"val/wasted_actions/{task}", result.wasted_actions)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trained parameters and its schedule by update."""
        optimizer = self.make_optimizer(self.student.trainable_parameters())
        return [optimizer], [LambdaLR(optimizer, self.schedule)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete Lightning's checkpoint, so that it is the state between two steps; leave out what is frozen."""
        checkpoint["updates"] = self.updates
        checkpoint |= {name: part.state_dict() for name, part in self._parts().items()}
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        checkpoint["state_dict"] = {n: w for n, w in checkpoint["state_dict"].items() if n not in frozen}
        internals.set_between_steps(checkpoint, validating=self.trainer.validating)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` has added, and train on if more steps are wanted than were done."""
        self.updates = checkpoint["updates"]
        for name, part in self._parts().items():
            if checkpoint.get(name):  # the loss may be another one than before
                part.load_state_dict(checkpoint[name])
        if isinstance(data := getattr(self.trainer, "datamodule", None), OnPolicyData):
            internals.reopen_training(checkpoint, data.train_set.updates)

    def _parts(self) -> Mapping[str, Any]:
        """What a step depends on beside weights and optimizer, under its name in a checkpoint."""
        parts = {name: getattr(self, name) for name in ("not_finite", "out_of_memory", "source", "evaluations")}
        return parts | ({f"loss {type(self.loss).__name__}": self.loss} if isinstance(self.loss, Remembers) else {})
